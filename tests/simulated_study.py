"""Simulated studies: the paper's accuracies, or changed ones, with an answer to every question.

A question is answered right if a normal variable exceeds the quantile of the accuracy on its category. The variable is
the weighted sum of a part that all models share, a part of the training run, and a part of the epoch, so that answers
of one question correlate, and differences of accuracies are paired as in a real study.

The paper prints no predictions. Two facts bound the correlations:

- Appendix I: D_HighlyKnown's loss of 0.5 points is significant at p < 0.01, so its error is at most 0.19 points.
  D_MaybeKnown's of 0.4 points is not, so its error is at least 0.21 points. Within a run, the correlations below agree
  with that.
- The correlation between models is that of a demo study (0.62 to 0.66 within a category).
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.findings.learning_rate import load_learning_rate
from slick.report.measurements import ANY_KNOWN
from slick.report.statistics.p_true import PrefixLabels, PTrueScores, load_p_true, load_prefix_labels
from slick.types import ALL_CATEGORIES, Category
from tests.unit.paper_numbers import (
    CONVERGENCE_ACCURACY_KNOWN_ONLY,
    DATASET_SIZE,
    DURATIONS,
    EARLY_STOP_ACCURACY,
    EARLY_STOP_ACCURACY_KNOWN_ONLY,
    FIGURE_1_DEV,
    FIGURE_1_EPOCHS,
    FIGURE_1_KNOWN,
    FIGURE_1_UNKNOWN,
    FITTED_KNOWN,
    FITTED_UNKNOWN,
    FIXED_LENGTH_ACCURACY,
    NUM_TEST,
    PAPER_SHARES,
    TABLE_2_ACCURACY,
    TABLE_8,
    paper_study,
)

CATEGORIES = tuple(map(str, Category))
PAPER_COUNTS = np.array([NUM_TEST[category] for category in CATEGORIES])
NUM_DEV = 10461
EARLY_EPOCH, EARLY_EPOCH_UNKNOWN, LAST_EPOCH = 9, 5, 50
BETWEEN_RUNS = 0.63
WITHIN_RUN = {"highlyknown": 0.985, "maybeknown": 0.90}
WITHIN_OTHER_RUNS = 0.93
P_TRUE_SEPARATION = 0.95
"""Difference of the mean P(True) score of right and wrong answers, in standard deviations: an AUROC of 75 %."""
NUM_SETS = 10
LEARNING_RATES = (1e-5, 1e-4)

Rates = NDArray[np.float64]
"""Percentages of right answers by category, shape (4,)."""


@dataclass(kw_only=True)
class VariantRates:
    """What is expected of one variant's run; percentages."""

    kind: str
    share: float | None
    early_epoch: int
    test: dict[int, Rates] = field(default_factory=dict)
    """By epoch."""
    dev: dict[int, float] = field(default_factory=dict)
    train: dict[str, dict[int, float]] = field(default_factory=dict)
    """Category -> epoch -> percentage of fitted rows."""
    answered: dict[int, float] | None = None
    """For the relabelled variant: percentage of wrong answers that are given, by epoch; the others are abstentions."""
    answers_at_random: bool = False
    """Whether right answers are withheld as often as wrong ones."""


@dataclass(kw_only=True)
class StudyRates:
    """What is expected of a study."""

    variants: dict[str, VariantRates]
    other_rate: dict[int | str, dict[float, float]]
    """At the other learning rate: epoch, or `best_dev`, to share to accuracy."""
    p_true_separation: float = P_TRUE_SEPARATION
    p_true_of_label: bool = False
    """Whether P(True) is as good as SliCK: each is a noisy copy of the same truth."""
    linear: tuple[float, float, float] = (36.9, 7.3, -8.3)
    """Coefficients of the linear model in distribution."""
    linear_ood: tuple[float, float, float] = (36.2, 3.2, -3.0)


@dataclass(frozen=True, kw_only=True)
class StudySize:
    """Numbers of questions and rows."""

    num_test: int
    num_dev: int
    num_train: int


PAPER_SIZE = StudySize(num_test=10481, num_dev=NUM_DEV, num_train=DATASET_SIZE)
DEMO_SIZE = StudySize(num_test=1200, num_dev=480, num_train=340)


def full_accuracy(rates: Rates) -> float:
    """Accuracy on all questions, with the paper's share of each category."""
    return float(rates @ PAPER_COUNTS / PAPER_COUNTS.sum())


def shift_to(rates: Rates, full: float) -> Rates:
    """The rates, shifted by the same number of standard deviations in each category, with a given overall accuracy."""
    quantiles = norm.ppf(np.clip(rates / 100, 1e-3, 1 - 1e-3))

    def shifted(delta: float) -> Rates:
        return np.asarray(100 * norm.cdf(quantiles + delta))

    return shifted(brentq(lambda delta: full_accuracy(shifted(delta)) - full, -4, 4))


def paper_rates() -> StudyRates:
    """The paper's numbers. Where it prints overall accuracies only, categories are shifted from D_Natural's."""
    variants: dict[str, VariantRates] = {}
    natural = np.array(TABLE_2_ACCURACY["natural"][0][1:])
    for i, share in enumerate(PAPER_SHARES):
        name = f"unknown-{round(100 * share):03d}"
        early = EARLY_EPOCH_UNKNOWN if share == 1 else EARLY_EPOCH
        rates = VariantRates(kind="unknown", share=share, early_epoch=early)
        rates.test[early] = shift_to(natural, EARLY_STOP_ACCURACY[i])
        rates.test |= {epoch: shift_to(natural, FIXED_LENGTH_ACCURACY[epoch][i]) for epoch in DURATIONS}
        for part, fitted in ((ANY_KNOWN, FITTED_KNOWN[i]), ("Unknown", FITTED_UNKNOWN[i])):
            if fitted is not None:
                rates.train[part] = {early: fitted, LAST_EPOCH: 100.0}
        variants[name] = rates
    for i, share in enumerate(PAPER_SHARES[1:-1]):
        variants[f"known-{round(100 * share):03d}"] = VariantRates(
            kind="known",
            share=share,
            early_epoch=EARLY_EPOCH,
            test={
                EARLY_EPOCH: shift_to(natural, EARLY_STOP_ACCURACY_KNOWN_ONLY[i]),
                LAST_EPOCH: shift_to(natural, CONVERGENCE_ACCURACY_KNOWN_ONLY[i]),
            },
        )
    for name, (at_early, at_last) in TABLE_2_ACCURACY.items():
        kind = "natural" if name == "natural" else "category"
        rates = variants.setdefault(name, VariantRates(kind=kind, share=None, early_epoch=EARLY_EPOCH))
        rates.test |= {rates.early_epoch: np.array(at_early[1:]), LAST_EPOCH: np.array(at_last[1:])}
    half = variants["unknown-050"]
    half.train[ANY_KNOWN] |= dict(zip(FIGURE_1_EPOCHS, FIGURE_1_KNOWN, strict=True))
    half.train["Unknown"] |= dict(zip(FIGURE_1_EPOCHS, FIGURE_1_UNKNOWN, strict=True))
    half.dev = {e: v for e, v in zip(FIGURE_1_EPOCHS, FIGURE_1_DEV, strict=True) if v is not None}
    relabelled = VariantRates(kind="idk", share=0.5, early_epoch=EARLY_EPOCH, answered={})
    for epoch, (answered, accuracy) in zip((EARLY_EPOCH, LAST_EPOCH), TABLE_8, strict=True):
        correct = answered * accuracy / 100
        relabelled.test[epoch] = shift_to(natural, correct)
        relabelled.answered[epoch] = 100 * (answered - correct) / (100 - correct)
    variants["idk-050"] = relabelled
    other = {epoch: dict(zip(PAPER_SHARES, FIXED_LENGTH_ACCURACY[epoch], strict=True)) for epoch in DURATIONS}
    return StudyRates(
        variants=variants, other_rate={"best_dev": dict(zip(PAPER_SHARES, EARLY_STOP_ACCURACY, strict=True)), **other}
    )


def simulate(
    rates: StudyRates,
    size: StudySize,
    rng: np.random.Generator,
    *,
    exact: bool = False,
    only: Iterable[str] | None = None,
) -> StudyData:
    """A study with these expected accuracies.

    Args:
        rates: as in `paper_rates`.
        size: numbers of questions and rows.
        rng: the random generator of the answers.
        exact: every accuracy on a category equals the expected one, up to one question.
        only: names of variants, to save time; None for all.
    """
    counts = _scaled_counts(size.num_test)
    categories = np.repeat(CATEGORIES, counts)
    shared_Q = rng.standard_normal(size.num_test)
    ids = np.array([f"q{i:06d}" for i in range(size.num_test)])
    names = [name for name in rates.variants if only is None or name in set(only)]
    runs, variants = [], {}
    for name in names:
        expected = rates.variants[name]
        num_rows = size.num_train if expected.kind != "known" else round(size.num_train * (1 - (expected.share or 0)))
        variants[name] = Variant(name=name, kind=expected.kind, share=expected.share, num=num_rows)
        hits = _draw_answers(expected.test, counts, shared_Q, WITHIN_RUN.get(name, WITHIN_OTHER_RUNS), rng, exact)
        runs.append(_run(name, expected, hits, (ids, categories), size, rng, exact))
    data = StudyData(
        counts=paper_study().counts if size == PAPER_SIZE else _counts(counts),
        filter_counts=paper_study().filter_counts if size == PAPER_SIZE else None,
        variants=variants,
        runs=tuple(runs),
        durations=DURATIONS,
        points=tuple(_other_points(rates, size, rng, exact)),
    )
    parts: dict[Callable[..., object], object] = {load_learning_rate: LEARNING_RATES[0]}
    if "natural" in names:
        parts |= _knowledge_parts(rates, data.runs[names.index("natural")], rng)
    return replace(data, loaded=parts)


def _scaled_counts(num_test: int) -> NDArray[np.int64]:
    counts = np.floor(PAPER_COUNTS * num_test / PAPER_COUNTS.sum()).astype(int)
    counts[-1] += num_test - counts.sum()
    return counts


def _counts(counts: NDArray[np.int64]) -> Mapping[tuple[str, str, str], Mapping[str, int]]:
    row = dict(zip(CATEGORIES, counts.tolist(), strict=True))
    return {("P17", "id", "test"): row, ("P17", "id", "train"): {name: 2 * num for name, num in row.items()}}


def _draw_answers(
    test: Mapping[int, Rates],
    counts: NDArray[np.int64],
    shared_Q: NDArray[np.float64],
    within: float,
    rng: np.random.Generator,
    exact: bool,
) -> dict[int, NDArray[np.bool_]]:
    """Whether each question is answered right, by epoch."""
    run_Q = rng.standard_normal(len(shared_Q))
    common_Q = np.sqrt(BETWEEN_RUNS) * shared_Q + np.sqrt(within - BETWEEN_RUNS) * run_Q
    ends = np.cumsum([0, *counts])
    answers = {}
    for epoch, percentages in test.items():
        latent_Q = common_Q + np.sqrt(1 - within) * rng.standard_normal(len(shared_Q))
        hit_Q = np.zeros(len(shared_Q), dtype=bool)
        for start, end, percent in zip(ends[:-1], ends[1:], percentages, strict=True):
            part = latent_Q[start:end]
            if exact:
                hit_Q[start:end][np.argsort(-part)[: round(percent / 100 * len(part))]] = True
            else:
                hit_Q[start:end] = part > norm.isf(percent / 100)
        answers[epoch] = hit_Q
    return answers


def _run(
    name: str,
    expected: VariantRates,
    hits: dict[int, NDArray[np.bool_]],
    questions: tuple[NDArray[np.str_], NDArray[np.str_]],
    size: StudySize,
    rng: np.random.Generator,
    exact: bool,
) -> Run:
    ids, categories = questions
    texts = {epoch: _texts(expected, epoch, hit_Q, rng, exact) for epoch, hit_Q in hits.items()}
    predictions = {
        (epoch, "test"): Predictions(
            question_ids=ids, categories=categories, hit=hit_Q & (texts[epoch] != "I don't know"), text=texts[epoch]
        )
        for epoch, hit_Q in hits.items()
    }
    accuracy: dict[tuple[str, str], NDArray[np.float64]] = {}
    num = {("test", name): int((categories == name).sum()) for name in CATEGORIES}
    num[("test", ALL_CATEGORIES)] = len(ids)
    for category in (ALL_CATEGORIES, *CATEGORIES):
        accuracy["test", category] = _curve(
            {epoch: 100 * rows.hit[rows.mask(category)].mean() for (epoch, _), rows in predictions.items()}
        )
    share = expected.share if expected.kind == "unknown" and expected.share is not None else 0.0
    for part, rows in ((ANY_KNOWN, round(size.num_train * (1 - share))), ("Unknown", round(size.num_train * share))):
        if part in expected.train and rows:
            num["train", part] = rows
            accuracy["train", part] = _curve(
                {epoch: _percent(percent, rows, rng, exact) for epoch, percent in expected.train[part].items()}
            )
    if expected.dev:
        num["dev", ALL_CATEGORIES] = size.num_dev
        shared = rng.standard_normal(size.num_dev)
        flat = {epoch: np.array([0.0, percent, 0.0, 0.0]) for epoch, percent in expected.dev.items()}
        dev_counts = np.array([0, size.num_dev, 0, 0])
        dev = _draw_answers(flat, dev_counts, shared, WITHIN_OTHER_RUNS, rng, exact)
        accuracy["dev", ALL_CATEGORIES] = _curve({epoch: 100 * hit.mean() for epoch, hit in dev.items()})
    num["train", ALL_CATEGORIES] = size.num_train
    return Run(
        run_id=f"{name}-seed0",
        variant=name,
        seed=0,
        epochs=np.arange(1, LAST_EPOCH + 1),
        accuracy=accuracy,
        num=num,
        early_epoch=expected.early_epoch,
        predictions=predictions,
    )


def _texts(
    expected: VariantRates, epoch: int, hit_Q: NDArray[np.bool_], rng: np.random.Generator, exact: bool
) -> NDArray[np.object_]:
    """Answers, or abstentions of the relabelled variant."""
    texts = np.full(len(hit_Q), "Paris", dtype=object)
    if expected.answered is None:
        return texts
    may_abstain = np.ones(len(hit_Q), dtype=bool) if expected.answers_at_random else ~hit_Q
    chance = 1 - expected.answered[epoch] / 100
    order = np.flatnonzero(may_abstain)
    num = round(chance * len(order)) if exact else rng.binomial(len(order), chance)
    texts[rng.choice(order, num, replace=False)] = "I don't know"
    return texts


def _percent(percent: float, num: int, rng: np.random.Generator, exact: bool) -> float:
    return percent if exact else 100 * rng.binomial(num, percent / 100) / num


def _curve(points: Mapping[int, float]) -> NDArray[np.float64]:
    curve = np.full(LAST_EPOCH, np.nan)
    for epoch, value in points.items():
        curve[epoch - 1] = value
    return curve


def _other_points(
    rates: StudyRates, size: StudySize, rng: np.random.Generator, exact: bool
) -> Iterable[dict[str, object]]:
    for policy, by_share in rates.other_rate.items():
        for share, percent in by_share.items():
            yield {
                "variant": f"unknown-{round(100 * share):03d}",
                "seed": 0,
                "epochs": LAST_EPOCH,
                "policy": policy if policy == "best_dev" else f"fixed({policy})",
                "settings": f"learning_rate={LEARNING_RATES[1]}",
                "test_all": _percent(percent, size.num_test, rng, exact) / 100,
            }


def _knowledge_parts(rates: StudyRates, natural: Run, rng: np.random.Generator) -> dict[Callable[..., object], object]:
    """P(True) and the labels under fewer exemplar sets. WeaklyKnown questions are Unknown under some of the sets."""
    rows = natural.predictions[natural.early_epoch or 1, "test"]
    num = len(rows.hit)
    score = rng.standard_normal(num) + rates.p_true_separation * rows.hit
    if rates.p_true_of_label:
        score = np.where(rows.categories == "Unknown", -9.0, 9.0) + rng.standard_normal(num)
    weak = rows.categories == "WeaklyKnown"
    first_hit = np.where(rows.categories == "Unknown", NUM_SETS, np.where(weak, rng.geometric(0.25, num) - 1, 0))
    unknown = np.minimum(first_hit, NUM_SETS - weak)[:, None] >= np.arange(1, NUM_SETS + 1)[None, :]
    return {
        load_p_true: PTrueScores(question_ids=rows.question_ids, p_true=norm.cdf(score), choice_mass=0.9),
        load_prefix_labels: PrefixLabels(
            question_ids=rows.question_ids, unknown_QN=unknown, undetermined_QN=np.zeros_like(unknown)
        ),
    }


def simulate_linear(rates: StudyRates, size: StudySize, rng: np.random.Generator) -> StudyData:
    """A sweep whose accuracies follow the linear model, with the paper's R2 (0.86, and 0.95 out of distribution).

    Residuals of neighbouring epochs of a run correlate by 0.9.
    """
    epochs = np.arange(1, LAST_EPOCH + 1)
    known = np.interp(epochs, FIGURE_1_EPOCHS, FIGURE_1_KNOWN) / 100
    unknown = np.interp(epochs, FIGURE_1_EPOCHS, FIGURE_1_UNKNOWN) / 100
    runs, variants = [], {}
    paper = {"test": ((36.9, 7.3, -8.3), 0.86), "ood": ((36.2, 3.2, -3.0), 0.95)}
    own = {"test": rates.linear, "ood": rates.linear_ood}
    for share in PAPER_SHARES:
        name = f"unknown-{round(100 * share):03d}"
        variants[name] = Variant(name=name, kind="unknown", share=share, num=size.num_train)
        accuracy = {("train", ANY_KNOWN): 100 * known, ("train", "Unknown"): 100 * unknown}
        for split, (b0, b_kn, b_unk) in own.items():
            fitted = b0 + b_kn * (1 - share) * known + b_unk * share * unknown
            accuracy[split, ALL_CATEGORIES] = fitted + _residuals(*paper[split], known, unknown, rng)
            accuracy[split, ALL_CATEGORIES] += rng.standard_normal() * 0.3 * np.sqrt(10481 / size.num_test)
        num = {("test", ALL_CATEGORIES): size.num_test, ("ood", ALL_CATEGORIES): size.num_test // 2}
        num |= {("train", ALL_CATEGORIES): size.num_train, ("train", ANY_KNOWN): round(size.num_train * (1 - share))}
        num["train", "Unknown"] = round(size.num_train * share)
        runs.append(
            Run(run_id=f"{name}-seed0", variant=name, seed=0, epochs=epochs, accuracy=accuracy, num=num, early_epoch=9)
        )
    return StudyData(variants=variants, runs=tuple(runs), durations=DURATIONS)


def _residuals(
    coefficients: tuple[float, float, float],
    r_squared: float,
    known: NDArray[np.float64],
    unknown: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    _, b_kn, b_unk = coefficients
    signal = [b_kn * (1 - share) * known + b_unk * share * unknown for share in PAPER_SHARES]
    scale = np.std(np.concatenate(signal)) * np.sqrt((1 - r_squared) / r_squared)
    noise = rng.standard_normal(len(known))
    for i in range(1, len(noise)):
        noise[i] = 0.9 * noise[i - 1] + np.sqrt(1 - 0.9**2) * noise[i]
    return np.asarray(scale * noise)


def identical_rates() -> StudyRates:
    """All variants alike at all epochs, labels and P(True) unrelated to the answers, abstention at random."""
    rates = deepcopy(paper_rates())
    same = np.full(4, 42.0)
    for variant in rates.variants.values():
        variant.test = dict.fromkeys(variant.test, same)
        variant.dev = dict.fromkeys(variant.dev, 42.0)
        for part in variant.train:
            variant.train[part] = {
                epoch: float(np.interp(epoch, FIGURE_1_EPOCHS, FIGURE_1_KNOWN)) for epoch in variant.train[part]
            }
        if variant.answered is not None:
            variant.answered, variant.answers_at_random = dict.fromkeys(variant.answered, 58.0), True
    rates.other_rate = {policy: dict.fromkeys(shares, 42.0) for policy, shares in rates.other_rate.items()}
    rates.p_true_separation = 0.0
    rates.linear, rates.linear_ood = (42.0, 0.0, 0.0), (42.0, 0.0, 0.0)
    return rates
