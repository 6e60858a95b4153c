"""The compare command's step: several studies on one page."""

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from slick.errors import SettingsError, StudyError
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
from slick.report.findings.base import evaluate_findings
from slick.report.loading import load_study
from slick.report.measurements import (
    CONVERGENCE,
    format_percent,
)
from slick.report.page import render_page
from slick.report.provenance import STEPS, read_manifests, read_provenance
from slick.report.setting_differences import NOT_STATED, setting_differences
from slick.report.step import write_exhibits
from slick.storage import Folder, FolderLike, as_folder

PAGE_FILE = "index.html"
STUDY_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_studies(
    studies: Sequence[FolderLike], out: FolderLike, *, num_chunks: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Write one page with all studies side by side, its figures and its tables.

    Args:
        studies: two study folders or more; steps that are not finished are left out, and said to be missing.
        out: overwritten if it holds an earlier comparison.
        num_chunks: of the paired t-test of finding E25.
        seed: of the shuffle before it.

    Returns:
        The content of comparison.json: the studies, and how each finding turned out in them.

    Raises:
        SettingsError: fewer than two studies, one named twice, or `out` is one of them.
        StudyError: a folder is not a study's, or a finished step's files are broken.
    """
    folders, out = [as_folder(study) for study in studies], as_folder(out)
    _validate_studies(folders, out)
    names = shortest_unique_names([study.uri for study in folders])
    sides = []
    for label, name, study in zip(STUDY_LABELS, names, folders, strict=False):
        print(f"compare: {label} is {study}", flush=True)
        data = load_study(study, ReportConfig(num_chunks=num_chunks, seed=seed))
        outcomes = tuple(evaluate_findings(data))
        sides.append(
            ComparedStudy(
                label=label, name=name, data=data, outcomes=outcomes, provenance=read_provenance(read_manifests(study))
            )
        )
    _print_differences(sides)
    sections = comparison_sections(sides)
    found = comparison_summary(sides)
    page = render_page(
        "compare.html",
        title=f"{len(sides)} studies side by side",
        headline=_headline(sides),
        sentences=_summary_sentences(sides),
        sections=sections,
    )
    for name in ("figures", "tables"):  # only now: what fails before leaves an earlier comparison as it was
        out.child(name).delete()
    write_exhibits(out, sections)
    out.write_json("comparison.json", found)
    out.write_bytes(PAGE_FILE, page.encode())
    print(f"compare: {out}/{PAGE_FILE}")
    return found


def _print_differences(sides: Sequence[ComparedStudy]) -> None:
    for sentence in _settings_sentences(sides):
        print(f"compare: {sentence}")
    found = [(one.step, one.name, one.values) for one in setting_differences([side.provenance.basis for side in sides])]
    found += [("versions", name, texts) for name, texts in version_differences(sides).items()]
    for step, name, values in found:
        print(f"  {step} {name}: {' | '.join(value or NOT_STATED for value in values)}", flush=True)


def shortest_unique_names(uris: Sequence[str]) -> list[str]:
    """The ends of paths that tell them apart.

    >>> shortest_unique_names(["/a/one/new", "/b/two/new", "/b/two/old"])
    ['one/new', 'two/new', 'two/old']
    """
    parts = [uri.rstrip("/").split("/") for uri in uris]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return names


def comparison_summary(sides: Sequence[ComparedStudy]) -> dict[str, Any]:
    """What programs may read: each study's origin, and in how many studies each finding holds."""
    labels = [side.label for side in sides]
    words = {True: "holds", False: "fails", None: "not testable"}
    return {
        "studies": {side.label: {"folder": side.name, **dataclasses.asdict(side.provenance)} for side in sides},
        "comparable": [[a.label, b.label] for a, b in comparable_pairs(sides)],
        "same_recipe": [[side.label for side in group] for group in group_by_settings(sides)],
        "differences": [
            {"step": one.step, "setting": one.name, **dict(zip(labels, one.values, strict=True))}
            for one in setting_differences([side.provenance.basis for side in sides])
        ],
        "version_differences": {
            name: dict(zip(labels, texts, strict=True)) for name, texts in version_differences(sides).items()
        },
        "findings": {
            name: {
                "holds_in": holds,
                "tested_in": tested,
                **{side.label: words[_finding_holds(side, name)] for side in sides},
            }
            for name, (holds, tested) in count_findings(sides).items()
        },
    }


def _finding_holds(side: ComparedStudy, name: str) -> bool | None:
    return next((outcome.holds for outcome in side.outcomes if outcome.id == name), None)


def _validate_studies(studies: Sequence[Folder], out: Folder) -> None:
    if len(studies) < 2:
        raise SettingsError(f"a comparison needs two study folders or more, got {len(studies)}")
    if len(studies) > len(STUDY_LABELS):
        raise SettingsError(f"a comparison has room for {len(STUDY_LABELS)} studies, got {len(studies)}")
    twice = sorted({study.uri for study in studies if [one.uri for one in studies].count(study.uri) > 1})
    if twice:
        raise SettingsError(f"{', '.join(twice)} is named more than once; name each study once")
    for study in studies:
        if not study.exists():
            raise StudyError(f"{study} is not there; name folders that `slick study --out` has written")
        if not any(study.child(step).exists() for step in STEPS):
            raise StudyError(
                f"{study} is not a study folder: it holds none of {', '.join(STEPS)}; name what was given to --out"
            )
    if any(out.child(step).exists() for step in STEPS) or out.exists("study.json"):
        raise SettingsError(f"--out {out} is a study folder; give another for the comparison")


def _headline(sides: Sequence[ComparedStudy]) -> str:
    falls = []
    for side in sides:
        found = sorted(
            (share, cell.value)
            for (share, checkpoint), cell in sweep_accuracies(side).items()
            if checkpoint == CONVERGENCE
        )
        if len(found) > 1:
            falls.append((found[-1][1] < found[0][1], found[0][0], found[-1][0]))
    if not falls:
        return "None of these studies has finished trainings at two shares of Unknown rows yet."
    ends = {(low, high) for _, low, high in falls}
    span = (
        f"from {format_percent(min(ends)[0])} to {format_percent(min(ends)[1])}"
        if len(ends) == 1
        else "from least to most"
    )
    return (
        f"As the share of Unknown training rows goes {span}, test accuracy after full training falls in "
        f"{sum(fall for fall, _, _ in falls)} of {len(falls)} studies."
    )


def _settings_sentences(sides: Sequence[ComparedStudy]) -> list[str]:
    """Which studies differ in their seeds alone, which not at all, and how many settings the others differ in."""
    found = []
    for group in group_by_settings(sides):
        versions = version_differences(group)
        what = (
            "their seeds alone" if not versions else f"their seeds, and no other setting, but in {', '.join(versions)}"
        )
        found.append(f"{format_labels(group)} differ in {what}: how far they lie apart is what chance does.")
    found += [
        f"{a.label} and {b.label} have the same settings, inputs and seeds."
        for a, b in combinations(sides, 2)
        if have_same_settings_and_seeds(a, b)
    ]
    num = len(setting_differences([side.provenance.basis for side in sides]))
    if num:
        found.append(f"{num} {'setting or input is' if num == 1 else 'settings or inputs are'} not the same in all.")
    return found


def _summary_sentences(sides: Sequence[ComparedStudy]) -> list[str]:
    counts = count_findings(sides)
    tested = {name: both for name, both in counts.items() if both[1]}
    differ = [name for name, (holds, num) in tested.items() if 0 < holds < num]
    always = sum(holds == num for holds, num in tested.values())
    never = len(tested) - always - len(differ)
    found = [
        f"Of the paper's {len(counts)} findings, {len(tested)} could be tested in one of these studies or more: "
        f"{always} hold and {never} fail wherever they could be tested"
        + (f", {len(differ)} hold in some ({', '.join(differ)})." if differ else ".")
    ]
    found += _settings_sentences(sides)
    pairs = comparable_pairs(sides)
    if pairs:
        said = ", ".join(f"{a.label} and {b.label}" for a, b in pairs)
        found.append(f"The same questions were asked in {said}: their differences are taken question by question.")
    else:
        found.append(
            "No two of these studies asked the same questions and matched answers alike: their numbers stand side by "
            "side, and no difference is taken."
        )
    unfinished = [f"{side.label} ({', '.join(side.provenance.missing)})" for side in sides if side.provenance.missing]
    return [*found, *([f"Not finished yet: {'; '.join(unfinished)}."] if unfinished else [])]
