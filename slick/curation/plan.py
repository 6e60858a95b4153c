"""The plan of a curation: which rows become questions, their prompts, matcher and exemplars. Writes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slick.annotation.config import AnnotateConfig
from slick.annotation.prompting import write_context
from slick.curation.claims import skip_rare_places, skip_without_names, split_claims
from slick.curation.config import AUTO, CurateConfig
from slick.curation.data import DataFile
from slick.curation.exemplars import draw_own_exemplars, relation_names
from slick.curation.files import open_data
from slick.curation.formats import RowFormat, detect_format
from slick.curation.selection import (
    LONG_MATCHER,
    PROMPT_REFUSED,
    Candidate,
    Decision,
    candidates_of,
    choose_matcher,
    count_reasons,
    read_decisions,
    skip_if,
    skip_long_targets,
)
from slick.datasets.validate import assigned_split
from slick.errors import DataError, SettingsError
from slick.matching import FIRST_SENTENCE, JUDGE, normalize
from slick.models import load_tokenizer
from slick.prompt_formats import AnswerEnd, PromptFormat, make_prompt_format, parse_template_arguments
from slick.study_files import Exemplars
from slick.types import Question

SEVERAL_LINES = "target of several lines"
_MIN_NEW_TOKENS, _MAX_NEW_TOKENS = 16, 256
_SENTENCE_TOKENS = 24
"""Chat models answer in sentences, even after exemplars that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationPlan:
    """The questions of a curation and their settings; see `plan_curation`."""

    data: DataFile
    row_format: RowFormat
    decisions: Sequence[Decision]
    """One for each row, or for each turn that is considered."""
    questions: Sequence[Question]
    exemplars: Exemplars | None
    """Exemplar sets from the rows themselves; None if they are drawn from the dev questions."""
    annotation: AnnotateConfig
    notes: Sequence[str]
    """One sentence for each automatic choice, with its reason."""


RowFilter = Callable[[Sequence[Decision]], list[Decision]]
"""The decisions, with further candidates skipped."""


def plan_curation(data: DataFile, config: CurateConfig, judge_rows: RowFilter | None = None) -> CurationPlan:
    """Read the rows and decide which become questions; writes nothing.

    Args:
        data: the rows.
        config: the settings.
        judge_rows: skips the rows that ask for no fact by the judge; None: the judge is not asked.

    Raises:
        DataError: the file is damaged or of no known format, or no row can become a question.
        SettingsError: a setting does not fit the file.
        ModelError: the tokenizer cannot be loaded, or lacks a chat template that is needed.
    """
    if not config.model:
        raise SettingsError("no model is given; name a folder, a Hugging Face id or a .gguf file with --model")
    row_format = detect_format(data.columns, data.first_rows(), name=config.format or "", names=config.column_names)
    config = replace(config, id_column=_id_column(data, config))
    has_claims = config.claims == "sentences"
    decisions = read_decisions(data.rows(), row_format, config)
    decisions = split_claims(decisions) if has_claims else decisions
    tokenizer, prompt_reason = _chat_tokenizer(
        config, is_conversation=_holds_conversations(data, row_format, candidates_of(decisions))
    )
    matcher, matcher_reason = choose_matcher(candidates_of(decisions), config, is_chat=tokenizer is not None)
    decisions = skip_long_targets(decisions, matcher, config)
    decisions = judge_rows(decisions) if judge_rows else decisions
    answer_end = _answer_end(decisions) if tokenizer else "line"
    decisions = _without_refused(decisions, tokenizer, answer_end, config)
    if matcher == LONG_MATCHER:
        decisions = skip_without_names(decisions)
    if has_claims:
        matcher = matcher if matcher == JUDGE else f"{FIRST_SENTENCE}{matcher.removeprefix(FIRST_SENTENCE)}"
        decisions = skip_rare_places(decisions, config.annotate.num_shots + 2)
    candidates = _require_candidates(data, decisions)
    annotation = config.annotation(
        prompt_format="chat" if tokenizer else "qa",
        answer_end=answer_end,
        matcher=matcher,
        max_new_tokens=config.max_new_tokens or _answer_tokens(candidates, config, is_chat=tokenizer is not None),
    )
    questions, exemplars, annotation = _questions(candidates, config, annotation)
    return CurationPlan(
        data=data,
        row_format=row_format,
        decisions=decisions,
        questions=questions,
        exemplars=exemplars,
        annotation=annotation,
        notes=[
            f"{data.name}: {data.num_rows:,} rows ({data.container}), format {row_format.name}.",
            f"Prompts follow the model's chat template (chat): {prompt_reason}."
            if tokenizer
            else f"Prompts are lines of questions and answers (qa): {prompt_reason}.",
            f"Matcher {matcher}: {matcher_reason}.",
            *_ambiguity_note(candidates),
        ],
    )


def _require_candidates(data: DataFile, decisions: Sequence[Decision]) -> list[Candidate]:
    """The questions to ask.

    Raises:
        DataError: there are none.
    """
    if candidates := candidates_of(decisions):
        return candidates
    reasons = ", ".join(f"{num:,} x {reason}" for reason, num in count_reasons(decisions).items())
    raise DataError(
        f"{data.name} has no row to ask: {reasons}; see --format, --ask, --max-target-words and --max-prompt-words"
    )


def _ambiguity_note(candidates: Sequence[Candidate]) -> list[str]:
    """A sentence if a prompt occurs with different targets."""
    targets: dict[tuple[Any, ...], set[str]] = {}
    for candidate in candidates:
        key = (candidate.context, candidate.question, candidate.answer_start)
        targets.setdefault(key, set()).add(normalize(candidate.target))
    num = sum(len(texts) > 1 for texts in targets.values())
    if not num:
        return []
    return [f"{num:,} prompts occur with more than one target; answers are compared with the target of the row alone."]


def _id_column(data: DataFile, config: CurateConfig) -> str | None:
    """The column of ids: the one that is named, or else `question_id` if the data has it."""
    columns = data.columns
    for flag, name in (("--id-column", config.id_column), ("--group-by", config.group_by)):
        if name and name not in columns:
            raise DataError(f"{data.name} has no column {name!r}, which {flag} names; it has {', '.join(columns)}")
    for flag, texts in (("--ask", config.ask), ("--skip", config.skip)):
        for name in (text.partition("=")[0] for text in texts):
            if name not in columns:
                raise DataError(f"{data.name} has no column {name!r}, which {flag} names; it has {', '.join(columns)}")
    if config.id_column is not None:
        return config.id_column or None
    return "question_id" if "question_id" in columns else None


def _chat_tokenizer(config: CurateConfig, *, is_conversation: bool) -> tuple[Any, str]:
    """The tokenizer if prompts follow its chat template, otherwise None; and why.

    Raises:
        ModelError: `--prompt-format chat`, but there is no template.
    """
    given = config.prompt_format != AUTO
    if config.prompt_format == "qa" or not (given or is_conversation):
        return None, "given by --prompt-format" if given else "the data holds no conversations"
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.annotate.trust_remote_code)
    if given:
        make_prompt_format("chat", tokenizer)  # refuses a tokenizer without a template
        return tokenizer, "given by --prompt-format"
    if not getattr(tokenizer, "chat_template", None):
        return None, "the model has no chat template"
    return tokenizer, "the data holds conversations and the model has a chat template"


def _answer_end(decisions: Sequence[Decision]) -> AnswerEnd:
    """Answers are one line if all targets are."""
    return "turn" if any(len(candidate.target.splitlines()) > 1 for candidate in candidates_of(decisions)) else "line"


def _without_refused(
    decisions: Sequence[Decision], tokenizer: Any, answer_end: AnswerEnd, config: CurateConfig
) -> list[Decision]:
    """The decisions without rows that the prompt format cannot express."""
    if tokenizer is None:
        return skip_if(decisions, lambda c: SEVERAL_LINES if len(c.answer.splitlines()) > 1 else None)
    arguments = parse_template_arguments(config.annotate.template_arguments)
    chat = make_prompt_format("chat", tokenizer, answer_end=answer_end, template_arguments=arguments)
    return skip_if(decisions, _refusals(chat))


def _holds_conversations(data: DataFile, row_format: RowFormat, candidates: Sequence[Candidate]) -> bool:
    """Whether rows are lists of messages, or have a system message or earlier turns."""
    is_list = any(isinstance(row.get(column), list) for row in data.first_rows() for column in row_format.required)
    return is_list or any(candidate.context for candidate in candidates)


def _refusals(chat: PromptFormat) -> Callable[[Candidate], str | None]:
    """Why a chat template cannot express a question; None if it can."""
    prefixes: dict[tuple[str, ...], str] = {}

    def reason_of(candidate: Candidate) -> str | None:
        key = tuple(chat.shared_context(candidate.context))
        try:
            if key not in prefixes:
                prefixes[key] = chat.prefix(candidate.context, [])
            chat.suffix(prefixes[key], [], candidate.context, candidate.question)
            chat.check_text(candidate.target)  # it may be an exemplar
            chat.answer_start(candidate.answer_start or "")
        except DataError as error:
            return f"{PROMPT_REFUSED}: {error}"
        return None

    return reason_of


def _answer_tokens(candidates: Sequence[Candidate], config: CurateConfig, *, is_chat: bool) -> int:
    """Enough tokens for the longest target with a fifth more, and in chats for a sentence around it."""
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.annotate.trust_remote_code)
    targets = list({candidate.target for candidate in candidates})
    lengths = [len(ids) for ids in tokenizer(targets, add_special_tokens=False)["input_ids"]]
    longest = max(lengths) * 6 // 5 + 2 + (_SENTENCE_TOKENS if is_chat else 0)
    return min(_MAX_NEW_TOKENS, max(_MIN_NEW_TOKENS, longest))


def _questions(
    candidates: Sequence[Candidate], config: CurateConfig, annotation: AnnotateConfig
) -> tuple[list[Question], Exemplars | None, AnnotateConfig]:
    """The questions of the study, their exemplar sets, and the annotation settings that label exemplars too."""
    if config.exemplars is not None:
        return _with_given_exemplars(candidates, config, annotation)
    names = relation_names(candidates, annotation.num_shots + 2 if config.group_by else 0)
    by_relation: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_relation.setdefault(names[candidate.group, candidate.sentence], []).append(candidate)
    exemplars = draw_own_exemplars(
        by_relation, num_sets=annotation.num_exemplar_sets, num_shots=annotation.num_shots, seed=config.seed
    )
    questions = [
        _question(candidate, relation, None, config)
        for relation, members in by_relation.items()
        for candidate in members
    ]
    return _unique(questions), exemplars, replace(annotation, annotate_exemplars=True)


def _with_given_exemplars(
    candidates: Sequence[Candidate], config: CurateConfig, annotation: AnnotateConfig
) -> tuple[list[Question], Exemplars | None, AnnotateConfig]:
    """Exemplars from another file are dev questions of the study, and all dev questions are exemplars."""
    given = _read_exemplars(config)
    relations = {candidate.group for candidate in given}
    fallback = None if config.group_by else next(iter(relations))
    missing = sorted({candidate.group for candidate in candidates} - relations) if fallback is None else []
    if missing:
        raise DataError(
            f"{config.exemplars} has no exemplars of {config.group_by} {missing[0]!r}; add at least 5 of each"
        )
    ids = {candidate.question_id for candidate in given}
    questions = [_question(candidate, candidate.group, "dev", config) for candidate in given]
    no_dev = replace(config, dev_share=0.0)
    questions += [
        _question(candidate, fallback or candidate.group, None, no_dev)
        for candidate in candidates
        if candidate.question_id not in ids
    ]
    overlaps = any(candidate.question_id in ids for candidate in candidates)
    return _unique(questions), None, replace(annotation, annotate_exemplars=overlaps, annotate_dev=overlaps)


def _read_exemplars(config: CurateConfig) -> list[Candidate]:
    assert config.exemplars is not None
    data = open_data(config.exemplars)
    own = replace(config, data=config.exemplars, ask=(), skip=())
    row_format = detect_format(data.columns, data.first_rows(), name=config.format or "", names=config.column_names)
    own = replace(own, id_column=_id_column(data, own))
    decisions = read_decisions(data.rows(), row_format, own)
    candidates = candidates_of(decisions)
    if not candidates:
        reasons = ", ".join(f"{num:,} x {reason}" for reason, num in count_reasons(decisions).items())
        raise DataError(f"{config.exemplars} has no row that can be an exemplar: {reasons}")
    return candidates


def _question(candidate: Candidate, relation: str, split: str | None, config: CurateConfig) -> Question:
    if split is None:
        split = assigned_split(
            relation,
            candidate.question,
            candidate.accepted,
            "id",
            dev_share=config.dev_share,
            test_share=config.test_share,
        )
    return Question(
        question_id=candidate.question_id,
        relation=relation,
        domain="id",
        split=split,
        subject=None,
        question=candidate.question,
        answers=candidate.accepted,
        context=write_context(candidate.context),
        answer_start=candidate.answer_start,
    )


def _unique(questions: Sequence[Question]) -> list[Question]:
    return list({question.question_id: question for question in questions}.values())
