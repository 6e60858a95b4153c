"""What every engine does: greedy and sampled answers to many questions behind each of several prefixes, in one call."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from slick.errors import EngineError, SettingsError
from slick.precision import Runtime
from slick.settings import setting


class AnswerMatcher(Protocol):
    """What the answer to a question should be."""

    def is_hit(self, answer: str) -> bool:
        """Whether the answer is right."""
        ...

    def can_still_match(self, beginning: str) -> bool:
        """False only if no answer that begins like this is right."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How answers are drawn. The defaults are the paper's (arXiv:2405.05904, section 3 and appendix C)."""

    num_samples: int = 16
    """Sampled answers to one prompt, beside the one greedy answer; 0 for greedy only."""
    temperature: float = 0.5
    """Of the sampled answers."""
    top_k: int = 40
    """Sampled answers choose among that many likeliest tokens."""
    max_new_tokens: int = 32
    """Tokens after which an answer is cut off."""
    seed: int = setting(0, "seed")
    """Of the draws; see `slick.rng`."""

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.top_k < 1 or self.max_new_tokens < 1:
            raise SettingsError(
                f"need num_samples >= 0, top_k >= 1 and max_new_tokens >= 1, got {self.num_samples}, {self.top_k}, "
                f"{self.max_new_tokens}"
            )
        if not self.temperature > 0:
            raise SettingsError(
                f"temperature must be above 0, got {self.temperature}; greedy answers are always drawn as well"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Questions under several prefixes: prompt (p, q) is `prefixes[p] + suffixes[q]`."""

    prefixes: Sequence[str]
    """Exemplar sets as text; the place of a prefix is part of the key of every draw."""
    question_ids: Sequence[str]
    suffixes: Sequence[str]

    def __post_init__(self) -> None:
        if not self.prefixes or not len(self.question_ids) == len(self.suffixes) > 0:
            raise EngineError(
                f"a batch has {len(self.prefixes)} prefixes, {len(self.question_ids)} question_ids and "
                f"{len(self.suffixes)} suffixes; wanted one or more of each, and as many question_ids as suffixes"
            )

    def part(self, part: slice) -> "PromptBatch":
        """The same prefixes with some of the questions."""
        return PromptBatch(prefixes=self.prefixes, question_ids=self.question_ids[part], suffixes=self.suffixes[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All answers to one prompt, each cut at the first newline or end token and stripped."""

    greedy_text: str
    sampled_text: tuple[str | None, ...]
    """In the order of the sample index, `num_samples` long; None for a sample that its question did not need whole."""
    missed: frozenset[int] = frozenset()
    """Those of the samples without text that are known to be wrong: they began as no right answer does."""
    num_tokens: int
    """Tokens of all these answers, each counted as if decoded alone, its stop token included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldScore:
    """What one prompt says of a given answer, without any answer being drawn."""

    is_greedy: bool
    """Whether the greedy answer is this text."""
    probability: float
    """The chance that one sampled answer is this text, in its usual tokens."""


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """What an engine has spent since it was built."""

    prompts: int = 0
    generations: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts, each prefix counted for each prompt."""
    prefilled_tokens: int = 0
    """Prompt tokens that really went through the model."""
    answer_tokens: int = 0
    """Tokens of all answers, each counted as if decoded alone."""
    decoded_tokens: int = 0
    """Answer tokens that really went through the model."""
    seconds: float = field(default=0.0)


class Engine(Protocol):
    """Answers prompts. Draws depend on (seed, question_id, place of the prefix, sample, step) alone."""

    stats: EngineStats
    runtime: Runtime
    """Device, dtype and attention kernel in use."""

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answers to each question of the batch, one `Answers` for each prefix.

        Args:
            batch: the prompts.
            sampling: one greedy and `num_samples` sampled answers to each prompt.
            targets: None for all answers; else, one for each question, only what settles its category is made: no
                sample of a question that a greedy answer hits, none longer than the first sample of the question that
                hits, and no more of a sample than rules out a hit. What is made is the same text either way.

        Raises:
            EngineError: an answer could not be made; none is ever left out or empty in its place.
        """
        ...

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """How likely the gold answer of each question is under each prefix, from one pass and without a draw.

        Raises:
            EngineError: as `generate`.
        """
        ...

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """How likely the answer to each question is to begin with each of the choices, a space before it.

        Args:
            batch: the prompts, behind one prefix.
            choices: beginnings of an answer.

        Returns:
            For each question the natural logarithm of each choice's probability, at temperature 1 and over all tokens.

        Raises:
            EngineError: as `generate`.
        """
        ...
