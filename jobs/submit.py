"""Run a step as a job on a Ray cluster: the same command line, with --address.

slick submit study paper --model ID --questions dataset.zip --address http://127.0.0.1:8265 --out s3://bucket/study
slick submit annotate paper --model ID --address http://HEAD:8265 --out s3://bucket/study --env HF_TOKEN --no-wait

--address URL         the head's dashboard, or RAY_API_SERVER_ADDRESS; `ray dashboard cluster.yaml` opens a tunnel to it
--out URI             the study folder, which every node must reach: s3://..., gs://..., file:///shared/disk/...
--env NAME            hand this environment variable on; repeat for more. Never shown here; but Ray keeps the values
                      with the job and in a log of the nodes (runtime_env_agent.log), for who holds the cluster's token
--requirements FILE   have every node install this file's packages first; not needed where the image holds them
--no-wait             do not follow the job; `slick jobs` shows it
--dry-run             check everything and show what would run, without the cluster

The job runs with the Python that the head's Ray itself runs with, wherever that was started from (jobs/start.sh).
--config FILE is read on this machine; its settings are submitted as flags.
Files that --questions, --audit, --relations or --graded name travel with the code. Exit status: the step's.
"""

import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import presets
from jobs.annotate import RESCORE
from jobs.common import is_help_command, parse_config, parse_preset, run_main
from jobs.config_file import expand_config_file
from jobs.flags import FlagParser, canonical_flags, did_you_mean, flag_names, pop_switch
from jobs.ray_client import RayJobClient, is_loopback_address, parse_address
from jobs.study import resolve
from jobs.study_file import settings_selector
from jobs.working_dir import JobFiles, build_working_dir, plan_job_files
from slick.annotation import RescoreConfig
from slick.cluster import MALLOC_ENV
from slick.errors import SettingsError
from slick.storage import Folder

STEP_PRESETS: dict[str, Mapping[str, Callable[[], Any]]] = {
    "study": presets.STUDY,
    "world": presets.WORLD,
    "questions": presets.QUESTIONS,
    "annotate": presets.ANNOTATE,
    "variants": presets.VARIANTS,
    "finetune": presets.FINETUNE,
    "sweep": presets.SWEEP,
    "report": presets.REPORT,
}

_FLAGS = ("address", "out", "env", "requirements", "no-wait", "dry-run", "config")
"""Of this command itself."""
_ENVIRONMENT = {**MALLOC_ENV, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1", "TOKENIZERS_PARALLELISM": "false"}
"""What every job and its workers are told; see slick/cluster.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job, checked as far as this machine can check it."""

    address: str
    step: str
    preset: str
    out: str
    job_files: JobFiles
    env: Mapping[str, str]
    requirements: str
    wait: bool

    @property
    def entrypoint(self) -> str:
        """The command line that the head runs: `python -m jobs.STEP ...`, by the Python that start.sh finds there."""
        words = ["sh", "jobs/start.sh", self.step, self.preset, "--out", self.out, *self.job_files.flags]
        return shlex.join(words)

    @property
    def metadata(self) -> dict[str, str]:
        """What lists of jobs show; nothing from the environment."""
        return {"step": self.step, "preset": self.preset, "study": self.out}


def main(argv: Sequence[str]) -> None:
    """Check, pack, submit, follow."""
    if not argv or is_help_command(argv):
        print(f"{(__doc__ or '').strip()}\n\nSteps: {', '.join(STEP_PRESETS)}. Their flags: `slick STEP PRESET --help`")
        return
    dry_run, rest = pop_switch(argv, "--dry-run")
    job = parse_submission(rest)
    if dry_run:
        print(describe_submission(job))
        return
    submit(job)


def parse_submission(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Submission:
    """Everything that can be wrong is found here, before the cluster is asked.

    Raises:
        SettingsError: an unknown step, preset or flag, a folder that the cluster cannot reach, a variable that is not
            set.
    """
    if not argv or argv[0] not in STEP_PRESETS:
        raise SettingsError(
            f"slick submit needs a step first, one of {', '.join(STEP_PRESETS)}; got {argv[0] if argv else 'none'}"
            + (did_you_mean(argv[0], STEP_PRESETS) if argv else "")
        )
    step, prog = argv[0], f"slick submit {argv[0]}"
    preset, _, rest = parse_preset(argv[1:], prog, STEP_PRESETS[step])
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
        raise SettingsError(f"--requirements {known.requirements} is not a file here")
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
    """Parse a step's flags as the step itself will; returns them, and those of `--config`, in canonical spelling."""
    named: Callable[[], Any] = STEP_PRESETS[step][preset]
    is_rescore, rest = pop_switch(flags, RESCORE) if step == "annotate" else (False, list(flags))
    settings, prog = RescoreConfig() if is_rescore else named(), f"slick submit {step} {preset}"
    rest = expand_config_file(rest, settings, prog, None if is_rescore else settings_selector(step), _FLAGS)
    config = parse_config(settings, rest, prog, _FLAGS)
    if isinstance(config, presets.StudyConfig):
        resolve(config)
    return [RESCORE] * is_rescore + canonical_flags(rest, flag_names(type(settings)), prog)


def cluster_path(out: str | None, *, via_loopback: bool) -> str:
    """The study folder as the cluster sees it.

    Raises:
        SettingsError: there is none, or it is a path of this machine and the head is on another.
    """
    if out is None:
        raise SettingsError("slick submit needs --out URI, a study folder that every node reaches: s3://bucket/study")
    if "://" in out:
        return out.rstrip("/") if out.startswith("file://") else Folder(out).uri
    if via_loopback:
        return Folder(out).uri  # the job runs in a folder of its own, where a relative path would be lost
    raise SettingsError(
        f"--out {out} is a path of this machine, which the cluster does not see; give a URI that every node reaches, "
        f"s3://bucket/study, or for a disk that all nodes share file://{Folder(out).uri}"
    )


def select_env(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables by name.

    Raises:
        SettingsError: one is not set, or its value stands in the command line, where others can read it.
    """
    for name in names:
        if "=" in name:
            name = name.partition("=")[0]
            raise SettingsError(f"--env takes a name alone: export {name} here, then give --env {name}")
        if name not in environ:
            raise SettingsError(f"--env {name}: no such variable is set here; export it, or leave the flag out")
    return {name: environ[name] for name in names}


def describe_submission(job: Submission) -> str:
    """What would run, without values from the environment."""
    lines = [job.entrypoint, f"  on {job.address}"]
    lines += [f"  with {path} as {inside}" for inside, path in job.job_files.files.items()]
    lines += [f"  with the environment's {name}" for name in job.env]
    return "\n".join(lines)


def submit(job: Submission) -> None:
    """Start the job; unless told otherwise follow it, and end as it ends."""
    head = RayJobClient(job.address)
    job_id = f"slick-{job.step}-{job.preset}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix="slick-") as folder:
        build_working_dir(Path(folder), job.job_files.files)
        env = _ENVIRONMENT | dict(job.env)
        head.submit(job.entrypoint, job_id, Path(folder), env, job.metadata, job.requirements)
    print(f"job {job_id}, study {job.out}\n{head.dashboard_url(job_id)}", flush=True)
    if "://" not in job.out:
        print("note: that is a folder of the head's machine; if the head is at the far end of a tunnel, give a URI")
    if job.wait:
        follow(head, job_id)
    else:
        print(f"It runs. {_next_commands(head, job_id)}")


def follow(head: RayJobClient, job_id: str) -> None:
    """Show a job's log until it ends, and exit with its status; Ctrl-C leaves it running, or stops it if so wished."""
    try:
        job = head.follow(job_id)
    except KeyboardInterrupt:
        _on_interrupt(head, job_id)
        sys.exit(130)
    status = job.exit_status
    print(f"job {job_id}: {job.status}", flush=True)
    if status and job.exit_code is None and job.reason:
        print(f"\nslick: {job.reason}", file=sys.stderr)  # it ended before its own door could say why
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
            print("The job is told to stop. What is finished stays: the same command goes on from there.")
            return
    print(f"\nThe job goes on. {_next_commands(head, job_id)}")


def _next_commands(head: RayJobClient, job_id: str) -> str:
    jobs = f"slick jobs --address {head.address}"
    return f"To watch: {jobs} --follow {job_id}; to stop: {jobs} --stop {job_id}"


if __name__ == "__main__":
    run_main(main)
