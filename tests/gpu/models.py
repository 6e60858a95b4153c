"""Models with random weights, their tokenizer and questions, built in seconds and without a download.

Weights are drawn such that every layer changes its input and the next token is neither certain nor uniform: with the
usual initialization of tied embeddings, a model would repeat its last token, and answers that are all alike are cheap
to compute.
"""

import gc
import json
import random
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tests.benchmarks.annotation import NUM_PROMPTS, NUM_SHOTS, make_workload

SIZES = ("135M", "1B", "8B")
_TINY = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
_LOGIT_SPREAD = 2.0
"""Standard deviation of the logits."""
_TOKENIZER_QUESTIONS = 2000
_CONTEXT_TOKENS = 2048
_VOCABULARY = {"cuda": 8192, "cpu": 384}
"""Tokens that the tokenizer learns; the model's other tokens occur in answers only."""
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]

Work = list[dict[str, Any]]
"""Questions by relation: their ids, prefixes, suffixes and gold answers, as in `tests.benchmarks.annotation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The device, and the user's own model and questions if there are any."""

    device: str
    """`cuda` or `cpu`; models for the CPU are tiny."""
    folder: str
    """Where models are saved."""
    model: str = ""
    """Hugging Face folder that takes the place of the smallest model."""
    questions: str = ""
    """EntityQuestions as zip; empty for invented questions."""
    processes: int = 1
    """Processes that share the device, of which this is one; they start to measure together."""

    @property
    def dtype(self) -> str:
        """Dtype of weights and computation."""
        return "bfloat16" if self.device == "cuda" else "float32"


def model_shape(settings: Settings, size: str) -> Any:
    """The `ModelShape` of a model: the published one of this size, tiny on the CPU, or that of the user's model."""
    from slick.model_files import read_config
    from tuning.estimates import published_shape, shape_from_config

    if settings.model and size == SIZES[0]:
        return shape_from_config(read_config(settings.model), settings.model)
    shape = published_shape(size)
    return replace(shape, vocab_size=_VOCABULARY["cpu"] + 16, **_TINY) if settings.device == "cpu" else shape


def model_and_tokenizer(settings: Settings, size: str) -> tuple[Any, Any]:
    """A model on its device in eval mode, and its tokenizer."""
    from slick.models import load_model, load_tokenizer

    if settings.model and size == SIZES[0]:
        return load_model(settings.model, settings.dtype, settings.device), load_tokenizer(settings.model)
    shape = model_shape(settings, size)
    tokenizer = random_tokenizer(shape.vocab_size, _VOCABULARY[settings.device])
    return random_model(shape, tokenizer, settings.device, settings.dtype), tokenizer


def llama_config(shape: Any, **changed: Any) -> Any:
    """The configuration of a Llama of this shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tie_word_embeddings,
        **changed,
    )


def random_model(shape: Any, tokenizer: Any, device: str, dtype: str) -> Any:
    """A Llama of this shape, built on the device; its weights depend on the kind of the device."""
    import torch
    from transformers import AutoModelForCausalLM

    config = llama_config(
        shape,
        max_position_embeddings=_CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
        model.get_output_embeddings().weight.mul_(_LOGIT_SPREAD)
    return model.eval()


def random_tokenizer(vocab_size: int, num_learned: int) -> Any:
    """A byte-level BPE tokenizer trained on invented questions.

    Args:
        vocab_size: tokens of the vocabulary, of which those that are not learned decode to invented words.
        num_learned: the most tokens to learn.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, num_learned),
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = []
    for part in random_work(_TOKENIZER_QUESTIONS):
        texts += part["prefixes"]
        texts += [suffix + f" {gold[0]}\n" for suffix, gold in zip(part["suffixes"], part["gold"], strict=True)]
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for syllables in product(_SYLLABLES, repeat=3):
        if len(vocabulary) >= vocab_size:
            break
        vocabulary.setdefault("Ġ" + "".join(syllables), len(vocabulary))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def saved_model(settings: Settings, size: str) -> str:
    """Folder of a model, saved by the first step that needs it."""
    if settings.model and size == SIZES[0]:
        return settings.model
    folder = Path(settings.folder, size)
    if not folder.exists():
        model, tokenizer = model_and_tokenizer(settings, size)
        partial = Path(settings.folder, f"{size}.partial")  # a step that is stopped leaves an unfinished folder
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
        del model
        free_memory(settings.device)
    return str(folder)


def free_memory(device: str) -> None:
    """Return the memory of unused tensors to the device, for another process."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def make_work(settings: Settings, num_questions: int) -> Work:
    """Train questions: the user's, equally many of each relation where it has enough, or invented ones.

    Raises:
        ValueError: the archive has fewer questions.
    """
    if not settings.questions:
        return random_work(num_questions)
    with zipfile.ZipFile(settings.questions) as archive:
        sizes = {
            Path(name).name.split(".")[0]: len(json.loads(archive.read(name)))
            for name in archive.namelist()
            if name.endswith(".train.json")
        }
    if sum(sizes.values()) < num_questions:
        raise ValueError(f"{settings.questions} has {sum(sizes.values())} train questions, expected {num_questions}")
    work, remaining = [], num_questions
    for index, (relation, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        num = min(size, -(-remaining // (len(sizes) - index)))
        if num:
            work += make_workload(settings.questions, [relation], num, "train")
        remaining -= num
    return work


def split_work(work: Work, num: int) -> list[Work]:
    """Distribute the questions of every relation over several processes."""
    return [[select_rows(part, slice(i, None, num)) for part in work] for i in range(num)]


def select_rows(part: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some questions of a relation."""
    return part | {key: part[key][rows] for key in ("ids", "suffixes", "gold")}


def random_work(num_questions: int) -> Work:
    """Invented questions with the templates of EntityQuestions, with 10 prompts of 4 exemplars per relation."""
    from slick.datasets.relations import load_relations

    relations, work = load_relations(), []
    for index, (name, relation) in enumerate(sorted(relations.items())):
        rng = random.Random(name)
        num = num_questions // len(relations) + (index < num_questions % len(relations))
        answers = _names(rng, 200)
        subjects = _names(rng, num + NUM_PROMPTS * NUM_SHOTS)
        pairs = [(relation.question(subject), rng.choice(answers)) for subject in subjects]
        if num:
            work.append(_relation_work(name, pairs[:num], pairs[num:]))
    return work


def _relation_work(relation: str, pairs: Sequence[tuple[str, str]], shots: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "ids": [f"{relation}-{i}" for i in range(len(pairs))],
        "prefixes": [
            "".join(f"Q: {question}\nA: {answer}\n" for question, answer in shots[start : start + NUM_SHOTS])
            for start in range(0, len(shots), NUM_SHOTS)
        ],
        "suffixes": [f"Q: {question}\nA:" for question, _ in pairs],
        "gold": [[answer] for _, answer in pairs],
    }


def _names(rng: random.Random, num: int) -> list[str]:
    """Names of one to three invented words."""
    return [
        " ".join(
            "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))).title()
            for _ in range(rng.choice((1, 2, 2, 3)))
        )
        for _ in range(num)
    ]


class OwnAnswers:
    """Gold answers such that the model knows half of the questions, close to the share in the paper.

    The gold answer of every second question is the model's own greedy answer to its first prompt. With the user's
    questions, gold answers stay as they are.
    """

    def __init__(self, settings: Settings, model: Any, tokenizer: Any) -> None:
        from slick.inference.packed.engine import TransformersEngine

        self._is_needed = not settings.questions
        self._engine = TransformersEngine(model, tokenizer, batch_questions=64)

    def select_rows(self, part: dict[str, Any], rows: slice) -> dict[str, Any]:
        """Some questions of a relation, with the gold answers."""
        from slick.inference.base import PromptBatch, SamplingConfig
        from tests.benchmarks.annotation import MAX_NEW_TOKENS

        chosen = select_rows(part, rows)
        if not self._is_needed:
            return chosen
        batch = PromptBatch(prefixes=chosen["prefixes"][:1], question_ids=chosen["ids"], suffixes=chosen["suffixes"])
        answers = self._engine.generate(batch, SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, num_samples=0))
        gold = list(chosen["gold"])
        for i in range((rows.start or 0) % 2, len(gold), 2):
            text = answers[i][0].greedy_text
            gold[i] = [text] if text else gold[i]
        return chosen | {"gold": gold}
