"""Steps that run in order, each in its own process with a time limit, with every result saved as soon as it is known.

A step that crashes, hangs or runs out of memory ends alone. Steps that finished are skipped when a run is repeated with
the same file of results.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Status = Literal["done", "failed", "stopped", "not reached"]
"""`stopped`: at its time limit. `not reached`: not run, or a requirement is missing."""

FULL_RUN_S = 600.0
"""Length of the run for which the time limits of steps are stated; longer runs have proportionally longer limits."""
_LOG_CHARACTERS = 3000
_ERROR = re.compile(r"[\w.]+(Error|Exception|Exit): ")
UNAVAILABLE = "unavailable"
"""Key of a result that says why the step cannot run on this machine."""


class RunError(Exception):
    """The run cannot start; the message says why and what to do."""


class Unavailable(Exception):
    """A step cannot run on this machine; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One measurement."""

    name: str
    seconds: float
    """Time limit in a run of `FULL_RUN_S`."""
    least_seconds: float | None = None
    """The step is not started with less time than this; None for a quarter of its limit."""
    packages: tuple[str, ...] = ()
    """Packages that it needs."""
    gpus: int = 1
    """GPUs that it needs, on a machine with GPUs."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its function."""


@dataclass(slots=True, kw_only=True)
class Results:
    """The file of results: the machine, and by step its status, seconds and result or reason."""

    path: Path
    machine: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read the file; empty if there is none.

        Raises:
            RunError: the file is not one of results.
        """
        if not path.exists():
            return cls(path=path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(path=path, machine=dict(content["machine"]), steps=dict(content["steps"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} does not contain results of tests.gpu.first_run ({type(error).__name__}: {error}); "
                "give another file, or delete this one"
            ) from error

    def record(self, name: str, status: Status, **entry: Any) -> None:
        """Set the entry of a step and save the file, which is replaced as a whole."""
        self.steps[name] = {"status": status, **entry}
        self.save()

    def save(self) -> None:
        """Replace the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        content = {"machine": self.machine, "steps": self.steps}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def is_done(self, name: str) -> bool:
        """Whether a step has finished."""
        return self.steps.get(name, {}).get("status") == "done"


def missing_requirement(step: Step, num_gpus: int | None) -> str:
    """Why a step cannot run on this machine; empty if it can.

    Args:
        step: the step.
        num_gpus: GPUs of the machine; None to run on the CPU, where any number of processes can be started.
    """
    missing = [package for package in step.packages if find_spec(package) is None]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    if num_gpus is not None and num_gpus < step.gpus:
        return f"needs {step.gpus} GPUs, the machine has {num_gpus}"
    return ""


def run_steps(
    steps: Sequence[Step],
    results: Results,
    make_command: Callable[[Step, float, Path], list[str]],
    *,
    seconds: float,
    num_gpus: int | None,
    again: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Run the steps until the time is over.

    Args:
        steps: in order of value.
        results: receives the entry of each step.
        make_command: the command of a step, given its time limit in seconds and the path where it writes its result, a
            JSON object.
        seconds: length of the whole run.
        num_gpus: see `missing_requirement`.
        again: also run the steps that have finished.
        log: receives one line per step.
    """
    deadline = time.monotonic() + seconds
    for step in steps:
        if results.is_done(step.name) and not again:
            log(f"{step.name}: finished before; --again repeats it")
            continue
        limit = step.seconds * max(1.0, seconds / FULL_RUN_S)
        least = limit / 4 if step.least_seconds is None else step.least_seconds
        remaining = deadline - time.monotonic()
        reason = missing_requirement(step, num_gpus)
        if not reason and remaining < least:
            reason = f"{max(0.0, remaining):.0f} s were left, it needs {least:.0f} s or more"
        if reason and not results.is_done(step.name):
            results.record(step.name, "not reached", reason=reason)
        if not reason:
            run_step(step, results, make_command, min(limit, remaining))
        entry = results.steps[step.name]
        took = f" ({entry['seconds']:.0f} s)" if "seconds" in entry else ""
        log(f"{step.name}: {entry['status']}{took}{': ' + entry['reason'] if 'reason' in entry else ''}")


def run_step(
    step: Step, results: Results, make_command: Callable[[Step, float, Path], list[str]], limit: float
) -> None:
    """Run one step in its own process group, which is killed at the time limit, and record its result."""
    with tempfile.TemporaryDirectory() as folder:
        result_path, log_path = Path(folder, "result.json"), Path(folder, "log")
        started_at = time.monotonic()
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                make_command(step, limit, result_path), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(limit)
                is_stopped = False
            except subprocess.TimeoutExpired:
                is_stopped = True
            finally:
                _kill_group(process)
        seconds = round(time.monotonic() - started_at, 2)
        output = log_path.read_text(encoding="utf-8", errors="replace").strip()
        result = _read_result(result_path)
    if process.returncode == 0 and result is not None and not is_stopped:
        if UNAVAILABLE in result:
            results.record(step.name, "not reached", reason=result[UNAVAILABLE], seconds=seconds)
        else:
            results.record(step.name, "done", seconds=seconds, result=result)
        return
    entry: dict[str, Any] = {"seconds": seconds, "log": output[-_LOG_CHARACTERS:]}
    if result is not None:
        entry["result"] = result
    if is_stopped:
        results.record(step.name, "stopped", reason=f"stopped at its time limit of {limit:.0f} s", **entry)
    else:
        results.record(step.name, "failed", reason=_failure(process.returncode, output), **entry)


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write the result of a step, replacing an earlier one as a whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, path)


def _read_result(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(status: int, output: str) -> str:
    """How the process ended, and the last error that it printed, or else its last line."""
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    lines = [line.strip() for line in output.splitlines()]
    errors = [line for line in lines if _ERROR.match(line)] or lines
    return f"{how}: {errors[-1][:300]}" if errors else how
