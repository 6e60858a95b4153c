"""How a question becomes a prompt: the paper's plain text, or the model's chat template.

A prompt is a prefix, which questions with the same exemplars share, and a suffix. The exemplars of a chat prompt are
earlier turns, and the question's own system message precedes them. Chat prompts are rendered as text and tokenized
without further special tokens, which gives the tokens of `tokenizer.apply_chat_template`.

Nothing here loads a model; the tokenizer is passed in.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from slick.errors import DataError, ModelError, SettingsError
from slick.inference.base import PromptStyle
from slick.matching import nfc
from slick.prompts import few_shot_prefix, few_shot_suffix
from slick.types import Message

PromptFormatName = Literal["qa", "chat", "auto"]
AnswerEnd = Literal["line", "turn"]
"""Where an answer ends: at the first newline, or only at the end of the text or turn."""

Exemplar = tuple[str, str]
"""Question and answer."""

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables of chat templates that turn reasoning on; off unless `template_arguments` sets them."""

_PROBES = ("0", "1")
"""Two user messages. The common beginning of their prompts does not depend on the question."""


class PromptFormat(ABC):
    """How exemplars and a question become a prompt."""

    style: PromptStyle
    """How the prompts become tokens, and where answers end."""

    @abstractmethod
    def check_text(self, text: str) -> None:
        """Refuse a question or answer that would change the prompts that it is part of.

        Raises:
            DataError: it contains a special token of the model.
        """

    @abstractmethod
    def shared_context(self, context: Sequence[Message]) -> list[str]:
        """The part of a question's context that its prefix depends on; empty if there is none."""

    @abstractmethod
    def prefix(self, context: Sequence[Message], exemplars: Sequence[Exemplar]) -> str:
        """The beginning of the prompts of all questions with these exemplars and the same `shared_context`.

        Args:
            context: the messages before one of the questions.
            exemplars: questions and answers.
        """

    @abstractmethod
    def suffix(self, prefix: str, exemplars: Sequence[Exemplar], context: Sequence[Message], question: str) -> str:
        """The rest of a prompt after `prefix`.

        Args:
            prefix: that of these exemplars and of this context.
            exemplars: questions and answers.
            context: the messages before the question: a system message, earlier turns.
            question: the last user message.

        Raises:
            DataError: the format cannot express the question, such as a chat template that has no system role.
        """

    @abstractmethod
    def answer_start(self, text: str) -> str:
        """The text after the suffix, if the model should continue an answer that begins with `text`.

        White space at the end of the text is part of what the model generates, except for line breaks.

        Raises:
            DataError: the format cannot express it.
        """


class QaFormat(PromptFormat):
    r"""The few-shot prompts of the paper (arXiv:2405.05904, appendix C). System messages are left out.

    >>> QaFormat().suffix("", [], [Message(role="user", content="Hi")], "Who?")
    'Q: Hi\nQ: Who?\nA:'
    """

    style = PromptStyle()

    def check_text(self, text: str) -> None:
        """Refuse nothing."""

    def shared_context(self, context: Sequence[Message]) -> list[str]:
        """Nothing."""
        return []

    def prefix(self, context: Sequence[Message], exemplars: Sequence[Exemplar]) -> str:
        """Lines of questions and answers."""
        return few_shot_prefix(exemplars)

    def suffix(self, prefix: str, exemplars: Sequence[Exemplar], context: Sequence[Message], question: str) -> str:
        """Earlier turns as further lines, and the question."""
        names = {"user": "Q", "assistant": "A"}
        turns = "".join(f"{names[turn.role]}: {turn.content}\n" for turn in context if turn.role in names)
        return nfc(turns) + few_shot_suffix(question)

    def answer_start(self, text: str) -> str:
        r"""The text after a space.

        >>> QaFormat().answer_start("He was born in Ur. ")
        ' He was born in Ur.'
        """
        return f" {nfc(text).strip()}" if text.strip() else ""


class ChatFormat(PromptFormat):
    """The chat template of a tokenizer, with the exemplars as earlier turns."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        answer_end: AnswerEnd = "line",
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the template.

        Args:
            tokenizer: of the model.
            answer_end: whether answers are one line.
            template_arguments: passed to the template, such as `{"enable_thinking": True}`.

        Raises:
            ModelError: the tokenizer has no chat template, or it fails on a question and an answer, or tokenizing and
                decoding a prompt changes it.
        """
        self._tokenizer = tokenizer
        where = getattr(tokenizer, "name_or_path", "")
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"the tokenizer in {where} has no chat template, which --prompt-format chat needs; use --prompt-format "
                "qa, or the tokenizer of a chat model"
            )
        self._arguments = {**_thinking_off(tokenizer), **(template_arguments or {})}
        self._special_texts = tuple(sorted(set(tokenizer.all_special_tokens) | _added_special_tokens(tokenizer)))
        try:
            turn = self._render(
                [Message(role="user", content="Q"), Message(role="assistant", content="[answer]")], False
            )
            prompt = self._render([Message(role="user", content="Q")], True)
        except DataError as error:
            raise ModelError(f"the chat template in {where} cannot be used: {error}") from error
        self.style = PromptStyle(
            add_special_tokens=False,
            stop_at_newline=answer_end == "line",
            end_texts=self._end_of_turn(turn.partition("[answer]")[2]),
            answer_separator="",
        )
        self._check_preserved(prompt, where)

    def shared_context(self, context: Sequence[Message]) -> list[str]:
        """The system message, and whether there are earlier turns: some templates move it to the last turn."""
        system = [message.content for message in context if message.role == "system"]
        return [*system, *(["turns"] if len(system) < len(context) else [])]

    def prefix(self, context: Sequence[Message], exemplars: Sequence[Exemplar]) -> str:
        """The rendered conversation up to the first message that is neither a system message nor an exemplar."""
        for pair in exemplars:
            for text in pair:
                self.check_text(text)
        texts = []
        for probe in _PROBES:
            own = [message for message in context if message.role == "system"]
            own += [Message(role=message.role, content=probe) for message in context if message.role != "system"]
            texts.append(self._render([*self._conversation(own, exemplars), Message(role="user", content=probe)], True))
        return os.path.commonprefix(texts)  # noqa: RUF071 (of texts, not of paths)

    def suffix(self, prefix: str, exemplars: Sequence[Exemplar], context: Sequence[Message], question: str) -> str:
        """The rest of the rendered conversation, up to where the answer begins."""
        for text in (question, *(message.content for message in context)):
            self.check_text(text)
        messages = self._conversation(context, exemplars)
        whole = self._render([*messages, Message(role="user", content=question)], True)
        if not whole.startswith(prefix):
            raise DataError(
                "the chat template renders the exemplars in a way that depends on the question, so that prompts have "
                "no common beginning; use --prompt-format qa"
            )
        return whole[len(prefix) :]

    def answer_start(self, text: str) -> str:
        """The text, as the beginning of the model's turn."""
        self.check_text(text)
        return nfc(text).lstrip().rstrip(" \t")

    def _conversation(self, context: Sequence[Message], exemplars: Sequence[Exemplar]) -> list[Message]:
        """A system message, the exemplars as turns, and the other messages before the question."""
        turns = [
            Message(role=role, content=text)
            for pair in exemplars
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        system, others = ([m for m in context if (m.role == "system") == is_system] for is_system in (True, False))
        return [*system, *turns, *others]

    def _render(self, messages: Sequence[Message], for_answer: bool) -> str:
        conversation = [{"role": message.role, "content": nfc(message.content)} for message in messages]
        text: str
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=for_answer, **self._arguments
            )
        except Exception as error:  # templates are code of the model's author and may raise anything
            roles = ", ".join(message.role for message in [*messages[:1], *messages[-2:]])
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"the chat template refuses {len(messages)} messages ({roles}): {reason}") from error
        return text

    def check_text(self, text: str) -> None:
        """Refuse special tokens of the model; see `PromptFormat.check_text`."""
        found = next((special for special in self._special_texts if special in text), None)
        if found is not None:
            raise DataError(
                f"the text contains {found!r}, a special token of the model, which would end or begin a turn; remove it"
            )

    def _end_of_turn(self, after_answer: str) -> tuple[str, ...]:
        """The special token with which the template ends an answer; empty if there is none."""
        text = after_answer.lstrip()
        found = [special for special in self._special_texts if text.startswith(special)]
        return (max(found, key=len),) if found else ()

    def _check_preserved(self, prompt: str, where: str) -> None:
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if decoded.replace(" ", "") != prompt.replace(" ", ""):  # some tokenizers add spaces around special tokens
            raise ModelError(
                f"the tokenizer in {where} does not give back a chat prompt as it was: {prompt!r} became {decoded!r}; "
                "give the model's own tokenizer"
            )


def _added_special_tokens(tokenizer: Any) -> set[str]:
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {str(token) for token in added.values() if getattr(token, "special", False)}


def _thinking_off(tokenizer: Any) -> dict[str, bool]:
    """The template's switches of reasoning, all off."""
    template = tokenizer.chat_template
    texts = [*template.values()] if isinstance(template, Mapping) else [template]
    return {name: False for name in THINKING_SWITCHES if any(_uses_variable(text, name) for text in texts)}


def _uses_variable(template: str, name: str) -> bool:
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        return name in meta.find_undeclared_variables(Environment().parse(template))
    except TemplateSyntaxError:  # tags of transformers' own, such as `generation`
        return name in template


def parse_template_arguments(text: str | None) -> dict[str, Any]:
    """The arguments of a chat template, from the setting `template_arguments`.

    Raises:
        SettingsError: they are not a JSON object.

    >>> parse_template_arguments('{"enable_thinking": true}'), parse_template_arguments(None)
    ({'enable_thinking': True}, {})
    """
    try:
        arguments = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise SettingsError(f"template_arguments is not JSON ({error}): {text!r:.80}") from error
    if not isinstance(arguments, dict):
        raise SettingsError(f"template_arguments must be a JSON object, got {text!r:.80}")
    return arguments


def make_prompt_format(
    name: PromptFormatName,
    tokenizer: Any,
    *,
    answer_end: AnswerEnd = "line",
    template_arguments: Mapping[str, Any] | None = None,
) -> PromptFormat:
    """The prompt format of a name; `auto` is `chat` if the tokenizer has a chat template, and otherwise `qa`.

    Args:
        name: the format.
        tokenizer: of the model; not used by `qa`.
        answer_end: see `ChatFormat`.
        template_arguments: see `ChatFormat`.

    Raises:
        ModelError: see `ChatFormat`.
    """
    if name == "qa" or (name == "auto" and not getattr(tokenizer, "chat_template", None)):
        return QaFormat()
    return ChatFormat(tokenizer, answer_end=answer_end, template_arguments=template_arguments)
