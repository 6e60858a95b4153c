"""The verdicts of several studies that differ in their seeds, as a Markdown table.

for seed in 10 11 12; do slick study demo --seed $seed --out studies/$seed; done
python -m tests.benchmarks.demo_seeds studies/*
python -m tests.benchmarks.demo_seeds --remedies studies/*     # of studies with --experiments remedies
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slick.report.findings.base import Verdict
from slick.report.loading import load_study
from slick.report.measurements import CONVERGENCE, EARLY_STOP, Z_95, Measurement, format_change
from slick.report.recommendation import t_interval_over_seeds
from slick.report.sections.remedies import compare
from slick.report.statistics.remedies import NO_REMEDY, RemedyComparison
from slick.storage import as_folder
from slick.types import Category


def verdict_rows(folders: list[Path]) -> list[list[str]]:
    """One row per finding: its claim, the number of studies with each verdict, and the most frequent reason."""
    outcomes = [json.loads((folder / "report" / "outcomes.json").read_text()) for folder in folders]
    rows = []
    for results in zip(*outcomes, strict=True):
        counts = Counter(result["verdict"] for result in results)
        rows.append([results[0]["id"], results[0]["claim"], *(str(counts.get(v, 0) or "") for v in Verdict)])
    return rows


def world_rows(folders: list[Path]) -> list[list[str]]:
    """One row per study: its categories, and test accuracy without and with only Unknown rows."""
    rows = []
    for folder in folders:
        data = load_study(as_folder(str(folder)))
        totals = Counter[str]()
        for (_, domain, split), counts in data.counts.items():
            if (domain, split) == ("id", "train"):
                totals.update(counts)
        shares = [f"{100 * totals[str(category)] / totals.total():.0f}" for category in Category]
        accuracies = [
            f"{data.accuracy(name, checkpoint).value:.1f}"
            for checkpoint in (EARLY_STOP, CONVERGENCE)
            for name in ("unknown-000", "unknown-100")
        ]
        rows.append([folder.name, " / ".join(shares), *accuracies])
    return rows


def remedy_rows(folders: list[Path]) -> list[list[str]]:
    """One row per remedy: verdicts, and means over the studies of the differences from no remedy.

    The intervals are Student's t over studies, so they say what to expect of another world.
    """
    by_remedy: dict[str, list[RemedyComparison]] = {}
    for folder in folders:
        for comparison in compare(load_study(as_folder(str(folder)))):
            by_remedy.setdefault(comparison.remedy, []).append(comparison)
    rows = []
    for remedy, comparisons in by_remedy.items():
        verdicts = Counter(str(comparison.verdict) for comparison in comparisons)
        learned = [comparison.learned.value for comparison in comparisons if comparison.learned is not None]
        changes = [
            [comparison.learned_change, comparison.lost_change, comparison.accuracy_change]
            for comparison in comparisons
        ]
        rows.append(
            [
                remedy,
                f"{np.mean(learned):.1f}" if learned else "not trained",
                f"{np.mean([comparison.lost.value for comparison in comparisons]):.1f}",
                *(_mean_change(column) for column in zip(*changes, strict=True)),
                ", ".join(f"{num} {verdict}" for verdict, num in verdicts.most_common()),
            ]
        )
        if remedy == NO_REMEDY:
            rows[-1][3:] = [""] * 4
    return rows


def _mean_change(changes: Sequence[Measurement]) -> str:
    """The mean over studies; its margin is at least that of the errors within the studies."""
    estimate = t_interval_over_seeds([change.value for change in changes])
    assert estimate.value is not None
    margin = Z_95 * float(np.sqrt(sum(change.se**2 for change in changes))) / len(changes)
    if estimate.high is not None:
        margin = max(margin, estimate.high - estimate.value)
    return format_change(estimate.value, max(estimate.value - margin, -100.0), min(estimate.value + margin, 100.0))


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in [columns, ["---"] * len(columns), *rows]:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Print both tables, and the reasons of every study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--reasons", action="store_true", help="print why, for each study")
    parser.add_argument("--remedies", action="store_true", help="print the table of remedies only")
    arguments = parser.parse_args()
    if arguments.remedies:
        columns = ["remedy", "learned, %", "lost, %", "learned - none", "lost - none", "test - none", "verdicts"]
        print_table(columns, remedy_rows(arguments.studies))
        return
    print_table(["", "claim", *map(str, Verdict)], verdict_rows(arguments.studies))
    print()
    lengths = ("early stop", "convergence")
    columns = [f"{share} % Unknown, {length}" for length in lengths for share in (0, 100)]
    print_table(
        ["seed", "HighlyKnown / MaybeKnown / WeaklyKnown / Unknown, %", *columns], world_rows(arguments.studies)
    )
    for folder in arguments.studies if arguments.reasons else ():
        print(f"\n{folder}")
        for result in json.loads((folder / "report" / "outcomes.json").read_text()):
            print(f"  {result['id']} {result['verdict']}: {result['why']}")


if __name__ == "__main__":
    main()
