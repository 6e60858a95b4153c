"""Which precision a model runs in: what `auto` means, what a number takes, and what is recorded of it.

Planner, printed commands and runs all resolve `auto` here.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from slick.errors import SettingsError, StudyError
from slick.storage import Folder
from slick.study import read_manifest, read_start_record

_LOG = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TrainDtype = Literal["auto", "float32", "bfloat16"]

AUTO: Final = "auto"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def dtype_bytes(dtype: str) -> int:
    """Bytes that one weight, key or value takes in a resolved dtype.

    Raises:
        SettingsError: the dtype is `auto`, whose size depends on the device, or none of ours.
    """
    if dtype not in _BYTES:
        raise SettingsError(f"dtype is {dtype!r}, whose size is not known; give one of {', '.join(_BYTES)}")
    return _BYTES[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where a model runs, as far as it decides the precision."""

    is_gpu: bool
    supports_bfloat16: bool
    """It computes bfloat16 itself; emulation does not count. NVIDIA GPUs do from compute capability 8.0 on."""
    name: str
    """For messages."""


CPU = Device(is_gpu=False, supports_bfloat16=True, name="the CPU")
ASSUMED_GPU = Device(is_gpu=True, supports_bfloat16=True, name="a GPU of compute capability 8.0 or later")
"""What plans assume: an A10G, L4, A100, H100 or later."""


def resolve_dtype(dtype: str, device: Device, begun: str | None = None) -> str:
    """The dtype that a setting stands for on a device.

    `auto` is the dtype in which the work began, if the device computes it; else bfloat16 on a GPU that computes it,
    and float32 elsewhere. It is float16 only where the work began so.

    Args:
        dtype: as set.
        device: that does the work.
        begun: dtype of the results that are stored already.

    >>> resolve_dtype("auto", ASSUMED_GPU), resolve_dtype("auto", CPU), resolve_dtype("auto", CPU, "bfloat16")
    ('bfloat16', 'float32', 'bfloat16')
    """
    if dtype != AUTO:
        return dtype
    if begun is not None and (begun != "bfloat16" or device.supports_bfloat16):
        return begun
    return "bfloat16" if device.is_gpu and device.supports_bfloat16 else "float32"


def resolve_train_dtype(dtype: TrainDtype, device: Device) -> TrainDtype:
    """As `resolve_dtype`, of a training that has not begun."""
    return "bfloat16" if resolve_dtype(dtype, device) == "bfloat16" else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDtype:
    """What the folders of a step say of its precision."""

    dtype: str | None
    """None where nothing has begun."""
    is_finished: bool


NO_STORED_DTYPE = StoredDtype(dtype=None, is_finished=False)


def read_stored_dtype(folders: Sequence[Folder]) -> StoredDtype:
    """The dtype in which a step began, from the settings in its folders.

    Args:
        folders: of one step: that of the annotation, or those of all trainings of a sweep.

    Raises:
        StudyError: they began in several.
    """
    found: dict[str, Folder] = {}
    num_finished = 0
    for folder in folders:
        manifest = read_manifest(folder)
        num_finished += manifest is not None
        record = manifest or read_start_record(folder)
        if record is not None:
            found.setdefault(record.settings.get("dtype") or "", folder)
    found.pop("", None)
    if len(found) > 1:
        held = " and ".join(f"{dtype} ({folder})" for dtype, folder in found.items())
        raise StudyError(
            f"this study holds results in {held}, so --dtype auto does not say which to go on with; give --dtype (in a "
            "study, --annotate.dtype or --sweep.train.dtype), or another --out"
        )
    return StoredDtype(dtype=next(iter(found), None), is_finished=0 < num_finished == len(folders))


def resolve_step_dtype(step: str, dtype: str, stored: StoredDtype, device: Callable[[], Device]) -> str:
    """Resolve the dtype of a step before its fingerprint is made, and say where it is not the device's own choice.

    Args:
        step: for the message.
        dtype: as set.
        stored: what the step's folders hold.
        device: asked only where the answer depends on it: never of a finished step or a stated dtype.
    """
    if dtype != AUTO:
        return dtype
    if stored.is_finished and stored.dtype is not None:
        return stored.dtype
    here = device()
    chosen, own = resolve_dtype(dtype, here, stored.dtype), resolve_dtype(dtype, here)
    if stored.dtype is not None and chosen != own:
        _LOG.info(
            "%s: goes on in %s, in which it began; %s alone would take %s. To change it, give another --out",
            step,
            chosen,
            here.name,
            own,
        )
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a loaded model runs on and with."""

    device: str
    """As torch names it, with the GPU's name: `cpu`, `cuda (NVIDIA L4)`."""
    dtype: str
    attention: str
    """Attention kernel, such as `slick packed`, `sdpa` or `flash_attention_2`."""

    def __str__(self) -> str:
        return f"device {self.device}, dtype {self.dtype}, attention {self.attention}"


RUNTIME_FIELDS: Final = ("device", "dtype", "attention")
"""Counts of a manifest that hold a `Runtime`."""


def merge_runtimes(runtimes: Iterable[Runtime | Mapping[str, Any]]) -> dict[str, str]:
    """The counts of a manifest: each part of the runtimes, several joined by `and`; empty where nothing is known.

    >>> a = Runtime(device="cpu", dtype="float32", attention="sdpa")
    >>> merge_runtimes([a, {"device": "cuda (NVIDIA L4)", "dtype": "float32", "attention": "sdpa"}])
    {'device': 'cpu and cuda (NVIDIA L4)', 'dtype': 'float32', 'attention': 'sdpa'}
    """
    known = [asdict(runtime) if isinstance(runtime, Runtime) else runtime for runtime in runtimes]
    values = {
        name: sorted({part for one in known if one.get(name) for part in str(one[name]).split(" and ")})
        for name in RUNTIME_FIELDS
    }
    return {name: " and ".join(some) for name, some in values.items() if some}
