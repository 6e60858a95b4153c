"""Claims of long targets (experimental): every sentence of a target continues the text before it.

A target of several sentences becomes one question per sentence: the prompt of the row, followed by an answer that
begins with the sentences before it. An exemplar of a second sentence, say, is the target of another row up to the end
of its second sentence, so the model learns from the exemplars how far to go on. Sentences at one place in their targets
therefore form a relation of their own, and places that too few targets reach are skipped. Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from slick.curation.exemplars import exemplar_pool, relation_names
from slick.curation.selection import (
    CONTEXT,
    SHORT_WORDS,
    Candidate,
    Decision,
    Skipped,
    candidates_of,
    is_given,
    skip_if,
)
from slick.errors import DataError
from slick.matching import names_of, normalize
from slick.sentences import split_sentences
from slick.types import Category

NO_CLAIM = "sentence without a claim"
NO_NAME = "target without a new name or number"
FEW_EXEMPLARS = "too few targets with so many sentences"

_FILLERS = (
    "absolutely all answer can certainly course do for good great hello help helps hi hope i is it let me no of "
    "ok okay please question sure thank thanks that this to welcome yes you your youre"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimLabel:
    """The label of one sentence of a target."""

    turn: int
    sentence: int
    """Its place in the target, from 1."""
    category: Category | None
    """None if it has no label."""
    is_filler: bool = False
    """It states nothing, such as "Sure!"."""


def split_claims(decisions: Iterable[Decision]) -> list[Decision]:
    """Replace each question by one decision per sentence of its target: a question, or the reason why there is none.

    Targets of a single sentence of up to 5 words remain one question.

    Raises:
        DataError: the id of a sentence is also that of another row.
    """
    result: list[Decision] = []
    for decision in decisions:
        whole = isinstance(decision, Skipped) or len(decision.target.split()) <= SHORT_WORDS
        result += [decision] if whole and not _has_several(decision) else _claims(decision)
    _check_ids(candidates_of(result))
    return result


def _has_several(decision: Decision) -> bool:
    return isinstance(decision, Candidate) and len(split_sentences(decision.target)) > 1


def _claims(decision: Decision) -> list[Decision]:
    assert isinstance(decision, Candidate)
    claims: list[Decision] = []
    start = ""
    for number, text in enumerate(split_sentences(decision.target), 1):
        sentence = text.strip()
        reason = NO_CLAIM if not has_claim(sentence) else None
        if is_given((sentence,), decision.question, decision.context):
            reason = CONTEXT
        if reason is not None:
            claims.append(
                Skipped(row=decision.row, where=decision.where, turn=decision.turn, reason=reason, sentence=number)
            )
        else:
            claims.append(
                replace(
                    decision,
                    question_id=f"{decision.question_id}-sentence{number}",
                    accepted=(sentence,),
                    answer_start=start + text[: len(text) - len(text.lstrip())],
                    sentence=number,
                )
            )
        start += text
    return claims


def has_claim(sentence: str) -> bool:
    """Whether a sentence may state a fact: it is not a question, does not introduce a list, and has a word of content.

    >>> [has_claim(text) for text in ("Ur.", "Sure!", "Who was he?", "Here is his life:", "I hope this helps!")]
    [True, False, False, False, False]
    """
    end = sentence.rstrip("\"'”’»*_)").rstrip()
    words = normalize(sentence).split()
    return not end.endswith(("?", "？", ":", "：")) and any(
        word not in _FILLERS.split() and any(map(str.isalnum, word)) for word in words
    )


def _check_ids(candidates: Sequence[Candidate]) -> None:
    """Refuse ids of a file that equal the id of a sentence."""
    sentences = {candidate.question_id: candidate for candidate in candidates if candidate.sentence is not None}
    for candidate in candidates:
        other = sentences.get(candidate.question_id)
        if candidate.sentence is None and other is not None:
            raise DataError(
                f"{candidate.where}: its id {candidate.question_id!r} is that of sentence {other.sentence} of "
                f"{other.where}; rename the id, or name another --id-column"
            )


def skip_without_names(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions without targets that the matcher `names` cannot judge: all their names are in the text before.

    A wrong continuation of "Ada was" would otherwise count as correct, because it has the name.
    """

    def reason_of(candidate: Candidate) -> str | None:
        if candidate.sentence is None and len(candidate.target.split()) <= SHORT_WORDS:
            return None  # compared as a whole
        before = [turn.content for turn in candidate.context] + [candidate.question, candidate.answer_start or ""]
        return None if names_of(candidate.target) - set(normalize(" ".join(before)).split()) else NO_NAME

    return skip_if(decisions, reason_of)


def skip_rare_places(decisions: Sequence[Decision], min_exemplars: int) -> list[Decision]:
    """The decisions without questions that have too few others like them for exemplars.

    Args:
        decisions: see `split_claims`.
        min_exemplars: minimum number of questions to draw exemplar sets from.
    """
    candidates = candidates_of(decisions)
    names = relation_names(candidates, min_exemplars)
    by_relation: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_relation.setdefault(names[candidate.group, candidate.sentence], []).append(candidate)
    enough = {name for name, members in by_relation.items() if len(exemplar_pool(members)) >= min_exemplars}
    return [
        Skipped(
            row=decision.row,
            where=decision.where,
            turn=decision.turn,
            reason=FEW_EXEMPLARS,
            sentence=decision.sentence,
        )
        if isinstance(decision, Candidate) and names[decision.group, decision.sentence] not in enough
        else decision
        for decision in decisions
    ]


def remove_sentences(target: str, removed: Collection[int]) -> str:
    r"""A target without some of its sentences; the others keep their text, and line breaks before them.

    Args:
        target: the whole text.
        removed: places of sentences, from 1.

    >>> remove_sentences("He was born in Ur. He wed Bo.\n\nHe died.\n", {2})
    'He was born in Ur.\n\nHe died.\n'
    """
    kept: list[tuple[str, str]] = []
    for number, piece in enumerate(split_sentences(target), 1):
        text = piece.rstrip()
        gap = piece[len(text) :]
        if number not in removed:
            kept.append((text, gap))
        elif kept and gap.count("\n") > kept[-1][1].count("\n"):
            kept[-1] = (kept[-1][0], gap)
    if kept:
        kept[-1] = (kept[-1][0], target[len(target.rstrip()) :])
    return "".join(text + gap for text, gap in kept)


def unknown_share(claims: Sequence[ClaimLabel]) -> float | None:
    """Share of Unknown claims among the labelled ones; None if there are none."""
    labelled = [claim.category for claim in claims if claim.category is not None]
    return labelled.count(Category.UNKNOWN) / len(labelled) if labelled else None


def sentences_to_remove(claims: Sequence[ClaimLabel], categories: Collection[Category]) -> dict[int, set[int]]:
    """Turn -> places of its sentences of these categories, for turns that have any."""
    removed: dict[int, set[int]] = {}
    for claim in claims:
        if claim.category in categories:
            removed.setdefault(claim.turn, set()).add(claim.sentence)
    return removed


def has_no_claim_left(claims: Sequence[ClaimLabel], removed: dict[int, set[int]]) -> bool:
    """Whether a turn has no sentence left that states anything."""
    left = Counter(
        claim.turn for claim in claims if not claim.is_filler and claim.sentence not in removed.get(claim.turn, ())
    )
    return any(not left[turn] for turn in removed)
