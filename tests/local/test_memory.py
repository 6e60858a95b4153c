"""Estimated memory equals measured memory, counted over all tensors with real DeepSpeed."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slick.precision import dtype_bytes
from tests.gpu.models import llama_config
from tests.local.head import ROOT, environment, free_ports
from tests.local.tiny import tiny_model
from tests.waiting import TIMEOUT_S
from tuning.config import TrainConfig
from tuning.data import Example
from tuning.estimates import SHAPES, activation_bytes, estimate_training_memory, shape_from_config
from tuning.forward import ForwardRunner
from tuning.trainable import prepare_model

PROMPT, ANSWER = 19, 5
SIZES = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48}
WIDER_SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}


def rows(num: int) -> list[Example]:
    prompts = (tuple((7 * i + j) % 350 + 3 for j in range(PROMPT)) for i in range(num))
    return [Example(prompt_ids=ids, answer_ids=tuple(range(3, 3 + ANSWER))) for ids in prompts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changed", [SIZES | {"intermediate_size": 512}, WIDER_SIZES | {"num_key_value_heads": 4}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_bytes_match_a_forward_pass(dtype: str, changed: dict[str, Any], checkpointing: bool) -> None:
    model = tiny_model("llama", dtype=dtype, **changed)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    forward = ForwardRunner(model, 0, packing=True)
    assert forward.uses_packing
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor  # kept alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), forward.rows(rows(24)) as batch:
        logits = forward.answer_logits(batch).float()
        torch.nn.functional.cross_entropy(logits, batch.labels_K)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    config = TrainConfig(dtype=dtype, activation_checkpointing=checkpointing)  # type: ignore[arg-type]
    shape = shape_from_config(model.config.to_dict(), "tiny")
    estimated = activation_bytes(shape, config, 24, PROMPT + ANSWER)
    if checkpointing:  # the recomputed layer is allocated in the backward pass only
        without_checkpointing = TrainConfig(dtype=dtype)  # type: ignore[arg-type]
        deeper = replace(shape, num_layers=shape.num_layers + 1)
        estimated -= activation_bytes(deeper, without_checkpointing, 24, PROMPT + ANSWER) - activation_bytes(
            shape, without_checkpointing, 24, PROMPT + ANSWER
        )
    # The estimate has the peak of the loss, in the backward pass; the forward pass keeps float32 log-probabilities.
    estimated -= _loss_bytes(shape.vocab_size, dtype) - 24 * ANSWER * shape.vocab_size * 4
    assert measured == pytest.approx(estimated, rel=0.12)


def _loss_bytes(vocab_size: int, dtype: str) -> int:
    return 24 * ANSWER * vocab_size * (8 + dtype_bytes(dtype))


_HELD_TYPES = ("Tensor", "Parameter", "Params4bit", "Int8Params")
WORKER_SETTINGS: dict[str, Any] = {"num_workers": 2, "batch_size": 4, "epochs": 1, "dropout": 0.0}
WORKER = """
import json, sys
from tests.local.test_memory import train_as_worker
print(json.dumps(train_as_worker(*json.loads(sys.argv[1]))))
"""


def train_as_worker(rank: int, port: int, folder: str, changed: dict[str, Any]) -> dict[str, int]:
    """Run one of two workers.

    Args:
        rank: of this worker.
        port: free port of the group.
        folder: the model.
        changed: settings of the training.

    Returns:
        Bytes of all tensors before an optimizer step, of the weights loaded before DeepSpeed shards them, and of the
        weights gathered for saving.
    """
    import torch.distributed

    from tuning import trainer
    from tuning.trainable import full_state_dict
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    loaded_bytes, load_model = [0], trainer.load_model

    def load_and_measure(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = load_model(*args, **kwargs)
        loaded_bytes[0] = sum(weight.untyped_storage().nbytes() for weight in model.parameters())
        return model

    trainer.load_model = load_and_measure

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    init_deepspeed()
    config = TrainConfig(**WORKER_SETTINGS, **changed)
    context = WorkerContext(rank=rank, local_rank=rank, num_workers=2, device="cpu")
    learner = Trainer(folder, config, context, 0)
    peak_bytes = [0]
    step = learner.engine.step

    def measure_and_step() -> None:
        gc.collect()
        sizes = {}
        for value in gc.get_objects():
            is_tensor = isinstance(value, torch.Tensor) and type(value).__name__ in _HELD_TYPES
            if is_tensor and value.device.type == "cpu":
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        peak_bytes[0] = max(peak_bytes[0], sum(sizes.values()))
        step()

    learner.engine.step = measure_and_step
    learner.epoch(rows(8), 1)
    gathered = full_state_dict(learner.model, keep=rank == 0)
    torch.distributed.barrier()
    return {
        "bytes": peak_bytes[0],
        "read": loaded_bytes[0],
        "saved": sum(weight.nbytes for weight in gathered.values()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"zero_stage": 3, "dtype": "bfloat16", "offload": "all"},
        {"zero_stage": 2, "dtype": "bfloat16"},
        {"zero_stage": 0, "dtype": "float32"},
        # Stage 1 holds whole gradients only during the backward pass, before the moment of the measurement.
        {"zero_stage": 3, "dtype": "float32"},
        {"zero_stage": 2, "dtype": "bfloat16", "offload": "optimizer"},
        {"zero_stage": 0, "dtype": "bfloat16", "lora_rank": 8},
        {"zero_stage": 2, "dtype": "bfloat16", "lora_rank": 8, "quantization": "4bit"},
        {"zero_stage": 0, "dtype": "float32", "lora_rank": 8, "quantization": "8bit"},
    ],
    ids=lambda changed: " ".join(map(str, changed.values())),
)
def test_estimated_memory_matches_a_worker(changed: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama", hidden_size=320, intermediate_size=960, num_hidden_layers=12, num_attention_heads=4)
    model.save_pretrained(tmp_path)
    (port,) = free_ports(1)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, json.dumps([r, port, str(tmp_path), changed])],
            cwd=ROOT,
            env=environment(tmp_path, LOCAL_RANK=str(r), RANK=str(r), WORLD_SIZE="2", PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    outputs = [worker.communicate(timeout=TIMEOUT_S) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs[0][1][-3000:]
    measured = json.loads(outputs[0][0].splitlines()[-1])
    config = TrainConfig(**WORKER_SETTINGS, **changed)
    shape = shape_from_config(model.config.to_dict(), "tiny")
    memory = estimate_training_memory(shape, config, 2)
    # On a CPU, offloaded tensors share the memory; gathered weights are released before the step.
    gathered_weights = dtype_bytes(config.dtype) * shape.parameters if config.zero_stage == 3 else 0
    estimated = memory.training + memory.offloaded - memory.activations - gathered_weights
    # Small layers have more scales for their bits than the layers that the estimate is for.
    assert measured["bytes"] == pytest.approx(estimated, rel=0.06 if config.quantization == "none" else 0.12)
    assert measured["saved"] == pytest.approx(memory.saving, rel=1e-3)
    if config.zero_stage < 3:
        # The scales of quantized weights are not parameters.
        assert measured["read"] == pytest.approx(memory.loading, rel=1e-3 if config.quantization == "none" else 0.05)
    else:
        assert measured["read"] <= 1.01 * memory.saving / 2, "each worker holds its shard only"


def build_on_meta(size: str, config: TrainConfig) -> torch.nn.Module:
    """A published model prepared for training, on the meta device, which holds shapes but no values."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            llama_config(SHAPES[size]), dtype=getattr(torch, config.dtype)
        )
        prepare_model(model, config)
    return model.bfloat16()  # DeepSpeed casts LoRA's weights too


def held_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


SIZES_IN_PLANS = [pytest.param("1B", marks=pytest.mark.slow), "8B", pytest.param("70B", marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES_IN_PLANS)
@pytest.mark.parametrize(
    "changed",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "all"},
        {"zero_stage": 0, "lora_rank": 16},
        {"zero_stage": 3, "lora_rank": 16},
        {"zero_stage": 2, "trainable": "attention"},
    ],
    ids=lambda changed: " ".join(map(str, changed.values())),
)
def test_plan_of_published_models_equals_the_tensors_of_torch(size: str, changed: dict[str, Any]) -> None:
    workers, stage = 8, changed["zero_stage"]
    config = TrainConfig(dtype="bfloat16", num_workers=workers, batch_size=128, micro_batch_size=16, **changed)
    model = build_on_meta(size, config)
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    masters = [torch.nn.Parameter(parameter.float()) for parameter in trained]
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW(masters)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    shards = {first: workers if stage >= first else 1 for first in (1, 2, 3)}
    weights = held_bytes(model.parameters()) // shards[3]
    state = held_bytes([*masters, *moments]) // shards[1]
    memory = estimate_training_memory(SHAPES[size], config, workers)
    if config.offload != "none":
        # DeepSpeed sums gradients in float32 in CPU memory.
        state += held_bytes(masters) // workers
        moved = weights if config.offload == "all" else 0
        assert memory.offloaded == pytest.approx(state + moved, rel=0.01)
        state, weights = 0, weights - moved
    assert memory.weights == pytest.approx(weights, rel=0.01)
    assert memory.gradients == pytest.approx(held_bytes(trained) // shards[2], rel=0.01)
    assert memory.optimizer == pytest.approx(state, rel=0.01)


@pytest.mark.parametrize("size", SIZES_IN_PLANS)
def test_plan_of_4_bit_weights_equals_the_tensors_of_bitsandbytes(size: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    config = TrainConfig(dtype="bfloat16", num_workers=8, batch_size=128, lora_rank=16, quantization="4bit")
    num_bytes, by_shape = 0, dict[tuple[int, ...], int]()
    for name, parameter in build_on_meta(size, config).named_parameters():
        dims = tuple(parameter.shape)
        if not name.endswith("base_layer.weight"):
            num_bytes += parameter.nbytes
            continue
        if dims not in by_shape:
            packed, state = functional.quantize_4bit(
                torch.ones(dims, dtype=torch.bfloat16), quant_type="nf4", compress_statistics=True
            )
            by_shape[dims] = held_bytes([packed, state.absmax, state.state2.absmax])
        num_bytes += by_shape[dims]
    memory = estimate_training_memory(SHAPES[size], config, 8)
    assert memory.weights == pytest.approx(num_bytes, rel=0.01)
    assert (
        memory.weights < 0.6 * estimate_training_memory(SHAPES[size], replace(config, quantization="none"), 8).weights
    )
