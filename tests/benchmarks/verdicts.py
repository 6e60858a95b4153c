"""How often each finding holds in simulated studies: by chance, and if its claim is true at the paper's effect size.

    python -m tests.benchmarks.verdicts                    # all findings, 200 studies of each kind
    python -m tests.benchmarks.verdicts --table            # the stored rates as the table of docs/findings.md
    python -m tests.benchmarks.verdicts E6 E16 --studies 50 --dry-run

Writes slick/data/finding_rates.json, which the report reads.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import slick.report.findings
from slick.report.data import StudyData
from slick.report.findings.base import Verdict, findings, judge_finding
from tests.false_claims import BARELY_FALSE, VARIANTS_OF_FINDING, changed
from tests.simulated_study import (
    CATEGORIES,
    DEMO_SIZE,
    PAPER_SIZE,
    StudyRates,
    StudySize,
    identical_rates,
    paper_rates,
    simulate,
    simulate_linear,
)

NAMES = [f"E{i}" for i in range(2, 26)]
LINEAR = ("E12", "E13")
RATES_FILE = Path(slick.report.findings.__file__).parents[2] / "data" / "finding_rates.json"
TRUE, IDENTICAL = "true at the paper's size", "all variants alike, labels and P(True) random"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Studies of one kind."""

    finding: str
    scenario: str
    size: StudySize
    num: int
    counts: dict[str, int]
    """Verdict -> number of studies."""

    def share(self, verdict: str) -> float:
        """Share of the studies with a verdict."""
        return self.counts.get(verdict, 0) / self.num


def scenarios(name: str) -> dict[str, StudyRates]:
    """The kinds of studies of a finding, by what is true in them."""
    barely = {what: changed(paper_rates(), change) for what, change in BARELY_FALSE.get(name, {}).items()}
    if name == "E2":
        barely = {"one category has 1 % of the questions": paper_rates()}
    return {TRUE: paper_rates(), **barely, IDENTICAL: identical_rates()}


def make_study(name: str, scenario: str, rates: StudyRates, size: StudySize, rng: np.random.Generator) -> StudyData:
    """One simulated study."""
    if name in LINEAR:
        return simulate_linear(rates, size, rng)
    if name == "E2":
        shares = [0.33, 0.33, 0.33, 0.01] if scenario.startswith("one category") else [0.24, 0.25, 0.17, 0.34]
        drawn = {split: rng.multinomial(size.num_test, shares).tolist() for split in ("train", "test")}
        return StudyData(
            counts={("P17", "id", split): dict(zip(CATEGORIES, row, strict=True)) for split, row in drawn.items()}
        )
    study = simulate(rates, size, rng, only=VARIANTS_OF_FINDING.get(name))
    return replace(study, counts={})


def run_cell(name: str, scenario: str, size: StudySize, num: int) -> Cell:
    """Judge a finding in many studies of one kind; the seeds are fixed."""
    rates = scenarios(name)[scenario]
    counts: dict[str, int] = {}
    for seed in range(num):
        rng = np.random.default_rng([seed, size.num_test, NAMES.index(name), *scenario.encode()])
        verdict = judge_finding(findings.get(name), make_study(name, scenario, rates, size, rng)).verdict
        counts[str(verdict)] = counts.get(str(verdict), 0) + 1
    return Cell(finding=name, scenario=scenario, size=size, num=num, counts=counts)


def run_all(names: Iterable[str], num: int, workers: int) -> Iterator[Cell]:
    """All kinds of studies of the findings, with the paper's and with a demo's number of questions."""
    tasks = [
        (name, scenario, size, num)
        for name in names
        for size in (DEMO_SIZE, PAPER_SIZE)
        for scenario in scenarios(name)
    ]
    with ProcessPoolExecutor(workers) as pool:
        for future in [pool.submit(run_cell, *task) for task in tasks]:
            yield future.result()


def summarize(cells: list[Cell]) -> dict[str, list[dict[str, float]]]:
    """The content of finding_rates.json."""
    rates: dict[str, list[dict[str, float]]] = {}
    for name in dict.fromkeys(cell.finding for cell in cells):
        for size in dict.fromkeys(cell.size for cell in cells):
            own = [cell for cell in cells if cell.finding == name and cell.size == size]
            false = [
                cell for cell in own if cell.scenario != TRUE and not (name == "E2" and cell.scenario == IDENTICAL)
            ]
            rates.setdefault(name, []).append(
                {
                    "questions": size.num_test,
                    "power": next(cell.share(Verdict.HOLDS) for cell in own if cell.scenario == TRUE),
                    "false_alarm": max(cell.share(Verdict.HOLDS) for cell in false),
                }
            )
    return rates


def main() -> None:
    """Simulate, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("findings", nargs="*", default=NAMES)
    parser.add_argument("--studies", type=int, default=200, help="of each kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dry-run", action="store_true", help="do not write the rates")
    parser.add_argument("--table", action="store_true", help="print the stored rates instead")
    arguments = parser.parse_args()
    if arguments.table:
        print_rates()
        return
    print(
        "| finding | test questions | study | holds | fails | undecided | not testable |\n|---|---|---|---|---|---|---|"
    )
    for name in arguments.findings:
        cells = []
        for cell in run_all([name], arguments.studies, arguments.workers):
            cells.append(cell)
            shares = " | ".join(f"{100 * cell.share(verdict):.1f} %" for verdict in Verdict)
            print(f"| {cell.finding} | {cell.size.num_test:,} | {cell.scenario} | {shares} |", flush=True)
        if not arguments.dry_run:
            store_rates(summarize(cells))


def print_rates() -> None:
    """Print the stored rates as a Markdown table."""
    stored = json.loads(RATES_FILE.read_text())
    numbers = sorted({row["questions"] for rows in stored.values() for row in rows})
    sizes = [f"{number:,.0f} questions" for number in numbers]
    columns = ["finding", *(f"{rate}, {size}" for rate in ("power", "false alarm") for size in sizes)]
    for row in (columns, ["---"] * len(columns)):
        print(f"| {' | '.join(row)} |")
    for name, rows in stored.items():
        by_number = {row["questions"]: row for row in rows}
        shares = [
            f"{100 * by_number[number][rate]:.1f} %" if number in by_number else "–"
            for rate in ("power", "false_alarm")
            for number in numbers
        ]
        print(f"| {name} | {' | '.join(shares)} |")


def store_rates(rates: dict[str, list[dict[str, float]]]) -> None:
    """Replace the rates of some findings in finding_rates.json."""
    stored = json.loads(RATES_FILE.read_text()) | rates
    RATES_FILE.write_text(json.dumps({name: stored[name] for name in NAMES if name in stored}, indent=1) + "\n")


if __name__ == "__main__":
    main()
