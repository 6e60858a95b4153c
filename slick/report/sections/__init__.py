"""Sections of the report, one module each: it loads its data, computes, draws and describes.

A section is a function of the study's data that is registered by `section`. `docs/extending.md` has an example.
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
    """Sections of a part are shown by ascending order."""
    experiment: str
    """The experiment that the section shows (`slick.experiments`); empty for none."""
    make: MakeSection


sections: Registry[SectionSpec] = Registry("report section", "slick.report.sections")


def section(
    name: str, *, title: str, group: str = GROUP_EXTENSIONS, order: int = 1000, experiment: str = ""
) -> Callable[[MakeSection], MakeSection]:
    """A decorator that adds a section to the report.

    The function returns the section's text and exhibits. It returns None to be left out of the page; a section whose
    data is missing should instead say what is missing, as `slick.report.page.try_exhibit` does.

    Args:
        name: unique; part of anchors and settings.
        title: the heading.
        group: the part of the page.
        order: of the section within its part.
        experiment: the experiment it belongs to.
    """

    def add(make: MakeSection) -> MakeSection:
        spec = SectionSpec(name=name, title=title, group=group, order=order, experiment=experiment, make=make)
        sections.register(name)(spec)
        return make

    return add


def make_sections(data: StudyData) -> list[Section]:
    """Every section of the page, in order."""
    found = []
    for spec in sorted((spec for _, spec in sections.items()), key=lambda spec: spec.order):
        body = spec.make(data)
        if body is not None:
            found.append(
                Section(name=spec.name, title=spec.title, group=spec.group, text=body.text, exhibits=body.exhibits)
            )
    return found
