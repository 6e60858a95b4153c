"""Flags of a command line: accepted spellings, suggestions for unknown names, and error messages.

The flag of a settings field `y` inside the field `x` is `--x.y`. A switch is a field of type bool: `--x.y` sets it to
True, `--x.no-y` to False.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any, NoReturn, get_type_hints

from slick.errors import SettingsError

RENAMED_FLAGS = {"source": "questions"}
"""Last part of a flag's name in earlier versions -> its present name."""
_MIN_SIMILARITY = 0.7
"""Least similarity, in [0, 1], of a suggested name."""
_TYPE_NAMES = {
    "INT": "an integer",
    "FLOAT": "a number",
    "STR": "a text",
    "{None}": "None",
    "{True,False}": "True or False",
}
"""Tyro's name of a type -> the words of our messages."""


def flag_names(settings: type) -> dict[str, bool]:
    """Flags of a settings class, without `--` -> whether it is a switch."""
    hints = get_type_hints(settings)
    names: dict[str, bool] = {}
    for field in fields(settings):
        name, hint = field.name.replace("_", "-"), hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            names |= {f"{name}.{inner}": is_switch for inner, is_switch in flag_names(hint).items()}
        else:
            names[name] = hint is bool
    return names


def canonical_flags(argv: Sequence[str], names: Mapping[str, bool], prog: str, others: Iterable[str] = ()) -> list[str]:
    """Arguments with every flag in its canonical spelling.

    Also accepted are `--no-x.y` for `--x.no-y`, underscores for hyphens, and names of earlier versions.

    Args:
        argv: flags and their values.
        names: the result of `flag_names`.
        prog: the command so far, for messages.
        others: further flags of the command, for suggestions.

    Raises:
        SettingsError: an unknown flag; the message has the nearest names.
    """
    arguments, unknown = [], []
    for argument in argv:
        if not argument.startswith("--") or argument == "--":
            arguments.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        canonical = _canonical_name(name, names)
        if canonical is None:
            unknown.append(name)
        arguments.append(f"--{canonical or name}{equals}{value}")
    if unknown:
        negated = (negated_flag(name) for name, is_switch in names.items() if is_switch)
        raise unknown_flags_error(unknown, [*names, *negated, *others], prog)
    return arguments


def _canonical_name(name: str, names: Mapping[str, bool]) -> str | None:
    name = name.replace("_", "-")
    before, dot, last = name.rpartition(".")
    renamed = f"{before}{dot}{RENAMED_FLAGS.get(last, last)}"
    if name in names or renamed in names:
        return name if name in names else renamed
    for positive in (name.removeprefix("no-"), f"{before}{dot}{last.removeprefix('no-')}"):
        if positive != name and names.get(positive):
            return negated_flag(positive)
    return None


def negated_flag(name: str) -> str:
    """The flag that sets a switch to False: `x.no-y` for `x.y`."""
    before, dot, last = name.rpartition(".")
    return f"{before}{dot}no-{last}"


def flag_name(argument: str) -> str:
    """The name of the flag that an argument is; empty if it is a value."""
    return argument[2:].partition("=")[0] if argument.startswith("--") else ""


def pop_switch(argv: Sequence[str], flag: str) -> tuple[bool, list[str]]:
    """Whether the arguments have a switch such as `--dry-run`, and the remaining arguments."""
    rest = [argument for argument in argv if argument.replace("_", "-") != flag]
    return len(rest) < len(argv), rest


def unknown_flags_error(unknown: Sequence[str], names: Iterable[str], prog: str) -> SettingsError:
    """The error for flags that a command does not have."""
    names = list(names)
    parts = [f"--{name}{did_you_mean(name, names, mark='--')}" for name in unknown]
    return SettingsError(f"{prog} has no flag {', nor '.join(parts)}{_see_help(prog)}")


def _see_help(prog: str) -> str:
    return f"; all flags: `{prog} --help`"


def did_you_mean(wrong: str, names: Iterable[str], mark: str = "") -> str:
    """` (did you mean A or B?)` with the nearest names, `mark` before each; empty if no name is near."""
    near = closest_names(wrong, names)
    return f" (did you mean {' or '.join(mark + name for name in near)}?)" if near else ""


def closest_names(wrong: str, names: Iterable[str]) -> list[str]:
    """At most three names, the most similar first.

    Names with the same last part come first: `--learning-rate` suggests all flags that end in `learning-rate`.
    """
    wrong = wrong.replace("_", "-")
    last = _last_part(wrong)
    scores: dict[str, float] = {}
    for name in names:
        whole = _similarity(wrong, name)
        part = 1.0 if _last_part(name) == last else 0.95 * _similarity(last, _last_part(name))
        scores[name] = part + whole / 100 if "." in wrong else part
        scores[name] = max(scores[name], whole)
    best = max(scores.values(), default=0.0)
    near = [name for name, score in scores.items() if score >= max(_MIN_SIMILARITY, best - 0.001)]
    return sorted(near, key=lambda name: (-scores[name], name))[:3]


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _similarity(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other).ratio()


def rejected_value_error(output: str, argv: Sequence[str], prog: str) -> SettingsError:
    """The error for values that tyro rejects.

    Args:
        output: printed by tyro: a box with a sentence, the flag with the type of its values, and its description.
        argv: canonical arguments.
        prog: the command so far.
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ ") for line in output.splitlines()]
    # The first line is a title. Rules separate the parts; they are hyphens if the terminal has no box characters.
    parts = [list(part) for is_rule, part in groupby(lines[1:], lambda line: set(line) <= set("─-")) if not is_rule]
    sentence, description = " ".join(parts[0]) if parts else "", "\n".join(line for part in parts[1:] for line in part)
    if extra := re.match(r"Unrecognized options: (.*)", sentence):
        return SettingsError(f"{prog} does not take {extra[1]!r}{_see_help(prog)}")
    flag = re.search(r"--[\w.-]*\w", sentence)
    if flag is None:
        return SettingsError(f"{prog}: {sentence or 'the flags cannot be parsed'}{_see_help(prog)}")
    value = _flag_value(flag[0], argv)
    if choice := re.search(r"Expected one of \((.*)\)", sentence):
        choices = [name.strip().strip("'\"") for name in choice[1].split(",") if name.strip()]
        expected, hint = " or ".join(choices), did_you_mean(value, choices)
    else:
        expected, hint = _expected_values(flag[0], sentence, description), ""
    got = repr(value) if value else "nothing"
    return SettingsError(f"{prog}: {flag[0]} takes {expected}, got {got}{hint}{_see_help(prog)}")


def _expected_values(flag: str, sentence: str, description: str) -> str:
    """The type of a flag's values, or their number if tyro prints no type."""
    if kind := re.search(rf"(?m)^{re.escape(flag)} (.+)$", description):
        several = re.fullmatch(r"\[(\S+) \[\1 \.\.\.\]\]", kind[1])
        types = " or ".join(_TYPE_NAMES.get(part, part) for part in (several or kind)[1].split("|"))
        return f"{types}, once or more" if several else types
    num = re.search(r"Expected (\d+) values", sentence)  # tyro prints no description if a value is missing
    return f"{num[1]} values" if num and num[1] != "1" else "a value"


def _flag_value(flag: str, argv: Sequence[str]) -> str:
    """The values of a flag in the command line, as text."""
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == flag:
            following = [value] if equals else argv[index + 1 :]
            end = next((i for i, other in enumerate(following) if other.startswith("--")), len(following))
            return " ".join(following[:end])
    return ""


class FlagParser(argparse.ArgumentParser):
    """The parser of commands without a settings class: no abbreviated flags; errors are `SettingsError`."""

    def __init__(self, prog: str, names: Iterable[str] = ()) -> None:
        """A parser without flags.

        Args:
            prog: the command so far, for messages.
            names: flags of the command that this parser does not parse, for suggestions.
        """
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self._names: list[str] = list(names)

    def add_flag(self, flag: str, **settings: Any) -> None:
        """Add a flag; `settings` are those of `add_argument`."""
        self._names.append(flag.removeprefix("--"))
        self.add_argument(flag, **settings)

    def parse_known(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values of the parser's flags, and the remaining arguments.

        Raises:
            SettingsError: a flag has no value, or one of another type.
        """
        return self.parse_known_args([self._normalize_flag(argument) for argument in argv])

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of the parser's flags; other arguments are an error.

        Raises:
            SettingsError: see `parse_known`, or there are other arguments.
        """
        known, rest = self.parse_known(argv)
        unknown = [name for name in map(flag_name, rest) if name]
        if unknown:
            raise unknown_flags_error(unknown, self._names, self.prog)
        if rest:
            raise SettingsError(f"{self.prog} does not take {' '.join(rest)!r}{_see_help(self.prog)}")
        return known

    def _normalize_flag(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        return f"{name}{equals}{value}" if name.removeprefix("--") in self._names else argument

    def error(self, message: str) -> NoReturn:
        """Raise a SettingsError; argparse would print the usage and exit."""
        message = message.removeprefix("argument ")
        raise SettingsError(f"{self.prog}: {message}{_see_help(self.prog)}")
