"""The corpus of a planted world: documents, their tokenizer, and training rows. Deterministic by seed.

A document is a list of questions of one relation with their answers, similar to lists on the web.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slick.datasets.relations import split_template
from slick.datasets.rewordings import load_rewordings
from slick.rng import derive_seed
from slick.world.config import WorldConfig
from slick.world.facts import Fact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "</s>"
PAD_TOKEN = "<pad>"


@dataclass(frozen=True, slots=True)
class _Mention:
    """One answer to one question, at a position `time` in [0, 1) of the epoch."""

    time: float
    fact: Fact
    answer: str


def corpus_epoch(facts: Sequence[Fact], config: WorldConfig, number: int) -> list[str]:
    """All documents of one epoch of the corpus, shuffled. Each epoch groups the same mentions differently.

    Args:
        facts: the facts of the world.
        config: the settings of the world.
        number: the number of the epoch, from 0; part of the seed.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "edition", number))
    mentions: dict[str, list[_Mention]] = {}
    for fact in facts:
        for answer, count in ((fact.answer, fact.num_gold), (fact.rival, fact.num_rival)):
            # Mentions are spread evenly, so that a document seldom draws the same question twice.
            for time in (np.arange(count) + rng.random(count)) / max(count, 1):
                mentions.setdefault(fact.relation, []).append(_Mention(float(time), fact, str(answer)))
    documents = [document for part in mentions.values() for document in _documents(part, config, rng)]
    return [documents[i] for i in rng.permutation(len(documents))]


def _documents(mentions: Sequence[_Mention], config: WorldConfig, rng: np.random.Generator) -> list[str]:
    """Divide the mentions, in the order of their times, into documents in which no question occurs twice."""
    documents: list[str] = []
    waiting = sorted(mentions, key=lambda mention: mention.time)
    while waiting:
        size = int(rng.integers(config.document_pairs[0], config.document_pairs[1] + 1))
        chosen: dict[str, _Mention] = {}
        left: list[_Mention] = []
        position = 0
        while position < len(waiting) and len(chosen) < size:
            mention = waiting[position]
            if mention.fact.question in chosen:
                left.append(mention)
            else:
                chosen[mention.fact.question] = mention
            position += 1
        waiting = left + waiting[position:]
        documents.append(_write(list(chosen.values()), config, rng))
    return documents


def _write(mentions: Sequence[_Mention], config: WorldConfig, rng: np.random.Generator) -> str:
    before_question, before_answer = ("", "") if rng.random() < config.plain_share else ("Q: ", "A: ")
    # Without the setting no number is drawn, so that the corpus of earlier worlds stays the same.
    is_reworded = config.second_wording > 0 and rng.random() < config.second_wording
    pairs = [(_reworded(m.fact) if is_reworded else m.fact.question, m.answer) for m in mentions]
    # Without a newline at the end: a document may end after any answer, as fine-tuning examples do.
    return "\n".join(f"{before_question}{question}\n{before_answer}{answer}" for question, answer in pairs)


def _reworded(fact: Fact) -> str:
    before, after = split_template(_rewordings()[fact.relation])
    return before + fact.subject + after


_rewordings = cache(load_rewordings)


def pack_rows(documents: Sequence[Sequence[int]], row_tokens: int, end: int) -> NDArray[np.int64]:
    """Pack whole documents, each followed by the end token, into rows (first fit).

    Every row begins with a document, as every prompt does. Rows are padded with -1. A document longer than a row is
    truncated.

    Args:
        documents: token ids.
        row_tokens: length of a row.
        end: id of the end token.

    Returns:
        Shape (number of rows, row_tokens).

    >>> pack_rows([[5, 6, 7], [8], [9, 9]], 6, 0).tolist()
    [[5, 6, 7, 0, 8, 0], [9, 9, 0, -1, -1, -1]]
    """
    rows: list[list[int]] = []
    open_rows: list[int] = []
    for document in documents:
        tokens = [*document[: row_tokens - 1], end]
        index = next((i for i in open_rows if len(rows[i]) + len(tokens) <= row_tokens), None)
        if index is None:
            rows.append([])
            index = len(rows) - 1
            # Only 32 rows stay open, which keeps packing linear in the number of documents.
            open_rows = [*open_rows[-31:], index]
        rows[index] += tokens
    packed = np.full((len(rows), row_tokens), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer on documents. Any text can be encoded and decoded without loss.

    A newline is a separate token, and every line begins with a space that decoding removes. So an answer has the same
    tokens after `A: ` and at the beginning of a line, as the fine-tuning format requires.

    Args:
        documents: to train on.
        vocab_size: maximum number of tokens, including the 256 bytes and 3 special tokens.

    Returns:
        The tokenizer. Ids 0 and 1 are the pad and the end token; the last id is the newline.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    newline = AddedToken("\n", normalized=False)
    # Added tokens are split off first, so the text between two newlines is normalized separately.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Words with a space before and a colon after them (`Q:`, `A:`), punctuation, and other white space.
            pre_tokenizers.Split(Regex(r" ?[\p{L}\p{M}\p{N}]+:?| ?[^\s\p{L}\p{M}\p{N}]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (line for document in documents for line in document.split("\n") if line)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([newline])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS_TOKEN, pad_token=PAD_TOKEN, clean_up_tokenization_spaces=False
    )
