"""Variance of test accuracy explained by each axis of the grid, and the response surface over share and epochs. Pure.

The share of variance is eta squared: the sum of squares of an axis over the total sum of squares. On a balanced grid
(every combination equally often) these are one-way sums of squares, and the axes and the residual add up to 1. On any
other grid an axis gets what the additive model loses without it; variance that two axes explain only jointly belongs to
neither. There are no p-values, because the points of one training run are not independent.

Source: R. A. Fisher 1925, Statistical Methods for Research Workers (sums of squares); drop-one sums of squares are type
II without interactions, as in J. Fox 2016, Applied Regression Analysis, section 8.2.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.recommendation import points_with_common_settings

SHARE_AXIS, EPOCHS_AXIS, POLICY_AXIS, SEED_AXIS = "share of Unknown rows", "epoch budget", "policy", "seed"
DEFAULT_LEVEL = "the sweep's own"
"""Level of a training setting that a point does not override."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisEffect:
    """The effect of one axis on test accuracy."""

    axis: str
    num_levels: int
    share: float | None
    """Share of the variance, eta squared, in [0, 1]."""
    effect_size: float | None
    """Points of accuracy between the best and the worst level, with the other axes fixed."""
    missing_reason: str = ""
    """Why there is no estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceDecomposition:
    """The effects of all axes and the residual."""

    axes: tuple[AxisEffect, ...]
    residual_share: float
    """Share of the variance that the additive model does not explain: interactions and noise."""
    balanced: bool
    """False: the shares are drop-one shares and need not add up to 1 with the residual."""
    num_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSurface:
    """Mean test accuracy after a fixed number of epochs; S shares of Unknown rows, E epochs, both ascending."""

    shares: tuple[float, ...]
    epochs: tuple[int, ...]
    accuracy_SE: NDArray[np.float64]
    """Percent, averaged over seeds; NaN without a point."""
    num_seeds_SE: NDArray[np.int64]


def axis_effects(data: StudyData) -> VarianceDecomposition:
    """The axes of a sweep: share of Unknown rows, epoch budget, policy, seed, and every training setting that varies.

    `fixed` at the end of its budget is one policy for all budgets. Points with training settings that were not run at
    every share are excluded.

    Raises:
        InsufficientDataError: there are fewer than two points, or all have the same accuracy.
    """
    shares = _sweep_shares(data)
    rows = [p for p in points_with_common_settings(data) if p["variant"] in shares and p.get("test_all") is not None]
    settings = [dict(part.split("=", 1) for part in (p.get("settings") or "").split(";") if part) for p in rows]
    levels: dict[str, list[Hashable]] = {
        SHARE_AXIS: [shares[p["variant"]] for p in rows],
        EPOCHS_AXIS: [int(p["epochs"]) for p in rows],
        POLICY_AXIS: ["fixed" if p["policy"] == f"fixed({p['epochs']})" else str(p["policy"]) for p in rows],
        SEED_AXIS: [int(p["seed"]) for p in rows],
    }
    for name in sorted({name for changes in settings for name in changes}):
        levels[name] = [changes.get(name, DEFAULT_LEVEL) for changes in settings]
    return eta_squared_by_axis(levels, np.array([100.0 * p["test_all"] for p in rows]))


def eta_squared_by_axis(levels: Mapping[str, Sequence[Hashable]], values: NDArray[np.float64]) -> VarianceDecomposition:
    """Eta squared of each axis over N points.

    Args:
        levels: axis -> the N levels of the points.
        values: shape (N,).

    Raises:
        InsufficientDataError: there are fewer than two points, or all values are equal.
    """
    if len(values) < 2:
        raise InsufficientDataError(
            "needs a finished sweep with two points or more over variants with a share of Unknown rows"
        )
    if float(np.ptp(values)) == 0.0:
        raise InsufficientDataError("the test accuracy is the same at every point of the sweep")
    total = float(((values - values.mean()) ** 2).sum())
    columns = {axis: _dummies(of_axis) for axis, of_axis in levels.items()}
    full = np.column_stack([np.ones(len(values)), *columns.values()])
    beta, residual, rank = _least_squares(full, values)
    effects, start = [], 1
    for axis, dummies in columns.items():
        width = dummies.shape[1]
        selected = slice(start, start + width)
        start += width
        _, residual_without, rank_without = _least_squares(np.delete(full, selected, axis=1), values)
        share = effect_size = None
        missing_reason = "" if width else "it has one level only"
        if width and rank - rank_without < width:
            missing_reason = "it cannot be told apart from the other axes"
        elif width:
            share, effect_size = max(residual_without - residual, 0.0) / total, float(np.ptp([0.0, *beta[selected]]))
        effects.append(
            AxisEffect(
                axis=axis, num_levels=width + 1, share=share, effect_size=effect_size, missing_reason=missing_reason
            )
        )
    cells = Counter(zip(*levels.values(), strict=True))
    balanced = len(cells) == prod(axis.num_levels for axis in effects) and len(set(cells.values())) == 1
    return VarianceDecomposition(
        axes=tuple(effects), residual_share=residual / total, balanced=balanced, num_points=len(values)
    )


def response_surface(data: StudyData, settings: str = "") -> ResponseSurface:
    """Mean test accuracy after each fixed number of epochs, at each share of Unknown rows.

    Args:
        data: the study; only its points and variants are read.
        settings: training settings of the points, as in points.parquet; empty for the defaults of the sweep.

    Raises:
        InsufficientDataError: there are fewer than two shares or two numbers of epochs.
    """
    shares = _sweep_shares(data)
    cells: dict[tuple[float, int], dict[int, float]] = {}
    for point in data.points:
        wanted = (f"fixed({point['stop_epoch']})", settings)
        if point["variant"] not in shares or (point["policy"], point.get("settings") or "") != wanted:
            continue
        if point.get("test_all") is not None:
            cell = cells.setdefault((shares[point["variant"]], int(point["stop_epoch"])), {})
            cell[int(point["seed"])] = 100.0 * point["test_all"]
    rows, columns = sorted({share for share, _ in cells}), sorted({epochs for _, epochs in cells})
    if min(len(rows), len(columns)) < 2:
        raise InsufficientDataError(
            "needs points of policy fixed at two shares of Unknown rows and two epoch budgets or more, there are "
            f"{len(rows)} and {len(columns)}"
        )
    seeds = [[cells.get((share, epochs), {}) for epochs in columns] for share in rows]
    return ResponseSurface(
        shares=tuple(rows),
        epochs=tuple(columns),
        accuracy_SE=np.array([[np.mean([*cell.values()]) if cell else np.nan for cell in row] for row in seeds]),
        num_seeds_SE=np.array([[len(cell) for cell in row] for row in seeds]),
    )


def _sweep_shares(data: StudyData) -> dict[str, float]:
    """Variant of the %Unknown sweep to its share of Unknown rows."""
    return {v.name: v.share for v in data.variants.values() if v.kind == "unknown" and v.share is not None}


def _dummies(levels: Sequence[Hashable]) -> NDArray[np.float64]:
    """Dummy variables of shape (N, levels - 1): one column for each level but the first."""
    names = list(dict.fromkeys(levels))
    return np.array([[float(level == name) for name in names[1:]] for level in levels]).reshape(len(levels), -1)


def _least_squares(design: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, int]:
    """Coefficients, sum of squared residuals, rank."""
    beta, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return np.asarray(beta, dtype=np.float64), float(((values - design @ beta) ** 2).sum()), int(rank)
