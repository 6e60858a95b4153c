"""Status of every training of a sweep, as shown on the terminal, in the dashboard and by `slick status`.

The driver stores the planned trainings and what only it knows: which trainings are running, have failed or are retried.
Everything else is read from the folders of the runs, so everyone with access to the study sees the same status.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from slick.errors import StudyError
from slick.formatting import format_duration, format_percent, format_table
from slick.storage import Folder
from slick.stored_files import format_value, read_record
from slick.study import read_manifest
from slick.types import ALL_CATEGORIES
from tuning.grid import Trajectory
from tuning.runs import EpochAccuracies, read_accuracies, run_folder

PLANNED_FILE = "planned.json"
"""Every training of a sweep by run_id."""
DRIVER_STATUS_FILE = "live.json"
"""The driver's status of a running sweep."""
_DRIVER_TIMEOUT_S = 300.0
"""A driver that wrote nothing for so long was killed; an unresponsive tracker blocks it for less."""

RunState = Literal["waiting", "running", "retried", "interrupted", "failed", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Status of one training of a sweep."""

    run_id: str
    variant: str
    seed: int
    settings: str
    """Settings that differ from the sweep's base settings; see `tuning.grid.settings_text`."""
    epochs: int
    """Epochs trained and evaluated."""
    budget: int
    """Planned epochs; a live training may need fewer."""
    state: RunState
    """`retried`: running again after a failure; `interrupted`: its driver ended before it did."""
    attempts: int = 1
    dev_accuracy: float | None = None
    """After the last epoch, a share in [0, 1]; None before the first."""
    test_accuracy: float | None = None
    best_dev_accuracy: float | None = None
    best_epoch: int | None = None
    error: str = ""
    """Why it failed; empty if it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """The status that the driver wrote last."""

    at: str = ""
    """UTC, ISO 8601; empty if it was never written."""
    seconds_left: float | None = None
    """None if not known yet."""
    running: tuple[str, ...] = ()
    retries: Mapping[str, int] = field(default_factory=dict)
    """Number of retries by run_id."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Reasons by run_id."""
    has_ended: bool = False
    """Whether the driver wrote this when it ended."""

    @property
    def is_running(self) -> bool:
        """Whether the driver has written its status recently and has not ended."""
        if self.has_ended or not self.at:
            return False
        return (datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds() < _DRIVER_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A planned training of a sweep."""

    variant: str
    seed: int
    settings: str = ""
    """Settings that differ from the sweep's base settings; see `tuning.grid.settings_text`."""
    epochs: int


_RESTORE_HINT = "it was changed: restore it, or delete it; `slick sweep` writes it again"


def write_planned(sweep: Folder, runs: Iterable[Trajectory]) -> None:
    """Store the trainings that cover the grid."""
    planned = {
        run.run_id: asdict(
            PlannedRun(variant=run.variant, seed=run.seed, settings=run.settings_text, epochs=run.epochs)
        )
        for run in runs
    }
    sweep.write_json(PLANNED_FILE, planned)


def read_planned(sweep: Folder) -> dict[str, PlannedRun]:
    """The trainings that cover the grid, by run_id; empty before the sweep begins.

    Raises:
        StudyError: the file is malformed.
    """
    if not sweep.exists(PLANNED_FILE):
        return {}
    planned: dict[str, Any] = read_record(sweep, PLANNED_FILE, dict[str, PlannedRun | int], _RESTORE_HINT)
    if any(isinstance(run, int) for run in planned.values()):
        return {}  # earlier versions stored only the epochs
    return planned


def write_driver_status(sweep: Folder, driver_status: DriverStatus) -> None:
    """Store the driver's status."""
    sweep.write_json(DRIVER_STATUS_FILE, asdict(driver_status))


def read_driver_status(sweep: Folder) -> DriverStatus:
    """The status that the driver stored last.

    Raises:
        StudyError: the file is malformed.
    """
    if not sweep.exists(DRIVER_STATUS_FILE):
        return DriverStatus()
    driver_status = read_record(sweep, DRIVER_STATUS_FILE, DriverStatus, _RESTORE_HINT)
    try:
        if driver_status.at and datetime.fromisoformat(driver_status.at).tzinfo is None:
            raise ValueError("a time without a time zone")
    except ValueError as error:
        raise StudyError(
            f"{sweep}/{DRIVER_STATUS_FILE}: at is {format_value(driver_status.at)}, expected a time in UTC; "
            f"{_RESTORE_HINT}"
        ) from error
    return driver_status


def read_run_statuses(study: Folder, planned: Mapping[str, PlannedRun], driver_status: DriverStatus) -> list[RunStatus]:
    """The status of every training of a sweep, from the folders of the runs.

    Args:
        study: the study.
        planned: see `read_planned`.
        driver_status: see `read_driver_status`.
    """
    statuses = []
    for run_id, plan in planned.items():
        folder = run_folder(study, run_id)
        is_done = read_manifest(folder) is not None
        epochs = read_accuracies_if_any(folder)
        state = run_state(run_id, driver_status, bool(epochs), is_done=is_done)
        statuses.append(run_status(run_id, plan, epochs, state, driver_status))
    return statuses


def read_accuracies_if_any(run: Folder) -> list[EpochAccuracies]:
    """Accuracies of a run's stored epochs; empty if there are none."""
    return read_accuracies(run) if run.exists("epochs.parquet") else []


def run_state(run_id: str, driver_status: DriverStatus, has_begun: bool, *, is_done: bool) -> RunState:
    """The state of a training, from its folder and its driver's status."""
    if is_done:
        return "done"
    if run_id in driver_status.failed:
        return "failed"
    if not driver_status.is_running:
        return "interrupted" if has_begun or run_id in driver_status.running else "waiting"
    if run_id in driver_status.running:
        return "retried" if driver_status.retries.get(run_id) else "running"
    return "waiting"


def run_status(
    run_id: str, planned: PlannedRun, epochs: Sequence[EpochAccuracies], state: RunState, driver_status: DriverStatus
) -> RunStatus:
    """The status of a training, from its epochs and its state."""
    dev = [epoch[f"dev_{ALL_CATEGORIES}"] for epoch in epochs]
    best = max(dev, default=None)
    return RunStatus(
        run_id=run_id,
        variant=planned.variant,
        seed=planned.seed,
        settings=planned.settings,
        epochs=len(epochs),
        budget=planned.epochs,
        state=state,
        attempts=1 + driver_status.retries.get(run_id, 0),
        dev_accuracy=dev[-1] if dev else None,
        test_accuracy=epochs[-1].get(f"test_{ALL_CATEGORIES}") if epochs else None,
        best_dev_accuracy=best,
        best_epoch=None if best is None else dev.index(best) + 1,
        error=driver_status.failed.get(run_id, ""),
    )


def progress_line(rows: Sequence[RunStatus], seconds_left: float | None) -> str:
    """The progress of the sweep in one line; a training that ended early counts as all its epochs."""
    done = [row for row in rows if row.state == "done"]
    total = sum(row.epochs if row.state == "done" else row.budget for row in rows)
    parts = [f"{len(done)} of {len(rows)} trainings", f"{sum(row.epochs for row in rows):,} of {total:,} epochs"]
    if seconds_left is not None and len(done) < len(rows):
        parts.append(f"{format_duration(seconds_left)} left")
    failed, retries = sum(row.state == "failed" for row in rows), sum(row.attempts - 1 for row in rows)
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{retries} retried"] if retries else []
    best = max(
        (row for row in rows if row.best_dev_accuracy is not None),
        key=lambda row: row.best_dev_accuracy or 0.0,
        default=None,
    )
    if best is not None:
        parts.append(f"best dev {_percent(best.best_dev_accuracy)} ({best.run_id}, epoch {best.best_epoch})")
    return ", ".join(parts)


_MAX_STATE_WIDTH = 60
_STATE_PRIORITY = {"failed": 0, "retried": 1, "running": 1, "interrupted": 2, "done": 3, "waiting": 4}


def status_table(rows: Sequence[RunStatus], max_rows: int | None = None) -> list[str]:
    """The trainings as the lines of a table; empty if there are none.

    Args:
        rows: the trainings.
        max_rows: maximum number of rows to show; waiting trainings are hidden first, then finished ones. None: show
            all.
    """
    if not rows:
        return []
    by_priority = sorted(range(len(rows)), key=lambda i: (_STATE_PRIORITY[rows[i].state], i))
    shown = sorted(by_priority[:max_rows])
    cells = [_status_cells(rows[i]) for i in shown]
    header: tuple[str, ...] = ("variant", "seed", "settings", "epochs", "dev", "test", "best dev (epoch)", "state")
    if not any(row[2] for row in cells):
        header, cells = header[:2] + header[3:], [row[:2] + row[3:] for row in cells]
    lines = format_table([header, *cells])
    hidden = Counter(rows[i].state for i in set(range(len(rows))) - set(shown))
    if hidden:
        lines.append("and " + ", ".join(f"{num:,} {state}" for state, num in sorted(hidden.items())))
    return [f"  {line}" for line in lines]


def _status_cells(row: RunStatus) -> tuple[str, ...]:
    state = row.state + (f", try {row.attempts}" if row.attempts > 1 else "") + (f": {row.error}" if row.error else "")
    best = "" if row.best_epoch is None else f"{_percent(row.best_dev_accuracy)} ({row.best_epoch})"
    return (
        row.variant,
        str(row.seed),
        row.settings,
        f"{row.epochs}/{row.budget}",
        _percent(row.dev_accuracy),
        _percent(row.test_accuracy),
        best,
        state if len(state) <= _MAX_STATE_WIDTH else f"{state[: _MAX_STATE_WIDTH - 3]}...",
    )


def _percent(share: float | None) -> str:
    return "" if share is None else format_percent(share, ".1f")
