"""Sections of the report: each module loads the data of a section, computes, and makes its text, figures and tables.

A section is a function of the study's data that is registered by `section`. `docs/extending.md` has an example. A
function that makes a figure or a table raises `InsufficientDataError` if the study lacks the data for it; the page then
shows the message in place of the exhibit.
"""

from collections.abc import Callable
from dataclasses import dataclass

from slick.registry import Registry
from slick.report.data import StudyData
from slick.report.page import GROUP_EXTENSIONS, Section, SectionBody

__all__ = ["SectionSpec", "make_sections", "section", "sections"]
MakeSection = Callable[[StudyData], SectionBody | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionSpec:
    """A registered section."""

    name: str
    title: str
    group: str
    """The part of the page, one of `slick.report.page.SECTION_GROUPS`."""
    order: int
    """Sections of a part are sorted by it."""
    experiment: str
    """The experiment of the section (`slick.experiments`); empty for none."""
    make: MakeSection


sections: Registry[SectionSpec] = Registry("report section", "slick.report.sections")


def section(
    name: str, *, title: str, group: str = GROUP_EXTENSIONS, order: int = 1000, experiment: str = ""
) -> Callable[[MakeSection], MakeSection]:
    """A decorator that adds a section to the report.

    The function returns the section's text and exhibits, or None to omit the section. A section whose data is missing
    should instead show the reason, as `slick.report.page.try_exhibit` does.

    Args:
        name: unique; part of anchors and settings.
        title: the heading.
        group: the part of the page.
        order: position within the part.
        experiment: name of its experiment.
    """

    def add(make: MakeSection) -> MakeSection:
        spec = SectionSpec(name=name, title=title, group=group, order=order, experiment=experiment, make=make)
        sections.register(name)(spec)
        return make

    return add


def make_sections(data: StudyData) -> list[Section]:
    """All sections of the page, in order."""
    made = []
    for spec in sorted((spec for _, spec in sections.items()), key=lambda spec: spec.order):
        body = spec.make(data)
        if body is not None:
            made.append(
                Section(
                    name=spec.name,
                    title=spec.title,
                    group=spec.group,
                    text=body.text,
                    exhibits=body.exhibits,
                    result=body.result,
                )
            )
    return made
