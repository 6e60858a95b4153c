"""Stopping rules over epoch curves."""

import math

import pytest

from slick.errors import DataError, SettingsError
from tuning.policies import RULES, Curve, Policy, Stop, apply_policy, parse_policy, stop_epoch, usage


def curve(*dev: float, unknown: tuple[float, ...] | None = None) -> Curve:
    return Curve(dev_accuracy=dev, unknown_train_accuracy=unknown)


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
    ],
)
def test_a_policy_stops_where_it_says(policy: str, budget: int, stop: int, cost: int) -> None:
    assert apply_policy(parse_policy(policy), RISE_AND_FALL, budget) == Stop(stop_epoch=stop, cost_epochs=cost)
    assert stop_epoch(parse_policy(policy), RISE_AND_FALL, budget) == stop


@pytest.mark.parametrize(
    ("unknown", "share", "expected"),
    [((0.0, 0.2, 0.7), 0.2, 2), ((0.0, 0.2, 0.7), 0.8, 3), ((0.0, 0.2, 0.7), 0.0, 1), (None, 0.1, 3)],
)
def test_unknown_fit_stops_when_the_share_is_reached_or_at_the_end(
    unknown: tuple[float, ...] | None, share: float, expected: int
) -> None:
    stop = apply_policy(Policy("unknown_fit", (share,)), curve(0.3, 0.3, 0.3, unknown=unknown))
    assert stop == Stop(stop_epoch=expected, cost_epochs=expected)


def test_a_flat_curve_stops_at_its_first_epoch() -> None:
    flat = curve(*[0.0] * 9)
    assert apply_policy(parse_policy("best_dev"), flat) == Stop(stop_epoch=1, cost_epochs=9)
    assert apply_policy(parse_policy("patience(3)"), flat) == Stop(stop_epoch=1, cost_epochs=4)


@pytest.mark.parametrize(
    "policy", ["fixed", "fixed(1)", "best_dev", "patience(1)", "patience(3,0.05)", "unknown_fit(0.5)"]
)
def test_a_policy_never_looks_beyond_its_budget(policy: str) -> None:
    full = curve(0.4, 0.2, 0.3, 0.5, 0.1, unknown=(0.0, 0.1, 0.5, 0.8, 1.0))
    other = curve(0.4, 0.2, 0.3, 1.0, 1.0, unknown=(0.0, 0.1, 0.5, 0.5, 0.5))
    for budget in (1, 2, 3):
        stop = apply_policy(parse_policy(policy), full, budget)
        assert stop == apply_policy(parse_policy(policy), other, budget)
        assert stop.cost_epochs <= budget


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
        ("", "no stopping policy"),
        ("patience", r"written patience\(epochs\[,min_delta\]\)"),
        ("patience(1,2,3)", "has 3 settings"),
        ("best_dev(3)", "has 1 settings; it is written best_dev"),
        ("fixed(0)", "1 or more"),
        ("fixed(-2)", "1 or more"),
        ("fixed(2.5)", "whole number"),
        ("fixed()(3)", "no stopping policy"),
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
    written = ["fixed([epochs])", "best_dev", "patience(epochs[,min_delta])", "unknown_fit(share)"]
    assert [usage(rule) for rule in RULES] == written


def test_plain_fixed_takes_the_number_of_its_budget() -> None:
    assert str(parse_policy("fixed").at(20)) == "fixed(20)"
    assert str(parse_policy("fixed(5)").at(20)) == "fixed(5)"
    assert str(parse_policy("best_dev").at(20)) == "best_dev"


def test_fixed_beyond_the_budget_is_refused_not_clipped() -> None:
    assert not parse_policy("fixed(9)").applies(8)
    assert parse_policy("fixed(9)").applies(9)
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
        Curve(dev_accuracy=dev, unknown_train_accuracy=unknown)


@pytest.mark.parametrize("budget", [0, -1, 8])
def test_a_budget_outside_the_training_is_refused(budget: int) -> None:
    with pytest.raises(DataError, match=f"a budget of {budget} epochs cannot be read off a training of 7"):
        apply_policy(parse_policy("best_dev"), RISE_AND_FALL, budget)
