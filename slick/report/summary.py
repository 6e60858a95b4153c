"""What was found and what to do about it, in a few sentences with this study's own numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from slick.analysis.data import StudyData
from slick.analysis.findings.knowledge import category_totals
from slick.analysis.findings.verdict import interval, mean_cell, percent, points, tenths, when_label
from slick.analysis.recommendation import Choice, Estimate, recommend
from slick.analysis.terms import EARLY, LAST, Cell, NotTestable
from slick.types import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one of the three questions that a reader comes with."""

    question: str
    answer: str
    """A few words, shown large."""
    detail: str
    missing: bool = False
    """True where the study does not hold the answer yet; the detail then says what is missing."""


def headline(data: StudyData) -> str:
    """The one sentence at the top."""
    try:
        sweep = data.sweep("unknown", least=2)
        first, last = (data.accuracy(name, LAST).value for _, name in (sweep[0], sweep[-1]))
    except NotTestable:
        return "What this model knows of the questions; nothing has been fine-tuned yet."
    lowest, highest = percent(sweep[0][0]), percent(sweep[-1][0])
    verb = "falls" if last < first else "does not fall"
    return (
        f"Trained to the end, test accuracy {verb} from {tenths(first):.1f} % to {tenths(last):.1f} % as the share of "
        f"Unknown training rows goes from {lowest} to {highest}."
    )


def answers(data: StudyData) -> list[Answer]:
    """How much is Unknown, when to stop, what filtering buys; what the study does not hold says what is missing."""
    asked: tuple[tuple[str, Callable[[StudyData], tuple[str, str]]], ...] = (
        ("How much of the set is new to it?", _unknown),
        ("When should training stop?", _stop),
        ("What does leaving the Unknown rows out buy?", _filtering),
    )
    found = []
    for question, answer in asked:
        try:
            short, detail = answer(data)
        except NotTestable as why:
            found.append(Answer(question=question, answer="not known yet", detail=f"{why}.", missing=True))
        else:
            found.append(Answer(question=question, answer=short, detail=detail))
    return found


def sentences(data: StudyData) -> list[str]:
    """What happened, in words; what the study does not hold yet is left out."""
    found = []
    for part in (_accuracy, _stopping):
        try:
            found.append(part(data))
        except NotTestable:
            continue
    return found


def _unknown(data: StudyData) -> tuple[str, str]:
    totals, split = category_totals(data, "id", "train"), "training"
    if not sum(totals.values()):
        totals, split = category_totals(data, "id", "test"), "test"
    total = sum(totals.values())
    if not total:
        raise NotTestable("no questions were annotated")
    unknown = totals[str(Category.UNKNOWN)]
    known = ", ".join(
        f"{100 * num / total:.0f} % {category}" for category, num in totals.items() if category != Category.UNKNOWN
    )
    return (
        f"{100 * unknown / total:.0f} % is Unknown",
        f"To {unknown:,} of {total:,} {split} questions no answer was right, however they were asked; {known}.",
    )


def _stop(data: StudyData) -> tuple[str, str]:
    """By the recommended point; of a study without a sweep step, by the runs alone."""
    try:
        choice = recommend(data).overall
    except NotTestable:
        low, high, last = _early_epochs(data)
        return f"after epoch {_span(low, high)}", f"Dev accuracy is best there; {last:.0f} epochs were trained."
    if choice.recipe is None or choice.stop_epoch.value is None:
        raise NotTestable(choice.dev.why)
    stop, spent = choice.stop_epoch.value, choice.cost_epochs.value or 0.0
    detail = f"Best by dev accuracy: {choice.recipe.policy} within {when_label(choice.recipe.budget)}"
    detail += f" keeps epoch {tenths(stop):g} of {tenths(spent):g} trained, on average."
    return f"after epoch {stop:.0f}", f"{detail}{_against_longest(choice)}"


def _against_longest(choice: Choice) -> str:
    if choice.gain.value is None or not choice.longest or (choice.gain.value == 0 == choice.saved.value):
        return ""
    return f" Against all {when_label(choice.longest)}: {_points(choice.gain)} of test accuracy{_sure(choice.gain)}."


def _filtering(data: StudyData) -> tuple[str, str]:
    """At the recommended point and, where runs were kept, at the end of training."""
    here = recommend(data).overall.filtering
    if here.value is None:
        raise NotTestable(here.why)
    short = f"{_short(here.value, here.low, here.high)} if stopped early"
    detail = f"With Known rows alone, stopped as recommended, test accuracy changes by {_points(here)}{_sure(here)}."
    try:
        end = _filtering_at_the_end(data)
    except NotTestable:
        return short, detail
    low, high = interval(end)
    value = f"{tenths(end.value):+.1f} points ({tenths(low):+.1f} to {tenths(high):+.1f})"
    return (
        f"{short}; {_short(end.value, low, high)} at the end",
        f"{detail} Trained to the end it is {value}{_chance(low, high)}.",
    )


def _filtering_at_the_end(data: StudyData) -> Cell:
    """Accuracy of the Known rows alone minus that of all rows at the last epoch, over the shares with both."""
    partners = {round(share, 6): name for share, name in data.sweep("known")}
    pairs = [(partners[round(share, 6)], name) for share, name in data.sweep() if round(share, 6) in partners]
    if not pairs:
        raise NotTestable("needs runs of the Known rows alone")
    return mean_cell([data.difference((known, LAST), (whole, LAST)) for known, whole in pairs])


def _short(value: float, low: float | None, high: float | None) -> str:
    """Points, or nothing where chance explains them."""
    if low is not None and high is not None and low <= 0 <= high:
        return "nothing sure"
    return f"{tenths(value):+.1f} points"


def _chance(low: float, high: float) -> str:
    return ", no more than chance explains" if low <= 0 <= high else ", more than chance explains"


def _points(estimate: Estimate) -> str:
    value = f"{tenths(estimate.value or 0.0):+.1f} points"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({tenths(estimate.low):+.1f} to {tenths(estimate.high):+.1f})"


def _sure(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "; one seed, so no interval"
    return _chance(estimate.low, estimate.high)


def _accuracy(data: StudyData) -> str:
    sweep = data.sweep("unknown", least=2)
    (low, first), (high, last) = sweep[0], sweep[-1]
    parts = []
    for when, words in ((EARLY, "early stop"), (LAST, "convergence")):
        ends = (tenths(data.accuracy(name, when).value) for name in (first, last))
        parts.append(f"from {' to '.join(f'{end:.1f}' for end in ends)} % at {words}")
    return (
        f"From {percent(low)} to {percent(high)} Unknown rows in the fine-tuning set, test accuracy goes "
        f"{' and '.join(parts)}."
    )


def _stopping(data: StudyData) -> str:
    sweep = data.sweep("unknown", least=1)
    low, high, last = _early_epochs(data)
    gaps = [data.difference((name, EARLY), (name, LAST)) for _, name in sweep]
    worst = max(range(len(gaps)), key=lambda i: gaps[i].value)
    mean = mean_cell(gaps)
    if mean.value <= 0:
        return (
            f"Dev accuracy is best at epoch {_span(low, high)} of {last:.0f}; training on to the end changes test "
            f"accuracy by {-tenths(mean.value):+.1f} points on average."
        )
    return (
        f"Dev accuracy is best at epoch {_span(low, high)} of {last:.0f}: training on to the end costs {points(mean)} "
        f"points on average, and {points(gaps[worst])} at {percent(sweep[worst][0])} Unknown."
    )


def _early_epochs(data: StudyData) -> tuple[float, float, float]:
    """The first and last early-stopping epoch over the shares, and the last epoch trained."""
    sweep = data.sweep("unknown", least=1)
    epochs = [data.mean_epoch(name, EARLY) for _, name in sweep]
    return min(epochs), max(epochs), data.mean_epoch(sweep[0][1], LAST)


def _span(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f}" if round(low) != round(high) else f"{low:.0f}"
