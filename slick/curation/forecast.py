"""The workload of a curation, from the file and the tokenizer alone: for `slick curate --dry-run`. No Ray, no model.

The prompts are those of the annotate step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from slick.annotation.prompting import PROMPT_GROUP, SUFFIX, PromptBuilder, exemplar_texts
from slick.annotation.set_aside import find_too_long, token_counter
from slick.annotation.step import draw_study_exemplars, forecast_engine
from slick.annotation.store import check_selected, select_questions
from slick.annotation.worker import AnswerSetSpec
from slick.curation.plan import CurationPlan
from slick.curation.selection import candidates_of, count_reasons
from slick.datasets.prepare import conversation_fields, questions_table
from slick.formatting import format_percent
from slick.models import context_length, load_tokenizer
from slick.prompt_formats import make_prompt_format, parse_template_arguments
from slick.rng import row_key
from slick.study_files import Exemplars

MAX_TOKENIZED = 1_000
"""Maximum number of questions whose prompts are tokenized; of more, a sample is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPrompts:
    """The prompts of a curation."""

    questions: pa.Table
    """The questions to ask, with the columns `prompt_group` and `suffix`."""
    exemplars: Exemplars
    spec: AnswerSetSpec
    """Prefixes of each prompt group, and how answers are generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Size of the work."""

    num_rows: int
    num_labelled: int
    """Rows, or turns, to label; equal ones are one question."""
    reasons: dict[str, int]
    """Number of skipped rows or turns, by reason."""
    num_questions: int
    num_too_long: int
    """Questions that do not fit the model's context."""
    context: int
    """Tokens of the model's context."""
    num_sets: int
    num_samples: int
    max_new_tokens: int
    mean_tokens: float
    """Tokens per prompt."""
    max_tokens: int
    num_tokenized: int
    """Questions whose prompts were tokenized."""
    max_set_aside_share: float
    example_id: str
    example: str
    """The first prompt of a question."""

    @property
    def num_generations(self) -> int:
        """Greedy answers and samples, without questions that are too long."""
        return (self.num_questions - self.num_too_long) * self.num_sets * (1 + self.num_samples)


def study_prompts(plan: CurationPlan) -> StudyPrompts:
    """The questions of a plan with their prompts, as the annotate step builds them.

    Raises:
        DataError: the exemplars cannot be drawn, or the chat template fails on a question.
        ModelError: the tokenizer cannot be loaded.
    """
    annotation = plan.annotation
    questions = questions_table(plan.questions, *conversation_fields(plan.questions))
    exemplars = plan.exemplars or draw_study_exemplars(questions, annotation, annotation.seed)
    selected = select_questions(
        questions,
        dev=annotation.annotate_dev,
        exemplars=exemplars,
        limit=annotation.limit_per_relation,
        with_exemplars=annotation.annotate_exemplars,
    )
    check_selected(selected.num_rows)
    prompt_format = make_prompt_format(
        annotation.prompt_format,
        load_tokenizer(annotation.model, trust_remote_code=annotation.trust_remote_code),
        answer_end=annotation.answer_end,
        template_arguments=parse_template_arguments(annotation.template_arguments),
    )
    shots = exemplar_texts(questions, exemplars, "the file")
    builder = PromptBuilder(
        exemplars, shots, prompt_format, substitute=annotation.annotate_exemplars, seed=annotation.seed
    )
    prompts = builder.add_prompts(selected)
    spec = AnswerSetSpec(prefixes=builder.prefixes, sampling=annotation.sampling, style=prompt_format.style)
    return StudyPrompts(questions=prompts, exemplars=exemplars, spec=spec)


def forecast(plan: CurationPlan) -> Forecast:
    """Count rows, tokens and generations of a plan.

    Raises:
        DataError: see `study_prompts`; or the exemplars leave no room in the context.
        ModelError: the tokenizer or the configuration of the model cannot be read.
    """
    annotation, prompts = plan.annotation, study_prompts(plan)
    trust = annotation.trust_remote_code
    count_tokens = token_counter(annotation.model, trust_remote_code=trust, style=prompts.spec.style)
    context = context_length(annotation.model, trust_remote_code=trust)
    too_long = find_too_long(prompts.questions, prompts.spec, context, count_tokens)
    sampled = sample_questions(prompts.questions, MAX_TOKENIZED, annotation.seed)
    texts = [text for row in sampled.to_pylist() for text in _prompts_of(row, prompts.spec)]
    lengths = count_tokens(texts)
    return Forecast(
        num_rows=plan.data.num_rows,
        num_labelled=len(candidates_of(plan.decisions)),
        reasons=count_reasons(plan.decisions),
        num_questions=prompts.questions.num_rows,
        num_too_long=too_long.num_rows,
        context=context,
        num_sets=annotation.num_exemplar_sets,
        num_samples=annotation.sampling.num_samples if annotation.estimator == "sampled" else 0,
        max_new_tokens=annotation.sampling.max_new_tokens,
        mean_tokens=sum(lengths) / len(lengths),
        max_tokens=max(lengths),
        num_tokenized=sampled.num_rows,
        max_set_aside_share=annotation.max_set_aside_share,
        example_id=sampled["question_id"][0].as_py(),
        example=texts[0],
    )


def _prompts_of(row: dict[str, str], spec: AnswerSetSpec) -> list[str]:
    return [prefix + row[SUFFIX] for prefix in spec.prefixes[row[PROMPT_GROUP]]]


def sample_questions(questions: pa.Table, num: int, seed: int) -> pa.Table:
    """At most `num` questions, chosen by a hash of their ids, in their original order."""
    ids = questions["question_id"].to_pylist()
    ranked = sorted(range(len(ids)), key=lambda i: int(row_key(seed, "forecast", ids[i])))
    return questions.take(pa.array(sorted(ranked[:num]), pa.int64()))


def forecast_lines(plan: CurationPlan, result: Forecast) -> Iterator[str]:
    """The forecast as text, one line each."""
    yield from plan.notes
    unit = "sentences" if any(decision.sentence is not None for decision in plan.decisions) else "rows"
    yield f"{result.num_labelled:,} {unit} test knowledge: {result.num_questions:,} different questions."
    yield from (f"  not labelled: {num:,} x {reason}" for reason, num in result.reasons.items())
    yield from _too_long_lines(result)
    yield (
        f"Generations: {result.num_questions - result.num_too_long:,} questions x {result.num_sets} exemplar sets x (1 "
        f"greedy + {result.num_samples} samples) = {result.num_generations:,}, of at most {result.max_new_tokens} "
        f"tokens each{'; fewer with --annotate.mode labels' if plan.annotation.mode == 'labels' else ''}."
    )
    yield f"Annotation: {forecast_engine(None, plan.annotation, plan.annotation.model)}."
    sampled = result.num_tokenized < result.num_questions
    of_sample = f" (in a sample of {result.num_tokenized:,} questions)" if sampled else ""
    yield f"Tokens per prompt{of_sample}: {result.mean_tokens:,.1f} on average, {result.max_tokens:,} at most."
    yield f"The first prompt of question {result.example_id}:"
    yield ""
    yield result.example
    yield ""
    yield "No file was written and no model was run. --probe-rows 50 measures how long the whole file takes."


def _too_long_lines(result: Forecast) -> Sequence[str]:
    if not result.num_too_long:
        return [f"All prompts fit the model's context of {result.context:,} tokens."]
    share = result.num_too_long / result.num_questions
    line = (
        f"Too long for the model's context of {result.context:,} tokens: {result.num_too_long:,} of "
        f"{result.num_questions:,} questions ({format_percent(share, '.2g')}), which are set aside."
    )
    if share <= result.max_set_aside_share:
        return [line]
    return [
        line,
        f"That is more than --annotate.max-set-aside-share {result.max_set_aside_share:g}, so the command would stop: "
        "allow more, or use a model with a longer context.",
    ]
