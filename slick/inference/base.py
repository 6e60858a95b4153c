"""The interface of inference engines: greedy and sampled answers to questions under several few-shot prefixes.

An engine registers with `register_engine`, usually in a module of `slick.inference.engines`. That module is imported to
list the engines, so it imports heavy libraries inside functions only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from slick.errors import EngineError, SettingsError
from slick.matching import AnswerMatcher
from slick.precision import Runtime
from slick.registry import Registry
from slick.settings import check_settings, setting

Capability = Literal[
    "answer_log_probabilities", "answers", "compile", "early_exit", "gold", "log_probabilities", "tensor_parallel"
]
"""What an engine can do.

`answer_log_probabilities`: `Engine.answer_log_probabilities`. `answers`: `Engine.generate`. `compile`: compiled
layers. `early_exit`: `generate` with targets skips samples that cannot change a category. `gold`: `Engine.score`.
`log_probabilities`: `Engine.log_probabilities`. `tensor_parallel`: one engine on several GPUs.
"""

PACKED_ENGINE = "transformers"
"""The engine of this project, for one GPU or the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How answers are sampled. The defaults are the paper's (arXiv:2405.05904, section 3 and appendix C)."""

    num_samples: int = setting(16, minimum=0)
    """Sampled answers per prompt, in addition to the one greedy answer; 0 for greedy only."""
    temperature: float = setting(0.5, above=0)
    """Sampling temperature."""
    top_k: int = setting(40, minimum=1)
    """Sample among this many most likely tokens."""
    max_new_tokens: int = setting(32, minimum=1)
    """Maximum number of tokens in an answer."""
    seed: int = setting(0, "seed")
    """Random seed of the samples; see `slick.rng`."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """How prompts become tokens, and where their answers end. The defaults are those of few-shot prompts in plain text.

    Chat prompts contain their special tokens as text, and their answers follow without a space.
    """

    add_special_tokens: bool = True
    """Add the tokenizer's own special tokens, such as a beginning of text."""
    stop_at_newline: bool = True
    """An answer ends at the first newline; otherwise only at an end token."""
    end_texts: tuple[str, ...] = ()
    """Texts of further end tokens, such as the end of a turn. Each is one token."""
    answer_separator: str = " "
    """Text between a prompt and an answer that is scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Questions under several prefixes: prompt (p, q) is `prefixes[p] + suffixes[q]`."""

    prefixes: Sequence[str]
    """Few-shot prefixes, one per exemplar set; the index of a prefix is part of the random key of every sample."""
    question_ids: Sequence[str]
    suffixes: Sequence[str]
    style: PromptStyle = PromptStyle()

    def __post_init__(self) -> None:
        if not self.prefixes or not len(self.question_ids) == len(self.suffixes) > 0:
            raise EngineError(
                f"a batch has {len(self.prefixes)} prefixes, {len(self.question_ids)} question_ids and "
                f"{len(self.suffixes)} suffixes; expected at least one of each, and as many question_ids as suffixes"
            )

    def part(self, part: slice) -> "PromptBatch":
        """Some of the questions under the same prefixes."""
        return replace(self, question_ids=self.question_ids[part], suffixes=self.suffixes[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All answers to one prompt, each cut where it ends by the `PromptStyle`, and stripped."""

    greedy_text: str
    sampled_text: tuple[str | None, ...]
    """By sample index, `num_samples` long; None for a sample that was skipped or stopped early."""
    missed: frozenset[int] = frozenset()
    """Indices of samples without text that are known to be wrong, because no correct answer begins like them."""
    num_tokens: int
    """Tokens of all these answers, counted as if each were decoded alone, stop tokens included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldScore:
    """How one prompt scores a given answer, without sampling."""

    is_greedy: bool
    """Whether the greedy answer is this text."""
    probability: float
    """Probability that one sampled answer is this text, in its usual tokenization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """The log-probability of one whole answer after one prompt."""

    log_probability: float
    """Natural logarithm of the probability, at temperature 1 over the whole vocabulary, of the answer's tokens and of
    any token that ends it."""
    num_tokens: int
    """Number of probabilities that are multiplied: the answer's tokens, and one for its end."""


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """Work that an engine has done since it was created."""

    prompts: int = 0
    generations: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts, each prefix counted for each prompt."""
    prefilled_tokens: int = 0
    """Prompt tokens that went through the model."""
    answer_tokens: int = 0
    """Tokens of all answers, counted as if each were decoded alone."""
    decoded_tokens: int = 0
    """Answer tokens that went through the model."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The configuration to load a model in an engine."""

    model: str
    """A folder, a Hugging Face Hub id or a .gguf file; see `slick.models.resolve_model`."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`."""
    num_gpus: float = 0.0
    """GPUs of this engine: 0 for the CPU, a fraction for a shared GPU."""
    batch_questions: int = 32
    """Questions decoded together on the CPU; on a GPU an engine may choose."""
    max_tokens: int = 0
    """Upper bound of the tokens of a prompt and its answer."""
    prefixes: tuple[str, ...] = ()
    """Prefixes of the prompts to come, for checking that the tokenizer preserves them."""
    trust_remote_code: bool = False
    compile: bool = False
    """Compile the decoder layers. Capability `compile`."""


class Engine:
    """Base class of engines.

    Samples depend only on the seed, the question_id, the index of the prefix, the index of the sample and the position
    of the token, and never on the other questions of a batch.
    """

    stats: EngineStats
    runtime: Runtime
    """Device, dtype and attention kernel."""

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answer each question of the batch under each prefix. Capability `answers`.

        Args:
            batch: the prompts.
            sampling: one greedy and `num_samples` sampled answers per prompt.
            targets: None to generate all answers. With one matcher per question, an engine with the capability
                `early_exit` skips sampling after a correct greedy answer, stops at the first correct sample, and cuts
                samples that can no longer match. Generated texts are the same with and without targets.

        Returns:
            One tuple per question, with one `Answers` per prefix.

        Raises:
            EngineError: an answer could not be generated. No answer is ever omitted or replaced by an empty one.
        """
        raise NotImplementedError

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """Score the gold answer of each question under each prefix in one pass. Capability `gold`.

        Returns:
            One tuple per question, with one `GoldScore` per prefix.

        Raises:
            EngineError: see `generate`.
        """
        raise NotImplementedError

    def answer_log_probabilities(
        self, batch: PromptBatch, answers: Sequence[str], max_new_tokens: int
    ) -> list[tuple[AnswerScore, ...]]:
        """Log-probability of one whole answer per question under each prefix. Capability `answer_log_probabilities`.

        Args:
            batch: the prompts.
            answers: one text per question, which is not empty.
            max_new_tokens: generated answers are cut off at this length, so an answer of as many tokens or more needs
                no end.

        Returns:
            One tuple per question, with one `AnswerScore` per prefix.

        Raises:
            EngineError: see `generate`.
        """
        raise NotImplementedError

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-probability that the answer to each question begins with each choice. Capability `log_probabilities`.

        Args:
            batch: prompts with one prefix.
            choices: beginnings of an answer, which follow the prompt after the `answer_separator` of its style.

        Returns:
            One tuple per question, with the natural logarithm of each choice's probability at temperature 1 over the
            whole vocabulary.

        Raises:
            EngineError: see `generate`.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """A registered engine."""

    load: Callable[[EngineConfig], Engine]
    capabilities: frozenset[Capability]


ENGINES: Registry[EngineSpec] = Registry("engine", "slick.inference.engines")

Loader = TypeVar("Loader", bound=Callable[[EngineConfig], Engine])


def register_engine(name: str, capabilities: Iterable[Capability]) -> Callable[[Loader], Loader]:
    """Decorator: register a function, or an `Engine` subclass, that loads an engine from an `EngineConfig`."""

    def register(load: Loader) -> Loader:
        ENGINES.register(name)(EngineSpec(load, frozenset(capabilities)))
        return load

    return register


def check_capability(engine: str, capability: Capability, setting_text: str) -> None:
    """Refuse a setting that an engine does not support.

    Args:
        engine: its name.
        capability: required by the setting.
        setting_text: the setting as the user gave it, such as `--estimator gold`.

    Raises:
        SettingsError: the engine lacks the capability, or there is no such engine.
    """
    if capability in ENGINES.get(engine).capabilities:
        return
    able = [name for name, spec in ENGINES.items() if capability in spec.capabilities]
    raise SettingsError(
        f"--engine {engine} does not support {setting_text}; use --engine {' or '.join(able)}"
        if able
        else f"no engine supports {setting_text}"
    )
