"""The tables that hold several studies side by side."""

from collections.abc import Sequence
from dataclasses import replace

from slick.analysis.compare import (
    WHENS,
    Difference,
    Side,
    accuracies,
    differences,
    spreads,
    tally,
    version_differences,
)
from slick.analysis.counts import SPLITS, relation_counts, shares, total
from slick.analysis.findings.verdict import percent, tenths, when_label
from slick.analysis.recommendation import Estimate, recommend
from slick.analysis.setting_differences import ABSENT, setting_differences
from slick.analysis.terms import NotTestable
from slick.progress import format_duration
from slick.report.tables import Table, Value, policy_table
from slick.types import Category

CATEGORIES = tuple(map(str, Category))


def studies_table(sides: Sequence[Side]) -> Table:
    """One row a property, one column a study."""
    rows: list[tuple[Value, ...]] = [
        ("folder", *(side.name for side in sides)),
        ("model", *(side.origin.model for side in sides)),
        ("model fingerprint", *(side.origin.model_mark for side in sides)),
        ("questions fingerprint", *(side.origin.questions_mark for side in sides)),
        ("questions kept", *(side.origin.kept for side in sides)),
        ("matcher", *(side.origin.matcher for side in sides)),
        ("seeds", *(_seeds(side) for side in sides)),
        ("D, rows", *(max((one.num for one in side.data.variants.values()), default=None) for side in sides)),
        ("trainings", *(len(side.data.runs) or None for side in sides)),
        ("not finished yet", *(", ".join(side.origin.missing) or "all is" for side in sides)),
    ]
    return replace(_by_study("studies", sides, rows), text_columns=frozenset(range(1, len(sides) + 1)))


def settings_table(sides: Sequence[Side]) -> Table:
    """Every setting, input and version, seeds aside, that is not the same in all studies.

    Raises:
        NotTestable: there is none.
    """
    found = setting_differences([side.origin.basis for side in sides])
    rows: list[tuple[Value, ...]] = [(one.step, one.name, *one.values) for one in found]
    versions = version_differences(sides)
    rows += [("versions", name, *(text or ABSENT for text in texts)) for name, texts in versions.items()]
    if not rows:
        raise NotTestable("no setting, input or version differs but the seeds")
    return Table(
        name="settings",
        columns=("step", "setting", *(side.label for side in sides)),
        rows=tuple(rows),
        text_columns=frozenset(range(2, len(sides) + 2)),
    )


def categories_table(sides: Sequence[Side]) -> Table:
    """Percent of each category in each split, one row a study."""
    rows: list[tuple[Value, ...]] = []
    for split in SPLITS:
        for side in sides:
            try:
                counts = total(relation_counts(side.data, split))
            except NotTestable:
                continue
            found = shares(counts)
            rows.append(
                (split, side.label, sum(counts.values()), *(f"{tenths(found[name]):.1f}" for name in CATEGORIES))
            )
    if not rows:
        raise NotTestable("none of the studies is annotated")
    return Table(name="compare_categories", columns=("split", "study", "questions", *CATEGORIES), rows=tuple(rows))


def accuracy_table(sides: Sequence[Side]) -> Table:
    """Every accuracy with its standard error."""
    rows: list[tuple[Value, ...]] = [
        (side.label, side.name, round(100 * share, 2), when_label(when), round(cell.value, 2), round(cell.se, 2),
         cell.num_seeds)
        for side in sides
        for (share, when), cell in accuracies(side).items()
    ]  # fmt: skip
    if not rows:
        raise NotTestable("none of the studies has a finished training of the sweep")
    columns = ("study", "folder", "unknown_percent", "stop", "accuracy_percent", "standard_error", "seeds")
    return Table(name="compare_accuracy", columns=columns, rows=tuple(rows))


def differences_table(first: Side, second: Side) -> Table:
    """One row a share, with the two checkpoints beside each other; bold where the interval leaves out 0."""
    found = differences(first, second)
    by_key = {(one.share, one.when): one for one in found}
    by_share = sorted({one.share for one in found})
    strong = set()
    rows: list[tuple[Value, ...]] = []
    for i, share in enumerate(by_share):
        cells: list[Value] = []
        for j, when in enumerate(WHENS, 1):
            one = by_key.get((share, when))
            cells.append(None if one is None else _signed(one))
            if one is not None and not one.low <= 0.0 <= one.high:
                strong.add((i, j))
        paired = all(by_key[share, when].paired for when in WHENS if (share, when) in by_key)
        rows.append((percent(share), *cells, "question by question" if paired else "by standard errors"))
    return Table(
        name=f"difference_{first.label}_{second.label}".lower(),
        columns=("Unknown", *(when_label(when) for when in WHENS), "compared"),
        rows=tuple(rows),
        strong=frozenset(strong),
    )


def spread_table(group: Sequence[Side], number: int) -> Table:
    """Mean and spread of each accuracy over studies of one recipe."""
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (percent(one.share), when_label(one.when), *(f"{tenths(value):.1f}" for value in
         (one.mean, one.deviation, min(one.values), max(one.values))), len(one.values))
        for one in spreads(group)
    )  # fmt: skip
    columns = ("Unknown", "checkpoint", "mean (%)", "standard deviation", "lowest", "highest", "studies")
    return Table(name=f"spread_{number}", columns=columns, rows=rows)


def findings_table(sides: Sequence[Side]) -> Table:
    """Holds, fails or – for each finding and study, and in how many of those tested it holds."""
    words = {True: "holds", False: "fails", None: "–"}
    counts = tally(sides)
    by_id = [{outcome.id: outcome for outcome in side.outcomes} for side in sides]
    rows: list[tuple[Value, ...]] = [
        (outcome.id, outcome.claim, *(words[of_one[outcome.id].holds] for of_one in by_id),
         "{} of {}".format(*counts[outcome.id]) if counts[outcome.id][1] else "–")
        for outcome in sides[0].outcomes
    ]  # fmt: skip
    held = [sum(outcome.holds is True for outcome in side.outcomes) for side in sides]
    tested = [sum(outcome.holds is not None for outcome in side.outcomes) for side in sides]
    rows.append(("all", "hold, of those tested", *(f"{a} of {b}" for a, b in zip(held, tested, strict=True)), None))
    return Table(
        name="compare_findings",
        columns=("id", "finding", *(side.label for side in sides), "holds in"),
        rows=tuple(rows),
        strong=frozenset((i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "fails"),
        total_rows=frozenset({len(rows) - 1}),
        text_columns=frozenset({1}),
    )


def choice_table(sides: Sequence[Side]) -> Table:
    """The point that is best at all shares together, and what it brings."""
    rows: list[tuple[Value, ...]] = []
    for side in sides:
        try:
            choice = recommend(side.data).overall
        except NotTestable as reason:
            rows.append((side.label, f"none: {reason}", *(None,) * 7))
            continue
        policy, budget = (choice.recipe.policy, choice.recipe.budget) if choice.recipe else (None, None)
        estimates = (choice.dev, choice.test, choice.stop_epoch, choice.cost_epochs, choice.gain, choice.filtering)
        rows.append((side.label, policy, budget, *(_estimate(one, gap=i > 3) for i, one in enumerate(estimates))))
    columns = ("study", "policy", "budget", "dev (%)", "test (%)", "stops at", "spent", "vs longest", "Known only")
    return Table(name="compare_choice", columns=columns, rows=tuple(rows))


def policies_table(sides: Sequence[Side]) -> Table:
    """Test accuracy of every stopping policy and budget, averaged over shares and seeds, one column a study."""
    found: list[dict[tuple[Value, ...], Value]] = []
    for side in sides:
        try:
            rows_of_one = policy_table(side.data).rows
        except NotTestable:
            rows_of_one = ()
        found.append({(row[0], row[1], *row[6:]): row[2] for row in rows_of_one})
    keys = [key for key in dict.fromkeys(key for of_one in found for key in of_one) if len(key) == 2 or not key[2]]
    if not keys:
        raise NotTestable("none of the studies has a finished sweep")
    keys.sort(key=lambda key: (str(key[0]).partition("(")[0], int(key[1] or 0), str(key[0])))
    rows = tuple(
        (*key[:2], *(of_one.get(key[:2], of_one.get((*key[:2], ""))) for of_one in found))
        for key in dict.fromkeys(key[:2] for key in keys)
    )
    return Table(name="compare_policies", columns=("policy", "budget", *(side.label for side in sides)), rows=rows)


def costs_table(sides: Sequence[Side]) -> Table:
    """What every study has spent so far."""
    costs = [side.origin.cost for side in sides]

    def spent(seconds: float | None) -> str | None:
        return None if seconds is None else format_duration(seconds)

    rows: list[tuple[Value, ...]] = [
        ("questions asked", *(cost.questions for cost in costs)),
        ("generations", *(cost.generations for cost in costs)),
        ("answer tokens", *(cost.answer_tokens for cost in costs)),
        ("answer tokens that the model made", *(cost.decoded_tokens for cost in costs)),
        ("asking, worker time", *(spent(cost.engine_seconds) for cost in costs)),
        ("trainings", *(cost.trainings for cost in costs)),
        ("epochs", *(cost.epochs for cost in costs)),
        ("training tokens", *(cost.train_tokens for cost in costs)),
        ("training, worker time", *(spent(cost.training_seconds) for cost in costs)),
        ("evaluation, worker time", *(spent(cost.evaluation_seconds) for cost in costs)),
        ("trained on", *({"cpu": "CPU", "cuda": "GPU"}.get(cost.device or "", cost.device) for cost in costs)),
        ("all steps, wall clock", *(spent(sum(cost.step_seconds.values()) or None) for cost in costs)),
    ]
    return _by_study("compare_costs", sides, rows)


def _by_study(name: str, sides: Sequence[Side], rows: Sequence[tuple[Value, ...]]) -> Table:
    return Table(name=name, columns=("study", *(side.label for side in sides)), rows=tuple(rows))


def _seeds(side: Side) -> str:
    found = side.origin.seeds
    drawn = {seed for name, seeds in found.items() if name != "trainings" for seed in seeds}
    if len(drawn) == 1:
        trained = f", trainings {' '.join(map(str, found['trainings']))}" if "trainings" in found else ""
        return f"{drawn.pop()}{trained}"
    return ", ".join(f"{name} {' '.join(map(str, seeds))}" for name, seeds in found.items()) or "–"


def _estimate(one: Estimate, *, gap: bool) -> str | None:
    """A number for people; of a difference its sign and its interval as well."""
    if one.value is None:
        return None
    if not gap:
        return f"{tenths(one.value):.1f}"
    ends = "" if one.low is None or one.high is None else f" ({tenths(one.low):+.1f} to {tenths(one.high):+.1f})"
    return f"{tenths(one.value):+.1f}{ends}"


def _signed(one: Difference) -> str:
    return f"{tenths(one.value):+.1f} ({tenths(one.low):+.1f} to {tenths(one.high):+.1f})"
