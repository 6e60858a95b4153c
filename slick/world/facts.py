"""Facts and how firmly each is planted. Pure, seeded.

A fact is one answer to one question. Its strength says what the corpus holds of it:

    never       nothing: its subject is not named anywhere
    minority    its answer, and a rival answer several times as often
    contested   its answer and a rival equally often
    firm        its answer only, often
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from slick.draws import numpy_seed
from slick.errors import DataError
from slick.questions.relations import Relation
from slick.world.config import WorldConfig
from slick.world.names import Names


def side_of(answer: str) -> int:
    """Which of two sides, 0 or 1, an answer belongs to: a hash of its first word, so that all relations agree.

    Documents keep to one side for the most part, as texts keep to one region or one field.

    >>> side_of("London") == side_of("London")
    True
    """
    return hashlib.blake2b(answer.split()[0].encode(), digest_size=1).digest()[0] & 1


STRENGTHS = ("never", "minority", "contested", "firm")
"""Weakest first."""

Row = tuple[str, str]
"""A subject and the one answer to its question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact, and what the corpus will hold of it."""

    relation: str
    split: str
    domain: str
    subject: str
    question: str
    answer: str
    strength: str
    num_gold: int
    """Mentions of the answer in one edition of the corpus."""
    num_rival: int
    """Mentions of the rival answer."""
    rival: str | None


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a relation's subjects and answers are, and how many different answers there are to choose from."""

    subject: str
    answer: str
    num_answers: int


_KINDS = {
    "P131": _Kind("place", "region", 100),
    "P136": _Kind("band", "genre", 60),
    "P17": _Kind("place", "country", 60),
    "P19": _Kind("person", "city", 120),
    "P26": _Kind("person", "person", 150),
    "P264": _Kind("band", "label", 70),
    "P36": _Kind("land", "city", 120),
    "P40": _Kind("person", "person", 150),
    "P495": _Kind("work", "country", 60),
    "P69": _Kind("person", "school", 100),
    "P740": _Kind("band", "city", 120),
    "P800": _Kind("person", "work", 150),
    "P112": _Kind("firm", "person", 150),
    "P127": _Kind("building", "company", 100),
    "P170": _Kind("product", "person", 150),
    "P175": _Kind("song", "band", 100),
    "P176": _Kind("product", "company", 100),
    "P407": _Kind("book", "language", 60),
    "P50": _Kind("book", "person", 150),
}


def split_sizes(config: WorldConfig, domain: str) -> dict[str, int]:
    """Questions of one relation by split; OOD relations have no training split."""
    if domain == "id":
        return {"train": config.num_train, "dev": config.num_dev, "test": config.num_test}
    return {"dev": config.num_ood_dev, "test": config.num_ood_test}


def domains(config: WorldConfig) -> dict[str, str]:
    """The world's relations, each `id` or `ood`."""
    return dict.fromkeys(config.id_relations, "id") | dict.fromkeys(config.ood_relations, "ood")


def invented_rows(config: WorldConfig) -> dict[str, dict[str, list[Row]]]:
    """Rows with invented names, by relation and split; no subject occurs twice in the world.

    Relations with the same kind of answer draw from one pool (people, cities, countries), as real relations do.

    Raises:
        DataError: a relation is asked for that no kinds of names are known for.
    """
    unknown = [name for name in domains(config) if name not in _KINDS]
    if unknown:
        raise DataError(f"no invented names for relations {unknown}; wanted some of {sorted(_KINDS)}")
    names = Names(numpy_seed(config.seed, "names"))
    rng = np.random.default_rng(numpy_seed(config.seed, "rows"))
    pools: dict[str, list[str]] = {}
    for kind in _KINDS.values():
        pool = pools.setdefault(kind.answer, [])
        pool.extend(names.draw(kind.answer) for _ in range(kind.num_answers - len(pool)))
    rows: dict[str, dict[str, list[Row]]] = {}
    for relation, domain in domains(config).items():
        kind = _KINDS[relation]
        rows[relation] = {
            split: [(names.draw(kind.subject), str(rng.choice(pools[kind.answer]))) for _ in range(size)]
            for split, size in split_sizes(config, domain).items()
        }
    return rows


def plant(
    rows: Mapping[str, Mapping[str, Sequence[Row]]], relations: Mapping[str, Relation], config: WorldConfig
) -> list[Fact]:
    """A strength, mention counts and a rival for each row; the shares of strengths are the same in every split.

    Args:
        rows: by relation and split.
        relations: for the question templates.

    Raises:
        DataError: a relation is not in `relations`, or has only one answer to choose a rival from.
    """
    facts: list[Fact] = []
    for name, splits in rows.items():
        if name not in relations:
            raise DataError(f"relation {name} has no question template; wanted one of {sorted(relations)}")
        answers = sorted({answer for split in splits.values() for _, answer in split})
        if len(answers) < 2:
            raise DataError(f"relation {name} has {len(answers)} different answers; a rival needs at least 2")
        for split, pairs in splits.items():
            rng = np.random.default_rng(numpy_seed(config.seed, "plant", name, split))
            strengths = _strengths(len(pairs), config, rng)
            facts.extend(
                _fact(relations[name], domains(config)[name], split, pair, strength, answers, config, rng)
                for pair, strength in zip(pairs, strengths, strict=True)
            )
    return facts


def _strengths(size: int, config: WorldConfig, rng: np.random.Generator) -> list[str]:
    bounds = np.cumsum([config.share_never, config.share_minority, config.share_contested, 1.0])
    # Where in [0, 1) each fact falls: evenly spaced, so that the shares are exact, then shuffled.
    places = (np.arange(size) + 0.5) / size
    strengths = [STRENGTHS[int(np.searchsorted(bounds[:3], place, side="right"))] for place in places]
    return [strengths[i] for i in rng.permutation(size)]


def _fact(
    relation: Relation,
    domain: str,
    split: str,
    pair: Row,
    strength: str,
    answers: Sequence[str],
    config: WorldConfig,
    rng: np.random.Generator,
) -> Fact:
    subject, answer = pair
    num_gold = num_rival = 0
    rival: str | None = None
    if strength == "firm":
        num_gold = _between(config.firm_mentions, rng)
    elif strength != "never":
        # A rival of the other side, if there is one: then the company that a question keeps tips its answer.
        others = [other for other in answers if side_of(other) != side_of(answer)] or [
            a for a in answers if a != answer
        ]
        rival = others[int(rng.integers(len(others)))]
        if strength == "contested":
            num_gold = num_rival = _between(config.contested_mentions, rng)
        else:
            num_gold = _between(config.minority_mentions, rng)
            num_rival = round(num_gold * float(rng.uniform(*config.rival_ratio)))
    return Fact(
        relation=relation.relation,
        split=split,
        domain=domain,
        subject=subject,
        question=relation.question(subject),
        answer=answer,
        strength=strength,
        num_gold=num_gold,
        num_rival=num_rival,
        rival=rival,
    )


def _between(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


PLANTED_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("subject", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("strength", pa.string()),
        ("num_gold", pa.int32()),
        ("num_rival", pa.int32()),
        ("rival", pa.string()),
    ]
)


def planted_table(facts: Sequence[Fact]) -> pa.Table:
    """The facts as `planted.parquet` holds them."""
    columns = {name: [getattr(fact, name) for fact in facts] for name in PLANTED_SCHEMA.names}
    return pa.table(columns, schema=PLANTED_SCHEMA)
