"""Speed of `slick curate` compared with `generate` of transformers, one prompt at a time, on the prompts of a file.

python -m tests.benchmarks.curation data.jsonl --model FILE.gguf --prompt-format chat --rows 64 --generate-rows 2

Both answer each row under its 10 prompts, with 1 greedy answer and 16 samples (T = 0.5, top-k 40), and end an answer at
the same tokens. `generate` keeps the keys and values of a prompt for its samples, and nothing for the next prompt. Each
runs alone in this process with one thread; times are CPU seconds without loading.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.annotation.set_aside import token_counter
from slick.curation.config import CurateConfig
from slick.curation.files import open_data
from slick.curation.forecast import StudyPrompts, sample_questions, study_prompts
from slick.curation.plan import plan_curation
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.cpu_linear import prepack_linears
from slick.inference.packed.engine import TransformersEngine
from slick.models import load_model, load_tokenizer, resolve_model


def batches(prompts: StudyPrompts, rows: pa.Table) -> list[PromptBatch]:
    """The rows that share their prefixes, in the batches of the annotate step."""
    result = []
    for group in rows[PROMPT_GROUP].unique().to_pylist():
        part = [row for row in rows.to_pylist() if row[PROMPT_GROUP] == group]
        result.append(
            PromptBatch(
                prefixes=prompts.spec.prefixes[group],
                question_ids=[row["question_id"] for row in part],
                suffixes=[row[SUFFIX] for row in part],
                style=prompts.spec.style,
            )
        )
    return result


def run_slick(engine: TransformersEngine, work: Sequence[PromptBatch], sampling: SamplingConfig) -> float:
    """CPU seconds of the engine for all answers."""
    started_at = time.process_time()
    for batch in work:
        engine.generate(batch, sampling)
    return time.process_time() - started_at


def run_generate(model: Any, tokenizer: Any, work: Sequence[PromptBatch], sampling: SamplingConfig) -> float:
    """CPU seconds of `generate` for all answers."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    ends = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(text) for text in work[0].style.end_texts)}
    if work[0].style.stop_at_newline:
        ends |= {i for i, text in enumerate(texts) if "\n" in text}
    common = {
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": sorted(ends),
        "pad_token_id": tokenizer.eos_token_id,
    }
    sampled = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": 1.0}
    started_at = time.process_time()
    for batch in work:
        for text in (prefix + suffix for suffix in batch.suffixes for prefix in batch.prefixes):
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=batch.style.add_special_tokens)
            with torch.inference_mode():
                model.generate(**ids, do_sample=False, **common)
                model.generate(**ids, do_sample=True, num_return_sequences=sampling.num_samples, **sampled, **common)
    return time.process_time() - started_at


def main() -> None:
    """Print rows per CPU minute and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt-format", default="auto")
    parser.add_argument("--matcher", default="contains")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--generate-rows", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = CurateConfig(
        data=arguments.data,
        model=arguments.model,
        matcher=arguments.matcher,
        prompt_format=arguments.prompt_format,
        max_new_tokens=arguments.max_new_tokens,
    )
    plan = plan_curation(open_data(arguments.data), config)
    prompts, sampling = study_prompts(plan), plan.annotation.sampling
    model, tokenizer = load_model(arguments.model, arguments.dtype), load_tokenizer(arguments.model)
    work = [
        batches(prompts, sample_questions(prompts.questions, n, 0)) for n in (arguments.rows, arguments.generate_rows)
    ]
    lengths = token_counter(arguments.model, trust_remote_code=False, style=prompts.spec.style)(
        [prefix + suffix for batch in work[0] for suffix in batch.suffixes for prefix in batch.prefixes]
    )
    plain = run_generate(model, tokenizer, work[1], sampling) / arguments.generate_rows
    prepack_linears(model)
    engine = TransformersEngine(model, tokenizer)
    run_slick(engine, work[1][:1], replace(sampling, num_samples=1))  # compile and allocate
    own = run_slick(engine, work[0], sampling) / arguments.rows
    mean_length = sum(lengths) / len(lengths)
    print(f"{resolve_model(arguments.model).path}, {arguments.prompt_format}, {mean_length:.0f} tokens a prompt")
    print(f"slick: {60 / own:.1f} rows a CPU minute ({arguments.rows} rows)")
    print(f"generate: {60 / plain:.2f} rows a CPU minute ({arguments.generate_rows} rows)")
    print(f"ratio: {plain / own:.0f}")


if __name__ == "__main__":
    main()
