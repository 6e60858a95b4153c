"""Stopping rules over epoch curves."""

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


EVERY_RULE = {
    "fixed": ("fixed", "fixed(1)", "fixed(4)"),
    "best_dev": ("best_dev",),
    "dev_highlyknown": ("dev_highlyknown",),
    "patience": ("patience(1)", "patience(3)", "patience(2,0.2)", "patience(3,1.0)"),
    "unknown_fit": ("unknown_fit(0.0)", "unknown_fit(0.5)", "unknown_fit(1.0)"),
}
POLICIES = [parse_policy(text) for texts in EVERY_RULE.values() for text in texts]

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
        ("patience(4)", 7, 7, 7),  # patience outlasts the dip: epoch 7 is better after three without
        ("patience(4)", 6, 3, 6),  # the budget ends first
        ("patience(1,0.25)", 7, 1, 2),  # 0.3 is not more than 0.25 better than 0.1
        ("patience(2,0.25)", 7, 3, 5),  # 0.5 is
        ("patience(3,0.4)", 7, 1, 4),  # 0.5 - 0.1 is not above 0.4
        ("patience(3,1)", 7, 1, 4),  # nothing can be better by more than everything
    ],
)
def test_a_policy_stops_where_it_says(policy: str, budget: int, stop: int, cost: int) -> None:
    assert apply_policy(parse_policy(policy), RISE_AND_FALL, budget) == StopDecision(stop_epoch=stop, cost_epochs=cost)
    assert stop_epoch(parse_policy(policy), RISE_AND_FALL, budget) == stop


@pytest.mark.parametrize(
    ("unknown", "share", "expected"),
    [((0.0, 0.2, 0.7), 0.2, 2), ((0.0, 0.2, 0.7), 0.8, 3), ((0.0, 0.2, 0.7), 0.0, 1), (None, 0.1, 3)],
)
def test_unknown_fit_stops_when_the_share_is_reached_or_at_the_end(
    unknown: tuple[float, ...] | None, share: float, expected: int
) -> None:
    stop = apply_policy(Policy("unknown_fit", (share,)), curve(0.3, 0.3, 0.3, unknown=unknown))
    assert stop == StopDecision(stop_epoch=expected, cost_epochs=expected)


def test_a_flat_curve_stops_at_its_first_epoch() -> None:
    flat = curve(*[0.0] * 9)
    assert apply_policy(parse_policy("best_dev"), flat) == StopDecision(stop_epoch=1, cost_epochs=9)
    assert apply_policy(parse_policy("patience(3)"), flat) == StopDecision(stop_epoch=1, cost_epochs=4)


def test_dev_highlyknown_takes_the_best_epoch_of_those_questions_alone() -> None:
    two_best = curve(0.1, 0.2, 0.9, 0.3, highlyknown=(0.5, 0.8, 0.6, 0.8))
    policy = parse_policy("dev_highlyknown")
    assert apply_policy(policy, two_best) == StopDecision(
        stop_epoch=2, cost_epochs=4
    )  # epochs 2 and 4 tie: the earliest
    assert apply_policy(policy, two_best, 1) == StopDecision(stop_epoch=1, cost_epochs=1)


def test_dev_highlyknown_refuses_a_training_whose_dev_questions_have_no_category() -> None:
    message = (
        r"dev_highlyknown needs dev questions .* HighlyKnown, and there are none, .* --annotate-dev`, or use best_dev"
    )
    with pytest.raises(SettingsError, match=message):
        apply_policy(parse_policy("dev_highlyknown"), RISE_AND_FALL)
    with pytest.raises(SettingsError, match=message):  # a live training is told after its first epoch, not its last
        parse_policy("dev_highlyknown").decided_epoch(RISE_AND_FALL.truncate_to(1), 7)


def test_every_rule_is_among_those_tried_here() -> None:
    assert EVERY_RULE.keys() == set(stopping_policies.names())


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_policy_never_looks_beyond_its_budget_nor_beyond_what_it_costs(policy: Policy) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        full, other = random_curve(rng, 9), random_curve(rng, 9)
        for budget in range(4, 10):
            stop = apply_policy(policy, full, budget)
            assert stop.cost_epochs <= budget
            for shared in {budget, stop.cost_epochs}:
                mixed = spliced(full, other, shared)
                assert apply_policy(policy, mixed, budget) == stop


def spliced(first: AccuracyCurve, second: AccuracyCurve, at: int) -> AccuracyCurve:
    """The first curve for `at` epochs, then the second, which has to measure the same things."""
    unknown = None
    if first.unknown_train_accuracy is not None:
        rest = second.unknown_train_accuracy or second.dev_accuracy
        unknown = first.unknown_train_accuracy[:at] + rest[at:]
    assert first.highlyknown_dev_accuracy is not None
    assert second.highlyknown_dev_accuracy is not None
    highlyknown = first.highlyknown_dev_accuracy[:at] + second.highlyknown_dev_accuracy[at:]
    return curve(*first.dev_accuracy[:at], *second.dev_accuracy[at:], unknown=unknown, highlyknown=highlyknown)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_is_decided_stays_and_at_the_end_all_is_decided(policy: Policy) -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        full = random_curve(rng, int(rng.integers(4, 12)))
        wanted = apply_policy(policy, full)
        for epoch in range(1, full.num_epochs + 1):
            so_far = policy.decided_epoch(full.truncate_to(epoch), full.num_epochs)
            assert so_far == (wanted.stop_epoch if epoch >= wanted.cost_epochs else None), (full, epoch)
        assert policy.decided_epoch(full, full.num_epochs) == wanted.stop_epoch


@pytest.mark.parametrize(
    ("policy", "epochs"),
    [("fixed", 7), ("fixed(3)", 3), ("best_dev", 7), ("patience(2)", 5), ("patience(4)", 7), ("unknown_fit(0.5)", 4)],
)
def test_a_policy_is_decided_at_a_certain_epoch_and_not_before(policy: str, epochs: int) -> None:
    measured = curve(*RISE_AND_FALL.dev_accuracy, unknown=(0.0, 0.1, 0.3, 0.5, 0.4, 0.8, 1.0))
    found = [parse_policy(policy).decided_epoch(measured.truncate_to(epoch), 7) for epoch in range(1, 8)]
    assert next(epoch for epoch, stop in enumerate(found, start=1) if stop is not None) == epochs


def test_a_smaller_budget_of_a_longer_training_is_decided() -> None:
    assert parse_policy("best_dev").decided_epoch(RISE_AND_FALL, 6) == 3
    assert parse_policy("fixed").decided_epoch(RISE_AND_FALL, 6) == 6
    with pytest.raises(SettingsError, match=r"fixed\(9\) cannot be read off a budget of 8"):
        parse_policy("fixed(9)").decided_epoch(RISE_AND_FALL, 8)
    with pytest.raises(DataError, match="a budget of 0 epochs"):
        parse_policy("fixed").decided_epoch(RISE_AND_FALL, 0)


def test_a_training_that_ended_early_still_gives_what_was_decided() -> None:
    ended = RISE_AND_FALL.truncate_to(5)
    assert apply_policy(parse_policy("patience(2)"), ended, 50) == StopDecision(stop_epoch=3, cost_epochs=5)
    assert apply_policy(parse_policy("fixed(4)"), ended, 50) == StopDecision(stop_epoch=4, cost_epochs=4)
    for open_still in ("fixed", "best_dev", "patience(3)"):
        with pytest.raises(DataError, match="a budget of 50 epochs cannot be read off a training of 5"):
            apply_policy(parse_policy(open_still), ended, 50)


def test_patience_costs_no_more_than_best_dev_and_agrees_with_it_when_it_outlasts_the_budget() -> None:
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
def test_policies_read_and_write_alike(text: str, canonical: str) -> None:
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
def test_a_policy_that_cannot_be_read_says_what_is_wanted(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_policy(text)


def test_every_rule_can_be_written_as_its_usage_says() -> None:
    written = ["fixed([epochs])", "best_dev", "dev_highlyknown", "patience(epochs[,min_delta])", "unknown_fit(share)"]
    assert [policy_signature(name) for name in stopping_policies.names()] == written


def test_plain_fixed_takes_the_number_of_its_budget() -> None:
    assert str(parse_policy("fixed").at(20)) == "fixed(20)"
    assert str(parse_policy("fixed(5)").at(20)) == "fixed(5)"
    assert str(parse_policy("best_dev").at(20)) == "best_dev"


def test_fixed_beyond_the_budget_is_refused_not_clipped() -> None:
    assert not parse_policy("fixed(9)").applies_to(8)
    assert parse_policy("fixed(9)").applies_to(9)
    with pytest.raises(SettingsError, match=r"fixed\(9\) cannot be read off a budget of 7 epochs"):
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
def test_a_curve_holds_shares_one_an_epoch(
    dev: tuple[float, ...], unknown: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        AccuracyCurve(dev_accuracy=dev, unknown_train_accuracy=unknown)


@pytest.mark.parametrize("budget", [0, -1, 8])
def test_a_budget_outside_the_training_is_refused(budget: int) -> None:
    with pytest.raises(DataError, match=f"a budget of {budget} epochs cannot be read off a training of 7"):
        apply_policy(parse_policy("best_dev"), RISE_AND_FALL, budget)


def test_accuracy_on_highlyknown_questions_is_checked_like_the_rest() -> None:
    with pytest.raises(DataError, match="HighlyKnown dev accuracy for each epoch, got 1 for 2"):
        curve(0.1, 0.2, highlyknown=(0.3,))
    with pytest.raises(DataError, match=r"HighlyKnown dev accuracy of epoch 2 is 1\.5"):
        curve(0.1, 0.2, highlyknown=(0.3, 1.5))
