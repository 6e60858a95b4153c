"""Steps of the first run on a GPU: order, time limits, crashes, saved results and resumption."""

import json
import sys
import time
from pathlib import Path

import pytest

from tests.gpu.schedule import FULL_RUN_S, Results, RunError, Step, missing_requirement, run_steps

CODE = {
    "quick": "write({'speed': 1})",
    "second": "write({'speed': 2})",
    "crash": "print('loading'); raise MemoryError('out of memory')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hang": "write({'partial': 3}); import time; time.sleep(600)",
    "child": "import subprocess; p = subprocess.Popen(['sleep', '600']); write({'pid': p.pid}); p.wait()",
    "unavailable": "write({'unavailable': 'no continuous batching'})",
    "silent": "pass",
}
WRITE = "import json, sys\ndef write(r): open(sys.argv[1], 'w').write(json.dumps(r))\n"


def command(step: Step, limit: float, result: Path) -> list[str]:
    return [sys.executable, "-S", "-c", WRITE + CODE[step.name], str(result)]


def run(path: Path, *names: str, seconds: float = 600.0, limit: float = 30.0, **more: object) -> Results:
    results = Results.read(path)
    steps = [Step(name=name, seconds=limit) for name in names]
    run_steps(steps, results, command, seconds=seconds, num_gpus=1, log=lambda line: None, **more)  # type: ignore[arg-type]
    return Results.read(path)


def test_a_crash_ends_only_its_step(tmp_path: Path) -> None:
    steps = run(tmp_path / "results.json", "quick", "crash", "killed", "silent", "unavailable", "second").steps
    assert list(steps) == ["quick", "crash", "killed", "silent", "unavailable", "second"]
    assert steps["quick"]["status"] == steps["second"]["status"] == "done"
    assert steps["second"]["result"] == {"speed": 2}
    assert steps["crash"]["status"] == steps["killed"]["status"] == steps["silent"]["status"] == "failed"
    assert steps["crash"]["reason"] == "exit status 1: MemoryError: out of memory"
    assert steps["crash"]["log"].startswith("loading")
    assert steps["killed"]["reason"] == "killed by SIGKILL"
    assert steps["unavailable"]["status"] == "not reached"
    assert steps["unavailable"]["reason"] == "no continuous batching"


def test_a_step_that_hangs_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    steps = run(tmp_path / "results.json", "hang", "child", "quick", limit=1.0).steps
    assert steps["hang"]["status"] == steps["child"]["status"] == "stopped"
    assert steps["hang"]["reason"] == "stopped at its time limit of 1 s"
    assert steps["hang"]["result"] == {"partial": 3}, "what it wrote before is kept"
    state = Path(f"/proc/{steps['child']['result']['pid']}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert steps["quick"]["status"] == "done"


def test_every_result_is_saved_before_the_next_step_starts(tmp_path: Path) -> None:
    path, seen = tmp_path / "results.json", list[list[str]]()

    def look(step: Step, limit: float, result: Path) -> list[str]:
        seen.append(list(json.loads(path.read_text())["steps"]) if path.exists() else [])
        return command(step, limit, result)

    steps = [Step(name=name, seconds=30.0) for name in ("quick", "crash", "second")]
    run_steps(steps, Results.read(path), look, seconds=600.0, num_gpus=1, log=lambda line: None)
    assert seen == [[], ["quick"], ["quick", "crash"]]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_repeated_run_skips_finished_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    run(path, "quick", "crash")
    monkeypatch.setitem(CODE, "quick", "write({'speed': 100})")
    monkeypatch.setitem(CODE, "crash", "write({'speed': 3})")
    steps = run(path, "quick", "crash").steps
    assert steps["quick"]["result"] == {"speed": 1}
    assert (steps["crash"]["status"], steps["crash"]["result"]) == ("done", {"speed": 3})
    assert "reason" not in steps["crash"]
    assert run(path, "quick", again=True).steps["quick"]["result"] == {"speed": 100}


def test_steps_without_time_left_are_not_reached(tmp_path: Path) -> None:
    started_at = time.monotonic()
    steps = run(tmp_path / "results.json", "hang", "quick", seconds=1.5, limit=5.0).steps
    assert steps["hang"]["reason"] == "stopped at its time limit of 1 s", "no longer than the whole run"
    assert steps["quick"]["status"] == "not reached"
    assert steps["quick"]["reason"] == "0 s were left, it needs 1 s or more"
    assert time.monotonic() - started_at < 60


def test_limits_grow_with_the_length_of_the_run(tmp_path: Path) -> None:
    limits = list[float]()

    def note(step: Step, limit: float, result: Path) -> list[str]:
        limits.append(limit)
        return command(step, limit, result)

    for seconds in (FULL_RUN_S / 2, FULL_RUN_S, 3 * FULL_RUN_S):
        results = Results(path=tmp_path / f"{seconds}.json")
        step = Step(name="quick", seconds=40.0)
        run_steps([step], results, note, seconds=seconds, num_gpus=1, log=lambda line: None)
    assert limits == [40.0, 40.0, 120.0]


def test_missing_packages_and_gpus_are_named(tmp_path: Path) -> None:
    assert missing_requirement(Step(name="a", seconds=1, packages=("json",)), 1) == ""
    absent = Step(name="a", seconds=1, packages=("json", "no_such_package"))
    assert missing_requirement(absent, 1) == "no_such_package is not installed"
    two = Step(name="a", seconds=1, gpus=2)
    assert missing_requirement(two, 1) == "needs 2 GPUs, the machine has 1"
    assert missing_requirement(two, 2) == missing_requirement(two, None) == ""
    results = Results(path=tmp_path / "results.json")
    run_steps([absent], results, command, seconds=60.0, num_gpus=1, log=lambda line: None)
    assert results.steps["a"] == {"status": "not reached", "reason": "no_such_package is not installed"}


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"steps": {}}', '{"machine": 3, "steps": {}}'])
def test_a_file_without_results_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"results\.json does not contain results of tests\.gpu\.first_run"):
        Results.read(path)
    assert path.read_text() == content
