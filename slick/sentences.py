"""Sentences of a text, by punctuation and line breaks. Pure."""

import re

_CLOSERS = "\"'”’»)\\]"
_END = re.compile(
    rf"[ \t]*\n\s*|(?P<end>[.!?…]+)[{_CLOSERS}*]*[ \t\u00a0]+(?=\S)|(?P<wide>[。！？]+)[{_CLOSERS}」』]*[ \t]*(?=\S)"
)
_LAST_WORD = re.compile(r"[^\s(\"'“‘«]*$")
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,3}")
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
"""The word before the dot of an initial (J. Smith) or of letters with dots (U.S., a.m., e.g.)."""
_ABBREVIATIONS = (
    "mr mrs ms dr prof st mt ft jr sr vs no nos vol vols fig figs pp ca cf al approx etc inc ltd co corp bros gen "
    "col lt capt cmdr sgt maj adm rev hon gov sen rep pres supt jan feb mar apr jun jul aug sep sept oct nov dec"
)
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"), ("«", "»"))


def split_sentences(text: str) -> list[str]:
    r"""Divide a text into its sentences; joined, they are the text.

    A sentence ends at a line break, and at `.`, `!`, `?` or an ellipsis if white space and no lower-case letter follow.
    Dots of decimals, initials, common English abbreviations and list numbers end none, and neither does punctuation
    within parentheses or quotation marks. So a sentence that ends with an initial or abbreviation is joined to the
    next. The decision at a place depends only on the text up to the next character that is not white space.

    Returns:
        Each sentence with the white space after it. Texts without a visible character are one sentence.

    >>> split_sentences('Dr. J. Day was born in 1.5 B.C. in Ur. "Go!" he said.  He died.\n- Ur')
    ['Dr. J. Day was born in 1.5 B.C. in Ur. ', '"Go!" he said.  ', 'He died.\n', '- Ur']
    """
    sentences: list[str] = []
    start = 0
    for match in _END.finditer(text):
        sentence = text[start : match.start()]
        if not sentence.strip() or match.end() == len(text):
            continue
        if "\n" in match[0] or _is_end(sentence, match[0], text[match.end()]):
            sentences.append(text[start : match.end()])
            start = match.end()
    return [*sentences, text[start:]]


def first_sentence(text: str) -> str:
    """The first sentence of a text, without white space at its ends.

    >>> first_sentence(" He was born in St. Ives. He was a painter.")
    'He was born in St. Ives.'
    """
    return split_sentences(text.strip())[0].rstrip()


def _is_end(sentence: str, punctuation: str, following: str) -> bool:
    """Whether a sentence ends with this punctuation before the character `following`."""
    if following.islower():
        return False
    mark = punctuation.rstrip()
    closed = sentence + mark
    if closed.count('"') % 2 or any(closed.count(left) > closed.count(right) for left, right in _PAIRS):
        return False
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    word = _LAST_WORD.search(sentence)
    last = word[0] if word else ""
    if _LIST_NUMBER.fullmatch(sentence) or _INITIAL.fullmatch(last):
        return False
    return last.lower() not in _ABBREVIATIONS.split()
