"""A judge decides which rows ask for a fact; other rows do not test knowledge and are skipped.

Decisions are stored in curate/judgements/ by a hash of the judge and the prompt, so an interrupted run resumes.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

from slick.annotation.config import AnnotateConfig
from slick.annotation.judge import is_pending, judge_fingerprint, judge_key, read_judgements
from slick.annotation.judge_pool import Item, grade
from slick.annotation.rubrics import ROW_RUBRIC, row_item
from slick.cluster import set_job_message
from slick.curation.selection import Candidate, Decision, candidates_of, skip_if
from slick.errors import EngineError
from slick.formatting import ProgressReporter, format_percent
from slick.storage import Folder
from slick.study_files import ASKS_FACT, ASKS_OTHER, UNPARSABLE

_LOG = logging.getLogger(__name__)

NO_FACT: Final = "asks for no fact, by the judge"
NOT_DECIDED: Final = "no decision of the judge"

CONTROL_PROMPTS = {
    "What is the capital of France?": ASKS_FACT,
    "Who wrote the novel Dune?": ASKS_FACT,
    "In which year did the Titanic sink?": ASKS_FACT,
    "Where was Marie Curie born?": ASKS_FACT,
    "Name the chemical element with the symbol Fe.": ASKS_FACT,
    "Which river flows through Cairo?": ASKS_FACT,
    "Who painted the Mona Lisa?": ASKS_FACT,
    "What is the largest planet of the solar system?": ASKS_FACT,
    "Write a short poem about the sea.": ASKS_OTHER,
    "Translate into French: The train is late.": ASKS_OTHER,
    "Summarize this text: The meeting was moved to Friday because the room was taken.": ASKS_OTHER,
    "Suggest three names for a bakery.": ASKS_OTHER,
    "Write a Python function that reverses a list.": ASKS_OTHER,
    "Rewrite this sentence politely: Give me the report now.": ASKS_OTHER,
    "Should I buy a house or rent one?": ASKS_OTHER,
    "Anna has 3 apples and Tom has 4. How many do they have together?": ASKS_OTHER,
}
"""Prompts with their correct decisions, to check the judge before its decisions are used."""


def skip_other_rows(folder: Folder, decisions: Sequence[Decision], config: AnnotateConfig) -> list[Decision]:
    """The decisions, without candidates whose prompt asks for no fact by the judge, or is not decided.

    Args:
        folder: curate/ of a study.
        decisions: with the candidates to judge; equal prompts are judged once.
        config: the judge, and the sizes of batches and the pool.

    Raises:
        EngineError: the judge fails, or does not recognize the prompts in `CONTROL_PROMPTS`. All decisions until then
            are stored.
        ModelError: the local judge cannot be used.
    """
    rows = _RowJudge(folder, config)
    rows.check()
    items = {rows.key(candidate): _item(candidate) for candidate in candidates_of(decisions)}
    outcomes = rows.decide(items, "judge: rows")
    counts = Counter(outcomes[key] for key in items)
    _LOG.info(
        "judge: of %s distinct prompts, %s ask for a fact, %s do not, %s without decision",
        *(f"{num:,}" for num in (len(items), *(counts[name] for name in (ASKS_FACT, ASKS_OTHER, UNPARSABLE)))),
    )
    reasons = {ASKS_FACT: None, ASKS_OTHER: NO_FACT, UNPARSABLE: NOT_DECIDED}
    return skip_if(decisions, lambda candidate: reasons[outcomes[rows.key(candidate)]])


def _item(candidate: Candidate) -> str:
    return row_item(candidate.context, candidate.question)


class _RowJudge:
    """The judge and its stored decisions."""

    def __init__(self, folder: Folder, config: AnnotateConfig) -> None:
        self._folder, self._config = folder, config
        self._identity = judge_fingerprint(config.judge)

    def key(self, candidate: Candidate) -> str:
        """The key of the decision about a row."""
        return self._key(_item(candidate))

    def _key(self, item: str) -> str:
        return judge_key(self._config.judge, self._identity, item, ROW_RUBRIC)

    def decide(self, items: dict[str, str], name: str) -> dict[str, str]:
        """The outcome of each item by key; those without a stored one are decided first."""
        stored = read_judgements(self._folder, self._config.judge, self._identity)
        rows = [Item(key, text, stored.attempts.get(key, 0)) for key, text in items.items()]
        pending = [item for item in rows if is_pending(item, stored)]
        if pending:
            progress = ProgressReporter(name, len(items), "prompts", on_update=set_job_message)
            progress.resume_at(len(items) - len(pending))
            grade(self._folder, pending, self._config, progress, ROW_RUBRIC)
            stored = read_judgements(self._folder, self._config.judge, self._identity)
        return {key: stored.outcomes.get(key, UNPARSABLE) for key in items}

    def check(self) -> None:
        """Test the judge on `CONTROL_PROMPTS`.

        Raises:
            EngineError: it recognizes too few of them.
        """
        least = self._config.judge.min_control_accuracy
        if not least:
            return
        expected = {row_item((), prompt): outcome for prompt, outcome in CONTROL_PROMPTS.items()}
        keys = {self._key(item): item for item in expected}
        outcomes = self.decide(keys, "judge: control")
        right = sum(outcomes[key] == expected[item] for key, item in keys.items())
        if right < least * len(expected):
            raise EngineError(
                f"the judge does not distinguish prompts that ask for a fact from others: it recognizes {right} of "
                f"{len(expected)} known ones ({format_percent(right / len(expected))}), expected at least "
                f"{format_percent(least)}. Give a larger judge, or leave its decision out with --no-judge-rows"
            )
        _LOG.info("judge: recognizes %d of %d prompts with a known decision", right, len(expected))
