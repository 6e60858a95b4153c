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

from slick.errors import library_errors
from slick.models import context_length, ignored_of, load_tokenizer
from slick.storage import Folder
from slick.study_files import read_epochs
from tuning.checkpoints import CheckpointWriter
from tuning.config import TrainConfig
from tuning.ending import end_run
from tuning.epochs import Accuracies, all_decided, curve_from
from tuning.evaluate import EvalSettings, evaluate_rows, pad_token
from tuning.examples import Example
from tuning.fitting import SET_ASIDE, fitting_rows
from tuning.group import agree, gather_strided
from tuning.learning import Learner, Pace, Place, prepare_deepspeed
from tuning.lockstep import in_lockstep
from tuning.meters import TrainMeters
from tuning.records import (
    Measure,
    Verdict,
    accuracy,
    epochs_table,
    measures_of,
    predictions_name,
    predictions_table,
    summarize,
)
from tuning.rows import Row, read_replay, read_rows
from tuning.runs import RunPlan, add_runtime, is_finished, open_run, run_folder
from tuning.state import Progress, SavedState, save_state, states_of

Report = Callable[[dict[str, object], str | None], None]
"""Hands over the metrics of an epoch, and a folder with this worker's part of the state if it was saved."""


def train_runs(
    study: Folder,
    plans: Sequence[RunPlan],
    place: Place,
    report: Report,
    group: Folder | None = None,
    is_leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Do all trainings of a list, one after another. Called by every worker of the group, in an initialised group.

    Args:
        group: folder with the states that an interrupted group saved that did the same list.
        is_leaving: whether a machine of the group will soon be taken away; asked by all workers after each epoch.
    """
    import torch

    if place.device == "cpu":
        torch.set_num_threads(1)  # workers share the cores; more threads than cores run ten times slower
    prepare_deepspeed()
    todo = [plan for plan in plans if not is_finished(study, plan)]
    later = agree(states_of(group) if group and place.rank == 0 else {}, place)
    for plan in todo:
        states = [state for state in (later.get(plan.identity), plan.state) if state is not None]
        state = max(states, key=lambda state: state.progress.epoch, default=None)
        Training(study, plan, place, state, is_leaving).run(report)


_FIRST_SAVING_S = 0.2
"""What saving a state is taken to cost until it was measured."""


class Training:
    """One trajectory in one worker."""

    def __init__(
        self,
        study: Folder,
        plan: RunPlan,
        place: Place,
        saved: SavedState | None = None,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._started_at = time.monotonic()
        self._is_leaving = is_leaving
        self._study, self._plan, self._place, self._config = study, plan, place, plan.config
        self._folder = run_folder(study, plan.run_id)
        self._is_first = place.rank == 0
        self._tokenizer = load_tokenizer(plan.model, trust_remote_code=self._config.trust_remote_code)
        context = context_length(plan.model, trust_remote_code=self._config.trust_remote_code)
        rows = [row for split in read_rows(study, self._config.variant).values() for row in split]
        fitting = fitting_rows(rows, self._tokenizer, context, self._config)
        self._rows: list[Row] = fitting.rows
        self._examples, self._train_examples = fitting.examples, fitting.train_examples
        self._set_aside = fitting.set_aside
        replay = read_replay(study, self._config.variant, self._config.replay_known, self._config.seed)
        self._replay: list[Example] = []
        if replay:
            fitting = fitting_rows(replay, self._tokenizer, context, self._config)
            self._replay = fitting.examples
            self._set_aside = pa.concat_tables([self._set_aside, fitting.set_aside])
        self._epochs: list[list[Measure]] = []
        self._best, self._best_epoch = -1.0, 0
        self._learner = self._start(saved)
        if self._is_first:
            add_runtime(self._folder, self._learner.runtime)
        self._saved_at, self._has_saved = time.monotonic(), bool(self._epochs)
        self._saving_s = _FIRST_SAVING_S
        self._writer = CheckpointWriter(self._folder, self._tokenizer, writes=self._is_first)
        self._meters = TrainMeters(plan.run_id) if self._is_first else None
        self._paces: list[Pace] = []
        self._evaluated_s = 0.0

    def _start(self, saved: SavedState | None) -> Learner:
        """The model as it came, or as the saved state has it."""
        epochs = self._kept_epochs(saved.progress.epoch) if saved else None
        if saved is None or epochs is None:
            learner = self._learn()  # first: a model that is refused leaves the run's folder as it was
            self._open(keep=False)
            return learner
        progress = saved.progress
        self._epochs = epochs
        self._best, self._best_epoch = progress.best_dev_accuracy, progress.best_dev_epoch
        learner = self._learn()
        learner.load(Folder(saved.uri), self._train_examples[0])
        self._open(keep=True)  # not before: a state that is refused leaves the run as it was
        return learner

    def _open(self, *, keep: bool) -> None:
        if not self._is_first:
            return
        open_run(self._study, self._plan, keep=keep)
        if self._set_aside.num_rows:
            self._folder.write_table(SET_ASIDE, self._set_aside)

    def _learn(self) -> Learner:
        return Learner(self._plan.model, self._config, self._place, pad_token(self._tokenizer))

    def _kept_epochs(self, num_epochs: int) -> list[list[Measure]] | None:
        """Measures of the epochs before the state, if the run's folder has them all."""
        predictions = set(self._folder.child("predictions").names(".parquet"))
        whole = all(predictions_name(epoch) in predictions for epoch in range(1, num_epochs + 1))
        if not whole or not self._folder.exists("epochs.parquet"):
            return None
        return measures_of(read_epochs(self._folder, with_loss=True), num_epochs)

    def run(self, report: Report) -> None:
        """All epochs that are left; rank 0 writes the run's folder, its manifest last."""
        for epoch in range(len(self._epochs) + 1, self._config.epochs + 1):
            pace = self._learner.epoch(self._train_examples, epoch, replay=self._replay)
            self._paces.append(pace)
            started_at = time.monotonic()
            verdicts = evaluate_in_group(
                self._learner, self._tokenizer, self._rows, self._examples, self._config, self._place
            )
            self._evaluated_s += time.monotonic() - started_at
            self._epochs.append(agree(summarize(self._rows, verdicts) if self._is_first else [], self._place))
            is_last = epoch == self._config.epochs or self._has_decided()
            self._save_models(epoch, is_last)
            metrics: dict[str, object] = {"run_id": self._plan.run_id, "epoch": epoch}
            if self._is_first:
                metrics |= self._record(epoch, verdicts, pace)
            report(metrics, None if is_last else self._save_state_if_due(epoch))
            if is_last:
                break
        self._end()

    def _has_decided(self) -> bool:
        """Whether every policy that the training serves has its epoch."""
        stops = self._plan.stops
        return bool(stops) and all_decided(curve_from([_accuracies(measures) for measures in self._epochs]), stops)

    def _end(self) -> None:
        if self._config.keep_state:
            self._keep_state()
        if self._is_first:
            self._writer.finish()
            self._finish()
        self._learner.engine.destroy()

    def _keep_state(self) -> None:
        """The state after the last epoch, in the run's folder; each worker brings its part."""
        part, kept = self._save_state(len(self._epochs)), self._folder.child("state")
        try:
            if self._is_first:
                kept.delete()
            agree(None, self._place)
            kept.add(part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        agree(None, self._place)

    def _save_models(self, epoch: int, is_last: bool) -> None:
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
            self._writer.save(self._learner.model, *names)

    def _save_state_if_due(self, epoch: int) -> str | None:
        """This worker's part of the state, if it is time to save it.

        Once there is a state, a new best epoch is saved with it, so that going on never finds better weights than the
        epochs it knows of. Every epoch is saved when a machine is about to be taken away.
        """
        share, is_leaving = self._config.state_share, self._is_leaving()
        is_time = share > 0 and time.monotonic() - self._saved_at >= self._saving_s / share
        due = is_time or (share > 0 and is_leaving)
        if not agree(due or (self._has_saved and self._best_epoch == epoch), self._place):
            return None
        started_at = time.monotonic()
        folder = self._save_state(epoch)
        self._saved_at, self._has_saved = time.monotonic(), True
        self._saving_s = self._saved_at - started_at
        return folder

    def _save_state(self, epoch: int) -> str:
        progress = Progress(
            identity=self._plan.identity,
            epoch=epoch,
            best_dev_accuracy=self._best,
            best_dev_epoch=self._best_epoch,
            num_workers=self._place.num_workers,
        )
        return save_state(self._learner, progress, self._place.rank)

    def _record(self, epoch: int, verdicts: list[Verdict], pace: Pace) -> dict[str, object]:
        measures = self._epochs[-1]
        self._folder.child("predictions").write_table(predictions_name(epoch), predictions_table(self._rows, verdicts))
        # Last, since it is what watchers look at.
        self._folder.write_table("epochs.parquet", epochs_table(self._plan.run_id, self._epochs))
        if self._meters:
            self._meters.record(epoch, measures, tokens=pace.tokens, seconds=pace.seconds)
        train_loss = next(measure.loss for measure in measures if measure.split == "train")
        found = {f"{split}_accuracy": accuracy(measures, split) for split in ("train", "dev", "test", "ood")}
        found |= {"train_loss": train_loss, "tokens_per_s": pace.tokens / pace.seconds}
        return {name: value for name, value in found.items() if value is not None}

    def _finish(self) -> None:
        ignored = ignored_of(self._plan.model)
        end_run(
            self._study,
            self._plan,
            started_at=self._started_at,
            dropouts=self._learner.dropouts,
            packed=self._learner.forward.packs,
            num_workers=self._place.num_workers,
            epochs_now=len(self._paces),
            tokens_now=sum(pace.tokens for pace in self._paces),
            training_seconds=round(sum(pace.seconds for pace in self._paces), 3),
            evaluation_seconds=round(self._evaluated_s, 3),
            **({"ignored_of_model": ignored} if ignored else {}),
        )


@library_errors("evaluating the model failed")
def evaluate_in_group(
    learner: Learner,
    tokenizer: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    config: TrainConfig,
    place: Place,
) -> list[Verdict]:
    """Verdicts on all rows, on the first worker; each takes its strided part, and all call this."""
    model = learner.model.eval()
    settings = EvalSettings(
        matcher=config.matcher,
        max_new_tokens=config.max_new_tokens,
        batch_rows=config.eval_batch_size,
        loss_of_all=config.loss_of_all,
    )
    own = slice(place.rank, None, place.num_workers)
    sharded = config.zero_stage == 3 and place.num_workers > 1
    with in_lockstep(model) if sharded else nullcontext():
        verdicts = evaluate_rows(model, learner.forward, tokenizer, rows[own], examples[own], settings)
    return gather_strided(verdicts, len(rows), place)


def _accuracies(measures: Sequence[Measure]) -> Accuracies:
    return {f"{measure.split}_{measure.category}": measure.num_correct / measure.num for measure in measures}
