"""Flags of a command line: other spellings of a flag, the nearest name to a wrong one, one message of what is wrong.

Of a settings class, the flag of the field `y` of the field `x` is `--x.y`. A switch, a field of type bool, is turned on
by `--x.y` and off by `--x.no-y`.
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
"""Flags of earlier versions, by the last part of their name, that scripts may still use."""
_MIN_SIMILARITY = 0.7
"""Similarity, of 0 to 1, from which a name is suggested."""
_TYPE_NAMES = {
    "INT": "an integer",
    "FLOAT": "a number",
    "STR": "a text",
    "{None}": "None",
    "{True,False}": "True or False",
}
"""Tyro's words for the types of values."""


def flag_names(settings: type) -> dict[str, bool]:
    """Flags of a settings class without `--`, and whether each is a switch."""
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
    """Arguments with every flag spelled as the settings have it.

    `--no-x.y` is `--x.no-y`, an underscore is a hyphen, and a flag's old name is its name.

    Args:
        argv: flags and their values.
        names: as of `flag_names`.
        prog: the command so far, for messages.
        others: flags that the command takes beside those of the settings, to be suggested too.

    Raises:
        SettingsError: a flag that there is not; the message has the nearest ones.
    """
    words, unknown = [], []
    for word in argv:
        if not word.startswith("--") or word == "--":
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        canonical = _canonical_name(name, names)
        if canonical is None:
            unknown.append(name)
        words.append(f"--{canonical or name}{equals}{value}")
    if unknown:
        every = [*names, *(negated_flag(name) for name, is_switch in names.items() if is_switch), *others]
        raise unknown_flags_error(unknown, every, prog)
    return words


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
    """The flag that turns a switch off: `x.no-y` of `x.y`."""
    before, dot, last = name.rpartition(".")
    return f"{before}{dot}no-{last}"


def flag_name(word: str) -> str:
    """The name of the flag that a word of the command line is; empty where it is a value."""
    return word[2:].partition("=")[0] if word.startswith("--") else ""


def pop_switch(argv: Sequence[str], flag: str) -> tuple[bool, list[str]]:
    """Whether a switch such as `--dry-run` is among the arguments, and those that remain."""
    rest = [word for word in argv if word.replace("_", "-") != flag]
    return len(rest) < len(argv), rest


def unknown_flags_error(unknown: Sequence[str], names: Iterable[str], prog: str) -> SettingsError:
    """The error for flags that a command does not take."""
    names = list(names)
    parts = [f"--{name}{did_you_mean(name, names, mark='--')}" for name in unknown]
    return SettingsError(f"{prog} has no flag {', nor '.join(parts)}{_see_help(prog)}")


def _see_help(prog: str) -> str:
    return f"; all flags: `{prog} --help`"


def did_you_mean(wrong: str, names: Iterable[str], mark: str = "") -> str:
    """In brackets, a question that names the nearest names, with `mark` before each; empty if none is near."""
    near = closest_names(wrong, names)
    return f" (did you mean {' or '.join(mark + name for name in near)}?)" if near else ""


def closest_names(wrong: str, names: Iterable[str]) -> list[str]:
    """At most three of the names, the most similar first.

    Names that agree in their last part come before others: who writes `--learning-rate` means one of those.
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


def _similarity(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def rejected_value_error(output: str, argv: Sequence[str], prog: str) -> SettingsError:
    """The error for values that tyro refuses.

    Args:
        output: what tyro printed: a box with a sentence, the flag with the type of its values, and its description.
        argv: canonical arguments.
        prog: the command so far.
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ ") for line in output.splitlines()]
    # The first line is a title; parts are separated by lines, of hyphens where the terminal takes no other characters.
    parts = [list(part) for is_rule, part in groupby(lines[1:], lambda line: set(line) <= set("─-")) if not is_rule]
    sentence, description = " ".join(parts[0]) if parts else "", "\n".join(line for part in parts[1:] for line in part)
    if extra := re.match(r"Unrecognized options: (.*)", sentence):
        return SettingsError(f"{prog} does not take {extra[1]!r}{_see_help(prog)}")
    flag = re.search(r"--[\w.-]*\w", sentence)
    if flag is None:
        return SettingsError(f"{prog}: {sentence or 'the flags cannot be read'}{_see_help(prog)}")
    value = _flag_value(flag[0], argv)
    if choice := re.search(r"Expected one of \((.*)\)", sentence):
        choices = [word.strip().strip("'\"") for word in choice[1].split(",") if word.strip()]
        wanted, meant = " or ".join(choices), did_you_mean(value, choices)
    else:
        wanted, meant = _expected_values(flag[0], sentence, description), ""
    got = repr(value) if value else "nothing"
    return SettingsError(f"{prog}: {flag[0]} takes {wanted}, got {got}{meant}{_see_help(prog)}")


def _expected_values(flag: str, sentence: str, description: str) -> str:
    """The type of a flag's values, or at least their number, in words."""
    if kind := re.search(rf"(?m)^{re.escape(flag)} (.+)$", description):
        several = re.fullmatch(r"\[(\S+) \[\1 \.\.\.\]\]", kind[1])
        types = " or ".join(_TYPE_NAMES.get(part, part) for part in (several or kind)[1].split("|"))
        return f"{types}, once or more" if several else types
    num = re.search(r"Expected (\d+) values", sentence)  # where a value is missing there is no description
    return f"{num[1]} values" if num and num[1] != "1" else "a value"


def _flag_value(flag: str, argv: Sequence[str]) -> str:
    """What follows a flag."""
    for place, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == flag:
            following = [value] if equals else argv[place + 1 :]
            end = next((i for i, other in enumerate(following) if other.startswith("--")), len(following))
            return " ".join(following[:end])
    return ""


class FlagParser(argparse.ArgumentParser):
    """For commands without a settings class: flags by their whole name, and one message for what is wrong."""

    def __init__(self, prog: str, names: Iterable[str] = ()) -> None:
        """Without flags.

        Args:
            prog: the command so far, for messages.
            names: flags that the command takes beside those of this parser, to be suggested too.
        """
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self._names: list[str] = list(names)

    def add_flag(self, flag: str, **settings: Any) -> None:
        """As `add_argument`, for one flag."""
        self._names.append(flag.removeprefix("--"))
        self.add_argument(flag, **settings)

    def parse_known(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Values of the parser's own flags, and the arguments that remain.

        Raises:
            SettingsError: a flag lacks its value, or the value is of another type.
        """
        return self.parse_known_args([self._normalize_flag(word) for word in argv])

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Values of the parser's flags, which must be all there are.

        Raises:
            SettingsError: as `take`, or there are other flags.
        """
        known, rest = self.parse_known(argv)
        unknown = [name for name in map(flag_name, rest) if name]
        if unknown:
            raise unknown_flags_error(unknown, self._names, self.prog)
        if rest:
            raise SettingsError(f"{self.prog} does not take {' '.join(rest)!r}{_see_help(self.prog)}")
        return known

    def _normalize_flag(self, word: str) -> str:
        name, equals, value = word.partition("=")
        spelled = name.replace("_", "-")
        return f"{spelled}{equals}{value}" if spelled.removeprefix("--") in self._names else word

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and ending the process."""
        message = message.removeprefix("argument ")
        raise SettingsError(f"{self.prog}: {message}{_see_help(self.prog)}")
