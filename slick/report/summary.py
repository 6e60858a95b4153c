"""The first screen of the page: the model, the questions and their categories, and a recommendation."""

import json
import math
from dataclasses import dataclass

from slick import limits
from slick.report.data import StudyData
from slick.report.decision import (
    decide,
    decision_note,
    decision_sentences,
    decision_table,
    question_totals,
    unknown_rows_table,
)
from slick.report.measurements import value_or_reason
from slick.report.provenance import Provenance
from slick.report.tables import Table
from slick.storage import Folder
from slick.study import Manifest
from slick.types import Category
from slick.uris import public_name


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryShare:
    """One category of the questions."""

    category: str
    num: int
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The content of the first screen."""

    model: str
    """Name and number of parameters."""
    questions: str
    """Name and numbers of questions."""
    training: str
    """Number of runs and seeds."""
    known: str
    """Which questions `shares` counts."""
    shares: tuple[CategoryShare, ...]
    headline: str
    """When to stop and whether to drop the Unknown rows, or why this is not known."""
    follow_up: str
    """Advice for longer training; empty if there is nothing to add."""
    note: str
    decision: Table | None
    num_to_drop: int
    """Rows of tables/unknown_rows.csv; 0 if there is no such file."""


def summarize(data: StudyData, manifests: dict[str, Manifest], provenance: Provenance) -> Summary:
    """The first screen of a study, as far as its steps are finished."""
    totals, _ = value_or_reason(question_totals, data)
    counts, split = totals or ({}, "")
    decision, reason = value_or_reason(decide, data)
    headline, follow_up = (
        decision_sentences(decision) if decision else (f"When to stop is not known yet: {reason}.", "")
    )
    rows, _ = value_or_reason(unknown_rows_table, data)
    seeds = len({run.seed for run in data.runs})
    training = f"{len(data.runs)} fine-tuning run{'' if len(data.runs) == 1 else 's'}"
    return Summary(
        model=_describe_model(data, provenance),
        questions=_describe_questions(data, manifests),
        training=f"{training}, {seeds} seed{'' if seeds == 1 else 's'}" if seeds else training,
        known=f"{sum(counts.values()):,} {split} questions",
        shares=tuple(
            CategoryShare(category=str(name), num=counts[name], percent=100 * counts[name] / sum(counts.values()))
            for name in map(str, Category)
            if name in counts
        ),
        headline=headline,
        follow_up=follow_up,
        note=decision_note(decision) if decision else "",
        decision=decision_table(decision) if decision else None,
        num_to_drop=len(rows.rows) if rows else 0,
    )


def _describe_model(data: StudyData, provenance: Provenance) -> str:
    num = None if "parameters" in provenance.model or data.study is None else model_size(data.study, data)
    return f"{provenance.model}, {format_size(num)} parameters" if num else provenance.model


def model_size(study: Folder, data: StudyData) -> int | None:
    """Parameters of the fine-tuned model according to the weights of a checkpoint; None if no full one was kept."""
    for run in data.runs:
        folder = study.child("runs", run.run_id, "checkpoint-last")
        if files := [name for name in folder.names(".safetensors") if not name.startswith("adapter")]:
            sizes = [_num_weights(folder, name) for name in files]
            return None if None in sizes else sum(filter(None, sizes))
    return None


def _num_weights(folder: Folder, name: str) -> int | None:
    """Weights of one safetensors file according to its header; None if it cannot be read.

    Source: https://huggingface.co/docs/safetensors: eight bytes with the header's length, then the header as JSON.
    """
    with folder.open_input(name) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > limits.MAX_SETTINGS_BYTES:
            return None
        try:
            tensors = json.loads(file.read(length))
            return int(sum(math.prod(entry["shape"]) for key, entry in tensors.items() if key != "__metadata__"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def format_size(num: int) -> str:
    """A number of parameters, as model names write it.

    >>> format_size(134_515_008), format_size(8_030_261_248), format_size(950_000)
    ('135 M', '8.0 B', '0.9 M')
    """
    if num >= 1e9:
        return f"{num / 1e9:.1f} B"
    return f"{num / 1e6:.0f} M" if num >= 10e6 else f"{num / 1e6:.1f} M"


def _describe_questions(data: StudyData, manifests: dict[str, Manifest]) -> str:
    """The name of the question set, and its questions by split as far as they are labelled."""
    world = manifests.get("world")
    sources = [manifests[step].settings.get("questions") for step in ("questions", "world") if step in manifests]
    named = [public_name(str(source)) for source in sources if source]
    name = named[0] if named else "invented facts in the relations of EntityQuestions" if world else "questions"
    totals: dict[tuple[str, str], int] = {}
    for (_, domain, split), counts in data.counts.items():
        totals[domain, split] = totals.get((domain, split), 0) + sum(counts.values())
    labels = {("id", "train"): "training", ("id", "test"): "test", ("ood", "test"): "out-of-distribution test"}
    parts = [f"{totals[part]:,} {label}" for part, label in labels.items() if totals.get(part)]
    return f"{name}: {', '.join(parts)} questions" if parts else name
