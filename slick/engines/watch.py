"""Ends samples that do not bear on the category of their question, by what they say."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from slick.engines.base import Target
from slick.engines.tree import Flags, Ints


class CategoryWatch:
    """What `--mode labels` asks of the answers as they grow; see `slick.engines.tree.Watch`."""

    def __init__(
        self, targets: Sequence[Target], question_of: Callable[[Ints], Ints], text_of: Callable[[int], str]
    ) -> None:
        """Watch answers.

        Args:
            targets: one for each question.
            question_of: the question of each of some rows.
            text_of: what a row says so far.
        """
        self._targets, self._question_of, self._text_of = targets, question_of, text_of
        self._may_hit: dict[tuple[int, str], bool] = {}

    def hit(self, rows: Ints) -> Ints:
        """Questions that one of these answers hits."""
        told = set(self._told(rows))  # many prompts of a question have the same answer
        hit = [question for question, text in told if self._targets[question].is_hit(text)]
        return np.unique(np.array(hit, dtype=np.int64))

    def hopeless(self, rows: Ints) -> Flags:
        """Which beginnings are those of no right answer."""
        found = []
        for question, text in self._told(rows):
            beginning = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character of which some bytes are still to come
            may_hit = self._may_hit.get((question, beginning))
            if may_hit is None:
                may_hit = self._may_hit[question, beginning] = self._targets[question].may_hit(beginning)
            found.append(not may_hit)
        return np.array(found, dtype=bool)

    def _told(self, rows: Ints) -> Iterator[tuple[int, str]]:
        return zip(self._question_of(rows).tolist(), map(self._text_of, rows.tolist()), strict=True)
