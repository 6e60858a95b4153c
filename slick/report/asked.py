"""Which experiments a study was asked for, and what its report says of the others."""

from collections.abc import Sequence
from dataclasses import replace

from slick.analysis.findings.verdict import FindingResult
from slick.experiments import experiment_for_section, experiments_for_finding
from slick.report.page import Exhibit, Section
from slick.storage import Folder
from slick.study import read_study_settings

RequestedExperiments = tuple[str, ...] | None
"""Names of experiments; None where nobody said, since the steps were run one by one."""


def requested_experiments(study: Folder) -> RequestedExperiments:
    """The experiments that `slick study` was asked for in this folder, now or before."""
    settings = read_study_settings(study)
    return (settings.experiments or None) if settings else None


def explain_unrequested_findings(
    outcomes: Sequence[FindingResult], requested: RequestedExperiments
) -> list[FindingResult]:
    """The findings; those not testable because no experiment that decides them was asked for say so."""

    def marked(outcome: FindingResult) -> FindingResult:
        deciding = experiments_for_finding(outcome.id)
        if outcome.holds is not None or requested is None or not deciding or set(deciding) & set(requested):
            return outcome
        return replace(outcome, why=_not_requested_text(deciding[0]))

    return [marked(outcome) for outcome in outcomes]


def label_sections(sections: Sequence[Section], requested: RequestedExperiments) -> list[Section]:
    """The sections with the experiment that each belongs to, those of one experiment together.

    What was not asked for, and could not be made, becomes one line and comes last.
    """
    unasked: set[str] = set()

    def marked(section: Section) -> Section:
        experiment = experiment_for_section(section.name)
        if experiment is None:
            return section
        label = f"{experiment.name} · {experiment.exhibits.lower()}" if experiment.exhibits else experiment.name
        if requested is None or experiment.name in requested or not section.is_empty:
            return replace(section, experiment=label)
        unasked.add(section.name)
        missing = Exhibit(caption=experiment.description, missing=_not_requested_text(experiment.name))
        return replace(section, experiment=label, exhibits=(missing,))

    found = [marked(section) for section in sections]
    first = {section.experiment or section.name: i for i, section in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda section: (section.name in unasked, first[section.experiment or section.name]))


def _not_requested_text(name: str) -> str:
    return f"not asked for: add --experiments {name}"
