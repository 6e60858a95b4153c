"""Settings of the annotate step, and which of them the labels depend on."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from slick.annotation.worker import Mode
from slick.errors import SettingsError
from slick.inference.base import DEFAULT_ENGINE, ENGINES, SamplingConfig, check_capability
from slick.matching import MATCHERS
from slick.precision import Dtype
from slick.settings import affects, check_settings, identity_settings, register_settings, setting

Estimator = Literal["sampled", "gold"]
PTrueScope = Literal["test", "all"]

MAIN_STORES = GENERATIONS, GOLD = "generations", "gold"
REPEATS, CONTROLS = "repeats", "controls"


@register_settings("annotate")
@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateConfig:
    """The annotate step. Defaults are the paper's (arXiv:2405.05904, section 3 and appendix C)."""

    model: str = setting("", "content")
    """A folder, a hub id or a .gguf file; empty for the study's own world/model."""
    seed: int = setting(0, "seed")
    """Of the exemplar sets; the draws of samples have their own in `sampling`."""
    num_exemplar_sets: int = setting(10, "labels")
    """Few-shot prompts each question is asked under."""
    num_shots: int = setting(4, "labels")
    """Solved questions in each prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig, metadata=affects("labels"))
    """How many answers to each prompt, and how they are drawn."""
    mode: Mode = setting("full", "labels")
    """`full` keeps all answers. `labels` makes only what settles a category, the same categories for less: no samples
    where a greedy answer hits, none longer than the first that hits, and of a sample no more than rules out a hit.
    P_Correct is then not known, nor what samples that miss would have said."""
    estimator: Estimator = setting("sampled", "labels")
    """`sampled` draws answers. `gold` scores the first gold answer in one pass without drawing any: exact chances of
    one answer text, at a fraction of the cost."""
    matcher: str = setting("exact", "labels", registry=MATCHERS)
    """When an answer is correct; see `slick.matching`."""
    repeats_per_relation: int = setting(0, "labels")
    """Questions of each relation that are asked again, with other exemplars and draws: how often do categories flip?
    Not by the gold estimator, which draws nothing."""
    controls_per_relation: int = setting(0, "labels")
    """Questions of each relation that are asked of a subject nobody knows: how often is an answer guessed?"""
    annotate_dev: bool = setting(False, "labels")
    """Ask dev questions too, but for those that serve as exemplars."""
    limit_per_relation: int | None = None
    """Ask at most that many questions of each relation and split, chosen by a hash of their ids; None for all."""
    engine: str = setting(DEFAULT_ENGINE, "labels", registry=ENGINES)
    """What generates the answers; `vllm` needs the package vllm."""
    dtype: Dtype = "auto"
    """Of weights and arithmetic. `auto`: the dtype in which the folder was begun, else bfloat16 on a GPU that computes
    it and float32 elsewhere; the manifest names the one that was used."""
    batch_questions: int = 32
    """Questions the engine decodes together on CPU; part of the fingerprint, since it decides the last bits of logits.
    On GPU it takes as many of a file's questions as memory holds."""
    batches_per_file: int = setting(2, "cost")
    """Batches an actor answers before it stores them, on CPU: what is lost at most when it dies. On GPU 8 times as
    many, which an actor answers together. Towards the end of a run they are fewer."""
    min_actors: int = setting(1, "cost")
    """Engines the pool may shrink to."""
    max_actors: int | None = setting(None, "cost")
    """Engines the pool may grow to; None for as many as the cluster has room for at the start."""
    gpus_per_actor: float | None = setting(None, "cost")
    """None for 1 where the cluster has GPUs and 0 where it has none."""
    cpus_per_actor: float = setting(1.0, "cost")
    """Logical CPUs that Ray sets aside for an actor."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    max_set_aside_share: float = setting(0.01, "nothing")
    """Questions with a prompt that is too long for the model's context are set aside: listed, counted, not labelled.
    Above this share of all questions the step stops before any is asked."""
    p_true: bool = setting(False, "nothing")
    """Ask the model as well how likely the gold answer is right (P(True)), which findings E20 and figure 5 compare the
    labels with. No part of the labels: it can be asked of a study that is annotated, by the same command again."""
    p_true_of: PTrueScope = setting("test", "p_true")
    """Questions that P(True) is asked of: `test`, in distribution, as in the paper; or `all` that are labelled."""

    def __post_init__(self) -> None:
        check_settings(self)
        sizes = ("num_exemplar_sets", "num_shots", "batch_questions", "batches_per_file", "min_actors")
        for name in sizes:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in get_args(Dtype):
            raise SettingsError(f"dtype is one of {', '.join(get_args(Dtype))}, got {self.dtype!r}")
        if min(self.repeats_per_relation, self.controls_per_relation) < 0:
            raise SettingsError("repeats_per_relation and controls_per_relation must not be negative")
        self._check_engine()
        if self.sampling.num_samples < 1:
            raise SettingsError("num_samples must be at least 1: samples tell WeaklyKnown from Unknown")
        if self.limit_per_relation is not None and self.limit_per_relation < 1:
            raise SettingsError(
                f"limit_per_relation must be at least 1, or None for all, got {self.limit_per_relation}"
            )
        if not 0.0 <= self.max_set_aside_share <= 1.0:
            raise SettingsError(
                f"max_set_aside_share is a share in [0, 1], got {self.max_set_aside_share}; 1 percent is 0.01"
            )
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise SettingsError(f"max_actors is {self.max_actors}, less than min_actors, {self.min_actors}")

    def _check_engine(self) -> None:
        if self.estimator == "gold" and (self.mode, self.matcher) != ("full", "exact"):
            raise SettingsError(
                "the gold estimator generates no answers: it needs --mode full and --matcher exact, got "
                f"{self.mode} and {self.matcher}"
            )
        check_capability(
            self.engine, "gold" if self.estimator == "gold" else "answers", f"--estimator {self.estimator}"
        )
        if self.mode == "labels":
            check_capability(self.engine, "early_exit", "--mode labels")
        gpus = self.gpus_per_actor or 0.0
        if gpus < 0 or (gpus > 1 and gpus % 1):
            raise SettingsError(f"gpus_per_actor is a share in [0, 1] or a whole number, got {gpus:g}")
        if gpus > 1:
            check_capability(
                self.engine, "tensor_parallel", f"--gpus-per-actor {gpus:g} (for more speed raise --max-actors)"
            )

    def identity(self) -> dict[str, object]:
        """The settings that change labels; actors and file sizes do not, and the model counts by its fingerprint."""
        return identity_settings(self)


def main_store(config: AnnotateConfig) -> str:
    """The folder that answers go to, inside annotate/."""
    return GOLD if config.estimator == "gold" else GENERATIONS
