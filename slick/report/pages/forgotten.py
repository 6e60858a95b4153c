"""The section of what fine-tuning made a model forget, and where the answers come from that it gives instead."""

from collections.abc import Sequence

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import percent
from slick.analysis.forgotten import WHERE, Lost, RunLoss, Where, losses_of, rate, replacements
from slick.analysis.terms import NotTestable
from slick.report.page import BEYOND, Section, drawn, linked, numbers, wide
from slick.report.pages import forgotten_figures
from slick.report.pages.forgotten_figures import missing
from slick.report.tables import Table, Value
from slick.rng import row_key

NUM_EXAMPLES = 20
_WORDS: dict[Where, str] = {"any_row": "any row", "same_relation": "same relation", "unknown_row": "Unknown row"}


def section(data: StudyData) -> Section:
    """The section; without finished runs it says what is missing."""
    return Section(
        name="forgotten",
        group=BEYOND,
        title="What was forgotten, and what is said instead",
        text=_text(data),
        exhibits=(
            drawn(
                "Lost facts whose new answer is the target of a row of the fine-tuning set, with 95 % intervals. "
                "Dashed and dotted: answers to questions wrong at both epochs, at the last and at the best dev epoch.",
                "forgotten",
                "Share of lost facts whose new answer stands in the fine-tuning set, by share of Unknown rows",
                lambda: forgotten_figures.by_share(data),
            ),
            drawn(
                "Test questions lost and won between the best dev epoch and the last, in percent of the right answers "
                "at the best dev epoch; lost ones with 95 % intervals.",
                "forgotten_share",
                "Lost and won test questions by share of Unknown rows",
                lambda: forgotten_figures.lost_and_won(data),
            ),
            wide(
                "Right answers lost and won between the best dev epoch and the last, on test questions, and where the "
                "new answers stand (%); in brackets the chance rate. Seeds are added up.",
                lambda: losses_table(data, "test"),
            ),
            wide(
                "The answers that took the place of most right ones in the sweep, all shares and seeds together.",
                lambda: replacements_table(data),
            ),
            wide(f"{NUM_EXAMPLES} lost facts, drawn by a seed.", lambda: examples_table(data)),
            numbers("The same losses out of distribution.", lambda: losses_table(data, "ood")),
            numbers("All rates with their intervals, chance and p-values.", lambda: rates_table(data)),
            linked("Every lost fact of every run.", lambda: all_table(data)),
        ),
    )


def losses_table(data: StudyData, split: str) -> Table:
    """One row a variant: how much it lost and won, and where the new answers stand."""
    rows: list[tuple[Value, ...]] = []
    for name in _names(data, split):
        losses = losses_of(data.forgotten, name, split)
        before, num = sum(one.right_before for one in losses), sum(len(one.lost) for one in losses)
        rows.append((
            name, _unknown(data, name), _epochs(losses), before, num, round(100 * num / before, 1) if before else None,
            sum(one.num_gained for one in losses), *(_rate_text(losses, where) for where in WHERE),
        ))  # fmt: skip
    columns = ("variant", "Unknown", "epochs", "right before", "lost", "lost (%)", "won")
    return Table(
        name="forgotten" if split == "test" else "forgotten_ood", columns=(*columns, *_WORDS.values()), rows=tuple(rows)
    )


def rates_table(data: StudyData) -> Table:
    """Every rate of both splits."""
    rows: list[tuple[Value, ...]] = []
    for split in ("test", "ood"):
        for name in {one.variant: None for one in data.forgotten if one.split == split}:
            for where in WHERE:
                try:
                    one = rate(losses_of(data.forgotten, name, split), where)
                except NotTestable:
                    continue
                numbers_of = (one.percent, one.low, one.high, one.chance, one.earlier)
                p_value = None if one.p_value is None else float(f"{one.p_value:.2g}")
                rows.append((name, split, _WORDS[where], one.num, one.total, *map(_rounded, numbers_of), p_value))
    if not rows:
        raise NotTestable("no run lost anything between its best dev epoch and its last")
    columns = ("variant", "split", "stands_in", "num", "lost", "percent", "low", "high", "chance_percent")
    return Table(name="forgotten_rates", columns=(*columns, "chance_at_best_dev_epoch_percent", "p"), rows=tuple(rows))


def replacements_table(data: StudyData) -> Table:
    """The most frequent new answers of the sweep over shares of Unknown rows."""
    found = replacements(_sweep(data))
    if not found:
        raise NotTestable("no run lost anything between its best dev epoch and its last")
    return Table(
        name="forgotten_replacements",
        columns=("new answer", "relation", "times", "questions", "right answers replaced", "stood in the set (times)"),
        rows=tuple((one.answer or "(empty)", one.relation, *one[2:]) for one in found),
    )


def examples_table(data: StudyData) -> Table:
    """Lost facts of the sweep, each question at most once."""
    pool = [(one, lost) for one in _sweep(data) for lost in one.lost]
    if not pool:
        raise NotTestable("no run lost anything between its best dev epoch and its last")
    keyed = sorted(pool, key=lambda item: int(row_key(0, "forgotten", item[0].run_id, item[1].question_id)))
    chosen: dict[str, tuple[RunLoss, Lost]] = {}
    for one, lost in keyed:
        if len(chosen) < NUM_EXAMPLES:
            chosen.setdefault(lost.question_id, (one, lost))
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (one.variant, lost.relation, lost.question, lost.before, lost.after or "(empty)", _stands(lost))
        for one, lost in chosen.values()
    )
    columns = ("variant", "relation", "question", "right, before", "wrong, after", "stands in the set")
    return Table(name="forgotten_examples", columns=columns, rows=rows, text_columns=frozenset({2, 3, 4}))


def all_table(data: StudyData) -> Table:
    """Every lost fact, for a file of its own."""
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (one.run_id, one.variant, one.seed, one.split, one.epoch_before, one.epoch_after, lost.question_id,
         lost.relation, lost.category, lost.question, " | ".join(lost.gold), lost.before, lost.after,
         *(getattr(lost.standing, where) for where in WHERE))
        for one in data.forgotten
        for lost in one.lost
    )  # fmt: skip
    if not rows:
        raise NotTestable(missing(data))
    columns = ("run_id", "variant", "seed", "split", "epoch_before", "epoch_after", "question_id", "relation")
    texts = ("category", "question", "gold", "text_before", "text_after", "in_any_row", "in_same_relation")
    return Table(name="forgotten_all", columns=(*columns, *texts, "in_unknown_row"), rows=rows)


def _text(data: StudyData) -> str:
    said = (
        "A fact is lost if its question was answered right at the best dev epoch, where early stop keeps the model, "
        "and wrong after the last epoch. Dev questions do not count, since that epoch was chosen by them. The new "
        "answer stands in the fine-tuning set if it is the target of one of its rows, compared as exact match does. "
        "Answers recur within a relation, so the chance rate is that of questions answered wrong at both epochs, at "
        "the end, weighted by the relations of the lost facts."
    )
    try:
        share, name = data.sweep("unknown")[-1]
        losses = losses_of(data.forgotten, name, "test")
        found = rate(losses, "any_row")
    except NotTestable:
        return said
    before = sum(one.right_before for one in losses)
    said += (
        f" At {percent(share)} Unknown rows {found.total:,} of {before:,} right answers are lost, and "
        f"{found.percent:.0f} % of the new ones stand in the set"
    )
    if found.chance is None or found.earlier is None:
        return f"{said}."
    return (
        f"{said}; of the answers to questions wrong at both epochs {found.chance:.0f} % do at the end, and "
        f"{found.earlier:.0f} % did at the best dev epoch."
    )


def _rate_text(losses: Sequence[RunLoss], where: Where) -> str | None:
    try:
        one = rate(losses, where)
    except NotTestable:
        return None
    return f"{one.percent:.0f}" + ("" if one.chance is None else f" ({one.chance:.0f})")


def _unknown(data: StudyData, name: str) -> str | None:
    """Share of Unknown rows in the set itself."""
    variant = data.variants.get(name)
    if variant is None or variant.share is None or variant.kind == "known":
        return None
    return percent(variant.share)


def _epochs(losses: Sequence[RunLoss]) -> str:
    first, last = ({getattr(one, key) for one in losses} for key in ("epoch_before", "epoch_after"))
    return " to ".join(f"{min(e)}" if len(e) == 1 else f"{min(e)}-{max(e)}" for e in (first, last))


def _stands(lost: Lost) -> str:
    places = [_WORDS[where] for where in ("same_relation", "unknown_row") if getattr(lost.standing, where)]
    return ", ".join(places) or ("other relation" if lost.standing.any_row else "no")


def _names(data: StudyData, split: str) -> list[str]:
    """The variants with losses to show: the sweep by share, then the others by name."""
    found = {one.variant for one in data.forgotten if one.split == split}
    if not found:
        raise NotTestable(missing(data))
    kinds = {name: (variant.kind != "unknown", variant.kind) for name, variant in data.variants.items()}
    return sorted(found, key=lambda name: (*kinds.get(name, (True, "")), name))


def _sweep(data: StudyData) -> list[RunLoss]:
    if not data.forgotten:
        raise NotTestable(missing(data))
    names = [name for _, name in data.sweep("unknown")]
    return [one for one in data.forgotten if one.variant in names and one.split == "test"]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
