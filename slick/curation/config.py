"""Settings of `slick curate`."""

from dataclasses import dataclass, field, replace
from typing import Literal

from slick.annotation import AnnotateConfig
from slick.annotation.config import check_judge
from slick.annotation.judge_client import JudgeConfig
from slick.curation.formats import ROW_FORMATS, ColumnNames
from slick.errors import SettingsError
from slick.inference.base import SamplingConfig
from slick.matching import JUDGE
from slick.prompt_formats import PromptFormatName
from slick.settings import affects, check_settings, register_settings, setting

Action = Literal["keep", "drop", "idk", "weight", "repeat", "drop-claims"]
Claims = Literal["none", "sentences"]
Turns = Literal["last", "all"]

AUTO = "auto"


@register_settings("curate")
@dataclass(frozen=True, slots=True, kw_only=True)
class CurateConfig:
    """Settings of the curate step: how rows are labelled, and which copy is written."""

    data: str = setting("", "content")
    """The file: JSONL, a JSON list, CSV or Parquet, also gzipped; or a folder of such files."""
    model: str = setting("", "content")
    """A folder, a Hugging Face Hub id or a .gguf file."""
    format: str | None = setting(None, registry=ROW_FORMATS)
    """Format of the rows; by default detected from the columns."""
    prompt_column: str = ""
    """For files of no known format: the column with the prompt."""
    target_column: str = ""
    """The column with the target."""
    system_column: str = ""
    """The column with the system message; by default there is none."""
    turns: Turns = "last"
    """Label the last turn of a conversation, or all its turns; a row then has the category of its least known turn."""
    ask: tuple[str, ...] = ()
    """COLUMN=VALUE: label only rows with one of these values."""
    skip: tuple[str, ...] = ()
    """COLUMN=VALUE: skip rows with one of these values."""
    max_prompt_words: int = setting(60, minimum=1)
    """Rows with a longer prompt are skipped: the prompt usually contains the answer."""
    max_target_words: int | None = setting(None, minimum=1)
    """Rows with a longer target are skipped; by default 10 words for matchers that need the whole target in
    the answer (`exact`, `contains`), 40 for the others."""
    claims: Claims = "none"
    """Experimental. `sentences`: test every sentence of a target as the continuation of the text before it. A row then
    has the category of its least known sentence, and `max_target_words` applies to sentences."""
    id_column: str | None = None
    """A column of unique ids; by default `question_id` if there is one, otherwise ids come from the content. Samples
    depend on the id."""
    group_by: str | None = None
    """A column: exemplars of a row come from rows with the same value, as in the paper from the same relation."""
    exemplars: str | None = setting(None, "content")
    """A file of rows to draw the exemplars from, in the same format; by default the file's own rows with the shortest
    targets."""
    prompt_format: PromptFormatName = "auto"
    """`qa`: lines of questions and answers. `chat`: the model's chat template. `auto`: `chat` if the file holds
    conversations and the model has a template."""
    matcher: str = AUTO
    """When an answer is correct. `auto`: `exact` if nearly all targets are short (in chats `contains`, because chat
    models answer in sentences), otherwise `names`; with `claims`, only the first sentence of an
    answer is compared."""
    judge: JudgeConfig = field(
        default_factory=JudgeConfig, metadata=affects("result", when=lambda settings: settings.get("matcher") == JUDGE)
    )
    """The language model that grades answers, with the matcher `judge`."""
    judge_rows: bool = setting(True, "result", when=lambda settings: settings.get("matcher") == JUDGE)
    """With the matcher `judge`: the judge first decides which prompts ask for a fact; other rows are skipped."""
    max_new_tokens: int | None = setting(None, minimum=1)
    """Maximum tokens of an answer; by default enough for the longest target."""
    unknown: Action = setting("keep", "nothing")
    """What to do with Unknown rows: `drop` them; `idk` replaces the target by `idk_phrase`; `weight` writes a column
    `slick_weight`; `repeat` writes the other rows several times instead; `drop-claims` removes the sentences of this
    category, with `claims`; `keep`."""
    weakly: Action = setting("keep", "nothing")
    """The same for WeaklyKnown rows."""
    unknown_weight: float = setting(0.25, "nothing", above=0, maximum=1)
    """Weight of Unknown rows relative to others, for `weight` and `repeat`."""
    weakly_weight: float = setting(0.5, "nothing", above=0, maximum=1)
    """Weight of WeaklyKnown rows."""
    idk_phrase: str = setting("I don't know.", "nothing")
    """The target of relabelled rows."""
    to: str | None = setting(None, "nothing")
    """Where to write the labelled copy, in the container of the data; by default none is written."""
    overwrite: bool = setting(False, "nothing")
    """Replace an earlier copy."""
    dev_share: float = setting(0.1, minimum=0, maximum=1)
    """Share of the questions that a later sweep stops early by."""
    test_share: float = setting(0.1, minimum=0, maximum=1)
    """Share of the questions that a later sweep tests on."""
    seed: int = setting(0, "seed")
    """Random seed of exemplars and samples."""
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig, metadata=affects("nothing"))
    """How answers are generated. Model, seed, prompts, exemplars, matcher and length of answers are set by the settings
    above."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_judge(self.matcher, self.judge)
        if self.dev_share + self.test_share > 1.0:
            raise SettingsError(f"dev_share and test_share add up to {self.dev_share + self.test_share:g}; at most 1")
        if self.claims == "none" and "drop-claims" in (self.unknown, self.weakly):
            raise SettingsError(
                "the action drop-claims removes sentences by their labels; give --claims sentences, or another action"
            )
        if self.claims != "none" and self.annotate.estimator == "gold":
            raise SettingsError("--claims sentences compares answers, but --annotate.estimator gold generates none")
        if self.claims != "none" and self.exemplars is not None:
            raise SettingsError(
                f"--claims sentences takes exemplars from the rows themselves, got --exemplars {self.exemplars}; leave "
                "it out"
            )
        for name in ("ask", "skip"):
            for text in getattr(self, name):
                if not text.partition("=")[1] or not text.partition("=")[0]:
                    raise SettingsError(f"--{name} is COLUMN=VALUE, got {text!r}")
        if not self.idk_phrase.strip():
            raise SettingsError(
                'idk_phrase is empty, expected the answer that the model should learn, such as "I don\'t know."'
            )

    @property
    def column_names(self) -> ColumnNames:
        """The columns that the user named."""
        return ColumnNames(prompt=self.prompt_column, target=self.target_column, system=self.system_column)

    def annotation(self, *, prompt_format: str, answer_end: str, matcher: str, max_new_tokens: int) -> AnnotateConfig:
        """The settings of the annotate step."""
        sampling: SamplingConfig = replace(self.annotate.sampling, seed=self.seed, max_new_tokens=max_new_tokens)
        changes: dict[str, object] = {
            "model": self.model,
            "seed": self.seed,
            "sampling": sampling,
            "matcher": matcher,
            "judge": self.judge,
            "prompt_format": prompt_format,
            "answer_end": answer_end,
            "annotate_dev": True,
        }
        return replace(self.annotate, **changes)  # type: ignore[arg-type]
