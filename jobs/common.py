"""What all doors share: parse PRESET, --out and flags, hand over, turn errors into exit statuses.

Exit status: 0 done, 2 something the user can mend (one message, no traceback), 1 a defect of ours, 130 stopped by
Ctrl-C, 141 nobody reads the output any more (as in `slick study demo | head`).
"""

import io
import logging
import os
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jobs.config_file import SettingsSelector, expand_config_file
from jobs.flags import (
    FlagParser,
    canonical_flags,
    closest_names,
    did_you_mean,
    flag_name,
    flag_names,
    rejected_value_error,
    unknown_flags_error,
)
from slick.errors import SettingsError, SlickError
from slick.file_errors import format_file_error, is_disk_error
from slick.storage import Folder
from slick.uris import check_command_line

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, StructFieldSpec

    from slick.registry import Registry

Config = TypeVar("Config")


def run_main(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call a command's `main` with the command line's arguments and exit with its status."""
    configure_logging()
    try:
        try:
            _run(main, sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # what is left would fail when Python exits, where nothing can catch it
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        sys.exit(141)  # as a shell tells of a program that SIGPIPE ended


def _run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    try:
        check_command_line(argv)
        main(argv)
    except SlickError as error:
        print(f"\nslick: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not is_disk_error(error):
            raise
        print(f"\nslick: {format_file_error(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nslick: stopped. Nothing finished is lost: the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


class _ConsoleHandler(logging.Handler):
    """Writes the message alone: to stdout, and from WARNING on to stderr.

    The streams are looked up for each record, since they may be redirected. A closed pipe raises, as with `print`.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout, flush=True)


def configure_logging() -> None:
    """Show what the libraries `slick` and `tuning` log from INFO on as plain lines; a second call changes nothing.

    Records do not propagate: other libraries may add a handler to the root logger, which would repeat each line.
    Ray workers need none of this: their output stays in Ray's log files, and warnings go to stderr by default.
    """
    for name in ("slick", "tuning"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(_ConsoleHandler())


def _is_output_closed() -> bool:
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
    parser = FlagParser(prog)
    parser.add_flag("--out", default=default)
    known, rest = parser.parse_known(argv)
    if not known.out:
        misspelled = [name for name in map(flag_name, rest) if closest_names(name, ["out"])]
        if misspelled:
            raise unknown_flags_error(misspelled, ["out"], prog)
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
        raise SettingsError(
            f"{prog} has no preset {argv[0]!r}{did_you_mean(argv[0], presets)}; there are {', '.join(presets)}"
        )
    return argv[0], presets[argv[0]], list(argv[1:])


def parse_config(config: Config, argv: Sequence[str], prog: str, others: Iterable[str] = ("out",)) -> Config:
    """Override the fields of a preset by flags.

    Args:
        config: the preset.
        argv: flags and their values, in any spelling that `canonical_flags` takes; or `--help`.
        prog: the command so far, for messages.
        others: flags that the command takes beside these, to be suggested too.

    Raises:
        SettingsError: a flag that there is not, with the nearest ones; or a value that a flag does not take.
    """
    import tyro

    if not has_help_flag(argv):
        argv = canonical_flags(argv, flag_names(type(config)), prog, others)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            parsed = tyro.cli(type(config), default=config, args=list(argv), prog=prog, registry=_component_choices())
    except SystemExit as stop:
        if not stop.code:
            raise
        raise rejected_value_error(printed.getvalue(), argv, prog) from None
    except ValueError as error:
        raise SettingsError(str(error)) from error
    print(printed.getvalue(), end="", file=sys.stderr)
    return parsed


def _component_choices() -> "ConstructorRegistry":
    """Rules for tyro: a setting that names a component takes the names in its registry."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    rules = ConstructorRegistry()
    unfinished: list[StructTypeInfo] = []

    @rules.struct_rule
    def with_choices(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type) or info in unfinished:
            return None
        unfinished.append(info)  # so that the next call gives tyro's own description of the class
        spec = ConstructorRegistry.get_struct_spec(info)
        unfinished.pop()
        registries = {field.name: field.metadata.get("registry") for field in fields(info.type)}
        if not isinstance(spec, StructConstructorSpec) or not any(registries.values()):
            return None
        return replace(spec, fields=tuple(_with_choices(field, registries[field.name]) for field in spec.fields))

    return rules


def _with_choices(field: "StructFieldSpec", registry: "Registry[Any] | None") -> "StructFieldSpec":
    if registry is None:
        return field
    choices: Any = Literal[registry.names()]
    return replace(field, type=choices if field.type is str else choices | None)


def is_help_command(argv: Sequence[str]) -> bool:
    """True if the arguments ask for help before a preset is named."""
    return has_help_flag(argv[:1])


def has_help_flag(argv: Sequence[str]) -> bool:
    """True if the arguments ask for help."""
    return "-h" in argv or "--help" in argv


def run_step_command(
    step: str,
    presets: Mapping[str, Callable[[], Config]],
    run: Callable[[Folder, Config], object],
    argv: Sequence[str],
    description: str,
    select: SettingsSelector | None = None,
) -> None:
    """Run one step: `slick STEP PRESET --out DIR [--config FILE] [flags]`.

    Args:
        step: its name, for messages.
        presets: its settings by name.
        run: the step.
        argv: the arguments after the step's name.
        description: for `--help`.
        select: takes the step's settings from a file; None: the file holds them and no others.
    """
    prog = f"slick {step}"
    if is_help_command(argv):
        print(f"{description.strip()}\n\nPresets: {', '.join(presets)}. All flags: `{prog} PRESET --help`")
        return
    name, preset, rest = parse_preset(argv, prog, presets)
    if has_help_flag(rest):
        print(f"usage: {prog} {name} --out DIR [--config FILE] [flags]\n")
        parse_config(preset(), ["--help"], f"{prog} {name}")
        return
    out, rest = parse_out(rest, prog)
    prog = f"{prog} {name}"
    run(out, parse_config(preset(), expand_config_file(rest, preset(), prog, select), prog, ("out", "config")))
