"""Schemas and readers of the files in a study folder that later steps read.

Readers check columns, types, nulls, allowed values and the number of rows (see `slick.stored_files`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slick.errors import StudyError
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import Lookup, TableSpec, convert, read_record, read_validated_parts, read_validated_table
from slick.strict_json import parse_json
from slick.study import require_manifest
from slick.types import ALL_CATEGORIES, Category

DOMAINS = ("id", "ood")
SPLITS = ("train", "dev", "test")
ROW_SPLITS = (*SPLITS, "ood")
"""Splits of a run: training rows, dev and test questions (in distribution), and ood test questions."""
CATEGORIES = tuple(str(category) for category in Category)
INFINITY = float("inf")
_UNIT_RANGE = (0.0, 1.0)
_NON_NEGATIVE = (0, INFINITY)

Exemplars = dict[str, list[list[str]]]
"""Relation -> exemplar sets, each a list of question_ids."""

QUESTION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("relation", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("subject", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
    ]
)
"""Schema of `questions/part-*.parquet`; only `subject` may be null."""

POPULARITY_FIELD = pa.field("popularity", pa.float64())
"""A further column if the source has the popularity of subjects; null for subjects without one."""

CONTEXT_FIELD = pa.field("context", pa.string())
"""A further column of questions that come from conversations: a JSON list of the messages before the question, each
`{"role": ..., "content": ...}`: a system message, earlier turns; null for questions without context."""

ANSWER_START_FIELD = pa.field("answer_start", pa.string())
"""A further column of questions that ask for a sentence of a longer answer (`slick.curation.claims`): the text of the
answer before it, with which the prompt ends; empty for a first sentence, null for questions that ask for a whole
answer."""

KNOWLEDGE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("relation", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("greedy_hits", pa.int32()),
        ("greedy_total", pa.int32()),
        ("sampled_hits", pa.int32()),
        ("sampled_total", pa.int32()),
        ("p_correct_greedy", pa.float64()),
        ("p_correct_sampled", pa.float64()),
        ("category", pa.string()),
        ("p_upper", pa.float64()),
        ("p_low", pa.float64()),
        ("p_high", pa.float64()),
        ("chance_known", pa.float64()),
    ]
)
"""Schema of `annotate/knowledge.parquet`.

`sampled_hits`, `sampled_total`: correct samples and samples; 0 if none was needed (labels mode, gold estimator).
`p_correct_sampled`, `p_low`, `p_high`: share of correct samples and its 95 % interval; null if not all samples were
drawn. The gold estimator computes the exact share; the interval is then that value.
`p_upper`: upper bound of P_Correct; null if an answer was correct.
`chance_known`: for Unknown questions, the probability that as many further samples have a correct one; null for others.
With the gold estimator, for all questions without a correct greedy answer, the exact probability that the samples of
the study have a correct one.
"""

GENERATION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("relation", pa.string()),
        ("greedy_text", pa.list_(pa.string())),
        ("greedy_hit", pa.list_(pa.bool_())),
        ("sampled_text", pa.list_(pa.list_(pa.string()))),
        ("sampled_hit", pa.list_(pa.list_(pa.bool_()))),
        ("num_tokens", pa.int64()),
    ]
)
"""Schema of `annotate/generations/part-*.parquet`: one row per question; lists are over exemplar sets, then samples.

In labels mode, a sample that was not needed has no text and no hit; a sample that was stopped early, since it could no
longer match an answer, has no text, and its hit is False.
"""

GOLD_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("relation", pa.string()),
        ("greedy_hit", pa.list_(pa.bool_())),
        ("gold_probability", pa.list_(pa.float64())),
        ("num_tokens", pa.int64()),
    ]
)
"""Schema of `annotate/gold/part-*.parquet`: one row per question; lists are over exemplar sets."""

P_TRUE_SCHEMA = pa.schema([("question_id", pa.string()), *((name, pa.float64()) for name in ("p_a", "p_b", "p_true"))])
"""Schema of `annotate/p_true/part-*.parquet`: one row per question.

`p_a`, `p_b`: probabilities that ` (A` and ` (B` follow the prompt. `p_true`: p_a / (p_a + p_b).
"""

LOG_PROBABILITY_SCHEMA = pa.schema(
    [("question_id", pa.string()), ("log_probability", pa.list_(pa.float64())), ("num_tokens", pa.int64())]
)
"""Schema of `annotate/hidden/log_probabilities/part-*.parquet`: one row per answer; its key is in `question_id`, and
the lists are over exemplar sets."""

CANDIDATE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "relation", "answer")),
        *((name, pa.bool_()) for name in ("is_right", "is_gold")),
        *((name, pa.int64()) for name in ("num_distractors", "count")),
        *LOG_PROBABILITY_SCHEMA.remove(0),
        *P_TRUE_SCHEMA.remove(0),
    ]
)
"""Schema of `annotate/hidden/candidates.parquet`: one row per question and answer.

`is_gold`: the first gold answer. `num_distractors`: number of distractors, gold answers of other questions, that are
this text. `count`: stored answers that are this text. `log_probability`: natural logarithm of the probability of the
whole answer and its end, by exemplar set. `num_tokens`: number of probabilities in it.
"""

JUDGE_OUTCOMES = CORRECT, INCORRECT, NOT_ATTEMPTED, UNPARSABLE = (
    *("correct", "incorrect", "not attempted"),
    "unparsable",
)
"""Outcomes of the matcher `judge`; `unparsable` if no reply was one of the other three."""
ROW_OUTCOMES = ASKS_FACT, ASKS_OTHER, _ = "fact", "other", UNPARSABLE
"""What the prompt of a row asks for, by the decision of a judge."""

JUDGEMENT_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("key", "outcome", "reply", "item")), ("attempts", pa.int64())]
)
"""Schema of `annotate/judgements/part-*.parquet`: one row per distinct question, gold answers and answer. Schema of
`curate/judgements/part-*.parquet`: one row per distinct prompt.

`key`: hash of the judge and the item. `reply`: the last reply, at most 1,000 characters. `item`: the texts, see
`slick.annotation.rubrics`. `attempts`: replies, 1 for a local model. A key with an unparsable outcome may come again in
a later file, with more attempts.
"""

SET_ASIDE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "relation", "domain", "split", "reason")),
        ("num_tokens", pa.int64()),
        ("limit", pa.int64()),
    ]
)
"""Schema of `annotate/set_aside/STORE.parquet`, and of `judge_STORE.parquet` there: one row per question.

`num_tokens`: tokens of its longest prompt and the longest answer. `limit`: tokens of the model's context. Both are null
for questions whose category depends on an unparsable outcome of the judge.
"""

RUN_SET_ASIDE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "split", "reason")),
        ("num_tokens", pa.int64()),
        ("limit", pa.int64()),
    ]
)
"""Schema of `runs/RUN_ID/set_aside.parquet`: rows that are neither trained nor evaluated. `num_tokens`: tokens of the
prompt and of the longer of its target and the longest answer. `limit`: tokens of the model's context. If the setting
`max_length` is exceeded, they are the tokens of prompt and target, and this setting."""

VARIANT_SCHEMA = pa.schema([(name, pa.string()) for name in ("question_id", "category", "prompt", "target")])
"""Schema of `variants/NAME.parquet`: one row per training row."""

WEIGHT_FIELD = pa.field("weight", pa.float64())
"""A further column if rows are weighted in the loss; without it every row has weight 1."""

MAX_WEIGHT = 1e6
"""The largest weight of a row. Weights are relative, and sums of finite but huge ones would overflow."""

EPOCHS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("num", pa.int32()),
        ("num_correct", pa.int32()),
        ("loss", pa.float64()),
    ]
)
"""Schema of `runs/RUN_ID/epochs.parquet`: one row per epoch, split and category; `loss` may be null."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("hit", pa.bool_()),
        ("text", pa.string()),
        ("loss", pa.float64()),
    ]
)
"""Schema of `runs/RUN_ID/predictions/epoch-NNN.parquet`; `category` is null if the question has no label."""

ROWS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("first_fit_epoch", pa.int32()),
        ("num_hits", pa.int32()),
    ]
)
"""Schema of `runs/RUN_ID/rows.parquet`; `first_fit_epoch` is null if the row is never answered correctly."""

RIGHT_TO_WRONG_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("text_before", pa.string()),
        ("text_after", pa.string()),
    ]
)
"""Schema of `runs/RUN_ID/right_to_wrong.parquet`."""

_ACCURACIES = tuple(
    f"{split}_{category}" for split in ("train", "dev", "test", "ood") for category in (ALL_CATEGORIES, *CATEGORIES)
)
POINTS_SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("unknown_share", pa.float64()),
        ("seed", pa.int64()),
        ("epochs", pa.int32()),
        ("policy", pa.string()),
        ("stop_epoch", pa.int32()),
        ("cost_epochs", pa.int32()),
        ("run_id", pa.string()),
        ("settings", pa.string()),
        *((name, pa.float64()) for name in _ACCURACIES),
    ]
)
"""Schema of `sweep/points.parquet`. Accuracies are in [0, 1], or null if the split has no rows of the category."""

PLANTED_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("subject", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("strength", pa.string()),
        ("num_gold", pa.int32()),
        ("num_rival", pa.int32()),
        ("rival", pa.string()),
    ]
)
"""Schema of `world/planted.parquet`: one row per fact."""

QUESTIONS_SPEC = TableSpec(
    schema=QUESTION_SCHEMA.append(POPULARITY_FIELD).append(CONTEXT_FIELD).append(ANSWER_START_FIELD),
    step="questions",
    nullable=frozenset({"subject", "popularity", "context", "answer_start"}),
    values={"domain": DOMAINS, "split": SPLITS},
    non_empty=frozenset({"answers"}),
    optional=frozenset({"context", "answer_start"}),
)
KNOWLEDGE_SPEC = TableSpec(
    schema=KNOWLEDGE_SCHEMA,
    step="annotate",
    nullable=frozenset({"p_correct_sampled", "p_upper", "p_low", "p_high", "chance_known"}),
    values={"domain": DOMAINS, "split": SPLITS, "category": CATEGORIES},
    ranges={
        **dict.fromkeys(("greedy_hits", "greedy_total", "sampled_hits", "sampled_total"), _NON_NEGATIVE),
        **dict.fromkeys(
            ("p_correct_greedy", "p_correct_sampled", "p_upper", "p_low", "p_high", "chance_known"), _UNIT_RANGE
        ),
    },
    optional=frozenset({"p_upper", "p_low", "p_high", "chance_known"}),
)
GENERATIONS_SPEC = TableSpec(
    schema=GENERATION_SCHEMA,
    step="annotate",
    nullable=frozenset({"sampled_text", "sampled_hit"}),
    ranges={"num_tokens": _NON_NEGATIVE},
    non_empty=frozenset({"greedy_hit"}),
    same_length=(("greedy_text", "greedy_hit"), ("sampled_text", "sampled_hit")),
    allow_empty=True,
)
GOLD_SPEC = TableSpec(
    schema=GOLD_SCHEMA,
    step="annotate",
    ranges={"num_tokens": _NON_NEGATIVE},
    non_empty=frozenset({"greedy_hit", "gold_probability"}),
    same_length=(("greedy_hit", "gold_probability"),),
    allow_empty=True,
)
P_TRUE_SPEC = TableSpec(
    schema=P_TRUE_SCHEMA,
    step="annotate",
    ranges=dict.fromkeys(("p_a", "p_b", "p_true"), _UNIT_RANGE),
    allow_empty=True,
)
LOG_PROBABILITY_SPEC = TableSpec(
    schema=LOG_PROBABILITY_SCHEMA,
    step="annotate",
    ranges={"num_tokens": (1, INFINITY)},
    non_empty=frozenset({"log_probability"}),
    allow_empty=True,
)
CANDIDATES_SPEC = TableSpec(
    schema=CANDIDATE_SCHEMA,
    step="annotate",
    ranges={
        **dict.fromkeys(("num_distractors", "count"), _NON_NEGATIVE),
        "num_tokens": (1, INFINITY),
        **dict.fromkeys(("p_a", "p_b", "p_true"), _UNIT_RANGE),
    },
    non_empty=frozenset({"log_probability"}),
)
JUDGEMENTS_SPEC = TableSpec(
    schema=JUDGEMENT_SCHEMA,
    step="annotate",
    values={"outcome": tuple(dict.fromkeys((*JUDGE_OUTCOMES, *ROW_OUTCOMES)))},
    ranges={"attempts": _NON_NEGATIVE},
    allow_empty=True,
)
SET_ASIDE_SPEC = TableSpec(
    schema=SET_ASIDE_SCHEMA,
    step="annotate",
    nullable=frozenset({"num_tokens", "limit"}),
    values={"domain": DOMAINS, "split": SPLITS},
    allow_empty=True,
)
RUN_SET_ASIDE_SPEC = TableSpec(
    schema=RUN_SET_ASIDE_SCHEMA, step="sweep", values={"split": ROW_SPLITS}, allow_empty=True
)
VARIANT_SPEC = TableSpec(
    schema=VARIANT_SCHEMA.append(WEIGHT_FIELD),
    step="variants",
    values={"category": CATEGORIES},
    ranges={WEIGHT_FIELD.name: (0.0, MAX_WEIGHT)},
    optional=frozenset({WEIGHT_FIELD.name}),
)
EPOCHS_SPEC = TableSpec(
    schema=EPOCHS_SCHEMA,
    step="sweep",
    nullable=frozenset({"loss"}),
    values={"split": ROW_SPLITS, "category": (ALL_CATEGORIES, *CATEGORIES)},
    ranges={"epoch": (1, INFINITY), "num": (1, INFINITY), "num_correct": _NON_NEGATIVE},
)
PREDICTIONS_SPEC = TableSpec(
    schema=PREDICTIONS_SCHEMA,
    step="sweep",
    nullable=frozenset({"category", "loss"}),
    values={"split": ROW_SPLITS, "category": CATEGORIES},
)
ROWS_SPEC = TableSpec(
    schema=ROWS_SCHEMA,
    step="sweep",
    nullable=frozenset({"category", "first_fit_epoch"}),
    values={"split": ROW_SPLITS, "category": CATEGORIES},
    ranges={"first_fit_epoch": (1, INFINITY), "num_hits": _NON_NEGATIVE},
)
RIGHT_TO_WRONG_SPEC = TableSpec(
    schema=RIGHT_TO_WRONG_SCHEMA,
    step="sweep",
    nullable=frozenset({"category"}),
    values={"split": ROW_SPLITS, "category": CATEGORIES},
    allow_empty=True,
)
POINTS_SPEC = TableSpec(
    schema=POINTS_SCHEMA,
    step="sweep",
    nullable=frozenset(_ACCURACIES),
    ranges={
        "epochs": (1, INFINITY),
        "stop_epoch": (1, INFINITY),
        "cost_epochs": (1, INFINITY),
        **dict.fromkeys(("unknown_share", *_ACCURACIES), _UNIT_RANGE),
    },
    optional=frozenset(
        {"unknown_share", "settings", *(name for name in _ACCURACIES if name != f"test_{ALL_CATEGORIES}")}
    ),
)
PLANTED_SPEC = TableSpec(
    schema=PLANTED_SCHEMA,
    step="world",
    nullable=frozenset({"rival"}),
    values={"domain": DOMAINS, "split": SPLITS, "strength": ("firm", "contested", "minority", "never")},
    ranges={"num_gold": _NON_NEGATIVE, "num_rival": _NON_NEGATIVE},
)


def read_question_rows(folder: Folder, columns: Sequence[str]) -> pa.Table:
    """Columns of the questions in the folder questions/ of a study, in the order of its files."""
    return read_validated_parts(folder, QUESTIONS_SPEC, columns)


def read_knowledge(study: FolderLike, columns: Sequence[str] | None = None) -> pa.Table:
    """The knowledge table of a study, or some of its columns. Optional columns may be absent.

    Returns:
        A table of `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        StudyError: the annotate step is not finished, or the table is invalid.

    Example:
        labels = slick.read_knowledge("studies/mine").to_pandas()
        unknown = labels[labels.category == slick.Category.UNKNOWN]
    """
    study = as_folder(study)
    require_manifest(study.child("annotate"), "annotate")
    return read_validated_table(study.child("annotate"), "knowledge.parquet", KNOWLEDGE_SPEC, columns)


EXEMPLARS_FILE = "exemplars.json"
"""Exemplar sets, in annotate/ and in curate/."""


def read_exemplars(folder: Folder) -> Exemplars:
    """The exemplar sets in exemplars.json of an annotate folder."""
    hint = f"restore it, or delete {folder} and run `slick annotate` again"
    return read_record(folder, EXEMPLARS_FILE, Exemplars, hint)


def read_answer_part(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part file with answers, gold scores or P(True) scores, by the name of its folder.

    Args:
        folder: the folder of the file.
        name: the file's name.
        columns: the columns to read; None: all.
    """
    specs = {"gold": GOLD_SPEC, "p_true": P_TRUE_SPEC, "log_probabilities": LOG_PROBABILITY_SPEC}
    spec = specs.get(folder.name, GENERATIONS_SPEC)
    return read_validated_table(folder, name, spec, columns)


def read_p_true_rows(folder: Folder) -> pa.Table:
    """All P(True) scores, in the order of the files."""
    return read_validated_parts(folder, P_TRUE_SPEC)


def read_candidates(folder: Folder) -> pa.Table:
    """The candidates in annotate/hidden/, by question."""
    return read_validated_table(folder, "candidates.parquet", CANDIDATES_SPEC)


def read_judgement_part(folder: Folder, name: str, columns: Sequence[str]) -> pa.Table:
    """Columns of a file of annotate/judgements/."""
    return read_validated_table(folder, name, JUDGEMENTS_SPEC, columns)


def read_set_aside_rows(folder: Folder, name: str) -> pa.Table:
    """A table of annotate/set_aside/."""
    return read_validated_table(folder, name, SET_ASIDE_SPEC)


def read_run_set_aside(run: Folder, name: str) -> pa.Table:
    """The rows that a run has set aside."""
    return read_validated_table(run, name, RUN_SET_ASIDE_SPEC)


def read_part_metadata(folder: Folder, name: str, keys: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects with these keys in the metadata of a Parquet file; empty if a key is absent.

    Raises:
        StudyError: the file is damaged, or an entry is not a JSON object.
    """
    metadata = folder.read_parquet(name, lambda file: file.schema_arrow.metadata or {})
    for key in keys:
        try:
            yield convert(parse_json(metadata.get(key, b"{}")), dict[str, Any])
        except ValueError as error:
            raise StudyError(
                f"{folder}/{name} has invalid metadata ({str(error).splitlines()[0]}); delete it and run `slick "
                "annotate` again, which repeats its questions"
            ) from error


def read_variant_rows(study: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One variant, or some of its columns. The column `weight` may be absent.

    Raises:
        StudyError: the file is invalid, or all weights are 0.
    """
    table = read_validated_table(study.child("variants"), f"{name}.parquet", VARIANT_SPEC, columns)
    if WEIGHT_FIELD.name in table.column_names and not pc.any(pc.greater(table[WEIGHT_FIELD.name], 0.0)).as_py():
        raise StudyError(
            f"{study}/variants/{name}.parquet: column weight is 0 in all of {table.num_rows:,} rows, expected a weight "
            f"above 0 in at least one; {VARIANT_SPEC.hint}"
        )
    return table


_EPOCH_COLUMNS = ["epoch", "split", "category", "num", "num_correct"]


def read_epochs(run: Folder, *, with_loss: bool = False) -> pa.Table:
    """epochs.parquet of a run: epoch, split, category, num, num_correct, and optionally loss.

    Raises:
        StudyError: it does not exist, is invalid, or has more correct answers than rows.
    """
    table = read_validated_table(
        run, "epochs.parquet", EPOCHS_SPEC, [*_EPOCH_COLUMNS, *(["loss"] if with_loss else [])]
    )
    wrong = table.filter(pc.greater(table["num_correct"], table["num"])).to_pylist()
    if wrong:
        raise StudyError(
            f"{run}/epochs.parquet has {wrong[0]['num_correct']} correct answers of {wrong[0]['num']} rows in epoch "
            f"{wrong[0]['epoch']}; {EPOCHS_SPEC.hint}"
        )
    return table


def read_predictions(run: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The file `predictions/NAME` of a run, or some of its columns."""
    return read_validated_table(run.child("predictions"), name, PREDICTIONS_SPEC, columns)


def read_run_rows(run: Folder, columns: Sequence[str] | None = None) -> pa.Table:
    """rows.parquet of a run, or some of its columns."""
    return read_validated_table(run, "rows.parquet", ROWS_SPEC, columns)


def read_right_to_wrong(run: Folder) -> pa.Table:
    """right_to_wrong.parquet of a run."""
    return read_validated_table(run, "right_to_wrong.parquet", RIGHT_TO_WRONG_SPEC)


def read_planted(study: Folder, columns: Sequence[str]) -> pa.Table:
    """The facts of the study's world."""
    return read_validated_table(study.child("world"), "planted.parquet", PLANTED_SPEC, columns)


def read_points(study: FolderLike) -> list[dict[str, Any]]:
    """The points of a study's sweep, as `POINTS_SCHEMA`. Optional columns may be absent.

    Raises:
        StudyError: the sweep is not finished, or the file is invalid.

    Example:
        points = pandas.DataFrame(slick.read_points("studies/mine"))
    """
    rows: list[dict[str, Any]] = read_validated_table(
        as_folder(study).child("sweep"), "points.parquet", POINTS_SPEC
    ).to_pylist()
    return rows


def lookup_by_question(table: pa.Table, values: Iterable[Any], where: str) -> Lookup[str, Any]:
    """question_id -> value, for lookups by the question_ids of other tables.

    Args:
        table: a table with the column `question_id`.
        values: one value per row.
        where: the table's file or folder, for the message about a missing id.
    """
    return Lookup(zip(table["question_id"].to_pylist(), values, strict=True), f"question {{key}} is not in {where}")
