"""Run a step as a job on a Ray cluster: the same command line, with --address.

slick submit study paper --model ID --questions dataset.zip --address http://127.0.0.1:8265 --out s3://bucket/study
slick submit annotate paper --model ID --address http://HEAD:8265 --out s3://bucket/study --env HF_TOKEN --no-wait

--address URL         the head's dashboard, or RAY_API_SERVER_ADDRESS; `ray dashboard cluster.yaml` opens a tunnel to it
--out URI             the study folder, which every node must reach: s3://..., gs://..., file:///shared/disk/...
--env NAME            pass this environment variable on; may be repeated. Its value is not shown here, but Ray stores it
                      with the job and in a log on the nodes (runtime_env_agent.log), readable with the cluster's token,
                      and in the command line of each worker while it starts, which users of the node can read
--requirements FILE   packages that every node installs first, such as requirements.lock; not needed if the image has
                      them
--no-wait             do not follow the log of the job; `slick jobs` does that later
--dry-run             check the command and print what would run, without connecting to the cluster

The job runs with the Python of the head's Ray processes (jobs/start.sh). --config FILE is read on this machine; its
settings are submitted as flags. Files of --questions, --audit, --relations, --graded and --deepspeed
are uploaded with the code.
The exit status is that of the step.
"""

import hashlib
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.annotate import RESCORE
from jobs.common import is_help_command, parse_config, parse_preset, run_main
from jobs.config_file import expand_config_file, settings_selector
from jobs.curate import CURATE, data_flags
from jobs.flags import FlagParser, canonical_flags, did_you_mean, flag_names, pop_switch
from jobs.presets import STEP_PRESETS, StudyConfig
from jobs.ray_client import RayJobClient, is_loopback_address, parse_address
from jobs.study import resolve
from slick.annotation import RescoreConfig
from slick.cluster import MALLOC_ENV
from slick.curation.config import CurateConfig
from slick.errors import SettingsError
from slick.storage import Folder

_FLAGS = ("address", "out", "env", "requirements", "no-wait", "dry-run", "config")
"""The flags of this command."""
_ENVIRONMENT = {**MALLOC_ENV, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of every job and its workers; see slick/cluster.py."""

ROOT = Path(__file__).parents[1]
"""The folder of the packages: the project's folder, or site-packages if the project is installed."""

PACKAGES = ("slick", "tuning", "jobs")
EXTRA_FILES = ("pyproject.toml", "constraints.txt")
"""An allow list, so that a study, a model or a key in the project folder is never uploaded by mistake."""
IGNORED_PATTERNS = ("__pycache__", "*.pyc", ".*", "studies", "*.parquet", "*.safetensors", "*.gguf", "*.bin", "*.pt")
"""Files that are not uploaded even if they lie inside a package."""

SUBMITTED_STEPS: Mapping[str, Mapping[str, Callable[[], Any]]] = {**STEP_PRESETS, CURATE: {"": CurateConfig}}
"""Presets by step."""

UPLOADED_FLAGS = {"questions", "audit", "relations", "graded", "data", "exemplars", "deepspeed"}
"""Last parts of flags whose file the driver reads, such as `questions` of `--prepare.questions`; it is uploaded."""
REMOTE_PATH_FLAGS = {"model", "rejects", "to"}
"""Flags whose path is not uploaded: it is too large, or written by the job."""
FILES_FOLDER = "files"
"""Folder of the uploaded files inside the working directory."""
MAX_FILE_BYTES = 200_000_000
"""Limit of one uploaded file. Ray keeps uploads in the head's memory and accepts 512 MB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """Flags with paths of the cluster, and the files to upload."""

    flags: tuple[str, ...]
    files: Mapping[str, Path]
    """Path inside the working directory -> file on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job whose command line is valid."""

    address: str
    step: str
    preset: str
    """Empty for `curate`, which has none."""
    out: str
    job_files: JobFiles
    env: Mapping[str, str]
    requirements: str
    wait: bool

    @property
    def entrypoint(self) -> str:
        """The command line that the head runs; start.sh runs `python -m jobs.STEP` with the head's Python."""
        command = ["sh", "jobs/start.sh", *self.name.split(), "--out", self.out, *self.job_files.flags]
        return shlex.join(command)

    @property
    def name(self) -> str:
        """Step and preset."""
        return f"{self.step} {self.preset}".strip()

    @property
    def metadata(self) -> dict[str, str]:
        """Shown in lists of jobs; holds nothing of the environment."""
        return {"step": self.step, "preset": self.preset, "study": self.out}


def main(argv: Sequence[str]) -> None:
    """Check and submit the job, and follow its log."""
    if not argv or is_help_command(argv):
        steps = ", ".join(SUBMITTED_STEPS)
        print(f"{(__doc__ or '').strip()}\n\nSteps: {steps}. Their flags: `slick STEP PRESET --help`")
        return
    dry_run, rest = pop_switch(argv, "--dry-run")
    job = parse_submission(rest)
    if dry_run:
        print(describe_submission(job))
        return
    submit(job)


def parse_submission(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Submission:
    """Parse and check the command line, without connecting to the cluster.

    Raises:
        SettingsError: an unknown step, preset or flag, a folder that the cluster cannot reach, or an unset variable.
    """
    if not argv or argv[0] not in SUBMITTED_STEPS:
        raise SettingsError(
            f"slick submit expects a step first, one of {', '.join(SUBMITTED_STEPS)}; got {argv[0] if argv else 'none'}"
            + (did_you_mean(argv[0], SUBMITTED_STEPS) if argv else "")
        )
    step, prog = argv[0], f"slick submit {argv[0]}"
    preset, rest = "", list(argv[1:])
    if step == CURATE:
        rest = data_flags(rest, prog)
    else:
        preset, _, rest = parse_preset(rest, prog, SUBMITTED_STEPS[step])
    parser = FlagParser(prog)
    for flag in ("--address", "--out"):
        parser.add_flag(flag)
    parser.add_flag("--requirements", default="")
    parser.add_flag("--env", action="append", default=[])
    parser.add_flag("--no-wait", action="store_true")
    known, rest = parser.parse_known(rest)
    flags = check_flags(step, preset, rest)
    address = parse_address(known.address)
    via_loopback = is_loopback_address(address)
    if known.requirements and not Path(known.requirements).is_file():
        raise SettingsError(f"--requirements {known.requirements} is not a file of this machine; give the path of one")
    return Submission(
        address=address,
        step=step,
        preset=preset,
        out=cluster_path(known.out, via_loopback=via_loopback),
        job_files=plan_job_files(flags, via_loopback=via_loopback),
        env=select_env(known.env, environ),
        requirements=known.requirements,
        wait=not known.no_wait,
    )


def check_flags(step: str, preset: str, flags: Sequence[str]) -> list[str]:
    """Parse the flags as the step will; returns them and those of `--config` in canonical spelling."""
    named: Callable[[], Any] = SUBMITTED_STEPS[step][preset]
    is_rescore, rest = pop_switch(flags, RESCORE) if step == "annotate" else (False, list(flags))
    settings, prog = RescoreConfig() if is_rescore else named(), f"slick submit {step} {preset}".strip()
    selector = None if is_rescore or step == CURATE else settings_selector(step)
    rest = expand_config_file(rest, settings, prog, selector, _FLAGS)
    config = parse_config(settings, rest, prog, _FLAGS)
    if isinstance(config, StudyConfig):
        resolve(config)
    return [RESCORE] * is_rescore + canonical_flags(rest, flag_names(type(settings)), prog)


def cluster_path(out: str | None, *, via_loopback: bool) -> str:
    """The study folder as a path or URI of the cluster.

    Raises:
        SettingsError: `out` is None, or a path of this machine while the head is on another one.
    """
    if out is None:
        raise SettingsError("slick submit needs --out URI, a study folder that every node can reach: s3://bucket/study")
    if "://" in out:
        return out.rstrip("/") if out.startswith("file://") else Folder(out).uri
    if via_loopback:
        return Folder(out).uri  # absolute, since the job runs in another working directory
    raise SettingsError(
        f"--out {out} is a path of this machine, which the cluster cannot reach; give a URI that every node can reach, "
        f"s3://bucket/study, or for a disk that all nodes share file://{Folder(out).uri}"
    )


def select_env(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables by name.

    Raises:
        SettingsError: a variable is not set, or its value is in the command line, which other users can read.
    """
    for name in names:
        if "=" in name:
            name = name.partition("=")[0]
            raise SettingsError(f"--env takes a name without a value: export {name} here, then give --env {name}")
        if name not in environ:
            raise SettingsError(f"--env {name}: this variable is not set; export it, or leave the flag out")
    return {name: environ[name] for name in names}


def describe_submission(job: Submission) -> str:
    """The command and files of a job, without values of the environment."""
    lines = [job.entrypoint, f"  on {job.address}"]
    lines += [f"  with {path} as {inside}" for inside, path in job.job_files.files.items()]
    lines += [f"  with the environment's {name}" for name in job.env]
    return "\n".join(lines)


def submit(job: Submission) -> None:
    """Start the job; with `wait`, follow its log and exit with its status."""
    head = RayJobClient(job.address)
    job_id = f"slick-{job.name.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix="slick-") as folder:
        build_working_dir(Path(folder), job.job_files.files)
        env = _ENVIRONMENT | dict(job.env)
        packages = [add_requirements(Path(folder), Path(job.requirements))] if job.requirements else []
        head.submit(job.entrypoint, job_id, Path(folder), env, job.metadata, packages)
    print(f"job {job_id}, study {job.out}\n{head.dashboard_url(job_id)}", flush=True)
    if "://" not in job.out:
        print("note: this folder is on the machine of the head; if a tunnel leads to the head, give a URI")
    if job.wait:
        follow(head, job_id)
    else:
        print(f"The job runs. {_next_commands(head, job_id)}")


def follow(head: RayJobClient, job_id: str) -> None:
    """Print the log of a job until it ends, and exit with its status. Ctrl-C asks whether to stop the job as well."""
    try:
        job = head.follow(job_id)
    except KeyboardInterrupt:
        _on_interrupt(head, job_id)
        sys.exit(130)
    status = job.exit_status
    print(f"job {job_id}: {job.status}", flush=True)
    if status and job.exit_code is None and job.reason:
        print(f"\nslick: {job.reason}", file=sys.stderr)  # it ended before the step could print the reason
    if status:
        sys.exit(status)


def _on_interrupt(head: RayJobClient, job_id: str) -> None:
    if sys.stdin.isatty():
        try:
            answer = input("\nStop the job too? [y/N] ")
        except (KeyboardInterrupt, EOFError):
            answer = ""
        if answer.strip().lower() in ("y", "yes"):
            head.stop(job_id)
            print("The job is stopping. Finished work is kept; the same command resumes it.")
            return
    print(f"\nThe job continues. {_next_commands(head, job_id)}")


def _next_commands(head: RayJobClient, job_id: str) -> str:
    jobs = f"slick jobs --address {head.address}"
    return f"To follow it: {jobs} --follow {job_id}; to stop it: {jobs} --stop {job_id}"


def plan_job_files(flags: Sequence[str], *, via_loopback: bool) -> JobFiles:
    """Replace paths of this machine by paths of the cluster.

    Args:
        flags: the flags of a step, and their values.
        via_loopback: the head is reached over loopback; it may be on this machine or behind a tunnel.

    Raises:
        SettingsError: a flag names a path of this machine that the cluster cannot reach.
    """
    remote, files = list(flags), dict[str, Path]()
    flag = ""
    for index, argument in enumerate(flags):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            if equals:
                remote[index] = f"{flag}={_remote_value(flag, value, files, via_loopback=via_loopback)}"
        else:
            remote[index] = _remote_value(flag, argument, files, via_loopback=via_loopback)
    return JobFiles(flags=tuple(remote), files=files)


def _remote_value(flag: str, value: str, files: dict[str, Path], *, via_loopback: bool) -> str:
    kind = flag.removeprefix("--").rpartition(".")[2].replace("-", "_")
    path = Path(os.path.expanduser(value))
    if kind not in UPLOADED_FLAGS | REMOTE_PATH_FLAGS or "://" in value or not value:
        return value
    if kind in UPLOADED_FLAGS and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
        inside = f"{FILES_FOLDER}/{path.name}"
        if files.setdefault(inside, path) != path:
            raise SettingsError(f"{flag} {value}: {files[inside]} has the same name; rename one of them")
        return inside
    if kind in UPLOADED_FLAGS and not path.exists() and not path.is_absolute():
        raise SettingsError(f"{flag} {value} does not exist; give a file of this machine, which is uploaded, or a URI")
    if path.is_absolute() or (kind == "model" and not path.exists()):
        return value  # on a disk that the nodes share, or a model id of the Hugging Face hub
    if via_loopback:
        return os.path.abspath(path)
    raise SettingsError(
        f"{flag} {value} is a path of this machine, which the cluster cannot reach; put it where every node can read "
        "it (s3://bucket/..., or the absolute path of a shared disk)"
    )


def build_working_dir(target: Path, files: Mapping[str, Path], root: Path = ROOT) -> None:
    """Copy the code and the files that the flags name to the empty folder `target`, the job's working directory."""
    for package in PACKAGES:
        shutil.copytree(root / package, target / package, ignore=shutil.ignore_patterns(*IGNORED_PATTERNS))
    for name in EXTRA_FILES:
        if (root / name).exists():
            shutil.copyfile(root / name, target / name)
    for inside, path in files.items():
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / inside)


def add_requirements(working_dir: Path, file: Path) -> str:
    """Copy a requirements file to the working directory, and return the line of a runtime environment that installs it.

    Ray stores the lines of a runtime environment in an environment variable, for which a lock file with hashes is too
    long, and names the installed packages by them. Hence the name has a hash of the content.
    """
    content = file.read_bytes()
    name = f"requirements-{hashlib.sha256(content).hexdigest()[:16]}.txt"
    (working_dir / name).write_bytes(content)
    return f"-r ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{name}"


if __name__ == "__main__":
    run_main(main)
