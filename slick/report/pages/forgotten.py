"""The section of what fine-tuning made a model forget, and where the answers come from that it gives instead."""

from collections.abc import Sequence

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import format_percent
from slick.analysis.forgotten import (
    TARGET_SCOPES,
    ForgottenFact,
    RunForgetting,
    TargetScope,
    match_rate,
    replacements,
    select_runs_forgetting,
)
from slick.analysis.terms import InsufficientDataError
from slick.report.page import (
    GROUP_EXTENSIONS,
    Section,
    collapsed_table_exhibit,
    figure_exhibit,
    linked_table_exhibit,
    table_exhibit,
)
from slick.report.pages import forgotten_figures
from slick.report.pages.forgotten_figures import missing_data_message
from slick.report.tables import CellValue, Table
from slick.rng import row_key

NUM_EXAMPLES = 20
_SCOPE_LABELS: dict[TargetScope, str] = {
    "any_row": "any row",
    "same_relation": "same relation",
    "unknown_row": "Unknown row",
}


def forgetting_section(data: StudyData) -> Section:
    """The section; without finished runs it says what is missing."""
    return Section(
        name="forgotten",
        group=GROUP_EXTENSIONS,
        title="What was forgotten, and what is said instead",
        text=_section_text(data),
        exhibits=(
            figure_exhibit(
                "Lost facts whose new answer is the target of a row of the fine-tuning set, with 95 % intervals. "
                "Dashed and dotted: answers to questions wrong at both epochs, at the last and at the best dev epoch.",
                "forgotten",
                "Share of lost facts whose new answer stands in the fine-tuning set, by share of Unknown rows",
                lambda: forgotten_figures.match_rate_figure(data),
            ),
            figure_exhibit(
                "Test questions lost and won between the best dev epoch and the last, in percent of the right answers "
                "at the best dev epoch; lost ones with 95 % intervals.",
                "forgotten_share",
                "Lost and won test questions by share of Unknown rows",
                lambda: forgotten_figures.losses_and_gains_figure(data),
            ),
            table_exhibit(
                "Right answers lost and won between the best dev epoch and the last, on test questions, and where the "
                "new answers stand (%); in brackets the chance rate. Seeds are added up.",
                lambda: forgetting_table(data, "test"),
            ),
            table_exhibit(
                "The answers that took the place of most right ones in the sweep, all shares and seeds together.",
                lambda: replacements_table(data),
            ),
            table_exhibit(f"{NUM_EXAMPLES} lost facts, drawn by a seed.", lambda: forgotten_examples_table(data)),
            collapsed_table_exhibit("The same losses out of distribution.", lambda: forgetting_table(data, "ood")),
            collapsed_table_exhibit(
                "All rates with their intervals, chance and p-values.", lambda: match_rates_table(data)
            ),
            linked_table_exhibit("Every lost fact of every run.", lambda: forgotten_facts_table(data)),
        ),
    )


def forgetting_table(data: StudyData, split: str) -> Table:
    """One row a variant: how much it lost and won, and where the new answers stand."""
    rows: list[tuple[CellValue, ...]] = []
    for name in _variant_names(data, split):
        losses = select_runs_forgetting(data.forgetting, name, split)
        before, num = sum(one.num_correct_before for one in losses), sum(len(one.lost) for one in losses)
        rows.append(
            (
                name,
                _unknown_share_cell(data, name),
                _epochs_cell(losses),
                before,
                num,
                round(100 * num / before, 1) if before else None,
                sum(one.num_gained for one in losses),
                *(_rate_text(losses, where) for where in TARGET_SCOPES),
            )
        )
    columns = ("variant", "Unknown", "epochs", "right before", "lost", "lost (%)", "won")
    return Table(
        name="forgotten" if split == "test" else "forgotten_ood",
        columns=(*columns, *_SCOPE_LABELS.values()),
        rows=tuple(rows),
    )


def match_rates_table(data: StudyData) -> Table:
    """Every rate of both splits."""
    rows: list[tuple[CellValue, ...]] = []
    for split in ("test", "ood"):
        for name in {one.variant: None for one in data.forgetting if one.split == split}:
            for where in TARGET_SCOPES:
                try:
                    one = match_rate(select_runs_forgetting(data.forgetting, name, split), where)
                except InsufficientDataError:
                    continue
                numbers_of = (one.percent, one.low, one.high, one.chance, one.earlier)
                p_value = None if one.p_value is None else float(f"{one.p_value:.2g}")
                rows.append((name, split, _SCOPE_LABELS[where], one.num, one.total, *map(_round2, numbers_of), p_value))
    if not rows:
        raise InsufficientDataError("no run lost anything between its best dev epoch and its last")
    columns = ("variant", "split", "stands_in", "num", "lost", "percent", "low", "high", "chance_percent")
    return Table(name="forgotten_rates", columns=(*columns, "chance_at_best_dev_epoch_percent", "p"), rows=tuple(rows))


def replacements_table(data: StudyData) -> Table:
    """The most frequent new answers of the sweep over shares of Unknown rows."""
    found = replacements(_sweep_runs(data))
    if not found:
        raise InsufficientDataError("no run lost anything between its best dev epoch and its last")
    return Table(
        name="forgotten_replacements",
        columns=("new answer", "relation", "times", "questions", "right answers replaced", "stood in the set (times)"),
        rows=tuple((one.answer or "(empty)", one.relation, *one[2:]) for one in found),
    )


def forgotten_examples_table(data: StudyData) -> Table:
    """Lost facts of the sweep, each question at most once."""
    pool = [(one, lost) for one in _sweep_runs(data) for lost in one.lost]
    if not pool:
        raise InsufficientDataError("no run lost anything between its best dev epoch and its last")
    keyed = sorted(pool, key=lambda item: int(row_key(0, "forgotten", item[0].run_id, item[1].question_id)))
    chosen: dict[str, tuple[RunForgetting, ForgottenFact]] = {}
    for one, lost in keyed:
        if len(chosen) < NUM_EXAMPLES:
            chosen.setdefault(lost.question_id, (one, lost))
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (one.variant, lost.relation, lost.question, lost.before, lost.after or "(empty)", _scope_cell(lost))
        for one, lost in chosen.values()
    )
    columns = ("variant", "relation", "question", "right, before", "wrong, after", "stands in the set")
    return Table(name="forgotten_examples", columns=columns, rows=rows, text_columns=frozenset({2, 3, 4}))


def forgotten_facts_table(data: StudyData) -> Table:
    """Every lost fact, for a file of its own."""
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            one.run_id,
            one.variant,
            one.seed,
            one.split,
            one.epoch_before,
            one.epoch_after,
            lost.question_id,
            lost.relation,
            lost.category,
            lost.question,
            " | ".join(lost.gold),
            lost.before,
            lost.after,
            *(getattr(lost.target_counts, where) for where in TARGET_SCOPES),
        )
        for one in data.forgetting
        for lost in one.lost
    )
    if not rows:
        raise InsufficientDataError(missing_data_message(data))
    columns = ("run_id", "variant", "seed", "split", "epoch_before", "epoch_after", "question_id", "relation")
    texts = ("category", "question", "gold", "text_before", "text_after", "in_any_row", "in_same_relation")
    return Table(name="forgotten_all", columns=(*columns, *texts, "in_unknown_row"), rows=rows)


def _section_text(data: StudyData) -> str:
    said = (
        "A fact is lost if its question was answered right at the best dev epoch, where early stop keeps the model, "
        "and wrong after the last epoch. Dev questions do not count, since that epoch was chosen by them. The new "
        "answer stands in the fine-tuning set if it is the target of one of its rows, compared as exact match does. "
        "Answers recur within a relation, so the chance rate is that of questions answered wrong at both epochs, at "
        "the end, weighted by the relations of the lost facts."
    )
    try:
        share, name = data.sweep_variants("unknown")[-1]
        losses = select_runs_forgetting(data.forgetting, name, "test")
        found = match_rate(losses, "any_row")
    except InsufficientDataError:
        return said
    before = sum(one.num_correct_before for one in losses)
    said += (
        f" At {format_percent(share)} Unknown rows {found.total:,} of {before:,} right answers are lost, and "
        f"{found.percent:.0f} % of the new ones stand in the set"
    )
    if found.chance is None or found.earlier is None:
        return f"{said}."
    return (
        f"{said}; of the answers to questions wrong at both epochs {found.chance:.0f} % do at the end, and "
        f"{found.earlier:.0f} % did at the best dev epoch."
    )


def _rate_text(losses: Sequence[RunForgetting], where: TargetScope) -> str | None:
    try:
        one = match_rate(losses, where)
    except InsufficientDataError:
        return None
    return f"{one.percent:.0f}" + ("" if one.chance is None else f" ({one.chance:.0f})")


def _unknown_share_cell(data: StudyData, name: str) -> str | None:
    """Share of Unknown rows in the set itself."""
    variant = data.variants.get(name)
    if variant is None or variant.share is None or variant.kind == "known":
        return None
    return format_percent(variant.share)


def _epochs_cell(losses: Sequence[RunForgetting]) -> str:
    first, last = ({getattr(one, key) for one in losses} for key in ("epoch_before", "epoch_after"))
    return " to ".join(f"{min(e)}" if len(e) == 1 else f"{min(e)}-{max(e)}" for e in (first, last))


def _scope_cell(lost: ForgottenFact) -> str:
    places = [_SCOPE_LABELS[where] for where in ("same_relation", "unknown_row") if getattr(lost.target_counts, where)]
    return ", ".join(places) or ("other relation" if lost.target_counts.any_row else "no")


def _variant_names(data: StudyData, split: str) -> list[str]:
    """The variants with losses to show: the sweep by share, then the others by name."""
    found = {one.variant for one in data.forgetting if one.split == split}
    if not found:
        raise InsufficientDataError(missing_data_message(data))
    kinds = {name: (variant.kind != "unknown", variant.kind) for name, variant in data.variants.items()}
    return sorted(found, key=lambda name: (*kinds.get(name, (True, "")), name))


def _sweep_runs(data: StudyData) -> list[RunForgetting]:
    if not data.forgetting:
        raise InsufficientDataError(missing_data_message(data))
    names = [name for _, name in data.sweep_variants("unknown")]
    return [one for one in data.forgetting if one.variant in names and one.split == "test"]


def _round2(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
