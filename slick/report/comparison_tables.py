"""Tables of the page that compares studies."""

from collections.abc import Sequence
from dataclasses import replace

from slick.formatting import (
    format_duration,
    format_percent,
)
from slick.report.comparison import (
    CHECKPOINTS,
    ComparedStudy,
    accuracy_differences,
    count_findings,
    seed_spreads,
    sweep_accuracies,
    version_differences,
)
from slick.report.findings.base import Verdict
from slick.report.findings.paper import PAPER_SPLITS, category_percentages, relation_counts, total_counts
from slick.report.measurements import InsufficientDataError, checkpoint_label, format_change, round1
from slick.report.recommendation import Estimate, recommend
from slick.report.sections.choice import policy_table
from slick.report.setting_differences import NOT_STATED, setting_differences
from slick.report.tables import CellValue, Table
from slick.types import Category

CATEGORIES = tuple(map(str, Category))


def studies_table(studies: Sequence[ComparedStudy]) -> Table:
    """Properties of the studies, one row per property and one column per study."""
    rows: list[tuple[CellValue, ...]] = [
        ("folder", *(study.name for study in studies)),
        ("model", *(study.provenance.model for study in studies)),
        ("model fingerprint", *(study.provenance.model_mark for study in studies)),
        ("questions fingerprint", *(study.provenance.questions_mark for study in studies)),
        ("questions kept", *(study.provenance.kept for study in studies)),
        ("matcher", *(study.provenance.matcher for study in studies)),
        ("seeds", *(_format_seeds(study) for study in studies)),
        (
            "D, rows",
            *(max((variant.num for variant in study.data.variants.values()), default=None) for study in studies),
        ),
        ("trainings", *(len(study.data.runs) or None for study in studies)),
        ("not finished yet", *(", ".join(study.provenance.missing) or "none" for study in studies)),
    ]
    return replace(_study_columns_table("studies", studies, rows), text_columns=frozenset(range(1, len(studies) + 1)))


def settings_table(studies: Sequence[ComparedStudy]) -> Table:
    """Settings, inputs and versions that differ between studies, without seeds.

    Raises:
        InsufficientDataError: there is none.
    """
    differences = setting_differences([study.provenance.basis for study in studies])
    rows: list[tuple[CellValue, ...]] = [(row.step, row.name, *row.values) for row in differences]
    versions = version_differences(studies)
    rows += [("versions", name, *(text or NOT_STATED for text in texts)) for name, texts in versions.items()]
    if not rows:
        raise InsufficientDataError("the studies differ in no setting, input or version except seeds")
    return Table(
        name="settings",
        columns=("step", "setting", *(study.label for study in studies)),
        rows=tuple(rows),
        text_columns=frozenset(range(2, len(studies) + 2)),
    )


def study_categories_table(studies: Sequence[ComparedStudy]) -> Table:
    """Percentage of each category in each split, one row per study."""
    rows: list[tuple[CellValue, ...]] = []
    for split in PAPER_SPLITS:
        for study in studies:
            try:
                counts = total_counts(relation_counts(study.data, split))
            except InsufficientDataError:
                continue
            percentages = (f"{round1(percent):.1f}" for percent in category_percentages(counts).values())
            rows.append((split, study.label, sum(counts.values()), *percentages))
    if not rows:
        raise InsufficientDataError("none of the studies has a finished annotate step")
    return Table(name="compare_categories", columns=("split", "study", "questions", *CATEGORIES), rows=tuple(rows))


def study_accuracy_table(studies: Sequence[ComparedStudy]) -> Table:
    """Test accuracy of the sweep with standard errors."""
    rows: list[tuple[CellValue, ...]] = [
        (
            study.label,
            study.name,
            round(100 * share, 2),
            checkpoint_label(checkpoint),
            round(cell.value, 2),
            round(cell.se, 2),
            cell.num_seeds,
        )
        for study in studies
        for (share, checkpoint), cell in sweep_accuracies(study).items()
    ]
    if not rows:
        raise InsufficientDataError("none of the studies has a finished run of the sweep")
    columns = ("study", "folder", "unknown_percent", "stop", "accuracy_percent", "standard_error", "seeds")
    return Table(name="compare_accuracy", columns=columns, rows=tuple(rows))


def differences_table(first: ComparedStudy, second: ComparedStudy) -> Table:
    """Differences in accuracy, one row per share and one column per checkpoint; bold if the interval excludes 0."""
    by_key = {(gap.share, gap.checkpoint): gap for gap in accuracy_differences(first, second)}
    strong = set()
    rows: list[tuple[CellValue, ...]] = []
    for i, share in enumerate(sorted({share for share, _ in by_key})):
        gaps = [by_key.get((share, checkpoint)) for checkpoint in CHECKPOINTS]
        strong |= {(i, j) for j, gap in enumerate(gaps, 1) if gap is not None and not gap.low <= 0.0 <= gap.high}
        cells = (None if gap is None else format_change(gap.value, gap.low, gap.high) for gap in gaps)
        paired = all(gap.paired for gap in gaps if gap is not None)
        rows.append((format_percent(share), *cells, "question by question" if paired else "by standard errors"))
    return Table(
        name=f"difference_{first.label}_{second.label}".lower(),
        columns=("Unknown", *(checkpoint_label(checkpoint) for checkpoint in CHECKPOINTS), "compared"),
        rows=tuple(rows),
        strong=frozenset(strong),
    )


def spread_table(group: Sequence[ComparedStudy], number: int) -> Table:
    """Mean and spread of each accuracy over studies that differ only in their seeds."""
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            format_percent(spread.share),
            checkpoint_label(spread.checkpoint),
            *(f"{round1(value):.1f}" for value in (spread.mean, spread.std, min(spread.values), max(spread.values))),
            len(spread.values),
        )
        for spread in seed_spreads(group)
    )
    columns = ("Unknown", "checkpoint", "mean (%)", "standard deviation", "lowest", "highest", "studies")
    return Table(name=f"spread_{number}", columns=columns, rows=rows)


def findings_table(studies: Sequence[ComparedStudy]) -> Table:
    """The verdict of each finding in each study (– for not testable), and the number of studies in which it holds."""
    counts = count_findings(studies)
    rows: list[tuple[CellValue, ...]] = [
        (
            outcomes[0].id,
            outcomes[0].claim,
            *("–" if outcome.verdict == Verdict.NOT_TESTABLE else outcome.verdict for outcome in outcomes),
            "{} of {}".format(*counts[outcomes[0].id]) if counts[outcomes[0].id][1] else "–",
        )
        for outcomes in zip(*(study.outcomes for study in studies), strict=True)
    ]
    held = [sum(outcome.holds is True for outcome in study.outcomes) for study in studies]
    tested = [sum(outcome.holds is not None for outcome in study.outcomes) for study in studies]
    rows.append(("all", "hold, of those decided", *(f"{a} of {b}" for a, b in zip(held, tested, strict=True)), None))
    return Table(
        name="compare_findings",
        columns=("id", "finding", *(study.label for study in studies), "holds in"),
        rows=tuple(rows),
        strong=frozenset((i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "fails"),
        total_rows=frozenset({len(rows) - 1}),
        text_columns=frozenset({1}),
    )


def study_recommendation_table(studies: Sequence[ComparedStudy]) -> Table:
    """The recommended policy and budget over all shares, with its accuracy and gains."""
    rows: list[tuple[CellValue, ...]] = []
    for study in studies:
        try:
            choice = recommend(study.data).overall
        except InsufficientDataError as reason:
            rows.append((study.label, f"none: {reason}", *(None,) * 7))
            continue
        policy, budget = (choice.trial.policy, choice.trial.budget) if choice.trial else (None, None)
        estimates = (choice.dev, choice.test, choice.stop_epoch, choice.cost_epochs, choice.gain, choice.filtering)
        cells = (_format_estimate(estimate, is_difference=i > 3) for i, estimate in enumerate(estimates))
        rows.append((study.label, policy, budget, *cells))
    columns = ("study", "policy", "budget", "dev (%)", "test (%)", "stops at", "spent", "vs longest", "Known only")
    return Table(name="compare_choice", columns=columns, rows=tuple(rows))


def policies_table(studies: Sequence[ComparedStudy]) -> Table:
    """Test accuracy of every stopping policy and budget, averaged over shares and seeds, one column per study."""
    accuracies: list[dict[tuple[CellValue, ...], CellValue]] = []
    for study in studies:
        try:
            policy_rows = policy_table(study.data).rows
        except InsufficientDataError:
            policy_rows = ()
        accuracies.append({(row[0], row[1], *row[6:]): row[2] for row in policy_rows})
    keys = [key for key in dict.fromkeys(key for values in accuracies for key in values) if len(key) == 2 or not key[2]]
    if not keys:
        raise InsufficientDataError("none of the studies has a finished sweep")
    keys.sort(key=lambda key: (str(key[0]).partition("(")[0], int(key[1] or 0), str(key[0])))
    rows = tuple(
        (*key[:2], *(values.get(key[:2], values.get((*key[:2], ""))) for values in accuracies))
        for key in dict.fromkeys(key[:2] for key in keys)
    )
    return Table(name="compare_policies", columns=("policy", "budget", *(study.label for study in studies)), rows=rows)


def costs_table(studies: Sequence[ComparedStudy]) -> Table:
    """Numbers of generations and trainings, and time, of each study so far."""
    costs = [study.provenance.cost for study in studies]

    def duration(seconds: float | None) -> str | None:
        return None if seconds is None else format_duration(seconds)

    rows: list[tuple[CellValue, ...]] = [
        ("annotated questions", *(cost.questions for cost in costs)),
        ("generations", *(cost.generations for cost in costs)),
        ("answer tokens", *(cost.answer_tokens for cost in costs)),
        ("answer tokens decoded", *(cost.decoded_tokens for cost in costs)),
        ("annotation, worker time", *(duration(cost.engine_seconds) for cost in costs)),
        ("trainings", *(cost.trainings for cost in costs)),
        ("epochs", *(cost.epochs for cost in costs)),
        ("training tokens", *(cost.train_tokens for cost in costs)),
        ("training, worker time", *(duration(cost.training_seconds) for cost in costs)),
        ("evaluation, worker time", *(duration(cost.evaluation_seconds) for cost in costs)),
        ("trained on", *({"cpu": "CPU", "cuda": "GPU"}.get(cost.device or "", cost.device) for cost in costs)),
        ("all steps, wall clock", *(duration(sum(cost.step_seconds.values()) or None) for cost in costs)),
    ]
    return _study_columns_table("compare_costs", studies, rows)


def _study_columns_table(name: str, studies: Sequence[ComparedStudy], rows: Sequence[tuple[CellValue, ...]]) -> Table:
    return Table(name=name, columns=("study", *(study.label for study in studies)), rows=tuple(rows))


def _format_seeds(study: ComparedStudy) -> str:
    """One seed if all steps but the trainings share it, else the seeds by step."""
    texts = {name: " ".join(map(str, seeds)) for name, seeds in study.provenance.seeds.items()}
    others = {text for name, text in texts.items() if name != "trainings"}
    if len(others) == 1:
        return others.pop() + (f", trainings {texts['trainings']}" if "trainings" in texts else "")
    return ", ".join(f"{name} {text}" for name, text in texts.items()) or "–"


def _format_estimate(estimate: Estimate, *, is_difference: bool) -> str | None:
    if estimate.value is None:
        return None
    if is_difference:
        return format_change(estimate.value, estimate.low, estimate.high)
    return f"{round1(estimate.value):.1f}"
