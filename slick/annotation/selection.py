"""The questions that an annotation labels, one relation at a time. No Ray."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from slick.annotation.config import CONTROLS, MAIN_STORES, REPEATS, AnnotateConfig, main_store
from slick.annotation.controls import draw_controls
from slick.annotation.set_aside import drop_questions, read_set_aside
from slick.annotation.store import sample_by_hash, select_questions
from slick.annotation.tasks import PARALLEL_QUESTIONS
from slick.datasets.by_relation import StoredRelation, list_relations, read_relation
from slick.storage import Folder
from slick.study_files import QUESTION_SCHEMA, Exemplars


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The questions to label, by the settings of the annotation."""

    study: Folder
    exemplars: Exemplars
    annotate_dev: bool = False
    annotate_exemplars: bool = False
    limit_per_relation: int | None = None

    def questions(self, relation: StoredRelation, columns: Sequence[str] = QUESTION_SCHEMA.names) -> pa.Table:
        """The selected questions of a relation, sorted by question_id.

        Args:
            relation: one of the study's.
            columns: names of `QUESTION_SCHEMA`, with question_id, relation, domain and split, or of optional columns.
        """
        return select_questions(
            read_relation(self.study, relation, columns),
            dev=self.annotate_dev,
            exemplars=self.exemplars,
            limit=self.limit_per_relation,
            with_exemplars=self.annotate_exemplars,
        )

    def relations(self) -> list[StoredRelation]:
        """All relations of the study, sorted by name."""
        return list_relations(self.study)

    def tables(self) -> Iterator[pa.Table]:
        """The selected questions of each relation."""
        for relation in self.relations():
            yield self.questions(relation)


def select(study: Folder, config: AnnotateConfig, exemplars: Exemplars) -> Selection:
    """The selection by these settings."""
    return Selection(
        study=study,
        exemplars=exemplars,
        annotate_dev=config.annotate_dev,
        annotate_exemplars=config.annotate_exemplars,
        limit_per_relation=config.limit_per_relation,
    )


def is_large(relations: Sequence[StoredRelation]) -> bool:
    """Whether a study has so many questions that it is planned and labelled by tasks."""
    return sum(relation.num_questions for relation in relations) >= PARALLEL_QUESTIONS


def labelled_questions(folder: Folder, questions: pa.Table) -> pa.Table:
    """The questions that get a label: all, except those that are set aside.

    Args:
        folder: annotate/ of a study.
        questions: all selected questions, or those of some relations.
    """
    for store in MAIN_STORES:  # a study has one of them
        questions = drop_questions(questions, read_set_aside(folder, store))
    return questions


def questions_by_store(questions: pa.Table, config: AnnotateConfig) -> dict[str, pa.Table]:
    """The questions of each store; empty stores are omitted.

    Args:
        questions: the questions that get a label, of all relations or of some.
        config: how many of them are repeated or serve as controls.

    Returns:
        Control questions have their own ids, but still the subject of the real question.
    """
    tables = {main_store(config): questions}
    if has_repeats(config):
        tables[REPEATS] = sample_by_hash(questions, config.repeats_per_relation, ("relation",))
    if config.controls_per_relation:
        tables[CONTROLS] = draw_controls(questions, config.controls_per_relation)
    return {store: table for store, table in tables.items() if table.num_rows}


def has_repeats(config: AnnotateConfig) -> bool:
    """Whether some questions are annotated a second time."""
    return bool(config.repeats_per_relation) and config.estimator == "sampled"


def concat_by_store(by_relation: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables of all relations by store."""
    stores = dict.fromkeys(store for tables in by_relation for store in tables)
    return {store: pa.concat_tables(tables[store] for tables in by_relation if store in tables) for store in stores}
