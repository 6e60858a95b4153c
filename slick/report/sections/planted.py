"""What a study's world planted, beside the labels of the same facts, and why some of the two do not agree."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from slick.matching import make_matcher, normalize
from slick.report.charts import BLUE, CATEGORY_COLOURS, INK, MUTED, ORANGE, PURPLE
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, round1
from slick.report.page import (
    GROUP_PLANTED,
    Exhibit,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    table_exhibit,
)
from slick.report.sections import section
from slick.report.statistics.p_true import p_true_scores
from slick.report.statistics.planted import (
    COPIED_FROM_PROMPT,
    FREQUENT_GUESS,
    OTHER_FACT_ANSWER,
    RARE_GUESS,
    REWORDED,
    RIVAL,
    UNEXPLAINED,
    UNRELATED_ANSWER,
    FloatArray,
    PlantedFacts,
    Proportion,
    RankStatistic,
    apply_temperature,
    calibration_bins,
    cause_counts,
    counts_by_strength,
    false_known_rate,
    false_unknown_rates,
    planted_auroc,
    planted_rank_correlation,
)
from slick.report.tables import CellValue, Table
from slick.storage import Folder
from slick.study import Manifest, read_manifest
from slick.study_files import read_answer_part, read_exemplars, read_knowledge, read_planted, read_question_rows
from slick.types import Category

Row = dict[str, Any]
AnswerList = list[tuple[int, str, bool]]
"""All answers to one question: exemplar set, answer, whether it hits."""
AnswerFrequencies = tuple[Counter[str], dict[str, Counter[str]]]
"""How often each answer was given to the never-planted questions of a relation: in all, and to each question."""

_LABEL_COLUMNS = ("question_id", "relation", "split", "p_correct_greedy", "p_correct_sampled", "category")
_ANSWER_COLUMNS = ("question_id", "greedy_text", "greedy_hit", "sampled_text", "sampled_hit")


def load_planted(study: Folder) -> PlantedFacts | None:
    """The annotated facts of the study's own world; None where the model is another, or nothing is annotated.

    Raises:
        StudyError: a file of a finished step is missing or broken.
    """
    world, annotate = (study.child(step) for step in ("world", "annotate"))
    manifest = read_manifest(annotate)
    # A model that is named did not learn this world, so what the world planted is no truth about it.
    if manifest is None or manifest.settings.get("model") or not world.exists("planted.parquet"):
        return None
    if read_manifest(world) is None or read_manifest(study.child("questions")) is None:
        return None
    rows, strangers = _join_planted(study)
    if not rows:
        return None
    cause_missing_reason = _cause_missing_reason(annotate, manifest)
    causes = {} if cause_missing_reason else _find_causes(study, rows)
    temperature = (manifest.settings.get("sampling") or {}).get("temperature")
    return PlantedFacts(
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
        num_unmatched_questions=strangers,
    )


def _join_planted(study: Folder) -> tuple[list[Row], int]:
    """Rows of the knowledge table with what was planted of them, and how many rows are no fact of the world."""
    names = ["relation", "split", "question", "answer", "strength", "num_gold", "num_rival", "rival"]
    planted = read_planted(study, names).to_pylist()
    facts = {(fact["relation"], fact["split"], fact["question"]): fact for fact in planted}
    questions = read_question_rows(study.child("questions"), ["question_id", "question"]).to_pylist()
    asked = {row["question_id"]: row["question"] for row in questions}
    known = read_knowledge(study, _LABEL_COLUMNS).to_pylist()
    rows = []
    for row in sorted(known, key=lambda row: str(row["question_id"])):
        fact = facts.get((row["relation"], row["split"], asked.get(row["question_id"])))
        if fact is not None:
            rows.append({**row, **fact})
    return rows, len(known) - len(rows)


def _cause_missing_reason(annotate: Folder, manifest: Manifest) -> str:
    """Why the stored answers cannot tell causes; empty if they can."""
    if manifest.settings.get("estimator", "sampled") != "sampled":
        return "the gold estimator keeps no answers that would tell why; annotate with --estimator sampled"
    if manifest.settings.get("mode", "full") != "full":
        return "the labels mode keeps no whole answers that would tell why; annotate with --mode full"
    if not annotate.child("generations").names(".parquet"):
        return "the stored answers that would tell why are not there"
    return ""


def _find_causes(study: Folder, rows: list[Row]) -> dict[str, str]:
    """Why facts are labelled other than planted, by question id."""
    never = {row["question_id"] for row in rows if row["strength"] == "never"}
    wrong = [row for row in rows if (row["strength"] == "never") != (row["category"] == Category.UNKNOWN)]
    said = _load_answers(study, never | {row["question_id"] for row in wrong})
    normal: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        normal[row["relation"]].add(normalize(row["answer"]))
    habits = _answer_frequencies(
        [row for row in rows if row["question_id"] in never and row["question_id"] in said], said
    )
    shown = _exemplar_answers(study)
    found = {}
    for row in wrong:
        one = said.get(row["question_id"])
        if one is None:
            continue
        if row["strength"] == "never":
            found[row["question_id"]] = _guess_cause(row, one, habits[row["relation"]], shown.get(row["relation"], []))
        else:
            found[row["question_id"]] = _miss_cause(row, one, normal[row["relation"]])
    return found


def _load_answers(study: Folder, wanted: set[str]) -> dict[str, AnswerList]:
    folder = study.child("annotate", "generations")
    found = {}
    for name in folder.names(".parquet"):
        part = read_answer_part(folder, name, _ANSWER_COLUMNS)
        mask = pa.array([one in wanted for one in part["question_id"].to_pylist()], type=pa.bool_())
        found.update({row["question_id"]: list(_iter_answers(row)) for row in part.filter(mask).to_pylist()})
    return found


def _iter_answers(row: Row) -> Iterator[tuple[int, str, bool]]:
    for i, (text, hit) in enumerate(zip(row["greedy_text"], row["greedy_hit"], strict=True)):
        yield i, text, hit
    for i, (texts, hits) in enumerate(zip(row["sampled_text"] or [], row["sampled_hit"] or [], strict=True)):
        for text, hit in zip(texts or [], hits or [], strict=True):
            yield i, text, bool(hit)


def _answer_frequencies(never: list[Row], said: Mapping[str, AnswerList]) -> dict[str, AnswerFrequencies]:
    """The habits of each relation."""
    found: dict[str, AnswerFrequencies] = {}
    for row in never:
        total, each = found.setdefault(row["relation"], (Counter(), {}))
        counts: Counter[str] = Counter()
        for text, num in Counter(text for _, text, _ in said[row["question_id"]]).items():
            counts[normalize(text)] += num
        total.update(counts)
        each[row["question_id"]] = counts
    return found


def _guess_cause(row: Row, one: AnswerList, habits: AnswerFrequencies, shown: list[set[str]]) -> str:
    """Why a fact that was never planted is labelled Known."""
    gold = normalize(row["answer"])
    hit_sets = {i for i, _, hit in one if hit}
    if hit_sets and all(i < len(shown) and gold in shown[i] for i in hit_sets):
        return COPIED_FROM_PROMPT
    total, each = habits
    others = len(each) - 1
    elsewhere = total[gold] - each[row["question_id"]][gold]
    if elsewhere >= max(others, 1):
        return FREQUENT_GUESS
    return RARE_GUESS if elsewhere else UNEXPLAINED


def _miss_cause(row: Row, one: AnswerList, answers: set[str]) -> str:
    """Why a planted fact is labelled Unknown."""
    target = make_matcher([row["answer"]], "contains")
    texts = Counter(text for _, text, _ in one)
    if any(target.is_hit(text) for text in texts):
        return REWORDED
    counts: Counter[str] = Counter()
    for text, num in texts.items():
        counts[normalize(text)] += num
    first = max(counts, key=lambda text: (counts[text], text))
    if row["rival"] and first == normalize(row["rival"]):
        return RIVAL
    return OTHER_FACT_ANSWER if first in answers else UNRELATED_ANSWER


def _exemplar_answers(study: Folder) -> dict[str, list[set[str]]]:
    """The normalised answers that stand in each exemplar set, by relation."""
    sets = read_exemplars(study.child("annotate"))
    rows = read_question_rows(study.child("questions"), ["question_id", "answers"]).to_pylist()
    answers = {row["question_id"]: {normalize(answer) for answer in row["answers"]} for row in rows}
    return {
        relation: [set().union(*(answers.get(one, set()) for one in ids)) for ids in of_relation]
        for relation, of_relation in sets.items()
    }


def _to_float_array(values: Iterable[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


@section(
    "planted",
    title="Labels and measures against what was planted",
    group=GROUP_PLANTED,
    order=190,
    experiment="planted",
)
def planted_section(data: StudyData) -> SectionBody | None:
    """The section; None for a model whose knowledge nobody planted."""
    facts = data.part(load_planted, None)
    if facts is None:
        return None
    return SectionBody(
        text=summary_text(data, facts), exhibits=(*_figure_exhibits(data, facts), *_table_exhibits(data, facts))
    )


def summary_text(data: StudyData, facts: PlantedFacts) -> str:
    """How far the labels agree with the truth, in a few sentences."""
    said = [
        f"This model was trained here on a corpus that names the answer of each of {len(facts.strength):,} questions "
        "as often as was decided beforehand, so its labels can be checked against the truth."
    ]
    try:
        missed = false_unknown_rates(facts)
        if "firm" in missed:
            said.append(f"Of the facts planted firmly, {_format_proportion(missed['firm'])} are labelled Unknown.")
        said.append(
            f"Of those never planted, {_format_proportion(false_known_rate(facts))} are labelled Known all the same."
        )
    except InsufficientDataError:
        pass  # a world may plant everything; the tables say what is missing
    said += _rank_sentences(data, facts)
    if facts.num_unmatched_questions:
        said.append(
            f"{facts.num_unmatched_questions:,} annotated questions are no facts of this world and are left out."
        )
    return " ".join(said)


def _rank_sentences(data: StudyData, facts: PlantedFacts) -> list[str]:
    """How well sampled answers and P(True) order the facts, on the same facts where both are there."""
    found = measured_values(data, facts)
    shared = np.ones(len(facts.strength), dtype=bool)
    for name in (SAMPLED, P_TRUE):
        shared &= np.isfinite(found.get(name, np.zeros(len(shared))))
    told = []
    for name in (SAMPLED, P_TRUE):
        try:
            one = planted_rank_correlation(facts, found[name], shared)
        except (KeyError, InsufficientDataError):
            continue  # the table of measures says why
        value, low, high = (f"{round(part, 2) + 0.0:.2f}" for part in one[:3])
        told.append(f"{name}, with a rank correlation of {value} ({low} to {high})")
    return [f"How the measures order {shared.sum():,} facts as they were planted: {'; '.join(told)}."] if told else []


def _figure_exhibits(data: StudyData, facts: PlantedFacts) -> tuple[Exhibit, ...]:
    sharper = (
        f" Dotted: chances sharpened to the sampling temperature, {facts.temperature:g}." if facts.temperature else ""
    )
    return (
        figure_exhibit(
            "Categories of the facts of each planted strength, in percent of them.",
            "planted_categories",
            "Stacked bars: categories by planted strength",
            lambda: planted_category_bars(facts),
        ),
        figure_exhibit(
            "Measures by the planted chance of the gold answer, its share of all mentions: means over facts with 95 % "
            f"intervals. Dashed: as planted.{sharper}",
            "planted_chance",
            "Measured P_Correct and P(True) by planted chance of the gold answer",
            lambda: calibration_curve(data, facts),
        ),
    )


def _table_exhibits(data: StudyData, facts: PlantedFacts) -> tuple[Exhibit, ...]:
    return (
        table_exhibit("Facts of each category by planted strength.", lambda: strength_table(facts)),
        table_exhibit(
            "Labels that are not what was planted: planted facts labelled Unknown, and facts never planted labelled "
            "Known; with 95 % intervals (Wilson).",
            lambda: false_labels_table(facts),
        ),
        table_exhibit("Why, where the stored answers tell; the first cause that applies.", lambda: causes_table(facts)),
        table_exhibit(
            "What each measure recovers. Rank correlation with the planted chance, over all facts and over those with "
            "a rival alone; chance that a planted fact scores above one never planted (area under the ROC curve); in "
            "brackets 95 % intervals.",
            lambda: recovery_table(data, facts),
        ),
        collapsed_table_exhibit("All numbers of the second figure.", lambda: calibration_table(data, facts)),
    )


def planted_category_bars(facts: PlantedFacts) -> Callable[[Any], None]:
    """One bar a strength, stacked by category, in percent."""
    rows = counts_by_strength(facts)

    def plot(axes: Any) -> None:
        y = np.arange(len(rows))[::-1]
        left = np.zeros(len(rows))
        totals = np.array([sum(counts.values()) for counts in rows.values()])
        for category in Category:
            colour, _ = CATEGORY_COLOURS[category]
            width = 100 * np.array([counts[str(category)] for counts in rows.values()]) / totals
            axes.barh(y, width, 0.7, left=left, color=colour, edgecolor="white", linewidth=1.2, label=str(category))
            for at, start, size in zip(y, left, width, strict=True):
                if size >= 6:
                    ink = INK if category is Category.WEAKLY_KNOWN else "white"
                    axes.text(start + size / 2, at, f"{size:.0f}", ha="center", va="center", color=ink, fontsize=11)
            left += width
        axes.set_yticks(y, [f"{name}\n{total:,}" for name, total in zip(rows, totals, strict=True)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("Facts of that strength (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2, fontsize=11)

    return plot


def calibration_curve(data: StudyData, facts: PlantedFacts) -> Callable[[Any], None]:
    """Each measure's mean by planted chance, beside the chance itself."""
    marks = {SAMPLED: (BLUE, "o", "-"), GREEDY: (ORANGE, "s", "--"), P_TRUE: (PURPLE, "^", "-.")}
    curves = {name: calibration_bins(facts, values) for name, values in measured_values(data, facts).items()}

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (6, 3)))
        if facts.temperature:
            x = np.linspace(0, 1, 101)
            axes.plot(x, apply_temperature(x, facts.temperature), color=MUTED, linewidth=1.4, linestyle=":")
        for name, bins in curves.items():
            colour, marker, line = marks[name]
            mean = np.array([one.mean for one in bins])
            reach = np.array([[one.mean - one.low for one in bins], [one.high - one.mean for one in bins]])
            axes.errorbar(
                [one.planted_probability for one in bins],
                mean,
                reach,
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
        axes.set_xlabel("Planted chance of the gold answer")
        axes.set_ylabel("Measured, mean over facts")
        axes.legend(loc="upper left", fontsize=11, handlelength=2.6)

    return plot


def _format_proportion(one: Proportion) -> str:
    low, high = (f"{round1(100 * end):.1f}" for end in (one.low, one.high))
    return f"{one.num:,} of {one.total:,} ({round1(100 * one.share):.1f} %, {low} to {high})"


STRENGTH_LABELS = {
    "firm": "firm: the answer often, no rival",
    "contested": "contested: answer and a rival about equally often",
    "minority": "minority: a rival about twice as often",
    "never": "never: not in the corpus at all",
}
GREEDY, SAMPLED, P_TRUE = "P_Correct, greedy", "P_Correct, sampled", "P(True)"


def measured_values(data: StudyData, facts: PlantedFacts) -> dict[str, FloatArray]:
    """What was measured of each fact, NaN where it was not, by name; what the study does not hold is left out."""
    found = {SAMPLED: facts.sampled, GREEDY: facts.greedy}
    p_true = p_true_scores(data)
    if p_true is not None:
        scores = dict(zip(p_true.question_ids.tolist(), p_true.p_true.tolist(), strict=True))
        found[P_TRUE] = np.array([scores.get(one, np.nan) for one in facts.question_ids.tolist()])
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def strength_table(facts: PlantedFacts) -> Table:
    """Counts and percent of each category by planted strength."""
    rows: list[tuple[CellValue, ...]] = []
    for strength, counts in counts_by_strength(facts).items():
        total = sum(counts.values())
        shares = (f"{num:,} ({100 * num / total:.1f} %)" for num in counts.values())
        rows.append((STRENGTH_LABELS[strength], *shares, total))
    return Table(name="planted_categories", columns=("planted", *map(str, Category), "facts"), rows=tuple(rows))


def false_labels_table(facts: PlantedFacts) -> Table:
    """False Unknowns by strength, and false Knowns, with intervals."""
    found = [(f"planted {name}, labelled Unknown", one) for name, one in false_unknown_rates(facts).items()]
    try:
        found.append(("never planted, labelled Known", false_known_rate(facts)))
    except InsufficientDataError:
        if not found:
            raise
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (name, one.num, one.total, *(round1(100 * part) for part in (one.share, one.low, one.high)))
        for name, one in found
    )
    return Table(
        name="planted_wrong", columns=("label against truth", "facts", "of", "percent", "low", "high"), rows=rows
    )


def causes_table(facts: PlantedFacts) -> Table:
    """Causes of labels that are not what was planted, most first within each strength."""
    rows: list[tuple[CellValue, ...]] = []
    for strength in counts_by_strength(facts):
        found = cause_counts(facts, strength)
        label = "never planted, Known" if strength == "never" else f"planted {strength}, Unknown"
        rows += [(label, cause, num) for cause, num in sorted(found.items(), key=lambda one: -one[1])]
    if not rows:
        raise InsufficientDataError("every label is what was planted")
    return Table(
        name="planted_causes",
        columns=("label against truth", "why", "facts"),
        rows=tuple(rows),
        text_columns=frozenset({1}),
    )


def calibration_table(data: StudyData, facts: PlantedFacts) -> Table:
    """The points of the curve."""
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (name, *(round(value, 4) for value in (one.planted_probability, one.mean, one.low, one.high)), one.num)
        for name, values in measured_values(data, facts).items()
        for one in calibration_bins(facts, values)
    )
    return Table(
        name="planted_chance", columns=("measure", "planted_chance", "mean", "low", "high", "facts"), rows=rows
    )


def recovery_table(data: StudyData, facts: PlantedFacts) -> Table:
    """Rank correlations and areas of each measure, and why one is missing."""
    found = measured_values(data, facts)
    if P_TRUE in found:
        # P(True) may be scored for fewer questions; what P_Correct recovers of just those can be compared with it.
        scored = np.isfinite(found[P_TRUE])
        for name in [name for name in (SAMPLED, GREEDY) if name in found and scored.sum() < len(scored)]:
            found[f"{name}, where P(True) was scored"] = np.where(scored, found[name], np.nan)
    rows: list[tuple[CellValue, ...]] = [_recovery_row(facts, name, values) for name, values in found.items()]
    if P_TRUE not in found:
        rows.append((P_TRUE, None, None, None, None, "it was not scored; run `slick annotate PRESET --p-true`"))
    columns = ("measure", "rank correlation", "with a rival only", "planted above never", "facts", "missing")
    return Table(name="planted_recovery", columns=columns, rows=tuple(rows), text_columns=frozenset({5}))


def _recovery_row(facts: PlantedFacts, name: str, values: FloatArray) -> tuple[CellValue, ...]:
    rivals = np.isin(facts.strength, ["contested", "minority"])
    makers = (
        lambda: planted_rank_correlation(facts, values),
        lambda: planted_rank_correlation(facts, values, rivals),
        lambda: planted_auroc(facts, values),
    )
    cells, reasons = zip(*(_cell_or_reason(make) for make in makers), strict=True)
    return (name, *cells, int(np.isfinite(values).sum()), "; ".join(dict.fromkeys(filter(None, reasons))))


def _cell_or_reason(make: Callable[[], RankStatistic]) -> tuple[str | None, str]:
    try:
        found = make()
    except InsufficientDataError as reason:
        return None, str(reason)
    value, low, high = (f"{round(part, 2) + 0.0:.2f}" for part in found[:3])  # + 0.0: there is no minus nought
    return f"{value} ({low} to {high})", ""
