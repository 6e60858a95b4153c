"""The user's DeepSpeed file: merged with the settings of the training, which it may not contradict."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.submit import plan_job_files
from slick.errors import DataError, SettingsError
from tuning.config import TrainConfig
from tuning.deepspeed_config import deepspeed_config, read_deepspeed_file

CONFIG = TrainConfig(
    batch_size=16, micro_batch_size=4, learning_rate=1e-4, zero_stage=2, offload="optimizer", dtype="bfloat16"
)


def merged(file_settings: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return deepspeed_config(replace(CONFIG, **changed), 1, file_settings=file_settings)


def test_entries_are_added_and_replace_those_that_no_setting_determines() -> None:
    file_settings = {
        "zero_optimization": {
            "reduce_bucket_size": 123,
            "overlap_comm": True,
            "offload_optimizer": {"buffer_count": 7},
        },
        "communication_data_type": "fp32",
        "steps_per_print": 10,
    }
    settings, plain = merged(file_settings), merged({})
    zero = settings["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["overlap_comm"], settings["communication_data_type"]) == (
        123,
        True,
        "fp32",
    )
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False, "buffer_count": 7}
    assert {name: zero[name] for name in ("stage", "allgather_bucket_size")} == {
        name: plain["zero_optimization"][name] for name in ("stage", "allgather_bucket_size")
    }
    assert settings["optimizer"] == plain["optimizer"]
    assert plain == deepspeed_config(CONFIG, 1), "the file changes nothing else"


def test_file_for_the_hugging_face_trainer_is_accepted() -> None:
    """Its entries are `auto`, or equal to the settings."""
    file_settings = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "betas": "auto"}},
        "scheduler": {"type": "auto", "params": {"warmup_num_steps": "auto"}},
        "bf16": {"enabled": True},
        "fp16": {"enabled": False, "loss_scale": 0},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": "auto"},
    }
    assert merged(file_settings) == merged({})


@pytest.mark.parametrize(
    ("file_settings", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32, but the settings of the training give 16; .*--batch-size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, .*--max-grad-norm"),
        ({"optimizer": {"params": {"lr": 1e-3}}}, r"optimizer\.params\.lr is 0.001, .* 0.0001; .*--learning-rate"),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer\.type is 'Lamb', .*PyTorch's AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type is 'WarmupLR', .* give nothing; .*--warmup-steps"),
        ({"zero_optimization": {"stage": 3}}, "stage is 3, .* give 2; .*--zero-stage"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "device is 'cpu', .* give 'none'; .*--offload"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, .* give False; .*--dtype"),
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation is not supported; remove it"),
        ({"compression_training": {}}, "compression_training is not supported"),
    ],
)
def test_contradictions_are_refused_by_name(file_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^ds.json: {message}|^ds.json: .*{message}"):
        merged(file_settings, deepspeed="ds.json")


def test_offloaded_tensors_are_page_locked_on_gpus_only() -> None:
    for on_gpu in (False, True):
        zero = deepspeed_config(replace(CONFIG, zero_stage=3, offload="all"), 1, on_gpu=on_gpu)["zero_optimization"]
        assert zero["offload_optimizer"]["pin_memory"] is zero["offload_param"]["pin_memory"] is on_gpu


@pytest.mark.parametrize(("content", "message"), [("[1]", "holds a list"), ("{", "ds.json"), (None, "does not exist")])
def test_invalid_file_is_reported(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_deepspeed_file(str(tmp_path / "ds.json"))


def test_file_is_uploaded_with_a_job(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text("{}")
    for flag in ("--deepspeed", "--train.deepspeed"):
        assert plan_job_files([flag, str(file)], via_loopback=False).files == {"files/ds.json": file}
