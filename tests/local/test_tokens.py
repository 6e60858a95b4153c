"""Prompts assembled from the tokens of their parts equal tokenized whole prompts, for several kinds of tokenizers."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from slick.inference.base import PromptBatch
from slick.inference.tokens import PromptTokenizer
from tests.local.tiny import TEXT, tiny_model, tiny_tokenizer

SUBJECTS = ("Peru", "Emmy Noether", "Emmy Noether's\nhouse", "", "zürich", "Lima", "Peru Lima")
SHOTS = ("Q: Who wrote Dune?\nA: Frank Herbert\n", "Q: Who?\nA: 12\n", "Q: Who?\n\nA: x \n", "\n", "Q: a\nA: b.\n\n")
BATCH = PromptBatch(
    prefixes=[shot + other for shot in SHOTS for other in SHOTS],
    question_ids=SUBJECTS,
    suffixes=[f"Q: What is the capital of {subject}?\nA:" for subject in SUBJECTS],
)
NUM_PROMPTS = len(BATCH.prefixes) * len(BATCH.suffixes)


def wrap(tokenizer: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def byte_level_bpe(split: pre_tokenizers.PreTokenizer) -> Any:
    """A byte-level BPE tokenizer with a given pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 5], trainer)
    return wrap(tokenizer)


def like_llama_3() -> Any:
    """Joins newlines with the punctuation before them."""
    rule = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return byte_level_bpe(pre_tokenizers.Split(Regex(rule), "isolated"))


def without_splits() -> Any:
    """Does not split the text, so tokens such as "\\nQ: Wh" occur."""
    return byte_level_bpe(pre_tokenizers.Split(Regex(r"@"), "isolated"))


def like_gemma() -> Any:
    """A unigram tokenizer that writes spaces as one character."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n"), "isolated")
    tokenizer.decoder = decoders.Replace("▁", " ")
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=["\n", "Q", ":"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return wrap(tokenizer)


@pytest.mark.parametrize(
    ("build", "splices"), [(tiny_tokenizer, True), (like_llama_3, True), (like_gemma, True), (without_splits, False)]
)
def test_prompts_equal_tokenized_whole_texts(
    build: Callable[[], Any], splices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build()
    prompt_tokenizer = PromptTokenizer(tiny_model("llama"), tokenizer)
    tokenized_texts: list[str] = []
    original = prompt_tokenizer._ids
    monkeypatch.setattr(
        prompt_tokenizer, "_ids", lambda texts, style: tokenized_texts.extend(texts) or original(texts, style)
    )
    prefixes, prompts = prompt_tokenizer.prompts(BATCH)
    assert prefixes == tokenizer(list(BATCH.prefixes))["input_ids"]
    assert prompts == [tokenizer([p + s for s in BATCH.suffixes])["input_ids"] for p in BATCH.prefixes]
    assert (len(tokenized_texts) < NUM_PROMPTS) == splices


def test_prefixes_without_final_newline_are_tokenized_with_every_question() -> None:
    tokenizer = tiny_tokenizer()
    batch = PromptBatch(prefixes=["Q: Who", "Q: W", ""], question_ids=("a", "b"), suffixes=["o?\nA:", "here?\nA:"])
    _, prompts = PromptTokenizer(tiny_model("llama"), tokenizer).prompts(batch)
    assert prompts == [tokenizer([p + s for s in batch.suffixes])["input_ids"] for p in batch.prefixes]
    assert prompts[1][1] != tokenizer("Q: W")["input_ids"] + tokenizer("here?\nA:")["input_ids"]
