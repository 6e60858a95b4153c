"""The facts of a planted world: subjects, answers, and the strength of each fact. Deterministic by seed.

Names of people and places are composed of syllables, those of works and companies of English words. The names of OOD
relations overlap with those of ID relations as much as in EntityQuestions: authors, creators and founders are partly
people that ID relations ask about or answer with, and most words of OOD names occur in ID names.
`python -m tests.benchmarks.archive_overlap` compares both. One overlap is left out: no OOD subject is also an ID
subject (5 % in EntityQuestions), because every subject of a world has one question.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pyarrow as pa

from slick.datasets.relations import Relation
from slick.errors import DataError
from slick.rng import derive_seed
from slick.study_files import PLANTED_SCHEMA
from slick.world.config import WorldConfig

SHARED_WORDS = 0.72
"""Probability that an English word of an OOD name is one of those that ID names use (EntityQuestions: 0.73)."""

NUM_LANGUAGES = 60
"""Languages of a world. Some genres, labels and schools are named after a language."""

NATIONAL_NAMES = 0.4
"""Probability that a genre, a label or a school is named after a language."""


class NameGenerator:
    """Draws distinct names of each kind.

    Args:
        seed: the seed of the names.
        shared_words: probability that an English word of an OOD name is one that ID names use. The default keeps the
            names of control questions as they were in earlier studies.

    >>> names = NameGenerator(0)
    >>> names.draw("person") != names.draw("person")
    True
    """

    def __init__(self, seed: int, shared_words: float = 0.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._shared_words = shared_words
        text = files("slick").joinpath("data/name_parts.json").read_text(encoding="utf-8")
        parts: dict[str, list[str]] = {kind: parts.split() for kind, parts in json.loads(text).items()}
        self._used: set[str] = set()
        self._given = self._words(90, parts["given_ends"], parts)
        self._family = self._words(140, parts["family_ends"], parts)
        self._towns = self._words(150, parts["town_ends"], parts)
        self._languages = [
            f"{given}{('ese', 'ic', 'ish')[i % 3]}" for i, given in enumerate(self._given[:NUM_LANGUAGES])
        ]
        self._kinds: dict[str, Callable[[], str]] = {
            "person": lambda: f"{self._pick(self._given)} {self._pick(self._family)}",
            # A person that no ID relation mentions.
            "maker": lambda: f"{self._pick(self._given)} {self._pick(self._family)}",
            "place": lambda: f"{self._pick(self._family)} {self._pick(parts['place_kinds'])}",
            "city": lambda: self._pick(self._towns),
            "region": lambda: f"{self._pick(self._towns)} {self._pick(['County', 'District', 'Province'])}",
            "land": lambda: f"{self._pick(parts['land_kinds'])} {self._pick(self._family)}",
            "country": lambda: f"{self._pick(self._given)}{self._pick(['land', 'stan', 'via'])}",
            "language": lambda: self._pick(self._languages),
            "genre": lambda: f"{self._national(parts['genre_first'])} {self._pick(parts['genre_last'])}",
            "band": lambda: f"{self._pick(parts['adjectives'])} {self._pick(parts['nouns'])}",
            "work": lambda: f"{self._pick(parts['nouns'])} of {self._pick(self._towns)}",
            "label": lambda: f"{self._national(parts['adjectives'])} Records",
            "school": lambda: f"{self._national(self._towns)} {self._pick(['Academy', 'College', 'University'])}",
            "company": lambda: (
                f"{self._pick(self._family)} {self._pick(['Brothers', 'Group', 'Industries', 'Works', 'Systems'])}"
            ),
            "book": lambda: f"The {self._ood_word('adjectives', parts)} {self._ood_word('nouns', parts)}",
            "song": lambda: f"{self._ood_word('adjectives', parts)} {self._ood_word('nouns', parts)}",
            "product": lambda: f"{self._ood_word('nouns', parts)} {self._rng.integers(10, 99)}",
            "building": lambda: f"{self._pick(self._family)} {self._pick(['Hall', 'House', 'Tower'])}",
            "firm": lambda: f"{self._ood_word('adjectives', parts)} {self._pick(['Foods', 'Motors', 'Tools'])}",
        }

    def draw(self, kind: str) -> str:
        """A new name of a kind."""
        for _ in range(10_000):
            name = self._kinds[kind]()
            if name not in self._used:
                self._used.add(name)
                return name
        raise AssertionError(f"no more names of kind {kind}")

    def _pick(self, words: list[str]) -> str:
        return words[int(self._rng.integers(len(words)))]

    def _ood_word(self, kind: str, parts: Mapping[str, list[str]]) -> str:
        is_shared = self._shared_words > 0 and self._rng.random() < self._shared_words
        return self._pick(parts[kind if is_shared else f"ood_{kind}"])

    def _national(self, words: list[str]) -> str:
        return self._pick(self._languages if self._rng.random() < NATIONAL_NAMES else words)

    def _words(self, count: int, ends: list[str], parts: dict[str, list[str]]) -> list[str]:
        words: list[str] = []
        while len(words) < count:
            middle = self._pick(parts["middles"]) if self._rng.random() < 0.5 else ""
            word = (
                self._pick(parts["onsets"])
                + self._pick(parts["vowels"])
                + (middle + self._pick(parts["vowels"]) if middle else "")
            )
            word += self._pick(ends) if word[-1] not in "aeiou" else self._pick(parts["middles"]) + self._pick(ends)
            if word not in words:
                words.append(word)
        return words


STRENGTHS = ("never", "minority", "contested", "firm")
"""Strengths of facts, weakest first."""

FIRM_SHARE_OF_FAMOUS = 0.75
"""Probability that a fact with a famous answer is made firm before other facts."""

SubjectAnswer = tuple[str, str]
"""A subject and the only answer to its question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact, and its mentions in the corpus."""

    relation: str
    split: str
    domain: str
    subject: str
    question: str
    answer: str
    strength: str
    num_gold: int
    """Mentions of the answer in one epoch of the corpus."""
    num_rival: int
    """Mentions of the rival answer in one epoch of the corpus."""
    rival: str | None

    @property
    def popularity(self) -> int:
        """Documents of one epoch that mention the subject. A document mentions a subject at most once."""
        return self.num_gold + self.num_rival


@dataclass(frozen=True, slots=True)
class _Reuse:
    """Names of ID relations among the answers of an OOD relation."""

    share: float
    """Share of the OOD relation's answers that are taken from these relations (measured in EntityQuestions)."""
    relations: tuple[str, ...]
    """ID relations. Those that the world does not have are ignored."""


@dataclass(frozen=True, slots=True)
class _EntityKinds:
    """Kinds of names of a relation's subjects and answers, and the number of distinct answers."""

    subjects: tuple[str, ...]
    """Kinds of the subjects, equally often."""
    answer: str
    num_answers: int
    id_answers: _Reuse | None = None
    """ID answers that are answers of this OOD relation, too."""
    id_subjects: _Reuse | None = None
    """ID subjects that are answers of this OOD relation, too."""


_PEOPLE_ASKED = ("P19", "P26", "P40", "P69", "P800")
_ENTITY_KINDS = {
    "P131": _EntityKinds(("place",), "region", 100),
    "P136": _EntityKinds(("band",), "genre", 60),
    "P17": _EntityKinds(("place",), "country", 60),
    "P19": _EntityKinds(("person",), "city", 120),
    "P26": _EntityKinds(("person",), "person", 150),
    "P264": _EntityKinds(("band",), "label", 70),
    "P36": _EntityKinds(("land",), "city", 120),
    "P40": _EntityKinds(("person",), "person", 150),
    "P495": _EntityKinds(("work",), "country", 60),
    "P69": _EntityKinds(("person",), "school", 100),
    "P740": _EntityKinds(("band", "company"), "city", 120),
    "P800": _EntityKinds(("person",), "work", 150),
    "P112": _EntityKinds(("firm",), "maker", 150, _Reuse(0.15, ("P26", "P40")), _Reuse(0.18, _PEOPLE_ASKED)),
    "P127": _EntityKinds(("building",), "company", 100, _Reuse(0.19, ("P19", "P69")), _Reuse(0.21, ("P740",))),
    "P170": _EntityKinds(("product",), "maker", 150, _Reuse(0.14, ("P26", "P40")), _Reuse(0.27, _PEOPLE_ASKED)),
    "P175": _EntityKinds(("song",), "band", 100, _Reuse(0.07, ("P26", "P40")), _Reuse(0.40, ("P136", "P264", "P740"))),
    "P176": _EntityKinds(("product",), "company", 100, _Reuse(0.04, ("P19",)), _Reuse(0.33, ("P740",))),
    "P407": _EntityKinds(("book",), "language", 60),
    "P50": _EntityKinds(("book",), "maker", 150, _Reuse(0.14, ("P26", "P40")), _Reuse(0.24, _PEOPLE_ASKED)),
}


def subject_kind(relation: str) -> str:
    """The kind of name of a relation's subjects, see `NameGenerator`; `place` for other relations."""
    return _ENTITY_KINDS[relation].subjects[0] if relation in _ENTITY_KINDS else "place"


def split_sizes(config: WorldConfig, domain: str) -> dict[str, int]:
    """Number of questions of one relation by split. OOD relations have no training split."""
    if domain == "id":
        return {"train": config.num_train, "dev": config.num_dev, "test": config.num_test}
    return {"dev": config.num_ood_dev, "test": config.num_ood_test}


def relation_domains(config: WorldConfig) -> dict[str, str]:
    """The domain, `id` or `ood`, of each relation of the world."""
    return dict.fromkeys(config.id_relations, "id") | dict.fromkeys(config.ood_relations, "ood")


def synthetic_rows(config: WorldConfig) -> dict[str, dict[str, list[SubjectAnswer]]]:
    """Invented rows by relation and split. No subject occurs twice in the world.

    Relations with the same kind of answer (people, cities, countries) draw from one pool, as real relations do. OOD
    relations replace a part of their pool by names of ID relations.

    Raises:
        DataError: there are no names for a relation.
    """
    unknown = [name for name in relation_domains(config) if name not in _ENTITY_KINDS]
    if unknown:
        raise DataError(f"there are no invented names for relations {unknown}; choose among {sorted(_ENTITY_KINDS)}")
    names = NameGenerator(derive_seed(config.seed, "names"), SHARED_WORDS)
    rng = np.random.default_rng(derive_seed(config.seed, "rows"))
    pools: dict[str, list[str]] = {}
    for kind in _ENTITY_KINDS.values():
        pool = pools.setdefault(kind.answer, [])
        pool.extend(names.draw(kind.answer) for _ in range(kind.num_answers - len(pool)))
    rows: dict[str, dict[str, list[SubjectAnswer]]] = {}
    # ID relations come first, because OOD relations use their names.
    for relation, domain in relation_domains(config).items():
        kind = _ENTITY_KINDS[relation]
        pool = pools[kind.answer] if domain == "id" else _replace_answers(pools[kind.answer], kind, rows, rng)
        rows[relation] = {
            split: [
                (names.draw(kind.subjects[i % len(kind.subjects)]), _draw_answer(pool, config, rng))
                for i in range(size)
            ]
            for split, size in split_sizes(config, domain).items()
        }
    return rows


def _replace_answers(
    pool: Sequence[str],
    kind: _EntityKinds,
    rows: Mapping[str, Mapping[str, Sequence[SubjectAnswer]]],
    rng: np.random.Generator,
) -> list[str]:
    """The pool of an OOD relation. Names of ID rows replace a part of the answers, famous and other ones alike."""
    replaced = list(pool)
    positions = [int(i) for i in rng.permutation(len(pool))]
    for reuse, column in ((kind.id_answers, 1), (kind.id_subjects, 0)):
        if reuse is not None:
            parts = [part for name in reuse.relations for part in rows.get(name, {}).values()]
            names = sorted({row[column] for part in parts for row in part} - {*replaced})
            size = min(round(reuse.share * len(pool)), len(names))
            for i in rng.permutation(len(names))[:size]:
                replaced[positions.pop()] = names[int(i)]
    return replaced


def _draw_answer(pool: Sequence[str], config: WorldConfig, rng: np.random.Generator) -> str:
    """An answer of the pool, whose first answers are famous."""
    num_famous = min(max(1, round(len(pool) * config.famous_share)), len(pool) - 1)
    if rng.random() < config.famous_answers:
        return pool[int(rng.integers(num_famous))]
    return pool[int(rng.integers(num_famous, len(pool)))]


def plant_facts(
    rows: Mapping[str, Mapping[str, Sequence[SubjectAnswer]]], relations: Mapping[str, Relation], config: WorldConfig
) -> list[Fact]:
    """Assign a strength, mentions and a rival to each row. The shares of strengths are the same in every split.

    Args:
        rows: subjects and answers by relation and split.
        relations: the relations, with their question templates.
        config: the settings of the world.

    Raises:
        DataError: a relation is not in `relations`, or has only one answer, so that no rival can be drawn.
    """
    facts: list[Fact] = []
    domains = relation_domains(config)
    fame = Counter(
        (domains[name], answer) for name, splits in rows.items() for split in splits.values() for _, answer in split
    )
    for name, splits in rows.items():
        if name not in relations:
            raise DataError(f"relation {name} has no question template; expected one of {sorted(relations)}")
        answers = sorted({answer for split in splits.values() for _, answer in split})
        if len(answers) < 2:
            raise DataError(
                f"relation {name} has {len(answers)} distinct answers; a rival needs at least 2; add questions"
            )
        famous = sorted(answers, key=lambda answer: (-fame[domains[name], answer], answer))
        famous = famous[: max(1, round(len(answers) * config.famous_share))]
        for split, pairs in splits.items():
            rng = np.random.default_rng(derive_seed(config.seed, "plant", name, split))
            strengths = _assign_strengths([answer in famous for _, answer in pairs], config, rng)
            for (subject, answer), strength in zip(pairs, strengths, strict=True):
                num_gold, num_rival, rival = _draw_mentions(strength, answer, answers, famous, config, rng)
                facts.append(
                    Fact(
                        relation=name,
                        split=split,
                        domain=domains[name],
                        subject=subject,
                        question=relations[name].question(subject),
                        answer=answer,
                        strength=strength,
                        num_gold=num_gold,
                        num_rival=num_rival,
                        rival=rival,
                    )
                )
    return facts


def _assign_strengths(is_famous: Sequence[bool], config: WorldConfig, rng: np.random.Generator) -> list[str]:
    """A strength for each fact, in the configured shares. Most facts with famous answers are firm."""
    size = len(is_famous)
    bounds = np.cumsum([config.share_never, config.share_minority, config.share_contested, 1.0])
    # Evenly spaced positions in [0, 1) give exact shares; they are then shuffled.
    positions = (np.arange(size) + 0.5) / size
    drawn = [STRENGTHS[int(np.searchsorted(bounds[:3], position, side="right"))] for position in positions]
    drawn = sorted((drawn[i] for i in rng.permutation(size)), key=lambda strength: strength != "firm")
    first = np.asarray(is_famous) & (rng.random(size) < FIRM_SHARE_OF_FAMOUS)
    strengths = [""] * size
    for fact, strength in zip(np.argsort(rng.random(size) - first), drawn, strict=True):
        strengths[int(fact)] = strength
    return strengths


def _draw_mentions(
    strength: str,
    answer: str,
    answers: Sequence[str],
    famous: Sequence[str],
    config: WorldConfig,
    rng: np.random.Generator,
) -> tuple[int, int, str | None]:
    """Mentions of an answer, mentions of its rival, and the rival, drawn from the (famous) answers of the relation."""
    if strength == "never":
        return 0, 0, None
    if strength == "firm":
        return _uniform_int(config.firm_mentions, rng), 0, None
    rivals, famous_rivals = ([other for other in pool if other != answer] for pool in (answers, famous))
    share_famous = config.famous_rivals if strength == "contested" else 0.0
    pool = famous_rivals if famous_rivals and rng.random() < share_famous else rivals
    rival = pool[int(rng.integers(len(pool)))]
    if strength == "contested":
        num_gold = _uniform_int(config.contested_mentions, rng)
        # Randomized rounding, so that the mean ratio is exact.
        return num_gold, max(1, int(num_gold * config.rival_mentions_ratio + rng.random())), rival
    num_gold = _uniform_int(config.minority_mentions, rng)
    return num_gold, round(num_gold * float(rng.uniform(*config.rival_ratio))), rival


def _uniform_int(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def planted_table(facts: Sequence[Fact]) -> pa.Table:
    """The table of `planted.parquet`."""
    columns = {name: [getattr(fact, name) for fact in facts] for name in PLANTED_SCHEMA.names}
    return pa.table(columns, schema=PLANTED_SCHEMA)
