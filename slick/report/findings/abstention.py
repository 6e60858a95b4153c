"""E22: fine-tuning with Unknown rows relabeled as "I don't know". Pure."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.matching import normalize
from slick.report.data import Run, StudyData
from slick.report.findings.base import NO_CHANGE_MARGIN, CheckResult, Condition, finding, judge
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    MIN_SEEDS,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    mean_over_seeds,
    paired_se,
    round1,
    round1_values,
    subtract,
)
from slick.types import ALL_CATEGORIES

ANSWERED, ON_ANSWERED = "answered", "on answered"
"""Categories that hold the share answered and the accuracy on it for runs without texts, such as the paper's."""


class AbstentionResult(NamedTuple):
    """Answers of a relabeled variant to the in-distribution test questions at one checkpoint; percentages."""

    answered: Measurement
    on_answered: Measurement
    """Accuracy on the questions that were answered."""
    overall: Measurement
    """Correct answers as a percentage of all questions."""


def abstention_variant(data: StudyData) -> str:
    """The relabeled variant that was run.

    Raises:
        InsufficientDataError: there is none.
    """
    for name, variant in sorted(data.variants.items()):
        if variant.kind == "idk" and data.has_run(name):
            return name
    raise InsufficientDataError("needs a finished run of a relabeled variant (idk-050)")


def measure_abstention(data: StudyData, name: str, checkpoint: str) -> AbstentionResult:
    """Answered share and accuracy of a relabeled variant, averaged over seeds.

    An answer is an abstention if it equals the phrase after normalization; the paper does not state its rule. Runs
    without texts use their percentages of the categories `ANSWERED` and `ON_ANSWERED`.

    Raises:
        InsufficientDataError: neither was kept, or nothing was answered.
    """
    rates = [_answer_rates(run, checkpoint, data.idk_phrase) for run in data.runs_for(name)]
    shares, accuracies, overall, nums = (list(column) for column in zip(*rates, strict=True))
    num_answered = max(1, round(shares[-1] / 100 * nums[-1]))
    return AbstentionResult(
        mean_over_seeds(shares, nums[-1]),
        mean_over_seeds(accuracies, num_answered),
        mean_over_seeds(overall, nums[-1]),
    )


def _answer_rates(run: Run, checkpoint: str, phrase: str) -> tuple[float, float, float, int]:
    """Percentage answered, accuracy on these, correct percentage of all, and the number of questions."""
    rows = run.predictions.get((run.epoch(checkpoint), "test"))
    if rows is None and ("test", ANSWERED) in run.accuracy:
        share, correct = (run.accuracy_at(checkpoint, "test", part) for part in (ANSWERED, ON_ANSWERED))
        return share, correct, share * correct / 100, run.num["test", ANSWERED]
    if rows is None or rows.text is None:
        raise InsufficientDataError(f"run {run.run_id} kept no answer texts")
    answered = _is_answer(rows.text, phrase)
    if not answered.any():
        raise InsufficientDataError(f"run {run.run_id} answered no test question")
    share, correct = 100.0 * float(answered.mean()), 100.0 * float(rows.hit[answered].mean())
    return share, correct, 100.0 * float((rows.hit & answered).mean()), len(answered)


@finding(
    "E22",
    claim="Relabelling Unknown rows as 'I don't know': higher accuracy on what is answered, no loss to convergence, "
    "fewer answers",
    paper="accuracy 61.8 and 61.8; answered 58.7 and 55.6 %",
    experiments=("idk",),
)
def e22(data: StudyData) -> CheckResult:
    """On answered questions D_IDK is above D at both checkpoints and does not fall; it answers fewer questions.

    A model that abstains at random has D's accuracy on what it answers.
    """
    name, half_unknown = abstention_variant(data), half_unknown_variant(data)
    results = {checkpoint: measure_abstention(data, name, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)}
    num = max(data.runs_for(half_unknown)[0].num["test", ALL_CATEGORIES], 1)
    conditions, intervals = [], {}
    for checkpoint, result in results.items():
        at = checkpoint_label(checkpoint)
        gain = _gain_on_answered(data, name, half_unknown, checkpoint)
        conditions.append(
            Condition(
                text=f"at {at}, accuracy on answered questions is {format_with_error(gain)} points above D",
                value=gain,
                num=num,
            )
        )
        text = f"at {at}, D_IDK answers {round1(result.answered.value):.1f} % of the questions"
        conditions.append(Condition(text=text, value=result.answered, shown=100.0, claimed=100.0, above=False, num=num))
        intervals[f"gain at {at}"] = confidence_interval(gain)
    early, last = results.values()
    loss = _loss_on_answered(data, name)
    conditions.append(
        Condition(
            text=f"accuracy on answered questions falls by {format_with_error(loss)} points to convergence",
            value=loss,
            shown=NO_CHANGE_MARGIN,
            claimed=0.0,
            above=False,
            num=num,
        )
    )
    own = {
        "accuracy": round1_values([early.on_answered.value, last.on_answered.value]),
        "answered": round1_values([early.answered.value, last.answered.value]),
        "over_all": round1_values([early.overall.value, last.overall.value]),
    }
    success = (
        f"accuracy on answered questions is {format_with_error(early.on_answered)} % at early stop and "
        f"{format_with_error(last.on_answered)} % at convergence; {early.answered.value:.0f} and "
        f"{last.answered.value:.0f} % are answered; {round1(early.overall.value):.1f} and "
        f"{round1(last.overall.value):.1f} % of all questions are answered correctly"
    )
    intervals["loss on answered questions"] = confidence_interval(loss)
    return judge(conditions, own, success, intervals)


def _gain_on_answered(data: StudyData, name: str, plain: str, checkpoint: str) -> Measurement:
    """Accuracy of the relabelled variant on what it answers, minus that of D on all questions."""
    accuracy, base = measure_abstention(data, name, checkpoint).on_answered, data.accuracy(plain, checkpoint)
    rows, hits = _answered_rows(data, name, checkpoint), data.mean_correct(plain, checkpoint, "test")
    difference = subtract(accuracy, base)
    if rows is None or hits is None or len(hits) != len(rows[0]):
        return difference
    influence = _ratio_influence(*rows) - 100.0 * (hits - hits.mean())
    return difference._replace(se=_paired_or_seed_se(influence, difference))


def _loss_on_answered(data: StudyData, name: str) -> Measurement:
    """The loss from early stop to convergence of the accuracy on what is answered."""
    early, last = (measure_abstention(data, name, checkpoint).on_answered for checkpoint in (EARLY_STOP, CONVERGENCE))
    before, after = _answered_rows(data, name, EARLY_STOP), _answered_rows(data, name, CONVERGENCE)
    difference = subtract(early, last)
    if before is None or after is None or len(before[0]) != len(after[0]):
        return difference
    return difference._replace(se=_paired_or_seed_se(_ratio_influence(*before) - _ratio_influence(*after), difference))


def _paired_or_seed_se(influence: NDArray[np.float64], unpaired: Measurement) -> float:
    """The paired error; with `MIN_SEEDS` seeds, that over seeds if it is larger."""
    se = paired_se(influence)
    return max(se, unpaired.se) if unpaired.num_seeds >= MIN_SEEDS else se


def _answered_rows(
    data: StudyData, name: str, checkpoint: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Share of seeds that answered a question, and that answered it correctly; shape (questions,)."""
    predictions = [run.predictions.get((run.epoch(checkpoint), "test")) for run in data.runs_for(name)]
    answered, correct = [], []
    for rows in predictions:
        if rows is None or rows.text is None or len(rows.hit) != len((predictions[0] or rows).hit):
            return None
        answered.append(_is_answer(rows.text, data.idk_phrase))
        correct.append(rows.hit & answered[-1])
    return np.mean(answered, axis=0), np.mean(correct, axis=0)


def _ratio_influence(answered: NDArray[np.float64], correct: NDArray[np.float64]) -> NDArray[np.float64]:
    """The contribution of each question to the ratio of two means, in points (delta method); shape (questions,)."""
    ratio = correct.mean() / answered.mean()
    influence: NDArray[np.float64] = 100.0 * (correct - ratio * answered) / answered.mean()
    return influence


def _is_answer(texts: NDArray[np.object_], phrase: str) -> NDArray[np.bool_]:
    """Whether each text is not the abstention phrase; shape (questions,)."""
    phrase = normalize(phrase)
    is_answer = {text: normalize(str(text)) != phrase for text in set(texts.tolist())}  # texts repeat
    return np.array([is_answer[text] for text in texts.tolist()])
