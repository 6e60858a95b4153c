"""All that the analysis knows of a study, loaded once, and the few questions asked of it everywhere. Pure.

Accuracies are percentages and their differences are points, as in the paper. The error of a single accuracy is the
binomial one; differences are paired over the same test rows where both sides kept their predictions. With three seeds
or more neither error is smaller than the one over seeds, nor is it that alone: three trainings that agree say nothing
of what other questions would have brought.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from slick.report.config import ReportConfig
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    MIN_SEEDS,
    CheckpointRef,
    InsufficientDataError,
    Measurement,
)
from slick.storage import Folder
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Rows of one split as answered at one epoch, sorted by question_id; all arrays have shape (rows,)."""

    question_ids: NDArray[np.str_]
    categories: NDArray[np.str_]
    """Empty where the row was not annotated."""
    hit: NDArray[np.bool_]
    text: NDArray[np.object_] | None = None
    """The answers; kept only where abstention is measured."""

    def mask(self, category: str) -> NDArray[np.bool_]:
        """True for the rows of a category, of `POOLED`, or of `ALL_CATEGORIES`."""
        if category == ALL_CATEGORIES:
            return np.ones(len(self.hit), dtype=bool)
        wanted = [str(known) for known in KNOWN_CATEGORIES] if category == ANY_KNOWN else [category]
        return np.isin(self.categories, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One fine-tuning set as drawn."""

    name: str
    kind: str
    """`unknown` (the sweep), `known`, `category`, `natural`, `idk` or `concentrated`."""
    share: float | None
    """Share of Unknown rows asked for, in [0, 1]; for kind `known`, that of the set its Known rows come from."""
    num: int
    relations: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """relation to category to number of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished fine-tuning run: its accuracy at every epoch."""

    run_id: str
    variant: str
    seed: int
    epochs: NDArray[np.int64]
    """Shape (E,), ascending, from 1."""
    accuracy: Mapping[tuple[str, str], NDArray[np.float64]]
    """(split, category) to percentages of shape (E,); NaN where not evaluated."""
    num: Mapping[tuple[str, str], int]
    """(split, category) to the number of rows behind each percentage."""
    early_epoch: int | None
    """None if there were no dev rows."""
    predictions: Mapping[tuple[int, str], Predictions] = field(default_factory=dict)
    """(epoch, split) to rows, for those epochs whose predictions the analysis needs."""

    def epoch(self, checkpoint: CheckpointRef) -> int:
        """The number of the epoch that `when` means."""
        if isinstance(checkpoint, int):
            return checkpoint
        if checkpoint == CONVERGENCE:
            return int(self.epochs[-1])
        if self.early_epoch is None:
            raise InsufficientDataError(f"run {self.run_id} has no dev rows, so no early-stopping epoch")
        return self.early_epoch

    def accuracy_at(self, checkpoint: CheckpointRef, split: str, category: str = ALL_CATEGORIES) -> float:
        """One percentage.

        Raises:
            NotTestable: it was not measured.
        """
        epoch = self.epoch(checkpoint)
        curve = self.accuracy.get((split, category))
        found = np.flatnonzero(self.epochs == epoch)
        if curve is None or not len(found) or np.isnan(curve[found[0]]):
            raise InsufficientDataError(
                f"run {self.run_id} has no {split} accuracy of {category} rows at epoch {epoch}"
            )
        return float(curve[found[0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyData:
    """What all findings and sections read of a study: counts, variants, runs and points.

    What a single section needs beyond that it loads itself, through `part`.
    """

    study: Folder | None = None
    """The study's folder; None for numbers without one, such as the paper's."""
    config: ReportConfig = field(default_factory=ReportConfig)
    counts: Mapping[tuple[str, str, str], Mapping[str, int]] = field(default_factory=dict)
    """(relation, domain, split) to category to number of questions."""
    filter_counts: Mapping[str, Mapping[str, int]] | None = None
    """Rows left by the filters: train, test and ood, by relation."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    points: tuple[Mapping[str, Any], ...] = ()
    """Rows of sweep/points.parquet."""
    durations: tuple[int, ...] = ()
    """Fixed training lengths in epochs, ascending; the last is the end of the shortest run."""
    idk_phrase: str = "I don't know"
    parts: dict[Callable[..., Any], Any] = field(default_factory=dict)
    """Results of `part` by loader."""
    part_arguments: dict[Callable[..., Any], tuple[object, ...]] = field(default_factory=dict)
    """Arguments of `part` by loader."""

    def part(self, load: Callable[Concatenate[Folder, P], T], missing: T, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Data that a section or finding loads itself: loaded on first use, then cached by loader.

        Args:
            load: a function of the study's folder and of the other arguments.
            missing: returned if there is no folder.

        Raises:
            ValueError: the loader was called with other arguments before.
        """
        if load not in self.parts:
            self.parts[load] = missing if self.study is None else load(self.study, *args, **kwargs)
        arguments = (*args, *kwargs.items())
        if self.part_arguments.setdefault(load, arguments) != arguments:
            raise ValueError(f"{load.__qualname__} was called with other arguments before; use one loader for each")
        return cast(T, self.parts[load])

    def runs_for(self, name: str) -> tuple[Run, ...]:
        """The finished runs of a variant, by seed.

        Raises:
            NotTestable: there is none.
        """
        found = tuple(run for run in self.runs if run.variant == name)
        if not found:
            raise InsufficientDataError(f"needs a finished run of variant {name}")
        return found

    def has_run(self, name: str) -> bool:
        """True if the variant has a finished run."""
        return any(run.variant == name for run in self.runs)

    def sweep_variants(self, kind: str = "unknown", min_shares: int = 1) -> list[tuple[float, str]]:
        """(share, variant) of the finished sweep variants of a kind, by ascending share of Unknown rows.

        Raises:
            NotTestable: there are fewer than `least`.
        """
        found = sorted(
            (variant.share, variant.name)
            for variant in self.variants.values()
            if variant.kind == kind and variant.share is not None and self.has_run(variant.name)
        )
        if len(found) < min_shares:
            raise InsufficientDataError(
                f"needs runs at {min_shares} or more shares of Unknown rows (kind {kind}), there are {len(found)}"
            )
        return found

    def accuracy(
        self, name: str, checkpoint: CheckpointRef, split: str = "test", category: str = ALL_CATEGORIES
    ) -> Measurement:
        """Accuracy in percent, averaged over seeds.

        Raises:
            NotTestable: it was not measured.
        """
        runs = self.runs_for(name)
        values = np.array([run.accuracy_at(checkpoint, split, category) for run in runs])
        rows = runs[0].num[split, category]
        se = binomial_se(float(values.mean()), rows)
        if len(values) >= MIN_SEEDS:
            se = max(se, seed_se(values))
        return Measurement(float(values.mean()), se, len(values))

    def difference(
        self,
        first: tuple[str, CheckpointRef],
        second: tuple[str, CheckpointRef],
        split: str = "test",
        category: str = ALL_CATEGORIES,
    ) -> Measurement:
        """Accuracy of `first` minus that of `second` on the same rows, each a (variant, when), in points.

        Raises:
            NotTestable: one of them was not measured.
        """
        a, b = self.accuracy(*first, split, category), self.accuracy(*second, split, category)
        rows_a = self.mean_correct(*first, split, category)
        rows_b = self.mean_correct(*second, split, category)
        if rows_a is not None and rows_b is not None and len(rows_a) == len(rows_b) > 1:
            gaps = 100.0 * (rows_a - rows_b)
            se = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
        else:
            rows = self.runs_for(first[0])[0].num[split, category]
            se = float(np.hypot(binomial_se(a.value, rows), binomial_se(b.value, rows)))
        by_seed = self._differences_by_seed(first, second, split, category)
        if len(by_seed) >= MIN_SEEDS:
            se = max(se, seed_se(by_seed))
        return Measurement(a.value - b.value, se, min(a.num_seeds, b.num_seeds))

    def mean_correct(
        self, name: str, checkpoint: CheckpointRef, split: str, category: str = ALL_CATEGORIES
    ) -> NDArray[np.float64] | None:
        """Share of seeds that answered each row right, by question_id; None if not all predictions were kept."""
        predictions = [run.predictions.get((run.epoch(checkpoint), split)) for run in self.runs_for(name)]
        whole = [one for one in predictions if one is not None]
        if not whole or len(whole) < len(predictions):
            return None
        first = whole[0]
        if any(not np.array_equal(one.question_ids, first.question_ids) for one in whole):
            return None
        mask = first.mask(category)
        return np.asarray(np.mean([one.hit[mask] for one in whole], axis=0), dtype=np.float64)

    def _differences_by_seed(
        self, first: tuple[str, CheckpointRef], second: tuple[str, CheckpointRef], split: str, category: str
    ) -> NDArray[np.float64]:
        a = {run.seed: run.accuracy_at(first[1], split, category) for run in self.runs_for(first[0])}
        b = {run.seed: run.accuracy_at(second[1], split, category) for run in self.runs_for(second[0])}
        return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])

    def mean_curve(
        self, name: str, split: str, category: str = ALL_CATEGORIES
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(epochs, mean percentage over seeds), as long as the shortest run.

        Raises:
            NotTestable: it was not measured.
        """
        runs = self.runs_for(name)
        curves = [run.accuracy.get((split, category)) for run in runs]
        whole = [curve for curve in curves if curve is not None]
        if len(whole) < len(curves):
            raise InsufficientDataError(f"the runs of {name} have no {split} accuracy of {category} rows")
        length = min(len(curve) for curve in whole)
        return runs[0].epochs[:length], np.asarray(np.mean([curve[:length] for curve in whole], axis=0))

    def mean_epoch(self, name: str, checkpoint: CheckpointRef) -> float:
        """The epoch that `when` means, averaged over seeds."""
        return float(np.mean([run.epoch(checkpoint) for run in self.runs_for(name)]))


def seed_se(values: NDArray[np.float64]) -> float:
    """Standard error of the mean of one value a seed."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def binomial_se(percent: float, rows: int) -> float:
    """Standard error of a percentage, in points.

    Half a hit and half a miss are added, so that 0 % and 100 % of few rows do not count as certain.
    """
    share = (percent / 100.0 * rows + 0.5) / (rows + 1)
    return float(100.0 * np.sqrt(share * (1.0 - share) / rows))
