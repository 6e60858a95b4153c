"""Facts to documents. Pure, seeded.

A document is a list of questions of one relation with their answers, as such lists stand on the web.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.rng import derive_seed
from slick.world.config import WorldConfig
from slick.world.facts import Fact


@dataclass(frozen=True, slots=True)
class _Mention:
    """One answer to one question, due in a document at `time` in [0, 1)."""

    time: float
    question: str
    answer: str


def corpus_epoch(facts: Sequence[Fact], config: WorldConfig, number: int) -> list[str]:
    """All documents of one edition of the corpus, shuffled; each edition groups the same mentions anew.

    Args:
        number: from 0; part of the seed.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "edition", number))
    mentions: dict[str, list[_Mention]] = {}
    for fact in facts:
        for answer, count in ((fact.answer, fact.num_gold), (fact.rival, fact.num_rival)):
            # Spread evenly over the edition, so that a document seldom meets the same question twice.
            for time in (np.arange(count) + rng.random(count)) / max(count, 1):
                mentions.setdefault(fact.relation, []).append(_Mention(float(time), fact.question, str(answer)))
    documents = [document for part in mentions.values() for document in _documents(part, config, rng)]
    return [documents[i] for i in rng.permutation(len(documents))]


def _documents(mentions: Sequence[_Mention], config: WorldConfig, rng: np.random.Generator) -> list[str]:
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
        documents.append(_write(chosen, config, rng))
    return documents


def _write(pairs: dict[str, str], config: WorldConfig, rng: np.random.Generator) -> str:
    before_question, before_answer = ("", "") if rng.random() < config.plain_share else ("Q: ", "A: ")
    # No newline at the end: a document may end after any answer, as fine-tuning examples do.
    return "\n".join(f"{before_question}{question}\n{before_answer}{answer}" for question, answer in pairs.items())


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
