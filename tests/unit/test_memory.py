"""Memory of a training: parameters of published models, and the effect of each setting."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.common import parse_config
from jobs.plan import Fleet, PlanConfig, finetune_command, plan, training_options, training_table
from jobs.presets import large_training
from slick.errors import SettingsError, StudyError
from slick.storage import Folder
from slick.study import complete_step
from tuning.config import TrainConfig
from tuning.estimates import (
    HEADROOM,
    SHAPES,
    MachineType,
    ModelShape,
    activation_bytes,
    default_machine_type,
    estimate_training_memory,
    published_shape,
    read_throughput,
    shape_from_config,
)

PUBLISHED = {
    "135M": 134_515_008,
    "360M": 361_821_120,
    "1B": 1_235_814_400,
    "1.7B": 1_711_376_384,
    "3B": 3_212_749_824,
    "7B": 7_248_023_552,
    "8B": 8_030_261_248,
    "13B": 13_015_864_320,
    "70B": 70_553_706_496,
}


def config(**changed: object) -> TrainConfig:
    return replace(TrainConfig(dtype="bfloat16", num_workers=8, batch_size=128, micro_batch_size=16), **changed)


@pytest.mark.parametrize(("size", "parameters"), PUBLISHED.items())
def test_parameter_counts_equal_the_published_ones(size: str, parameters: int) -> None:
    assert published_shape(size.lower()).parameters == parameters


def test_all_shapes_are_covered() -> None:
    assert SHAPES.keys() == PUBLISHED.keys()


def test_lora_parameter_count() -> None:
    """Counted by hand for one layer: A and B of q, k, v, o, gate, up, down."""
    shape = ModelShape(
        name="one",
        num_layers=1,
        hidden_size=8,
        intermediate_size=20,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        vocab_size=10,
        tie_word_embeddings=True,
    )
    q, k, gate = 3 * (8 + 8), 3 * (8 + 4), 3 * (8 + 20)
    assert shape.lora_parameters(3) == 2 * q + 2 * k + 3 * gate
    assert shape.lora_parameters(3, "attention") + shape.lora_parameters(3, "ffn") == shape.lora_parameters(3)


def test_memory_of_zero_stages_follows_the_paper() -> None:
    """ZeRO, arXiv:1910.02054, figure 1: 7.5 B parameters on 64 GPUs take 120, 31.4, 16.6 and 1.9 GB."""
    shape = replace(published_shape("7B"), vocab_size=1, hidden_size=4096)
    scale = 7.5e9 / shape.parameters
    gigabytes = []
    for stage in (0, 1, 2, 3):
        memory = estimate_training_memory(
            shape, config(num_workers=64, batch_size=64, micro_batch_size=1, zero_stage=stage), 64
        )
        gigabytes.append(scale * (memory.weights + memory.gradients + memory.optimizer) / 1e9)
    assert gigabytes == pytest.approx([120.0, 31.4, 16.6, 1.9], abs=0.051)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        {"micro_batch_size": 4},
        {"zero_stage": 3, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "all"},
        {"lora_rank": 8},
        {"trainable": "attention"},
    ],
)
def test_settings_that_reduce_memory(changes: dict[str, object]) -> None:
    shape, plain = published_shape("8B"), config(zero_stage=3)
    assert (
        estimate_training_memory(shape, replace(plain, **changes), 8).training
        < estimate_training_memory(shape, plain, 8).training
    )


def test_offloaded_memory_is_counted_on_the_machine() -> None:
    shape, plain = published_shape("8B"), config(zero_stage=3)
    without_offload, with_offload = (
        estimate_training_memory(shape, replace(plain, offload=offload), 8) for offload in ("none", "all")
    )
    assert with_offload.offloaded == without_offload.weights + without_offload.optimizer + 4 * shape.parameters // 8
    assert (with_offload.weights, with_offload.optimizer, with_offload.gradients) == (0, 0, without_offload.gradients)
    assert without_offload.offloaded == 0


def test_machine_memory_includes_offloaded_memory_and_a_checkpoint() -> None:
    shape = published_shape("8B")
    memory = estimate_training_memory(shape, config(zero_stage=3, offload="optimizer"), 8)
    assert memory.peak_machine_bytes(8) == 8 * memory.offloaded + 2 * shape.parameters
    assert memory.peak_machine_bytes(1) == memory.offloaded + 2 * shape.parameters
    without_offload = estimate_training_memory(shape, config(zero_stage=3), 8)
    assert without_offload.peak_machine_bytes(8) == 2 * shape.parameters, "all weights while they are saved"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_worker_loads_the_whole_model_below_stage_3(stage: int) -> None:
    shape = published_shape("7B")
    memory = estimate_training_memory(shape, config(zero_stage=stage, lora_rank=8), 8)
    assert memory.peak_machine_bytes(8) == 8 * 2 * shape.parameters
    assert memory.peak_device_bytes == memory.training > memory.loading == 2 * shape.parameters
    assert estimate_training_memory(shape, config(zero_stage=stage, dtype="float32"), 8).loading == 4 * shape.parameters
    assert estimate_training_memory(shape, config(zero_stage=3, lora_rank=8), 8).loading == 0


def test_insufficient_memory_is_named() -> None:
    memory = estimate_training_memory(
        published_shape("70B"), config(zero_stage=3, offload="optimizer", micro_batch_size=8), 16
    )
    device, machine = (
        1.001 * size / (1 - HEADROOM) for size in (memory.peak_device_bytes, memory.peak_machine_bytes(8))
    )
    assert memory.insufficient(device, machine, 8) == ()
    assert memory.insufficient(0.99 * device, machine, 8) == ("GPU",)
    assert memory.insufficient(device, 0.99 * machine, 8) == ("machine",)
    assert memory.insufficient(0.99 * device, 0.99 * machine, 8) == ("GPU", "machine")
    assert memory.insufficient(device, 0.99 * machine, 4) == (), "with fewer workers on the machine"


def test_machines_are_filled_one_after_another() -> None:
    machine = MachineType(gpus=8, memory=1_000.0)
    assert [(machine.workers_per_machine(num), machine.num_machines(num)) for num in (1, 8, 9, 16)] == [
        (1, 1),
        (8, 1),
        (8, 2),
        (8, 2),
    ]


@pytest.mark.parametrize(("gpu_memory", "gpus", "memory"), [(24, 1, 32), (40, 8, 1152), (80, 8, 1152), (141, 8, 2048)])
def test_default_machine_is_a_cloud_instance(gpu_memory: float, gpus: int, memory: float) -> None:
    config = PlanConfig(model_size="7B", gpu_memory=gpu_memory)
    assert (config.fleet.machine.gpus, config.fleet.machine.memory) == (gpus, memory)
    text = "\n".join(plan(config))
    assert f"of {gpus} GPU{'s' * (gpus > 1)} and {memory:,} GB (AWS {default_machine_type(gpu_memory).name};" in text


def test_activations_grow_with_rows_and_tokens() -> None:
    shape = published_shape("135M")
    one_row = activation_bytes(shape, config(), 1, 20)
    assert activation_bytes(shape, config(), 4, 20) == 4 * one_row
    assert one_row < activation_bytes(shape, config(), 1, 30)


def test_shape_of_a_config_or_its_missing_fields() -> None:
    shape = shape_from_config(
        {
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
        "mine",
    )
    assert shape.parameters == PUBLISHED["135M"]
    with pytest.raises(SettingsError, match="num_attention_heads"):
        shape_from_config({"n_layer": 3}, "mine")


def test_plan_names_the_fastest_settings_that_fit() -> None:
    small = "\n".join(plan(PlanConfig(model_size="135M", gpus=1, gpu_memory=24)))
    assert "slick finetune large --zero-stage 0 --no-activation-checkpointing --num-workers 1" in small
    assert "--gpus-per-actor 1" in small
    large = "\n".join(plan(PlanConfig(model_size="70B", gpus=16, gpu_memory=80)))
    assert "--zero-stage 3 --activation-checkpointing --offload optimizer" in large
    assert "--engine vllm --gpus-per-actor 4" in large
    none = "\n".join(plan(PlanConfig(model_size="70B", gpus=1, gpu_memory=2)))
    assert "None of these trains all weights" in none


def fits_column(text: str, *flags: str) -> str:
    """The column `fits` of the plan in the row of some flags."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"  {' '.join(flags)}  "))
    return line.rsplit("  ", 1)[1]


def test_machine_memory_can_be_insufficient() -> None:
    offloaded = ("--zero-stage 3", "--activation-checkpointing", "--offload optimizer")
    config = PlanConfig(model_size="70B", gpus=8, machine_memory=512)
    text = "\n".join(plan(config))
    assert "on 1 machine of 8 GPUs and 512 GB, of which" in text
    assert fits_column(text, *offloaded) == "no: machine"
    assert fits_column(text, "--zero-stage 3", "--activation-checkpointing") == "no: GPU"
    assert fits_column(text, "--zero-stage 1", "--no-activation-checkpointing") == "no: GPU and machine"
    assert "machines with more memory, fewer --rows-at-once" in text
    ample = "\n".join(plan(replace(config, machine_memory=2_048)))
    assert fits_column(ample, *offloaded) == "yes"
    assert f"{' '.join(offloaded)} --num-workers 8" in ample
    spread = "\n".join(plan(replace(config, gpus=16, machine_memory=512, gpus_a_machine=2)))
    assert "on 8 machines of 2 GPUs and 512 GB" in spread
    assert fits_column(spread, *offloaded) == "yes", "offloaded memory is divided between machines"


def test_lora_is_sharded_if_the_machine_cannot_load_the_model() -> None:
    text = "\n".join(plan(PlanConfig(model_size="13B", gpus=1, gpu_memory=40, machine_memory=24, gpus_a_machine=1)))
    assert fits_column(text, "--lora-rank 16", "--zero-stage 0", "--no-activation-checkpointing") == "no: machine"
    assert fits_column(text, "--lora-rank 16", "--zero-stage 3", "--activation-checkpointing") == "no: machine", (
        "saving needs all weights"
    )
    text = "\n".join(plan(PlanConfig(model_size="7B", gpus=1, gpu_memory=24)))
    assert fits_column(text, "--lora-rank 16", "--zero-stage 0", "--no-activation-checkpointing") == "yes"


@pytest.mark.parametrize("gpus", [1, 2, 6, 8, 16, 256])
@pytest.mark.parametrize("rows_at_once", [16, 4])
def test_commands_of_the_plan_have_its_settings(gpus: int, rows_at_once: int) -> None:
    for flags, training in training_options(gpus, rows_at_once):
        command = finetune_command(flags, training).split()
        assert command[:3] == ["slick", "finetune", "large"]
        parsed = parse_config(large_training(), command[3:], "x")
        assert replace(parsed, min_workers=None) == training
        assert training.batch_size == 128 or 128 % gpus, "the batch size of the paper if it is divisible"
        assert training.micro_batch_size is not None
        assert training.micro_batch_size <= rows_at_once


def test_recommended_command_is_the_first_that_fits() -> None:
    """The printed command is that of the first row that fits and trains all weights."""
    for size in ("1B", "8B", "70B"):
        for memory in (24.0, 80.0):
            for machine in (MachineType(gpus=1, memory=64.0), MachineType(gpus=8, memory=1_152.0)):
                fleet = Fleet(gpus=8, gpu_memory=memory, machine=machine)
                lines = list(training_table(published_shape(size), fleet, 16))
                fitting_rows = [
                    line.split("  ")[1] for line in lines if line.endswith("  yes") and "--lora" not in line
                ]
                expected = (
                    f"weights: slick finetune large {fitting_rows[0]} --num"
                    if fitting_rows
                    else "None of these trains all weights"
                )
                assert expected in lines[-1], (size, fleet)


def write_timed_study(path: Path, *, trained: bool) -> Folder:
    """Write manifests with timings: 2,000 answers in 10 s; 40 rows and 3 epochs on 2 workers in 6 s."""
    study = Folder(str(path))
    shape = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    study.child("world", "model").write_json("config.json", shape)
    study.child("world", "model").write_bytes("model.safetensors", (2).to_bytes(8, "little") + b"{}")  # no tensors
    counts = {"questions": 20, "generations": 2000, "engine_seconds": 10.0}
    run = {"train_rows": 40, "evaluated_rows": 90, "epochs_now": 3, "num_workers": 2}
    run |= {"training_seconds": 6.0, "evaluation_seconds": 4.5}
    for folder, step, step_counts in (
        (study.child("world"), "world", {}),
        (study.child("annotate"), "annotate", counts),
        *([(study.child("runs", "half-seed0"), "finetune", run)] if trained else []),
    ):
        complete_step(folder, step, "x", settings={}, inputs={}, counts=step_counts, started_at=0.0)
    return study


def test_time_is_estimated_from_the_probe(tmp_path: Path) -> None:
    study = write_timed_study(tmp_path, trained=True)
    rates = read_throughput(study)
    assert rates.parameters == PUBLISHED["135M"]
    assert (rates.answers_per_question, rates.answers_per_second) == (100.0, 200.0)
    assert (rates.train_rows_per_second, rates.eval_rows_per_second) == (40 * 3 / 12, 90 * 3 / 9)
    assert rates.estimate_annotation_seconds(36, 2 * rates.parameters) == 36.0
    assert rates.estimate_training_seconds(5, 100, 60, rates.parameters) == 5 * (10 + 2)
    config = PlanConfig(model_size="360M", probe=study.uri, questions=7_200, price=3.0)
    text = "\n".join(plan(config))
    hours = 7_200 * 100 / 200 / 3600 * PUBLISHED["360M"] / PUBLISHED["135M"]
    assert f"Annotation: {hours:,.1f} hours of one actor, {3 * hours:,.0f} at 3 an hour" in text
    assert "This extrapolation is uncertain" not in text
    assert "This extrapolation is uncertain" in "\n".join(plan(replace(config, model_size="70B")))


def test_probe_without_timings_gives_no_estimate(tmp_path: Path) -> None:
    study = write_timed_study(tmp_path / "one", trained=False)
    assert read_throughput(study).train_rows_per_second is None
    assert "run `slick finetune` there" in "\n".join(plan(PlanConfig(model_size="135M", probe=study.uri)))
    untimed = write_timed_study(tmp_path / "two", trained=False)
    counts = {"questions": 20, "gold_scores": 5}
    complete_step(untimed.child("annotate"), "annotate", "x", settings={}, inputs={}, counts=counts, started_at=0.0)
    with pytest.raises(StudyError, match="--probe"):
        read_throughput(untimed)
    with pytest.raises(StudyError, match="not finished"):
        read_throughput(Folder(str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_size": "7B", "model": "x"},
        {"model_size": "6B"},
        {"model_size": "7B", "gpus": 0},
        {"model_size": "7B", "machine_memory": 0.0},
        {"model_size": "7B", "gpus_a_machine": -1},
    ],
)
def test_invalid_plan_settings_are_rejected(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        list(plan(PlanConfig(**settings)))
