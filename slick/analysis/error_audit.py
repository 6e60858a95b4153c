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

from slick.analysis.answers import WAYS, Answered, Way
from slick.analysis.terms import NotTestable
from slick.errors import SettingsError
from slick.matching import normalize, token_f1
from slick.rng import row_key, uniforms
from slick.study import fingerprint

WRONG, PARAPHRASE, FINER, COARSER = GRADES = ("wrong", "paraphrase", "finer", "coarser")
"""What a wrong answer may be found to be: wrong; the gold one in other words; more exact than it; less exact."""
PAPER_PERCENT = {WRONG: 90, PARAPHRASE: 6, FINER: 2, COARSER: 2}
"""Of 100 answers (arXiv:2405.05904, table 6)."""
F1_LIMIT = 0.6
"""From this F1 on an answer may be a paraphrase: half the words of two-word names, 0.5, are but a shared surname."""
LEAST_QUESTIONS = 10
"""Of a correlation with an interval."""
NUM_RESAMPLES = 499
"""Of the bootstrap over questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Which answers are drawn."""

    num_greedy: int = 50
    num_sampled: int = 50
    seed: int = 0
    f1_limit: float = F1_LIMIT

    def __post_init__(self) -> None:
        if min(self.num_greedy, self.num_sampled) < 0 or self.num_greedy + self.num_sampled == 0:
            raise SettingsError(
                f"an error audit takes 0 or more greedy and sampled answers, and one in all, got {self.num_greedy} and "
                f"{self.num_sampled}; the paper takes 50 and 50"
            )
        if not 0 < self.f1_limit <= 1:
            raise SettingsError(f"the F1 limit of the error audit is in (0, 1], got {self.f1_limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One wrong answer to grade."""

    answer_id: str
    """question_id/greedy/exemplar set, or question_id/sampled/exemplar set/sample; sets and samples from 0."""
    question_id: str
    relation: str
    category: str
    way: Way
    question: str
    gold: tuple[str, ...]
    answer: str
    presorted: str
    """A grade with a question mark, or `wrong`."""


class Correlation(NamedTuple):
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
    temperatures: Mapping[Way, float]
    num_wrong: Mapping[Way, int]
    """Answers that miss and could be drawn."""
    num_absent: Mapping[Way, int]
    """Answers whose texts were not kept; sampled ones are then not drawn, since those kept are no fair sample."""
    sums_QW5: NDArray[np.float64]
    """Shape (questions, 2 ways, 5): answers, hits, F1, F1 of hits and squared F1, summed over a question's answers."""
    grades: Mapping[str, str] = field(default_factory=dict)
    """answer_id to what was filled in so far."""
    is_graded: bool = False
    """True if every row has a grade, and the shares are wanted."""


class AuditDraw:
    """Goes through all questions, one at a time, and keeps what a sheet needs."""

    def __init__(self, plan: AuditPlan) -> None:
        self._plan = plan
        self._num: dict[Way, int] = {"greedy": plan.num_greedy, "sampled": plan.num_sampled}
        self._best: dict[Way, list[tuple[float, str, AuditRow]]] = {way: [] for way in WAYS}
        self._num_wrong: dict[Way, int] = dict.fromkeys(WAYS, 0)
        self._num_absent: dict[Way, int] = dict.fromkeys(WAYS, 0)
        self._sums: dict[str, list[tuple[float, ...]]] = {}

    def add(self, one: Answered) -> None:
        """Take one question into account."""
        for step, way in enumerate(WAYS):
            texts = one.texts[way]
            self._num_absent[way] += sum(text is None for text in texts)
            judged = [one.judged[text] for text in texts if text is not None]
            self._sums.setdefault(one.question_id, []).append(_sums([(j.exact, j.f1) for j in judged]))
            places = [i for i, text in enumerate(texts) if text is not None and not one.judged[text].exact]
            self._num_wrong[way] += len(places)
            if places and self._num[way]:
                self._draw(one, way, step, places)

    def _draw(self, one: Answered, way: Way, step: int, places: list[int]) -> None:
        key = row_key(self._plan.seed, "error audit", one.question_id)
        chances = uniforms(np.full(len(places), key), np.array(places), step)
        best = self._best[way]
        limit = -best[0][0] if len(best) == self._num[way] else 1.0
        for i in np.flatnonzero(chances <= limit):
            row = _row(one, way, places[int(i)], self._plan.f1_limit)
            item = (-float(chances[i]), row.answer_id, row)
            if len(best) < self._num[way]:
                heapq.heappush(best, item)
            else:
                heapq.heappushpop(best, item)

    def finish(self, temperatures: Mapping[Way, float]) -> ErrorAudit:
        """The sheet of all questions seen."""
        if self._num_absent["sampled"]:
            self._best["sampled"] = []
        rows = tuple(row for way in WAYS for _, _, row in sorted(self._best[way], key=lambda item: (-item[0], item[1])))
        content = [(row.answer_id, row.question, list(row.gold), row.answer) for row in rows]
        return ErrorAudit(
            rows=rows,
            sheet_id=f"sheet-{fingerprint(content)}",
            temperatures=temperatures,
            num_wrong=self._num_wrong,
            num_absent=self._num_absent,
            sums_QW5=np.array([self._sums[question_id] for question_id in sorted(self._sums)]),
        )


def _row(one: Answered, way: Way, place: int, f1_limit: float) -> AuditRow:
    text = one.texts[way][place]
    assert text is not None
    where = [place] if way == "greedy" else list(divmod(place, one.num_samples))
    return AuditRow(
        answer_id="/".join([one.question_id, way, *map(str, where)]),
        question_id=one.question_id,
        relation=one.relation,
        category=one.category,
        way=way,
        question=one.question,
        gold=one.gold,
        answer=text,
        presorted=presort(text, one.gold, f1_limit),
    )


def presort(answer: str, gold: Sequence[str], f1_limit: float = F1_LIMIT) -> str:
    """What a wrong answer looks like: `finer?`, `coarser?`, `paraphrase?` or `wrong`.

    Finer if a gold answer stands in it as whole words, coarser if it stands so in a gold answer; a paraphrase if one
    stands in the other but for spaces, or if enough words agree.

    >>> [presort(a, ["New York"]) for a in ("New York City", "York", "NewYork State", "Oslo", "")]
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
    return f"{PARAPHRASE}?" if token_f1(answer, gold) >= f1_limit else WRONG


def _sums(judged: Sequence[tuple[bool, float]]) -> tuple[float, ...]:
    exact, f1 = np.array(judged, dtype=np.float64).reshape(-1, 2).T
    return (float(len(f1)), float(exact.sum()), float(f1.sum()), float((exact * f1).sum()), float((f1 * f1).sum()))


def agreement(audit: ErrorAudit, ways: Sequence[Way] = WAYS, seed: int = 0) -> Correlation:
    """How far exact match and F1 agree over all stored answers of these ways.

    Raises:
        NotTestable: all answers hit, or all miss, or there are none.

    Source: Gekhman et al. 2024, arXiv:2405.05904, footnote 2, says "strongly" and no number.
    """
    sums_Q5 = audit.sums_QW5.reshape(-1, len(WAYS), 5)[:, [WAYS.index(way) for way in ways]].sum(axis=1)
    sums_Q5 = sums_Q5[sums_Q5[:, 0] > 0]
    totals = sums_Q5.sum(axis=0)
    r = float(_pearson(*totals))
    if np.isnan(r):
        raise NotTestable("exact match and F1 agree by definition where all answers hit or all miss")
    low, high = _interval(sums_Q5, seed) if len(sums_Q5) >= LEAST_QUESTIONS else (None, None)
    num, hits, f1, f1_of_hits, _ = totals
    return Correlation(r, low, high, int(num), len(sums_Q5), float((f1 - f1_of_hits) / (num - hits)))


def _interval(sums_Q5: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
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
