"""One run in TensorBoard, MLflow or Weights & Biases: the one import of these libraries."""

import json
import re
import struct
import time
import uuid
from collections.abc import Mapping
from typing import Protocol, TypedDict

from slick.file_errors import file_errors
from slick.storage import Folder
from slick.stored_files import read_record

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

    >>> study_name(Folder("s3://bucket/deep/my study?region=eu"))
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
