"""The section on fine-tuning with one category at a time: tables 2 and 7, and every test behind their stars."""

from collections.abc import Callable, Sequence
from functools import cache, partial

from slick.report.data import StudyData
from slick.report.findings.categories import TABLE_2_VARIANTS, VARIANT_LABELS
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError, checkpoint_label, round1
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, table_exhibit
from slick.report.recommendation import Estimate
from slick.report.sections import section
from slick.report.statistics.intervals import paired_p_value, significance_stars
from slick.report.statistics.paired_tests import PairedComparison, compare_early_to_last, compare_to_best, holm
from slick.report.tables import CATEGORY_COLUMNS, CellValue, Table
from slick.types import ALL_CATEGORIES

TESTS = ("t-test p", "Holm", "McNemar p", "Holm of McNemar", "seeds agree")


@section(
    "categories", title="Fine-tuning on one category at a time", group=GROUP_PAPER, order=40, experiment="categories"
)
def categories_section(data: StudyData) -> SectionBody:
    """The section; without such runs it says what is missing."""
    num_chunks, seed = data.config.num_chunks, data.config.seed

    @cache
    def compared() -> list[PairedComparison]:
        return [
            one
            for checkpoint in (EARLY_STOP, CONVERGENCE)
            for one in compare_to_best(data, checkpoint, num_chunks, seed)
        ]

    return SectionBody(
        text="Accuracy (%) on all test questions and on those of each category (paper: tables 2 and 7). Bold: the "
        f"best of its column and what is not significantly below it. * p < 0.05, ** p < 0.01: paired t-test over "
        f"{num_chunks} chunks of the test questions; ? no rows were kept to test with."
        f"{_holm_sentence(compared)}",
        exhibits=(
            *(
                table_exhibit(
                    f"At {checkpoint_label(checkpoint)}.",
                    partial(category_accuracy_table, data, checkpoint, num_chunks, seed),
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


def category_accuracy_table(data: StudyData, checkpoint: str, num_chunks: int, seed: int) -> Table:
    """Accuracy by category of test question, starred where significantly below the column's best (table 2, 7)."""
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
    rows, top = (
        data.mean_correct(name, checkpoint, "test", category),
        data.mean_correct(best, checkpoint, "test", category),
    )
    if rows is None or top is None or len(rows) < 2 or rows.shape != top.shape:
        return " ?"  # no rows were kept, so nothing can be tested
    return significance_stars(paired_p_value(rows, top, num_chunks, seed))
