"""Job submission: checks before connecting, uploaded files, secrets."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import cast

import pytest

from jobs.jobs import jobs_table
from jobs.jobs import main as jobs_main
from jobs.presets import STEP_PRESETS
from jobs.ray_client import (
    RayJob,
    RayJobClient,
    check_head_reachable,
    is_loopback_address,
    parse_address,
    submit_when_ready,
)
from jobs.submit import (
    add_requirements,
    build_working_dir,
    describe_submission,
    follow,
    main,
    parse_submission,
    plan_job_files,
)
from slick.cluster import configure_authentication
from slick.errors import ClusterError, SettingsError

ROOT = Path(__file__).parents[2]
REMOTE, LOCAL = "http://10.0.0.5:8265", "http://127.0.0.1:8265"
SECRET = "hf_not_to_be_seen"


def submit_arguments(*flags: str, address: str = REMOTE, out: str = "s3://bucket/study") -> list[str]:
    return ["variants", "demo", "--address", address, "--out", out, *flags]


def test_entrypoint_is_the_command_of_the_step() -> None:
    job = parse_submission(submit_arguments("--unknown-shares", "0", "0.5", "--env", "A", "--no-wait"), {"A": "1"})
    assert job.entrypoint == "sh jobs/start.sh variants demo --out s3://bucket/study --unknown-shares 0 0.5"
    assert not job.wait
    assert job.metadata == {"step": "variants", "preset": "demo", "study": "s3://bucket/study"}


def test_every_computing_step_can_be_submitted() -> None:
    from jobs.cli import STEP_DESCRIPTIONS

    assert STEP_PRESETS.keys() | {"curate"} == STEP_DESCRIPTIONS.keys() - {
        "status",
        "compare",
        "plan",
        "submit",
        "jobs",
    }
    for step, step_presets in STEP_PRESETS.items():
        flags = ["--model", "m/m", "--questions", "s3://b/q.zip"] if step == "study" else []
        for preset in step_presets:
            job = parse_submission([step, preset, "--address", REMOTE, "--out", "s3://b/s", *flags])
            assert job.entrypoint.startswith(f"sh jobs/start.sh {step} {preset} --out s3://b/s")


def test_curation_is_submitted_with_its_data(tmp_path: Path) -> None:
    target = ["--address", REMOTE, "--out", "s3://b/s"]
    job = parse_submission(["curate", "s3://b/data.jsonl", "--model", "m/m", *target])
    assert job.entrypoint == "sh jobs/start.sh curate --out s3://b/s --data s3://b/data.jsonl --model m/m"
    assert job.metadata["step"] == "curate"
    (tmp_path / "data.jsonl").write_text("{}")
    job = parse_submission(["curate", str(tmp_path / "data.jsonl"), "--model", "m/m", *target])
    assert job.job_files.files == {"files/data.jsonl": tmp_path / "data.jsonl"}
    assert "--data files/data.jsonl" in job.entrypoint
    with pytest.raises(SettingsError, match="needs a file or folder of rows first"):
        parse_submission(["curate", "--model", "m/m", *target])
    with pytest.raises(SettingsError, match=r"--unknwn.*did you mean --unknown"):
        parse_submission(["curate", "s3://b/data.jsonl", "--unknwn", "drop", *target])


def test_rescoring_and_quoting() -> None:
    argv = ["annotate", "demo", "--rescore", "--matcher", "contains", "--address", REMOTE, "--out", "s3://b/it's mine"]
    job = parse_submission(argv)
    assert (
        job.entrypoint == """sh jobs/start.sh annotate demo --out 's3://b/it'"'"'s mine' --rescore --matcher contains"""
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expects a step first, one of study, world"),
        (["status"], "got status"),
        (["variants", "domo"], "no preset 'domo'"),
        (["variants", "demo", "--out", "s3://b/s"], "no --address is given"),
        (["variants", "demo", "--out", "s3://b/s", "--address", "head:8265"], "expected http://HEAD:8265"),
        (["variants", "demo", "--address", REMOTE], "needs --out URI"),
        (
            submit_arguments(out="studies/x"),
            "--out studies/x is a path of this machine, which the cluster cannot reach",
        ),
        (submit_arguments(out="/data/x"), "for a disk that all nodes share file:///data/x"),
        (submit_arguments("--env", "NOT_SET_ANYWHERE"), "--env NOT_SET_ANYWHERE: this variable is not set"),
        (submit_arguments("--env", f"HF_TOKEN={SECRET}"), "export HF_TOKEN here, then give --env HF_TOKEN"),
        (submit_arguments("--requirements", "none.txt"), "--requirements none.txt is not a file of this machine"),
        (["study", "paper", "--address", REMOTE, "--out", "s3://b/s"], "give --model ID_OR_PATH"),
        (
            ["questions", "paper", "--questions", "q.zip", "--address", REMOTE, "--out", "s3://b/s"],
            "q.zip does not exist",
        ),
    ],
)
def test_invalid_submission_is_rejected_before_connecting(
    argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SettingsError) as error:
        parse_submission(argv)
    assert message in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (submit_arguments("--unknown-share", "0"), "no flag --unknown-share (did you mean --unknown-shares?)"),
        (submit_arguments("--adress", "x"), "no flag --adress (did you mean --address?)"),
        (submit_arguments("--min-per-relation", "few"), "--min-per-relation takes an integer, got 'few'"),
        (["annotate", "demo", "--mode", "lables"], "takes full or labels, got 'lables' (did you mean labels?)"),
        (["anotate", "demo"], "got anotate (did you mean annotate?)"),
        (["variants", "demo", "--env"], "--env: expected one argument"),
    ],
)
def test_flags_are_checked_before_anything_is_submitted(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_submission(argv)
    assert message in str(error.value)


def test_job_has_canonical_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text("{}")
    argv = [
        "questions",
        "demo",
        "--source",
        "q.jsonl",
        "--limit_per_relation=3",
        "--address",
        REMOTE,
        "--out",
        "s3://b/s",
    ]
    job = parse_submission(argv)
    assert job.job_files.flags == ("--questions", "files/q.jsonl", "--limit-per-relation=3")
    assert list(job.job_files.files) == ["files/q.jsonl"], "files of former flag names must be uploaded too"


def test_local_paths_are_kept_for_a_head_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_submission(submit_arguments(address=LOCAL, out="studies/x")).out == f"{tmp_path}/studies/x"
    assert parse_submission(submit_arguments(out="file:///shared/x")).out == "file:///shared/x"
    assert [
        is_loopback_address(f"http://{host}:1") for host in ("localhost", "127.0.0.2", "[::1]", "10.0.0.5", "head")
    ] == [
        *(True, True, True),
        *(False, False),
    ]


def test_address_flag_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265/")
    assert parse_address(None) == "http://other:8265"
    assert parse_address("https://head/") == "https://head"


def test_files_of_flags_are_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("{}")
    Path("model").mkdir()
    job_files = plan_job_files(
        ["--prepare.questions=a.jsonl", "--audit", "s3://b/q.zip", "--seed", "3"], via_loopback=False
    )
    assert job_files.flags == ("--prepare.questions=files/a.jsonl", "--audit", "s3://b/q.zip", "--seed", "3")
    assert job_files.files == {"files/a.jsonl": Path("a.jsonl")}
    hub = ("--model", "meta-llama/Llama-3.2-1B")
    assert plan_job_files(hub, via_loopback=False).flags == hub
    assert plan_job_files(["--annotate.model", "model"], via_loopback=True).flags[1] == f"{tmp_path}/model"
    assert plan_job_files(["--model", "/shared/model"], via_loopback=False).flags[1] == "/shared/model"
    for flags in (["--model", "model"], ["--rejects", "bad.jsonl"]):
        with pytest.raises(SettingsError, match="is a path of this machine"):
            plan_job_files(flags, via_loopback=False)


@pytest.mark.parametrize("flags", [["--graded", "sheet.csv"], ["--report.graded=sheet.csv"]])
def test_graded_sheet_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    step = "study" if "report" in flags[0] else "report"
    argv = [step, "demo", "--address", REMOTE, "--out", "s3://b/s", *flags]
    with pytest.raises(SettingsError, match=r"sheet\.csv does not exist; give a file of this machine"):
        parse_submission(argv)
    Path("sheet.csv").write_text("sheet,answer_id,grade\n")
    assert parse_submission(argv).entrypoint.endswith(" ".join(flags).replace("sheet.csv", "files/sheet.csv"))
    main([*argv, "--dry-run"])
    assert "with sheet.csv as files/sheet.csv" in capsys.readouterr().out


def test_two_files_with_the_same_name_are_rejected(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.csv").write_text("x")
    with pytest.raises(SettingsError, match="has the same name"):
        plan_job_files(["--questions", f"{tmp_path}/a/q.csv", "--audit", f"{tmp_path}/b/q.csv"], via_loopback=False)


def test_large_file_is_not_uploaded(tmp_path: Path) -> None:
    large = tmp_path / "q.parquet"
    with large.open("wb") as file:
        file.truncate(300_000_000)
    assert plan_job_files(["--questions", str(large)], via_loopback=False).files == {}


def test_only_code_is_uploaded(tmp_path: Path) -> None:
    root, target, question = tmp_path / "root", tmp_path / "target", tmp_path / "q.parquet"
    code_files = [
        "slick/a.py",
        "slick/data/facts.json",
        "slick/py.typed",
        "tuning/b.py",
        "jobs/c.py",
        "constraints.txt",
    ]
    other_files = [
        "studies/x/manifest.json",
        "data/q.zip",
        ".git/config",
        ".venv/bin/python",
        ".env",
        "id_rsa",
        "m.gguf",
    ]
    other_files += [
        "slick/__pycache__/a.pyc",
        "slick/.env",
        "jobs/studies/x.json",
        "tuning/m.safetensors",
        "slick/t.parquet",
    ]
    for name in [*code_files, *other_files]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    question.write_text("q")
    target.mkdir()
    build_working_dir(target, {"files/q.parquet": question}, root)
    uploaded = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert uploaded == {*code_files, "files/q.parquet"}


def test_requirements_are_uploaded_under_a_name_of_their_content(tmp_path: Path) -> None:
    file, target = tmp_path / "lock.txt", tmp_path / "target"
    target.mkdir()
    file.write_text("ray==1 \\\n    --hash=sha256:00\n")
    line = add_requirements(target, file)
    folder, _, name = line.partition("-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/")
    assert (folder, (target / name).read_bytes()) == ("", file.read_bytes())
    file.write_text("ray==2\n")
    assert add_requirements(target, file) != line, "Ray would keep the packages of the first file"


def test_uploaded_code_runs_alone(tmp_path: Path) -> None:
    build_working_dir(tmp_path, {})
    completed = subprocess.run(
        [sys.executable, "-m", "jobs.variants", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 2
    assert "needs --out DIR" in completed.stderr
    code = "import slick; print(slick.__file__)"
    assert str(tmp_path) in subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 5_000_000


def run_start_script(folder: Path, path: str, workers: str | None) -> subprocess.CompletedProcess[str]:
    """Run start.sh as a child of a process that has, like Ray's raylet, the Python of its workers in its arguments."""
    command = ["sh", "jobs/start.sh", "variants", "demo"]
    raylet = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:]).returncode)"
    named = f"--python_worker_command={subprocess.list2cmdline([workers, 'worker.py', '--x'])}" if workers else "--none"
    return subprocess.run(
        [sys.executable, "-c", raylet, named, *command],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory of a job, and two Pythons: one without packages, one with a space in its path."""
    folder = tmp_path_factory.mktemp("job")
    build_working_dir(folder, {})
    for name, python in (("bare", f"{Path(sys.executable).resolve()} -I -S"), ("with space", sys.executable)):
        (folder / name).mkdir()
        (folder / name / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (folder / name / "python").chmod(0o755)
    return folder


BIN = "/usr/bin:/bin"


@pytest.mark.parametrize("workers", [sys.executable, "with space/python"])
@pytest.mark.parametrize("first", ["", "bare"])
def test_job_uses_rays_python_if_that_of_the_path_is_unsuitable(working_dir: Path, workers: str, first: str) -> None:
    path = f"{working_dir / first}:{working_dir / 'tools'}"
    (working_dir / "tools").mkdir(exist_ok=True)
    for name in ("sh", "tr", "sed", "tail", "cat", "uname"):  # a PATH without any Python
        if not (working_dir / "tools" / name).exists():
            (working_dir / "tools" / name).symlink_to(shutil.which(name, path=BIN) or name)
    result = run_start_script(working_dir, path, workers if workers == sys.executable else str(working_dir / workers))
    assert (result.returncode, result.stderr.count("slick: ")) == (2, 1), result.stderr
    assert "slick variants needs --out DIR" in result.stderr


def test_job_uses_python_of_the_path_if_it_has_all_packages(working_dir: Path) -> None:
    for workers in (None, str(working_dir / "bare" / "python"), "/nowhere/python"):
        result = run_start_script(working_dir, f"{Path(sys.executable).parent}:{BIN}", workers)
        assert (result.returncode, result.stderr.count("slick: ")) == (2, 1), result.stderr
        assert "slick variants needs --out DIR" in result.stderr


def test_job_uses_rays_python_if_that_of_the_path_has_another_ray(working_dir: Path) -> None:
    """Ray requires the same version of Ray and Python in a whole cluster."""
    (working_dir / "other").mkdir()
    (working_dir / "other" / "python").write_text('#!/bin/sh\n[ "$1" = -c ] && echo 1.0.0 2 7 || echo the other\n')
    (working_dir / "other" / "python").chmod(0o755)
    path = f"{working_dir / 'other'}:{BIN}"
    assert "slick variants needs --out DIR" in run_start_script(working_dir, path, sys.executable).stderr
    assert run_start_script(working_dir, path, None).stdout == "the other\n", "it is used if there is no other"


def test_head_without_suitable_python_is_one_message(working_dir: Path) -> None:
    result = run_start_script(working_dir, f"{working_dir / 'bare'}:{BIN}", str(working_dir / "bare" / "python"))
    assert (result.returncode, result.stderr.count("slick: ")) == (2, 1), result.stderr
    assert f"found {working_dir}/bare/python, which lacks ray, pyarrow, numpy" in result.stderr
    assert "Activate its environment before `ray start`" in result.stderr
    assert "Traceback" not in result.stderr
    (reason,) = (line for line in result.stderr.splitlines() if line.startswith("slick: "))
    assert replace(JOB, status="FAILED", message=f"last logs:\n{result.stderr}").reason == reason, (
        "`slick jobs` must show the message"
    )


def test_start_script_checks_all_dependencies() -> None:
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    match = re.search(r'^needed="(.*)"$', (ROOT / "jobs" / "start.sh").read_text(), re.MULTILINE)
    assert match
    assert set(match.group(1).split()) == {re.split(r"[^\w]", name)[0] for name in names}


def test_values_of_env_variables_are_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    main(submit_arguments("--env", "HF_TOKEN", "--dry-run"))
    job = parse_submission(submit_arguments("--env", "HF_TOKEN"))
    assert job.env == {"HF_TOKEN": SECRET}
    output = capsys.readouterr().out + describe_submission(job) + job.entrypoint + str(job.metadata)
    assert "the environment's HF_TOKEN" in output
    assert SECRET not in output


JOB = RayJob(job_id="j", status="RUNNING", metadata={}, message="", error_type="", exit_code=None, since_s=None)


@pytest.mark.parametrize(
    ("status", "exit_code", "error_type", "expected"),
    [
        ("SUCCEEDED", 0, "", 0),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", 2),
        ("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR", 1),
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", 1),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", 2),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", 1),
        ("STOPPED", None, "", 130),
    ],
)
def test_exit_status_of_a_job(status: str, exit_code: int | None, error_type: str, expected: int) -> None:
    assert replace(JOB, status=status, exit_code=exit_code, error_type=error_type).exit_status == expected


def test_job_details_omit_the_runtime_environment() -> None:
    details = SimpleNamespace(
        submission_id="j", status="FAILED", metadata=None, message=None, error_type=None, driver_exit_code=2
    )
    details.start_time, details.end_time, details.runtime_env = 1000, 61_000, {"env_vars": {"HF_TOKEN": SECRET}}
    job = RayJob.from_details(details)
    assert (job.since_s, job.exit_code, job.metadata) == (61.0, 2, {})
    assert SECRET not in repr(job)


def test_list_of_jobs_has_step_status_and_reason() -> None:
    failed = "Job entrypoint command failed with exit code 2, last logs:\nreading\n\nslick: q.zip is not there\n  see x"
    study = {"step": "study", "preset": "paper", "study": "s3://b/s"}
    jobs = [
        replace(JOB, job_id="one", metadata=study, message="Job is currently running.", since_s=1000.0),
        replace(JOB, job_id="two", status="FAILED", metadata=study, message=failed, since_s=1000.0),
        replace(JOB, job_id="three", status="PENDING", message="x" * 500),
    ]
    lines = jobs_table(jobs, 1065.0).splitlines()
    assert lines[:2] == ["one  study paper  RUNNING, for 1 min 5 s", "  study s3://b/s"]
    assert lines[2].startswith("two  study paper  FAILED")
    assert lines[4] == "  slick: q.zip is not there"
    assert lines[5] == "three  not of slick  PENDING"
    assert len(lines[6]) <= 102
    running = replace(jobs[0], message="annotate: 24 of 304 questions, 0.8/s, 5 min 36 s left")
    assert jobs_table([running], 1065.0).splitlines()[2] == "  annotate: 24 of 304 questions, 0.8/s, 5 min 36 s left"


def test_unreachable_head_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # restored after the test
    with pytest.raises(ClusterError, match=r"no head answers at http://127.0.0.1:1 .*8265"):
        RayJobClient("http://127.0.0.1:1")


class FakeHead:
    """A fake head: following a job raises KeyboardInterrupt, or returns a given job."""

    address = REMOTE

    def __init__(self, job: RayJob | None = None) -> None:
        self.job, self.stopped = job, list[str]()

    def follow(self, job_id: str) -> RayJob:
        if self.job is None:
            raise KeyboardInterrupt
        return self.job

    def stop(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        return True


@pytest.mark.parametrize(
    ("tty", "answer", "stopped", "message"),
    [
        (True, "y", ["j"], "is stopping"),
        (True, "", [], f"slick jobs --address {REMOTE} --follow j"),
        (False, "y", [], f"slick jobs --address {REMOTE} --stop j"),
    ],
)
def test_ctrl_c_stops_the_job_only_if_confirmed(
    tty: bool,
    answer: str,
    stopped: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: tty))
    monkeypatch.setattr("builtins.input", lambda _: answer)
    head = FakeHead()
    with pytest.raises(SystemExit) as stop:
        follow(cast(RayJobClient, head), "j")
    assert (stop.value.code, head.stopped) == (130, stopped)
    assert message in capsys.readouterr().out


def test_job_that_did_not_start_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(JOB, status="FAILED", message="no pip", error_type="RUNTIME_ENV_SETUP_FAILURE")
    with pytest.raises(SystemExit) as stop:
        follow(cast(RayJobClient, FakeHead(job)), "j")
    assert (stop.value.code, capsys.readouterr().err.strip()) == (2, "slick: no pip")
    follow(cast(RayJobClient, FakeHead(replace(JOB, status="SUCCEEDED"))), "j")


@pytest.mark.parametrize(
    ("environment", "in_home", "sent", "mode"),
    [
        ({}, False, False, "disabled"),
        ({}, True, True, "token"),
        ({"RAY_AUTH_TOKEN": "t"}, False, True, "token"),
        ({"RAY_AUTH_MODE": "disabled"}, True, False, "disabled"),
        ({"RAY_AUTH_MODE": "token"}, False, False, "token"),
    ],
)
def test_token_is_sent_if_there_is_one(
    environment: dict[str, str], in_home: bool, sent: bool, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # restored after the test
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    if in_home:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t")
    assert configure_authentication() is sent
    assert os.environ["RAY_AUTH_MODE"] == mode


@pytest.mark.parametrize(("code", "is_open"), [(200, True), (401, False), (403, False)])
def test_head_with_and_without_token_authentication(code: int, is_open: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.handle_request).start()
        assert check_head_reachable(f"http://127.0.0.1:{server.server_port}") is is_open


def test_jobs_rejects_follow_with_stop() -> None:
    with pytest.raises(SettingsError, match="one of --follow ID, --stop ID"):
        jobs_main(["--follow", "a", "--stop", "b", "--address", LOCAL])


def test_error_in_a_subprocess_is_one_message() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", *submit_arguments(out="studies/x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 2), result.stderr
    assert "Traceback" not in result.stderr


def test_submission_is_retried_until_the_head_has_an_agent() -> None:
    no_agent = "Request failed with status code 500: No available agent to submit job, please try again later."
    refusals = [no_agent, no_agent]
    submitted = []

    def submit() -> None:
        if refusals:
            raise RuntimeError(refusals.pop())
        submitted.append("a job")

    submit_when_ready(submit, pause_s=0)
    assert submitted == ["a job"]
    refusals += [no_agent] * 1_000_000
    with pytest.raises(RuntimeError, match="No available agent"):
        submit_when_ready(submit, limit_s=0.01, pause_s=0)
    refusals[:] = ["Job with submission_id a already exists"]
    with pytest.raises(RuntimeError, match="already exists"):
        submit_when_ready(submit, pause_s=0)
    assert submitted == ["a job"]
