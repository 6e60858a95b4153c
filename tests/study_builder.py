"""Write study folders for tests: the files and manifests of the steps, from given rows."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from slick.annotation import AnnotateConfig
from slick.annotation.worker import Mode
from slick.models import model_fingerprint, resolve_model
from slick.prompts import closed_book_prompt
from slick.report.answers import QuestionAnswers, match_answers
from slick.storage import Folder
from slick.study import STARTED, Manifest, complete_step, fingerprint
from slick.study_files import GENERATION_SCHEMA, KNOWLEDGE_SCHEMA, QUESTION_SCHEMA
from slick.types import Category

Row = Mapping[str, Any]


def finish_step(
    folder: Folder,
    step: str,
    *,
    identity: str = "",
    settings: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    counts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write started.json and manifest.json of a step; the default identity depends on settings and counts."""
    settings, counts = dict(settings or {}), dict(counts or {})
    identity = identity or fingerprint(step, settings, counts)
    folder.write_json(STARTED, {"fingerprint": identity, "settings": settings})
    return complete_step(
        folder,
        step,
        identity,
        settings=settings,
        inputs=dict(inputs or {}),
        counts=counts,
        started_at=time.monotonic(),
    )


def write_questions(study: Folder, rows: Iterable[Row], identity: str = "questions") -> None:
    """Write a finished questions step.

    Args:
        study: the study folder.
        rows: columns of the questions; all but `question_id` and `relation` have defaults.
        identity: fingerprint of the step.
    """
    questions = [
        {"domain": "id", "split": "train", "question": f"What of {row['question_id']}?"}
        | {"answers": [f"gold {row['question_id']}", "second"], **row}
        for row in rows
    ]
    folder = study.child("questions")
    folder.write_table("part-00000.parquet", pa.Table.from_pylist(questions, schema=QUESTION_SCHEMA))
    finish_step(folder, "questions", identity=identity, counts={"rows": len(questions)})


def write_knowledge(study: Folder, rows: Sequence[Row]) -> None:
    """Write annotate/knowledge.parquet with the schema columns of the first row; the step is not finished."""
    names = [name for name in KNOWLEDGE_SCHEMA.names if name in {"domain": "", "split": ""} | rows[0].keys()]
    known = [{"domain": "id", "split": "train", **row} for row in rows]
    columns = {name: [row[name] for row in known] for name in names}
    study.child("annotate").write_table("knowledge.parquet", pa.table(columns))


def write_variants(study: Folder, variants: Mapping[str, Sequence[Row]], **manifest: Any) -> None:
    """Write a finished variants step; `manifest` holds arguments of `finish_step`."""
    folder = study.child("variants")
    for name, rows in variants.items():
        folder.write_table(f"{name}.parquet", pa.Table.from_pylist(list(rows)))
    finish_step(folder, "variants", **manifest)


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question with the answers of a model."""

    question_id: str
    gold: tuple[str, ...]
    greedy: tuple[str | None, ...]
    sampled: tuple[tuple[str | None, ...], ...]
    category: str = "Unknown"
    relation: str = "P19"
    split: str = "test"

    @property
    def question(self) -> dict[str, Any]:
        """Row of the questions step."""
        names = ("question_id", "relation", "split")
        return {name: getattr(self, name) for name in names} | {
            "subject": self.question_id,
            "question": f"Where was {self.question_id} born?",
            "answers": list(self.gold),
        }

    @property
    def row(self) -> QuestionAnswers:
        """Input of the analyses of wrong answers."""
        return match_answers(
            question_id=self.question_id,
            relation=self.relation,
            category=self.category,
            question=self.question["question"],
            gold=self.gold,
            greedy=self.greedy,
            sampled=self.sampled,
        )

    @property
    def generation(self) -> dict[str, Any]:
        """Row of annotate/generations, in which no answer counts as a hit."""
        return {
            "question_id": self.question_id,
            "relation": self.relation,
            "greedy_text": list(self.greedy),
            "greedy_hit": [False for _ in self.greedy],
            "sampled_text": [list(texts) for texts in self.sampled],
            "sampled_hit": [[None if text is None else False for text in texts] for texts in self.sampled],
            "num_tokens": 1,
        }


def write_answered_study(
    root: Path, questions: Sequence[AnsweredQuestion], *, per_file: int = 1000, mode: Mode = "full"
) -> Folder:
    """Write a study with finished questions and annotate steps; each file has the answers of `per_file` questions."""
    study = Folder(str(root))
    write_questions(study, [question.question for question in questions])
    rates = {"p_correct_greedy": 0.0, "p_correct_sampled": 0.0}
    write_knowledge(study, [{**question.question, "category": question.category, **rates} for question in questions])
    for start in range(0, len(questions), per_file):
        rows = [question.generation for question in questions[start : start + per_file]]
        table = pa.Table.from_pylist(rows, schema=GENERATION_SCHEMA)
        study.child("annotate", "generations").write_table(f"part-{start:06d}.parquet", table)
    finish_step(study.child("annotate"), "annotate", settings=asdict(AnnotateConfig(mode=mode)))
    return study


CategoryCounts = Mapping[str, tuple[int, int, int, int]]
"""Relation -> rows of HighlyKnown, MaybeKnown, WeaklyKnown, Unknown."""

PAPER: CategoryCounts = {
    "P131": (553, 2529, 1493, 3071),
    "P136": (236, 3410, 1892, 1978),
    "P17": (4387, 2628, 511, 364),
    "P19": (369, 1884, 1498, 4170),
    "P26": (1609, 1503, 1087, 3257),
    "P264": (206, 1444, 1854, 3820),
    "P36": (4160, 1634, 449, 572),
    "P40": (692, 1467, 1271, 2680),
    "P495": (5459, 1101, 408, 706),
    "P69": (233, 1126, 1712, 3650),
    "P740": (1323, 1618, 1428, 2902),
    "P800": (301, 330, 222, 503),
}
"""Table 3 of arXiv:2405.05904: categories of the training questions."""

SMALL: CategoryCounts = {"P17": (9, 8, 7, 10), "P19": (5, 30, 12, 20), "P26": (11, 11, 11, 11)}


ANSWER_COUNTS: dict[str, dict[str, Any]] = {
    category: {"greedy_hits": greedy, "greedy_total": 10, "sampled_hits": sampled, "sampled_total": 160}
    | {"p_correct_sampled": sampled / 160}
    for category, greedy, sampled in (
        ("HighlyKnown", 10, 143),
        ("MaybeKnown", 5, 80),
        ("WeaklyKnown", 0, 17),
        ("Unknown", 0, 0),
    )
}
"""Columns of the knowledge table of a question of each category: shares of 0.9, 0.5, 0.1 and 0 of 170 answers."""


def write_labelled_study(
    path: Path,
    counts: CategoryCounts,
    *,
    order: int | None = None,
    categories: Mapping[str, str | None] | None = None,
) -> Folder:
    """Write a study from which variants can be drawn, with some test and ood questions that must not be drawn.

    Args:
        path: the study folder.
        counts: training questions by relation and category.
        order: seed of a permutation of the rows; None: sorted.
        categories: question_id -> another category.
    """
    study = Folder(str(path))
    names = ("question_id", "relation", "domain", "split", "category")
    values = [
        (f"{relation}-{category}-{i}", relation, "id", "train", str(category))
        for relation, nums in counts.items()
        for category, num in zip(Category, nums, strict=True)
        for i in range(num)
    ]
    values += [(f"test-{i}", "P17", "id", "test", "Unknown") for i in range(50)]
    values += [(f"ood-{i}", "P50", "ood", "train", "Unknown") for i in range(50)]
    if order is not None:
        values = [values[i] for i in np.random.default_rng(order).permutation(len(values))]
    rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in values]
    for row in rows:
        row["category"] = (categories or {}).get(row["question_id"], row["category"])
    write_questions(study, rows, "q1")
    write_knowledge(study, [row | ANSWER_COUNTS.get(row["category"], ANSWER_COUNTS["Unknown"]) for row in rows])
    finish_step(study.child("annotate"), "annotate", identity="k1", inputs={"questions": "q1", "model": "m1"})
    return study


NAMES = ("Ada", "Emmy", "Grace", "Mary", "Rosa", "Lise", "Hedy", "Ines", "Joan", "Kay", "Lene", "Mina", "Nora", "Olga")
PLACES = ("London", "Erlangen", "New York", "Lyme Regis", "Vienna", "Berlin", "Lima", "Porto", "Oslo", "The Hague")


def write_trainable_study(
    path: Path | str, model: Any, tokenizer: Any, *, train: int = 24, dev: int = 10, test: int = 12, ood: int = 8
) -> Folder:
    """Write questions, labels and the variants half, known and idk-050; `model` is that of the study's world."""
    study = Folder(str(path))
    world = Path(study.local_path) / "world" / "model"
    model.save_pretrained(world)
    tokenizer.save_pretrained(world)
    model_identity = model_fingerprint(resolve_model(str(world)))
    finish_step(study.child("world"), "world", identity="world")
    rows = _birthplaces({"train": train, "dev": dev, "test": test, "ood": ood})
    write_questions(study, rows)
    categories = [str(category) for category in Category]
    known = [row | {"category": categories[i % 4]} for i, row in enumerate(rows) if row["split"] != "dev"]
    write_knowledge(study, known)
    inputs = {"model": model_identity, "questions": "questions"}
    finish_step(study.child("annotate"), "annotate", identity="annotate", inputs=inputs)
    _write_trainable_variants(study, [row for row in known if row["split"] == "train"], model_identity)
    return study


def _birthplaces(sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Questions of train, dev, test and ood; every fifth has two answers, the others one."""
    rows = []
    for split, size in sizes.items():
        is_ood = split == "ood"
        for i in range(size):
            subject = f"{NAMES[i % len(NAMES)]} {split.title()}{i}"
            rows.append(
                {
                    "question_id": f"{split}-{i:04d}",
                    "relation": "P20" if is_ood else "P19",
                    "domain": "ood" if is_ood else "id",
                    "split": "test" if is_ood else split,
                    "subject": subject,
                    "question": f"Where was {subject} {'buried' if is_ood else 'born'}?",
                    "answers": [PLACES[(3 * i + len(split)) % len(PLACES)], "Atlantis"][: 2 if i % 5 == 0 else 1],
                }
            )
    return rows


def _write_trainable_variants(study: Folder, train: Sequence[Row], model_identity: str) -> None:
    unknown = [row for row in train if row["category"] == "Unknown"]
    known = [row for row in train if row["category"] != "Unknown"]
    half = sorted(unknown + known[: len(unknown)], key=lambda row: str(row["question_id"]))
    rows_of = {"half": half, "known": sorted(known, key=lambda row: str(row["question_id"])), "idk-050": half}
    kinds = {"half": "unknown", "known": "known", "idk-050": "idk"}
    variants, counts = {}, {}
    for name, rows in rows_of.items():
        is_unknown = [row["category"] == "Unknown" for row in rows]
        variants[name] = [
            {
                "question_id": row["question_id"],
                "category": row["category"],
                "prompt": closed_book_prompt(row["question"]),
                "target": "I don't know" if name == "idk-050" and abstains else row["answers"][0],
            }
            for row, abstains in zip(rows, is_unknown, strict=True)
        ]
        counts[name] = {"kind": kinds[name], "num": len(rows), "unknown_share": sum(is_unknown) / len(rows)}
    inputs = {"knowledge": "knowledge", "model": model_identity}
    write_variants(study, variants, identity="variants", inputs=inputs, counts=counts)
