"""The table points.parquet: every point of the grid, read off the stored epochs of its trajectory."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from slick.errors import StudyError
from slick.storage import Folder
from slick.study import require_manifest
from slick.study_files import POINTS_SCHEMA
from tuning.axes import SettingOverrides
from tuning.config import TrainConfig
from tuning.grid import GridConfig, points
from tuning.policies import apply_policy
from tuning.runs import EpochAccuracies, curve_from_accuracies, read_accuracies, run_folder


def points_table(
    study: Folder,
    grid: GridConfig,
    base: TrainConfig,
    *,
    shared: bool,
    chosen: Sequence[SettingOverrides] | None = None,
) -> pa.Table:
    """All points of a grid whose trajectories are finished.

    A trajectory that a scheduler stopped early has no points beyond its last epoch.

    Args:
        study: the study.
        grid, base, shared, chosen: see `tuning.grid.trajectories`.

    Raises:
        StudyError: a trajectory lacks epochs.
    """
    variants = require_manifest(study.child("variants"), "variants").counts
    accuracies_by_run: dict[str, list[EpochAccuracies]] = {}
    rows = []
    for point in points(grid, base, shared=shared, chosen=chosen):
        if point.run_id not in accuracies_by_run:
            accuracies_by_run[point.run_id] = read_accuracies(run_folder(study, point.run_id))
        accuracies = accuracies_by_run[point.run_id]
        curve = curve_from_accuracies(accuracies)
        if point.policy.decided_epoch(curve, point.epochs) is None:
            continue
        decision = apply_policy(point.policy, curve, point.epochs)
        rows.append(
            {
                "variant": point.variant,
                "unknown_share": _unknown_share(study, variants, point.variant),
                "seed": point.seed,
                "epochs": point.epochs,
                "policy": str(point.policy),
                "stop_epoch": decision.stop_epoch,
                "cost_epochs": decision.cost_epochs,
                "run_id": point.run_id,
                "settings": point.settings_text,
                **accuracies[decision.stop_epoch - 1],
            }
        )
    return pa.Table.from_pylist(rows, schema=POINTS_SCHEMA)


def _unknown_share(study: Folder, variants: Mapping[str, Any], name: str) -> float:
    share = variants.get(name, {}).get("unknown_share")
    if share is None:
        raise StudyError(
            f"{study}/variants/manifest.json does not state the share of Unknown rows of {name}; "
            f"restore it, or delete {study}/variants and run `slick variants` again"
        )
    return float(share)
