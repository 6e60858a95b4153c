"""Measure how long a curation takes, by annotating some of its questions: `slick curate --probe-rows`.

A probe runs the annotate step on a sample, so it includes all costs of a question. Its labels are not kept:
they would be those of the full run, but a study has the labels of all its questions or of none.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, main_store
from slick.annotation.judge_client import JudgeConfig
from slick.annotation.rescoring import RescoreConfig, rescore
from slick.annotation.step import annotate
from slick.annotation.store import part_cost
from slick.curation.forecast import StudyPrompts, study_prompts
from slick.curation.page_rows import allocate
from slick.curation.plan import CurationPlan
from slick.datasets.prepare import write_questions
from slick.errors import SettingsError
from slick.formatting import format_duration
from slick.matching import JUDGE
from slick.rng import row_key
from slick.storage import Folder
from slick.study import complete_step
from slick.study_files import EXEMPLARS_FILE, JUDGE_OUTCOMES, read_answer_part
from slick.types import Question

PROBE_FOLDER = ".probe"
MIN_PER_RELATION = 10
"""Questions of a relation in a probe. Fewer would share the prefixes of their prompts less than in the full run."""
_TRIMMED = 0.1
"""Share of the questions, those in the fastest and in the slowest batches, that the range leaves out."""


@dataclass(frozen=True, slots=True)
class BatchTime:
    """One measured batch."""

    num: int
    """Questions."""
    seconds: float
    """Of one actor."""


@dataclass(frozen=True, slots=True)
class JudgeTime:
    """The time of the judge for the answers of the probe."""

    num: int
    """Distinct answers that it graded."""
    seconds: float
    """Including its start and its check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Measured times, and those of the full run."""

    num_questions: int
    """Of the full run."""
    batches: Sequence[BatchTime]
    wall_seconds: float
    """Including the start of Ray and the loading of the model."""
    seconds: float
    """Of the full run, of one actor."""
    low: float
    """Of the full run if all batches were as fast as the faster ones of the probe."""
    high: float
    """As the slower ones."""
    judge: JudgeTime | None = None
    """With the matcher `judge`."""


def run_probe(plan: CurationPlan, num: int, study: Folder | None = None) -> Probe:
    """Annotate some questions of a plan and measure the time. Nothing is kept.

    Args:
        plan: of the full run.
        num: number of questions; all if there are fewer.
        study: the study folder of the full run, in which a temporary folder is made; by default one on this machine.

    Raises:
        SettingsError: `num` is not positive; or the run is on a cluster, whose nodes cannot reach a folder of this
            machine.
        SlickError: see `annotate`.
    """
    if num < 1:
        raise SettingsError(f"--probe-rows must be at least 1, got {num}")
    prompts = study_prompts(plan)
    strata = _strata(prompts, plan.annotation)
    sizes = allocate([len(ids) for ids in strata], min(num, prompts.questions.num_rows))
    seed = plan.annotation.seed
    relations = dict(zip(*(prompts.questions[name].to_pylist() for name in ("question_id", "relation")), strict=True))
    chosen = [
        draw_questions({i: relations[i] for i in ids}, size, seed) for ids, size in zip(strata, sizes, strict=True)
    ]
    started_at = time.monotonic()
    with temporary_folder(study) as folder:
        batches, judge = _measure(folder, plan, prompts, {i for ids in chosen for i in ids})
    wall = time.monotonic() - started_at
    timed = [[batch for ids_of_batch, batch in batches if ids_of_batch <= set(ids)] for ids in chosen]
    totals = [len(ids) for ids in strata]
    return Probe(
        num_questions=prompts.questions.num_rows,
        batches=[batch for _, batch in batches],
        wall_seconds=wall,
        judge=judge,
        **dict(zip(("seconds", "low", "high"), extrapolate(totals, timed), strict=True)),
    )


def _strata(prompts: StudyPrompts, annotation: AnnotateConfig) -> list[list[str]]:
    """The question_ids, and separately those of exemplars, whose prompts share no prefix with others."""
    exemplars = {i for sets in prompts.exemplars.values() for ids in sets for i in ids}
    own = exemplars if annotation.annotate_exemplars else set()
    ids = prompts.questions["question_id"].to_pylist()
    strata = [[i for i in ids if i not in own], [i for i in ids if i in own]]
    return [stratum for stratum in strata if stratum]


def draw_questions(relations: Mapping[str, str], num: int, seed: int) -> list[str]:
    """Random question_ids in proportion to the sizes of their relations.

    If `num` is too few for all relations, of some, drawn with a probability that grows with their size.
    """
    by_relation: dict[str, list[str]] = {}
    for question_id in sorted(relations, key=lambda i: int(row_key(seed, "probe", i))):
        by_relation.setdefault(relations[question_id], []).append(question_id)
    kept = list(by_relation.values())[: max(1, num // MIN_PER_RELATION)]
    total = min(num, sum(map(len, kept)))
    return [i for ids, size in zip(kept, allocate([len(ids) for ids in kept], total), strict=True) for i in ids[:size]]


@contextmanager
def temporary_folder(study: Folder | None) -> Iterator[Folder]:
    """A folder that is deleted at the end, in the study or on this machine.

    Raises:
        SettingsError: there is no study folder, and the nodes of a cluster cannot reach one of this machine.
    """
    if study is None:
        if os.environ.get("RAY_ADDRESS", "local") not in ("", "local", "auto"):
            raise SettingsError(
                "--probe-rows needs --out DIR on a cluster: a folder that all its nodes reach, for temporary files"
            )
        with TemporaryDirectory(prefix="slick-probe-") as path:
            yield Folder(path)
        return
    folder = study.child(PROBE_FOLDER)
    folder.delete()
    try:
        yield folder
    finally:
        folder.delete()
        if not study.names() and not study.folders():
            study.delete()


def _measure(
    folder: Folder, plan: CurationPlan, prompts: StudyPrompts, chosen: set[str]
) -> tuple[list[tuple[set[str], BatchTime]], JudgeTime | None]:
    """Annotate the chosen questions; the question_ids and the time of each batch, and the time of the judge."""
    questions = [_annotated(question) for question in plan.questions if question.question_id in chosen]
    relations = {question.relation for question in questions}
    exemplars = {name: sets for name, sets in prompts.exemplars.items() if name in relations}
    used = {i for sets in exemplars.values() for ids in sets for i in ids} - chosen
    questions += [_exemplar_only(question) for question in plan.questions if question.question_id in used]
    write_questions(folder.child("questions"), questions)
    complete_step(
        folder.child("questions"), "questions", "probe", settings={}, inputs={}, counts={}, started_at=time.monotonic()
    )
    folder.write_json(EXEMPLARS_FILE, exemplars)
    annotation = replace(
        plan.annotation,
        exemplars=folder.child(EXEMPLARS_FILE).uri,
        batch_questions=max(1, min(plan.annotation.batch_questions, -(-len(chosen) // 2))),  # two batches for a range
        batches_per_file=1,
        limit_per_relation=None,
        repeats_per_relation=0,
        controls_per_relation=0,
        p_true=False,
        max_set_aside_share=1.0,
    )
    is_judged = annotation.matcher == JUDGE
    annotate(folder, replace(annotation, matcher="exact", judge=JudgeConfig()) if is_judged else annotation)
    store = folder.child("annotate", main_store(annotation))
    batches = [
        (set(ids), BatchTime(len(ids), part_cost(store, name)["seconds"]))
        for name in store.names(".parquet")
        if (ids := read_answer_part(store, name, ["question_id"])["question_id"].to_pylist())
    ]
    return batches, _time_judge(folder, annotation.judge) if is_judged else None


def _time_judge(folder: Folder, judge: JudgeConfig) -> JudgeTime:
    """Grade the stored answers."""
    started_at = time.monotonic()
    settings = replace(judge, max_unparsable_share=1.0)
    counts = rescore(folder, RescoreConfig(matcher=JUDGE, judge=settings)).counts["judge"]["answers"]
    num = sum(counts[outcome.replace(" ", "_")] for outcome in JUDGE_OUTCOMES)
    return JudgeTime(num, time.monotonic() - started_at)


def _annotated(question: Question) -> Question:
    return replace(question, domain="id", split="train")


def _exemplar_only(question: Question) -> Question:
    """The question as an out-of-distribution training question, a kind that the annotate step does not annotate."""
    return replace(question, domain="ood", split="train")


def extrapolate(totals: Sequence[int], timed: Sequence[Sequence[BatchTime]]) -> tuple[float, float, float]:
    """Seconds of all questions, and their range.

    Args:
        totals: number of questions of each kind.
        timed: measured batches of each kind; a kind without any is as fast as the others.

    Returns:
        The estimate; the same if all batches were as fast as the faster ones, and as the slower ones. These are the
        10 % and 90 % quantiles of the seconds per question, where each batch counts for its questions.

    >>> extrapolate([1000], [[BatchTime(25, 10.0), BatchTime(25, 15.0)]])
    (500.0, 400.0, 600.0)
    """
    every = [batch for batches in timed for batch in batches]
    sums = [0.0, 0.0, 0.0]
    for total, batches in zip(totals, timed, strict=True):
        measured = batches or every
        mean = sum(batch.seconds for batch in measured) / sum(batch.num for batch in measured)
        rates = (mean, _quantile(measured, _TRIMMED), _quantile(measured, 1 - _TRIMMED))
        sums = [value + total * rate for value, rate in zip(sums, rates, strict=True)]
    return sums[0], min(sums), max(sums)


def _quantile(batches: Sequence[BatchTime], share: float) -> float:
    """Seconds per question below which this share of the questions is."""
    ranked = sorted(batches, key=lambda batch: batch.seconds / batch.num)
    left = share * sum(batch.num for batch in ranked)
    for batch in ranked:
        left -= batch.num
        if left <= 0:
            return batch.seconds / batch.num
    return ranked[-1].seconds / ranked[-1].num


def probe_lines(plan: CurationPlan, probe: Probe, price: float = 0.0) -> Iterator[str]:
    """The result as text, one line each; `price` is that of one hour of an actor."""
    num = sum(batch.num for batch in probe.batches)
    engine = sum(batch.seconds for batch in probe.batches)
    yield (
        f"Probe: {num:,} of {probe.num_questions:,} questions in {len(probe.batches):,} batches; "
        f"{format_duration(engine)} of one actor to answer, {format_duration(probe.wall_seconds)} with the start."
    )
    several = len(probe.batches) > 1
    times = [format_duration(value) for value in (probe.seconds, probe.low, probe.high)]
    spread = f"{times[1]} to {times[2]} by the faster and the slower batches" if several else "a single batch: no range"
    hours = [value / 3600 for value in (probe.seconds, probe.low, probe.high)]
    yield f"Whole file: {_amount(hours[0])} hours of one actor = {times[0]} ({spread}); N actors take 1/N of it."
    if price:
        prices = [_amount(price * value) for value in hours]
        yield f"Price: {prices[0]}{f' ({prices[1]} to {prices[2]})' if several else ''} at {price:g} an hour."
    others = [name for name in (REPEATS, CONTROLS) if getattr(plan.annotation, f"{name}_per_relation")]
    if probe.judge is not None:
        scale = probe.num_questions / num
        yield (
            f"The judge graded {probe.judge.num:,} distinct answers in {format_duration(probe.judge.seconds)}, with "
            f"its start; the whole file has about {scale * probe.judge.num:,.0f}, which take at most "
            f"{format_duration(scale * probe.judge.seconds)} more."
        )
    if others:
        yield f"Not included: {', '.join(others)}."
    yield "The labels and answers of the probe are not kept."


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"
