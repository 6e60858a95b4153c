"""The one matcher of the house: it serves annotation, evaluation and analysis.

The paper says exact match and no more. `exact`, the default, compares after the normalisation of
SQuAD (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no English article, single spaces; `raw` compares
the strings as they are, white space at the ends aside. The others normalise as `exact` does: `canonical` knows no
other name of the answer than the first, `contains` is satisfied where the answer stands among other words, `f1` where
half of the words agree (F1 of SQuAD, 0.5 or more).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

Matcher = Literal["exact", "raw", "canonical", "contains", "f1"]
F1_LIMIT = 0.5

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """An answer as SQuAD's evaluation compares it.

    >>> normalize("The  Hague.")
    'hague'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_hit(answer: str, gold: Sequence[str], matcher: Matcher = "exact") -> bool:
    """True if the answer matches any of the gold answers.

    A gold answer that normalises to nothing (such as "A" or "!!!") is compared raw: nothing matches nothing otherwise.

    >>> is_hit("the hague", ["The Hague"]), is_hit("the hague", ["The Hague"], "raw"), is_hit("", ["The"])
    (True, False, False)
    """
    return hit_tester(gold, matcher)(answer)


def hit_tester(gold: Sequence[str], matcher: Matcher = "exact") -> Callable[[str], bool]:
    """`is_hit` with the gold answers prepared once, for many answers to one question."""
    if matcher == "raw":
        raw = {answer.strip() for answer in gold}
        return lambda answer: answer.strip() in raw
    if matcher == "canonical":
        return hit_tester(gold[:1])
    if matcher in ("contains", "f1"):
        worded = [normalize(answer).split() for answer in gold if normalize(answer)]
        fits = _contains if matcher == "contains" else _shares_words
        return lambda answer: any(fits(normalize(answer).split(), words) for words in worded)
    normal = {normalize(answer) for answer in gold} - {""}
    unnormal = {answer.strip() for answer in gold if not normalize(answer)}
    return lambda answer: normalize(answer) in normal or answer.strip() in unnormal


def _contains(answer: list[str], gold: list[str]) -> bool:
    return any(answer[i : i + len(gold)] == gold for i in range(len(answer) - len(gold) + 1))


def _shares_words(answer: list[str], gold: list[str]) -> bool:
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common >= F1_LIMIT * (len(answer) + len(gold)) and common > 0
