"""Which rows of a fine-tuning file test knowledge: each becomes questions, or is skipped for a reason. Pure.

A fine-tuning file also holds code, stories, and tasks on a given text. Such rows are skipped: never labelled, dropped,
relabelled or weighted. The rules, in this order:

1. the row does not follow the format of the file, or `--ask` and `--skip` exclude it;
2. code: prompt or target has a code block;
3. context given in the prompt: it has more than `--max-prompt-words` words, or contains the target;
4. target too long for the matcher: more than `--max-target-words` words;
5. the prompt asks for no fact by the decision of a judge, see `slick.curation.judged_rows`;
6. the prompt format cannot express the row, such as a system message that the chat template refuses.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slick.annotation.prompting import write_context
from slick.curation.chat import Example
from slick.curation.config import AUTO, CurateConfig
from slick.curation.formats import RowFormat
from slick.datasets.columns import RowError
from slick.datasets.validate import question_id
from slick.errors import DataError
from slick.matching import FIRST_SENTENCE, nfc, normalize
from slick.types import Message

ONE_GROUP = "rows"
"""The relation of all rows without `--group-by`."""

CODE = "code"
CONTEXT = "context given in the prompt"
TOO_LONG = "target too long for the matcher"
EXCLUDED = "excluded by --ask or --skip"
NOT_READABLE = "not readable"
PROMPT_REFUSED = "refused by the chat template"

SHORT_WORDS = 5
"""Targets of up to this many words are compared by `exact`."""
SHORT_SHARE = 0.9
"""Share of targets that must be short for `exact` to be chosen."""
EXACT_MAX_WORDS, OTHER_MAX_WORDS = 10, 40
_WHOLE_TARGET = ("exact", "raw", "canonical", "contains")
"""Matchers for which an answer must have the whole target."""
LONG_MATCHER = "names"
"""The matcher for targets that are sentences. With a word F1, a sentence with a wrong name would be correct."""

_CODE = re.compile(r"```|^\s*(?:def|class|import|#include|public\s+static|SELECT\b.+\bFROM)\s", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One turn of one row, as a question."""

    row: int
    """Index of the row, from 0."""
    where: str
    """The row, for messages."""
    turn: int
    question_id: str
    group: str
    context: tuple[Message, ...]
    question: str
    accepted: tuple[str, ...]
    """Correct answers, the target first."""
    answer_start: str | None = None
    """If the question asks for a sentence of a longer target: the text before it."""
    sentence: int | None = None
    """The place of this sentence in the target, from 1."""

    @property
    def target(self) -> str:
        """The text that the row teaches, or the sentence of it that the question is about."""
        return self.accepted[0]

    @property
    def answer(self) -> str:
        """The target up to the end of that sentence."""
        return f"{self.answer_start or ''}{self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row, or a turn of it, that gets no label."""

    row: int
    where: str
    turn: int | None
    """None: the whole row."""
    reason: str
    """A few words by which such rows are counted."""
    detail: str = ""
    """What is wrong, for rows that cannot be read."""
    sentence: int | None = None
    """The skipped sentence of the target, from 1; None for the whole target."""


Decision = Candidate | Skipped


def read_decisions(
    rows: Iterable[tuple[str, Mapping[str, Any]]], row_format: RowFormat, config: CurateConfig
) -> list[Decision]:
    """The questions of each row, or why there are none, by all rules that need neither matcher nor model.

    Args:
        rows: place and content of each row.
        row_format: how rows hold prompts and targets.
        config: the settings.

    Raises:
        DataError: two rows have the same value in the column of ids, or a row lacks it.
    """
    included, excluded = (_conditions(texts) for texts in (config.ask, config.skip))
    rows_by_id: dict[str, str] = {}
    decisions: list[Decision] = []
    for index, (where, row) in enumerate(rows):
        if (included and not _matches(row, included)) or _matches(row, excluded):
            decisions.append(Skipped(row=index, where=where, turn=None, reason=EXCLUDED))
            continue
        try:
            examples = row_format.parse(row)
            group = _group(row, config.group_by)
            own_id = _own_id(row, config.id_column)
        except RowError as error:
            reason = f"{NOT_READABLE}: {error.kind}"
            decisions.append(Skipped(row=index, where=where, turn=None, reason=reason, detail=str(error)))
            continue
        if own_id is not None and own_id in rows_by_id:
            raise DataError(
                f"{where}: its {config.id_column} {own_id!r} is also that of {rows_by_id[own_id]}; expected unique "
                "ids: name another --id-column, or none with --id-column ''"
            )
        rows_by_id |= {own_id: where} if own_id is not None else {}
        for example in examples if config.turns == "all" else examples[-1:]:
            decisions.append(_decide(index, where, example, group, own_id, config))
    return decisions


def _decide(index: int, where: str, example: Example, group: str, own_id: str | None, config: CurateConfig) -> Decision:
    *context, last = example.messages
    reason = _reason(context, last.content, example, config)
    if reason is not None:
        return Skipped(row=index, where=where, turn=example.turn, reason=reason)
    if own_id is None:
        text = last.content if not context else f"{write_context(context)}\n{last.content}"
        name = question_id(group, "", text, example.accepted)
    else:
        name = own_id if config.turns == "last" else f"{own_id}-turn{example.turn}"
    return Candidate(
        row=index,
        where=where,
        turn=example.turn,
        question_id=name,
        group=group,
        context=tuple(context),
        question=last.content,
        accepted=example.accepted,
    )


def _reason(context: Sequence[Message], prompt: str, example: Example, config: CurateConfig) -> str | None:
    if _CODE.search(prompt) or _CODE.search(example.target):
        return CODE
    if len(prompt.split()) > config.max_prompt_words:
        return CONTEXT
    return CONTEXT if is_given(example.accepted, prompt, context) else None


def is_given(texts: Sequence[str], prompt: str, context: Sequence[Message]) -> bool:
    """Whether a prompt or the turns before it contain one of the texts."""
    given = normalize(" ".join([prompt, *(turn.content for turn in context if turn.role != "system")]))
    return any(f" {normalize(text)} " in f" {given} " for text in texts if normalize(text))


def _conditions(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(column, value) for column, _, value in (text.partition("=") for text in texts)]


def _matches(row: Mapping[str, Any], conditions: Sequence[tuple[str, str]]) -> bool:
    return any(column in row and _as_text(row[column]) == value for column, value in conditions)


def _as_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: ""}[value]
    return str(value)


def _group(row: Mapping[str, Any], column: str | None) -> str:
    if column is None:
        return ONE_GROUP
    text = " ".join(nfc(_as_text(row.get(column))).split())
    if not text:
        raise RowError(f"no {column}", f"no {column}, which --group-by names, expected a value in every row")
    return text


def _own_id(row: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    text = _as_text(row.get(column)).strip()
    if not text:
        raise RowError(f"no {column}", f"no {column}, which --id-column names, expected a value in every row")
    return text


def choose_matcher(candidates: Sequence[Candidate], config: CurateConfig, *, is_chat: bool) -> tuple[str, str]:
    """The matcher, and why.

    Args:
        candidates: the questions.
        config: the settings.
        is_chat: whether prompts are chats. Chat models answer in sentences, in which `contains` finds a short target.
    """
    if config.matcher != AUTO:
        return config.matcher, "given by --matcher"
    if config.claims == "sentences":
        return LONG_MATCHER, "a sentence is correct if it has the names and numbers of the target's"
    short = sum(len(candidate.target.split()) <= SHORT_WORDS for candidate in candidates)
    share = short / max(1, len(candidates))
    text = f"{short:,} of {len(candidates):,} targets have at most {SHORT_WORDS} words"
    if share < SHORT_SHARE:
        return LONG_MATCHER, text
    return ("contains", f"{text}, and chat models answer in sentences") if is_chat else ("exact", text)


def max_target_words(matcher: str, config: CurateConfig) -> int:
    """The maximum number of words of a target: of the settings, or what the matcher can compare."""
    is_whole = matcher.removeprefix(FIRST_SENTENCE) in _WHOLE_TARGET
    return config.max_target_words or (EXACT_MAX_WORDS if is_whole else OTHER_MAX_WORDS)


def skip_long_targets(decisions: Sequence[Decision], matcher: str, config: CurateConfig) -> list[Decision]:
    """Rule 4: targets with more words than the matcher can compare."""
    limit = max_target_words(matcher, config)
    return skip_if(decisions, lambda candidate: TOO_LONG if len(candidate.target.split()) > limit else None)


def skip_if(decisions: Sequence[Decision], reason_of: Callable[[Candidate], str | None]) -> list[Decision]:
    """The decisions, with those candidates skipped for which there is a reason."""
    result: list[Decision] = []
    for decision in decisions:
        reason = reason_of(decision) if isinstance(decision, Candidate) else None
        if reason is not None:
            decision = Skipped(
                row=decision.row, where=decision.where, turn=decision.turn, reason=reason, sentence=decision.sentence
            )
        result.append(decision)
    return result


def candidates_of(decisions: Iterable[Decision]) -> list[Candidate]:
    """The questions to ask."""
    return [decision for decision in decisions if isinstance(decision, Candidate)]


def count_reasons(decisions: Iterable[Decision]) -> dict[str, int]:
    """Number of rows or turns by reason, the most frequent first."""
    return dict(Counter(decision.reason for decision in decisions if isinstance(decision, Skipped)).most_common())
