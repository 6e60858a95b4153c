"""points.parquet: every cell of the grid, read off the stored epochs of its trajectory. Pure."""

from collections.abc import Sequence

import pyarrow as pa

from slick.errors import StudyError
from slick.storage import Folder
from slick.study import require
from slick.types import ALL, Category
from tuning.axes import Settings
from tuning.config import TrainConfig
from tuning.epochs import Accuracies, accuracies_of, curve_from
from tuning.grid import GridConfig, points
from tuning.policies import apply_policy
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
        ("settings", pa.string()),
        *((f"{split}_{category}", pa.float64()) for split in SPLITS for category in _CATEGORIES),
    ]
)
"""The accuracies are shares in [0, 1], null where the split has no rows of the category."""


def points_table(
    study: Folder, grid: GridConfig, base: TrainConfig, *, shared: bool, chosen: Sequence[Settings] | None = None
) -> pa.Table:
    """All points of a grid whose trajectories are finished.

    A trajectory that was ended early by a scheduler has no points beyond its last epoch.

    Args:
        base: settings that the grid's axes change.
        shared: one trajectory serves all budgets.
        chosen: combinations of settings; None: all of the grid's axes.

    Raises:
        StudyError: a trajectory's epochs are not all there.
    """
    variants = require(study.child("variants"), "variants").counts
    read: dict[str, list[Accuracies]] = {}
    rows = []
    for point in points(grid, base, shared=shared, chosen=chosen):
        if point.run_id not in read:
            read[point.run_id] = _accuracies(study, point.run_id)
        accuracies = read[point.run_id]
        curve = curve_from(accuracies)
        if point.policy.decided(curve, point.epochs) is None:
            continue
        stop = apply_policy(point.policy, curve, point.epochs)
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
                "settings": point.settings_text,
                **accuracies[stop.stop_epoch - 1],
            }
        )
    return pa.Table.from_pylist(rows, schema=POINTS_SCHEMA)


def _accuracies(study: Folder, run_id: str) -> list[Accuracies]:
    folder = run_folder(study, run_id)
    try:
        return accuracies_of(folder.read_table("epochs.parquet").to_pylist())
    except StudyError as error:
        raise StudyError(f"{folder}/epochs.parquet: {error}") from error
