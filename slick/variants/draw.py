"""Fine-tuning sets drawn from a knowledge table, with the mix that was achieved counted from the written rows.

The paper's sets (Gekhman et al. 2024, arXiv:2405.05904, appendix E): every set has the same number of rows from each
relation, |D| in all; a share of them Unknown, the rest Known, within each relation. What the paper leaves open is
decided here and said: Known rows are drawn uniformly from a relation's pooled Known rows, and the rule of rounding is
in `slick.variants.sampling`. A set that cannot be drawn is refused, never shrunk.
"""

import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slick.errors import DataError, StudyError, VariantError
from slick.formatting import format_percent
from slick.locks import exclusive_lock
from slick.matching import nfc
from slick.prompts import closed_book_prompt
from slick.storage import Folder, FolderLike, as_folder
from slick.study import (
    STARTED,
    Manifest,
    complete_step,
    fingerprint,
    needs_work,
    read_manifest,
    require_manifest,
    settings_to_json,
)
from slick.study_files import VARIANT_SCHEMA, read_knowledge, read_question_rows, read_variant_rows
from slick.types import Category
from slick.variants.config import VariantsConfig, relation_sizes, variant_names, variant_specs
from slick.variants.extend import extend_drawn, is_from_inputs
from slick.variants.sampling import PoolDraw, Pools, RowOrder, VariantSpec, plan, select_rows

__all__ = ["VARIANT_SCHEMA", "VariantsConfig", "draw_variants", "read_variant", "variant_names"]

_QUESTION_COLUMNS = ["question_id", "domain", "split", "question", "answers"]
_KNOWLEDGE_COLUMNS = ["question_id", "relation", "domain", "split", "category"]


def draw_variants(study: FolderLike, config: VariantsConfig) -> Manifest:
    """Draw every set from the study's knowledge table into variants/NAME.parquet, and audit what was written.

    Sets may be asked for later: those that are there stay as they are, to the byte, also when they are not asked for
    now, and only what is new is drawn.

    Returns:
        The manifest. Its counts are by name of the set: num, kind, requested_share and unknown_share (achieved, in
        [0, 1]), categories, relations (rows by relation and category) and dropped_relations. Its inputs bind the sets
        to the knowledge table and to the model that made it.

    Raises:
        StudyError: questions or knowledge are not finished, or do not belong together; or the sets that are there were
            drawn from other knowledge, or otherwise.
        VariantError: the knowledge table cannot give these sets.

    Example:
        slick.draw_variants("studies/mine", slick.VariantsConfig(unknown_shares=(0.0, 0.5, 1.0)))
    """
    study = as_folder(study)
    with exclusive_lock(study, "variants"):
        return _draw_variants(study, config)


def _draw_variants(study: Folder, config: VariantsConfig) -> Manifest:
    started_at = time.monotonic()
    annotated, asked = (
        require_manifest(study.child("annotate"), "annotate"),
        require_manifest(study.child("questions"), "questions"),
    )
    if annotated.input("questions") != asked.fingerprint:
        raise StudyError(
            f"{study}/annotate was made from questions {annotated.inputs['questions']}, {study}/questions is now "
            f"{asked.fingerprint}; delete {study}/annotate and run `slick annotate` again"
        )
    inputs = {"knowledge": annotated.fingerprint, "model": annotated.input("model")}
    folder = study.child("variants")
    before, config = read_manifest(folder), extend_drawn(study, config)
    identity = fingerprint(inputs, config.identity())
    if before is not None and not is_from_inputs(before, inputs):
        needs_work(folder, "variants", identity, config)  # refuses
    if before is not None and before.fingerprint == identity:
        return before
    rows = _training_rows(study)
    pools = _group_by_category(rows)
    sizes, dropped = relation_sizes(pools, config)

    def write(folder: Folder) -> Manifest:
        counts = _write(folder, config, rows, pools, sizes, before.counts if before else {})
        for entry in counts.values():
            entry["dropped_relations"] = dropped
        _print_summary(counts, sizes, dropped, before.counts if before else {})
        folder.write_json(STARTED, {"fingerprint": identity, "settings": settings_to_json(config)})
        return complete_step(
            folder, "variants", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
        )

    if before is not None:
        return write(folder)  # adds sets; the manifest does not name them before they are complete
    with folder.atomic_replace() as new:
        return write(new)


def read_variant(study: FolderLike, name: str) -> pa.Table:
    """One fine-tuning set: question_id, category, prompt, target; sorted by question_id.

    Raises:
        StudyError: the variants step is not finished.
        VariantError: there is no such set.
    """
    study = as_folder(study)
    folder = study.child("variants")
    names = require_manifest(folder, "variants").counts
    if name not in names:
        raise VariantError(f"{folder} has no variant {name!r}; there are {', '.join(names)}")
    return read_variant_rows(study, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    relation: str
    category: Category
    question: str
    target: str


def _training_rows(study: Folder) -> dict[str, _Row]:
    """question_id -> row, of the in-distribution training questions in the knowledge table."""
    questions = {
        row["question_id"]: row for row in _train(read_question_rows(study.child("questions"), _QUESTION_COLUMNS))
    }
    known = _train(read_knowledge(study, _KNOWLEDGE_COLUMNS))
    where = f"{study}/annotate/knowledge.parquet"
    rows: dict[str, _Row] = {}
    for entry in known:
        question_id = entry["question_id"]
        if question_id in rows or question_id not in questions:
            wrong = (
                "is there twice" if question_id in rows else f"is not among the training questions of {study}/questions"
            )
            raise DataError(
                f"{where}: question {question_id} {wrong}; delete {study}/annotate and run `slick annotate` again"
            )
        asked = questions[question_id]
        rows[question_id] = _Row(
            relation=entry["relation"],
            category=Category(entry["category"]),
            question=asked["question"],
            target=nfc(asked["answers"][0]),
        )
    if not rows:
        raise VariantError(f"{where} has no in-distribution training questions (domain id, split train) to draw from")
    return rows


def _train(table: pa.Table) -> list[dict[str, Any]]:
    mask = pc.and_(pc.equal(table["split"], "train"), pc.equal(table["domain"], "id"))
    rows: list[dict[str, Any]] = table.filter(mask).to_pylist()
    return rows


def _group_by_category(rows: Mapping[str, _Row]) -> dict[str, dict[Category, list[str]]]:
    pools: dict[str, dict[Category, list[str]]] = {}
    for question_id, row in rows.items():
        pools.setdefault(row.relation, {category: [] for category in Category})[row.category].append(question_id)
    return pools


def _write(
    folder: Folder,
    config: VariantsConfig,
    rows: Mapping[str, _Row],
    pools: Pools,
    sizes: Mapping[str, int],
    before: Mapping[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Write every set that is not there; audited counts of all by name."""
    specs = variant_specs(config)
    planned = plan(specs, pools, sizes, config.seed)
    orders = {
        stream: RowOrder(config.seed, stream) for stream in {"", *map(_rng_stream, specs)}
    }  # each hashes a row once
    counts = {}
    for spec in specs:
        if spec.name in before:
            counts[spec.name] = before[spec.name]
            continue
        order = orders["" if config.nested else _rng_stream(spec)]
        drawn = select_rows(planned[spec.name], pools, order)
        folder.write_table(f"{spec.name}.parquet", _variant_table(spec, drawn, rows, config.idk_phrase))
        counts[spec.name] = _audit_counts(spec, folder.read_table(f"{spec.name}.parquet"), rows, planned[spec.name])
    return counts


def _rng_stream(spec: VariantSpec) -> str:
    """Sets of one stream share their draws: all kinds that name a share go with the sweep's set of that share."""
    return spec.name if spec.percent_unknown is None else f"unknown-{spec.percent_unknown:03d}"


def _variant_table(spec: VariantSpec, drawn: Sequence[str], rows: Mapping[str, _Row], idk_phrase: str) -> pa.Table:
    def target(row: _Row) -> str:
        return idk_phrase if spec.kind == "idk" and row.category is Category.UNKNOWN else row.target

    taken = [rows[question_id] for question_id in drawn]
    columns = [
        list(drawn),
        [row.category.value for row in taken],
        [closed_book_prompt(row.question) for row in taken],
        [target(row) for row in taken],
    ]
    return pa.table(columns, schema=VARIANT_SCHEMA)


def _audit_counts(
    spec: VariantSpec, written: pa.Table, rows: Mapping[str, _Row], planned: Mapping[str, Sequence[PoolDraw]]
) -> dict[str, Any]:
    """What a written set holds, counted from its rows; stops if that is not what was planned."""
    question_ids = written["question_id"].to_pylist()
    if len(set(question_ids)) != len(question_ids):
        raise _audit_error(spec, "holds a question twice")
    relations: dict[str, Counter[Category]] = {relation: Counter() for relation in planned}
    for question_id, category in zip(question_ids, written["category"].to_pylist(), strict=True):
        relations[rows[question_id].relation][Category(category)] += 1
    for relation, wanted in planned.items():
        for need in wanted:
            found = sum(relations[relation][category] for category in need.pool)
            if found != need.num:
                raise _audit_error(spec, f"{relation}: {found} rows of {', '.join(need.pool)}, planned {need.num}")
        if relations[relation].total() != sum(need.num for need in wanted):
            raise _audit_error(spec, f"{relation}: rows that were not planned")
    totals = sum(relations.values(), Counter[Category]())
    return {
        "num": len(question_ids),
        "kind": spec.kind,
        "requested_share": spec.requested_share,
        "unknown_share": totals[Category.UNKNOWN] / len(question_ids),
        "categories": {category.value: totals[category] for category in Category},
        "relations": {r: {category.value: found[category] for category in Category} for r, found in relations.items()},
    }


def _audit_error(spec: VariantSpec, reason: str) -> VariantError:
    return VariantError(
        f"set {spec.name} was not written as planned: {reason}; run `slick variants` again, and report this if it stays"
    )


def _print_summary(
    counts: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], dropped: Sequence[str], before: Container[str]
) -> None:
    new = sum(name not in before for name in counts)
    drawn = f"{len(counts)} sets" + (f", {new} of them new" if new < len(counts) else "")
    print(f"variants: |D| = {sum(sizes.values()):,} rows from {len(sizes)} relations, {drawn}")
    if dropped:
        print(f"variants: left out for want of rows: {', '.join(dropped)}")
    for name, entry in counts.items():
        if name in before:
            continue
        print(f"  {name:<16} {entry['num']:>7,} rows, {format_percent(entry['unknown_share'], '.1f')} Unknown")
