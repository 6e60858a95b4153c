"""Shared parts of the commands: logging, exit statuses, parsing of PRESET, `--out` and flags, and the run of one step.

Exit statuses: 0 success; 1 a defect of this program; 2 an error that the user can fix (one message, no traceback);
130 interrupted by Ctrl-C; 141 the reader of the output has closed it (as in `slick study demo | head`); 143 ended by
SIGTERM, as Slurm, Kubernetes and `kill` send it.
"""

import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

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
from jobs.job_log import keep_job_log
from slick.cluster_watch import end_process_on_loss
from slick.errors import SettingsError, SlickError, format_file_error, is_disk_error, is_store_error
from slick.storage import Folder
from slick.uris import check_command_line

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, StructFieldSpec

    from slick.registry import Registry


Config = TypeVar("Config")


def run_main(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call a command's `main` with the command line's arguments and exit with its status."""
    configure_logging()
    _terminated.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            arguments = sys.argv[1:] if argv is None else argv
            with keep_job_log(arguments):
                _run(main, arguments)
        finally:
            sys.stdout.flush()  # a failure when Python exits could not be caught
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        sys.exit(141)  # a shell's status of a program that SIGPIPE has ended


def _run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    try:
        with end_process_on_loss():
            check_command_line(argv)
            main(argv)
    except SlickError as error:
        print(f"\nslick: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not (is_disk_error(error) or is_store_error(error)):
            raise
        print(f"\nslick: {format_file_error(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nslick: stopped. Finished work is kept; the same command resumes it.", file=sys.stderr)
        sys.exit(143 if _terminated.is_set() else 130)


_terminated = threading.Event()
"""Whether SIGTERM was received. An exception of its own would not do: Ray Tune replaces it by KeyboardInterrupt."""


def _interrupt(*_: object) -> None:
    """On SIGTERM, end the command in the same way as on Ctrl-C."""
    _terminated.set()
    raise KeyboardInterrupt


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
    """Whether stdout or stderr is the pipe that broke; if so, further output is discarded."""
    output = select.poll()
    for descriptor in (1, 2):
        output.register(descriptor, 0)  # errors and hang-ups are always reported
    closed = [descriptor for descriptor, event in output.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for descriptor in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(closed)


def parse_out(argv: Sequence[str], prog: str, default: str | None = None) -> tuple[Folder, list[str]]:
    """The study folder that `--out` names, and the remaining arguments.

    Raises:
        SettingsError: there is no `--out` and no default.
    """
    parser = FlagParser(prog)
    parser.add_flag("--out", default=default)
    known, rest = parser.parse_known(argv)
    if not known.out:
        misspelled = [name for name in map(flag_name, rest) if closest_names(name, ["out"])]
        if misspelled:
            raise unknown_flags_error(misspelled, ["out"], prog)
        raise SettingsError(f"{prog} needs --out DIR, the study folder: a path or a URI such as s3://bucket/study")
    return Folder(known.out), rest


def parse_preset(
    argv: Sequence[str], prog: str, presets: Mapping[str, Callable[[], Config]]
) -> tuple[str, Callable[[], Config], list[str]]:
    """The first argument as a preset: its name, its function, and the remaining arguments.

    Raises:
        SettingsError: the first argument is not a preset.
    """
    if not argv or argv[0].startswith("-"):
        raise SettingsError(
            f"{prog} expects a preset first: {' | '.join(presets)}; for example `{prog} {next(iter(presets))}`"
        )
    if argv[0] not in presets:
        raise SettingsError(
            f"{prog} has no preset {argv[0]!r}{did_you_mean(argv[0], presets)}; its presets are {', '.join(presets)}"
        )
    return argv[0], presets[argv[0]], list(argv[1:])


def parse_config(config: Config, argv: Sequence[str], prog: str, others: Iterable[str] = ("out",)) -> Config:
    """Override the fields of a preset by flags.

    Args:
        config: the preset.
        argv: flags and their values, in any spelling that `canonical_flags` takes; or `--help`.
        prog: the command so far, for messages.
        others: further flags of the command, for suggestions.

    Raises:
        SettingsError: an unknown flag, with the nearest names, or an invalid value.
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
        metadata = {field.name: field.metadata for field in fields(info.type)}
        if not isinstance(spec, StructConstructorSpec) or not any(data.get("registry") for data in metadata.values()):
            return None
        return replace(spec, fields=tuple(_with_choices(field, metadata[field.name]) for field in spec.fields))

    return rules


def _with_choices(field: "StructFieldSpec", metadata: Mapping[str, Any]) -> "StructFieldSpec":
    registry: Registry[Any] | None = metadata.get("registry")
    if registry is None:
        return field
    if registry.families():  # some names contain a number; the settings class checks them
        from tyro.conf import arg

        forms = [*(() if field.type is str else ("None",)), *registry.names(), *registry.families()]
        kind: Any = Annotated[field.type, arg(metavar=f"{{{','.join(forms)}}}")]
        return replace(field, type=kind)
    choices: Any = Literal[(*metadata["other_values"], *registry.names())]
    return replace(field, type=choices if field.type is str else choices | None)


def is_help_command(argv: Sequence[str]) -> bool:
    """Whether the first argument asks for help."""
    return has_help_flag(argv[:1])


def has_help_flag(argv: Sequence[str]) -> bool:
    """Whether any argument asks for help."""
    return "-h" in argv or "--help" in argv


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
    from jobs.config_file import expand_config_file, settings_selector  # import the steps, which `slick --help` omits
    from jobs.presets import STEP_PRESETS

    prog = f"slick {step}"
    selector = settings_selector(step) if presets is None else None
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
    flags = expand_config_file(rest, preset(), prog, selector)
    run(out, parse_config(preset(), flags, prog, ("out", "config")))
