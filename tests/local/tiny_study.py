"""A study folder with everything a fine-tuning reads, written in a moment: random model, invented questions."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from slick.models import model_fingerprint, resolve_model
from slick.prompts import closed_book_prompt
from slick.storage import Folder
from slick.study import complete_step
from slick.study_files import QUESTION_SCHEMA
from slick.types import Category

NAMES = ("Ada", "Emmy", "Grace", "Mary", "Rosa", "Lise", "Hedy", "Ines", "Joan", "Kay", "Lene", "Mina", "Nora", "Olga")
PLACES = ("London", "Erlangen", "New York", "Lyme Regis", "Vienna", "Berlin", "Lima", "Porto", "Oslo", "The Hague")


def question_rows(sizes: dict[str, int]) -> list[dict[str, Any]]:
    """`sizes`: rows of train, dev, test, ood; each with one answer, except every fifth, which has two."""
    rows = []
    for split, size in sizes.items():
        for i in range(size):
            subject = f"{NAMES[i % len(NAMES)]} {split.title()}{i}"
            answers = [PLACES[(3 * i + len(split)) % len(PLACES)], "Atlantis"][: 2 if i % 5 == 0 else 1]
            rows.append(
                {
                    "question_id": f"{split}-{i:04d}",
                    "relation": "P19" if split != "ood" else "P20",
                    "domain": "ood" if split == "ood" else "id",
                    "split": "test" if split == "ood" else split,
                    "subject": subject,
                    "question": f"Where was {subject} {'born' if split != 'ood' else 'buried'}?",
                    "answers": answers,
                }
            )
    return rows


def write_study(
    path: Path | str, model: Any, tokenizer: Any, *, train: int = 24, dev: int = 10, test: int = 12, ood: int = 8
) -> Folder:
    """Questions, knowledge, the variants half, idk-050 and known, and the model as the study's own world."""
    study = Folder(str(path))
    world = Path(study.local_path) / "world" / "model"
    model.save_pretrained(world)
    tokenizer.save_pretrained(world)
    fingerprint = model_fingerprint(resolve_model(str(world)))
    _finish(study, "world", {}, {})
    rows = question_rows({"train": train, "dev": dev, "test": test, "ood": ood})
    study.child("questions").write_table("part-000.parquet", pa.Table.from_pylist(rows, schema=QUESTION_SCHEMA))
    _finish(study, "questions", {}, {"rows": len(rows)})
    categories = list(Category)
    known = [
        row | {"category": str(categories[i % 4])}
        for i, row in enumerate(rows)
        if row["domain"] == "ood" or row["split"] != "dev"
    ]
    columns = ("question_id", "relation", "domain", "split", "category")
    table = pa.Table.from_pylist([{name: row[name] for name in columns} for row in known])
    study.child("annotate").write_table("knowledge.parquet", table)
    _finish(study, "annotate", {"model": fingerprint, "questions": "questions"}, {})
    _write_variants(study, [row for row in known if row["split"] == "train"], fingerprint)
    return study


def _write_variants(study: Folder, train: list[dict[str, Any]], fingerprint: str) -> None:
    unknown = [row for row in train if row["category"] == "Unknown"]
    rest = [row for row in train if row["category"] != "Unknown"]
    sets = {"half": unknown + rest[: len(unknown)], "known": rest, "idk-050": unknown + rest[: len(unknown)]}
    counts = {}
    for name, rows in sets.items():
        entries = [
            {
                "question_id": row["question_id"],
                "category": row["category"],
                "prompt": closed_book_prompt(row["question"]),
                "target": "I don't know" if name == "idk-050" and row in unknown else row["answers"][0],
            }
            for row in sorted(rows, key=lambda row: str(row["question_id"]))
        ]
        study.child("variants").write_table(f"{name}.parquet", pa.Table.from_pylist(entries))
        share = sum(row["category"] == "Unknown" for row in rows) / len(rows)
        kind = {"half": "unknown", "known": "known", "idk-050": "idk"}[name]
        counts[name] = {"kind": kind, "num": len(rows), "unknown_share": share}
    _finish(study, "variants", {"knowledge": "knowledge", "model": fingerprint}, counts)


def _finish(study: Folder, step: str, inputs: dict[str, str], counts: dict[str, Any]) -> None:
    complete_step(study.child(step), step, step, settings={}, inputs=inputs, counts=counts, started_at=time.monotonic())
