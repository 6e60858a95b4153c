"""Annotation on a GPU beside transformers' own ways: the same model, questions, prompts and kinds of answers, in turns.

python -m tests.benchmarks.annotation_gpu --model FOLDER --questions entity_questions.zip
python -m tests.benchmarks.annotation_gpu --model FOLDER --questions entity_questions.zip --engines full \
    --num-questions 98029 --seconds 480 --processes 4

Needs neither Ray nor DeepSpeed. Each engine runs in a process of its own; what is untimed is loading and a first batch.
Seconds are those of the clock, until the last answer is at the host. `batched` is `generate` on batches of prompts
padded at the left, `continuous` is `generate_batch`, which batches continuously; both stop at the newline, and make 1
greedy answer and 16 samples (T = 0.5, top-k 40) to each of 10 prompts. `host-full` and `host-labels` are these modes
without the model, whose part is played back. These four are asked fewer questions.

The roofline of a pass is the longer of two times: its operations at the speed of a large product, and its bytes at the
speed of a large copy, both measured on the device before. Operations are those of weights, of scores and of weighed
values; bytes those of weights (read once a pass), of logits (written and read), and of keys and values (written once,
read once a token).
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
"""Engines that are asked fewer questions."""
FIRST = 8
"""Questions of the untimed first batch."""


class Roofline:
    """The least seconds in which the passes of a model could have been made, counted as they are made."""

    def __init__(self, model, flops_a_second: float, bytes_a_second: float) -> None:
        config = model.config.get_text_config()
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        itemsize = matrices[0].element_size()
        head = config.hidden_size * config.vocab_size
        # The input embedding, shared with the head or not, is looked up and multiplies nothing.
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        body = sum(weight.numel() for weight in matrices) - head * (1 if tied else 2)
        key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._weight_flop, self._logit_flop = 2.0 * body, 2.0 * head
        self._key_flop = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
        self._weight_bytes, self._logit_bytes = (body + head) * itemsize, 2.0 * config.vocab_size * itemsize
        self._key_bytes = 2.0 * config.num_hidden_layers * key_heads * width * itemsize
        self._flops_a_second, self._bytes_a_second = flops_a_second, bytes_a_second
        self.length = 0.0
        """Keys that a token sees, on average."""
        self.clear()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def clear(self) -> None:
        """Forget the passes so far."""
        self.seconds, self.passes, self.tokens = 0.0, 0, 0

    def _count(self, _module, _args, given: dict) -> None:
        rows, num = len(given["input_ids"]), given["input_ids"].numel()
        kept = given.get("logits_to_keep", num)
        logits = min(num, rows * kept if isinstance(kept, int) else len(kept))
        flop = num * (self._weight_flop + self._key_flop * self.length) + logits * self._logit_flop
        moved = self._weight_bytes + logits * self._logit_bytes + num * self._key_bytes * (1 + self.length)
        self.seconds += max(flop / self._flops_a_second, moved / self._bytes_a_second)
        self.passes += 1
        self.tokens += num


def measure(arguments: argparse.Namespace) -> dict:
    """Operations a second of a large product, and bytes a second of a large copy: the best of five tries."""
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


def ask(engine, mode: str, part: dict, place: slice) -> int:
    """Ask some questions in a mode, `full`, `labels` or `gold`; returns how many greedy answers hit."""
    from slick.inference.base import PromptBatch, SamplingConfig
    from slick.matching import make_matcher

    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, num_samples=NUM_SAMPLES)
    batch = PromptBatch(prefixes=part["prefixes"], question_ids=part["ids"][place], suffixes=part["suffixes"][place])
    if mode == "gold":
        scores = engine.score(batch, [gold[0] for gold in part["gold"][place]], sampling)
        return sum(score.is_greedy for one in scores for score in one)
    targets = [make_matcher(gold) for gold in part["gold"][place]]
    answers = engine.generate(batch, sampling, targets if mode == "labels" else None)
    return sum(t.is_hit(a.greedy_text) for t, one in zip(targets, answers, strict=True) for a in one)


def units(part: dict, size: int) -> list[slice]:
    """Places of questions that are asked at once."""
    return [slice(start, start + size) for start in range(0, len(part["ids"]), size)]


def run_slick(mode: str, arguments: argparse.Namespace, work: list[dict], started: Callable[[], None]) -> dict:
    """The transformers engine, until all questions are answered or time is up."""
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    model, tokenizer = load_model(arguments.model, arguments.dtype, arguments.device), load_tokenizer(arguments.model)
    roofline = Roofline(model, arguments.flops, arguments.bytes)
    prepack_linears(model)  # on a CPU, as slick does
    ask(TransformersEngine(model, tokenizer), mode, work[0], slice(0, FIRST))
    engine = TransformersEngine(model, tokenizer)
    roofline.clear()
    roofline.length = len(tokenizer(work[0]["prefixes"][0] + work[0]["suffixes"][0])["input_ids"])
    started()
    begun, used, hits, num = time.perf_counter(), time.process_time(), 0, 0
    for part in work:
        for place in units(part, arguments.unit):
            if time.perf_counter() - begun > arguments.seconds:
                break
            hits += ask(engine, mode, part, place)
            num += len(part["ids"][place])
    return {
        "questions": num,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - used,
        "hits": hits,
        "tokens": engine.stats.answer_tokens,
        "passes": roofline.passes,
        "passed_tokens": roofline.tokens,
        "roofline_seconds": roofline.seconds,
    }


def run_host(mode: str, arguments: argparse.Namespace, work: list[dict], started: Callable[[], None]) -> dict:
    """What a mode takes beside the model: all is asked once, then again with what the model gave played back."""
    from slick.inference.packed.decoder import PackedDecoder
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    model, tokenizer = load_model(arguments.model, arguments.dtype, arguments.device), load_tokenizer(arguments.model)
    engine = TransformersEngine(model, tokenizer, batch_questions=arguments.unit)
    forward, tape = PackedDecoder._forward, []

    def record(decoder, tokens, *rest):
        tape.append((forward(decoder, tokens, *rest), len(tokens)))
        return tape[-1][0]

    def play(decoder, *_):
        candidates, num_tokens = next(played)
        decoder._store.num_tokens += num_tokens
        return candidates

    def ask_all() -> int:
        return sum(ask(engine, mode, part, place) for part in work for place in units(part, arguments.unit))

    PackedDecoder._forward = record
    ask_all()
    tape.clear()
    hits = ask_all()  # with the prefixes kept
    played, PackedDecoder._forward = iter(tape), play
    engine._tokenizer._texts.clear()
    before = engine.stats.answer_tokens
    started()
    begun, used = time.perf_counter(), time.process_time()
    assert ask_all() == hits
    return {
        "questions": sum(len(part["ids"]) for part in work),
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - used,
        "hits": hits,
        "tokens": engine.stats.answer_tokens - before,
        "passes": len(tape),
        "passed_tokens": sum(num for _, num in tape),
    }


def run_peer(engine: str, arguments: argparse.Namespace, work: list[dict], started: Callable[[], None]) -> dict:
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
        said, num_tokens = [""] * len(prompts), 0
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for config, rows in ((greedy, arguments.rows), (sampled, max(1, arguments.rows // NUM_SAMPLES))):
            for start in range(0, len(order), rows):
                places = order[start : start + rows]
                ids = tokenizer([prompts[i] for i in places], return_tensors="pt", padding=True).to(arguments.device)
                with torch.inference_mode():
                    made = model.generate(**ids, generation_config=config)[:, ids["input_ids"].shape[1] :]
                num_tokens += int((made != tokenizer.pad_token_id).sum())
                if config is greedy:
                    for i, text in zip(places, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                        said[i] = text
        return said, num_tokens

    def continuous(prompts: list[str]) -> tuple[list[str], int]:
        ids = tokenizer(prompts)["input_ids"]
        first = list(model.generate_batch(ids, generation_config=greedy).values())
        drawn = list(model.generate_batch(ids, generation_config=sampled).values())
        assert len(first) == len(ids)
        assert len(drawn) == len(ids) * NUM_SAMPLES
        made = [output.generated_tokens for output in first]
        num_tokens = sum(len(output.generated_tokens) for output in [*first, *drawn])
        return tokenizer.batch_decode(made, skip_special_tokens=True), num_tokens

    ask = {"batched": batched, "continuous": continuous}[engine]
    ask([prefix + work[0]["suffixes"][0] for prefix in work[0]["prefixes"]])
    prompts = [prefix + suffix for part in work for prefix in part["prefixes"] for suffix in part["suffixes"]]
    golds = [gold for part in work for _ in part["prefixes"] for gold in part["gold"]]
    started()
    begun, used = time.perf_counter(), time.process_time()
    said, num_tokens = ask(prompts)
    return {
        "questions": len(prompts) // NUM_PROMPTS,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - used,
        "hits": sum(text.split("\n")[0].strip() in gold for text, gold in zip(said, golds, strict=True)),
        "tokens": num_tokens,
    }


def run_one(arguments: argparse.Namespace) -> None:
    """One engine: says when it is ready, waits to be told to begin, prints its result."""
    import torch

    if arguments.device == "cpu":
        torch.set_num_threads(1)

    def started() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    if arguments.run == "speeds":
        started()
        print(json.dumps({"seconds": 0.0} | measure(arguments)), flush=True)
        return
    work = json.loads(Path(arguments.work).read_text())
    run = run_peer if arguments.run in PEERS else run_host if arguments.run in HOST_ENGINES else run_slick
    print(json.dumps(run(HOST_ENGINES.get(arguments.run, arguments.run), arguments, work, started)), flush=True)


def run_engine_processes(engine: str, arguments: argparse.Namespace, works: list[list[dict]]) -> dict:
    """The result of an engine in one process for each work, all of which begin at once; counts are sums."""
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for i, work in enumerate(works):
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
            running.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | settings
                )
            )
        for process in running:
            while "ready" not in (line := process.stdout.readline()):
                if not line:
                    raise SystemExit(f"{engine} failed")
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = []
        for process in running:
            printed = process.communicate()[0].strip().splitlines()
            if process.returncode or not printed:
                raise SystemExit(f"{engine} failed")
            found.append(json.loads(printed[-1]))
    total = {key: sum(one[key] for one in found) for key in found[0]}
    total["seconds"] = max(one["seconds"] for one in found)
    return total


def make_work(arguments: argparse.Namespace, num_questions: int) -> list[dict]:
    """Train questions of all relations, as many of each as there are in it or are needed."""
    relations = arguments.relations.split(",") if arguments.relations else []
    with zipfile.ZipFile(arguments.questions) as archive:
        sizes = {
            Path(name).name.split(".")[0]: len(json.loads(archive.read(name)))
            for name in archive.namelist()
            if name.endswith(".train.json") and (not relations or Path(name).name.split(".")[0] in relations)
        }
    work, left = [], num_questions
    for place, (relation, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        num = min(size, -(-left // (len(sizes) - place)))
        work += make_workload(arguments.questions, [relation], num, "train")
        left -= num
    assert left == 0, f"the archive has {num_questions - left} train questions, too few for {num_questions}"
    return work


def split(work: list[dict], num: int) -> list[list[dict]]:
    """Shares of all relations for several processes."""
    keys = ("ids", "suffixes", "gold")
    return [[part | {key: part[key][i::num] for key in keys} for part in work] for i in range(num)]


def main() -> None:
    """Run all engines in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", help="EntityQuestions as zip")
    parser.add_argument("--relations", help="comma-separated; all unless told")
    parser.add_argument("--num-questions", type=int, default=4800, help="in all")
    parser.add_argument("--few-questions", type=int, default=240, help="that peers and `host-` are asked")
    parser.add_argument("--engines", default="full,labels,gold,host-full,host-labels,batched,continuous")
    parser.add_argument("--processes", default="1", help="of slick's engine on one device, comma-separated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--unit", type=int, default=512, help="questions asked at once of slick's engine")
    parser.add_argument("--rows", type=int, default=2048, help="answers at once of `batched`")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no further questions are asked")
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
    print(
        "| engine | processes | questions/s | generations/s | answer tokens/s | tokens a pass | of the roofline | CPU |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for _ in range(arguments.rounds):
        for engine in arguments.engines.split(","):
            for num in [1] if engine in SUBSET_ENGINES else map(int, arguments.processes.split(",")):
                size = arguments.few_questions if engine in SUBSET_ENGINES else arguments.num_questions
                found = run_engine_processes(engine, arguments, split(make_work(arguments, size), num))
                print(row(engine, num, found), flush=True)
                print(json.dumps(found), file=sys.stderr, flush=True)


def row(engine: str, num: int, found: dict) -> str:
    """One line of the table."""
    speed = found["questions"] / found["seconds"]
    made = "-" if engine == "gold" else f"{speed * NUM_PROMPTS * (1 + NUM_SAMPLES):,.0f}"
    passes = share = "-"
    if "passes" in found:
        passes = f"{found['passed_tokens'] / found['passes']:,.0f}"
        share = f"{found['roofline_seconds'] / found['seconds']:.0%}" if "roofline_seconds" in found else "-"
    tokens, cpu = found["tokens"] / found["seconds"], found["cpu_seconds"] / found["seconds"]
    return f"| {engine} | {num} | {speed:,.1f} | {made} | {tokens:,.0f} | {passes} | {share} | {cpu:.0%} |"


if __name__ == "__main__":
    main()
