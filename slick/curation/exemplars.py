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

    Only questions that stand alone qualify, with a target of one line.
    """
    alone = [
        candidate
        for candidate in candidates
        if all(turn.role == "system" for turn in candidate.context) and len(candidate.target.splitlines()) == 1
    ]
    ranked = sorted(
        {candidate.question_id: candidate for candidate in alone}.values(),
        key=lambda candidate: (len(candidate.target.split()), int(row_key(0, "exemplars", candidate.question_id))),
    )
    return sorted(candidate.question_id for candidate in ranked[:POOL_SIZE])


def group_names(candidates: Sequence[Candidate], min_rows: int) -> dict[str, str]:
    """The relation of each group: the group itself, or `OTHER_GROUP` if it has too few rows to draw exemplars from.

    Args:
        candidates: all questions.
        min_rows: the fewest rows that a group of its own has.
    """
    by_group: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_group.setdefault(candidate.group, []).append(candidate)
    return {
        group: group if len(exemplar_pool(members)) >= min_rows else OTHER_GROUP for group, members in by_group.items()
    }


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
                "question that stands alone and a target of one line; give rows with --exemplars FILE, or lower "
                "--annotate.num-shots"
            )
    return draw_exemplar_sets(pools, num_sets=num_sets, num_shots=num_shots, seed=seed)
