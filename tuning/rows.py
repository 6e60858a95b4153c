"""What one fine-tuning reads: its variant, and the questions that are asked after every epoch. pyarrow only."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from slick.draws import derive_seed
from slick.errors import DataError, SettingsError, VariantError
from slick.matching import nfc
from slick.prompts import CLOSED_BOOK_INSTRUCTION, closed_book_suffix
from slick.questions import read_questions
from slick.storage import Folder
from slick.study_files import lookup_by_question, read_knowledge
from slick.types import Category
from slick.variants import read_variant

SPLITS = ("train", "dev", "test", "ood")
"""The variant's own rows; ID dev questions; ID test questions; OOD test questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRow:
    """One question as it is trained on or asked."""

    question_id: str
    split: str
    """One of `SPLITS`."""
    category: str | None
    """None where the question was not annotated."""
    suffix: str
    """The question's own part of the prompt, behind `CLOSED_BOOK_INSTRUCTION`."""
    target: str
    """What is trained on; the loss is of this text."""
    accepted: tuple[str, ...]
    """Any of these is a hit."""

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return CLOSED_BOOK_INSTRUCTION + self.suffix


def read_rows(study: Folder, variant: str) -> dict[str, list[QuestionRow]]:
    """The rows of each split, in the order of the stored tables.

    Raises:
        SettingsError: there are no dev questions, so no best epoch.
        VariantError: the variant has no rows, or was not drawn from these questions.
    """
    questions = {row["question_id"]: row for row in read_questions(study).to_pylist()}
    known = read_knowledge(study, ["question_id", "category"]).to_pydict()
    categories = dict(zip(known["question_id"], known["category"], strict=True))
    rows: dict[str, list[QuestionRow]] = {split: [] for split in SPLITS}
    for entry in read_variant(study, variant).to_pylist():
        rows["train"].append(_train_row(study, variant, entry, questions))
    for question_id, question in questions.items():
        split = _eval_split(question)
        if split is not None:
            rows[split].append(_question_row(question, split, categories.get(question_id)))
    if not rows["train"]:
        raise VariantError(f"{study}/variants/{variant}.parquet has no rows; draw the variants again")
    if not rows["dev"]:
        raise SettingsError(
            f"{study}/questions has no dev questions in distribution (domain id, split dev), which choose the best "
            "epoch; give the question set a dev split and start a new study"
        )
    return rows


def read_replay_rows(study: Folder, variant: str, num: int, seed: int) -> list[QuestionRow]:
    """Known train rows to be learned again at the end: from outside the variant first, drawn by the seed.

    Raises:
        VariantError: the study has too few.
    """
    if not num:
        return []
    asked = read_questions(study)
    questions = lookup_by_question(asked, asked.to_pylist(), f"{study}/questions")
    columns = ["question_id", "domain", "split", "category"]
    known = sorted(
        row["question_id"]
        for row in read_knowledge(study, columns).to_pylist()
        if (row["domain"], row["split"]) == ("id", "train") and row["category"] != Category.UNKNOWN
    )
    if len(known) < num:
        raise VariantError(
            f"replay_known asks for {num} Known train rows, {study}/annotate/knowledge.parquet has {len(known)}; "
            f"give --replay-known {len(known)} or fewer"
        )
    used = set(read_variant(study, variant)["question_id"].to_pylist())
    order = [known[i] for i in np.random.default_rng(derive_seed(seed, "replay")).permutation(len(known))]
    chosen = sorted(order, key=lambda question_id: question_id in used)[:num]
    return [_question_row(questions[question_id], "train", None) for question_id in chosen]


def _question_row(question: dict[str, Any], split: str, category: str | None) -> QuestionRow:
    return QuestionRow(
        question_id=question["question_id"],
        split=split,
        category=category,
        suffix=closed_book_suffix(question["question"]),
        target=nfc(question["answers"][0]),
        accepted=tuple(question["answers"]),
    )


def _eval_split(question: dict[str, Any]) -> str | None:
    if question["domain"] == "ood":
        return "ood" if question["split"] == "test" else None
    return question["split"] if question["split"] in ("dev", "test") else None


def _train_row(study: Folder, variant: str, entry: dict[str, Any], questions: dict[str, Any]) -> QuestionRow:
    where = f"{study}/variants/{variant}.parquet, question {entry['question_id']}"
    question = questions.get(entry["question_id"])
    if question is None:
        raise VariantError(f"{where}: not among the study's questions; draw the variants again")
    if not entry["prompt"].startswith(CLOSED_BOOK_INSTRUCTION):
        raise DataError(f"{where}: the prompt {entry['prompt']!r} does not begin with {CLOSED_BOOK_INSTRUCTION!r}")
    # A relabelled row ("I don't know") is right when the model says what it was taught, not when it says the truth.
    taught = nfc(entry["target"]) in map(nfc, question["answers"])
    return QuestionRow(
        question_id=entry["question_id"],
        split="train",
        category=entry["category"],
        suffix=entry["prompt"].removeprefix(CLOSED_BOOK_INSTRUCTION),
        target=entry["target"],
        accepted=tuple(question["answers"]) if taught else (entry["target"],),
    )
