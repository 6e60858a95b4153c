"""Chat messages and examples: a conversation is checked, divided at its assistant turns, and edited. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slick.datasets.columns import RowError, check_text
from slick.datasets.rows import json_type
from slick.types import Message

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt of one or more messages, and the text that a model learns to answer."""

    messages: tuple[Message, ...]
    """Everything before the target: optionally a system message, earlier turns, and last a user message."""
    target: str
    accepted: tuple[str, ...]
    """All correct answers, the target first."""
    turn: int
    """Index of the target among the assistant turns of the row."""


_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot"), "assistant"),
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response")
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True, slots=True)
class _ChatKeys:
    """The keys of a message: `role` and `content`, or `from` and `value`."""

    role: str
    content: str


_OPENAI_KEYS, _SHAREGPT_KEYS = _ChatKeys("role", "content"), _ChatKeys("from", "value")


def _keys(message: Mapping[str, Any]) -> _ChatKeys:
    return _SHAREGPT_KEYS if message.get("from") is not None and message.get("role") is None else _OPENAI_KEYS


def read_role(message: Any, where: str) -> Role:
    """The role of a message. Raises RowError if it has another role, calls a tool, or is not an object."""
    if not isinstance(message, Mapping):
        raise RowError(
            "wrong type",
            f"{where} is {message!r:.80} ({json_type(message)}), expected an object with role and content; correct it",
        )
    role = message.get(_keys(message).role)
    if role in _TOOL_ROLES or any(message.get(key) for key in _TOOL_KEYS):
        raise RowError(
            "tool call", f"{where} calls a tool or holds its result, expected text; leave such rows to other tools"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(
            "unknown role",
            f"{where} has the role {role!r:.40}, expected system, user or assistant (or human, gpt); correct it",
        )
    return _ROLES[role]


def _content(message: Mapping[str, Any], role: Role, where: str) -> str:
    """The text of a message: a string, or a list of text parts, which are joined."""
    content = message.get(_keys(message).content)
    if isinstance(content, list) and content:
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RowError(
                    "not text",
                    f"{where} has a part that is not text ({kind or json_type(part)}), expected only parts "
                    '{"type": "text", "text": "..."}; remove the row',
                )
        content = "".join(part["text"] for part in content)
    if role == "system" and content == "":
        return content
    return read_text(content, "target" if role == "assistant" else "prompt", where)


def read_text(value: Any, kind: str, where: str) -> str:
    """A prompt or target, checked and unchanged.

    Args:
        value: what the row holds.
        kind: `prompt` or `target`; errors are counted by it.
        where: the place in the row, for messages.

    Raises:
        RowError: it is empty, blank, or not usable text.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"empty {kind}", f"{where} is empty ({value!r:.40}), expected text; fill it in or remove it")
    return check_text(value, where)


def optional_text(row: Mapping[str, Any], column: str) -> str:
    """The text of a column, which may be blank; empty if the row has none. Raises RowError if it is not text."""
    value = row.get(column)
    return "" if value is None or value == "" else check_text(value, column, allow_blank=True)


def system_messages(row: Mapping[str, Any], column: str) -> list[Message]:
    """The system message of a column, as a list of one; empty if there is none. Raises RowError if it is not text."""
    text = optional_text(row, column)
    return [Message(role="system", content=text)] if text else []


def single_turn(prompt: str, target: str, *, accepted: tuple[str, ...] = (), system: Sequence[Message] = ()) -> Example:
    """The example of a row with one prompt and one target; `accepted` is the target alone by default."""
    messages = (*system, Message(role="user", content=prompt))
    return Example(messages=messages, target=target, accepted=accepted or (target,), turn=0)


def refuse_tools(row: Mapping[str, Any]) -> None:
    """Raise RowError for a row that defines tools, because its messages lack the tool descriptions of the prompt."""
    if row.get("tools") not in (None, "", "[]", []):
        raise RowError("tool call", "the row defines tools, expected a conversation without tools; remove the row")


def chat_examples(
    messages: Sequence[Any], column: str, *, system: Sequence[Message] = (), first_target: int = 0
) -> list[Example]:
    """One example for each assistant message that is learned.

    Args:
        messages: as they are in the row.
        column: for messages of errors.
        system: the system message of another column; empty for none.
        first_target: messages before this index are context only.

    Raises:
        RowError: roles are unknown or out of order, a text is empty, or nothing is learned.
    """
    context, examples = list(system), list[Example]()
    turn = 0
    for i, message in enumerate(messages):
        where = f"message {i + 1} of {column}"
        role = read_role(message, where)
        previous = context[-1].role if context else None
        _check_order(role, previous, where)
        content = _content(message, role, where)
        if role == "assistant":
            if i >= first_target and message.get("weight") != 0:  # OpenAI: messages of weight 0 are not learned
                examples.append(Example(messages=tuple(context), target=content, accepted=(content,), turn=turn))
            turn += 1
        context.append(Message(role=role, content=content))
    if not turn:
        raise RowError(
            "no assistant turn", f"{column} has no assistant message, expected at least one; add it or remove the row"
        )
    if context[-1].role != "assistant":
        raise RowError(
            "no answer to the last turn",
            f"{column} ends with a user message, expected an assistant message last; add the answer or remove it",
        )
    if not examples:
        raise RowError("nothing learned", f"all assistant messages of {column} have weight 0, expected one with 1")
    return examples


def _check_order(role: str, previous: str | None, where: str) -> None:
    expected = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}[previous]
    if role not in expected:
        raise RowError(
            "roles out of order",
            f"{where} has the role {role} {f'after {previous}' if previous else 'at the beginning'}, expected "
            f"{' or '.join(expected)}: a system message first if any, then user and assistant in turn; correct the row",
        )


def replace_in_chat(messages: Sequence[Any], turn: int, new_target: str) -> list[Any]:
    """A copy of a list of messages in which the content of one assistant message is replaced.

    Args:
        messages: see `chat_examples`.
        turn: `Example.turn`.
        new_target: the new content. A list of text parts becomes a list of one.
    """
    copies = list(messages)
    targets = [i for i, message in enumerate(copies) if _ROLES.get(message.get(_keys(message).role)) == "assistant"]
    message = dict(copies[targets[turn]])
    key = _keys(message).content
    is_parts = isinstance(message[key], list)
    message[key] = [{**message[key][0], "text": new_target}] if is_parts else new_target
    copies[targets[turn]] = message
    return copies


def check_messages(value: Any, column: str) -> list[Any]:
    """The value of a column if it is a list that is not empty. Raises RowError otherwise."""
    if not isinstance(value, list) or not value:
        raise RowError(
            "wrong type", f"{column} is {value!r:.80} ({json_type(value)}), expected a list of messages; correct it"
        )
    return value
