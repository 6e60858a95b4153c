"""Annotation speed compared with other engines: the same questions, prompts and answers, one thread each.

python -m tests.benchmarks.annotation --model FOLDER --questions entity_questions.zip --vllm-python PYTHON
python -m tests.benchmarks.annotation --model WORLD/model --questions WORLD/dataset --engines full,labels,gold,generate

Each engine runs in its own process and may use another Python environment. A run answers all questions once and counts
CPU seconds of its process, without loading and a first prompt. Engines alternate in every round; the table has medians.
Each engine generates 1 greedy answer and 16 samples (T = 0.5, top-k 40) for each of 10 prompts, up to the newline. The
gold estimator scores one answer instead.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from slick.cluster import LOCAL_CLUSTER_ENV

NUM_PROMPTS, NUM_SHOTS, NUM_SAMPLES, MAX_NEW_TOKENS = 10, 4, 16, 8
SLOW = {"generate"}
"""Engines that answer only a few questions, because one question takes minutes."""


def read_questions(source: str, relation: str, split: str) -> list[dict]:
    """The questions of a relation, from the archive or a folder."""
    if source.endswith(".zip"):
        with zipfile.ZipFile(source) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(f"{split}/{relation}.{split}.json")]
            return json.loads(archive.read(name))
    (path,) = Path(source).rglob(f"{split}/{relation}.{split}.json")
    return json.loads(path.read_text())


def make_workload(source: str, relations: list[str], num_questions: int, split: str = "dev") -> list[dict]:
    """For each relation, 10 prefixes and some questions that are not among their exemplars."""
    workload = []
    for relation in relations:
        rows = read_questions(source, relation, "dev")
        rng = random.Random(relation)
        rng.shuffle(rows)
        shots = rows[: max(8, len(rows) // 3)]
        prefixes = [
            "".join(f"Q: {row['question']}\nA: {row['answers'][0]}\n" for row in rng.sample(shots, NUM_SHOTS))
            for _ in range(NUM_PROMPTS)
        ]
        others = rows[len(shots) :] if split == "dev" else read_questions(source, relation, split)
        selected = others[:num_questions]
        assert len(selected) == num_questions, (
            f"{relation} has {len(others)} {split} questions, too few for {num_questions}"
        )
        workload.append(
            {
                "ids": [f"{relation}-{i}" for i in range(num_questions)],
                "prefixes": prefixes,
                "suffixes": [f"Q: {row['question']}\nA:" for row in selected],
                "gold": [row["answers"] for row in selected],
            }
        )
    return workload


def select_half_known(work: list[dict], model_folder: str, num_questions: int) -> list[dict]:
    """Select equally many questions with and without a greedy hit per relation, close to the share in the paper."""
    from slick.inference.base import PromptBatch, SamplingConfig
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    model = load_model(model_folder)
    prepack_linears(model)
    engine = TransformersEngine(model, load_tokenizer(model_folder))
    selected = []
    for relation_work in work:
        batch = PromptBatch(
            prefixes=relation_work["prefixes"], question_ids=relation_work["ids"], suffixes=relation_work["suffixes"]
        )
        scores = engine.score(
            batch, [gold[0] for gold in relation_work["gold"]], SamplingConfig(max_new_tokens=MAX_NEW_TOKENS)
        )
        known = [any(score.is_greedy for score in row) for row in scores]
        kept = [
            [i for i, hit in enumerate(known) if hit is is_known][: num_questions // 2] for is_known in (True, False)
        ]
        assert len(kept[0]) == len(kept[1]) == num_questions // 2, f"only {len(kept[0])} questions have a greedy hit"
        indices = sorted(kept[0] + kept[1])
        selected.append(
            relation_work | {name: [relation_work[name][i] for i in indices] for name in ("ids", "suffixes", "gold")}
        )
    return selected


def run_slick(kind: str, model_folder: str, dtype: str, batch_questions: int, work: list[dict]) -> dict:
    """The transformers engine: `full`, `labels` or `gold`."""
    from slick.inference.base import PromptBatch, SamplingConfig
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.matching import make_matcher
    from slick.models import load_model, load_tokenizer

    model, tokenizer = load_model(model_folder, dtype), load_tokenizer(model_folder)
    prepack_linears(model)
    engine = TransformersEngine(model, tokenizer, batch_questions=batch_questions)
    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, num_samples=NUM_SAMPLES)
    engine.generate(PromptBatch(prefixes=["Q: a\nA: b\n"], question_ids=["a"], suffixes=["Q: c\nA:"]), sampling)
    before = engine.stats.prefilled_tokens, engine.stats.decoded_tokens, engine.stats.generations
    started, hits = time.process_time(), 0
    for part in work:
        batch = PromptBatch(prefixes=part["prefixes"], question_ids=part["ids"], suffixes=part["suffixes"])
        targets = [make_matcher(gold) for gold in part["gold"]]
        if kind == "gold":
            hits += sum(s.is_greedy for row in engine.score(batch, [g[0] for g in part["gold"]], sampling) for s in row)
            continue
        answers = engine.generate(batch, sampling, targets if kind == "labels" else None)
        hits += sum(target.is_hit(a.greedy_text) for target, row in zip(targets, answers, strict=True) for a in row)
    seconds = time.process_time() - started
    stats = engine.stats
    text_config = model.config.get_text_config()
    logit_flop = 2.0 * text_config.hidden_size * text_config.vocab_size
    token_flop = 2.0 * sum(m.numel() for m in load_model(model_folder, dtype).parameters() if m.dim() == 2) - logit_flop
    prefilled, decoded = stats.prefilled_tokens - before[0], stats.decoded_tokens - before[1]
    num_prompts = sum(len(part["ids"]) * NUM_PROMPTS for part in work)
    num_logits = num_prompts + decoded
    # Attention scores and weighted values over the keys of an average prompt.
    length = sum(
        len(tokenizer(p + s)["input_ids"]) for part in work[:1] for p in part["prefixes"] for s in part["suffixes"]
    )
    length /= len(work[0]["prefixes"]) * len(work[0]["suffixes"])
    token_flop += 4.0 * text_config.num_hidden_layers * text_config.hidden_size * length
    return {
        "seconds": seconds,
        "hits": hits,
        "decoded": decoded,
        "drawn": stats.generations - before[2],
        "gflop": (token_flop * (prefilled + decoded) + logit_flop * num_logits) / 1e9,
    }


def generation_options(tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of transformers' `generate` for greedy answers and for samples, both up to a newline."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    ends = [i for i, text in enumerate(texts) if "\n" in text or i == tokenizer.eos_token_id]
    pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    common = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": ends, "pad_token_id": pad}
    sampled = {"do_sample": True, "temperature": 0.5, "top_k": 40, "top_p": 1.0, "num_return_sequences": NUM_SAMPLES}
    return {"do_sample": False, **common}, {**sampled, **common}


def run_generate(model_folder: str, dtype: str, work: list[dict]) -> dict:
    """`generate` of transformers, one prompt at a time: greedy, then 16 samples."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype)).eval()
    greedy_options, sampled_options = generation_options(tokenizer)
    hits, started = 0, 0.0
    for part in [{**work[0], "suffixes": work[0]["suffixes"][:1], "prefixes": work[0]["prefixes"][:1]}, *work]:
        if part is work[0]:
            started, hits = time.process_time(), 0
        for suffix, gold in zip(part["suffixes"], part["gold"], strict=False):
            for prefix in part["prefixes"]:
                ids = tokenizer(prefix + suffix, return_tensors="pt")
                length = ids["input_ids"].shape[1]
                with torch.inference_mode():
                    greedy = model.generate(**ids, **greedy_options)
                    model.generate(**ids, **sampled_options)
                text = tokenizer.decode(greedy[0, length:], skip_special_tokens=True).split("\n")[0].strip()
                hits += text in gold
    return {"seconds": time.process_time() - started, "hits": hits}


def run_vllm(model_folder: str, dtype: str, work: list[dict]) -> dict:
    """vLLM with tuned settings: blocks of 32, prefix caching, a greedy call before the samples."""
    import torch
    import vllm

    options = {} if torch.cuda.is_available() else {"block_size": 32}
    llm = vllm.LLM(
        model_folder,
        dtype=dtype,
        enable_prefix_caching=True,
        max_model_len=512,
        seed=0,
        disable_log_stats=True,
        **options,
    )
    common = {"max_tokens": MAX_NEW_TOKENS, "stop": ["\n"]}
    greedy = vllm.SamplingParams(temperature=0.0, **common)
    sampled = vllm.SamplingParams(temperature=0.5, top_k=40, n=NUM_SAMPLES, **common)
    llm.generate(["Q: a\nA: b\nQ: c\nA:"], greedy, use_tqdm=False)
    started, hits = time.process_time(), 0
    for part in work:
        prompts = [prefix + suffix for prefix in part["prefixes"] for suffix in part["suffixes"]]
        greedy_outputs = llm.generate(prompts, greedy, use_tqdm=False)
        sampled_outputs = llm.generate(prompts, sampled, use_tqdm=False)
        assert all(len(output.outputs) == NUM_SAMPLES for output in sampled_outputs)
        golds = [gold for _ in part["prefixes"] for gold in part["gold"]]
        hits += sum(
            o.outputs[0].text.split("\n")[0].strip() in gold for o, gold in zip(greedy_outputs, golds, strict=True)
        )
    return {"seconds": time.process_time() - started, "hits": hits}


def run_openvino(gguf: str, dtype: str, work: list[dict]) -> dict:
    """OpenVINO GenAI with continuous batching and prefix caching; it uses the quantized weights of a GGUF file."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.cache_size, scheduler.max_num_batched_tokens = True, 2, 2048
    hint = {"bfloat16": "bf16", "float32": "f32"}[dtype]
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint}
    pipeline = genai.ContinuousBatchingPipeline(gguf, scheduler, "CPU", options)
    greedy, sampled = genai.GenerationConfig(), genai.GenerationConfig()
    for config in (greedy, sampled):
        config.max_new_tokens, config.stop_strings, config.apply_chat_template = MAX_NEW_TOKENS, {"\n"}, False
    sampled.do_sample, sampled.temperature, sampled.top_k = True, 0.5, 40
    sampled.num_return_sequences = NUM_SAMPLES
    pipeline.generate(["Q: a\nA: b\nQ: c\nA:"], [greedy])
    started, hits = time.process_time(), 0
    for part in work:
        prompts = [prefix + suffix for prefix in part["prefixes"] for suffix in part["suffixes"]]
        greedy_outputs = pipeline.generate(prompts, [greedy] * len(prompts))
        sampled_outputs = pipeline.generate(prompts, [sampled] * len(prompts))
        assert all(len(output.m_generation_ids) == NUM_SAMPLES for output in sampled_outputs)
        golds = [gold for _ in part["prefixes"] for gold in part["gold"]]
        texts = [output.m_generation_ids[0].split("\n")[0].strip() for output in greedy_outputs]
        hits += sum(text in gold for text, gold in zip(texts, golds, strict=True))
    return {"seconds": time.process_time() - started, "hits": hits}


def peak_gflops(dtype: str) -> float:
    """GFLOP/s of one thread in a large product with packed weights: the best of ten intervals of 0.3 s."""
    import torch

    from slick.inference.packed.cpu_linear import PrepackedLinear

    layer = PrepackedLinear(torch.randn(1536, 1536).to(getattr(torch, dtype)), None)
    x, best = torch.randn(512, 1536).to(getattr(torch, dtype)), 0.0
    with torch.inference_mode():
        for _ in range(10):
            started, num = time.process_time(), 0
            while time.process_time() < started + 0.3:
                layer(x)
                num += 1
            best = max(best, num * 2 * 512 * 1536 * 1536 / 1e9 / (time.process_time() - started))
    return best


def run_one(engine: str, model: str, dtype: str, batch_questions: int, path: str) -> None:
    """Print the result of one engine as the last line; for slick with the peak, measured before and after."""
    import torch

    torch.set_num_threads(1)
    work = json.loads(Path(path).read_text())
    if engine in SLOW:
        work = [{**part, **{name: part[name][:2] for name in ("ids", "suffixes", "gold")}} for part in work]
    if engine == "generate":
        result = run_generate(model, dtype, work)
    elif engine == "vllm":
        result = run_vllm(model, dtype, work)
    elif engine == "openvino":
        result = run_openvino(model, dtype, work)
    else:
        before = peak_gflops(dtype)
        result = run_slick(engine, model, dtype, batch_questions, work)
        result["peak_gflops"] = max(before, peak_gflops(dtype))
    result["questions"] = sum(len(part["ids"]) for part in work)
    print(json.dumps(result))


def run_engine_process(python: str, engine: str, arguments: argparse.Namespace, path: str) -> dict:
    """Run one engine in its own process on one thread; returns its result."""
    settings = LOCAL_CLUSTER_ENV | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }  # the environment of slick's own processes
    settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    settings |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "tests.benchmarks.annotation", "--run", engine]
    command += ["--model", arguments.gguf if engine == "openvino" else arguments.model]
    command += ["--dtype", arguments.dtype, "--work", path, "--batch", str(arguments.batch)]
    completed = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if completed.returncode:
        raise SystemExit(f"{engine} failed:\n{completed.stderr[-3000:]}")
    return json.loads(completed.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run all engines in alternation and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", help="EntityQuestions as zip or folder")
    parser.add_argument("--relations", default="P19,P36,P50")
    parser.add_argument("--num-questions", type=int, default=32, help="questions per relation")
    parser.add_argument(
        "--split", default="dev", help="split of the questions; few-shot prompts use other dev questions"
    )
    parser.add_argument("--batch", type=int, default=32, help="questions per batch")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engines", default="full,labels,gold,generate,vllm")
    parser.add_argument("--half-known", action="store_true", help="select questions so that half have a greedy hit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm-python", default=sys.executable, help="Python with vllm or openvino-genai")
    parser.add_argument("--gguf", help="the model as a GGUF file, for --engines openvino")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(arguments.run, arguments.model, arguments.dtype, arguments.batch, arguments.work)
        return
    relations = arguments.relations.split(",")
    size = arguments.num_questions
    work = make_workload(arguments.questions, relations, size * (8 if arguments.half_known else 1), arguments.split)
    if arguments.half_known:
        work = select_half_known(work, arguments.model, size)
    engines = arguments.engines.split(",")
    results: dict[str, list[dict]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/work.json"
        Path(path).write_text(json.dumps(work))
        for round_index in range(arguments.rounds):
            for engine in results:
                if engine in SLOW and round_index:
                    continue
                result = run_engine_process(
                    arguments.vllm_python if engine in ("vllm", "openvino") else sys.executable, engine, arguments, path
                )
                results[engine].append(result)
                print(f"round {round_index + 1} {engine}: {json.dumps(result)}", file=sys.stderr, flush=True)
    print("| engine | questions/CPU-s | generations/CPU-s | GFLOP/question | peak GFLOP/s | of peak | greedy hits |")
    print("|---|---|---|---|---|---|---|")
    for engine in engines:
        speed = statistics.median(result["questions"] / result["seconds"] for result in results[engine])
        last = results[engine][-1]
        flop = last.get("gflop", 0.0) / last["questions"]
        generations = "-" if engine == "gold" else f"{speed * NUM_PROMPTS * (1 + NUM_SAMPLES):.0f}"
        peaks, columns = [result.get("peak_gflops", 0.0) for result in results[engine]], ["-", "-", "-"]
        if flop:
            pairs = zip(results[engine], peaks, strict=True)
            peak_share = statistics.median(result["gflop"] / result["seconds"] / peak for result, peak in pairs)
            columns = [f"{flop:.3g}", f"{statistics.median(peaks):.0f}", f"{100 * peak_share:.0f} %"]
        hit_rate = last["hits"] / last["questions"]
        print(f"| {engine} | {speed:.3g} | {generations} | {' | '.join(columns)} | {hit_rate:.2f} |")


if __name__ == "__main__":
    main()
