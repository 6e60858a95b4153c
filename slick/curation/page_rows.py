"""The rows of the page of a curated file: their selection and content.

A row of the file is one row of the table, or one for each turn that was considered.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from slick.annotation.answers import iter_answers
from slick.curation.actions import RowLabel
from slick.curation.data import DataFile
from slick.curation.formats import RowFormat
from slick.curation.selection import Candidate, Decision
from slick.datasets.columns import RowError
from slick.rng import row_key
from slick.storage import Folder
from slick.study_files import read_knowledge
from slick.types import Category, Message

MAX_ROWS = 5_000
"""Rows in the table of the page; of larger files, it shows a sample."""
MAX_CHARACTERS = 2_000
"""Longer texts are cut."""
MAX_ANSWERS = 5
"""Distinct answers shown of each row, for greedy answers and for samples."""
_MAX_ANSWER_CHARACTERS = 300

NOT_LABELLED = "not labelled"


@dataclass(slots=True, kw_only=True)
class PageRow:
    """One row of the table, in the form of the page's JSON."""

    number: int
    """Of the row in the file, from 1."""
    turn: int | None
    """Of a conversation, from 1; None if only one turn of each row is considered."""
    category: str
    """Empty if it has no label."""
    reason: str
    """Why it has no label."""
    detail: str = ""
    group: str = ""
    context: str = ""
    """Messages before the prompt."""
    prompt: str = ""
    target: str = ""
    counts: list[int] = field(default_factory=list)
    """Correct greedy answers, greedy answers, correct samples, samples; empty if it has no label."""
    greedy: list[list[Any]] = field(default_factory=list)
    """The most frequent greedy answers: text, number, whether correct."""
    sampled: list[list[Any]] = field(default_factory=list)
    """The most frequent samples, likewise."""


def category_of(decision: Decision, label: RowLabel) -> Category | None:
    """The category of a turn; None if it has no label."""
    return label.category_of(decision)


def reason_of(decision: Decision, label: RowLabel) -> str:
    """Why a turn has no label."""
    return dict(label.set_aside)[decision.turn] if isinstance(decision, Candidate) else decision.reason


def sample_decisions(
    decisions: Sequence[Decision], labels: Sequence[RowLabel], *, limit: int, seed: int
) -> list[Decision]:
    """At most `limit` decisions, drawn from each category in proportion to its size; all if there are no more.

    Args:
        decisions: in the order of the rows.
        labels: one per row.
        limit: of the number of decisions.
        seed: random seed.

    Returns:
        In their original order, at least one of each category.
    """
    if len(decisions) <= limit:
        return list(decisions)
    strata: dict[Category | None, list[int]] = {}
    for i, decision in enumerate(decisions):
        strata.setdefault(category_of(decision, labels[decision.row]), []).append(i)
    sizes = allocate([len(members) for members in strata.values()], limit)
    kept: list[int] = []
    for members, size in zip(strata.values(), sizes, strict=True):
        kept += sorted(members, key=lambda i: int(row_key(seed, "page", i)))[:size]
    return [decisions[i] for i in sorted(kept)]


def allocate(sizes: Sequence[int], total: int) -> list[int]:
    """Shares of `total` in proportion to `sizes`, by largest remainders, each at least 1 and at most its size.

    >>> allocate([9_000, 900, 99, 1], 100)
    [89, 9, 1, 1]
    """
    quotas = [total * size / sum(sizes) for size in sizes]
    shares = [min(size, max(1, int(quota))) for size, quota in zip(sizes, quotas, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - quotas[i])
    while sum(shares) < total:
        for i in by_remainder:
            if sum(shares) < total and shares[i] < sizes[i]:
                shares[i] += 1
    while sum(shares) > total:
        shares[shares.index(max(shares))] -= 1
    return shares


def page_rows(
    study: Folder,
    data: DataFile,
    row_format: RowFormat,
    decisions: Sequence[Decision],
    labels: Sequence[RowLabel],
    *,
    show_turns: bool,
) -> list[PageRow]:
    """The rows of the page for these decisions, with the model's answers.

    Args:
        study: with finished labels.
        data: the file, which is read again for skipped rows.
        row_format: of the file.
        decisions: those to show.
        labels: one per row of the file.
        show_turns: whether several turns of a row are considered.

    Raises:
        DataError: the file changed meanwhile.
        StudyError: a file of the study is damaged.
    """
    questions = {d.question_id for d in decisions if isinstance(d, Candidate)}
    counts, answers = _hit_counts(study, questions), _answers(study, questions)
    skipped = {decision.row for decision in decisions if not isinstance(decision, Candidate)}
    texts = _row_texts(data, row_format, skipped)
    rows = []
    for decision in decisions:
        label = labels[decision.row]
        category = category_of(decision, label)
        row = PageRow(
            number=decision.row + 1,
            turn=decision.turn + 1 if show_turns and decision.turn is not None else None,
            category=str(category or ""),
            reason="" if category else reason_of(decision, label),
        )
        if isinstance(decision, Candidate):
            row.group = decision.group
            before = (
                [Message(role="assistant", content=f"{decision.answer_start.rstrip()} …")]
                if decision.answer_start
                else []
            )
            context = [*decision.context, *before]
            row.context, row.prompt, row.target = _shown(context, decision.question, decision.target)
            row.counts = counts.get(decision.question_id, [])
            row.greedy, row.sampled = answers.get(decision.question_id, ([], []))
        else:
            row.detail = decision.detail
            turns = texts.get(decision.row, {})
            row.context, row.prompt, row.target = turns.get(decision.turn, turns.get(None, ("", "", "")))
        rows.append(row)
    return rows


def _shown(context: Sequence[Message], prompt: str, target: str) -> tuple[str, str, str]:
    before = "\n".join(f"{message.role}: {message.content}" for message in context)
    return cut_text(before), cut_text(prompt), cut_text(target)


def cut_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The text, or its first `limit` characters and how many follow.

    >>> cut_text("abcdef", 4)
    'abcd … (2 more characters in the file)'
    """
    text = text.encode(errors="replace").decode()  # lone surrogates cannot be written
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters in the file)"


def _row_texts(
    data: DataFile, row_format: RowFormat, wanted: set[int]
) -> dict[int, dict[int | None, tuple[str, str, str]]]:
    """Context, prompt and target by row and turn, for rows by index; under None those of the last turn.

    A row that cannot be parsed has its values as the prompt.
    """
    texts: dict[int, dict[int | None, tuple[str, str, str]]] = {}
    if not wanted:
        return texts
    for index, (_, row) in enumerate(data.rows()):
        if index in wanted:
            texts[index] = _texts_of_turns(row, row_format)
        if index >= max(wanted):
            break
    return texts


def _texts_of_turns(row: Mapping[str, Any], row_format: RowFormat) -> dict[int | None, tuple[str, str, str]]:
    turns: dict[int | None, tuple[str, str, str]] = {}
    try:
        for example in row_format.parse(row):
            *context, last = example.messages
            turns[example.turn] = turns[None] = _shown(context, last.content, example.accepted[0])
    except RowError:
        turns = {None: ("", cut_text(", ".join(f"{name}: {value}" for name, value in row.items())), "")}
    return turns


def _hit_counts(study: Folder, wanted: set[str]) -> dict[str, list[int]]:
    if not wanted:
        return {}
    names = ["greedy_hits", "greedy_total", "sampled_hits", "sampled_total"]
    table = read_knowledge(study, ["question_id", *names])
    columns = [table[name].to_pylist() for name in ("question_id", *names)]
    return {name: counts for name, *counts in zip(*columns, strict=True) if name in wanted}


Answers = tuple[list[list[Any]], list[list[Any]]]


def _answers(study: Folder, wanted: set[str]) -> dict[str, Answers]:
    """The most frequent greedy and sampled answers by question_id; empty if the study did not store answers."""
    answers: dict[str, Answers] = {}
    for row in iter_answers(study, pa.array(wanted, pa.string())) if wanted else ():
        samples = zip(row["sampled_text"], row["sampled_hit"], strict=True)
        pairs = (pair for texts, hits in samples for pair in zip(texts or (), hits or (), strict=True))
        answers[row["question_id"]] = (
            most_frequent(zip(row["greedy_text"], row["greedy_hit"], strict=True)),
            most_frequent(pairs),
        )
    return answers


def most_frequent(answers: Iterable[tuple[str | None, bool | None]]) -> list[list[Any]]:
    """The most frequent answers as text, number and whether correct; answers without a stored text are left out.

    >>> most_frequent([("Rome", False), ("Paris", True), ("Paris", True), (None, False)])
    [['Paris', 2, True], ['Rome', 1, False]]
    """
    counted = Counter(
        (text, hit) if hit is not None else (f"{text} (not graded)", False) for text, hit in answers if text is not None
    )
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MAX_ANSWERS]
    return [[cut_text(text, _MAX_ANSWER_CHARACTERS), num, hit] for (text, hit), num in ranked]
