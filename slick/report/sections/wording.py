"""Labels and learned facts in a second wording of the questions: is it the fact that is known, or its question?

A sample of the labelled questions is asked again with another template of their relation, under the same exemplars,
reworded too. Models that were fine-tuned on a set answer its training questions in the second wording, in which they
were not trained. Fine-tuned facts that only the trained wording recalls were learned with their question.

Shares have the intervals of Wilson 1927. The share over all questions weights each category by its number of questions,
because small categories are sampled more.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from slick.report.data import StudyData
from slick.report.loading import select_run_per_seed
from slick.report.measurements import (
    InsufficientDataError,
    Measurement,
    binomial_se,
    format_difference,
    format_with_interval,
    interval_ends,
    is_significant,
    subtract,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, table_exhibit
from slick.report.sections import section
from slick.report.sections.stability import flip_rate, load_stability
from slick.report.statistics.intervals import MIN_QUESTIONS, wilson_interval
from slick.report.tables import CellValue, Row, Table
from slick.storage import Folder
from slick.stored_files import read_validated_table
from slick.study import read_manifest
from slick.study_files import KNOWLEDGE_SPEC, read_answer_part, read_epochs, read_knowledge, read_predictions
from slick.types import KNOWN_CATEGORIES, Category

_NEEDED = (
    "needs answers to questions in a second wording, asked for the present labels: `slick wording PRESET`, or "
    "`--experiments wording`; after the labels have changed, delete wording/ first"
)

Labels = Mapping[tuple[Category, Category], int]
"""(category, category in the second wording) to number of questions."""


class LearnedCounts(NamedTuple):
    """Training rows of one category, after the last epoch; means over seeds."""

    rows: float
    first: float
    """Rows answered correctly in the trained wording."""
    both: float
    """Rows answered correctly in both wordings."""
    second: float
    """Rows answered correctly in the second wording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordingResults:
    """What the wording step found."""

    labels: Labels = field(default_factory=dict)
    questions: Mapping[Category, int] = field(default_factory=dict)
    """All labelled questions of each category."""
    learned: Mapping[str, Mapping[Category, LearnedCounts]] = field(default_factory=dict)
    """Fine-tuning set to counts by category."""
    num_seeds: Mapping[str, int] = field(default_factory=dict)
    num_set_aside: int = 0
    """Questions that were not asked because a prompt exceeds the model's context."""
    num_without: int = 0
    """Labelled questions without a second wording."""


@section(
    "wording",
    title="Labels and learned facts in a second wording",
    group=GROUP_EXTENSIONS,
    order=136,
    experiment="wording",
)
def wording_section(data: StudyData) -> SectionBody:
    """How many labels, and how many learned facts, hold in a second wording of the questions."""
    return SectionBody(
        result=" ".join(summary_sentences(data)),
        text="A sample of the labelled questions is asked again with another template of their relation, with the same "
        "exemplars in that wording. After fine-tuning, the model answers its training questions in the second wording, "
        "in which it was not trained. A fact that is answered in both wordings is known as a fact; one that only the "
        "trained wording recalls was learned together with its question.",
        exhibits=(
            table_exhibit(
                "Questions whose category changes in the second wording, with 95 % intervals, beside those of a "
                "repetition in the same wording with other exemplars and samples.",
                lambda: labels_table(_require_results(data), _repeat_rates(data)),
            ),
            table_exhibit(
                "Training questions after the last epoch: answered correctly in the trained wording, and how many of "
                "these in the second wording too, with 95 % intervals.",
                lambda: learned_table(_require_results(data)),
            ),
        ),
    )


def summary_sentences(data: StudyData) -> list[str]:
    """A sentence about the labels and one about each fine-tuned set; empty without data."""
    results, _ = value_or_reason(_require_results, data)
    if results is None:
        return []
    changed = changed_overall(results)
    repeats = _repeat_rates(data).get(None)
    beside = f", against {repeats} % of questions that were repeated in the same wording" if repeats else ""
    first = (
        f"In a second wording, {format_with_interval(changed.value, *interval_ends(changed))} % of the labels "
        f"change{beside}."
    )
    sentences = (learned_sentence(results, name) for name in results.learned)
    return [first, *(sentence for sentence in sentences if sentence), *_not_asked(results)]


def _not_asked(results: WordingResults) -> list[str]:
    """The questions that could not be asked."""
    sentences = []
    if results.num_without:
        sentences.append(
            f"{results.num_without:,} labelled questions have no second wording, so the shares do not cover them."
        )
    if results.num_set_aside:
        sentences.append(f"{results.num_set_aside:,} questions are too long for the model's context in this wording.")
    return sentences


def learned_sentence(results: WordingResults, name: str) -> str:
    """How many of the facts that a set taught hold in the second wording; empty with too few of them."""
    unknown, known = (survival(results, name, known=known) for known in (False, True))
    if unknown is None:
        return ""
    text = (
        f"Of the Unknown facts that training on {name} taught, {_format(unknown)} % are answered in the second wording "
        "too"
    )
    if known is None:
        return f"{text}."
    difference = subtract(unknown, known)
    verdict = "no reliable difference"
    if is_significant(difference):
        more_or_less = "more" if difference.value < 0 else "less"
        verdict = f"newly learned facts depend {more_or_less} on the wording of their question"
    return (
        f"{text}, and {_format(known)} % of the Known ones ({format_difference(difference)} points apart: {verdict})."
    )


def _format(cell: Measurement) -> str:
    low, high = interval_ends(cell)
    return format_with_interval(cell.value, max(0.0, low), min(100.0, high))


def survival(results: WordingResults, name: str, *, known: bool) -> Measurement | None:
    """Percent of the facts answered in the trained wording that are answered in the second one; None with too few.

    Args:
        results: the counts.
        name: a fine-tuning set.
        known: of Known rows, otherwise of Unknown ones.
    """
    chosen = [counts for category, counts in results.learned[name].items() if (category in KNOWN_CATEGORIES) == known]
    first, both = sum(counts.first for counts in chosen), sum(counts.both for counts in chosen)
    if first < MIN_QUESTIONS:
        return None
    percent = 100.0 * both / first
    return Measurement(percent, binomial_se(percent, round(first)), results.num_seeds[name])


def changed_overall(results: WordingResults) -> Measurement:
    """Percent of all labelled questions whose category changes, estimated from the sample of each category."""
    sampled = {category: _of_category(results.labels, category) for category in Category}
    weights = {category: results.questions.get(category, 0) for category in Category if sum(sampled[category])}
    total = sum(weights.values())
    value, variance = 0.0, 0.0
    for category, weight in weights.items():
        changed, same = sampled[category]
        percent = 100.0 * changed / (changed + same)
        value += weight / total * percent
        variance += (weight / total * binomial_se(percent, changed + same)) ** 2
    return Measurement(value, float(np.sqrt(variance)), 1)


def _of_category(labels: Labels, category: Category) -> tuple[int, int]:
    """Numbers of questions of a category that change, and that do not."""
    same = labels.get((category, category), 0)
    return sum(num for (before, _), num in labels.items() if before == category) - same, same


def labels_table(results: WordingResults, repeats: Mapping[Category | None, str]) -> Table:
    """One row per category, and one over all questions.

    Args:
        results: the labels in both wordings.
        repeats: the share of repeated questions whose category changes, as text; key None: of all.
    """
    rows: list[Row] = []
    for category in Category:
        counts = [results.labels.get((category, after), 0) for after in Category]
        total = sum(counts)
        changed, _ = _of_category(results.labels, category)
        rows.append((str(category), *counts, total, _share(changed, total), repeats.get(category)))
    sums = [sum(results.labels.get((before, after), 0) for before in Category) for after in Category]
    overall = changed_overall(results)
    share = format_with_interval(overall.value, *interval_ends(overall))
    rows.append(("all, weighted", *sums, sum(sums), share, repeats.get(None)))
    columns = ("label", *map(str, Category), "all", "changed (%)", "changed in the same wording (%)")
    return Table(
        name="wording_labels",
        columns=columns,
        rows=tuple(rows),
        strong=frozenset((i, i + 1) for i in range(len(Category))),
        total_rows=frozenset({len(rows) - 1}),
    )


def learned_table(results: WordingResults) -> Table:
    """One row per fine-tuning set and category of its rows."""
    if not results.learned:
        raise InsufficientDataError(
            "needs a finished run of unknown-050 that kept the checkpoint of its last epoch, and then `slick wording "
            "PRESET`"
        )
    rows: list[Row] = []
    for name, by_category in results.learned.items():
        for category in Category:
            if category in by_category:
                counts = by_category[category]
                forgotten = counts.second - counts.both
                numbers: list[CellValue] = [round(counts.rows, 1), round(counts.first, 1), round(counts.both, 1)]
                share = _share(counts.both, counts.first)
                rows.append((name, str(category), *numbers, share, round(forgotten, 1), results.num_seeds[name]))
    columns = ("set", "category", "rows", "trained wording", "both wordings", "of these (%)", "second only", "seeds")
    return Table(name="wording_learned", columns=columns, rows=tuple(rows))


def _share(num: float, total: float) -> str | None:
    if not total:
        return None
    low, high = wilson_interval(num, total)
    return format_with_interval(100.0 * num / total, 100.0 * low, 100.0 * high)


def _repeat_rates(data: StudyData) -> dict[Category | None, str]:
    """Share of repeated questions whose category changes, in percent with its interval; empty without repetitions."""
    stability = data.load_cached(load_stability, None)
    rates: dict[Category | None, str] = {}
    for category in (*Category, None):
        rate, _ = value_or_reason(flip_rate, stability, category) if stability else (None, "")
        if rate is not None:
            rates[category] = format_with_interval(100 * rate.share, 100 * rate.low, 100 * rate.high)
    return rates


def _require_results(data: StudyData) -> WordingResults:
    results = data.load_cached(load_wording, None)
    if results is None:
        raise InsufficientDataError(_NEEDED)
    return results


def load_wording(study: Folder) -> WordingResults | None:
    """Load the labels and answers in the second wording; None unless the wording step is finished for these labels.

    Models that were trained again since they were asked are left out.

    Raises:
        StudyError: a file is invalid.
    """
    folder = study.child("wording")
    manifest, annotated = read_manifest(folder), read_manifest(study.child("annotate"))
    if manifest is None or annotated is None or manifest.inputs.get("labels") != annotated.fingerprint:
        return None
    knowledge = read_knowledge(study, ["question_id", "category"])
    first = dict(zip(knowledge["question_id"].to_pylist(), knowledge["category"].to_pylist(), strict=True))
    again = read_validated_table(folder, "knowledge.parquet", KNOWLEDGE_SPEC, ["question_id", "category"])
    pairs = zip(again["question_id"].to_pylist(), again["category"].to_pylist(), strict=True)
    labels = Counter((Category(first[question_id]), Category(category)) for question_id, category in pairs)
    totals = Counter(Category(category) for category in first.values())
    by_run = {
        run_id: _load_learned(study, run_id)
        for run_id in folder.child("trained").folders()
        if _is_of_present_run(study, run_id)
    }
    learned: dict[str, list[dict[Category, LearnedCounts]]] = {}
    for run_id, (variant, _) in select_run_per_seed(by_run).items():
        if by_run[run_id]:
            learned.setdefault(variant, []).append(by_run[run_id])
    return WordingResults(
        labels=labels,
        questions=totals,
        learned={name: _mean_counts(runs) for name, runs in sorted(learned.items())},
        num_seeds={name: len(runs) for name, runs in learned.items()},
        num_set_aside=_total(manifest.counts.get("set_aside", {})),
        num_without=_total(manifest.counts.get("without_second_wording", {})),
    )


def _is_of_present_run(study: Folder, run_id: str) -> bool:
    """Whether the answers are finished, and those of the model that the run's folder holds now."""
    asked = read_manifest(study.child("wording", "trained", run_id))
    run = read_manifest(study.child("runs", run_id))
    return asked is not None and run is not None and asked.inputs.get("run") == run.fingerprint


def _total(counts: Any) -> int:
    """The sum of the numbers in nested counts."""
    return sum(map(_total, counts.values())) if isinstance(counts, Mapping) else int(counts)


def _mean_counts(runs: Sequence[Mapping[Category, LearnedCounts]]) -> dict[Category, LearnedCounts]:
    """Counts averaged over seeds."""
    return {
        category: LearnedCounts(*np.mean([run[category] for run in runs], axis=0).tolist())
        for category in Category
        if all(category in run for run in runs)
    }


def _load_learned(study: Folder, run_id: str) -> dict[Category, LearnedCounts]:
    """Counts by category of one fine-tuned model; empty if no row has a second wording."""
    store = study.child("wording", "trained", run_id, "answers")
    second: dict[str, bool] = {}
    for name in store.names(".parquet"):
        for row in read_answer_part(store, name, ["question_id", "greedy_hit"]).to_pylist():
            (second[row["question_id"]],) = row["greedy_hit"]
    run = study.child("runs", run_id)
    last = max(read_epochs(run)["epoch"].to_pylist())
    rows = read_predictions(run, f"epoch-{last:03d}.parquet", ["question_id", "split", "category", "hit"])
    counts: dict[Category, list[Any]] = {}
    for row in rows.filter(pc.equal(rows["split"], "train")).to_pylist():
        if row["question_id"] in second:
            hits = row["hit"], second[row["question_id"]]
            counts.setdefault(Category(row["category"]), []).append((1, hits[0], all(hits), hits[1]))
    return {category: LearnedCounts(*np.sum(values, axis=0).tolist()) for category, values in counts.items()}
