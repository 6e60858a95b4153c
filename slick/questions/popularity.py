"""How popular a question's subject is, where the source says so: any number of one source that grows with popularity.

PopQA (Mallen et al. 2023, arXiv:2212.10511) counts page views a month, as `s_pop`; a world counts documents.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

COLUMNS = ("popularity", "s_pop")
"""Where it stands in a row; the first that the row has."""


def parse_popularity(row: Mapping[str, Any]) -> float | None:
    """The popularity of a row's subject; None where the row has none, or leaves it empty.

    Raises:
        ValueError: it is no number, or less than 0; says what was found and wanted, and how to mend it.

    >>> parse_popularity({"s_pop": "1520"}), parse_popularity({"popularity": None}), parse_popularity({})
    (1520.0, None, None)
    """
    column = next((name for name in COLUMNS if name in row), None)
    value = None if column is None else row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = _number(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(
            f"{column} is {value!r:.80}, wanted a finite number of 0 or more, such as 1520; write it without units and "
            "separators, or leave it empty where it is not known"
        )
    return number


def _number(value: object) -> float | None:
    """None for what is no number; text is read as in CSV, where all cells are text."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and not value.strip().isascii():
        return None
    if isinstance(value, str) and "_" in value:  # Python reads 1_000 as a number, no one else does
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
