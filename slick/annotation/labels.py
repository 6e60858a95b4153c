"""Labels from stored answers: the knowledge table and checks of its labels. No Ray, except in large studies.

Part files of answers are summarized in chunks, then labelled by relation. Of large studies, both are done by tasks that
write their results to temporary files, so that the driver holds only counts.

The checks annotate some questions a second time, and some about subjects that do not exist.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, main_store
from slick.annotation.controls import CONTROL_PREFIX, find_names, invent_subjects
from slick.annotation.judge import grade_answers, judge_fingerprint
from slick.annotation.knowledge import (
    add_rare_knowledge,
    category_flips,
    category_pairs,
    count_categories,
    label_questions,
)
from slick.annotation.label_summary import (
    AnswerSummary,
    LabelSummary,
    StoredTable,
    answers_by_category,
    curve_counts,
)
from slick.annotation.plan import temporary_files
from slick.annotation.selection import (
    Selection,
    concat_by_store,
    has_repeats,
    is_large,
    labelled_questions,
    questions_by_store,
)
from slick.annotation.set_aside import (
    check_undecided_share,
    count_set_aside_by_store,
    drop_questions,
    find_undecided,
    read_set_aside,
    write_undecided,
)
from slick.annotation.store import COST_FIELDS, part_cost_and_runtime
from slick.annotation.tasks import run_tasks
from slick.annotation.uncertainty import EVIDENCE_SCHEMA, Scoring, collect_evidence
from slick.datasets.by_relation import StoredRelation, read_relation
from slick.errors import EngineError
from slick.formatting import format_percent
from slick.matching import JUDGE
from slick.precision import merge_runtimes
from slick.storage import Folder
from slick.study import MANIFEST
from slick.study_files import KNOWLEDGE_SCHEMA, read_answer_part
from slick.types import Category

_LOG = logging.getLogger(__name__)

_QUESTIONS_PER_CHUNK = 20_000
"""Answers to about this many questions are summarized at a time."""
_ROWS_PER_PART = 1 << 16


def judge_inputs(config: AnnotateConfig) -> dict[str, str]:
    """The fingerprint of the judge by name, as an input of the labels; empty with another matcher.

    Raises:
        ModelError: a local judge does not exist.
    """
    return {JUDGE: judge_fingerprint(config.judge)} if config.matcher == JUDGE else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """What the labels of all relations have in common."""

    selection: Selection
    config: AnnotateConfig
    scoring: Scoring
    rematch: bool
    """Match the stored texts again, because the matcher is another one than that of the stored hits."""
    set_aside: dict[str, pa.Table]
    """By store, as `SET_ASIDE_SCHEMA`."""
    temporary: Folder | None
    """For tables between tasks; None to keep them in memory."""

    @property
    def folder(self) -> Folder:
        """annotate/ of the study."""
        return self.selection.study.child("annotate")

    def stores(self) -> list[str]:
        """The stores of answers, that of the labels first."""
        return [
            main_store(self.config),
            *([REPEATS] if has_repeats(self.config) else []),
            *([CONTROLS] if self.config.controls_per_relation else []),
        ]

    def keep(self, folder: str, name: str, table: pa.Table) -> StoredTable:
        """Keep a table for another task, in a file if there is a folder for them."""
        if self.temporary is None:
            return table
        parts = (table.slice(start, _ROWS_PER_PART) for start in range(0, table.num_rows, _ROWS_PER_PART))
        self.temporary.child(folder).write_table_parts(name, table.schema, parts)
        return (folder, name)

    def load(self, stored: StoredTable) -> pa.Table:
        """A table that `keep` has kept."""
        if isinstance(stored, pa.Table):
            return stored
        assert self.temporary is not None
        return self.temporary.child(stored[0]).read_table(stored[1])

    def load_parts(self, stored: StoredTable) -> Iterator[pa.Table]:
        """A table that `keep` has kept, of which one part at a time is in memory."""
        if isinstance(stored, pa.Table):
            yield stored
            return
        assert self.temporary is not None
        folder, name = self.temporary.child(stored[0]), stored[1]
        for group in range(folder.read_parquet(name, lambda file: file.metadata.num_row_groups)):
            yield folder.read_parquet(name, partial(pq.ParquetFile.read_row_group, i=group, use_threads=False))


def label(
    selection: Selection,
    config: AnnotateConfig,
    scoring: Scoring | None = None,
    *,
    rematch: bool = False,
    judge: str = "",
) -> dict[str, Any]:
    """Write knowledge.parquet and confidence.json from the stored answers; returns counts for the manifest.

    A manifest of other labels is deleted right before.

    Args:
        selection: the selected questions; those that are set aside get no label.
        config: how the answers were generated.
        scoring: how they are scored; None for the settings in `config`.
        rematch: match the stored texts again.
        judge: the result of `judge_fingerprint`, with the matcher `judge`.

    Raises:
        EngineError: answers are missing, or the judge fails. Labels and manifest are unchanged.
    """
    folder = selection.study.child("annotate")
    if scoring is None:
        scoring = Scoring(
            matcher=config.matcher,
            num_exemplar_sets=config.num_exemplar_sets,
            num_samples=config.sampling.num_samples,
        )
    job = LabelJob(selection=selection, config=config, scoring=scoring, rematch=rematch, set_aside={}, temporary=None)
    job.set_aside.update({store: read_set_aside(folder, store) for store in job.stores()})
    relations = selection.relations()
    judge_counts: dict[str, Any] = {}
    large = is_large(relations)
    if config.matcher == JUDGE:
        large = False  # all grades are in memory
        judgements, judge_counts = grade_answers(folder, _texts_by_store(job, relations), config, judge)
        job = replace(job, scoring=replace(scoring, judged=judgements.matcher))
    if large:
        _LOG.info("annotate: computing labels")
    with temporary_files(folder) as temporary:
        job = replace(job, temporary=temporary if large else None)
        answers = {store: _summarize(job, store, relations, parallel=large) for store in job.stores()}
        labels = LabelSummary()
        items = [
            (number, relation, {store: summary.rows.pop(relation.relation, []) for store, summary in answers.items()})
            for number, relation in enumerate(relations)
        ]
        _check_relations(answers)
        undecided = {store: summary.undecided for store, summary in answers.items()}
        for part in run_tasks(partial(_label_relation, job, undecided), items, parallel=large):
            labels.merge(part)
        main = main_store(config)
        if main in labels.undecided:
            check_undecided_share(labels.undecided[main], labels.num_answered, config.judge, folder)
        confidence = _confidence(labels, answers[main].convergence_curve())
        probability = labels.samples.rare_knowledge_probability()
        folder.delete(MANIFEST)  # until it is replaced, `slick annotate` would restore the original labels
        write_undecided(folder, labels.undecided)
        parts = (add_rare_knowledge(part, probability) for table in labels.tables for part in job.load_parts(table))
        folder.write_table_parts("knowledge.parquet", KNOWLEDGE_SCHEMA, parts)
        folder.write_json("confidence.json", confidence)
    without_label = {
        store: pa.concat_tables([table, labels.undecided[store]]) if store in labels.undecided else table
        for store, table in job.set_aside.items()
    }
    counts = _counts(labels, answers[main], config) | {"set_aside": count_set_aside_by_store(without_label)}
    if judge_counts:
        counts["judge"] = {"fingerprint": judge, "answers": judge_counts}
    _log_summary(counts, confidence, without_label[main].num_rows)
    return counts


def _texts_by_store(job: LabelJob, relations: Sequence[StoredRelation]) -> dict[str, pa.Table]:
    """The questions of each store with their texts, for the judge."""
    tables = concat_by_store([_questions(job, relation, whole=True) for relation in relations])
    if CONTROLS in tables:
        texts = [job.selection.questions(relation)["question"] for relation in relations]

        def find_used(names: Sequence[str]) -> set[str]:
            return {name for column in texts for name in find_names(column, names)}

        tables[CONTROLS] = invent_subjects(tables[CONTROLS], job.config.seed, find_used)
    kept = {store: drop_questions(table, job.set_aside[store]) for store, table in tables.items()}
    return {store: table for store, table in kept.items() if table.num_rows}


def _questions(job: LabelJob, relation: StoredRelation, *, whole: bool) -> dict[str, pa.Table]:
    """The questions of each store of a relation, of `whole` stores, or without those that are set aside."""
    questions = labelled_questions(job.folder, job.selection.questions(relation))
    tables = questions_by_store(questions, job.config)
    return tables if whole else {store: drop_questions(table, job.set_aside[store]) for store, table in tables.items()}


def _summarize(job: LabelJob, store: str, relations: Sequence[StoredRelation], *, parallel: bool) -> AnswerSummary:
    """The summary of all part files of a store."""
    names = job.folder.child(store).names(".parquet")
    num_questions = sum(relation.num_questions for relation in relations)
    size = max(1, len(names) * _QUESTIONS_PER_CHUNK // max(num_questions, 1))
    by_name = {relation.relation: relation for relation in relations}
    chunks = [(start, names[start : start + size]) for start in range(0, len(names), size)]
    whole = AnswerSummary()
    for chunk in run_tasks(partial(_summarize_parts, job, store, by_name), chunks, parallel=parallel):
        whole.merge(chunk)
    return whole


def _summarize_parts(
    job: LabelJob, store: str, relations: Mapping[str, StoredRelation], item: tuple[int, Sequence[str]]
) -> AnswerSummary:
    """The summary of some part files of a store."""
    number, names = item
    folder = job.folder.child(store)
    summary = AnswerSummary()
    rows: dict[str, list[pa.Table]] = {}
    for name in names:
        part = read_answer_part(folder, name)
        for relation in part["relation"].unique().to_pylist():
            of_relation = part.filter(pc.equal(part["relation"], relation))
            scoring = job.scoring
            if job.rematch:
                gold = _gold_answers(job.selection.study, store, relations.get(relation), of_relation)
                scoring = replace(scoring, gold=gold)
            evidence = collect_evidence(iter([of_relation]), scoring)
            rows.setdefault(relation, []).append(evidence.rows)
            summary.undecided += evidence.undecided
            # Without all samples there is no curve, but an empty file, of undecided questions only, has none either.
            is_complete = bool(evidence.convergence_curve) or not of_relation.num_rows
            summary.merge(AnswerSummary(is_complete=is_complete, curve=curve_counts(evidence.convergence_curve)))
        cost, runtime = part_cost_and_runtime(folder, name)
        summary.merge(AnswerSummary(cost=Counter(cost), runtimes=[runtime]))
    for index, (relation, tables) in enumerate(rows.items()):
        name = f"{number:08d}-{index:04d}.parquet"
        summary.rows[relation] = [job.keep(f"evidence-{store}", name, pa.concat_tables(tables))]
    return summary


def _gold_answers(study: Folder, store: str, relation: StoredRelation | None, part: pa.Table) -> dict[str, list[str]]:
    """The gold answers to the questions of a relation in a part file; those of control questions are the real ones'.

    Raises:
        EngineError: the study lacks one of the questions.
    """
    ids = part["question_id"].to_pylist()
    originals = [question_id.removeprefix(CONTROL_PREFIX) for question_id in ids] if store == CONTROLS else ids
    answers: dict[str, list[str]] = {}
    if relation is not None:
        questions = read_relation(study, relation, ["question_id", "answers"])
        questions = questions.filter(pc.is_in(questions["question_id"], value_set=pa.array(originals, pa.string())))
        answers = dict(zip(*(questions[name].to_pylist() for name in ("question_id", "answers")), strict=True))
    if missing := sorted(set(originals) - answers.keys()):
        raise EngineError(
            f"annotate/{store} holds answers to {len(missing):,} questions of relation {part['relation'][0]} that the "
            f"study lacks, such as {missing[:3]}; delete annotate/ and annotate again"
        )
    return {question_id: answers[original] for question_id, original in zip(ids, originals, strict=True)}


def _check_relations(answers: Mapping[str, AnswerSummary]) -> None:
    """Refuse answers to questions of relations that the study lacks; those of all others are taken out of `rows`."""
    for store, summary in answers.items():
        if summary.rows:
            raise EngineError(
                f"annotate/{store} holds answers to questions of relation {min(summary.rows)}, which the study lacks; "
                "delete annotate/ and annotate again"
            )


def _label_relation(
    job: LabelJob,
    undecided_ids: Mapping[str, Sequence[str]],
    item: tuple[int, StoredRelation, Mapping[str, Sequence[StoredTable]]],
) -> LabelSummary:
    """The labels of one relation."""
    number, relation, stored = item
    main, is_judged = main_store(job.config), job.scoring.judged is not None
    summary = LabelSummary()
    labels: dict[str, pa.Table] = {}
    by_store = _questions(job, relation, whole=False)
    for store in job.stores():
        evidence = pa.concat_tables([EVIDENCE_SCHEMA.empty_table(), *(job.load(table) for table in stored[store])])
        questions = by_store.get(store)
        if questions is None:
            if evidence.num_rows:
                raise EngineError(
                    f"annotate/{store} holds answers to {evidence.num_rows:,} questions of relation "
                    f"{relation.relation}, expected none; delete annotate/ and annotate again"
                )
            continue
        undecided = find_undecided(questions, undecided_ids[store])
        if undecided.num_rows:
            summary.undecided[store] = undecided
        if store == main:
            summary.num_answered = questions.num_rows
        labels[store] = label_questions(drop_questions(questions, undecided), evidence)
        summary.num_questions[store] = labels[store].num_rows
    if main not in labels:
        return summary
    table = labels[main]
    summary.tables.append(job.keep("labels", f"{number:06d}.parquet", table))
    summary.categories = count_categories(table)
    summary.answers = answers_by_category(table)
    summary.samples.add(table, is_judged=is_judged)
    if REPEATS in labels:
        again = labels[REPEATS]
        again = again.filter(pc.is_in(again["question_id"], value_set=table["question_id"].combine_chunks()))
        first = table.filter(pc.is_in(table["question_id"], value_set=again["question_id"].combine_chunks()))
        summary.repeated = category_pairs(first, again)
    if CONTROLS in labels:
        summary.controls = count_categories(labels[CONTROLS])
    return summary


def _confidence(labels: LabelSummary, curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of confidence.json.

    Args:
        labels: of all relations.
        curve: `Evidence.convergence_curve` of their store.
    """
    confidence: dict[str, Any] = {"settling": curve}
    if labels.repeated:
        confidence[REPEATS] = category_flips(labels.repeated)
    if num := labels.num_questions[CONTROLS]:
        confidence[CONTROLS] = {"questions": num, "categories": labels.controls}
    return confidence


def prefix_reuse_share(cost: Mapping[str, float]) -> float:
    """Share of prompt tokens that came from a shared prefix instead of the model."""
    return 1 - cost["prefilled_tokens"] / max(cost["prompt_tokens"], 1)


def format_category_shares(categories: Mapping[str, int]) -> str:
    """Share of questions by category, as text."""
    total = sum(categories.values())
    return ", ".join(f"{category} {format_percent(categories.get(category, 0) / total)}" for category in Category)


def _counts(labels: LabelSummary, answers: AnswerSummary, config: AnnotateConfig) -> dict[str, Any]:
    cost = {name: answers.cost[name] for name in COST_FIELDS}
    return {
        "questions": labels.num_questions[main_store(config)],
        "limit_per_relation": config.limit_per_relation,
        "estimator": config.estimator if config.estimator == "sampled" else "gold: the first answer's text alone",
        **{name: int(value) for name, value in cost.items() if name not in ("prompts", "seconds")},
        "engine_seconds": round(cost["seconds"], 3),
        **merge_runtimes(answers.runtimes),
        "prompt_tokens_reused": round(prefix_reuse_share(cost), 4),
        "categories": labels.categories,
        "draws_by_category": _generated_answers(labels, config),
    }


def _generated_answers(labels: LabelSummary, config: AnnotateConfig) -> dict[str, dict[str, float]]:
    """Number of answers generated for each category, and the share of all possible answers that were not."""
    if config.estimator != "sampled":
        return {}
    max_answers = config.num_exemplar_sets * (1 + config.sampling.num_samples)
    return {
        category: {
            "made": numbers["answers"],
            "spared": round(1 - numbers["answers"] / (numbers["questions"] * max_answers), 4),
        }
        for category, numbers in labels.answers.items()
    }


def _log_summary(counts: Mapping[str, Any], confidence: Mapping[str, Any], num_set_aside: int) -> None:
    total: Counter[str] = Counter()
    for by_split in counts["categories"].values():
        for by_category in by_split.values():
            total.update(by_category)
    _LOG.info(
        "%s questions%s, %s generations: %s. %s of prompt tokens came from shared prefixes.",
        f"{counts['questions']:,}",
        f" ({num_set_aside:,} more set aside)" if num_set_aside else "",
        f"{counts['generations']:,}",
        format_category_shares(total),
        format_percent(counts["prompt_tokens_reused"]),
    )
    if REPEATS in confidence:
        repeats = confidence[REPEATS]
        _LOG.info(
            "Annotated a second time, %d of %d questions change their category.",
            repeats["flipped"],
            repeats["questions"],
        )
    if CONTROLS in confidence:
        controls = confidence[CONTROLS]
        num_unknown = sum(
            by_category[Category.UNKNOWN.value]
            for by_split in controls["categories"].values()
            for by_category in by_split.values()
        )
        _LOG.info("Of %d questions about invented subjects, %d are Unknown.", controls["questions"], num_unknown)
