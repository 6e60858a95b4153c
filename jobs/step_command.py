"""The command of one step: `slick STEP PRESET --out DIR [--config FILE] [flags]`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.common import has_help_flag, is_help_command, parse_config, parse_out, parse_preset
from jobs.config_file import expand_config_file
from jobs.presets import STEP_PRESETS
from jobs.study_file import settings_selector
from slick.storage import Folder


def run_step_command(
    step: str,
    run: Callable[[Folder, Any], object],
    argv: Sequence[str],
    description: str | None,
    presets: Mapping[str, Callable[[], Any]] | None = None,
) -> None:
    """Run one step with the settings that the command line gives.

    Args:
        step: the name in messages, and in `STEP_PRESETS`.
        run: the step; takes the study folder and the settings.
        argv: the arguments after the step's name.
        description: for `--help`.
        presets: settings other than those of the step, by name; a config file then holds these settings alone.
    """
    prog = f"slick {step}"
    select = settings_selector(step) if presets is None else None
    presets = STEP_PRESETS[step] if presets is None else presets
    if is_help_command(argv):
        print(f"{(description or '').strip()}\n\nPresets: {', '.join(presets)}. All flags: `{prog} PRESET --help`")
        return
    name, preset, rest = parse_preset(argv, prog, presets)
    prog = f"{prog} {name}"
    if has_help_flag(rest):
        print(f"usage: {prog} --out DIR [--config FILE] [flags]\n")
        parse_config(preset(), ["--help"], prog)
        return
    out, rest = parse_out(rest, f"slick {step}")
    flags = expand_config_file(rest, preset(), prog, select)
    run(out, parse_config(preset(), flags, prog, ("out", "config")))
