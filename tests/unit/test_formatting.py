"""Tables, percentages and intervals that commands and reports share."""

import ast
from pathlib import Path

import pytest

from slick.formatting import format_table
from slick.report.statistics.intervals import wilson_interval

ROOT = Path(__file__).parents[2]


def test_columns_of_a_table_are_aligned() -> None:
    rows = [("variant", "rows", "state"), ("unknown-050", "1,024", ""), ("natural", "7", "done")]
    assert format_table(rows, right=[1]) == [
        "variant       rows  state",
        "unknown-050  1,024",
        "natural          7  done",
    ]


def test_rows_of_a_table_are_equally_long() -> None:
    with pytest.raises(ValueError, match="shorter"):
        format_table([("a", "b"), ("c",)])


@pytest.mark.parametrize("total", [1, 2, 3, 100, 12_345])
def test_wilson_intervals_are_those_of_scipy(total: int) -> None:
    from scipy.stats import binomtest

    for num in {0, total // 3, total - 1, total}:
        expected = binomtest(num, total).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson_interval(num, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("package", ["jobs", "slick", "tuning"])
def test_only_one_module_pads_the_cells_of_tables(package: str) -> None:
    padding = {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("ljust", "rjust")
    }
    assert padding <= {"slick/formatting.py"}
