"""The variants step: draws fine-tuning sets from a knowledge table, and counts their mix from the written rows.

The sets follow Gekhman et al. 2024 (arXiv:2405.05904, appendix E): every set has the same number of rows from each
relation, |D| in all. Within each relation a share of the rows is Unknown and the rest is Known. Two details are not in
the paper: Known rows are drawn uniformly from a relation's pooled Known rows, and `slick.variants.sampling` defines the
rounding. A set that cannot be drawn is an error; it is never made smaller.
"""

import logging
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
from slick.study_files import (
    ANSWER_START_FIELD,
    VARIANT_SCHEMA,
    WEIGHT_FIELD,
    read_knowledge,
    read_question_rows,
    read_variant_rows,
)
from slick.types import Category
from slick.variants.config import (
    VariantsConfig,
    config_from_stored,
    conflicting_settings,
    merge_configs,
    relation_sizes,
    row_weight,
    variant_specs,
)
from slick.variants.sampling import PoolDraw, Pools, RowOrder, VariantSpec, plan_draws, select_rows

_LOG = logging.getLogger(__name__)

_QUESTION_COLUMNS = ["question_id", "domain", "split", "question", "answers"]
_KNOWLEDGE_COLUMNS = ["question_id", "relation", "domain", "split", "category"]
_ANSWER_COLUMNS = ["greedy_hits", "greedy_total", "sampled_hits", "sampled_total", "p_correct_sampled"]


def draw_variants(study: FolderLike, config: VariantsConfig) -> Manifest:
    """Draw every set from the study's knowledge table into variants/NAME.parquet, and audit the written files.

    Later calls may add sets: only new sets are drawn, and existing files stay unchanged even if the settings do not
    name them.

    Returns:
        The manifest. Its counts are by name of the set: num, kind, requested_share and unknown_share (achieved, in
        [0, 1]), categories, relations (rows by relation and category) and dropped_relations. Its inputs identify the
        knowledge table and the model that it describes.

    Raises:
        StudyError: the questions or annotate step is not finished, or the two do not match; or existing sets were drawn
            from other knowledge or with conflicting settings.
        VariantError: the knowledge table cannot give these sets.

    Example:
        slick.draw_variants("studies/mine", slick.VariantsConfig(unknown_shares=(0.0, 0.5, 1.0)))
    """
    study = as_folder(study)
    with exclusive_lock(study, "variants"):
        return _draw_variants(study, config)


def _draw_variants(study: Folder, config: VariantsConfig) -> Manifest:
    started_at = time.monotonic()
    annotated = require_manifest(study.child("annotate"), "annotate")
    questions = require_manifest(study.child("questions"), "questions")
    if annotated.input("questions") != questions.fingerprint:
        raise StudyError(
            f"{study}/annotate was made from questions {annotated.inputs['questions']}, {study}/questions is now "
            f"{questions.fingerprint}; delete {study}/annotate and run `slick annotate` again"
        )
    inputs = {"knowledge": annotated.fingerprint, "model": annotated.input("model")}
    folder = study.child("variants")
    before, config = read_manifest(folder), extend_drawn(study, config)
    identity = fingerprint(inputs, config.identity())
    if before is not None and not _is_from_inputs(before, inputs):
        needs_work(folder, "variants", identity, config)  # raises StudyError
    if before is not None and before.fingerprint == identity:
        return before
    rows = _training_rows(study, with_p_correct=bool(config.p_correct_shares))
    pools = _group_by_category(rows)
    sizes, dropped = relation_sizes(pools, config)

    def write(folder: Folder) -> Manifest:
        counts = _write(folder, config, rows, pools, sizes, before.counts if before else {})
        for entry in counts.values():
            entry["dropped_relations"] = dropped
        _log_summary(counts, sizes, dropped, before.counts if before else {})
        folder.write_json(STARTED, {"fingerprint": identity, "settings": settings_to_json(config)})
        return complete_step(
            folder, "variants", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
        )

    if before is not None:
        return write(folder)  # the manifest names the new sets only once they are complete
    with folder.atomic_replace() as new:
        return write(new)


def extend_drawn(study: Folder, config: VariantsConfig) -> VariantsConfig:
    """The settings extended by the sets that the study already holds.

    Args:
        study: its folder.
        config: settings of the new sets.

    Raises:
        StudyError: the existing sets were drawn with conflicting settings.
    """
    folder = study.child("variants")
    before = read_manifest(folder)
    drawn = None if before is None else config_from_stored(before.settings)
    if drawn is None:
        return config
    if names := conflicting_settings(drawn, config):
        old, new = (", ".join(f"{name} {getattr(settings, name)}" for name in names) for settings in (drawn, config))
        raise StudyError(
            f"{folder} holds fine-tuning sets that were drawn with {old}; the settings now have {new}, and sets of "
            "both would not be comparable: use the former settings, or choose another --out, or delete that folder and "
            f"{study.child('runs')} to draw and train all sets again"
        )
    return merge_configs(drawn, config)


def read_variant(study: FolderLike, name: str) -> pa.Table:
    """One fine-tuning set: question_id, category, prompt, target, and weight if it has weights; by question_id.

    Raises:
        StudyError: the variants step is not finished.
        VariantError: there is no such set.
    """
    study = as_folder(study)
    folder = study.child("variants")
    names = require_manifest(folder, "variants").counts
    if name not in names:
        raise VariantError(f"{folder} has no variant {name!r}; it has {', '.join(names)}")
    return read_variant_rows(study, name)


def _is_from_inputs(manifest: Manifest, inputs: Mapping[str, str]) -> bool:
    """True if the existing sets were drawn from these inputs, with settings that this version knows.

    Args:
        manifest: the manifest of the variants step.
        inputs: the current fingerprints.
    """
    drawn = config_from_stored(manifest.settings)
    return drawn is not None and manifest.fingerprint == fingerprint(inputs, drawn.identity())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    relation: str
    category: Category
    question: str
    target: str
    p_correct: float | None = None
    """Share of correct answers among all greedy and sampled ones; None if it was not read, or if not all samples were
    drawn."""


def _training_rows(study: Folder, *, with_p_correct: bool) -> dict[str, _Row]:
    """The in-distribution training questions of the knowledge table by question_id."""
    table = read_question_rows(study.child("questions"), [*_QUESTION_COLUMNS, ANSWER_START_FIELD.name])
    if ANSWER_START_FIELD.name in table.column_names:
        raise StudyError(
            f"{study} labels the sentences of targets (--claims sentences), which are not training rows; curate the "
            "file without --claims into another --out, and draw the sets from that"
        )
    question_rows = _in_distribution_train(table)
    questions = {row["question_id"]: row for row in question_rows}
    where = f"{study}/annotate/knowledge.parquet"
    rows: dict[str, _Row] = {}
    columns = _KNOWLEDGE_COLUMNS + (_ANSWER_COLUMNS if with_p_correct else [])
    for entry in _in_distribution_train(read_knowledge(study, columns)):
        question_id = entry["question_id"]
        if question_id in rows or question_id not in questions:
            problem = "occurs twice" if question_id in rows else f"is not a training question of {study}/questions"
            raise DataError(
                f"{where}: question {question_id} {problem}; delete {study}/annotate and run `slick annotate` again"
            )
        question = questions[question_id]
        rows[question_id] = _Row(
            relation=entry["relation"],
            category=Category(entry["category"]),
            question=question["question"],
            target=nfc(question["answers"][0]),
            p_correct=_p_correct(entry) if with_p_correct else None,
        )
    if not rows:
        raise VariantError(f"{where} has no in-distribution training questions (domain id, split train) to draw from")
    return rows


def _p_correct(entry: Mapping[str, Any]) -> float | None:
    """The share of correct answers of a row of the knowledge table; None if not all samples were drawn."""
    if entry["p_correct_sampled"] is None or not entry["sampled_total"]:
        return None
    return float((entry["greedy_hits"] + entry["sampled_hits"]) / (entry["greedy_total"] + entry["sampled_total"]))


def _in_distribution_train(table: pa.Table) -> list[dict[str, Any]]:
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
    """Write every set that `before` lacks; return the audited counts of all sets by name."""
    specs = variant_specs(config)
    planned = plan_draws(specs, pools, sizes, config.seed)
    # One order a stream, so that each row is hashed once.
    orders = {stream: RowOrder(config.seed, stream) for stream in {"", *map(_rng_stream, specs)}}
    counts = {}
    for spec in specs:
        if spec.name in before:
            counts[spec.name] = before[spec.name]
            continue
        order = orders["" if config.nested else _rng_stream(spec)]
        drawn = select_rows(planned[spec.name], pools, order)
        folder.write_table(f"{spec.name}.parquet", _variant_table(spec, drawn, rows, config))
        counts[spec.name] = _audit_counts(spec, folder.read_table(f"{spec.name}.parquet"), rows, planned[spec.name])
    return counts


def _rng_stream(spec: VariantSpec) -> str:
    """The stream of a set's draws. All kinds of sets of one share use the stream of the sweep's set of that share."""
    return spec.name if spec.percent_unknown is None else f"unknown-{spec.percent_unknown:03d}"


def _variant_table(
    spec: VariantSpec, drawn: Sequence[str], rows: Mapping[str, _Row], config: VariantsConfig
) -> pa.Table:
    def target(row: _Row) -> str:
        return config.idk_phrase if spec.kind == "idk" and row.category is Category.UNKNOWN else row.target

    taken = [rows[question_id] for question_id in drawn]
    columns = [
        list(drawn),
        [row.category.value for row in taken],
        [closed_book_prompt(row.question) for row in taken],
        [target(row) for row in taken],
    ]
    table = pa.table(columns, schema=VARIANT_SCHEMA)
    if spec.kind not in ("weighted", "p-correct"):
        return table
    if spec.kind == "weighted":
        weights, flags = [row_weight(row.category, config) for row in taken], "--unknown-weight or --weakly-weight"
    else:
        weights, flags = _p_correct_weights(spec, taken, config), "--min-p-correct-weight"
    if not any(weights):
        raise VariantError(
            f"{spec.name} would have weight 0 in all of its {len(weights):,} rows, so there is nothing to train on; "
            f"raise {flags}"
        )
    return table.append_column(WEIGHT_FIELD, pa.array(weights, WEIGHT_FIELD.type))


def _p_correct_weights(spec: VariantSpec, taken: Sequence[_Row], config: VariantsConfig) -> list[float]:
    """The weight of each row. Raises VariantError if P_Correct of a row is not known."""
    p_correct = [row.p_correct for row in taken if row.p_correct is not None]
    if len(p_correct) < len(taken):
        raise VariantError(
            f"{spec.name} needs the share of correct answers of every row, but not all samples of "
            f"{len(taken) - len(p_correct):,} of its {len(taken):,} rows were drawn; annotate with --mode full and "
            "--estimator sampled, or leave out --p-correct-shares"
        )
    return [max(p, config.min_p_correct_weight) for p in p_correct]


def _audit_counts(
    spec: VariantSpec, written: pa.Table, rows: Mapping[str, _Row], planned: Mapping[str, Sequence[PoolDraw]]
) -> dict[str, Any]:
    """The counts of a written set, from its rows. Raises VariantError if they differ from the plan."""
    question_ids = written["question_id"].to_pylist()
    if len(set(question_ids)) != len(question_ids):
        raise _audit_error(spec, "it holds a question twice")
    relations: dict[str, Counter[Category]] = {relation: Counter() for relation in planned}
    for question_id, category in zip(question_ids, written["category"].to_pylist(), strict=True):
        relations[rows[question_id].relation][Category(category)] += 1
    for relation, draws in planned.items():
        for draw in draws:
            num = sum(relations[relation][category] for category in draw.pool)
            if num != draw.num:
                raise _audit_error(spec, f"{relation}: {num} rows of {', '.join(draw.pool)}, planned {draw.num}")
        if relations[relation].total() != sum(draw.num for draw in draws):
            raise _audit_error(spec, f"{relation}: rows that were not planned")
    totals = sum(relations.values(), Counter[Category]())
    return {
        "num": len(question_ids),
        "kind": spec.kind,
        "requested_share": spec.requested_share,
        "unknown_share": totals[Category.UNKNOWN] / len(question_ids),
        "categories": {category.value: totals[category] for category in Category},
        "relations": {
            r: {category.value: counts[category] for category in Category} for r, counts in relations.items()
        },
    }


def _audit_error(spec: VariantSpec, reason: str) -> VariantError:
    return VariantError(
        f"set {spec.name} was not written as planned: {reason}; run `slick variants` again, and "
        "report the error if it stays"
    )


def _log_summary(
    counts: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], dropped: Sequence[str], before: Container[str]
) -> None:
    new = sum(name not in before for name in counts)
    sets = f"{len(counts)} sets" + (f", {new} of them new" if new < len(counts) else "")
    _LOG.info("variants: |D| = %s rows from %d relations, %s", f"{sum(sizes.values()):,}", len(sizes), sets)
    if dropped:
        _LOG.info("variants: relations left out for lack of rows: %s", ", ".join(dropped))
    for name, entry in counts.items():
        if name in before:
            continue
        share = format_percent(entry["unknown_share"], ".1f")
        _LOG.info("  %-16s %7s rows, %s Unknown", name, f"{entry['num']:,}", share)
