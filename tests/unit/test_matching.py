"""Matching of answers with gold answers."""

import random
import sys
import unicodedata

import pytest

from slick.errors import SettingsError
from slick.matching import JUDGE, MATCHERS, is_hit, make_matcher, normalize, token_f1

TEXT_MATCHERS = [name for name in MATCHERS.names() if name != JUDGE]
"""Matchers that compare texts themselves."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Hague.", "hague"),
        ("A.B. Smith, Jr.", "ab smith jr"),
        ("an apple a day", "apple day"),
        ("Theatre and Anne", "theatre and anne"),  # articles are whole words
        ("\tNew\nYork ", "new york"),
        ("Jean-Luc", "jeanluc"),
        ("São Paulo", "são paulo"),  # accents are kept
        ("ÉCOLE", "école"),
        ("", ""),
        ("The", ""),
        ("!!!", ""),
    ],
)
def test_normalize_follows_squad(text: str, expected: str) -> None:
    assert normalize(text) == expected
    assert normalize(expected) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "raw"),
    [
        ("Paris", ["Paris"], True, True),
        (" Paris ", ["Paris"], True, True),
        ("paris.", ["Paris"], True, False),
        ("the Paris", ["Paris"], True, False),
        ("Paris, France", ["Paris"], False, False),  # not containment
        ("Par", ["Paris"], False, False),
        ("Lutetia", ["Paris", "Lutetia"], True, True),  # any gold answer
        ("", ["Paris"], False, False),
        ("", ["The"], False, False),  # an answer that is empty after normalization never matches
        ("the", ["The"], False, False),
        ("The", ["The"], True, True),
        ("?", ["!!!"], False, False),
        ("!!!", ["!!!"], True, True),
        ("Paris", [], False, False),
    ],
)
def test_hits_of_every_matcher(answer: str, gold: list[str], exact: bool, raw: bool) -> None:
    assert is_hit(answer, gold) is exact
    assert is_hit(answer, gold, "raw") is raw


def test_raw_hits_are_exact_hits() -> None:
    texts = ["The", "the", "!!!", "Paris", "paris", "The Paris", "A", " a ", "O'Neil", "ONeil"]
    for gold in texts:
        for answer in texts:
            assert is_hit(answer, [gold]) >= is_hit(answer, [gold], "raw"), (answer, gold)


PIECES = [
    "a",
    "an",
    "the",
    "The",
    "th",
    "ana",
    "Athens",
    "the a",
    " ",
    "  ",
    ".",
    "-",
    "•",
    "é",
    "e\u0301",
    "ΟΔΟΣ",
    "σ",
    "x",
    "\u0301",
    "\u0323",  # its canonical position is before an acute accent
    "ΟΣ\u0301",
    "I\u0307",
    "=\u0338",
    "\u1112\u1161\u11ab",
    "한",
    "\u212b",
]


@pytest.mark.parametrize("matcher", [*TEXT_MATCHERS, "f1>=0.7", "first-sentence:exact"])
def test_every_prefix_of_a_hit_can_still_match(matcher: str) -> None:
    """Random texts of pieces that normalization drops, joins and splits."""
    rng, hits = random.Random(5), 0
    for _ in range(20_000):
        gold = "".join(rng.choices(PIECES, k=rng.randint(1, 4)))
        answer = "".join(rng.choices(PIECES, k=rng.randint(1, 4))) if rng.random() < 0.9 else gold
        answer = unicodedata.normalize(rng.choice(("NFC", "NFD")), answer)
        target = make_matcher([gold], matcher)
        if target.is_hit(answer):
            hits += 1
            for end in range(len(answer) + 1):
                assert target.can_still_match(answer[:end]), (gold, answer, answer[:end])
    assert hits > 1000


def test_prefixes_of_no_hit_cannot_match() -> None:
    target = make_matcher(["New York City", "The Hague"])
    possible = [
        "",
        "n",
        "the",
        "The N",
        "new york",
        "New  York ci",
        "h",
        "'New",
        "New York City.",
        "New York City t",
        "tha",
    ]
    assert [beginning for beginning in possible if not target.can_still_match(beginning)] == ["tha"]
    impossible = ["p", "newt", "New Yorker", "york", "New York City in", "New Hague", "hague city"]
    assert not [beginning for beginning in impossible if target.can_still_match(beginning)]
    assert [make_matcher(["Paris"], "raw").can_still_match(text) for text in ("Pa", "pa", " P")] == [True, False, True]
    assert all(make_matcher(["Paris"], matcher).can_still_match("somewhere in") for matcher in ("contains", "f1"))


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("The Hague", ["hague"], 1.0),
        ("!!!", ["!!!"], 1.0),
        ("New York City", ["New York", "City"], 0.8),
        ("York York", ["York New"], 0.5),
        ("Oslo", ["Rome"], 0.0),
        ("", ["Rome"], 0.0),
        ("Rome", [], 0.0),
    ],
)
def test_word_f1_uses_the_closest_gold_answer(answer: str, gold: list[str], f1: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "f1"), [("New York City", 0.8), ("the big New York City", 2 / 3), ("York", 2 / 3), ("Oslo", 0.0)]
)
def test_f1_matchers_differ_in_their_threshold(answer: str, f1: float) -> None:
    assert token_f1(answer, ["New York"]) == pytest.approx(f1)
    for threshold in ("0.1", "0.5", "0.65", "0.7", "0.8", "1"):
        assert is_hit(answer, ["New York"], f"f1>={threshold}") == (f1 >= float(threshold))
    assert is_hit(answer, ["New York"], "f1") == is_hit(answer, ["New York"], "f1>=0.5")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f1>=7", r"the matcher f1>=x needs a word F1 in \(0, 1\], got 'f1>=7'"),
        ("f1>=0", "needs a word F1"),
        ("f1>=nan", "needs a word F1"),
        ("f1>=", "needs a word F1"),
        ("f1>=0.70", "not in its shortest form; write 'f1>=0.7'"),
        ("f1>=1.0", "write 'f1>=1'"),
        ("f1>= 0.7", "write 'f1>=0.7'"),
        ("f1>0.7", "there is no matcher 'f1>0.7'; there are exact"),
        ("raw>=0.7", "there is no matcher"),
        ("fuzzy", "there are exact, raw, canonical, contains, f1, judge, names, f1>=x, first-sentence:NAME"),
    ],
)
def test_every_threshold_has_one_name(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_matcher(["New York"], name)


ACCENTED = ["São Paulo", "Reykjavík", "Chișinău", "Ångström", "ÉCOLE", "한국", "Việt Nam", "≠", "á"]


@pytest.mark.parametrize("matcher", TEXT_MATCHERS)
@pytest.mark.parametrize("gold", ACCENTED)
def test_canonically_equivalent_texts_are_the_same_answer(matcher: str, gold: str) -> None:
    forms = {unicodedata.normalize(form, gold) for form in ("NFC", "NFD")}
    assert len(forms) == 2
    for first in forms:
        target = make_matcher([first], matcher)
        for second in forms:
            assert target.is_hit(second)
            assert all(target.can_still_match(second[:end]) for end in range(len(second) + 1))
            assert normalize(first) == normalize(second)
            assert token_f1(first, [second]) == 1.0


def test_combining_marks_may_be_reordered() -> None:
    target, answer = make_matcher(["x\u1ea1\u0301y"]), "xa\u0301\u0323y"  # an acute accent, then a dot below
    assert target.is_hit(answer)
    assert all(target.can_still_match(answer[:end]) for end in range(len(answer)))


def test_prefixes_of_decomposed_characters_can_still_match() -> None:
    for character in filter(str.isprintable, map(chr, range(sys.maxunicode + 1))):
        decomposed = unicodedata.normalize("NFD", character)
        if decomposed != character and not 0xAC00 <= ord(character) < 0xD7A4:  # Hangul is covered above
            target, answer = make_matcher([f"x{character}y"]), f"x{decomposed}y"
            assert target.is_hit(answer), hex(ord(character))
            assert all(target.can_still_match(answer[:end]) for end in range(len(answer))), hex(ord(character))


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("\uff30\uff41\uff52\uff49\uff53", "Paris"),  # full-width letters
        ("\ufb01ne", "fine"),  # a ligature
        ("Par\u200bis", "Paris"),  # a zero-width space
        ("O\u2019Neil", "O'Neil"),  # a typographic apostrophe
        ("Sao Paulo", "São Paulo"),
        ("H2O", "H\u2082O"),
    ],
)
def test_compatibility_forms_do_not_match(answer: str, gold: str) -> None:
    for matcher in ("exact", "raw", "canonical"):
        assert not is_hit(answer, [gold], matcher)
        assert not is_hit(gold, [answer], matcher)


def test_white_space_is_normalized_except_by_raw() -> None:
    assert is_hit("New\u00a0York", ["New York"])
    assert not is_hit("New\u00a0York", ["New York"], "raw")
