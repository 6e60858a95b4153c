"""Curves: names and values, each epoch once, and trackers whose failure does not stop a training."""

import sys
from collections.abc import Iterable, Mapping

import pytest

from slick.errors import SettingsError
from slick.storage import Folder
from slick.types import Category
from tuning import trackers
from tuning.records import SplitMetrics, epochs_table
from tuning.trackers import ExperimentLogger, MetricHistory, TrackerRun, check_trackers, epoch_metrics, project_name


def epoch_rows(num_epochs: int) -> list[dict[str, object]]:
    epochs = [
        [
            SplitMetrics(split="train", category="all", num=8, num_correct=epoch, loss=1 / epoch),
            SplitMetrics(split="train", category=str(Category.UNKNOWN), num=4, num_correct=0, loss=2 / epoch),
            SplitMetrics(split="dev", category="all", num=5, num_correct=2, loss=None),
        ]
        for epoch in range(1, num_epochs + 1)
    ]
    rows: list[dict[str, object]] = epochs_table("half-seed1", epochs).to_pylist()
    return rows


class FakeTrackerRun:
    """A fake tracker run that stores epochs, or raises."""

    def __init__(self, log: list[object], refuses: bool) -> None:
        self._log, self._refuses = log, refuses

    def write(self, points: MetricHistory) -> None:
        if self._refuses:
            raise ConnectionError("http://user:secret@server is down\nmany details")
        self._log += [epoch for epoch in sorted(points) if epoch not in self._log]

    def end(self, ok: bool) -> None:
        self._log.append("finished" if ok else "failed")


class FakeLogger(ExperimentLogger):
    """A logger with fake trackers, of which those in `down` fail."""

    def __init__(self, run_ids: Iterable[str] = ("a",), down: Iterable[str] = ()) -> None:
        super().__init__(Folder("/nowhere"), {run_id: {} for run_id in run_ids}, ("mlflow",))
        self.down = set(down)
        self.logs: dict[str, list[object]] = {}
        self.opened: list[str] = []

    def _open(self, tracker: str, run_id: str) -> TrackerRun:
        self.opened.append(f"{tracker}/{run_id}")
        return FakeTrackerRun(self.logs.setdefault(f"{tracker}/{run_id}", []), tracker in self.down)


def test_metrics_are_named_by_split_and_category() -> None:
    assert epoch_metrics(epoch_rows(2)) == {
        epoch: {
            "accuracy/train": epoch / 8,
            "loss/train": 1 / epoch,
            "accuracy/train/Unknown": 0.0,
            "loss/train/Unknown": 2 / epoch,
            "accuracy/dev": 0.4,
        }
        for epoch in (1, 2)
    }
    assert epoch_metrics([]) == {}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_missing_package_is_reported_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=rf"tracking with {name} .* pip install 'slick-knowledge\[{name}\]'"):
        check_trackers([name])


def test_unknown_tracker_is_refused() -> None:
    check_trackers([])
    with pytest.raises(SettingsError, match="track is one of mlflow, wandb, got 'neptune'"):
        check_trackers(["neptune"])


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/my study", "my study"),
        ("/data/a:b?c/", "a-b-c"),
        ("/data/me@home", "me@home"),
        ("s3://bucket/deep/one?region=eu/west", "one"),
        ("s3://bucket", "bucket"),
        ("/", "study"),
    ],
)
def test_project_name_is_the_end_of_the_path(uri: str, name: str) -> None:
    assert project_name(Folder(uri)) == name


def test_each_epoch_is_written_once_and_the_run_ends_once() -> None:
    with FakeLogger() as curves:
        for num_epochs in (0, 1, 1, 3, 3):
            curves.log("a", epoch_rows(num_epochs))
        curves.finish("a")
        curves.finish("never began")
        curves.log("a", epoch_rows(4))
    curves.close()
    assert curves.logs == {"tensorboard/a": [1, 2, 3, "finished"], "mlflow/a": [1, 2, 3, "finished"]}
    assert len(curves.opened) == 2


def log_and_interrupt(curves: ExperimentLogger) -> None:
    with curves:
        curves.log("a", epoch_rows(1))
        curves.finish("a")
        curves.log("b", epoch_rows(1))
        raise KeyboardInterrupt


def test_error_fails_open_runs_but_not_finished_ones() -> None:
    curves = FakeLogger("ab")
    with pytest.raises(KeyboardInterrupt):
        log_and_interrupt(curves)
    assert curves.logs["mlflow/a"] == [1, "finished"]
    assert curves.logs["mlflow/b"] == curves.logs["tensorboard/b"] == [1, "failed"]


def test_failing_tracker_is_logged_once_per_run_and_gets_all_epochs_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    curves = FakeLogger("ab", down={"mlflow"})
    for num_epochs in (1, 2):
        for run_id in "ab":
            curves.log(run_id, epoch_rows(num_epochs))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"finetune: mlflow did not accept the curves of {run_id} (ConnectionError: http://server is down); "
        "the training continues"
        for run_id in "ab"
    ]
    curves.down.clear()
    curves.log("a", epoch_rows(3))
    curves.close()
    assert capsys.readouterr().err == ""
    assert curves.logs["mlflow/a"] == curves.logs["tensorboard/a"] == [1, 2, 3, "finished"]
    assert curves.logs["mlflow/b"] == curves.logs["tensorboard/b"] == [1, 2, "finished"]


def test_failing_tracker_is_called_once_per_epoch() -> None:
    curves = FakeLogger("a", down={"mlflow"})
    for num_epochs in (1, 1, 1, 2, 2):
        curves.log("a", epoch_rows(num_epochs))
    assert attempts(curves)["mlflow/a"] == 2


def attempts(curves: FakeLogger) -> Mapping[str, int]:
    return {name: curves.opened.count(name) for name in set(curves.opened)}


def test_slow_tracker_is_skipped_during_the_backoff(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "SLOW_RESPONSE_S", -1.0)
    curves = FakeLogger("ab", down={"mlflow"})
    for num_epochs in (1, 2):
        for run_id in "ab":
            curves.log(run_id, epoch_rows(num_epochs))
    assert attempts(curves) == {"tensorboard/a": 1, "tensorboard/b": 1, "mlflow/a": 1}
    curves.close()
    assert attempts(curves)["mlflow/a"] == 1, "the end must not wait for the tracker again"
    assert "of b (it did not respond for another run)" in capsys.readouterr().err
    assert curves.logs["tensorboard/b"] == [1, 2, "finished"]


def test_tracker_is_retried_after_the_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "SLOW_RESPONSE_S", -1.0)
    monkeypatch.setattr(trackers, "BACKOFF_S", 0.0)
    curves = FakeLogger("a", down={"mlflow"})
    curves.log("a", epoch_rows(1))
    curves.down.clear()
    curves.log("a", epoch_rows(2))
    assert curves.logs["mlflow/a"] == [1, 2]
