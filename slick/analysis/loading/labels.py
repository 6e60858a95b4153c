"""The finished knowledge table and its generations, as counts and labels."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.analysis.data import PrefixLabels
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_answer_part, read_knowledge
from slick.types import Category


def load_filter_counts(study: Folder) -> dict[str, dict[str, int]] | None:
    """Rows that the filters left of the full archive, by split and relation; None if it was not read."""
    manifest = read_manifest(study.child("questions"))
    audit = manifest.counts.get("audit") if manifest else None
    return audit if isinstance(audit, dict) else None


def load_counts(study: Folder) -> dict[tuple[str, str, str], dict[str, int]]:
    """Questions of each category by relation, domain and split."""
    folder = study.child("annotate")
    if read_manifest(folder) is None:
        return {}
    table = read_knowledge(study, ["relation", "domain", "split", "category"])
    tally = Counter(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for (relation, domain, split, category), num in sorted(tally.items()):
        counts.setdefault((relation, domain, split), dict.fromkeys(map(str, Category), 0))[category] = num
    return counts


def load_test_ids(study: Folder) -> dict[str, NDArray[np.str_]]:
    """The question_ids of each relation's ID test questions, sorted; empty without a knowledge table."""
    folder = study.child("annotate")
    if read_manifest(folder) is None:
        return {}
    table = read_knowledge(study, ["question_id", "relation", "domain", "split"])
    table = table.filter(pc.and_(pc.equal(table["domain"], "id"), pc.equal(table["split"], "test")))
    ids: dict[str, list[str]] = {}
    for question_id, relation in zip(table["question_id"].to_pylist(), table["relation"].to_pylist(), strict=True):
        ids.setdefault(relation, []).append(question_id)
    return {relation: np.array(sorted(found), dtype=str) for relation, found in sorted(ids.items())}


def load_prefix_labels(study: Folder) -> PrefixLabels | None:
    """Labels under the first n exemplar sets, for each n, from the stored generations of ID test questions."""
    folder = study.child("annotate")
    if read_manifest(folder) is None or not folder.child("generations").names(".parquet"):
        return None
    table = read_knowledge(study, ["question_id", "domain", "split"])
    wanted = {row["question_id"] for row in table.to_pylist() if row["domain"] == "id" and row["split"] == "test"}
    generations = folder.child("generations")
    rows: dict[str, tuple[int, int, int]] = {}
    for name in generations.names(".parquet"):
        part = read_answer_part(generations, name, ["question_id", "greedy_hit", "sampled_hit"])
        mask = pa.array([question_id in wanted for question_id in part["question_id"].to_pylist()], type=pa.bool_())
        for row in part.filter(mask).to_pylist():
            rows[row["question_id"]] = first_hit_and_gap(row["greedy_hit"], row["sampled_hit"])
    if not rows:
        return None
    ids = sorted(rows)
    num_sets = max(rows[one][2] for one in ids)
    first_hit = np.array([rows[one][0] for one in ids])[:, None]
    first_gap = np.array([rows[one][1] for one in ids])[:, None]
    asked = np.arange(1, num_sets + 1)[None, :]
    no_hit = first_hit >= asked
    return PrefixLabels(
        question_ids=np.array(ids, dtype=str),
        unknown_QN=no_hit & (first_gap >= asked),
        undetermined_QN=no_hit & (first_gap < asked),
    )


def first_hit_and_gap(greedy: list[bool], sampled: list[list[bool | None] | None] | None) -> tuple[int, int, int]:
    """(index of the first exemplar set with a hit, index of the first without all its samples, number of sets).

    An index equal to the number of sets means there is none.

    >>> first_hit_and_gap([False, True], [[False], None])
    (1, 1, 2)
    """
    num = len(greedy)
    per_set = sampled if sampled is not None else [None] * num
    hit = next((i for i in range(num) if greedy[i] or any(bool(one) for one in per_set[i] or [])), num)
    gap = next((i for i in range(num) if not per_set[i] or None in (per_set[i] or [])), num)
    return hit, gap, num
