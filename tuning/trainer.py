"""A model in a DeepSpeed engine, and the training of one epoch.

Every random number is derived from (seed, epoch, rank), so an epoch does not depend on what the process did before.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slick import compat
from slick.errors import SettingsError, wrap_library_errors
from slick.inference.devices import model_runtime
from slick.inference.packed.cpu_linear import use_onednn_linears
from slick.model_validation import check_causal
from slick.models import load_model
from slick.rng import derive_seed
from slick.storage import Folder
from tuning.config import TrainConfig, learning_rate_at
from tuning.data import Example, epoch_batches, micro_batches
from tuning.deepspeed_config import deepspeed_config
from tuning.forward import ForwardRunner, PreparedBatch
from tuning.liger import apply_liger
from tuning.state_tensors import load_tensors, save_tensors
from tuning.trainable import disable_lora, prepare_model, trainable_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """A worker's place in its group, and its device."""

    rank: int
    local_rank: int
    """Rank among the workers on the same node."""
    num_workers: int
    device: str
    """A torch device string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStats:
    """Size and duration of the training of one epoch."""

    tokens: int
    """Tokens of prompts and answers, over all workers."""
    seconds: float


def init_deepspeed() -> None:
    """Let DeepSpeed use the process group of torch, without compiling C++ extensions."""
    import logging

    import deepspeed

    compat.skip_shm_build()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Before any model is loaded: stage 3 needs the size of the group to partition weights.
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class Trainer:
    """A model that a group of workers trains; all workers make the same calls in the same order."""

    @wrap_library_errors("the training cannot be started")
    def __init__(
        self,
        model: str,
        config: TrainConfig,
        context: WorkerContext,
        pad_id: int,
        deepspeed_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Load, validate and shard the model.

        Args:
            model: folder, hub id or GGUF file.
            config: settings of the training.
            context: this worker.
            pad_id: any token id.
            deepspeed_settings: the content of the user's DeepSpeed file.

        Raises:
            ModelError: the model cannot be loaded, is not valid, or has no layers of the kind to be trained.
            EngineError: a library failed, for example for lack of memory.
            SettingsError: settings that contradict the model or the group.
        """
        import deepspeed

        if config.cpu_adam:
            check_cpu_adam_compiler()
        self._config, self._context = config, context
        settings = deepspeed_config(
            config, context.num_workers, file_settings=deepspeed_settings, on_gpu=context.device != "cpu"
        )
        # With stage 3 no worker holds the whole model. Weights of GGUF files are always unpacked whole.
        is_sharded = config.zero_stage == 3 and not model.lower().endswith(".gguf")
        with compat.sharded_loading(settings) if is_sharded else nullcontext():
            loaded = self._load_model(model)
        if config.liger:
            apply_liger(loaded, context.device)
        self.dropouts = prepare_model(loaded, config)
        use_onednn_linears(loaded)
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=loaded, model_parameters=trainable_parameters(loaded), config=settings
        )
        self.model: nn.Module = self.engine.module
        if config.zero_stage == 3:  # `load_model` cannot check sharded weights, which only the engine gathers
            check_causal(self.model.eval(), model)
        self.forward = ForwardRunner(self.model, pad_id, packing=config.packing, kernel=config.attention)
        self.runtime = model_runtime(self.model, torch.device(context.device), self.forward.attention_name)
        self._teacher: ForwardRunner | None = None
        if config.distill_weight and not config.lora_rank:
            self._teacher = ForwardRunner(
                self._load_model(model), pad_id, packing=config.packing, kernel=config.attention
            )

    def _load_model(self, model: str) -> nn.Module:
        config = self._config
        return load_model(
            model,
            config.dtype,
            self._context.device,
            trust_remote_code=config.trust_remote_code,
            attention=config.attention,
            quantization=config.quantization,
        )

    def save(self, folder: str) -> None:
        """Write this worker's share of the weights and the optimizer state into a folder; called by all workers."""
        save_tensors(self.engine, folder, rank=self._context.rank, num_workers=self._context.num_workers)

    def load(self, folder: Folder, example: Example) -> None:
        """Load weights and optimizer state that a group of any size saved; called by all workers.

        Args:
            folder: the shares of all workers that saved.
            example: any row, to initialize the optimizer with.

        Raises:
            StudyError: the state cannot be read, or is not of this model.
        """
        if self._config.zero_stage:
            self._create_optimizer_state(example)
        with folder.as_local_path() as local:
            load_tensors(self.engine, local, origin=str(folder))

    def _create_optimizer_state(self, example: Example) -> None:
        """Do an optimizer step with a learning rate of 0: ZeRO creates the optimizer state in its first step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0
        self.engine.train()
        for _ in range(self._config.gradient_accumulation_steps(self._context.num_workers)):
            with self.forward.rows([example]) as rows:
                self.engine.backward(self._loss(rows, (0.0,), None))
            self.engine.step()

    @wrap_library_errors("training the model failed")
    def epoch(self, examples: Sequence[Example], epoch: int, *, replay: Sequence[Example] = ()) -> EpochStats:
        """Train one pass over the examples, with the mean loss over the answer tokens of each batch, weighted by row.

        Args:
            examples: training rows with weights above 0.
            epoch: from 1.
            replay: rows that follow all others in the last epoch.

        Raises:
            EngineError: a library failed.
        """
        config, context = self._config, self._context
        started_at = time.monotonic()
        torch.manual_seed(derive_seed(config.seed, "dropout", epoch, context.rank) >> 1)
        self.engine.train()
        steps_per_epoch, replay_steps = (-(-len(part) // config.batch_size) for part in (examples, replay))
        num_steps = config.epochs * steps_per_epoch + replay_steps
        step, tokens = (epoch - 1) * steps_per_epoch, 0
        for part in (examples, replay if epoch == config.epochs else ()):
            for rows in epoch_batches(len(part), config.batch_size, config.seed, epoch):
                for group in self.engine.optimizer.param_groups:
                    group["lr"] = learning_rate_at(config, step, num_steps)
                batch = [part[row] for row in rows]
                self._step(batch)
                tokens += sum(example.num_tokens for example in batch)
                step += 1
        if context.device != "cpu":
            torch.cuda.synchronize()
        return EpochStats(tokens=tokens, seconds=time.monotonic() - started_at)

    def _step(self, batch: Sequence[Example]) -> None:
        workers = self._context.num_workers
        for micro in micro_batches(
            batch,
            rank=self._context.rank,
            num_workers=workers,
            micro_batch_size_per_worker=self._config.micro_batch_size_per_worker(workers),
            gradient_accumulation_steps=self._config.gradient_accumulation_steps(workers),
        ):
            examples = list(micro.examples)
            teacher_KV = self._teacher_logits(examples) if self._config.distill_weight else None
            with self.forward.rows(examples) as rows, self._skip_gradient_sync():
                self.engine.backward(self._loss(rows, micro.factors, teacher_KV))
            self.engine.step()

    def _skip_gradient_sync(self) -> AbstractContextManager[None]:
        """For a single worker, skip the reduction of gradients, which would copy them all."""
        is_single = self._context.num_workers == 1 and self._config.zero_stage == 0
        context: AbstractContextManager[None] = self.engine.no_sync() if is_single else nullcontext()
        return context

    def _loss(self, rows: PreparedBatch, factors: Sequence[float], teacher_KV: Tensor | None) -> Tensor:
        """The sum of the losses of the answer tokens, each multiplied by the factor of its row."""
        logits_KV = self.forward.answer_logits(rows, self.engine).float()
        loss_K = functional.cross_entropy(logits_KV, rows.labels_K, reduction="none")
        if teacher_KV is not None:
            loss_K = loss_K + self._config.distill_weight * kl_divergence(
                teacher_KV, logits_KV, temperature=self._config.distill_temperature
            )
        return weighted_sum(loss_K, rows.rows_K, factors)

    def _teacher_logits(self, examples: list[Example]) -> Tensor:
        forward = self._teacher or self.forward
        with torch.no_grad(), self._teacher_mode(), forward.rows(examples) as rows:
            return forward.answer_logits(rows).float()

    @contextmanager
    def _teacher_mode(self) -> Iterator[None]:
        """While active, a model with LoRA computes like the frozen model: without LoRA's layers and without dropout."""
        if self._teacher is not None:
            yield
            return
        self.model.eval()
        with disable_lora(self.model):
            yield
        self.model.train()


def check_cpu_adam_compiler() -> None:
    """Check that DeepSpeed can compile its AdamW for CPUs on this node.

    Raises:
        SettingsError: it cannot.
    """
    programs = {os.environ.get("CXX", "c++"): "a C++ compiler", "ninja": "ninja (pip install ninja)"}
    missing = [f"{label}: {program}" for program, label in programs.items() if shutil.which(program) is None]
    if missing:
        raise SettingsError(
            f"--cpu-adam is compiled on first use, but this node lacks {' and '.join(missing)}; install it on every "
            "node, or leave out --cpu-adam, which uses PyTorch's AdamW"
        )


def weighted_sum(loss_K: Tensor, rows_K: Tensor, factors: Sequence[float]) -> Tensor:
    """The sum of the losses of tokens, each multiplied by the factor of its row.

    If all factors are equal, the gradients are exactly those of the factor times the plain sum.

    Args:
        loss_K: loss of each token, shape (tokens,).
        rows_K: row of each token, shape (tokens,).
        factors: one per row.
    """
    factors_B = torch.tensor(factors, dtype=loss_K.dtype, device=loss_K.device)
    return (factors_B[rows_K] * loss_K).sum()


def kl_divergence(teacher_KV: Tensor, student_KV: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) in nats of each token, shape (tokens,).

    Args:
        teacher_KV: logits, shape (tokens, vocabulary).
        student_KV: logits, shape (tokens, vocabulary).
        temperature: temperature of both distributions.
    """
    return functional.kl_div(
        (student_KV / temperature).log_softmax(dim=1),
        (teacher_KV / temperature).log_softmax(dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
