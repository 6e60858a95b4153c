"""Numbers, durations and tables as text for people."""

from collections.abc import Collection, Sequence


def format_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """One line a row, with aligned columns that two spaces separate.

    Args:
        rows: the cells of each row, heads included; all rows are equally long.
        right: indices of the columns that are aligned to the right.

    >>> format_table([("set", "rows"), ("train", "12")], right=[1])
    ['set    rows', 'train    12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_percent(share: float, spec: str = ".0f") -> str:
    """A share in [0, 1] as a percentage; `spec` is the number's format specification.

    >>> format_percent(0.25), format_percent(0.1234, ".1f")
    ('25 %', '12.3 %')
    """
    return f"{100 * share:{spec}} %"


def format_rate(per_second: float) -> str:
    """Units per second, or the time of one if that is more than a second; empty for 0.

    >>> format_rate(1234.5), format_rate(1.0), format_rate(0.43), format_rate(1 / 240), format_rate(0.0)
    ('1,234.5/s', '1.0/s', '2.3 s each', '4 min 0 s each', '')
    """
    if per_second <= 0:
        return ""
    if per_second >= 1:
        return f"{per_second:,.1f}/s"
    seconds = 1 / per_second
    return f"{seconds:.1f} s each" if seconds < 10 else f"{format_duration(seconds)} each"


def format_duration(seconds: float) -> str:
    """Seconds in the two largest units.

    >>> format_duration(42.4), format_duration(192), format_duration(7260), format_duration(float("inf"))
    ('42 s', '3 min 12 s', '2 h 1 min', 'unknown time')
    """
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
