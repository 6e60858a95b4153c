"""Trainings as they go on, seen from the driver: a line on the terminal, and curves for trackers."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from slick.progress import Progress
from slick.storage import Folder
from slick.types import ALL
from tuning.runs import RunPlan, is_finished, run_folder
from tuning.tracking import Tracking

PLANNED = "planned.json"
"""Epochs of every training of a sweep, by run_id; for those who look at it while it runs."""
PACE = "pace.json"
"""How long a sweep will still take, as last seen."""
_PACE_EVERY_S = 10.0


@contextmanager
def watch(
    study: Folder, plans: Sequence[RunPlan], pace_in: Folder | None = None, interval_s: float = 1.0
) -> Iterator[None]:
    """Show epochs as any worker finishes them, and send their curves to trackers, until the block ends.

    Args:
        pace_in: folder in which the time left is written down now and then.
    """
    done = threading.Event()
    settings = {plan.run_id: plan.config.identity() for plan in plans}
    with Tracking(study, settings, plans[0].config.track) as tracking:
        watcher = _Watcher(study, plans, tracking, pace_in)
        thread = threading.Thread(target=watcher.run, args=(done, interval_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class _Watcher:
    def __init__(self, study: Folder, plans: Sequence[RunPlan], tracking: Tracking, pace_in: Folder | None) -> None:
        self._study, self._plans, self._tracking, self._pace_in = study, list(plans), tracking, pace_in
        self._told_at = 0.0
        self._progress = Progress("finetune", sum(plan.config.epochs for plan in plans), "epochs")
        # What an interrupted training left: it goes on from there, or begins again with fewer.
        self._seen = {plan.run_id: len(self._epochs(plan)) for plan in plans}
        self._progress.resume_at(sum(self._seen.values()))

    def run(self, done: threading.Event, interval_s: float) -> None:
        last = False
        while not last:
            last = done.wait(interval_s)
            self._plans = [plan for plan in self._plans if not self._look(plan, last)]
            self._tell_pace()

    def _tell_pace(self) -> None:
        seconds = self._progress.seconds_left
        if self._pace_in is None or seconds == float("inf") or time.monotonic() < self._told_at + _PACE_EVERY_S:
            return
        self._told_at = time.monotonic()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._pace_in.write_json(PACE, {"seconds_left": round(seconds, 1), "at": at})

    def _look(self, plan: RunPlan, last: bool) -> bool:
        """Show what is new of a run; True when it has ended."""
        ended = is_finished(self._study, plan)
        epochs = self._epochs(plan)
        new = len(epochs) - self._seen[plan.run_id]
        if new:
            self._seen[plan.run_id] = len(epochs)
            self._progress.add(new, _note(plan, epochs))
        if new or ended or last:
            self._tracking.log(plan.run_id, [row for rows in epochs for row in rows])
        if ended:
            self._tracking.finish(plan.run_id)
        return ended

    def _epochs(self, plan: RunPlan) -> list[list[dict[str, Any]]]:
        """Rows of each epoch in the run's `epochs.parquet`."""
        folder = run_folder(self._study, plan.run_id)
        if not folder.exists("epochs.parquet"):
            return []
        by_epoch: dict[int, list[dict[str, Any]]] = {}
        for row in folder.read_table("epochs.parquet").to_pylist():
            by_epoch.setdefault(row["epoch"], []).append(row)
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _note(plan: RunPlan, epochs: Sequence[Sequence[dict[str, Any]]]) -> str:
    text = f"{plan.run_id} epoch {len(epochs)} of {plan.config.epochs}"
    for row in epochs[-1] if epochs else ():
        if (row["split"], row["category"]) == ("dev", ALL):
            text += f", dev accuracy {row['num_correct'] / row['num']:.3f}"
    return text
