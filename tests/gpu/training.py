"""Training speed and memory on one or several GPUs: slick under ZeRO, a PyTorch loop and the Hugging Face Trainer.

The methods are those of `tests.benchmarks.training`, which runs each worker in its own process.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.gpu.models import Settings, model_shape, random_work, saved_model

_BATCH_ROWS = {"cuda": 128, "cpu": 8}
_NUM_STEPS = {"cuda": 30, "cpu": 4}
_NUM_STEPS_SLOW = 8
"""Steps of a training whose optimizer runs on the CPU, or whose model is large."""
_PORT = 29711


def measure_training(
    settings: Settings,
    *,
    method: str,
    size: str,
    gpus: int = 1,
    zero_stage: int = 0,
    offload: str = "none",
    lora_rank: int = 0,
    quantization: str = "none",
) -> dict[str, Any]:
    """Tokens per second of all workers, and the peak memory of the worker that needs the most.

    Args:
        settings: the device.
        method: one of `tests.benchmarks.training.METHODS`.
        size: one of `tests.gpu.models.SIZES`.
        gpus: workers, on one GPU each.
        zero_stage: as in `TrainConfig`.
        offload: as in `TrainConfig`.
        lora_rank: as in `TrainConfig`.
        quantization: as in `TrainConfig`.
    """
    from slick.models import load_tokenizer
    from tests.benchmarks.training import start_process, wait_for_result
    from tuning.config import TrainConfig
    from tuning.estimates import estimate_training_memory
    from tuning.evaluate import encode_rows

    folder = saved_model(settings, size)
    batch_rows = _BATCH_ROWS[settings.device] // gpus * gpus
    is_slow = offload != "none" or bool(lora_rank)
    rows = training_rows(batch_rows * min(_NUM_STEPS[settings.device], _NUM_STEPS_SLOW if is_slow else 1000))
    path = Path(settings.folder, "rows.json")
    path.write_text(json.dumps(rows), encoding="utf-8")
    options = {"batch_size": batch_rows, "dtype": settings.dtype, "num_workers": gpus, "zero_stage": zero_stage}
    options |= {"offload": offload, "lora_rank": lora_rank, "quantization": quantization}
    arguments = argparse.Namespace(model=folder, method=method, activation_checkpointing=False, epochs=1, **options)
    workers = [start_process(arguments, str(path), rank=rank, port=str(_PORT)) for rank in range(gpus)]
    results = [wait_for_result(worker) for worker in workers]
    measured: dict[str, Any] = {"tokens": results[0]["tokens"], "seconds": max(run["seconds"] for run in results)}
    if "peak_bytes" in results[0]:
        measured["peak_bytes"] = max(run["peak_bytes"] for run in results)
    if method == "slick":
        examples = encode_rows([question_row(row) for row in rows], load_tokenizer(folder))
        tokens_per_row = round(sum(example.num_tokens for example in examples) / len(examples))
        config = TrainConfig(dropout=0.0, **options)  # type: ignore[arg-type]
        plan = estimate_training_memory(model_shape(settings, size), config, gpus, tokens_per_row=tokens_per_row)
        measured["planned_bytes"] = plan.training
    return measured


def training_rows(num: int) -> list[dict[str, Any]]:
    """Closed-book training rows of invented questions, as `QuestionRow` fields."""
    from slick.prompts import closed_book_suffix

    return [
        {
            "question_id": question_id,
            "split": "train",
            "category": None,
            "suffix": closed_book_suffix(suffix.removeprefix("Q: ").removesuffix("\nA:")),
            "target": gold[0],
            "accepted": gold,
        }
        for part in random_work(num)
        for question_id, suffix, gold in zip(part["ids"], part["suffixes"], part["gold"], strict=True)
    ]


def question_row(row: dict[str, Any]) -> Any:
    """A `QuestionRow` from its fields."""
    from tuning.data import QuestionRow

    return QuestionRow(**{**row, "accepted": tuple(row["accepted"])})
