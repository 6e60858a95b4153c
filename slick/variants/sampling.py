"""The rows of each fine-tuning set. Pure.

Every row has a key of (seed, question_id). Pools of rows are sorted by these keys, and a set takes the first rows of a
pool. So the Unknown rows of a smaller share are a subset of those of a larger share, and the Known rows the reverse;
sets differ by as few rows as possible; and a draw depends neither on the order of the rows nor on rows that it leaves.

Rounding: relation i of R (from 0, sorted by name) with n rows has `ceil(X n - (i + 1/2) / R)` Unknown rows. This rounds
X n up in some relations and down in others, so that the whole set is off by at most half a row a relation, usually by
far less. The number never falls as X rises, which the nesting requires; largest remainders do not guarantee that.

Concentrated sets have as many rows of each relation, and as many Unknown rows in all, as the sweep's set of the same
share, but their Unknown rows fill one relation after another, in an order drawn from the seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from slick.rng import row_key
from slick.types import KNOWN_CATEGORIES, Category

VariantKind = Literal["unknown", "known", "category", "natural", "idk", "concentrated", "weighted", "p-correct"]
Pools = Mapping[str, Mapping[Category, Sequence[str]]]
"""relation -> category -> question_ids, in any order. Every relation has all four categories."""
SizeRule = Literal["categories", "pools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSpec:
    """One fine-tuning set to draw."""

    name: str
    kind: VariantKind
    percent_unknown: int | None = None
    """The requested share in whole percent; for `known`, that of the set whose Unknown rows are left out."""
    category: Category | None = None
    """The category of a set of kind `category`."""

    @property
    def requested_share(self) -> float | None:
        """The requested share of Unknown rows, in [0, 1]."""
        return None if self.percent_unknown is None else self.percent_unknown / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDraw:
    """Rows that a set takes from one pool of a relation."""

    pool: tuple[Category, ...]
    """The categories that are pooled to draw from."""
    num: int


DrawPlan = Mapping[str, Mapping[str, Sequence[PoolDraw]]]
"""Set name -> relation -> draws."""


def min_size(counts: Mapping[Category, int], rule: SizeRule) -> int:
    """Rows of a relation in every set: as many as its smallest category, or the smaller of Known and Unknown, has.

    Source: Gekhman et al. 2024, arXiv:2405.05904, appendix E, for `categories`.
    """
    if rule == "categories":
        return min(counts[category] for category in Category)
    return min(sum(counts[category] for category in KNOWN_CATEGORIES), counts[Category.UNKNOWN])


def num_unknown(percent: int, num_rows: int, index: int, num_relations: int) -> int:
    """Unknown rows among the `num_rows` of relation `index`; the docstring of the module defines the rounding.

    >>> [num_unknown(25, 10, i, 4) for i in range(4)]
    [3, 3, 2, 2]
    """
    offset = Fraction(2 * index + 1, 2 * num_relations)
    return math.ceil(Fraction(percent * num_rows, 100) - offset)


def natural_mix(counts: Mapping[Category, int], num_rows: int) -> dict[Category, int]:
    """`num_rows` divided like the relation's categories, by largest remainders.

    >>> list(natural_mix(dict(zip(Category, (5, 3, 0, 2))), 5).values())
    [3, 1, 0, 1]
    """
    total = sum(counts[category] for category in Category)
    quotas = {category: Fraction(counts[category] * num_rows, total) for category in Category}
    mix = {category: math.floor(quota) for category, quota in quotas.items()}
    by_remainder = sorted(
        Category, key=lambda category: quotas[category] - mix[category], reverse=True
    )  # stable: strongest first
    for category in by_remainder[: num_rows - sum(mix.values())]:
        mix[category] += 1
    return mix


def relation_draws(
    spec: VariantSpec, counts: Mapping[Category, int], num_rows: int, index: int, num_relations: int
) -> list[PoolDraw]:
    """The draws of one relation for a set in which it has `num_rows` rows (before Unknown rows are left out)."""
    if spec.kind == "natural":
        return [PoolDraw(pool=(category,), num=num) for category, num in natural_mix(counts, num_rows).items()]
    if spec.category is not None:
        return [PoolDraw(pool=(spec.category,), num=num_rows)]
    assert spec.percent_unknown is not None, spec
    unknown = num_unknown(spec.percent_unknown, num_rows, index, num_relations)
    known = PoolDraw(pool=KNOWN_CATEGORIES, num=num_rows - unknown)
    return [known] if spec.kind == "known" else [known, PoolDraw(pool=(Category.UNKNOWN,), num=unknown)]


def concentrated_draws(percent: int, pools: Pools, sizes: Mapping[str, int], seed: int) -> dict[str, list[PoolDraw]]:
    """The draws of each relation for a set whose Unknown rows fill whole relations, one after another.

    The last of these relations holds the remaining Unknown rows. If `size_per_relation` exceeds the Unknown rows of a
    relation, it has all of them and Known rows. So there are as many Unknown rows as in the sweep's set of the same
    share if that set can be drawn.

    Args:
        percent: the percentage of Unknown rows in the whole set.
        pools: the pools of every relation.
        sizes: rows of each relation in the set.
        seed: the seed of the order in which relations are filled.

    Source: arXiv:2511.02626 (Understanding New-Knowledge-Induced Factual Hallucinations), which finds that an entirely
    unknown type of knowledge harms more than the same share spread over all types.
    """
    relations = sorted(sizes)
    left = sum(num_unknown(percent, sizes[name], index, len(relations)) for index, name in enumerate(relations))
    filled = {}
    for relation in sorted(relations, key=lambda name: int(row_key(seed, "variants", "concentrated", name))):
        filled[relation] = min(sizes[relation], len(pools[relation][Category.UNKNOWN]), left)
        left -= filled[relation]
    return {
        name: [
            PoolDraw(pool=KNOWN_CATEGORIES, num=sizes[name] - filled[name]),
            PoolDraw(pool=(Category.UNKNOWN,), num=filled[name]),
        ]
        for name in relations
    }


def plan_draws(
    specs: Sequence[VariantSpec], pools: Pools, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, dict[str, list[PoolDraw]]]:
    """The draws of each relation for each set.

    Args:
        specs: the sets.
        pools: the pools of every relation.
        sizes: rows of each relation in every set, without the relations that are left out.
        seed: the seed of the order of relations in concentrated sets.
    """
    relations = sorted(sizes)

    def of_set(spec: VariantSpec) -> dict[str, list[PoolDraw]]:
        if spec.kind == "concentrated":
            assert spec.percent_unknown is not None, spec
            return concentrated_draws(spec.percent_unknown, pools, sizes, seed)
        return {
            relation: relation_draws(spec, count_by_category(pools[relation]), sizes[relation], index, len(relations))
            for index, relation in enumerate(relations)
        }

    return {spec.name: of_set(spec) for spec in specs}


def count_by_category(pool: Mapping[Category, Sequence[str]]) -> dict[Category, int]:
    """Rows of each category."""
    return {category: len(pool[category]) for category in Category}


def shortages(planned: DrawPlan, pools: Pools) -> list[str]:
    """One line for each pool that is too small, with the set that needs the most rows of it."""
    most: dict[tuple[str, tuple[Category, ...]], tuple[int, str]] = {}
    for name, relations in planned.items():
        for relation, draws in relations.items():
            for draw in draws:
                available = sum(len(pools[relation][category]) for category in draw.pool)
                if draw.num > max(available, most.get((relation, draw.pool), (0, ""))[0]):
                    most[relation, draw.pool] = draw.num, name
    lines = []
    for (relation, pool), (num, name) in sorted(most.items()):
        pool_name = pool[0] if len(pool) == 1 else "Known"
        available = sum(len(pools[relation][category]) for category in pool)
        lines.append(f"{relation}: {name} needs {num:,} {pool_name} rows, there are {available:,}")
    return lines


class RowOrder:
    """The order in which the rows of any pool are taken. It depends only on the seed and the row."""

    def __init__(self, seed: int, stream: str = "") -> None:
        self._seed, self._stream = seed, stream
        self._keys: dict[str, int] = {}

    def first(self, question_ids: Sequence[str], num: int) -> list[str]:
        """The first `num` rows."""
        return sorted(question_ids, key=self._key)[:num]

    def _key(self, question_id: str) -> int:
        if question_id not in self._keys:
            self._keys[question_id] = int(row_key(self._seed, "variants", self._stream, question_id))
        return self._keys[question_id]


def select_rows(draws: Mapping[str, Sequence[PoolDraw]], pools: Pools, order: RowOrder) -> list[str]:
    """The question_ids of one set, sorted. The plan must have no shortages."""
    question_ids: list[str] = []
    for relation, pool_draws in draws.items():
        for draw in pool_draws:
            pooled = [question_id for category in draw.pool for question_id in pools[relation][category]]
            assert len(pooled) >= draw.num, (relation, draw)
            question_ids += order.first(pooled, draw.num)
    return sorted(question_ids)
