"""A study with labelled questions of chosen numbers, for tests that draw fine-tuning sets from it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from slick.storage import Folder
from slick.study import Manifest, complete_step
from slick.types import Category

Counts = Mapping[str, tuple[int, int, int, int]]
"""relation -> rows of HighlyKnown, MaybeKnown, WeaklyKnown, Unknown."""

PAPER: Counts = {
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

SMALL: Counts = {"P17": (9, 8, 7, 10), "P19": (5, 30, 12, 20), "P26": (11, 11, 11, 11)}


def write_study(
    path: Path, counts: Counts, *, order: int | None = None, categories: Mapping[str, str | None] | None = None
) -> Folder:
    """A study with finished questions and annotate steps; rows that must not be drawn lie among them."""
    study = Folder(str(path))
    rows = [
        (f"{relation}-{category}-{i}", relation, "id", "train", category)
        for relation, nums in counts.items()
        for category, num in zip(Category, nums, strict=True)
        for i in range(num)
    ]
    rows += [(f"test-{i}", "P17", "id", "test", "Unknown") for i in range(50)]
    rows += [(f"ood-{i}", "P50", "ood", "train", "Unknown") for i in range(50)]
    if order is not None:
        rows = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
    names = ("question_id", "relation", "domain", "split", "category")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["category"] = [
        (categories or {}).get(i, c) for i, c in zip(columns["question_id"], columns["category"], strict=True)
    ]
    asked = {key: columns[key] for key in names[:4]}
    asked["question"] = [f"What of {i}?" for i in columns["question_id"]]
    answers = pa.array([[f"gold {i}", "second"] for i in columns["question_id"]], pa.list_(pa.string()))
    study.child("questions").write_table("part-00000.parquet", pa.table({**asked, "answers": answers}))
    study.child("annotate").write_table("knowledge.parquet", pa.table(columns))
    finish_step(study, "questions", {}, "q1")
    finish_step(study, "annotate", {"questions": "q1", "model": "m1"}, "k1")
    return study


def finish_step(study: Folder, step: str, inputs: dict[str, str], identity: str) -> Manifest:
    return complete_step(study.child(step), step, identity, settings={}, inputs=inputs, counts={}, started_at=0.0)
