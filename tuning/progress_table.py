"""Progress of training runs, as the driver shows it: a table on the terminal, a line and metrics in Ray's dashboard."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from slick.cluster import set_job_message
from slick.errors import StudyError
from slick.precision import Runtime
from slick.progress import ProgressReporter
from slick.storage import Folder
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES
from tuning.metrics import SweepMetrics
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

_WRITE_INTERVAL_S = 10.0
LOG_INTERVAL_S = 60.0
"""The least time between two tables in a log."""
_LOG_INTERVAL_FRACTION = 0.05
"""In a log the table comes again after this share of the time so far, so that a long sweep does not fill it."""
_MAX_ROWS = 24


class TrialTracker:
    """What becomes of the trials: told by Tune, looked at by the board. Trials are known by their place."""

    def __init__(self, packs: Sequence[Sequence[RunPlan]]) -> None:
        self.packs = packs
        self._lock = threading.Lock()
        self._active: set[int] = set()
        self._retries: dict[int, int] = {}
        self._failed: dict[int, str] = {}
        self._completed: set[int] = set()

    def __reduce__(self) -> tuple[type["TrialTracker"], tuple[Sequence[Sequence[RunPlan]]]]:
        """As it began: Tune writes its callbacks down, to restore them with itself; a sweep goes on in its own way."""
        return TrialTracker, (self.packs,)

    @property
    def num_retries(self) -> int:
        """Times that any trial was tried again."""
        return sum(self._retries.values())

    def mark_started(self, place: int) -> None:
        """A trial has begun, or begun again."""
        with self._lock:
            self._active.add(place)

    def mark_retried(self, place: int) -> None:
        """A trial failed, and waits for its next try."""
        with self._lock:
            self._retries[place] = self._retries.get(place, 0) + 1

    def mark_ended(self, place: int, error: str = "") -> None:
        """A trial has come to its end.

        Args:
            why: what made it fail for good; empty if it did not.
        """
        with self._lock:
            self._active.discard(place)
            if error:
                self._failed[place] = error
            else:
                self._completed.add(place)

    def completed_runs(self) -> set[str]:
        """Trainings of the trials that came to an end; a scheduler may have ended some before their last epoch."""
        with self._lock:
            return {plan.run_id for place in self._completed for plan in self.packs[place]}

    def driver_status(self, finished: set[str], seconds_left: float, *, has_ended: bool) -> DriverStatus:
        """What is to be told of it.

        Args:
            finished: run_ids of trainings that need nothing more.
            seconds_left: infinite where it is not known.
            has_ended: the driver leaves.
        """
        with self._lock:
            left = {
                place: [plan.run_id for plan in pack if plan.run_id not in finished]
                for place, pack in enumerate(self.packs)
            }
            return DriverStatus(
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds_left=None if seconds_left == float("inf") else round(seconds_left, 1),
                running=tuple(left[place][0] for place in sorted(self._active) if left[place]),
                retries={plan.run_id: num for place, num in self._retries.items() for plan in self.packs[place]},
                failed={run_id: error for place, error in self._failed.items() for run_id in left[place]},
                has_ended=has_ended,
            )


class ProgressTable:
    """Keeps the rows of a sweep, and shows them when they change."""

    def __init__(self, study: Folder, sweep: Folder, course: TrialTracker) -> None:
        """Read what is there already.

        Args:
            sweep: the sweep's own folder, which holds what is planned.
        """
        self._sweep, self._tracker = sweep, course
        self._planned = read_planned(sweep)
        self._epochs: dict[str, list[EpochAccuracies]] = {
            run_id: read_accuracies_if_any(run_folder(study, run_id)) for run_id in self._planned
        }
        todo = {plan.run_id for pack in course.packs for plan in pack}
        self._finished = set(self._planned) - todo
        self._metrics = SweepMetrics()
        self._screen = _TerminalRenderer()
        self._written_at = -_WRITE_INTERVAL_S
        self._previous_rows: list[RunStatus] = []

    def update(self, run_id: str, epochs: list[EpochAccuracies], *, is_finished: bool) -> None:
        """Take in what a training has stored by now."""
        self._epochs[run_id] = epochs
        if is_finished:
            self._finished.add(run_id)

    def show(self, seconds_left: float, *, last: bool = False) -> None:
        """Show what has changed, at once or when it is time; `last` in any case.

        Args:
            seconds_left: infinite where it is not known.
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
            with suppress(StudyError):  # on a full disk the trainings fail, with the message
                write_driver_status(self._sweep, driver_status)
        if last or rows != self._previous_rows:
            text = progress_line(rows, driver_status.seconds_left)
            self._screen.show([f"sweep: {text}", *status_table(rows, self._screen.num_rows)], last=last)
            self._metrics.record(rows, driver_status.seconds_left)
            set_job_message(f"sweep: {text}")
            self._previous_rows = rows

    def _is_write_due(self) -> bool:
        return time.monotonic() >= self._written_at + _WRITE_INTERVAL_S


class _TerminalRenderer:
    """Lines on stderr that renew themselves on a terminal, and come again now and then elsewhere."""

    def __init__(self) -> None:
        self._is_tty = sys.stderr.isatty()
        self._started_at = time.monotonic()
        self._shown_at = self._started_at
        self._num_lines = 0

    @property
    def num_rows(self) -> int:
        """Rows that fit."""
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
