"""Checks of the linear model on simulated points, and on the paper's."""

from dataclasses import replace

import numpy as np
import pytest

from slick.report.data import StudyData, Variant
from slick.report.measurements import InsufficientDataError
from slick.report.sections.linear_model import linear_model_section, linear_model_table, point_selections_table
from slick.report.statistics.regression import (
    PointSelection,
    RegressionSample,
    check_residuals,
    check_sample_residuals,
    describe_fit,
    fit_all_selections,
    fit_linear_model,
    regression_sample,
)
from tests.unit.outcome_studies import linear
from tests.unit.paper_numbers import paper_study


def points(
    seed: int, *, bend: float = 0.0, drift: float = 0.0, fan: float = 0.0, noise: float = 0.5
) -> RegressionSample:
    """Ten runs of 20 epochs on a plane, optionally with curvature, autocorrelated errors or heteroscedasticity."""
    rng = np.random.default_rng(seed)
    x = rng.random((200, 2))
    runs = np.repeat([f"run{i}" for i in range(10)], 20)
    plane = 37 + 7 * x[:, 0] - 8 * x[:, 1]
    steps = rng.normal(0, noise, (10, 20))
    lasting = drift * np.cumsum(steps, axis=1).ravel()
    y = plane + bend * (plane - 36) ** 2 + steps.ravel() * (1 + fan * x[:, 0]) + lasting
    return RegressionSample(x_P2=x, y_P=y, runs_P=runs, sets_P=runs, shares_P=np.repeat(np.arange(10) / 10, 20))


def test_points_on_a_plane_pass_all_checks() -> None:
    result = check_sample_residuals(points(0))
    assert result.r_squared > 0.9
    assert result.residuals_P.mean() == pytest.approx(0, abs=1e-9)
    assert result.durbin_watson == pytest.approx(2, abs=0.4)
    assert describe_fit(result).startswith("the model fits: it explains")


def test_violated_assumptions_are_named() -> None:
    assert "residuals are curved (RESET" in describe_fit(check_sample_residuals(points(0, bend=0.2)))
    assert "residuals of successive evaluated epochs are correlated (Durbin-Watson" in describe_fit(
        check_sample_residuals(points(0, drift=1.0))
    )
    fan = describe_fit(check_sample_residuals(points(0, fan=8.0)))
    assert "residuals are heteroscedastic (Breusch-Pagan" in fan
    assert fan.endswith("the intervals account for that")


def test_low_r_squared_does_not_fit() -> None:
    assert describe_fit(check_sample_residuals(points(0, noise=30.0))).startswith("the model does not fit: it explains")


def test_false_positive_rates_of_the_checks() -> None:
    """10 of 200 tests at p < 0.05 are expected to be significant; more than 25 have probability under 0.001."""
    result = [check_sample_residuals(points(seed)) for seed in range(200)]
    assert sum(item.breusch_pagan_p < 0.05 for item in result) <= 25
    assert sum(item.reset_p < 0.05 for item in result) <= 25
    assert not [item for item in result if item.durbin_watson is not None and item.durbin_watson < 1]


def known_too(data: StudyData) -> StudyData:
    """The same study with D_Known of 50 %: only the Known rows, half as many, and their accuracies."""
    whole = data.runs_for("unknown-050")[0]
    num = {**whole.num, ("train", "Unknown"): 0, ("train", "all"): 500}
    run = replace(whole, run_id="known-050-seed0", variant="known-050", num=num)
    variant = Variant(name="known-050", kind="known", share=0.5, num=500)
    return replace(data, variants={**data.variants, "known-050": variant}, runs=(*data.runs, run))


def test_selections_have_the_expected_points() -> None:
    data = known_too(linear(7, -8, 0.4))
    num = {
        (epochs, include_known): len(
            regression_sample(data, "test", PointSelection(epochs=epochs, include_known=include_known)).y_P
        )
        for epochs in ("every", "ends", "later")
        for include_known in (False, True)
    }
    assert num == {
        ("every", False): 140,
        ("every", True): 160,
        ("ends", False): 14,
        ("ends", True): 16,
        ("later", False): 112,
        ("later", True): 128,
    }


def test_fitted_rows_of_d_known_are_divided_by_the_size_of_d() -> None:
    chosen = regression_sample(known_too(linear(7, -8, 0.4)), "test", PointSelection(include_known=True))
    known, whole = (chosen.x_P2[chosen.runs_P == f"{name}-seed0"] for name in ("known-050", "unknown-050"))
    assert known[:, 0] == pytest.approx(whole[:, 0])
    assert (known[:, 1] == 0).all()


def test_seeds_of_a_set_are_one_cluster() -> None:
    data = linear(7, -8, 0.4)
    repeated = replace(
        data,
        runs=tuple(
            replace(run, run_id=f"{run.variant}-seed{seed}", seed=seed) for run in data.runs for seed in range(3)
        ),
    )
    once, again = fit_linear_model(data, "test"), fit_linear_model(repeated, "test")
    assert (once.num_runs, again.num_runs) == (7, 21)
    assert again.coefficients == pytest.approx(once.coefficients)
    width = [item.high[1] - item.low[1] for item in (once, again)]
    assert width[1] == pytest.approx(width[0], rel=0.02), "repeated runs do not narrow the interval"


def test_every_selection_has_a_fit_or_a_reason() -> None:
    result = list(fit_all_selections(linear(7, -8, 0.4)))
    assert len(result) == 12
    assert {item.missing_reason for item in result if item.points.include_known} == {
        "needs runs at 1 or more shares of Unknown rows (kind known), there are 0"
    }
    table = point_selections_table(known_too(linear(7, -8, 0.4)))
    assert len(table.rows) == 12
    assert not any(row[-1] for row in table.rows)
    with pytest.raises(InsufficientDataError):
        point_selections_table(StudyData())


def test_section_states_whether_the_model_fits() -> None:
    result = linear_model_section(linear(7, -8, 0.4))
    assert " In distribution, the model fits" in result.text
    assert " Out of distribution, the model fits" in result.text
    assert not any(exhibit.missing for exhibit in result.exhibits)
    assert sum(exhibit.figure is not None for exhibit in result.exhibits) == 2
    assert len(linear_model_table(linear(7, -8, 0.4)).rows) == 6
    assert linear_model_section(StudyData()).is_empty


def test_fit_to_the_papers_points() -> None:
    """Least squares on early stop and convergence, with values read from figures 3a and 4."""
    model = fit_linear_model(paper_study(), "test", PointSelection(epochs="ends"))
    assert model.num_points == 14
    assert model.coefficients == pytest.approx((40.1, 4.7, -10.5), abs=0.1)
    assert model.r_squared == pytest.approx(0.86, abs=0.01)
    with pytest.raises(InsufficientDataError, match="ood"):
        check_residuals(paper_study(), "ood")


def test_early_stop_points_are_optional_for_other_selections() -> None:
    data = linear(7, -8, 0.4)
    blind = replace(data, runs=tuple(replace(run, early_epoch=None) for run in data.runs))
    assert len(regression_sample(blind, "test").y_P) == 140
    with pytest.raises(InsufficientDataError, match="no early-stopping epoch"):
        regression_sample(blind, "test", PointSelection(epochs="ends"))
