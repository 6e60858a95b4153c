"""The work of each worker: fine-tune one trajectory after another, with an evaluation after every epoch.

A worker group is started once for a list of trajectories, because its start takes longer than a small training. An
interrupted group resumes from its last saved state, or starts again if there is none.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa

from slick.errors import wrap_library_errors
from slick.models import context_length, ignored_model_settings, load_tokenizer
from slick.storage import Folder
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, read_replay_rows, read_rows
from tuning.distributed import broadcast, gather_strided, synchronized_forward
from tuning.estimates import check_training_memory
from tuning.evaluate import EvalSettings, evaluate_rows, filter_long_rows, pad_token_id
from tuning.evaluation_epochs import TEST_SPLITS, needs_test_rows
from tuning.policies import AccuracyCurve
from tuning.records import (
    SET_ASIDE_FILE,
    Prediction,
    SplitMetrics,
    accuracy,
    epochs_table,
    finalize_run,
    metrics_from_table,
    predictions_file_name,
    predictions_table,
    summarize,
)
from tuning.runs import (
    EpochAccuracies,
    RunPlan,
    all_policies_decided,
    curve_from_accuracies,
    is_finished,
    prepare_run_folder,
    record_runtime,
    run_folder,
)
from tuning.state import SavedState, TrainingProgress, latest_states, save_state
from tuning.trainable import CheckpointWriter
from tuning.trainer import EpochStats, Trainer, WorkerContext, init_deepspeed

ReportFn = Callable[[dict[str, object], str | None], None]
"""Reports the metrics of an epoch, and the folder with this worker's part of the state if one was saved."""


class TrainMetrics:
    """Exports the epochs of one run from the worker that stores them. Every metric has the tag `run_id`."""

    def __init__(self, run_id: str) -> None:
        from ray.util import metrics

        run, rows = ("run_id",), ("run_id", "split", "category")
        self._metrics: dict[str, Any] = {
            "epoch": metrics.Gauge("slick_train_epoch", "Epochs finished.", tag_keys=run),
            "loss": metrics.Gauge("slick_train_loss", "Mean loss on the train rows, nats per token.", tag_keys=run),
            "accuracy": metrics.Gauge(
                "slick_train_accuracy",
                "Share of rows answered correctly, in [0, 1], after the last epoch that evaluated them.",
                tag_keys=rows,
            ),
            "tokens_per_s": metrics.Gauge("slick_train_tokens_per_s", "Tokens trained on per second.", tag_keys=run),
            "tokens": metrics.Counter("slick_train_tokens", "Tokens trained on.", tag_keys=run),
        }
        for metric in self._metrics.values():
            metric.set_default_tags({"run_id": run_id})

    def record(self, epoch: int, split_metrics: Sequence[SplitMetrics], *, tokens: int, seconds: float) -> None:
        """Export a finished epoch.

        Args:
            epoch: from 1.
            split_metrics: metrics of all splits and categories.
            tokens: tokens trained on, by all workers.
            seconds: duration of the training without the evaluation; above 0.
        """
        self._metrics["epoch"].set(epoch)
        for row in split_metrics:
            tags = {"split": row.split, "category": row.category}
            self._metrics["accuracy"].set(row.num_correct / row.num, tags=tags)
            if (row.split, row.category) == ("train", ALL_CATEGORIES) and row.loss is not None:
                self._metrics["loss"].set(row.loss)
        self._metrics["tokens_per_s"].set(tokens / seconds)
        if tokens:
            self._metrics["tokens"].inc(tokens)


def train_runs(
    study: Folder,
    plans: Sequence[RunPlan],
    context: WorkerContext,
    report: ReportFn,
    group: Folder | None = None,
    is_preemption_pending: Callable[[], bool] = lambda: False,
) -> None:
    """Run all unfinished trainings of a list, one after another. Called by every worker of an initialized group.

    Args:
        study: the study.
        plans: the trainings.
        context: this worker.
        report: called after every epoch.
        group: folder with the states of an interrupted group that did the same list.
        is_preemption_pending: whether a node of the group will soon be preempted; called after each epoch.
    """
    import torch

    if context.device == "cpu":
        torch.set_num_threads(1)  # workers share the cores; oversubscribed cores run ten times slower
    init_deepspeed()
    todo = [plan for plan in plans if not is_finished(study, plan)]
    group_states = broadcast(latest_states(group) if group and context.rank == 0 else {}, context)
    for plan in todo:
        states = [state for state in (group_states.get(plan.identity), plan.state) if state is not None]
        state = max(states, key=lambda state: state.progress.epoch, default=None)
        TrainingRun(study, plan, context, state, is_preemption_pending).run(report)


_INITIAL_SAVE_SECONDS = 0.2
"""Assumed duration of saving a state, until it was measured."""


class TrainingRun:
    """Trains one trajectory in one worker."""

    def __init__(
        self,
        study: Folder,
        plan: RunPlan,
        context: WorkerContext,
        state: SavedState | None = None,
        is_preemption_pending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._started_at = time.monotonic()
        self._is_preemption_pending = is_preemption_pending
        self._study, self._plan, self._context, self._config = study, plan, context, plan.config
        self._folder = run_folder(study, plan.run_id)
        self._is_main = context.rank == 0
        self._tokenizer = load_tokenizer(plan.model, trust_remote_code=self._config.trust_remote_code)
        max_tokens = context_length(plan.model, trust_remote_code=self._config.trust_remote_code)
        rows = [row for split in read_rows(study, self._config.variant).values() for row in split]
        filtered = filter_long_rows(rows, self._tokenizer, max_tokens, self._config)
        self._rows: list[QuestionRow] = filtered.rows
        self._examples, self._train_examples = filtered.examples, filtered.train_examples
        # The splits follow one another, so these are the train and dev rows.
        self._num_fit_rows = sum(row.split not in TEST_SPLITS for row in self._rows)
        self._set_aside, self._num_truncated = filtered.set_aside, filtered.num_truncated
        replay = read_replay_rows(study, self._config.variant, self._config.replay_known, self._config.seed)
        self._replay: list[Example] = []
        if replay:
            filtered = filter_long_rows(replay, self._tokenizer, max_tokens, self._config)
            self._replay, self._num_truncated = filtered.examples, self._num_truncated + filtered.num_truncated
            self._set_aside = pa.concat_tables([self._set_aside, filtered.set_aside])
        self._epochs: list[list[SplitMetrics]] = []
        self._best, self._best_epoch = -1.0, 0
        self._trainer = self._load_trainer(state)
        if self._is_main:
            record_runtime(self._folder, self._trainer.runtime)
        self._saved_at, self._has_saved = time.monotonic(), bool(self._epochs)
        self._save_seconds = _INITIAL_SAVE_SECONDS
        self._writer = CheckpointWriter(self._folder, self._tokenizer, is_writer=self._is_main)
        self._metrics_exporter = TrainMetrics(plan.run_id) if self._is_main else None
        self._epoch_stats: list[EpochStats] = []
        self._evaluation_seconds = 0.0
        self._num_evaluated = 0

    def _load_trainer(self, state: SavedState | None) -> Trainer:
        """A trainer of the base model, or of the saved state."""
        epochs = self._stored_epochs(state.progress.epoch) if state else None
        if state is None or epochs is None:
            trainer = self._create_trainer()  # before the folder is cleared: a refused model leaves it unchanged
            self._open(keep=False)
            return trainer
        self._epochs = epochs
        self._best, self._best_epoch = state.progress.best_dev_accuracy, state.progress.best_dev_epoch
        trainer = self._create_trainer()
        trainer.load(Folder(state.uri), self._train_examples[0])
        self._open(keep=True)  # only now: a refused state leaves the run unchanged
        return trainer

    def _open(self, *, keep: bool) -> None:
        if not self._is_main:
            return
        prepare_run_folder(self._study, self._plan, keep=keep)
        if self._set_aside.num_rows:
            self._folder.write_table(SET_ASIDE_FILE, self._set_aside)

    def _create_trainer(self) -> Trainer:
        import torch

        plan, context = self._plan, self._context
        if context.device != "cpu":
            share = plan.config.gpus_per_worker or 1.0
            memory = torch.cuda.get_device_properties(context.device).total_memory
            check_training_memory(plan.model, plan.config, context.num_workers, int(share * memory))
        return Trainer(plan.model, plan.config, self._context, pad_token_id(self._tokenizer), plan.deepspeed)

    def _stored_epochs(self, num_epochs: int) -> list[list[SplitMetrics]] | None:
        """Metrics of the epochs up to the restored state; None if some are missing from the run's folder."""
        files = set(self._folder.child("predictions").names(".parquet"))
        is_complete = all(predictions_file_name(epoch) in files for epoch in range(1, num_epochs + 1))
        if not is_complete or not self._folder.exists("epochs.parquet"):
            return None
        return metrics_from_table(read_epochs(self._folder, with_loss=True), num_epochs)

    def run(self, report: ReportFn) -> None:
        """Train the remaining epochs; rank 0 writes the run's folder, its manifest last."""
        for epoch in range(len(self._epochs) + 1, self._config.epochs + 1):
            stats = self._trainer.epoch(self._train_examples, epoch, replay=self._replay)
            self._epoch_stats.append(stats)
            predictions = self._evaluate(0, self._num_fit_rows)
            self._epochs.append(self._summarize(predictions))
            is_last = epoch == self._config.epochs or self._are_policies_decided()
            if self._num_fit_rows < len(self._rows) and needs_test_rows(
                self._config, self._curve(), self._plan.point_policies, is_last=is_last
            ):
                predictions += self._evaluate(self._num_fit_rows, len(self._rows))
                self._epochs[-1] = self._summarize(predictions)
            self._save_checkpoints(epoch, is_last)
            reported: dict[str, object] = {"run_id": self._plan.run_id, "epoch": epoch}
            if self._is_main:
                reported |= self._record(epoch, predictions, stats)
            report(reported, None if is_last else self._save_state_if_due(epoch))
            if is_last:
                break
        self._end()

    def _evaluate(self, start: int, end: int) -> list[Prediction]:
        """Predictions for the rows from `start` to before `end`, on the first worker; called by all workers.

        Test rows are always evaluated separately from the others, so that their batches, and with them the rounding,
        are the same whichever epochs evaluate them.
        """
        started_at = time.monotonic()
        rows, examples = self._rows[start:end], self._examples[start:end]
        predictions = evaluate_distributed(self._trainer, self._tokenizer, rows, examples, self._config, self._context)
        self._evaluation_seconds += time.monotonic() - started_at
        self._num_evaluated += len(rows)
        return predictions

    def _summarize(self, predictions: Sequence[Prediction]) -> list[SplitMetrics]:
        """The metrics of the rows that were evaluated, on all workers."""
        metrics = summarize(self._rows[: len(predictions)], predictions) if self._is_main else []
        return broadcast(metrics, self._context)

    def _curve(self) -> AccuracyCurve:
        """The accuracies of the epochs so far."""
        return curve_from_accuracies([_epoch_accuracies(metrics) for metrics in self._epochs])

    def _are_policies_decided(self) -> bool:
        """Whether every policy of a live training is decided."""
        stop_policies = self._plan.stop_policies
        return bool(stop_policies) and all_policies_decided(self._curve(), stop_policies)

    def _end(self) -> None:
        if self._config.keep_state:
            self._keep_state()
        if self._is_main:
            self._writer.finish()
            self._finish()
        self._trainer.engine.destroy()

    def _keep_state(self) -> None:
        """Store the state after the last epoch in the run's folder; each worker adds its part."""
        part, folder = self._save_state(len(self._epochs)), self._folder.child("state")
        try:
            if self._is_main:
                folder.delete()
            broadcast(None, self._context)  # a barrier
            folder.add(part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        broadcast(None, self._context)

    def _save_checkpoints(self, epoch: int, is_last: bool) -> None:
        """Save checkpoints after the best and the last epoch; called by all workers."""
        dev = accuracy(self._epochs[-1], "dev")
        assert dev is not None  # read_rows refuses a study without dev questions
        keep, names = self._config.keep_checkpoints, []
        if dev > self._best:
            self._best, self._best_epoch = dev, epoch
            names += ["checkpoint-best"] if keep in ("both", "best") else []
        if is_last and keep in ("both", "last"):
            names.append("checkpoint-last")
        if names:
            self._writer.save(self._trainer.model, *names)

    def _save_state_if_due(self, epoch: int) -> str | None:
        """Save this worker's part of the state if it is due; returns its local folder.

        After the first state, every new best epoch is saved too. Otherwise a resumed training could find a best
        checkpoint of an epoch after its state. While a preemption is pending, every epoch is saved.
        """
        share, is_preemption_pending = self._config.state_share, self._is_preemption_pending()
        is_time = share > 0 and time.monotonic() - self._saved_at >= self._save_seconds / share
        is_due = is_time or (share > 0 and is_preemption_pending)
        if not broadcast(is_due or (self._has_saved and self._best_epoch == epoch), self._context):
            return None
        started_at = time.monotonic()
        folder = self._save_state(epoch)
        self._saved_at, self._has_saved = time.monotonic(), True
        self._save_seconds = self._saved_at - started_at
        return folder

    def _save_state(self, epoch: int) -> str:
        progress = TrainingProgress(
            identity=self._plan.identity,
            epoch=epoch,
            best_dev_accuracy=self._best,
            best_dev_epoch=self._best_epoch,
            num_workers=self._context.num_workers,
        )
        return save_state(self._trainer, progress, self._context.rank)

    def _record(self, epoch: int, predictions: list[Prediction], stats: EpochStats) -> dict[str, object]:
        """Store the predictions and metrics of an epoch; returns the metrics to report."""
        metrics = self._epochs[-1]
        self._folder.child("predictions").write_table(
            predictions_file_name(epoch), predictions_table(self._rows[: len(predictions)], predictions)
        )
        # Last, because the driver watches this file.
        self._folder.write_table("epochs.parquet", epochs_table(self._plan.run_id, self._epochs))
        if self._metrics_exporter:
            self._metrics_exporter.record(epoch, metrics, tokens=stats.tokens, seconds=stats.seconds)
        train_loss = next(metric.loss for metric in metrics if metric.split == "train")
        reported = {f"{split}_accuracy": accuracy(metrics, split) for split in ("train", "dev", "test", "ood")}
        reported |= {"train_loss": train_loss, "tokens_per_s": stats.tokens / stats.seconds}
        return {name: value for name, value in reported.items() if value is not None}

    def _finish(self) -> None:
        ignored = ignored_model_settings(self._plan.model)
        finalize_run(
            self._study,
            self._plan,
            started_at=self._started_at,
            dropouts=self._trainer.dropouts,
            packed=self._trainer.forward.uses_packing,
            num_workers=self._context.num_workers,
            epochs_now=len(self._epoch_stats),
            tokens_now=sum(stats.tokens for stats in self._epoch_stats),
            training_seconds=round(sum(stats.seconds for stats in self._epoch_stats), 3),
            evaluation_seconds=round(self._evaluation_seconds, 3),
            rows_evaluated_now=self._num_evaluated,
            **({"ignored_of_model": ignored} if ignored else {}),
            **({"truncated_rows": self._num_truncated} if self._num_truncated else {}),
        )


@wrap_library_errors("evaluating the model failed")
def evaluate_distributed(
    trainer: Trainer,
    tokenizer: Any,
    rows: Sequence[QuestionRow],
    examples: Sequence[Example],
    config: TrainConfig,
    context: WorkerContext,
) -> list[Prediction]:
    """Predictions for all rows on the first worker; every worker calls this and evaluates a strided part."""
    model = trainer.model.eval()
    settings = EvalSettings(
        matcher=config.matcher,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        loss_of_all=config.loss_of_all,
    )
    own = slice(context.rank, None, context.num_workers)
    is_sharded = config.zero_stage == 3 and context.num_workers > 1
    with synchronized_forward(model) if is_sharded else nullcontext():
        predictions = evaluate_rows(model, trainer.forward, tokenizer, rows[own], examples[own], settings)
    return gather_strided(predictions, len(rows), context)


def _epoch_accuracies(metrics: Sequence[SplitMetrics]) -> EpochAccuracies:
    return {f"{metric.split}_{metric.category}": metric.num_correct / metric.num for metric in metrics}
