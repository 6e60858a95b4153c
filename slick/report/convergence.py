"""Trainings whose last epoch is not convergence in the paper's sense: not all training rows are answered correctly."""

from collections.abc import Sequence
from typing import NamedTuple

from slick.report.data import StudyData
from slick.report.labels import run_label
from slick.report.loading import finished_runs, parse_run_id
from slick.report.measurements import round1
from slick.report.page import Section
from slick.report.tables import Table
from slick.storage import Folder
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES

MAX_NAMED = 10
"""Trainings that the page names; tables/not_converged.csv has all."""


class UnfittedRun(NamedTuple):
    """A training that ends with less than 100 % of its training rows correct."""

    label: str
    train_accuracy: float
    """At the last epoch, percent."""


class FinalTrainAccuracies(NamedTuple):
    """Trainings to the full length: those that do not reach 100 %, least fitted first, and the number of all."""

    unfitted: tuple[UnfittedRun, ...]
    num_runs: int


def final_train_accuracies(data: StudyData) -> FinalTrainAccuracies:
    """The train accuracy of every training at its last epoch, also of those with other settings than the default ones.

    Trainings with a smaller epoch budget than the longest are not counted.
    """
    accuracies = {
        run_label(data, run.variant, run.seed): float(run.accuracy["train", ALL_CATEGORIES][-1])
        for run in data.runs
        if ("train", ALL_CATEGORIES) in run.accuracy
    }
    for run_id, (last, accuracy) in data.load_cached(
        load_other_runs, {}, frozenset(run.run_id for run in data.runs)
    ).items():
        variant, seed, settings = parse_run_id(run_id)
        if settings and last >= max((int(run.epochs[-1]) for run in data.runs), default=0):
            accuracies[run_label(data, variant, seed, settings)] = accuracy
    unfitted = [UnfittedRun(label, value) for label, value in accuracies.items() if value < 100.0]
    return FinalTrainAccuracies(tuple(sorted(unfitted, key=lambda run: run.train_accuracy)), len(accuracies))


def load_other_runs(study: Folder, loaded: frozenset[str]) -> dict[str, tuple[int, float]]:
    """Last epoch and train accuracy in percent of the finished runs that are not in `loaded`, by run_id."""
    found = {}
    for run_id in finished_runs(study):
        if run_id in loaded:
            continue
        rows = [
            row
            for row in read_epochs(study.child("runs", run_id)).to_pylist()
            if (row["split"], row["category"]) == ("train", ALL_CATEGORIES)
        ]
        if rows:
            last = max(rows, key=lambda row: row["epoch"])
            found[run_id] = (int(last["epoch"]), 100.0 * last["num_correct"] / last["num"])
    return found


def convergence_note(result: FinalTrainAccuracies) -> str:
    """One sentence that names the trainings below 100 %; empty if there are none."""
    if not result.unfitted:
        return ""
    listed = result.unfitted[:MAX_NAMED]
    names = "; ".join(f"{run.label}: {_format_accuracy(run.train_accuracy)}" for run in listed)
    more = len(result.unfitted) - len(listed)
    return (
        f"Convergence is the last epoch, at which {len(result.unfitted)} of {result.num_runs} trainings answer fewer "
        f"than 100 % of their training rows correctly: {names}{f'; and {more} more' if more else ''}."
    )


def convergence_table(result: FinalTrainAccuracies) -> Table:
    """All trainings that end below 100 %."""
    rows = tuple((run.label, round(run.train_accuracy, 3)) for run in result.unfitted)
    return Table(name="not_converged", columns=("training", "train_accuracy_percent"), rows=rows)


def mentions_convergence(section: Section) -> bool:
    """Whether the text, a caption or a table of a section mentions convergence."""
    texts: list[Sequence[object]] = [(section.text, section.result)]
    for exhibit in section.exhibits:
        texts.append((exhibit.caption,))
        if exhibit.table is not None:
            texts += [exhibit.table.columns, *([row[:4] for row in exhibit.table.rows[:20]])]
        if exhibit.figure is not None:
            texts.append((exhibit.figure.svg,))
    return any("convergence" in str(text) for line in texts for text in line)


def _format_accuracy(percent: float) -> str:
    """Rounded down, so that it is never 100.0."""
    return f"{min(round1(percent), 99.9):.1f} %"
