"""CPU time of validating a model, compared with annotating 1,000 questions."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from slick.datasets import read_questions
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.cpu_linear import prepack_linears
from slick.inference.packed.engine import TransformersEngine
from slick.matching import make_matcher
from slick.model_files import check_model_files
from slick.model_validation import check_causal, check_loading_info, check_tokenizer
from slick.models import load_model, load_tokenizer, resolve_model
from slick.prompts import few_shot_prefix, few_shot_suffix
from slick.storage import Folder

_NOTHING: dict[str, Any] = {}


def cpu_seconds(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of this process for one call, the minimum of several."""
    seconds = []
    for _ in range(times):
        started_at = time.process_time()
        work()
        seconds.append(time.process_time() - started_at)
    return min(seconds)


def main() -> None:
    """Print the CPU seconds of each check and their share of an annotation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a study with finished questions and exemplars")
    parser.add_argument("--model", default="", help="default: the model of the study")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num-questions", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Folder(arguments.study)
    name = arguments.model or study.child("world", "model").uri
    questions = {row["question_id"]: row for row in read_questions(study).to_pylist()}
    sets = study.child("annotate").read_json("exemplars.json")
    prefixes = {
        relation: [
            few_shot_prefix([(questions[i]["question"], questions[i]["answers"][0]) for i in ids]) for ids in some
        ]
        for relation, some in sets.items()
    }
    ref, tokenizer, model = resolve_model(name), load_tokenizer(name), load_model(name, arguments.dtype)
    longest = [max(some, key=len) for some in prefixes.values()]
    checks: dict[str, Callable[[], object]] = {
        "tokenizer and prompts": lambda: check_tokenizer(tokenizer, name, num_embeddings=1 << 30, prefixes=longest),
        "weights": lambda: check_loading_info(model, _NOTHING, name),
        "causality": lambda: check_causal(model, name),
    }
    if not ref.gguf_file:
        checks["files"] = lambda: check_model_files(ref.folder)
    costs = {check: cpu_seconds(work, times=5) for check, work in checks.items()}
    total = sum(costs.values())
    print(", ".join(f"{check} {1000 * seconds:.1f} ms" for check, seconds in costs.items()), f"together {total:.4f} s")
    prepack_linears(model)
    for mode in ("full", "labels"):
        spent, num = annotation_seconds(model, tokenizer, prefixes, list(questions.values()), mode, arguments)
        share = total / (spent / num * 1000)
        print(f"{mode}: {1000 * spent / num:.2f} s for 1,000 questions (of {num}); validation is {100 * share:.2f} %")


def annotation_seconds(
    model: Any, tokenizer: Any, prefixes: dict[str, list[str]], questions: list[Any], mode: str, arguments: Any
) -> tuple[float, int]:
    """CPU seconds and number of questions answered, equally many of each relation."""
    engine = TransformersEngine(model, tokenizer)
    num_per_relation = max(1, arguments.num_questions // len(prefixes))
    spent, num = 0.0, 0
    for relation, relation_prefixes in prefixes.items():
        rows = [row for row in questions if row["relation"] == relation and row["split"] == "train"][:num_per_relation]
        if not rows:
            continue
        batch = PromptBatch(
            prefixes=relation_prefixes,
            question_ids=[row["question_id"] for row in rows],
            suffixes=[few_shot_suffix(row["question"]) for row in rows],
        )
        targets = [make_matcher(row["answers"], "exact") for row in rows] if mode == "labels" else None
        spent += cpu_seconds(lambda b=batch, t=targets: engine.generate(b, SamplingConfig(max_new_tokens=10), t))
        num += len(rows)
    return spent, num


if __name__ == "__main__":
    main()
