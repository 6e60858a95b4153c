"""How firm the labels are: fewer answers, the same questions asked again, and questions that nobody can know. Pure.

Sources: the categories are those of Gekhman et al. 2024, arXiv:2405.05904, section 3; intervals of shares are Wilson's
(1927, https://doi.org/10.1080/01621459.1927.10502953).
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict, TypeVar

import numpy as np

from slick.errors import StudyError
from slick.report.charts import CATEGORY_COLOURS, label_line_ends
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, round1
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.tables import CellValue, Table
from slick.storage import Folder
from slick.stored_files import Count, Minimum, read_record
from slick.study import read_manifest
from slick.study_files import read_knowledge
from slick.types import KNOWN_CATEGORIES, Category


class ShareEstimate(NamedTuple):
    """A share of questions with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    num: int
    """The questions that it is a share of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsampledLabels:
    """How the questions of the study would be sorted, had less been asked."""

    exemplar_sets: int
    samples: int
    """Of each prompt."""
    categories: Mapping[Category, int]
    """Questions in each."""

    def share(self, category: Category) -> float:
        """Share of the questions, in [0, 1]."""
        return self.categories[category] / sum(self.categories.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStability:
    """What annotate/confidence.json and the knowledge table say of the labels; what is not there is empty or None."""

    steps: tuple[SubsampledLabels, ...] = ()
    """For each number of exemplar sets with all samples, and for 1, 2, 4, ... samples with all exemplar sets."""
    from_to: Mapping[tuple[Category, Category], int] | None = None
    """(category, category when asked again with other exemplar sets and draws) to questions; None if none were."""
    controls: Mapping[Category, int] | None = None
    """Questions about invented subjects by category; None if none were asked."""
    chance_known: float | None = None
    """Mean chance of the Unknown questions that as many answers again would hit at least once; None if not told."""
    num_unknown: int = 0
    """Unknown questions that this is the mean of."""

    def by_sets(self) -> tuple[SubsampledLabels, ...]:
        """Steps of growing exemplar sets, all with the samples of the study.

        Raises:
            NotTestable: not all samples were drawn, or there is one set alone.
        """
        samples = self._largest_step().samples
        return self._sorted_steps("exemplar sets", [step for step in self.steps if step.samples == samples])

    def by_samples(self) -> tuple[SubsampledLabels, ...]:
        """Steps of growing samples, all with the exemplar sets of the study.

        Raises:
            NotTestable: not all samples were drawn, or there is one sample alone.
        """
        sets = self._largest_step().exemplar_sets
        return self._sorted_steps("samples", [step for step in self.steps if step.exemplar_sets == sets])

    def _largest_step(self) -> SubsampledLabels:
        if not self.steps:
            raise InsufficientDataError(
                "needs all samples of every question: annotate with --mode full and --estimator sampled"
            )
        return max(self.steps, key=lambda step: (step.exemplar_sets, step.samples))

    def _sorted_steps(self, what: str, found: list[SubsampledLabels]) -> tuple[SubsampledLabels, ...]:
        if len(found) < 2:
            raise InsufficientDataError(f"the study has one of the {what} alone, so there is nothing to see grow")
        return tuple(sorted(found, key=lambda step: (step.exemplar_sets, step.samples)))


def flip_rate(stability: LabelStability, category: Category | None = None) -> ShareEstimate:
    """Share of questions, of one category or of all, that another category is found for when they are asked again.

    Raises:
        NotTestable: none were asked again.
    """
    pairs = _require_repeats(stability)
    chosen = {pair: num for pair, num in pairs.items() if category in (None, pair[0])}
    return share_with_interval(sum(num for (one, other), num in chosen.items() if one != other), sum(chosen.values()))


def known_unknown_flip_rate(stability: LabelStability) -> ShareEstimate:
    """Share of all questions asked again that go from Known to Unknown, or back: those that change the variants.

    Raises:
        NotTestable: none were asked again.
    """
    pairs = _require_repeats(stability)
    across = sum(num for (one, other), num in pairs.items() if (one in KNOWN_CATEGORIES) != (other in KNOWN_CATEGORIES))
    return share_with_interval(across, sum(pairs.values()))


def control_known_rate(stability: LabelStability) -> ShareEstimate:
    """Share of questions about invented subjects that count as Known: what is answered right there is guessed.

    Raises:
        NotTestable: none were asked.
    """
    if not stability.controls or not sum(stability.controls.values()):
        raise InsufficientDataError("needs questions about invented subjects: annotate with --controls-per-relation 4")
    known = sum(num for category, num in stability.controls.items() if category in KNOWN_CATEGORIES)
    return share_with_interval(known, sum(stability.controls.values()))


def last_step_change(steps: tuple[SubsampledLabels, ...], category: Category) -> float:
    """By how much the last step of a growing number moves the share of a category, in points."""
    return 100.0 * (steps[-1].share(category) - steps[-2].share(category))


def share_with_interval(num: int, total: int) -> ShareEstimate:
    """A share with Wilson's interval.

    Raises:
        NotTestable: it is a share of nothing.

    >>> [round(value, 3) for value in share_with_interval(1, 5)]
    [0.2, 0.036, 0.624, 5]
    """
    if not total:
        raise InsufficientDataError("there is no question to take a share of")
    from scipy.stats import binomtest

    interval = binomtest(num, total).proportion_ci(method="wilson")
    return ShareEstimate(num / total, float(interval.low), float(interval.high), total)


def _require_repeats(stability: LabelStability) -> Mapping[tuple[Category, Category], int]:
    if stability.from_to is None:
        raise InsufficientDataError("needs questions asked twice: annotate with --repeats-per-relation 4")
    return stability.from_to


CONFIDENCE_FILE = "confidence.json"
T = TypeVar("T")


def load_stability(study: Folder) -> LabelStability | None:
    """What the annotation says of its own labels; None where it is not finished or has not said it.

    Raises:
        StudyError: confidence.json is broken, or was written by another version.
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


_REMEDY = "annotate again with --rescore, which writes it anew from the stored answers"

CountsByCategory = dict[Category, Count]
"""Questions of each category."""


class SettlingRecord(TypedDict):
    """The labels by a part of the answers."""

    exemplar_sets: Annotated[int, Minimum(1)]
    samples: Annotated[int, Minimum(1)]
    categories: CountsByCategory


class RepeatsRecord(TypedDict):
    """Questions that were asked again."""

    questions: Count
    flipped: Count
    from_to: dict[Category, CountsByCategory]


class ControlsRecord(TypedDict):
    """Questions about invented subjects, by relation and split."""

    questions: Count
    categories: dict[str, dict[str, CountsByCategory]]


class ConfidenceRecord(TypedDict):
    """confidence.json."""

    settling: list[SettlingRecord]
    repeats: NotRequired[RepeatsRecord]
    controls: NotRequired[ControlsRecord]


def parse_confidence(confidence: ConfidenceRecord) -> LabelStability:
    """The content of confidence.json.

    Raises:
        ValueError: its numbers contradict each other.
    """
    steps = tuple(_parse_step(step, i) for i, step in enumerate(confidence["settling"]))
    totals = {sum(step.categories.values()) for step in steps}
    if len(totals) > 1:
        raise ValueError(f"settling has steps of {sorted(totals)} questions, wanted as many in each")
    if len({(step.exemplar_sets, step.samples) for step in steps}) < len(steps):
        raise ValueError("settling has two steps for the same exemplar sets and samples")
    return LabelStability(
        steps=steps,
        from_to=_parse_repeats(confidence["repeats"]) if "repeats" in confidence else None,
        controls=_parse_controls(confidence["controls"]) if "controls" in confidence else None,
    )


def _parse_step(step: SettlingRecord, place: int) -> SubsampledLabels:
    categories = _in_category_order(step["categories"], f"settling[{place}]")
    if not sum(categories.values()):
        raise ValueError(f"settling[{place}] has no questions")
    return SubsampledLabels(exemplar_sets=step["exemplar_sets"], samples=step["samples"], categories=categories)


def _parse_repeats(repeats: RepeatsRecord) -> dict[tuple[Category, Category], int]:
    rows = _in_category_order(repeats["from_to"], "repeats.from_to")
    pairs = {
        (one, other): num
        for one, row in rows.items()
        for other, num in _in_category_order(row, f"repeats.from_to.{one}").items()
    }
    flipped = sum(num for (one, other), num in pairs.items() if one != other)
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


def _in_category_order(by_category: dict[Category, T], place: str) -> dict[Category, T]:
    """In the order of the categories."""
    if len(by_category) < len(Category):
        raise ValueError(f"{place} has {', '.join(by_category) or 'nothing'}, wanted {', '.join(Category)}")
    return {category: by_category[category] for category in Category}


def _mean_chance_known(study: Folder) -> tuple[float | None, int]:
    """Mean chance that an Unknown question is merely rare, and of how many; None where the table does not tell."""
    table = read_knowledge(study, ["category", "chance_known"])
    if "chance_known" not in table.column_names:
        return None, 0
    pairs = zip(table["category"].to_pylist(), table["chance_known"].to_pylist(), strict=True)
    chances = [chance for category, chance in pairs if category == Category.UNKNOWN and chance is not None]
    return (float(np.mean(chances)), len(chances)) if chances else (None, 0)


UNKNOWN = Category.UNKNOWN


@section("stability", title="How firm the labels are", group=GROUP_EXTENSIONS, order=130, experiment="stability")
def stability_section(data: StudyData) -> SectionBody:
    """The section; an annotation that did not check its labels says what is missing."""
    return SectionBody(
        text=f"{summary_text(data)}A label rests on the answers that were drawn: more exemplar sets find more "
        f"questions that "
        "are answered right under some and not under others, more samples find more that are right once in many. "
        "Labels are settled where the lines are flat.",
        exhibits=(
            figure_exhibit(
                "Questions by category, had fewer exemplar sets (N_ex) been asked, with all samples of each.",
                "settling_sets",
                "Shares of the four categories by number of exemplar sets",
                lambda: settling_figure(_require_stability(data).by_sets(), "Exemplar sets"),
            ),
            figure_exhibit(
                "Questions by category, had fewer samples (n) been drawn of each prompt, with all exemplar sets.",
                "settling_samples",
                "Shares of the four categories by number of samples of each prompt",
                lambda: settling_figure(_require_stability(data).by_samples(), "Samples of each prompt"),
            ),
            table_exhibit(
                "The same questions asked again with other exemplar sets and other draws: questions by their category "
                "(rows) and the one they then have (columns), with 95 % intervals of the share that changes.",
                lambda: flip_table(_require_stability(data)),
            ),
            table_exhibit(
                "Questions about invented subjects, with the answers that belong to real ones: what is right here is "
                "guessed. With 95 % intervals.",
                lambda: control_table(_require_stability(data)),
            ),
            collapsed_table_exhibit("All numbers of the figures.", lambda: settling_table(_require_stability(data))),
        ),
    )


def summary_text(data: StudyData) -> str:
    """What was found, in up to four sentences; what was not checked is left out."""
    try:
        found = _require_stability(data)
    except InsufficientDataError:
        return ""
    said = []
    for tell in (_flip_sentence, _settling_sentence, _rare_answers_sentence, _guess_sentence):
        with suppress(InsufficientDataError):
            said.append(f"{tell(found)}. ")
    return "".join(said)


def settling_figure(steps: tuple[SubsampledLabels, ...], label: str) -> Callable[[Any], None]:
    """One line a category, named at its end."""
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
        axes.set_xticks(x, [str(one) for one in x])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        label_line_ends(axes, x[-1], labels)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("Questions (%)")

    return plot


def flip_table(found: LabelStability) -> Table:
    """Where questions go that are asked again.

    Raises:
        NotTestable: none were.
    """
    total = flip_rate(found)
    assert found.from_to is not None
    rows: list[tuple[CellValue, ...]] = []
    for category in Category:
        counts = [found.from_to[category, other] for other in Category]
        rate = _format_share(flip_rate(found, category)) if sum(counts) else None
        rows.append((str(category), *counts, sum(counts), rate))
    sums = [sum(found.from_to[one, other] for one in Category) for other in Category]
    rows.append(("all", *sums, total.num, _format_share(total)))
    columns = ("label", *map(str, Category), "all", "changed (%)")
    return Table(
        name="label_flips",
        columns=columns,
        rows=tuple(rows),
        strong=frozenset((i, i + 1) for i in range(len(Category))),
        total_rows=frozenset({len(rows) - 1}),
    )


def control_table(found: LabelStability) -> Table:
    """What questions about invented subjects are taken for.

    Raises:
        NotTestable: none were asked.
    """
    known = control_known_rate(found)
    assert found.controls is not None
    rows: list[tuple[CellValue, ...]] = [
        (str(category), num, _format_share(share_with_interval(num, known.num)))
        for category, num in found.controls.items()
    ]
    rows.append(("Known, so guessed", known.num - found.controls[UNKNOWN], _format_share(known)))
    columns = ("category", "questions about invented subjects", "of all (%)")
    return Table(name="controls", columns=columns, rows=tuple(rows), total_rows=frozenset({len(rows) - 1}))


def settling_table(found: LabelStability) -> Table:
    """Questions by category for every number of exemplar sets and samples.

    Raises:
        NotTestable: not all samples were drawn.
    """
    if not found.steps:
        found.by_sets()  # says itself what is missing
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (step.exemplar_sets, step.samples, *(step.categories[category] for category in Category))
        for step in sorted(found.steps, key=lambda step: (step.exemplar_sets, step.samples))
    )
    return Table(name="settling", columns=("exemplar_sets", "samples", *map(str, Category)), rows=rows)


def _require_stability(data: StudyData) -> LabelStability:
    stability = data.part(load_stability, None)
    if stability is None:
        raise InsufficientDataError(
            "needs annotate/confidence.json, which this study's annotation did not write; slick annotate --rescore "
            "makes it from the stored answers"
        )
    return stability


def _flip_sentence(found: LabelStability) -> str:
    rate, across = flip_rate(found), known_unknown_flip_rate(found)
    return (
        f"Asked again with other exemplar sets and draws, {_format_share(rate, ' %')} of {rate.num:,} questions change "
        f"their category, and {_format_share(across, ' %')} change between Known and Unknown"
    )


def _settling_sentence(found: LabelStability) -> str:
    sets, samples = found.by_sets(), found.by_samples()
    first, second = (round1(-last_step_change(steps, UNKNOWN)) for steps in (sets, samples))
    return (
        f"The last exemplar set moves {first:.1f} % of the questions out of Unknown, the last "
        f"{samples[-1].samples - samples[-2].samples} samples {second:.1f} %"
    )


def _rare_answers_sentence(found: LabelStability) -> str:
    if found.chance_known is None:
        raise InsufficientDataError("the knowledge table does not tell how rare an Unknown question may be")
    return (
        f"As many answers again would hit {round1(100 * found.chance_known):.1f} % of the {found.num_unknown:,} "
        "Unknown questions at least once: these are rare rather than unknown"
    )


def _guess_sentence(found: LabelStability) -> str:
    rate = control_known_rate(found)
    return (
        f"Of {rate.num:,} questions about invented subjects, {_format_share(rate, ' %')} count as Known: these are "
        "guesses"
    )


def _format_share(share: ShareEstimate, unit: str = "") -> str:
    value, low, high = (round1(100 * number) for number in (share.value, share.low, share.high))
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"
