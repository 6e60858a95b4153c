"""The exemplars of a curated file: its own rows with the shortest targets, or the rows of another file. Pure."""

from collections.abc import Mapping, Sequence

from slick.curation.selection import Candidate
from slick.errors import DataError
from slick.prompts import draw_exemplar_sets
from slick.rng import row_key
from slick.study_files import Exemplars

POOL_SIZE = 32
"""Rows of a group, those with the shortest targets, that its exemplar sets are drawn from."""

OTHER_GROUP = "other rows"
"""The relation of rows whose group has too few rows for exemplars of its own."""


def exemplar_pool(candidates: Sequence[Candidate]) -> list[str]:
    """The question_ids that the exemplars of one group are drawn from: shortest targets first, ties by a hash.

    Only questions without context and with a target of one line qualify.
    """
    alone = [
        candidate
        for candidate in candidates
        if all(turn.role == "system" for turn in candidate.context) and len(candidate.target.splitlines()) == 1
    ]
    ranked = sorted(
        {candidate.question_id: candidate for candidate in alone}.values(),
        key=lambda candidate: (len(candidate.answer.split()), int(row_key(0, "exemplars", candidate.question_id))),
    )
    return sorted(candidate.question_id for candidate in ranked[:POOL_SIZE])


def relation_names(candidates: Sequence[Candidate], min_rows: int) -> dict[tuple[str, int | None], str]:
    """The relation of the questions of each group, or of each group and place of a sentence in its target.

    It has the name of the group, or `OTHER_GROUP` if there are too few rows to draw exemplars from.

    Args:
        candidates: all questions.
        min_rows: minimum number of rows of a group with exemplars of its own.
    """
    by_key: dict[tuple[str, int | None], list[Candidate]] = {}
    for candidate in candidates:
        by_key.setdefault((candidate.group, candidate.sentence), []).append(candidate)
    return {
        (group, sentence): relation_name(group if len(exemplar_pool(members)) >= min_rows else OTHER_GROUP, sentence)
        for (group, sentence), members in by_key.items()
    }


def relation_name(group: str, sentence: int | None) -> str:
    """The relation of a group, or of the sentences of its targets at one place.

    >>> relation_name("rows", 2), relation_name("rows", None)
    ('rows, sentence 2', 'rows')
    """
    return group if sentence is None else f"{group}, sentence {sentence}"


def draw_own_exemplars(
    by_relation: Mapping[str, Sequence[Candidate]], *, num_sets: int, num_shots: int, seed: int
) -> Exemplars:
    """Exemplar sets of every relation, from the questions themselves.

    Raises:
        DataError: a relation has too few rows that qualify.
    """
    pools = {relation: exemplar_pool(candidates) for relation, candidates in by_relation.items()}
    needed = num_shots + 2
    for relation, pool in pools.items():
        if len(pool) < needed:
            raise DataError(
                f"{len(pool)} of the {relation} could serve as exemplars, expected at least {needed} with a "
                "question without context and a target of one line; give rows with --exemplars FILE, or lower "
                "--annotate.num-shots"
            )
    return draw_exemplar_sets(pools, num_sets=num_sets, num_shots=num_shots, seed=seed)
