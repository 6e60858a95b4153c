"""Labels of rows, and the edited copy: rows dropped, relabelled, weighted or repeated by their category."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from slick.annotation.config import MAIN_STORES
from slick.annotation.set_aside import read_set_aside, read_undecided
from slick.curation.card import write_card
from slick.curation.config import Action, CurateConfig
from slick.curation.containers import RowEdit
from slick.curation.data import DataFile
from slick.curation.formats import RowFormat
from slick.curation.selection import Decision, Skipped
from slick.storage import Folder
from slick.study import Manifest
from slick.study_files import read_knowledge
from slick.types import Category

CATEGORY, P_CORRECT, P_SAMPLED, REASON, WEIGHT = (
    f"slick_{name}" for name in ("category", "p_correct", "p_sampled", "reason", "weight")
)
NEW_COLUMNS = {CATEGORY: pa.string(), P_CORRECT: pa.float64(), P_SAMPLED: pa.float64(), REASON: pa.string()}
"""Columns of a labelled copy.

`slick_category`: of the row's least known turn; null if it was not asked. `slick_p_correct`, `slick_p_sampled`: shares
of correct greedy answers and of correct samples, of the turn with the lowest. `slick_reason`: why a row was not asked.
"""

_RANK = {category: rank for rank, category in enumerate(Category)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLabel:
    """What is known of one row."""

    category: Category | None = None
    """Of its least known turn; None if it was not asked."""
    p_correct: float | None = None
    p_sampled: float | None = None
    reason: str | None = None
    """Why it was not asked."""
    turns: tuple[tuple[int, Category], ...] = ()
    """The category of each turn that was asked."""
    set_aside: tuple[tuple[int, str], ...] = ()
    """The reason of each turn that was to be asked, but has no label."""


def label_rows(study: Folder, decisions: Sequence[Decision]) -> list[RowLabel]:
    """The label of each row, from the labels of its questions.

    Args:
        study: with finished labels.
        decisions: in the order of the rows.
    """
    columns = ["question_id", "category", "p_correct_greedy", "p_correct_sampled"]
    knowledge = {row["question_id"]: row for row in read_knowledge(study, columns).to_pylist()}
    folder = study.child("annotate")
    set_aside = {
        row["question_id"]: row["reason"]
        for store in MAIN_STORES
        for read in (read_set_aside, read_undecided)
        for row in read(folder, store).to_pylist()
    }
    by_row: dict[int, list[Decision]] = {}
    for decision in decisions:
        by_row.setdefault(decision.row, []).append(decision)
    return [_row_label(by_row[row], knowledge, set_aside) for row in sorted(by_row)]


def _row_label(
    decisions: Sequence[Decision], knowledge: Mapping[str, Mapping[str, Any]], set_aside: Mapping[str, str]
) -> RowLabel:
    labelled = [
        (decision.turn, knowledge[decision.question_id])
        for decision in decisions
        if not isinstance(decision, Skipped) and decision.question_id in knowledge
    ]
    without = tuple(
        (decision.turn, set_aside[decision.question_id])
        for decision in decisions
        if not isinstance(decision, Skipped) and decision.question_id not in knowledge
    )
    if not labelled:
        last = decisions[-1]
        reason = last.reason if isinstance(last, Skipped) else set_aside[last.question_id]
        return RowLabel(reason=reason, set_aside=without)
    turns = tuple((turn, Category(row["category"])) for turn, row in labelled)
    return RowLabel(
        category=max((category for _, category in turns), key=_RANK.__getitem__),
        p_correct=min(row["p_correct_greedy"] for _, row in labelled),
        p_sampled=min((row["p_correct_sampled"] for _, row in labelled), key=lambda p: (p is not None, p)),
        turns=turns,
        set_aside=without,
    )


def write_copy(
    data: DataFile,
    row_format: RowFormat,
    labels: Sequence[RowLabel],
    config: CurateConfig,
    counts: Mapping[str, Any],
    annotation: Manifest,
) -> dict[str, Any]:
    """Write the labelled copy and its card.

    Returns:
        Where it is, and numbers of rows dropped, relabelled, weighted and repeated.

    Raises:
        SettingsError: the copy exists or would replace the data.
        DataError: the data changed meanwhile.
    """
    assert config.to is not None
    changes = {"to": config.to, **count_actions(labels, config)}
    edits = row_edits(data, row_format, labels, config)
    data.write(config.to, edits, new_columns(config), overwrite=config.overwrite)
    write_card(config, counts, changes, annotation, data.loading_code(config.to))
    return changes


def new_columns(config: CurateConfig) -> dict[str, pa.DataType]:
    """The columns that every row gets: `NEW_COLUMNS`, and `slick_weight` if rows are weighted."""
    return NEW_COLUMNS | ({WEIGHT: pa.float64()} if "weight" in (config.unknown, config.weakly) else {})


def row_edits(
    data: DataFile, row_format: RowFormat, labels: Sequence[RowLabel], config: CurateConfig
) -> Iterator[RowEdit]:
    """What happens to each row, in order."""
    for index, ((_, row), label) in enumerate(zip(data.rows(), labels, strict=True)):
        columns: dict[str, Any] = {
            CATEGORY: None if label.category is None else str(label.category),
            P_CORRECT: label.p_correct,
            P_SAMPLED: label.p_sampled,
            REASON: label.reason,
        }
        if "weight" in (config.unknown, config.weakly):
            columns[WEIGHT] = row_weight(label, config, "weight")
        yield RowEdit(
            index=index,
            row=_relabelled(row, row_format, label, config),
            columns=columns,
            repeat=0 if action_of(label.category, config) == "drop" else num_copies(label, config),
        )


def action_of(category: Category | None, config: CurateConfig) -> Action:
    """What happens to a row of this category."""
    if category == Category.UNKNOWN:
        return config.unknown
    return config.weakly if category == Category.WEAKLY_KNOWN else "keep"


def row_weight(label: RowLabel, config: CurateConfig, action: Action) -> float:
    """Weight of a row if the action applies to its category, otherwise 1."""
    if action_of(label.category, config) != action:
        return 1.0
    return config.unknown_weight if label.category == Category.UNKNOWN else config.weakly_weight


def num_copies(label: RowLabel, config: CurateConfig) -> int:
    """How often a row is written: in proportion to its weight, where the action `repeat` gives weights.

    >>> config = CurateConfig(unknown="repeat", unknown_weight=0.25, to="x")
    >>> num_copies(RowLabel(category=Category.UNKNOWN), config), num_copies(RowLabel(), config)
    (1, 4)
    """
    weights = [
        weight
        for action, weight in ((config.unknown, config.unknown_weight), (config.weakly, config.weakly_weight))
        if action == "repeat"
    ]
    return round(row_weight(label, config, "repeat") / min(weights)) if weights else 1


def _relabelled(
    row: Mapping[str, Any], row_format: RowFormat, label: RowLabel, config: CurateConfig
) -> dict[str, Any] | None:
    """The row with the targets of turns that are relabelled; None if there is none."""
    turns = [turn for turn, category in label.turns if action_of(category, config) == "idk"]
    for turn in turns:
        row = row_format.replace_target(row, turn, config.idk_phrase)
    return dict(row) if turns else None


def count_actions(labels: Sequence[RowLabel], config: CurateConfig) -> dict[str, int]:
    """Numbers of rows that are dropped, relabelled and weighted, and of rows in the copy."""
    actions = [action_of(label.category, config) for label in labels]
    kept = [label for label, action in zip(labels, actions, strict=True) if action != "drop"]
    return {
        "dropped": actions.count("drop"),
        "relabelled": sum(any(action_of(category, config) == "idk" for _, category in label.turns) for label in kept),
        "weighted": actions.count("weight"),
        "rows": sum(num_copies(label, config) for label in kept),
    }
