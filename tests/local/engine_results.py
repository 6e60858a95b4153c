"""Results of an engine in all its modes on fixed prompts, to compare devices."""

from dataclasses import replace
from typing import Any

from slick.inference.base import Answers, PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine


class ArtificialMatcher:
    """An artificial matcher that accepts few answers, so that not every greedy answer is a hit."""

    def is_hit(self, answer: str) -> bool:
        return self.can_still_match(answer) and len(answer) % 11 == 0

    def can_still_match(self, beginning: str) -> bool:
        return not beginning or ord(beginning[0]) % 3 != 0


_NAMES = [f"Peru {i}" for i in range(12)]
BATCH = PromptBatch(
    prefixes=["Q: Where was Ada Lovelace born?\nA: London\n", "", "Q: Who wrote Dune?\nA: Frank\nQ: Who?\nA: He\n"],
    question_ids=_NAMES,
    suffixes=[f"Q: What is the capital of {name}?\nA:" for name in _NAMES],
)
_ONE_PREFIX = PromptBatch(prefixes=BATCH.prefixes[:1], question_ids=_NAMES, suffixes=BATCH.suffixes)
SAMPLING = SamplingConfig(num_samples=5, max_new_tokens=8, temperature=1.0, top_k=20)


def texts(answers: list[tuple[Answers, ...]]) -> list[list[str | None]]:
    """Greedy and sampled texts of each prompt."""
    return [[a.greedy_text, *a.sampled_text] for row in answers for a in row]


def all_results(engine: TransformersEngine) -> dict[str, Any]:
    """Results of generation, early exit, scoring and log-probabilities."""
    full = engine.generate(BATCH, SAMPLING)
    labels = engine.generate(BATCH, SAMPLING, [ArtificialMatcher()] * len(_NAMES))
    gold = engine.score(BATCH, _NAMES, replace(SAMPLING, top_k=400))
    choices = engine.log_probabilities(_ONE_PREFIX, [" London", " He"])
    return {
        "full": texts(full),
        "labels": texts(labels),
        "probability": [score.probability for scores in gold for score in scores],
        "choices": [value for row in choices for value in row],
    }
