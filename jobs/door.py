"""What all doors share: parse PRESET, --out and flags, hand over, turn errors into exit statuses.

Exit status: 0 done, 2 something the user can mend (one message, no traceback), 1 a defect of ours, 130 stopped by
Ctrl-C, 141 nobody reads the output any more (as in `slick study demo | head`).
"""

import argparse
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from slick.errors import SettingsError, SlickError
from slick.storage import Folder, file_message, is_disk_error

Config = TypeVar("Config")


def run_main(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call a door's `main` with the command line's arguments and exit with its status."""
    try:
        try:
            _run(main, sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # what is left would fail when Python exits, where nothing can catch it
    except BrokenPipeError:
        if not _reader_gone():
            raise
        sys.exit(141)  # as a shell tells of a program that SIGPIPE ended


def _run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    try:
        main(argv)
    except SlickError as error:
        print(f"\nslick: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not is_disk_error(error):
            raise
        print(f"\nslick: {file_message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nslick: stopped. Nothing finished is lost: the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def _reader_gone() -> bool:
    """True if the pipe that broke is our own output; what is still to be written then goes nowhere."""
    output = select.poll()
    for descriptor in (1, 2):
        output.register(descriptor, 0)  # errors and hang-ups are told in any case
    gone = [descriptor for descriptor, event in output.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for descriptor in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def parse_out(argv: Sequence[str], prog: str, default: str | None = None) -> tuple[Folder, list[str]]:
    """Take `--out` from the arguments: the study folder, and the arguments that remain."""
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--out", default=default)
    known, rest = parser.parse_known_args(argv)
    if known.out is None:
        raise SettingsError(f"{prog} needs --out DIR, the study folder: a path, or a URI such as s3://bucket/study")
    return Folder(known.out), rest


def parse_preset(
    argv: Sequence[str], prog: str, presets: Mapping[str, Callable[[], Config]]
) -> tuple[str, Callable[[], Config], list[str]]:
    """Take the preset's name, the first argument."""
    if not argv or argv[0].startswith("-"):
        raise SettingsError(
            f"{prog} needs a preset first: {' | '.join(presets)}; for example `{prog} {next(iter(presets))}`"
        )
    if argv[0] not in presets:
        raise SettingsError(f"{prog} has no preset {argv[0]!r}; there are {', '.join(presets)}")
    return argv[0], presets[argv[0]], list(argv[1:])


def parse_config(config: Config, argv: Sequence[str], prog: str) -> Config:
    """Override the fields of a preset by flags; an unknown flag stops with the nearest known one."""
    import tyro

    try:
        return tyro.cli(type(config), default=config, args=list(argv), prog=prog)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def wants_help(argv: Sequence[str]) -> bool:
    """True if the arguments ask for help before a preset is named."""
    return bool(argv) and argv[0] in ("-h", "--help")


def step_door(
    step: str,
    presets: Mapping[str, Callable[[], Config]],
    run: Callable[[Folder, Config], object],
    argv: Sequence[str],
    description: str,
) -> None:
    """The door of one step: `slick STEP PRESET --out DIR [flags]`."""
    prog = f"slick {step}"
    if wants_help(argv):
        print(f"{description.strip()}\n\nPresets: {', '.join(presets)}. All flags: `{prog} PRESET --help`")
        return
    name, preset, rest = parse_preset(argv, prog, presets)
    if "-h" in rest or "--help" in rest:
        print(f"usage: {prog} {name} --out DIR [flags]\n")
        parse_config(preset(), ["--help"], f"{prog} {name}")
        return
    out, rest = parse_out(rest, prog)
    run(out, parse_config(preset(), rest, f"{prog} {name}"))
