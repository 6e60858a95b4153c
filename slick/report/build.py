"""The report step: read the study folder, judge, draw, write."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from slick.analysis.data import StudyData
from slick.analysis.error_audit import PARAPHRASE_F1_THRESHOLD, AuditPlan
from slick.analysis.findings.judge import evaluate_findings
from slick.analysis.loading.study import load_study
from slick.errors import SettingsError
from slick.locks import exclusive_lock
from slick.report import tables
from slick.report.asked import explain_unrequested_findings, label_sections, requested_experiments
from slick.report.page import Section, group_sections, render_page
from slick.report.provenance import provenance_section, read_manifests
from slick.report.sections import all_sections
from slick.report.sheets import preserve_grading_sheets, read_grading_sheets
from slick.report.summary import headline, key_answers, result_sentences
from slick.settings import identity_settings, register_settings, setting
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, complete_step, fingerprint, read_manifest, require_manifest, versions
from slick.uris import redact_paths


@register_settings("report")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How the report is made; none of it changes what was measured."""

    title: str = ""
    """Heading of the page; empty for a general one."""
    num_chunks: int = 100
    """Chunks of test questions in the paired t-test."""
    seed: int = setting(0, "seed")
    """Of the shuffle before the questions are cut into chunks, and of the wrong answers drawn to be graded."""
    audit_greedy: int = 50
    """Wrong greedy answers in the sheet tables/error_audit.csv, to be graded by a person."""
    audit_sampled: int = 50
    """Wrong sampled answers in that sheet."""
    audit_f1: float = PARAPHRASE_F1_THRESHOLD
    """From this F1 with a gold answer on, the sheet asks whether an answer is a paraphrase."""
    graded: str = setting("", "content")
    """That sheet with its column `grade` filled in (wrong, paraphrase, finer, coarser): its shares are shown."""

    def __post_init__(self) -> None:
        if self.num_chunks < 2:
            raise SettingsError(f"num_chunks must be 2 or more for a t-test, got {self.num_chunks}; the paper's is 100")

        self.audit_plan()

    def audit_plan(self) -> AuditPlan:
        """Which wrong answers are drawn to be graded."""
        return AuditPlan(
            num_greedy=self.audit_greedy, num_sampled=self.audit_sampled, seed=self.seed, paraphrase_f1=self.audit_f1
        )

    def identity(self) -> dict[str, object]:
        """All settings, since each of them shows on the page; a graded sheet counts by what it says."""
        return identity_settings(self)


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
        inputs, config.identity(), versions().get("slick-knowledge", ""), requested_experiments(study), graded
    )
    found = read_manifest(folder)
    if found is not None and found.fingerprint == identity:
        return found
    data = load_study(study, config.audit_plan(), sheets)
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
    outcomes = explain_unrequested_findings(
        evaluate_findings(data, num_chunks=config.num_chunks, seed=config.seed), requested
    )
    parts = label_sections(all_sections(data, config.num_chunks, config.seed), requested)
    origins = provenance_section(manifests, requested)
    written = write_exhibits(folder, [*parts, origins])
    all_tables = [tables.outcomes_table(outcomes)]
    if data.runs:
        all_tables.append(tables.curves_table(data))
    for table in all_tables:
        folder.child("tables").write_bytes(f"{table.name}.csv", tables.to_csv(table))
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
            folder.child("tables").write_bytes(f"{exhibit.table.name}.csv", tables.to_csv(exhibit.table))
            written["tables"] += 1
    return written


def _representative_manifests(manifests: dict[str, Manifest]) -> dict[str, Manifest]:
    """Every step, and one run to stand for all."""
    runs = [name for name in manifests if name.startswith("runs/")]
    return {name: manifest for name, manifest in manifests.items() if name not in runs[1:]}
