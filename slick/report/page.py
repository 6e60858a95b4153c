"""Sections with figures and tables, and their rendering as one self-contained HTML page."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from slick.report.charts import Figure, render_figure
from slick.report.labels import estimate_label, policy_label
from slick.report.measurements import format_interval, value_or_reason
from slick.report.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A figure or table with its caption, or the reason why it is missing."""

    caption: str
    figure: Figure | None = None
    table: Table | None = None
    missing: str | None = None
    wide: bool = False
    fold: bool = False
    """Collapsed until the reader opens it."""
    linked: bool = False
    """The page has only a link to the CSV file of this table."""

    @property
    def is_detail(self) -> bool:
        """Whether it is listed below the other exhibits."""
        return (self.fold or self.linked) and not self.missing


GROUP_RECOMMENDATIONS, GROUP_PAPER, GROUP_EXTENSIONS, GROUP_PLANTED = (
    "What to do",
    "The paper's experiments",
    "Beyond the paper",
    "The planted truth",
)
SECTION_GROUPS = (GROUP_RECOMMENDATIONS, GROUP_PAPER, GROUP_EXTENSIONS, GROUP_PLANTED)
"""Parts of the page, in order."""
FOLDED_GROUPS = (GROUP_EXTENSIONS, GROUP_PLANTED)
"""Parts whose sections are folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionBody:
    """The content of a section below its heading."""

    text: str
    """How the results are measured."""
    exhibits: tuple[Exhibit, ...]
    result: str = ""
    """The result in a sentence or two, which is visible while the section is folded."""

    @property
    def is_empty(self) -> bool:
        """Whether all exhibits are missing."""
        return all(exhibit.missing for exhibit in self.exhibits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(SectionBody):
    """A section of the page."""

    name: str
    """Unique; the HTML id."""
    title: str
    group: str = GROUP_EXTENSIONS
    """The part of the page, one of `SECTION_GROUPS`."""
    place: str = ""
    """Its tables and figures in the paper."""
    note: str = ""
    """A remark on the trainings; the list of those that did not converge."""

    @property
    def folded(self) -> bool:
        """Whether only the title and the result are visible until the reader opens it."""
        return self.group in FOLDED_GROUPS

    @property
    def visible_result(self) -> str:
        """The result; without one, the reason if the section is empty."""
        missing = [str(exhibit.missing) for exhibit in self.exhibits if exhibit.missing]
        return self.result or (f"Not shown: {missing[0]}." if self.is_empty and missing else "")


def group_sections(sections: Sequence[Section]) -> dict[str, list[Section]]:
    """The sections of each part in the order of `SECTION_GROUPS`, without empty parts.

    Raises:
        ValueError: a section has another group.
    """
    for section in sections:
        if section.group not in SECTION_GROUPS:
            raise ValueError(
                f"the report section {section.name} has the group {section.group!r}; expected one of "
                f"{', '.join(map(repr, SECTION_GROUPS))}"
            )
    by_group = {group: [section for section in sections if section.group == group] for group in SECTION_GROUPS}
    return {group: members for group, members in by_group.items() if members}


def merge_missing_exhibits(exhibits: Sequence[Exhibit]) -> list[Exhibit]:
    """The exhibits, with those that are missing for the same reason merged into the first of them."""
    merged: list[Exhibit] = []
    for exhibit in exhibits:
        same = [other for other in exhibits if other.missing and other.missing == exhibit.missing]
        if len(same) < 2:
            merged.append(exhibit)
        elif exhibit is same[0]:
            others = " And one more." if len(same) == 2 else f" And {len(same) - 1} more."
            merged.append(replace(exhibit, caption=exhibit.caption + others))
    return merged


def try_exhibit(caption: str, make: Callable[[], Figure | Table], *, wide: bool = False, fold: bool = False) -> Exhibit:
    """An exhibit of what `make` returns, or of the reason if it raises `InsufficientDataError`."""
    content, reason = value_or_reason(make)
    if content is None:
        return Exhibit(caption=caption, missing=reason)
    if isinstance(content, Figure):
        return Exhibit(caption=caption, figure=content, wide=wide)
    return Exhibit(caption=caption, table=content, wide=wide, fold=fold)


def figure_exhibit(caption: str, name: str, alt: str, make: Callable[[], Callable[[Any], None]]) -> Exhibit:
    """A figure; `make` returns the function that draws on its axes (see `render_figure`)."""
    return try_exhibit(caption, lambda: render_figure(name, alt, make()))


def table_exhibit(caption: str, make: Callable[[], Table]) -> Exhibit:
    """A table of full width."""
    return try_exhibit(caption, make, wide=True)


def collapsed_figure_exhibit(caption: str, name: str, alt: str, make: Callable[[], Callable[[Any], None]]) -> Exhibit:
    """A figure that is collapsed, such as a check of a method."""
    return replace(figure_exhibit(caption, name, alt, make), fold=True)


def collapsed_table_exhibit(caption: str, make: Callable[[], Table]) -> Exhibit:
    """A table of full width that is collapsed, such as the numbers of a figure."""
    return try_exhibit(caption, make, wide=True, fold=True)


def linked_table_exhibit(caption: str, make: Callable[[], Table]) -> Exhibit:
    """A link to the CSV file of a table that is too long for the page."""
    return replace(try_exhibit(caption, make, wide=True), linked=True)


def render_page(template: str = "page.html", package: str = "slick.report", **values: Any) -> str:
    """Render a template. All text is escaped; figures are inserted as SVG.

    Args:
        template: its file name.
        package: the package that has it; templates that it imports may also be in `slick.report`.
        values: variables of the template.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder, own = resources.files("slick.report"), resources.files(package)
    environment = Environment(
        loader=FunctionLoader(
            lambda name: (own if own.joinpath(name).is_file() else folder).joinpath(name).read_text(encoding="utf-8")
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda figure: Markup(figure.svg)  # render_figure escapes the text
    environment.filters["merge_missing"] = merge_missing_exhibits
    environment.filters["cell"] = format_cell
    environment.filters["value"] = format_json_value
    environment.filters["intervals"] = format_intervals
    environment.filters["prose"] = render_text
    css = Markup(folder.joinpath("page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values)


def render_text(text: object) -> Any:
    r"""Text as HTML: escaped, with no-break spaces before units, and text in backquotes as code.

    >>> str(render_text("run `slick x` for < 5 %"))
    'run <code>slick x</code> for &lt; 5\xa0%'
    """
    from markupsafe import Markup, escape

    escaped = str(escape(text)).replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def format_cell(value: object) -> str:
    """The text of a table cell; an en dash if it is empty. Stopping policies are named in words.

    >>> format_cell(12345), format_cell(None), format_cell(4.0), format_cell("best_dev")
    ('12,345', '–', '4.0', 'best dev accuracy')
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = policy_label(str(value))
    return re.sub(r"(?<=\d) to (?=[+-]?\d)", "\u00a0to\u00a0", text)  # no line break within an interval


def format_json_value(value: object) -> str:
    """A JSON value as text.

    >>> format_json_value([1.3, 1.6]), format_json_value({"early_stop": [43.9, 37.5]}), format_json_value(None)
    ('1.3, 1.6', 'early stop 43.9, 37.5', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, dict):
        return "; ".join(f"{estimate_label(str(key))} {format_json_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_json_value(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_intervals(value: Any) -> str:
    """The intervals of a finding as text.

    >>> format_intervals({"fall_at_convergence": [8.25, 13.4], "D_Unknown": {"Unknown": [-1.0, 0.5]}})
    'fall at convergence +8.3 to +13.4; D_Unknown: Unknown -1.0 to +0.5'
    """
    if not isinstance(value, dict):
        return format_interval(*value)
    return "; ".join(
        f"{estimate_label(str(key))}{':' if isinstance(item, dict) else ''} {format_intervals(item)}"
        for key, item in value.items()
    )
