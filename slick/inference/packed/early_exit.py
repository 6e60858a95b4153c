"""Early exit for `--mode labels`: ends samples that cannot change the category of their question."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from slick.inference.packed.sampler import BoolArray, IntArray
from slick.matching import AnswerMatcher


class CategoryEarlyExit:
    """Matches growing answers with the gold answers; implements `slick.inference.packed.sampler.EarlyExit`."""

    def __init__(
        self,
        targets: Sequence[AnswerMatcher],
        question_of: Callable[[IntArray], IntArray],
        text_of: Callable[[int], str],
    ) -> None:
        """Early exit for one batch.

        Args:
            targets: one matcher per question.
            question_of: maps rows to the indices of their questions.
            text_of: the text of a row so far.
        """
        self._targets, self._question_of, self._text_of = targets, question_of, text_of
        self._can_still_match: dict[tuple[int, str], bool] = {}

    def hit_questions(self, rows: IntArray) -> IntArray:
        """Questions that one of these finished answers matches."""
        answers = set(self._row_texts(rows))  # many prompts of a question have the same answer
        questions = [question for question, text in answers if self._targets[question].is_hit(text)]
        return np.unique(np.array(questions, dtype=np.int64))

    def cannot_match(self, rows: IntArray) -> BoolArray:
        """True for rows that no correct answer begins like."""
        return np.array([not self._matches_beginning(*row) for row in self._row_texts(rows)], dtype=bool)

    def _matches_beginning(self, question: int, text: str) -> bool:
        beginning = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the first bytes of an incomplete character
        key = question, beginning
        if key not in self._can_still_match:
            self._can_still_match[key] = self._targets[question].can_still_match(beginning)
        return self._can_still_match[key]

    def _row_texts(self, rows: IntArray) -> Iterator[tuple[int, str]]:
        return zip(self._question_of(rows).tolist(), map(self._text_of, rows.tolist()), strict=True)
