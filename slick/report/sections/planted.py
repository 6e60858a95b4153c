"""Labels and knowledge measures of a synthetic world compared with what was planted, and causes of wrong labels."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from slick.annotation.answers import iter_answers
from slick.matching import make_matcher, normalize
from slick.report.charts import BLUE, CATEGORY_COLOURS, INK, MUTED, ORANGE, PURPLE, plot_stacked_bars
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, format_with_interval, round1, value_or_reason
from slick.report.page import (
    GROUP_PLANTED,
    Exhibit,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    table_exhibit,
)
from slick.report.sections import section
from slick.report.statistics import planted
from slick.report.statistics.intervals import Proportion, RankStatistic
from slick.report.statistics.p_true import p_true_scores
from slick.report.tables import Row, Table
from slick.storage import Folder
from slick.study import Manifest, read_manifest
from slick.study_files import read_exemplars, read_knowledge, read_planted, read_question_rows
from slick.types import Category

FactRow = dict[str, Any]
"""A row of the knowledge table joined with the planted fact."""

AnswerList = list[tuple[int, str, bool]]
"""All answers to one question: (exemplar set, answer, whether it is correct)."""

AnswerFrequencies = tuple[Counter[str], dict[str, Counter[str]]]
"""Counts of the answers to the never-planted questions of a relation: in total, and by question."""

_LABEL_COLUMNS = ("question_id", "relation", "split", "p_correct_greedy", "p_correct_sampled", "category")
STRENGTH_LABELS = {
    "firm": "firm: the answer often, no rival",
    "contested": "contested: answer and a rival about equally often",
    "minority": "minority: a rival about twice as often",
    "never": "never: not in the corpus at all",
}

GREEDY, SAMPLED, P_TRUE = "P_Correct, greedy", "P_Correct, sampled", "P(True)"


@section(
    "planted",
    title="Labels and measures compared with the planted facts",
    group=GROUP_PLANTED,
    order=190,
    experiment="planted",
)
def planted_section(data: StudyData) -> SectionBody | None:
    """Label errors and recovery of the planted probabilities; None for a model without planted facts."""
    facts = data.load_cached(load_planted, None)
    if facts is None:
        return None
    return SectionBody(
        text=_planted_text(data, facts),
        result=" ".join(label_error_sentences(facts)),
        exhibits=(*_figure_exhibits(data, facts), *_table_exhibits(data, facts)),
    )


def label_error_sentences(facts: planted.PlantedFacts) -> list[str]:
    """Error rates of the labels; empty if the world planted every fact."""
    sentences: list[str] = []
    with suppress(InsufficientDataError):
        missed = planted.false_unknown_rates(facts)
        if "firm" in missed:
            sentences.append(f"Of the facts planted firmly, {_format_proportion(missed['firm'])} are labelled Unknown.")
        sentences.append(
            f"Of those never planted, {_format_proportion(planted.false_known_rate(facts))} are labelled Known."
        )
    return sentences


def _planted_text(data: StudyData, facts: planted.PlantedFacts) -> str:
    """What is compared, and the rank correlations of the measures."""
    sentences = [
        "This model was pretrained on a synthetic corpus in which the number of mentions of the answer to each of "
        f"{len(facts.strength):,} questions is known, so its labels can be compared with the ground truth.",
        *_rank_sentences(data, facts),
    ]
    if facts.num_unmatched_questions:
        sentences.append(
            f"{facts.num_unmatched_questions:,} annotated questions are not facts of this world and are excluded."
        )
    return " ".join(sentences)


def _rank_sentences(data: StudyData, facts: planted.PlantedFacts) -> list[str]:
    """Rank correlations of sampled answers and of P(True) with the planted probability, on the facts that have both."""
    measures = measured_values(data, facts)
    shared = np.ones(len(facts.strength), dtype=bool)
    for name in (SAMPLED, P_TRUE):
        shared &= np.isfinite(measures.get(name, np.zeros(len(shared))))
    parts = []
    for name in (SAMPLED, P_TRUE):
        if name not in measures:
            continue
        correlation, _ = value_or_reason(planted.planted_rank_correlation, facts, measures[name], shared)
        if correlation is None:
            continue
        parts.append(f"{name} {_format_statistic(correlation)}")
    return (
        [f"Rank correlation with the planted probability over {shared.sum():,} facts: {'; '.join(parts)}."]
        if parts
        else []
    )


def _format_proportion(rate: Proportion) -> str:
    share, low, high = (round1(100 * part) for part in (rate.share, rate.low, rate.high))
    return f"{rate.num:,} of {rate.total:,} ({share:.1f} %, {low:.1f} to {high:.1f})"


def _format_statistic(statistic: RankStatistic) -> str:
    return format_with_interval(statistic.value, statistic.low, statistic.high, ".2f")


def _figure_exhibits(data: StudyData, facts: planted.PlantedFacts) -> tuple[Exhibit, ...]:
    temperature_note = (
        f" Dotted: planted probability at the sampling temperature, {facts.temperature:g}." if facts.temperature else ""
    )
    return (
        figure_exhibit(
            "Percent of facts per category by planted strength.",
            "planted_categories",
            "Stacked bars: categories by planted strength",
            lambda: planted_category_bars(facts),
        ),
        figure_exhibit(
            "Measures by the planted probability of the gold answer, its share of all mentions: means over facts with "
            f"95 % intervals. Dashed: perfect calibration.{temperature_note}",
            "planted_chance",
            "Measured P_Correct and P(True) by planted probability of the gold answer",
            lambda: calibration_curve(data, facts),
        ),
    )


def _table_exhibits(data: StudyData, facts: planted.PlantedFacts) -> tuple[Exhibit, ...]:
    return (
        table_exhibit("Number of facts per category by planted strength.", lambda: strength_table(facts)),
        table_exhibit(
            "Wrong labels: planted facts labelled Unknown, and never-planted facts labelled Known, with Wilson's 95 % "
            "intervals.",
            lambda: false_labels_table(facts),
        ),
        table_exhibit(
            "Causes of wrong labels according to the stored answers; the first that applies.",
            lambda: causes_table(facts),
        ),
        table_exhibit(
            "Recovery of the planted probability by each measure: rank correlation over all facts and over those with "
            "a rival only, and AUROC of planted against never-planted facts, with 95 % intervals in brackets.",
            lambda: recovery_table(data, facts),
        ),
        collapsed_table_exhibit("Data of the second figure.", lambda: calibration_table(data, facts)),
    )


def planted_category_bars(facts: planted.PlantedFacts) -> Callable[[Any], None]:
    """Stacked bars of the categories, one per planted strength."""
    rows = planted.counts_by_strength(facts)

    def plot(axes: Any) -> None:
        y = np.arange(len(rows))[::-1]
        totals = np.array([sum(counts.values()) for counts in rows.values()])
        parts = {str(c): 100 * np.array([counts[str(c)] for counts in rows.values()]) / totals for c in Category}
        colours = {str(category): CATEGORY_COLOURS[category][0] for category in Category}
        plot_stacked_bars(axes, y, parts, colours, dark_text=[Category.WEAKLY_KNOWN], linewidth=1.2)
        axes.set_yticks(y, [f"{name}\n{total:,}" for name, total in zip(rows, totals, strict=True)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Facts of that strength (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2, fontsize=11)

    return plot


def calibration_curve(data: StudyData, facts: planted.PlantedFacts) -> Callable[[Any], None]:
    """Mean of each measure by planted probability."""
    marks = {SAMPLED: (BLUE, "o", "-"), GREEDY: (ORANGE, "s", "--"), P_TRUE: (PURPLE, "^", "-.")}
    curves = {name: planted.calibration_bins(facts, values) for name, values in measured_values(data, facts).items()}

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (6, 3)))
        if facts.temperature:
            x = np.linspace(0, 1, 101)
            axes.plot(x, planted.apply_temperature(x, facts.temperature), color=MUTED, linewidth=1.4, linestyle=":")
        for name, bins in curves.items():
            colour, marker, line = marks[name]
            mean = np.array([group.mean for group in bins])
            margins = np.array(
                [[group.mean - group.low for group in bins], [group.high - group.mean for group in bins]]
            )
            axes.errorbar(
                [group.planted_probability for group in bins],
                mean,
                margins,
                fmt=line,
                color=colour,
                marker=marker,
                linewidth=1.6,
                elinewidth=1.3,
                capsize=2.5,
                label=name,
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("Planted probability of the gold answer")
        axes.set_ylabel("Measure (mean over facts)")
        axes.legend(loc="upper left", fontsize=11, handlelength=2.6)

    return plot


def measured_values(data: StudyData, facts: planted.PlantedFacts) -> dict[str, planted.FloatArray]:
    """Measures of each fact by name, NaN where missing, without measures that the study does not have."""
    measures = {SAMPLED: facts.sampled, GREEDY: facts.greedy}
    p_true_values = p_true_scores(data)
    if p_true_values is not None:
        scores = dict(zip(p_true_values.question_ids.tolist(), p_true_values.p_true.tolist(), strict=True))
        measures[P_TRUE] = np.array([scores.get(question_id, np.nan) for question_id in facts.question_ids.tolist()])
    return {name: values for name, values in measures.items() if np.isfinite(values).any()}


def strength_table(facts: planted.PlantedFacts) -> Table:
    """Number and percent of facts per category by planted strength."""
    rows: list[Row] = []
    for strength, counts in planted.counts_by_strength(facts).items():
        total = sum(counts.values())
        shares = (f"{num:,} ({100 * num / total:.1f} %)" for num in counts.values())
        rows.append((STRENGTH_LABELS[strength], *shares, total))
    return Table(name="planted_categories", columns=("planted", *map(str, Category), "facts"), rows=tuple(rows))


def false_labels_table(facts: planted.PlantedFacts) -> Table:
    """Rates of wrong labels by planted strength, with intervals."""
    rates = [(f"planted {name}, labelled Unknown", rate) for name, rate in planted.false_unknown_rates(facts).items()]
    try:
        rates.append(("never planted, labelled Known", planted.false_known_rate(facts)))
    except InsufficientDataError:
        if not rates:
            raise
    rows: tuple[Row, ...] = tuple(
        (name, rate.num, rate.total, *(round1(100 * part) for part in (rate.share, rate.low, rate.high)))
        for name, rate in rates
    )
    return Table(
        name="planted_wrong", columns=("label against truth", "facts", "of", "percent", "low", "high"), rows=rows
    )


def causes_table(facts: planted.PlantedFacts) -> Table:
    """Causes of wrong labels, most frequent first within each strength."""
    rows: list[Row] = []
    for strength in planted.counts_by_strength(facts):
        counts = planted.cause_counts(facts, strength)
        label = "never planted, Known" if strength == "never" else f"planted {strength}, Unknown"
        rows += [(label, cause, num) for cause, num in sorted(counts.items(), key=lambda item: -item[1])]
    if not rows:
        raise InsufficientDataError("every label agrees with the planted strength")
    return Table(
        name="planted_causes",
        columns=("label against truth", "why", "facts"),
        rows=tuple(rows),
        text_columns=frozenset({1}),
    )


def calibration_table(data: StudyData, facts: planted.PlantedFacts) -> Table:
    """The points of the calibration curves."""
    rows: tuple[Row, ...] = tuple(
        (
            name,
            *(round(value, 4) for value in (group.planted_probability, group.mean, group.low, group.high)),
            group.num,
        )
        for name, values in measured_values(data, facts).items()
        for group in planted.calibration_bins(facts, values)
    )
    return Table(
        name="planted_chance", columns=("measure", "planted_chance", "mean", "low", "high", "facts"), rows=rows
    )


def recovery_table(data: StudyData, facts: planted.PlantedFacts) -> Table:
    """Rank correlations and AUROC of each measure, with reasons for missing ones."""
    measures = measured_values(data, facts)
    if P_TRUE in measures:
        # P(True) may be scored for fewer questions; P_Correct on just those is comparable with it.
        scored = np.isfinite(measures[P_TRUE])
        for name in [name for name in (SAMPLED, GREEDY) if name in measures and scored.sum() < len(scored)]:
            measures[f"{name}, where P(True) was scored"] = np.where(scored, measures[name], np.nan)
    rows: list[Row] = [_recovery_row(facts, name, values) for name, values in measures.items()]
    if P_TRUE not in measures:
        rows.append((P_TRUE, None, None, None, None, "it was not scored; run `slick annotate PRESET --p-true`"))
    columns = ("measure", "rank correlation", "with a rival only", "planted above never", "facts", "missing")
    return Table(name="planted_recovery", columns=columns, rows=tuple(rows), text_columns=frozenset({5}))


def _recovery_row(facts: planted.PlantedFacts, name: str, values: planted.FloatArray) -> Row:
    rivals = np.isin(facts.strength, ["contested", "minority"])
    computations = (
        lambda: planted.planted_rank_correlation(facts, values),
        lambda: planted.planted_rank_correlation(facts, values, rivals),
        lambda: planted.planted_auroc(facts, values),
    )
    statistics, reasons = zip(*map(value_or_reason, computations), strict=True)
    cells = (None if s is None else _format_statistic(s) for s in statistics)
    return (name, *cells, int(np.isfinite(values).sum()), "; ".join(dict.fromkeys(filter(None, reasons))))


def load_planted(study: Folder) -> planted.PlantedFacts | None:
    """Load the annotated facts of the study's world; None if another model is annotated, or nothing.

    Raises:
        StudyError: a file of a finished step is missing or malformed.
    """
    world, annotate = (study.child(step) for step in ("world", "annotate"))
    manifest = read_manifest(annotate)
    # A model given by name was not trained on this world, so the planted facts are not its ground truth.
    if manifest is None or manifest.settings.get("model") or not world.exists("planted.parquet"):
        return None
    if read_manifest(world) is None or read_manifest(study.child("questions")) is None:
        return None
    rows, num_unmatched = _join_planted(study)
    if not rows:
        return None
    cause_missing_reason = _cause_missing_reason(annotate, manifest)
    causes = {} if cause_missing_reason else _find_causes(study, rows)
    temperature = (manifest.settings.get("sampling") or {}).get("temperature")
    return planted.PlantedFacts(
        question_ids=np.array([row["question_id"] for row in rows], dtype=str),
        strength=np.array([row["strength"] for row in rows], dtype=str),
        num_gold=np.array([row["num_gold"] for row in rows], dtype=np.int64),
        num_rival=np.array([row["num_rival"] for row in rows], dtype=np.int64),
        category=np.array([row["category"] for row in rows], dtype=str),
        greedy=_to_float_array(row["p_correct_greedy"] for row in rows),
        sampled=_to_float_array(row["p_correct_sampled"] for row in rows),
        cause=np.array([causes.get(row["question_id"], "") for row in rows], dtype=str),
        cause_missing_reason=cause_missing_reason,
        temperature=None if temperature is None else float(temperature),
        num_unmatched_questions=num_unmatched,
    )


def _join_planted(study: Folder) -> tuple[list[FactRow], int]:
    """Rows of the knowledge table joined with the planted facts, and the number of rows without one."""
    names = ["relation", "split", "question", "answer", "strength", "num_gold", "num_rival", "rival"]
    planted_rows = read_planted(study, names).to_pylist()
    facts = {(fact["relation"], fact["split"], fact["question"]): fact for fact in planted_rows}
    questions = read_question_rows(study.child("questions"), ["question_id", "question"]).to_pylist()
    question_texts = {row["question_id"]: row["question"] for row in questions}
    labels = read_knowledge(study, _LABEL_COLUMNS).to_pylist()
    rows = []
    for row in sorted(labels, key=lambda row: str(row["question_id"])):
        fact = facts.get((row["relation"], row["split"], question_texts.get(row["question_id"])))
        if fact is not None:
            rows.append({**row, **fact})
    return rows, len(labels) - len(rows)


def _cause_missing_reason(annotate: Folder, manifest: Manifest) -> str:
    """Why causes cannot be determined from the stored answers; empty if they can."""
    if manifest.settings.get("estimator", "sampled") != "sampled":
        return "the gold estimator stores no answers to determine causes from; annotate with --estimator sampled"
    if manifest.settings.get("mode", "full") != "full":
        return "the labels mode stores no complete answers to determine causes from; annotate with --mode full"
    if not annotate.child("generations").names(".parquet"):
        return "the stored answers are missing, so causes cannot be determined"
    return ""


def _find_causes(study: Folder, rows: list[FactRow]) -> dict[str, str]:
    """Causes of wrong labels by question_id."""
    never = {row["question_id"] for row in rows if row["strength"] == "never"}
    wrong = [row for row in rows if (row["strength"] == "never") != (row["category"] == Category.UNKNOWN)]
    answers = _load_answers(study, never | {row["question_id"] for row in wrong})
    gold_answers: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        gold_answers[row["relation"]].add(normalize(row["answer"]))
    frequencies = _answer_frequencies(
        [row for row in rows if row["question_id"] in never and row["question_id"] in answers], answers
    )
    exemplar_answers = _exemplar_answers(study)
    causes = {}
    for row in wrong:
        row_answers = answers.get(row["question_id"])
        if row_answers is None:
            continue
        if row["strength"] == "never":
            causes[row["question_id"]] = _guess_cause(
                row, row_answers, frequencies[row["relation"]], exemplar_answers.get(row["relation"], [])
            )
        else:
            causes[row["question_id"]] = _miss_cause(row, row_answers, gold_answers[row["relation"]])
    return causes


def _load_answers(study: Folder, question_ids: set[str]) -> dict[str, AnswerList]:
    rows = iter_answers(study, pa.array(question_ids, pa.string()))
    return {row["question_id"]: list(_flat_answers(row)) for row in rows}


def _flat_answers(row: FactRow) -> Iterator[tuple[int, str, bool]]:
    for i, (text, hit) in enumerate(zip(row["greedy_text"], row["greedy_hit"], strict=True)):
        yield i, text, hit
    for i, (texts, hits) in enumerate(zip(row["sampled_text"] or [], row["sampled_hit"] or [], strict=True)):
        for text, hit in zip(texts or [], hits or [], strict=True):
            yield i, text, bool(hit)


def _answer_frequencies(never: list[FactRow], answers: Mapping[str, AnswerList]) -> dict[str, AnswerFrequencies]:
    """The answer counts of each relation."""
    frequencies: dict[str, AnswerFrequencies] = {}
    for row in never:
        total, by_question = frequencies.setdefault(row["relation"], (Counter(), {}))
        counts: Counter[str] = Counter()
        for text, num in Counter(text for _, text, _ in answers[row["question_id"]]).items():
            counts[normalize(text)] += num
        total.update(counts)
        by_question[row["question_id"]] = counts
    return frequencies


def _guess_cause(
    row: FactRow, answers: AnswerList, frequencies: AnswerFrequencies, exemplar_answers: list[set[str]]
) -> str:
    """Why a never-planted fact is labelled Known."""
    gold = normalize(row["answer"])
    hit_sets = {i for i, _, hit in answers if hit}
    if hit_sets and all(i < len(exemplar_answers) and gold in exemplar_answers[i] for i in hit_sets):
        return planted.COPIED_FROM_PROMPT
    total, by_question = frequencies
    others = len(by_question) - 1
    elsewhere = total[gold] - by_question[row["question_id"]][gold]
    if elsewhere >= max(others, 1):
        return planted.FREQUENT_GUESS
    return planted.RARE_GUESS if elsewhere else planted.UNEXPLAINED


def _miss_cause(row: FactRow, answers: AnswerList, gold_answers: set[str]) -> str:
    """Why a planted fact is labelled Unknown."""
    target = make_matcher([row["answer"]], "contains")
    texts = Counter(text for _, text, _ in answers)
    if any(target.is_hit(text) for text in texts):
        return planted.REWORDED
    counts: Counter[str] = Counter()
    for text, num in texts.items():
        counts[normalize(text)] += num
    first = max(counts, key=lambda text: (counts[text], text))
    if row["rival"] and first == normalize(row["rival"]):
        return planted.RIVAL
    return planted.OTHER_FACT_ANSWER if first in gold_answers else planted.UNRELATED_ANSWER


def _exemplar_answers(study: Folder) -> dict[str, list[set[str]]]:
    """The normalised answers shown in each exemplar set, by relation."""
    sets = read_exemplars(study.child("annotate"))
    rows = read_question_rows(study.child("questions"), ["question_id", "answers"]).to_pylist()
    answers = {row["question_id"]: {normalize(answer) for answer in row["answers"]} for row in rows}
    return {
        relation: [set().union(*(answers.get(question_id, set()) for question_id in ids)) for ids in exemplar_sets]
        for relation, exemplar_sets in sets.items()
    }


def _to_float_array(values: Iterable[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
