"""Read a study folder into `StudyData`. Only finished steps and runs are read."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from slick.errors import StudyError
from slick.report.config import ReportConfig
from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.measurements import ANY_KNOWN
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_epochs, read_knowledge, read_points, read_predictions, read_variant_rows
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES, Category

MAX_DURATIONS = 6
"""The largest number of training lengths that are shown and tested, so that figures stay readable."""

_FIXED_POLICY = re.compile(r"fixed\((\d+)\)")
_RUN_ID = re.compile(r"(.+?)-seed(\d+)(-.+?=.+?)?(?:-epochs(\d+))?")
"""Variant, seed, training settings that a sweep varied, and the epochs of a training with a single budget."""


def load_study(study: Folder, config: ReportConfig | None = None) -> StudyData:
    """Read the data that sections and findings share. The parts of unfinished steps are empty.

    Args:
        study: the study's folder.
        config: settings of the report; None for the defaults.

    Raises:
        StudyError: a file of a finished step is missing or corrupt.
    """
    variants = _load_variants(study)
    points = _load_points(study)
    names = select_run_per_seed(finished_runs(study))
    epoch_tables = {run_id: read_epochs(study.child("runs", run_id)) for run_id in names}
    epoch_tables = {run_id: epoch_tables[run_id] for run_id in full_length_runs(points, epoch_tables)}
    run_lengths = [int(max(table["epoch"].to_pylist())) for table in epoch_tables.values()]
    durations = choose_durations(points, run_lengths, tested_epochs(epoch_tables.values()))
    idk = {name for name, variant in variants.items() if variant.kind == "idk"}
    runs = [
        load_run(study.child("runs", run_id), (run_id, *names[run_id]), table, durations, idk)
        for run_id, table in epoch_tables.items()
    ]
    return StudyData(
        study=study,
        config=config or ReportConfig(),
        counts=load_counts(study),
        filter_counts=load_filter_counts(study),
        variants=variants,
        runs=tuple(sorted(runs, key=lambda run: (run.variant, run.seed))),
        points=points,
        durations=durations,
        idk_phrase=_idk_phrase(study, sorted(idk)),
    )


def finished_runs(study: Folder) -> list[str]:
    """The run_ids with a manifest, sorted."""
    runs = study.child("runs")
    return [run_id for run_id in runs.folders() if runs.child(run_id).exists("manifest.json")]


def full_length_runs(points: Iterable[Mapping[str, Any]], epoch_tables: Mapping[str, pa.Table]) -> list[str]:
    """Runs that were trained to the sweep's largest budget. Shorter runs do not have a converged checkpoint."""
    budget = max((int(point["epochs"]) for point in points), default=0)
    return [run_id for run_id, table in epoch_tables.items() if max(table["epoch"].to_pylist()) >= budget]


def select_run_per_seed(run_ids: Iterable[str]) -> dict[str, tuple[str, int]]:
    """(variant, seed) of the run for each variant and seed: with the sweep's default settings, the longest of them.

    >>> select_run_per_seed(["natural-seed0", "natural-seed0-dropout=0.1", "idk-seed1-epochs5", "idk-seed1-epochs10"])
    {'natural-seed0': ('natural', 0), 'idk-seed1-epochs10': ('idk', 1)}
    """
    longest: dict[tuple[str, int], tuple[int, str]] = {}
    for run_id in run_ids:
        match = _match_run_id(run_id)
        if not match[3]:
            key = (match[1], int(match[2]))
            longest[key] = max(longest.get(key, (-1, "")), (int(match[4] or 0), run_id))
    return {run_id: key for key, (_, run_id) in longest.items()}


def parse_run_id(run_id: str) -> tuple[str, int, str]:
    """Variant, seed, and training settings that a sweep varied (empty for the default ones).

    >>> parse_run_id("unknown-050-seed1-learning_rate=5.5e-05-epochs10")
    ('unknown-050', 1, 'learning_rate=5.5e-05')
    >>> parse_run_id("idk-050-seed0-learning_rate=1e-05-dropout=0.1")[2]
    'learning_rate=1e-05;dropout=0.1'

    Raises:
        StudyError: it is not the name of a run.
    """
    match = _match_run_id(run_id)
    return match[1], int(match[2]), re.sub(r"-(?=[a-z_]+=)", ";", (match[3] or "")[1:])


def _match_run_id(run_id: str) -> re.Match[str]:
    match = _RUN_ID.fullmatch(run_id)
    if match is None:
        raise StudyError(
            f"the folder runs/{run_id} is not a run: expected a name VARIANT-seedN; move it out of the study"
        )
    return match


def tested_epochs(epoch_tables: Iterable[pa.Table]) -> set[int]:
    """The epochs at which every run evaluated the splits that it evaluated at its last epoch.

    Args:
        epoch_tables: the epochs.parquet of each run.
    """
    by_run = []
    for table in epoch_tables:
        splits: dict[int, set[str]] = {}
        for epoch, split in zip(table["epoch"].to_pylist(), table["split"].to_pylist(), strict=True):
            splits.setdefault(epoch, set()).add(split)
        by_run.append({epoch for epoch, evaluated in splits.items() if evaluated >= splits[max(splits)]})
    return set.intersection(*by_run) if by_run else set()


def choose_durations(
    points: Iterable[Mapping[str, Any]], run_lengths: list[int], tested: set[int] | None = None
) -> tuple[int, ...]:
    """The fixed training lengths of the report: those of the sweep's grid, or fifths of a run, as in the paper.

    Args:
        points: rows of sweep/points.parquet.
        run_lengths: epochs of each run.
        tested: the epochs at which all runs evaluated the test rows, to which the lengths are limited; None: all.

    >>> choose_durations([], [50, 50])
    (10, 20, 30, 40, 50)
    """
    if not run_lengths:
        return ()
    last = min(run_lengths)
    lengths = {int(point["epochs"]) for point in points}
    lengths |= {int(match[1]) for point in points if (match := _FIXED_POLICY.fullmatch(str(point["policy"])))}
    inner = sorted(epoch for epoch in lengths if 1 <= epoch < last)
    if not inner:
        inner = sorted({round(last * part / 5) for part in range(1, 5)} - {0, last})
    inner = [epoch for epoch in inner if tested is None or epoch in tested]
    if len(inner) >= MAX_DURATIONS:
        inner = [inner[i] for i in np.unique(np.linspace(0, len(inner) - 1, MAX_DURATIONS - 1).round().astype(int))]
    return (*inner, last)


def load_run(
    folder: Folder, name: tuple[str, str, int], table: pa.Table, durations: tuple[int, ...], idk: set[str]
) -> Run:
    """One run: its accuracy at every epoch, and its predictions at the checkpoints of the report.

    Args:
        folder: of the run.
        name: run_id, variant and seed.
        table: epochs.parquet.
        durations: epochs whose predictions are loaded, besides early stop and the last one.
        idk: variants whose answer texts are loaded.
    """
    run_id, variant, seed = name
    epochs = np.unique(table["epoch"].to_numpy())
    accuracy: dict[tuple[str, str], NDArray[np.float64]] = {}
    num: dict[tuple[str, str], int] = {}
    right: dict[tuple[str, str], NDArray[np.float64]] = {}
    for row in table.to_pylist():
        key = (row["split"], row["category"])
        at = int(np.searchsorted(epochs, row["epoch"]))
        right.setdefault(key, np.full(len(epochs), np.nan))[at] = row["num_correct"]
        num[key] = int(row["num"])
    for split in sorted({split for split, _ in right}):
        known = [(split, str(category)) for category in KNOWN_CATEGORIES if (split, str(category)) in right]
        if known:
            right[split, ANY_KNOWN] = np.sum([right[key] for key in known], axis=0)
            num[split, ANY_KNOWN] = sum(num[key] for key in known)
    for key, values in right.items():
        accuracy[key] = 100.0 * values / num[key]
    dev = accuracy.get(("dev", ALL_CATEGORIES))
    early = None if dev is None or np.isnan(dev).all() else int(epochs[int(np.nanargmax(dev))])
    checkpoints = sorted({*durations, int(epochs[-1]), *([] if early is None else [early])})
    predictions = _load_predictions(folder, checkpoints, with_text=variant in idk)
    return Run(
        run_id=run_id,
        variant=variant,
        seed=seed,
        epochs=epochs,
        accuracy=accuracy,
        num=num,
        early_epoch=early,
        predictions=predictions,
    )


def _load_predictions(run: Folder, epochs: list[int], *, with_text: bool) -> dict[tuple[int, str], Predictions]:
    """(epoch, split) -> predictions for dev, test and ood; epochs whose predictions were not kept are left out."""
    columns = ["question_id", "split", "category", "hit", *(["text"] if with_text else [])]
    stored = set(run.child("predictions").names(".parquet"))
    predictions: dict[tuple[int, str], Predictions] = {}
    shared: dict[str, Predictions] = {}
    for epoch in epochs:
        name = f"epoch-{epoch:03d}.parquet"
        if name not in stored:
            continue
        table = read_predictions(run, name, columns).sort_by("question_id")
        splits = np.array(table["split"].to_pylist(), dtype=str)
        ids = np.array(table["question_id"].to_pylist(), dtype=str)
        categories = np.array([category or "" for category in table["category"].to_pylist()], dtype=str)
        hit = np.array(table["hit"].to_pylist(), dtype=bool)
        text = np.array(table["text"].to_pylist(), dtype=object) if with_text else None
        for split in ("dev", "test", "ood"):
            mask = splits == split
            if not mask.any():
                continue
            rows = Predictions(
                question_ids=ids[mask],
                categories=categories[mask],
                hit=hit[mask],
                text=None if text is None else text[mask],
            )
            first = shared.setdefault(split, rows)
            if np.array_equal(first.question_ids, rows.question_ids):  # one copy of the ids serves all epochs
                rows = replace(rows, question_ids=first.question_ids, categories=first.categories)
            predictions[epoch, split] = rows
    return predictions


def load_filter_counts(study: Folder) -> dict[str, dict[str, int]] | None:
    """Questions of the full archive that pass the filters, by split and relation; None for other question sets."""
    manifest = read_manifest(study.child("questions"))
    audit = manifest.counts.get("audit") if manifest else None
    return audit if isinstance(audit, dict) else None


def load_counts(study: Folder) -> dict[tuple[str, str, str], dict[str, int]]:
    """(relation, domain, split) -> category -> number of questions."""
    folder = study.child("annotate")
    if read_manifest(folder) is None:
        return {}
    table = read_knowledge(study, ["relation", "domain", "split", "category"])
    tally = Counter(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for (relation, domain, split, category), num in sorted(tally.items()):
        counts.setdefault((relation, domain, split), dict.fromkeys(map(str, Category), 0))[category] = num
    return counts


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
    """The target of the Unknown rows of the relabeled variant."""
    for name in names:
        table = read_variant_rows(study, name, ["category", "target"])
        targets = [row["target"] for row in table.to_pylist() if row["category"] == Category.UNKNOWN]
        if targets:
            return str(Counter(targets).most_common(1)[0][0])
    return "I don't know"
