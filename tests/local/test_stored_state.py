"""A training that an earlier version began and that was interrupted is completed by this version."""

from pathlib import Path

import numpy as np
import pytest

from tests.stored.interrupt import RUN_ID, STORED_STATES, unpack
from tuning.finetune import finetune


@pytest.mark.slow  # test_state_tensors.py loads the tensors, tests/unit/test_stored_study.py plans the training
@pytest.mark.parametrize("archive", STORED_STATES, ids=lambda path: path.stem)
def test_stored_training_is_completed(archive: Path, tmp_path: Path, ray_cluster: None) -> None:
    """As without the interruption, up to the rounding of another processor."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    study, expected, config = unpack(archive, tmp_path)
    manifest = finetune(study, config)
    assert manifest.counts["epochs_now"] == 2, "the epochs before the state are not repeated"
    run = Path(study.local_path, "runs", RUN_ID)
    rows, reference = (pq.read_table(path / "epochs.parquet").to_pylist() for path in (run, expected))
    assert [row | {"loss": None} for row in rows] == [row | {"loss": None} for row in reference]
    losses, expected_losses = ([row["loss"] for row in each if row["loss"] is not None] for each in (rows, reference))
    assert losses
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    weights = load_file(run / "checkpoint-last" / "model.safetensors")
    for name, value in load_file(expected / "model.safetensors").items():
        np.testing.assert_allclose(weights[name], value, atol=1e-3, err_msg=name)
