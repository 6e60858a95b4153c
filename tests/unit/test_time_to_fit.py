"""Time to fit: survival curves, hazard ratios, log-rank tests and missing data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slick.errors import StudyError
from slick.report.data import Run, StudyData, Variant
from slick.report.measurements import InsufficientDataError
from slick.report.sections.time_to_fit import (
    category_pair_table,
    fit_time_table,
    hazard_ratio_numbers_table,
    hazard_ratio_table,
    load_time_to_fit,
    time_to_fit_section,
    times_to_fit,
)
from slick.report.statistics.hazard import (
    TimeToFit,
    hazard_ratio,
    log_rank_tests,
    pool_runs,
    select_runs,
    survival_curve,
    survival_curves,
)
from slick.storage import Folder
from slick.types import Category

WEAKLY, UNKNOWN, HIGHLY = str(Category.WEAKLY_KNOWN), str(Category.UNKNOWN), str(Category.HIGHLY_KNOWN)


def fits(
    by_category: dict[str, Sequence[int | None]], last: int, *, variant: str = "unknown-050", seed: int = 0
) -> TimeToFit:
    """Rows fitted at these epochs; None for never."""
    rows = [(name, i, epoch) for name, epochs in by_category.items() for i, epoch in enumerate(epochs)]
    return TimeToFit(
        variant=variant,
        seeds=(seed,),
        last_epoch=last,
        question_ids=np.array([f"{name}{i}" for name, i, _ in rows]),
        categories=np.array([name for name, _, _ in rows]),
        epochs=np.array([last if epoch is None else epoch for _, _, epoch in rows]),
        fitted=np.array([epoch is not None for _, _, epoch in rows]),
    )


def planted(
    num: int, ratio: float, *, last: int = 10, seeds: int = 1, rate: float = 0.15, late: float | None = None
) -> list[TimeToFit]:
    """WeaklyKnown rows fitted at `ratio` times the rate of Unknown ones, `late` times after half of the epochs."""
    rng = np.random.default_rng(0)
    half = last // 2
    result = []
    for seed in range(seeds):
        waits: dict[str, list[int | None]] = {}
        for name, early in ((UNKNOWN, 1.0), (WEAKLY, ratio)):
            after = early if late is None or name == UNKNOWN else late
            clock = rng.exponential(size=num)
            times = np.where(
                clock < half * rate * early,
                clock / (rate * early),
                half + (clock - half * rate * early) / (rate * after),
            )
            waits[name] = [epoch if epoch <= last else None for epoch in np.ceil(times).astype(int).tolist()]
        result.append(fits(waits, last, seed=seed))
    return result


def test_survival_curve_equals_hand_computed_kaplan_meier() -> None:
    curve = survival_curve(fits({HIGHLY: [1, 1, 2, 4, None]}, 5), HIGHLY)
    assert curve.epochs.tolist() == [0, 1, 2, 3, 4, 5]
    assert curve.unfitted_share == pytest.approx([1, 0.6, 0.4, 0.4, 0.2, 0.2])
    assert curve.median == 2
    # Exponential Greenwood: exp(-exp(log(-log S) -+ z sqrt(V) / log S)), V the sum of d / (n (n - d)).
    spread = np.sqrt(2 / (5 * 3) + 1 / (3 * 2)) / np.log(0.4)
    wanted = [np.exp(-np.exp(np.log(-np.log(0.4)) + sign * 1.959964 * spread)) for sign in (-1, 1)]
    assert (curve.low[2], curve.high[2]) == pytest.approx(tuple(wanted), abs=1e-5)
    assert np.isnan(curve.low[0])
    share, low, high = curve.never_fitted
    assert share == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.036224, 0.624465), abs=1e-5)  # Wilson's interval of 1 in 5


def test_pooled_runs_are_observed_up_to_the_shortest_run() -> None:
    rows = pool_runs([fits({UNKNOWN: [1, 3, None]}, 3), fits({UNKNOWN: [2, 5, 6]}, 6, seed=1)])
    assert rows.last_epoch == 3
    assert rows.fitted.tolist() == [True, True, False, True, False, False]
    assert survival_curve(rows, UNKNOWN).unfitted_share == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6])


def test_identical_seeds_do_not_narrow_the_bands() -> None:
    item = fits({UNKNOWN: [1, 2, 2, 3, 4, 4, None, None]}, 4)
    curves = [survival_curve(rows, UNKNOWN) for rows in (item, pool_runs([item] * 3))]
    assert curves[1].unfitted_share == pytest.approx(curves[0].unfitted_share)
    assert (curves[1].low[1:], curves[1].high[1:]) == (
        pytest.approx(curves[0].low[1:], abs=1e-6),
        pytest.approx(curves[0].high[1:], abs=1e-6),
    )
    assert curves[1].never_fitted == pytest.approx(curves[0].never_fitted)
    assert (curves[1].num_rows, curves[1].num_questions) == (24, 8)


def test_categories_without_rows_have_no_curve() -> None:
    rows = fits({HIGHLY: [1], UNKNOWN: [2]}, 3)
    assert [curve.category for curve in survival_curves(rows)] == [HIGHLY, UNKNOWN]
    with pytest.raises(InsufficientDataError, match="no WeaklyKnown rows"):
        survival_curve(rows, WEAKLY)


def test_interval_covers_the_simulated_hazard_ratio() -> None:
    (rows,) = planted(4000, 2.6)
    result = hazard_ratio(rows, WEAKLY, UNKNOWN)
    # The planted value lies outside in one of 20 draws; this one is fixed, and its interval is 10 % wide.
    assert result.low < 2.6 < result.high
    assert result.high / result.low < 1.15
    assert result.cox == pytest.approx(result.value, rel=0.05)
    assert result.change is not None
    assert result.change.p_value > 0.05
    assert result.num_questions == (4000, 4000)
    back = hazard_ratio(rows, UNKNOWN, WEAKLY)
    assert (back.value, back.low, back.high) == pytest.approx((1 / result.value, 1 / result.high, 1 / result.low))


def test_changing_ratio_is_detected() -> None:
    (rows,) = planted(3000, 4.0, late=1.0, rate=0.08)
    change = hazard_ratio(rows, WEAKLY, UNKNOWN).change
    assert change is not None
    # Early ends at epoch 3, where both categories have enough rows; the true change is after 5.
    assert change.early_until_epoch < 5
    assert change.early == pytest.approx(4.0, rel=0.15)
    assert 1.0 < change.late < 3.0
    assert change.p_value < 1e-3


def test_repeated_rows_do_not_narrow_the_interval() -> None:
    (rows,) = planted(150, 2.0)
    once, repeated = (hazard_ratio(pool_runs([rows] * times), WEAKLY, UNKNOWN) for times in (1, 3))
    assert repeated.value == pytest.approx(once.value, rel=1e-4)
    # Only the library's correction for few clusters sees more lines.
    assert np.log(repeated.high / repeated.low) == pytest.approx(np.log(once.high / once.low), rel=0.02)


def test_grouping_epochs_does_not_bias_the_ratio() -> None:
    (rows,) = planted(3000, 2.6, last=60, rate=0.03)
    result = hazard_ratio(rows, WEAKLY, UNKNOWN)
    assert result.low < 2.6 < result.high


@pytest.mark.parametrize(
    ("weakly", "unknown", "why"),
    [
        ([1] * 12, [3] * 12, "wholly before"),
        ([1] * 12, [None] * 12, "wholly before"),
        ([None] * 12, [None] * 12, "wholly before"),
        ([1, 2] * 4, [2, 3] * 9, "needs 10 questions"),
    ],
)
def test_unbounded_ratio_is_refused(weakly: list, unknown: list, why: str) -> None:
    with pytest.raises(InsufficientDataError, match=why):
        hazard_ratio(fits({WEAKLY: weakly, UNKNOWN: unknown}, 4), WEAKLY, UNKNOWN)


def test_log_rank_tests_per_seed_with_holm_correction() -> None:
    clear = {HIGHLY: [1] * 30, WEAKLY: [3] * 30, UNKNOWN: [3] * 29 + [4]}
    none = {HIGHLY: [1, 3] * 15, WEAKLY: [1, 3] * 15, UNKNOWN: [1, 3] * 15}
    result = {(item.first, item.second): item for item in log_rank_tests([fits(clear, 4)])}
    assert set(result) == {(HIGHLY, WEAKLY), (HIGHLY, UNKNOWN), (WEAKLY, UNKNOWN)}
    assert result[HIGHLY, WEAKLY].p_value < 1e-9
    assert result[WEAKLY, UNKNOWN].p_value > 0.1
    smallest = min(item.p_value for item in result.values())
    assert min(item.p_adjusted for item in result.values()) == pytest.approx(3 * smallest)
    both = {(item.first, item.second): item for item in log_rank_tests([fits(clear, 4), fits(none, 4, seed=1)])}
    assert both[HIGHLY, WEAKLY].p_value == pytest.approx(1.0)
    for same in ({HIGHLY: [1] * 5, UNKNOWN: [1] * 5}, {HIGHLY: [None] * 5, UNKNOWN: [None] * 5}):
        assert log_rank_tests([fits(same, 4)])[0].p_value == 1.0
    with pytest.raises(InsufficientDataError, match="fewer than two"):
        log_rank_tests([fits({UNKNOWN: [1, 2]}, 4)])


def rows_table(rows: list[tuple[str, str, str | None, int | None]]) -> pa.Table:
    columns = ("question_id", "split", "category", "first_fit_epoch")
    return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])


def run(variant: str, seed: int = 0, last: int = 3) -> Run:
    train = {("train", name): np.linspace(50, 99, last) for name in ("all", *map(str, Category))}
    return Run(
        run_id=f"{variant}-seed{seed}",
        variant=variant,
        seed=seed,
        epochs=np.arange(1, last + 1),
        accuracy=train,
        num=dict.fromkeys(train, 40),
        early_epoch=1,
    )


VARIANTS = {
    name: Variant(name=name, kind=kind, share=share, num=40)
    for name, kind, share in (("unknown-000", "unknown", 0.0), ("unknown-050", "unknown", 0.5), ("idk-050", "idk", 0.5))
}


def test_load_only_training_rows_of_the_sweep(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    table = rows_table(
        [("a", "train", UNKNOWN, 2), ("b", "train", HIGHLY, None), ("c", "test", UNKNOWN, 1), ("d", "dev", None, 1)]
    )
    for name in ("unknown-050", "idk-050"):
        study.child("runs", f"{name}-seed0").write_table("rows.parquet", table)
    (result,) = load_time_to_fit(study, [run("unknown-050"), run("idk-050"), run("unknown-000")], VARIANTS)
    assert (result.variant, result.seeds, result.last_epoch) == ("unknown-050", (0,), 3)
    assert result.question_ids.tolist() == ["a", "b"]
    assert (result.epochs.tolist(), result.fitted.tolist()) == ([2, 3], [True, False])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "train", "Odd", 1), "column category holds 'Odd'"),
        (("a", "train", None, 1), "has categories"),
        (("a", "train", UNKNOWN, 4), r"has first_fit_epoch \[4\]"),
        (("a", "train", UNKNOWN, 0), "column first_fit_epoch holds 0"),
        (("a", "test", UNKNOWN, 1), "has no rows of the train split"),
    ],
)
def test_inconsistent_rows_table_is_refused(tmp_path: Path, row: tuple, message: str) -> None:
    study = Folder(str(tmp_path))
    study.child("runs", "unknown-050-seed0").write_table("rows.parquet", rows_table([row]))
    with pytest.raises(StudyError, match=rf"rows\.parquet.* {message}.*expected.* again"):
        load_time_to_fit(study, [run("unknown-050")], VARIANTS)


def study_of(fit_times: Sequence[TimeToFit]) -> StudyData:
    variants = {name: variant for name, variant in VARIANTS.items() if variant.kind == "unknown"}
    runs = tuple(run(name, seed, 10) for name in variants for seed in (0, 1))
    return StudyData(variants=variants, runs=runs, loaded={load_time_to_fit: tuple(fit_times)})


def test_section_reports_ratio_and_never_fitted_rows() -> None:
    known = [fits({HIGHLY: [1] * 12, WEAKLY: [1, 2, 3] * 4}, 10, variant="unknown-000", seed=seed) for seed in (0, 1)]
    data = study_of([*planted(400, 2.6, seeds=2), *known])
    shown = time_to_fit_section(data)
    assert not [exhibit.missing for exhibit in shown.exhibits if exhibit.missing]
    ratio = hazard_ratio(pool_runs(select_runs(times_to_fit(data), "unknown-050")), WEAKLY, UNKNOWN)
    assert f"at {ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f}) times the rate" in shown.result
    never_fitted = survival_curve(pool_runs(select_runs(times_to_fit(data), "unknown-050")), UNKNOWN).never_fitted[0]
    assert f"{100 * never_fitted:.1f} % (" in shown.text
    ratios = {"unknown-050": ratio, "unknown-000": InsufficientDataError("no Unknown rows")}
    table = {row[0]: row for row in hazard_ratio_table(data, ratios).rows}
    assert table["50 %"][1] == "400 + 400"
    assert table["0 %"][1:] == (None,) * 7
    assert hazard_ratio_numbers_table(data, ratios).rows[0][-1] == "no Unknown rows"
    assert {(row[0], row[1]): row[4] for row in fit_time_table(data).rows}[0.0, WEAKLY] == 2
    assert [row[:2] for row in category_pair_table(data).rows] == [(WEAKLY, UNKNOWN)]


def test_section_reports_missing_rows_tables() -> None:
    for data, why in ((StudyData(), "needs"), (study_of([]), r"needs a finished run of variant unknown-050")):
        shown = time_to_fit_section(data)
        assert shown.is_empty
        assert why in str(shown.exhibits[0].missing)
        assert "times the rate" not in shown.result + shown.text
    assert "rows.parquet" in str(time_to_fit_section(study_of([])).exhibits[1].missing)
