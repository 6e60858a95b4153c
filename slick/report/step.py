"""The report step: reads a study, evaluates the findings, renders all sections and writes the page."""

import dataclasses
import inspect
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slick.experiments import EXPERIMENTS
from slick.locks import exclusive_lock
from slick.report.config import ReportConfig
from slick.report.data import StudyData
from slick.report.findings.base import FindingResult, evaluate_findings, findings
from slick.report.grading import preserve_grading_sheets, read_grading_sheets
from slick.report.loading import load_study
from slick.report.measurements import InsufficientDataError
from slick.report.page import Exhibit, Section, group_sections, render_page
from slick.report.provenance import provenance_section, read_manifests
from slick.report.sections import make_sections, sections
from slick.report.summary import headline, key_answers, result_sentences
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


def requested_experiments(study: Folder) -> tuple[str, ...] | None:
    """The experiments that `slick study` was asked for in this folder, now or before; None if its steps ran alone."""
    settings = read_study_settings(study)
    return (settings.experiments or None) if settings else None


def explain_unrequested_findings(
    results: Sequence[FindingResult], requested: tuple[str, ...] | None
) -> list[FindingResult]:
    """The results; those not testable because none of their experiments was requested say so."""

    def explained(result: FindingResult) -> FindingResult:
        experiments = findings.get(result.id).experiments
        if result.holds is not None or requested is None or not experiments or set(experiments) & set(requested):
            return result
        return replace(result, why=_not_requested_text(experiments[0]))

    return [explained(result) for result in results]


def label_sections(parts: Sequence[Section], requested: tuple[str, ...] | None) -> list[Section]:
    """The sections with the experiment that each belongs to, those of one experiment together.

    A section that was not requested and is empty becomes one line, and comes last.
    """
    unrequested: set[str] = set()

    def labeled(part: Section) -> Section:
        experiment = EXPERIMENTS.get(sections.get(part.name).experiment) if part.name in sections.names() else None
        if experiment is None:
            return part
        label = f"{experiment.name} · {experiment.exhibits.lower()}" if experiment.exhibits else experiment.name
        if requested is None or experiment.name in requested or not part.is_empty:
            return replace(part, experiment=label)
        unrequested.add(part.name)
        missing = Exhibit(caption=experiment.description, missing=_not_requested_text(experiment.name))
        return replace(part, experiment=label, exhibits=(missing,))

    parts = [labeled(part) for part in parts]
    first = {part.experiment or part.name: i for i, part in reversed(list(enumerate(parts)))}
    return sorted(parts, key=lambda part: (part.name in unrequested, first[part.experiment or part.name]))


def _not_requested_text(name: str) -> str:
    return f"not asked for: add --experiments {name}"


def make_report(study: FolderLike, config: ReportConfig) -> Manifest:
    """Write figures, tables, the judged findings and the page of a study, as far as it is finished.

    A report is made anew, over the old one, when anything it shows has changed.

    Args:
        study: a study folder with a finished knowledge table; all later steps may be missing.
        config: title and test settings.

    Returns:
        The manifest; its counts hold the findings that hold, fail and are not testable.

    Raises:
        StudyError: the knowledge table is not finished, a finished step's files are broken, or the graded sheet is of
            another study.
        DataError: the graded sheet is not as it must be.
        SettingsError: the graded sheet is not there.

    Example:
        slick.make_report("studies/mine", slick.ReportConfig(title="My model"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "report"):
        return _make_report(study, config)


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
        versions().get("slick-knowledge", ""),
        requested_experiments(study),
        graded,
        *external_components(),
    )
    found = read_manifest(folder)
    if found is not None and found.fingerprint == identity:
        return found
    data = load_study(study, config)
    preserve_grading_sheets(folder, config.graded)
    with folder.atomic_replace() as new:  # whatever fails from here on leaves the previous report as it was
        counts = _write_report(study, new, manifests, config, data)
        _copy_preserved(folder, new)
        manifest = complete_step(
            new, "report", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
        )
    print(
        f"report: {counts['holds']} findings hold, {counts['fails']} fail, {counts['not_testable']} not testable; "
        f"{folder}/index.html"
    )
    return manifest


def external_components() -> list[tuple[str, str]]:
    """Findings and sections of other distributions, by name, each with a hash of the module that defines it."""
    modules = {f"finding {name}": finding.check.__module__ for name, finding in findings.items()}
    modules |= {f"section {name}": section.make.__module__ for name, section in sections.items()}
    return [(name, _module_hash(module)) for name, module in modules.items() if not module.startswith("slick.")]


def _module_hash(name: str) -> str:
    try:
        return fingerprint(inspect.getsource(sys.modules[name]))
    except OSError:  # installed without its source
        return ""


def _copy_preserved(old: Folder, new: Folder) -> None:
    """Carry over the folders of a report that no report writes, such as graded sheets."""
    for name in set(old.folders()) - {"figures", "tables"}:
        for path in old.child(name).sizes():
            *folders, file = path.split("/")
            new.child(name, *folders).write_bytes(file, old.child(name, *folders).read_bytes(file))


def _write_report(
    study: Folder, folder: Folder, manifests: dict[str, Manifest], config: ReportConfig, data: StudyData
) -> dict[str, Any]:
    requested = requested_experiments(study)
    outcomes = explain_unrequested_findings(evaluate_findings(data), requested)
    parts = label_sections(make_sections(data), requested)
    origins = provenance_section(manifests, requested)
    written = write_exhibits(folder, [*parts, origins])
    all_tables = [outcomes_table(outcomes)]
    if data.runs:
        all_tables.append(curves_table(data))
    for table in all_tables:
        folder.child("tables").write_bytes(f"{table.name}.csv", to_csv(table))
    folder.write_json("outcomes.json", [dataclasses.asdict(outcome) for outcome in outcomes])
    tally = Counter(outcome.holds for outcome in outcomes)
    counts = {
        "holds": tally[True],
        "fails": tally[False],
        "not_testable": tally[None],
        "runs": len(data.runs),
        "figures": written["figures"],
        "tables": written["tables"] + len(all_tables),
    }
    page = render_page(
        title=config.title or "What the model knows, and what fine-tuning does to it",
        headline=headline(data),
        sentences=result_sentences(data),
        outcomes=outcomes,
        counts=counts,
        groups=group_sections(parts),
        answers=key_answers(data),
        num_seeds=len({run.seed for run in data.runs}),
        provenance=origins,
        settings={
            name: redact_paths(manifest.settings) for name, manifest in _representative_manifests(manifests).items()
        },
        versions=versions(),
    )
    folder.write_bytes("index.html", page.encode())
    return counts


def write_exhibits(folder: Folder, parts: Sequence[Section]) -> dict[str, int]:
    """Write the figures and tables of some sections into figures/ and tables/; returns how many of each."""
    written = {"figures": 0, "tables": 0}
    for exhibit in (exhibit for part in parts for exhibit in part.exhibits):
        if exhibit.figure is not None:
            svg = exhibit.figure.svg.replace("<svg ", '<svg style="background:#fff" ', 1)
            folder.child("figures").write_bytes(f"{exhibit.figure.name}.svg", svg.encode())
            folder.child("figures").write_bytes(f"{exhibit.figure.name}.png", exhibit.figure.png)
            written["figures"] += 1
        if exhibit.table is not None:
            folder.child("tables").write_bytes(f"{exhibit.table.name}.csv", to_csv(exhibit.table))
            written["tables"] += 1
    return written


def _representative_manifests(manifests: dict[str, Manifest]) -> dict[str, Manifest]:
    """Every step, and one run to stand for all."""
    runs = [name for name in manifests if name.startswith("runs/")]
    return {name: manifest for name, manifest in manifests.items() if name not in runs[1:]}


def curves_table(data: StudyData) -> Table:
    """Every run, epoch, split and category (figures 1 and 6)."""
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
    """The 25 findings as CSV."""
    words = {True: "holds", False: "fails", None: "not testable"}
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            o.id,
            o.claim,
            words[o.holds],
            *("" if v is None else str(v) for v in (o.own, o.interval)),
            str(o.paper),
            o.why,
        )
        for o in outcomes
    )
    return Table(name="outcomes", columns=("id", "claim", "outcome", "own", "interval", "paper", "why"), rows=rows)
