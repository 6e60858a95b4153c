"""Cases of a simulated device whose memory is shared or runs out; the tests are in `test_engine_on_device.py`."""

import logging
from typing import Any
from unittest.mock import patch

import torch

from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from tests.local.engine_results import BATCH, SAMPLING, texts
from tests.local.simulated_device import DeviceMemory, SimulatedDevice, put_on_device
from tests.local.tiny import tiny_model, tiny_tokenizer

MIB = 1 << 20
SHARED_MEMORY = 4 * MIB
MANY_BATCHES = 1000
_NAMES = [f"Peru {i}" for i in range(16)]
_QUESTIONS = PromptBatch(
    prefixes=BATCH.prefixes, question_ids=_NAMES, suffixes=[f"Q: What is the capital of {name}?\nA:" for name in _NAMES]
)


def _answer(engine: TransformersEngine) -> list[list[str | None]]:
    return texts(engine.generate(_QUESTIONS, SAMPLING))


def run_two_actors() -> dict[str, Any]:
    """Answers of two actors that share the device; the second works while the first is in the middle of a batch."""
    tokenizer = tiny_tokenizer()
    result: dict[str, Any] = {"cpu": _answer(TransformersEngine(tiny_model("llama", spread=0.2), tokenizer))}
    memory = DeviceMemory(SHARED_MEMORY)
    device = SimulatedDevice(memory)
    with device.activated():
        with memory.running("alone"), torch.inference_mode():
            engine = TransformersEngine(put_on_device(tiny_model("llama", spread=0.2)), tokenizer)
            result |= {"alone": _answer(engine), "batch_alone": engine._batcher._size}
            del engine
        engines = {}
        for name in ("first", "second"):
            with memory.running(name), torch.inference_mode():
                memory.fractions[name] = 0.5
                model = put_on_device(tiny_model("llama", spread=0.2))
                engines[name] = TransformersEngine(model, tokenizer)
        used = list[int]()

        def interrupt(*_: Any) -> None:
            used.append(memory.used["first"])
            if len(used) % 8 == 4:
                with memory.running("second"):
                    result["second"] = _answer(engines["second"])

        engines["first"]._model.register_forward_pre_hook(interrupt)
        with memory.running("first"):
            result["first"] = _answer(engines["first"])
    sizes = {f"batch_{name}": engine._batcher._size for name, engine in engines.items()}
    return result | sizes | {
        "interruptions": len(used[3::8]),
        "peak": dict(memory.peak),
        "num_refused": memory.num_refused,
    }  # fmt: skip


def run_training_and_evaluation() -> dict[str, Any]:
    """Two training steps, evaluation, and another step, on a device that is just large enough for training."""
    from tests.study_builder import NAMES
    from tuning.data import QuestionRow
    from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows
    from tuning.forward import ForwardRunner

    tokenizer = tiny_tokenizer()
    rows = [
        QuestionRow(
            question_id=f"q{i}",
            split="dev",
            category=None,
            suffix=f"Q: Where was {NAMES[i % len(NAMES)]} {i} born?\nA:",
            target="London",
            accepted=("London",),
        )
        for i in range(110)
    ]
    examples, settings = encode_rows(rows, tokenizer), EvalSettings(matcher="exact", max_new_tokens=3)
    result: dict[str, Any] = {}
    for where in ("cpu", "device"):
        memory = DeviceMemory(1 << 34)
        model = tiny_model("llama", spread=0.2)
        device = SimulatedDevice(memory)
        with device.activated():
            model = put_on_device(model) if where == "device" else model
            forward = ForwardRunner(model, 0, packing=True)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
            # The second step is the first with the state of the optimizer.
            losses = [_train_step(model.train(), forward, optimizer, examples[:4]) for _ in range(2)]
            used = memory.used.total()
            if where == "device":
                memory.total = memory.peak.total()  # just enough for training
            batches, generate = list[int](), TransformersEngine._generate

            def count(engine: Any, part: PromptBatch, *rest: Any, batches: Any = batches, run: Any = generate) -> Any:
                batches.append(len(part.question_ids))
                return run(engine, part, *rest)

            with patch.object(TransformersEngine, "_generate", count):
                predictions = evaluate_rows(model.eval(), forward, tokenizer, rows, examples, settings)
            result[where] = [prediction.text for prediction in predictions]
            result |= {"used_before": used, "used_after": memory.used.total(), "batch": max(batches)}
            losses.append(_train_step(model.train(), forward, optimizer, examples[:4]))
    return result | {"losses": losses, "num_rows": len(rows)}


def _train_step(model: Any, forward: Any, optimizer: Any, examples: Any) -> float:
    with forward.rows(examples) as rows:
        loss = torch.nn.functional.cross_entropy(forward.answer_logits(rows), rows.labels_K)
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def run_many_batches() -> dict[str, Any]:
    """Batches of two questions, of which the thousandth finds no memory for both."""
    tokenizer, sampling = tiny_tokenizer(), SamplingConfig(num_samples=0, max_new_tokens=1)
    names = [f"Peru {i}" for i in range(2 * MANY_BATCHES + 18)]
    batch = PromptBatch(prefixes=[""], question_ids=names, suffixes=[f"Q: What is {name}?\nA:" for name in names])
    model = tiny_model("llama", spread=0.2, num_hidden_layers=1)
    expected = texts(TransformersEngine(model, tokenizer).generate(batch, sampling))
    memory, warnings, sizes, used = DeviceMemory(1 << 34), list[str](), list[int](), list[int]()
    logger = logging.getLogger("slick.inference.devices")
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    device = SimulatedDevice(memory)
    with device.activated():
        with torch.inference_mode():
            engine = TransformersEngine(put_on_device(model), tokenizer, batch_questions=2)
        run = engine._generate

        def count(part: PromptBatch, *rest: Any) -> Any:
            sizes.append(len(part.question_ids))
            used.append(memory.used.total())
            if len(sizes) == MANY_BATCHES:
                memory.total = used[-1]
            try:
                return run(part, *rest)
            finally:
                memory.total = 1 << 34

        engine._generate = count  # type: ignore[method-assign]
        answers = texts(engine.generate(batch, sampling))
    return {
        "equal": answers == expected,
        "num_refused": memory.num_refused,
        "warnings": warnings,
        "sizes": sizes,
        "used_early": used[10],
        "used_late": used[MANY_BATCHES - 1],
    }


MEMORY_CASES = {
    "two actors": run_two_actors,
    "training and evaluation": run_training_and_evaluation,
    "thousandth batch": run_many_batches,
}
