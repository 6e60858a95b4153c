"""Write an interrupted training for `tests/unit/test_stored_state.py`: `python -m tests.stored.interrupt FOLDER ZIP`.

The zip has the study of a training that was killed after an epoch, with its saved state, and the epochs and weights of
the same training without an interruption.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.faults.hold import hold
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.stored.pack import pack
from tests.study_builder import write_trainable_study
from tests.waiting import wait_for
from tuning.config import TrainConfig
from tuning.finetune import finetune
from tuning.state import find_states

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
DRIVER = """
import sys
from slick.storage import Folder
from tests.faults.hold import holdable
from tests.stored.interrupt import CONFIG, finetune
with holdable():
    finetune(Folder(sys.argv[1]), CONFIG)
"""
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


def main(folder: Path, target: Path) -> None:
    """Train, train and interrupt, and pack."""
    model = tiny_model("llama", spread=0.1, intermediate_size=16, tie_word_embeddings=True, **SIZES)
    whole, study = (
        write_trainable_study(folder / name, model, tiny_tokenizer(), train=16, dev=4, test=4, ood=2)
        for name in ("whole", "study")
    )
    hold(study, at=2, saved=True)
    with subprocess.Popen([sys.executable, "-c", DRIVER, study.uri]) as driver:
        wait_for(lambda: find_states(study, []) or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
    study.delete("hold.json")
    finetune(whole, CONFIG)
    expected = folder / "expected"
    expected.mkdir()
    run = Path(whole.local_path, "runs", RUN_ID)
    shutil.copy(run / "epochs.parquet", expected)
    shutil.copy(run / "checkpoint-last" / "model.safetensors", expected)
    for path in (folder / "study" / ".ray").rglob("*"):
        is_state = any(part.startswith("checkpoint_") for part in path.parts)
        if path.is_file() and not is_state:
            path.unlink()  # Ray's own records, with paths of this machine
    shutil.rmtree(whole.local_path)
    pack(folder, target, left_out=("tensorboard", ".locks"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
