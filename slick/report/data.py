"""`StudyData`: the runs, variants, labels and points of a study, and accuracies and differences of them. Pure.

Accuracies are percentages and differences are percentage points, as in the paper. The error of an accuracy is
binomial. The error of a difference is paired by test row if the predictions of both runs were kept. With three seeds or
more, no error is smaller than that over seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    binomial_se,
    mean_over_seeds,
    paired_se,
    seed_se,
)
from slick.storage import Folder
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions for the rows of one split at one epoch, sorted by question_id; all arrays have shape (rows,)."""

    question_ids: NDArray[np.str_]
    categories: NDArray[np.str_]
    """Empty for rows that were not annotated."""
    hit: NDArray[np.bool_]
    text: NDArray[np.object_] | None = None
    """The answers; loaded only for runs whose abstention is measured."""

    def mask(self, category: str) -> NDArray[np.bool_]:
        """True for the rows of a category, of `ANY_KNOWN`, or of `ALL_CATEGORIES`."""
        if category == ALL_CATEGORIES:
            return np.ones(len(self.hit), dtype=bool)
        return np.isin(
            self.categories, [str(known) for known in KNOWN_CATEGORIES] if category == ANY_KNOWN else category
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One fine-tuning set."""

    name: str
    kind: str
    """`unknown` (the sweep), `known`, `category`, `natural`, `idk`, `concentrated`, `weighted` or
    `p-correct`."""
    share: float | None
    """Requested share of Unknown rows in [0, 1]; for kind `known`, that of the set that its Known rows come from."""
    num: int
    relations: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """relation -> category -> number of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished fine-tuning run and its accuracy at every epoch that was evaluated."""

    run_id: str
    variant: str
    seed: int
    epochs: NDArray[np.int64]
    """Shape (E,), ascending, from 1."""
    accuracy: Mapping[tuple[str, str], NDArray[np.float64]]
    """(split, category) -> percentages of shape (E,); NaN if not evaluated at that epoch."""
    num: Mapping[tuple[str, str], int]
    """(split, category) -> number of rows behind each percentage."""
    early_epoch: int | None
    """None if there were no dev rows."""
    predictions: Mapping[tuple[int, str], Predictions] = field(default_factory=dict)
    """(epoch, split) -> rows, for the training lengths of the report and the early-stopping epoch."""

    @property
    def is_tested_every_epoch(self) -> bool:
        """Whether the test and out-of-distribution questions were evaluated after every epoch."""
        curves = (curve for (split, _), curve in self.accuracy.items() if split in ("test", "ood"))
        return not any(np.isnan(curve).any() for curve in curves)

    def epoch(self, checkpoint: CheckpointRef) -> int:
        """The epoch of a checkpoint.

        Raises:
            InsufficientDataError: early stop of a run without dev rows.
        """
        if isinstance(checkpoint, int):
            return checkpoint
        if checkpoint == CONVERGENCE:
            return int(self.epochs[-1])
        if self.early_epoch is None:
            raise InsufficientDataError(f"run {self.run_id} has no dev rows, so no early-stopping epoch")
        return self.early_epoch

    def accuracy_at(self, checkpoint: CheckpointRef, split: str, category: str = ALL_CATEGORIES) -> float:
        """Accuracy in percent at one checkpoint.

        Raises:
            InsufficientDataError: it was not measured.
        """
        epoch = self.epoch(checkpoint)
        curve = self.accuracy.get((split, category))
        values = [] if curve is None else curve[self.epochs == epoch].tolist()
        if not values or np.isnan(values[0]):
            raise InsufficientDataError(
                f"run {self.run_id} has no {split} accuracy of {category} rows at epoch {epoch}"
            )
        return float(values[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyData:
    """The data of a study that findings and sections share. Sections load their own data through `load_cached`."""

    study: Folder | None = None
    """The study's folder; None for data without one, such as the paper's numbers."""
    config: ReportConfig = field(default_factory=ReportConfig)
    counts: Mapping[tuple[str, str, str], Mapping[str, int]] = field(default_factory=dict)
    """(relation, domain, split) -> category -> number of questions."""
    filter_counts: Mapping[str, Mapping[str, int]] | None = None
    """Questions that pass the filters, by split (train, test, ood) and relation."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    points: tuple[Mapping[str, Any], ...] = ()
    """Rows of sweep/points.parquet."""
    durations: tuple[int, ...] = ()
    """Fixed training lengths in epochs, ascending; the last is the length of the shortest run."""
    idk_phrase: str = "I don't know"
    loaded: dict[Callable[..., Any], Any] = field(default_factory=dict)
    """Results of `load_cached` by loader."""
    load_arguments: dict[Callable[..., Any], tuple[object, ...]] = field(default_factory=dict)
    """Arguments of `load_cached` by loader."""

    def load_cached(
        self, load: Callable[Concatenate[Folder, P], T], missing: T, /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Data that a section or finding loads itself: loaded on first use, then cached by loader.

        Args:
            load: a function of the study's folder and of the other arguments.
            missing: returned if there is no folder.

        Raises:
            ValueError: the loader was called with other arguments before.
        """
        if load not in self.loaded:
            self.loaded[load] = missing if self.study is None else load(self.study, *args, **kwargs)
        arguments = (*args, *kwargs.items())
        if self.load_arguments.setdefault(load, arguments) != arguments:
            raise ValueError(f"{load.__qualname__} was called with other arguments before; use one loader for each")
        return cast(T, self.loaded[load])

    def runs_for(self, name: str) -> tuple[Run, ...]:
        """The finished runs of a variant, by seed.

        Raises:
            InsufficientDataError: there is none.
        """
        runs = tuple(run for run in self.runs if run.variant == name)
        if not runs:
            raise InsufficientDataError(f"needs a finished run of variant {name}")
        return runs

    def has_run(self, name: str) -> bool:
        """Whether the variant has a finished run."""
        return any(run.variant == name for run in self.runs)

    def sweep_variants(self, kind: str = "unknown", min_shares: int = 1) -> list[tuple[float, str]]:
        """(share, variant) of the finished sweep variants of a kind, by ascending share of Unknown rows.

        Raises:
            InsufficientDataError: there are fewer than `min_shares`.
        """
        sweep = sorted(
            (variant.share, variant.name)
            for variant in self.variants.values()
            if variant.kind == kind and variant.share is not None and self.has_run(variant.name)
        )
        if len(sweep) < min_shares:
            raise InsufficientDataError(
                f"needs runs at {min_shares} or more shares of Unknown rows (kind {kind}), there are {len(sweep)}"
            )
        return sweep

    def accuracy(
        self, name: str, checkpoint: CheckpointRef, split: str = "test", category: str = ALL_CATEGORIES
    ) -> Measurement:
        """Accuracy in percent, averaged over seeds.

        Raises:
            InsufficientDataError: it was not measured.
        """
        runs = self.runs_for(name)
        percentages = [run.accuracy_at(checkpoint, split, category) for run in runs]
        return mean_over_seeds(percentages, runs[0].num[split, category])

    def difference(
        self,
        first: tuple[str, CheckpointRef],
        second: tuple[str, CheckpointRef],
        split: str = "test",
        category: str = ALL_CATEGORIES,
    ) -> Measurement:
        """Accuracy of `first` minus that of `second` on the same rows, in points; each is (variant, checkpoint).

        Raises:
            InsufficientDataError: one of them was not measured.
        """
        return self.contrast([(1.0, *first), (-1.0, *second)], split, category)

    def contrast(
        self, terms: Sequence[tuple[float, str, CheckpointRef]], split: str = "test", category: str = ALL_CATEGORIES
    ) -> Measurement:
        """A weighted sum of accuracies, paired by question: a difference, a mean of differences or a slope.

        Its error is that of the mean over the questions of the weighted sum of their answers, if all predictions are
        kept. Half a question that improves and half a question that worsens are added (Agresti and Min 2005,
        https://doi.org/10.1002/sim.1781), so that a few questions that do not change do not have an error of 0. Without
        predictions, errors are binomial and independent. With `MIN_SEEDS` seeds or more that all variants have, it is
        never smaller than the error over seeds.

        Args:
            terms: (weight, variant, checkpoint) of each accuracy.
            split: of the questions.
            category: of the questions.

        Returns:
            In percentage points.

        Raises:
            InsufficientDataError: one of the accuracies was not measured.
        """
        merged: dict[tuple[str, CheckpointRef], float] = {}
        for weight, name, checkpoint in terms:
            merged[name, checkpoint] = merged.get((name, checkpoint), 0.0) + weight
        terms = [(weight, *key) for key, weight in merged.items()]
        cells = [self.accuracy(name, checkpoint, split, category) for _, name, checkpoint in terms]
        weights = np.array([weight for weight, *_ in terms])
        rows = [self.mean_correct(name, checkpoint, split, category) for _, name, checkpoint in terms]
        kept = [row for row in rows if row is not None]
        if len(kept) == len(rows) and len({len(row) for row in kept}) == 1 and len(kept[0]) > 1:
            se = paired_se(100.0 * np.einsum("t,tq->q", weights, np.stack(kept)), 100.0 * _scale(weights))
        else:
            num = [self.runs_for(name)[0].num[split, category] for _, name, _ in terms]
            errors = [binomial_se(cell.value, rows) for cell, rows in zip(cells, num, strict=True)]
            se = float(np.sqrt(np.sum((weights * errors) ** 2)))
        by_seed = self._contrast_by_seed(terms, split, category)
        if len(by_seed) >= MIN_SEEDS:
            se = max(se, seed_se(by_seed))
        value = float(sum(weight * cell.value for weight, cell in zip(weights.tolist(), cells, strict=True)))
        return Measurement(value, se, min(cell.num_seeds for cell in cells))

    def mean_correct(
        self, name: str, checkpoint: CheckpointRef, split: str, category: str = ALL_CATEGORIES
    ) -> NDArray[np.float64] | None:
        """Share of seeds whose answer is correct, of shape (rows,), by question_id.

        None if the predictions of a seed were not kept, or are of other questions.
        """
        runs = self.runs_for(name)
        predictions = [rows for run in runs if (rows := run.predictions.get((run.epoch(checkpoint), split)))]
        if len(predictions) < len(runs):
            return None
        ids = predictions[0].question_ids
        if any(not np.array_equal(rows.question_ids, ids) for rows in predictions):
            return None
        mask = predictions[0].mask(category)
        return np.asarray(np.mean([rows.hit[mask] for rows in predictions], axis=0), dtype=np.float64)

    def _contrast_by_seed(
        self, terms: Sequence[tuple[float, str, CheckpointRef]], split: str, category: str
    ) -> NDArray[np.float64]:
        by_term = [
            {run.seed: weight * run.accuracy_at(checkpoint, split, category) for run in self.runs_for(name)}
            for weight, name, checkpoint in terms
        ]
        shared = set.intersection(*(set(values) for values in by_term))
        return np.array([sum(values[seed] for values in by_term) for seed in sorted(shared)])

    def mean_curve(
        self, name: str, split: str, category: str = ALL_CATEGORIES
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(epochs, mean percentage over seeds), both as long as the shortest run.

        Raises:
            InsufficientDataError: it was not measured.
        """
        runs = self.runs_for(name)
        curves = [run.accuracy[split, category] for run in runs if (split, category) in run.accuracy]
        if len(curves) < len(runs):
            raise InsufficientDataError(f"the runs of {name} have no {split} accuracy of {category} rows")
        length = min(map(len, curves))
        return runs[0].epochs[:length], np.asarray(np.mean([curve[:length] for curve in curves], axis=0))

    def mean_epoch(self, name: str, checkpoint: CheckpointRef) -> float:
        """The epoch of a checkpoint, averaged over seeds."""
        return float(np.mean([run.epoch(checkpoint) for run in self.runs_for(name)]))


def share_nearest_to_half(shares: Iterable[float]) -> float:
    """The share nearest to 50 %, which sections show if there are several; 0.5 without any."""
    return min(shares, key=lambda share: abs(share - 0.5), default=0.5)


def _scale(weights: NDArray[np.float64]) -> float:
    """The size of a change of one question in a weighted sum: 1 for a difference of two accuracies."""
    return float(np.sqrt(np.sum(weights**2) / 2))
