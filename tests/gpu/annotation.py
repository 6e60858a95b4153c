"""Annotation speed of slick's modes and of other engines on one device: the same questions, prompts and answers.

Every engine generates 1 greedy answer and 16 samples (T = 0.5, top-k 40) for each of 10 prompts, up to the newline;
labels mode skips samples that cannot change a label, and gold mode scores one answer instead. Times are wall-clock
seconds until the last answer is on the host. Batches grow until one takes a quarter of the measuring time; the speed is
that of the batches after that.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks.annotation import MAX_NEW_TOKENS, NUM_SAMPLES, generation_options
from tests.gpu.models import (
    OwnAnswers,
    Settings,
    Work,
    free_memory,
    make_work,
    model_and_tokenizer,
    model_shape,
    saved_model,
    select_rows,
)
from tests.gpu.roofline import PEAKS, Roofline, synchronize
from tests.gpu.schedule import Unavailable, write_result

MODES = ("full", "labels", "gold")
COMPILED = ", compiled"
PEERS = ("generate", "batched", "continuous")
_NUM_QUESTIONS = {"cuda": 24_576, "cpu": 50}
_FIRST_UNIT, _LARGEST_UNIT = 8, 512
"""Fewest and most questions that are answered together."""
_BATCHED_ROWS = 2048
"""Answers per batch of `batched`."""

PAPER_QUESTIONS = 98_029
_WAIT_S = 60.0

Answer = Callable[[dict[str, Any]], tuple[int, int]]
"""Answers the questions of one relation; returns the numbers of greedy hits and of answer tokens."""


@dataclass(slots=True)
class Meter:
    """What was measured since the last `clear`."""

    roofline: Roofline | None
    questions: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    hits: int = 0
    tokens: int = 0
    unit: int = field(default=_FIRST_UNIT)

    def clear(self) -> None:
        """Reset everything but the size of units."""
        self.questions = self.hits = self.tokens = 0
        self.seconds = self.cpu_seconds = 0.0
        if self.roofline is not None:
            self.roofline.clear()

    def measure(self, answer: Answer, questions: dict[str, Any]) -> float:
        """Answer some questions; returns the seconds."""
        if self.roofline is not None:
            self.roofline.is_counting = True
        started_at, cpu_before = time.perf_counter(), time.process_time()
        hits, tokens = answer(questions)
        seconds = time.perf_counter() - started_at
        if self.roofline is not None:
            self.roofline.is_counting = False
        self.cpu_seconds += time.process_time() - cpu_before
        self.seconds += seconds
        self.questions += len(questions["ids"])
        self.hits += hits
        self.tokens += tokens
        return seconds

    def result(self) -> dict[str, Any]:
        """Counts and rates."""
        counts = {"questions": self.questions, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        counts |= {"hits": self.hits, "tokens": self.tokens, "unit": self.unit}
        if self.roofline is not None and self.roofline.passes:
            counts |= {"passes": self.roofline.passes, "passed_tokens": self.roofline.tokens}
            if self.roofline.seconds:
                counts["roofline_seconds"] = self.roofline.seconds
        return counts


def measure_speed(answer: Answer, units: "Units", meter: Meter, seconds: float) -> None:
    """Answer questions until the measuring time is over or no question is left."""
    grows = True
    while meter.seconds < seconds:
        questions = units.take(meter.unit)
        if questions is None:
            return
        took = meter.measure(answer, questions)
        if grows and took < seconds / 4 and meter.unit < units.largest:
            meter.unit *= 4
            meter.clear()
        else:
            grows = False


class Units:
    """Questions in units of one relation each."""

    def __init__(self, work: Work, select: Callable[[dict[str, Any], slice], dict[str, Any]], largest: int) -> None:
        """Start with the first question.

        Args:
            work: the questions.
            select: gives some questions of a relation: `select_rows` or `OwnAnswers.select_rows`.
            largest: size of the largest unit.
        """
        self._work, self._select, self.largest = work, select, largest
        self._relation = self._row = 0

    def take(self, size: int) -> dict[str, Any] | None:
        """The next questions, at most `size`; None at the end."""
        while self._relation < len(self._work):
            part = self._work[self._relation]
            if self._row < len(part["ids"]):
                rows = slice(self._row, self._row + size)
                self._row += size
                return self._select(part, rows)
            self._relation, self._row = self._relation + 1, 0
        return None

    def rest(self, size: int) -> Iterator[dict[str, Any]]:
        """All remaining units."""
        while (questions := self.take(size)) is not None:
            yield questions


def answer_questions(engine: Any, mode: str, questions: dict[str, Any]) -> int:
    """Answer questions with an engine of slick in one of `MODES`; returns the number of greedy hits."""
    from slick.inference.base import PromptBatch, SamplingConfig
    from slick.matching import make_matcher

    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, num_samples=NUM_SAMPLES)
    batch = PromptBatch(prefixes=questions["prefixes"], question_ids=questions["ids"], suffixes=questions["suffixes"])
    if mode == "gold":
        scores = engine.score(batch, [gold[0] for gold in questions["gold"]], sampling)
        return sum(score.is_greedy for row in scores for score in row)
    targets = [make_matcher(gold) for gold in questions["gold"]]
    answers = engine.generate(batch, sampling, targets if mode == "labels" else None)
    return sum(t.is_hit(a.greedy_text) for t, row in zip(targets, answers, strict=True) for a in row)


def measure_annotation(settings: Settings, seconds: float, *, engine: str, size: str) -> dict[str, Any]:
    """Speed, roofline share and peak memory of one engine on a model.

    Args:
        settings: the device.
        seconds: measuring time.
        engine: one of `MODES`, also with `COMPILED` after it, `PEERS`, `vllm`, `host-full` and `host-labels`.
        size: one of `tests.gpu.models.SIZES`.
    """
    import torch

    if settings.device == "cpu":
        torch.set_num_threads(1)
    elif settings.processes > 1:
        torch.cuda.set_per_process_memory_fraction(1 / settings.processes)
    if engine == "vllm":
        return _measure_vllm(settings, seconds, size)
    model, tokenizer = model_and_tokenizer(settings, size)
    if engine.startswith("host-"):
        return measure_host(settings, model, tokenizer, engine.removeprefix("host-"))
    work = make_work(settings, _NUM_QUESTIONS[settings.device])
    units = Units(
        work, OwnAnswers(settings, model, tokenizer).select_rows, _LARGEST_UNIT if settings.device == "cuda" else 8
    )
    meter = Meter(Roofline(model, _peak(settings), _mean_length(work, tokenizer)))
    own_engine = None
    mode = engine.removesuffix(COMPILED)
    if mode in MODES:
        answer, own_engine = slick_answer(settings, model, tokenizer, mode, compiled=engine != mode)
    else:
        answer = peer_answer(settings, model, tokenizer, engine)
        if engine == "generate":
            meter.unit = units.largest = 1
    meter.measure(answer, units.take(1) or {})
    meter.clear()
    wait_for_others(settings)
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    measure_speed(answer, units, meter, seconds)
    batch = own_engine._batcher._size if own_engine is not None else None
    return meter.result() | memory(settings, size, batch)


def wait_for_others(settings: Settings) -> None:
    """Wait until all processes that share the device are ready.

    Raises:
        TimeoutError: one of them is not ready in time.
    """
    if settings.processes == 1:
        return
    Path(settings.folder, f"ready-{os.getpid()}").touch()
    end = time.monotonic() + _WAIT_S
    while len(list(Path(settings.folder).glob("ready-*"))) < settings.processes:
        if time.monotonic() > end:
            raise TimeoutError(f"not all of {settings.processes} processes were ready within {_WAIT_S} s")
        time.sleep(0.01)


def measure_shared(settings: Settings, limit: float, *, engine: str, size: str, processes: int) -> dict[str, Any]:
    """The speed of several processes of slick's engine that share one GPU, as actors with a fraction of a GPU do.

    Args:
        settings: the device.
        limit: time limit of each process in seconds.
        engine: one of `MODES`.
        size: one of `tests.gpu.models.SIZES`.
        processes: number of processes.
    """
    common = [sys.executable, "-m", "tests.gpu.first_run", "--out", "-", "--run", f"annotation {size} {engine}"]
    common += ["--device", settings.device, "--model", settings.model, "--questions", settings.questions]
    common += ["--limit", str(limit), "--processes", str(processes)]
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        paths = [Path(folder, f"{i}.json") for i in range(processes)]
        workers = [subprocess.Popen([*common, "--work", folder, "--result", str(path)]) for path in paths]
        statuses = [worker.wait() for worker in workers]
        if any(statuses):
            raise ChildProcessError(f"the processes ended with status {statuses}")
        runs = [json.loads(path.read_text()) for path in paths]
    seconds = max(run["seconds"] for run in runs)
    summed = ("questions", "cpu_seconds", "hits", "tokens", "passes", "passed_tokens", "roofline_seconds")
    total = {name: sum(run[name] * seconds / run["seconds"] for run in runs) for name in summed if name in runs[0]}
    peaks = {name: sum(run[name] for run in runs) for name in ("peak_bytes", "planned_bytes") if name in runs[0]}
    return {"seconds": seconds, **total, **peaks}


def slick_answer(
    settings: Settings, model: Any, tokenizer: Any, mode: str, *, compiled: bool = False
) -> tuple[Answer, Any]:
    """Answer questions with slick's engine, as annotation does."""
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine

    if not compiled:
        prepack_linears(model)
    engine = TransformersEngine(model, tokenizer, compiled=compiled)

    def answer(questions: dict[str, Any]) -> tuple[int, int]:
        before = engine.stats.answer_tokens
        hits = answer_questions(engine, mode, questions)
        return hits, engine.stats.answer_tokens - before

    return answer, engine


def peer_answer(settings: Settings, model: Any, tokenizer: Any, engine: str) -> Answer:
    """Answer questions with transformers.

    Args:
        settings: the device.
        model: on the device.
        tokenizer: its tokenizer.
        engine: `generate` takes one prompt at a time, `batched` left-padded batches, and `continuous` is
            `generate_batch` with continuous batching.
    """
    import torch
    from transformers import GenerationConfig

    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    greedy, sampled = (GenerationConfig(**options) for options in generation_options(tokenizer))

    def generate(prompts: list[str], config: Any, rows: int) -> tuple[list[str], int]:
        """The first answer to each prompt, and the number of tokens of all answers."""
        texts, num_tokens = [""] * len(prompts), 0
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), rows):
            indices = order[start : start + rows]
            ids = tokenizer([prompts[i] for i in indices], return_tensors="pt", padding=True)
            arguments = {name: ids[name].to(settings.device) for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                generated = model.generate(**arguments, generation_config=config)[:, arguments["input_ids"].shape[1] :]
            num_tokens += int((generated != tokenizer.pad_token_id).sum())
            first = generated[:: len(generated) // len(indices)]
            for i, text in zip(indices, tokenizer.batch_decode(first, skip_special_tokens=True), strict=True):
                texts[i] = text
        return texts, num_tokens

    def generate_batch(prompts: list[str], config: Any, num: int) -> tuple[list[str], int]:
        ids = tokenizer(prompts)["input_ids"]
        outputs = list(model.generate_batch(ids, generation_config=config, **cache).values())
        if len(outputs) != num * len(prompts):
            raise ValueError(
                f"generate_batch gave {len(outputs)} answers to {len(prompts)} prompts, expected {num} each"
            )
        tokens = [output.generated_tokens for output in outputs]
        return tokenizer.batch_decode(tokens, skip_special_tokens=True), sum(map(len, tokens))

    def answer(questions: dict[str, Any]) -> tuple[int, int]:
        prompts = [prefix + suffix for prefix in questions["prefixes"] for suffix in questions["suffixes"]]
        if engine == "continuous":
            texts, num_greedy = generate_batch(prompts, greedy, 1)
            _, num_sampled = generate_batch(prompts, sampled, NUM_SAMPLES)
        else:
            rows = 1 if engine == "generate" else _BATCHED_ROWS
            texts, num_greedy = generate(prompts, greedy, rows)
            _, num_sampled = generate(prompts, sampled, max(1, rows // NUM_SAMPLES))
        golds = [gold for _ in questions["prefixes"] for gold in questions["gold"]]
        hits = sum(text.split("\n")[0].strip() in gold for text, gold in zip(texts, golds, strict=True))
        return hits, num_greedy + num_sampled

    cache = _continuous_arguments(settings, model) if engine == "continuous" else {}
    return answer


def _continuous_arguments(settings: Settings, model: Any) -> dict[str, Any]:
    """Arguments of `generate_batch`."""
    if not hasattr(model, "generate_batch"):
        raise Unavailable("the installed transformers has no generate_batch")
    # By default it takes most of the memory.
    return {"continuous_batching_config": _small_cache()} if settings.device == "cpu" else {}


def _small_cache() -> Any:
    from transformers import ContinuousBatchingConfig

    return ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)


def _measure_vllm(settings: Settings, seconds: float, size: str) -> dict[str, Any]:
    """slick's vLLM engine: all samples of a prompt are one request, and prefix caching is on."""
    from slick.inference.base import ENGINES, EngineConfig

    folder = saved_model(settings, size)
    model, tokenizer = model_and_tokenizer(settings, size)
    work = make_work(settings, _NUM_QUESTIONS[settings.device])
    answers = OwnAnswers(settings, model, tokenizer)
    # vLLM takes the memory of the device, so the model first gives the gold answers and is then freed.
    work = [answers.select_rows(part, slice(None)) for part in work[:2]]
    del model, answers
    free_memory(settings.device)
    config = EngineConfig(model=folder, dtype=settings.dtype, num_gpus=float(settings.device == "cuda"))
    engine = ENGINES.get("vllm").load(config)
    units = Units(work, select_rows, _LARGEST_UNIT if settings.device == "cuda" else 8)
    meter = Meter(None)

    def answer(questions: dict[str, Any]) -> tuple[int, int]:
        before = engine.stats.answer_tokens
        return answer_questions(engine, "full", questions), engine.stats.answer_tokens - before

    meter.measure(answer, units.take(1) or {})
    meter.clear()
    measure_speed(answer, units, meter, seconds)
    return meter.result()


def memory(settings: Settings, size: str, batch: int | None) -> dict[str, Any]:
    """Peak memory of the GPU, and that of `slick plan`: weights, and a batch's keys and values without sharing."""
    import torch

    if settings.device != "cuda":
        return {}
    from slick.precision import dtype_bytes

    measured: dict[str, Any] = {"peak_bytes": torch.cuda.max_memory_allocated()}
    if batch is not None:
        shape = model_shape(settings, size)
        weights = dtype_bytes(settings.dtype) * shape.parameters
        measured |= {"batch": batch, "planned_bytes": weights + batch * shape.kv_bytes_per_question(settings.dtype)}
    return measured


def _peak(settings: Settings) -> Any:
    import torch

    return PEAKS.get(torch.cuda.get_device_name()) if settings.device == "cuda" else None


def _mean_length(work: Work, tokenizer: Any) -> int:
    return len(tokenizer(work[0]["prefixes"][0] + work[0]["suffixes"][0])["input_ids"])


def measure_host(settings: Settings, model: Any, tokenizer: Any, mode: str) -> dict[str, Any]:
    """Time of a mode without the model: questions are answered, then again with recorded model results replayed."""
    from slick.inference.packed.decoder import PackedDecoder
    from slick.inference.packed.engine import TransformersEngine

    engine = TransformersEngine(model, tokenizer, batch_questions=64)
    units = Units(
        make_work(settings, 240 if settings.device == "cuda" else 50),
        OwnAnswers(settings, model, tokenizer).select_rows,
        64,
    )
    parts, passes, forward = list(units.rest(64)), list[tuple[Any, int]](), PackedDecoder._forward

    def record_forward(decoder: Any, tokens: Any, *rest: Any) -> Any:
        passes.append((forward(decoder, tokens, *rest), len(tokens)))
        return passes[-1][0]

    def replay_forward(decoder: Any, *_: Any) -> Any:
        candidates, num_tokens = next(recorded)
        decoder._cache.num_tokens += num_tokens
        return candidates

    def answer_all() -> int:
        return sum(answer_questions(engine, mode, part) for part in parts)

    answer_all()  # fills the cache of prefixes
    with patch.object(PackedDecoder, "_forward", record_forward):
        hits = answer_all()
    synchronize(settings.device)
    recorded = iter(passes)
    engine._tokenizer._texts.clear()
    before, started_at, cpu_before = engine.stats.answer_tokens, time.perf_counter(), time.process_time()
    with patch.object(PackedDecoder, "_forward", replay_forward):
        if answer_all() != hits:
            raise ValueError("the replayed results of the model gave other answers")
    return {
        "questions": sum(len(part["ids"]) for part in parts),
        "seconds": time.perf_counter() - started_at,
        "cpu_seconds": time.process_time() - cpu_before,
        "hits": hits,
        "tokens": engine.stats.answer_tokens - before,
        "passes": len(passes),
        "passed_tokens": sum(num for _, num in passes),
    }


def measure_paper(settings: Settings, seconds: float, result_path: Path, *, size: str) -> dict[str, Any]:
    """The paper's questions in labels mode, as far as time allows; the rest is extrapolated.

    The result is saved after every unit, so it remains if the step is stopped.
    """
    model, tokenizer = model_and_tokenizer(settings, size)
    total = PAPER_QUESTIONS if settings.device == "cuda" and not settings.questions else _NUM_QUESTIONS[settings.device]
    work = make_work(settings, total)
    units = Units(work, OwnAnswers(settings, model, tokenizer).select_rows, _LARGEST_UNIT)
    answer, _ = slick_answer(settings, model, tokenizer, "labels")
    meter = Meter(None, unit=_LARGEST_UNIT if settings.device == "cuda" else 8)
    meter.measure(answer, units.take(_FIRST_UNIT) or {})
    meter.clear()
    started_at, result = time.monotonic(), dict[str, Any]()
    for questions in units.rest(meter.unit):
        meter.measure(answer, questions)
        result = meter.result() | {"total": PAPER_QUESTIONS}
        result["total_seconds"] = meter.seconds * PAPER_QUESTIONS / meter.questions
        write_result(result_path, result)
        if time.monotonic() - started_at > seconds:
            break
    return result
