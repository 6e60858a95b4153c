"""Number of categories that change with the batch size and the dtype, for the same random numbers.

python -m tests.benchmarks.stability --model FOLDER --questions entity_questions.zip
"""

import argparse

import numpy as np

from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.cpu_linear import prepack_linears
from slick.inference.packed.engine import TransformersEngine
from slick.matching import make_matcher
from slick.models import load_model, load_tokenizer
from slick.types import categories
from tests.benchmarks.annotation import MAX_NEW_TOKENS, make_workload

SETTINGS = [("float32", 32), ("float32", 8), ("bfloat16", 32), ("bfloat16", 8)]


def label(model_folder: str, dtype: str, batch_questions: int, work: list[dict]) -> list[str]:
    """The category of every question."""
    model = load_model(model_folder, dtype)
    prepack_linears(model)
    engine = TransformersEngine(model, load_tokenizer(model_folder), batch_questions=batch_questions)
    labels = []
    for part in work:
        batch = PromptBatch(prefixes=part["prefixes"], question_ids=part["ids"], suffixes=part["suffixes"])
        answers = engine.generate(batch, SamplingConfig(max_new_tokens=MAX_NEW_TOKENS))
        for gold, row in zip(part["gold"], answers, strict=True):
            is_hit = make_matcher(gold).is_hit
            greedy = sum(is_hit(answer.greedy_text) for answer in row)
            sampled = sum(is_hit(text) for answer in row for text in answer.sampled_text)
            labels += categories(np.array([greedy]), np.array([len(row)]), np.array([sampled]))
    return labels


def main() -> None:
    """Print how many categories differ from those of the first setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", required=True, help="EntityQuestions as zip or folder")
    parser.add_argument("--relations", default="P17,P36,P495")
    parser.add_argument("--num-questions", type=int, default=48, help="questions per relation")
    arguments = parser.parse_args()
    work = make_workload(arguments.questions, arguments.relations.split(","), arguments.num_questions)
    labels = {setting: label(arguments.model, *setting, work) for setting in SETTINGS}
    for i, j in ((0, 1), (2, 3), (0, 2)):
        first, second = labels[SETTINGS[i]], labels[SETTINGS[j]]
        changed = sum(a != b for a, b in zip(first, second, strict=True))
        print(f"{SETTINGS[i]} against {SETTINGS[j]}: {changed} of {len(first)} categories change")


if __name__ == "__main__":
    main()
