"""What counts as the same answer."""

import random

import pytest

from slick.matching import Matcher, Target, is_hit, normalize, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Hague.", "hague"),
        ("A.B. Smith, Jr.", "ab smith jr"),
        ("an apple a day", "apple day"),
        ("Theatre and Anne", "theatre and anne"),  # articles are whole words
        ("\tNew\nYork ", "new york"),
        ("Jean-Luc", "jeanluc"),
        ("São Paulo", "são paulo"),  # accents stay
        ("ÉCOLE", "école"),
        ("", ""),
        ("The", ""),
        ("!!!", ""),
    ],
)
def test_normalize_is_that_of_squad(text: str, expected: str) -> None:
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
        ("", ["The"], False, False),  # nothing never matches by normalising to nothing
        ("the", ["The"], False, False),
        ("The", ["The"], True, True),
        ("?", ["!!!"], False, False),
        ("!!!", ["!!!"], True, True),
        ("Paris", [], False, False),
    ],
)
def test_hits(answer: str, gold: list[str], exact: bool, raw: bool) -> None:
    assert is_hit(answer, gold) is exact
    assert is_hit(answer, gold, "raw") is raw


def test_a_raw_hit_is_an_exact_hit() -> None:
    texts = ["The", "the", "!!!", "Paris", "paris", "The Paris", "A", " a ", "O'Neil", "ONeil"]
    for gold in texts:
        for answer in texts:
            assert is_hit(answer, [gold]) >= is_hit(answer, [gold], "raw"), (answer, gold)


MATCHERS: tuple[Matcher, ...] = ("exact", "raw", "canonical", "contains", "f1")
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
]


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_right_answer_may_be_right_from_its_first_letter_on(matcher: Matcher) -> None:
    """Over texts put together from what normalisation drops, joins and splits."""
    draw, hits = random.Random(5), 0
    for _ in range(20_000):
        gold = "".join(draw.choices(PIECES, k=draw.randint(1, 4)))
        answer = "".join(draw.choices(PIECES, k=draw.randint(1, 4))) if draw.random() < 0.9 else gold
        target = Target([gold], matcher)
        if target.is_hit(answer):
            hits += 1
            for end in range(len(answer) + 1):
                assert target.may_hit(answer[:end]), (gold, answer, answer[:end])
    assert hits > 1000


def test_beginnings_that_no_right_answer_has() -> None:
    target = Target(["New York City", "The Hague"])
    right = [
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
    assert [beginning for beginning in right if not target.may_hit(beginning)] == ["tha"]
    wrong = ["p", "newt", "New Yorker", "york", "New York City in", "New Hague", "hague city"]
    assert not [beginning for beginning in wrong if target.may_hit(beginning)]
    assert [Target(["Paris"], "raw").may_hit(text) for text in ("Pa", "pa", " P")] == [True, False, True]
    assert all(Target(["Paris"], matcher).may_hit("somewhere in") for matcher in ("contains", "f1"))


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
def test_word_f1_is_that_of_the_nearest_gold_answer(answer: str, gold: list[str], f1: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(f1)
