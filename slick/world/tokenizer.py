"""A byte-level BPE tokenizer, trained on the corpus: nothing is ever lost, whatever the script.

A newline is a token of its own, and every line begins with a space that decoding takes away again. So an answer has
the same tokens after `A: ` and at the beginning of a line, where the fine-tuning format wants it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "</s>"
PAD_TOKEN = "<pad>"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train on documents; ids 0 and 1 are the pad and the end token, the last is the newline.

    Args:
        vocab_size: at most; the 3 tokens above and the 256 bytes included.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    newline = AddedToken("\n", normalized=False)
    # Added tokens are cut out first; each piece between two newlines is then normalized on its own.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Words with the space before them, a colon after them (`Q:`, `A:`), marks, and other white space.
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
