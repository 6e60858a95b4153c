"""The files of a study folder that later steps read: what each holds, and its one reader.

Every reader checks columns, types, nulls, allowed values and rows (`slick.stored_files`), so callers may rely on them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slick.errors import StudyError
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import (
    Lookup,
    TableSpec,
    convert,
    read_record,
    read_validated_parts,
    read_validated_table,
)
from slick.strict_json import parse_json
from slick.study import require_manifest
from slick.types import ALL_CATEGORIES, Category

DOMAINS = ("id", "ood")
SPLITS = ("train", "dev", "test")
ROW_SPLITS = (*SPLITS, "ood")
"""Of a training: its own rows, dev and test questions in distribution, and test questions out of it."""
CATEGORIES = tuple(str(category) for category in Category)
INFINITY = float("inf")
_UNIT_RANGE = (0.0, 1.0)
_NON_NEGATIVE = (0, INFINITY)

Exemplars = dict[str, list[list[str]]]
"""Relation to exemplar sets, each a list of question_ids."""

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
"""Of `questions/part-*.parquet`; `subject` alone may be null."""

POPULARITY_FIELD = pa.field("popularity", pa.float64())
"""One more column, where the source says how popular a subject is; null where it does not say so of this one."""

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
"""Of `annotate/knowledge.parquet`. Null where it does not apply:

`sampled_hits`, `sampled_total`: draws and their hits; 0 where none was needed (labels mode, gold estimator).
`p_correct_sampled`, `p_low`, `p_high`: share of hits at the sampling temperature and its 95 % interval; null where not
all samples were drawn. From the gold estimator the share is exact, and the interval that point.
`clopper_pearson_upper`: upper bound of P_Correct where no answer hit.
`chance_known`: of an Unknown question, the chance that as many draws again would hit at least once, so that it is rare
rather than unknown; from the gold estimator, of any question without a greedy hit, the exact chance that the draws of
the study would hit at least once.
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
"""Of `annotate/generations/part-*.parquet`: one row a question; lists run over exemplar sets, then samples.

In labels mode a sample that its question did not need has neither text nor hit; one that was given up, since no right
answer begins as it did, has no text and is no hit.
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
"""Of `annotate/gold/part-*.parquet`: one row a question; lists run over exemplar sets."""

P_TRUE_SCHEMA = pa.schema([("question_id", pa.string()), *((name, pa.float64()) for name in ("p_a", "p_b", "p_true"))])
"""Of `annotate/p_true/part-*.parquet`: one row a question.

`p_a`, `p_b`: probability that the prompt is followed by ` (A` and by ` (B`. `p_true`: p_a / (p_a + p_b).
"""

SET_ASIDE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "relation", "domain", "split", "reason")),
        ("num_tokens", pa.int64()),
        ("limit", pa.int64()),
    ]
)
"""Of `annotate/set_aside/STORE.parquet`: one row a question.

`num_tokens`: of its longest prompt and the answer that may follow. `limit`: tokens of the model's context.
"""

RUN_SET_ASIDE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "split", "reason")),
        ("num_tokens", pa.int64()),
        ("limit", pa.int64()),
    ]
)
"""Of `runs/RUN_ID/set_aside.parquet`: one row a row that is neither trained on nor evaluated. `num_tokens`: of the
prompt and the longer of its target and the longest answer. `limit`: tokens of the model's context."""

VARIANT_SCHEMA = pa.schema([(name, pa.string()) for name in ("question_id", "category", "prompt", "target")])
"""Of `variants/NAME.parquet`: one row a training row."""

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
"""Of `runs/RUN_ID/epochs.parquet`: one row an epoch, split and category; `loss` may be null."""

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
"""Of `runs/RUN_ID/predictions/epoch-NNN.parquet`; `category` is null where the question was not annotated."""

ROWS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("first_fit_epoch", pa.int32()),
        ("num_hits", pa.int32()),
    ]
)
"""Of `runs/RUN_ID/rows.parquet`; `first_fit_epoch` is null where no epoch answered the row right."""

RIGHT_TO_WRONG_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("text_before", pa.string()),
        ("text_after", pa.string()),
    ]
)
"""Of `runs/RUN_ID/right_to_wrong.parquet`."""

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
"""Of `sweep/points.parquet`. The accuracies are shares in [0, 1], null where the split has no rows of the category."""

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
"""Of `world/planted.parquet`: one row a fact."""

QUESTIONS_SPEC = TableSpec(
    schema=QUESTION_SCHEMA.append(POPULARITY_FIELD),
    step="questions",
    nullable=frozenset({"subject", "popularity"}),
    values={"domain": DOMAINS, "split": SPLITS},
    non_empty=frozenset({"answers"}),
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
SET_ASIDE_SPEC = TableSpec(
    schema=SET_ASIDE_SCHEMA,
    step="annotate",
    values={"domain": DOMAINS, "split": SPLITS},
    allow_empty=True,
)
RUN_SET_ASIDE_SPEC = TableSpec(
    schema=RUN_SET_ASIDE_SCHEMA, step="sweep", values={"split": ROW_SPLITS}, allow_empty=True
)
VARIANT_SPEC = TableSpec(schema=VARIANT_SCHEMA, step="variants", values={"category": CATEGORIES})
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
    """Columns of the questions in `folder`, questions/ of a study, in the order of its files."""
    return read_validated_parts(folder, QUESTIONS_SPEC, columns)


def read_knowledge(study: FolderLike, columns: Sequence[str] | None = None) -> pa.Table:
    """The knowledge table of a study, or some of its columns; `KNOWLEDGE_SPEC.optional` ones only where it has them.

    Returns:
        As `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        StudyError: the annotate step is not finished, or its table is not as the step writes it.

    Example:
        labels = slick.read_knowledge("studies/mine").to_pandas()
        unknown = labels[labels.category == slick.Category.UNKNOWN]
    """
    study = as_folder(study)
    require_manifest(study.child("annotate"), "annotate")
    return read_validated_table(study.child("annotate"), "knowledge.parquet", KNOWLEDGE_SPEC, columns)


def read_exemplars(folder: Folder) -> Exemplars:
    """The exemplar sets of an annotation, from exemplars.json in its folder."""
    hint = f"restore it, or delete {folder} and run `slick annotate` again"
    return read_record(folder, "exemplars.json", Exemplars, hint)


def read_answer_part(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One part file of a store of the annotation: of answers, of gold scores, or of P(True).

    Args:
        folder: of the store.
        name: of the file.
        columns: that are wanted; None: all.
    """
    spec = {"gold": GOLD_SPEC, "p_true": P_TRUE_SPEC}.get(folder.name, GENERATIONS_SPEC)
    return read_validated_table(folder, name, spec, columns)


def read_p_true_rows(folder: Folder) -> pa.Table:
    """All rows of P(True), in the order of its files."""
    return read_validated_parts(folder, P_TRUE_SPEC)


def read_set_aside_rows(folder: Folder, name: str) -> pa.Table:
    """A list of questions that were set aside, from annotate/set_aside/."""
    return read_validated_table(folder, name, SET_ASIDE_SPEC)


def read_run_set_aside(run: Folder, name: str) -> pa.Table:
    """The list of rows that a run set aside."""
    return read_validated_table(run, name, RUN_SET_ASIDE_SPEC)


def read_part_metadata(folder: Folder, name: str, keys: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """JSON objects in the metadata of a part file; empty ones where it has none.

    Raises:
        StudyError: the file is broken, or an entry is no JSON object.
    """
    data = folder.read_bytes(name)
    for key in keys:
        try:
            metadata = pq.read_schema(pa.BufferReader(data)).metadata or {}
            yield convert(parse_json(metadata.get(key, b"{}")), dict[str, Any])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StudyError(
                f"{folder}/{name} does not state what its rows cost ({str(error).splitlines()[0]}); delete it and run "
                "`slick annotate` again, which asks its questions anew"
            ) from error


def read_variant_rows(study: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One fine-tuning set, or some of its columns."""
    return read_validated_table(study.child("variants"), f"{name}.parquet", VARIANT_SPEC, columns)


_EPOCH_COLUMNS = ["epoch", "split", "category", "num", "num_correct"]


def read_epochs(run: Folder, *, with_loss: bool = False) -> pa.Table:
    """epochs.parquet of a run: epoch, split, category, num, num_correct, and loss if wanted.

    Raises:
        StudyError: it is not there, not as a training writes it, or counts more right answers than rows.
    """
    table = read_validated_table(
        run, "epochs.parquet", EPOCHS_SPEC, [*_EPOCH_COLUMNS, *(["loss"] if with_loss else [])]
    )
    wrong = table.filter(pc.greater(table["num_correct"], table["num"])).to_pylist()
    if wrong:
        raise StudyError(
            f"{run}/epochs.parquet has {wrong[0]['num_correct']} right answers of {wrong[0]['num']} rows in epoch "
            f"{wrong[0]['epoch']}; {EPOCHS_SPEC.hint}"
        )
    return table


def read_predictions(run: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The answers after one epoch of a run, `predictions/NAME`, or some of their columns."""
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
    """The points of a study's sweep, as `POINTS_SCHEMA`; optional columns only where the file has them.

    Raises:
        StudyError: there are none yet, or the file is not as the step writes it.

    Example:
        points = pandas.DataFrame(slick.read_points("studies/mine"))
    """
    rows: list[dict[str, Any]] = read_validated_table(
        as_folder(study).child("sweep"), "points.parquet", POINTS_SPEC
    ).to_pylist()
    return rows


def lookup_by_question(table: pa.Table, values: Iterable[Any], where: str) -> Lookup[str, Any]:
    """A value for each question of a table, looked up by the question_ids of other tables.

    Args:
        table: with `question_id`.
        values: one a row.
        where: the table's file or folder, for the message when an id is not there.
    """
    return Lookup(zip(table["question_id"].to_pylist(), values, strict=True), f"question {{key}} is not in {where}")
