"""The report step: load a study, evaluate the findings, render all sections and write the page."""

import dataclasses
import hashlib
import inspect
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from slick.experiments import EXPERIMENTS
from slick.locks import exclusive_lock
from slick.report.config import ReportConfig
from slick.report.convergence import convergence_note, convergence_table, final_train_accuracies, mentions_convergence
from slick.report.data import StudyData
from slick.report.findings.base import FindingResult, Verdict, evaluate_findings, findings
from slick.report.grading import preserve_grading_sheets, read_grading_sheets
from slick.report.loading import load_study
from slick.report.measurements import InsufficientDataError
from slick.report.page import Exhibit, Section, group_sections, render_page
from slick.report.provenance import provenance_section, read_manifests, read_provenance
from slick.report.sections import make_sections, sections
from slick.report.summary import summarize
from slick.report.tables import CellValue, Table, to_csv
from slick.storage import Folder, FolderLike, as_folder
from slick.study import (
    Manifest,
    complete_step,
    fingerprint,
    read_manifest,
    read_study_settings,
    require_manifest,
    versions,
)
from slick.uris import redact_paths

logger = logging.getLogger(__name__)


def make_report(study: FolderLike, config: ReportConfig) -> Manifest:
    """Write the figures, tables, findings and page of a study, as far as it is finished.

    An existing report is replaced if its inputs, settings or components changed.

    Args:
        study: a study folder with a finished annotate step; later steps may be missing.
        config: title and settings of tests.

    Returns:
        The manifest; its counts include the numbers of findings by verdict.

    Raises:
        StudyError: the annotate step is not finished, a file of a finished step is corrupt, or the grading sheet
            belongs to another study.
        DataError: the grading sheet is invalid.
        SettingsError: the grading sheet does not exist.

    Example:
        slick.make_report("studies/mine", slick.ReportConfig(title="My model"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "report"):
        return _make_report(study, config)


def requested_experiments(study: Folder) -> tuple[str, ...] | None:
    """The experiments that were requested by `slick study` in this folder; None if its steps were run one by one."""
    settings = read_study_settings(study)
    return (settings.experiments or None) if settings else None


def explain_unrequested_findings(
    results: Sequence[FindingResult], requested: tuple[str, ...] | None
) -> list[FindingResult]:
    """The results; findings whose experiments were not requested have that as their reason."""

    def explained(result: FindingResult) -> FindingResult:
        experiments = findings.get(result.id).experiments
        if (
            result.verdict != Verdict.NOT_TESTABLE
            or requested is None
            or not experiments
            or set(experiments) & set(requested)
        ):
            return result
        return replace(result, why=_not_requested_text(experiments[0]))

    return [explained(result) for result in results]


def label_sections(parts: Sequence[Section], requested: tuple[str, ...] | None) -> list[Section]:
    """The sections with the labels of their experiments, grouped by experiment.

    Empty sections of experiments that were not requested are reduced to one line and come last.
    """
    unrequested: set[str] = set()

    def labeled(part: Section) -> Section:
        experiment = EXPERIMENTS.get(_experiment_name(part))
        if experiment is None:
            return part
        part = replace(part, place=experiment.exhibits.lower())
        if requested is None or experiment.name in requested or not part.is_empty:
            return part
        unrequested.add(part.name)
        missing = Exhibit(caption=experiment.description, missing=_not_requested_text(experiment.name))
        return replace(part, exhibits=(missing,))

    parts = [labeled(part) for part in parts]
    experiments = {part.name: _experiment_name(part) or part.name for part in parts}
    first = {experiments[part.name]: i for i, part in reversed(list(enumerate(parts)))}
    return sorted(parts, key=lambda part: (part.name in unrequested, first[experiments[part.name]]))


def _experiment_name(part: Section) -> str:
    return sections.get(part.name).experiment if part.name in sections.names() else ""


def note_convergence(parts: Sequence[Section], note: str) -> list[Section]:
    """The sections; those that mention convergence get the note on the trainings that did not reach it."""
    return [replace(part, note=note) if mentions_convergence(part) else part for part in parts]


def _not_requested_text(name: str) -> str:
    return f"not requested: add --experiments {name}"


def _make_report(study: Folder, config: ReportConfig) -> Manifest:
    started_at = time.monotonic()
    require_manifest(study.child("annotate"), "annotate")
    manifests = read_manifests(study)
    inputs = {name: manifest.fingerprint for name, manifest in manifests.items()}
    folder = study.child("report")
    sheets = read_grading_sheets(folder, config.graded)
    graded = sorted(sheets.graded.grades.items()) if sheets.graded else []
    identity = fingerprint(
        inputs,
        config.identity(),
        report_code_hash(),
        requested_experiments(study),
        graded,
        *external_components(),
        *_untested_epochs(manifests),
        *_wording_parts(study),
    )
    previous = read_manifest(folder)
    if previous is not None and previous.fingerprint == identity:
        logger.info("report: unchanged; %s/index.html", folder)
        return previous
    data = load_study(study, config)
    preserve_grading_sheets(folder, config.graded)
    with folder.atomic_replace() as new:  # if anything fails below, the previous report stays
        counts = _write_report(study, new, manifests, config, data)
        _copy_preserved(folder, new)
        manifest = complete_step(
            new, "report", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
        )
    logger.info(
        "report: %d findings hold, %d fail, %d undecided, %d not testable; %s/index.html",
        *(counts["holds"], counts["fails"], counts["undecided"], counts["not_testable"], folder),
    )
    return manifest


def _wording_parts(study: Folder) -> list[tuple[str, str]]:
    """The finished parts of the wording step, by name, each with its fingerprint. Other steps do not read them."""
    folder = study.child("wording")
    parts = {"wording": folder} | {name: folder.child("trained", name) for name in folder.child("trained").folders()}
    manifests = {name: read_manifest(part) for name, part in parts.items()}
    return [(name, manifest.fingerprint) for name, manifest in manifests.items() if manifest is not None]


def _untested_epochs(manifests: Mapping[str, Manifest]) -> list[tuple[str, list[int]]]:
    """The epochs without test rows of each run that has some; their fingerprints do not depend on them."""
    missing = {name: manifest.counts.get("epochs_without_test_rows") for name, manifest in manifests.items()}
    return [(name, epochs) for name, epochs in sorted(missing.items()) if epochs]


def external_components() -> list[tuple[str, str]]:
    """Findings and sections of other distributions, by name, each with a hash of the module that defines it."""
    modules = {f"finding {name}": finding.check.__module__ for name, finding in findings.items()}
    modules |= {f"section {name}": section.make.__module__ for name, section in sections.items()}
    return [(name, _module_hash(module)) for name, module in modules.items() if not module.startswith("slick.")]


@cache
def report_code_hash() -> str:
    """A hash of the code, templates and data that make reports, so that they are rebuilt by another version of them."""
    root = Path(__file__).parent
    paths = sorted(path for path in root.rglob("*") if path.suffix in {".py", ".html", ".css"})
    paths.append(root.parent / "data" / "finding_rates.json")
    contents = [path.read_bytes() for path in paths]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:16]


def _module_hash(name: str) -> str:
    try:
        return fingerprint(inspect.getsource(sys.modules[name]))
    except OSError:  # installed without its source
        return ""


def _copy_preserved(old: Folder, new: Folder) -> None:
    """Copy the folders that the report step does not write, such as graded sheets."""
    for name in set(old.folders()) - {"figures", "tables"}:
        for path in old.child(name).sizes():
            *folders, file = path.split("/")
            new.child(name, *folders).write_bytes(file, old.child(name, *folders).read_bytes(file))


def _write_report(
    study: Folder, folder: Folder, manifests: dict[str, Manifest], config: ReportConfig, data: StudyData
) -> dict[str, Any]:
    requested = requested_experiments(study)
    outcomes = explain_unrequested_findings(evaluate_findings(data), requested)
    trained = final_train_accuracies(data)
    parts = note_convergence(label_sections(make_sections(data), requested), convergence_note(trained))
    provenance = provenance_section(manifests, requested)
    summary = summarize(data, manifests, read_provenance(manifests))
    num_figures, num_tables = write_exhibits(folder, [*parts, provenance])
    more_tables = [outcomes_table(outcomes), *([curves_table(data)] if data.runs else [])]
    more_tables += [summary.decision] if summary.decision else []
    more_tables += [convergence_table(trained)] if trained.unfitted else []
    for table in more_tables:
        folder.child("tables").write_bytes(f"{table.name}.csv", to_csv(table))
    folder.write_json("outcomes.json", [dataclasses.asdict(outcome) for outcome in outcomes])
    num_outcomes = Counter(outcome.verdict for outcome in outcomes)
    counts = {
        "holds": num_outcomes[Verdict.HOLDS],
        "fails": num_outcomes[Verdict.FAILS],
        "undecided": num_outcomes[Verdict.UNDECIDED],
        "not_testable": num_outcomes[Verdict.NOT_TESTABLE],
        "runs": len(data.runs),
        "figures": num_figures,
        "tables": num_tables + len(more_tables),
    }
    page = render_page(
        title=config.title or "What the model knows, and what fine-tuning does to it",
        summary=summary,
        convergence_note=convergence_note(trained),
        findings=group_by_verdict(outcomes),
        groups=group_sections(parts),
        provenance=provenance,
        settings={
            name: redact_paths(manifest.settings) for name, manifest in _representative_manifests(manifests).items()
        },
        versions=versions(),
    )
    folder.write_bytes("index.html", page.encode())
    return counts


def group_by_verdict(outcomes: Sequence[FindingResult]) -> list[tuple[str, list[FindingResult]]]:
    """(verdict, results) of the findings that hold, fail, and so on, without empty groups."""
    verdicts = [(str(verdict), [outcome for outcome in outcomes if outcome.verdict == verdict]) for verdict in Verdict]
    return [(label, results) for label, results in verdicts if results]


def write_exhibits(folder: Folder, parts: Sequence[Section]) -> tuple[int, int]:
    """Write the figures and tables of sections to figures/ and tables/; returns the number of each."""
    exhibits = [exhibit for part in parts for exhibit in part.exhibits]
    figures = [exhibit.figure for exhibit in exhibits if exhibit.figure is not None]
    tables = [exhibit.table for exhibit in exhibits if exhibit.table is not None]
    for figure in figures:
        svg = figure.svg.replace("<svg ", '<svg style="background:#fff" ', 1)
        folder.child("figures").write_bytes(f"{figure.name}.svg", svg.encode())
        folder.child("figures").write_bytes(f"{figure.name}.png", figure.png)
    for table in tables:
        folder.child("tables").write_bytes(f"{table.name}.csv", to_csv(table))
    return len(figures), len(tables)


def _representative_manifests(manifests: dict[str, Manifest]) -> dict[str, Manifest]:
    """The manifests of all steps and of one run."""
    runs = [name for name in manifests if name.startswith("runs/")]
    return {name: manifest for name, manifest in manifests.items() if name not in runs[1:]}


def curves_table(data: StudyData) -> Table:
    """Accuracy of each run by epoch, split and category (figures 1 and 6)."""
    rows: list[tuple[CellValue, ...]] = []
    for run in data.runs:
        for (split, category), curve in sorted(run.accuracy.items()):
            for epoch, value in zip(run.epochs.tolist(), curve.tolist(), strict=True):
                if not math.isnan(value):
                    rows.append((run.run_id, epoch, split, category, run.num[split, category], round(value, 3)))
    if not rows:
        raise InsufficientDataError("needs a finished run")
    return Table(
        name="curves", columns=("run_id", "epoch", "split", "category", "rows", "accuracy_percent"), rows=tuple(rows)
    )


def outcomes_table(outcomes: list[FindingResult]) -> Table:
    """The results of the findings."""
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            outcome.id,
            outcome.claim,
            outcome.verdict,
            *("" if value is None else str(value) for value in (outcome.own, outcome.interval)),
            str(outcome.paper),
            outcome.why,
            outcome.needed,
            *("" if rate is None else rate for rate in (outcome.power, outcome.false_alarm)),
        )
        for outcome in outcomes
    )
    columns = ("id", "claim", "outcome", "own", "interval", "paper", "why", "needed", "power", "false_alarm")
    return Table(name="outcomes", columns=columns, rows=rows)
