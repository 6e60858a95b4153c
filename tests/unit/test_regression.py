"""Linear models with known coefficients, compared with scipy and with written-out formulas."""

import numpy as np
import pytest
from scipy.stats import linregress

from slick.report.measurements import InsufficientDataError
from slick.report.statistics.regression import LinearFit, least_squares

PLANTED = (36.9, 7.3, -8.3)


def fit_planted(seed: int) -> LinearFit:
    rng = np.random.default_rng(seed)
    x = rng.random((350, 2))
    y = PLANTED[0] + x @ PLANTED[1:] + rng.normal(0, 0.5, 350)
    return least_squares(x, y, np.repeat([f"run{i}" for i in range(14)], 25))


def test_planted_coefficients_are_recovered() -> None:
    fit = fit_planted(0)
    assert fit.coefficients == pytest.approx(PLANTED, abs=0.5)
    assert fit.r_squared > 0.9
    assert (fit.num_points, fit.num_runs) == (350, 14)
    assert max(fit.p_values) < 1e-6


def test_intervals_have_nominal_coverage() -> None:
    fits = [fit_planted(seed) for seed in range(300)]
    for i, value in enumerate(PLANTED):
        covered = np.mean([fit.low[i] < value < fit.high[i] for fit in fits])
        assert 0.90 <= covered <= 0.99  # nominally 0.95; clustered intervals of 14 runs are slightly too narrow


def test_estimates_agree_with_scipy_on_one_regressor() -> None:
    rng = np.random.default_rng(2)
    x, groups = rng.random(60), np.array([f"run{i}" for i in range(60)])
    y = 2.0 + 3.0 * x + rng.normal(0, 0.2, 60)
    fit, reference = least_squares(x[:, None], y, groups), linregress(x, y)
    assert fit.coefficients == pytest.approx((reference.intercept, reference.slope))
    assert fit.r_squared == pytest.approx(reference.rvalue**2)


def test_correlated_points_of_a_run_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    runs = np.repeat(np.arange(10), 20)
    x = rng.random(10)[runs] + 0.01 * rng.random(200)
    y = 40 + x + rng.normal(0, 1, 10)[runs]
    clustered = least_squares(x[:, None], y, runs.astype(str))
    unclustered = least_squares(x[:, None], y, np.arange(200).astype(str))
    assert clustered.high[1] - clustered.low[1] > 2 * (unclustered.high[1] - unclustered.low[1])


@pytest.mark.parametrize(
    ("x", "groups"),
    [
        (np.ones((40, 2)), np.repeat(["a", "b", "c", "d"], 10)),
        (np.random.default_rng(0).random((40, 2)), np.repeat(["a", "b"], 20)),
        (np.random.default_rng(0).random((3, 2)), np.array(["a", "b", "c"])),
    ],
)
def test_insufficient_points_are_refused(x: np.ndarray, groups: np.ndarray) -> None:
    with pytest.raises(InsufficientDataError):
        least_squares(x, np.arange(len(x), dtype=float), groups)


def test_intervals_equal_those_of_the_formulas() -> None:
    """Coefficients, CR1 errors and t(G - 1) intervals, computed with an explicit implementation of the formulas."""
    rng = np.random.default_rng(11)
    x, groups = rng.random((48, 2)), np.repeat([f"run{i}" for i in range(6)], 8)
    y = 40 + x @ np.array([7.0, -8.0]) + np.repeat(rng.normal(0, 1, 6), 8) + rng.normal(0, 0.5, 48)
    fit = least_squares(x, y, groups)
    expected = {
        "coefficients": (40.151274272168244, 6.506707925301033, -8.228497010771981),
        "low": (39.74224158767405, 5.8954817077709, -8.897490357822262),
        "high": (40.56030695666244, 7.1179341428311655, -7.559503663721701),
        "p_values": (1.855098651358657e-11, 1.2194277489202829e-06, 5.943054149295798e-07),
    }
    for name, values in expected.items():
        assert getattr(fit, name) == pytest.approx(values, abs=1e-9, rel=1e-9)
    assert fit.r_squared == pytest.approx(0.9635554224340775, abs=1e-9)
