"""Whether the engine gives the same answers on a GPU as on the CPU, in each mode and in distribution."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.gpu.models import Settings

MIN_EQUAL = 0.98
"""Least share of equal texts in float32: rounding differs and may change a sample."""
MAX_ERROR = 0.01
"""Largest relative difference of probabilities in float32."""
MIN_P = 1e-4
"""Least p-value of the chi-square test. The samples are deterministic, so a correct engine passes always or never."""
NUM_DRAWS = 1000
"""Samples of each of 36 prompts in the chi-square test: enough to tell temperature 0.9 from 1."""
_MIN_EXPECTED = 5.0
"""Cells with a smaller expected count are merged."""
_DISTRIBUTION_MODELS = ("llama", "gemma3_text", "gpt2")


def compare_with_cpu(settings: Settings) -> dict[str, Any]:
    """Answers, labels, gold scores and log-probabilities of tiny models of many architectures, in float32."""
    from slick.inference.packed.engine import TransformersEngine
    from tests.local.engine_results import all_results
    from tests.local.tiny import CONFIGS, UNPACKED, tiny_model, tiny_tokenizer

    tokenizer, rows = tiny_tokenizer(), []
    for name in (*CONFIGS, *UNPACKED) if settings.device == "cuda" else ("llama", "gpt2"):
        model = tiny_model(name, spread=0.2)
        expected = all_results(TransformersEngine(model, tokenizer))
        engine = TransformersEngine(model.to(settings.device), tokenizer)
        rows.append({"check": name, "is_packed": engine.uses_packing, **_differences(all_results(engine), expected)})
    return {"rows": rows, "passed": all(row["passed"] for row in rows)}


def _differences(results: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Shares of equal greedy and sampled texts, and the largest relative error of probabilities."""
    import numpy as np

    pairs = [
        [
            pair
            for texts in zip(results[mode], expected[mode], strict=True)
            for pair in list(zip(*texts, strict=True))[part]
        ]
        for mode, part in (("full", slice(0, 1)), ("full", slice(1, None)), ("labels", slice(None)))
    ]
    greedy, sampled, labels = (sum(a == b for a, b in part) / len(part) for part in pairs)
    errors = [np.abs(np.array(results[key]) / np.array(expected[key]) - 1).max() for key in ("probability", "choices")]
    error = float(max(errors))
    return {
        "greedy": greedy,
        "sampled": sampled,
        "labels": labels,
        "error": error,
        "passed": min(greedy, sampled, labels) >= MIN_EQUAL and error <= MAX_ERROR,
    }


def compare_distributions(settings: Settings) -> dict[str, Any]:
    """Sampled first tokens on the device against their exact probabilities, computed by transformers on the CPU."""
    from slick.inference.packed.engine import TransformersEngine
    from tests.local.tiny import tiny_model, tiny_tokenizer

    rows = []
    # Rounding to bfloat16 changes which tokens are the most likely ones, so there all tokens are sampled from.
    for dtype, top_k in (("float32", 20), ("bfloat16", len(tiny_tokenizer()))):
        for name in _DISTRIBUTION_MODELS if settings.device == "cuda" else ("llama",):
            model = tiny_model(name, spread=0.4, dtype=dtype)
            engine = TransformersEngine(model.to(settings.device), tiny_tokenizer())
            drawn = draw_first_tokens(engine, top_k=top_k)
            # The same weights, with arithmetic in float32.
            expected = first_token_probabilities(model.to("cpu").float(), tiny_tokenizer(), top_k=top_k)
            p = chi_square_p(drawn, expected)
            rows.append({"check": f"{name}, {dtype}", "p": p, "passed": p >= MIN_P})
    return {"rows": rows, "passed": all(row["passed"] for row in rows)}


def draw_first_tokens(engine: Any, *, top_k: int, temperature: float = 1.0, seed: int = 7) -> list[Counter[str]]:
    """Counts of the texts of `NUM_DRAWS` sampled first tokens of each prompt."""
    from slick.inference.base import SamplingConfig
    from tests.local.engine_results import BATCH

    sampling = SamplingConfig(num_samples=NUM_DRAWS, max_new_tokens=1, temperature=temperature, top_k=top_k, seed=seed)
    return [
        Counter(str(text) for text in answers.sampled_text)
        for row in engine.generate(BATCH, sampling)
        for answers in row
    ]


def first_token_probabilities(model: Any, tokenizer: Any, *, top_k: int) -> list[dict[str, float]]:
    """Probabilities of the texts of first tokens at temperature 1, among the most likely ones, of each prompt."""
    import torch

    from tests.local.engine_results import BATCH

    results = []
    for suffix in BATCH.suffixes:
        for prefix in BATCH.prefixes:
            ids = torch.tensor([tokenizer(prefix + suffix)["input_ids"]])
            with torch.inference_mode():
                top = model(input_ids=ids).logits[0, -1].float().topk(top_k)
            probabilities: dict[str, float] = {}
            for token, value in zip(top.indices.tolist(), top.values.softmax(dim=0).tolist(), strict=True):
                text = tokenizer.decode([token], skip_special_tokens=True).split("\n", 1)[0].strip()
                probabilities[text] = probabilities.get(text, 0.0) + value
            results.append(probabilities)
    return results


def chi_square_p(drawn: Sequence[Counter[str]], expected: Sequence[dict[str, float]]) -> float:
    """p-value of the chi-square test that the counts of all prompts follow their probabilities.

    A text without a probability gives 0.
    """
    from scipy.stats import chi2

    statistic, degrees = 0.0, 0
    for counts, probabilities in zip(drawn, expected, strict=True):
        if counts.keys() - probabilities.keys():
            return 0.0
        total, cells = sum(counts.values()), list[tuple[float, int]]()
        rest = (0.0, 0)
        for text, probability in sorted(probabilities.items(), key=lambda item: item[1]):
            rest = (rest[0] + total * probability, rest[1] + counts[text])
            if rest[0] >= _MIN_EXPECTED:
                cells.append(rest)
                rest = (0.0, 0)
        if rest[0] and cells:
            cells[-1] = (cells[-1][0] + rest[0], cells[-1][1] + rest[1])
        statistic += sum((count - mean) ** 2 / mean for mean, count in cells)
        degrees += max(0, len(cells) - 1)
    return float(chi2.sf(statistic, degrees))
