"""Settings of the annotate step."""

from dataclasses import dataclass, field
from typing import Literal

from slick.annotation.judge_client import JudgeConfig
from slick.annotation.worker import Mode
from slick.errors import SettingsError
from slick.inference.base import ENGINES, Capability, EngineConfig, SamplingConfig, check_capability
from slick.inference.selection import AUTO_ENGINE, EngineRequest
from slick.matching import JUDGE, MATCHERS
from slick.precision import Dtype
from slick.prompt_formats import AnswerEnd, PromptFormatName, parse_template_arguments
from slick.settings import affects, check_settings, identity_settings, register_settings, setting

Estimator = Literal["sampled", "gold"]
PTrueScope = Literal["test", "all"]

MAIN_STORES = GENERATIONS, GOLD = "generations", "gold"
REPEATS, CONTROLS = "repeats", "controls"


@register_settings("annotate")
@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateConfig:
    """Settings of the annotate step. Defaults are the paper's (arXiv:2405.05904, section 3 and appendix C)."""

    model: str = setting("", "content")
    """A folder, a Hugging Face Hub id or a .gguf file; empty for the study's own world/model."""
    seed: int = setting(0, "seed")
    """Random seed of the exemplar sets; sampling has its own in `sampling`."""
    num_exemplar_sets: int = setting(10, "labels", minimum=1)
    """Few-shot prompts per question."""
    num_shots: int = setting(4, "labels", minimum=1)
    """Exemplars per few-shot prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig, metadata=affects("labels"))
    """Number of answers per prompt, and how they are sampled."""
    mode: Mode = setting("full", "labels")
    """`full` keeps all answers. `labels` generates only what determines the category, so it gives the same categories
    at lower cost: it skips sampling after a correct greedy answer, stops at the first correct sample, and cuts samples
    that can no longer match. P_Correct and the texts of wrong samples are then unknown."""
    estimator: Estimator = setting("sampled", "labels")
    """`sampled` generates answers. `gold` scores the first gold answer in one pass without sampling: exact
    probabilities of one answer text, at a fraction of the cost."""
    matcher: str = setting("exact", "labels", registry=MATCHERS)
    """When an answer is correct; see `slick.matching`. In a shell, quote names such as 'f1>=0.7'."""
    judge: JudgeConfig = field(
        default_factory=JudgeConfig, metadata=affects("labels", when=lambda settings: settings.get("matcher") == JUDGE)
    )
    """The language model that grades answers, with the matcher `judge`; see `slick.annotation.judge`."""
    repeats_per_relation: int = setting(0, "labels", minimum=0)
    """Questions per relation that are annotated twice, with other exemplars and samples, to measure how often
    categories flip. Not supported by the gold estimator, which does not sample."""
    controls_per_relation: int = setting(0, "labels", minimum=0)
    """Questions per relation that are repeated with an invented subject, to measure how often answers are guessed."""
    annotate_dev: bool = setting(False, "labels")
    """Annotate dev questions too, except those that serve as exemplars."""
    annotate_exemplars: bool = setting(False, "labels", when=lambda values: bool(values["annotate_exemplars"]))
    """Annotate all dev questions, also those that serve as exemplars: in prompts about an exemplar itself, another one
    takes its place."""
    exemplars: str | None = setting(None, "content")
    """JSON file with the exemplar sets of every relation, as lists of question_ids (the form of
    annotate/exemplars.json); by default they are drawn from the dev questions."""
    prompt_format: PromptFormatName = setting("qa", "labels", when=lambda values: values["prompt_format"] != "qa")
    """`qa`: lines of questions and answers, as in the paper. `chat`: the model's chat template, with the exemplars as
    earlier turns. `auto`: `chat` if the tokenizer has a template."""
    answer_end: AnswerEnd = setting("line", "labels", when=lambda values: values["answer_end"] != "line")
    """Answers end at the first newline (`line`), or only at the end of the model's turn (`turn`, chat prompts only)."""
    template_arguments: str | None = setting(None, "labels", when=lambda values: bool(values["template_arguments"]))
    """JSON object of arguments for the chat template, such as '{"enable_thinking": true}'. Switches of reasoning are
    off by default."""
    limit_per_relation: int | None = setting(None, minimum=1)
    """Annotate at most this many questions of each relation and split, chosen by a hash of their ids; None for all."""
    engine: str = setting(AUTO_ENGINE, "labels", registry=ENGINES, other_values=(AUTO_ENGINE,))
    """Inference engine. `auto`: the engine of earlier results in the folder, otherwise `transformers` if the model fits
    one GPU or runs on the CPU and supports packed batches, and else `vllm`, if the package vllm is installed; the
    manifest records the one used and why."""
    dtype: Dtype = "auto"
    """Of weights and arithmetic. `auto`: the dtype of earlier results in the folder, otherwise bfloat16 on a GPU that
    supports it and float32 elsewhere; the manifest records the one used."""
    batch_questions: int = setting(32, minimum=1)
    """Questions decoded together on the CPU; part of the fingerprint, because it determines the last bits of logits. On
    a GPU, as many questions of a file as memory holds."""
    batches_per_file: int = setting(2, "cost", minimum=1)
    """Batches an actor answers before it writes a file, on the CPU: the most that is lost if it dies. On a GPU 8 times
    as many, which are answered together. Towards the end of a run, fewer."""
    compile: bool = setting(False, when=lambda values: bool(values["compile"]))
    """Compile the model's layers with torch.compile, which fuses their kernels; equal up to rounding. Takes each actor
    a minute or more at its start. Only for the engine `transformers`."""
    min_actors: int = setting(1, "cost", minimum=1)
    """Minimum number of engines in the pool."""
    max_actors: int | None = setting(None, "cost")
    """Maximum number of engines in the pool; None for as many as the cluster can hold at the start."""
    gpus_per_actor: float | None = setting(None, "cost")
    """None: 1 if the cluster has GPUs, otherwise 0; with `--engine auto`, as many as the model needs."""
    cpus_per_actor: float = setting(1.0, "cost")
    """Logical CPUs that Ray reserves per actor."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    max_set_aside_share: float = setting(0.01, "nothing", minimum=0, maximum=1)
    """Questions with a prompt longer than the model's context are set aside: listed and counted, but not annotated. If
    their share of all questions exceeds this, the step stops before it generates anything."""
    p_true: bool = setting(False, "nothing")
    """Also score P(True), the probability with which the model says that the gold answer is correct, for finding E20
    and figure 5. It is not part of the labels: the same command adds it to an annotated study."""
    p_true_of: PTrueScope = setting("test", "p_true")
    """Questions to score P(True) of: `test`, in distribution, as in the paper; or `all` that are labelled."""
    hidden: bool = setting(False, "nothing")
    """Also score the stored answers, the gold answer and gold answers of other questions, for the experiment `hidden`.
    It is not part of the labels: the same command adds it to an annotated study."""
    hidden_questions: int = setting(100, "hidden", minimum=1)
    """Score the answers to at most this many Unknown questions of each relation, and a quarter as many of each other
    category."""
    hidden_answers: int = setting(10, "hidden", minimum=1)
    """Score at most this many right and this many wrong stored answers to a question, the most frequent ones."""
    hidden_prefixes: int = setting(3, "hidden", minimum=1)
    """Score under this many first exemplar sets; the log-probability of an answer is the mean over them."""

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_engine()
        self._check_prompts()
        check_judge(self.matcher, self.judge)
        if self.matcher == JUDGE and self.mode == "labels":
            raise SettingsError(
                f"--mode labels does not keep all answers, which --matcher {JUDGE} needs; use --mode full"
            )
        if self.judge.graded:
            raise SettingsError("--judge.graded needs finished labels; give it with --rescore")
        if self.hidden and (self.mode, self.estimator) != ("full", "sampled"):
            raise SettingsError(
                "--hidden ranks the stored answers, so it needs --mode full and --estimator sampled, got "
                f"{self.mode} and {self.estimator}"
            )
        if self.sampling.num_samples < 1:
            raise SettingsError("num_samples must be at least 1: samples separate WeaklyKnown from Unknown")
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise SettingsError(f"max_actors is {self.max_actors}, less than min_actors, which is {self.min_actors}")

    def _check_engine(self) -> None:
        if self.estimator == "gold" and (self.mode, self.matcher) != ("full", "exact"):
            raise SettingsError(
                "the gold estimator generates no answers: it needs --mode full and --matcher exact, got "
                f"{self.mode} and {self.matcher}"
            )
        gpus = self.gpus_per_actor or 0.0
        if gpus < 0 or (gpus > 1 and gpus % 1):
            raise SettingsError(f"gpus_per_actor is a share in [0, 1] or a whole number, got {gpus:g}")
        if self.engine != AUTO_ENGINE:
            for capability, setting_text in self.needed_capabilities.items():
                check_capability(self.engine, capability, setting_text)

    @property
    def needed_capabilities(self) -> dict[Capability, str]:
        """The required capabilities of the engine, each with the setting that needs it."""
        needed: dict[Capability, str] = {
            "gold" if self.estimator == "gold" else "answers": f"--estimator {self.estimator}"
        }
        if self.mode == "labels":
            needed["early_exit"] = "--mode labels"
        if self.compile:
            needed["compile"] = "--compile"
        if self.gpus_per_actor is not None and self.gpus_per_actor > 1:
            needed["tensor_parallel"] = f"--gpus-per-actor {self.gpus_per_actor:g} (for more speed raise --max-actors)"
        return needed

    def engine_request(self, model: str) -> EngineRequest:
        """The input of `slick.inference.selection.choose_engine`.

        Args:
            model: a folder, a Hugging Face Hub id or a .gguf file; empty for a model that is not built yet.
        """
        return EngineRequest(
            model=model,
            dtype=self.dtype,
            needed=self.needed_capabilities,
            gpus_per_actor=self.gpus_per_actor,
            trust_remote_code=self.trust_remote_code,
        )

    def engine_config(self, model: str) -> EngineConfig:
        """The configuration of the engines of this step, without what depends on the prompts.

        Args:
            model: a folder, a Hugging Face Hub id or a .gguf file.
        """
        return EngineConfig(
            model=model,
            dtype=self.dtype,
            batch_questions=self.batch_questions,
            trust_remote_code=self.trust_remote_code,
            compile=self.compile,
        )

    def _check_prompts(self) -> None:
        if self.prompt_format == "qa" and (self.answer_end != "line" or self.template_arguments):
            raise SettingsError(
                "answer_end and template_arguments are for chat prompts: with --prompt-format qa, answers end at the "
                "first newline; give --prompt-format chat"
            )
        parse_template_arguments(self.template_arguments)

    def identity(self) -> dict[str, object]:
        """The settings that change labels. Batch sizes do not, and the model has a fingerprint of its own."""
        return identity_settings(self)


def check_judge(matcher: str | None, judge: JudgeConfig) -> None:
    """Refuse a judge without the matcher `judge`, and the matcher without a judge.

    Raises:
        SettingsError: only one of them is given.
    """
    if matcher == JUDGE and not judge.is_given:
        raise SettingsError(
            f"--matcher {JUDGE} needs a judge: --judge.model for a local one, or --judge.url and --judge.served-model"
        )
    if matcher != JUDGE and judge != JudgeConfig():
        raise SettingsError(f"settings of --judge have no effect with --matcher {matcher}; add --matcher {JUDGE}")


def main_store(config: AnnotateConfig) -> str:
    """The folder inside annotate/ that holds the answers behind the labels."""
    return GOLD if config.estimator == "gold" else GENERATIONS
