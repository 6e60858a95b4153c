"""Sections of figures and tables to one HTML page that needs nothing else."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from slick.report.charts import Figure, render_figure
from slick.report.measurements import InsufficientDataError, round1
from slick.report.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One figure or table with its caption, or the reason why it is not there."""

    caption: str
    figure: Figure | None = None
    table: Table | None = None
    missing: str | None = None
    wide: bool = False
    fold: bool = False
    """Shown folded, to be opened by the reader."""
    linked: bool = False
    """A table that is too long for the page: its CSV file alone, as a link."""


GROUP_RECOMMENDATIONS, GROUP_PAPER, GROUP_EXTENSIONS, GROUP_PLANTED = (
    "What to do",
    "The paper's experiments",
    "Beyond the paper",
    "The planted truth",
)
SECTION_GROUPS = (GROUP_RECOMMENDATIONS, GROUP_PAPER, GROUP_EXTENSIONS, GROUP_PLANTED)
"""Parts of the page, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionBody:
    """What a section shows below its heading."""

    text: str
    exhibits: tuple[Exhibit, ...]

    @property
    def is_empty(self) -> bool:
        """True if none of the exhibits could be made."""
        return all(exhibit.missing for exhibit in self.exhibits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(SectionBody):
    """A section with its heading and its place on the page."""

    name: str
    title: str
    group: str = GROUP_EXTENSIONS
    """The part of the page it belongs to, one of `SECTION_GROUPS`."""
    experiment: str = ""
    """The experiment it shows, and where that is in the paper."""


def group_sections(sections: Sequence[Section]) -> dict[str, list[Section]]:
    """The sections of each part, parts in the order of `GROUPS`, sections in their own; parts without any left out."""
    for section in sections:
        if section.group not in SECTION_GROUPS:
            raise ValueError(
                f"the report section {section.name} has the group {section.group!r}; expected one of "
                f"{', '.join(map(repr, SECTION_GROUPS))}"
            )
    found = {group: [section for section in sections if section.group == group] for group in SECTION_GROUPS}
    return {group: members for group, members in found.items() if members}


def merge_missing_exhibits(exhibits: Sequence[Exhibit]) -> list[Exhibit]:
    """What cannot be shown for one and the same reason says so once, where the first of it would be."""
    found: list[Exhibit] = []
    for exhibit in exhibits:
        same = [one for one in exhibits if one.missing and one.missing == exhibit.missing]
        if len(same) < 2:
            found.append(exhibit)
        elif exhibit is same[0]:
            others = " And one more." if len(same) == 2 else f" And {len(same) - 1} more."
            found.append(replace(exhibit, caption=exhibit.caption + others))
    return found


def try_exhibit(caption: str, make: Callable[[], Figure | Table], *, wide: bool = False, fold: bool = False) -> Exhibit:
    """Make a figure or table; one that the study cannot give says what is missing."""
    try:
        made = make()
    except InsufficientDataError as reason:
        return Exhibit(caption=caption, missing=str(reason))
    if isinstance(made, Figure):
        return Exhibit(caption=caption, figure=made, wide=wide)
    return Exhibit(caption=caption, table=made, wide=wide, fold=fold)


def figure_exhibit(caption: str, name: str, alt: str, make: Callable[[], Callable[[Any], None]]) -> Exhibit:
    """A figure, as `draw` takes it; `make` gives what draws on its axes."""
    return try_exhibit(caption, lambda: render_figure(name, alt, make()))


def table_exhibit(caption: str, make: Callable[[], Table]) -> Exhibit:
    """A table over the whole width."""
    return try_exhibit(caption, make, wide=True)


def collapsed_table_exhibit(caption: str, make: Callable[[], Table]) -> Exhibit:
    """The numbers behind something shown: a wide table, folded."""
    return try_exhibit(caption, make, wide=True, fold=True)


def linked_table_exhibit(caption: str, make: Callable[[], Table]) -> Exhibit:
    """A table as a CSV file alone, for more rows than a page should hold."""
    return replace(try_exhibit(caption, make, wide=True), linked=True)


def render_page(template: str = "page.html", **values: Any) -> str:
    """Fill a page; all text is escaped except the figures, which are made here."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("slick.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda figure: Markup(figure.svg)  # drawn by slick.report.figures, which escapes
    environment.filters["condensed"] = merge_missing_exhibits
    environment.filters["cell"] = format_cell
    environment.filters["value"] = format_json_value
    environment.filters["spans"] = format_intervals
    environment.filters["tidy"] = render_text
    css = Markup(folder.joinpath("page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values)


def render_text(text: object) -> Any:
    r"""Running text for the page: escaped, units kept beside their numbers, what stands between back quotes as code.

    >>> str(render_text("run `slick x` for < 5 %"))
    'run <code>slick x</code> for &lt; 5\xa0%'
    """
    from markupsafe import Markup, escape

    kept = str(escape(text)).replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", kept))


def format_cell(value: object) -> str:
    """A table cell for people; an en dash where there is nothing.

    >>> format_cell(12345), format_cell(None), format_cell(4.0)
    ('12,345', '–', '4.0')
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return re.sub(r"(?<=\d) to (?=[+-]?\d)", "\u00a0to\u00a0", str(value))  # an interval is not broken


def format_json_value(value: object) -> str:
    """A JSON value for people.

    >>> format_json_value([1.3, 1.6]), format_json_value({"early_stop": [43.9, 37.5]}), format_json_value(None)
    ('1.3, 1.6', 'early stop 43.9, 37.5', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, dict):
        return "; ".join(f"{_key_to_words(str(key))} {format_json_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_json_value(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_intervals(value: Any) -> str:
    """The intervals of a finding for people.

    >>> format_intervals({"fall_at_convergence": [8.25, 13.4], "D_Unknown": {"Unknown": [-1.0, 0.5]}})
    'fall at convergence +8.3 to +13.4; D_Unknown: Unknown -1.0 to +0.5'
    """
    if not isinstance(value, dict):
        low, high = value
        return f"{round1(low):+.1f} to {round1(high):+.1f}"
    parts = ((_key_to_words(str(key)), item, ":" if isinstance(item, dict) else "") for key, item in value.items())
    return "; ".join(f"{key}{mark} {format_intervals(item)}" for key, item, mark in parts)


def _key_to_words(key: str) -> str:
    """Keys of JSON values as words; the names of coefficients and sets, such as b_kn and D_Known, stay."""
    return re.sub(r"(?<!\bb)(?<!\bD)_", " ", key)
