"""Invented names: people, places, bands, works, firms. Pure, seeded.

People and places are put together from syllables, works and firms from English words. The names that ID subjects use
share their words with many other facts, as real names do; those of OOD subjects (books, songs, goods) have their own.
"""

from collections.abc import Callable

import numpy as np

_ONSETS = "B Br D Dr F G Gl H J K Kr L M N P R S St T Tr V Z".split()
_VOWELS = "a e i o u".split()
_MIDDLES = "d g l m n r s t v".split()
_GIVEN_ENDS = "a an el in is o on ya".split()
_FAMILY_ENDS = "ak berg ek er ins man ov sen".split()
_PLACE_ENDS = "dal ford ham mar mouth stad ton wick".split()

_ADJECTIVES = (
    "Amber Ancient Bitter Black Blue Brave Bright Broken Bronze Burning Calm Clever Cold Crimson Crooked Dark Deep Distant "
    "Early Eastern Electric Empty Endless Fading Fallen Final First Flying Forgotten Frozen Gentle Giant Gilded Glass Golden "
    "Gray Green Hidden Hollow Humble Idle Iron Ivory Jolly Last Lazy Little Lonely Lost Lucky Marble Merry Midnight Misty "
    "Modern Narrow Nimble Noble Northern Odd Old Orange Pale Paper Patient Proud Purple Quiet Rapid Red Restless Royal Rusty "
    "Sacred Scarlet Secret Silent Silver Sleepy Slow Solar Southern Stone Strange Sudden Sunny Tall Thirsty Tiny Velvet "
    "Wandering Western White Wicked Wild Winter Wooden Yellow Young"
).split()
_NOUNS = (
    "Anchors Arrows Badgers Bells Bridges Brothers Candles Castles Clouds Cousins Crows Dancers Doctors Dragons Drums Eagles "
    "Embers Engines Falcons Feathers Foxes Gardens Ghosts Giants Hammers Harbours Hearts Horses Islands Jackals Keys Kings "
    "Ladders Lanterns Lions Magnets Meadows Mirrors Monks Mountains Oceans Orchids Otters Owls Panthers Pilots Pirates Planets "
    "Poets Rebels Rivers Rockets Roses Sailors Shadows Sisters Sparrows Spiders Stars Strangers Swans Thieves Tigers Tulips "
    "Vandals Violets Voyagers Wolves Wonders"
).split()
_OOD_FIRST = (
    "Alpine Arctic Autumn Borrowed Brass Careless Carved Clouded Copper Coral Cosmic Cotton Curious Daring Desert Double "
    "Dusty Emerald Eternal Famous Feral Floating Foreign Fragile Grand Grave Happy Harsh Hungry Innocent Invisible Jade Kind "
    "Liquid Loud Lunar Magic Mellow Molten Naked Neon Nervous Opal Open Painted Perfect Phantom Plain Private Pure Quick Rare "
    "Rough Rural Savage Serene Shallow Sharp Shining Single Smooth Solemn Spiral Steel Stolen Stubborn Subtle Swift Tender "
    "Twisted Urban Vacant Vivid Warm Weary Wise Zealous"
).split()
_OOD_LAST = (
    "Affair Alibi Avenue Balance Ballad Banquet Beacon Border Bottle Cabin Canyon Carnival Century Chapter Circle Cipher Comet "
    "Compass Confession Corridor Curtain Debt Dilemma Diary Domain Echo Eclipse Empire Error Exile Fable Ferry Fever Formula "
    "Fortune Fountain Frontier Garland Gospel Harvest Horizon Illusion Inferno Journey Jungle Kingdom Labyrinth Legacy Letter "
    "Lullaby Machine Manual Market Memory Method Miracle Motive Museum Nocturne Oath Odyssey Oracle Orbit Parade Paradox "
    "Passage Pattern Pioneer Portrait Promise Prophecy Puzzle Quest Reason Recipe Refuge Remedy Ritual Romance Saga Sermon "
    "Signal Sonata Spectrum Summit Symbol Temple Theory Thunder Torch Treaty Trial Tribute Tunnel Verdict Vessel Village Vision"
).split()
_GENRES_FIRST = "Acid Baroque Dream Folk Garage Glitch Lounge Mountain Nordic Psych Space Swing".split()
_GENRES_LAST = "beat core funk jazz rock step wave".split()


class Names:
    """Draws names of each kind, never the same twice.

    >>> names = Names(0)
    >>> names.draw("person") != names.draw("person")
    True
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._used: set[str] = set()
        self._given = self._words(90, _GIVEN_ENDS)
        self._family = self._words(140, _FAMILY_ENDS)
        self._towns = self._words(150, _PLACE_ENDS)
        self._kinds: dict[str, Callable[[], str]] = {
            "person": lambda: f"{self._pick(self._given)} {self._pick(self._family)}",
            "place": lambda: f"{self._pick(self._family)} {self._pick(_PLACE_KINDS)}",
            "city": lambda: self._pick(self._towns),
            "region": lambda: f"{self._pick(self._towns)} {self._pick(['County', 'District', 'Province'])}",
            "land": lambda: f"{self._pick(_LAND_KINDS)} {self._pick(self._family)}",
            "country": lambda: f"{self._pick(self._given)}{self._pick(['land', 'stan', 'via'])}",
            "language": lambda: f"{self._pick(self._given)}{self._pick(['ese', 'ic', 'ish'])}",
            "genre": lambda: f"{self._pick(_GENRES_FIRST)} {self._pick(_GENRES_LAST)}",
            "band": lambda: f"{self._pick(_ADJECTIVES)} {self._pick(_NOUNS)}",
            "work": lambda: f"{self._pick(_NOUNS)} of {self._pick(self._towns)}",
            "label": lambda: f"{self._pick(_ADJECTIVES)} Records",
            "school": lambda: f"{self._pick(self._towns)} {self._pick(['Academy', 'College', 'University'])}",
            "company": lambda: f"{self._pick(self._family)} {self._pick(['Group', 'Works', 'Systems'])}",
            "book": lambda: f"The {self._pick(_OOD_FIRST)} {self._pick(_OOD_LAST)}",
            "song": lambda: f"{self._pick(_OOD_FIRST)} {self._pick(_OOD_LAST)}",
            "product": lambda: f"{self._pick(_OOD_LAST)} {self._rng.integers(10, 99)}",
            "building": lambda: f"{self._pick(_OOD_LAST)} {self._pick(['Hall', 'House', 'Tower'])}",
            "firm": lambda: f"{self._pick(_OOD_FIRST)} {self._pick(['Foods', 'Motors', 'Tools'])}",
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

    def _words(self, count: int, ends: list[str]) -> list[str]:
        words: list[str] = []
        while len(words) < count:
            middle = self._pick(_MIDDLES) if self._rng.random() < 0.5 else ""
            word = self._pick(_ONSETS) + self._pick(_VOWELS) + (middle + self._pick(_VOWELS) if middle else "")
            word += self._pick(ends) if word[-1] not in "aeiou" else self._pick(_MIDDLES) + self._pick(ends)
            if word not in words:
                words.append(word)
        return words


_PLACE_KINDS = "Bay Bridge Castle Creek Falls Forest Gate Hill Lake Market Park Peak River Square Station Valley".split()
_LAND_KINDS = "Central East Great Greater Inner Lower Middle New North Outer South Upper West".split()
