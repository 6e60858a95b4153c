"""The engine equals transformers' `generate`; its samples equal a plain loop with the same random numbers."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from slick.errors import EngineError
from slick.inference import scoring as logits_module
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.devices import max_tokens_per_pass
from slick.inference.packed.engine import TransformersEngine
from slick.inference.scoring import top_candidates
from slick.rng import row_key, uniforms
from tests.local.tiny import CONFIGS, UNPACKED, tiny_model, tiny_tokenizer

PREFIX = "Q: Where was Ada Lovelace born?\nA: London\nQ: Who wrote Dune?\n\nA: Frank Herbert\n"
NAMES = ("Peru", "Ada", "Emmy", "Dune", "\nx", "London", "Lima Q")
BATCH = PromptBatch(
    prefixes=[PREFIX, "", PREFIX + "Q: Who?\nA: He\n"],
    question_ids=NAMES,
    suffixes=[f"Q: What is the capital of {n}?\nA:" for n in NAMES],
)
PROMPTS = [(q, p, BATCH.prefixes[p] + BATCH.suffixes[q]) for q in range(len(NAMES)) for p in range(3)]
SAMPLING = SamplingConfig(num_samples=5, max_new_tokens=8, temperature=1.0, top_k=20, seed=4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def reference_answer(model: Any, prompt: str, question_id: str, prompt_index: int, sample: int) -> tuple[str, int]:
    """One answer from plain forward passes over the whole text, one per token, and its length. Sample -1 is greedy."""
    tokenizer, sampling = tiny_tokenizer(), SAMPLING
    tokens: list[int] = tokenizer(prompt)["input_ids"]
    answer: list[int] = []
    keys = np.array([row_key(sampling.seed, question_id, prompt_index)])
    for step in range(sampling.max_new_tokens):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens + answer]), use_cache=False).logits[0, -1].double().numpy()
        candidates = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: sampling.top_k]
        weights = np.exp((logits[candidates] - logits[candidates[0]]) / sampling.temperature)
        draw = uniforms(keys, np.array([max(sample, 0)]), step)[0]
        rank = 0 if sample < 0 else int(np.searchsorted(np.cumsum(weights / weights.sum()), draw, side="right"))
        answer.append(candidates[min(rank, len(candidates) - 1)])
        if answer[-1] == tokenizer.eos_token_id or "\n" in tokenizer.decode(answer[-1:]):
            break
    return tokenizer.decode(answer, skip_special_tokens=True).split("\n")[0].strip(), len(answer)


@pytest.mark.parametrize("name", [*CONFIGS, *UNPACKED])
def test_greedy_answers_equal_generate(name: str) -> None:
    model, tokenizer = tiny_model(name), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_questions=4)
    assert engine.uses_packing == (name in CONFIGS)
    answers = engine.generate(BATCH, SamplingConfig(num_samples=0, max_new_tokens=8))
    for question, prefix, prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            generated = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, pad_token_id=0
            )
        text = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
        answer = answers[question][prefix]
        assert answer.greedy_text == text.split("\n")[0].strip()
        assert answer.sampled_text == ()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba", pytest.param("bloom", marks=pytest.mark.slow)])
def test_batched_samples_equal_single_answers(name: str) -> None:
    model = tiny_model(name, spread=0.2)
    engine = TransformersEngine(model, tiny_tokenizer(), batch_questions=3)
    num_tokens = 0
    answers = engine.generate(BATCH, SAMPLING)
    for question, prefix, prompt in PROMPTS:
        texts, total_length = [], 0
        for sample in range(-1, SAMPLING.num_samples):
            text, length = reference_answer(model, prompt, NAMES[question], prefix, sample)
            texts.append(text)
            total_length += length
        answer = answers[question][prefix]
        assert [answer.greedy_text, *answer.sampled_text] == texts
        assert answer.num_tokens == total_length
        num_tokens += total_length
    stats = engine.stats
    assert stats.prompts == len(PROMPTS)
    assert stats.generations == len(PROMPTS) * (1 + SAMPLING.num_samples)
    assert stats.answer_tokens == num_tokens
    assert stats.prompt_tokens == sum(len(tiny_tokenizer()(prompt)["input_ids"]) for *_, prompt in PROMPTS)
    assert stats.decoded_tokens < num_tokens
    assert stats.prefilled_tokens < stats.prompt_tokens or not engine.uses_packing


def test_answers_do_not_depend_on_the_batch() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    together = TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING)
    engine = TransformersEngine(model, tokenizer, batch_questions=1)
    for i, answer in enumerate(together):
        assert engine.generate(BATCH.part(slice(i, i + 1)), SAMPLING) == [answer]
    assert TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING) == together


class ArtificialMatcher:
    """An artificial matcher that accepts answers by their first letter and length."""

    def __init__(self, question: int) -> None:
        self._question = question

    def is_hit(self, answer: str) -> bool:
        return self.can_still_match(answer) and len(answer) % 7 == self._question % 4

    def can_still_match(self, beginning: str) -> bool:
        return not beginning or ord(beginning[0]) % 3 != self._question % 3


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba"])
def test_early_exit_returns_a_subset_of_all_answers(name: str) -> None:
    """Hits are artificial, so that questions with greedy hits, sampled hits and no hits occur."""
    model, tokenizer = tiny_model(name, spread=0.2), tiny_tokenizer()

    full = TransformersEngine(model, tokenizer, batch_questions=3).generate(BATCH, SAMPLING)
    engine = TransformersEngine(model, tokenizer, batch_questions=3)
    targets = [ArtificialMatcher(question) for question in range(len(NAMES))]
    kinds, num_cut = set(), 0
    for target, all_answers, some in zip(targets, full, engine.generate(BATCH, SAMPLING, targets), strict=True):
        assert [a.greedy_text for a in some] == [a.greedy_text for a in all_answers]
        greedy_hits = sum(target.is_hit(a.greedy_text) for a in some)
        drawn = [
            (text, expected)
            for a, b in zip(some, all_answers, strict=True)
            for text, expected in zip(a.sampled_text, b.sampled_text, strict=True)
            if text is not None
        ]
        assert all(text == expected for text, expected in drawn)
        hit = any(target.is_hit(text) for text, _ in drawn)
        assert hit == (not greedy_hits and any(target.is_hit(t or "") for a in all_answers for t in a.sampled_text))
        cut_texts = [
            expected.sampled_text[i] or "" for a, expected in zip(some, all_answers, strict=True) for i in a.missed
        ]
        assert not any(map(target.is_hit, cut_texts))
        num_cut += len(cut_texts)
        assert bool(drawn or cut_texts) == (not greedy_hits)
        assert hit or greedy_hits or len(drawn) + len(cut_texts) == len(BATCH.prefixes) * SAMPLING.num_samples
        kinds.add("greedy" if greedy_hits else "sampled" if hit else "none")
    assert len(kinds) > 1
    assert num_cut
    assert engine.stats.generations < len(PROMPTS) * (1 + SAMPLING.num_samples)


def test_bfloat16_runs_packed() -> None:
    engine = TransformersEngine(tiny_model("qwen3", dtype="bfloat16", spread=0.1), tiny_tokenizer())
    assert engine.uses_packing
    assert len(engine.generate(BATCH, SAMPLING)) == len(NAMES)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text"])
def test_sliding_window_shorter_than_the_prompt(name: str) -> None:
    model = tiny_model(name, spread=0.2, sliding_window=20)
    engine = TransformersEngine(model, tiny_tokenizer())
    assert engine.uses_packing
    answers = engine.generate(BATCH, SAMPLING)
    for question, prefix, prompt in PROMPTS:
        expected = [reference_answer(model, prompt, NAMES[question], prefix, sample)[0] for sample in range(-1, 2)]
        assert [answers[question][prefix].greedy_text, *answers[question][prefix].sampled_text[:2]] == expected


def test_unknown_attention_window_uses_full_prompts(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.config.attention_chunk_size = 20  # as in Llama 4
    engine = TransformersEngine(model, tiny_tokenizer())
    with caplog.at_level(logging.WARNING):
        engine.generate(BATCH, SAMPLING)
    assert "attention window of 20" in caplog.text


def test_samples_follow_the_model_distribution() -> None:
    """20,000 first tokens against their exact probabilities: chi-squared stays below its 1 - 1e-6 quantile."""
    from scipy.stats import chi2

    model, tokenizer = tiny_model("llama", spread=0.1), tiny_tokenizer()
    sampling = SamplingConfig(num_samples=2000, max_new_tokens=1, temperature=0.5, top_k=10, seed=11)
    prompt = "Q: Who?\nA:"
    batch = PromptBatch(prefixes=[""], question_ids=[str(i) for i in range(10)], suffixes=[prompt] * 10)
    texts = [
        t
        for (a,) in TransformersEngine(model, tokenizer).generate(batch, sampling)
        for t in a.sampled_text
        if t is not None
    ]
    logits = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].detach().double()
    top = torch.topk(logits, 10)
    expected: dict[str, float] = {}
    for probability, token in zip(torch.softmax(top.values / 0.5, 0).tolist(), top.indices.tolist(), strict=True):
        text = tokenizer.decode([token], skip_special_tokens=True).split("\n")[0].strip()
        expected[text] = expected.get(text, 0.0) + probability
    assert set(texts) <= set(expected)
    error = sum((texts.count(t) - len(texts) * p) ** 2 / (len(texts) * p) for t, p in expected.items())
    assert error < chi2.isf(1e-6, len(expected) - 1)


def test_ties_go_to_the_lowest_token_id() -> None:
    logits = torch.zeros(2, 500)
    logits[0, 400] = 1.0
    logits[1, [7, 90]] = 2.0
    values, ids = top_candidates(logits, 4)
    assert ids.tolist() == [[400, 0, 1, 2], [7, 90, 0, 1]]
    assert values.tolist() == [[1, 0, 0, 0], [2, 2, 0, 0]]


@pytest.mark.parametrize("largest", [logits_module._top_keys, logits_module._top_keys_on_gpu])
@pytest.mark.parametrize("num_classes", [40, 500, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_candidates_equal_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, largest: Any, num_classes: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(logits_module, "_top_keys", largest)
    torch.manual_seed(num_classes)
    logits = (torch.randn(90, num_classes) * 4).to(dtype)
    logits[1] -= 1000.0  # all negative
    logits[2, ::3] = -torch.inf
    logits[3] = logits[3].round()  # ties, also of 0 and -0
    logits[4:80:2] = 0.0
    logits[4, 1::2] = -0.0
    values, ids = top_candidates(logits, 20)
    for row, (row_values, row_ids) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
        row_logits = logits[row].float().tolist()
        order = sorted(range(num_classes), key=lambda i: (-row_logits[i], i))[:20]
        assert row_ids == order
        assert row_values == [row_logits[i] for i in order]


@pytest.mark.parametrize("largest", [logits_module._top_keys, logits_module._top_keys_on_gpu])
@pytest.mark.parametrize("num_classes", [40, 5000])
@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000, 0x7F800000], ids=["nan", "negative nan", "infinity"])
def test_non_finite_logits_are_detected_at_any_position(
    monkeypatch: pytest.MonkeyPatch, largest: Any, num_classes: int, bits: int
) -> None:
    monkeypatch.setattr(logits_module, "_top_keys", largest)
    for position in (0, 17, num_classes - 1):
        logits = torch.randn(3, num_classes)
        logits[1, position] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        with pytest.raises(EngineError, match="not finite"):
            top_candidates(logits, 20)


def test_non_finite_logits_are_an_error() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine(model, tiny_tokenizer())
    model.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.generate(BATCH, SAMPLING)


def test_prompt_longer_than_the_context_is_an_error() -> None:
    model = tiny_model("gpt2")
    model.config.n_positions = 40
    with pytest.raises(EngineError, match=r"prompt of question .* context holds 40"):
        TransformersEngine(model, tiny_tokenizer()).generate(BATCH, SAMPLING)


def test_out_of_memory_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_model("llama", spread=0.2), tiny_tokenizer()
    expected = TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING)
    engine = TransformersEngine(model, tokenizer)
    limit = 120  # tokens that "fit"; a single question needs fewer

    def raise_out_of_memory(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("simulated")

    with model.register_forward_pre_hook(raise_out_of_memory, with_kwargs=True), caplog.at_level(logging.WARNING):
        assert engine.generate(BATCH, SAMPLING) == expected
        assert "out of memory with a batch of 7 questions; continuing with batches of 3" in caplog.text
        limit = 20
        with pytest.raises(EngineError, match="out of memory while answering one question"):
            engine.generate(BATCH, SAMPLING)


def test_model_in_training_mode_is_an_error() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine(model, tiny_tokenizer())
    model.train()
    with pytest.raises(EngineError, match="training mode"):
        engine.generate(BATCH, SAMPLING)


def test_batch_of_several_passes_equals_its_parts() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    names = [f"Peru {i:03} and {NAMES[i % len(NAMES)]}" for i in range(160)]
    batch = PromptBatch(
        prefixes=BATCH.prefixes,
        question_ids=names,
        suffixes=[f"Q: What is the capital of {name}?\nA:" for name in names],
    )
    large_batch = TransformersEngine(model, tokenizer, batch_questions=160)
    small_batches = TransformersEngine(model, tokenizer, batch_questions=5)
    assert large_batch.uses_packing
    assert small_batches.uses_packing
    answers = large_batch.generate(batch, SAMPLING)
    per_pass = max_tokens_per_pass(model)
    assert large_batch.stats.prefilled_tokens > 2 * per_pass, "the prompts must need several passes"
    assert large_batch.stats.decoded_tokens / SAMPLING.max_new_tokens > per_pass, (
        "decoding must need several passes per step"
    )
    assert answers == small_batches.generate(batch, SAMPLING)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_prefixes_are_computed_once_whatever_surrounds_them(name: str) -> None:
    model, tokenizer = tiny_model(name, spread=0.2), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer)
    shots = [f"Q: Where was {name} born?\nA: {city}\n" for name, city in (("Ada", "London"), ("Emmy", "Lima"))]
    own, other, long = shots[0], shots[1], shots[0] + shots[1]

    def ask(prefixes: list[str], num: int, engine: TransformersEngine) -> tuple[list[Any], int]:
        before = engine.stats.prefilled_tokens
        batch = PromptBatch(prefixes=prefixes, question_ids=NAMES[:num], suffixes=BATCH.suffixes[:num])
        return engine.generate(batch, SAMPLING), engine.stats.prefilled_tokens - before

    ask([own, other], 2, engine)
    for prefixes, cached, computed in (([own, long], [own], [long]), ([other, ""], [other], []), ([long], [long], [])):
        answers, num = ask(prefixes, 1, engine)
        expected, num_alone = ask(prefixes, 1, TransformersEngine(model, tokenizer))
        assert answers == expected
        saved = sum(len(tokenizer(prefix)["input_ids"]) for prefix in cached)
        assert num_alone - num >= saved - len(cached), f"{prefixes}: only {computed} is new"


def test_prefix_that_begins_a_cached_one_is_not_computed() -> None:
    model, tokenizer = tiny_model("llama", spread=0.2), tiny_tokenizer()
    engine, fresh = TransformersEngine(model, tokenizer), TransformersEngine(model, tokenizer)
    batch = PromptBatch(prefixes=[PREFIX], question_ids=[str(i) for i in range(9)], suffixes=["Q: Who?\nA:"] * 9)
    engine.generate(batch, SAMPLING)
    num = engine.stats.prefilled_tokens
    assert engine.generate(batch.part(slice(1)), SAMPLING) == fresh.generate(batch.part(slice(1)), SAMPLING)
    assert engine.stats.prefilled_tokens - num <= len(tokenizer("Q: Who?\nA:")["input_ids"])
    assert fresh.stats.prefilled_tokens >= len(tokenizer(PREFIX)["input_ids"])


def test_cache_keeps_the_prefixes_in_use() -> None:
    model, tokenizer = tiny_model("llama", spread=0.2), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer)
    engine._decoders.for_length(64)._prefix_cache_bytes = 1
    batches = [
        PromptBatch(prefixes=[f"Q: {name}?\nA: He\n" * 2, PREFIX], question_ids=NAMES, suffixes=BATCH.suffixes)
        for name in ("Who", "What", "Who")
    ]
    for batch in batches:
        assert engine.generate(batch, SAMPLING) == TransformersEngine(model, tokenizer).generate(batch, SAMPLING)
