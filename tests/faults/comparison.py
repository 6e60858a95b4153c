"""Compare the results of two studies row for row."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5
"""Rounding depends on the number of threads, and on the batches of a resumed run. Texts, hits and labels are exact."""

_KEYS = ("question_id", "run_id", "epoch", "split", "category", "answer", "turn")
_OTHER_FILES = (".ray", ".locks", "tensorboard", "world", "state")
"""Folders without results, and the world, which both studies share."""


def find_differences(expected: Path, actual: Path) -> list[str]:
    """What differs between the results of two studies; empty if they are equal.

    All Parquet files and the verdicts of the report are compared. Files `part-*.parquet` of a folder are one table,
    since a resumed run divides rows into other files. Floating-point numbers may differ by rounding.
    """
    first, second = _tables(expected), _tables(actual)
    differences = [f"{name}: missing" for name in sorted(first.keys() - second.keys())]
    differences += [f"{name}: not in the undisturbed study" for name in sorted(second.keys() - first.keys())]
    for name in sorted(first.keys() & second.keys()):
        differences += [f"{name}: {text}" for text in _table_differences(_read(first[name]), _read(second[name]))]
    outcomes = [_read_json(study / "report" / "outcomes.json") for study in (expected, actual)]
    differences += [f"report/outcomes.json: {text}" for text in _value_differences(*outcomes)]
    return differences


def _tables(study: Path) -> dict[str, list[Path]]:
    """Name of a table -> its files."""
    tables: dict[str, list[Path]] = {}
    for path in sorted(study.rglob("*.parquet")):
        relative = path.relative_to(study)
        if not any(part in _OTHER_FILES for part in relative.parts):
            name = str(relative.parent / "part-*") if path.name.startswith("part-") else str(relative)
            tables.setdefault(name, []).append(path)
    return tables


def _read(paths: list[Path]) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path).replace_schema_metadata() for path in paths])
    keys = [(name, "ascending") for name in _KEYS if name in table.column_names]
    return table.sort_by(keys) if keys else table


def _table_differences(expected: pa.Table, actual: pa.Table) -> Iterator[str]:
    if expected.column_names != actual.column_names:
        yield f"columns {actual.column_names}, expected {expected.column_names}"
        return
    if expected.num_rows != actual.num_rows:
        yield f"{actual.num_rows} rows, expected {expected.num_rows}"
        return
    for name in expected.column_names:
        first, second = expected[name], actual[name]
        if first.equals(second):
            continue
        pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
        rows = [(row, *pair) for row, pair in enumerate(pairs) if not _is_close(*pair)]
        if rows:
            yield f"column {name} differs in {len(rows)} rows; row {rows[0][0]}: {rows[0][2]!r}, not {rows[0][1]!r}"


def _is_close(expected: Any, actual: Any) -> bool:
    if isinstance(expected, float) and isinstance(actual, float):
        both_nan = math.isnan(expected) and math.isnan(actual)
        return both_nan or bool(np.isclose(actual, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE))
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(_is_close, expected, actual))
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            _is_close(value, actual[key]) for key, value in expected.items()
        )
    return bool(expected == actual)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _value_differences(expected: Any, actual: Any) -> Iterator[str]:
    if not (isinstance(expected, list) and isinstance(actual, list)):
        if expected != actual:
            yield "is missing" if actual is None else "has another form"
        return
    if len(expected) != len(actual):
        yield f"{len(actual)} findings, expected {len(expected)}"
    for first, second in zip(expected, actual, strict=False):
        if not _is_close(first, second):
            names = [name for name in first if not _is_close(first[name], second.get(name))]
            yield f"{first.get('id')} differs in {', '.join(names)}"
