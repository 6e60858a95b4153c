"""Test accuracy by share of Unknown rows, in and out of distribution, without those rows, and with them relabelled.

Source: Gekhman et al. 2024, arXiv:2405.05904, figures 3 and 7, and table 8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.formatting import format_percent
from slick.matching import normalize
from slick.report.charts import BLUE, MUTED, VERMILLION, label_line_ends, plot_with_error_band, set_share_axis
from slick.report.data import StudyData
from slick.report.findings.abstention import abstention_variant, measure_abstention
from slick.report.findings.sweep import half_unknown_variant, training_lengths
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    format_difference,
    format_with_error,
    interval_ends,
    mean_over_seeds,
    round1,
    subtract,
    value_or_reason,
)
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.sections.linear_model import coefficient_sentences
from slick.report.tables import CellValue, Row, Table
from slick.types import Category

MIN_LEAD = 10.0
"""Points by which a model must answer Known questions more often than Unknown ones to count as refusing selectively."""
MIN_REFUSED = 1.0
"""Percent of the questions; a model that refuses fewer refuses almost nothing."""


@section(
    "share", title="Test accuracy by share of Unknown rows", group=GROUP_PAPER, order=20, experiment="unknown_ratio"
)
def share_section(data: StudyData) -> SectionBody:
    """Test accuracy of D by training length, and of D and D_Known."""
    return SectionBody(
        text="D is a fine-tuning set of fixed size in which a varying share of the rows is Unknown. D_Known is D "
        "without its Unknown rows. Bands are one standard error of each accuracy. All lines use the same test "
        "questions, so differences between lines have smaller errors than the bands suggest.",
        result=" ".join(filter(None, [accuracy_sentence(data), training_on_sentence(data)])),
        exhibits=(
            figure_exhibit(
                "Test accuracy by share of Unknown rows, one line per training length (paper: figure 3a).",
                "accuracy_by_share",
                "Test accuracy by share of Unknown rows and training length",
                lambda: accuracy_by_share(data, "test"),
            ),
            figure_exhibit(
                "D and D_Known at early stop and at convergence (paper: figure 3b).",
                "known_ablation",
                "Test accuracy of D and of D_Known, by share of Unknown rows",
                lambda: known_ablation(data),
            ),
            collapsed_table_exhibit("Data of the first figure.", lambda: accuracy_table(data, "test")),
            collapsed_table_exhibit("Data of the second figure.", lambda: ablation_table(data)),
        ),
    )


@section("ood", title="Out of distribution", group=GROUP_PAPER, order=60, experiment="ood")
def ood_section(data: StudyData) -> SectionBody:
    """Accuracy on relations without fine-tuning rows (paper: figure 7)."""
    return SectionBody(
        text="The same fine-tuned models, tested on relations without fine-tuning rows. b_unk is the change in points "
        "if all rows of D are fitted Unknown rows, in the linear model above.",
        result=" ".join(filter(None, [accuracy_sentence(data, "ood"), *coefficient_sentences(data, ["ood"])])),
        exhibits=(
            figure_exhibit(
                "Accuracy on out-of-distribution relations by share of Unknown rows (paper: figure 7).",
                "ood_accuracy_by_share",
                "Out-of-distribution accuracy by share of Unknown rows",
                lambda: accuracy_by_share(data, "ood"),
            ),
            collapsed_table_exhibit("Data of the figure.", lambda: accuracy_table(data, "ood")),
        ),
    )


def accuracy_sentence(data: StudyData, split: str = "test") -> str:
    """Accuracy at the smallest and at the largest share of Unknown rows; empty without data."""
    return value_or_reason(_accuracy_sentence, data, split)[0] or ""


def _accuracy_sentence(data: StudyData, split: str) -> str:
    sweep = data.sweep_variants("unknown", min_shares=2)
    (low, first), (high, last) = sweep[0], sweep[-1]
    parts = []
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        ends = (f"{round1(data.accuracy(name, checkpoint, split).value):.1f}" for name in (first, last))
        change = data.difference((last, checkpoint), (first, checkpoint), split)
        parts.append(
            f"from {' to '.join(ends)} % at {checkpoint_label(checkpoint)}, {format_difference(change)} points"
        )
    label = "test accuracy" if split == "test" else "out-of-distribution accuracy"
    return (
        f"From {format_percent(low)} to {format_percent(high)} Unknown rows in D, {label} goes {', and '.join(parts)}."
    )


def training_on_sentence(data: StudyData) -> str:
    """The mean change from early stop to convergence over all shares, and the largest loss; empty without data."""
    return value_or_reason(_training_on_sentence, data)[0] or ""


def _training_on_sentence(data: StudyData) -> str:
    sweep = data.sweep_variants("unknown", min_shares=2)
    weight = 1 / len(sweep)
    mean = data.contrast(
        [term for _, name in sweep for term in ((weight, name, CONVERGENCE), (-weight, name, EARLY_STOP))]
    )
    changes = {share: data.difference((name, CONVERGENCE), (name, EARLY_STOP)) for share, name in sweep}
    worst = min(changes, key=lambda share: changes[share].value)
    return (
        f"Training on from early stop to convergence changes test accuracy by {format_difference(mean)} points on "
        f"average over the shares, and by {format_difference(changes[worst])} points at {format_percent(worst)}."
    )


def accuracy_by_share(data: StudyData, split: str) -> Callable[[Any], None]:
    """Test accuracy against the share of Unknown rows, one line per training length (paper: figures 3a and 7)."""
    sweep = data.sweep_variants("unknown", min_shares=2)
    x = [100 * share for share, _ in sweep]
    rows = {
        checkpoint: [data.accuracy(name, checkpoint, split) for _, name in sweep]
        for checkpoint in training_lengths(data)
    }

    def plot(axes: Any) -> None:
        inner = [checkpoint for checkpoint in rows if checkpoint not in (EARLY_STOP, CONVERGENCE)]
        labels = []
        for i, checkpoint in enumerate(inner):
            grey = str(round(0.62 - 0.27 * i / max(len(inner) - 1, 1), 2))
            axes.plot(x, [cell.value for cell in rows[checkpoint]], color=grey, linewidth=1.3)
            labels.append((rows[checkpoint][-1].value, checkpoint_label(checkpoint), MUTED))
        for checkpoint, colour, marker in ((EARLY_STOP, BLUE, "o"), (CONVERGENCE, VERMILLION, "s")):
            plot_with_error_band(axes, x, rows[checkpoint], colour, marker)
            labels.append((rows[checkpoint][-1].value, checkpoint_label(checkpoint), colour))
        label_line_ends(axes, x[-1], labels)
        set_share_axis(axes, x)
        axes.set_ylabel(f"{'Test' if split == 'test' else 'OOD test'} accuracy (%)")

    return plot


def known_ablation(data: StudyData) -> Callable[[Any], None]:
    """D and D_Known at early stop and at convergence (paper: figure 3b)."""
    sweep, known = data.sweep_variants("unknown", min_shares=2), data.sweep_variants("known", min_shares=2)
    start = [(share, name) for share, name in sweep if share == 0.0]  # at 0 %, D_Known equals D

    def plot(axes: Any) -> None:
        for kind, names, line, full in (("D", sweep, "-", True), ("D_Known", [*start, *known], "--", False)):
            for checkpoint, colour, marker in ((EARLY_STOP, BLUE, "o"), (CONVERGENCE, VERMILLION, "s")):
                cells = [data.accuracy(name, checkpoint) for _, name in names]
                x = [100 * share for share, _ in names]
                plot_with_error_band(
                    axes, x, cells, colour, marker, line, full, label=f"{kind}, {checkpoint_label(checkpoint)}"
                )
        axes.legend(loc="lower left", fontsize=11, handlelength=2.6)
        set_share_axis(axes, [100 * share for share, _ in sweep], room=False)
        axes.set_ylabel("Test accuracy (%)")

    return plot


def accuracy_table(data: StudyData, split: str) -> Table:
    """Accuracy of every sweep variant at every training length, with standard errors (figure 3a, 7)."""
    rows: list[Row] = []
    for share, name in data.sweep_variants("unknown"):
        for checkpoint in training_lengths(data):
            cell = data.accuracy(name, checkpoint, split)
            rows.append(
                (
                    name,
                    round(100 * share, 2),
                    checkpoint_label(checkpoint),
                    round(cell.value, 2),
                    round(cell.se, 2),
                    cell.num_seeds,
                )
            )
    columns = ("variant", "unknown_percent", "stop", "accuracy_percent", "standard_error", "seeds")
    return Table(
        name="accuracy_by_share" if split == "test" else "ood_accuracy_by_share", columns=columns, rows=tuple(rows)
    )


def ablation_table(data: StudyData) -> Table:
    """D and D_Known at early stop and convergence (figure 3b)."""
    rows: list[Row] = []
    for kind in ("unknown", "known"):
        for share, name in data.sweep_variants(kind):
            cells = [data.accuracy(name, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)]
            rows.append((name, round(100 * share, 2), *(round(v, 2) for cell in cells for v in (cell.value, cell.se))))
    columns = ("variant", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="known_ablation", columns=columns, rows=tuple(rows))


@section("idk", title="Relabelling Unknown rows as “I don't know”", group=GROUP_PAPER, order=70, experiment="idk")
def abstention_section(data: StudyData) -> SectionBody:
    """Accuracy and share answered of D and D_IDK."""
    return SectionBody(
        text="D_IDK is D with 50 % Unknown rows, whose answers are replaced by that phrase (paper: table 8). Accuracy "
        "is in percent of the answered questions, the other columns in percent of all test questions. A model that "
        "refuses what it does not know answers Known questions and refuses Unknown ones.",
        result=abstention_sentence(data),
        exhibits=(
            table_exhibit("D and D_IDK.", lambda: abstention_table(data)),
            table_exhibit(
                "D_IDK by category of the test question: percent answered, and accuracy on these, with standard "
                "errors.",
                lambda: abstention_by_category_table(data),
            ),
        ),
    )


def abstention_sentence(data: StudyData) -> str:
    """Share of questions that D_IDK answers at convergence, by category, and whether it refuses selectively."""
    return value_or_reason(_abstention_sentence, data)[0] or ""


def _abstention_sentence(data: StudyData) -> str:
    name = abstention_variant(data)
    early, late = (measure_abstention(data, name, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE))
    shares = {category: answered_by_category(data, name, CONVERGENCE, category)[0] for category in map(str, Category)}
    known, unknown = (
        answered_by_category(data, name, CONVERGENCE, part)[0] for part in (ANY_KNOWN, str(Category.UNKNOWN))
    )
    by_category = " / ".join(f"{round1(cell.value):.1f}" for cell in shares.values())
    return (
        f"D_IDK answers {round1(early.answered.value):.1f} % of the test questions at early stop and "
        f"{round1(late.answered.value):.1f} % at convergence, then {by_category} % of the {' / '.join(shares)} ones: "
        f"{format_difference(subtract(known, unknown))} points more of the Known than of the Unknown ones, "
        f"so it {describe_refusal(late.answered, subtract(known, unknown))}."
    )


def describe_refusal(answered: Measurement, lead: Measurement) -> str:
    """Whether a model refuses Unknown questions more often than Known ones.

    Args:
        answered: percent of all questions answered.
        lead: percent of the Known questions answered minus percent of the Unknown ones.

    >>> describe_refusal(Measurement(40.0, 1.0, 1), Measurement(4.0, 1.0, 1))
    'refuses nearly at random'
    """
    low, high = interval_ends(lead)
    if answered.value >= 100.0 - MIN_REFUSED:
        return "refuses almost nothing"
    if low <= 0 <= high:
        return "refuses at random, as far as these questions can tell"
    if high < 0:
        return "refuses Known questions more often than Unknown ones"
    return "refuses nearly at random" if lead.value < MIN_LEAD else "refuses Unknown questions more often"


def answered_by_category(
    data: StudyData, name: str, checkpoint: str, category: str
) -> tuple[Measurement, Measurement | None, int]:
    """Percent of a category's test questions that are answered, accuracy on these, and the number of the questions.

    The accuracy is None if a seed answers none of them.

    Raises:
        InsufficientDataError: no answer texts were kept, or there are no such questions.
    """
    phrase = normalize(data.idk_phrase)
    answered, correct, num = [], [], 0
    for run in data.runs_for(name):
        rows = run.predictions.get((run.epoch(checkpoint), "test"))
        if rows is None or rows.text is None:
            raise InsufficientDataError(f"run {run.run_id} kept no answer texts")
        mask = rows.mask(category)
        num = int(mask.sum())
        if not num:
            raise InsufficientDataError(f"there are no {category} test questions")
        given = mask & np.array([normalize(str(text)) != phrase for text in rows.text])
        answered.append(100.0 * float(given.sum()) / num)
        correct.append(100.0 * float(rows.hit[given].mean()) if given.any() else float("nan"))
    share = mean_over_seeds(answered, num)
    if np.isnan(correct).any():
        return share, None, num
    return share, mean_over_seeds(correct, max(1, round(share.value / 100 * num))), num


def abstention_by_category_table(data: StudyData) -> Table:
    """Share answered and accuracy on answered questions of D_IDK, by category of the test question."""
    name = abstention_variant(data)
    rows: list[Row] = []
    for category in map(str, Category):
        cells: list[CellValue] = []
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            answered, accuracy, num = answered_by_category(data, name, checkpoint, category)
            cells += [None if cell is None else format_with_error(cell) for cell in (answered, accuracy)]
        rows.append((category, num, *cells))
    values = (
        f"{value}, {checkpoint_label(checkpoint)}"
        for checkpoint in (EARLY_STOP, CONVERGENCE)
        for value in ("answered", "accuracy")
    )
    return Table(name="idk_by_category", columns=("test questions", "number", *values), rows=tuple(rows))


def abstention_table(data: StudyData) -> Table:
    """D and D_IDK: accuracy on answered questions, share answered, correct answers over all (table 8)."""
    name = abstention_variant(data)
    rows: list[Row] = []
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        try:
            plain: CellValue = round1(data.accuracy(half_unknown_variant(data), checkpoint).value)
        except InsufficientDataError:
            plain = None
        abstention = measure_abstention(data, name, checkpoint)
        rows.append(("D, 50 % Unknown", checkpoint_label(checkpoint), plain, 100.0, plain))
        rows.append(
            (
                "D_IDK",
                checkpoint_label(checkpoint),
                *(round1(cell.value) for cell in (abstention.on_answered, abstention.answered, abstention.overall)),
            )
        )
    rows.sort(key=lambda row: row[0] == "D_IDK")
    columns = ("fine-tuned on", "checkpoint", "accuracy on answered", "answered", "right over all")
    return Table(name="idk", columns=columns, rows=tuple(rows))
