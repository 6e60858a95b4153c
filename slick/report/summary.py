"""What was found and what to do about it, in a few sentences with this study's own numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from slick.report.data import StudyData
from slick.report.findings.knowledge import category_totals
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    confidence_interval,
    format_percent,
    format_with_error,
    mean_measurement,
    round1,
)
from slick.report.recommendation import Estimate, RecommendedTrial, recommend
from slick.types import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAnswer:
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
        sweep = data.sweep_variants("unknown", min_shares=2)
        first, last = (data.accuracy(name, CONVERGENCE).value for _, name in (sweep[0], sweep[-1]))
    except InsufficientDataError:
        return "What this model knows of the questions; nothing has been fine-tuned yet."
    lowest, highest = format_percent(sweep[0][0]), format_percent(sweep[-1][0])
    verb = "falls" if last < first else "does not fall"
    return (
        f"Trained to the end, test accuracy {verb} from {round1(first):.1f} % to {round1(last):.1f} % as the share of "
        f"Unknown training rows goes from {lowest} to {highest}."
    )


def key_answers(data: StudyData) -> list[KeyAnswer]:
    """How much is Unknown, when to stop, what filtering buys; what the study does not hold says what is missing."""
    asked: tuple[tuple[str, Callable[[StudyData], tuple[str, str]]], ...] = (
        ("How much of the set is new to it?", _unknown_share_answer),
        ("When should training stop?", _stopping_answer),
        ("What does leaving the Unknown rows out buy?", _filtering_answer),
    )
    found = []
    for question, answer in asked:
        try:
            short, detail = answer(data)
        except InsufficientDataError as why:
            found.append(KeyAnswer(question=question, answer="not known yet", detail=f"{why}.", missing=True))
        else:
            found.append(KeyAnswer(question=question, answer=short, detail=detail))
    return found


def result_sentences(data: StudyData) -> list[str]:
    """What happened, in words; what the study does not hold yet is left out."""
    found = []
    for part in (_accuracy_sentence, _stopping_sentence):
        try:
            found.append(part(data))
        except InsufficientDataError:
            continue
    return found


def _unknown_share_answer(data: StudyData) -> tuple[str, str]:
    totals, split = category_totals(data, "id", "train"), "training"
    if not sum(totals.values()):
        totals, split = category_totals(data, "id", "test"), "test"
    total = sum(totals.values())
    if not total:
        raise InsufficientDataError("no questions were annotated")
    unknown = totals[str(Category.UNKNOWN)]
    known = ", ".join(
        f"{100 * num / total:.0f} % {category}" for category, num in totals.items() if category != Category.UNKNOWN
    )
    return (
        f"{100 * unknown / total:.0f} % is Unknown",
        f"To {unknown:,} of {total:,} {split} questions no answer was right, however they were asked; {known}.",
    )


def _stopping_answer(data: StudyData) -> tuple[str, str]:
    """By the recommended point; of a study without a sweep step, by the runs alone."""
    try:
        choice = recommend(data).overall
    except InsufficientDataError:
        low, high, last = _early_epochs(data)
        return f"after epoch {_format_range(low, high)}", f"Dev accuracy is best there; {last:.0f} epochs were trained."
    if choice.trial is None or choice.stop_epoch.value is None:
        raise InsufficientDataError(choice.dev.missing_reason)
    stop, spent = choice.stop_epoch.value, choice.cost_epochs.value or 0.0
    detail = f"Best by dev accuracy: {choice.trial.policy} within {checkpoint_label(choice.trial.budget)}"
    detail += f" keeps epoch {round1(stop):g} of {round1(spent):g} trained, on average."
    return f"after epoch {stop:.0f}", f"{detail}{_against_longest(choice)}"


def _against_longest(choice: RecommendedTrial) -> str:
    if choice.gain.value is None or not choice.longest or (choice.gain.value == 0 == choice.saved.value):
        return ""
    return (
        f" Against all {checkpoint_label(choice.longest)}: "
        f"{_format_points(choice.gain)} of test accuracy{_certainty_phrase(choice.gain)}."
    )


def _filtering_answer(data: StudyData) -> tuple[str, str]:
    """At the recommended point and, where runs were kept, at the end of training."""
    here = recommend(data).overall.filtering
    if here.value is None:
        raise InsufficientDataError(here.missing_reason)
    short = f"{_format_effect(here.value, here.low, here.high)} if stopped early"
    detail = (
        f"With Known rows alone, stopped as recommended, "
        f"test accuracy changes by {_format_points(here)}{_certainty_phrase(here)}."
    )
    try:
        end = _filtering_at_convergence(data)
    except InsufficientDataError:
        return short, detail
    low, high = confidence_interval(end)
    value = f"{round1(end.value):+.1f} points ({round1(low):+.1f} to {round1(high):+.1f})"
    return (
        f"{short}; {_format_effect(end.value, low, high)} at the end",
        f"{detail} Trained to the end it is {value}{_chance_phrase(low, high)}.",
    )


def _filtering_at_convergence(data: StudyData) -> Measurement:
    """Accuracy of the Known rows alone minus that of all rows at the last epoch, over the shares with both."""
    partners = {round(share, 6): name for share, name in data.sweep_variants("known")}
    pairs = [(partners[round(share, 6)], name) for share, name in data.sweep_variants() if round(share, 6) in partners]
    if not pairs:
        raise InsufficientDataError("needs runs of the Known rows alone")
    return mean_measurement([data.difference((known, CONVERGENCE), (whole, CONVERGENCE)) for known, whole in pairs])


def _format_effect(value: float, low: float | None, high: float | None) -> str:
    """Points, or nothing where chance explains them."""
    if low is not None and high is not None and low <= 0 <= high:
        return "nothing sure"
    return f"{round1(value):+.1f} points"


def _chance_phrase(low: float, high: float) -> str:
    return ", no more than chance explains" if low <= 0 <= high else ", more than chance explains"


def _format_points(estimate: Estimate) -> str:
    value = f"{round1(estimate.value or 0.0):+.1f} points"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({round1(estimate.low):+.1f} to {round1(estimate.high):+.1f})"


def _certainty_phrase(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "; one seed, so no interval"
    return _chance_phrase(estimate.low, estimate.high)


def _accuracy_sentence(data: StudyData) -> str:
    sweep = data.sweep_variants("unknown", min_shares=2)
    (low, first), (high, last) = sweep[0], sweep[-1]
    parts = []
    for checkpoint, words in ((EARLY_STOP, "early stop"), (CONVERGENCE, "convergence")):
        ends = (round1(data.accuracy(name, checkpoint).value) for name in (first, last))
        parts.append(f"from {' to '.join(f'{end:.1f}' for end in ends)} % at {words}")
    return (
        f"From {format_percent(low)} to {format_percent(high)} Unknown rows in the fine-tuning set, test accuracy goes "
        f"{' and '.join(parts)}."
    )


def _stopping_sentence(data: StudyData) -> str:
    sweep = data.sweep_variants("unknown", min_shares=1)
    low, high, last = _early_epochs(data)
    gaps = [data.difference((name, EARLY_STOP), (name, CONVERGENCE)) for _, name in sweep]
    worst = max(range(len(gaps)), key=lambda i: gaps[i].value)
    mean = mean_measurement(gaps)
    if mean.value <= 0:
        return (
            f"Dev accuracy is best at epoch {_format_range(low, high)} of {last:.0f}; training on to the end "
            f"changes test "
            f"accuracy by {-round1(mean.value):+.1f} points on average."
        )
    return (
        f"Dev accuracy is best at epoch {_format_range(low, high)} of {last:.0f}: training on to the end costs "
        f"{format_with_error(mean)} "
        f"points on average, and {format_with_error(gaps[worst])} at {format_percent(sweep[worst][0])} Unknown."
    )


def _early_epochs(data: StudyData) -> tuple[float, float, float]:
    """The first and last early-stopping epoch over the shares, and the last epoch trained."""
    sweep = data.sweep_variants("unknown", min_shares=1)
    epochs = [data.mean_epoch(name, EARLY_STOP) for _, name in sweep]
    return min(epochs), max(epochs), data.mean_epoch(sweep[0][1], CONVERGENCE)


def _format_range(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f}" if round(low) != round(high) else f"{low:.0f}"
