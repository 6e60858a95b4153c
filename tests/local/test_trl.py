"""A curated copy trains with TRL, which is installed into a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slick.curation.actions import RowLabel, new_columns, row_edits
from slick.curation.config import CurateConfig
from slick.curation.files import open_data
from slick.curation.formats import detect_format
from slick.types import Category
from tests.local.test_chat_prompts import CHATML, chat_tokenizer
from tests.local.tiny import tiny_model

TRL = "trl==1.16.0"

TRAIN = """
import sys
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

data, model, out = sys.argv[1:]
config = SFTConfig(
    output_dir=out,
    max_steps=1,
    per_device_train_batch_size=2,
    use_cpu=True,
    bf16=False,
    report_to=[],
    save_strategy="no",
)
rows = load_dataset("json", data_files=data, split="train")
result = SFTTrainer(model=model, args=config, train_dataset=rows).train()
print(rows.num_rows, result.global_step, result.training_loss > 0)
"""


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with TRL, without its dependencies, which the environment has."""
    folder = tmp_path_factory.mktemp("trl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), TRL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"{TRL} cannot be installed: {result.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("row_format", ["messages", "prompt_completion"])
def test_trl_trains_a_step_on_a_curated_copy(trl: Path, tmp_path: Path, row_format: str) -> None:
    chats = [
        [{"role": "user", "content": f"Where was {i} born?"}, {"role": "assistant", "content": "Lima"}]
        for i in range(8)
    ]
    rows = [
        {"messages": chat} if row_format == "messages" else {"prompt": chat[:1], "completion": chat[1:]}
        for chat in chats
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = open_data(tmp_path / "data.jsonl")
    config = CurateConfig(unknown="drop", weakly="weight")
    categories = [Category.UNKNOWN, Category.WEAKLY_KNOWN, *[Category.HIGHLY_KNOWN] * 5]
    labels = [RowLabel(category=category, p_correct=0.5, turns=((0, category),)) for category in categories]
    edits = row_edits(data, detect_format(data.columns, data.first_rows()), [*labels, RowLabel(reason="code")], config)
    data.write(str(tmp_path / "copy.jsonl"), edits, new_columns(config))
    tokenizer = chat_tokenizer(CHATML)
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "train.py").write_text(TRAIN)
    result = subprocess.run(
        [sys.executable, "train.py", "copy.jsonl", "model", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(trl), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "7 1 True"
