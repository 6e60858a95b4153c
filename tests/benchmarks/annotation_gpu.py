"""Annotation on a GPU compared with transformers: the same model, questions, prompts and numbers of answers.

python -m tests.benchmarks.annotation_gpu --model FOLDER --questions entity_questions.zip
python -m tests.benchmarks.annotation_gpu --model FOLDER --questions entity_questions.zip --engines full \
    --num-questions 98029 --seconds 480 --processes 4

Neither Ray nor DeepSpeed is needed. Each engine runs in its own process. Times are wall-clock seconds until the last
answer is on the host, without loading and a first batch. `batched` is `generate` on left-padded batches of prompts and
`continuous` is `generate_batch` with continuous batching; both generate 1 greedy answer and 16 samples (T = 0.5, top-k
40) for each of 10 prompts, up to the newline. `host-full` and `host-labels` are these modes without the model: its
recorded results are replayed. These four engines answer fewer questions.

The roofline time of a pass is the larger of two: its operations at the speed of a large product, and its bytes at the
speed of a large copy, both measured on the device first. Operations are those of the weights, attention scores and
weighted values. Bytes are those of the weights (read once per pass), the logits (written and read), and the keys and
values (written once, read once per token).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from slick.cluster import LOCAL_CLUSTER_ENV
from tests.benchmarks.annotation import MAX_NEW_TOKENS, NUM_PROMPTS, NUM_SAMPLES, make_workload

PEERS = ("batched", "continuous")
HOST_ENGINES = {"host-full": "full", "host-labels": "labels"}
SUBSET_ENGINES = (*PEERS, *HOST_ENGINES)
"""Engines that answer fewer questions."""
FIRST = 8
"""Questions of the untimed first batch."""


class Roofline:
    """Accumulates the minimum time of a model's forward passes on the device."""

    def __init__(self, model, flops_per_second: float, bytes_per_second: float) -> None:
        config = model.config.get_text_config()
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        itemsize = matrices[0].element_size()
        head_size = config.hidden_size * config.vocab_size
        # The input embedding is a lookup without multiplications, whether it is tied to the head or not.
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        body_size = sum(weight.numel() for weight in matrices) - head_size * (1 if tied else 2)
        key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._weight_flop, self._logit_flop = 2.0 * body_size, 2.0 * head_size
        self._key_flop = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
        self._weight_bytes, self._logit_bytes = (body_size + head_size) * itemsize, 2.0 * config.vocab_size * itemsize
        self._key_bytes = 2.0 * config.num_hidden_layers * key_heads * width * itemsize
        self._flops_per_second, self._bytes_per_second = flops_per_second, bytes_per_second
        self.length = 0.0
        """Average number of keys per token."""
        self.clear()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def clear(self) -> None:
        """Reset the counters."""
        self.seconds, self.passes, self.tokens = 0.0, 0, 0

    def _count(self, _module, _args, kwargs: dict) -> None:
        rows, num = len(kwargs["input_ids"]), kwargs["input_ids"].numel()
        logits_to_keep = kwargs.get("logits_to_keep", num)
        logits = min(num, rows * logits_to_keep if isinstance(logits_to_keep, int) else len(logits_to_keep))
        flop = num * (self._weight_flop + self._key_flop * self.length) + logits * self._logit_flop
        num_bytes = self._weight_bytes + logits * self._logit_bytes + num * self._key_bytes * (1 + self.length)
        self.seconds += max(flop / self._flops_per_second, num_bytes / self._bytes_per_second)
        self.passes += 1
        self.tokens += num


def measure(arguments: argparse.Namespace) -> dict:
    """Operations per second of a large product and bytes per second of a large copy, each the best of five."""
    import torch

    device = arguments.device
    size, num = (8192, 1 << 30) if device == "cuda" else (1024, 1 << 26)
    a = torch.randn(size, size, device=device).to(getattr(torch, arguments.dtype))
    x = torch.empty(num, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    product = min(_seconds(lambda: a @ a, device) for _ in range(5))
    copy = min(_seconds(lambda: y.copy_(x), device) for _ in range(5))
    return {"flops": 2.0 * size**3 / product, "bytes": 2.0 * num / copy}


def _seconds(work: Callable[[], object], device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(4):
        work()
    _wait(device)
    return (time.perf_counter() - started) / 4


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def answer_questions(engine, mode: str, part: dict, rows: slice) -> int:
    """Answer some questions in mode `full`, `labels` or `gold`; returns the number of greedy hits."""
    from slick.inference.base import PromptBatch, SamplingConfig
    from slick.matching import make_matcher

    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, num_samples=NUM_SAMPLES)
    batch = PromptBatch(prefixes=part["prefixes"], question_ids=part["ids"][rows], suffixes=part["suffixes"][rows])
    if mode == "gold":
        scores = engine.score(batch, [gold[0] for gold in part["gold"][rows]], sampling)
        return sum(score.is_greedy for row in scores for score in row)
    targets = [make_matcher(gold) for gold in part["gold"][rows]]
    answers = engine.generate(batch, sampling, targets if mode == "labels" else None)
    return sum(t.is_hit(a.greedy_text) for t, row in zip(targets, answers, strict=True) for a in row)


def units(part: dict, size: int) -> list[slice]:
    """Slices of questions that are answered together."""
    return [slice(start, start + size) for start in range(0, len(part["ids"]), size)]


def run_slick(mode: str, arguments: argparse.Namespace, work: list[dict], wait_for_start: Callable[[], None]) -> dict:
    """slick's engine, until all questions are answered or the time limit is reached."""
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    model, tokenizer = load_model(arguments.model, arguments.dtype, arguments.device), load_tokenizer(arguments.model)
    roofline = Roofline(model, arguments.flops, arguments.bytes)
    prepack_linears(model)  # on a CPU, as slick does
    answer_questions(TransformersEngine(model, tokenizer), mode, work[0], slice(0, FIRST))
    engine = TransformersEngine(model, tokenizer)
    roofline.clear()
    roofline.length = len(tokenizer(work[0]["prefixes"][0] + work[0]["suffixes"][0])["input_ids"])
    wait_for_start()
    started_at, cpu_before, hits, num = time.perf_counter(), time.process_time(), 0, 0
    for part in work:
        for rows in units(part, arguments.unit):
            if time.perf_counter() - started_at > arguments.seconds:
                break
            hits += answer_questions(engine, mode, part, rows)
            num += len(part["ids"][rows])
    return {
        "questions": num,
        "seconds": time.perf_counter() - started_at,
        "cpu_seconds": time.process_time() - cpu_before,
        "hits": hits,
        "tokens": engine.stats.answer_tokens,
        "passes": roofline.passes,
        "passed_tokens": roofline.tokens,
        "roofline_seconds": roofline.seconds,
    }


def run_host(mode: str, arguments: argparse.Namespace, work: list[dict], wait_for_start: Callable[[], None]) -> dict:
    """Time of a mode without the model: all questions are answered, then again with recorded model results replayed."""
    from slick.inference.packed.decoder import PackedDecoder
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    model, tokenizer = load_model(arguments.model, arguments.dtype, arguments.device), load_tokenizer(arguments.model)
    engine = TransformersEngine(model, tokenizer, batch_questions=arguments.unit)
    forward, passes = PackedDecoder._forward, []

    def record_forward(decoder, tokens, *rest):
        passes.append((forward(decoder, tokens, *rest), len(tokens)))
        return passes[-1][0]

    def replay_forward(decoder, *_):
        candidates, num_tokens = next(recorded)
        decoder._store.num_tokens += num_tokens
        return candidates

    def answer_all() -> int:
        return sum(answer_questions(engine, mode, part, rows) for part in work for rows in units(part, arguments.unit))

    PackedDecoder._forward = record_forward
    answer_all()
    passes.clear()
    hits = answer_all()  # with cached prefixes
    recorded, PackedDecoder._forward = iter(passes), replay_forward
    engine._tokenizer._texts.clear()
    before = engine.stats.answer_tokens
    wait_for_start()
    started_at, cpu_before = time.perf_counter(), time.process_time()
    assert answer_all() == hits
    return {
        "questions": sum(len(part["ids"]) for part in work),
        "seconds": time.perf_counter() - started_at,
        "cpu_seconds": time.process_time() - cpu_before,
        "hits": hits,
        "tokens": engine.stats.answer_tokens - before,
        "passes": len(passes),
        "passed_tokens": sum(num for _, num in passes),
    }


def run_peer(engine: str, arguments: argparse.Namespace, work: list[dict], wait_for_start: Callable[[], None]) -> dict:
    """`generate` on batches, or `generate_batch`, of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    loaded = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    model = loaded.to(arguments.device).eval()
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    ends = [i for i, text in enumerate(texts) if "\n" in text or i == tokenizer.eos_token_id]
    common = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    greedy = GenerationConfig(do_sample=False, **common)
    sampled = GenerationConfig(
        do_sample=True, temperature=0.5, top_k=40, top_p=1.0, num_return_sequences=NUM_SAMPLES, **common
    )

    def batched(prompts: list[str]) -> tuple[list[str], int]:
        answers, num_tokens = [""] * len(prompts), 0
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for config, rows in ((greedy, arguments.rows), (sampled, max(1, arguments.rows // NUM_SAMPLES))):
            for start in range(0, len(order), rows):
                indices = order[start : start + rows]
                ids = tokenizer([prompts[i] for i in indices], return_tensors="pt", padding=True).to(arguments.device)
                with torch.inference_mode():
                    generated = model.generate(**ids, generation_config=config)[:, ids["input_ids"].shape[1] :]
                num_tokens += int((generated != tokenizer.pad_token_id).sum())
                if config is greedy:
                    for i, text in zip(
                        indices, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True
                    ):
                        answers[i] = text
        return answers, num_tokens

    def continuous(prompts: list[str]) -> tuple[list[str], int]:
        ids = tokenizer(prompts)["input_ids"]
        greedy_outputs = list(model.generate_batch(ids, generation_config=greedy).values())
        sampled_outputs = list(model.generate_batch(ids, generation_config=sampled).values())
        assert len(greedy_outputs) == len(ids)
        assert len(sampled_outputs) == len(ids) * NUM_SAMPLES
        generated = [output.generated_tokens for output in greedy_outputs]
        num_tokens = sum(len(output.generated_tokens) for output in [*greedy_outputs, *sampled_outputs])
        return tokenizer.batch_decode(generated, skip_special_tokens=True), num_tokens

    generate = {"batched": batched, "continuous": continuous}[engine]
    generate([prefix + work[0]["suffixes"][0] for prefix in work[0]["prefixes"]])
    prompts = [prefix + suffix for part in work for prefix in part["prefixes"] for suffix in part["suffixes"]]
    golds = [gold for part in work for _ in part["prefixes"] for gold in part["gold"]]
    wait_for_start()
    started_at, cpu_before = time.perf_counter(), time.process_time()
    answers, num_tokens = generate(prompts)
    return {
        "questions": len(prompts) // NUM_PROMPTS,
        "seconds": time.perf_counter() - started_at,
        "cpu_seconds": time.process_time() - cpu_before,
        "hits": sum(text.split("\n")[0].strip() in gold for text, gold in zip(answers, golds, strict=True)),
        "tokens": num_tokens,
    }


def run_one(arguments: argparse.Namespace) -> None:
    """Run one engine: print "ready", wait for a line on stdin, print the result."""
    import torch

    if arguments.device == "cpu":
        torch.set_num_threads(1)

    def wait_for_start() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    if arguments.run == "speeds":
        wait_for_start()
        print(json.dumps({"seconds": 0.0} | measure(arguments)), flush=True)
        return
    work = json.loads(Path(arguments.work).read_text())
    run = run_peer if arguments.run in PEERS else run_host if arguments.run in HOST_ENGINES else run_slick
    print(json.dumps(run(HOST_ENGINES.get(arguments.run, arguments.run), arguments, work, wait_for_start)), flush=True)


def run_engine_processes(engine: str, arguments: argparse.Namespace, workloads: list[list[dict]]) -> dict:
    """Run an engine on several workloads, one process each, started together; returns the sums of their results."""
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for i, work in enumerate(workloads):
            Path(folder, f"{i}.json").write_text(json.dumps(work))
            command = [sys.executable, "-m", "tests.benchmarks.annotation_gpu", "--run", engine]
            command += ["--work", f"{folder}/{i}.json", "--model", arguments.model, "--dtype", arguments.dtype]
            command += ["--device", arguments.device, "--seconds", str(arguments.seconds)]
            command += ["--unit", str(arguments.unit), "--rows", str(arguments.rows)]
            command += ["--flops", str(arguments.flops), "--bytes", str(arguments.bytes)]
            settings = LOCAL_CLUSTER_ENV | {
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | settings
                )
            )
        for process in processes:
            while "ready" not in (line := process.stdout.readline()):
                if not line:
                    raise SystemExit(f"{engine} failed")
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = []
        for process in processes:
            lines = process.communicate()[0].strip().splitlines()
            if process.returncode or not lines:
                raise SystemExit(f"{engine} failed")
            results.append(json.loads(lines[-1]))
    total = {key: sum(result[key] for result in results) for key in results[0]}
    total["seconds"] = max(result["seconds"] for result in results)
    return total


def make_work(arguments: argparse.Namespace, num_questions: int) -> list[dict]:
    """Train questions of all relations, equally many of each where it has enough."""
    relations = arguments.relations.split(",") if arguments.relations else []
    with zipfile.ZipFile(arguments.questions) as archive:
        sizes = {
            Path(name).name.split(".")[0]: len(json.loads(archive.read(name)))
            for name in archive.namelist()
            if name.endswith(".train.json") and (not relations or Path(name).name.split(".")[0] in relations)
        }
    work, remaining = [], num_questions
    for index, (relation, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        num = min(size, -(-remaining // (len(sizes) - index)))
        work += make_workload(arguments.questions, [relation], num, "train")
        remaining -= num
    assert remaining == 0, f"the archive has {num_questions - remaining} train questions, too few for {num_questions}"
    return work


def split(work: list[dict], num: int) -> list[list[dict]]:
    """Distribute the questions of every relation over several processes."""
    keys = ("ids", "suffixes", "gold")
    return [[part | {key: part[key][i::num] for key in keys} for part in work] for i in range(num)]


def main() -> None:
    """Run all engines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", help="EntityQuestions as zip")
    parser.add_argument("--relations", help="comma-separated; default: all")
    parser.add_argument("--num-questions", type=int, default=4800, help="total number of questions")
    parser.add_argument(
        "--few-questions", type=int, default=240, help="number of questions for peers and `host-` engines"
    )
    parser.add_argument("--engines", default="full,labels,gold,host-full,host-labels,batched,continuous")
    parser.add_argument("--processes", default="1", help="processes of slick's engine on one device, comma-separated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--unit", type=int, default=512, help="questions per call of slick's engine")
    parser.add_argument("--rows", type=int, default=2048, help="answers per batch of `batched`")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="time limit, after which no more questions are answered"
    )
    for hidden in ("--run", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--flops", "--bytes"):
        parser.add_argument(hidden, type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(arguments)
        return
    speeds = run_engine_processes("speeds", arguments, [[]])
    arguments.flops, arguments.bytes = speeds["flops"], speeds["bytes"]
    print(f"{arguments.flops / 1e12:,.1f} TFLOP/s, {arguments.bytes / 1e9:,.0f} GB/s\n", flush=True)
    print("| engine | processes | questions/s | generations/s | answer tokens/s | tokens/pass | roofline share | CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for _ in range(arguments.rounds):
        for engine in arguments.engines.split(","):
            for num in [1] if engine in SUBSET_ENGINES else map(int, arguments.processes.split(",")):
                size = arguments.few_questions if engine in SUBSET_ENGINES else arguments.num_questions
                result = run_engine_processes(engine, arguments, split(make_work(arguments, size), num))
                print(row(engine, num, result), flush=True)
                print(json.dumps(result), file=sys.stderr, flush=True)


def row(engine: str, num: int, result: dict) -> str:
    """One line of the table."""
    speed = result["questions"] / result["seconds"]
    generations = "-" if engine == "gold" else f"{speed * NUM_PROMPTS * (1 + NUM_SAMPLES):,.0f}"
    passes = roofline_share = "-"
    if "passes" in result:
        passes = f"{result['passed_tokens'] / result['passes']:,.0f}"
        roofline_share = (
            f"{result['roofline_seconds'] / result['seconds']:.0%}" if "roofline_seconds" in result else "-"
        )
    tokens, cpu = result["tokens"] / result["seconds"], result["cpu_seconds"] / result["seconds"]
    return (
        f"| {engine} | {num} | {speed:,.1f} | {generations} | {tokens:,.0f} | {passes} | {roofline_share} | {cpu:.0%} |"
    )


if __name__ == "__main__":
    main()
