"""What counts as the same answer."""

import pytest

from slick.matching import hit_tester, is_hit, normalize


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
    assert (hit_tester(gold)(answer), hit_tester(gold, "raw")(answer)) == (exact, raw)


def test_a_raw_hit_is_an_exact_hit() -> None:
    texts = ["The", "the", "!!!", "Paris", "paris", "The Paris", "A", " a ", "O'Neil", "ONeil"]
    for gold in texts:
        for answer in texts:
            assert is_hit(answer, [gold]) >= is_hit(answer, [gold], "raw"), (answer, gold)
