"""Fine-tuning on one category at a time (paper: tables 2 and 7), with all significance tests."""

from collections.abc import Callable, Sequence
from functools import cache, partial

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.categories import TABLE_2_VARIANTS, VARIANT_LABELS
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    checkpoint_label,
    format_interval,
    round1,
    value_or_reason,
)
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.intervals import NUM_SHUFFLES, holm, paired_p_value, significance_stars
from slick.report.statistics.paired_tests import PairedComparison, compare_early_to_last, compare_to_best
from slick.report.tables import CATEGORY_COLUMNS, Row, Table
from slick.storage import Folder
from slick.study import read_manifest
from slick.types import ALL_CATEGORIES

TESTS = ("t-test p", "Holm", "McNemar p", "Holm of McNemar", "seeds agree")


@section(
    "categories", title="Fine-tuning on one category at a time", group=GROUP_PAPER, order=40, experiment="categories"
)
def categories_section(data: StudyData) -> SectionBody:
    """Accuracies by category, and paired tests of the variants."""
    num_chunks, seed = data.config.num_chunks, data.config.seed

    @cache
    def compared() -> list[PairedComparison]:
        return [
            comparison
            for checkpoint in (EARLY_STOP, CONVERGENCE)
            for comparison in compare_to_best(data, checkpoint, num_chunks, seed)
        ]

    return SectionBody(
        text="Accuracy (%) on all test questions and by category (paper: tables 2 and 7). Bold: the best of its column "
        f"and variants not significantly below it. * p < 0.05, ** p < 0.01: paired t-test over {num_chunks} chunks of "
        f"the test questions, the median p over {NUM_SHUFFLES} shuffles into chunks (the paper shuffles once); ? no "
        f"predictions were stored to test with.{_holm_sentence(compared)}",
        result=best_variants_sentence(data, compared) + famous_rivals_text(data),
        exhibits=(
            *(
                table_exhibit(
                    f"At {checkpoint_label(checkpoint)}.",
                    partial(category_accuracy_table, data, checkpoint, num_chunks, seed),
                )
                for checkpoint in (EARLY_STOP, CONVERGENCE)
            ),
            collapsed_table_exhibit(
                "Each variant compared with the best of its column: difference in points with 95 % intervals over "
                "questions (bootstrap) and over seeds (t), the t-test over chunks, McNemar's exact test (twice the "
                "median over seeds), and both with Holm's correction over all rows of this table.",
                lambda: best_comparison_table(compared()),
            ),
            collapsed_table_exhibit(
                "Early stop compared with convergence by the same tests (paper: appendix I).",
                lambda: early_vs_last_table(data, num_chunks, seed),
            ),
        ),
    )


def best_variants_sentence(data: StudyData, compared: Callable[[], list[PairedComparison]]) -> str:
    """The variant with the highest test accuracy at each checkpoint, and those not significantly below it."""
    comparisons, _ = value_or_reason(compared)
    sentences = []
    for checkpoint in (EARLY_STOP, CONVERGENCE) if comparisons else ():
        found = [c for c in comparisons or () if (c.category, c.first.checkpoint) == (ALL_CATEGORIES, checkpoint)]
        best = found[0].second.variant
        close = [VARIANT_LABELS[c.first.variant] for c in found if c.t_test_p >= 0.05]
        rest = f"not significantly above {', '.join(close)}" if close else "significantly above all others"
        sentences.append(
            f"At {checkpoint_label(checkpoint)}, {VARIANT_LABELS[best]} has the highest test accuracy, "
            f"{round1(data.accuracy(best, checkpoint).value):.1f} %, {rest}."
        )
    return " ".join(sentences)


def famous_rivals_text(data: StudyData) -> str:
    """For a planted world: why fine-tuning on MaybeKnown rows helps by design; empty for other models."""
    share = data.load_cached(load_famous_rivals, 0.0)
    if not share:
        return ""
    return (
        f" In this planted world, {format_percent(share)} of the rivals of contested facts, which are mostly "
        "MaybeKnown, are famous answers: answers to many other questions, which the model gives too readily. "
        "Fine-tuning on MaybeKnown rows shifts this prior back, so a part of the gain of D_MaybeKnown is by design. "
        "`--world.famous-rivals 0` builds a world without it."
    )


def load_famous_rivals(study: Folder) -> float:
    """The world's probability that the rival of a contested fact is a famous answer; 0.0 without a world."""
    manifest = read_manifest(study.child("world"))
    return float(manifest.settings.get("famous_rivals", 0.0)) if manifest else 0.0


def _holm_sentence(compared: Callable[[], list[PairedComparison]]) -> str:
    """The number of significant comparisons without and with Holm's correction."""
    comparisons, _ = value_or_reason(compared)
    if comparisons is None:
        return ""
    p_values = [c.t_test_p for c in comparisons]
    starred, remaining = (sum(p < 0.05 for p in values) for values in (p_values, holm(p_values)))
    return (
        f" Of {len(p_values)} comparisons, {starred} are significant. As in the paper, the stars are not corrected for "
        f"multiple comparisons; with Holm's correction, {remaining} remain significant."
    )


def category_accuracy_table(data: StudyData, checkpoint: str, num_chunks: int, seed: int) -> Table:
    """Accuracy by category of test question, with stars if significantly below the best of the column (tables 2, 7)."""
    names = [name for name in TABLE_2_VARIANTS if data.has_run(name)]
    if not names:
        raise InsufficientDataError(f"needs a finished run of one of {', '.join(TABLE_2_VARIANTS)}")
    texts: dict[tuple[int, int], str] = {}
    strong = set()
    for column, category in enumerate(CATEGORY_COLUMNS, start=1):
        cells = {
            name: data.accuracy(name, checkpoint, category=category)
            for name in names
            if _has_category(data, name, category)
        }
        best = max(cells, key=lambda name: cells[name].value, default=None)
        for row, name in enumerate(names):
            if name not in cells or best is None:
                continue
            mark = "" if name == best else _significance_marks(data, name, best, checkpoint, category, num_chunks, seed)
            texts[row, column] = f"{round1(cells[name].value):.1f}{mark}"
            if not mark:
                strong.add((row, column))
    rows = tuple((VARIANT_LABELS[name], *(texts.get((row, i)) for i in range(1, 6))) for row, name in enumerate(names))
    return Table(
        name=f"by_category_{checkpoint}",
        columns=("fine-tuned on", "Full", *CATEGORY_COLUMNS[1:]),
        rows=rows,
        strong=frozenset(strong),
    )


def _has_category(data: StudyData, name: str, category: str) -> bool:
    return all(("test", category) in run.accuracy for run in data.runs_for(name))


def _significance_marks(
    data: StudyData, name: str, best: str, checkpoint: str, category: str, num_chunks: int, seed: int
) -> str:
    rows, best_rows = (
        data.mean_correct(name, checkpoint, "test", category),
        data.mean_correct(best, checkpoint, "test", category),
    )
    if rows is None or best_rows is None or len(rows) < 2 or rows.shape != best_rows.shape:
        return " ?"  # no predictions were stored
    return significance_stars(paired_p_value(rows, best_rows, num_chunks, seed))


def best_comparison_table(comparisons: list[PairedComparison]) -> Table:
    """Every variant compared with the best of its column, with all tests."""
    heads = [
        (
            checkpoint_label(c.first.checkpoint),
            "Full" if c.category == ALL_CATEGORIES else c.category,
            *(VARIANT_LABELS[s.variant] for s in c.models),
        )
        for c in comparisons
    ]
    columns = ("checkpoint", "test questions", "fine-tuned on", "best")
    return _comparisons_table("by_category_tests", columns, heads, comparisons)


def early_vs_last_table(data: StudyData, num_chunks: int, seed: int) -> Table:
    """Early stop minus convergence for each variant."""
    comparisons = compare_early_to_last(data, num_chunks, seed)
    return _comparisons_table(
        "early_against_last", ("fine-tuned on",), [(VARIANT_LABELS[c.first.variant],) for c in comparisons], comparisons
    )


def _comparisons_table(
    name: str, columns: tuple[str, ...], heads: Sequence[Row], comparisons: list[PairedComparison]
) -> Table:
    t_adjusted, mcnemar_adjusted = holm([c.t_test_p for c in comparisons]), holm([c.mcnemar_p for c in comparisons])
    rows = tuple(
        (
            *head,
            round1(c.difference),
            _format_interval(c.low, c.high),
            _format_interval(c.seeds.low, c.seeds.high),
            *(float(f"{p:.2g}") for p in (c.t_test_p, adjusted_t, c.mcnemar_p, adjusted_mcnemar)),
            f"{c.num_same_sign} of {c.seeds.num_seeds}",
        )
        for head, c, adjusted_t, adjusted_mcnemar in zip(heads, comparisons, t_adjusted, mcnemar_adjusted, strict=True)
    )
    estimates = ("difference", "over questions", "over seeds")
    return Table(name=name, columns=(*columns, *estimates, *TESTS), rows=rows)


def _format_interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else format_interval(low, high, ".1f")
