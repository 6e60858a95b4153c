"""Settings of the fine-tuning sets, rows per relation, and the reasons why sets cannot be drawn. Pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slick.errors import SettingsError, StudyError, VariantError
from slick.settings import check_settings, identity_settings, register_settings, setting
from slick.stored_files import MismatchError, convert
from slick.study_files import MAX_WEIGHT
from slick.types import KNOWN_CATEGORIES, Category
from slick.variants.sampling import (
    DrawPlan,
    PoolDraw,
    Pools,
    SizeRule,
    VariantKind,
    VariantSpec,
    count_by_category,
    min_size,
    plan_draws,
    shortages,
)


def _draws_weighted(settings: Mapping[str, Any]) -> object:
    return settings.get("weighted_shares")


def _draws_p_correct(settings: Mapping[str, Any]) -> object:
    return settings.get("p_correct_shares")


@register_settings("variants")
@dataclass(frozen=True, slots=True, kw_only=True)
class VariantsConfig:
    """The fine-tuning sets to draw. The defaults are the 17 sets of the paper."""

    unknown_shares: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    """Shares of Unknown rows of the sweep's sets, in whole percent: unknown-000 ... unknown-100."""
    known_shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Shares X for which the Known rows of unknown-X are also a separate set: known-010 ... known-090."""
    single_categories: bool = True
    """Draw highlyknown, maybeknown and weaklyknown. The set of the fourth category is unknown-100."""
    natural: bool = True
    """Draw natural: the mix of categories of each relation."""
    idk_shares: tuple[float, ...] = (0.5,)
    """Shares X for which unknown-X is also drawn with its Unknown targets replaced by `idk_phrase`: idk-050."""
    idk_phrase: str = "I don't know"
    """The target of Unknown rows in these sets. The default is the paper's (appendix K); R-Tuning (arXiv:2311.09677)
    has others."""
    concentrated_shares: tuple[float, ...] = setting(
        (), "result", when=lambda values: values.get("concentrated_shares")
    )
    """Shares X of sets with as many Unknown rows as unknown-X that fill whole relations, the last one in part:
    concentrated-050."""
    weighted_shares: tuple[float, ...] = setting((), "result", when=_draws_weighted)
    """Shares X for which unknown-X is also drawn with weights of its rows in the loss: weighted-050."""
    unknown_weight: float = setting(0.25, "result", when=_draws_weighted, minimum=0, maximum=MAX_WEIGHT)
    """Weight of Unknown rows in these sets; HighlyKnown and MaybeKnown rows have weight 1. Rows of weight 0 are not
    trained on."""
    weakly_weight: float = setting(1.0, "result", when=_draws_weighted, minimum=0, maximum=MAX_WEIGHT)
    """Weight of WeaklyKnown rows in these sets."""
    p_correct_shares: tuple[float, ...] = setting((), "result", when=_draws_p_correct)
    """Shares X for which unknown-X is also drawn with each row weighted by its P_Correct, the share of correct answers
    among all its greedy and sampled ones: p-correct-050."""
    min_p_correct_weight: float = setting(0.05, "result", when=_draws_p_correct, minimum=0, maximum=1)
    """The lowest weight of a row in these sets, and so the weight of Unknown rows."""
    seed: int = setting(0, "seed")
    """Seed of the draws."""
    nested: bool = True
    """Sets of a larger share contain the Unknown rows of smaller shares; otherwise sets are drawn independently."""
    size_per_relation: int | None = setting(None, minimum=1)
    """Rows from each relation; None for the number that `size_rule` gives."""
    size_rule: SizeRule = "categories"
    """Rows of a relation: as many as its smallest category has (`categories`, as in the paper), or as the smaller of
    its pooled Known and its Unknown rows (`pools`: more rows, but single-category sets may be impossible)."""
    min_per_relation: int = setting(1, minimum=1)
    """A relation with fewer rows than this stops the step."""
    drop_empty_relations: bool = False
    """Leave out relations with fewer rows than `min_per_relation`, instead of stopping."""

    def __post_init__(self) -> None:
        check_settings(self)
        bounds = {"unknown_shares": (0, 100), "known_shares": (1, 99), "idk_shares": (1, 100)}
        for name, (low, high) in (bounds | dict.fromkeys(_MIXED_SHARES, (1, 99))).items():
            _check_shares(name, getattr(self, name), low, high)
        if not self.idk_phrase.strip() or "\n" in self.idk_phrase:
            raise SettingsError(f"idk_phrase must be one line of text, got {self.idk_phrase!r}")
        if not variant_specs(self):
            raise SettingsError(
                "these settings select no fine-tuning set; give --unknown-shares or another kind of set"
            )

    def identity(self) -> dict[str, object]:
        """The settings that change results: all, without the kinds of sets that are not selected."""
        return identity_settings(self)


_MIXED_SHARES = ("concentrated_shares", "weighted_shares", "p_correct_shares")
"""Shares of sets that must have both Known and Unknown rows."""

SET_FIELDS = (
    "unknown_shares",
    "known_shares",
    "single_categories",
    "natural",
    "idk_shares",
    "concentrated_shares",
    "weighted_shares",
    "p_correct_shares",
)
"""Settings that select the sets. None of them changes the rows of another set."""

_SHARES_OF_SETTING = {
    "idk_phrase": "idk_shares",
    "unknown_weight": "weighted_shares",
    "weakly_weight": "weighted_shares",
    "min_p_correct_weight": "p_correct_shares",
}
"""Settings of one kind of sets, with the shares of these sets. They may change until such a set is drawn."""


def config_from_stored(settings: Mapping[str, Any]) -> VariantsConfig | None:
    """The settings of a manifest or study.json; None if they hold names that this version does not know.

    Raises:
        StudyError: a value is of another type.
    """
    if set(settings) - set(VariantsConfig.__slots__):
        return None
    try:
        config: VariantsConfig = convert(dict(settings), VariantsConfig, "settings of the variants step")
    except MismatchError as error:
        raise StudyError(
            f"{error}, in the study's manifest.json or study.json; the file was edited: restore it, or choose another "
            "--out"
        ) from error
    return config


def merge_configs(drawn: VariantsConfig, config: VariantsConfig) -> VariantsConfig:
    """Settings with the sets of both; all other settings are those of `drawn`.

    Args:
        drawn: settings of the existing sets.
        config: settings of the new sets.

    >>> merge_configs(VariantsConfig(known_shares=(0.5,)), VariantsConfig(known_shares=(0.25,))).known_shares
    (0.25, 0.5)
    """
    both: dict[str, Any] = {}
    for name in SET_FIELDS:
        old, new = getattr(drawn, name), getattr(config, name)
        if isinstance(old, bool):
            both[name] = old or new
        else:
            known = {round(100 * share) for share in old}
            added = [share for share in new if round(100 * share) not in known]
            both[name] = tuple(sorted([*old, *added])) if added else old
    for name, shares in _SHARES_OF_SETTING.items():
        both[name] = getattr(drawn if getattr(drawn, shares) else config, name)
    return replace(drawn, **both)


def conflicting_settings(drawn: VariantsConfig, config: VariantsConfig) -> list[str]:
    """Names of the settings in which existing and new sets must not differ but do."""
    unused = [
        name for name, shares in _SHARES_OF_SETTING.items() if not (getattr(drawn, shares) and getattr(config, shares))
    ]
    may_differ = {*SET_FIELDS, *unused}
    return [
        name for name in config.__slots__ if name not in may_differ and getattr(drawn, name) != getattr(config, name)
    ]


def variant_specs(config: VariantsConfig) -> list[VariantSpec]:
    """The selected sets, in the order sweep, Known only, single categories, natural, IDK, concentrated, weighted,
    weighted by P_Correct.
    """

    def shares_of(kind: VariantKind, shares: Sequence[float]) -> list[VariantSpec]:
        percents = [_percent(share) for share in shares]
        return [VariantSpec(name=f"{kind}-{percent:03d}", kind=kind, percent_unknown=percent) for percent in percents]

    sweep, known = shares_of("unknown", config.unknown_shares), shares_of("known", config.known_shares)
    categories = [
        VariantSpec(name=c.lower(), kind="category", category=c) for c in KNOWN_CATEGORIES if config.single_categories
    ]
    natural = [VariantSpec(name="natural", kind="natural")] if config.natural else []
    others = [
        *shares_of("idk", config.idk_shares),
        *shares_of("concentrated", config.concentrated_shares),
        *shares_of("weighted", config.weighted_shares),
        *shares_of("p-correct", config.p_correct_shares),
    ]
    return [*sweep, *known, *categories, *natural, *others]


def row_weight(category: Category, config: VariantsConfig) -> float:
    """Weight in the loss of a row of a weighted set."""
    weights = {Category.UNKNOWN: config.unknown_weight, Category.WEAKLY_KNOWN: config.weakly_weight}
    return weights.get(category, 1.0)


def variant_names(config: VariantsConfig) -> tuple[str, ...]:
    """Names of the selected sets."""
    return tuple(spec.name for spec in variant_specs(config))


def relation_sizes(pools: Pools, config: VariantsConfig) -> tuple[dict[str, int], list[str]]:
    """Rows of each relation in every set, and the relations that are left out.

    Raises:
        VariantError: a relation has too few rows and may not be left out, no relation remains, or a set needs more rows
            than there are.
    """
    max_sizes = {
        relation: min_size(count_by_category(pool), config.size_rule) for relation, pool in sorted(pools.items())
    }
    small = [relation for relation, size in max_sizes.items() if size < config.min_per_relation]
    if small and (len(small) == len(max_sizes) or not config.drop_empty_relations):
        raise VariantError(_too_small_message(pools, small, config))
    sizes = {r: config.size_per_relation or size for r, size in max_sizes.items() if r not in small}
    planned = plan_draws(variant_specs(config), pools, sizes, config.seed)
    lines = shortages(planned, pools) + _degenerate(variant_specs(config), planned)
    if lines:
        omitted = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise VariantError(
            "the knowledge table cannot give these fine-tuning sets:\n  "
            + "\n  ".join([*lines[:20], *omitted])
            + "\nchange the number of rows (--size-per-relation, --size-rule), leave these sets out (--unknown-shares, "
            "--known-shares, --idk-shares, --concentrated-shares, --weighted-shares, --p-correct-shares, "
            "--no-single-categories), or annotate more questions"
        )
    return sizes, small


def _percent(share: float) -> int:
    return round(100 * share)


def _check_shares(name: str, shares: Sequence[float], low: int, high: int) -> None:
    for share in shares:
        if not (math.isfinite(share) and low <= _percent(share) <= high and abs(100 * share - _percent(share)) < 1e-9):
            raise SettingsError(
                f"{name} must be shares of whole percent from {low / 100:g} to {high / 100:g}, got {share}; "
                "50 percent is 0.5"
            )
    if len(set(map(_percent, shares))) < len(shares):
        raise SettingsError(f"{name} holds a share more than once: {', '.join(f'{share:g}' for share in shares)}")


def _degenerate(specs: Sequence[VariantSpec], planned: DrawPlan) -> list[str]:
    """One line for each set whose Known or Unknown rows are all rounded away."""
    lines = []
    for spec in specs:
        if spec.requested_share in (None, 0.0, 1.0):
            continue
        taken: Counter[str] = Counter()
        for draws in planned[spec.name].values():
            for draw in draws:
                taken["Known" if draw.pool == KNOWN_CATEGORIES else "Unknown"] += draw.num
        required = ("Known",) if spec.kind == "known" else ("Known", "Unknown")
        absent = [pool for pool in required if not taken[pool]]
        if absent:
            lines.append(
                f"{spec.name}: a share of {spec.requested_share:g} rounds to no {absent[0]} rows "
                f"in {len(planned[spec.name])} relations with {taken.total()} rows"
            )
        elif spec.kind == "concentrated" and not _has_pure_relations(planned[spec.name]):
            lines.append(
                f"{spec.name}: {len(planned[spec.name])} relations with {taken.total()} rows cannot have one with only "
                "Unknown and one with only Known rows"
            )
    return lines


def _has_pure_relations(planned: Mapping[str, Sequence[PoolDraw]]) -> bool:
    """True if one relation has only Known rows and another has only Unknown rows."""
    is_known = [{draw.pool == KNOWN_CATEGORIES for draw in draws if draw.num} for draws in planned.values()]
    return {True} in is_known and {False} in is_known


def _too_small_message(pools: Pools, small: Sequence[str], config: VariantsConfig) -> str:
    def numbers(relation: str) -> str:
        return f"{relation}: " + ", ".join(
            f"{num:,} {category}" for category, num in count_by_category(pools[relation]).items()
        )

    pool = "its smallest category" if config.size_rule == "categories" else "the smaller of Known and Unknown"
    num_left = len(pools) - len(small)
    fixes = []
    if num_left:
        fixes.append(f"leave them out with --drop-empty-relations ({num_left} of {len(pools)} relations remain)")
    if config.min_per_relation > 1:
        fixes.append("lower --min-per-relation")
    if config.size_rule == "categories":
        fixes.append("pool the Known categories with --size-rule pools --no-single-categories")
    fixes.append("annotate more questions")
    return (
        f"every set takes as many rows from each relation as {pool} has, and these relations have fewer than "
        f"{config.min_per_relation}:\n  " + "\n  ".join(map(numbers, small)) + f"\n{'; or '.join(fixes)}"
    )
