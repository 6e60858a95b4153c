"""E22: fine-tuning with Unknown rows relabeled as "I don't know". Pure."""

from typing import NamedTuple

import numpy as np

from slick.matching import normalize
from slick.report.data import Run, StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    mean_over_seeds,
    round1,
    round1_values,
    subtract,
)

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
    rates = [_answer_rates(run, checkpoint, normalize(data.idk_phrase)) for run in data.runs_for(name)]
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
    answered = np.array([normalize(str(text)) != phrase for text in rows.text])
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
    """On answered questions D_IDK is above D at both checkpoints and does not fall; it answers fewer questions."""
    name, half_unknown = abstention_variant(data), half_unknown_variant(data)
    early, last = measure_abstention(data, name, EARLY_STOP), measure_abstention(data, name, CONVERGENCE)
    failed, intervals = [], {}
    for checkpoint, result in ((EARLY_STOP, early), (CONVERGENCE, last)):
        gain = subtract(result.on_answered, data.accuracy(half_unknown, checkpoint))
        intervals[f"gain_at_{checkpoint}"] = confidence_interval(gain)
        at = f"at {checkpoint_label(checkpoint)}"
        if gain.value <= Z_95 * gain.se:
            failed.append(f"{at}, the gain over D on answered questions is {format_with_error(gain)} points")
        if result.answered.value >= 100.0 - Z_95 * result.answered.se:
            failed.append(f"{at}, D_IDK answers {round1(result.answered.value):.1f} % of questions, not fewer than D")
    loss = subtract(early.on_answered, last.on_answered)
    if loss.value > Z_95 * loss.se:
        failed.append(f"accuracy on answered questions falls by {format_with_error(loss)} points to convergence")
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
    intervals["loss_on_answered"] = confidence_interval(loss)
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)
