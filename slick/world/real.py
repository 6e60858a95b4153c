"""Rows of the real EntityQuestions for a world: the same layout and the same planting, facts that people know."""

import hashlib
from collections.abc import Mapping

import numpy as np

from slick.draws import derive_seed
from slick.errors import DataError
from slick.matching import nfc
from slick.questions.relations import Relation
from slick.questions.rows import read_rows
from slick.questions.sources import QuestionSource, open_source
from slick.world.config import WorldConfig
from slick.world.facts import SubjectAnswer, relation_domains, split_sizes


def source_fingerprint(config: WorldConfig) -> str:
    """Of the real question set; empty where names are invented."""
    return open_source(config.questions).fingerprint if config.questions else ""


def sample_real_rows(
    config: WorldConfig, relations: Mapping[str, Relation]
) -> dict[str, dict[str, list[SubjectAnswer]]]:
    """Rows of `config.questions`, by relation and split, sampled from those with one answer; no subject occurs twice.

    Splits are those of the source: a world's test questions are test questions there.

    Raises:
        DataError: the source is damaged, or has too few such rows in some relation and split.
    """
    found = _single_answer_rows(open_source(config.questions), relations)
    used: set[str] = set()
    rows: dict[str, dict[str, list[SubjectAnswer]]] = {}
    for relation, domain in relation_domains(config).items():
        rows[relation] = {}
        for split, size in split_sizes(config, domain).items():
            pool = found.get((relation, split), [])
            # Sorted by a hash before the draw: the order of rows in the source's files does not matter.
            pool = sorted(pool, key=lambda row: hashlib.blake2b(repr(row).encode(), digest_size=8).digest())
            rng = np.random.default_rng(derive_seed(config.seed, "real", relation, split))
            drawn: list[SubjectAnswer] = []
            for i in rng.permutation(len(pool)):
                if len(drawn) < size and pool[i][0] not in used:
                    used.add(pool[i][0])
                    drawn.append(pool[i])
            if len(drawn) < size:
                raise DataError(
                    f"{config.questions} has {len(drawn)} usable questions (one answer, a subject of their own) of "
                    f"relation {relation} in split {split}; the world wants {size}: lower that number, or leave the "
                    "relation out"
                )
            rows[relation][split] = drawn
    return rows


def _single_answer_rows(
    source: QuestionSource, relations: Mapping[str, Relation]
) -> dict[tuple[str, str], list[SubjectAnswer]]:
    if source.layout != "entity_questions":
        raise DataError(f"{source.name} is one table; a world is planted from EntityQuestions, its zip or its folder")
    found: dict[tuple[str, str], list[SubjectAnswer]] = {}
    for raw in read_rows(source):
        if raw.problem is not None or not isinstance(raw.content, dict):
            raise DataError(f"{source.name}, {raw.where}: {raw.problem}; mend the row or leave its file out")
        relation, split = nfc(str(raw.content.get("relation"))), raw.named_splits[0]
        question, answers = raw.content.get("question"), raw.content.get("answers")
        if relation not in relations or not isinstance(question, str) or not isinstance(answers, list):
            continue
        subject = relations[relation].subject(question)
        single = len(answers) == 1 and isinstance(answers[0], str) and answers[0].strip() and "\n" not in answers[0]
        if subject is not None and single and "\n" not in question:
            # The corpus is written in the Unicode form in which the model is asked.
            found.setdefault((relation, split), []).append((subject, nfc(answers[0])))
    return found
