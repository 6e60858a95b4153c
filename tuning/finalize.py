"""The end of a training: what became of its rows, and the manifest, from the epochs that are stored."""

from typing import Any

from slick.errors import StudyError
from slick.precision import merge_runtimes
from slick.storage import Folder
from slick.study import Manifest, complete_step
from slick.study_files import read_predictions
from slick.types import ALL_CATEGORIES
from tuning.fitting import count_set_aside
from tuning.records import predictions_file_name, right_to_wrong_table, rows_table
from tuning.runs import EpochAccuracies, RunPlan, read_accuracies, read_runtimes, run_folder


def finalize_run(study: Folder, plan: RunPlan, *, started_at: float, **counts: Any) -> Manifest:
    """Write rows.parquet, right_to_wrong.parquet and, last, the manifest of a run whose epochs are stored.

    Args:
        started_at: `time.monotonic()` when the training began.
        counts: of the training itself, beside those that are read off its epochs.

    Raises:
        StudyError: an epoch is missing.
    """
    folder = run_folder(study, plan.run_id)
    epochs = read_accuracies(folder)
    dev = [epoch[f"dev_{ALL_CATEGORIES}"] for epoch in epochs]
    best = dev.index(max(dev))
    tables = [read_predictions(folder, predictions_file_name(epoch)) for epoch in range(1, len(epochs) + 1)]
    counts |= merge_runtimes(read_runtimes(folder))
    folder.write_table("rows.parquet", rows_table(tables))
    folder.write_table("right_to_wrong.parquet", right_to_wrong_table(tables[best], tables[-1]))
    train = _final_train_accuracy(folder, epochs[-1])
    splits = tables[-1]["split"].to_pylist()
    found = {
        "epochs": len(epochs),
        "train_rows": splits.count("train"),
        "evaluated_rows": len(splits),
        "best_dev_epoch": best + 1,
        "best_dev_accuracy": dev[best],
        "final_train_accuracy": train,
        "converged": train == 1.0,
        "set_aside": count_set_aside(folder),
    }
    return complete_step(
        folder,
        "finetune",
        plan.identity,
        settings=plan.config,
        inputs=plan.inputs,
        counts=found | counts,
        started_at=started_at,
    )


def _final_train_accuracy(run: Folder, epoch: EpochAccuracies) -> float:
    """Share of the training rows that are right after an epoch."""
    if f"train_{ALL_CATEGORIES}" not in epoch:
        raise StudyError(
            f"{run}/epochs.parquet has no row of all training rows in its last epoch; delete {run} and train it again"
        )
    return epoch[f"train_{ALL_CATEGORIES}"]
