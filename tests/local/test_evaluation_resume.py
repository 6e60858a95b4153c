"""A training that is killed and resumed, also with another setting of `evaluate`, has the bits of an uninterrupted one.

The trainings run in one subprocess, because torch's process group cannot be started twice in a process.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slick.storage import Folder
from slick.study import require_manifest
from tests.local.cli import ROOT
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig

CONFIG = TrainConfig(
    variant="half",
    epochs=5,
    learning_rate=1e-2,
    batch_size=8,
    dropout=0.1,
    max_new_tokens=6,
    dtype="float32",
    state_share=1.0,
    evaluate_stride=4,
)
CASES = {
    "all": ("all", "all"),
    "needed": ("needed", "needed"),
    "needed-then-all": ("needed", "all"),
    "all-then-needed": ("all", "needed"),
}
"""Setting of `evaluate` before and after the interruption, which only the first case does not have."""
KILLED_AFTER = 2


class KilledError(Exception):
    """Stands for the death of the worker."""


def train(study: Folder, config: TrainConfig, group: Folder, killed_after: int = 0) -> None:
    from tuning.runs import plan_runs
    from tuning.trainer import WorkerContext
    from tuning.worker import train_runs

    def report(metrics: dict[str, Any], state: str | None) -> None:
        if state is not None:
            group.child(f"checkpoint_{metrics['epoch']:06d}").add(state)
        if metrics["epoch"] == killed_after:
            raise KilledError

    context = WorkerContext(rank=0, local_rank=0, num_workers=1, device="cpu")
    try:
        train_runs(study, plan_runs(study, {"half-seed0": config}), context, report, group)
    except KilledError:
        assert killed_after


def main(path: Path) -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name, (before, after) in CASES.items():
        study = write_trainable_study(path / name, tiny_model("llama", spread=0.1), tiny_tokenizer())
        group = study.child(".ray", "finetune", "group")
        if name != "all":
            train(study, replace(CONFIG, evaluate=before), group, killed_after=KILLED_AFTER)  # type: ignore[arg-type]
            assert not study.child("runs", "half-seed0").exists("manifest.json")
        train(study, replace(CONFIG, evaluate=after), group)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    path = tmp_path_factory.mktemp("trained")
    subprocess.run([sys.executable, "-m", __name__, str(path)], cwd=ROOT, check=True)
    return {name: Folder(str(path / name)).child("runs", "half-seed0") for name in CASES}


def predictions(run: Folder, epoch: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.child("predictions").read_table(f"epoch-{epoch:03d}.parquet").to_pylist()
    return rows


@pytest.mark.slow
def test_resumed_training_has_the_bits_of_an_uninterrupted_one(trained: dict[str, Folder]) -> None:
    complete = trained["all"]
    best = require_manifest(complete, "finetune").counts["best_dev_epoch"]
    missing = {}
    for name in list(CASES)[1:]:
        counts = require_manifest(trained[name], "finetune").counts
        assert counts["epochs_now"] == CONFIG.epochs - KILLED_AFTER, "it resumed from the state of the last epoch"
        missing[name] = counts["epochs_without_test_rows"]
        assert not {best, 4, 5} & set(missing[name])
        for epoch in range(1, CONFIG.epochs + 1):
            expected = predictions(complete, epoch)
            if epoch in missing[name]:
                expected = [row for row in expected if row["split"] in ("train", "dev")]
            assert predictions(trained[name], epoch) == expected, (name, epoch)
    assert missing["needed-then-all"] == [epoch for epoch in missing["needed"] if epoch <= KILLED_AFTER]
    assert missing["all-then-needed"] == [epoch for epoch in missing["needed"] if epoch > KILLED_AFTER]
    assert missing["needed"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
