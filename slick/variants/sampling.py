"""Which rows each fine-tuning set takes from a model's knowledge. Pure: no files.

Every row has a key of (seed, question_id), every pool of rows is in the order of these keys, and a set takes the
beginning of a pool. So the Unknown rows of a smaller share are among those of a larger one, likewise the Known rows the
other way round, sets differ by as few rows as they can, and neither the order of the rows nor rows that are not taken
matter.

Rounding. Relation i of R (from 0, by name) with n rows gives `ceil(X n - (i + 1/2) / R)` of them to Unknown: X n
rounded up or down, never off by a whole row, up in some relations and down in others, so that the whole set is off by
at most half a row a relation (far less as a rule). It never falls as X rises, which the nesting above needs; largest
remainders would.

Concentrated sets hold as many rows of each relation, and as many Unknown rows in all, as the set of the sweep with the
same share, but fill one relation after another with them, in an order drawn from the seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from slick.rng import row_key
from slick.types import KNOWN_CATEGORIES, Category

VariantKind = Literal["unknown", "known", "category", "natural", "idk", "concentrated"]
Pools = Mapping[str, Mapping[Category, Sequence[str]]]
"""relation -> category -> question_ids, in any order; every relation has all four categories."""
SizeRule = Literal["categories", "pools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSpec:
    """One fine-tuning set to be drawn."""

    name: str
    kind: VariantKind
    percent_unknown: int | None = None
    """The share asked for, in whole percent; of `known` that of the set whose Unknown rows are left out."""
    category: Category | None = None
    """Of kind `category`."""

    @property
    def requested_share(self) -> float | None:
        """Share of Unknown rows asked for, in [0, 1]."""
        return None if self.percent_unknown is None else self.percent_unknown / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDraw:
    """Rows that a set takes from one relation."""

    pool: tuple[Category, ...]
    """The categories that are pooled to draw from."""
    num: int


DrawPlan = Mapping[str, Mapping[str, Sequence[PoolDraw]]]
"""Set name -> relation -> what it gives."""


def min_size(counts: Mapping[Category, int], rule: SizeRule) -> int:
    """Rows that a relation gives to every set: those of its smallest category, or of the smaller of Known and Unknown.

    Source: Gekhman et al. 2024, arXiv:2405.05904, appendix E, for `categories`.
    """
    if rule == "categories":
        return min(counts[category] for category in Category)
    return min(sum(counts[category] for category in KNOWN_CATEGORIES), counts[Category.UNKNOWN])


def num_unknown(percent: int, num_rows: int, index: int, num_relations: int) -> int:
    """Unknown rows among the `num_rows` of relation `index`; the rule is in the module's docstring.

    >>> [num_unknown(25, 10, i, 4) for i in range(4)]
    [3, 3, 2, 2]
    """
    offset = Fraction(2 * index + 1, 2 * num_relations)
    return math.ceil(Fraction(percent * num_rows, 100) - offset)


def natural_mix(counts: Mapping[Category, int], num_rows: int) -> dict[Category, int]:
    """`num_rows` split as the relation's own categories are, by largest remainders.

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
    """What one relation has to give to a set in which it has `num_rows` rows (before Unknown ones are left out)."""
    if spec.kind == "natural":
        return [PoolDraw(pool=(category,), num=num) for category, num in natural_mix(counts, num_rows).items()]
    if spec.category is not None:
        return [PoolDraw(pool=(spec.category,), num=num_rows)]
    assert spec.percent_unknown is not None, spec
    unknown = num_unknown(spec.percent_unknown, num_rows, index, num_relations)
    known = PoolDraw(pool=KNOWN_CATEGORIES, num=num_rows - unknown)
    return [known] if spec.kind == "known" else [known, PoolDraw(pool=(Category.UNKNOWN,), num=unknown)]


def concentrated_draws(percent: int, pools: Pools, sizes: Mapping[str, int], seed: int) -> dict[str, list[PoolDraw]]:
    """What each relation gives to a set whose Unknown rows fill whole relations, one after another.

    The last relation that has any holds what is left; a relation with fewer Unknown rows than its size, which
    `size_per_relation` makes possible, gives all of them and Known rows beside. So there are as many Unknown rows as in
    the sweep's set of the same share wherever that can be drawn.

    Args:
        percent: the share of Unknown rows of the whole set.
        pools: of every relation.
        sizes: rows of each relation in the set.
        seed: of the order in which relations are filled.

    Source: arXiv:2511.02626 (Understanding New-Knowledge-Induced Factual Hallucinations), which finds that a kind of
    knowledge that is wholly new harms more than the same share spread over kinds.
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


def plan(
    specs: Sequence[VariantSpec], pools: Pools, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, dict[str, list[PoolDraw]]]:
    """What each relation gives to each set.

    Args:
        specs: the sets.
        pools: of every relation.
        sizes: rows of each relation in every set, without relations that are left out.
        seed: of the order of relations in concentrated sets.
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
    """One line for each pool of a relation that is too small, with the set that needs most of it; empty if none is."""
    most: dict[tuple[str, tuple[Category, ...]], tuple[int, str]] = {}
    for name, relations in planned.items():
        for relation, wanted in relations.items():
            for need in wanted:
                found = sum(len(pools[relation][category]) for category in need.pool)
                if need.num > max(found, most.get((relation, need.pool), (0, ""))[0]):
                    most[relation, need.pool] = need.num, name
    lines = []
    for (relation, pool), (num, name) in sorted(most.items()):
        what = pool[0] if len(pool) == 1 else "Known"
        found = sum(len(pools[relation][category]) for category in pool)
        lines.append(f"{relation}: {name} needs {num:,} {what} rows, there are {found:,}")
    return lines


class RowOrder:
    """The order in which the rows of any pool are taken, from the seed and the row alone."""

    def __init__(self, seed: int, stream: str = "") -> None:
        self._seed, self._stream = seed, stream
        self._keys: dict[str, int] = {}

    def first(self, question_ids: Sequence[str], num: int) -> list[str]:
        """The `num` rows that come first."""
        return sorted(question_ids, key=self._key)[:num]

    def _key(self, question_id: str) -> int:
        if question_id not in self._keys:
            self._keys[question_id] = int(row_key(self._seed, "variants", self._stream, question_id))
        return self._keys[question_id]


def select_rows(needed: Mapping[str, Sequence[PoolDraw]], pools: Pools, order: RowOrder) -> list[str]:
    """The question_ids of one set, sorted; the plan must have no shortages."""
    drawn: list[str] = []
    for relation, wanted in needed.items():
        for need in wanted:
            pooled = [question_id for category in need.pool for question_id in pools[relation][category]]
            assert len(pooled) >= need.num, (relation, need)
            drawn += order.first(pooled, need.num)
    return sorted(drawn)
