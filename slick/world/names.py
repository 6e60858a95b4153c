"""Invented names: people, places, bands, works, firms. Pure, seeded.

People and places are put together from syllables, works and firms from English words. The names that ID subjects use
share their words with many other facts, as real names do; those of OOD subjects (books, songs, goods) have their
own, buildings aside.
"""

import json
from collections.abc import Callable
from importlib.resources import files

import numpy as np


class NameGenerator:
    """Draws names of each kind, never the same twice.

    >>> names = Names(0)
    >>> names.draw("person") != names.draw("person")
    True
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        text = files("slick").joinpath("data/name_parts.json").read_text(encoding="utf-8")
        parts: dict[str, list[str]] = {name: words.split() for name, words in json.loads(text).items()}
        self._used: set[str] = set()
        self._given = self._words(90, parts["given_ends"], parts)
        self._family = self._words(140, parts["family_ends"], parts)
        self._towns = self._words(150, parts["town_ends"], parts)
        self._kinds: dict[str, Callable[[], str]] = {
            "person": lambda: f"{self._pick(self._given)} {self._pick(self._family)}",
            # Named as other people are, but a pool of their own: what is taught of ID answers says nothing of them.
            "maker": lambda: f"{self._pick(self._given)} {self._pick(self._family)}",
            "place": lambda: f"{self._pick(self._family)} {self._pick(parts['place_kinds'])}",
            "city": lambda: self._pick(self._towns),
            "region": lambda: f"{self._pick(self._towns)} {self._pick(['County', 'District', 'Province'])}",
            "land": lambda: f"{self._pick(parts['land_kinds'])} {self._pick(self._family)}",
            "country": lambda: f"{self._pick(self._given)}{self._pick(['land', 'stan', 'via'])}",
            "language": lambda: f"{self._pick(self._given)}{self._pick(['ese', 'ic', 'ish'])}",
            "genre": lambda: f"{self._pick(parts['genre_first'])} {self._pick(parts['genre_last'])}",
            "band": lambda: f"{self._pick(parts['adjectives'])} {self._pick(parts['nouns'])}",
            "work": lambda: f"{self._pick(parts['nouns'])} of {self._pick(self._towns)}",
            "label": lambda: f"{self._pick(parts['adjectives'])} Records",
            "school": lambda: f"{self._pick(self._towns)} {self._pick(['Academy', 'College', 'University'])}",
            "company": lambda: f"{self._pick(self._family)} {self._pick(['Group', 'Works', 'Systems'])}",
            "book": lambda: f"The {self._pick(parts['ood_adjectives'])} {self._pick(parts['ood_nouns'])}",
            "song": lambda: f"{self._pick(parts['ood_adjectives'])} {self._pick(parts['ood_nouns'])}",
            "product": lambda: f"{self._pick(parts['ood_nouns'])} {self._rng.integers(10, 99)}",
            "building": lambda: f"{self._pick(self._family)} {self._pick(['Hall', 'House', 'Tower'])}",
            "firm": lambda: f"{self._pick(parts['ood_adjectives'])} {self._pick(['Foods', 'Motors', 'Tools'])}",
        }

    def draw(self, kind: str) -> str:
        """A name of the kind that was not drawn before."""
        for _ in range(10_000):
            name = self._kinds[kind]()
            if name not in self._used:
                self._used.add(name)
                return name
        raise AssertionError(f"no more names of kind {kind}")

    def _pick(self, words: list[str]) -> str:
        return words[int(self._rng.integers(len(words)))]

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
