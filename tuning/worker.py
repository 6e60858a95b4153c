"""What each worker does: fine-tune one trajectory after another, evaluated every epoch.

A worker is a process of a group that is started once for a list of trajectories, since starting it takes longer than a
small training. A group that was interrupted goes on where the last saved state stands, and otherwise begins again.
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
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, read_replay_rows, read_rows
from tuning.distributed import broadcast, gather_strided, synchronized_forward
from tuning.evaluate import EvalSettings, evaluate_rows, pad_token_id
from tuning.finalize import finalize_run
from tuning.fitting import SET_ASIDE_FILE, filter_long_rows
from tuning.metrics import TrainMetrics
from tuning.records import (
    Prediction,
    SplitMetrics,
    accuracy,
    epochs_table,
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
"""Hands over the metrics of an epoch, and a folder with this worker's part of the state if it was saved."""


def train_runs(
    study: Folder,
    plans: Sequence[RunPlan],
    place: WorkerContext,
    report: ReportFn,
    group: Folder | None = None,
    is_preemption_pending: Callable[[], bool] = lambda: False,
) -> None:
    """Do all trainings of a list, one after another. Called by every worker of the group, in an initialised group.

    Args:
        group: folder with the states that an interrupted group saved that did the same list.
        is_leaving: whether a machine of the group will soon be taken away; asked by all workers after each epoch.
    """
    import torch

    if place.device == "cpu":
        torch.set_num_threads(1)  # workers share the cores; more threads than cores run ten times slower
    init_deepspeed()
    todo = [plan for plan in plans if not is_finished(study, plan)]
    later = broadcast(latest_states(group) if group and place.rank == 0 else {}, place)
    for plan in todo:
        states = [state for state in (later.get(plan.identity), plan.state) if state is not None]
        state = max(states, key=lambda state: state.progress.epoch, default=None)
        TrainingRun(study, plan, place, state, is_preemption_pending).run(report)


_INITIAL_SAVE_SECONDS = 0.2
"""What saving a state is taken to cost until it was measured."""


class TrainingRun:
    """One trajectory in one worker."""

    def __init__(
        self,
        study: Folder,
        plan: RunPlan,
        place: WorkerContext,
        saved: SavedState | None = None,
        is_preemption_pending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._started_at = time.monotonic()
        self._is_leaving = is_preemption_pending
        self._study, self._plan, self._place, self._config = study, plan, place, plan.config
        self._folder = run_folder(study, plan.run_id)
        self._is_main = place.rank == 0
        self._tokenizer = load_tokenizer(plan.model, trust_remote_code=self._config.trust_remote_code)
        context = context_length(plan.model, trust_remote_code=self._config.trust_remote_code)
        rows = [row for split in read_rows(study, self._config.variant).values() for row in split]
        fitting = filter_long_rows(rows, self._tokenizer, context, self._config)
        self._rows: list[QuestionRow] = fitting.rows
        self._examples, self._train_examples = fitting.examples, fitting.train_examples
        self._set_aside = fitting.set_aside
        replay = read_replay_rows(study, self._config.variant, self._config.replay_known, self._config.seed)
        self._replay: list[Example] = []
        if replay:
            fitting = filter_long_rows(replay, self._tokenizer, context, self._config)
            self._replay = fitting.examples
            self._set_aside = pa.concat_tables([self._set_aside, fitting.set_aside])
        self._epochs: list[list[SplitMetrics]] = []
        self._best, self._best_epoch = -1.0, 0
        self._trainer = self._load_trainer(saved)
        if self._is_main:
            record_runtime(self._folder, self._trainer.runtime)
        self._saved_at, self._has_saved = time.monotonic(), bool(self._epochs)
        self._save_seconds = _INITIAL_SAVE_SECONDS
        self._writer = CheckpointWriter(self._folder, self._tokenizer, is_writer=self._is_main)
        self._meters = TrainMetrics(plan.run_id) if self._is_main else None
        self._epoch_stats: list[EpochStats] = []
        self._evaluation_seconds = 0.0

    def _load_trainer(self, saved: SavedState | None) -> Trainer:
        """The model as it came, or as the saved state has it."""
        epochs = self._stored_epochs(saved.progress.epoch) if saved else None
        if saved is None or epochs is None:
            learner = self._create_trainer()  # first: a model that is refused leaves the run's folder as it was
            self._open(keep=False)
            return learner
        progress = saved.progress
        self._epochs = epochs
        self._best, self._best_epoch = progress.best_dev_accuracy, progress.best_dev_epoch
        learner = self._create_trainer()
        learner.load(Folder(saved.uri), self._train_examples[0])
        self._open(keep=True)  # not before: a state that is refused leaves the run as it was
        return learner

    def _open(self, *, keep: bool) -> None:
        if not self._is_main:
            return
        prepare_run_folder(self._study, self._plan, keep=keep)
        if self._set_aside.num_rows:
            self._folder.write_table(SET_ASIDE_FILE, self._set_aside)

    def _create_trainer(self) -> Trainer:
        return Trainer(self._plan.model, self._config, self._place, pad_token_id(self._tokenizer))

    def _stored_epochs(self, num_epochs: int) -> list[list[SplitMetrics]] | None:
        """Measures of the epochs before the state, if the run's folder has them all."""
        predictions = set(self._folder.child("predictions").names(".parquet"))
        whole = all(predictions_file_name(epoch) in predictions for epoch in range(1, num_epochs + 1))
        if not whole or not self._folder.exists("epochs.parquet"):
            return None
        return metrics_from_table(read_epochs(self._folder, with_loss=True), num_epochs)

    def run(self, report: ReportFn) -> None:
        """All epochs that are left; rank 0 writes the run's folder, its manifest last."""
        for epoch in range(len(self._epochs) + 1, self._config.epochs + 1):
            pace = self._trainer.epoch(self._train_examples, epoch, replay=self._replay)
            self._epoch_stats.append(pace)
            started_at = time.monotonic()
            verdicts = evaluate_distributed(
                self._trainer, self._tokenizer, self._rows, self._examples, self._config, self._place
            )
            self._evaluation_seconds += time.monotonic() - started_at
            self._epochs.append(broadcast(summarize(self._rows, verdicts) if self._is_main else [], self._place))
            is_last = epoch == self._config.epochs or self._are_policies_decided()
            self._save_checkpoints(epoch, is_last)
            metrics: dict[str, object] = {"run_id": self._plan.run_id, "epoch": epoch}
            if self._is_main:
                metrics |= self._record(epoch, verdicts, pace)
            report(metrics, None if is_last else self._save_state_if_due(epoch))
            if is_last:
                break
        self._end()

    def _are_policies_decided(self) -> bool:
        """Whether every policy that the training serves has its epoch."""
        stop_policies = self._plan.stop_policies
        return bool(stop_policies) and all_policies_decided(
            curve_from_accuracies([_epoch_accuracies(measures) for measures in self._epochs]), stop_policies
        )

    def _end(self) -> None:
        if self._config.keep_state:
            self._keep_state()
        if self._is_main:
            self._writer.finish()
            self._finish()
        self._trainer.engine.destroy()

    def _keep_state(self) -> None:
        """The state after the last epoch, in the run's folder; each worker brings its part."""
        part, kept = self._save_state(len(self._epochs)), self._folder.child("state")
        try:
            if self._is_main:
                kept.delete()
            broadcast(None, self._place)
            kept.add(part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        broadcast(None, self._place)

    def _save_checkpoints(self, epoch: int, is_last: bool) -> None:
        """Checkpoints that this epoch calls for; all workers bring their weights."""
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
        """This worker's part of the state, if it is time to save it.

        Once there is a state, a new best epoch is saved with it, so that going on never finds better weights than the
        epochs it knows of. Every epoch is saved when a machine is about to be taken away.
        """
        share, is_preemption_pending = self._config.state_share, self._is_leaving()
        is_time = share > 0 and time.monotonic() - self._saved_at >= self._save_seconds / share
        due = is_time or (share > 0 and is_preemption_pending)
        if not broadcast(due or (self._has_saved and self._best_epoch == epoch), self._place):
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
            num_workers=self._place.num_workers,
        )
        return save_state(self._trainer, progress, self._place.rank)

    def _record(self, epoch: int, verdicts: list[Prediction], pace: EpochStats) -> dict[str, object]:
        measures = self._epochs[-1]
        self._folder.child("predictions").write_table(
            predictions_file_name(epoch), predictions_table(self._rows, verdicts)
        )
        # Last, since it is what watchers look at.
        self._folder.write_table("epochs.parquet", epochs_table(self._plan.run_id, self._epochs))
        if self._meters:
            self._meters.record(epoch, measures, tokens=pace.tokens, seconds=pace.seconds)
        train_loss = next(measure.loss for measure in measures if measure.split == "train")
        found = {f"{split}_accuracy": accuracy(measures, split) for split in ("train", "dev", "test", "ood")}
        found |= {"train_loss": train_loss, "tokens_per_s": pace.tokens / pace.seconds}
        return {name: value for name, value in found.items() if value is not None}

    def _finish(self) -> None:
        ignored = ignored_model_settings(self._plan.model)
        finalize_run(
            self._study,
            self._plan,
            started_at=self._started_at,
            dropouts=self._trainer.dropouts,
            packed=self._trainer.forward.uses_packing,
            num_workers=self._place.num_workers,
            epochs_now=len(self._epoch_stats),
            tokens_now=sum(pace.tokens for pace in self._epoch_stats),
            training_seconds=round(sum(pace.seconds for pace in self._epoch_stats), 3),
            evaluation_seconds=round(self._evaluation_seconds, 3),
            **({"ignored_of_model": ignored} if ignored else {}),
        )


@wrap_library_errors("evaluating the model failed")
def evaluate_distributed(
    learner: Trainer,
    tokenizer: Any,
    rows: Sequence[QuestionRow],
    examples: Sequence[Example],
    config: TrainConfig,
    place: WorkerContext,
) -> list[Prediction]:
    """Verdicts on all rows, on the first worker; each takes its strided part, and all call this."""
    model = learner.model.eval()
    settings = EvalSettings(
        matcher=config.matcher,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        loss_of_all=config.loss_of_all,
    )
    own = slice(place.rank, None, place.num_workers)
    sharded = config.zero_stage == 3 and place.num_workers > 1
    with synchronized_forward(model) if sharded else nullcontext():
        verdicts = evaluate_rows(model, learner.forward, tokenizer, rows[own], examples[own], settings)
    return gather_strided(verdicts, len(rows), place)


def _epoch_accuracies(measures: Sequence[SplitMetrics]) -> EpochAccuracies:
    return {f"{measure.split}_{measure.category}": measure.num_correct / measure.num for measure in measures}
