"""Forgotten facts: correct answers lost between the best dev epoch and the last, and the answers that replace them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from slick.datasets import read_questions
from slick.formatting import format_percent
from slick.report.charts import BLUE, GREEN, MUTED, VERMILLION, label_line_ends, set_share_axis
from slick.report.data import Run, StudyData
from slick.report.measurements import InsufficientDataError, value_or_reason
from slick.report.page import (
    GROUP_EXTENSIONS,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    linked_table_exhibit,
    table_exhibit,
)
from slick.report.sections import section
from slick.report.statistics import forgetting
from slick.report.tables import Row, Table
from slick.rng import row_key
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import lookup_by_question, read_epochs, read_predictions, read_right_to_wrong, read_variant_rows
from slick.types import ALL_CATEGORIES

RIGHT_TO_WRONG_FILE = "right_to_wrong.parquet"
PREDICTION_COLUMNS = ["question_id", "split", "hit", "text"]
TEST_SPLITS = ("test", "ood")
"""Without dev, since the first epoch is chosen by dev accuracy, which biases the losses on dev questions."""

NUM_EXAMPLES = 20
_SCOPE_LABELS: dict[forgetting.TargetScope, str] = {
    "any_row": "any row",
    "same_relation": "same relation",
    "unknown_row": "Unknown row",
}


@section(
    "forgotten",
    title="Forgotten facts and the answers that replace them",
    group=GROUP_EXTENSIONS,
    order=180,
    experiment="forgetting",
)
def forgetting_section(data: StudyData) -> SectionBody:
    """Losses and gains by variant, and how often the new answers are targets of the fine-tuning set."""
    return SectionBody(
        text="A fact is lost if its question is answered correctly at the best dev epoch, which early stopping keeps, "
        "and incorrectly after the last epoch. Dev questions are excluded, since that epoch is chosen by them. The new "
        "answer is looked up among the targets of the fine-tuning set, by exact match. Answers recur within a "
        "relation, so the chance rate is the match rate of answers to questions that are wrong at both epochs, at the "
        "last epoch, weighted by the relations of the lost facts.",
        result=value_or_reason(_lost_facts_sentence, data)[0] or "",
        exhibits=(
            figure_exhibit(
                "Lost facts whose new answer is a target of the fine-tuning set, with 95 % intervals. Dashed and "
                "dotted: answers to questions wrong at both epochs, at the last and at the best dev epoch.",
                "forgotten",
                "Share of lost facts whose new answer is a target of the fine-tuning set, by share of Unknown rows",
                lambda: match_rate_figure(data),
            ),
            figure_exhibit(
                "Test questions lost and gained between the best dev epoch and the last, in percent of the correct "
                "answers at the best dev epoch; losses with 95 % intervals.",
                "forgotten_share",
                "Lost and gained test questions by share of Unknown rows",
                lambda: losses_and_gains_figure(data),
            ),
            table_exhibit(
                "Correct answers to test questions lost and gained between the best dev epoch and the last, and "
                "percent of the new answers that are a target of any row, of a row of the same relation, and of an "
                "Unknown row, with the chance rate in brackets. Seeds are pooled.",
                lambda: forgetting_table(data, "test"),
            ),
            table_exhibit(
                "The wrong answers that replaced the most correct ones in the sweep, over all shares and seeds.",
                lambda: replacements_table(data),
            ),
            table_exhibit(
                f"{NUM_EXAMPLES} lost facts, sampled with a fixed seed.", lambda: forgotten_examples_table(data)
            ),
            collapsed_table_exhibit("The same losses out of distribution.", lambda: forgetting_table(data, "ood")),
            collapsed_table_exhibit(
                "All rates with their intervals, chance rates and p-values.", lambda: match_rates_table(data)
            ),
            linked_table_exhibit("Every lost fact of every run.", lambda: forgotten_facts_table(data)),
        ),
    )


def _lost_facts_sentence(data: StudyData) -> str:
    """How many correct answers are lost at the largest share, and how many become a target of the fine-tuning set."""
    share, name = data.sweep_variants("unknown")[-1]
    losses = forgetting.select_runs_forgetting(forgetting_by_run(data), name, "test")
    rate = forgetting.match_rate(losses, "any_row")
    before = sum(run.num_correct_before for run in losses)
    sentence = (
        f"At {format_percent(share)} Unknown rows, {rate.total:,} of {before:,} correct answers are lost, and "
        f"{rate.percent:.0f} % of the new answers are targets of the fine-tuning set"
    )
    if rate.chance is None or rate.earlier is None:
        return f"{sentence}."
    return (
        f"{sentence}; the chance rate is {rate.chance:.0f} % at the last epoch and {rate.earlier:.0f} % at the best "
        "dev epoch."
    )


def match_rate_figure(data: StudyData) -> Callable[[Any], None]:
    """Match rates and chance rates against the share of Unknown rows."""
    points: list[tuple[float, dict[forgetting.TargetScope, forgetting.MatchRate]]] = []
    for share, losses in _losses_by_share(data):
        with suppress(InsufficientDataError):  # nothing was lost at that share
            points.append(
                (100 * share, {scope: forgetting.match_rate(losses, scope) for scope in forgetting.TARGET_SCOPES})
            )
    if len(points) < 2:
        raise InsufficientDataError("needs lost facts at two or more shares of Unknown rows")
    lines: list[tuple[str, forgetting.TargetScope, str, str, str]] = [
        ("any row", "any_row", "percent", BLUE, "-"),
        ("Unknown row", "unknown_row", "percent", VERMILLION, "-"),
        ("others, last", "any_row", "chance", MUTED, "--"),
        ("others, best", "any_row", "earlier", MUTED, ":"),
    ]

    def plot(axes: Any) -> None:
        labels = []
        for label, scope, key, colour, style in lines:
            shown = [(x, rates[scope]) for x, rates in points if getattr(rates[scope], key) is not None]
            shown = [(x, rate) for x, rate in shown if scope != "unknown_row" or x > 0]
            if not shown:
                continue
            xs, ys = [x for x, _ in shown], [float(getattr(rate, key)) for _, rate in shown]
            axes.plot(xs, ys, style, color=colour, marker="o" if key == "percent" else None)
            if key == "percent":
                _draw_error_bars(axes, xs, [(rate.percent, rate.low, rate.high) for _, rate in shown], colour)
            labels.append((ys[-1], label, colour))
        axes.set_ylim(0, 100)
        label_line_ends(axes, points[-1][0], labels)
        axes.set_ylim(0, 100)
        set_share_axis(axes, [x for x, _ in points])
        axes.set_ylabel("New answer is a target of D (%)")

    return plot


def losses_and_gains_figure(data: StudyData) -> Callable[[Any], None]:
    """Losses and gains against the share of Unknown rows; seeds are pooled."""
    points: list[tuple[float, tuple[float, float, float], float]] = []
    for share, losses in _losses_by_share(data):
        with suppress(InsufficientDataError):  # no answer was correct at that share
            rate = forgetting.forgetting_rate(losses)
            gained = sum(run.num_gained for run in losses) / rate.total
            points.append((100 * share, (100 * rate.share, 100 * rate.low, 100 * rate.high), 100 * gained))
    if len(points) < 2:
        raise InsufficientDataError("needs test questions answered correctly at two or more shares of Unknown rows")
    xs, loss_intervals, gains = (list(column) for column in zip(*points, strict=True))

    def plot(axes: Any) -> None:
        losses = [value for value, _, _ in loss_intervals]
        axes.plot(xs, losses, color=VERMILLION, marker="o")
        _draw_error_bars(axes, xs, loss_intervals, VERMILLION)
        axes.plot(xs, gains, color=GREEN, marker="s")
        axes.set_ylim(bottom=0)
        label_line_ends(axes, xs[-1], [(losses[-1], "lost", VERMILLION), (gains[-1], "gained", GREEN)])
        axes.set_ylim(bottom=0)
        set_share_axis(axes, xs)
        axes.set_ylabel("Of correct answers before (%)")

    return plot


def _draw_error_bars(axes: Any, xs: list[float], values: list[tuple[float, float, float]], colour: str) -> None:
    """Error bars of (value, low, high)."""
    margins = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
    axes.errorbar(xs, [value for value, _, _ in values], margins, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)


def forgetting_table(data: StudyData, split: str) -> Table:
    """Losses, gains and match rates, one row per variant."""
    rows: list[Row] = []
    for name in _variant_names(data, split):
        losses = forgetting.select_runs_forgetting(forgetting_by_run(data), name, split)
        before, num = sum(run.num_correct_before for run in losses), sum(len(run.lost) for run in losses)
        rows.append(
            (
                name,
                _unknown_share_cell(data, name),
                _epochs_cell(losses),
                before,
                num,
                round(100 * num / before, 1) if before else None,
                sum(run.num_gained for run in losses),
                *(_rate_text(losses, scope) for scope in forgetting.TARGET_SCOPES),
            )
        )
    columns = ("variant", "Unknown", "epochs", "right before", "lost", "lost (%)", "won")
    return Table(
        name="forgotten" if split == "test" else "forgotten_ood",
        columns=(*columns, *_SCOPE_LABELS.values()),
        rows=tuple(rows),
    )


def _rate_text(losses: Sequence[forgetting.RunForgetting], scope: forgetting.TargetScope) -> str | None:
    rate, _ = value_or_reason(forgetting.match_rate, losses, scope)
    if rate is None:
        return None
    return f"{rate.percent:.0f}" + ("" if rate.chance is None else f" ({rate.chance:.0f})")


def _unknown_share_cell(data: StudyData, name: str) -> str | None:
    """Share of Unknown rows in the fine-tuning set."""
    variant = data.variants.get(name)
    if variant is None or variant.share is None or variant.kind == "known":
        return None
    return format_percent(variant.share)


def _epochs_cell(losses: Sequence[forgetting.RunForgetting]) -> str:
    first, last = ({getattr(run, key) for run in losses} for key in ("epoch_before", "epoch_after"))
    return " to ".join(
        f"{min(epochs)}" if len(epochs) == 1 else f"{min(epochs)}-{max(epochs)}" for epochs in (first, last)
    )


def match_rates_table(data: StudyData) -> Table:
    """All match rates of both splits."""
    rows: list[Row] = []
    for split in ("test", "ood"):
        for name in {rate.variant: None for rate in forgetting_by_run(data) if rate.split == split}:
            for scope in forgetting.TARGET_SCOPES:
                try:
                    rate = forgetting.match_rate(
                        forgetting.select_runs_forgetting(forgetting_by_run(data), name, split), scope
                    )
                except InsufficientDataError:
                    continue
                values = (rate.percent, rate.low, rate.high, rate.chance, rate.earlier)
                p_value = None if rate.p_value is None else float(f"{rate.p_value:.2g}")
                rows.append((name, split, _SCOPE_LABELS[scope], rate.num, rate.total, *map(_round2, values), p_value))
    if not rows:
        raise InsufficientDataError("no run lost a correct answer between its best dev epoch and its last")
    columns = ("variant", "split", "stands_in", "num", "lost", "percent", "low", "high", "chance_percent")
    return Table(name="forgotten_rates", columns=(*columns, "chance_at_best_dev_epoch_percent", "p"), rows=tuple(rows))


def _round2(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def replacements_table(data: StudyData) -> Table:
    """The most frequent new answers of the sweep."""
    answers = forgetting.replacements(_sweep_runs(data))
    if not answers:
        raise InsufficientDataError("no run lost a correct answer between its best dev epoch and its last")
    return Table(
        name="forgotten_replacements",
        columns=("new answer", "relation", "times", "questions", "right answers replaced", "stood in the set (times)"),
        rows=tuple((answer.answer or "(empty)", answer.relation, *answer[2:]) for answer in answers),
    )


def forgotten_examples_table(data: StudyData) -> Table:
    """A sample of lost facts of the sweep, each question at most once."""
    pool = [(run, fact) for run in _sweep_runs(data) for fact in run.lost]
    if not pool:
        raise InsufficientDataError("no run lost a correct answer between its best dev epoch and its last")
    ordered = sorted(pool, key=lambda item: int(row_key(0, "forgotten", item[0].run_id, item[1].question_id)))
    chosen: dict[str, tuple[forgetting.RunForgetting, forgetting.ForgottenFact]] = {}
    for run, fact in ordered:
        if len(chosen) < NUM_EXAMPLES:
            chosen.setdefault(fact.question_id, (run, fact))
    rows: tuple[Row, ...] = tuple(
        (run.variant, fact.relation, fact.question, fact.before, fact.after or "(empty)", _scope_cell(fact))
        for run, fact in chosen.values()
    )
    columns = ("variant", "relation", "question", "right, before", "wrong, after", "stands in the set")
    return Table(name="forgotten_examples", columns=columns, rows=rows, text_columns=frozenset({2, 3, 4}))


def _scope_cell(fact: forgetting.ForgottenFact) -> str:
    scopes = [_SCOPE_LABELS[scope] for scope in ("same_relation", "unknown_row") if getattr(fact.target_counts, scope)]
    return ", ".join(scopes) or ("other relation" if fact.target_counts.any_row else "no")


def forgotten_facts_table(data: StudyData) -> Table:
    """Every lost fact of every run."""
    rows: tuple[Row, ...] = tuple(
        (
            run.run_id,
            run.variant,
            run.seed,
            run.split,
            run.epoch_before,
            run.epoch_after,
            fact.question_id,
            fact.relation,
            fact.category,
            fact.question,
            " | ".join(fact.gold),
            fact.before,
            fact.after,
            *(getattr(fact.target_counts, scope) for scope in forgetting.TARGET_SCOPES),
        )
        for run in require_forgetting(data)
        for fact in run.lost
    )
    if not rows:
        raise InsufficientDataError("no run lost a correct answer between its best dev epoch and its last")
    columns = ("run_id", "variant", "seed", "split", "epoch_before", "epoch_after", "question_id", "relation")
    texts = ("category", "question", "gold", "text_before", "text_after", "in_any_row", "in_same_relation")
    return Table(name="forgotten_all", columns=(*columns, *texts, "in_unknown_row"), rows=rows)


def _variant_names(data: StudyData, split: str) -> list[str]:
    """The variants with losses on a split: the sweep by share, then the others by name."""
    variants = {run.variant for run in require_forgetting(data) if run.split == split}
    if not variants:
        raise InsufficientDataError(f"the finished runs have no right_to_wrong.parquet with {split} questions")
    kinds = {name: (variant.kind != "unknown", variant.kind) for name, variant in data.variants.items()}
    return sorted(variants, key=lambda name: (*kinds.get(name, (True, "")), name))


def _sweep_runs(data: StudyData) -> list[forgetting.RunForgetting]:
    return [run for _, losses in _losses_by_share(data) for run in losses]


def _losses_by_share(data: StudyData) -> list[tuple[float, list[forgetting.RunForgetting]]]:
    """The runs of the sweep on test questions by share of Unknown rows, without shares that have none."""
    runs = [run for run in require_forgetting(data) if run.split == "test"]
    by_share = [(share, [run for run in runs if run.variant == name]) for share, name in data.sweep_variants("unknown")]
    return [(share, losses) for share, losses in by_share if losses]


def require_forgetting(data: StudyData) -> tuple[forgetting.RunForgetting, ...]:
    """As `forgetting_by_run`.

    Raises:
        InsufficientDataError: there is none.
    """
    if runs := forgetting_by_run(data):
        return runs
    if data.runs:
        raise InsufficientDataError(
            "the finished runs have no right_to_wrong.parquet with test questions, or the questions are missing"
        )
    raise InsufficientDataError("needs a finished run")


def forgetting_by_run(data: StudyData) -> tuple[forgetting.RunForgetting, ...]:
    """The forgotten facts of every finished run and test split."""
    return data.load_cached(load_forgetting, (), data.runs)


class _QuestionIndex:
    """Looks up questions by question_id."""

    def __init__(self, study: Folder) -> None:
        self._table = read_questions(study, ["question_id", "relation", "question", "answers"])
        self._place = lookup_by_question(self._table, range(self._table.num_rows), f"{study}/questions")
        self._relations = self._table["relation"].to_pylist()

    def relation(self, question_id: str) -> str:
        return str(self._relations[self._place[question_id]])

    def rows(self, question_ids: list[str]) -> list[dict[str, Any]]:
        places = pa.array([self._place[question_id] for question_id in question_ids], pa.int64())
        rows: list[dict[str, Any]] = self._table.take(places).to_pylist()
        return rows


def load_forgetting(study: Folder, runs: Sequence[Run]) -> tuple[forgetting.RunForgetting, ...]:
    """Load the forgotten facts of every run and split.

    Args:
        study: the study's folder.
        runs: finished runs.

    Returns:
        In the order of the runs, without runs that have no right_to_wrong.parquet or no dev rows; empty without the
        questions.

    Raises:
        StudyError: a file is malformed.
    """
    if read_manifest(study.child("questions")) is None:
        return ()
    questions = _QuestionIndex(study)
    targets: dict[str, forgetting.TargetIndex] = {}
    losses: list[forgetting.RunForgetting] = []
    for run in runs:
        folder = study.child("runs", run.run_id)
        epochs = read_epochs(folder)
        if best_and_last_epoch(epochs) is None or not folder.exists(RIGHT_TO_WRONG_FILE):
            continue
        if run.variant not in targets:
            targets[run.variant] = _load_targets(study, run.variant, questions)
        for split in TEST_SPLITS:
            name = (run.run_id, run.variant, run.seed, split)
            run_losses = _run_forgetting(folder, name, epochs, targets[run.variant], questions)
            losses += [] if run_losses is None else [run_losses]
    return tuple(losses)


def _run_forgetting(
    folder: Folder,
    name: tuple[str, str, int, str],
    epochs: pa.Table,
    targets: forgetting.TargetIndex,
    questions: _QuestionIndex,
) -> forgetting.RunForgetting | None:
    run_id, variant, seed, split = name
    ends = best_and_last_epoch(epochs)
    assert ends is not None
    right = {row["epoch"]: int(row["num_correct"]) for row in epochs.to_pylist() if _is_total_row(row, split)}
    if not right.keys() >= set(ends):
        return None
    rows = [row for row in read_right_to_wrong(folder).to_pylist() if row["split"] == split]
    asked = questions.rows([row["question_id"] for row in rows])
    lost = tuple(
        forgetting.ForgottenFact(
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
    return forgetting.RunForgetting(
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


def best_and_last_epoch(epochs: pa.Table) -> tuple[int, int] | None:
    """The epoch with the best dev accuracy, ties to the earliest, and the last; None without dev rows."""
    dev = {row["epoch"]: row["num_correct"] for row in epochs.to_pylist() if _is_total_row(row, "dev")}
    return (min(dev, key=lambda epoch: (-dev[epoch], epoch)), max(dev)) if dev else None


def _is_total_row(row: Mapping[str, Any], split: str) -> bool:
    return bool(row["split"] == split and row["category"] == ALL_CATEGORIES)


def _load_targets(study: Folder, variant: str, questions: _QuestionIndex) -> forgetting.TargetIndex:
    rows = read_variant_rows(study, variant, ["question_id", "category", "target"]).to_pylist()
    return forgetting.TargetIndex(
        (questions.relation(row["question_id"]), row["category"], row["target"]) for row in rows
    )


def _baseline_counts(
    run: Folder, ends: tuple[int, int], split: str, targets: forgetting.TargetIndex, questions: _QuestionIndex
) -> tuple[dict[str, forgetting.TargetCounts], dict[str, forgetting.TargetCounts]]:
    """Counts by relation over questions wrong at both epochs: of the answers at the first epoch, and at the last."""
    names = [f"epoch-{epoch:03d}.parquet" for epoch in ends]
    if not set(names) <= set(run.child("predictions").names(".parquet")):
        return {}, {}
    before, after = (_wrong_answers(read_predictions(run, name, PREDICTION_COLUMNS), split) for name in names)
    counts: list[dict[str, forgetting.TargetCounts]] = []
    for texts in (before, after):
        answers = [
            (questions.relation(question_id), text)
            for question_id, text in texts.items()
            if question_id in before and question_id in after
        ]
        counts.append(
            forgetting.sum_by_relation((relation, targets.target_counts(text, relation)) for relation, text in answers)
        )
    return counts[0], counts[1]


def _wrong_answers(predictions: pa.Table, split: str) -> dict[str, str]:
    """The wrong answers by question_id."""
    rows = predictions.to_pylist()
    return {row["question_id"]: row["text"] for row in rows if row["split"] == split and not row["hit"]}
