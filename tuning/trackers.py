"""Live curves of training runs: TensorBoard files in each run's folder; MLflow and Weights & Biases on request.

The only module that imports these libraries. The driver writes the curves from epochs.parquet, so tokens and addresses
stay in the user's environment and reach neither workers nor manifests. The failure of a tracker never stops a
training: it is logged once per run, and the whole curve is written when the tracker works again.
"""

import json
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict, get_args

from slick.errors import SettingsError, file_errors
from slick.storage import Folder
from slick.stored_files import read_record
from slick.types import ALL_CATEGORIES
from tuning.config import TrackerName

_LOG = logging.getLogger(__name__)

MetricHistory = Mapping[int, Mapping[str, float]]
"""Epoch -> name of a curve -> its value."""

SLOW_RESPONSE_S = 5.0
"""A tracker that fails after more than this many seconds is not responding; all runs skip it for `BACKOFF_S`."""
BACKOFF_S = 300.0
"""MLflow's own retries take up to 4 minutes, which would block everything else that is shown or written."""
FINISH_TIMEOUT_S = 60
"""Maximum time in seconds for W&B to upload the rest when a run ends."""


class TrackerRun(Protocol):
    """One run in one tracker. After any exception, the run is dropped and reopened later."""

    def write(self, points: MetricHistory) -> None:
        """Write the epochs that were not written yet.

        Args:
            points: all epochs so far.
        """

    def end(self, ok: bool) -> None:
        """Close the run as finished, or as failed."""


class ExperimentLogger:
    """Writes the curves of several runs to TensorBoard and other trackers; leaving the context closes all runs.

    Args:
        study: the folder whose runs/RUN_ID are written to.
        runs: settings of each run, JSON values, shown as its hyperparameters.
        names: trackers in addition to TensorBoard.
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
        """Write the new epochs of a run.

        Args:
            run_id: the run.
            rows: all rows of its epochs.parquet so far.
        """
        points = epoch_metrics(rows)
        if not points:
            return
        self._points[run_id] = points
        for tracker in self._trackers:
            key = (tracker, run_id)
            if key not in self._ended and self._last_tried_epoch.get(key) != max(points):
                self._sync(key)

    def finish(self, run_id: str) -> None:
        """Close a run after its last epoch. Runs that are not closed here are closed at the end of the context."""
        self._end([run_id] if run_id in self._points else [], ok=True)

    def close(self) -> None:
        """Close all open runs as finished."""
        self._end(list(self._points), ok=True)

    def _end(self, run_ids: Sequence[str], ok: bool) -> None:
        for run_id in run_ids:
            for tracker in self._trackers:
                if (tracker, run_id) not in self._ended:
                    self._sync((tracker, run_id), lambda run: run.end(ok))

    def _sync(self, key: tuple[str, str], end: Callable[[TrackerRun], None] | None = None) -> None:
        """Update one run, and end it if `end` is given. A failure is logged; after a slow one, retries back off."""
        tracker, run_id = key
        started_at = time.monotonic()
        if started_at < self._backoff_until.get(tracker, 0.0):
            if end:
                self._warn(key, "it did not respond for another run")
            return
        self._last_tried_epoch[key] = max(self._points[run_id])
        try:
            if key not in self._tracker_runs:
                self._tracker_runs[key] = self._open(tracker, run_id)
            self._tracker_runs[key].write(self._points[run_id])
            if end:
                end(self._tracker_runs.pop(key))
                self._ended.add(key)
        except Exception as error:  # noqa: BLE001 - trackers raise any exception, and none may stop a training
            self._tracker_runs.pop(key, None)
            if time.monotonic() - started_at > SLOW_RESPONSE_S:
                self._backoff_until[tracker] = time.monotonic() + BACKOFF_S
            self._warn(key, _first_line(error))

    def _open(self, tracker: str, run_id: str) -> TrackerRun:
        return open_tracker_run(tracker, self._study, run_id, self._runs.get(run_id, {}))

    def _warn(self, key: tuple[str, str], reason: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            tracker, run_id = key
            _LOG.warning(
                "finetune: %s did not accept the curves of %s (%s); the training continues", tracker, run_id, reason
            )


def epoch_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """The curves in the rows of an epochs.parquet: accuracy in [0, 1], and loss in nats per token.

    >>> row = {"epoch": 1, "split": "train", "category": "Unknown", "num": 4, "num_correct": 1, "loss": 0.5}
    >>> epoch_metrics([row, {**row, "split": "dev", "category": "all", "loss": None}])
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
    """Check, before anything starts, that each tracker is installed and accepts the user's settings.

    Raises:
        SettingsError: a tracker is unknown or not installed, or refuses the settings in the environment.
    """
    for name in names:
        if name not in get_args(TrackerName):
            raise SettingsError(f"track is one of {', '.join(get_args(TrackerName))}, got {name!r}")
        try:
            _verify_tracker(name)
        except ImportError as error:
            raise SettingsError(
                f"tracking with {name} needs a package that cannot be imported ({error}): "
                f"pip install 'slick-knowledge[{name}]', or leave {name} out of --track"
            ) from error
        except Exception as error:
            fix = {
                "mlflow": "set MLFLOW_TRACKING_URI to the address of a server",
                "wandb": "set WANDB_API_KEY or log in with `wandb login`, or set WANDB_MODE=offline",
            }[name]
            raise SettingsError(
                f"{name} cannot be used: {_first_line(error)}; {fix}, or leave it out of --track"
            ) from error


def _verify_tracker(tracker: str) -> None:
    """Raise the tracker's own error if it is not installed, or would refuse a run of this user."""
    if tracker == "mlflow":
        from mlflow import MlflowClient

        MlflowClient()  # refuses an address that no store supports; contacts no server
    else:
        import wandb

        wandb.login()  # here, because the thread that writes the curves could not answer the prompt for a key


def open_tracker_run(tracker: str, study: Folder, run_id: str, settings: Mapping[str, object]) -> TrackerRun:
    """A run in a tracker: a new one, or the one of an interrupted training."""
    folder = study.child("runs", run_id)
    if tracker == "tensorboard":
        return TensorBoardRun(folder.child("tensorboard"), settings)
    kind = MlflowRun if tracker == "mlflow" else WandbRun
    return kind(project_name(study), run_id, tracking_key(folder), settings)


def project_name(study: Folder) -> str:
    """The last part of the study's path, in characters that every tracker accepts.

    >>> project_name(Folder("s3://bucket/deep/my study?region=eu"))
    'my study'
    """
    return re.sub(r"[\\#?%:]", "-", study.name) or "study"


class _TrackingRecord(TypedDict):
    key: str


def tracking_key(folder: Folder) -> str:
    """A random name in the run's folder, by which a resumed training finds its run in a tracker.

    The folder's address is not unique: a server may be shared by users whose studies have the same path, and a training
    that starts again in the same folder has another curve.
    """
    if not folder.exists("tracking.json"):
        folder.write_json("tracking.json", {"key": uuid.uuid4().hex})
    remedy = "restore it, or delete it, and trackers begin a new run"
    return read_record(folder, "tracking.json", _TrackingRecord, remedy)["key"]


def _scalar_settings(settings: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Settings as scalars; lists and None as JSON."""
    return {
        name: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for name, value in settings.items()
    }


class TensorBoardRun:
    """One event file in the run's folder. The file of an earlier driver is replaced, and its epochs are written again.

    tensorboardX's `RecordWriter` is used instead of its `SummaryWriter`, which starts a thread per run and puts the
    host name into the file name.
    """

    def __init__(self, folder: Folder, settings: Mapping[str, object]) -> None:
        self._folder, self._settings = folder, settings
        self._name = ""
        self._writer: Any = None
        self._local_copy: tempfile.TemporaryDirectory[str] | None = None
        self._written: set[int] = set()

    def write(self, points: MetricHistory) -> None:
        """Append the new epochs; all epochs if the folder was deleted because the training started again."""
        from tensorboardX.proto.summary_pb2 import Summary

        with file_errors(str(self._folder), "written"):
            if self._writer is None or not self._folder.exists(self._name):
                self._begin()
            new_epochs = sorted(points.keys() - self._written)
            for epoch in new_epochs:
                values = [Summary.Value(tag=name, simple_value=value) for name, value in points[epoch].items()]
                self._write_event(step=epoch, summary=Summary(value=values))
            if new_epochs:
                self._flush()
        self._written |= points.keys()

    def end(self, ok: bool) -> None:
        """Close the file."""
        self._close()

    def _begin(self) -> None:
        """Replace the folder's content with a file that has the settings and no epochs."""
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import hparams

        self._close()
        self._folder.delete()
        # A new name: TensorBoard would continue to read an overwritten file after its last position.
        self._name = f"events.out.tfevents.{time.time_ns()}.slick"
        self._written = set()
        if self._folder.is_local:
            self._folder.mkdir()
            directory = self._folder.local_path
        else:
            self._local_copy = tempfile.TemporaryDirectory(prefix="slick-tensorboard-")
            directory = self._local_copy.name
        self._writer = RecordWriter(f"{directory}/{self._name}")
        self._write_event(file_version="brain.Event:2")
        experiment, session, _ = hparams(_scalar_settings(self._settings), {"accuracy/dev": 0.0, "loss/train": 0.0})
        for summary in (experiment, session):
            self._write_event(summary=summary)

    def _write_event(self, **fields: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _flush(self) -> None:
        """Make the new records visible; object stores cannot append, so the whole file is uploaded."""
        self._writer.flush()
        if self._local_copy is not None:
            with open(self._writer.path, "rb") as file:
                self._folder.write_bytes(self._name, file.read())

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._local_copy is not None:
            self._local_copy.cleanup()
            self._local_copy = None


_EVERY_EPOCH = "accuracy/dev"
"""A metric of every epoch; test rows may be evaluated after some epochs only."""


class MlflowRun:
    """One MLflow run, identified by its tag `slick_run`.

    It uses the client instead of `mlflow.start_run`, which allows one open run only and adds tags of the user and the
    machine.
    """

    def __init__(self, study: str, run_id: str, key: str, settings: Mapping[str, object]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(study)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(study)
        runs = self._client.search_runs([experiment_id], f"tags.slick_run = '{key}'", max_results=1)
        run = runs[0] if runs else self._client.create_run(experiment_id, run_name=run_id, tags={"slick_run": key})
        self._id: str = run.info.run_id
        self._written: set[int] = set()
        if _EVERY_EPOCH in run.data.metrics:  # the metrics of an epoch are sent together, so one of them is enough
            self._written = {metric.step for metric in self._client.get_metric_history(self._id, _EVERY_EPOCH)}
        if run.info.status != "RUNNING":
            self._client.update_run(self._id, status="RUNNING")
        if not run.data.params:  # parameters cannot be changed, so those of the first start stay
            params = [Param(name, str(value)) for name, value in _scalar_settings(settings).items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(self._id, params=params[start : start + 100])

    def write(self, points: MetricHistory) -> None:
        """Send the new epochs, with dots in place of inner slashes, as in `accuracy/train.Unknown`.

        MLflow's file store turns slashes into folders, and `accuracy/train` cannot be both a file and a folder.
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
    """One W&B run, resumed by its id. W&B receives only the platform and the Python version of the machine."""

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
        self._next: int = self._run.step  # 0 for a new run; W&B ignores earlier steps

    def write(self, points: MetricHistory) -> None:
        """Queue the new epochs. This does not wait for the network; W&B stores what it cannot send."""
        for epoch in sorted(epoch for epoch in points if epoch >= self._next):
            self._run.log(dict(points[epoch]), step=epoch, commit=True)
            self._next = epoch + 1

    def end(self, ok: bool) -> None:
        """Upload the rest and close."""
        self._run.finish(exit_code=0 if ok else 1)


def _first_line(error: Exception) -> str:
    """Type and first line of an error, without passwords in addresses."""
    text = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"//[^/@\s]+@", "//", f"{type(error).__name__}: {text}")
