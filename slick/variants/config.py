"""Which fine-tuning sets are asked for, how many rows each relation gives, and why that may be impossible. Pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slick.errors import SettingsError, VariantError
from slick.settings import identity_settings, register_settings, setting
from slick.types import KNOWN_CATEGORIES
from slick.variants.sampling import (
    DrawPlan,
    PoolDraw,
    Pools,
    SizeRule,
    VariantKind,
    VariantSpec,
    count_by_category,
    min_size,
    plan,
    shortages,
)


@register_settings("variants")
@dataclass(frozen=True, slots=True, kw_only=True)
class VariantsConfig:
    """Which fine-tuning sets are drawn. The defaults are the paper's 17."""

    unknown_shares: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    """Shares of Unknown rows of the sweep, in whole percent: unknown-000 ... unknown-100."""
    known_shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Shares X for which the Known rows of unknown-X are also a set of their own: known-010 ... known-090."""
    single_categories: bool = True
    """Draw highlyknown, maybeknown and weaklyknown; the fourth is unknown-100."""
    natural: bool = True
    """Draw natural: each relation's own mix of categories."""
    idk_shares: tuple[float, ...] = (0.5,)
    """Shares X for which unknown-X is also drawn with its Unknown targets replaced: idk-050."""
    idk_phrase: str = "I don't know"
    """The target that replaces them: the paper's (appendix K); R-Tuning (arXiv:2311.09677) gives others."""
    concentrated_shares: tuple[float, ...] = setting(
        (), "result", when=lambda values: values.get("concentrated_shares")
    )
    """Shares X for which a set is drawn that has as many Unknown rows as unknown-X, but fills whole relations with
    them, the last one in part: concentrated-050."""
    seed: int = setting(0, "seed")
    """Of the draws."""
    nested: bool = True
    """Rows of a smaller share are among those of a larger one; otherwise each set is drawn on its own."""
    size_per_relation: int | None = None
    """Rows from each relation; None for as many as `size_rule` gives."""
    size_rule: SizeRule = "categories"
    """A relation gives as many rows as its smallest category has (`categories`, the paper's), or as the smaller of
    pooled Known and Unknown (`pools`: more rows, but single-category sets may then be impossible)."""
    min_per_relation: int = 1
    """A relation that can give fewer rows than this stops the draw."""
    drop_empty_relations: bool = False
    """Leave relations out that can give fewer rows than `min_per_relation`, instead of stopping."""

    def __post_init__(self) -> None:
        bounds = {"unknown_shares": (0, 100), "known_shares": (1, 99), "idk_shares": (1, 100)}
        for name, (low, high) in (bounds | {"concentrated_shares": (1, 99)}).items():
            _check_shares(name, getattr(self, name), low, high)
        if self.min_per_relation < 1 or (self.size_per_relation is not None and self.size_per_relation < 1):
            raise SettingsError(
                "min_per_relation and size_per_relation must be 1 or more, got "
                f"{self.min_per_relation} and {self.size_per_relation}"
            )
        if not self.idk_phrase.strip() or "\n" in self.idk_phrase:
            raise SettingsError(f"idk_phrase must be one line of text, got {self.idk_phrase!r}")
        if not variant_specs(self):
            raise SettingsError(
                "these settings ask for no fine-tuning set at all; give --unknown-shares or another kind"
            )

    def identity(self) -> dict[str, object]:
        """The settings that change results: all of them; kinds of sets that are not asked for are not named."""
        return identity_settings(self)


def variant_specs(config: VariantsConfig) -> list[VariantSpec]:
    """The sets that the settings ask for, in the order sweep, Known only, single categories, natural, IDK,
    concentrated.
    """

    def shares_of(kind: VariantKind, shares: Sequence[float]) -> list[VariantSpec]:
        percents = [_percent(share) for share in shares]
        return [VariantSpec(name=f"{kind}-{percent:03d}", kind=kind, percent_unknown=percent) for percent in percents]

    sweep, known = shares_of("unknown", config.unknown_shares), shares_of("known", config.known_shares)
    categories = [
        VariantSpec(name=c.lower(), kind="category", category=c) for c in KNOWN_CATEGORIES if config.single_categories
    ]
    natural = [VariantSpec(name="natural", kind="natural")] if config.natural else []
    others = [*shares_of("idk", config.idk_shares), *shares_of("concentrated", config.concentrated_shares)]
    return [*sweep, *known, *categories, *natural, *others]


def variant_names(config: VariantsConfig) -> tuple[str, ...]:
    """Names of the sets that the settings ask for."""
    return tuple(spec.name for spec in variant_specs(config))


def relation_sizes(pools: Pools, config: VariantsConfig) -> tuple[dict[str, int], list[str]]:
    """Rows that each relation gives to every set, and the relations that are left out.

    Raises:
        VariantError: a relation gives too few and may not be left out, none remains, or a set needs rows that
            are not there.
    """
    most = {relation: min_size(count_by_category(pool), config.size_rule) for relation, pool in sorted(pools.items())}
    small = [relation for relation, size in most.items() if size < config.min_per_relation]
    if small and (len(small) == len(most) or not config.drop_empty_relations):
        raise VariantError(_too_small(pools, small, config))
    sizes = {r: config.size_per_relation or size for r, size in most.items() if r not in small}
    planned = plan(variant_specs(config), pools, sizes, config.seed)
    lines = shortages(planned, pools) + _degenerate(variant_specs(config), planned)
    if lines:
        more = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise VariantError(
            "the knowledge table cannot give these fine-tuning sets:\n  "
            + "\n  ".join([*lines[:20], *more])
            + "\nchange the number of rows (--size-per-relation, --size-rule), leave these sets out (--unknown-shares, "
            "--known-shares, --idk-shares, --concentrated-shares, --no-single-categories), or annotate more questions"
        )
    return sizes, small


def _percent(share: float) -> int:
    return round(100 * share)


def _check_shares(name: str, shares: Sequence[float], low: int, high: int) -> None:
    for share in shares:
        if not (math.isfinite(share) and low <= _percent(share) <= high and abs(100 * share - _percent(share)) < 1e-9):
            raise SettingsError(
                f"{name} are shares of whole percent from {low / 100:g} to {high / 100:g}, got {share}; "
                "50 percent is 0.5"
            )
    if len(set(map(_percent, shares))) < len(shares):
        raise SettingsError(f"{name} names a share more than once: {', '.join(f'{share:g}' for share in shares)}")


def _degenerate(specs: Sequence[VariantSpec], planned: DrawPlan) -> list[str]:
    """One line for each set so small that rounding leaves it without the rows that it is about."""
    lines = []
    for spec in specs:
        if spec.requested_share in (None, 0.0, 1.0):
            continue
        taken: Counter[str] = Counter()
        for wanted in planned[spec.name].values():
            for need in wanted:
                taken["Known" if need.pool == KNOWN_CATEGORIES else "Unknown"] += need.num
        absent = [
            what for what in ("Known", "Unknown") if not taken[what] and (what, spec.kind) != ("Unknown", "known")
        ]
        if absent:
            lines.append(
                f"{spec.name}: a share of {spec.requested_share:g} rounds to no {absent[0]} rows at all "
                f"in {len(planned[spec.name])} relations with {taken.total()} rows"
            )
        elif spec.kind == "concentrated" and not _has_pure_relations(planned[spec.name]):
            lines.append(
                f"{spec.name}: {len(planned[spec.name])} relations with {taken.total()} rows cannot leave one wholly "
                "Unknown and one wholly Known"
            )
    return lines


def _has_pure_relations(planned: Mapping[str, Sequence[PoolDraw]]) -> bool:
    """True if some relation gives nothing but Unknown rows and another none."""
    mixes = [{need.pool == KNOWN_CATEGORIES for need in wanted if need.num} for wanted in planned.values()]
    return {True} in mixes and {False} in mixes


def _too_small(pools: Pools, small: Sequence[str], config: VariantsConfig) -> str:
    def numbers(relation: str) -> str:
        return f"{relation}: " + ", ".join(
            f"{num:,} {category}" for category, num in count_by_category(pools[relation]).items()
        )

    what = "its smallest category" if config.size_rule == "categories" else "the smaller of Known and Unknown"
    keep = len(pools) - len(small)
    ways = [f"leave them out with --drop-empty-relations ({keep} of {len(pools)} relations remain)"] if keep else []
    if config.min_per_relation > 1:
        ways.append("lower --min-per-relation")
    if config.size_rule == "categories":
        ways.append("pool the Known categories with --size-rule pools --no-single-categories")
    ways.append("annotate more questions")
    return (
        f"every set takes as many rows from each relation as {what} has there, and these give fewer than "
        f"{config.min_per_relation}:\n  " + "\n  ".join(map(numbers, small)) + f"\n{'; or '.join(ways)}"
    )
