"""Stopping policies on accuracy curves."""

import math

import numpy as np
import pytest

from slick.errors import DataError, SettingsError
from tuning.policies import (
    AccuracyCurve,
    Policy,
    StopDecision,
    apply_policy,
    parse_policy,
    policy_signature,
    stop_epoch,
    stopping_policies,
)


def curve(
    *dev: float, unknown: tuple[float, ...] | None = None, highlyknown: tuple[float, ...] | None = None
) -> AccuracyCurve:
    return AccuracyCurve(dev_accuracy=dev, unknown_train_accuracy=unknown, highlyknown_dev_accuracy=highlyknown)


def random_curve(rng: np.random.Generator, num_epochs: int) -> AccuracyCurve:
    """Few distinct values, so that ties are common; sometimes without Unknown rows."""
    dev, unknown, highlyknown = (rng.integers(0, 6, (3, num_epochs)) / 5).tolist()
    return curve(*dev, unknown=None if rng.random() < 0.2 else tuple(unknown), highlyknown=tuple(highlyknown))


POLICY_TEXTS = {
    "fixed": ("fixed", "fixed(1)", "fixed(4)"),
    "best_dev": ("best_dev",),
    "dev_highlyknown": ("dev_highlyknown",),
    "patience": ("patience(1)", "patience(3)", "patience(2,0.2)", "patience(3,1.0)"),
    "unknown_fit": ("unknown_fit(0.0)", "unknown_fit(0.5)", "unknown_fit(1.0)"),
}
POLICIES = [parse_policy(text) for texts in POLICY_TEXTS.values() for text in texts]

RISE_AND_FALL = curve(0.1, 0.3, 0.5, 0.4, 0.5, 0.2, 0.6)


@pytest.mark.parametrize(
    ("policy", "budget", "stop", "cost"),
    [
        ("fixed", 1, 1, 1),
        ("fixed", 7, 7, 7),
        ("fixed(3)", 7, 3, 3),
        ("fixed(3)", 3, 3, 3),
        ("best_dev", 7, 7, 7),
        ("best_dev", 6, 3, 6),  # epochs 3 and 5 tie: the earliest
        ("best_dev", 1, 1, 1),
        ("patience(1)", 7, 3, 4),
        ("patience(2)", 7, 3, 5),
        ("patience(3)", 7, 3, 6),
        ("patience(4)", 7, 7, 7),  # epoch 7 is better after three epochs without improvement
        ("patience(4)", 6, 3, 6),  # the budget ends first
        ("patience(1,0.25)", 7, 1, 2),  # 0.3 is not more than 0.25 better than 0.1
        ("patience(2,0.25)", 7, 3, 5),  # 0.5 is more than 0.25 better
        ("patience(3,0.4)", 7, 1, 4),  # 0.5 - 0.1 is not above 0.4
        ("patience(3,1)", 7, 1, 4),  # no accuracy can be better by more than 1
    ],
)
def test_policy_stops_at_the_expected_epoch(policy: str, budget: int, stop: int, cost: int) -> None:
    assert apply_policy(parse_policy(policy), RISE_AND_FALL, budget) == StopDecision(stop_epoch=stop, cost_epochs=cost)
    assert stop_epoch(parse_policy(policy), RISE_AND_FALL, budget) == stop


@pytest.mark.parametrize(
    ("unknown", "share", "expected"),
    [((0.0, 0.2, 0.7), 0.2, 2), ((0.0, 0.2, 0.7), 0.8, 3), ((0.0, 0.2, 0.7), 0.0, 1), (None, 0.1, 3)],
)
def test_unknown_fit_stops_at_the_share_or_at_the_end_of_the_budget(
    unknown: tuple[float, ...] | None, share: float, expected: int
) -> None:
    stop = apply_policy(Policy("unknown_fit", (share,)), curve(0.3, 0.3, 0.3, unknown=unknown))
    assert stop == StopDecision(stop_epoch=expected, cost_epochs=expected)


def test_flat_curve_stops_at_epoch_1() -> None:
    flat = curve(*[0.0] * 9)
    assert apply_policy(parse_policy("best_dev"), flat) == StopDecision(stop_epoch=1, cost_epochs=9)
    assert apply_policy(parse_policy("patience(3)"), flat) == StopDecision(stop_epoch=1, cost_epochs=4)


def test_dev_highlyknown_uses_highlyknown_dev_accuracy_only() -> None:
    two_best = curve(0.1, 0.2, 0.9, 0.3, highlyknown=(0.5, 0.8, 0.6, 0.8))
    policy = parse_policy("dev_highlyknown")
    assert apply_policy(policy, two_best) == StopDecision(
        stop_epoch=2, cost_epochs=4
    )  # epochs 2 and 4 tie: the earliest
    assert apply_policy(policy, two_best, 1) == StopDecision(stop_epoch=1, cost_epochs=1)


def test_dev_highlyknown_needs_labeled_dev_questions() -> None:
    message = (
        r"dev_highlyknown needs dev questions .* HighlyKnown, and there are none, .* --annotate-dev`, or use best_dev"
    )
    with pytest.raises(SettingsError, match=message):
        apply_policy(parse_policy("dev_highlyknown"), RISE_AND_FALL)
    with pytest.raises(SettingsError, match=message):  # already after the first epoch of a live training
        parse_policy("dev_highlyknown").decided_epoch(RISE_AND_FALL.truncate_to(1), 7)


def test_every_registered_policy_has_a_test() -> None:
    assert POLICY_TEXTS.keys() == set(stopping_policies.names())


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_decision_depends_on_the_first_cost_epochs_only(policy: Policy) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        full, other = random_curve(rng, 9), random_curve(rng, 9)
        for budget in range(4, 10):
            stop = apply_policy(policy, full, budget)
            assert stop.cost_epochs <= budget
            for shared in {budget, stop.cost_epochs}:
                spliced_curve = splice(full, other, shared)
                assert apply_policy(policy, spliced_curve, budget) == stop


def splice(first: AccuracyCurve, second: AccuracyCurve, num_first: int) -> AccuracyCurve:
    """The first `num_first` epochs of one curve, followed by the later epochs of another."""
    unknown = None
    if first.unknown_train_accuracy is not None:
        later = second.unknown_train_accuracy or second.dev_accuracy
        unknown = first.unknown_train_accuracy[:num_first] + later[num_first:]
    assert first.highlyknown_dev_accuracy is not None
    assert second.highlyknown_dev_accuracy is not None
    highlyknown = first.highlyknown_dev_accuracy[:num_first] + second.highlyknown_dev_accuracy[num_first:]
    return curve(
        *first.dev_accuracy[:num_first], *second.dev_accuracy[num_first:], unknown=unknown, highlyknown=highlyknown
    )


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_decisions_are_final_and_complete_at_the_end_of_the_budget(policy: Policy) -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        full = random_curve(rng, int(rng.integers(4, 12)))
        expected = apply_policy(policy, full)
        for epoch in range(1, full.num_epochs + 1):
            so_far = policy.decided_epoch(full.truncate_to(epoch), full.num_epochs)
            assert so_far == (expected.stop_epoch if epoch >= expected.cost_epochs else None), (full, epoch)
        assert policy.decided_epoch(full, full.num_epochs) == expected.stop_epoch


@pytest.mark.parametrize(
    ("policy", "epochs"),
    [("fixed", 7), ("fixed(3)", 3), ("best_dev", 7), ("patience(2)", 5), ("patience(4)", 7), ("unknown_fit(0.5)", 4)],
)
def test_first_epoch_at_which_a_policy_is_decided(policy: str, epochs: int) -> None:
    measured = curve(*RISE_AND_FALL.dev_accuracy, unknown=(0.0, 0.1, 0.3, 0.5, 0.4, 0.8, 1.0))
    decisions = [parse_policy(policy).decided_epoch(measured.truncate_to(epoch), 7) for epoch in range(1, 8)]
    assert next(epoch for epoch, stop in enumerate(decisions, start=1) if stop is not None) == epochs


def test_smaller_budgets_of_a_longer_training_are_decided() -> None:
    assert parse_policy("best_dev").decided_epoch(RISE_AND_FALL, 6) == 3
    assert parse_policy("fixed").decided_epoch(RISE_AND_FALL, 6) == 6
    with pytest.raises(SettingsError, match=r"fixed\(9\) exceeds the budget of 8"):
        parse_policy("fixed(9)").decided_epoch(RISE_AND_FALL, 8)
    with pytest.raises(DataError, match="a budget of 0 epochs"):
        parse_policy("fixed").decided_epoch(RISE_AND_FALL, 0)


def test_early_stopped_training_keeps_its_decided_policies() -> None:
    ended = RISE_AND_FALL.truncate_to(5)
    assert apply_policy(parse_policy("patience(2)"), ended, 50) == StopDecision(stop_epoch=3, cost_epochs=5)
    assert apply_policy(parse_policy("fixed(4)"), ended, 50) == StopDecision(stop_epoch=4, cost_epochs=4)
    for undecided in ("fixed", "best_dev", "patience(3)"):
        with pytest.raises(DataError, match="a budget of 50 epochs cannot be evaluated on a training of 5"):
            apply_policy(parse_policy(undecided), ended, 50)


def test_patience_costs_at_most_best_dev_and_equals_it_if_patience_is_the_budget() -> None:
    for budget in range(1, 8):
        best = apply_policy(parse_policy("best_dev"), RISE_AND_FALL, budget)
        assert apply_policy(parse_policy(f"patience({budget})"), RISE_AND_FALL, budget) == best
        for epochs in range(1, 8):
            assert apply_policy(Policy("patience", (epochs,)), RISE_AND_FALL, budget).cost_epochs <= best.cost_epochs


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fixed", "fixed"),
        ("fixed( 5 )", "fixed(5)"),
        (" best_dev ", "best_dev"),
        ("best_dev()", "best_dev"),
        ("dev_highlyknown", "dev_highlyknown"),
        ("patience(3)", "patience(3)"),
        ("patience(3, 0.010)", "patience(3,0.01)"),
        ("unknown_fit(.2)", "unknown_fit(0.2)"),
        ("unknown_fit(0.123456789)", "unknown_fit(0.123456789)"),
        ("fixed(1000000)", "fixed(1000000)"),
    ],
)
def test_policy_text_round_trips(text: str, canonical: str) -> None:
    assert str(parse_policy(text)) == canonical
    assert parse_policy(canonical) == parse_policy(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("early_stop", "there is no stopping policy 'early_stop'; there are fixed"),
        ("patence(2)", "there is no stopping policy 'patence'; did you mean patience"),
        ("", "'' is not written NAME or NAME"),
        ("patience", r"written patience\(epochs\[,min_delta\]\)"),
        ("patience(1,2,3)", "has 3 settings"),
        ("best_dev(3)", "has 1 settings; it is written best_dev"),
        ("fixed(0)", "1 or more"),
        ("fixed(-2)", "1 or more"),
        ("fixed(2.5)", "whole number"),
        ("fixed()(3)", "is not written NAME or NAME"),
        ("patience(3,)", "min_delta is ''"),
        ("patience(3,nan)", "share in"),
        ("patience(3,1.5)", "share in"),
        ("unknown_fit(20)", "share in"),
    ],
)
def test_invalid_policy_text_is_refused_with_the_expected_form(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_policy(text)


def test_policy_signatures() -> None:
    signatures = [
        "fixed([epochs])",
        "best_dev",
        "dev_highlyknown",
        "patience(epochs[,min_delta])",
        "unknown_fit(share)",
    ]
    assert [policy_signature(name) for name in stopping_policies.names()] == signatures


def test_fixed_policy_defaults_to_the_budget() -> None:
    assert str(parse_policy("fixed").at(20)) == "fixed(20)"
    assert str(parse_policy("fixed(5)").at(20)) == "fixed(5)"
    assert str(parse_policy("best_dev").at(20)) == "best_dev"


def test_fixed_policy_beyond_the_budget_is_refused() -> None:
    assert not parse_policy("fixed(9)").applies_to(8)
    assert parse_policy("fixed(9)").applies_to(9)
    with pytest.raises(SettingsError, match=r"fixed\(9\) exceeds the budget of 7 epochs"):
        apply_policy(parse_policy("fixed(9)"), RISE_AND_FALL)


@pytest.mark.parametrize(
    ("dev", "unknown", "message"),
    [
        ((), None, "needs one dev accuracy for each epoch"),
        ((0.1, math.nan), None, "dev accuracy of epoch 2 is nan"),
        ((43.5,), None, "share in"),
        ((0.1, 0.2), (0.1,), "Unknown train accuracy for each epoch, got 1 for 2"),
        ((0.1,), (-0.1,), "Unknown train accuracy of epoch 1"),
    ],
)
def test_curve_needs_one_accuracy_per_epoch(
    dev: tuple[float, ...], unknown: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        AccuracyCurve(dev_accuracy=dev, unknown_train_accuracy=unknown)


@pytest.mark.parametrize("budget", [0, -1, 8])
def test_budget_outside_the_curve_is_refused(budget: int) -> None:
    with pytest.raises(DataError, match=f"a budget of {budget} epochs cannot be evaluated on a training of 7"):
        apply_policy(parse_policy("best_dev"), RISE_AND_FALL, budget)


def test_highlyknown_accuracy_is_validated() -> None:
    with pytest.raises(DataError, match="HighlyKnown dev accuracy for each epoch, got 1 for 2"):
        curve(0.1, 0.2, highlyknown=(0.3,))
    with pytest.raises(DataError, match=r"HighlyKnown dev accuracy of epoch 2 is 1\.5"):
        curve(0.1, 0.2, highlyknown=(0.3, 1.5))
