"""Whether an answer is correct. Annotation, evaluation and analysis share these matchers.

The paper says "exact match" and nothing more. The default, `exact`, compares answers after SQuAD's normalization
(Rajpurkar et al. 2016): lower case, no ASCII punctuation, no English articles, single spaces. `raw` compares the
strings as they are, apart from white space at both ends. The other matchers normalize like `exact`: `canonical` accepts
only the first gold answer, `contains` accepts a gold answer among other words, and `f1` accepts a word F1 of at least
0.5. `f1>=0.7` has another threshold; in a shell it needs quotes, since `>` redirects the output. `names` accepts a
sentence that has all names and numbers of a gold answer. `first-sentence:NAME` compares only the first sentence of an
answer, by the matcher NAME.

All matchers compare texts in Unicode normalization form C (NFC), so canonically equivalent texts, such as "e" with a
combining accent and "é", are equal. Exact match ignores no other difference: compatibility forms (full-width letters,
ligatures), typographic quotes, dashes and zero-width characters make texts differ, as in SQuAD's evaluation. Any
Unicode white space separates words, including non-breaking spaces.
"""

import math
import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from slick.errors import SettingsError
from slick.registry import Registry
from slick.sentences import first_sentence

FIRST_SENTENCE = "first-sentence:"
"""Beginning of the names of matchers that compare only the first sentence of an answer."""

JUDGE = "judge"
"""A matcher that grades stored texts with a language model; see `slick.annotation.judge`."""
F1_THRESHOLD = 0.5
"""Minimum word F1 of the matcher `f1`."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LETTERS = re.compile(r"\w+")
_PHRASE_WORDS = 5
"""A gold answer with more words is a sentence."""
_NAMES_F1_THRESHOLD = 0.6
_SENTENCE_STARTS = (
    "a an the he she it they we i you his her its their our my your this that these those there in on at after "
    "before during from as by with for when while since although though until once born and but or if to of not "
    "no yes"
)
"""Words that sentences often begin with and that are not names."""


class AnswerMatcher(ABC):
    """The gold answers of one question, prepared once for many answers."""

    @abstractmethod
    def is_hit(self, answer: str) -> bool:
        """Whether the answer is correct."""

    def can_still_match(self, beginning: str) -> bool:
        """Whether an answer that begins like this may be correct.

        Engines stop a sample once this is False, so it must be True for every prefix of a correct answer.
        """
        return True


MATCHERS: Registry[Callable[[Sequence[str]], AnswerMatcher]] = Registry("matcher")
"""Matchers by name: each makes an `AnswerMatcher` from the gold answers of a question."""


def make_matcher(gold: Sequence[str], matcher: str = "exact") -> AnswerMatcher:
    """The matcher of this name for the gold answers of one question.

    Raises:
        SettingsError: there is no such matcher.
    """
    return MATCHERS.get(matcher)(gold)


def is_hit(answer: str, gold: Sequence[str], matcher: str = "exact") -> bool:
    """Whether the answer matches any of the gold answers.

    A gold answer that normalizes to the empty string (such as "A" or "!!!") is compared raw; otherwise an empty answer
    would match it.

    >>> is_hit("the hague", ["The Hague"]), is_hit("the hague", ["The Hague"], "raw"), is_hit("", ["The"])
    (True, False, False)
    """
    return make_matcher(gold, matcher).is_hit(answer)


def nfc(text: str) -> str:
    """The text in Unicode normalization form C, which is the same for all canonically equivalent texts.

    Prompts and training targets are in this form too: nearly all text that models are trained on is NFC, and most
    tokenizers do not change the form.

    >>> len("e\u0301"), len(nfc("e\u0301"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", text)


def normalize(text: str) -> str:
    """The text as SQuAD's evaluation compares it, in any Unicode normalization form.

    >>> normalize("The  Hague.")
    'hague'
    """
    # NFC first: a decomposed "≠" contains "=", which is punctuation, and a decomposed "á" contains "a", an article.
    # NFC last: removing punctuation may leave letters and marks that compose.
    return nfc(" ".join(_ARTICLES.sub(" ", nfc(text).lower().translate(_PUNCTUATION)).split()))


def token_f1(answer: str, gold: Sequence[str]) -> float:
    """Highest word F1 between an answer and any gold answer, in [0, 1], after the normalization of `exact`.

    An answer that matches exactly has F1 1, also if both normalize to the empty string.

    Source: SQuAD (Rajpurkar et al. 2016, https://aclanthology.org/D16-1264), section 5.

    >>> token_f1("The New York City", ["York", "New York"]), token_f1("Oslo", ["New York"]), token_f1("", ["York"])
    (0.8, 0.0, 0.0)
    """
    return token_f1_scorer(gold)(answer)


def token_f1_scorer(gold: Sequence[str]) -> Callable[[str], float]:
    """`token_f1` for the gold answers of one question, prepared once for many answers."""
    matcher, gold_counts = ExactMatcher(gold), [Counter(normalize(text).split()) for text in gold]

    def score(answer: str) -> float:
        if matcher.is_hit(answer):
            return 1.0
        counts = Counter(normalize(answer).split())
        return max((_word_f1(counts, other) for other in gold_counts), default=0.0)

    return score


def _word_f1(answer: Counter[str], gold: Counter[str]) -> float:
    common = (answer & gold).total()
    return 2 * common / (answer.total() + gold.total()) if common else 0.0


@MATCHERS.register("exact")
class ExactMatcher(AnswerMatcher):
    """Equal after normalization."""

    def __init__(self, gold: Sequence[str]) -> None:
        self._normalized = {normalize(answer) for answer in gold} - {""}
        self._raw = RawMatcher([answer for answer in gold if not normalize(answer)])
        self._words = [text.split() for text in self._normalized]
        self._decomposed_words = [[_nfd(word) for word in words] for words in self._words]

    def is_hit(self, answer: str) -> bool:
        """Whether the answer equals a gold answer."""
        return normalize(answer) in self._normalized or self._raw.is_hit(answer)

    def can_still_match(self, beginning: str) -> bool:
        """Whether a gold answer begins like this.

        >>> matcher = ExactMatcher(["The Hague"])
        >>> [matcher.can_still_match(text) for text in ("", "T", "The", "Ha", "The Hague,", "Har", "A Hague in")]
        [True, True, True, True, True, False, False]
        """
        if self._raw.can_still_match(beginning):
            return True
        *whole, last = nfc(beginning).split() or [""]
        known = normalize(" ".join(whole)).split()
        last = last.lower().translate(_PUNCTUATION)
        start = _stable_prefix(last).rstrip("σς")  # which of the two it is depends on the next character
        if "the".startswith(last) or last in ("a", "an") or not _LETTERS.fullmatch(last):
            start = ""  # normalization may still remove it, or a part of it
        num = len(known)
        return any(
            words[:num] == known and (not start or (len(words) > num and decomposed[num].startswith(start)))
            for words, decomposed in zip(self._words, self._decomposed_words, strict=True)
        )


@MATCHERS.register("raw")
class RawMatcher(AnswerMatcher):
    """Equal as written, apart from white space at both ends."""

    def __init__(self, gold: Sequence[str]) -> None:
        self._gold = {nfc(answer).strip() for answer in gold}
        self._decomposed = [_nfd(answer) for answer in self._gold]

    def is_hit(self, answer: str) -> bool:
        """Whether the answer equals a gold answer."""
        return nfc(answer).strip() in self._gold

    def can_still_match(self, beginning: str) -> bool:
        """Whether a gold answer begins like this."""
        start = _stable_prefix(nfc(beginning).strip())
        return any(answer.startswith(start) for answer in self._decomposed)


@MATCHERS.register("canonical")
class CanonicalMatcher(ExactMatcher):
    """Equal to the first gold answer after normalization."""

    def __init__(self, gold: Sequence[str]) -> None:
        super().__init__(gold[:1])


@MATCHERS.register("contains")
class ContainsMatcher(AnswerMatcher):
    """Contains all words of a gold answer in a row, after normalization."""

    def __init__(self, gold: Sequence[str]) -> None:
        self._words = [words for text in gold if (words := normalize(text).split())]

    def is_hit(self, answer: str) -> bool:
        """Whether the answer contains a gold answer."""
        words = normalize(answer).split()
        return any(words[i : i + len(gold)] == gold for gold in self._words for i in range(len(words) - len(gold) + 1))


@MATCHERS.register("f1")
class F1Matcher(AnswerMatcher):
    """Word F1 with a gold answer of at least a threshold, after normalization."""

    def __init__(self, gold: Sequence[str], threshold: float = F1_THRESHOLD) -> None:
        self._counts = [Counter(words) for text in gold if (words := normalize(text).split())]
        self._threshold = threshold

    def is_hit(self, answer: str) -> bool:
        """Whether the answer shares enough words with a gold answer."""
        counts = Counter(normalize(answer).split())
        return any(_word_f1(counts, gold) >= self._threshold for gold in self._counts)


@MATCHERS.register_family("f1>=x")
def f1_at_least(name: str) -> Callable[[Sequence[str]], AnswerMatcher] | None:
    """The matcher of a name such as `f1>=0.7`; None for names of another form.

    Raises:
        SettingsError: the threshold is not a share in (0, 1], or not in its shortest form. Each threshold has one name,
            since settings with different names have different fingerprints.

    >>> f1_at_least("f1>=0.7")(["New York"]).is_hit("New York City"), f1_at_least("f1")
    (True, None)
    """
    form, found, number = name.partition(">=")
    if form != "f1" or not found:
        return None
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if not 0 < threshold <= 1:
        raise SettingsError(f"the matcher f1>=x needs a word F1 in (0, 1], got {name!r}; an example is 'f1>=0.7'")
    shortest = f"f1>={threshold!r}".removesuffix(".0")
    if name != shortest:
        raise SettingsError(f"the matcher {name!r} is not in its shortest form; write {shortest!r}")
    return partial(F1Matcher, threshold=threshold)


@MATCHERS.register(JUDGE)
def _judge(gold: Sequence[str]) -> AnswerMatcher:
    raise SettingsError(
        f"--matcher {JUDGE} grades the stored answers of `slick annotate`, so it cannot match an answer while a model "
        "runs; use --matcher exact, contains or f1 here"
    )


@MATCHERS.register("names")
class NamesMatcher(AnswerMatcher):
    """Has every name and number of a gold answer, for sentences: a wrong fact shares most words with the right one.

    Names are words with a capital letter, and the first word only if the gold answer has neither a number nor another
    name. A gold answer of up to 5 words that is not a sentence must occur as a whole, as in `contains`. Another one
    without names and numbers is compared by a word F1 of at least 0.6.

    >>> matcher = NamesMatcher(["She was born in New York in 1815."])
    >>> [matcher.is_hit(text) for text in ("Ada was born in 1815 in New York.", "She was born in York in 1815.")]
    [True, False]
    """

    def __init__(self, gold: Sequence[str]) -> None:
        phrases = [text for text in gold if len(text.split()) <= _PHRASE_WORDS and not text.rstrip().endswith(".")]
        sentences = [text for text in gold if text not in phrases]
        self._names = [names for text in sentences if (names := names_of(text))]
        self._others: list[AnswerMatcher] = [
            ContainsMatcher(phrases),
            F1Matcher([text for text in sentences if not names_of(text)], _NAMES_F1_THRESHOLD),
        ]

    def is_hit(self, answer: str) -> bool:
        """Whether the answer has all names and numbers of a gold answer."""
        words = set(normalize(answer).split())
        has_names = any(names <= words for names in self._names)
        return has_names or any(matcher.is_hit(answer) for matcher in self._others)


def names_of(text: str) -> set[str]:
    """The names and numbers of a sentence, as normalized words; see `NamesMatcher`.

    >>> sorted(names_of("She wed Bo in 1835.")), names_of("She was happy.")
    (['1835', 'bo'], set())
    """
    words = nfc(text).split()
    names = [word for word in words[1:] if _is_name(word)]
    if not names and words and _is_name(words[0]) and normalize(words[0]) not in _SENTENCE_STARTS.split():
        names = words[:1]
    return {part for word in names for part in normalize(word).split()}


def _is_name(word: str) -> bool:
    if word.strip(string.punctuation).partition("'")[0].partition("’")[0] == "I":  # also in "I'm"
        return False
    return any(character.isupper() or character.isdigit() for character in word)


class FirstSentenceMatcher(AnswerMatcher):
    """The first sentence of an answer is correct."""

    def __init__(self, gold: Sequence[str], matcher: Callable[[Sequence[str]], AnswerMatcher]) -> None:
        self._matcher = matcher(gold)

    def is_hit(self, answer: str) -> bool:
        """Whether another matcher accepts the first sentence."""
        return self._matcher.is_hit(first_sentence(answer))

    def can_still_match(self, beginning: str) -> bool:
        """Whether another matcher may accept the first sentence."""
        return self._matcher.can_still_match(first_sentence(beginning))


@MATCHERS.register_family("first-sentence:NAME")
def first_sentence_matcher(name: str) -> Callable[[Sequence[str]], AnswerMatcher] | None:
    """The matcher of a name such as `first-sentence:names`; None for names of another form.

    Raises:
        SettingsError: there is no matcher of the name after the colon.

    >>> matcher = first_sentence_matcher("first-sentence:contains")(["Paris"])
    >>> matcher.is_hit("In Paris. Then Rome."), matcher.is_hit("In Rome. Then Paris.")
    (True, False)
    """
    form, _, inner = name.partition(FIRST_SENTENCE)
    return None if form or not inner else partial(FirstSentenceMatcher, matcher=MATCHERS.get(inner))


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _stable_prefix(beginning: str) -> str:
    """The longest prefix that stays the same whatever text follows, decomposed.

    A combining mark that follows changes the last letter of a composed text, so prefixes are compared decomposed.
    Marks at the end are dropped, because canonical ordering may put a later mark before them.
    """
    text = _nfd(beginning)
    end = len(text)
    while end and unicodedata.combining(text[end - 1]):
        end -= 1
    return text[:end]
