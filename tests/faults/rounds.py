"""One round: a study that is disturbed by several faults, run again until it ends, and compared with the reference."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.faults.comparison import find_differences
from tests.faults.kinds import CLOCK, KINDS, STEPS, Target, compile_clock
from tests.faults.leftovers import Watch, kill_session, leftover_files, shared_memory, unused_shared_memory
from tests.faults.places import DISK_FOLDER, Place, choose_place

ROOT = Path(__file__).parents[2]
HANG_S = 600.0
"""Seconds after which a run counts as hanging; ten times that of an undisturbed study on a busy machine."""
GAP_S = 3.0
"""Seconds between two faults of a run."""
MAX_RUNS = 24
"""Runs of the command in one round."""
STUDY_FLAGS = (
    *("--world.num-train", "24", "--world.num-dev", "12", "--world.num-test", "8", "--world.num-tokens", "300000"),
    *("--world.num-ood-dev", "10", "--world.num-ood-test", "8"),
    *("--annotate.num-exemplar-sets", "3", "--annotate.num-shots", "3", "--annotate.sampling.num-samples", "2"),
    *("--annotate.repeats-per-relation", "2", "--annotate.controls-per-relation", "2"),
    *("--annotate.batch-questions", "16", "--variants.unknown-shares", "0.0", "0.5", "--variants.known-shares"),
    *("--sweep.grid.epochs", "2", "3"),
)
"""The smallest study: 168 questions, three trainings of three epochs."""

CONTINUED, RESUMED, WRONG = "ended by itself", "resumed", "wrong end"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the plan of a round."""

    kind: str
    step: str
    moment: float
    """When it is injected, as a share of the time that the step takes in the reference."""


@dataclass(kw_only=True)
class Applied:
    """A fault that was injected, and how the run went on."""

    kind: str
    step: str
    action: str
    outcome: str = CONTINUED
    message: str = ""
    """The message with which the run ended, if it did not go on."""


@dataclass(kw_only=True)
class Round:
    """The result of a round."""

    number: int
    applied: list[Applied] = field(default_factory=list)
    missed: int = 0
    """Faults of the plan for which the study gave no occasion, such as a kill of a process that had ended."""
    statuses: list[int] = field(default_factory=list)
    """Exit status of each run; negative: the number of the signal."""
    differences: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Processes that outlived their driver by more than 20 s."""
    longest_s: float = 0.0
    """Longest time in seconds that a process outlived its driver."""
    files: list[str] = field(default_factory=list)
    """Files of unfinished writes, temporary folders and shared memory that remained."""
    uploads: int = 0
    """Uploads to an object store that remained unfinished; a rule of the bucket deletes them, the program cannot."""
    seconds: float = 0.0


class Run:
    """One run of the command, in a session of its own."""

    def __init__(
        self,
        study: str,
        temporary: Path,
        cache: Path,
        hooks: Path,
        clock: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log = temporary.parent / f"run-{time.monotonic_ns()}.log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environ |= {
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": f"{ROOT / 'tests' / 'faults' / 'hooks'}:{ROOT}",
            "SLICK_CACHE": str(cache),
            "SLICK_FAULTS": str(hooks),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "kernels"),
            "TMPDIR": str(temporary),
            **(variables or {}),
        }
        if clock is not None:
            environ |= {"LD_PRELOAD": str(clock), "SLICK_FAULTS_CLOCK": str(hooks / "clock")}
        command = [sys.executable, "-m", "jobs.cli", "study", "smoke", "--out", study, *STUDY_FLAGS]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.session = self._process.pid
        self.began: dict[str, float] = {"start": time.monotonic()}
        """Step -> time at which it began, by the monotonic clock."""

    def status(self) -> int | None:
        """The exit status; None while the command runs."""
        return self._process.poll()

    def step(self) -> str:
        """The step that runs, and note the time at which it began."""
        names = re.findall(r"^\[\d+/\d+\] (\w+)$", self.log.read_text(errors="replace"), re.MULTILINE)
        name = names[-1] if names else "start"
        self.began.setdefault(name, time.monotonic())
        return name

    def wait(self) -> int:
        """The exit status; kills the session if the command hangs."""
        end = time.monotonic() + HANG_S
        while self.status() is None:
            if time.monotonic() > end:
                kill_session(self.session)
                self._process.wait()
                return -999
            self.step()
            time.sleep(0.05)
        return int(self._process.returncode)


def plan_round(seed: int, number: int, kinds: list[str]) -> list[Fault]:
    """The faults of a round, in the order of the steps; each round draws its own from the seed."""
    rng = random.Random(f"{seed}/{number}")
    names = rng.sample(kinds * 3, k=min(rng.randint(8, 14), 3 * len(kinds)))
    faults = [
        Fault(kind=name, step=rng.choice(KINDS[name].steps), moment=rng.random() * 0.9)
        for name in names
        if KINDS[name].steps
    ]
    return sorted(faults, key=lambda fault: (STEPS.index(fault.step), fault.moment))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rounds share."""

    reference: Path
    cache: Path
    work: Path
    durations: dict[str, float]
    """Seconds that each step takes in the reference."""
    seed: int


def run_round(setting: Setting, number: int, kinds: list[str]) -> Round:
    """Disturb a study by the faults of a round and compare it with the reference."""
    folder = setting.work / f"r{number}"
    shutil.rmtree(folder, ignore_errors=True)
    temporary, hooks = folder / "t", folder / "hooks"
    for path in (temporary, hooks):
        path.mkdir(parents=True)
    result, began, memory = Round(number=number), time.monotonic(), shared_memory()
    with choose_place(folder, setting.reference, kinds, number) as place:
        clock = compile_clock(folder)
        faults = plan_round(setting.seed, number, [name for name in place.kinds if clock or name != CLOCK])
        if not any(fault.kind == CLOCK for fault in faults):
            clock = None
        start = partial(Run, place.uri, temporary, setting.cache, hooks, clock, place.variables)
        watches = _run_to_the_end(setting, result, faults, start, folder, place)
        for watch in watches:
            watch.join()
            result.late += watch.late
            result.longest_s = max(result.longest_s, watch.longest_s)
        study = place.fetch()
        result.differences = find_differences(setting.reference, study)
        result.files = leftover_files(study, setting.reference, temporary)
        result.files += [f"/dev/shm/{name}" for name in unused_shared_memory(memory)]
        result.uploads = place.num_unfinished_uploads()
        result.seconds = time.monotonic() - began
        if result.differences:
            shutil.copytree(study, folder / "study", dirs_exist_ok=True)
    shutil.rmtree(temporary / "ray", ignore_errors=True)
    return result


def _run_to_the_end(
    setting: Setting, result: Round, faults: list[Fault], start: Callable[[], Run], folder: Path, place: Place
) -> list[Watch]:
    """Run the command until it succeeds, with the faults on the way."""
    rng = random.Random(f"{setting.seed}/{result.number}/run")
    pending, watches = list(faults), []
    while len(result.statuses) < MAX_RUNS:
        run = start()
        num_before = len(result.applied)
        while pending and (is_now := _wait_for_moment(run, pending[0], setting.durations)) != "ended":
            fault = pending.pop(0)
            action = _inject(run, fault, folder, place, rng) if is_now == "now" else None
            if action is None:
                result.missed += 1
            else:
                result.applied.append(Applied(kind=fault.kind, step=fault.step, action=action))
                _let_act(run)
        status = run.wait()
        watches.append(Watch(run.session))
        result.statuses.append(status)
        if status == 0:
            result.missed += len(pending)
            break
        _judge_end(result, status, run.log.read_text(errors="replace"), len(result.applied) > num_before)
        if rng.random() < 0.5:  # otherwise, the next run begins beside the processes of this one
            watches[-1].join()
    return watches


def _let_act(run: Run) -> None:
    """Wait some seconds before the next fault, so that the end of the run is the outcome of this one."""
    end = time.monotonic() + GAP_S
    while time.monotonic() < end and run.status() is None:
        run.step()
        time.sleep(0.05)


def _wait_for_moment(run: Run, fault: Fault, durations: dict[str, float]) -> str:
    """Wait for the moment of a fault: `now`; `passed` if its step is over; `ended` if the run has ended."""
    while True:
        if run.status() is not None:
            return "ended"
        step = run.step()
        if step != "start" and step != "world" and STEPS.index(step) > STEPS.index(fault.step):
            return "passed"
        if step == fault.step and time.monotonic() - run.began[step] >= fault.moment * durations[step]:
            return "now"
        time.sleep(0.02)


def _inject(run: Run, fault: Fault, folder: Path, place: Place, rng: random.Random) -> str | None:
    target = Target(
        session=run.session,
        disk=folder / DISK_FOLDER,
        store=place.proxy,
        hooks=folder / "hooks",
        has_ended=lambda: run.status() is not None,
        is_in_step=lambda: run.step() == fault.step,
        rng=rng,
    )
    return KINDS[fault.kind].inject(target)


def _judge_end(result: Round, status: int, output: str, is_disturbed: bool) -> None:
    """Set the outcome of the last fault of a run that did not succeed."""
    messages = re.findall(r"^slick: .*", output, re.MULTILINE)
    advice = any(word in " ".join(messages) for word in ("again", "resume"))
    is_killed = is_disturbed and result.applied[-1].kind == "driver" and status == -9
    is_right = is_killed or (status in (2, 130) and len(messages) == 1 and "Traceback" not in output and advice)
    last = result.applied[-1] if result.applied else Applied(kind="none", step="", action="the run failed by itself")
    if not result.applied:
        result.applied.append(last)
    last.outcome = RESUMED if is_right and last.outcome != WRONG else WRONG
    if not is_killed:
        last.message = "\n".join(messages) if is_right else f"status {status}: " + output[-1500:]
