"""Curves in TensorBoard, MLflow, W&B and Ray's metrics equal epochs.parquet, each epoch once."""

import getpass
import importlib.util
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from slick.errors import SettingsError
from slick.storage import Folder
from slick.types import Category
from tests.local.metrics import exported_metrics
from tests.waiting import wait_for
from tuning.records import SplitMetrics, epochs_table
from tuning.trackers import ExperimentLogger, check_trackers, epoch_metrics

RUN = "half-seed1"
SETTINGS = {"variant": "half", "seed": 1, "learning_rate": 5e-3, "schedule": "constant", "warmup": None, "layers": [1]}


class ObjectStore(Folder):
    """A folder in pyarrow's in-memory file system, in place of a bucket."""

    store: pafs.FileSystem

    def _open(self) -> tuple[pafs.FileSystem, str]:
        return self.store, self.uri.removeprefix("memory://")

    def write_bytes(self, name: str, data: bytes) -> None:
        self.store.create_dir(self.uri.removeprefix("memory://"))  # a bucket needs no folders, this file system does
        super().write_bytes(name, data)


@pytest.fixture(params=["path", "object store"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "path":
        return Folder(str(tmp_path / "a study"))
    ObjectStore.store = pafs._MockFileSystem()
    return ObjectStore("memory://bucket/study")


def metrics_at(epoch: int) -> list[SplitMetrics]:
    """The metrics of an epoch; test questions are evaluated after odd epochs, as with `evaluate: needed`."""
    tested = [SplitMetrics(split="test", category="all", num=5, num_correct=epoch, loss=None)] if epoch % 2 else []
    return [
        *tested,
        SplitMetrics(split="train", category="all", num=9, num_correct=epoch, loss=1 / (3 * epoch)),
        SplitMetrics(split="train", category=str(Category.UNKNOWN), num=7, num_correct=1, loss=float("nan")),
        SplitMetrics(split="dev", category="all", num=3, num_correct=2, loss=None),
    ]


def rows_of(num_epochs: int) -> list[dict[str, object]]:
    epochs = [metrics_at(epoch) for epoch in range(1, num_epochs + 1)]
    rows: list[dict[str, object]] = epochs_table(RUN, epochs).to_pylist()
    return rows


def events(folder: Folder) -> list[object]:
    """All events of the only event file; the length and checksums of every record are verified."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (name,) = folder.names()
    assert ".tfevents." in name, "TensorBoard requires this part of the name"
    data, parsed = folder.read_bytes(name), []
    while data:
        length, check = struct.unpack("<QI", data[:12])
        assert check == masked_crc32c(data[:8])
        content, end = data[12 : 12 + length], data[12 + length : 16 + length]
        assert end == struct.pack("<I", masked_crc32c(content))
        parsed.append(Event.FromString(content))
        data = data[16 + length :]
    return parsed


def tensorboard_curves(folder: Folder) -> list[tuple[int, str, float]]:
    """(epoch, name, value) of all epoch_metrics in the order written."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def single_precision(num_epochs: int) -> list[tuple[int, str, float]]:
    return [
        (epoch, name, float(np.float32(value)))
        for epoch, values in epoch_metrics(rows_of(num_epochs)).items()
        for name, value in values.items()
    ]


def assert_equal_points(actual: list[tuple[int, str, float]], expected: list[tuple[int, str, float]]) -> None:
    assert [point[:2] for point in actual] == [point[:2] for point in expected]
    np.testing.assert_array_equal([point[2] for point in actual], [point[2] for point in expected])


def test_tensorboard_has_each_epoch_once_when_it_is_logged(study: Folder) -> None:
    folder = study.child("runs", RUN, "tensorboard")
    with ExperimentLogger(study, {RUN: SETTINGS}) as curves:
        for num_epochs in (1, 1, 2, 4):
            curves.log(RUN, rows_of(num_epochs))
            assert_equal_points(tensorboard_curves(folder), single_precision(num_epochs))
    assert_equal_points(tensorboard_curves(folder), single_precision(4))
    assert events(folder)[0].file_version == "brain.Event:2"


def test_tensorboard_has_one_curve_after_a_restart(study: Folder) -> None:
    folder = study.child("runs", RUN, "tensorboard")
    with ExperimentLogger(study, {RUN: SETTINGS}) as curves:
        curves.log(RUN, rows_of(2))
    (first,) = folder.names()
    with ExperimentLogger(study, {RUN: SETTINGS}) as curves:
        curves.log(RUN, rows_of(2))
        curves.log(RUN, rows_of(3))
    assert_equal_points(tensorboard_curves(folder), single_precision(3))
    assert folder.names() != [first], "TensorBoard would continue reading after the end of the old file"


def test_tensorboard_curve_is_replaced_when_a_training_starts_again(study: Folder) -> None:
    with ExperimentLogger(study, {RUN: SETTINGS}) as curves:
        curves.log(RUN, rows_of(3))
        study.child("runs", RUN).delete()
        curves.log(RUN, rows_of(1))
        curves.log(RUN, rows_of(2))
    assert_equal_points(tensorboard_curves(study.child("runs", RUN, "tensorboard")), single_precision(2))


def test_tensorboard_has_the_settings(study: Folder) -> None:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    with ExperimentLogger(study, {RUN: SETTINGS}) as curves:
        curves.log(RUN, rows_of(1))
    hparams = {}
    for event in events(study.child("runs", RUN, "tensorboard")):
        for value in event.summary.value:
            content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            for name, setting in content.session_start_info.hparams.items():
                hparams[name] = getattr(setting, setting.WhichOneof("kind"))
    assert hparams == {**SETTINGS, "warmup": "null", "layers": "[1]"}


def test_unwritable_tensorboard_folder_does_not_stop_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file where a folder must be")
    with ExperimentLogger(Folder(str(tmp_path)), {RUN: SETTINGS}) as curves:
        for num_epochs in (1, 2, 3):
            curves.log(RUN, rows_of(num_epochs))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"finetune: tensorboard did not accept the curves of {RUN} (")


@pytest.fixture(params=["file", "sqlite"])
def mlflow_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty MLflow store."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'slick-knowledge[mlflow]'")
    if request.param == "sqlite":
        pytest.importorskip("alembic", reason="mlflow-skinny has no databases without sqlalchemy and alembic")
    address = (tmp_path / "mlruns").as_uri() if request.param == "file" else f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse it otherwise
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


def mlflow_runs(study: str) -> list[object]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def mlflow_curves(run: object, num_epochs: int) -> None:
    """Check that the run has each epoch once, in double precision."""
    from mlflow import MlflowClient

    expected = epoch_metrics(rows_of(num_epochs))
    names = {name.replace("/Unknown", ".Unknown"): name for name in expected[1]}
    assert set(run.data.metrics) == set(names)
    for metric_name, name in names.items():
        history = MlflowClient().get_metric_history(run.info.run_id, metric_name)
        assert_equal_points(
            sorted((metric.step, name, metric.value) for metric in history),
            [(epoch, name, expected[epoch][name]) for epoch in expected if name in expected[epoch]],
        )


@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_run_has_settings_and_no_machine_details(tmp_path: Path) -> None:
    check_trackers(["mlflow"])
    with ExperimentLogger(Folder(str(tmp_path / "one study")), {RUN: SETTINGS}, ("mlflow",)) as curves:
        for num_epochs in (1, 2, 2, 3):
            curves.log(RUN, rows_of(num_epochs))
        (run,) = mlflow_runs("one study")
        assert run.info.status == "RUNNING"
        mlflow_curves(run, 3)
    (run,) = mlflow_runs("one study")
    assert (run.info.run_name, run.info.status) == (RUN, "FINISHED")
    assert run.data.params == {
        "variant": "half", "seed": "1", "learning_rate": "0.005", "schedule": "constant", "warmup": "null",
        "layers": "[1]",
    }  # fmt: skip
    assert set(run.data.tags) == {"slick_run", "mlflow.runName"}
    assert re.fullmatch("[0-9a-f]{32}", run.data.tags["slick_run"])


def log_and_interrupt(curves: ExperimentLogger) -> None:
    with curves:
        curves.log(RUN, rows_of(2))
        raise KeyboardInterrupt


@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_run_is_resumed_and_a_restarted_training_has_a_new_run(tmp_path: Path) -> None:
    study = Folder(str(tmp_path / "study"))
    with pytest.raises(KeyboardInterrupt):
        log_and_interrupt(ExperimentLogger(study, {RUN: SETTINGS}, ("mlflow",)))
    (run,) = mlflow_runs("study")
    assert run.info.status == "FAILED"
    with ExperimentLogger(study, {RUN: {**SETTINGS, "schedule": "cosine"}}, ("mlflow",)) as curves:
        curves.log(RUN, rows_of(3))
        (run,) = mlflow_runs("study")
        assert run.info.status == "RUNNING"
    (run,) = mlflow_runs("study")
    mlflow_curves(run, 3)
    assert run.info.status == "FINISHED"
    study.child("runs", RUN).delete()
    with ExperimentLogger(study, {RUN: SETTINGS}, ("mlflow",)) as curves:
        curves.log(RUN, rows_of(1))
    newest, oldest = sorted(mlflow_runs("study"), key=lambda run: -run.info.start_time)
    mlflow_curves(oldest, 3)
    mlflow_curves(newest, 1)


@pytest.mark.usefixtures("mlflow_store")
def test_unreachable_mlflow_server_does_not_stop_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    check_trackers(["mlflow"])
    study = Folder(str(tmp_path / "study"))
    with ExperimentLogger(study, {RUN: SETTINGS}, ("mlflow",)) as curves:
        for num_epochs in (1, 2):
            curves.log(RUN, rows_of(num_epochs))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune")]
    assert "mlflow did not accept the curves" in line
    assert "secret" not in line
    assert_equal_points(tensorboard_curves(study.child("runs", RUN, "tensorboard")), single_precision(2))


def test_unsupported_mlflow_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'slick-knowledge[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with pytest.raises(SettingsError, match=r"mlflow cannot be used: .*set MLFLOW_TRACKING_URI"):
        check_trackers(["mlflow"])


@pytest.fixture
def wandb_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """W&B's folder, offline and without an account."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'slick-knowledge[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()  # it reads the environment once per process
    yield tmp_path / "wandb"
    wandb.teardown()


def wandb_files(folder: Path) -> list[Path]:
    """The complete files of all runs."""
    import wandb

    wandb.teardown()  # its service may still be writing when a run has ended
    return sorted(folder.glob("offline-run-*/*.wandb"))


def wandb_records(path: Path) -> list[object]:
    """All records of a W&B file, in LevelDB's log format: blocks of 32 KiB, which long records may span."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, records, content = path.read_bytes(), 7, [], b""
    assert data[:4] == b":W&B"
    while position < len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the end of a long one
            records.append(Record.FromString(content))
            content = b""
    return records


def wandb_curves(records: list[object]) -> list[tuple[int, str, float]]:
    import json

    points = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            points += [(items["_step"], name, value) for name, value in sorted(items.items()) if name[0] != "_"]
    return [(step, name, float(value)) for step, name, value in points]


def test_wandb_runs_have_settings_and_no_machine_details(wandb_folder: Path, tmp_path: Path) -> None:
    check_trackers(["wandb"])
    other = "all-seed1"
    with ExperimentLogger(Folder(str(tmp_path / "one study")), {RUN: SETTINGS, other: {}}, ("wandb",)) as curves:
        for num_epochs in (1, 2, 2, 3):
            for run_id in (RUN, other):  # both are open at once
                curves.log(run_id, rows_of(num_epochs))
    runs = {}
    for path in wandb_files(wandb_folder):
        records = wandb_records(path)
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        runs[run.display_name] = run
        assert_equal_points(
            wandb_curves(records),
            [
                (epoch, *point)
                for epoch, values in epoch_metrics(rows_of(3)).items()
                for point in sorted(values.items())
            ],
        )
        assert not run.host
        for secret in (socket.gethostname(), getpass.getuser(), str(tmp_path)):  # short names may occur in random ids
            assert len(secret) < 6 or secret.encode() not in path.read_bytes()
    assert set(runs) == {RUN, other}
    assert not [path for path in wandb_folder.rglob("files/*") if path.is_file()], "W&B must not store additional files"
    assert runs[RUN].project == "one study"
    config = {item.key: item.value_json for item in runs[RUN].config.update if item.key != "_wandb"}
    assert config == {
        "variant": '"half"', "seed": "1", "learning_rate": "0.005", "schedule": '"constant"', "warmup": "null",
        "layers": "[1]",
    }  # fmt: skip


def test_wandb_run_is_resumed_by_its_id(wandb_folder: Path, tmp_path: Path) -> None:
    study = Folder(str(tmp_path / "study"))
    with pytest.raises(KeyboardInterrupt):
        log_and_interrupt(ExperimentLogger(study, {RUN: SETTINGS}, ("wandb",)))
    time.sleep(1.1)  # W&B names the folders of offline runs by the second and the id
    with ExperimentLogger(study, {RUN: SETTINGS}, ("wandb",)) as curves:
        curves.log(RUN, rows_of(3))
    records = [wandb_records(path) for path in wandb_files(wandb_folder)]
    ids = {record.run.run_id for part in records for record in part if record.WhichOneof("record_type") == "run"}
    assert ids == {study.child("runs", RUN).read_json("tracking.json")["key"]}
    ends = sorted(record.exit.exit_code for part in records for record in part if record.HasField("exit"))
    assert ends == [0, 1]
    steps = {(step, name) for part in records for step, name, _ in wandb_curves(part)}
    assert steps == {(epoch, name) for epoch, values in epoch_metrics(rows_of(3)).items() for name in values}


@pytest.mark.usefixtures("wandb_folder")
def test_unreachable_wandb_server_does_not_stop_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    study = Folder(str(tmp_path / "study"))
    with ExperimentLogger(study, {RUN: SETTINGS}, ("wandb",)) as curves:
        curves.log(RUN, rows_of(1))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune")]
    assert "wandb did not accept the curves" in line
    assert_equal_points(tensorboard_curves(study.child("runs", RUN, "tensorboard")), single_precision(1))


@pytest.mark.usefixtures("wandb_folder")
def test_wandb_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=r"wandb cannot be used: .*set WANDB_API_KEY"):
        check_trackers(["wandb"])


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_training_is_exported_to_ray_metrics(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def record(self) -> None:
            from tuning.worker import TrainMetrics

            for run_id in ("first", "second"):  # a worker runs one training after another
                metrics = TrainMetrics(run_id)
                for epoch in (1, 2):
                    metrics.record(epoch, metrics_at(epoch), tokens=300, seconds=1.5)

    worker = Worker.remote()
    ray.get(worker.record.remote())
    expected = {("epoch", run_id, "", ""): 2.0 for run_id in ("first", "second")}
    for run_id in ("first", "second"):
        expected |= {
            ("loss", run_id, "", ""): 1 / 6,
            ("tokens_per_s", run_id, "", ""): 200.0,
            ("tokens_total", run_id, "", ""): 600.0,
            ("accuracy", run_id, "train", "all"): 2 / 9,
            ("accuracy", run_id, "train", "Unknown"): 1 / 7,
            ("accuracy", run_id, "dev", "all"): 2 / 3,
            ("accuracy", run_id, "test", "all"): 1 / 5,  # of epoch 1, the last that tested
        }

    def exported() -> dict[tuple[str, ...], float]:
        return {
            (name, tags["run_id"], tags.get("split", ""), tags.get("category", "")): value
            for name, tags, value in exported_metrics("slick_train_")
            if tags.get("run_id") in ("first", "second")
        }

    wait_for(lambda: exported() == pytest.approx(expected), exported)
