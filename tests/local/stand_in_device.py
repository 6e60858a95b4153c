"""A device that stands in for a GPU where there is none: what a GPU would refuse or wait for, seen on any machine.

Its tensors lie in the CPU's memory and are computed there, but count as being elsewhere: an operation that mixes them
with the CPU's is an error, as on a GPU, and every read of their values by the host is counted, since on a GPU each one
waits for all work that was given out. What it cannot tell is what a GPU's own arithmetic gives, and how fast.

Run as a program with models ("llama float32"), it answers the same questions on the CPU and on itself and
prints what both gave: a process of its own, since torch never forgets a device.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from slick.engines.base import Answers, PromptBatch, SamplingConfig
from slick.engines.transformers import TransformersEngine
from tests.local.tiny import tiny_model, tiny_tokenizer

NAME = "standin"
_READS = ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2")


class DeviceTensor(Tensor):
    """A tensor that is on the device in name."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "DeviceTensor":
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} of a tensor whose device is not in use")


class StandInDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While in use, tensors may be put on the device and computed with there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[str] = Counter()
        """Operations by which the host read values from the device."""
        self.largest_bytes = 0
        """Of any tensor so far."""
        self.limit_bytes: float = math.inf
        """A larger tensor finds no memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor | torch.device)]
        here = [x for x in given if isinstance(x, DeviceTensor)]
        targets = [x for x in given if isinstance(x, torch.device)]
        computed_here = targets[-1].type == NAME if targets else bool(here)
        self._check(func, args, given, here, bool(targets), computed_here)

        def bare(x: Any) -> Any:
            return (
                x.on_cpu if isinstance(x, DeviceTensor) else torch.device("cpu") if isinstance(x, torch.device) else x
            )

        result = func(*tree_map(bare, args), **tree_map(bare, kwargs or {}))
        # What an operation changed in place comes back as the same tensor.
        known = {id(x.on_cpu): x for x in here}

        def named(x: Any) -> Any:
            if not isinstance(x, Tensor) or not computed_here:
                return x
            self.largest_bytes = max(self.largest_bytes, x.nbytes)
            if x.nbytes > self.limit_bytes:
                raise torch.OutOfMemoryError("as a device would say")
            return known.get(id(x)) if id(x) in known else DeviceTensor(x)

        return tree_map(named, result)

    def _check(
        self, func: Any, args: Any, given: Sequence[Any], here: Sequence[Any], moves: bool, computed_here: bool
    ) -> None:
        name = func.overloadpacket.__name__
        if here and moves and not computed_here:
            self.reads[name] += 1
        elif name == "copy_":
            self.reads[name] += bool(here) and not isinstance(args[0], DeviceTensor)
        elif here and not moves:
            others = [tuple(x.shape) for x in given if not isinstance(x, DeviceTensor) and x.dim()]
            if others:
                raise RuntimeError(f"expected all tensors to be on the same device: {func} got of the CPU {others}")
            masks = name in ("index", "index_put_") and any(x.dtype == torch.bool for x in here[1:])
            self.reads[name] += name in _READS or masks

    @torch.inference_mode()
    def put(self, model: nn.Module) -> nn.Module:
        """Move a model's weights."""
        for module in model.modules():
            for key, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[key] = nn.Parameter(DeviceTensor(weight.detach()), requires_grad=False)
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else DeviceTensor(buffer)
        return model


class _Constants(TorchFunctionMode):
    """`torch.tensor`, which asks no device of its own before it makes one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device)


class _OfALength:
    """Right answers of a question, for the sake of having some: few, so that not every greedy answer is one."""

    def is_hit(self, answer: str) -> bool:
        return self.may_hit(answer) and len(answer) % 11 == 0

    def may_hit(self, beginning: str) -> bool:
        return not beginning or ord(beginning[0]) % 3 != 0


NAMES = [f"Peru {i}" for i in range(12)]
BATCH = PromptBatch(
    prefixes=["Q: Where was Ada Lovelace born?\nA: London\n", "", "Q: Who wrote Dune?\nA: Frank\nQ: Who?\nA: He\n"],
    question_ids=NAMES,
    suffixes=[f"Q: What is the capital of {name}?\nA:" for name in NAMES],
)
ONE_PREFIX = PromptBatch(prefixes=BATCH.prefixes[:1], question_ids=NAMES, suffixes=BATCH.suffixes)
SAMPLING = SamplingConfig(num_samples=5, max_new_tokens=8, temperature=1.0, top_k=20)


def _texts(answers: list[tuple[Answers, ...]]) -> list[list[str | None]]:
    return [[a.greedy_text, *a.sampled_text] for one in answers for a in one]


def everything(engine: TransformersEngine) -> dict[str, Any]:
    """What the engine gives when it is asked in each of its ways."""
    full = engine.generate(BATCH, SAMPLING)
    labels = engine.generate(BATCH, SAMPLING, [_OfALength()] * len(NAMES))
    gold = engine.score(BATCH, NAMES, replace(SAMPLING, top_k=400))
    choices = engine.log_probabilities(ONE_PREFIX, [" London", " He"])
    return {
        "full": _texts(full),
        "labels": _texts(labels),
        "probability": [score.probability for one in gold for score in one],
        "choices": [chance for one in choices for chance in one],
    }


def compared(name: str, dtype: str) -> dict[str, Any]:
    """What a model of an architecture answers on the CPU and on the device, and how often its values were read."""
    model, tokenizer = tiny_model(name, spread=0.2, dtype=dtype), tiny_tokenizer()
    on_cpu = TransformersEngine(model, tokenizer)
    found: dict[str, Any] = {"packs_on_cpu": on_cpu.packs, "cpu": everything(on_cpu)}
    device, emptied, fed = StandInDevice(), Counter[str](), list[int]()
    model.register_forward_pre_hook(lambda _, __, given: fed.append(given["input_ids"].numel()), with_kwargs=True)
    free = 1 << 33
    with (
        _Constants(),
        device,
        patch("torch.cuda.mem_get_info", lambda _: (free, 1 << 34)),
        patch("torch.cuda.empty_cache", lambda: emptied.update(["emptied"])),
    ):
        engine = TransformersEngine(device.put(model), tokenizer)
        device.reads.clear()
        fed.clear()
        found |= {"device": everything(engine), "packs": engine.packs}
        found |= {"passes": len(fed), "fed": list(fed), "reads": +device.reads}
        if engine.packs:
            device.largest_bytes = 0
            engine.generate(BATCH, SAMPLING)
            device.limit_bytes = 0.7 * device.largest_bytes  # enough for half of the questions
            found["little_memory"] = _texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
            device.limit_bytes, free = math.inf, 1 << 20  # room for some questions' keys, and for few tokens' logits
            fed.clear()
            found["little_free"] = _texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
            found["fed_then"] = fed
        found["emptied"] = emptied["emptied"]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    _setup_privateuseone_for_python_backend(NAME)
    print(json.dumps({model: compared(*model.split()) for model in sys.argv[1:]}))
