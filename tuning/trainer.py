"""A model under DeepSpeed, and what it does in an epoch: the one import of deepspeed's engine.

Every random number comes from (seed, epoch, rank), so an epoch is the same whatever was done before it in the process.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slick.errors import wrap_library_errors
from slick.inference.devices import model_runtime
from slick.inference.packed.cpu_linear import use_onednn_linears
from slick.model_validation import check_causal
from slick.models import load_model
from slick.rng import derive_seed
from slick.storage import Folder
from tuning.config import TrainConfig, learning_rate_at
from tuning.data import Example, epoch_batches, micro_batches
from tuning.forward import ForwardRunner, PreparedBatch
from tuning.state_tensors import load_tensors, save_tensors
from tuning.trainable import disable_lora, prepare_model, trainable_parameters
from tuning.zero import deepspeed_config


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Which worker this is."""

    rank: int
    local_rank: int
    """Among the workers on this machine."""
    num_workers: int
    device: str
    """As torch names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStats:
    """What an epoch took."""

    tokens: int
    """Of prompts and answers, over all workers."""
    seconds: float


def init_deepspeed() -> None:
    """Let DeepSpeed join the process group of torch, without compiling C++.

    On Linux CPUs it builds its shared-memory collectives at start, which takes half a minute and fails where there is
    no compiler; gloo does the same work. There is no setting for it: this table of what may be built is what it asks.
    """
    import logging

    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Before any model is loaded: stage 3 asks for the size of the group while it spreads weights.
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class Trainer:
    """A model that is trained by a group of workers; all of them make the same calls in the same order."""

    @wrap_library_errors("the training cannot be started")
    def __init__(self, model: str, config: TrainConfig, place: WorkerContext, pad_id: int) -> None:
        """Load, validate and shard the model.

        Args:
            model: folder, hub id or GGUF file.
            pad_id: any token.

        Raises:
            ModelError: the model cannot be loaded, is not valid, or has no layers of the kind to be trained.
            EngineError: an error of a library, such as memory that is too small.
            SettingsError: settings that the model or the group contradict.
        """
        import deepspeed

        self._config, self._place = config, place
        settings = deepspeed_config(config, place.num_workers)
        with _sharded_loading(
            config, model, settings
        ):  # stage 3 spreads weights as they are read: no worker holds them all
            loaded = load_model(model, config.dtype, place.device, trust_remote_code=config.trust_remote_code)
        self.dropouts = prepare_model(loaded, config)
        use_onednn_linears(loaded)
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=loaded, model_parameters=trainable_parameters(loaded), config=settings
        )
        self.model: nn.Module = self.engine.module
        if config.zero_stage == 3:  # until now its weights were spread, and nothing could call it
            check_causal(self.model.eval(), model)
        self.forward = ForwardRunner(self.model, pad_id, packing=config.packing)
        self.runtime = model_runtime(
            self.model, torch.device(place.device), "slick packed (sdpa)" if self.forward.uses_packing else ""
        )
        self._teacher: ForwardRunner | None = None
        if config.distill_weight and not config.lora_rank:
            frozen = load_model(model, config.dtype, place.device, trust_remote_code=config.trust_remote_code)
            self._teacher = ForwardRunner(frozen, pad_id, packing=config.packing)

    def save(self, folder: str) -> None:
        """Write this worker's share of the weights and the optimizer's state; called by all workers."""
        save_tensors(self.engine, folder, rank=self._place.rank, num_workers=self._place.num_workers)

    def load(self, folder: Folder, example: Example) -> None:
        """Set weights and the optimizer's state to what a group of any size saved; called by all workers.

        Args:
            folder: with the shares of all workers that saved.
            example: any.

        Raises:
            StudyError: what was saved cannot be read, or is not of this model.
        """
        if self._config.zero_stage:
            self._create_optimizer_state(example)
        with folder.as_local_path() as local:
            load_tensors(self.engine, local, origin=str(folder))

    def _create_optimizer_state(self, example: Example) -> None:
        """An optimizer step that moves nothing: ZeRO creates the optimizer's state with its first step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0
        self.engine.train()
        for _ in range(self._config.gradient_accumulation_steps(self._place.num_workers)):
            with self.forward.rows([example]) as rows:
                self.engine.backward(0.0 * self._loss(rows, None))
            self.engine.step()

    @wrap_library_errors("training the model failed")
    def epoch(self, examples: Sequence[Example], epoch: int, *, replay: Sequence[Example] = ()) -> EpochStats:
        """One pass over the examples; each optimizer step is the mean loss over the answer tokens of its whole batch.

        Args:
            epoch: from 1.
            replay: examples that come after all others of the last epoch.

        Raises:
            EngineError: an error of a library.
        """
        config, place = self._config, self._place
        started_at = time.monotonic()
        torch.manual_seed(derive_seed(config.seed, "dropout", epoch, place.rank) >> 1)
        self.engine.train()
        steps_of = [-(-len(part) // config.batch_size) for part in (examples, replay)]
        num_steps = config.epochs * steps_of[0] + steps_of[1]
        step, tokens = (epoch - 1) * steps_of[0], 0
        for part in (examples, replay if epoch == config.epochs else ()):
            for rows in epoch_batches(len(part), config.batch_size, config.seed, epoch):
                for group in self.engine.optimizer.param_groups:
                    group["lr"] = learning_rate_at(config, step, num_steps)
                batch = [part[row] for row in rows]
                self._step(batch)
                tokens += sum(example.num_tokens for example in batch)
                step += 1
        if place.device != "cpu":
            torch.cuda.synchronize()
        return EpochStats(tokens=tokens, seconds=time.monotonic() - started_at)

    def _step(self, batch: Sequence[Example]) -> None:
        workers = self._place.num_workers
        for micro in micro_batches(
            batch,
            rank=self._place.rank,
            num_workers=workers,
            micro_batch_size_per_worker=self._config.micro_batch_size_per_worker(workers),
            gradient_accumulation_steps=self._config.gradient_accumulation_steps(workers),
        ):
            examples = list(micro.examples)
            teacher_KV = self._teacher_logits(examples) if self._config.distill_weight else None
            with self.forward.rows(examples) as rows, self._skip_gradient_sync():
                self.engine.backward(micro.weight * self._loss(rows, teacher_KV))
            self.engine.step()

    def _skip_gradient_sync(self) -> AbstractContextManager[None]:
        """One worker alone has no gradients to bring together with others', which would cost copying them all."""
        alone = self._place.num_workers == 1 and self._config.zero_stage == 0
        found: AbstractContextManager[None] = self.engine.no_sync() if alone else nullcontext()
        return found

    def _loss(self, rows: PreparedBatch, teacher_KV: Tensor | None) -> Tensor:
        logits_KV = self.forward.answer_logits(rows, self.engine).float()
        loss = functional.cross_entropy(logits_KV, rows.labels_K, reduction="sum")
        if teacher_KV is None:
            return loss
        return loss + self._config.distill_weight * kl_divergence(
            teacher_KV, logits_KV, temperature=self._config.distill_temperature
        )

    def _teacher_logits(self, examples: list[Example]) -> Tensor:
        forward = self._teacher or self.forward
        with torch.no_grad(), self._teacher_mode(), forward.rows(examples) as rows:
            return forward.answer_logits(rows).float()

    @contextmanager
    def _teacher_mode(self) -> Iterator[None]:
        """With LoRA, the frozen model is the trained one without LoRA's layers, and without dropout."""
        if self._teacher is not None:
            yield
            return
        self.model.eval()
        with disable_lora(self.model):
            yield
        self.model.train()


def kl_divergence(teacher_KV: Tensor, student_KV: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) in nats, summed over tokens.

    Args:
        teacher_KV: logits, shape (tokens, vocabulary).
        student_KV: logits, shape (tokens, vocabulary).
        temperature: of both distributions.
    """
    return functional.kl_div(
        (student_KV / temperature).log_softmax(dim=1),
        (teacher_KV / temperature).log_softmax(dim=1),
        reduction="sum",
        log_target=True,
    )


@contextmanager
def _sharded_loading(config: TrainConfig, model: str, settings: dict[str, object]) -> Iterator[None]:
    """Within, models are spread over the workers while they are read, if ZeRO stage 3 will want them so."""
    if config.zero_stage != 3 or model.lower().endswith(".gguf"):  # weights of a GGUF file are unpacked whole
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    keep = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        del keep
        unset_hf_deepspeed_config()
