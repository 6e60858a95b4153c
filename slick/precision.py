"""The dtype of a model: what `auto` resolves to, bytes per number, and what manifests record.

The planner, printed commands and runs all resolve `auto` here.
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
    """Bytes of one weight, key or value in a resolved dtype.

    Raises:
        SettingsError: the dtype is unknown, or `auto`, whose size depends on the device.
    """
    if dtype not in _BYTES:
        raise SettingsError(f"dtype is {dtype!r}, whose size is not known; give one of {', '.join(_BYTES)}")
    return _BYTES[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Properties of a device that determine the dtype and the engine."""

    is_gpu: bool
    supports_bfloat16: bool
    """In hardware, not by emulation. NVIDIA GPUs do from compute capability 8.0 on."""
    name: str
    """For messages."""
    memory: int | None = None
    """Bytes of a GPU's memory; None if not known."""


CPU = Device(is_gpu=False, supports_bfloat16=True, name="the CPU")
ASSUMED_GPU = Device(is_gpu=True, supports_bfloat16=True, name="a GPU of compute capability 8.0 or later")
"""The GPU that plans assume: an A10G, L4, A100, H100 or later."""


def resolve_dtype(dtype: str, device: Device, stored: str | None = None) -> str:
    """Resolve a dtype setting on a device.

    `auto` is the dtype of stored results, if the device supports it; otherwise bfloat16 on a GPU that supports it, and
    float32 elsewhere. It is float16 only if stored results are.

    Args:
        dtype: the setting.
        device: the device that computes.
        stored: dtype of the results that are stored already.

    >>> resolve_dtype("auto", ASSUMED_GPU), resolve_dtype("auto", CPU), resolve_dtype("auto", CPU, "bfloat16")
    ('bfloat16', 'float32', 'bfloat16')
    """
    if dtype != AUTO:
        return dtype
    if stored is not None and (stored != "bfloat16" or device.supports_bfloat16):
        return stored
    return "bfloat16" if device.is_gpu and device.supports_bfloat16 else "float32"


def resolve_train_dtype(dtype: TrainDtype, device: Device) -> TrainDtype:
    """`resolve_dtype` for training that has not started."""
    return "bfloat16" if resolve_dtype(dtype, device) == "bfloat16" else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDtype:
    """The dtype of the stored results of a step."""

    dtype: str | None
    """None if the step is not started."""
    is_finished: bool


NO_STORED_DTYPE = StoredDtype(dtype=None, is_finished=False)


def read_stored_dtype(folders: Sequence[Folder]) -> StoredDtype:
    """The dtype of a step, from the settings in its folders.

    Args:
        folders: the folder of the annotation, or those of all trainings of a sweep.

    Raises:
        StudyError: they have several dtypes.
    """
    folder_of: dict[str, Folder] = {}
    num_finished = 0
    for folder in folders:
        manifest = read_manifest(folder)
        num_finished += manifest is not None
        record = manifest or read_start_record(folder)
        if record is not None:
            folder_of.setdefault(record.settings.get("dtype") or "", folder)
    folder_of.pop("", None)
    if len(folder_of) > 1:
        dtypes = " and ".join(f"{dtype} ({folder})" for dtype, folder in folder_of.items())
        raise StudyError(
            f"this study holds results in {dtypes}, so --dtype auto is ambiguous; give --dtype (in a study, "
            "--annotate.dtype or --sweep.train.dtype), or another --out"
        )
    return StoredDtype(dtype=next(iter(folder_of), None), is_finished=0 < num_finished == len(folders))


def resolve_step_dtype(step: str, dtype: str, stored: StoredDtype, device: Callable[[], Device]) -> str:
    """Resolve the dtype of a step before its fingerprint is computed; log if stored results override the default.

    Args:
        step: its name, for the message.
        dtype: the setting.
        stored: dtype of stored results.
        device: called only if the result depends on it: not for a finished step or an explicit dtype.
    """
    if dtype != AUTO:
        return dtype
    if stored.is_finished and stored.dtype is not None:
        return stored.dtype
    here = device()
    chosen, own = resolve_dtype(dtype, here, stored.dtype), resolve_dtype(dtype, here)
    if stored.dtype is not None and chosen != own:
        _LOG.info(
            "%s: continues in %s, the dtype of stored results; the default on %s is %s. To change it, give another "
            "--out",
            step,
            chosen,
            here.name,
            own,
        )
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Device, dtype and attention kernel of a loaded model."""

    device: str
    """The torch name, and for a GPU its model: `cpu`, `cuda (NVIDIA L4)`."""
    dtype: str
    attention: str
    """Attention kernel, such as `slick packed`, `sdpa` or `flash_attention_2`."""

    def __str__(self) -> str:
        return f"device {self.device}, dtype {self.dtype}, attention {self.attention}"


RUNTIME_FIELDS: Final = ("device", "dtype", "attention")
"""Keys in the counts of a manifest that hold a `Runtime`."""


def merge_runtimes(runtimes: Iterable[Runtime | Mapping[str, Any]]) -> dict[str, str]:
    """Counts of a manifest: each field of the runtimes, different values joined by `and`; empty if there are none.

    >>> a = Runtime(device="cpu", dtype="float32", attention="sdpa")
    >>> merge_runtimes([a, {"device": "cuda (NVIDIA L4)", "dtype": "float32", "attention": "sdpa"}])
    {'device': 'cpu and cuda (NVIDIA L4)', 'dtype': 'float32', 'attention': 'sdpa'}
    """
    known = [asdict(runtime) if isinstance(runtime, Runtime) else runtime for runtime in runtimes]
    values = {
        name: sorted({part for runtime in known if runtime.get(name) for part in str(runtime[name]).split(" and ")})
        for name in RUNTIME_FIELDS
    }
    return {name: " and ".join(parts) for name, parts in values.items() if parts}
