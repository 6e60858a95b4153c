"""A sheet of wrong answers for a person to grade, and how far exact match agrees with F1 (paper: table 6). Pure.

The answers are drawn uniformly over all that miss, by numbers that belong to the answer (`slick.rng`), so the sheet
is the same however the answers are split into files. What a program can tell is told beforehand, with a question
mark: only a person sees whether an answer is another name of the gold one.
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
"""What a wrong answer may be found to be: wrong; the gold one in other words; more exact than it; less exact."""
PAPER_GRADE_PERCENT = {WRONG: 90, PARAPHRASE: 6, FINER: 2, COARSER: 2}
"""Of 100 answers (arXiv:2405.05904, table 6)."""
MIN_QUESTIONS_FOR_INTERVAL = 10
"""Of a correlation with an interval."""
NUM_RESAMPLES = 499
"""Of the bootstrap over questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One wrong answer to grade."""

    answer_id: str
    """question_id/greedy/exemplar set, or question_id/sampled/exemplar set/sample; sets and samples from 0."""
    question_id: str
    relation: str
    category: str
    decoding: DecodingMode
    question: str
    gold: tuple[str, ...]
    answer: str
    presorted: str
    """A grade with a question mark, or `wrong`."""


class MatcherAgreement(NamedTuple):
    """How far exact match and F1 agree over some answers."""

    r: float
    """Pearson's, over answers."""
    low: float | None
    """End of the 95 % interval, from a bootstrap over questions: answers to one question are no independent draws."""
    high: float | None
    num_answers: int
    num_questions: int
    mean_f1_of_misses: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAudit:
    """The sheet, and what it was drawn from."""

    rows: tuple[AuditRow, ...]
    """Greedy ones first, each kind in the order drawn."""
    sheet_id: str
    """Changes whenever another answer is drawn, or one reads otherwise."""
    temperatures: Mapping[DecodingMode, float]
    num_wrong: Mapping[DecodingMode, int]
    """Answers that miss and could be drawn."""
    num_unstored: Mapping[DecodingMode, int]
    """Answers whose texts were not kept; sampled ones are then not drawn, since those kept are no fair sample."""
    sums_QD5: NDArray[np.float64]
    """Shape (questions, 2 ways, 5): answers, hits, F1, F1 of hits and squared F1, summed over a question's answers."""
    grades: Mapping[str, str] = field(default_factory=dict)
    """answer_id to what was filled in so far."""
    is_graded: bool = False
    """True if every row has a grade, and the shares are wanted."""


class AuditCollector:
    """Goes through all questions, one at a time, and keeps what a sheet needs."""

    def __init__(self, plan: AuditPlan, temperatures: Mapping[DecodingMode, float]) -> None:
        """Nothing is drawn yet.

        Args:
            plan: how many answers are drawn, and how.
            temperatures: of each decoding mode, stated on the sheet.
        """
        self._plan, self._temperatures = plan, temperatures
        self._num: dict[DecodingMode, int] = {"greedy": plan.num_greedy, "sampled": plan.num_sampled}
        self._best: dict[DecodingMode, list[tuple[float, str, AuditRow]]] = {
            decoding: [] for decoding in DECODING_MODES
        }
        self._num_wrong: dict[DecodingMode, int] = dict.fromkeys(DECODING_MODES, 0)
        self._num_absent: dict[DecodingMode, int] = dict.fromkeys(DECODING_MODES, 0)
        self._sums: dict[str, list[tuple[float, ...]]] = {}

    def add(self, one: QuestionAnswers) -> None:
        """Take one question into account."""
        for step, decoding in enumerate(DECODING_MODES):
            texts = one.texts[decoding]
            self._num_absent[decoding] += sum(text is None for text in texts)
            match_results = [one.match_results[text] for text in texts if text is not None]
            self._sums.setdefault(one.question_id, []).append(_moment_sums([(j.exact, j.f1) for j in match_results]))
            places = [i for i, text in enumerate(texts) if text is not None and not one.match_results[text].exact]
            self._num_wrong[decoding] += len(places)
            if places and self._num[decoding]:
                self._sample_answers(one, decoding, step, places)

    def _sample_answers(self, one: QuestionAnswers, decoding: DecodingMode, step: int, places: list[int]) -> None:
        key = row_key(self._plan.seed, "error audit", one.question_id)
        chances = uniforms(np.full(len(places), key), np.array(places), step)
        best = self._best[decoding]
        limit = -best[0][0] if len(best) == self._num[decoding] else 1.0
        for i in np.flatnonzero(chances <= limit):
            row = _audit_row(one, decoding, places[int(i)], self._plan.paraphrase_f1)
            item = (-float(chances[i]), row.answer_id, row)
            if len(best) < self._num[decoding]:
                heapq.heappush(best, item)
            else:
                heapq.heappushpop(best, item)

    def result(self) -> ErrorAudit:
        """The sheet of all questions seen."""
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


def _audit_row(one: QuestionAnswers, decoding: DecodingMode, place: int, paraphrase_f1: float) -> AuditRow:
    text = one.texts[decoding][place]
    assert text is not None
    where = [place] if decoding == "greedy" else list(divmod(place, one.num_samples))
    return AuditRow(
        answer_id="/".join([one.question_id, decoding, *map(str, where)]),
        question_id=one.question_id,
        relation=one.relation,
        category=one.category,
        decoding=decoding,
        question=one.question,
        gold=one.gold,
        answer=text,
        presorted=suggest_grade(text, one.gold, paraphrase_f1),
    )


def suggest_grade(answer: str, gold: Sequence[str], paraphrase_f1: float = PARAPHRASE_F1_THRESHOLD) -> str:
    """What a wrong answer looks like: `finer?`, `coarser?`, `paraphrase?` or `wrong`.

    Finer if a gold answer stands in it as whole words, coarser if it stands so in a gold answer; a paraphrase if one
    stands in the other but for spaces, or if enough words agree.

    >>> [suggest_grade(a, ["New York"]) for a in ("New York City", "York", "NewYork State", "Oslo", "")]
    ['finer?', 'coarser?', 'paraphrase?', 'wrong', 'wrong']
    """
    said, right = f" {normalize(answer)} ", [f" {normalize(one)} " for one in gold if normalize(one)]
    if not said.strip():
        return WRONG
    if any(one in said for one in right):
        return f"{FINER}?"
    if any(said in one for one in right):
        return f"{COARSER}?"
    bare = said.replace(" ", "")
    if any(one in bare or (bare in one and 2 * len(bare) >= len(one)) for one in (r.replace(" ", "") for r in right)):
        return f"{PARAPHRASE}?"
    return f"{PARAPHRASE}?" if token_f1(answer, gold) >= paraphrase_f1 else WRONG


def _moment_sums(match_results: Sequence[tuple[bool, float]]) -> tuple[float, ...]:
    exact, f1 = np.array(match_results, dtype=np.float64).reshape(-1, 2).T
    return (float(len(f1)), float(exact.sum()), float(f1.sum()), float((exact * f1).sum()), float((f1 * f1).sum()))


def matcher_agreement(
    audit: ErrorAudit, decodings: Sequence[DecodingMode] = DECODING_MODES, seed: int = 0
) -> MatcherAgreement:
    """How far exact match and F1 agree over all stored answers of these ways.

    Raises:
        NotTestable: all answers hit, or all miss, or there are none.

    Source: Gekhman et al. 2024, arXiv:2405.05904, footnote 2, says "strongly" and no number.
    """
    sums_Q5 = audit.sums_QD5.reshape(-1, len(DECODING_MODES), 5)[
        :, [DECODING_MODES.index(decoding) for decoding in decodings]
    ].sum(axis=1)
    sums_Q5 = sums_Q5[sums_Q5[:, 0] > 0]
    totals = sums_Q5.sum(axis=0)
    r = float(_pearson(*totals))
    if np.isnan(r):
        raise InsufficientDataError("exact match and F1 agree by definition where all answers hit or all miss")
    low, high = _bootstrap_interval(sums_Q5, seed) if len(sums_Q5) >= MIN_QUESTIONS_FOR_INTERVAL else (None, None)
    num, hits, f1, f1_of_hits, _ = totals
    return MatcherAgreement(r, low, high, int(num), len(sums_Q5), float((f1 - f1_of_hits) / (num - hits)))


def _bootstrap_interval(sums_Q5: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
    from scipy.stats import bootstrap

    def statistic(*columns: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return _pearson(*(column.sum(axis=axis) for column in columns))

    found = bootstrap(
        tuple(sums_Q5.T),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, 2_000_000 // len(sums_Q5)),
        method="percentile",  # BCa would leave out each question in turn: their square in memory
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (None, None) if np.isnan([found.low, found.high]).any() else (float(found.low), float(found.high))


def _pearson(
    num: NDArray[np.float64],
    hits: NDArray[np.float64],
    f1: NDArray[np.float64],
    f1_of_hits: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Pearson's r of a flag and a number from their sums; not a number where either does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        both = num * f1_of_hits - hits * f1
        return np.asarray(both / np.sqrt((num * hits - hits * hits) * (num * squares - f1 * f1)))


_ANSWER_GROUPS: tuple[tuple[str, tuple[DecodingMode, ...]], ...] = (
    ("all", DECODING_MODES),
    ("greedy", ("greedy",)),
    ("sampled", ("sampled",)),
)
_SUGGESTED_GRADES = (WRONG, f"{PARAPHRASE}?", f"{FINER}?", f"{COARSER}?")
