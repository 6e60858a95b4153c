"""The verdicts of several studies that differ in their seeds, as a Markdown table.

for seed in 10 11 12; do slick study demo --seed $seed --out studies/$seed; done
python -m tests.benchmarks.demo_seeds studies/*
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from slick.report.findings.base import Verdict
from slick.report.loading import load_study
from slick.report.measurements import CONVERGENCE, EARLY_STOP
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


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in [columns, ["---"] * len(columns), *rows]:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Print both tables, and the reasons of every study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--reasons", action="store_true", help="print why, for each study")
    arguments = parser.parse_args()
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
