"""right_to_wrong.parquet of the finished runs, with what the new answers have to do with the fine-tuning sets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from slick.datasets import read_questions
from slick.report.charts import BLUE, GREEN, MUTED, VERMILLION, label_line_ends, set_share_axis
from slick.report.data import Run, StudyData
from slick.report.measurements import InsufficientDataError, format_percent
from slick.report.page import (
    GROUP_EXTENSIONS,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    linked_table_exhibit,
    table_exhibit,
)
from slick.report.sections import section
from slick.report.statistics.forgetting import (
    TARGET_SCOPES,
    ForgottenFact,
    MatchRate,
    RunForgetting,
    TargetCounts,
    TargetIndex,
    TargetScope,
    forgetting_rate,
    match_rate,
    replacements,
    select_runs_forgetting,
    sum_by_relation,
)
from slick.report.tables import CellValue, Table
from slick.rng import row_key
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import lookup_by_question, read_epochs, read_predictions, read_right_to_wrong, read_variant_rows
from slick.types import ALL_CATEGORIES

RIGHT_TO_WRONG_FILE = "right_to_wrong.parquet"
PREDICTION_COLUMNS = ["question_id", "split", "hit", "text"]
TEST_SPLITS = ("test", "ood")
"""Not dev: the epoch before is the one with the best dev accuracy, so losses there are chance in part."""


def load_forgetting(study: Folder, runs: Sequence[Run]) -> tuple[RunForgetting, ...]:
    """What every run lost, by split.

    Args:
        study: its folder.
        runs: finished runs.

    Returns:
        By variant, seed and split; a run without right_to_wrong.parquet or without dev rows is left out, and all are
        where the questions are not there.

    Raises:
        StudyError: a file is broken, or lacks a column.
    """
    if read_manifest(study.child("questions")) is None:
        return ()
    questions = _QuestionIndex(study)
    targets: dict[str, TargetIndex] = {}
    found: list[RunForgetting] = []
    for run in runs:
        folder = study.child("runs", run.run_id)
        epochs = read_epochs(folder)
        if best_and_last_epoch(epochs) is None or not folder.exists(RIGHT_TO_WRONG_FILE):
            continue
        if run.variant not in targets:
            targets[run.variant] = _load_targets(study, run.variant, questions)
        for split in TEST_SPLITS:
            name = (run.run_id, run.variant, run.seed, split)
            one = _run_forgetting(folder, name, epochs, targets[run.variant], questions)
            found += [] if one is None else [one]
    return tuple(found)


def forgetting_by_run(data: StudyData) -> tuple[RunForgetting, ...]:
    """What each finished run answered right at its best dev epoch and wrong after its last."""
    return data.part(load_forgetting, (), data.runs)


def best_and_last_epoch(epochs: pa.Table) -> tuple[int, int] | None:
    """The epoch with the best dev accuracy, ties to the earliest, and the last; None without dev rows."""
    dev = {row["epoch"]: row["num_correct"] for row in epochs.to_pylist() if _is_total_row(row, "dev")}
    return (min(dev, key=lambda epoch: (-dev[epoch], epoch)), max(dev)) if dev else None


def _is_total_row(row: Mapping[str, Any], split: str) -> bool:
    return bool(row["split"] == split and row["category"] == ALL_CATEGORIES)


class _QuestionIndex:
    """Relations of all questions, and the rest of those that are asked for."""

    def __init__(self, study: Folder) -> None:
        self._table = read_questions(study, ["question_id", "relation", "question", "answers"])
        self._place = lookup_by_question(self._table, range(self._table.num_rows), f"{study}/questions")
        self._relations = self._table["relation"].to_pylist()

    def relation(self, question_id: str) -> str:
        return str(self._relations[self._place[question_id]])

    def rows(self, question_ids: list[str]) -> list[dict[str, Any]]:
        places = pa.array([self._place[one] for one in question_ids], pa.int64())
        rows: list[dict[str, Any]] = self._table.take(places).to_pylist()
        return rows


def _load_targets(study: Folder, variant: str, questions: _QuestionIndex) -> TargetIndex:
    rows = read_variant_rows(study, variant, ["question_id", "category", "target"]).to_pylist()
    return TargetIndex((questions.relation(row["question_id"]), row["category"], row["target"]) for row in rows)


def _run_forgetting(
    folder: Folder, name: tuple[str, str, int, str], epochs: pa.Table, targets: TargetIndex, questions: _QuestionIndex
) -> RunForgetting | None:
    run_id, variant, seed, split = name
    ends = best_and_last_epoch(epochs)
    assert ends is not None
    right = {row["epoch"]: int(row["num_correct"]) for row in epochs.to_pylist() if _is_total_row(row, split)}
    if not right.keys() >= set(ends):
        return None
    rows = [row for row in read_right_to_wrong(folder).to_pylist() if row["split"] == split]
    asked = questions.rows([row["question_id"] for row in rows])
    lost = tuple(
        ForgottenFact(
            question_id=row["question_id"],
            relation=question["relation"],
            category=row["category"] or "",
            question=question["question"],
            gold=tuple(question["answers"]),
            before=row["text_before"],
            after=row["text_after"],
            target_counts=targets.target_counts(row["text_after"], question["relation"]),
        )
        for row, question in zip(rows, asked, strict=True)
    )
    before, after = _baseline_counts(folder, ends, split, targets, questions)
    return RunForgetting(
        run_id=run_id,
        variant=variant,
        seed=seed,
        split=split,
        epoch_before=ends[0],
        epoch_after=ends[1],
        num_correct_before=right[ends[0]],
        num_correct_after=right[ends[1]],
        lost=lost,
        baseline_after=after,
        baseline_before=before,
    )


def _baseline_counts(
    run: Folder, ends: tuple[int, int], split: str, targets: TargetIndex, questions: _QuestionIndex
) -> tuple[dict[str, TargetCounts], dict[str, TargetCounts]]:
    """Of questions wrong at both epochs, where the answers at the first and at the last stand, by relation."""
    names = [f"epoch-{epoch:03d}.parquet" for epoch in ends]
    if not set(names) <= set(run.child("predictions").names(".parquet")):
        return {}, {}
    before, after = (_wrong_answers(read_predictions(run, name, PREDICTION_COLUMNS), split) for name in names)
    standings: list[dict[str, TargetCounts]] = []
    for texts in (before, after):
        answers = [(questions.relation(one), text) for one, text in texts.items() if one in before and one in after]
        standings.append(
            sum_by_relation((relation, targets.target_counts(text, relation)) for relation, text in answers)
        )
    return standings[0], standings[1]


def _wrong_answers(predictions: pa.Table, split: str) -> dict[str, str]:
    """question_id to the wrong answer."""
    rows = predictions.to_pylist()
    return {row["question_id"]: row["text"] for row in rows if row["split"] == split and not row["hit"]}


NUM_EXAMPLES = 20
_SCOPE_LABELS: dict[TargetScope, str] = {
    "any_row": "any row",
    "same_relation": "same relation",
    "unknown_row": "Unknown row",
}


@section(
    "forgotten",
    title="What was forgotten, and what is said instead",
    group=GROUP_EXTENSIONS,
    order=180,
    experiment="forgetting",
)
def forgetting_section(data: StudyData) -> SectionBody:
    """The section; without finished runs it says what is missing."""
    return SectionBody(
        text=_section_text(data),
        exhibits=(
            figure_exhibit(
                "Lost facts whose new answer is the target of a row of the fine-tuning set, with 95 % intervals. "
                "Dashed and dotted: answers to questions wrong at both epochs, at the last and at the best dev epoch.",
                "forgotten",
                "Share of lost facts whose new answer stands in the fine-tuning set, by share of Unknown rows",
                lambda: match_rate_figure(data),
            ),
            figure_exhibit(
                "Test questions lost and won between the best dev epoch and the last, in percent of the right answers "
                "at the best dev epoch; lost ones with 95 % intervals.",
                "forgotten_share",
                "Lost and won test questions by share of Unknown rows",
                lambda: losses_and_gains_figure(data),
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
        losses = select_runs_forgetting(forgetting_by_run(data), name, split)
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
        for name in {one.variant: None for one in forgetting_by_run(data) if one.split == split}:
            for where in TARGET_SCOPES:
                try:
                    one = match_rate(select_runs_forgetting(forgetting_by_run(data), name, split), where)
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
        for one in forgetting_by_run(data)
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
        losses = select_runs_forgetting(forgetting_by_run(data), name, "test")
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
    found = {one.variant for one in forgetting_by_run(data) if one.split == split}
    if not found:
        raise InsufficientDataError(missing_data_message(data))
    kinds = {name: (variant.kind != "unknown", variant.kind) for name, variant in data.variants.items()}
    return sorted(found, key=lambda name: (*kinds.get(name, (True, "")), name))


def _sweep_runs(data: StudyData) -> list[RunForgetting]:
    if not forgetting_by_run(data):
        raise InsufficientDataError(missing_data_message(data))
    names = [name for _, name in data.sweep_variants("unknown")]
    return [one for one in forgetting_by_run(data) if one.variant in names and one.split == "test"]


def _round2(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def match_rate_figure(data: StudyData) -> Callable[[Any], None]:
    """Where new answers stand against the share of Unknown rows, beside other wrong answers."""
    if not forgetting_by_run(data):
        raise InsufficientDataError(missing_data_message(data))
    points: list[tuple[float, dict[TargetScope, MatchRate]]] = []
    for share, name in data.sweep_variants("unknown"):
        try:
            losses = select_runs_forgetting(forgetting_by_run(data), name, "test")
            points.append((100 * share, {where: match_rate(losses, where) for where in TARGET_SCOPES}))
        except InsufficientDataError:
            continue
    if len(points) < 2:
        raise InsufficientDataError("needs lost facts at two or more shares of Unknown rows")
    lines: list[tuple[str, TargetScope, str, str, str]] = [
        ("any row", "any_row", "percent", BLUE, "-"),
        ("Unknown row", "unknown_row", "percent", VERMILLION, "-"),
        ("others, last", "any_row", "chance", MUTED, "--"),
        ("others, best", "any_row", "earlier", MUTED, ":"),
    ]

    def plot(axes: Any) -> None:
        labels = []
        for label, where, key, colour, style in lines:
            shown = [(x, rates[where]) for x, rates in points if getattr(rates[where], key) is not None]
            shown = [(x, one) for x, one in shown if where != "unknown_row" or x > 0]
            if not shown:
                continue
            xs, ys = [x for x, _ in shown], [float(getattr(one, key)) for _, one in shown]
            axes.plot(xs, ys, style, color=colour, marker="o" if key == "percent" else None)
            if key == "percent":
                _draw_error_bars(axes, xs, [(one.percent, one.low, one.high) for _, one in shown], colour)
            labels.append((ys[-1], label, colour))
        axes.set_ylim(0, 100)
        label_line_ends(axes, points[-1][0], labels)
        axes.set_ylim(0, 100)
        set_share_axis(axes, [x for x, _ in points])
        axes.set_ylabel("New answer stands in D (%)")

    return plot


def losses_and_gains_figure(data: StudyData) -> Callable[[Any], None]:
    """Losses and gains against the share of Unknown rows; seeds pooled."""
    if not forgetting_by_run(data):
        raise InsufficientDataError(missing_data_message(data))
    points: list[tuple[float, tuple[float, float, float], float]] = []
    for share, name in data.sweep_variants("unknown"):
        try:
            losses = select_runs_forgetting(forgetting_by_run(data), name, "test")
            lost = forgetting_rate(losses)
        except InsufficientDataError:
            continue
        won = sum(one.num_gained for one in losses) / sum(one.num_correct_before for one in losses)
        points.append((100 * share, lost, 100 * won))
    if len(points) < 2:
        raise InsufficientDataError("needs test questions answered right at two or more shares of Unknown rows")
    xs, losts, wons = (list(column) for column in zip(*points, strict=True))

    def plot(axes: Any) -> None:
        lost = [value for value, _, _ in losts]
        axes.plot(xs, lost, color=VERMILLION, marker="o")
        _draw_error_bars(axes, xs, losts, VERMILLION)
        axes.plot(xs, wons, color=GREEN, marker="s")
        axes.set_ylim(bottom=0)
        label_line_ends(axes, xs[-1], [(lost[-1], "lost", VERMILLION), (wons[-1], "won", GREEN)])
        axes.set_ylim(bottom=0)
        set_share_axis(axes, xs)
        axes.set_ylabel("Of right answers before (%)")

    return plot


def _draw_error_bars(axes: Any, xs: list[float], values: list[tuple[float, float, float]], colour: str) -> None:
    """Error bars of (value, low, high)."""
    reach = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
    axes.errorbar(xs, [value for value, _, _ in values], reach, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)


def missing_data_message(data: StudyData) -> str:
    """Why nothing can be told."""
    if data.runs:
        return "the finished runs have no right_to_wrong.parquet with test questions, or the questions are not there"
    return "needs a finished run"
