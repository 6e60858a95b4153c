"""Stability of the labels: with fewer answers, on repeated questions, and on control questions about invented subjects.

The checks are in annotate/confidence.json and the knowledge table.

Source: the categories are those of Gekhman et al. 2024, arXiv:2405.05904, section 3; intervals of shares are those of
Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

import numpy as np

from slick.errors import StudyError
from slick.report.charts import CATEGORY_COLOURS, label_line_ends
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, format_with_interval, round1, value_or_reason
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.intervals import Proportion, proportion
from slick.report.tables import Row, Table
from slick.storage import Folder
from slick.stored_files import Count, Minimum, read_record
from slick.study import read_manifest
from slick.study_files import read_knowledge
from slick.types import KNOWN_CATEGORIES, Category

CONFIDENCE_FILE = "confidence.json"
_REMEDY = "annotate again with --rescore, which rewrites it from the stored answers"
UNKNOWN = Category.UNKNOWN
T = TypeVar("T")
CountsByCategory = dict[Category, Count]
"""Number of questions per category."""


class ConvergenceRecord(TypedDict):
    """The labels with a subset of the answers."""

    exemplar_sets: Annotated[int, Minimum(1)]
    samples: Annotated[int, Minimum(1)]
    categories: CountsByCategory


class RepeatsRecord(TypedDict):
    """Repeated questions."""

    questions: Count
    flipped: Count
    from_to: dict[Category, CountsByCategory]


class ControlsRecord(TypedDict):
    """Questions about invented subjects, by relation and split."""

    questions: Count
    categories: dict[str, dict[str, CountsByCategory]]


class ConfidenceRecord(TypedDict):
    """confidence.json."""

    settling: list[ConvergenceRecord]
    repeats: NotRequired[RepeatsRecord]
    controls: NotRequired[ControlsRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsampledLabels:
    """The labels of the study with fewer exemplar sets or samples."""

    exemplar_sets: int
    samples: int
    """Samples per prompt."""
    categories: Mapping[Category, int]
    """Number of questions per category."""

    def share(self, category: Category) -> float:
        """Share of the questions, in [0, 1]."""
        return self.categories[category] / sum(self.categories.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStability:
    """The stored checks of the labels; checks that were not run are empty or None."""

    steps: tuple[SubsampledLabels, ...] = ()
    """Each number of exemplar sets with all samples, and 1, 2, 4, ... samples with all exemplar sets."""
    from_to: Mapping[tuple[Category, Category], int] | None = None
    """(category, category in the repetition with other exemplar sets and samples) to number of questions."""
    controls: Mapping[Category, int] | None = None
    """Number of questions about invented subjects per category."""
    chance_known: float | None = None
    """Mean probability that as many further answers to an Unknown question include a correct one; None if unknown."""
    num_unknown: int = 0
    """Number of Unknown questions behind `chance_known`."""

    def by_sets(self) -> tuple[SubsampledLabels, ...]:
        """Steps with a growing number of exemplar sets and all samples.

        Raises:
            InsufficientDataError: not all samples were drawn, or there is only one set.
        """
        samples = self._largest_step().samples
        return self._sorted_steps("exemplar sets", [step for step in self.steps if step.samples == samples])

    def by_samples(self) -> tuple[SubsampledLabels, ...]:
        """Steps with a growing number of samples and all exemplar sets.

        Raises:
            InsufficientDataError: not all samples were drawn, or there is only one sample.
        """
        sets = self._largest_step().exemplar_sets
        return self._sorted_steps("samples", [step for step in self.steps if step.exemplar_sets == sets])

    def _largest_step(self) -> SubsampledLabels:
        if not self.steps:
            raise InsufficientDataError(
                "needs all samples of every question: annotate with --mode full and --estimator sampled"
            )
        return max(self.steps, key=lambda step: (step.exemplar_sets, step.samples))

    def _sorted_steps(self, quantity: str, steps: list[SubsampledLabels]) -> tuple[SubsampledLabels, ...]:
        if len(steps) < 2:
            raise InsufficientDataError(f"the study has a single value for the number of {quantity}")
        return tuple(sorted(steps, key=lambda step: (step.exemplar_sets, step.samples)))


@section("stability", title="Stability of the labels", group=GROUP_EXTENSIONS, order=130, experiment="stability")
def stability_section(data: StudyData) -> SectionBody:
    """The checks of the labels; those that the annotation did not run are reported as missing."""
    result, *details = summary_sentences(data) or [""]
    return SectionBody(
        result=result,
        text=f"{''.join(f'{sentence} ' for sentence in details)}Labels depend on the answers that were sampled: more "
        "exemplar sets find more questions that are answered correctly under some of them only, and more samples "
        "find more that are rarely answered correctly. Labels have converged where the lines are flat.",
        exhibits=(
            figure_exhibit(
                "Questions by category for the first N_ex exemplar sets, with all samples.",
                "settling_sets",
                "Shares of the four categories by number of exemplar sets",
                lambda: settling_figure(_require_stability(data).by_sets(), "Exemplar sets"),
            ),
            figure_exhibit(
                "Questions by category for the first n samples of each prompt, with all exemplar sets.",
                "settling_samples",
                "Shares of the four categories by number of samples of each prompt",
                lambda: settling_figure(_require_stability(data).by_samples(), "Samples of each prompt"),
            ),
            table_exhibit(
                "Repetition with other exemplar sets and samples: number of questions by first label (rows) and second "
                "label (columns), with 95 % intervals of the share that changes.",
                lambda: flip_table(_require_stability(data)),
            ),
            table_exhibit(
                "Questions about invented subjects, paired with the answers of real ones: a correct answer is a guess. "
                "With 95 % intervals.",
                lambda: control_table(_require_stability(data)),
            ),
            collapsed_table_exhibit("Data of the figures.", lambda: settling_table(_require_stability(data))),
        ),
    )


def summary_sentences(data: StudyData) -> list[str]:
    """One sentence per check that was run."""
    stability, _ = value_or_reason(_require_stability, data)
    return [] if stability is None else stability_sentences(stability)


def stability_sentences(stability: LabelStability) -> list[str]:
    """One sentence per check that was run."""
    sentences = []
    for describe in (_flip_sentence, _settling_sentence, _rare_answers_sentence, _guess_sentence):
        with suppress(InsufficientDataError):
            sentences.append(f"{describe(stability)}.")
    return sentences


def _flip_sentence(stability: LabelStability) -> str:
    rate, across = flip_rate(stability), known_unknown_flip_rate(stability)
    return (
        f"In a repetition with other exemplar sets and samples, {_format_share(rate, ' %')} of {rate.total:,} "
        f"questions change their category, and {_format_share(across, ' %')} change between Known and Unknown"
    )


def _settling_sentence(stability: LabelStability) -> str:
    sets, samples = stability.by_sets(), stability.by_samples()
    first, second = (round1(-last_step_change(steps, UNKNOWN)) for steps in (sets, samples))
    return (
        f"The last exemplar set moves {first:.1f} % of the questions out of Unknown, the last "
        f"{samples[-1].samples - samples[-2].samples} samples {second:.1f} %"
    )


def _rare_answers_sentence(stability: LabelStability) -> str:
    if stability.chance_known is None:
        raise InsufficientDataError("the knowledge table has no column chance_known")
    return (
        "As many further answers are estimated to include a correct one for "
        f"{round1(100 * stability.chance_known):.1f} % of the {stability.num_unknown:,} Unknown questions, which are "
        "rarely answered correctly rather than unknown"
    )


def _guess_sentence(stability: LabelStability) -> str:
    rate = control_known_rate(stability)
    return (
        f"Of {rate.total:,} questions about invented subjects, {_format_share(rate, ' %')} are labelled Known, by "
        "guessing"
    )


def _format_share(share: Proportion, unit: str = "") -> str:
    return format_with_interval(100 * share.share, 100 * share.low, 100 * share.high, unit=unit)


def settling_figure(steps: tuple[SubsampledLabels, ...], label: str) -> Callable[[Any], None]:
    """Shares of the categories, one labelled line each."""
    x = [step.samples if label.startswith("Samples") else step.exemplar_sets for step in steps]

    def plot(axes: Any) -> None:
        labels = []
        for category, marker in zip(Category, "os^D", strict=True):
            colour, line = CATEGORY_COLOURS[category]
            values = [100 * step.share(category) for step in steps]
            axes.plot(x, values, line, color=colour, marker=marker, markersize=4)
            labels.append((values[-1], str(category), colour))
        if label.startswith("Samples"):
            axes.set_xscale("log", base=2)
            axes.set_xlim(x[0] / 1.1, x[-1] * (x[-1] / x[0]) ** 0.45)
        else:
            axes.set_xlim(x[0] - 0.3, x[-1] + 0.45 * (x[-1] - x[0]))
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        label_line_ends(axes, x[-1], labels)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("Questions (%)")

    return plot


def flip_table(stability: LabelStability) -> Table:
    """Confusion matrix of the labels of repeated questions."""
    total = flip_rate(stability)
    assert stability.from_to is not None
    rows: list[Row] = []
    for category in Category:
        counts = [stability.from_to[category, after] for after in Category]
        rate = _format_share(flip_rate(stability, category)) if sum(counts) else None
        rows.append((str(category), *counts, sum(counts), rate))
    sums = [sum(stability.from_to[before, after] for before in Category) for after in Category]
    rows.append(("all", *sums, total.total, _format_share(total)))
    columns = ("label", *map(str, Category), "all", "changed (%)")
    return Table(
        name="label_flips",
        columns=columns,
        rows=tuple(rows),
        strong=frozenset((i, i + 1) for i in range(len(Category))),
        total_rows=frozenset({len(rows) - 1}),
    )


def control_table(stability: LabelStability) -> Table:
    """Categories of the questions about invented subjects."""
    known = control_known_rate(stability)
    assert stability.controls is not None
    rows: list[Row] = [
        (str(category), num, _format_share(proportion(num, known.total)))
        for category, num in stability.controls.items()
    ]
    rows.append(("Known, so guessed", known.num, _format_share(known)))
    columns = ("category", "questions about invented subjects", "of all (%)")
    return Table(name="controls", columns=columns, rows=tuple(rows), total_rows=frozenset({len(rows) - 1}))


def settling_table(stability: LabelStability) -> Table:
    """Number of questions per category for every number of exemplar sets and samples."""
    if not stability.steps:
        stability.by_sets()  # raises with the reason
    rows: tuple[Row, ...] = tuple(
        (step.exemplar_sets, step.samples, *(step.categories[category] for category in Category))
        for step in sorted(stability.steps, key=lambda step: (step.exemplar_sets, step.samples))
    )
    return Table(name="settling", columns=("exemplar_sets", "samples", *map(str, Category)), rows=rows)


def _require_stability(data: StudyData) -> LabelStability:
    stability = data.load_cached(load_stability, None)
    if stability is None:
        raise InsufficientDataError(
            "needs annotate/confidence.json, which this study's annotation did not write; `slick annotate PRESET "
            "--rescore` writes it from the stored answers"
        )
    return stability


def load_stability(study: Folder) -> LabelStability | None:
    """Load the stored checks of the labels; None unless the annotation is finished and has them.

    Raises:
        StudyError: confidence.json is malformed or was written by another version.
    """
    folder = study.child("annotate")
    if read_manifest(folder) is None or not folder.exists(CONFIDENCE_FILE):
        return None
    confidence = read_record(folder, CONFIDENCE_FILE, ConfidenceRecord, _REMEDY)
    try:
        stability = parse_confidence(confidence)
    except ValueError as error:
        raise StudyError(f"{folder}/{CONFIDENCE_FILE}: {error}; {_REMEDY}") from error
    chance, num = _mean_chance_known(study)
    return replace(stability, chance_known=chance, num_unknown=num)


def parse_confidence(confidence: ConfidenceRecord) -> LabelStability:
    """Parse the content of confidence.json.

    Raises:
        ValueError: its numbers are inconsistent.
    """
    steps = tuple(_parse_step(step, i) for i, step in enumerate(confidence["settling"]))
    totals = {sum(step.categories.values()) for step in steps}
    if len(totals) > 1:
        raise ValueError(f"settling has steps of {sorted(totals)} questions, expected the same number in each")
    if len({(step.exemplar_sets, step.samples) for step in steps}) < len(steps):
        raise ValueError("settling has two steps for the same exemplar sets and samples")
    return LabelStability(
        steps=steps,
        from_to=_parse_repeats(confidence["repeats"]) if "repeats" in confidence else None,
        controls=_parse_controls(confidence["controls"]) if "controls" in confidence else None,
    )


def _parse_step(step: ConvergenceRecord, index: int) -> SubsampledLabels:
    categories = _in_category_order(step["categories"], f"settling[{index}]")
    if not sum(categories.values()):
        raise ValueError(f"settling[{index}] has no questions")
    return SubsampledLabels(exemplar_sets=step["exemplar_sets"], samples=step["samples"], categories=categories)


def _parse_repeats(repeats: RepeatsRecord) -> dict[tuple[Category, Category], int]:
    rows = _in_category_order(repeats["from_to"], "repeats.from_to")
    pairs = {
        (before, after): num
        for before, row in rows.items()
        for after, num in _in_category_order(row, f"repeats.from_to.{before}").items()
    }
    flipped = sum(num for (before, after), num in pairs.items() if before != after)
    if repeats["questions"] != sum(pairs.values()):
        raise ValueError(f"repeats.questions is {repeats['questions']}, repeats.from_to has {sum(pairs.values())}")
    if repeats["flipped"] != flipped:
        raise ValueError(f"repeats.flipped is {repeats['flipped']}, repeats.from_to has {flipped}")
    return pairs


def _parse_controls(controls: ControlsRecord) -> dict[Category, int]:
    total = dict.fromkeys(Category, 0)
    for relation, of_split in controls["categories"].items():
        for split, counts in of_split.items():
            for category, num in _in_category_order(counts, f"controls.categories.{relation}.{split}").items():
                total[category] += num
    if controls["questions"] != sum(total.values()):
        raise ValueError(f"controls.questions is {controls['questions']}, its categories have {sum(total.values())}")
    return total


def _in_category_order(by_category: dict[Category, T], path: str) -> dict[Category, T]:
    if len(by_category) < len(Category):
        raise ValueError(f"{path} has {', '.join(by_category) or 'nothing'}, expected {', '.join(Category)}")
    return {category: by_category[category] for category in Category}


def _mean_chance_known(study: Folder) -> tuple[float | None, int]:
    """Mean of the column chance_known over Unknown questions, and their number; None without that column."""
    table = read_knowledge(study, ["category", "chance_known"])
    if "chance_known" not in table.column_names:
        return None, 0
    pairs = zip(table["category"].to_pylist(), table["chance_known"].to_pylist(), strict=True)
    chances = [chance for category, chance in pairs if category == Category.UNKNOWN and chance is not None]
    return (float(np.mean(chances)), len(chances)) if chances else (None, 0)


def flip_rate(stability: LabelStability, category: Category | None = None) -> Proportion:
    """Share of repeated questions, of one category or of all, whose category changes.

    Raises:
        InsufficientDataError: there are none.
    """
    pairs = _require_repeats(stability)
    counts = {pair: num for pair, num in pairs.items() if category in (None, pair[0])}
    return proportion(sum(num for (before, after), num in counts.items() if before != after), sum(counts.values()))


def known_unknown_flip_rate(stability: LabelStability) -> Proportion:
    """Share of repeated questions that change between Known and Unknown, and so affect the variants.

    Raises:
        InsufficientDataError: there are none.
    """
    pairs = _require_repeats(stability)
    across = sum(
        num for (before, after), num in pairs.items() if (before in KNOWN_CATEGORIES) != (after in KNOWN_CATEGORIES)
    )
    return proportion(across, sum(pairs.values()))


def _require_repeats(stability: LabelStability) -> Mapping[tuple[Category, Category], int]:
    if stability.from_to is None:
        raise InsufficientDataError("needs repeated questions: annotate with --repeats-per-relation 4")
    return stability.from_to


def control_known_rate(stability: LabelStability) -> Proportion:
    """Share of questions about invented subjects labelled Known; correct answers to these are guesses.

    Raises:
        InsufficientDataError: there are none.
    """
    if not stability.controls or not sum(stability.controls.values()):
        raise InsufficientDataError("needs questions about invented subjects: annotate with --controls-per-relation 4")
    known = sum(num for category, num in stability.controls.items() if category in KNOWN_CATEGORIES)
    return proportion(known, sum(stability.controls.values()))


def last_step_change(steps: tuple[SubsampledLabels, ...], category: Category) -> float:
    """Change of the share of a category in the last step, in points."""
    return 100.0 * (steps[-1].share(category) - steps[-2].share(category))
