"""Trainings as they go on, seen from the driver: a line on the terminal, and curves for trackers."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slick.errors import StudyError
from slick.precision import Runtime
from slick.progress import ProgressReporter
from slick.storage import Folder
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES
from tuning.board import ProgressTable
from tuning.epochs import accuracies_from_rows
from tuning.runs import RunPlan, RuntimeRecord, is_finished, read_runtimes, run_folder
from tuning.tracking import ExperimentLogger


@contextmanager
def watch_progress(
    study: Folder, plans: Sequence[RunPlan], board: ProgressTable | None = None, interval_s: float = 1.0
) -> Iterator[None]:
    """Show epochs as any worker finishes them, and send their curves to trackers, until the block ends.

    Args:
        board: shows the trainings of a sweep, beside the line of progress.
    """
    done = threading.Event()
    settings = {plan.run_id: plan.config.identity() for plan in plans}
    with ExperimentLogger(study, settings, plans[0].config.track) as tracking:
        watcher = _Watcher(study, plans, tracking, board)
        thread = threading.Thread(target=watcher.run, args=(done, interval_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class _Watcher:
    def __init__(
        self, study: Folder, plans: Sequence[RunPlan], tracking: ExperimentLogger, board: ProgressTable | None
    ) -> None:
        self._study, self._plans, self._tracking, self._progress_table = study, list(plans), tracking, board
        # On a terminal the board tells the same, in lines that renew themselves as well.
        quiet = board is not None and sys.stderr.isatty()
        self._progress = ProgressReporter("finetune", sum(plan.config.epochs for plan in plans), "epochs", quiet=quiet)
        # What an interrupted training left: it goes on from there, or begins again with fewer.
        self._epochs_shown = {plan.run_id: len(self._epochs(plan)) for plan in plans}
        self._progress.resume_at(sum(self._epochs_shown.values()))
        self._started = {plan.run_id: self._last_runtime(plan) for plan in plans}
        self._runtimes: set[str] = set()

    def run(self, done: threading.Event, interval_s: float) -> None:
        last = False
        while not last:
            last = done.wait(interval_s)
            self._plans = [plan for plan in self._plans if not self._update_run(plan, last)]
            if self._progress_table:
                self._progress_table.show(self._progress.seconds_left, last=last)
        self._progress.finish()

    def _update_run(self, plan: RunPlan, last: bool) -> bool:
        """Show what is new of a run; True when it has ended."""
        ended = is_finished(self._study, plan)
        epochs = self._epochs(plan)
        new = len(epochs) - self._epochs_shown[plan.run_id]
        if new or ended or not self._runtimes:
            self._show_runtime(plan)
        if new:
            self._epochs_shown[plan.run_id] = len(epochs)
            self._progress.add(new, _progress_note(plan, epochs))
        if self._progress_table and (new or ended):
            stored = accuracies_from_rows(row for rows in epochs for row in rows)
            self._progress_table.update(plan.run_id, stored, is_finished=ended)
        if new or ended or last:
            self._tracking.log(plan.run_id, [row for rows in epochs for row in rows])
        if ended:
            self._tracking.finish(plan.run_id)
        return ended

    def _show_runtime(self, plan: RunPlan) -> None:
        """Print what a training runs on once it has started; the same line no more than once."""
        last = self._last_runtime(plan)
        if last and last != self._started[plan.run_id]:
            self._started[plan.run_id] = last
            runtime = str(Runtime(device=last["device"], dtype=last["dtype"], attention=last["attention"]))
            if runtime not in self._runtimes:
                self._runtimes.add(runtime)
                print(f"finetune: {runtime}", flush=True)

    def _last_runtime(self, plan: RunPlan) -> RuntimeRecord | None:
        try:
            return next(reversed(read_runtimes(run_folder(self._study, plan.run_id))), None)
        except StudyError:
            return None  # it begins anew at this very moment

    def _epochs(self, plan: RunPlan) -> list[list[dict[str, Any]]]:
        """Rows of each epoch in the run's `epochs.parquet`."""
        folder = run_folder(self._study, plan.run_id)
        if not folder.exists("epochs.parquet"):
            return []
        by_epoch: dict[int, list[dict[str, Any]]] = {}
        try:
            rows = read_epochs(folder, with_loss=True).to_pylist()
            accuracies_from_rows(rows)
        except StudyError:
            return []  # it begins anew at this very moment
        for row in rows:
            by_epoch.setdefault(row["epoch"], []).append(row)
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _progress_note(plan: RunPlan, epochs: Sequence[Sequence[dict[str, Any]]]) -> str:
    text = f"{plan.run_id} epoch {len(epochs)} of {plan.config.epochs}"
    for row in epochs[-1] if epochs else ():
        if (row["split"], row["category"]) == ("dev", ALL_CATEGORIES):
            text += f", dev accuracy {row['num_correct'] / row['num']:.3f}"
    return text
