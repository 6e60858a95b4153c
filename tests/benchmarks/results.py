"""Tables of docs/results.md: verdicts of a study beside the paper and planted worlds; its sizes, cost and accuracies.

python -m tests.benchmarks.results studies/real --planted studies/15 studies/16 studies/17
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slick.report.findings.base import Verdict
from slick.report.loading import load_study
from slick.report.measurements import CONVERGENCE, EARLY_STOP
from slick.storage import Folder, as_folder
from slick.study import read_manifest
from slick.types import Category
from tests.benchmarks.demo_seeds import print_table


def verdict_rows(study: Path, planted: Sequence[Path]) -> list[list[str]]:
    """One row per finding: claim, the paper's values, the verdict of the study, and the verdicts of planted worlds."""
    rows = []
    others = [_outcomes(folder) for folder in planted]
    for number, result in enumerate(_outcomes(study)):
        counts = Counter(outcomes[number]["verdict"] for outcomes in others)
        of_planted = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
        texts = (result["id"], result["claim"], _text(result["paper"]), f"**{result['verdict']}**", of_planted)
        rows.append([text.replace("|", "\\|") for text in texts])
    return rows


def _text(value: object) -> str:
    """A value of the paper in one cell."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{name} {_text(item)}" for name, item in value.items())
    return str(value)


def reasons(study: Path) -> list[str]:
    """One line per finding: why it has its verdict."""
    return [f"- {result['id']} {result['verdict']}: {result['why']}" for result in _outcomes(study)]


def _outcomes(folder: Path) -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = json.loads((folder / "report" / "outcomes.json").read_text())
    return outcomes


def category_rows(study: Path) -> list[list[str]]:
    """Labels by domain and split."""
    data = load_study(as_folder(str(study)))
    totals: dict[tuple[str, str], Counter[str]] = {}
    for (_, domain, split), counts in data.counts.items():
        totals.setdefault((domain, split), Counter()).update(counts)
    return [
        [
            f"{domain} {split}",
            f"{counts.total():,}",
            *(f"{100 * counts[str(category)] / counts.total():.1f}" for category in Category),
        ]
        for (domain, split), counts in sorted(totals.items())
    ]


def accuracy_rows(study: Path) -> list[list[str]]:
    """Test accuracy of each set at early stop and at convergence, in percent, over its seeds."""
    data = load_study(as_folder(str(study)))
    rows = []
    for name in data.variants:
        cells = []
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            try:
                measured = data.accuracy(name, checkpoint)
            except KeyError:
                cells.append("")
                continue
            cells.append(f"{measured.value:.1f} ± {1.96 * measured.se:.1f}")
        rows.append([name, *cells])
    return rows


def cost_rows(study: Path) -> list[list[str]]:
    """Hours and work of each step, from its manifest."""
    folder = Folder(str(study))
    rows = []
    for step in ("questions", "annotate", "variants", "sweep", "wording", "report"):
        manifest = read_manifest(folder.child(step))
        if manifest is None:
            continue
        counts = {
            name: manifest.counts[name]
            for name in ("questions", "generations", "prompt_tokens", "prefilled_tokens", "decoded_tokens", "runs")
            if isinstance(manifest.counts.get(name), int)
        }
        rows.append(
            [step, f"{manifest.seconds / 3600:.2f}", ", ".join(f"{num:,} {name}" for name, num in counts.items())]
        )
    return rows


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--planted", nargs="*", type=Path, default=[])
    arguments = parser.parse_args()
    print_table(["step", "hours", "work"], cost_rows(arguments.study))
    print()
    print_table(["questions", "number", *(f"{category}, %" for category in Category)], category_rows(arguments.study))
    print()
    print_table(["set", "early stop, %", "convergence, %"], accuracy_rows(arguments.study))
    print()
    print_table(["", "claim", "paper", "study", "planted worlds"], verdict_rows(arguments.study, arguments.planted))
    print()
    print("\n".join(reasons(arguments.study)))


if __name__ == "__main__":
    main()
