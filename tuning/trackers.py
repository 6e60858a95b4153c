"""Live curves of training runs: TensorBoard files in each run's folder; MLflow and Weights & Biases on request.

The one import of these libraries. The driver writes the curves from epochs.parquet, so that tokens and addresses stay
in the user's environment and reach neither workers nor manifests. A tracker's failure never stops a training: it is
printed once, and the curve is written in full when the tracker accepts it again.
"""

import json
import re
import struct
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypedDict, get_args

from slick.errors import SettingsError
from slick.file_errors import file_errors
from slick.storage import Folder
from slick.stored_files import read_record
from slick.types import ALL_CATEGORIES

MetricHistory = Mapping[int, Mapping[str, float]]
"""Epoch -> name of a curve -> its value."""

FINISH_TIMEOUT_S = 60
"""W&B may upload for as long as this when a run ends."""


def verify_tracker(tracker: str) -> None:
    """Raise what the tracker raises when it is not installed, or would not take a run of this user."""
    if tracker == "mlflow":
        from mlflow import MlflowClient

        MlflowClient()  # refuses an address it has no store for; asks no server
    else:
        import wandb

        wandb.login()  # here, since in the thread that watches nobody could answer its question for a key


class TrackerRun(Protocol):
    """One run in one tracker. Whatever it raises means 'not now': it is then dropped, and later opened anew."""

    def write(self, points: MetricHistory) -> None:
        """Write those of all epochs so far that were not written."""

    def end(self, ok: bool) -> None:
        """Close the run: as finished, or as failed."""


def open_tracker_run(tracker: str, study: Folder, run_id: str, settings: Mapping[str, object]) -> TrackerRun:
    """The curve of a run: a new one, or what an interrupted training left."""
    folder = study.child("runs", run_id)
    if tracker == "tensorboard":
        return TensorBoardRun(folder.child("tensorboard"), settings)
    kind = MlflowRun if tracker == "mlflow" else WandbRun
    return kind(project_name(study), run_id, tracking_key(folder), settings)


def project_name(study: Folder) -> str:
    """Last part of the study's path, in characters that every tracker takes.

    >>> project_name(Folder("s3://bucket/deep/my study?region=eu"))
    'my study'
    """
    return re.sub(r"[\\#?%:]", "-", study.name) or "study"


class _TrackingRecord(TypedDict):
    key: str


def tracking_key(folder: Folder) -> str:
    """A random name kept in the run's folder, by which an interrupted training finds its run in a tracker again.

    The folder's address would not do: a server is shared by people whose studies lie at the same path, and a training
    begun anew in the same folder has another curve.
    """
    if not folder.exists("tracking.json"):
        folder.write_json("tracking.json", {"key": uuid.uuid4().hex})
    remedy = "restore it, or delete it, and trackers begin a new run"
    return read_record(folder, "tracking.json", _TrackingRecord, remedy)["key"]


def _scalar_settings(settings: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Settings as single values; lists and None become JSON."""
    return {
        name: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for name, value in settings.items()
    }


class TensorBoardRun:
    """One event file in the run's folder; what an earlier driver wrote there is removed, and written again."""

    def __init__(self, folder: Folder, settings: Mapping[str, object]) -> None:
        self._folder, self._settings = folder, settings
        self._name, self._content = "", b""
        self._written: set[int] = set()

    def write(self, points: MetricHistory) -> None:
        """Append the epochs that are new; all of them if the folder was cleared by a training that began again."""
        from tensorboardX.proto.summary_pb2 import Summary

        data = b""
        if not self._name or not self._folder.exists(self._name):
            data = self._begin()
        for epoch in sorted(points.keys() - self._written):
            values = [Summary.Value(tag=name, simple_value=value) for name, value in points[epoch].items()]
            data += _encode_event(step=epoch, summary=Summary(value=values))
        if data:
            self._append(data)
        self._written |= points.keys()

    def end(self, ok: bool) -> None:
        """Nothing: no file is held open."""

    def _begin(self) -> bytes:
        """Clear the folder; what an event file begins with."""
        from tensorboardX.summary import hparams

        self._folder.delete()
        # A name of its own: TensorBoard would go on reading behind the end it saw of a file that was written anew.
        self._name, self._content = f"events.out.tfevents.{time.time_ns()}.slick", b""
        self._written = set()
        experiment, session, _ = hparams(_scalar_settings(self._settings), {"accuracy/dev": 0.0, "loss/train": 0.0})
        return (
            _encode_event(file_version="brain.Event:2")
            + _encode_event(summary=experiment)
            + _encode_event(summary=session)
        )

    def _append(self, data: bytes) -> None:
        if self._folder.is_local:
            # Not replaced like the other files of a study: TensorBoard keeps the file open to follow it.
            self._folder.mkdir()
            path = f"{self._folder.local_path}/{self._name}"
            with file_errors(path, "written"), open(path, "ab") as file:
                file.write(data)
        else:
            self._content += data
            self._folder.write_bytes(self._name, self._content)


def _encode_event(**fields: object) -> bytes:
    """One record of an event file. Source: TFRecord, https://www.tensorflow.org/tutorials/load_data/tfrecord."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data: bytes = Event(wall_time=time.time(), **fields).SerializeToString()
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))


class MlflowRun:
    """One MLflow run, found again by its tag `slick_run`.

    The client is used, not `mlflow.start_run`: several runs are open at once, and it adds no tags of user and machine.
    """

    def __init__(self, study: str, run_id: str, key: str, settings: Mapping[str, object]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(study)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(study)
        found = self._client.search_runs([experiment_id], f"tags.slick_run = '{key}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment_id, run_name=run_id, tags={"slick_run": key})
        self._id: str = run.info.run_id
        self._written: set[int] = set()
        for name in list(run.data.metrics)[:1]:  # the values of an epoch are sent together, so one tells for all
            self._written = {metric.step for metric in self._client.get_metric_history(self._id, name)}
        if run.info.status != "RUNNING":
            self._client.update_run(self._id, status="RUNNING")
        if not run.data.params:  # they cannot be changed: those of the first start stay
            params = [Param(name, str(value)) for name, value in _scalar_settings(settings).items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(self._id, params=params[start : start + 100])

    def write(self, points: MetricHistory) -> None:
        """Send the epochs that are new, with dots for the inner slashes, as in `accuracy/train.Unknown`.

        MLflow's file store makes folders of slashes, and `accuracy/train` cannot be a file and a folder.
        """
        from mlflow.entities import Metric

        for epoch in sorted(points.keys() - self._written):
            now_ms = int(time.time() * 1000)
            values = {_dotted(name): value for name, value in points[epoch].items()}
            self._client.log_batch(self._id, [Metric(name, value, now_ms, epoch) for name, value in values.items()])
            self._written.add(epoch)

    def end(self, ok: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, "FINISHED" if ok else "FAILED")


def _dotted(name: str) -> str:
    kind, _, rest = name.partition("/")
    return f"{kind}/{rest.replace('/', '.')}"


class WandbRun:
    """One W&B run, gone on with by its id. Of the machine W&B is told nothing but its platform and Python version."""

    def __init__(self, study: str, run_id: str, key: str, settings: Mapping[str, object]) -> None:
        import wandb

        self._run = wandb.init(
            project=study[:128],
            name=run_id,
            id=key,
            resume="allow",
            config=dict(settings),
            reinit="create_new",
            settings=wandb.Settings(
                host="", silent=True, console="off", disable_code=True, disable_git=True, save_code=False,
                x_disable_machine_info=True, x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
                finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True,
            ),
        )  # fmt: skip
        self._next: int = self._run.step  # 0 for a new run; W&B drops steps below it

    def write(self, points: MetricHistory) -> None:
        """Send the epochs that are new. Nothing waits for the network; W&B keeps what it could not send."""
        for epoch in sorted(epoch for epoch in points if epoch >= self._next):
            self._run.log(dict(points[epoch]), step=epoch, commit=True)
            self._next = epoch + 1

    def end(self, ok: bool) -> None:
        """Upload the rest and close."""
        self._run.finish(exit_code=0 if ok else 1)


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
        """Update one curve, and end it if asked. A failure is printed, and retried after at least `BACKOFF_S`."""
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
