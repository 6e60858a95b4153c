"""E22: what relabelling Unknown rows as "I don't know" does. Pure."""

from typing import NamedTuple

import numpy as np

from slick.analysis.data import Run, StudyData, binomial_se, seed_se
from slick.analysis.findings.sweep import half_unknown
from slick.analysis.findings.verdict import Verdict, Z, failures, interval, minus, points, rounded, tenths
from slick.analysis.terms import EARLY, LAST, MIN_SEEDS, Cell, NotTestable
from slick.matching import normalize

ANSWERED, ON_ANSWERED = "answered", "on answered"
"""Categories of test questions by which a run without texts tells what it answered, and how well."""


class Abstention(NamedTuple):
    """How a relabelled run answers the ID test questions at one checkpoint; percentages."""

    answered: Cell
    on_answered: Cell
    """Accuracy over the questions that were answered."""
    overall: Cell
    """Right answers over all questions."""


def idk_variant(data: StudyData) -> str:
    """The relabelled variant that was run.

    Raises:
        NotTestable: there is none.
    """
    for name, variant in sorted(data.variants.items()):
        if variant.kind == "idk" and data.has(name):
            return name
    raise NotTestable("needs a finished run of a relabelled variant (idk-050)")


def abstention(data: StudyData, name: str, when: str) -> Abstention:
    """Answered share and accuracy of a relabelled variant, averaged over seeds.

    An answer abstains if it equals the phrase after normalisation; the paper does not say how it tells. Where a run has
    no texts but percentages of the categories `ANSWERED` and `ON_ANSWERED`, as a printed table gives them, they are
    taken.

    Raises:
        NotTestable: neither was kept, or nothing was answered.
    """
    runs = [_answers(run, when, normalize(data.idk_phrase)) for run in data.runs_of(name)]
    shares, accuracies, overall = ([one[i] for one in runs] for i in range(3))
    num = runs[-1][3]
    num_answered = max(1, round(shares[-1] / 100 * num))
    return Abstention(_cell(shares, num), _cell(accuracies, num_answered), _cell(overall, num))


def _answers(run: Run, when: str, phrase: str) -> tuple[float, float, float, int]:
    """Percent answered, accuracy on these, right over all, and the number of questions."""
    rows = run.hits.get((run.epoch(when), "test"))
    if rows is None and ("test", ANSWERED) in run.accuracy:
        share, right = run.at(when, "test", ANSWERED), run.at(when, "test", ON_ANSWERED)
        return share, right, share * right / 100, run.num["test", ANSWERED]
    if rows is None or rows.text is None:
        raise NotTestable(f"run {run.run_id} kept no answer texts")
    answered = np.array([normalize(str(text)) != phrase for text in rows.text])
    if not answered.any():
        raise NotTestable(f"run {run.run_id} answered no test question at all")
    share, right = 100.0 * float(answered.mean()), 100.0 * float(rows.hit[answered].mean())
    return share, right, 100.0 * float((rows.hit & answered).mean()), len(answered)


def e22(data: StudyData) -> Verdict:
    """On what it answers, D_IDK beats D at both checkpoints and loses nothing to convergence; it answers fewer."""
    name, plain = idk_variant(data), half_unknown(data)
    early, last = abstention(data, name, EARLY), abstention(data, name, LAST)
    failed, intervals = [], {}
    for when, own_side in ((EARLY, early), (LAST, last)):
        gain = minus(own_side.on_answered, data.accuracy(plain, when))
        intervals[f"gain_at_{when}"] = interval(gain)
        if gain.value <= Z * gain.se:
            failed.append(f"at {when.replace('_', ' ')} the gain on answered questions over D is {points(gain)} points")
        if own_side.answered.value >= 100.0 - Z * own_side.answered.se:
            answers = f"{tenths(own_side.answered.value):.1f} % of questions"
            failed.append(f"at {when.replace('_', ' ')} it answers {answers}, no fewer than D")
    loss = minus(early.on_answered, last.on_answered)
    if loss.value > Z * loss.se:
        failed.append(f"accuracy on answered questions falls by {points(loss)} points to convergence")
    own = {
        "accuracy": rounded([early.on_answered.value, last.on_answered.value]),
        "answered": rounded([early.answered.value, last.answered.value]),
        "over_all": rounded([early.overall.value, last.overall.value]),
    }
    good = (
        f"accuracy on answered questions {points(early.on_answered)} at early stop, {points(last.on_answered)} at "
        f"convergence; answered {early.answered.value:.0f} and {last.answered.value:.0f} %; right over all questions "
        f"{tenths(early.overall.value):.1f} and {tenths(last.overall.value):.1f} %"
    )
    return Verdict(not failed, own, failures(failed, good), intervals | {"loss_on_answered": interval(loss)})


def _cell(values: list[float], num: int) -> Cell:
    """The mean over seeds, with the error of any accuracy (`slick.analysis.data`)."""
    mean = float(np.mean(values))
    by_seed = seed_se(np.array(values)) if len(values) >= MIN_SEEDS else 0.0
    return Cell(mean, max(by_seed, binomial_se(mean, num)), len(values))
