"""Training on a GPU gives the weights of a CPU, also in bfloat16 with all options that save memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.waiting import TIMEOUT_S

if not torch.cuda.is_available():
    pytest.skip("no GPU that torch can use", allow_module_level=True)
pytest.importorskip("deepspeed")

CODE = """
import sys
from dataclasses import replace
import numpy as np, torch
from slick.storage import Folder
from tests.benchmarks.training import join_group
from tests.local.plain_training import train_reference
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.trainer import Trainer, WorkerContext, init_deepspeed
from tuning.evaluate import encode_rows
from tuning.data import read_rows
from tuning.trainable import full_state_dict
torch.backends.cuda.matmul.allow_tf32 = False
changes = eval(sys.argv[2])
study = write_trainable_study(sys.argv[1], tiny_model("llama", spread=0.1), tiny_tokenizer())
sizes = {"epochs": 3, "batch_size": 8, "micro_batch_size": 4}
config = TrainConfig(variant="half", learning_rate=5e-3, dropout=0.0, **sizes, **{"dtype": "float32", **changes})
join_group()
init_deepspeed()
context = WorkerContext(rank=0, local_rank=0, num_workers=1, device="cuda")
trainer = Trainer(study.child("world", "model").local_path, config, context, 0)
assert trainer.forward.uses_packing
examples = encode_rows(read_rows(study, "half")["train"], tiny_tokenizer())
for epoch in (1, 2, 3):
    trainer.epoch(examples, epoch)
weights = full_state_dict(trainer.model, keep=True)
initial = dict(tiny_model("llama", spread=0.1).named_parameters())
expected = train_reference(
    study, replace(config, dtype="float32"), tiny_model("llama", spread=0.1), None, tiny_tokenizer()
).weights
updates = [
    np.concatenate([(torch.as_tensor(w[key]).float() - initial[key].detach()).numpy().ravel() for key in expected])
    for w in (weights, expected)
]
print("correlation", np.corrcoef(*updates)[0, 1], "largest difference", np.abs(updates[0] - updates[1]).max())
"""


@pytest.mark.parametrize(
    ("changes", "correlation", "difference"),
    [
        ({}, 0.999, 2e-3),
        ({"zero_stage": 3}, 0.999, 2e-3),
        ({"zero_stage": 2, "offload": "optimizer"}, 0.999, 2e-3),
        ({"activation_checkpointing": True}, 0.999, 2e-3),
        ({"dtype": "bfloat16", "zero_stage": 3, "activation_checkpointing": True}, 0.95, 1.0),
    ],
    ids=["plain", "zero-3", "offload", "activation-checkpointing", "bfloat16-zero-3"],
)
def test_weights_equal_those_on_the_cpu(changes: dict, correlation: float, difference: float, tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), repr(changes)],
        env={**os.environ, "OMP_NUM_THREADS": "4"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    _, measured, *_, largest_difference = completed.stdout.strip().splitlines()[-1].split()
    assert float(measured) > correlation
    assert float(largest_difference) < difference
