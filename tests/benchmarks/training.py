"""Fine-tuning compared with a PyTorch loop and the Hugging Face Trainer; cost of evaluation; memory by ZeRO stage.

python -m tests.benchmarks.training --model FOLDER --questions entity_questions.zip --num-rows 192 --batch-size 32
python -m tests.benchmarks.training --model FOLDER --questions entity_questions.zip --memory --num-workers 2
python -m tests.benchmarks.training --model FOLDER --questions entity_questions.zip --schedule --num-rows 64 --epochs 10

Each method trains the same rows in the same batches, in its own process with one thread (or on the GPU); methods
alternate. Speed is measured in tokens of prompts and answers per second, without padding, after two warm-up steps.
`--schedule` trains once and times every evaluation. It prints the time of evaluation as a share of the time of training
if all rows are evaluated after every epoch, and with `evaluate: needed`. The rows of the splits are in the paper's
proportions; the shares are those of the paper's 50 epochs, budgets and policies, with the mean time of an evaluation.
`bare` pads rows to the longest of a batch, as is usual; `bare-joined` packs them as slick does.
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

from jobs.presets import paper_sweep, paper_training
from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.prompts import CLOSED_BOOK_INSTRUCTION, closed_book_suffix
from slick.storage import Folder
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, epoch_batches, pack_examples
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows, pad_token_id
from tuning.evaluation_epochs import TEST_SPLITS, expected_test_evaluations

METHODS = ("slick", "bare", "bare-joined", "trainer")
WARM_UP = 2


def read_rows(source: str, num: dict[str, int]) -> list[QuestionRow]:
    """Rows of EntityQuestions for each split as in a study, with the paper's shares of the relations."""
    with tempfile.TemporaryDirectory() as folder:
        study = Folder(folder)
        prepare_questions(study, QuestionsConfig(questions=source))
        questions = read_questions(study).to_pylist()
    rows = []
    for split, count in num.items():
        domain = "ood" if split == "ood" else "id"
        candidates = [
            q for q in questions if q["domain"] == domain and q["split"] == ("test" if split == "ood" else split)
        ]
        for i in np.random.default_rng(0).permutation(len(candidates))[:count]:
            question = candidates[i]
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
    """Measures tokens, seconds and peak memory of a GPU after the warm-up steps."""

    def __init__(self, device: str) -> None:
        self._device, self._steps, self._tokens, self._started_at = device, 0, 0, 0.0

    def step(self, tokens: int) -> None:
        """Count a finished step."""
        self._steps += 1
        if self._steps > WARM_UP:
            self._tokens += tokens
        elif self._steps == WARM_UP:
            if self._device == "cuda":
                import torch

                torch.cuda.reset_peak_memory_stats()
            self._started_at = self._now()

    def _now(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.monotonic()

    def result(self) -> dict[str, float]:
        """Tokens of all workers, seconds, and on a GPU the peak memory of this worker."""
        result = {"tokens": self._tokens, "seconds": self._now() - self._started_at}
        if self._device == "cuda":
            import torch

            result["peak_bytes"] = torch.cuda.max_memory_allocated()
        return result


def select_device() -> str:
    import torch

    torch.set_num_threads(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


def join_group(rank: int = 0, num_workers: int = 1, port: str = "29511") -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    os.environ["LOCAL_RANK"] = str(rank)
    if select_device() == "cuda":
        import torch

        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if select_device() == "cuda" else "gloo", rank=rank, world_size=num_workers)


def first_epoch_batches(examples: list[Example], batch_size: int) -> list[list[Example]]:
    return [[examples[i] for i in part] for part in epoch_batches(len(examples), batch_size, 0, 1)]


def run_slick(
    model: str, examples: list[Example], config: TrainConfig, pad_id: int, rank: int, port: str
) -> dict[str, float]:
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group(rank, config.num_workers, port)
    init_deepspeed()
    device = select_device()
    context = WorkerContext(rank=rank, local_rank=rank, num_workers=config.num_workers, device=device)
    trainer = Trainer(model, config, context, pad_id)
    clock = Clock(device)
    trainer.engine.train()
    for batch in first_epoch_batches(examples, config.batch_size):
        trainer._step(batch)
        clock.step(sum(example.num_tokens for example in batch))
    return clock.result()


def run_bare(
    model: str, examples: list[Example], config: TrainConfig, pad_id: int, rank: int, port: str, *, packing: bool
) -> dict[str, float]:
    import torch

    from slick.models import load_model
    from tuning.forward import ForwardRunner

    device, num_workers = select_device(), config.num_workers
    if num_workers > 1:
        join_group(rank, num_workers, port)
    loaded = load_model(model, "float32", device).train()
    forward = ForwardRunner(loaded, pad_id, packing=True) if packing else None
    called = torch.nn.parallel.DistributedDataParallel(loaded) if num_workers > 1 else loaded
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=config.learning_rate, weight_decay=0.0)
    clock = Clock(device)
    for batch in first_epoch_batches(examples, config.batch_size):
        with torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss = bare_loss(called, forward, batch[rank::num_workers], pad_id, device)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loaded.parameters(), 1.0)
        optimizer.step()
        clock.step(sum(example.num_tokens for example in batch))
    return clock.result()


def bare_loss(model: Any, forward: Any, batch: list[Example], pad_id: int, device: str) -> Any:
    """The mean loss of the answer tokens: of packed rows with a `ForwardRunner`, else of padded rows."""
    import torch
    from torch.nn import functional

    if forward is not None:
        with forward.rows(batch) as rows:
            return functional.cross_entropy(forward.answer_logits(rows, model).float(), rows.labels_K)
    ids, mask, labels = pad(batch, pad_id)
    logits = model(input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)).logits
    targets = torch.tensor(labels[:, 1:], device=device).flatten()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=-100)


def pad(batch: list[Example], pad_id: int) -> tuple[Any, Any, Any]:
    packed = pack_examples(batch)
    ids, mask = packed.padded(packed.ids_N, pad_id), packed.padded(np.ones_like(packed.ids_N), 0)
    labels, label_positions = np.full_like(ids, -100), packed.logit_positions_K + 1
    labels[packed.rows_N[label_positions], packed.positions_N[label_positions]] = packed.labels_K
    return ids, mask, labels


def run_trainer(model: str, examples: list[Example], config: TrainConfig, pad_id: int) -> dict[str, float]:
    """The Hugging Face Trainer: rows padded to the longest of a batch, labels of -100 ignored."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from slick.models import load_model

    device = select_device()
    order = [example for batch in first_epoch_batches(examples, config.batch_size) for example in batch]
    clock = Clock(device)

    def collate(batch: list[Example]) -> dict[str, Any]:
        ids, mask, labels = pad(batch, pad_id)
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(value) for name, value in zip(names, (ids, mask, labels), strict=True)}

    class StepCounter(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            first = (state.global_step - 1) * config.batch_size
            clock.step(sum(example.num_tokens for example in order[first : first + config.batch_size]))

    class UnshuffledTrainer(Trainer):
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
        trainer = UnshuffledTrainer(
            model=load_model(model, "float32", device),
            args=arguments,
            train_dataset=order,
            data_collator=collate,
            callbacks=[StepCounter()],
        )
        trainer.train()
    return clock.result()


def run_evaluation(model: str, rows: list[QuestionRow], tokenizer: Any, config: TrainConfig) -> dict[str, float]:
    """One evaluation of all splits, after an epoch of training so that answers are short."""
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group()
    init_deepspeed()
    device = select_device()
    context = WorkerContext(rank=0, local_rank=0, num_workers=1, device=device)
    trainer = Trainer(model, replace(config, learning_rate=1e-4), context, pad_token_id(tokenizer))
    examples = encode_rows(rows, tokenizer)
    trainer.epoch([example for example, row in zip(examples, rows, strict=True) if row.split == "train"], 1)
    trainer.model.eval()
    settings = EvalSettings(matcher="exact", max_new_tokens=config.max_new_tokens, batch_size=config.eval_batch_size)
    evaluate_rows(trainer.model, trainer.forward, tokenizer, rows[:64], examples[:64], settings)
    clock = Clock(device)
    clock._started_at = clock._now()
    verdicts = evaluate_rows(trainer.model, trainer.forward, tokenizer, rows, examples, settings)
    assert len(verdicts) == len(rows)
    lengths = [len(tokenizer(verdict.text, add_special_tokens=False)["input_ids"]) for verdict in verdicts]
    return clock.result() | {"rows": len(rows), "answer_tokens": statistics.mean(lengths)}


def run_schedule(
    model: str, rows: list[QuestionRow], tokenizer: Any, config: TrainConfig, num_epochs: int
) -> dict[str, float]:
    """Mean seconds of an epoch: training, evaluation of train and dev rows, and evaluation of test and ood rows."""
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group()
    init_deepspeed()
    device = select_device()
    context = WorkerContext(rank=0, local_rank=0, num_workers=1, device=device)
    trainer = Trainer(model, replace(config, learning_rate=2e-4), context, pad_token_id(tokenizer))
    settings = EvalSettings(matcher="exact", max_new_tokens=config.max_new_tokens, batch_size=config.eval_batch_size)
    examples = encode_rows(rows, tokenizer)
    num_fit = sum(row.split not in TEST_SPLITS for row in rows)
    train = [example for example, row in zip(examples, rows, strict=True) if row.split == "train"]
    clock, seconds, fitted = Clock(device), {"training": 0.0, "fit": 0.0, "test": 0.0}, 0
    for epoch in range(1, num_epochs + 1):
        started_at = clock._now()
        trainer.epoch(train, epoch)
        ended_at = clock._now()
        seconds["training"] += (ended_at - started_at) / num_epochs
        trainer.model.eval()
        for name, part in (("fit", slice(num_fit)), ("test", slice(num_fit, None))):
            started_at = clock._now()
            predictions = evaluate_rows(trainer.model, trainer.forward, tokenizer, rows[part], examples[part], settings)
            seconds[name] += (clock._now() - started_at) / num_epochs
            fitted = sum(prediction.hit for prediction in predictions[: len(train)]) if name == "fit" else fitted
        print(f"epoch {epoch}: {fitted} of {len(train)} train rows are fitted", file=sys.stderr, flush=True)
    return seconds | {"fitted": fitted / len(train)}


def print_schedule(arguments: argparse.Namespace, rows: str) -> None:
    """Print the share of evaluation for the paper's 50 epochs, budgets and policies, with both settings."""
    mean = wait_for_result(start_process(arguments, rows, method="schedule", num_workers=1))
    policies = paper_sweep().point_policies
    print(
        f"an epoch: training {mean['training']:.1f} s, evaluation of train and dev rows {mean['fit']:.1f} s, of test "
        f"and ood rows {mean['test']:.1f} s; {mean['fitted']:.0%} of the train rows fitted at the end"
    )
    print("| evaluate | test evaluations in 50 epochs | evaluation, share of training |\n|---|---|---|")
    for mode, stride in (("all", 5), ("needed", 5), ("needed", 0)):
        config = replace(paper_training(), evaluate=mode, evaluate_stride=stride)  # type: ignore[arg-type]
        num = expected_test_evaluations(config, policies)
        share = (mean["fit"] + mean["test"] * num / config.epochs) / mean["training"]
        label = f"{mode}, stride {stride}" if mode == "needed" else mode
        print(f"| {label} | {num} | {share:.0%} |")


def peak_memory(model: str, config: TrainConfig, examples: list[Example], pad_id: int, rank: int, port: str) -> float:
    """Peak memory of one worker in training, without loading, in MB: of the GPU, or of the process on a CPU."""
    import gc

    import torch

    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    join_group(rank, config.num_workers, port)
    init_deepspeed()
    device = select_device()
    context = WorkerContext(rank=rank, local_rank=rank, num_workers=config.num_workers, device=device)
    trainer = Trainer(model, config, context, pad_id)
    trainer.engine.train()
    batches = first_epoch_batches(examples, config.batch_size)[:4]
    trainer._step(batches[0])
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for batch in batches[1:]:
        trainer._step(batch)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def run_method(arguments: argparse.Namespace) -> dict[str, float]:
    from slick.models import load_tokenizer

    config = TrainConfig(
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        dropout=0.0,
        zero_stage=arguments.zero_stage,
        num_workers=arguments.num_workers,
        offload=arguments.offload,
        activation_checkpointing=arguments.activation_checkpointing,
        lora_rank=arguments.lora_rank,
        quantization=getattr(arguments, "quantization", "none"),
    )
    tokenizer = load_tokenizer(arguments.model)
    rows = [
        QuestionRow(**{**row, "accepted": tuple(row["accepted"])})
        for row in json.loads(Path(arguments.rows).read_text())
    ]
    train = [row for row in rows if row.split == "train"]
    examples, pad_id = encode_rows(train, tokenizer), pad_token_id(tokenizer)
    if arguments.method == "evaluation":
        return run_evaluation(arguments.model, rows, tokenizer, config)
    if arguments.method == "schedule":
        return run_schedule(arguments.model, rows, tokenizer, config, arguments.epochs)
    if arguments.method == "memory":
        peak = peak_memory(arguments.model, config, examples, pad_id, arguments.rank, arguments.port)
        return {"peak_mb": peak}
    if arguments.method == "slick":
        return run_slick(arguments.model, examples, config, pad_id, arguments.rank, arguments.port)
    if arguments.method == "trainer":
        return run_trainer(arguments.model, examples, config, pad_id)
    packing = arguments.method == "bare-joined"
    return run_bare(arguments.model, examples, config, pad_id, arguments.rank, arguments.port, packing=packing)


def start_process(arguments: argparse.Namespace, rows: str, **changed: Any) -> "subprocess.Popen[str]":
    settings = {**vars(arguments), **changed}
    names = (
        "model",
        "batch_size",
        "dtype",
        "zero_stage",
        "num_workers",
        "offload",
        "lora_rank",
        "quantization",
        "method",
        "rank",
    )
    names += ("port", "epochs")
    command = [sys.executable, "-m", "tests.benchmarks.training", "--questions", "-", "--rows", rows]
    for name in names:
        command += [f"--{name.replace('_', '-')}", str(settings[name])]
    if settings["activation_checkpointing"]:
        command.append("--activation-checkpointing")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_result(process: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a benchmark process failed with status {process.returncode}")
    result: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return result


def compare(arguments: argparse.Namespace, rows: str) -> None:
    methods = arguments.methods.split(",")
    speeds: dict[str, list[float]] = {method: [] for method in methods}
    evaluations = []
    for round_index in range(arguments.rounds):
        for method in methods if round_index % 2 == 0 else methods[::-1]:
            measurement = wait_for_result(start_process(arguments, rows, method=method, num_workers=1))
            speeds[method].append(measurement["tokens"] / measurement["seconds"])
            print(f"round {round_index + 1} {method}: {speeds[method][-1]:,.0f} tokens/s", flush=True)
        evaluations.append(wait_for_result(start_process(arguments, rows, method="evaluation", num_workers=1)))
    slick = statistics.median(speeds["slick"])
    print("| method | tokens/s | slick's relative speed |\n|---|---|---|")
    for method in methods:
        speed = statistics.median(speeds[method])
        print(f"| {method} | {speed:,.0f} | {slick / speed:.2f} |")
    row_s = statistics.median(run["seconds"] / run["rows"] for run in evaluations)
    print_epoch_times(arguments, rows, slick, row_s)
    print(f"answers have {statistics.mean(run['answer_tokens'] for run in evaluations):.1f} tokens")


def print_epoch_times(arguments: argparse.Namespace, rows: str, tokens_per_s: float, row_s: float) -> None:
    """Print the times of training and evaluation in an epoch of the paper: 6,142 train, 26,790 dev and test rows."""
    from slick.models import load_tokenizer

    train = [QuestionRow(**row) for row in json.loads(Path(rows).read_text()) if row["split"] == "train"]
    examples = encode_rows(train, load_tokenizer(arguments.model))
    tokens = statistics.mean(example.num_tokens for example in examples)
    training, evaluation = 6142 * tokens / tokens_per_s, (6142 + 10461 + 10481 + 5848) * row_s
    print(
        f"an epoch of the paper: training {training:,.0f} s ({tokens:.1f} tokens per row), "
        f"evaluation {evaluation:,.0f} s ({1000 * row_s:.2f} ms per row), "
        f"{100 * evaluation / training:.0f} % of training"
    )


def memory(arguments: argparse.Namespace, rows: str) -> None:
    print("| ZeRO stage | offload | peak of a worker, MB |\n|---|---|---|")
    cases = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all")]
    for number, (stage, offload) in enumerate(cases):
        group = [
            start_process(
                arguments, rows, method="memory", zero_stage=stage, offload=offload, rank=rank, port=str(29600 + number)
            )
            for rank in range(arguments.num_workers)
        ]
        peak = max(wait_for_result(process)["peak_mb"] for process in group)
        print(f"| {stage} | {offload} | {peak:,.0f} |", flush=True)


def main() -> None:
    """Compare speeds, or measure memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", required=True, help="EntityQuestions as zip or folder")
    parser.add_argument("--num-rows", type=int, default=192, help="train rows; other splits in proportion to the paper")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS), help="slick must be among them")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--schedule", action="store_true", help="the cost of evaluation with both settings")
    parser.add_argument("--epochs", type=int, default=10, help="measured epochs of --schedule")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--activation-checkpointing", action="store_true")
    for name, default in (("method", ""), ("rows", ""), ("offload", "none"), ("port", "29511")):
        parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
    parser.add_argument("--quantization", choices=("none", "8bit", "4bit"), default="none")
    for name in ("zero-stage", "lora-rank", "rank"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(run_method(arguments)))
        return
    num = arguments.num_rows
    sizes = {"train": num, "dev": num * 10461 // 6142, "test": num * 10481 // 6142, "ood": num * 5848 // 6142}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.json")
        names = ("question_id", "split", "category", "suffix", "target", "accepted")
        question_rows = read_rows(arguments.questions, sizes)
        rows.write_text(json.dumps([{name: getattr(row, name) for name in names} for row in question_rows]))
        (memory if arguments.memory else print_schedule if arguments.schedule else compare)(arguments, str(rows))


if __name__ == "__main__":
    main()
