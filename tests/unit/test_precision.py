"""`dtype auto`: resolved by the device, and by the dtype of earlier results."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

import slick.cluster
from slick.annotation import AnnotateConfig
from slick.errors import ModelError, SettingsError, StudyError
from slick.precision import (
    ASSUMED_GPU,
    CPU,
    Device,
    Dtype,
    Runtime,
    StoredDtype,
    dtype_bytes,
    merge_runtimes,
    read_stored_dtype,
    resolve_dtype,
    resolve_step_dtype,
)
from slick.storage import Folder
from slick.study import begin_step, complete_step
from tuning.axes import parse_axis
from tuning.config import TrainConfig
from tuning.estimates import estimate_training_memory, published_shape
from tuning.grid import GridConfig, SweepConfig
from tuning.progress_table import _Watcher
from tuning.runs import plan_runs, read_runtimes, record_runtime, run_folder
from tuning.sweep import resolve_sweep_precision

OLD_GPU = Device(is_gpu=True, supports_bfloat16=False, name="a V100")


@pytest.mark.parametrize(
    ("device", "stored", "expected"),
    [
        (CPU, None, "float32"),
        (ASSUMED_GPU, None, "bfloat16"),
        (OLD_GPU, None, "float32"),
        (ASSUMED_GPU, "float32", "float32"),
        (CPU, "bfloat16", "bfloat16"),
        (OLD_GPU, "bfloat16", "float32"),
        (OLD_GPU, "float16", "float16"),
    ],
)
def test_auto_dtype_is_the_stored_one_or_that_of_the_device(device: Device, stored: str | None, expected: str) -> None:
    assert resolve_dtype("auto", device, stored) == expected
    for stated in ("float32", "bfloat16", "float16"):
        assert resolve_dtype(stated, device, stored) == stated


def test_auto_is_the_default_and_is_never_float16() -> None:
    assert (AnnotateConfig().dtype, TrainConfig().dtype) == ("auto", "auto")
    assert "float16" not in {resolve_dtype("auto", device) for device in (CPU, ASSUMED_GPU, OLD_GPU)}


def test_unknown_dtype_is_rejected_first() -> None:
    with pytest.raises(SettingsError, match="dtype is one of auto, float32, bfloat16, float16, got 'half'"):
        AnnotateConfig(dtype="half")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="dtype is one of auto, float32, bfloat16, got 'float16'"):
        TrainConfig(dtype="float16")  # type: ignore[arg-type]


def test_dtype_bytes_needs_a_resolved_dtype() -> None:
    assert {name: dtype_bytes(name) for name in get_args(Dtype) if name != "auto"} == {
        "float32": 4,
        "bfloat16": 2,
        "float16": 2,
    }
    with pytest.raises(SettingsError, match="'auto', whose size is not known"):
        dtype_bytes("auto")


def write_step(folder: Folder, dtype: str, *, is_finished: bool) -> Folder:
    settings = {"dtype": dtype}
    begin_step(folder, "annotate", "mark", settings)
    if is_finished:
        complete_step(folder, "annotate", "mark", settings=settings, inputs={}, counts={}, started_at=0.0)
    return folder


def fail_if_called() -> Device:
    raise AssertionError("the device must not be detected")


def test_dtype_of_a_finished_step_is_resolved_without_a_device(tmp_path: Path) -> None:
    folder = write_step(Folder(str(tmp_path)), "bfloat16", is_finished=True)
    assert resolve_step_dtype("annotate", "auto", read_stored_dtype([folder]), fail_if_called) == "bfloat16"
    assert (
        resolve_step_dtype("annotate", "float16", StoredDtype(dtype=None, is_finished=False), fail_if_called)
        == "float16"
    )


def test_resumed_step_keeps_its_dtype_on_another_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read_stored_dtype([write_step(Folder(str(tmp_path)), "float32", is_finished=False)])
    assert resolve_step_dtype("annotate", "auto", stored, lambda: CPU) == "float32"
    assert capsys.readouterr().out == ""
    assert resolve_step_dtype("annotate", "auto", stored, lambda: ASSUMED_GPU) == "float32"
    assert (
        "annotate: continues in float32, the dtype of stored results; the default on a GPU of compute"
        in capsys.readouterr().out
    )


def test_results_in_two_dtypes_are_an_error(tmp_path: Path) -> None:
    folders = [write_step(Folder(str(tmp_path / dtype)), dtype, is_finished=True) for dtype in ("float32", "bfloat16")]
    with pytest.raises(StudyError, match=r"float32 \(.*\) and bfloat16 \(.*--sweep.train.dtype"):
        read_stored_dtype(folders)


AXIS = GridConfig(variants=("a", "b"), epochs=(2,), axes=("dtype=float32,bfloat16",))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sweep_keeps_the_dtype_of_its_trainings(tmp_path: Path, dtype: str) -> None:
    study, config = Folder(str(tmp_path)), SweepConfig(grid=GridConfig(variants=("a", "b"), epochs=(2,)))
    assert resolve_sweep_precision(study, config).train.dtype == "float32", "this machine has no GPU"
    write_step(run_folder(study, "b-seed0"), dtype, is_finished=False)
    assert resolve_sweep_precision(study, config).train.dtype == dtype
    stated = replace(config, train=replace(config.train, dtype="float32"))
    assert resolve_sweep_precision(study, stated) is stated


def test_sweep_over_dtypes_keeps_the_ids_of_its_trainings(tmp_path: Path) -> None:
    study, config = Folder(str(tmp_path)), SweepConfig(grid=AXIS)
    write_step(run_folder(study, "a-seed0"), "bfloat16", is_finished=True)
    write_step(run_folder(study, "a-seed0-dtype=float32"), "float32", is_finished=True)
    resolved = resolve_sweep_precision(study, config)
    assert resolved.train.dtype == "bfloat16"
    assert [run.run_id for run in resolved.trajectories][:2] == ["a-seed0-dtype=float32", "a-seed0"]


def test_dtype_of_other_trainings_counts_only_if_they_agree(tmp_path: Path) -> None:
    study, config = Folder(str(tmp_path)), SweepConfig(grid=GridConfig(variants=("a",), epochs=(2,)))
    write_step(run_folder(study, "c-seed0"), "bfloat16", is_finished=True)
    assert resolve_sweep_precision(study, config, other_run_ids=["c-seed0"]).train.dtype == "bfloat16"
    write_step(run_folder(study, "d-seed0"), "float32", is_finished=True)
    assert resolve_sweep_precision(study, config, other_run_ids=["c-seed0", "d-seed0"]).train.dtype == "float32"
    write_step(run_folder(study, "a-seed0"), "bfloat16", is_finished=False)
    assert resolve_sweep_precision(study, config, other_run_ids=["d-seed0"]).train.dtype == "bfloat16"


def test_axes_and_plans_need_a_resolved_dtype(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="auto is not a fixed precision"):
        parse_axis("dtype=auto,float32")
    with pytest.raises(SettingsError, match="a plan needs a resolved dtype, got auto"):
        plan_runs(Folder(str(tmp_path)), {"a-seed0": TrainConfig()})
    with pytest.raises(SettingsError, match="'auto'"):
        estimate_training_memory(published_shape("1B"), TrainConfig(), 1)


class Cluster:
    """A fake of Ray for `detect_device`: resources, and one task that detects the GPU."""

    def __init__(self, resources: Mapping[str, float], probe: Callable[[], Any]) -> None:
        self.resources, self.probe = resources, probe
        self.task_options: list[dict[str, float]] = []

    def remote(self, **options: float) -> Callable[[Any], Any]:
        self.task_options.append(options)

        class Task:
            @staticmethod
            def remote() -> Any:
                return self.probe()

        return lambda function: Task


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    import ray

    def start(resources: Mapping[str, float], probe: Callable[[], Any] = fail_if_called) -> Cluster:
        fake = Cluster(resources, probe)
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        monkeypatch.setattr(slick.cluster, "connect", lambda: None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: fake.resources)
        monkeypatch.setattr(ray, "remote", fake.remote)
        monkeypatch.setattr(ray, "wait", lambda tasks, timeout: (tasks, []))
        monkeypatch.setattr(ray, "get", lambda task: task)
        return fake

    return start


def test_no_task_probes_a_cluster_without_gpus(cluster: Callable[..., Cluster]) -> None:
    assert slick.cluster.detect_device(0) is CPU
    fake = cluster({"CPU": 8})
    assert slick.cluster.detect_device(None) is CPU
    assert fake.task_options == []


def test_device_is_the_gpu_of_a_probe_task(cluster: Callable[..., Cluster]) -> None:
    fake = cluster({"GPU": 2, "accelerator_type:L4": 2}, lambda: ASSUMED_GPU)
    assert slick.cluster.detect_device(None) is ASSUMED_GPU
    assert slick.cluster.detect_device(0.25) is ASSUMED_GPU
    assert fake.task_options == [{"num_gpus": 1.0, "num_cpus": 0}, {"num_gpus": 0.25, "num_cpus": 0}]
    cluster({}, lambda: ASSUMED_GPU)
    assert slick.cluster.detect_device(1) is ASSUMED_GPU, "also on a cluster that scales from zero"


def test_older_gpu_in_the_cluster_disables_bfloat16(cluster: Callable[..., Cluster]) -> None:
    cluster({"GPU": 2, "accelerator_type:A100": 1, "accelerator_type:T4": 1})
    device = slick.cluster.detect_device(1)
    assert resolve_dtype("auto", device) == "float32"
    assert "T4" in device.name


def test_gpu_without_torch_support_is_an_error(cluster: Callable[..., Cluster]) -> None:
    cluster({"GPU": 1}, slick.cluster._probe_gpu)
    with pytest.raises(ModelError, match="Ray reserved a GPU, but torch sees none there"):
        slick.cluster.detect_device(1)


def test_more_gpus_than_the_machine_has_are_rejected(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 4})
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(SettingsError, match=r"each process needs 1 GPUs, .* has 0"):
        slick.cluster.detect_device(1)


def test_emulated_bfloat16_does_not_count_as_support(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from slick.inference.devices import current_gpu, format_device

    emulates = {True: True, False: False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: emulates[including_emulation])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16_000_000_000))
    expected = Device(is_gpu=True, supports_bfloat16=False, name="Tesla V100", memory=16_000_000_000)
    assert current_gpu() == expected
    assert format_device(torch.device("cuda:1")) == "cuda (Tesla V100)"
    assert format_device(torch.device("cpu")) == "cpu"


def test_runtimes_of_a_training_accumulate(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    for device in ("cpu", "cpu", "cuda (NVIDIA L4)"):
        record_runtime(run, Runtime(device=device, dtype="float32", attention="sdpa"))
    assert len(read_runtimes(run)) == 3
    assert merge_runtimes(read_runtimes(run)) == {
        "device": "cpu and cuda (NVIDIA L4)",
        "dtype": "float32",
        "attention": "sdpa",
    }
    assert merge_runtimes([{}]) == {}, "runs of older versions have no runtimes"


def test_runtime_of_a_training_is_printed_when_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, plan = Folder(str(tmp_path)), SimpleNamespace(run_id="a-seed0", config=TrainConfig(epochs=1))
    before = Runtime(device="cpu", dtype="float32", attention="sdpa")
    record_runtime(run_folder(study, "a-seed0"), before)
    watcher: Any = _Watcher(study, [plan], None, None)  # type: ignore[list-item,arg-type]
    watcher._show_runtime(plan)
    assert capsys.readouterr().out == "", "the runtime of an earlier attempt is not printed"
    record_runtime(run_folder(study, "a-seed0"), replace(before, device="cuda (NVIDIA L4)"))
    for _ in range(2):
        watcher._show_runtime(plan)
    assert capsys.readouterr().out == "finetune: device cuda (NVIDIA L4), dtype float32, attention sdpa\n"
