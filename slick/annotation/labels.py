"""Labels from stored answers: the knowledge table, checks of its labels, and rescoring. No Ray.

The checks annotate some questions a second time, and some about subjects that do not exist. Rescoring makes new labels
from the stored answers, with another matcher or fewer exemplar sets or samples.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, check_judge, main_store
from slick.annotation.judge import grade_answers, judge_agreement, judge_fingerprint, read_judgements
from slick.annotation.judge_client import JudgeConfig
from slick.annotation.set_aside import (
    check_undecided_share,
    count_set_aside_by_store,
    drop_questions,
    find_undecided,
    labelled_questions,
    read_set_aside,
    write_undecided,
)
from slick.annotation.store import read_parts, sample_by_hash, select_questions, total_cost
from slick.annotation.uncertainty import Scoring, collect_evidence, fit_beta, posterior_hit_probability
from slick.datasets import read_questions
from slick.errors import EngineError, SettingsError, StudyError
from slick.formatting import format_percent
from slick.locks import exclusive_lock
from slick.matching import JUDGE, MATCHERS, nfc
from slick.rng import derive_seed
from slick.settings import check_settings, setting
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import MismatchError, convert
from slick.study import MANIFEST, STARTED, Manifest, complete_step, fingerprint, read_start_record, require_manifest
from slick.study_files import KNOWLEDGE_SCHEMA, read_exemplars
from slick.types import Category, categories, clopper_pearson_upper
from slick.world.facts import NameGenerator, subject_kind

if TYPE_CHECKING:
    from slick.report.statistics.agreement import GradedAnswer

_LOG = logging.getLogger(__name__)


def judge_inputs(config: AnnotateConfig) -> dict[str, str]:
    """The fingerprint of the judge by name, as an input of the labels; empty with another matcher.

    Raises:
        ModelError: a local judge does not exist.
    """
    return {JUDGE: judge_fingerprint(config.judge)} if config.matcher == JUDGE else {}


def control_questions(questions: pa.Table, per_relation: int, seed: int) -> pa.Table:
    """Questions of each relation with an invented subject and unchanged gold answers.

    A correct answer to one of them is a guess. Questions without their subject in the text are not used.
    """
    names = NameGenerator(derive_seed(seed, "controls"))
    all_text = " ".join(questions["question"].to_pylist())
    has_subject = [
        bool(subject) and nfc(subject) in nfc(question)
        for subject, question in zip(questions["subject"].to_pylist(), questions["question"].to_pylist(), strict=True)
    ]
    usable = questions.filter(pa.array(has_subject, pa.bool_()))
    rows = sample_by_hash(usable, per_relation, ("relation",)).to_pylist()
    for row in rows:
        name = names.draw(subject_kind(row["relation"]))
        while name in all_text:
            name = names.draw(subject_kind(row["relation"]))
        row["question"] = nfc(row["question"]).replace(nfc(row["subject"]), name)
        row["subject"] = name
        row["question_id"] = f"control-{row['question_id']}"
    return pa.Table.from_pylist(rows, schema=questions.schema)


def category_flips(first: pa.Table, again: pa.Table) -> dict[str, Any]:
    """Number of questions with another category in the second knowledge table, by their category in the first."""
    categories = dict(zip(first["question_id"].to_pylist(), first["category"].to_pylist(), strict=True))
    pairs = Counter(
        (categories[question_id], category)
        for question_id, category in zip(again["question_id"].to_pylist(), again["category"].to_pylist(), strict=True)
    )
    flipped = sum(num for (before, after), num in pairs.items() if before != after)
    return {
        "questions": again.num_rows,
        "flipped": flipped,
        "flip_rate": round(flipped / again.num_rows, 4),
        "from_to": {
            str(before): {str(after): pairs[str(before), str(after)] for after in Category} for before in Category
        },
    }


def label(
    study: Folder,
    questions: pa.Table,
    config: AnnotateConfig,
    scoring: Scoring | None = None,
    *,
    judge: str = "",
) -> dict[str, Any]:
    """Write knowledge.parquet and confidence.json from the stored answers; returns counts for the manifest.

    A manifest of other labels is deleted right before.

    Args:
        study: its folder.
        questions: all selected questions; those that are set aside get no label.
        config: how the answers were generated.
        scoring: how they are scored; None for the settings in `config`.
        judge: the result of `judge_fingerprint`, with the matcher `judge`.

    Raises:
        EngineError: answers are missing, or the judge fails. Labels and manifest are unchanged.
    """
    folder = study.child("annotate")
    main = main_store(config)
    tables = questions_by_store(labelled_questions(folder, questions), config)
    set_aside = {store: read_set_aside(folder, store) for store in tables}
    kept = {store: drop_questions(table, set_aside[store]) for store, table in tables.items()}
    tables = {store: table for store, table in kept.items() if table.num_rows}
    if scoring is None:
        scoring = Scoring(
            matcher=config.matcher,
            num_exemplar_sets=config.num_exemplar_sets,
            num_samples=config.sampling.num_samples,
        )
    judge_counts: dict[str, Any] = {}
    if config.matcher == JUDGE:
        judgements, judge_counts = grade_answers(folder, tables, config, judge)
        scoring = replace(scoring, judged=judgements.matcher)
    evidence = {store: collect_evidence(read_parts(folder.child(store)), scoring) for store in tables}
    undecided = {store: find_undecided(table, evidence[store].undecided) for store, table in tables.items()}
    check_undecided_share(undecided[main], tables[main].num_rows, config.judge, folder)
    is_judged = scoring.judged is not None
    labels = {
        store: knowledge_table(drop_questions(table, undecided[store]), evidence[store].rows, is_judged=is_judged)
        for store, table in tables.items()
    }
    confidence = _confidence(labels, main, evidence[main].convergence_curve)
    folder.delete(MANIFEST)  # until it is replaced, `slick annotate` would restore the original labels
    write_undecided(folder, undecided)
    folder.write_table("knowledge.parquet", labels[main])
    folder.write_json("confidence.json", confidence)
    without_label = {
        store: pa.concat_tables([table, undecided[store]]) if store in undecided else table
        for store, table in set_aside.items()
    }
    counts = _counts(folder, labels[main], config) | {"set_aside": count_set_aside_by_store(without_label)}
    if judge_counts:
        counts["judge"] = {"fingerprint": judge, "answers": judge_counts}
    _log_summary(counts, confidence, without_label[main].num_rows)
    return counts


def _confidence(labels: Mapping[str, pa.Table], main: str, curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of confidence.json.

    Args:
        labels: the knowledge table of each store.
        main: the store of the labels.
        curve: `Evidence.convergence_curve` of that store.
    """
    confidence: dict[str, Any] = {"settling": curve}
    if REPEATS in labels:
        has_label = pc.is_in(labels[REPEATS]["question_id"], value_set=labels[main]["question_id"].combine_chunks())
        if (again := labels[REPEATS].filter(has_label)).num_rows:
            confidence[REPEATS] = category_flips(labels[main], again)
    if CONTROLS in labels and labels[CONTROLS].num_rows:
        controls = labels[CONTROLS]
        confidence[CONTROLS] = {"questions": controls.num_rows, "categories": count_categories(controls)}
    return confidence


def questions_by_store(questions: pa.Table, config: AnnotateConfig) -> dict[str, pa.Table]:
    """The questions of each store; empty stores are omitted.

    Args:
        questions: the questions that get a label.
        config: how many of them are repeated or serve as controls.
    """
    tables = {main_store(config): questions}
    if config.repeats_per_relation and config.estimator == "sampled":
        tables[REPEATS] = sample_by_hash(questions, config.repeats_per_relation, ("relation",))
    if config.controls_per_relation:
        tables[CONTROLS] = control_questions(questions, config.controls_per_relation, config.seed)
    return {store: table for store, table in tables.items() if table.num_rows}


def prefix_reuse_share(cost: Mapping[str, float]) -> float:
    """Share of prompt tokens that came from a shared prefix instead of the model."""
    return 1 - cost["prefilled_tokens"] / max(cost["prompt_tokens"], 1)


def format_category_shares(categories: Mapping[str, int]) -> str:
    """Share of questions by category, as text."""
    total = sum(categories.values())
    return ", ".join(f"{category} {format_percent(categories.get(category, 0) / total)}" for category in Category)


def _counts(folder: Folder, knowledge: pa.Table, config: AnnotateConfig) -> dict[str, Any]:
    cost, runtime = total_cost(folder.child(main_store(config)))
    return {
        "questions": knowledge.num_rows,
        "limit_per_relation": config.limit_per_relation,
        "estimator": config.estimator if config.estimator == "sampled" else "gold: the first answer's text alone",
        **{name: int(value) for name, value in cost.items() if name not in ("prompts", "seconds")},
        "engine_seconds": round(cost["seconds"], 3),
        **runtime,
        "prompt_tokens_reused": round(prefix_reuse_share(cost), 4),
        "categories": count_categories(knowledge),
        "draws_by_category": _answers_by_category(knowledge, config),
    }


def _answers_by_category(knowledge: pa.Table, config: AnnotateConfig) -> dict[str, dict[str, float]]:
    """Number of answers generated for each category, and the share of all possible answers that were not."""
    max_answers = config.num_exemplar_sets * (1 + config.sampling.num_samples)
    answers = {}
    sums = [("sampled_total", "sum"), ("greedy_total", "sum"), ("question_id", "count")]
    for row in knowledge.group_by("category").aggregate(sums).to_pylist():
        if config.estimator == "sampled":
            num_answers = row["sampled_total_sum"] + row["greedy_total_sum"]
            spared = round(1 - num_answers / (row["question_id_count"] * max_answers), 4)
            answers[row["category"]] = {"made": num_answers, "spared": spared}
    return answers


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


def knowledge_table(questions: pa.Table, evidence: pa.Table, *, is_judged: bool = False) -> pa.Table:
    """Label every question with its category.

    Args:
        questions: question_id, relation, domain and split of the questions to label.
        evidence: `slick.annotation.uncertainty.EVIDENCE_SCHEMA`, one row per question.
        is_judged: answers without an outcome are unparsable, not omitted because they would not change a category.

    Returns:
        `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        EngineError: a question has no answers, or has them twice. That is not Unknown.
    """
    names = ["relation", "domain", "split", "question_id"]
    questions = questions.select(["question_id", "relation", "domain", "split"]).sort_by(
        [(name, "ascending") for name in names]
    )
    rows = pc.index_in(questions["question_id"], value_set=evidence["question_id"].combine_chunks())
    if rows.null_count or evidence.num_rows != questions.num_rows:
        missing = questions.filter(pc.is_null(rows))["question_id"].to_pylist()
        raise EngineError(
            f"expected answers to {questions.num_rows} questions, one row each; annotate/ holds {evidence.num_rows} "
            f"rows, and none for {len(missing)} questions such as {missing[:3]}; delete annotate/ and annotate again"
        )
    evidence = evidence.take(rows)
    greedy_hits, greedy_total, hits, num_samples = (
        evidence[name].to_numpy() for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total")
    )
    exact = evidence["chance_known"].to_numpy()
    by_gold = ~np.isnan(exact)
    no_greedy_hit = greedy_hits == 0
    if ((num_samples == 0) & no_greedy_hit & ~by_gold).any():
        raise EngineError(
            "a question without a correct greedy answer has no samples, so WeaklyKnown and Unknown cannot be "
            "separated; delete annotate/ and annotate again"
        )
    category = categories(greedy_hits, greedy_total, np.where(by_gold, exact >= 0.5, hits))
    unknown = no_greedy_hit & (hits == 0) & ~by_gold
    distinct, inverse = np.unique(num_samples, return_inverse=True)
    bound = np.array([clopper_pearson_upper(max(1, int(num))) for num in distinct])[inverse]
    probability = np.where(by_gold, exact, _rare_knowledge_probability(evidence, unknown, is_judged))
    table = questions
    for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total"):
        table = table.append_column(name, evidence[name])
    columns = {
        "p_correct_greedy": pa.array(greedy_hits / greedy_total),
        "p_correct_sampled": evidence["p_correct_sampled"],
        "category": pa.array(category, pa.string()),
        "p_upper": pa.array(bound, mask=~unknown),
        "p_low": evidence["p_low"],
        "p_high": evidence["p_high"],
        "chance_known": pa.array(probability, mask=np.isnan(probability) | ~no_greedy_hit),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.cast(KNOWLEDGE_SCHEMA)


def _rare_knowledge_probability(evidence: pa.Table, unknown: NDArray[np.bool_], is_judged: bool) -> NDArray[np.float64]:
    """Probability that an Unknown question is rarely known: as many samples again would contain a correct one.

    P_Correct of the questions without a correct greedy answer is modelled by a Beta distribution, fitted to their
    samples. NaN for other questions, and if the distribution cannot be fitted. The few questions with an unparsable
    outcome do not count.
    """
    probabilities = np.full(evidence.num_rows, np.nan)
    fitted = evidence.filter(pc.equal(evidence["greedy_hits"], 0))
    if is_judged:
        fitted = fitted.filter(pc.is_valid(fitted["p_correct_sampled"]))
    if not unknown.any() or fitted["p_correct_sampled"].null_count:
        return probabilities
    num_samples = int(fitted["sampled_total"][0].as_py())
    try:
        prior = fit_beta(fitted["sampled_hits"].to_numpy().astype(np.int64), num_samples)
    except ValueError:
        return probabilities
    probabilities[unknown] = posterior_hit_probability(prior, num_samples, num_samples)
    return probabilities


def count_categories(knowledge: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Number of questions by relation, split and category, zeros included."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    grouped = knowledge.group_by(["relation", "split", "category"]).aggregate([("question_id", "count")])
    for row in grouped.sort_by([("relation", "ascending"), ("split", "ascending")]).to_pylist():
        of_split = counts.setdefault(row["relation"], {}).setdefault(row["split"], {str(c): 0 for c in Category})
        of_split[row["category"]] = row["question_id_count"]
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreConfig:
    """Settings of the new labels; None keeps the setting of the annotation."""

    matcher: str | None = setting(None, registry=MATCHERS)
    """When an answer is correct; see `slick.matching`. In a shell, quote names such as 'f1>=0.7'."""
    num_exemplar_sets: int | None = None
    """Use the answers to this many first exemplar sets."""
    num_samples: int | None = None
    """Use this many first samples of each prompt."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The language model that grades answers, with the matcher `judge`."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.matcher is not None:
            check_judge(self.matcher, self.judge)


def rescore(study: FolderLike, config: RescoreConfig) -> Manifest:
    """Replace knowledge.parquet, confidence.json and the manifest by those of an annotation with these settings.

    The stored answers do not change, so another rescoring can restore the labels.

    Raises:
        StudyError: the annotation is not finished, or did not keep all answers.
        SettingsError: there are fewer exemplar sets or samples than requested.

    Example:
        slick.rescore("studies/mine", slick.RescoreConfig(matcher="contains"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "annotate"):
        return _rescore(study, config)


def _resolve_judge(judge: JudgeConfig, matcher: str, original: AnnotateConfig) -> JudgeConfig:
    """The judge of a rescoring: the given one, or that of the annotation.

    Raises:
        SettingsError: the matcher needs a judge and there is none, or it needs none and one is given.
    """
    if matcher == original.matcher == JUDGE and not judge.is_given:
        first = original.judge
        if judge == JudgeConfig():
            return first
        return replace(judge, model=first.model, url=first.url, served_model=first.served_model)
    check_judge(matcher, judge)
    return judge


def _read_graded(study: Folder, path: str) -> "list[GradedAnswer]":
    """The graded answers of the grading sheet `--judge.graded`; empty without one."""
    from slick.report.grading import read_graded_answers

    return read_graded_answers(study, path) if path else []


def _original_config(folder: Folder) -> AnnotateConfig:
    """The settings of the stored answers.

    Raises:
        StudyError: started.json is missing or invalid.
    """
    fix = f"restore the file, or delete {folder} and run `slick annotate` again"
    started = read_start_record(folder)
    if started is None:
        raise StudyError(f"{folder}/{STARTED}, which records the settings of the answers, is missing; {fix}")
    try:
        config: AnnotateConfig = convert(started.settings, AnnotateConfig, "settings", exact=True)
    except MismatchError as error:
        raise StudyError(f"{folder}/{STARTED}: {error}; {fix}") from error
    return config


def _rescore(study: Folder, config: RescoreConfig) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("annotate")
    manifest = require_manifest(folder, "annotate")
    original = _original_config(folder)
    if original.estimator == "gold" or original.mode == "labels":
        raise StudyError(
            f"{folder.uri} was annotated with --estimator {original.estimator} --mode {original.mode}, which does not "
            "keep all answers; to rescore, annotate with --estimator sampled --mode full"
        )
    sets, samples = original.num_exemplar_sets, original.sampling.num_samples
    num_sets, num_samples = config.num_exemplar_sets or sets, config.num_samples or samples
    if not (1 <= num_sets <= sets and 1 <= num_samples <= samples):
        raise SettingsError(
            f"{folder.uri} holds answers for {sets} exemplar sets with {samples} samples each; rescoring can use "
            f"fewer, but not {num_sets} exemplar sets and {num_samples} samples"
        )
    matcher = config.matcher or original.matcher
    judge = _resolve_judge(config.judge, matcher, original)
    scored = replace(
        original,
        matcher=matcher,
        judge=replace(judge, graded=""),
        num_exemplar_sets=num_sets,
        sampling=replace(original.sampling, num_samples=num_samples),
    )
    inputs = {name: value for name, value in manifest.inputs.items() if name != JUDGE} | judge_inputs(scored)
    questions = read_questions(study)
    selected = select_questions(
        questions,
        dev=original.annotate_dev,
        exemplars=read_exemplars(folder),
        limit=original.limit_per_relation,
        with_exemplars=original.annotate_exemplars,
    )
    gold = dict(zip(questions["question_id"].to_pylist(), questions["answers"].to_pylist(), strict=True))
    gold |= {f"control-{question_id}": answers for question_id, answers in gold.items()}
    scoring = Scoring(
        matcher=scored.matcher,
        num_exemplar_sets=num_sets,
        num_samples=num_samples,
        gold=gold if scored.matcher != original.matcher else None,
    )
    graded = _read_graded(study, config.judge.graded)
    counts = label(study, selected, scored, scoring, judge=inputs.get(JUDGE, ""))
    if graded:
        judgements = read_judgements(folder, scored.judge, inputs[JUDGE])
        counts["judge"]["agreement"] = judge_agreement(graded, judgements)
    identity = fingerprint(inputs, scored.identity())
    return complete_step(
        folder, "annotate", identity, settings=scored, inputs=inputs, counts=counts, started_at=started_at
    )
