"""The table of faults by kind and step, from the results of rounds."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.faults.leftovers import GRACE_S
from tests.faults.rounds import CONTINUED, RESUMED, WRONG, Round

COLUMNS = ("fault", "step", "tried", "ended by itself, equal", "resumed, equal", "differs", "wrong end")


def table(rounds: Sequence[Round]) -> list[str]:
    """Lines of a Markdown table: one row for each kind and step, and a row of sums.

    A fault counts as `differs` if its study does, whichever fault of the round was the cause.
    """
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for result in rounds:
        for fault in result.applied:
            outcome = "differs" if result.differences and fault.outcome != WRONG else fault.outcome
            counts[fault.kind, fault.step][outcome] += 1
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [_row(kind, step, counts[kind, step]) for kind, step in sorted(counts)]
    return [*lines, _row("all", "", sum(counts.values(), Counter()))]


def _row(kind: str, step: str, outcomes: Counter[str]) -> str:
    cells = [kind, step, outcomes.total(), *(outcomes[name] for name in (CONTINUED, RESUMED, "differs", WRONG))]
    return f"| {' | '.join(map(str, cells))} |"


def summary(rounds: Sequence[Round]) -> list[str]:
    """Sentences on what the table does not show."""
    num_late = sum(len(result.late) for result in rounds)
    with_files = [result for result in rounds if result.files]
    return [
        f"{len(rounds)} studies, {sum(len(result.statuses) for result in rounds)} runs of the command, "
        f"{sum(len(result.applied) for result in rounds)} faults.",
        f"Studies that differ from the undisturbed one: {sum(bool(result.differences) for result in rounds)}.",
        f"Processes that outlived their driver by more than {GRACE_S:.0f} s: {num_late}; the longest life was "
        f"{max((result.longest_s for result in rounds), default=0):.0f} s.",
        f"Studies after which files, temporary folders or shared memory remained: {len(with_files)}.",
        f"Unfinished uploads in object stores: {sum(result.uploads for result in rounds)}.",
    ]
