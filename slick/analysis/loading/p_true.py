"""annotate/p_true/ to `PTrueScores`."""

import numpy as np
import pyarrow as pa

from slick.analysis.p_true_scores import PTrueScores
from slick.errors import StudyError
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge, read_p_true_rows


def load_p_true(study: Folder) -> PTrueScores | None:
    """P(True) of the ID test questions; None where it is not finished.

    Raises:
        StudyError: it is of another model than the labels, or a file is missing or broken.
    """
    folder = study.child("annotate", "p_true")
    labels, scored = read_manifest(study.child("annotate")), read_manifest(folder)
    if labels is None or scored is None:
        return None
    if scored.inputs.get("model") != labels.inputs.get("model"):
        raise StudyError(
            f"{folder.uri} is of the model with fingerprint {scored.inputs.get('model')}, the labels beside it are of "
            f"{labels.inputs.get('model')}; delete that folder and run `slick annotate PRESET --p-true` again"
        )
    if not folder.names(".parquet"):
        return None
    table = read_knowledge(study, ["question_id", "domain", "split"])
    wanted = {row["question_id"] for row in table.to_pylist() if (row["domain"], row["split"]) == ("id", "test")}
    rows = read_p_true_rows(folder)
    rows = rows.filter(pa.array([one in wanted for one in rows["question_id"].to_pylist()], type=pa.bool_()))
    rows = rows.sort_by("question_id")
    return PTrueScores(
        question_ids=np.array(rows["question_id"].to_pylist(), dtype=str),
        p_true=rows["p_true"].to_numpy(),
        choice_mass=float((rows["p_a"].to_numpy() + rows["p_b"].to_numpy()).mean()) if rows.num_rows else None,
    )
