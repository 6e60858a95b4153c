"""A grading sheet of wrong answers, and the agreement of exact match with F1 (paper: table 6). Pure.

The answers are a uniform sample of all answers that fail exact match. Each answer has its own random number
(`slick.rng`), so the sheet does not depend on how the answers are split into files. A program suggests a grade, marked
with a question mark, because only a person can tell whether an answer is another name of the gold answer.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.matching import normalize, token_f1
from slick.report.answers import DECODING_MODES, DecodingMode, QuestionAnswers
from slick.report.config import PARAPHRASE_F1_THRESHOLD, AuditPlan
from slick.report.measurements import InsufficientDataError
from slick.rng import row_key, uniforms
from slick.study import fingerprint

WRONG, PARAPHRASE, FINER, COARSER = GRADES = ("wrong", "paraphrase", "finer", "coarser")
"""Grades of a non-matching answer: wrong; the gold answer in other words; more specific than it; less specific."""

CORRECT_GRADES = frozenset({"correct", PARAPHRASE, FINER})
"""Grades of answers that have the information of a gold answer, as the judge's prompt defines correct."""
ACCEPTED_GRADES = (*GRADES, "correct", "incorrect")
"""Grades in sheets that are compared with matchers, which may have rows for any stored answer."""

PAPER_GRADE_PERCENT = {WRONG: 90, PARAPHRASE: 6, FINER: 2, COARSER: 2}
"""Percent of 100 graded answers (arXiv:2405.05904, table 6)."""

MIN_QUESTIONS_FOR_INTERVAL = 10
"""Minimum number of questions for the interval of a correlation."""

NUM_RESAMPLES = 499
"""Resamples of the bootstrap over questions."""

ANSWER_GROUPS: tuple[tuple[str, tuple[DecodingMode, ...]], ...] = (
    ("all", DECODING_MODES),
    ("greedy", ("greedy",)),
    ("sampled", ("sampled",)),
)

SUGGESTED_GRADES = (WRONG, f"{PARAPHRASE}?", f"{FINER}?", f"{COARSER}?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One wrong answer to grade."""

    answer_id: str
    """question_id/greedy/exemplar set, or question_id/sampled/exemplar set/sample; sets and samples count from 0."""
    question_id: str
    relation: str
    category: str
    decoding: DecodingMode
    question: str
    gold: tuple[str, ...]
    answer: str
    presorted: str
    """The suggested grade: one with a question mark, or `wrong`."""


class MatcherAgreement(NamedTuple):
    """Correlation of exact match with F1 over some answers."""

    r: float
    """Pearson's correlation over answers."""
    low: float | None
    """Lower end of the 95 % interval, by a bootstrap over questions, since answers to one question are dependent."""
    high: float | None
    num_answers: int
    num_questions: int
    mean_f1_of_misses: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAudit:
    """The grading sheet and statistics of the answers it was drawn from."""

    rows: tuple[AuditRow, ...]
    """Greedy answers first, each kind in the order drawn."""
    sheet_id: str
    """A hash of the drawn answers and their texts."""
    temperatures: Mapping[DecodingMode, float]
    num_wrong: Mapping[DecodingMode, int]
    """Number of stored answers that fail exact match."""
    num_unstored: Mapping[DecodingMode, int]
    """Number of answers whose texts were not stored. If any sampled ones are missing, none are drawn, since the stored
    ones are not a uniform sample."""
    sums_QD5: NDArray[np.float64]
    """Shape (questions, 2 decoding modes, 5): number, hits, F1, F1 of hits and squared F1, summed over the answers."""
    grades: Mapping[str, str] = field(default_factory=dict)
    """answer_id to the grade entered so far."""
    is_graded: bool = False
    """True if every row has a grade and the shares are to be reported."""


class AuditCollector:
    """Collects a grading sheet from a stream of questions."""

    def __init__(self, plan: AuditPlan, temperatures: Mapping[DecodingMode, float]) -> None:
        """An empty sheet.

        Args:
            plan: sample sizes and seed.
            temperatures: of each decoding mode, shown on the sheet.
        """
        self._plan, self._temperatures = plan, temperatures
        self._num: dict[DecodingMode, int] = {"greedy": plan.num_greedy, "sampled": plan.num_sampled}
        self._best: dict[DecodingMode, list[tuple[float, str, AuditRow]]] = {
            decoding: [] for decoding in DECODING_MODES
        }
        self._num_wrong: dict[DecodingMode, int] = dict.fromkeys(DECODING_MODES, 0)
        self._num_absent: dict[DecodingMode, int] = dict.fromkeys(DECODING_MODES, 0)
        self._sums: dict[str, list[tuple[float, ...]]] = {}

    def add(self, question: QuestionAnswers) -> None:
        """Add one question."""
        for step, decoding in enumerate(DECODING_MODES):
            texts = question.texts[decoding]
            self._num_absent[decoding] += sum(text is None for text in texts)
            match_results = [question.match_results[text] for text in texts if text is not None]
            self._sums.setdefault(question.question_id, []).append(
                _moment_sums([(j.exact, j.f1) for j in match_results])
            )
            wrong = [i for i, text in enumerate(texts) if text is not None and not question.match_results[text].exact]
            self._num_wrong[decoding] += len(wrong)
            if wrong and self._num[decoding]:
                self._sample_answers(question, decoding, step, wrong)

    def _sample_answers(self, question: QuestionAnswers, decoding: DecodingMode, step: int, indices: list[int]) -> None:
        key = row_key(self._plan.seed, "error audit", question.question_id)
        chances = uniforms(np.full(len(indices), key), np.array(indices), step)
        kept = self._best[decoding]
        limit = -kept[0][0] if len(kept) == self._num[decoding] else 1.0
        for i in np.flatnonzero(chances <= limit):
            row = _audit_row(question, decoding, indices[int(i)], self._plan.paraphrase_f1)
            item = (-float(chances[i]), row.answer_id, row)
            if len(kept) < self._num[decoding]:
                heapq.heappush(kept, item)
            else:
                heapq.heappushpop(kept, item)

    def result(self) -> ErrorAudit:
        """The sheet over all questions added."""
        if self._num_absent["sampled"]:
            self._best["sampled"] = []
        rows = tuple(
            row
            for decoding in DECODING_MODES
            for _, _, row in sorted(self._best[decoding], key=lambda item: (-item[0], item[1]))
        )
        content = [(row.answer_id, row.question, list(row.gold), row.answer) for row in rows]
        return ErrorAudit(
            rows=rows,
            sheet_id=f"sheet-{fingerprint(content)}",
            temperatures=self._temperatures,
            num_wrong=self._num_wrong,
            num_unstored=self._num_absent,
            sums_QD5=np.array([self._sums[question_id] for question_id in sorted(self._sums)]),
        )


def _audit_row(question: QuestionAnswers, decoding: DecodingMode, index: int, paraphrase_f1: float) -> AuditRow:
    text = question.texts[decoding][index]
    assert text is not None
    position = [index] if decoding == "greedy" else list(divmod(index, question.num_samples))
    return AuditRow(
        answer_id="/".join([question.question_id, decoding, *map(str, position)]),
        question_id=question.question_id,
        relation=question.relation,
        category=question.category,
        decoding=decoding,
        question=question.question,
        gold=question.gold,
        answer=text,
        presorted=suggest_grade(text, question.gold, paraphrase_f1),
    )


def suggest_grade(answer: str, gold: Sequence[str], paraphrase_f1: float = PARAPHRASE_F1_THRESHOLD) -> str:
    """The suggested grade of a wrong answer: `finer?`, `coarser?`, `paraphrase?` or `wrong`.

    Finer if it contains a gold answer as whole words; coarser if a gold answer contains it as whole words; a paraphrase
    if one contains the other ignoring spaces, or if F1 is at least `paraphrase_f1`.

    >>> [suggest_grade(a, ["New York"]) for a in ("New York City", "York", "NewYork State", "Oslo", "")]
    ['finer?', 'coarser?', 'paraphrase?', 'wrong', 'wrong']
    """
    text = f" {normalize(answer)} "
    gold_texts = [f" {gold_text} " for gold_text in map(normalize, gold) if gold_text]
    if not text.strip():
        return WRONG
    if any(gold_text in text for gold_text in gold_texts):
        return f"{FINER}?"
    if any(text in gold_text for gold_text in gold_texts):
        return f"{COARSER}?"
    bare = text.replace(" ", "")
    bare_golds = [gold_text.replace(" ", "") for gold_text in gold_texts]
    if any(gold_text in bare or (bare in gold_text and 2 * len(bare) >= len(gold_text)) for gold_text in bare_golds):
        return f"{PARAPHRASE}?"
    return f"{PARAPHRASE}?" if token_f1(answer, gold) >= paraphrase_f1 else WRONG


def matcher_agreement(
    audit: ErrorAudit, decodings: Sequence[DecodingMode] = DECODING_MODES, seed: int = 0
) -> MatcherAgreement:
    """Correlation of exact match with F1 over all stored answers of these decoding modes.

    Raises:
        InsufficientDataError: all answers are correct, or all wrong, or there are none.

    Source: Gekhman et al. 2024, arXiv:2405.05904, footnote 2, says "strongly" and no number.
    """
    sums_Q5 = audit.sums_QD5.reshape(-1, len(DECODING_MODES), 5)[
        :, [DECODING_MODES.index(decoding) for decoding in decodings]
    ].sum(axis=1)
    sums_Q5 = sums_Q5[sums_Q5[:, 0] > 0]
    totals = sums_Q5.sum(axis=0)
    r = float(_pearson(*totals))
    if np.isnan(r):
        raise InsufficientDataError("exact match and F1 have no correlation where all answers hit or all miss")
    low, high = _bootstrap_interval(sums_Q5, seed) if len(sums_Q5) >= MIN_QUESTIONS_FOR_INTERVAL else (None, None)
    num, hits, f1, f1_of_hits, _ = totals
    return MatcherAgreement(r, low, high, int(num), len(sums_Q5), float((f1 - f1_of_hits) / (num - hits)))


def _moment_sums(match_results: Sequence[tuple[bool, float]]) -> tuple[float, ...]:
    exact, f1 = np.array(match_results, dtype=np.float64).reshape(-1, 2).T
    return (float(len(f1)), float(exact.sum()), float(f1.sum()), float((exact * f1).sum()), float((f1 * f1).sum()))


def _pearson(
    num: NDArray[np.float64],
    hits: NDArray[np.float64],
    f1: NDArray[np.float64],
    f1_of_hits: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Pearson's r of a binary and a real variable from their sums; NaN where either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        both = num * f1_of_hits - hits * f1
        return np.asarray(both / np.sqrt((num * hits - hits * hits) * (num * squares - f1 * f1)))


def _bootstrap_interval(sums_Q5: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
    from scipy.stats import bootstrap

    def statistic(*columns: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return _pearson(*(column.sum(axis=axis) for column in columns))

    interval = bootstrap(
        tuple(sums_Q5.T),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, 2_000_000 // len(sums_Q5)),
        method="percentile",  # BCa would need memory quadratic in the number of questions
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (
        (None, None) if np.isnan([interval.low, interval.high]).any() else (float(interval.low), float(interval.high))
    )
