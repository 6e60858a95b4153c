"""An interrupted training as this program once wrote it: `python -m tests.stored.interrupt FOLDER ZIP` writes one.

The zip has the study of a training that was killed after an epoch, with its saved state, and the epochs and weights of
the same training without an interruption.
"""

import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

from slick.storage import Folder
from slick.stored_files import convert
from slick.study import read_start_record
from tests.faults.hold import hold
from tests.faults.test_finetune_killed import saved_epoch
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.stored.pack import pack
from tests.study_builder import write_trainable_study
from tests.waiting import wait_for
from tuning.config import TrainConfig
from tuning.finetune import finetune

CONFIG = TrainConfig(
    variant="half",
    epochs=4,
    learning_rate=5e-3,
    batch_size=4,
    dtype="float32",
    max_new_tokens=4,
    num_workers=2,
    state_share=1.0,
    keep_checkpoints="both",
)
RUN_ID = "half-seed0"
STORED_STATES = sorted(Path(__file__).parent.glob("interrupted-*.zip"))
"""Interrupted trainings of earlier versions."""
DRIVER = """
import sys
from slick.storage import Folder
from tests.faults.hold import holdable
from tests.stored.interrupt import CONFIG, finetune
with holdable():
    finetune(Folder(sys.argv[1]), CONFIG)
"""
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


def unpack(archive: Path, folder: Path) -> tuple[Folder, Path, TrainConfig]:
    """Unpack an interrupted training: its study, the folder of the expected results, and its settings."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    study = Folder(str(folder / "study"))
    started = read_start_record(study.child("runs", RUN_ID))
    assert started is not None
    return study, folder / "expected", convert(started.settings, TrainConfig, "settings")


def main(folder: Path, target: Path) -> None:
    """Train, train and interrupt, and pack."""
    model = tiny_model("llama", spread=0.1, intermediate_size=16, tie_word_embeddings=True, **SIZES)
    whole, study = (
        write_trainable_study(folder / name, model, tiny_tokenizer(), train=16, dev=4, test=4, ood=2)
        for name in ("whole", "study")
    )
    hold(study, at=2, saved=True)
    with subprocess.Popen([sys.executable, "-c", DRIVER, study.uri]) as driver:
        wait_for(lambda: saved_epoch(study) == 2 or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
    study.delete("hold.json")
    finetune(whole, CONFIG)
    expected = folder / "expected"
    expected.mkdir()
    run = Path(whole.local_path, "runs", RUN_ID)
    shutil.copy(run / "epochs.parquet", expected)
    shutil.copy(run / "checkpoint-last" / "model.safetensors", expected)
    for path in (folder / "study" / ".ray").rglob("*"):
        if path.is_file() and not path.parent.name.startswith("checkpoint_"):
            path.unlink()  # Ray's own records, with paths of this machine
    shutil.rmtree(whole.local_path)
    pack(folder, target, left_out=("tensorboard", ".locks"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
