"""What an annotation asks: exemplars, prompts, questions that are too long, and batches. By relation; no Ray.

The driver holds what is small: exemplars, prefixes, control questions, numbers of questions and of batches.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from slick.annotation.answering import write_table_plan
from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, main_store
from slick.annotation.controls import find_names, invent_subjects
from slick.annotation.plan import Plan, plan_folder, write_plan
from slick.annotation.prompting import PromptBuilder, question_texts
from slick.annotation.selection import Selection, questions_by_store
from slick.annotation.set_aside import (
    CountTokens,
    check_set_aside_share,
    drop_questions,
    find_too_long,
    max_prompt_tokens,
    token_counter,
    write_set_aside,
)
from slick.annotation.store import check_selected
from slick.annotation.tasks import run_tasks
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.datasets.by_relation import StoredRelation, read_relation
from slick.inference.base import PromptStyle
from slick.prompt_formats import Exemplar, PromptFormat
from slick.prompts import draw_exemplar_sets
from slick.storage import Folder
from slick.study_files import ANSWER_START_FIELD, CONTEXT_FIELD, QUESTION_SCHEMA, Exemplars

_COLUMNS = (*QUESTION_SCHEMA.names, CONTEXT_FIELD.name, ANSWER_START_FIELD.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyExemplars:
    """The exemplar sets of the labels and of the repeats, and the texts of their questions."""

    main: Exemplars
    repeats: Exemplars
    texts: dict[str, Exemplar]
    """question_id -> question and first gold answer."""


def find_exemplars(
    study: Folder,
    relations: Sequence[StoredRelation],
    config: AnnotateConfig,
    given: Exemplars | None,
    *,
    parallel: bool,
) -> StudyExemplars:
    """The exemplar sets of every relation, drawn from its dev questions unless they are given.

    Args:
        study: its folder.
        relations: all relations.
        config: numbers and seed of the sets.
        given: those of the labels.
        parallel: see `run_tasks`.

    Raises:
        DataError: a relation has too few dev questions.
    """
    names = {relation.relation for relation in relations}
    chosen = None if given is None else {relation: sets for relation, sets in given.items() if relation in names}
    found = StudyExemplars(main=dict(chosen or {}), repeats={}, texts={})
    for of_relation in run_tasks(partial(_exemplars_of, study, config, chosen), relations, parallel=parallel):
        found.main.update(of_relation.main)
        found.repeats.update(of_relation.repeats)
        found.texts.update(of_relation.texts)
    return found


def _exemplars_of(
    study: Folder, config: AnnotateConfig, given: Exemplars | None, relation: StoredRelation
) -> StudyExemplars:
    """The exemplar sets of one relation, and those of its questions that are exemplars of any relation."""
    columns = ["question_id", "split", "question", "answers", ANSWER_START_FIELD.name]
    questions = read_relation(study, relation, columns)
    ids, splits = (questions[name].to_pylist() for name in ("question_id", "split"))
    dev = {relation.relation: [name for name, split in zip(ids, splits, strict=True) if split == "dev"]}
    draw = partial(draw_exemplar_sets, dev, num_sets=config.num_exemplar_sets, num_shots=config.num_shots)
    main = draw(seed=config.seed) if given is None else {}
    repeats = draw(seed=config.seed + 1) if config.repeats_per_relation else {}
    wanted = {
        name
        for exemplars in (given or main, repeats)
        for sets in exemplars.values()
        for of_set in sets
        for name in of_set
    }
    texts = question_texts(questions.filter(pa.array([name in wanted for name in ids], pa.bool_())))
    return StudyExemplars(main=main, repeats=repeats, texts=texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanJob:
    """What the plans of all relations have in common."""

    selection: Selection
    config: AnnotateConfig
    exemplars: StudyExemplars
    prompt_format: PromptFormat
    worker_config: WorkerConfig
    """With stores without prefixes."""
    context: int
    """Tokens of the model's context."""
    counters: dict[PromptStyle, CountTokens] = field(default_factory=dict)
    """One for all relations, because each loads the tokenizer when it is first called."""

    def builder(self, store: str, relations: Sequence[str]) -> PromptBuilder:
        """The builder of a store's prompts of these relations."""
        is_repeat = store == REPEATS
        sets = self.exemplars.repeats if is_repeat else self.exemplars.main
        return PromptBuilder(
            {relation: sets[relation] for relation in relations if relation in sets},
            self.exemplars.texts,
            self.prompt_format,
            substitute=self.config.annotate_exemplars,
            seed=self.config.seed + is_repeat,
        )

    def too_long(self, store: str, questions: pa.Table, prefixes: dict[str, list[str]]) -> pa.Table:
        """The questions of a store that exceed the model's context, as `SET_ASIDE_SCHEMA`."""
        spec = replace(self.worker_config.stores[store], prefixes=prefixes)
        if spec.style not in self.counters:
            model, trust = self.worker_config.engine_config.model, self.config.trust_remote_code
            self.counters[spec.style] = token_counter(model, trust_remote_code=trust, style=spec.style)
        return find_too_long(questions, spec, self.context, self.counters[spec.style])


@dataclass(slots=True, kw_only=True)
class StudyPlan:
    """The plans of a study, or of one relation, and what is set aside."""

    plans: dict[str, list[Plan]]
    prefixes: dict[str, dict[str, list[str]]]
    """Store -> prompt group -> prefixes."""
    set_aside: dict[str, pa.Table]
    """By store, as `SET_ASIDE_SCHEMA`."""
    controls: pa.Table
    """Control questions, with the subjects of the real ones."""
    num_selected: int
    max_tokens: int
    """Upper bound of the tokens of any prompt and its answer."""
    first: dict[str, Any] | None
    """The first question with its prompt."""

    def compared_prefixes(self, main: str) -> dict[str, list[str]]:
        """The prefixes of the labels and control questions, which a resumed run must have as well.

        A control question made of an exemplar may be the only one of its prompt group.

        Args:
            main: the store of the labels.
        """
        return self.prefixes[CONTROLS] | self.prefixes[main]


def plan_questions(job: PlanJob, relations: Sequence[StoredRelation], *, parallel: bool) -> StudyPlan:
    """Write the plans of all stores, and the lists of questions that are set aside.

    Args:
        job: the settings.
        relations: all relations of the study.
        parallel: see `run_tasks`.

    Raises:
        DataError: no question is selected, a prompt cannot be built, or too many questions are too long.
    """
    found = list(run_tasks(partial(_plan_relation, job), list(enumerate(relations)), parallel=parallel))
    main, folder = main_store(job.config), job.worker_config.folder
    whole = StudyPlan(
        plans={},
        prefixes={store: {} for store in job.worker_config.stores},
        set_aside={},
        controls=pa.concat_tables([plan.controls for plan in found], promote_options="default"),
        num_selected=sum(plan.num_selected for plan in found),
        max_tokens=max((plan.max_tokens for plan in found), default=0),
        first=next((plan.first for plan in found if plan.first), None),
    )
    check_selected(whole.num_selected)
    for store in job.worker_config.stores:
        of_store = [plan for plan in found if store in plan.plans]
        if store == CONTROLS or not of_store:
            continue
        whole.plans[store] = list(itertools.chain.from_iterable(plan.plans[store] for plan in of_store))
        for plan in of_store:
            whole.prefixes[store].update(plan.prefixes[store])
        whole.set_aside[store] = pa.concat_tables(plan.set_aside[store] for plan in of_store)
        write_set_aside(folder, store, whole.set_aside[store])
        if store == main:
            share = job.config.max_set_aside_share
            check_set_aside_share(whole.set_aside[main], whole.num_selected, share, folder, main)
    if whole.controls.num_rows:
        _plan_controls(job, relations, whole, parallel=parallel)
    return whole


def _plan_relation(job: PlanJob, item: tuple[int, StoredRelation]) -> StudyPlan:
    """Plan the questions of one relation; control questions are only drawn."""
    number, relation = item
    config, main = job.config, main_store(job.config)
    folder = job.worker_config.folder
    selected = job.selection.questions(relation, _COLUMNS)
    plan = StudyPlan(
        plans={},
        prefixes={},
        set_aside={},
        controls=selected.slice(0, 0),
        num_selected=selected.num_rows,
        max_tokens=0,
        first=None,
    )
    if not selected.num_rows:
        return plan
    builder = job.builder(main, [relation.relation])
    prompts = builder.add_prompts(selected)
    plan.first = prompts.slice(0, 1).to_pylist()[0]
    too_long = job.too_long(main, prompts, builder.prefixes)
    tables = questions_by_store(drop_questions(selected, too_long), config)
    plan.controls = tables.get(CONTROLS, plan.controls)
    builders = {main: builder, REPEATS: job.builder(REPEATS, [relation.relation])}
    tables = {main: prompts} | {
        store: builders[store].add_prompts(table) for store, table in tables.items() if store == REPEATS
    }
    for store, table in tables.items():
        prefixes = plan.prefixes[store] = builders[store].prefixes
        set_aside = plan.set_aside[store] = too_long if store == main else job.too_long(store, table, prefixes)
        spec = replace(job.worker_config.stores[store], prefixes=prefixes)
        plan.max_tokens = max(plan.max_tokens, max_prompt_tokens(drop_questions(table, set_aside), spec))
        file = f"{number:06d}.parquet"
        plan.plans[store] = [write_plan(plan_folder(folder, store), file, table, config.batch_questions, set_aside)]
    return plan


def _plan_controls(job: PlanJob, relations: Sequence[StoredRelation], whole: StudyPlan, *, parallel: bool) -> None:
    """Invent the subjects of the control questions, and plan them."""

    def find_used(names: Sequence[str]) -> set[str]:
        found = run_tasks(partial(_find_names, job.selection, names), relations, parallel=parallel)
        return set().union(*found)

    folder = job.worker_config.folder
    controls = invent_subjects(whole.controls, job.config.seed, find_used)
    builder = job.builder(CONTROLS, [relation.relation for relation in relations])
    table = builder.add_prompts(controls)
    whole.prefixes[CONTROLS] = builder.prefixes
    set_aside = whole.set_aside[CONTROLS] = job.too_long(CONTROLS, table, builder.prefixes)
    write_set_aside(folder, CONTROLS, set_aside)
    spec: AnswerSetSpec = replace(job.worker_config.stores[CONTROLS], prefixes=builder.prefixes)
    whole.max_tokens = max(whole.max_tokens, max_prompt_tokens(drop_questions(table, set_aside), spec))
    whole.plans[CONTROLS] = [write_table_plan(folder, CONTROLS, table, job.config.batch_questions, set_aside)]


def _find_names(selection: Selection, names: Sequence[str], relation: StoredRelation) -> list[str]:
    return find_names(selection.questions(relation)["question"], names)
