"""The compare step: several studies on one page."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from slick.errors import SettingsError, StudyError
from slick.formatting import format_percent
from slick.report.comparison import (
    ComparedStudy,
    comparable_pairs,
    count_findings,
    format_labels,
    group_by_settings,
    have_same_settings_and_seeds,
    sweep_accuracies,
    version_differences,
)
from slick.report.comparison_page import comparison_sections
from slick.report.config import ReportConfig
from slick.report.findings.base import Verdict, evaluate_findings
from slick.report.loading import load_study
from slick.report.measurements import CONVERGENCE
from slick.report.page import render_page
from slick.report.provenance import STEPS, read_manifests, read_provenance
from slick.report.setting_differences import NOT_STATED, setting_differences
from slick.report.step import write_exhibits
from slick.storage import Folder, FolderLike, as_folder

logger = logging.getLogger(__name__)

PAGE_FILE = "index.html"
STUDY_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_studies(
    studies: Sequence[FolderLike], out: FolderLike, *, num_chunks: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Write one page about several studies, with its figures and tables.

    Args:
        studies: two or more study folders. Unfinished steps are reported as missing.
        out: replaced if it is an earlier comparison.
        num_chunks: chunks of the paired t-test of finding E25.
        seed: seed of the assignment of questions to chunks.

    Returns:
        The content of comparison.json: the provenance of the studies and the results of the findings.

    Raises:
        SettingsError: there are fewer than two studies, one is named twice, or `out` is a study folder.
        StudyError: a folder is not a study folder, or a file of a finished step is corrupt.
    """
    folders, out = [as_folder(study) for study in studies], as_folder(out)
    _validate_folders(folders, out)
    config = ReportConfig(num_chunks=num_chunks, seed=seed)
    names = shortest_unique_names([folder.uri for folder in folders])
    compared = []
    for label, name, folder in zip(STUDY_LABELS, names, folders, strict=False):
        logger.info("compare: %s is %s", label, folder)
        data = load_study(folder, config)
        compared.append(
            ComparedStudy(
                label=label,
                name=name,
                data=data,
                outcomes=tuple(evaluate_findings(data)),
                provenance=read_provenance(read_manifests(folder)),
            )
        )
    _log_differences(compared)
    sections = comparison_sections(compared)
    summary = comparison_summary(compared)
    page = render_page(
        "compare.html",
        title=f"Comparison of {len(compared)} studies",
        headline=_headline(compared),
        sentences=_summary_sentences(compared),
        sections=sections,
    )
    for name in ("figures", "tables"):  # last, so that a failure leaves the earlier comparison unchanged
        out.child(name).delete()
    write_exhibits(out, sections)
    out.write_json("comparison.json", summary)
    out.write_bytes(PAGE_FILE, page.encode())
    logger.info("compare: %s/%s", out, PAGE_FILE)
    return summary


def _log_differences(studies: Sequence[ComparedStudy]) -> None:
    for sentence in _settings_sentences(studies):
        logger.info("compare: %s", sentence)
    rows = [(row.step, row.name, row.values) for row in setting_differences([s.provenance.basis for s in studies])]
    rows += [("versions", name, texts) for name, texts in version_differences(studies).items()]
    for step, name, values in rows:
        logger.info("  %s %s: %s", step, name, " | ".join(value or NOT_STATED for value in values))


def shortest_unique_names(uris: Sequence[str]) -> list[str]:
    """The shortest ends of paths that are unique.

    >>> shortest_unique_names(["/a/one/new", "/b/two/new", "/b/two/old"])
    ['one/new', 'two/new', 'two/old']
    """
    parts = [uri.rstrip("/").split("/") for uri in uris]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return names


def comparison_summary(studies: Sequence[ComparedStudy]) -> dict[str, Any]:
    """The content of comparison.json: provenance, differences, and the result of each finding in each study."""
    labels = [study.label for study in studies]
    results = {study.label: {outcome.id: outcome.verdict for outcome in study.outcomes} for study in studies}
    return {
        "studies": {study.label: {"folder": study.name, **dataclasses.asdict(study.provenance)} for study in studies},
        "comparable": [[a.label, b.label] for a, b in comparable_pairs(studies)],
        "same_recipe": [[study.label for study in group] for group in group_by_settings(studies)],
        "differences": [
            {"step": row.step, "setting": row.name, **dict(zip(labels, row.values, strict=True))}
            for row in setting_differences([study.provenance.basis for study in studies])
        ],
        "version_differences": {
            name: dict(zip(labels, texts, strict=True)) for name, texts in version_differences(studies).items()
        },
        "findings": {
            name: {
                "holds_in": holds,
                "tested_in": tested,
                **{label: results[label].get(name, Verdict.NOT_TESTABLE) for label in labels},
            }
            for name, (holds, tested) in count_findings(studies).items()
        },
    }


def _validate_folders(folders: Sequence[Folder], out: Folder) -> None:
    if len(folders) < 2:
        raise SettingsError(f"a comparison needs two or more study folders, got {len(folders)}")
    if len(folders) > len(STUDY_LABELS):
        raise SettingsError(f"a comparison takes at most {len(STUDY_LABELS)} studies, got {len(folders)}")
    repeated = sorted(uri for uri, num in Counter(folder.uri for folder in folders).items() if num > 1)
    if repeated:
        raise SettingsError(f"{', '.join(repeated)} is named more than once; name each study once")
    for folder in folders:
        if not folder.exists():
            raise StudyError(f"{folder} does not exist; name folders that were given to `slick study --out`")
        if not any(folder.child(step).exists() for step in STEPS):
            raise StudyError(
                f"{folder} is not a study folder: it has none of {', '.join(STEPS)}; name folders that were given to "
                "`slick study --out`"
            )
    if any(out.child(step).exists() for step in STEPS) or out.exists("study.json"):
        raise SettingsError(f"--out {out} is a study folder; choose another folder for the comparison")


def _headline(studies: Sequence[ComparedStudy]) -> str:
    falls, spans = [], set()
    for study in studies:
        ends = sorted((share, cell.value) for (share, at), cell in sweep_accuracies(study).items() if at == CONVERGENCE)
        if len(ends) > 1:
            falls.append(ends[-1][1] < ends[0][1])
            spans.add(f"from {format_percent(ends[0][0])} to {format_percent(ends[-1][0])}")
    if not falls:
        return "None of these studies has finished runs at two shares of Unknown rows yet."
    span = spans.pop() if len(spans) == 1 else "from the smallest to the largest"
    return (
        f"As the share of Unknown training rows goes {span}, test accuracy after full training falls in {sum(falls)} "
        f"of {len(falls)} studies."
    )


def _settings_sentences(studies: Sequence[ComparedStudy]) -> list[str]:
    """Which studies differ only in seeds, which not at all, and the number of settings in which the others differ."""
    sentences = []
    for group in group_by_settings(studies):
        versions = version_differences(group)
        but = f", apart from {', '.join(versions)}" if versions else ""
        sentences.append(f"{format_labels(group)} differ only in their seeds{but}.")
    sentences += [
        f"{a.label} and {b.label} have the same settings, inputs and seeds."
        for a, b in combinations(studies, 2)
        if have_same_settings_and_seeds(a, b)
    ]
    num = len(setting_differences([study.provenance.basis for study in studies]))
    if num:
        sentences.append(f"{num} {'setting or input differs' if num == 1 else 'settings or inputs differ'}.")
    return sentences


def _summary_sentences(studies: Sequence[ComparedStudy]) -> list[str]:
    counts = count_findings(studies)
    tested = {name: both for name, both in counts.items() if both[1]}
    mixed = [name for name, (holds, num) in tested.items() if 0 < holds < num]
    always = sum(holds == num for holds, num in tested.values())
    never = len(tested) - always - len(mixed)
    some = f", {len(mixed)} hold in some ({', '.join(mixed)})" if mixed else ""
    sentences = [
        f"{len(tested)} of {len(counts)} findings are decided in at least one study: {always} hold and {never} fail "
        f"in every study that decides them{some}.",
        *_settings_sentences(studies),
    ]
    pairs = comparable_pairs(studies)
    if pairs:
        labels = ", ".join(f"{a.label} and {b.label}" for a, b in pairs)
        sentences.append(f"Comparable, with the same questions: {labels}. Their differences are paired by question.")
    else:
        sentences.append("No two studies have the same questions and the same matcher, so no differences are given.")
    unfinished = [f"{s.label} ({', '.join(s.provenance.missing)})" for s in studies if s.provenance.missing]
    return [*sentences, *([f"Not finished yet: {'; '.join(unfinished)}."] if unfinished else [])]
