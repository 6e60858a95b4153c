"""Fine-tuning beside a bare PyTorch loop and the Hugging Face Trainer, what an evaluation costs, and memory by stage.

python -m tests.benchmarks.training --model FOLDER --questions entity_questions.zip --num-rows 192 --batch-size 32
python -m tests.benchmarks.training --model FOLDER --questions entity_questions.zip --memory --num-workers 2

Each way trains the same rows, in the same batches, in a process of its own with one thread (or on the GPU), in turns.
A way is measured by the tokens of prompts and answers that it trains on in a second, padding not counted, after two
warm-up steps. `bare` pads rows to the longest of a batch, as is usual; `bare-joined` takes them as slick does.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.prompts import CLOSED_BOOK_INSTRUCTION, closed_book_suffix
from slick.storage import Folder
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, epoch_batches, pack_examples
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows, pad_token_id

METHODS = ("slick", "bare", "bare-joined", "trainer")
WARM_UP = 2


def read_rows(source: str, num: dict[str, int]) -> list[QuestionRow]:
    """Rows of EntityQuestions for each split, as a study has them; the paper's shares of the relations."""
    with tempfile.TemporaryDirectory() as folder:
        study = Folder(folder)
        prepare_questions(study, QuestionsConfig(questions=source))
        questions = read_questions(study).to_pylist()
    rows = []
    for split, count in num.items():
        domain = "ood" if split == "ood" else "id"
        found = [q for q in questions if q["domain"] == domain and q["split"] == ("test" if split == "ood" else split)]
        for i in np.random.default_rng(0).permutation(len(found))[:count]:
            question = found[i]
            answers = tuple(question["answers"])
            rows.append(
                QuestionRow(
                    question_id=question["question_id"],
                    split=split,
                    category=None,
                    suffix=closed_book_suffix(question["question"]),
                    target=answers[0],
                    accepted=answers,
                )
            )
    assert rows
    assert rows[0].prompt.startswith(CLOSED_BOOK_INSTRUCTION)
    return rows


class Clock:
    """Tokens a second after the warm-up steps."""

    def __init__(self, device: str) -> None:
        self._device, self._steps, self._tokens, self._started_at = device, 0, 0, 0.0

    def step(self, tokens: int) -> None:
        """Count a finished step."""
        self._steps += 1
        if self._steps > WARM_UP:
            self._tokens += tokens
        elif self._steps == WARM_UP:
            self._started_at = self._now()

    def _now(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.monotonic()

    def result(self) -> dict[str, float]:
        """Tokens and seconds."""
        return {"tokens": self._tokens, "seconds": self._now() - self._started_at}


def device_of() -> str:
    import torch

    torch.set_num_threads(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


def join_group(rank: int = 0, num_workers: int = 1, port: str = "29511") -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("nccl" if device_of() == "cuda" else "gloo", rank=rank, world_size=num_workers)


def batches_of(examples: list[Example], batch_size: int) -> list[list[Example]]:
    return [[examples[i] for i in part] for part in epoch_batches(len(examples), batch_size, 0, 1)]


def run_slick(model: str, examples: list[Example], config: TrainConfig, pad_id: int) -> dict[str, float]:
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group()
    init_deepspeed()
    device = device_of()
    learner = Trainer(model, config, WorkerContext(rank=0, local_rank=0, num_workers=1, device=device), pad_id)
    clock = Clock(device)
    learner.engine.train()
    for batch in batches_of(examples, config.batch_size):
        learner._step(batch)
        clock.step(sum(example.num_tokens for example in batch))
    return clock.result()


def run_bare(model: str, examples: list[Example], config: TrainConfig, pad_id: int, joined: bool) -> dict[str, float]:
    import torch
    from torch.nn import functional

    from slick.models import load_model
    from tuning.forward import ForwardRunner

    device = device_of()
    loaded = load_model(model, "float32", device).train()
    forward = ForwardRunner(loaded, pad_id, packing=True) if joined else None
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=config.learning_rate, weight_decay=0.0)
    clock = Clock(device)
    for batch in batches_of(examples, config.batch_size):
        with torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            if forward is not None:
                with forward.rows(batch) as rows:
                    loss = functional.cross_entropy(forward.answer_logits(rows).float(), rows.labels_K)
            else:
                ids, mask, labels = padded(batch, pad_id)
                logits = loaded(
                    input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
                ).logits
                wanted = torch.tensor(labels[:, 1:], device=device).flatten()
                loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loaded.parameters(), 1.0)
        optimizer.step()
        clock.step(sum(example.num_tokens for example in batch))
    return clock.result()


def padded(batch: list[Example], pad_id: int) -> tuple[Any, Any, Any]:
    found = pack_examples(batch)
    ids, mask = found.padded(found.ids_N, pad_id), found.padded(np.ones_like(found.ids_N), 0)
    labels, after = np.full_like(ids, -100), found.logit_positions_K + 1
    labels[found.rows_N[after], found.positions_N[after]] = found.labels_K
    return ids, mask, labels


def run_trainer(model: str, examples: list[Example], config: TrainConfig, pad_id: int) -> dict[str, float]:
    """As its documentation has it: rows padded to the longest of a batch, loss on the labels that are not -100."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from slick.models import load_model

    device = device_of()
    order = [example for batch in batches_of(examples, config.batch_size) for example in batch]
    clock = Clock(device)

    def collate(batch: list[Example]) -> dict[str, Any]:
        ids, mask, labels = padded(batch, pad_id)
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(value) for name, value in zip(names, (ids, mask, labels), strict=True)}

    class Count(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            start = (state.global_step - 1) * config.batch_size
            clock.step(sum(example.num_tokens for example in order[start : start + config.batch_size]))

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(order)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=1,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
            bf16=config.dtype == "bfloat16",
            remove_unused_columns=False,
            logging_strategy="no",
        )
        trainer = InOrder(
            model=load_model(model, "float32", device),
            args=arguments,
            train_dataset=order,
            data_collator=collate,
            callbacks=[Count()],
        )
        trainer.train()
    return clock.result()


def run_evaluation(model: str, rows: list[QuestionRow], tokenizer: Any, config: TrainConfig) -> dict[str, float]:
    """One evaluation of all splits, by a model that was trained enough to give short answers."""
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group()
    init_deepspeed()
    device = device_of()
    place = WorkerContext(rank=0, local_rank=0, num_workers=1, device=device)
    learner = Trainer(model, replace(config, learning_rate=1e-4), place, pad_token_id(tokenizer))
    examples = encode_rows(rows, tokenizer)
    learner.epoch([example for example, row in zip(examples, rows, strict=True) if row.split == "train"], 1)
    learner.model.eval()
    settings = EvalSettings(matcher="exact", max_new_tokens=config.max_new_tokens, batch_size=config.eval_batch_size)
    evaluate_rows(learner.model, learner.forward, tokenizer, rows[:64], examples[:64], settings)
    clock = Clock(device)
    clock._started_at = clock._now()
    verdicts = evaluate_rows(learner.model, learner.forward, tokenizer, rows, examples, settings)
    assert len(verdicts) == len(rows)
    lengths = [len(tokenizer(verdict.text, add_special_tokens=False)["input_ids"]) for verdict in verdicts]
    return clock.result() | {"rows": len(rows), "answer_tokens": statistics.mean(lengths)}


def peak_memory(model: str, config: TrainConfig, examples: list[Example], pad_id: int, rank: int, port: str) -> float:
    """MB of one worker at its highest in training, loading aside: of the GPU's memory, or of the process."""
    import gc

    import torch

    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group(rank, config.num_workers, port)
    init_deepspeed()
    device = device_of()
    place = WorkerContext(rank=rank, local_rank=rank, num_workers=config.num_workers, device=device)
    learner = Trainer(model, config, place, pad_id)
    learner.engine.train()
    batches = batches_of(examples, config.batch_size)[:4]
    learner._step(batches[0])
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    for batch in batches[1:]:
        learner._step(batch)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def worker(arguments: argparse.Namespace) -> dict[str, float]:
    from slick.models import load_tokenizer

    config = TrainConfig(
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        dropout=0.0,
        zero_stage=arguments.zero_stage,
        num_workers=arguments.num_workers,
        offload=arguments.offload,
        activation_checkpointing=arguments.activation_checkpointing,
    )
    tokenizer = load_tokenizer(arguments.model)
    rows = [
        QuestionRow(**{**row, "accepted": tuple(row["accepted"])})
        for row in json.loads(Path(arguments.rows).read_text())
    ]
    train = [row for row in rows if row.split == "train"]
    examples, pad_id = encode_rows(train, tokenizer), pad_token_id(tokenizer)
    if arguments.way == "evaluation":
        return run_evaluation(arguments.model, rows, tokenizer, config)
    if arguments.way == "memory":
        peak = peak_memory(arguments.model, config, examples, pad_id, arguments.rank, arguments.port)
        return {"peak_mb": peak}
    if arguments.way == "slick":
        return run_slick(arguments.model, examples, config, pad_id)
    if arguments.way == "trainer":
        return run_trainer(arguments.model, examples, config, pad_id)
    return run_bare(arguments.model, examples, config, pad_id, arguments.way == "bare-joined")


def start(arguments: argparse.Namespace, rows: str, **changed: Any) -> "subprocess.Popen[str]":
    settings = {**vars(arguments), **changed}
    names = ("model", "batch_size", "dtype", "zero_stage", "num_workers", "offload", "way", "rank", "port")
    command = [sys.executable, "-m", "tests.benchmarks.training", "--questions", "-", "--rows", rows]
    for name in names:
        command += [f"--{name.replace('_', '-')}", str(settings[name])]
    if settings["activation_checkpointing"]:
        command.append("--activation-checkpointing")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def result_of(process: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a benchmark process failed with status {process.returncode}")
    found: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return found


def compare(arguments: argparse.Namespace, rows: str) -> None:
    ways = arguments.ways.split(",")
    found: dict[str, list[float]] = {way: [] for way in ways}
    evaluations = []
    for turn in range(arguments.rounds):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            one = result_of(start(arguments, rows, way=way, num_workers=1))
            found[way].append(one["tokens"] / one["seconds"])
            print(f"round {turn + 1} {way}: {found[way][-1]:,.0f} tokens/s", flush=True)
        evaluations.append(result_of(start(arguments, rows, way="evaluation", num_workers=1)))
    slick = statistics.median(found["slick"])
    print("| way | tokens/s | slick's speed against it |\n|---|---|---|")
    for way in ways:
        speed = statistics.median(found[way])
        print(f"| {way} | {speed:,.0f} | {slick / speed:.2f} |")
    each = statistics.median(one["seconds"] / one["rows"] for one in evaluations)
    report_share(arguments, rows, slick, each)
    print(f"answers have {statistics.mean(one['answer_tokens'] for one in evaluations):.1f} tokens")


def report_share(arguments: argparse.Namespace, rows: str, tokens_per_s: float, row_s: float) -> None:
    """Evaluation against training in an epoch of the paper: 6,142 train, 10,461 dev, 10,481 + 5,848 test rows."""
    from slick.models import load_tokenizer

    train = [QuestionRow(**row) for row in json.loads(Path(rows).read_text()) if row["split"] == "train"]
    examples = encode_rows(train, load_tokenizer(arguments.model))
    tokens = statistics.mean(example.num_tokens for example in examples)
    training, evaluation = 6142 * tokens / tokens_per_s, (6142 + 10461 + 10481 + 5848) * row_s
    print(
        f"an epoch of the paper: training {training:,.0f} s ({tokens:.1f} tokens a row), evaluation {evaluation:,.0f} "
        f"s ({1000 * row_s:.2f} ms a row), {100 * evaluation / training:.0f} % of training"
    )


def memory(arguments: argparse.Namespace, rows: str) -> None:
    print("| ZeRO stage | offload | highest of a worker, MB |\n|---|---|---|")
    cases = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all")]
    for number, (stage, offload) in enumerate(cases):
        group = [
            start(arguments, rows, way="memory", zero_stage=stage, offload=offload, rank=rank, port=str(29600 + number))
            for rank in range(arguments.num_workers)
        ]
        peak = max(result_of(process)["peak_mb"] for process in group)
        print(f"| {stage} | {offload} | {peak:,.0f} |", flush=True)


def main() -> None:
    """Compare, or measure memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", required=True, help="EntityQuestions as zip or folder")
    parser.add_argument("--num-rows", type=int, default=192, help="train rows; of the other splits as in the paper")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", default=",".join(METHODS), help="slick must be among them")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--activation-checkpointing", action="store_true")
    for name, default in (("way", ""), ("rows", ""), ("offload", "none"), ("port", "29511")):
        parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
    for name in ("zero-stage", "rank"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(worker(arguments)))
        return
    num = arguments.num_rows
    sizes = {"train": num, "dev": num * 10461 // 6142, "test": num * 10481 // 6142, "ood": num * 5848 // 6142}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.json")
        names = ("question_id", "split", "category", "suffix", "target", "accepted")
        found = read_rows(arguments.questions, sizes)
        rows.write_text(json.dumps([{name: getattr(row, name) for name in names} for row in found]))
        (memory if arguments.memory else compare)(arguments, str(rows))


if __name__ == "__main__":
    main()
