"""What a study's world planted, beside the labels of the same facts, and why some of the two do not agree."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from slick.analysis.planted import (
    COPIED_FROM_PROMPT,
    FREQUENT_GUESS,
    OTHER_FACT_ANSWER,
    RARE_GUESS,
    REWORDED,
    RIVAL,
    UNEXPLAINED,
    UNRELATED_ANSWER,
    PlantedFacts,
)
from slick.matching import make_matcher, normalize
from slick.storage import Folder
from slick.study import Manifest, read_manifest
from slick.study_files import read_answer_part, read_exemplars, read_knowledge, read_planted, read_question_rows
from slick.types import Category

Row = dict[str, Any]
AnswerList = list[tuple[int, str, bool]]
"""All answers to one question: exemplar set, answer, whether it hits."""
AnswerFrequencies = tuple[Counter[str], dict[str, Counter[str]]]
"""How often each answer was given to the never-planted questions of a relation: in all, and to each question."""

_LABEL_COLUMNS = ("question_id", "relation", "split", "p_correct_greedy", "p_correct_sampled", "category")
_ANSWER_COLUMNS = ("question_id", "greedy_text", "greedy_hit", "sampled_text", "sampled_hit")


def load_planted(study: Folder) -> PlantedFacts | None:
    """The annotated facts of the study's own world; None where the model is another, or nothing is annotated.

    Raises:
        StudyError: a file of a finished step is missing or broken.
    """
    world, annotate = (study.child(step) for step in ("world", "annotate"))
    manifest = read_manifest(annotate)
    # A model that is named did not learn this world, so what the world planted is no truth about it.
    if manifest is None or manifest.settings.get("model") or not world.exists("planted.parquet"):
        return None
    if read_manifest(world) is None or read_manifest(study.child("questions")) is None:
        return None
    rows, strangers = _join_planted(study)
    if not rows:
        return None
    cause_missing_reason = _cause_missing_reason(annotate, manifest)
    causes = {} if cause_missing_reason else _find_causes(study, rows)
    temperature = (manifest.settings.get("sampling") or {}).get("temperature")
    return PlantedFacts(
        question_ids=np.array([row["question_id"] for row in rows], dtype=str),
        strength=np.array([row["strength"] for row in rows], dtype=str),
        num_gold=np.array([row["num_gold"] for row in rows], dtype=np.int64),
        num_rival=np.array([row["num_rival"] for row in rows], dtype=np.int64),
        category=np.array([row["category"] for row in rows], dtype=str),
        greedy=_to_float_array(row["p_correct_greedy"] for row in rows),
        sampled=_to_float_array(row["p_correct_sampled"] for row in rows),
        cause=np.array([causes.get(row["question_id"], "") for row in rows], dtype=str),
        cause_missing_reason=cause_missing_reason,
        temperature=None if temperature is None else float(temperature),
        num_unmatched_questions=strangers,
    )


def _join_planted(study: Folder) -> tuple[list[Row], int]:
    """Rows of the knowledge table with what was planted of them, and how many rows are no fact of the world."""
    names = ["relation", "split", "question", "answer", "strength", "num_gold", "num_rival", "rival"]
    planted = read_planted(study, names).to_pylist()
    facts = {(fact["relation"], fact["split"], fact["question"]): fact for fact in planted}
    questions = read_question_rows(study.child("questions"), ["question_id", "question"]).to_pylist()
    asked = {row["question_id"]: row["question"] for row in questions}
    known = read_knowledge(study, _LABEL_COLUMNS).to_pylist()
    rows = []
    for row in sorted(known, key=lambda row: str(row["question_id"])):
        fact = facts.get((row["relation"], row["split"], asked.get(row["question_id"])))
        if fact is not None:
            rows.append({**row, **fact})
    return rows, len(known) - len(rows)


def _cause_missing_reason(annotate: Folder, manifest: Manifest) -> str:
    """Why the stored answers cannot tell causes; empty if they can."""
    if manifest.settings.get("estimator", "sampled") != "sampled":
        return "the gold estimator keeps no answers that would tell why; annotate with --estimator sampled"
    if manifest.settings.get("mode", "full") != "full":
        return "the labels mode keeps no whole answers that would tell why; annotate with --mode full"
    if not annotate.child("generations").names(".parquet"):
        return "the stored answers that would tell why are not there"
    return ""


def _find_causes(study: Folder, rows: list[Row]) -> dict[str, str]:
    """Why facts are labelled other than planted, by question id."""
    never = {row["question_id"] for row in rows if row["strength"] == "never"}
    wrong = [row for row in rows if (row["strength"] == "never") != (row["category"] == Category.UNKNOWN)]
    said = _load_answers(study, never | {row["question_id"] for row in wrong})
    normal: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        normal[row["relation"]].add(normalize(row["answer"]))
    habits = _answer_frequencies(
        [row for row in rows if row["question_id"] in never and row["question_id"] in said], said
    )
    shown = _exemplar_answers(study)
    found = {}
    for row in wrong:
        one = said.get(row["question_id"])
        if one is None:
            continue
        if row["strength"] == "never":
            found[row["question_id"]] = _guess_cause(row, one, habits[row["relation"]], shown.get(row["relation"], []))
        else:
            found[row["question_id"]] = _miss_cause(row, one, normal[row["relation"]])
    return found


def _load_answers(study: Folder, wanted: set[str]) -> dict[str, AnswerList]:
    folder = study.child("annotate", "generations")
    found = {}
    for name in folder.names(".parquet"):
        part = read_answer_part(folder, name, _ANSWER_COLUMNS)
        mask = pa.array([one in wanted for one in part["question_id"].to_pylist()], type=pa.bool_())
        found.update({row["question_id"]: list(_iter_answers(row)) for row in part.filter(mask).to_pylist()})
    return found


def _iter_answers(row: Row) -> Iterator[tuple[int, str, bool]]:
    for i, (text, hit) in enumerate(zip(row["greedy_text"], row["greedy_hit"], strict=True)):
        yield i, text, hit
    for i, (texts, hits) in enumerate(zip(row["sampled_text"] or [], row["sampled_hit"] or [], strict=True)):
        for text, hit in zip(texts or [], hits or [], strict=True):
            yield i, text, bool(hit)


def _answer_frequencies(never: list[Row], said: Mapping[str, AnswerList]) -> dict[str, AnswerFrequencies]:
    """The habits of each relation."""
    found: dict[str, AnswerFrequencies] = {}
    for row in never:
        total, each = found.setdefault(row["relation"], (Counter(), {}))
        counts: Counter[str] = Counter()
        for text, num in Counter(text for _, text, _ in said[row["question_id"]]).items():
            counts[normalize(text)] += num
        total.update(counts)
        each[row["question_id"]] = counts
    return found


def _guess_cause(row: Row, one: AnswerList, habits: AnswerFrequencies, shown: list[set[str]]) -> str:
    """Why a fact that was never planted is labelled Known."""
    gold = normalize(row["answer"])
    hit_sets = {i for i, _, hit in one if hit}
    if hit_sets and all(i < len(shown) and gold in shown[i] for i in hit_sets):
        return COPIED_FROM_PROMPT
    total, each = habits
    others = len(each) - 1
    elsewhere = total[gold] - each[row["question_id"]][gold]
    if elsewhere >= max(others, 1):
        return FREQUENT_GUESS
    return RARE_GUESS if elsewhere else UNEXPLAINED


def _miss_cause(row: Row, one: AnswerList, answers: set[str]) -> str:
    """Why a planted fact is labelled Unknown."""
    target = make_matcher([row["answer"]], "contains")
    texts = Counter(text for _, text, _ in one)
    if any(target.is_hit(text) for text in texts):
        return REWORDED
    counts: Counter[str] = Counter()
    for text, num in texts.items():
        counts[normalize(text)] += num
    first = max(counts, key=lambda text: (counts[text], text))
    if row["rival"] and first == normalize(row["rival"]):
        return RIVAL
    return OTHER_FACT_ANSWER if first in answers else UNRELATED_ANSWER


def _exemplar_answers(study: Folder) -> dict[str, list[set[str]]]:
    """The normalised answers that stand in each exemplar set, by relation."""
    sets = read_exemplars(study.child("annotate"))
    rows = read_question_rows(study.child("questions"), ["question_id", "answers"]).to_pylist()
    answers = {row["question_id"]: {normalize(answer) for answer in row["answers"]} for row in rows}
    return {
        relation: [set().union(*(answers.get(one, set()) for one in ids)) for ids in of_relation]
        for relation, of_relation in sets.items()
    }


def _to_float_array(values: Iterable[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
