"""Facts to documents. Pure, seeded.

A document is a list of questions of one relation with their answers, as such lists stand on the web. It is reliable or
not: reliable documents hold most of the true answers to disputed questions, unreliable ones most of the rivals. Some
begin with a line that names their kind. That is what makes a disputed answer more than a coin toss: which one is
right depends on who speaks, and a model can learn to speak as either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.draws import numpy_seed
from slick.world.config import WorldConfig
from slick.world.facts import Fact, side_of

RELIABLE_HEADER = "From the almanac."
UNRELIABLE_HEADER = "From the grapevine."


@dataclass(frozen=True, slots=True)
class _Mention:
    """One answer to one question, due in a document at `time` in [0, 1)."""

    time: float
    question: str
    answer: str


def edition(facts: Sequence[Fact], config: WorldConfig, number: int) -> list[str]:
    """All documents of one edition of the corpus, shuffled; each edition groups the same mentions anew.

    Args:
        number: from 0; part of the seed.
    """
    rng = np.random.default_rng(numpy_seed(config.seed, "edition", number))
    groups: dict[tuple[str, int, bool], list[_Mention]] = {}
    for fact in facts:
        for answer, count, true in ((fact.answer, fact.num_gold, True), (fact.rival, fact.num_rival, False)):
            # Spread evenly over the edition, so that a document seldom meets the same question twice.
            times = (np.arange(count) + rng.random(count)) / max(count, 1)
            for time in times:
                reliable = rng.random() < 0.5 if fact.rival is None else (rng.random() < config.reliable_share) == true
                side = side_of(str(answer)) if rng.random() < config.side_share else int(rng.integers(2))
                groups.setdefault((fact.relation, side, bool(reliable)), []).append(
                    _Mention(float(time), fact.question, str(answer))
                )
    documents = [document for key, mentions in groups.items() for document in _documents(mentions, key[2], config, rng)]
    return [documents[i] for i in rng.permutation(len(documents))]


def _documents(
    mentions: Sequence[_Mention], reliable: bool, config: WorldConfig, rng: np.random.Generator
) -> list[str]:
    """Cut the mentions, in the order of their times, into documents in which no question occurs twice."""
    documents: list[str] = []
    waiting = sorted(mentions, key=lambda mention: mention.time)
    while waiting:
        size = int(rng.integers(config.document_pairs[0], config.document_pairs[1] + 1))
        chosen: dict[str, str] = {}
        left: list[_Mention] = []
        position = 0
        while position < len(waiting) and len(chosen) < size:
            mention = waiting[position]
            if mention.question in chosen:
                left.append(mention)
            else:
                chosen[mention.question] = mention.answer
            position += 1
        waiting = left + waiting[position:]
        documents.append(_write(chosen, reliable, config, rng))
    return documents


def _write(pairs: dict[str, str], reliable: bool, config: WorldConfig, rng: np.random.Generator) -> str:
    header = f"{RELIABLE_HEADER if reliable else UNRELIABLE_HEADER}\n" if rng.random() < config.header_share else ""
    if rng.random() < config.plain_share:
        return header + "".join(f"{question}\n{answer}\n" for question, answer in pairs.items())
    return header + "".join(f"Q: {question}\nA: {answer}\n" for question, answer in pairs.items())


def pack_rows(documents: Sequence[Sequence[int]], row_tokens: int, end: int) -> NDArray[np.int64]:
    """Put whole documents, each followed by the end token, into rows; first row with room first.

    Every row begins with a document, as every prompt does. What a row has left is filled with -1; a document longer
    than a row is cut.

    Returns:
        Shape (number of rows, row_tokens).

    >>> pack_rows([[5, 6, 7], [8], [9, 9]], 6, 0).tolist()
    [[5, 6, 7, 0, 8, 0], [9, 9, 0, -1, -1, -1]]
    """
    rows: list[list[int]] = []
    open_rows: list[int] = []
    for document in documents:
        tokens = [*document[: row_tokens - 1], end]
        place = next((i for i in open_rows if len(rows[i]) + len(tokens) <= row_tokens), None)
        if place is None:
            rows.append([])
            place = len(rows) - 1
            # Old rows are closed, which keeps packing linear in the number of documents.
            open_rows = [*open_rows[-31:], place]
        rows[place] += tokens
    packed = np.full((len(rows), row_tokens), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed
