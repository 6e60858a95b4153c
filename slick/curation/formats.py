"""Formats of fine-tuning rows: chat messages, prompt and completion, Alpaca, ShareGPT, question and answers. Pure.

A format turns a row into examples, one for each assistant turn, and replaces the target of one of them. A row that
does not follow the format raises RowError; the texts of an example are exactly those of the row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slick.curation.chat import (
    Example,
    chat_examples,
    check_messages,
    optional_text,
    read_role,
    read_text,
    refuse_tools,
    replace_in_chat,
    single_turn,
    system_messages,
)
from slick.datasets.columns import ANSWER_COLUMNS, RowError, list_answers, replace_answers
from slick.datasets.rows import MAX_COLUMNS_LISTED, json_type
from slick.errors import DataError, SettingsError
from slick.registry import Registry
from slick.types import Message

__all__ = ["ROW_FORMATS", "ColumnNames", "Example", "Message", "RowError", "RowFormat", "detect_format"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """The columns of a file without a known format, from `--prompt-column`, `--target-column`, `--system-column`."""

    prompt: str = ""
    target: str = ""
    system: str = ""
    """Empty: rows have no system message."""


class RowFormat(ABC):
    """How rows of a fine-tuning file hold prompts and targets."""

    name: str
    required: tuple[str, ...]
    """Columns that every row has."""
    optional: tuple[str, ...] = ()
    """Columns that are used where a row has them."""

    def __init__(self, names: ColumnNames) -> None:
        """A format.

        Args:
            names: the columns that the user named; only the format `columns` uses them.
        """
        self._names = names

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are used."""
        return (*self.required, *self.optional)

    def matches(self, columns: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a file may have this format.

        Args:
            columns: all columns of the file.
            rows: its first rows. One of them must have values of the right type; without rows, columns suffice.
        """
        return set(self.required) <= set(columns) and (not rows or any(map(self.is_typed, rows)))

    def parse(self, row: Mapping[str, Any]) -> list[Example]:
        """The examples of a row, in the order of its assistant turns; at least one.

        Raises:
            RowError: the row does not follow the format.
        """
        for column in self.required:
            if row.get(column) is None:
                raise self._missing_error(row, column)
        return self.examples(row)

    @abstractmethod
    def replace_target(self, row: Mapping[str, Any], turn: int, new_target: str) -> dict[str, Any]:
        """A copy of the row in which one target is replaced; every other value is the same object.

        Args:
            row: a row that `parse` accepts.
            turn: `Example.turn`.
            new_target: the text that replaces the target.
        """

    def is_typed(self, row: Mapping[str, Any]) -> bool:
        """Whether the required columns of a row hold values of the right types: text, unless a format differs."""
        return all(isinstance(row.get(column), str) for column in self.required)

    @abstractmethod
    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """The examples of a row in which no required column is null. Raises RowError; see `parse`."""

    def _missing_error(self, row: Mapping[str, Any], column: str) -> RowError:
        names = [name for name, other in _detectable() if name != self.name and other.matches(row, [row])]
        if names:
            return RowError(
                "other format",
                f"found a row of the format {names[0]}, expected {self.name} with the column {column}, as the file "
                "has; convert the row, or curate rows of each format as a file of their own",
            )
        return RowError(f"no {column}", f"no {column}, expected it in every row; fill it in or remove the row")


ROW_FORMATS: Registry[Callable[[ColumnNames], RowFormat]] = Registry("row format")
"""Formats by the name for `--format`. Each is made from the columns that the user named."""


def detect_format(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str = "",
    names: ColumnNames | None = None,
) -> RowFormat:
    """The format of a file.

    Args:
        columns: all columns of the file.
        rows: its first rows.
        name: a registered format; empty to detect it.
        names: the columns that the user named, which select the format `columns`.

    Raises:
        DataError: no format or more than one matches, or a named column is missing.
        SettingsError: there is no format of that name, or only one of two columns is named.
    """
    names = names or ColumnNames()
    if any((names.prompt, names.target, names.system)) and not name:
        name = ColumnsFormat.name
    if name:
        row_format = ROW_FORMATS.get(name)(names)
        _check_names(names, name)
        if missing := [column for column in row_format.required if column not in columns]:
            raise DataError(
                f"the data has no column {', '.join(missing)}, which {_options(names, name)} needs; found "
                f"{_list_columns(columns, rows)}; {_EXPECTED}"
            )
        return row_format
    matching = [row_format for _, row_format in _detectable() if row_format.matches(columns, rows)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        found = ", ".join(f"{match.name} ({', '.join(match.required)})" for match in matching)
        raise DataError(
            f"the data matches {len(matching)} formats: {found}; expected one: choose with "
            f"{' or '.join(f'--format {match.name}' for match in matching)}, or name columns with --prompt-column and "
            "--target-column"
        )
    raise DataError(f"the format of the data is not known: found {_list_columns(columns, rows)}; {_EXPECTED}")


_EXPECTED = (
    "expected messages (messages), prompt_completion (prompt, completion), alpaca (instruction, output), sharegpt "
    "(conversations) or qa (question, and answers or answer): name one with --format, rename columns, or name any two "
    "columns with --prompt-column and --target-column"
)


def _detectable() -> list[tuple[str, RowFormat]]:
    """All formats that need no columns from the user."""
    return [(name, make(ColumnNames())) for name, make in ROW_FORMATS.items() if name != ColumnsFormat.name]


def _check_names(names: ColumnNames, name: str) -> None:
    if name != ColumnsFormat.name:
        if any((names.prompt, names.target, names.system)):
            raise SettingsError(
                f"--format {name} has its own columns, but --prompt-column, --target-column or --system-column is "
                "given; leave out --format or the columns"
            )
        return
    if not names.prompt or not names.target:
        raise SettingsError(
            f"found --prompt-column {names.prompt!r} and --target-column {names.target!r}, expected the names of two "
            "columns; give both"
        )
    given = [column for column in (names.prompt, names.target, names.system) if column]
    if len(set(given)) < len(given):
        raise SettingsError(
            f"--prompt-column, --target-column and --system-column name {', '.join(given)}, expected different columns"
        )


def _options(names: ColumnNames, name: str) -> str:
    if name != ColumnsFormat.name:
        return f"--format {name}"
    system = f" --system-column {names.system}" if names.system else ""
    return f"--prompt-column {names.prompt} --target-column {names.target}{system}"


def _list_columns(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Names of columns with the types of their first values."""

    def describe(column: str) -> str:
        value = next((row[column] for row in rows if row.get(column) is not None), None)
        return column if value is None else f"{column} ({json_type(value)})"

    more = len(columns) - MAX_COLUMNS_LISTED
    listed = ", ".join(map(describe, columns[:MAX_COLUMNS_LISTED])) or "no column"
    return listed + (f" and {more} more" if more > 0 else "")


class _ChatFormat(RowFormat):
    """One column that holds a list of messages."""

    def is_typed(self, row: Mapping[str, Any]) -> bool:
        """See `RowFormat.is_typed`."""
        return isinstance(row.get(self.required[0]), list)

    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """See `RowFormat.examples`."""
        refuse_tools(row)
        column = self.required[0]
        system = system_messages(row, "system") if "system" in self.optional else []
        return chat_examples(check_messages(row[column], column), column, system=system)

    def replace_target(self, row: Mapping[str, Any], turn: int, new_target: str) -> dict[str, Any]:
        """A copy of the row with another assistant message; see `RowFormat.replace_target`."""
        column = self.required[0]
        return {**row, column: replace_in_chat(row[column], turn, new_target)}


@ROW_FORMATS.register("messages")
class MessagesFormat(_ChatFormat):
    """Chat messages with `role` and `content`, as OpenAI and TRL have them."""

    name = "messages"
    required = ("messages",)
    optional = ("tools",)


@ROW_FORMATS.register("sharegpt")
class ShareGptFormat(_ChatFormat):
    """Conversations with `from` and `value`, as ShareGPT, axolotl and LLaMA-Factory have them."""

    name = "sharegpt"
    required = ("conversations",)
    optional = ("system", "tools")


@ROW_FORMATS.register("prompt_completion")
class PromptCompletionFormat(RowFormat):
    """A prompt and its completion: two texts, or two lists of messages as TRL has them."""

    name = "prompt_completion"
    required = ("prompt", "completion")
    optional = ("tools",)

    def is_typed(self, row: Mapping[str, Any]) -> bool:
        """See `RowFormat.is_typed`."""
        return all(isinstance(row.get(column), str | list) for column in self.required)

    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """See `RowFormat.examples`."""
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) != isinstance(completion, list):
            raise RowError(
                "wrong type",
                f"prompt is a {json_type(prompt)} and completion a {json_type(completion)}, expected two strings or "
                "two lists of messages; convert one of them",
            )
        if not isinstance(prompt, list):
            return [single_turn(read_text(prompt, "prompt", "prompt"), read_text(completion, "target", "completion"))]
        refuse_tools(row)
        check_messages(prompt, "prompt")
        check_messages(completion, "completion")
        if (role := read_role(prompt[-1], "the last message of prompt")) != "user":
            raise RowError(
                "roles out of order",
                f"the last message of prompt has the role {role}, expected user; move assistant messages to completion",
            )
        return chat_examples([*prompt, *completion], "prompt and completion", first_target=len(prompt))

    def replace_target(self, row: Mapping[str, Any], turn: int, new_target: str) -> dict[str, Any]:
        """A copy of the row with another completion; see `RowFormat.replace_target`."""
        if not isinstance(row["completion"], list):
            return {**row, "completion": new_target}
        messages = replace_in_chat([*row["prompt"], *row["completion"]], turn, new_target)
        return {**row, "completion": messages[len(row["prompt"]) :]}


@ROW_FORMATS.register("alpaca")
class AlpacaFormat(RowFormat):
    """Instruction, optional input, and output, with the `system` and `history` of LLaMA-Factory.

    An input that is not empty follows the instruction after a newline.
    """

    name = "alpaca"
    required = ("instruction", "output")
    optional = ("input", "system", "history")

    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """See `RowFormat.examples`."""
        texts = [optional_text(row, column) for column in ("instruction", "input")]
        prompt = read_text("\n".join(text for text in texts if text.strip()), "prompt", "instruction")
        target = read_text(row["output"], "target", "output")
        context = system_messages(row, "system")
        history = row.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise RowError(
                "wrong type",
                f"history is {history!r:.80}, expected a list of [user message, assistant message]; correct it",
            )
        examples: list[Example] = []
        for turn, (question, answer) in enumerate([*history, (prompt, target)]):
            question = read_text(question, "prompt", f"turn {turn + 1} of history")
            answer = read_text(answer, "target", f"turn {turn + 1} of history")
            context.append(Message(role="user", content=question))
            examples.append(Example(messages=tuple(context), target=answer, accepted=(answer,), turn=turn))
            context.append(Message(role="assistant", content=answer))
        return examples

    def replace_target(self, row: Mapping[str, Any], turn: int, new_target: str) -> dict[str, Any]:
        """A copy of the row with another output or answer of the history; see `RowFormat.replace_target`."""
        history = list(row.get("history") or [])
        if turn == len(history):
            return {**row, "output": new_target}
        history[turn] = [history[turn][0], new_target]
        return {**row, "history": history}


@ROW_FORMATS.register("qa")
class QuestionFormat(RowFormat):
    """A question and its accepted answers, the columns of `slick.datasets`. The first answer is the target."""

    name = "qa"
    required = ("question",)
    optional = ANSWER_COLUMNS

    def matches(self, columns: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether there are questions and a column of answers; see `RowFormat.matches`."""
        return bool(set(ANSWER_COLUMNS) & set(columns)) and super().matches(columns, rows)

    def is_typed(self, row: Mapping[str, Any]) -> bool:
        """See `RowFormat.is_typed`."""
        answers = (row.get(column) for column in ANSWER_COLUMNS)
        return isinstance(row.get("question"), str) and any(isinstance(value, str | list) for value in answers)

    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """See `RowFormat.examples`."""
        question = read_text(row["question"], "prompt", "question")
        answers = tuple(read_text(answer, "target", "answer") for answer in list_answers(row))
        return [single_turn(question, answers[0], accepted=answers)]

    def replace_target(self, row: Mapping[str, Any], turn: int, new_target: str) -> dict[str, Any]:
        """A copy of the row in which the new target is the only accepted answer, in every column of answers."""
        return {**row, **replace_answers(row, new_target)}


@ROW_FORMATS.register("columns")
class ColumnsFormat(RowFormat):
    """Any two columns of text, and optionally a third with system messages."""

    name = "columns"

    def __init__(self, names: ColumnNames) -> None:
        super().__init__(names)
        self.required = (names.prompt, names.target)
        self.optional = (names.system,) if names.system else ()

    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """See `RowFormat.examples`."""
        prompt = read_text(row[self._names.prompt], "prompt", self._names.prompt)
        target = read_text(row[self._names.target], "target", self._names.target)
        system = system_messages(row, self._names.system) if self._names.system else []
        return [single_turn(prompt, target, system=system)]

    def replace_target(self, row: Mapping[str, Any], turn: int, new_target: str) -> dict[str, Any]:
        """A copy of the row with another target; see `RowFormat.replace_target`."""
        return {**row, self._names.target: new_target}
