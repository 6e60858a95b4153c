"""List, follow and stop the jobs of a Ray cluster.

slick jobs --address http://HEAD:8265
slick jobs --address http://HEAD:8265 --follow ID    # print its log; exit with its status
slick jobs --address http://HEAD:8265 --stop ID
"""

import time
from collections.abc import Sequence

from jobs.common import has_help_flag, run_main
from jobs.flags import FlagParser
from jobs.ray_client import RayJob, RayJobClient, parse_address
from jobs.submit import follow
from slick.errors import SettingsError
from slick.formatting import format_duration

MAX_MESSAGE_CHARS = 100
"""Characters of a job's message in the list."""


def main(argv: Sequence[str]) -> None:
    """List the jobs, or follow or stop one."""
    if has_help_flag(argv):
        print((__doc__ or "").strip())
        return
    parser = FlagParser("slick jobs")
    for flag in ("--address", "--follow", "--stop"):
        parser.add_flag(flag)
    known = parser.parse_all(argv)
    if known.follow and known.stop:
        raise SettingsError(f"slick jobs takes --address and one of --follow ID, --stop ID; got {' '.join(argv)}")
    head = RayJobClient(parse_address(known.address))
    if known.follow:
        follow(head, known.follow)
    elif known.stop:
        state = "is stopping" if head.stop(known.stop) else "has already ended"
        print(f"job {known.stop} {state}")
    else:
        print(jobs_table(head.jobs(), time.time()) or f"no jobs at {head.address}")


def jobs_table(jobs: Sequence[RayJob], now_s: float) -> str:
    """Up to three lines per job: id, step, preset, status and time; study; progress or reason of failure."""
    return "\n".join(line for job in jobs for line in _job_lines(job, now_s))


def _job_lines(job: RayJob, now_s: float) -> list[str]:
    step = " ".join(job.metadata.get(name, "") for name in ("step", "preset")).strip() or "not of slick"
    since = "" if job.since_s is None else f", for {format_duration(max(0.0, now_s - job.since_s))}"
    lines = [f"{job.job_id}  {step}  {job.status}{since}"]
    if study := job.metadata.get("study"):
        lines.append(f"  study {study}")
    if reason := job.reason:
        lines.append(f"  {reason if len(reason) <= MAX_MESSAGE_CHARS else reason[: MAX_MESSAGE_CHARS - 3] + '...'}")
    return lines


if __name__ == "__main__":
    run_main(main)
