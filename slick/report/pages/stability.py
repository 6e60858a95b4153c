"""The section on how firm the labels are: fewer answers, the same questions again, questions that nobody can know."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import round1
from slick.analysis.stability import (
    LabelStability,
    ShareEstimate,
    SubsampledLabels,
    control_known_rate,
    flip_rate,
    known_unknown_flip_rate,
    last_step_change,
    share_with_interval,
)
from slick.analysis.terms import InsufficientDataError
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.style import label_line_ends
from slick.report.tables import CellValue, Table
from slick.types import Category

UNKNOWN = Category.UNKNOWN


def stability_section(data: StudyData) -> Section:
    """The section; an annotation that did not check its labels says what is missing."""
    return Section(
        name="stability",
        title="How firm the labels are",
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
    if data.stability is None:
        raise InsufficientDataError(
            "needs annotate/confidence.json, which this study's annotation did not write; slick annotate --rescore "
            "makes it from the stored answers"
        )
    return data.stability


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
        f"Of {rate.num:,} questions about invented subjects, "
        f"{_format_share(rate, ' %')} count as Known: these are guesses"
    )


def _format_share(share: ShareEstimate, unit: str = "") -> str:
    value, low, high = (round1(100 * number) for number in (share.value, share.low, share.high))
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"
