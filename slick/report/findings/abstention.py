"""E22: what relabelling Unknown rows as "I don't know" does. Pure."""

from typing import NamedTuple

import numpy as np

from slick.matching import normalize
from slick.report.data import Run, StudyData, binomial_se, seed_se
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    MIN_SEEDS,
    Z_95,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_with_error,
    round1,
    round1_values,
    subtract,
)

ANSWERED, ON_ANSWERED = "answered", "on answered"
"""Categories of test questions by which a run without texts tells what it answered, and how well."""


class AbstentionResult(NamedTuple):
    """How a relabelled run answers the ID test questions at one checkpoint; percentages."""

    answered: Measurement
    on_answered: Measurement
    """Accuracy over the questions that were answered."""
    overall: Measurement
    """Right answers over all questions."""


def abstention_variant(data: StudyData) -> str:
    """The relabelled variant that was run.

    Raises:
        NotTestable: there is none.
    """
    for name, variant in sorted(data.variants.items()):
        if variant.kind == "idk" and data.has_run(name):
            return name
    raise InsufficientDataError("needs a finished run of a relabelled variant (idk-050)")


def measure_abstention(data: StudyData, name: str, checkpoint: str) -> AbstentionResult:
    """Answered share and accuracy of a relabelled variant, averaged over seeds.

    An answer abstains if it equals the phrase after normalisation; the paper does not say how it tells. Where a run has
    no texts but percentages of the categories `ANSWERED` and `ON_ANSWERED`, as a printed table gives them, they are
    taken.

    Raises:
        NotTestable: neither was kept, or nothing was answered.
    """
    runs = [_answer_rates(run, checkpoint, normalize(data.idk_phrase)) for run in data.runs_for(name)]
    shares, accuracies, overall = ([one[i] for one in runs] for i in range(3))
    num = runs[-1][3]
    num_answered = max(1, round(shares[-1] / 100 * num))
    return AbstentionResult(
        _mean_over_seeds(shares, num), _mean_over_seeds(accuracies, num_answered), _mean_over_seeds(overall, num)
    )


def _answer_rates(run: Run, checkpoint: str, phrase: str) -> tuple[float, float, float, int]:
    """Percent answered, accuracy on these, right over all, and the number of questions."""
    rows = run.predictions.get((run.epoch(checkpoint), "test"))
    if rows is None and ("test", ANSWERED) in run.accuracy:
        share, right = run.accuracy_at(checkpoint, "test", ANSWERED), run.accuracy_at(checkpoint, "test", ON_ANSWERED)
        return share, right, share * right / 100, run.num["test", ANSWERED]
    if rows is None or rows.text is None:
        raise InsufficientDataError(f"run {run.run_id} kept no answer texts")
    answered = np.array([normalize(str(text)) != phrase for text in rows.text])
    if not answered.any():
        raise InsufficientDataError(f"run {run.run_id} answered no test question at all")
    share, right = 100.0 * float(answered.mean()), 100.0 * float(rows.hit[answered].mean())
    return share, right, 100.0 * float((rows.hit & answered).mean()), len(answered)


@finding(
    "E22",
    claim="Relabelling Unknown rows as 'I don't know': higher accuracy on what is answered, no loss to convergence, "
    "fewer answers",
    paper="accuracy 61.8 and 61.8; answered 58.7 and 55.6 %",
    experiments=("idk",),
)
def e22(data: StudyData) -> CheckResult:
    """On what it answers, D_IDK beats D at both checkpoints and loses nothing to convergence; it answers fewer."""
    name, plain = abstention_variant(data), half_unknown_variant(data)
    early, last = measure_abstention(data, name, EARLY_STOP), measure_abstention(data, name, CONVERGENCE)
    failed, intervals = [], {}
    for checkpoint, own_side in ((EARLY_STOP, early), (CONVERGENCE, last)):
        gain = subtract(own_side.on_answered, data.accuracy(plain, checkpoint))
        intervals[f"gain_at_{checkpoint}"] = confidence_interval(gain)
        if gain.value <= Z_95 * gain.se:
            failed.append(
                f"at {checkpoint.replace('_', ' ')} the gain on answered questions over D is "
                f"{format_with_error(gain)} points"
            )
        if own_side.answered.value >= 100.0 - Z_95 * own_side.answered.se:
            answers = f"{round1(own_side.answered.value):.1f} % of questions"
            failed.append(f"at {checkpoint.replace('_', ' ')} it answers {answers}, no fewer than D")
    loss = subtract(early.on_answered, last.on_answered)
    if loss.value > Z_95 * loss.se:
        failed.append(f"accuracy on answered questions falls by {format_with_error(loss)} points to convergence")
    own = {
        "accuracy": round1_values([early.on_answered.value, last.on_answered.value]),
        "answered": round1_values([early.answered.value, last.answered.value]),
        "over_all": round1_values([early.overall.value, last.overall.value]),
    }
    good = (
        f"accuracy on answered questions {format_with_error(early.on_answered)} at early stop, "
        f"{format_with_error(last.on_answered)} at "
        f"convergence; answered {early.answered.value:.0f} and {last.answered.value:.0f} %; right over all questions "
        f"{round1(early.overall.value):.1f} and {round1(last.overall.value):.1f} %"
    )
    return CheckResult(
        not failed, own, describe_failures(failed, good), intervals | {"loss_on_answered": confidence_interval(loss)}
    )


def _mean_over_seeds(values: list[float], num: int) -> Measurement:
    """The mean over seeds, with the error of any accuracy (`slick.report.data`)."""
    mean = float(np.mean(values))
    by_seed = seed_se(np.array(values)) if len(values) >= MIN_SEEDS else 0.0
    return Measurement(mean, max(by_seed, binomial_se(mean, num)), len(values))
