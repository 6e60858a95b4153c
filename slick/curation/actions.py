"""Labels of rows, and the edited copy: rows dropped, relabelled, weighted or repeated by their category."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from slick.annotation.config import MAIN_STORES
from slick.annotation.set_aside import read_set_aside, read_undecided
from slick.curation.card import card_text, write_card
from slick.curation.claims import (
    NO_CLAIM,
    ClaimLabel,
    has_no_claim_left,
    remove_sentences,
    sentences_to_remove,
    unknown_share,
)
from slick.curation.config import Action, CurateConfig
from slick.curation.containers import RowEdit
from slick.curation.data import DataFile
from slick.curation.formats import RowFormat
from slick.curation.selection import Decision, Skipped
from slick.storage import Folder
from slick.study import Manifest
from slick.study_files import read_knowledge
from slick.types import Category

CATEGORY, P_CORRECT, P_SAMPLED, REASON, WEIGHT, UNKNOWN_CLAIMS = (
    f"slick_{name}" for name in ("category", "p_correct", "p_sampled", "reason", "weight", "unknown_claims")
)
NEW_COLUMNS = {CATEGORY: pa.string(), P_CORRECT: pa.float64(), P_SAMPLED: pa.float64(), REASON: pa.string()}
"""Columns of a labelled copy.

`slick_category`: of the row's least known turn; null if the row has no label. `slick_p_correct`, `slick_p_sampled`:
shares of correct greedy answers and of correct samples, of the turn with the lowest. `slick_reason`: why a row has no
label.
"""

_RANK = {category: rank for rank, category in enumerate(Category)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLabel:
    """The label of one row, or the reason why it has none."""

    category: Category | None = None
    """Of its least known turn; None if no turn has a label."""
    p_correct: float | None = None
    p_sampled: float | None = None
    reason: str | None = None
    """Why the row has no label; None if it has one."""
    turns: tuple[tuple[int, Category], ...] = ()
    """The category of each labelled turn: of its least known sentence, with `--claims`."""
    set_aside: tuple[tuple[int, str], ...] = ()
    """Turns that became questions but got no label, each with the reason."""
    claims: tuple[ClaimLabel, ...] = ()
    """The sentences of the turns, with `--claims`."""

    def category_of(self, decision: Decision) -> Category | None:
        """The category of a turn, or of a sentence of it; None if it has no label."""
        if isinstance(decision, Skipped):
            return None
        if decision.sentence is None:
            return dict(self.turns).get(decision.turn)
        places = {(claim.turn, claim.sentence): claim.category for claim in self.claims}
        return places.get((decision.turn, decision.sentence))


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
    turns: dict[int, Category] = {}
    for turn, row in labelled:
        turns[turn] = max(turns.get(turn, Category.HIGHLY_KNOWN), Category(row["category"]), key=_RANK.__getitem__)
    return RowLabel(
        category=max(turns.values(), key=_RANK.__getitem__),
        p_correct=min(row["p_correct_greedy"] for _, row in labelled),
        p_sampled=min((row["p_correct_sampled"] for _, row in labelled), key=lambda p: (p is not None, p)),
        turns=tuple(turns.items()),
        set_aside=without,
        claims=tuple(_claim_label(decision, knowledge) for decision in decisions if decision.turn is not None),
    )


def _claim_label(decision: Decision, knowledge: Mapping[str, Mapping[str, Any]]) -> ClaimLabel:
    row = None if isinstance(decision, Skipped) else knowledge.get(decision.question_id)
    return ClaimLabel(
        turn=decision.turn or 0,
        sentence=decision.sentence or 1,
        category=None if row is None else Category(row["category"]),
        is_filler=isinstance(decision, Skipped) and decision.reason == NO_CLAIM,
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
    card = card_text(config, counts, changes, annotation, data.loading_code(config.to))
    write_card(Folder(config.to), card)
    return changes


def new_columns(config: CurateConfig) -> dict[str, pa.DataType]:
    """The columns that every row gets.

    These are `NEW_COLUMNS`, with `--claims` the column `slick_unknown_claims` (share of Unknown sentences among the
    labelled ones), and `slick_weight` if rows are weighted.
    """
    claims = {UNKNOWN_CLAIMS: pa.float64()} if config.claims != "none" else {}
    return NEW_COLUMNS | claims | ({WEIGHT: pa.float64()} if "weight" in (config.unknown, config.weakly) else {})


def row_edits(
    data: DataFile, row_format: RowFormat, labels: Sequence[RowLabel], config: CurateConfig
) -> Iterator[RowEdit]:
    """The edit of each row, in order."""
    for index, ((_, row), label) in enumerate(zip(data.rows(), labels, strict=True)):
        columns: dict[str, Any] = {
            CATEGORY: None if label.category is None else str(label.category),
            P_CORRECT: label.p_correct,
            P_SAMPLED: label.p_sampled,
            REASON: label.reason,
        }
        if config.claims != "none":
            columns[UNKNOWN_CLAIMS] = unknown_share(label.claims)
        if "weight" in (config.unknown, config.weakly):
            columns[WEIGHT] = row_weight(label, config, "weight")
        dropped = is_dropped(label, config)
        yield RowEdit(
            index=index,
            row=None if dropped else _with_new_targets(row, row_format, label, config),
            columns=columns,
            repeat=0 if dropped else num_copies(label, config),
        )


def action_of(category: Category | None, config: CurateConfig) -> Action:
    """The action for rows of this category."""
    if category == Category.UNKNOWN:
        return config.unknown
    return config.weakly if category == Category.WEAKLY_KNOWN else "keep"


def is_dropped(label: RowLabel, config: CurateConfig) -> bool:
    """Whether the copy lacks a row: its category is dropped, or none of the sentences of a turn remains."""
    return action_of(label.category, config) == "drop" or has_no_claim_left(
        label.claims, removed_sentences(label, config)
    )


def removed_sentences(label: RowLabel, config: CurateConfig) -> dict[int, set[int]]:
    """Turn -> places of the sentences that `drop-claims` removes from it, unless the turn is relabelled."""
    categories = {category for category in Category if action_of(category, config) == "drop-claims"}
    relabelled = {turn for turn, category in label.turns if action_of(category, config) == "idk"}
    removed = sentences_to_remove(label.claims, categories)
    return {turn: places for turn, places in removed.items() if turn not in relabelled}


def row_weight(label: RowLabel, config: CurateConfig, action: Action) -> float:
    """Weight of a row if the action applies to its category, otherwise 1."""
    if action_of(label.category, config) != action:
        return 1.0
    return config.unknown_weight if label.category == Category.UNKNOWN else config.weakly_weight


def num_copies(label: RowLabel, config: CurateConfig) -> int:
    """How often a row is written: with the action `repeat`, in proportion to its weight.

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


def _with_new_targets(
    row: Mapping[str, Any], row_format: RowFormat, label: RowLabel, config: CurateConfig
) -> dict[str, Any] | None:
    """The row with the targets of turns that are relabelled or shortened; None if there is none."""
    targets = {turn: config.idk_phrase for turn, category in label.turns if action_of(category, config) == "idk"}
    if removed := removed_sentences(label, config):
        texts = {example.turn: example.target for example in row_format.parse(row)}
        targets |= {turn: remove_sentences(texts[turn], places) for turn, places in removed.items()}
    for turn, target in targets.items():
        row = row_format.replace_target(row, turn, target)
    return dict(row) if targets else None


def count_actions(labels: Sequence[RowLabel], config: CurateConfig) -> dict[str, int]:
    """Numbers of rows that are dropped, relabelled and weighted, and of rows in the copy.

    With `--claims` also of rows in the copy that lack sentences, and of these sentences.
    """
    actions = [action_of(label.category, config) for label in labels]
    kept = [label for label in labels if not is_dropped(label, config)]
    removed = [sum(map(len, removed_sentences(label, config).values())) for label in kept]
    return {
        "dropped": len(labels) - len(kept),
        "relabelled": sum(any(action_of(category, config) == "idk" for _, category in label.turns) for label in kept),
        "weighted": actions.count("weight"),
        "rows": sum(num_copies(label, config) for label in kept),
        **({} if config.claims == "none" else {"shortened": sum(map(bool, removed)), "removed_claims": sum(removed)}),
    }


def count_claims(labels: Sequence[RowLabel]) -> dict[str, int]:
    """Numbers of labelled sentences, of Unknown ones, and of rows with labelled sentences."""
    labelled = [[claim.category for claim in label.claims if claim.category is not None] for label in labels]
    return {
        "asked": sum(map(len, labelled)),
        "unknown": sum(categories.count(Category.UNKNOWN) for categories in labelled),
        "rows": sum(map(bool, labelled)),
    }
