"""points.parquet: every cell of the grid, read off the stored epochs of its trajectory. Pure."""

from typing import Any

import pyarrow as pa

from slick.errors import StudyError
from slick.storage import Folder
from slick.study import require
from slick.types import ALL, Category
from tuning.grid import GridConfig, points
from tuning.policies import Curve, apply_policy
from tuning.rows import SPLITS
from tuning.runs import run_folder

_CATEGORIES = (ALL, *(str(category) for category in Category))
POINTS_SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("unknown_share", pa.float64()),
        ("seed", pa.int64()),
        ("epochs", pa.int32()),
        ("policy", pa.string()),
        ("stop_epoch", pa.int32()),
        ("cost_epochs", pa.int32()),
        ("run_id", pa.string()),
        *((f"{split}_{category}", pa.float64()) for split in SPLITS for category in _CATEGORIES),
    ]
)
"""The accuracies are shares in [0, 1], null where the split has no rows of the category."""


def points_table(study: Folder, grid: GridConfig) -> pa.Table:
    """All points of a grid whose trajectories are finished.

    Raises:
        StudyError: a trajectory's epochs are not all there.
    """
    variants = require(study.child("variants"), "variants").counts
    read: dict[str, list[dict[str, float]]] = {}
    rows = []
    for point in points(grid):
        if point.run_id not in read:
            read[point.run_id] = _accuracies(study, point.run_id)
        accuracies = read[point.run_id]
        stop = apply_policy(point.policy, _curve(accuracies), point.epochs)
        rows.append(
            {
                "variant": point.variant,
                "unknown_share": variants[point.variant]["unknown_share"],
                "seed": point.seed,
                "epochs": point.epochs,
                "policy": str(point.policy),
                "stop_epoch": stop.stop_epoch,
                "cost_epochs": stop.cost_epochs,
                "run_id": point.run_id,
                **accuracies[stop.stop_epoch - 1],
            }
        )
    return pa.Table.from_pylist(rows, schema=POINTS_SCHEMA)


def _accuracies(study: Folder, run_id: str) -> list[dict[str, float]]:
    """One mapping an epoch, from `split_category` to accuracy; only where there are rows."""
    table = run_folder(study, run_id).read_table("epochs.parquet")
    by_epoch: dict[int, dict[str, float]] = {}
    row: dict[str, Any]
    for row in table.to_pylist():
        by_epoch.setdefault(row["epoch"], {})[f"{row['split']}_{row['category']}"] = row["num_correct"] / row["num"]
    if sorted(by_epoch) != list(range(1, len(by_epoch) + 1)):
        raise StudyError(
            f"{run_folder(study, run_id)}/epochs.parquet has epochs {sorted(by_epoch)}, wanted all from 1; delete that "
            "folder and run the sweep again"
        )
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _curve(accuracies: list[dict[str, float]]) -> Curve:
    unknown = f"train_{Category.UNKNOWN}"
    return Curve(
        dev_accuracy=tuple(epoch[f"dev_{ALL}"] for epoch in accuracies),
        unknown_train_accuracy=tuple(e[unknown] for e in accuracies) if unknown in accuracies[0] else None,
    )
