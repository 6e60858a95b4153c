"""Labels from stored answers: the knowledge table, and checks of its labels. No Ray.

The checks repeat questions, and ask about subjects that do not exist.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, main_store
from slick.annotation.knowledge import count_categories, knowledge_table
from slick.annotation.set_aside import count_set_aside_by_store, drop_questions, labelled_questions, read_set_aside
from slick.annotation.store import read_parts, sample_by_hash, total_cost
from slick.annotation.uncertainty import Scoring, collect_evidence
from slick.formatting import format_percent
from slick.matching import nfc
from slick.rng import derive_seed
from slick.storage import Folder
from slick.types import Category
from slick.world.facts import NameGenerator, subject_kind


def control_questions(asked: pa.Table, per_relation: int, seed: int) -> pa.Table:
    """Questions of each relation with an invented subject in place of the real one, and the gold answers they had.

    What a model answers right here it has guessed. Questions without a subject in their text serve no control.
    """
    names = NameGenerator(derive_seed(seed, "controls"))
    known = " ".join(asked["question"].to_pylist())
    has_subject = [
        bool(subject) and nfc(subject) in nfc(question)
        for subject, question in zip(asked["subject"].to_pylist(), asked["question"].to_pylist(), strict=True)
    ]
    rows = sample_by_hash(asked.filter(pa.array(has_subject, pa.bool_())), per_relation, ("relation",)).to_pylist()
    for row in rows:
        name = names.draw(subject_kind(row["relation"]))
        while name in known:
            name = names.draw(subject_kind(row["relation"]))
        row["question"] = nfc(row["question"]).replace(nfc(row["subject"]), name)
        row["subject"] = name
        row["question_id"] = f"control-{row['question_id']}"
    return pa.Table.from_pylist(rows, schema=asked.schema)


def category_flips(first: pa.Table, again: pa.Table) -> dict[str, Any]:
    """How many questions have another category in the second knowledge table, by their category in the first."""
    categories = dict(zip(first["question_id"].to_pylist(), first["category"].to_pylist(), strict=True))
    pairs = Counter(
        (categories[question_id], category)
        for question_id, category in zip(again["question_id"].to_pylist(), again["category"].to_pylist(), strict=True)
    )
    flipped = sum(num for (one, other), num in pairs.items() if one != other)
    return {
        "questions": again.num_rows,
        "flipped": flipped,
        "flip_rate": round(flipped / again.num_rows, 4),
        "from_to": {str(one): {str(other): pairs[str(one), str(other)] for other in Category} for one in Category},
    }


def label(study: Folder, asked: pa.Table, config: AnnotateConfig, scoring: Scoring | None = None) -> dict[str, Any]:
    """Write knowledge.parquet and confidence.json from the stored answers; counts for the manifest.

    Args:
        asked: all questions of the main store; those that are set aside get no label.
    """
    folder = study.child("annotate")
    main = main_store(config)
    tables = questions_by_store(labelled_questions(folder, asked), config)
    set_aside = {store: read_set_aside(folder, store) for store in tables}
    left = {store: drop_questions(table, set_aside[store]) for store, table in tables.items()}
    tables = {store: table for store, table in left.items() if table.num_rows}
    if scoring is None:
        scoring = Scoring(
            matcher=config.matcher,
            num_exemplar_sets=config.num_exemplar_sets,
            num_samples=config.sampling.num_samples,
        )
    evidence = collect_evidence(read_parts(folder.child(main)), scoring)
    table = knowledge_table(tables[main], evidence.rows)
    folder.write_table("knowledge.parquet", table)
    found: dict[str, Any] = {"settling": evidence.convergence_curve}
    if REPEATS in tables:
        again = knowledge_table(tables[REPEATS], collect_evidence(read_parts(folder.child(REPEATS)), scoring).rows)
        found[REPEATS] = category_flips(table, again)
    if CONTROLS in tables:
        known = knowledge_table(tables[CONTROLS], collect_evidence(read_parts(folder.child(CONTROLS)), scoring).rows)
        found[CONTROLS] = {"questions": known.num_rows, "categories": count_categories(known)}
    folder.write_json("confidence.json", found)
    counts = _counts(folder, table, config) | {"set_aside": count_set_aside_by_store(set_aside)}
    _print_summary(counts, found, set_aside[main].num_rows)
    return counts


def questions_by_store(asked: pa.Table, config: AnnotateConfig) -> dict[str, pa.Table]:
    """The questions that each store of answers is about; a store without any is left out.

    Args:
        asked: those of the main store that get a label.
    """
    tables = {main_store(config): asked}
    if config.repeats_per_relation and config.estimator == "sampled":
        tables[REPEATS] = sample_by_hash(asked, config.repeats_per_relation, ("relation",))
    if config.controls_per_relation:
        tables[CONTROLS] = control_questions(asked, config.controls_per_relation, config.seed)
    return {store: table for store, table in tables.items() if table.num_rows}


def prefix_reuse_share(spent: Mapping[str, float]) -> float:
    """Share of prompt tokens that a shared prefix spared the model."""
    return 1 - spent["prefilled_tokens"] / max(spent["prompt_tokens"], 1)


def format_category_shares(categories: Mapping[str, int]) -> str:
    """Each category's share of the questions, for a line of text."""
    total = sum(categories.values())
    return ", ".join(f"{category} {format_percent(categories.get(category, 0) / total)}" for category in Category)


def _counts(folder: Folder, knowledge: pa.Table, config: AnnotateConfig) -> dict[str, Any]:
    spent, runtime = total_cost(folder.child(main_store(config)))
    return {
        "questions": knowledge.num_rows,
        "limit_per_relation": config.limit_per_relation,
        "estimator": config.estimator if config.estimator == "sampled" else "gold: the first answer's text alone",
        **{name: int(value) for name, value in spent.items() if name not in ("prompts", "seconds")},
        "engine_seconds": round(spent["seconds"], 3),
        **runtime,
        "prompt_tokens_reused": round(prefix_reuse_share(spent), 4),
        "categories": count_categories(knowledge),
        "draws_by_category": _draws(knowledge, config),
    }


def _draws(knowledge: pa.Table, config: AnnotateConfig) -> dict[str, dict[str, float]]:
    """Answers made for the questions of each category, and the share that was spared of all there might be."""
    possible = config.num_exemplar_sets * (1 + config.sampling.num_samples)
    found = {}
    sums = [("sampled_total", "sum"), ("greedy_total", "sum")]
    for row in knowledge.group_by("category").aggregate(sums).to_pylist():
        if config.estimator == "sampled":
            made = row["sampled_total_sum"] + row["greedy_total_sum"]
            num = row["greedy_total_sum"] // config.num_exemplar_sets
            found[row["category"]] = {"made": made, "spared": round(1 - made / (num * possible), 4)}
    return found


def _print_summary(counts: Mapping[str, Any], confidence: Mapping[str, Any], num_set_aside: int) -> None:
    total: Counter[str] = Counter()
    for of_relation in counts["categories"].values():
        for of_split in of_relation.values():
            total.update(of_split)
    left_out = f" ({num_set_aside:,} more set aside)" if num_set_aside else ""
    print(
        f"{counts['questions']:,} questions{left_out}, {counts['generations']:,} generations: "
        f"{format_category_shares(total)}. "
        f"{format_percent(counts['prompt_tokens_reused'])} of prompt tokens came from shared prefixes.",
        flush=True,
    )
    if REPEATS in confidence:
        again = confidence[REPEATS]
        print(f"Asked again, {again['flipped']} of {again['questions']} questions change their category.", flush=True)
    if CONTROLS in confidence:
        controls = confidence[CONTROLS]
        unknown = sum(
            found[Category.UNKNOWN.value] for of_split in controls["categories"].values() for found in of_split.values()
        )
        print(f"Of {controls['questions']} questions about subjects nobody knows, {unknown} are Unknown.", flush=True)
