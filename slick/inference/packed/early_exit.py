"""Ends samples that do not bear on the category of their question, by what they say."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from slick.inference.packed.sampler import BoolArray, IntArray
from slick.matching import AnswerMatcher


class CategoryEarlyExit:
    """What `--mode labels` asks of the answers as they grow; see `slick.inference.packed.sampler.Watch`."""

    def __init__(
        self,
        targets: Sequence[AnswerMatcher],
        question_of: Callable[[IntArray], IntArray],
        text_of: Callable[[int], str],
    ) -> None:
        """Watch answers.

        Args:
            targets: one for each question.
            question_of: the question of each of some rows.
            text_of: what a row says so far.
        """
        self._targets, self._question_of, self._text_of = targets, question_of, text_of
        self._may_hit: dict[tuple[int, str], bool] = {}

    def hit_questions(self, rows: IntArray) -> IntArray:
        """Questions that one of these answers hits."""
        told = set(self._row_texts(rows))  # many prompts of a question have the same answer
        hit_questions = [question for question, text in told if self._targets[question].is_hit(text)]
        return np.unique(np.array(hit_questions, dtype=np.int64))

    def cannot_match(self, rows: IntArray) -> BoolArray:
        """Which beginnings are those of no right answer."""
        found = []
        for question, text in self._row_texts(rows):
            beginning = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character of which some bytes are still to come
            can_still_match = self._may_hit.get((question, beginning))
            if can_still_match is None:
                can_still_match = self._may_hit[question, beginning] = self._targets[question].can_still_match(
                    beginning
                )
            found.append(not can_still_match)
        return np.array(found, dtype=bool)

    def _row_texts(self, rows: IntArray) -> Iterator[tuple[int, str]]:
        return zip(self._question_of(rows).tolist(), map(self._text_of, rows.tolist()), strict=True)
