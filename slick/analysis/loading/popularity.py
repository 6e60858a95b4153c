"""How popular the subjects of annotated questions and of training rows are, where the questions' source says so."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from slick.analysis.popularity import PopularityData
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge, read_question_rows, read_variant_rows


def load_popularity(study: Folder, variants: Iterable[str]) -> PopularityData | None:
    """Popularity of the annotated questions, and which of them each fine-tuning set holds.

    Args:
        study: its folder.
        variants: names of the sets that were drawn.

    Returns:
        None if the source has no popularity, or nothing is annotated.
    """
    asked, folder = read_manifest(study.child("questions")), study.child("annotate")
    if asked is None or not asked.counts.get("with_popularity") or read_manifest(folder) is None:
        return None
    table = read_question_rows(study.child("questions"), ["question_id", "popularity"])
    popularity = dict(zip(table["question_id"].to_pylist(), table["popularity"].to_pylist(), strict=True))
    columns = ["question_id", "relation", "category", "p_correct_greedy", "p_correct_sampled"]
    knowledge = read_knowledge(study, columns).sort_by("question_id").to_pydict()
    values = np.array([popularity.get(name) for name in knowledge["question_id"]], dtype=np.float64)
    there = ~np.isnan(values)
    ids = np.array(knowledge["question_id"], dtype=str)[there]
    return PopularityData(
        question_ids=ids,
        relations=np.array(knowledge["relation"], dtype=str)[there],
        categories=np.array(knowledge["category"], dtype=str)[there],
        greedy=np.array(knowledge["p_correct_greedy"], dtype=np.float64)[there],
        sampled=np.array(knowledge["p_correct_sampled"], dtype=np.float64)[there],
        values=values[there],
        num_unknown_popularity=int(np.count_nonzero(~there)),
        rows={name: np.flatnonzero(np.isin(ids, _row_ids(study, name))) for name in variants},
    )


def _row_ids(study: Folder, name: str) -> NDArray[np.str_]:
    table = read_variant_rows(study, name, ["question_id"])
    return np.array(table["question_id"].to_pylist(), dtype=str)
