"""What was found, in a few sentences with this study's own numbers."""

from collections import Counter

from slick.analysis.data import StudyData
from slick.analysis.outcomes_data import category_totals
from slick.analysis.terms import EARLY, LAST, NotTestable
from slick.analysis.verdict import Outcome, mean_cell, percent, points


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
        f"Test accuracy after full training {verb} from {first:.1f} % to {last:.1f} % as the share of Unknown "
        f"training rows "
        f"goes from {lowest} to {highest}."
    )


def sentences(data: StudyData, outcomes: list[Outcome]) -> list[str]:
    """The findings in words; what the study does not hold yet is left out."""
    found = []
    for part in (_knowledge, _accuracy, _stopping):
        try:
            found.append(part(data))
        except NotTestable:
            continue
    count = Counter(outcome.holds for outcome in outcomes)
    found.append(
        f"Of the paper's {len(outcomes)} findings, {count[True]} hold here, {count[False]} fail and {count[None]} "
        f"cannot be tested "
        "with what this study holds."
    )
    return found


def _knowledge(data: StudyData) -> str:
    totals = category_totals(data, "id", "train")
    split = "training"
    if not sum(totals.values()):
        totals, split = category_totals(data, "id", "test"), "test"
    total = sum(totals.values())
    if not total:
        raise NotTestable("no questions were annotated")
    parts = ", ".join(f"{100 * num / total:.0f} % {category}" for category, num in totals.items())
    return f"Of {total:,} {split} questions, for this model: {parts}."


def _accuracy(data: StudyData) -> str:
    sweep = data.sweep("unknown", least=2)
    (low, first), (high, last) = sweep[0], sweep[-1]
    parts = [
        f"from {data.accuracy(first, when).value:.1f} to {data.accuracy(last, when).value:.1f} % at {words}"
        for when, words in ((EARLY, "early stop"), (LAST, "convergence"))
    ]
    return (
        f"From {percent(low)} to {percent(high)} Unknown rows in the fine-tuning set, test accuracy goes "
        f"{' and '.join(parts)}."
    )


def _stopping(data: StudyData) -> str:
    sweep = data.sweep("unknown", least=1)
    epochs = [data.mean_epoch(name, EARLY) for _, name in sweep]
    last = data.mean_epoch(sweep[0][1], LAST)
    gaps = [data.difference((name, EARLY), (name, LAST)) for _, name in sweep]
    worst = max(range(len(gaps)), key=lambda i: gaps[i].value)
    span = (
        f"{min(epochs):.0f} to {max(epochs):.0f}" if round(min(epochs)) != round(max(epochs)) else f"{min(epochs):.0f}"
    )
    mean = mean_cell(gaps)
    if mean.value <= 0:
        return (
            f"Dev accuracy is best at epoch {span} of {last:.0f}; training on to the end changes test accuracy by "
            f"{-mean.value:+.1f} points on average."
        )
    return (
        f"Stop at epoch {span} of {last:.0f}, where dev accuracy is best: training on to the end costs "
        f"{points(mean)} points "
        f"on average, and {points(gaps[worst])} at {percent(sweep[worst][0])} Unknown."
    )
