"""A study folder to `StudyData`: only finished steps and runs are read."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa

from slick.analysis.data import StudyData, Variant
from slick.analysis.error_audit import AuditPlan
from slick.analysis.loading.answers import GradingSheets, load_wrong_answers
from slick.analysis.loading.fit_times import load_time_to_fit
from slick.analysis.loading.forgotten import load_forgetting
from slick.analysis.loading.labels import load_counts, load_filter_counts, load_prefix_labels, load_test_ids
from slick.analysis.loading.p_true import load_p_true
from slick.analysis.loading.planted import load_planted
from slick.analysis.loading.popularity import load_popularity
from slick.analysis.loading.runs import choose_durations, finished_runs, full_length_runs, load_run, select_run_per_seed
from slick.analysis.loading.stability import load_stability
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_epochs, read_points, read_variant_rows
from slick.types import Category


def load_study(study: Folder, audit: AuditPlan | None = None, sheets: GradingSheets | None = None) -> StudyData:
    """Read what the analysis needs of a study; steps that are not finished leave their part empty.

    Args:
        study: its folder.
        audit: which wrong answers are drawn to be graded; None for as many as the paper's.
        sheets: what was graded of them.

    Raises:
        StudyError: a file of a finished step is missing or broken.
    """
    data, names, epoch_tables = _load_core(study)
    answers = load_wrong_answers(study, audit or AuditPlan(), sheets or GradingSheets(), data.idk_phrase)
    concentrated = {name for name, variant in data.variants.items() if variant.kind == "concentrated"}
    return replace(
        data,
        stability=load_stability(study),
        test_ids=load_test_ids(study) if any(run.variant in concentrated for run in data.runs) else {},
        time_to_fit=load_time_to_fit(study, data.runs, data.variants),
        error_audit=answers.audit,
        error_kinds=answers.kinds,
        forgetting=load_forgetting(study, names, epoch_tables),
        popularity=load_popularity(study, data.variants),
        planted=load_planted(study),
    )


def load_for_findings(study: Folder) -> StudyData:
    """Read what the findings are judged by and points are chosen by, and no more: of answers hits, not texts.

    Args:
        study: its folder.

    Raises:
        StudyError: a file of a finished step that is read is missing or broken.
    """
    return _load_core(study)[0]


def _load_core(study: Folder) -> tuple[StudyData, dict[str, tuple[str, int]], dict[str, pa.Table]]:
    """With the variant and seed, and the epochs.parquet, of each run that counts."""
    variants = _load_variants(study)
    points = _load_points(study)
    names = select_run_per_seed(finished_runs(study))
    epoch_tables = {run_id: read_epochs(study.child("runs", run_id)) for run_id in names}
    whole = full_length_runs(points, epoch_tables)
    names = {run_id: name for run_id, name in names.items() if run_id in whole}
    epoch_tables = {run_id: epoch_tables[run_id] for run_id in whole}
    durations = choose_durations(points, [int(max(t["epoch"].to_pylist())) for t in epoch_tables.values()])
    idk = {name for name, variant in variants.items() if variant.kind == "idk"}
    runs = [
        load_run(study.child("runs", run_id), (run_id, *name), epoch_tables[run_id], durations, idk)
        for run_id, name in names.items()
    ]
    data = StudyData(
        counts=load_counts(study),
        filter_counts=load_filter_counts(study),
        prefix_labels=load_prefix_labels(study),
        p_true=load_p_true(study),
        variants=variants,
        runs=tuple(sorted(runs, key=lambda run: (run.variant, run.seed))),
        points=points,
        durations=durations,
        idk_phrase=_idk_phrase(study, sorted(idk)),
    )
    return data, names, epoch_tables


def _load_variants(study: Folder) -> dict[str, Variant]:
    manifest = read_manifest(study.child("variants"))
    if manifest is None:
        return {}
    variants = {}
    for name, entry in manifest.counts.items():
        share = entry.get("requested_share")
        if share is None and entry["kind"] == "unknown":
            share = entry.get("unknown_share")
        relations = entry.get("relations", {})
        variants[name] = Variant(
            name=name, kind=str(entry["kind"]), share=share, num=int(entry["num"]), relations=relations
        )
    return variants


def _load_points(study: Folder) -> tuple[dict[str, Any], ...]:
    if read_manifest(study.child("sweep")) is None:
        return ()
    return tuple(read_points(study))


def _idk_phrase(study: Folder, names: list[str]) -> str:
    """The target that the relabelled variant gave to its Unknown rows."""
    for name in names:
        table = read_variant_rows(study, name, ["category", "target"])
        targets = [row["target"] for row in table.to_pylist() if row["category"] == Category.UNKNOWN]
        if targets:
            return str(Counter(targets).most_common(1)[0][0])
    return "I don't know"
