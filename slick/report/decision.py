"""When to stop and whether to drop the Unknown rows, at the question set's own share of Unknown rows.

A sweep has a few shares only, so the advice is based on the neighbouring ones. Differences are paired over test
questions. A difference whose 95 % interval includes 0 is not reliable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slick.datasets import read_questions
from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.knowledge import category_totals
from slick.report.labels import settings_label
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    format_difference,
    is_significant,
    round1,
    value_or_reason,
)
from slick.report.recommendation import recommend
from slick.report.tables import Row, Table
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import lookup_by_question, read_knowledge
from slick.types import Category

NOT_RELIABLE = "no reliable difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAdvice:
    """Stopping and dropping at one share of the sweep; accuracies in percent, differences in points."""

    share: float
    """Share of Unknown rows of the fine-tuning set, in [0, 1]."""
    stops: tuple[int, int]
    """The first and the last early-stopping epoch over the seeds."""
    last_epoch: int
    accuracy: Measurement
    """At early stop."""
    training_on: Measurement
    """Accuracy at the last epoch minus that at early stop."""
    dropping_at_stop: Measurement | None
    """Accuracy of D_Known minus that of D, each at its own early stop; None if D_Known was not trained."""
    dropping_at_end: Measurement | None
    """The same at the last epoch."""

    @property
    def stops_at_end(self) -> bool:
        """Whether dev accuracy is highest at the last epoch, with every seed."""
        return self.stops[0] == self.last_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The advice at the shares of the sweep next to the set's own share."""

    num_unknown: int
    num_questions: int
    split: str
    """The questions whose share of Unknown rows it is: `training`, or `test` if no training questions were labelled."""
    neighbours: tuple[ShareAdvice, ...]
    """One or two shares, ascending."""
    nearest: ShareAdvice
    best_settings: str
    """Training settings with a higher dev accuracy at the nearest share than the default ones; empty for none."""

    @property
    def own_share(self) -> float:
        """Share of Unknown questions, in [0, 1]."""
        return self.num_unknown / self.num_questions


def decide(data: StudyData) -> Decision:
    """The advice at the study's own share of Unknown questions.

    Raises:
        InsufficientDataError: no questions were labelled, or no variant with a share of Unknown rows was trained.
    """
    totals, split = question_totals(data)
    total, unknown = sum(totals.values()), totals[str(Category.UNKNOWN)]
    sweep = dict(data.sweep_variants())
    shares = neighbouring_shares(sorted(sweep), unknown / total)
    known = {round(share, 6): name for share, name in data.sweep_variants("known", min_shares=0)}
    neighbours = [_advice(data, share, sweep[share], known.get(round(share, 6))) for share in shares]
    nearest = min(neighbours, key=lambda advice: (abs(advice.share - unknown / total), -advice.share))
    return Decision(
        num_unknown=unknown,
        num_questions=total,
        split=split,
        neighbours=tuple(neighbours),
        nearest=nearest,
        best_settings=_best_settings(data, nearest.share),
    )


def question_totals(data: StudyData) -> tuple[Mapping[str, int], str]:
    """Questions of each category, and which: `training` questions, or `test` questions if no others were labelled.

    Raises:
        InsufficientDataError: none were labelled.
    """
    for split, label in (("train", "training"), ("test", "test")):
        totals = category_totals(data, "id", split)
        if sum(totals.values()):
            return totals, label
    raise InsufficientDataError("no questions were annotated")


def neighbouring_shares(shares: Sequence[float], own: float) -> list[float]:
    """The nearest of the ascending shares below and above `own`; one if a share equals it or there is none beyond.

    >>> neighbouring_shares([0.0, 0.25, 0.5], 0.29), neighbouring_shares([0.25, 0.5], 0.1)
    ([0.25, 0.5], [0.25])
    """
    equal = [share for share in shares if abs(share - own) < 0.005]
    below, above = [s for s in shares if s <= own], [s for s in shares if s > own]
    return equal[:1] or [*below[-1:], *above[:1]]


def decision_sentences(decision: Decision) -> tuple[str, str]:
    """Two sentences: when to stop and whether to drop the Unknown rows then, and the effect at the last epoch."""
    advice = decision.nearest
    first, last = advice.stops
    epochs = f"{first}" if first == last else f"{first} to {last}"
    stop = (
        f"Train for all {checkpoint_label(advice.last_epoch)}, because dev accuracy is highest at the end"
        if advice.stops_at_end
        else f"Stop after epoch {epochs}"
    )
    rows = f"{decision.num_unknown:,} Unknown rows"
    dropping = advice.dropping_at_stop
    if dropping is None or not decision.num_unknown:
        return f"{stop}.", ""
    if not is_significant(dropping):
        return f"{stop}: dropping the {rows} then makes {NOT_RELIABLE}.", _training_on_sentence(decision)
    points = f"{abs(round1(dropping.value)):.1f} points of test accuracy"
    if dropping.value > 0:
        return f"{stop}, and drop the {rows}: that gains {points}.", ""
    return f"{stop}, and keep the {rows}: dropping them costs {points}.", _training_on_sentence(decision)


def _training_on_sentence(decision: Decision) -> str:
    """The effect of dropping the Unknown rows at the last epoch, at each of the neighbouring shares."""
    if decision.nearest.stops_at_end:
        return ""
    measured = [(a.share, a.dropping_at_end) for a in decision.neighbours if a.dropping_at_end is not None]
    reliable = [(share, change) for share, change in measured if is_significant(change)]
    start = f"If you train on to epoch {decision.nearest.last_epoch}"
    if not measured:
        return ""
    if not reliable:
        return f"{start}, dropping them makes {NOT_RELIABLE} either."
    effects = " and ".join(
        f"{format_difference(change)} points at {format_percent(share)} Unknown rows" for share, change in reliable
    )
    others = [format_percent(share) for share, change in measured if not is_significant(change)]
    rest = f"; at {' and '.join(others)} there is {NOT_RELIABLE}" if others else ""
    gains = [change.value > 0 for _, change in reliable]
    verb = "drop" if all(gains) else "keep" if not any(gains) else ""
    rows = f"{verb} these {decision.num_unknown:,} rows{' to be safe' if others else ''}"
    advice = rows if verb else "it depends on their share whether to drop them"
    return f"{start}, {advice}: without them, test accuracy changes by {effects}{rest}."


def decision_table(decision: Decision) -> Table:
    """Measurements at the neighbouring shares, one column each."""
    neighbours = decision.neighbours
    longest = checkpoint_label(max(advice.last_epoch for advice in neighbours))
    rows: list[Row] = [
        (
            "best dev accuracy: stop after epoch",
            *(f"{a.stops[0]}" if a.stops[0] == a.stops[1] else f"{a.stops[0]} to {a.stops[1]}" for a in neighbours),
        ),
        ("test accuracy there, %", *(f"{round1(a.accuracy.value):.1f}" for a in neighbours)),
        (f"points by training on to {longest}", *(_change_cell(a.training_on) for a in neighbours)),
        ("points by dropping Unknown rows, at that stop", *(_change_cell(a.dropping_at_stop) for a in neighbours)),
        (f"points by dropping Unknown rows, at {longest}", *(_change_cell(a.dropping_at_end) for a in neighbours)),
    ]
    heads = [
        f"{format_percent(a.share)} Unknown{' (nearest)' if a is decision.nearest and len(neighbours) > 1 else ''}"
        for a in neighbours
    ]
    changes: tuple[list[Measurement | None], ...] = (
        [a.training_on for a in neighbours],
        [a.dropping_at_stop for a in neighbours],
        [a.dropping_at_end for a in neighbours],
    )
    reliable = frozenset(
        (i, j)
        for i, row in enumerate(changes, start=2)
        for j, change in enumerate(row, start=1)
        if change is not None and is_significant(change)
    )
    return Table(name="decision", columns=("at the nearest shares", *heads), rows=tuple(rows), strong=reliable)


def decision_note(decision: Decision) -> str:
    """The set's own share, the shares that the advice is from, and how the intervals are made."""
    names = " and ".join(format_percent(advice.share) for advice in decision.neighbours)
    nearest = f"shares of the sweep are {names}" if " and " in names else f"share of the sweep is {names}"
    settings = (
        f" The sweep's best training settings at {format_percent(decision.nearest.share)} are "
        f"{settings_label(decision.best_settings)}; the values here are of the default settings."
        if decision.best_settings
        else ""
    )
    return (
        f"{format_percent(decision.own_share, '.1f')} of the {decision.split} questions are Unknown "
        f"({decision.num_unknown:,} of {decision.num_questions:,}); the nearest {nearest}. "
        "Points of test accuracy, with 95 % intervals paired over test questions. Bold: reliable, the interval "
        f"excludes 0.{settings}"
    )


def unknown_rows_table(data: StudyData) -> Table:
    """The Unknown questions of the training pool: the rows to drop.

    Raises:
        InsufficientDataError: the study has no questions or no Unknown training questions.
    """
    rows = data.load_cached(load_unknown_rows, None)
    if rows is None:
        raise InsufficientDataError("needs a finished questions step")
    if not rows:
        raise InsufficientDataError("no training question is Unknown")
    columns = ("question_id", "relation", "question", "answer")
    return Table(name="unknown_rows", columns=columns, rows=rows, text_columns=frozenset({2, 3}))


def load_unknown_rows(study: Folder) -> tuple[Row, ...] | None:
    """question_id, relation, question and first gold answer of each Unknown training question.

    None without a questions step.
    """
    if read_manifest(study.child("questions")) is None:
        return None
    known = read_knowledge(study, ["question_id", "relation", "domain", "split", "category"])
    questions = read_questions(study, ["question_id", "question", "answers"])
    texts = zip(questions["question"].to_pylist(), questions["answers"].to_pylist(), strict=True)
    by_id = lookup_by_question(questions, texts, f"{study}/questions")
    pool = ("id", "train", str(Category.UNKNOWN))
    return tuple(
        (row["question_id"], row["relation"], by_id[row["question_id"]][0], by_id[row["question_id"]][1][0])
        for row in known.to_pylist()
        if (row["domain"], row["split"], row["category"]) == pool
    )


def _change_cell(change: Measurement | None) -> str | None:
    if change is None:
        return None
    return format_difference(change)


def _advice(data: StudyData, share: float, name: str, known: str | None) -> ShareAdvice:
    runs = data.runs_for(name)
    stops = [run.epoch(EARLY_STOP) for run in runs]
    at_stop, at_end = (
        None if known is None else data.difference((known, checkpoint), (name, checkpoint))
        for checkpoint in (EARLY_STOP, CONVERGENCE)
    )
    return ShareAdvice(
        share=share,
        stops=(min(stops), max(stops)),
        last_epoch=max(run.epoch(CONVERGENCE) for run in runs),
        accuracy=data.accuracy(name, EARLY_STOP),
        training_on=data.difference((name, CONVERGENCE), (name, EARLY_STOP)),
        dropping_at_stop=at_stop,
        dropping_at_end=at_end,
    )


def _best_settings(data: StudyData, share: float) -> str:
    recommendation, _ = value_or_reason(recommend, data)
    trials = [choice.trial for choice in recommendation.by_share if choice.share == share] if recommendation else []
    return trials[0].settings if trials and trials[0] else ""
