"""The matcher `judge`: a language model grades every stored answer as correct, incorrect or not attempted.

Grading runs after the annotation and before the labels are computed. It covers the distinct combinations of question,
gold answers and answer of all stores. Answers that `exact` accepts are correct and empty ones not attempted, without a
judge. Grades are stored in annotate/judgements/ by a hash of the judge and the texts, so an interrupted grading
resumes, and rescoring grades only new answers.

A local model runs in the actors of the annotate step; threads of the driver send requests to a server.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from slick.annotation.judge_client import JudgeConfig
from slick.annotation.judge_control import check_judge, control_answers
from slick.annotation.judge_pool import JUDGE_FOLDER, Item, grade
from slick.annotation.rubrics import ANSWER_RUBRIC, Rubric, answer_item
from slick.annotation.store import read_parts
from slick.cluster import set_job_message
from slick.datasets import read_questions
from slick.errors import StudyError
from slick.formatting import ProgressReporter, format_percent
from slick.matching import JUDGE, AnswerMatcher, make_matcher
from slick.storage import Folder
from slick.stored_files import convert
from slick.study import fingerprint, read_manifest
from slick.study_files import CORRECT, JUDGE_OUTCOMES, NOT_ATTEMPTED, UNPARSABLE, read_judgement_part

if TYPE_CHECKING:
    from slick.annotation.config import AnnotateConfig
    from slick.report.statistics.agreement import GradedAnswer

_LOG = logging.getLogger(__name__)

Texts = Mapping[str, tuple[str, Sequence[str]]]
"""question_id -> question and gold answers."""


def judge_fingerprint(judge: JudgeConfig) -> str:
    """16 hex digits that identify the judge: the content of a local model, or the address and name of a served one.

    Raises:
        ModelError: the local model does not exist.
    """
    if judge.url:
        return fingerprint([judge.url, judge.served_model])
    from slick.models import model_fingerprint, resolve_model

    return model_fingerprint(resolve_model(judge.model))


def judge_key(judge: JudgeConfig, identity: str, item: str, rubric: Rubric = ANSWER_RUBRIC) -> str:
    """The key of a stored grade: a hash of the judge, its prompt and the texts."""
    prompt = str(judge.prompt_version) if rubric is ANSWER_RUBRIC else f"{rubric.name} {rubric.version}"
    parts = [identity, prompt, *([str(judge.max_new_tokens)] if judge.url else []), item]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]


@dataclass(slots=True, kw_only=True)
class Judgements:
    """The outcomes of one judge."""

    judge: JudgeConfig
    identity: str
    """The result of `judge_fingerprint`."""
    texts: Texts = field(default_factory=dict)
    """Of the questions whose answers `is_hit` looks up."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """Key -> outcome."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Key -> replies so far, of unparsable outcomes."""

    def key(self, question: str, gold: Sequence[str], answer: str) -> tuple[str, str]:
        """The key and the item of an answer."""
        item = answer_item(question, gold, answer)
        return judge_key(self.judge, self.identity, item), item

    def outcome(self, question: str, gold: Sequence[str], answer: str, exact: AnswerMatcher | None = None) -> str:
        """The outcome of an answer; `UNPARSABLE` if it was not graded.

        Args:
            question: the question.
            gold: its gold answers.
            answer: the answer.
            exact: the matcher `exact` of the gold answers, to prepare it once for many answers.
        """
        without_judge = outcome_without_judge(answer, exact or make_matcher(gold))
        return without_judge or self.outcomes.get(self.key(question, gold, answer)[0], UNPARSABLE)

    def matcher(self, question_id: str) -> Callable[[str], bool | None]:
        """Whether an answer to this question is correct; None if its outcome is unparsable."""
        question, gold = self.texts[question_id]
        exact = make_matcher(gold)

        def is_hit(answer: str) -> bool | None:
            outcome = self.outcome(question, gold, answer, exact)
            return None if outcome == UNPARSABLE else outcome == CORRECT

        return is_hit


def outcome_without_judge(answer: str, exact: AnswerMatcher) -> str | None:
    """The outcome of an answer that needs no judge: correct by exact match, or empty; None for others."""
    if exact.is_hit(answer):
        return CORRECT
    return None if answer.strip() else NOT_ATTEMPTED


def read_judgements(folder: Folder, judge: JudgeConfig, identity: str) -> Judgements:
    """All stored outcomes. Files that cannot be read are deleted, so that their answers are graded again.

    Args:
        folder: annotate/ of a study.
        judge: its settings.
        identity: the result of `judge_fingerprint`.
    """
    stored, judgements = folder.child(JUDGE_FOLDER), Judgements(judge=judge, identity=identity)
    for name in (name for name in stored.names(".parquet") if name.startswith("part-")):
        try:
            part = read_judgement_part(stored, name, ["key", "outcome", "attempts"])
        except StudyError:
            _LOG.info("%s/%s cannot be read; its answers are graded again", stored, name)
            stored.delete(name)
            continue
        for key, outcome, attempts in zip(*(column.to_pylist() for column in part.columns), strict=True):
            if judgements.outcomes.get(key, UNPARSABLE) == UNPARSABLE:
                judgements.outcomes[key], judgements.attempts[key] = outcome, attempts
    return judgements


def stored_judgements(study: Folder) -> Judgements | None:
    """The outcomes behind the labels of a study; None if they were not made with the matcher `judge`.

    Raises:
        StudyError: a file or the manifest is invalid.
    """
    manifest = read_manifest(study.child("annotate"))
    if manifest is None or manifest.settings.get("matcher") != JUDGE:
        return None
    judge = convert(manifest.settings.get("judge", {}), JudgeConfig, "settings.judge")
    judgements = read_judgements(study.child("annotate"), judge, manifest.input(JUDGE))
    judgements.texts = _texts(read_questions(study, ["question_id", "question", "answers"]))
    return judgements


def _texts(questions: pa.Table) -> Texts:
    columns = (questions[name].to_pylist() for name in ("question_id", "question", "answers"))
    return {question_id: (question, answers) for question_id, question, answers in zip(*columns, strict=True)}


def grade_answers(
    folder: Folder, tables: Mapping[str, pa.Table], config: "AnnotateConfig", identity: str
) -> tuple[Judgements, dict[str, int]]:
    """Grade all stored answers that have no grade yet.

    Args:
        folder: annotate/ of a study.
        tables: the labelled questions of each store.
        config: the judge, how many exemplar sets and samples count, and the sizes of batches and the pool.
        identity: the result of `judge_fingerprint`.

    Returns:
        The outcomes, and the number of distinct answers that exact match accepts (`exact`), that are empty (`empty`),
        and of each outcome of the judge.

    Raises:
        EngineError: the judge fails. All grades until then are stored.
        ModelError: the local judge cannot be used.
    """
    judgements = read_judgements(folder, config.judge, identity)
    judgements.texts = {name: texts for table in tables.values() for name, texts in _texts(table).items()}
    _control_judge(folder, config, judgements)
    counts, items = _distinct_answers(folder, tables, config, judgements)
    pending = [item for item in items.values() if is_pending(item, judgements)]
    _LOG.info(
        "judge: %s distinct answers: %s accepted by exact match, %s empty, %s graded earlier, %s to grade",
        *(f"{num:,}" for num in (counts.total() + len(items), counts["exact"], counts["empty"])),
        *(f"{num:,}" for num in (len(items) - len(pending), len(pending))),
    )
    progress = ProgressReporter("judge", len(items), "answers", on_update=set_job_message)
    if pending:
        progress.resume_at(len(items) - len(pending))
        grade(folder, pending, config, progress)
        judgements.outcomes = read_judgements(folder, config.judge, identity).outcomes
    by_outcome = Counter(judgements.outcomes.get(key, UNPARSABLE) for key in items)
    _LOG.info("judge: %s", ", ".join(f"{by_outcome[outcome]:,} {outcome}" for outcome in JUDGE_OUTCOMES))
    return judgements, {
        "exact": counts["exact"],
        "empty": counts["empty"],
        **{outcome.replace(" ", "_"): by_outcome[outcome] for outcome in JUDGE_OUTCOMES},
    }


def _control_judge(folder: Folder, config: "AnnotateConfig", judgements: Judgements) -> None:
    """Test the judge once on answers whose outcome is known; see `slick.annotation.judge_control`.

    Raises:
        EngineError: it recognizes too few of them.
    """
    answers = control_answers(judgements.texts) if config.judge.min_control_accuracy else []
    if not answers:
        return
    items = [Item(*judgements.key(*answer[:3]), 0) for answer in answers]
    pending = [item for item in {item.key: item for item in items}.values() if item.key not in judgements.outcomes]
    if pending:
        grade(folder, pending, config, ProgressReporter("judge: control", len(pending), "answers"))
        stored = read_judgements(folder, config.judge, judgements.identity)
        judgements.outcomes, judgements.attempts = stored.outcomes, stored.attempts
    outcomes = [judgements.outcomes.get(item.key, UNPARSABLE) for item in items]
    accuracy = check_judge(answers, outcomes, config.judge.min_control_accuracy)
    _LOG.info("judge: recognizes %s of %d known answers", format_percent(accuracy), len(answers))


def _distinct_answers(
    folder: Folder, tables: Mapping[str, pa.Table], config: "AnnotateConfig", judgements: Judgements
) -> tuple[Counter[str], dict[str, Item]]:
    """The answers to grade by key, and the numbers of those that need no judge."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    items: dict[str, Item] = {}
    for store in tables:
        for question_id, texts in _answer_texts(folder.child(store), config):
            if question_id not in judgements.texts:
                continue  # set aside
            question, gold = judgements.texts[question_id]
            exact = make_matcher(gold)
            for text in texts:
                key, item = judgements.key(question, gold, text)
                if key in seen:
                    continue
                seen.add(key)
                outcome = outcome_without_judge(text, exact)
                if outcome is None:
                    items[key] = Item(key, item, judgements.attempts.get(key, 0))
                else:
                    counts["exact" if outcome == CORRECT else "empty"] += 1
    return counts, items


def _answer_texts(store: Folder, config: "AnnotateConfig") -> Iterator[tuple[str, list[str]]]:
    """question_id and distinct answers, greedy and sampled, in the order of the files."""
    sets, samples = config.num_exemplar_sets, config.sampling.num_samples
    for part in read_parts(store, ["question_id", "greedy_text", "sampled_text"]):
        columns = (part[name].to_pylist() for name in ("question_id", "greedy_text", "sampled_text"))
        for question_id, greedy, sampled in zip(*columns, strict=True):
            texts = [*greedy[:sets], *(text for group in sampled[:sets] for text in group[:samples])]
            yield question_id, [text for text in dict.fromkeys(texts) if text is not None]


def is_pending(item: Item, judgements: Judgements) -> bool:
    """Whether an answer has no grade, or an unparsable one that a retry may replace."""
    outcome = judgements.outcomes.get(item.key)
    can_retry = bool(judgements.judge.url) and item.attempts <= judgements.judge.max_retries
    return outcome is None or (outcome == UNPARSABLE and can_retry)


def with_outcomes(answers: "Sequence[GradedAnswer]", judgements: Judgements) -> "list[GradedAnswer]":
    """The graded answers with the judge's outcomes."""
    rows = []
    for row in answers:
        outcome = judgements.outcome(row.question, row.gold, row.answer)
        rows.append(row._replace(judged=None if outcome == UNPARSABLE else outcome == CORRECT))
    return rows


def judge_agreement(answers: "Sequence[GradedAnswer]", judgements: Judgements) -> dict[str, Any]:
    """Cohen's kappa of the judge and of other matchers with a person's grades, for the manifest; also logged."""
    from slick.report.statistics.agreement import Kappa, matcher_kappas

    agreement: dict[str, Any] = {}
    for matcher, kappa in matcher_kappas(with_outcomes(answers, judgements)).items():
        if isinstance(kappa, Kappa):
            agreement[matcher] = {name: round(value, 4) for name, value in kappa._asdict().items()}
            _LOG.info(
                "Cohen's kappa of %s with %s graded answers: %.2f (95 %% interval %.2f to %.2f); they agree on %s.",
                matcher,
                f"{kappa.num:,}",
                *(kappa.kappa, kappa.low, kappa.high),
                format_percent(kappa.agreement),
            )
        else:
            agreement[matcher] = {"missing": kappa}
            _LOG.info("Cohen's kappa of %s: %s.", matcher, kappa)
    return agreement
