"""The tables that hold several studies side by side."""

from collections.abc import Sequence
from dataclasses import replace

from slick.formatting import format_duration
from slick.report.comparison import (
    CHECKPOINTS,
    AccuracyDifference,
    ComparedStudy,
    accuracy_differences,
    count_findings,
    seed_spreads,
    sweep_accuracies,
    version_differences,
)
from slick.report.findings.paper import PAPER_SPLITS, category_percentages, relation_counts, total_counts
from slick.report.measurements import InsufficientDataError, checkpoint_label, format_percent, round1
from slick.report.recommendation import Estimate, recommend
from slick.report.sections.stopping import policy_table
from slick.report.setting_differences import NOT_STATED, setting_differences
from slick.report.tables import CellValue, Table
from slick.types import Category

CATEGORIES = tuple(map(str, Category))


def studies_table(sides: Sequence[ComparedStudy]) -> Table:
    """One row a property, one column a study."""
    rows: list[tuple[CellValue, ...]] = [
        ("folder", *(side.name for side in sides)),
        ("model", *(side.provenance.model for side in sides)),
        ("model fingerprint", *(side.provenance.model_mark for side in sides)),
        ("questions fingerprint", *(side.provenance.questions_mark for side in sides)),
        ("questions kept", *(side.provenance.kept for side in sides)),
        ("matcher", *(side.provenance.matcher for side in sides)),
        ("seeds", *(_format_seeds(side) for side in sides)),
        ("D, rows", *(max((one.num for one in side.data.variants.values()), default=None) for side in sides)),
        ("trainings", *(len(side.data.runs) or None for side in sides)),
        ("not finished yet", *(", ".join(side.provenance.missing) or "all is" for side in sides)),
    ]
    return replace(_study_columns_table("studies", sides, rows), text_columns=frozenset(range(1, len(sides) + 1)))


def settings_table(sides: Sequence[ComparedStudy]) -> Table:
    """Every setting, input and version, seeds aside, that is not the same in all studies.

    Raises:
        NotTestable: there is none.
    """
    found = setting_differences([side.provenance.basis for side in sides])
    rows: list[tuple[CellValue, ...]] = [(one.step, one.name, *one.values) for one in found]
    versions = version_differences(sides)
    rows += [("versions", name, *(text or NOT_STATED for text in texts)) for name, texts in versions.items()]
    if not rows:
        raise InsufficientDataError("no setting, input or version differs but the seeds")
    return Table(
        name="settings",
        columns=("step", "setting", *(side.label for side in sides)),
        rows=tuple(rows),
        text_columns=frozenset(range(2, len(sides) + 2)),
    )


def study_categories_table(sides: Sequence[ComparedStudy]) -> Table:
    """Percent of each category in each split, one row a study."""
    rows: list[tuple[CellValue, ...]] = []
    for split in PAPER_SPLITS:
        for side in sides:
            try:
                counts = total_counts(relation_counts(side.data, split))
            except InsufficientDataError:
                continue
            found = category_percentages(counts)
            rows.append(
                (split, side.label, sum(counts.values()), *(f"{round1(found[name]):.1f}" for name in CATEGORIES))
            )
    if not rows:
        raise InsufficientDataError("none of the studies is annotated")
    return Table(name="compare_categories", columns=("split", "study", "questions", *CATEGORIES), rows=tuple(rows))


def study_accuracy_table(sides: Sequence[ComparedStudy]) -> Table:
    """Every accuracy with its standard error."""
    rows: list[tuple[CellValue, ...]] = [
        (
            side.label,
            side.name,
            round(100 * share, 2),
            checkpoint_label(checkpoint),
            round(cell.value, 2),
            round(cell.se, 2),
            cell.num_seeds,
        )
        for side in sides
        for (share, checkpoint), cell in sweep_accuracies(side).items()
    ]
    if not rows:
        raise InsufficientDataError("none of the studies has a finished training of the sweep")
    columns = ("study", "folder", "unknown_percent", "stop", "accuracy_percent", "standard_error", "seeds")
    return Table(name="compare_accuracy", columns=columns, rows=tuple(rows))


def differences_table(first: ComparedStudy, second: ComparedStudy) -> Table:
    """One row a share, with the two checkpoints beside each other; bold where the interval leaves out 0."""
    found = accuracy_differences(first, second)
    by_key = {(one.share, one.checkpoint): one for one in found}
    by_share = sorted({one.share for one in found})
    strong = set()
    rows: list[tuple[CellValue, ...]] = []
    for i, share in enumerate(by_share):
        cells: list[CellValue] = []
        for j, checkpoint in enumerate(CHECKPOINTS, 1):
            one = by_key.get((share, checkpoint))
            cells.append(None if one is None else _format_difference(one))
            if one is not None and not one.low <= 0.0 <= one.high:
                strong.add((i, j))
        paired = all(by_key[share, checkpoint].paired for checkpoint in CHECKPOINTS if (share, checkpoint) in by_key)
        rows.append((format_percent(share), *cells, "question by question" if paired else "by standard errors"))
    return Table(
        name=f"difference_{first.label}_{second.label}".lower(),
        columns=("Unknown", *(checkpoint_label(checkpoint) for checkpoint in CHECKPOINTS), "compared"),
        rows=tuple(rows),
        strong=frozenset(strong),
    )


def spread_table(group: Sequence[ComparedStudy], number: int) -> Table:
    """Mean and spread of each accuracy over studies of one recipe."""
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            format_percent(one.share),
            checkpoint_label(one.checkpoint),
            *(f"{round1(value):.1f}" for value in (one.mean, one.std, min(one.values), max(one.values))),
            len(one.values),
        )
        for one in seed_spreads(group)
    )
    columns = ("Unknown", "checkpoint", "mean (%)", "standard deviation", "lowest", "highest", "studies")
    return Table(name=f"spread_{number}", columns=columns, rows=rows)


def findings_table(sides: Sequence[ComparedStudy]) -> Table:
    """Holds, fails or – for each finding and study, and in how many of those tested it holds."""
    words = {True: "holds", False: "fails", None: "–"}
    counts = count_findings(sides)
    by_id = [{outcome.id: outcome for outcome in side.outcomes} for side in sides]
    rows: list[tuple[CellValue, ...]] = [
        (
            outcome.id,
            outcome.claim,
            *(words[of_one[outcome.id].holds] for of_one in by_id),
            "{} of {}".format(*counts[outcome.id]) if counts[outcome.id][1] else "–",
        )
        for outcome in sides[0].outcomes
    ]
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


def study_recommendation_table(sides: Sequence[ComparedStudy]) -> Table:
    """The point that is best at all shares together, and what it brings."""
    rows: list[tuple[CellValue, ...]] = []
    for side in sides:
        try:
            choice = recommend(side.data).overall
        except InsufficientDataError as reason:
            rows.append((side.label, f"none: {reason}", *(None,) * 7))
            continue
        policy, budget = (choice.trial.policy, choice.trial.budget) if choice.trial else (None, None)
        estimates = (choice.dev, choice.test, choice.stop_epoch, choice.cost_epochs, choice.gain, choice.filtering)
        rows.append(
            (side.label, policy, budget, *(_format_estimate(one, gap=i > 3) for i, one in enumerate(estimates)))
        )
    columns = ("study", "policy", "budget", "dev (%)", "test (%)", "stops at", "spent", "vs longest", "Known only")
    return Table(name="compare_choice", columns=columns, rows=tuple(rows))


def policies_table(sides: Sequence[ComparedStudy]) -> Table:
    """Test accuracy of every stopping policy and budget, averaged over shares and seeds, one column a study."""
    found: list[dict[tuple[CellValue, ...], CellValue]] = []
    for side in sides:
        try:
            rows_of_one = policy_table(side.data).rows
        except InsufficientDataError:
            rows_of_one = ()
        found.append({(row[0], row[1], *row[6:]): row[2] for row in rows_of_one})
    keys = [key for key in dict.fromkeys(key for of_one in found for key in of_one) if len(key) == 2 or not key[2]]
    if not keys:
        raise InsufficientDataError("none of the studies has a finished sweep")
    keys.sort(key=lambda key: (str(key[0]).partition("(")[0], int(key[1] or 0), str(key[0])))
    rows = tuple(
        (*key[:2], *(of_one.get(key[:2], of_one.get((*key[:2], ""))) for of_one in found))
        for key in dict.fromkeys(key[:2] for key in keys)
    )
    return Table(name="compare_policies", columns=("policy", "budget", *(side.label for side in sides)), rows=rows)


def costs_table(sides: Sequence[ComparedStudy]) -> Table:
    """What every study has spent so far."""
    costs = [side.provenance.cost for side in sides]

    def spent(seconds: float | None) -> str | None:
        return None if seconds is None else format_duration(seconds)

    rows: list[tuple[CellValue, ...]] = [
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
    return _study_columns_table("compare_costs", sides, rows)


def _study_columns_table(name: str, sides: Sequence[ComparedStudy], rows: Sequence[tuple[CellValue, ...]]) -> Table:
    return Table(name=name, columns=("study", *(side.label for side in sides)), rows=tuple(rows))


def _format_seeds(side: ComparedStudy) -> str:
    found = side.provenance.seeds
    drawn = {seed for name, seeds in found.items() if name != "trainings" for seed in seeds}
    if len(drawn) == 1:
        trained = f", trainings {' '.join(map(str, found['trainings']))}" if "trainings" in found else ""
        return f"{drawn.pop()}{trained}"
    return ", ".join(f"{name} {' '.join(map(str, seeds))}" for name, seeds in found.items()) or "–"


def _format_estimate(one: Estimate, *, gap: bool) -> str | None:
    """A number for people; of a difference its sign and its interval as well."""
    if one.value is None:
        return None
    if not gap:
        return f"{round1(one.value):.1f}"
    ends = "" if one.low is None or one.high is None else f" ({round1(one.low):+.1f} to {round1(one.high):+.1f})"
    return f"{round1(one.value):+.1f}{ends}"


def _format_difference(one: AccuracyDifference) -> str:
    return f"{round1(one.value):+.1f} ({round1(one.low):+.1f} to {round1(one.high):+.1f})"
