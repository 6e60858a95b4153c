"""The section on fine-tuning with one category at a time: tables 2 and 7, and every test behind their stars."""

from collections.abc import Callable, Sequence
from functools import cache, partial

from slick.analysis.data import StudyData
from slick.analysis.findings.categories import VARIANT_LABELS
from slick.analysis.findings.verdict import checkpoint_label, round1
from slick.analysis.recommendation import Estimate
from slick.analysis.statistics.paired_tests import PairedComparison, compare_early_to_last, compare_to_best, holm
from slick.analysis.terms import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report import tables
from slick.report.page import GROUP_PAPER, Section, collapsed_table_exhibit, table_exhibit
from slick.report.tables import CellValue, Table
from slick.types import ALL_CATEGORIES

TESTS = ("t-test p", "Holm", "McNemar p", "Holm of McNemar", "seeds agree")


def categories_section(data: StudyData, num_chunks: int, seed: int) -> Section:
    """The section; without such runs it says what is missing."""

    @cache
    def compared() -> list[PairedComparison]:
        return [
            one
            for checkpoint in (EARLY_STOP, CONVERGENCE)
            for one in compare_to_best(data, checkpoint, num_chunks, seed)
        ]

    return Section(
        name="categories",
        group=GROUP_PAPER,
        title="Fine-tuning on one category at a time",
        text="Accuracy (%) on all test questions and on those of each category (paper: tables 2 and 7). Bold: the "
        f"best of its column and what is not significantly below it. * p < 0.05, ** p < 0.01: paired t-test over "
        f"{num_chunks} chunks of the test questions; ? no rows were kept to test with."
        f"{_holm_sentence(compared)}",
        exhibits=(
            *(
                table_exhibit(
                    f"At {checkpoint_label(checkpoint)}.",
                    partial(tables.category_accuracy_table, data, checkpoint, num_chunks, seed),
                )
                for checkpoint in (EARLY_STOP, CONVERGENCE)
            ),
            collapsed_table_exhibit(
                "Each variant beside the best of its column, by every test: difference in points with 95 % intervals "
                "over questions (bootstrap) and over seeds (t), the t-test over chunks, McNemar's exact test (twice "
                "the median over seeds), and both with Holm's allowance for all rows of this table.",
                lambda: best_comparison_table(compared()),
            ),
            collapsed_table_exhibit(
                "Early stop beside convergence, by the same tests (paper: appendix I).",
                lambda: early_vs_last_table(data, num_chunks, seed),
            ),
        ),
    )


def best_comparison_table(found: list[PairedComparison]) -> Table:
    """Every cell of the two tables that is not the best of its column, with all tests."""
    heads = [
        (
            checkpoint_label(c.first.checkpoint),
            "Full" if c.category == ALL_CATEGORIES else c.category,
            *(VARIANT_LABELS[s.variant] for s in c.models),
        )
        for c in found
    ]
    columns = ("checkpoint", "test questions", "fine-tuned on", "best")
    return _comparisons_table("by_category_tests", columns, heads, found)


def early_vs_last_table(data: StudyData, num_chunks: int, seed: int) -> Table:
    """Early stop minus convergence for each variant.

    Raises:
        NotTestable: as `early_against_last`.
    """
    found = compare_early_to_last(data, num_chunks, seed)
    return _comparisons_table(
        "early_against_last", ("fine-tuned on",), [(VARIANT_LABELS[c.first.variant],) for c in found], found
    )


def _comparisons_table(
    name: str, columns: tuple[str, ...], heads: Sequence[tuple[CellValue, ...]], found: list[PairedComparison]
) -> Table:
    chunks, exact = holm([c.t_test_p for c in found]), holm([c.mcnemar_p for c in found])
    rows = tuple(
        (
            *head,
            round1(c.difference),
            f"{round1(c.low):.1f} to {round1(c.high):.1f}",
            _format_interval(c.seeds),
            *(float(f"{p:.2g}") for p in (c.t_test_p, of_chunks, c.mcnemar_p, of_exact)),
            f"{c.num_same_sign} of {c.seeds.num_seeds}",
        )
        for head, c, of_chunks, of_exact in zip(heads, found, chunks, exact, strict=True)
    )
    estimates = ("difference", "over questions", "over seeds")
    return Table(name=name, columns=(*columns, *estimates, *TESTS), rows=rows)


def _format_interval(seeds: Estimate) -> str | None:
    if seeds.low is None or seeds.high is None:
        return None
    return f"{round1(seeds.low):.1f} to {round1(seeds.high):.1f}"


def _holm_sentence(compared: Callable[[], list[PairedComparison]]) -> str:
    """How many of the stars are left when the number of comparisons is allowed for."""
    try:
        p_values = [c.t_test_p for c in compared()]
    except InsufficientDataError:
        return ""
    starred, left = (sum(p < 0.05 for p in values) for values in (p_values, holm(p_values)))
    return (
        f" Of {len(p_values)} comparisons {starred} are starred; as in the paper, the stars do not allow for their "
        f"number, and with Holm's allowance {left} remain."
    )
