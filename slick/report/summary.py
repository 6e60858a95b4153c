"""The summary at the top of the page: key questions and results of this study in a few sentences."""

from collections.abc import Callable
from dataclasses import dataclass

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.knowledge import category_totals
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    confidence_interval,
    format_change,
    format_with_error,
    mean_measurement,
    round1,
    value_or_reason,
)
from slick.report.recommendation import Estimate, RecommendedTrial, recommend
from slick.types import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAnswer:
    """The answer to one of the key questions."""

    question: str
    answer: str
    """A few words in large type."""
    detail: str
    missing: bool = False
    """Whether the study lacks the data; the detail then says what is missing."""


def headline(data: StudyData) -> str:
    """The main result in one sentence."""
    try:
        sweep = data.sweep_variants("unknown", min_shares=2)
        first, last = (data.accuracy(name, CONVERGENCE).value for _, name in (sweep[0], sweep[-1]))
    except InsufficientDataError:
        return "What the model knows before fine-tuning; the study has no sweep over the share of Unknown rows yet."
    verb = "falls" if last < first else "does not fall"
    return (
        f"After full training, test accuracy {verb} from {round1(first):.1f} % to {round1(last):.1f} % as the share of "
        f"Unknown training rows goes from {format_percent(sweep[0][0])} to {format_percent(sweep[-1][0])}."
    )


def key_answers(data: StudyData) -> list[KeyAnswer]:
    """How much is Unknown, when to stop, and what filtering gains; or what data is missing."""
    questions: tuple[tuple[str, Callable[[StudyData], tuple[str, str]]], ...] = (
        ("How much of the question set is Unknown?", _unknown_share_answer),
        ("When should training stop?", _stopping_answer),
        ("What does training without the Unknown rows gain?", _filtering_answer),
    )
    answers = []
    for question, make_answer in questions:
        answer, reason = value_or_reason(make_answer, data)
        short, detail = answer or ("not available", f"{reason}.")
        answers.append(KeyAnswer(question=question, answer=short, detail=detail, missing=answer is None))
    return answers


def result_sentences(data: StudyData) -> list[str]:
    """The results in words, without those whose data is missing."""
    sentences = (value_or_reason(make, data)[0] for make in (_accuracy_sentence, _stopping_sentence))
    return [sentence for sentence in sentences if sentence is not None]


def _unknown_share_answer(data: StudyData) -> tuple[str, str]:
    totals, split = category_totals(data, "id", "train"), "training"
    if not sum(totals.values()):
        totals, split = category_totals(data, "id", "test"), "test"
    total = sum(totals.values())
    if not total:
        raise InsufficientDataError("no questions were annotated")
    unknown = totals[str(Category.UNKNOWN)]
    known = ", ".join(
        f"{format_percent(num / total)} {category}" for category, num in totals.items() if category != Category.UNKNOWN
    )
    return (
        f"{format_percent(unknown / total)} is Unknown",
        f"The model never answered {unknown:,} of {total:,} {split} questions correctly under any prompt. {known}.",
    )


def _stopping_answer(data: StudyData) -> tuple[str, str]:
    """From the recommended trial; from the runs alone if the study has no sweep step."""
    recommendation, _ = value_or_reason(recommend, data)
    if recommendation is None:
        low, high, last = _early_epochs(data)
        detail = f"Dev accuracy is highest there; {last:.0f} epochs were trained."
        return f"after epoch {_format_range(low, high)}", detail
    choice = recommendation.overall
    if choice.trial is None or choice.stop_epoch.value is None:
        raise InsufficientDataError(choice.dev.missing_reason)
    stop, spent = choice.stop_epoch.value, choice.cost_epochs.value or 0.0
    detail = (
        f"Dev accuracy is highest with {choice.trial.policy} and a budget of {checkpoint_label(choice.trial.budget)}, "
        f"which on average stops at epoch {round1(stop):g} and trains {round1(spent):g}."
    )
    return f"after epoch {stop:.0f}", f"{detail}{_gain_over_longest(choice)}"


def _gain_over_longest(choice: RecommendedTrial) -> str:
    if choice.gain.value is None or not choice.longest or (choice.gain.value == 0 == choice.saved.value):
        return ""
    return f" Compared with {checkpoint_label(choice.longest)}, test accuracy changes by {_format_points(choice.gain)}."


def _filtering_answer(data: StudyData) -> tuple[str, str]:
    """At the recommended stop and, if runs were kept, at the end of training."""
    at_stop = recommend(data).overall.filtering
    if at_stop.value is None:
        raise InsufficientDataError(at_stop.missing_reason)
    short = f"{_format_effect(at_stop)} at the recommended stop"
    detail = f"Without them, test accuracy at the recommended stop changes by {_format_points(at_stop)}."
    difference, _ = value_or_reason(_filtering_at_convergence, data)
    if difference is None:
        return short, detail
    low, high = confidence_interval(difference)
    at_end = Estimate(value=difference.value, low=low, high=high)
    return (
        f"{short}; {_format_effect(at_end)} at the end",
        f"{detail} At the end of training, it changes by {_format_points(at_end)}.",
    )


def _filtering_at_convergence(data: StudyData) -> Measurement:
    """Accuracy of D_Known minus that of D at convergence, averaged over the shares with both."""
    known = {round(share, 6): name for share, name in data.sweep_variants("known")}
    pairs = [(known[round(share, 6)], name) for share, name in data.sweep_variants() if round(share, 6) in known]
    if not pairs:
        raise InsufficientDataError("needs runs of D_Known")
    return mean_measurement([data.difference((name, CONVERGENCE), (d, CONVERGENCE)) for name, d in pairs])


def _format_effect(estimate: Estimate) -> str:
    if estimate.low is not None and estimate.high is not None and estimate.low <= 0 <= estimate.high:
        return "no clear change"
    return format_change(estimate.value or 0.0, unit=" points")


def _format_points(estimate: Estimate) -> str:
    """A difference with its interval, and whether it exceeds noise."""
    text = format_change(estimate.value or 0.0, estimate.low, estimate.high, unit=" points")
    if estimate.low is None or estimate.high is None:
        return f"{text} (one seed, so no interval)"
    return f"{text}, which {'is within' if estimate.low <= 0 <= estimate.high else 'exceeds'} noise"


def _accuracy_sentence(data: StudyData) -> str:
    sweep = data.sweep_variants("unknown", min_shares=2)
    (low, first), (high, last) = sweep[0], sweep[-1]
    parts = []
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        ends = (f"{round1(data.accuracy(name, checkpoint).value):.1f}" for name in (first, last))
        parts.append(f"from {' to '.join(ends)} % at {checkpoint_label(checkpoint)}")
    return (
        f"From {format_percent(low)} to {format_percent(high)} Unknown rows in the fine-tuning set, test accuracy goes "
        f"{' and '.join(parts)}."
    )


def _stopping_sentence(data: StudyData) -> str:
    sweep = data.sweep_variants("unknown", min_shares=1)
    low, high, last = _early_epochs(data)
    losses = [data.difference((name, EARLY_STOP), (name, CONVERGENCE)) for _, name in sweep]
    mean, (worst, share) = mean_measurement(losses), max(zip(losses, [share for share, _ in sweep], strict=True))
    sentence = f"Dev accuracy is highest at epoch {_format_range(low, high)} of {last:.0f}; training on to the end"
    if mean.value <= 0:
        return f"{sentence} changes test accuracy by {-round1(mean.value):+.1f} points on average."
    return (
        f"{sentence} costs {format_with_error(mean)} points of test accuracy on average, and "
        f"{format_with_error(worst)} points at {format_percent(share)} Unknown rows."
    )


def _early_epochs(data: StudyData) -> tuple[float, float, float]:
    """The first and last early-stopping epoch over the shares, and the last epoch."""
    sweep = data.sweep_variants("unknown", min_shares=1)
    epochs = [data.mean_epoch(name, EARLY_STOP) for _, name in sweep]
    return min(epochs), max(epochs), data.mean_epoch(sweep[0][1], CONVERGENCE)


def _format_range(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f}" if round(low) != round(high) else f"{low:.0f}"
