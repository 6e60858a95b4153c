"""The rows.parquet of finished runs, as the epochs at which training rows were fitted."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from slick.analysis.data import Run, Variant
from slick.analysis.fit_times import TimeToFit
from slick.errors import StudyError
from slick.storage import Folder
from slick.study_files import read_run_rows
from slick.types import Category

ROWS_FILE = "rows.parquet"


def load_time_to_fit(study: Folder, runs: Iterable[Run], variants: Mapping[str, Variant]) -> tuple[TimeToFit, ...]:
    """When the training rows of each run of the %Unknown sweep were fitted; one without rows.parquet is left out.

    Raises:
        StudyError: a rows.parquet is broken, or contradicts its run.
    """
    found = []
    for run in runs:
        folder = study.child("runs", run.run_id)
        if run.variant in variants and variants[run.variant].kind == "unknown" and folder.exists(ROWS_FILE):
            table = read_run_rows(folder, ["question_id", "split", "category", "first_fit_epoch"])
            found.append(_time_to_fit(folder, run, table))
    return tuple(found)


def _time_to_fit(folder: Folder, run: Run, table: pa.Table) -> TimeToFit:
    last = int(run.epochs[-1])
    train = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()], pa.bool_()))
    categories = train["category"].to_pylist()
    epochs = train["first_fit_epoch"].to_pylist()
    strange = sorted({str(name) for name in categories} - {str(category) for category in Category})
    late = sorted({epoch for epoch in epochs if epoch is not None and not 1 <= epoch <= last})
    if strange or late or not train.num_rows:
        what = (
            f"categories {strange}" if strange else f"first_fit_epoch {late}" if late else "no rows of the train split"
        )
        raise StudyError(
            f"{folder.uri}/{ROWS_FILE} has {what}; wanted train rows of {', '.join(Category)}, first right at an "
            f"epoch from "
            f"1 to {last} or none; delete {folder.uri} and run the sweep again"
        )
    return TimeToFit(
        variant=run.variant,
        seeds=(run.seed,),
        last_epoch=last,
        question_ids=np.array(train["question_id"].to_pylist(), dtype=str),
        categories=np.array(categories, dtype=str),
        epochs=np.array([last if epoch is None else epoch for epoch in epochs], dtype=np.int64),
        fitted=np.array([epoch is not None for epoch in epochs], dtype=bool),
    )
