"""The one matcher of the house: it serves annotation, evaluation and analysis.

The paper says exact match and no more. `exact`, the default, compares after the normalisation of
SQuAD (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no English article, single spaces; `raw` compares
the strings as they are, white space at the ends aside. The others normalise as `exact` does: `canonical` knows no
other name of the answer than the first, `contains` is satisfied where the answer stands among other words, `f1` where
half of the words agree (F1 of SQuAD, 0.5 or more).

Every matcher compares texts in Unicode's normalisation form C (NFC), so that canonically equivalent texts, such as
"e" with a combining accent and "é", are the same text. Nothing else changes exact match: compatibility forms
(full-width letters, ligatures), typographic quotes, dashes and zero-width characters are other texts, as they are for
SQuAD's evaluation. Every kind of white space that Unicode has, a non-breaking space too, separates words, as there.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

Matcher = Literal["exact", "raw", "canonical", "contains", "f1"]
F1_THRESHOLD = 0.5

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LETTERS = re.compile(r"\w+")


def nfc(text: str) -> str:
    """A text in Unicode's normalisation form C: the same for all texts that are canonically equivalent.

    It is also the form in which a model is asked and trained: nearly all text that models are trained on is in this
    form, and most tokenizers keep the form that they are given.

    >>> len("e\u0301"), len(nfc("e\u0301"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", text)


def normalize(text: str) -> str:
    """An answer as SQuAD's evaluation compares it, whatever the Unicode form it is written in.

    >>> normalize("The  Hague.")
    'hague'
    """
    # NFC first: a decomposed "≠" holds "=", which is punctuation, and a decomposed "á" holds "a", which is an article.
    # NFC last: letters and marks that punctuation kept apart may compose.
    return nfc(" ".join(_ARTICLES.sub(" ", nfc(text).lower().translate(_PUNCTUATION)).split()))


def is_hit(answer: str, gold: Sequence[str], matcher: Matcher = "exact") -> bool:
    """True if the answer matches any of the gold answers.

    A gold answer that normalises to nothing (such as "A" or "!!!") is compared raw: nothing matches nothing otherwise.

    >>> is_hit("the hague", ["The Hague"]), is_hit("the hague", ["The Hague"], "raw"), is_hit("", ["The"])
    (True, False, False)
    """
    return GoldMatcher(gold, matcher).is_hit(answer)


def token_f1(answer: str, gold: Sequence[str]) -> float:
    """F1 of the words of an answer and of the gold answer nearest to it, in [0, 1], normalised as `exact` does.

    An answer that hits has 1, also where both normalise to nothing.

    Source: SQuAD (Rajpurkar et al. 2016, https://aclanthology.org/D16-1264), section 5.

    >>> token_f1("The New York City", ["York", "New York"]), token_f1("Oslo", ["New York"]), token_f1("", ["York"])
    (0.8, 0.0, 0.0)
    """
    return token_f1_scorer(gold)(answer)


def token_f1_scorer(gold: Sequence[str]) -> Callable[[str], float]:
    """See `token_f1`; the gold answers of one question, prepared once for many answers."""
    target, worded = GoldMatcher(gold), [Counter(normalize(one).split()) for one in gold]

    def f1(answer: str) -> float:
        if target.is_hit(answer):
            return 1.0
        words = Counter(normalize(answer).split())
        return max((_f1(words, one) for one in worded), default=0.0)

    return f1


def _f1(answer: Counter[str], gold: Counter[str]) -> float:
    common = (answer & gold).total()
    return 2 * common / (answer.total() + gold.total()) if common else 0.0


class GoldMatcher:
    """The gold answers of one question, prepared once for many answers."""

    def __init__(self, gold: Sequence[str], matcher: Matcher = "exact") -> None:
        """Prepare for one matcher."""
        gold = gold[:1] if matcher == "canonical" else gold
        normal = set() if matcher == "raw" else {normalize(answer) for answer in gold} - {""}
        self._normal, self._worded = normal, [words.split() for words in normal]
        self._raw = {nfc(answer).strip() for answer in gold if matcher == "raw" or not normalize(answer)}
        self._raw_beginnings = [_nfd(raw) for raw in self._raw]
        self._word_beginnings = [[_nfd(word) for word in words] for words in self._worded]
        self._fits = {"contains": _contains, "f1": _shares_words}.get(matcher)

    def is_hit(self, answer: str) -> bool:
        """See `is_hit`."""
        if self._fits is not None:
            words = normalize(answer).split()
            return any(self._fits(words, gold) for gold in self._worded)
        return normalize(answer) in self._normal or nfc(answer).strip() in self._raw

    def can_still_match(self, beginning: str) -> bool:
        """False if no answer that begins like this is a hit; True if one may be.

        >>> target = Target(["The Hague"])
        >>> [target.may_hit(beginning) for beginning in ("", "T", "The", "Ha", "The Hague,", "Har", "A Hague in")]
        [True, True, True, True, True, False, False]
        """
        beginning = nfc(beginning)
        start = _stable_prefix(beginning.strip())
        if self._fits is not None or any(raw.startswith(start) for raw in self._raw_beginnings):
            return True
        *whole, last = beginning.split() or [""]
        known = normalize(" ".join(whole)).split()
        last = last.lower().translate(_PUNCTUATION)
        start = _stable_prefix(last).rstrip("σς")  # which of the two depends on what follows
        if "the".startswith(last) or last in ("a", "an") or not _LETTERS.fullmatch(last):
            start = ""  # it may yet be dropped, in whole or in part
        num = len(known)
        return any(
            gold[:num] == known and (not start or (len(gold) > num and beginnings[num].startswith(start)))
            for gold, beginnings in zip(self._worded, self._word_beginnings, strict=True)
        )


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _stable_prefix(beginning: str) -> str:
    """The part of a text that cannot change when more text follows, decomposed.

    Composed, the last letter changes when a combining mark follows, so beginnings are compared decomposed. The marks
    at the end are left out, since one that follows may have its place before them.
    """
    text = _nfd(beginning)
    end = len(text)
    while end and unicodedata.combining(text[end - 1]):
        end -= 1
    return text[:end]


def _contains(answer: list[str], gold: list[str]) -> bool:
    return any(answer[i : i + len(gold)] == gold for i in range(len(answer) - len(gold) + 1))


def _shares_words(answer: list[str], gold: list[str]) -> bool:
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common >= F1_THRESHOLD * (len(answer) + len(gold)) and common > 0
