"""Progress of training runs, shown by the driver: a table on the terminal, a message and metrics in Ray's dashboard."""

import logging
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from slick.cluster import set_job_message
from slick.errors import StudyError
from slick.formatting import ProgressReporter
from slick.precision import Runtime
from slick.storage import Folder
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES
from tuning.run_status import (
    DriverStatus,
    RunStatus,
    progress_line,
    read_accuracies_if_any,
    read_planned,
    run_state,
    run_status,
    status_table,
    write_driver_status,
)
from tuning.runs import (
    EpochAccuracies,
    RunPlan,
    RuntimeRecord,
    accuracies_from_rows,
    is_finished,
    read_runtimes,
    run_folder,
)
from tuning.trackers import ExperimentLogger

_LOG = logging.getLogger(__name__)

_WRITE_INTERVAL_S = 10.0
LOG_INTERVAL_S = 60.0
"""The shortest time between two tables if stderr is not a terminal."""
_LOG_INTERVAL_FRACTION = 0.05
"""If stderr is not a terminal, the table is repeated after this share of the elapsed time, to keep logs short."""
_MAX_ROWS = 24


class TrialTracker:
    """Trial state, updated by Tune callbacks and read by the progress table; keyed by index."""

    def __init__(self, packs: Sequence[Sequence[RunPlan]]) -> None:
        self.packs = packs
        self._lock = threading.Lock()
        self._active: set[int] = set()
        self._retries: dict[int, int] = {}
        self._failed: dict[int, str] = {}
        self._completed: set[int] = set()

    def __reduce__(self) -> tuple[type["TrialTracker"], tuple[Sequence[Sequence[RunPlan]]]]:
        """Pickles the packs only: Tune pickles its callbacks to restore them, but a sweep resumes without that."""
        return TrialTracker, (self.packs,)

    @property
    def num_retries(self) -> int:
        """Number of retries of all trials."""
        return sum(self._retries.values())

    def mark_started(self, index: int) -> None:
        """Record that a trial has started, or started again."""
        with self._lock:
            self._active.add(index)

    def mark_retried(self, index: int) -> None:
        """Record that a trial failed and will be retried."""
        with self._lock:
            self._retries[index] = self._retries.get(index, 0) + 1

    def mark_ended(self, index: int, error: str = "") -> None:
        """Record that a trial has ended.

        Args:
            index: the index of the trial.
            error: why it failed after its last retry; empty if it did not fail.
        """
        with self._lock:
            self._active.discard(index)
            if error:
                self._failed[index] = error
            else:
                self._completed.add(index)

    def completed_runs(self) -> set[str]:
        """Trainings of the trials that ended without an error; a scheduler may have stopped some early."""
        with self._lock:
            return {plan.run_id for index in self._completed for plan in self.packs[index]}

    def driver_status(self, finished: set[str], seconds_left: float, *, has_ended: bool) -> DriverStatus:
        """The status to store for readers of the study.

        Args:
            finished: run_ids of finished trainings.
            seconds_left: infinite if not known.
            has_ended: the driver is about to end.
        """
        with self._lock:
            unfinished = {
                index: [plan.run_id for plan in pack if plan.run_id not in finished]
                for index, pack in enumerate(self.packs)
            }
            return DriverStatus(
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds_left=None if seconds_left == float("inf") else round(seconds_left, 1),
                running=tuple(unfinished[index][0] for index in sorted(self._active) if unfinished[index]),
                retries={plan.run_id: num for index, num in self._retries.items() for plan in self.packs[index]},
                failed={run_id: error for index, error in self._failed.items() for run_id in unfinished[index]},
                has_ended=has_ended,
            )


class ProgressTable:
    """The status of all trainings of a sweep, shown whenever it changes."""

    def __init__(self, study: Folder, sweep: Folder, tracker: TrialTracker) -> None:
        """Read the planned trainings and the epochs that they have stored.

        Args:
            study: the study.
            sweep: its sweep/ folder.
            tracker: the states of the trials.
        """
        self._sweep, self._tracker = sweep, tracker
        self._planned = read_planned(sweep)
        self._epochs: dict[str, list[EpochAccuracies]] = {
            run_id: read_accuracies_if_any(run_folder(study, run_id)) for run_id in self._planned
        }
        unfinished = {plan.run_id for pack in tracker.packs for plan in pack}
        self._finished = set(self._planned) - unfinished
        self._metrics = SweepMetrics()
        self._renderer = _TerminalRenderer()
        self._written_at = -_WRITE_INTERVAL_S
        self._previous_rows: list[RunStatus] = []

    def update(self, run_id: str, epochs: list[EpochAccuracies], *, is_finished: bool) -> None:
        """Update the stored epochs of a training."""
        self._epochs[run_id] = epochs
        if is_finished:
            self._finished.add(run_id)

    def show(self, seconds_left: float, *, last: bool = False) -> None:
        """Show and store the status if it has changed, or if it is due.

        Args:
            seconds_left: infinite if not known.
            last: show and store it in any case, because the driver is about to end.
        """
        finished = self._finished | self._tracker.completed_runs()
        driver_status = self._tracker.driver_status(finished, seconds_left, has_ended=last)
        rows = []
        for run_id, planned in self._planned.items():
            epochs = self._epochs[run_id]
            state = run_state(run_id, driver_status, bool(epochs), is_done=run_id in finished)
            rows.append(run_status(run_id, planned, epochs, state, driver_status))
        events = [(row.run_id, row.state, row.attempts) for row in rows]
        if (
            last
            or events != [(row.run_id, row.state, row.attempts) for row in self._previous_rows]
            or self._is_write_due()
        ):
            self._written_at = time.monotonic()
            with suppress(StudyError):  # on a full disk the trainings fail with their own message
                write_driver_status(self._sweep, driver_status)
        if last or rows != self._previous_rows:
            text = progress_line(rows, driver_status.seconds_left)
            self._renderer.show([f"sweep: {text}", *status_table(rows, self._renderer.num_rows)], last=last)
            self._metrics.record(rows, driver_status.seconds_left)
            set_job_message(f"sweep: {text}")
            self._previous_rows = rows

    def _is_write_due(self) -> bool:
        return time.monotonic() >= self._written_at + _WRITE_INTERVAL_S


class _TerminalRenderer:
    """Shows lines on stderr: redrawn in place on a terminal, repeated at growing intervals otherwise."""

    def __init__(self) -> None:
        self._is_tty = sys.stderr.isatty()
        self._started_at = time.monotonic()
        self._shown_at = self._started_at
        self._num_lines = 0

    @property
    def num_rows(self) -> int:
        """Table rows that fit on the screen."""
        return min(_MAX_ROWS, shutil.get_terminal_size().lines - 6) if self._is_tty else _MAX_ROWS

    def show(self, lines: Sequence[str], *, last: bool) -> None:
        now = time.monotonic()
        if not self._is_tty:
            if last or now - self._shown_at >= max(LOG_INTERVAL_S, _LOG_INTERVAL_FRACTION * (now - self._started_at)):
                self._shown_at = now
                print("\n".join(lines), file=sys.stderr, flush=True)
            return
        width = shutil.get_terminal_size().columns
        back = f"\x1b[{self._num_lines}F" if self._num_lines else ""
        text = "".join(f"\x1b[2K{line[: width - 1]}\n" for line in lines)
        print(f"\r{back}{text}\x1b[J", end="", file=sys.stderr, flush=True)
        self._num_lines = len(lines)


@contextmanager
def watch_progress(
    study: Folder, plans: Sequence[RunPlan], table: ProgressTable | None = None, interval_s: float = 1.0
) -> Iterator[None]:
    """While active, show finished epochs and send their curves to trackers, from a background thread.

    Args:
        study: the study.
        plans: the trainings to watch.
        table: the table of a sweep, shown in addition to the progress line.
        interval_s: seconds between two reads of the runs' folders.
    """
    done = threading.Event()
    settings = {plan.run_id: plan.config.identity() for plan in plans}
    with ExperimentLogger(study, settings, plans[0].config.track) as experiment_logger:
        watcher = _Watcher(study, plans, experiment_logger, table)
        thread = threading.Thread(target=watcher.run, args=(done, interval_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class _Watcher:
    """Reads the runs' folders, and updates the progress line, the table and the trackers."""

    def __init__(
        self, study: Folder, plans: Sequence[RunPlan], experiment_logger: ExperimentLogger, table: ProgressTable | None
    ) -> None:
        self._study, self._plans = study, list(plans)
        self._experiment_logger, self._table = experiment_logger, table
        quiet = table is not None and sys.stderr.isatty()  # on a terminal, the table shows the same and is redrawn
        self._progress = ProgressReporter("finetune", sum(plan.config.epochs for plan in plans), "epochs", quiet=quiet)
        # Epochs of an interrupted training, which resumes from there or starts again with fewer.
        self._epochs_shown = {plan.run_id: len(self._epochs(plan)) for plan in plans}
        self._progress.resume_at(sum(self._epochs_shown.values()))
        self._started = {plan.run_id: self._last_runtime(plan) for plan in plans}
        self._runtimes: set[str] = set()

    def run(self, done: threading.Event, interval_s: float) -> None:
        last = False
        while not last:
            last = done.wait(interval_s)
            self._plans = [plan for plan in self._plans if not self._update_run(plan, last)]
            if self._table:
                self._table.show(self._progress.seconds_left, last=last)
        self._progress.finish()

    def _update_run(self, plan: RunPlan, last: bool) -> bool:
        """Show the new epochs of a run; returns whether it has ended."""
        ended = is_finished(self._study, plan)
        epochs = self._epochs(plan)
        new = len(epochs) - self._epochs_shown[plan.run_id]
        if new or ended or not self._runtimes:
            self._show_runtime(plan)
        if new:
            self._epochs_shown[plan.run_id] = len(epochs)
            self._progress.add(new, _progress_note(plan, epochs))
        if self._table and (new or ended):
            stored = accuracies_from_rows(row for rows in epochs for row in rows)
            self._table.update(plan.run_id, stored, is_finished=ended)
        if new or ended or last:
            self._experiment_logger.log(plan.run_id, [row for rows in epochs for row in rows])
        if ended:
            self._experiment_logger.finish(plan.run_id)
        return ended

    def _show_runtime(self, plan: RunPlan) -> None:
        """Log the device and dtype of a training after its start; equal lines are logged once."""
        last = self._last_runtime(plan)
        if last and last != self._started[plan.run_id]:
            self._started[plan.run_id] = last
            runtime = str(Runtime(device=last["device"], dtype=last["dtype"], attention=last["attention"]))
            if runtime not in self._runtimes:
                self._runtimes.add(runtime)
                _LOG.info("finetune: %s", runtime)

    def _last_runtime(self, plan: RunPlan) -> RuntimeRecord | None:
        try:
            return next(reversed(read_runtimes(run_folder(self._study, plan.run_id))), None)
        except StudyError:
            return None  # the training is starting again right now

    def _epochs(self, plan: RunPlan) -> list[list[dict[str, Any]]]:
        """The rows of each epoch in the run's `epochs.parquet`; empty if there are none."""
        folder = run_folder(self._study, plan.run_id)
        if not folder.exists("epochs.parquet"):
            return []
        by_epoch: dict[int, list[dict[str, Any]]] = {}
        try:
            rows = read_epochs(folder, with_loss=True).to_pylist()
            accuracies_from_rows(rows)
        except StudyError:
            return []  # the training is starting again right now
        for row in rows:
            by_epoch.setdefault(row["epoch"], []).append(row)
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _progress_note(plan: RunPlan, epochs: Sequence[Sequence[dict[str, Any]]]) -> str:
    text = f"{plan.run_id} epoch {len(epochs)} of {plan.config.epochs}"
    for row in epochs[-1] if epochs else ():
        if (row["split"], row["category"]) == ("dev", ALL_CATEGORIES):
            text += f", dev accuracy {row['num_correct'] / row['num']:.3f}"
    return text


class SweepMetrics:
    """Exports the progress of a sweep from its driver."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._trainings = Gauge("slick_sweep_trainings", "Trainings of the sweep, by state.", tag_keys=("state",))
        self._epochs = Gauge("slick_sweep_epochs", "Epochs finished, over all trainings.")
        self._retries = Gauge("slick_sweep_retries", "Retries of failed trainings.")
        self._best = Gauge("slick_sweep_best_dev_accuracy", "Highest dev accuracy of any epoch, in [0, 1].")
        self._seconds_left = Gauge("slick_sweep_seconds_left", "Expected time to the end of the sweep.")
        self._states: set[str] = set()

    def record(self, rows: Sequence[RunStatus], seconds_left: float | None) -> None:
        """Export the status of all trainings.

        Args:
            rows: status of every training.
            seconds_left: None if not known.
        """
        states: Counter[str] = Counter(row.state for row in rows)
        self._states |= set(states)
        for state in self._states:
            self._trainings.set(states[state], tags={"state": state})
        self._epochs.set(sum(row.epochs for row in rows))
        self._retries.set(sum(row.attempts - 1 for row in rows))
        best = max((row.best_dev_accuracy for row in rows if row.best_dev_accuracy is not None), default=None)
        if best is not None:
            self._best.set(best)
        if seconds_left is not None:
            self._seconds_left.set(seconds_left)
