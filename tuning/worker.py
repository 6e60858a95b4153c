"""What each worker does: fine-tune one trajectory after another, evaluated every epoch, with DeepSpeed.

The one import of deepspeed. A worker is a process of a group that is started once for a list of trajectories, since
starting it takes longer than a small training. Every random number comes from (seed, epoch, rank), so a trajectory is
the same alone or in a list.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slick.draws import numpy_seed
from slick.errors import SettingsError
from slick.models import load_model, load_tokenizer
from slick.storage import Folder
from slick.study import Manifest, finish
from tuning.config import TrainConfig, learning_rate_at
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows, pad_token
from tuning.examples import Example, epoch_batches, micro_batches
from tuning.records import Measure, Verdict, accuracy, epochs_table, predictions_table, summarize
from tuning.rows import Row, read_rows
from tuning.runs import RunPlan, open_run, run_folder
from tuning.zero import deepspeed_settings

if TYPE_CHECKING:
    from torch import nn

Report = Callable[[dict[str, object]], None]
"""Hands the metrics of an epoch to whoever watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which worker this is."""

    rank: int
    num_workers: int
    device: str
    """As torch names it."""


def train_runs(study: Folder, plans: Sequence[RunPlan], place: Place, report: Report) -> None:
    """Do all trainings of a list, one after another. Called by every worker of the group, in an initialised group."""
    import torch

    if place.device == "cpu":
        torch.set_num_threads(1)  # workers share the cores; more threads than cores run ten times slower
    prepare_deepspeed()
    for plan in plans:
        Training(study, plan, place).run(report)


def prepare_deepspeed() -> None:
    """Keep DeepSpeed from compiling C++ when it starts.

    On Linux CPUs it builds its shared-memory collectives at start, which takes half a minute and fails where there is
    no compiler; gloo does the same work. There is no setting for it: this table of what may be built is what it asks.
    """
    import logging

    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


class Training:
    """One trajectory in one worker."""

    def __init__(self, study: Folder, plan: RunPlan, place: Place) -> None:
        self._started_at = time.monotonic()
        self._study, self._plan, self._place, self._config = study, plan, place, plan.config
        self._folder = run_folder(study, plan.run_id)
        trust = {"trust_remote_code": self._config.trust_remote_code}
        self._tokenizer = load_tokenizer(plan.model, **trust)
        rows = read_rows(study, self._config.variant)
        self._rows: list[Row] = [row for split in rows.values() for row in split]
        self._examples = encode_rows(self._rows, self._tokenizer)
        self._train_examples = self._examples[: len(rows["train"])]
        model = load_model(plan.model, "float32", place.device, **trust)
        self.dropouts = set_dropout(model, self._config.dropout)
        self.engine = start_engine(model, self._config, place)
        # Sharded parameters cannot answer row by row, so stage 3 evaluates a second, whole copy on each worker.
        sharded = self._config.zero_stage == 3
        self._whole: Any = (
            load_model(plan.model, self._config.dtype, place.device, **trust) if sharded else self.engine.module
        )
        self._epochs: list[list[Measure]] = []
        self._best = -1.0
        self._best_epoch = 0

    def run(self, report: Report) -> None:
        """All epochs; rank 0 writes the run's folder, its manifest last."""
        if self._place.rank == 0:
            open_run(self._study, self._plan)
        for epoch in range(1, self._config.epochs + 1):
            train_epoch(self.engine, self._train_examples, self._config, self._place, epoch, pad_token(self._tokenizer))
            verdicts = self._evaluate()
            metrics: dict[str, object] = {"run_id": self._plan.run_id, "epoch": epoch}
            if self._place.rank == 0:
                metrics |= self._record(epoch, verdicts)
            report(metrics)
        if self._place.rank == 0:
            self._finish()
        self.engine.destroy()

    def _evaluate(self) -> list[Verdict]:
        """Verdicts on all rows, on rank 0; each worker takes its strided part."""
        import torch.distributed as dist

        config, rank, num_workers = self._config, self._place.rank, self._place.num_workers
        if config.zero_stage == 3:
            gather_into(self._whole, self.engine.module)
        self._whole.eval()
        settings = EvalSettings(
            matcher=config.matcher, max_new_tokens=config.max_new_tokens, batch_rows=config.eval_batch_size
        )
        own = evaluate_rows(
            self._whole, self._tokenizer, self._rows[rank::num_workers], self._examples[rank::num_workers], settings
        )
        if num_workers == 1:
            return own
        parts: list[list[Verdict]] | None = [[]] * num_workers if rank == 0 else None
        dist.gather_object(own, parts)
        found: list[Verdict] = []
        if parts is not None:
            found = [parts[i % num_workers][i // num_workers] for i in range(len(self._rows))]
        return found

    def _record(self, epoch: int, verdicts: list[Verdict]) -> dict[str, object]:
        measures = summarize(self._rows, verdicts)
        self._epochs.append(measures)
        self._folder.child("predictions").write_table(
            f"epoch-{epoch:03d}.parquet", predictions_table(self._rows, verdicts)
        )
        dev = accuracy(measures, "dev")
        assert dev is not None  # read_rows refuses a study without dev questions
        if dev > self._best:
            self._best, self._best_epoch = dev, epoch
            if self._config.keep_checkpoints in ("both", "best"):
                self._save("checkpoint-best")
        if epoch == self._config.epochs and self._config.keep_checkpoints in ("both", "last"):
            self._save("checkpoint-last")
        # Last, since it is what watchers look at.
        self._folder.write_table("epochs.parquet", epochs_table(self._plan.run_id, self._epochs))
        train_loss = next(measure.loss for measure in measures if measure.split == "train")
        found = {f"{split}_accuracy": accuracy(measures, split) for split in ("train", "dev", "test", "ood")}
        return {name: value for name, value in (found | {"train_loss": train_loss}).items() if value is not None}

    def _save(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as part:
            self._whole.save_pretrained(part)
            self._tokenizer.save_pretrained(part)
            self._folder.child(name).upload(part)

    def _finish(self) -> Manifest:
        train = accuracy(self._epochs[-1], "train")
        counts = {
            "epochs": len(self._epochs),
            "train_rows": len(self._train_examples),
            "evaluated_rows": len(self._rows),
            "best_dev_epoch": self._best_epoch,
            "best_dev_accuracy": self._best,
            "final_train_accuracy": train,
            "converged": train == 1.0,
            "dropouts": self.dropouts,
        }
        return finish(
            self._folder,
            "finetune",
            self._plan.identity,
            settings=self._config,
            inputs=self._plan.inputs,
            counts=counts,
            started_at=self._started_at,
        )


def set_dropout(model: "nn.Module", share: float) -> list[str]:
    """Put `share` into every dropout of the model: its Dropout layers, and rates that attention layers keep as numbers.

    Models of the Llama family have dropout in attention only; nothing is added to an architecture. The configuration
    that is saved with checkpoints stays as it was.

    Returns:
        Sorted kinds of what was set, such as `LlamaAttention.attention_dropout`; empty if the model has no dropout.
    """
    from torch import nn

    found = set()
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, nn.Dropout):
            module.p = share
            found.add(kind)
            continue
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, share)
                found.add(f"{kind}.{name}")
    return sorted(found)


def start_engine(model: "nn.Module", config: TrainConfig, place: Place) -> Any:
    """The model under DeepSpeed. ZeRO partitions start from the same weights on every worker."""
    import deepspeed

    if place.num_workers != config.num_workers:
        raise SettingsError(f"the group has {place.num_workers} workers, the settings ask for {config.num_workers}")
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config=deepspeed_settings(config)
    )
    return engine


def train_epoch(
    engine: Any, examples: Sequence[Example], config: TrainConfig, place: Place, epoch: int, pad_id: int
) -> None:
    """One pass over the examples; each optimizer step is the mean loss over the answer tokens of its whole batch."""
    import torch

    torch.manual_seed(numpy_seed(config.seed, "dropout", epoch, place.rank) >> 1)
    engine.train()
    steps = -(-len(examples) // config.batch_size)
    for i, rows in enumerate(epoch_batches(len(examples), config.batch_size, config.seed, epoch)):
        rate = learning_rate_at(config, (epoch - 1) * steps + i, config.epochs * steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        for micro in micro_batches(
            [examples[row] for row in rows],
            rank=place.rank,
            num_workers=place.num_workers,
            micro_rows=config.micro_rows,
            accumulation=config.accumulation,
            pad_id=pad_id,
        ):
            engine.backward(answer_loss(engine, micro, place.device))
            engine.step()


def answer_loss(model: Any, micro: Any, device: str) -> Any:
    """The micro batch's share of the whole batch's mean loss; see `MicroBatch.weight`."""
    import torch
    from torch.nn import functional

    batch = micro.batch
    logits_BTV = model(
        input_ids=torch.from_numpy(batch.input_ids_BT).to(device),
        attention_mask=torch.from_numpy(batch.mask_BT).to(device),
        use_cache=False,
    ).logits
    labels_BT = torch.from_numpy(batch.labels_BT).to(device)
    total = functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return total * micro.weight


def gather_into(whole: "nn.Module", sharded: "nn.Module") -> None:
    """Copy the parameters of a model under ZeRO stage 3 into a whole one of the same kind; called by all workers."""
    import deepspeed
    import torch

    targets = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in sharded.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                targets[name].copy_(parameter)
