"""The section on fine-tuning with one category at a time: tables 2 and 7, and every test behind their stars."""

from collections.abc import Callable, Sequence
from functools import cache, partial

from slick.analysis.data import StudyData
from slick.analysis.findings.categories import LABELS
from slick.analysis.findings.verdict import tenths, when_label
from slick.analysis.recommendation import Estimate
from slick.analysis.statistics.paired_tests import Comparison, against_best, early_against_last, holm
from slick.analysis.terms import EARLY, LAST, NotTestable
from slick.report import tables
from slick.report.page import PAPER, Section, numbers, wide
from slick.report.tables import Table, Value
from slick.types import ALL_CATEGORIES

TESTS = ("t-test p", "Holm", "McNemar p", "Holm of McNemar", "seeds agree")


def section(data: StudyData, num_chunks: int, seed: int) -> Section:
    """The section; without such runs it says what is missing."""

    @cache
    def compared() -> list[Comparison]:
        return [one for when in (EARLY, LAST) for one in against_best(data, when, num_chunks, seed)]

    return Section(
        name="categories",
        group=PAPER,
        title="Fine-tuning on one category at a time",
        text="Accuracy (%) on all test questions and on those of each category (paper: tables 2 and 7). Bold: the "
        f"best of its column and what is not significantly below it. * p < 0.05, ** p < 0.01: paired t-test over "
        f"{num_chunks} chunks of the test questions; ? no rows were kept to test with."
        f"{_allowance(compared)}",
        exhibits=(
            *(
                wide(f"At {when_label(when)}.", partial(tables.category_table, data, when, num_chunks, seed))
                for when in (EARLY, LAST)
            ),
            numbers(
                "Each variant beside the best of its column, by every test: difference in points with 95 % intervals "
                "over questions (bootstrap) and over seeds (t), the t-test over chunks, McNemar's exact test (twice "
                "the median over seeds), and both with Holm's allowance for all rows of this table.",
                lambda: best_table(compared()),
            ),
            numbers(
                "Early stop beside convergence, by the same tests (paper: appendix I).",
                lambda: stops_table(data, num_chunks, seed),
            ),
        ),
    )


def best_table(found: list[Comparison]) -> Table:
    """Every cell of the two tables that is not the best of its column, with all tests."""
    heads = [
        (
            when_label(c.first.when),
            "Full" if c.category == ALL_CATEGORIES else c.category,
            *(LABELS[s.variant] for s in c.sides),
        )
        for c in found
    ]
    columns = ("checkpoint", "test questions", "fine-tuned on", "best")
    return _table("by_category_tests", columns, heads, found)


def stops_table(data: StudyData, num_chunks: int, seed: int) -> Table:
    """Early stop minus convergence for each variant.

    Raises:
        NotTestable: as `early_against_last`.
    """
    found = early_against_last(data, num_chunks, seed)
    return _table("early_against_last", ("fine-tuned on",), [(LABELS[c.first.variant],) for c in found], found)


def _table(name: str, columns: tuple[str, ...], heads: Sequence[tuple[Value, ...]], found: list[Comparison]) -> Table:
    chunks, exact = holm([c.chunk_p for c in found]), holm([c.mcnemar_p for c in found])
    rows = tuple(
        (
            *head,
            tenths(c.difference),
            f"{tenths(c.low):.1f} to {tenths(c.high):.1f}",
            _ends(c.seeds),
            *(float(f"{p:.2g}") for p in (c.chunk_p, of_chunks, c.mcnemar_p, of_exact)),
            f"{c.num_same_sign} of {c.seeds.num_seeds}",
        )
        for head, c, of_chunks, of_exact in zip(heads, found, chunks, exact, strict=True)
    )
    estimates = ("difference", "over questions", "over seeds")
    return Table(name=name, columns=(*columns, *estimates, *TESTS), rows=rows)


def _ends(seeds: Estimate) -> str | None:
    if seeds.low is None or seeds.high is None:
        return None
    return f"{tenths(seeds.low):.1f} to {tenths(seeds.high):.1f}"


def _allowance(compared: Callable[[], list[Comparison]]) -> str:
    """How many of the stars are left when the number of comparisons is allowed for."""
    try:
        p_values = [c.chunk_p for c in compared()]
    except NotTestable:
        return ""
    starred, left = (sum(p < 0.05 for p in values) for values in (p_values, holm(p_values)))
    return (
        f" Of {len(p_values)} comparisons {starred} are starred; as in the paper, the stars do not allow for their "
        f"number, and with Holm's allowance {left} remain."
    )
