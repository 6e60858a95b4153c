"""Changes to the paper's numbers that make a claim false, either barely or clearly.

A barely false claim has one part exactly at the bound that it must exceed, and everything else as in the paper. In
these studies a wrong "holds" is most likely, so its rate is the false alarm rate of the finding.
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np

from slick.report.measurements import ANY_KNOWN
from tests.simulated_study import CATEGORIES, LAST_EPOCH, StudyRates, VariantRates, full_accuracy, shift_to
from tests.unit.paper_numbers import PAPER_SHARES

Change = Callable[[StudyRates], None]

SWEEP = [f"unknown-{round(100 * share):03d}" for share in PAPER_SHARES]
KNOWN_ONLY = [f"known-{round(100 * share):03d}" for share in PAPER_SHARES[1:-1]]
HALF = "unknown-050"


def changed(rates: StudyRates, change: Change) -> StudyRates:
    """A changed copy."""
    copy = deepcopy(rates)
    change(copy)
    return copy


def early_accuracy(variant: VariantRates) -> float:
    """Accuracy at early stop."""
    return full_accuracy(variant.test[variant.early_epoch])


def last_accuracy(variant: VariantRates) -> float:
    """Accuracy at convergence."""
    return full_accuracy(variant.test[LAST_EPOCH])


def set_early(variant: VariantRates, full: float) -> None:
    """Set the accuracy at early stop."""
    variant.test[variant.early_epoch] = shift_to(variant.test[variant.early_epoch], full)


def set_last(variant: VariantRates, full: float) -> None:
    """Set the accuracy at convergence."""
    variant.test[LAST_EPOCH] = shift_to(variant.test[LAST_EPOCH], full)


def set_category(variant: VariantRates, category: str, *, at_early: float | None = None, at_last: float | None = None):
    """Set the accuracy on a category."""
    i = CATEGORIES.index(category)
    for epoch, value in ((variant.early_epoch, at_early), (LAST_EPOCH, at_last)):
        if value is not None:
            variant.test[epoch] = variant.test[epoch].copy()
            variant.test[epoch][i] = value


def set_losses(names: list[str], loss: float) -> Change:
    """Each of these variants loses `loss` points between early stop and convergence."""

    def change(rates: StudyRates) -> None:
        for name in names:
            set_last(rates.variants[name], early_accuracy(rates.variants[name]) - loss)

    return change


def set_known_gaps(gaps: list[float]) -> Change:
    """D_Known is above D by these numbers of points at convergence."""

    def change(rates: StudyRates) -> None:
        for name, gap in zip(KNOWN_ONLY, gaps, strict=True):
            set_last(rates.variants[name], last_accuracy(rates.variants[name.replace("known", "unknown")]) + gap)

    return change


def set_flat(epoch_of: Callable[[VariantRates], int]) -> Change:
    """The share of Unknown rows does not matter at one training length."""

    def change(rates: StudyRates) -> None:
        for name in SWEEP:
            variant = rates.variants[name]
            variant.test[epoch_of(variant)] = shift_to(variant.test[epoch_of(variant)], 42.0)

    return change


def set_train(name: str, part: str, values: dict[int, float] | float) -> Change:
    """Percentages of fitted rows, at the given epochs or at all epochs."""

    def change(rates: StudyRates) -> None:
        curve = rates.variants[name].train[part]
        curve.update(dict.fromkeys(curve, values) if isinstance(values, float) else values)

    return change


def set_variant(name: str, **accuracies: float) -> Change:
    """`early` and `last` accuracies of a variant."""

    def change(rates: StudyRates) -> None:
        for checkpoint, value in accuracies.items():
            (set_early if checkpoint == "early" else set_last)(rates.variants[name], value)

    return change


def set_on_category(name: str, category: str, **values: float) -> Change:
    """Accuracy of a variant on a category, `at_early` and `at_last`."""
    return lambda rates: set_category(rates.variants[name], category, **values)


def set_loss_of(name: str, other: str) -> Change:
    """A variant loses as many points as another between early stop and convergence."""

    def change(rates: StudyRates) -> None:
        loss = early_accuracy(rates.variants[other]) - last_accuracy(rates.variants[other])
        set_last(rates.variants[name], early_accuracy(rates.variants[name]) - loss)

    return change


def set_abstention(at_last: float, at_random: bool = False) -> Change:
    """Accuracy on the questions that D_IDK answers at convergence; at random: it is D at both checkpoints."""

    def change(rates: StudyRates) -> None:
        variant = rates.variants["idk-050"]
        if at_random:
            half = rates.variants[HALF]
            variant.test = {epoch: half.test[epoch] for epoch in variant.test}
            variant.answered, variant.answers_at_random = dict.fromkeys(variant.test, 58.0), True
            return
        answered = 55.6
        set_last(variant, answered * at_last / 100)
        variant.answered = dict(variant.answered or {})
        variant.answered[LAST_EPOCH] = 100 * answered * (1 - at_last / 100) / (100 - answered * at_last / 100)

    return change


def set_other_rate(policy: int | str, slope: float) -> Change:
    """Accuracy at the other learning rate changes by `slope` points over the shares at one training length."""

    def change(rates: StudyRates) -> None:
        rates.other_rate[policy] = {share: 40.0 + slope * share for share in PAPER_SHARES}

    return change


def set_linear(**coefficients: tuple[float, float, float]) -> Change:
    """Coefficients of the linear model, `linear` and `linear_ood`."""

    def change(rates: StudyRates) -> None:
        for name, values in coefficients.items():
            setattr(rates, name, values)

    return change


def set_random_labels(rates: StudyRates) -> None:
    """D_Natural's accuracy is the same on all categories; P(True) stays informative."""
    natural = rates.variants["natural"]
    natural.test = {epoch: np.full(4, 42.0) for epoch in natural.test}


def set_random_p_true(rates: StudyRates) -> None:
    """P(True) is unrelated to the answers."""
    rates.p_true_separation = 0.0


def set_equal_p_true(rates: StudyRates) -> None:
    """P(True) is low for the questions that SliCK labels Unknown, and for no others."""
    rates.p_true_of_label = True


def set_dev(values: dict[int, float] | float) -> Change:
    """Dev accuracy at the given epochs or at all epochs."""

    def change(rates: StudyRates) -> None:
        dev = rates.variants[HALF].dev
        dev.update(dict.fromkeys(dev, values) if isinstance(values, float) else values)

    return change


BARELY_FALSE: dict[str, dict[str, Change]] = {
    "E3": {
        "no effect at early stop": set_flat(lambda variant: variant.early_epoch),
        "no effect at convergence": set_flat(lambda variant: LAST_EPOCH),
    },
    "E4": {"no loss at a share of 0 %": set_variant("unknown-000", last=43.9)},
    "E5": {"every share loses 4.2 points": set_losses(SWEEP, 4.2)},
    "E6": {"D_Known is 1.5 points above D at 90 %": set_variant("known-090", early=41.2)},
    "E7": {
        "the gap is 3.2 points at every share": set_known_gaps([3.2] * 5),
        "the gap grows from -3 to 3 points": set_known_gaps([-3, -1.5, 0, 1.5, 3]),
    },
    "E8": {
        "D_Known loses 3 points at 25 %": set_variant("known-025", last=40.2),
        "D loses as little as D_Known": set_losses(SWEEP[1:-1], 1.2),
    },
    "E9": {
        "half of the Unknown rows are fitted at epoch 1": set_train(HALF, "Unknown", {1: 50.0}),
        "as many Unknown rows are fitted at early stop": set_train(HALF, "Unknown", {9: 82.0}),
    },
    "E10": {"dev accuracy is flat": set_dev(42.0)},
    "E11": {
        "half of the Unknown rows are fitted at 25 %": set_train("unknown-025", "Unknown", {9: 50.0}),
        "half of the Known rows are fitted at 75 %": set_train("unknown-075", ANY_KNOWN, {9: 50.0}),
    },
    "E12": {
        "fitted Unknown rows do not matter": set_linear(linear=(36.9, 7.3, 0.0)),
        "fitted Known rows do not matter": set_linear(linear=(36.9, 0.0, -8.3)),
    },
    "E13": {
        "fitted Unknown rows do not matter out of distribution": set_linear(linear_ood=(36.2, 3.2, 0.0)),
        "the effects are as large out of distribution": set_linear(linear_ood=(36.2, 7.3, -8.3)),
    },
    "E14": {
        "D_Natural is as good at convergence": set_variant("natural", last=43.2),
        "D_HighlyKnown is as good at early stop": set_variant("highlyknown", early=43.6),
    },
    "E15": {
        "no gain on MaybeKnown questions": set_on_category("maybeknown", "MaybeKnown", at_early=60.1),
        "a loss of 1.5 points on HighlyKnown questions": set_on_category("maybeknown", "HighlyKnown", at_early=97.2),
    },
    "E16": {
        "D_WeaklyKnown loses as much as D_Natural": set_loss_of("weaklyknown", "natural"),
        "D_Natural loses as much as D_HighlyKnown": set_loss_of("natural", "highlyknown"),
    },
    "E17": {
        "D_WeaklyKnown does not fall on MaybeKnown questions": set_on_category(
            "weaklyknown", "MaybeKnown", at_last=59.2
        ),
        "D_Unknown falls by 1.5 points on WeaklyKnown questions": set_on_category(
            "unknown-100", "WeaklyKnown", at_last=5.0
        ),
    },
    "E18": {
        "D_Natural is as good on Unknown as on WeaklyKnown questions": set_on_category(
            "natural", "Unknown", at_last=14.8
        )
    },
    "E19": {"D_Unknown answers 5 % of the Unknown questions": set_on_category("unknown-100", "Unknown", at_last=5.0)},
    "E20": {"P(True) is random": set_random_p_true, "the labels are random": set_random_labels},
    "E21": {
        "questions that leave the set are as hard": lambda rates: set_category(
            rates.variants["natural"], "WeaklyKnown", at_early=1.8, at_last=2.5
        )
    },
    "E22": {
        "it abstains at random": set_abstention(0.0, at_random=True),
        "a loss of 1.5 points on answered questions": set_abstention(60.3),
    },
    "E23": {"no loss": set_variant(HALF, last=43.0)},
    "E24": {
        "no effect at convergence": set_other_rate(LAST_EPOCH, 0.0),
        "no effect at early stop": set_other_rate("best_dev", 0.0),
    },
    "E25": {
        "D_HighlyKnown does not lose": set_variant("highlyknown", last=40.5),
        "D_MaybeKnown loses 1.5 points": set_variant("maybeknown", last=42.1),
    },
}
"""Finding -> the false part of its claim -> the change. E1 compares counts; E2 is simulated in the benchmark itself."""

CLEARLY_FALSE: dict[str, Change] = {
    "E3": set_variant("unknown-100", early=60, last=60),
    "E4": set_variant("unknown-000", last=47),
    "E5": set_variant("unknown-000", last=20),
    "E6": set_variant("known-090", early=45),
    "E7": set_known_gaps([-3] * 5),
    "E8": set_losses(KNOWN_ONLY, 12),
    "E9": set_train(HALF, "Unknown", 90.0),
    "E10": set_dev({LAST_EPOCH: 50.0}),
    "E11": set_train(HALF, "Unknown", {9: 80.0}),
    "E12": set_linear(linear=(36.9, 7.3, 8.3)),
    "E13": set_linear(linear_ood=(36.2, 12.0, -14.0)),
    "E14": set_variant("highlyknown", last=50),
    "E15": set_on_category("maybeknown", "MaybeKnown", at_early=50),
    "E16": set_variant("natural", last=20),
    "E17": set_on_category("weaklyknown", "HighlyKnown", at_last=98),
    "E18": set_on_category("natural", "Unknown", at_last=60),
    "E19": set_on_category("natural", "Unknown", at_last=10),
    "E20": set_random_labels,
    "E21": lambda rates: set_category(rates.variants["natural"], "WeaklyKnown", at_early=0.1),
    "E22": set_abstention(40.0),
    "E23": set_variant(HALF, last=47),
    "E24": set_other_rate(LAST_EPOCH, 20.0),
    "E25": set_variant("maybeknown", last=38),
}

VARIANTS_OF_FINDING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("E9", "E10", "E23"), ("unknown-050",)),
    **dict.fromkeys(("E20", "E21"), ("natural",)),
    "E22": ("idk-050", "unknown-050"),
    **dict.fromkeys(("E3", "E4", "E5", "E11", "E24"), tuple(SWEEP)),
    **dict.fromkeys(
        ("E6", "E7", "E8"), tuple(f"{kind}-{n:03d}" for kind in ("unknown", "known") for n in (10, 25, 50, 75, 90))
    ),
    **dict.fromkeys(
        ("E14", "E15", "E16", "E17", "E18", "E19", "E25"),
        ("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural"),
    ),
}
"""The variants whose runs a finding reads, where these are few."""
