"""Number of answers and categories that change with the batch size and the dtype, for the same random numbers.

python -m tests.benchmarks.stability --model FOLDER --questions entity_questions.zip
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.cpu_linear import prepack_linears
from slick.inference.packed.engine import TransformersEngine
from slick.matching import make_matcher
from slick.models import load_model, load_tokenizer
from slick.types import categories
from tests.benchmarks.annotation import MAX_NEW_TOKENS, make_workload

BATCH_SIZES = (8, 64)
SETTINGS = [(dtype, size) for dtype in ("float32", "bfloat16") for size in BATCH_SIZES]
COMPARED = ((0, 1), (2, 3), (0, 2))
"""Pairs of settings."""


@dataclass(frozen=True)
class Labels:
    """The results of one setting."""

    categories: list[str]
    """One per question."""
    texts: list[str]
    """All answers of all questions in order: one greedy answer and the samples of each prompt."""


def label(model_folder: str, dtype: str, batch_questions: int, work: list[dict]) -> Labels:
    """The category and the answers of every question."""
    model = load_model(model_folder, dtype)
    prepack_linears(model)
    engine = TransformersEngine(model, load_tokenizer(model_folder), batch_questions=batch_questions)
    labels, texts = [], []
    for part in work:
        batch = PromptBatch(prefixes=part["prefixes"], question_ids=part["ids"], suffixes=part["suffixes"])
        answers = engine.generate(batch, SamplingConfig(max_new_tokens=MAX_NEW_TOKENS))
        for gold, row in zip(part["gold"], answers, strict=True):
            is_hit = make_matcher(gold).is_hit
            greedy = sum(is_hit(answer.greedy_text) for answer in row)
            sampled = sum(is_hit(text) for answer in row for text in answer.sampled_text)
            labels += categories(np.array([greedy]), np.array([len(row)]), np.array([sampled]))
            texts += [text for answer in row for text in (answer.greedy_text, *answer.sampled_text)]
    return Labels(labels, texts)


def clopper_pearson(num: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = beta.ppf(tail, num, total - num + 1) if num else 0.0
    high = beta.ppf(1 - tail, num + 1, total - num) if num < total else 1.0
    return float(low), float(high)


def compare(first: Sequence[str], second: Sequence[str], what: str) -> str:
    """How many of the values differ, with the exact interval of their share."""
    changed, total = sum(a != b for a, b in zip(first, second, strict=True)), len(first)
    low, high = clopper_pearson(changed, total)
    return f"{changed} of {total} {what} change, {100 * changed / total:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def main() -> None:
    """Print how many answers and categories differ between settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder or GGUF file")
    parser.add_argument("--questions", required=True, help="EntityQuestions as zip or folder")
    parser.add_argument("--relations", default="P17,P36,P495")
    parser.add_argument("--num-questions", type=int, default=48, help="questions per relation")
    parser.add_argument("--split", default="dev", help="of the questions")
    arguments = parser.parse_args()
    relations = arguments.relations.split(",")
    work = make_workload(arguments.questions, relations, arguments.num_questions, arguments.split)
    results: list[Labels] = []
    for setting in SETTINGS:
        results.append(label(arguments.model, *setting, work))
        print(f"{setting} is finished", flush=True)
        for i, j in COMPARED:
            if max(i, j) == len(results) - 1:
                first, second = results[i], results[j]
                print(
                    f"{SETTINGS[i]} against {SETTINGS[j]}:", compare(first.categories, second.categories, "categories")
                )
                print(f"  {compare(first.texts, second.texts, 'answers')}", flush=True)


if __name__ == "__main__":
    main()
