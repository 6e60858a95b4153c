"""Disturb studies by faults at seeded random moments, and keep a table of faults and outcomes.

python -m tests.faults.harness --minutes 10 --seed 0 --out results.json [--kinds driver actor ...]

Rounds that the file of results holds are not repeated, so an hour can be collected in parts. The status is 1 if a study
differs from the undisturbed one, if a run ended wrongly, or if something remained.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.faults.kinds import KINDS
from tests.faults.results import summary, table
from tests.faults.rounds import STUDY_FLAGS, WRONG, Applied, Round, Run, Setting, run_round

WORK = Path("/tmp/slick-faults")
"""Default folder of studies and logs. Its path is short, since Ray keeps sockets in it."""


def main(argv: list[str] | None = None) -> int:
    """Run rounds until the time is over, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no round begins later")
    parser.add_argument("--rounds", type=int, help="the number of rounds to run, instead of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fault-results.json"))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    options = parser.parse_args(argv)

    end = time.monotonic() + 60 * options.minutes
    rounds = read_results(options.out)
    setting = make_setting(options.work, options.seed)
    num_run = 0
    while num_run < options.rounds if options.rounds is not None else time.monotonic() < end:
        number = next_number(options.seed, rounds)
        result = run_round(setting, number, options.kinds)
        rounds.append(result)
        num_run += 1
        write_results(options.out, rounds)
        print(describe(result), flush=True)
    print("\n".join([*table(rounds), "", *summary(rounds)]))
    return 1 if any(is_bad(result) for result in rounds) else 0


def next_number(seed: int, rounds: list[Round]) -> int:
    """The first round of a seed that has not been run; rounds of different seeds have different numbers."""
    done = {result.number for result in rounds}
    return next(number for number in range(10_000 * seed, 10_000 * (seed + 1)) if number not in done)


def is_bad(result: Round) -> bool:
    """Whether a round shows a defect."""
    wrong = any(fault.outcome == WRONG for fault in result.applied)
    return bool(result.differences or result.late or result.files or wrong)


def describe(result: Round) -> str:
    """A round in some lines."""
    lines = [
        f"round {result.number}: {result.seconds:.0f} s, statuses {result.statuses}, {result.missed} missed, longest "
        f"life {result.longest_s:.0f} s"
    ]
    lines += [f"  {fault.kind} in {fault.step} ({fault.action}): {fault.outcome}" for fault in result.applied]
    lines += [f"    {fault.message}" for fault in result.applied if fault.outcome == WRONG]
    lines += [f"  DIFFERS: {text}" for text in result.differences]
    lines += [f"  LATE: {text}" for text in result.late] + [f"  LEFT: {text}" for text in result.files]
    lines += [f"  {result.uploads} unfinished uploads in the object store"] * bool(result.uploads)
    return "\n".join(lines)


def make_setting(work: Path, seed: int) -> Setting:
    """Run the undisturbed study, unless the folder holds one with the same flags.

    After a change of the program that alters results, delete the folder.
    """
    folder = work / hashlib.sha256(" ".join(STUDY_FLAGS).encode()).hexdigest()[:8]
    study, cache, durations = folder / "reference", work / "cache", folder / "durations.json"
    if not durations.exists():
        for path in (folder / "t", folder / "hooks"):
            path.mkdir(parents=True, exist_ok=True)
        run = Run(str(study), folder / "t", cache, folder / "hooks")
        if status := run.wait():
            sys.exit(f"the undisturbed study ended with status {status}:\n{run.log.read_text()[-3000:]}")
        steps, times = list(run.began), [*run.began.values(), time.monotonic()]
        seconds = {step: times[index + 1] - times[index] for index, step in enumerate(steps)}
        durations.write_text(json.dumps(seconds))
        print("undisturbed:", ", ".join(f"{step} {value:.0f} s" for step, value in seconds.items()), flush=True)
    return Setting(reference=study, cache=cache, work=folder, durations=json.loads(durations.read_text()), seed=seed)


def read_results(path: Path) -> list[Round]:
    """The rounds that a file of results holds."""
    rounds = json.loads(path.read_text()) if path.exists() else []
    return [Round(**{**values, "applied": [Applied(**fault) for fault in values["applied"]]}) for values in rounds]


def write_results(path: Path, rounds: list[Round]) -> None:
    """Replace the file of results, and the table beside it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps([asdict(result) for result in rounds], indent=1))
    part.replace(path)
    path.with_suffix(".md").write_text("\n".join([*table(rounds), "", *summary(rounds), ""]))


if __name__ == "__main__":
    sys.exit(main())
