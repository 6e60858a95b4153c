"""What each worker does: fine-tune one trajectory after another, evaluated every epoch.

A worker is a process of a group that is started once for a list of trajectories, since starting it takes longer than a
small training. A group that was interrupted goes on where the last saved state stands, and otherwise begins again.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from slick.models import load_tokenizer
from slick.storage import Folder
from slick.study import MANIFEST, Manifest, finish
from tuning.checkpoints import CheckpointWriter
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows, pad_token
from tuning.learning import Learner, Pace, Place, prepare_deepspeed
from tuning.lockstep import in_lockstep
from tuning.meters import TrainMeters
from tuning.records import (
    Measure,
    Verdict,
    accuracy,
    epochs_table,
    lost_table,
    measures_of,
    predictions_table,
    rows_table,
    summarize,
)
from tuning.rows import Row, read_replay, read_rows
from tuning.runs import RunPlan, open_run, run_folder
from tuning.state import Progress, load_state, needs_universal, read_progress, save_state, universal_state

Report = Callable[[dict[str, object], str | None], None]
"""Hands over the metrics of an epoch, and a folder with this worker's part of the state if it was saved."""


def train_runs(study: Folder, plans: Sequence[RunPlan], place: Place, report: Report, saved: str | None = None) -> None:
    """Do all trainings of a list, one after another. Called by every worker of the group, in an initialised group.

    Args:
        saved: folder of the state that was saved last, by a group that did the same list and was interrupted.
    """
    import torch

    if place.device == "cpu":
        torch.set_num_threads(1)  # workers share the cores; more threads than cores run ten times slower
    prepare_deepspeed()
    progress = read_progress(saved) if saved else None
    todo = [plan for plan in plans if not run_folder(study, plan.run_id).exists(MANIFEST)]
    for plan in todo:
        resumes = progress is not None and progress.identity == plan.identity
        Training(study, plan, place, saved if resumes else None).run(report)


class Training:
    """One trajectory in one worker."""

    def __init__(self, study: Folder, plan: RunPlan, place: Place, saved: str | None = None) -> None:
        self._started_at = time.monotonic()
        self._study, self._plan, self._place, self._config = study, plan, place, plan.config
        self._folder = run_folder(study, plan.run_id)
        self._is_first = place.rank == 0
        self._tokenizer = load_tokenizer(plan.model, trust_remote_code=self._config.trust_remote_code)
        rows = read_rows(study, self._config.variant)
        self._rows: list[Row] = [row for split in rows.values() for row in split]
        self._examples = encode_rows(self._rows, self._tokenizer)
        self._train_examples = self._examples[: len(rows["train"])]
        replay = read_replay(study, self._config.variant, self._config.replay_known, self._config.seed)
        self._replay = encode_rows(replay, self._tokenizer) if replay else []
        self._epochs: list[list[Measure]] = []
        self._best, self._best_epoch = -1.0, 0
        self._learner = self._start(saved)
        self._saved_at, self._has_saved = time.monotonic(), bool(self._epochs)
        self._writer = CheckpointWriter(self._folder, self._tokenizer, writes=self._is_first)
        self._meters = TrainMeters(plan.run_id) if self._is_first else None
        self._paces: list[Pace] = []
        self._evaluated_s = 0.0

    def _start(self, saved: str | None) -> Learner:
        """The model as it came, or as the saved state has it."""
        arguments = (self._plan.model, self._config, self._place, pad_token(self._tokenizer))
        progress = read_progress(saved) if saved else None
        epochs = self._kept_epochs(progress.epoch) if progress else None
        if saved is None or progress is None or epochs is None:
            if self._is_first:
                open_run(self._study, self._plan)
            return Learner(*arguments)
        self._epochs = epochs
        self._best, self._best_epoch = progress.best_dev_accuracy, progress.best_dev_epoch
        if not needs_universal(progress, self._config, self._place.num_workers):
            learner = Learner(*arguments)
            load_state(learner.engine, saved)
            return learner
        with universal_state(saved, self._place) as folder:
            learner = Learner(*arguments, universal=True)
            load_state(learner.engine, folder)
        return learner

    def _kept_epochs(self, num_epochs: int) -> list[list[Measure]] | None:
        if not self._folder.exists("epochs.parquet"):
            return None
        return measures_of(self._folder.read_table("epochs.parquet"), num_epochs)

    def run(self, report: Report) -> None:
        """All epochs that are left; rank 0 writes the run's folder, its manifest last."""
        for epoch in range(len(self._epochs) + 1, self._config.epochs + 1):
            pace = self._learner.epoch(self._train_examples, epoch, replay=self._replay)
            self._paces.append(pace)
            started_at = time.monotonic()
            verdicts = self._evaluate()
            self._evaluated_s += time.monotonic() - started_at
            measures = self._agree(summarize(self._rows, verdicts) if self._is_first else [])
            self._keep(epoch, measures)
            metrics: dict[str, object] = {"run_id": self._plan.run_id, "epoch": epoch}
            if self._is_first:
                metrics |= self._record(epoch, verdicts, pace)
            report(metrics, self._save_state(epoch))
        if self._is_first:
            self._writer.finish()
            self._finish()
        self._learner.engine.destroy()

    def _evaluate(self) -> list[Verdict]:
        """Verdicts on all rows, on rank 0; each worker takes its strided part."""
        import torch.distributed as dist

        config, rank, num_workers = self._config, self._place.rank, self._place.num_workers
        model = self._learner.model
        model.eval()
        settings = EvalSettings(
            matcher=config.matcher,
            max_new_tokens=config.max_new_tokens,
            batch_rows=config.eval_batch_size,
            loss_of_all=config.loss_of_all,
        )
        sharded = config.zero_stage == 3 and num_workers > 1
        with in_lockstep(model) if sharded else nullcontext():
            own = evaluate_rows(
                model,
                self._learner.forward,
                self._tokenizer,
                self._rows[rank::num_workers],
                self._examples[rank::num_workers],
                settings,
            )
        if num_workers == 1:
            return own
        parts: list[list[Verdict]] | None = [[]] * num_workers if self._is_first else None
        dist.gather_object(own, parts)
        found: list[Verdict] = []
        if parts is not None:
            found = [parts[i % num_workers][i // num_workers] for i in range(len(self._rows))]
        return found

    def _agree(self, value: Any) -> Any:
        """What rank 0 has, on all workers."""
        import torch.distributed as dist

        if self._place.num_workers == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def _keep(self, epoch: int, measures: list[Measure]) -> None:
        """Checkpoints that this epoch calls for; all workers bring their weights."""
        self._epochs.append(measures)
        dev = accuracy(measures, "dev")
        assert dev is not None  # read_rows refuses a study without dev questions
        keep, names = self._config.keep_checkpoints, []
        if dev > self._best:
            self._best, self._best_epoch = dev, epoch
            names += ["checkpoint-best"] if keep in ("both", "best") else []
        if epoch == self._config.epochs and keep in ("both", "last"):
            names.append("checkpoint-last")
        if names:
            self._writer.save(self._learner.model, *names)

    def _save_state(self, epoch: int) -> str | None:
        """This worker's part of the state, if it is time to save it.

        Once there is a state, a new best epoch is saved with it, so that going on never finds better weights than the
        epochs it knows of.
        """
        due = time.monotonic() - self._saved_at >= self._config.save_state_every_s
        due = self._agree(due or (self._has_saved and self._best_epoch == epoch))
        if not due or epoch == self._config.epochs:
            return None
        progress = Progress(
            identity=self._plan.identity,
            epoch=epoch,
            best_dev_accuracy=self._best,
            best_dev_epoch=self._best_epoch,
            num_workers=self._place.num_workers,
            zero_stage=self._config.zero_stage,
        )
        folder = save_state(self._learner.engine, progress)
        self._saved_at, self._has_saved = time.monotonic(), True
        return folder

    def _record(self, epoch: int, verdicts: list[Verdict], pace: Pace) -> dict[str, object]:
        measures = self._epochs[-1]
        self._folder.child("predictions").write_table(_predictions(epoch), predictions_table(self._rows, verdicts))
        # Last, since it is what watchers look at.
        self._folder.write_table("epochs.parquet", epochs_table(self._plan.run_id, self._epochs))
        if self._meters:
            self._meters.record(epoch, measures, tokens=pace.tokens, seconds=pace.seconds)
        train_loss = next(measure.loss for measure in measures if measure.split == "train")
        found = {f"{split}_accuracy": accuracy(measures, split) for split in ("train", "dev", "test", "ood")}
        found |= {"train_loss": train_loss, "tokens_per_s": pace.tokens / pace.seconds}
        return {name: value for name, value in found.items() if value is not None}

    def _finish(self) -> Manifest:
        predictions = self._folder.child("predictions")
        tables = [predictions.read_table(_predictions(epoch)) for epoch in range(1, self._config.epochs + 1)]
        self._folder.write_table("rows.parquet", rows_table(tables))
        self._folder.write_table("right_to_wrong.parquet", lost_table(tables[self._best_epoch - 1], tables[-1]))
        train = accuracy(self._epochs[-1], "train")
        counts = {
            "epochs": len(self._epochs),
            "train_rows": len(self._train_examples),
            "evaluated_rows": len(self._rows),
            "best_dev_epoch": self._best_epoch,
            "best_dev_accuracy": self._best,
            "final_train_accuracy": train,
            "converged": train == 1.0,
            "dropouts": self._learner.dropouts,
            "packed": self._learner.forward.packs,
            "num_workers": self._place.num_workers,
            "epochs_now": len(self._paces),
            "tokens_now": sum(pace.tokens for pace in self._paces),
            "training_seconds": round(sum(pace.seconds for pace in self._paces), 3),
            "evaluation_seconds": round(self._evaluated_s, 3),
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


def _predictions(epoch: int) -> str:
    return f"epoch-{epoch:03d}.parquet"
