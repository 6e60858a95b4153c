"""The command line of given settings, for the commands that the page prints. Pure."""

import shlex
from dataclasses import fields, is_dataclass
from typing import Any

from slick.curation.config import CurateConfig


def curate_command(config: CurateConfig, out: str) -> str:
    """The command `slick curate` with these settings.

    Args:
        config: the settings; those with their default are left out.
        out: the study folder.

    >>> curate_command(CurateConfig(data="my rows.csv", model="m", ask=("kind=fact",), seed=1), "studies/mine")
    "slick curate 'my rows.csv' --model m --out studies/mine --ask kind=fact --seed 1"
    """
    words = ["slick", "curate", config.data, "--model", config.model, "--out", out]
    return shlex.join([*words, *_flags(config, CurateConfig(), skip=("data", "model"))])


def _flags(settings: Any, default: Any, prefix: str = "", skip: tuple[str, ...] = ()) -> list[str]:
    words: list[str] = []
    for field in fields(settings):
        value, own = getattr(settings, field.name), getattr(default, field.name)
        name = f"{prefix}{field.name}"
        if field.name in skip or value == own:
            continue
        flag = "--" + name.replace("_", "-")
        if is_dataclass(value):
            words += _flags(value, own, f"{name}.")
        elif isinstance(value, bool):
            words.append(flag if value else "--" + f"{prefix}no-{field.name}".replace("_", "-"))
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag, *("None" if item is None else str(item) for item in values)]
    return words
