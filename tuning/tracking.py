"""Curves of fine-tunings while they run: TensorBoard files in each run's folder; MLflow and Weights & Biases if asked.

The driver writes them, from epochs.parquet, so that tokens and addresses stay in the user's own environment and reach
neither workers nor manifests. Nothing that a tracker refuses stops a training: it costs a line, and the curve is
written whole as soon as the tracker takes it. What each tracker is told is in tuning/trackers.py.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, get_args

from slick.errors import SettingsError
from slick.storage import Folder
from slick.types import ALL_CATEGORIES
from tuning.trackers import MetricHistory, TrackerRun, open_tracker_run, verify_tracker

TrackerName = Literal["mlflow", "wandb"]

SLOW_RESPONSE_S = 5.0
"""A refusal that took longer than this is a server that does not answer, and all runs leave it alone for a while."""
BACKOFF_S = 300.0
"""That while; MLflow's own retries take up to 4 minutes, in which nothing else is shown or written."""


def scalars(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Rows of an epochs.parquet as curves: accuracy, a share in [0, 1], and loss, in nats a token.

    >>> row = {"epoch": 1, "split": "train", "category": "Unknown", "num": 4, "num_correct": 1, "loss": 0.5}
    >>> scalars([row, {**row, "split": "dev", "category": "all", "loss": None}])
    {1: {'accuracy/train/Unknown': 0.25, 'loss/train/Unknown': 0.5, 'accuracy/dev': 0.25}}
    """
    points: dict[int, dict[str, float]] = {}
    for row in rows:
        name = row["split"] if row["category"] == ALL_CATEGORIES else f"{row['split']}/{row['category']}"
        values = points.setdefault(row["epoch"], {})
        values[f"accuracy/{name}"] = row["num_correct"] / row["num"]
        if row["loss"] is not None:
            values[f"loss/{name}"] = row["loss"]
    return points


def check_trackers(names: Sequence[str]) -> None:
    """See, before anything starts, that each tracker is installed and would take a run of this user.

    Raises:
        SettingsError: a tracker is unknown or not installed, or refuses the settings in the environment.
    """
    for name in names:
        if name not in get_args(TrackerName):
            raise SettingsError(f"track knows {', '.join(get_args(TrackerName))}, got {name!r}")
        try:
            verify_tracker(name)
        except ImportError as error:
            raise SettingsError(
                f"tracking with {name} needs a package that cannot be imported ({error}): "
                f"pip install 'slick-knowledge[{name}]', or leave {name} out of --track"
            ) from error
        except Exception as error:
            mend = {
                "mlflow": "set MLFLOW_TRACKING_URI to the address of a server",
                "wandb": "set WANDB_API_KEY or log in with `wandb login`, or set WANDB_MODE=offline",
            }[name]
            raise SettingsError(
                f"{name} cannot be used: {_first_line(error)}; {mend}, or leave it out of --track"
            ) from error


class ExperimentLogger:
    """Curves of a list of runs, written as their epochs come in; leaving the block closes them all.

    Args:
        study: the folder whose runs/RUN_ID are written to.
        runs: each run's settings, plain JSON values, shown as its hyper-parameters.
        names: trackers beside TensorBoard.
    """

    def __init__(
        self, study: Folder, runs: Mapping[str, Mapping[str, object]], names: Sequence[TrackerName] = ()
    ) -> None:
        self._study, self._runs = study, runs
        self._trackers = ("tensorboard", *dict.fromkeys(names))
        self._points: dict[str, MetricHistory] = {}
        self._tracker_runs: dict[tuple[str, str], TrackerRun] = {}
        self._last_tried_epoch: dict[tuple[str, str], int] = {}
        self._ended: set[tuple[str, str]] = set()
        self._warned: set[tuple[str, str]] = set()
        self._backoff_until: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(list(self._points), ok=kind is None)

    def log(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs that are new, given all rows of the run's epochs.parquet so far."""
        points = scalars(rows)
        if not points:
            return
        self._points[run_id] = points
        for tracker in self._trackers:
            key = (tracker, run_id)
            if key not in self._ended and self._last_tried_epoch.get(key) != max(points):
                self._sync(key)

    def finish(self, run_id: str) -> None:
        """Close a run whose last epoch was logged; without it, that is done when all runs are closed."""
        self._end([run_id] if run_id in self._points else [], ok=True)

    def close(self) -> None:
        """Close all runs that are still open, as finished."""
        self._end(list(self._points), ok=True)

    def _end(self, run_ids: Sequence[str], ok: bool) -> None:
        for run_id in run_ids:
            for tracker in self._trackers:
                if (tracker, run_id) not in self._ended:
                    self._sync((tracker, run_id), lambda curve: curve.end(ok))

    def _sync(self, key: tuple[str, str], end: Callable[[TrackerRun], None] | None = None) -> None:
        """Bring one curve up to date and end it if asked; a failure costs a line, and time at most once in `BACKOFF_S`."""
        tracker, run_id = key
        begun = time.monotonic()
        if begun < self._backoff_until.get(tracker, 0.0):
            if end:
                self._warn(key, "it did not answer for another run")
            return
        self._last_tried_epoch[key] = max(self._points[run_id])
        try:
            if key not in self._tracker_runs:
                self._tracker_runs[key] = self._open(tracker, run_id)
            self._tracker_runs[key].write(self._points[run_id])
            if end:
                end(self._tracker_runs.pop(key))
                self._ended.add(key)
        except Exception as error:  # noqa: BLE001 - trackers and networks raise anything, and none may stop a training
            self._tracker_runs.pop(key, None)
            if time.monotonic() - begun > SLOW_RESPONSE_S:
                self._backoff_until[tracker] = time.monotonic() + BACKOFF_S
            self._warn(key, _first_line(error))

    def _open(self, tracker: str, run_id: str) -> TrackerRun:
        return open_tracker_run(tracker, self._study, run_id, self._runs.get(run_id, {}))

    def _warn(self, key: tuple[str, str], reason: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            tracker, run_id = key
            print(
                f"finetune: {tracker} did not take the curves of {run_id} ({reason}); the training goes on",
                file=sys.stderr,
            )


def _first_line(error: Exception) -> str:
    """The first line of what went wrong, without the passwords that addresses may hold."""
    text = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"//[^/@\s]+@", "//", f"{type(error).__name__}: {text}")
