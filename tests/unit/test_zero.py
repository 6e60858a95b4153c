"""TrainConfig: validation and identity, and the DeepSpeed configuration."""

from dataclasses import replace

import pytest

from slick.errors import SettingsError
from tuning.config import TrainConfig, learning_rate_at
from tuning.deepspeed_config import deepspeed_config
from tuning.runs import check_resources
from tuning.trials import num_concurrent_trials


@pytest.mark.parametrize(
    ("wait", "requested", "gpus", "trials"),
    [(False, None, 4, 4), (False, 16, 4, 4), (True, 16, 0, 16), (True, None, 0, 1)],
)
def test_concurrent_trials_may_exceed_the_cluster_with_wait_for_nodes(
    wait: bool, requested: int | None, gpus: float, trials: int
) -> None:
    config = TrainConfig(wait_for_nodes=wait)
    assert num_concurrent_trials(config, {"GPU": gpus, "CPU": 64}, 1, 17, requested) == trials


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_and_batch_size_in_the_deepspeed_config(stage: int) -> None:
    config = TrainConfig(batch_size=16, micro_batch_size=2, num_workers=2, zero_stage=stage)
    settings = deepspeed_config(config, 2)
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["train_batch_size"] == 16
    assert settings["train_micro_batch_size_per_gpu"] * settings["gradient_accumulation_steps"] * 2 == 16
    assert "bf16" not in settings
    assert deepspeed_config(replace(config, dtype="bfloat16"), 2)["bf16"] == {"enabled": True}


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_batch_is_shared_by_groups_of_any_allowed_size(num_workers: int, micro_batch_size: int | None) -> None:
    config = TrainConfig(batch_size=16, micro_batch_size=micro_batch_size, num_workers=4, min_workers=1)
    settings = deepspeed_config(config, num_workers)
    micro, gradient_accumulation_steps = (
        settings["train_micro_batch_size_per_gpu"],
        settings["gradient_accumulation_steps"],
    )
    assert 16 <= micro * gradient_accumulation_steps * num_workers < 16 + num_workers * micro
    assert settings["train_batch_size"] == micro * gradient_accumulation_steps * num_workers


def test_group_of_another_size_is_refused() -> None:
    with pytest.raises(SettingsError, match="has 2 workers, the settings expect 4"):
        deepspeed_config(TrainConfig(batch_size=16, num_workers=4), 2)
    with pytest.raises(SettingsError, match="has 1 workers, the settings expect 2 to 4"):
        deepspeed_config(TrainConfig(batch_size=16, num_workers=4, min_workers=2), 1)


def test_offload_in_the_deepspeed_config() -> None:
    zero = deepspeed_config(TrainConfig(zero_stage=2, offload="optimizer"), 1)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in zero
    zero = deepspeed_config(TrainConfig(zero_stage=3, offload="all"), 1)["zero_optimization"]
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"


def test_optimizer_needs_no_compiler_unless_it_is_chosen() -> None:
    assert deepspeed_config(TrainConfig(), 1)["optimizer"]["params"]["torch_adam"] is True
    config = TrainConfig(offload="optimizer", zero_stage=2, cpu_adam=True)
    assert deepspeed_config(config, 1)["optimizer"]["params"]["torch_adam"] is False


def test_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from tuning.trainer import check_cpu_adam_compiler

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match=r"lacks a C\+\+ compiler: no-such-compiler.* leave out --cpu-adam"):
        check_cpu_adam_compiler()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch_size": 10, "num_workers": 3},
            "10 rows cannot be shared by 3 workers; make batch_size a multiple of 3",
        ),
        ({"batch_size": 12, "micro_batch_size": 8}, "micro batches of 8"),
        ({"zero_stage": 4}, "zero_stage must be in \\[0, 3\\], got 4"),
        ({"dtype": "float16"}, "dtype is one of auto, float32, bfloat16"),
        ({"dropout": 5.0}, "5 percent is 0.05"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 0 or 1"),
        ({"gpus_per_worker": 0.5, "num_workers": 2}, "for one worker a fraction of 1, got 0.5 for 2 workers"),
        ({"state_share": 5.0}, "state_share is a share"),
        ({"schedule": "step"}, "schedule is one of"),
        ({"keep_checkpoints": "some"}, "keep_checkpoints is one of"),
        ({"num_workers": 0}, "num_workers must be 1 or more"),
        ({"min_workers": 2}, "min_workers is 2, more than num_workers, which is 1"),
        ({"offload": "optimizer"}, "offload optimizer needs ZeRO stage 1 or more, got stage 0"),
        ({"offload": "all", "zero_stage": 2}, "offload all needs ZeRO stage 3 or more, got stage 2"),
        ({"cpu_adam": True}, "cpu_adam updates weights in CPU memory, but offload is none"),
        ({"offload": "disk"}, "offload is one of none, optimizer, all"),
        ({"trainable": "head"}, "trainable is one of all, attention, ffn"),
        ({"lora_alpha": 8.0}, "lora_rank is 0"),
        ({"lora_rank": -1}, "lora_rank must be 0 or more"),
        ({"distill_temperature": 0.0}, "distill_temperature must be above 0"),
        ({"replay_known": -1}, "replay_known must be 0 or more"),
        ({"matcher": "fuzzy"}, "there is no matcher 'fuzzy'; there are exact, raw, canonical, contains, f1"),
        ({"track": ("tensorboard",)}, "track is one of mlflow, wandb, got 'tensorboard'"),
    ],
)
def test_invalid_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainConfig(**change)


def test_cost_settings_are_not_part_of_the_identity() -> None:
    config = TrainConfig(batch_size=16)
    faster = replace(config, num_workers=4, zero_stage=2, micro_batch_size=2, eval_batch_size=8, gpus_per_worker=1)
    faster = replace(faster, packing=False, activation_checkpointing=True, offload="optimizer", track=("wandb",))
    assert config.identity() == faster.identity()
    for change in (
        {"learning_rate": 1e-4},
        {"seed": 1},
        {"dropout": 0.0},
        {"matcher": "raw"},
        {"lora_rank": 2},
    ):
        assert config.identity() != replace(config, **change).identity()


def test_epochs_are_part_of_the_identity_only_if_results_depend_on_them() -> None:
    for change, same in (({}, True), ({"schedule": "linear"}, False), ({"replay_known": 4}, False)):
        config = TrainConfig(epochs=3, **change)
        assert (config.identity() == replace(config, epochs=9).identity()) == same


def test_learning_rate_schedules() -> None:
    for schedule in ("constant", "linear", "cosine"):
        config = TrainConfig(learning_rate=2.0, schedule=schedule, warmup_steps=4)
        rates = [learning_rate_at(config, step, 20) for step in range(20)]
        assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
        assert rates[4] == 2.0
        assert (rates[-1] == 2.0) if schedule == "constant" else (0 < rates[-1] < 0.2)


def test_more_workers_than_the_cluster_has_room_for_are_refused() -> None:
    config = TrainConfig(batch_size=16, num_workers=4)
    assert check_resources(config, cpus=4, gpus=0) == 0
    assert check_resources(config, cpus=4, gpus=8) == 1
    with pytest.raises(SettingsError, match="1 x 4 workers need 4 CPUs, the cluster has 2"):
        check_resources(config, cpus=2, gpus=0)
    with pytest.raises(SettingsError, match="need 4 GPUs, the cluster has 1"):
        check_resources(config, cpus=64, gpus=1)
    assert check_resources(replace(config, wait_for_nodes=True), cpus=2, gpus=0) == 0
    assert check_resources(replace(config, min_workers=2), cpus=2, gpus=0) == 0
    small = TrainConfig(gpus_per_worker=0.25)
    assert check_resources(small, cpus=2, gpus=1, num_groups=4) == 0.25
    with pytest.raises(SettingsError, match=r"5 x 1 workers need 1\.25 GPUs, the cluster has 1"):
        check_resources(small, cpus=2, gpus=1, num_groups=5)
    with pytest.raises(SettingsError, match=r"1 x 3 workers need 3 CPUs, the cluster has 2; lower .* --min-workers"):
        check_resources(replace(config, min_workers=3), cpus=2, gpus=0)
