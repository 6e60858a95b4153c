"""Checkpoints in Hugging Face layout, uploaded while training goes on."""

import copy
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slick.file_errors import temporary_folder
from slick.storage import Folder
from slick.uris import public_name
from tuning.trainable import full_state_dict, lora_state_dict

if TYPE_CHECKING:
    from torch import nn


class CheckpointWriter:
    """Writes a model's checkpoints into the folder of its run; one upload at a time, in order."""

    def __init__(self, folder: Folder, tokenizer: Any, *, is_writer: bool) -> None:
        """Hold where to write.

        Args:
            writes: True on the one worker that writes; the others only help to bring the weights together.
        """
        self._folder, self._tokenizer, self._is_writer = folder, tokenizer, is_writer
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._uploads: list[Future[None]] = []

    def save(self, model: "nn.Module", *names: str) -> None:
        """Save the model as it is now under each name; LoRA is added in, and lies beside it in `lora/` as well.

        All workers call this. It returns when the weights are on this machine's disk.

        Raises:
            StudyError: that disk is full, or an earlier upload failed.
        """
        self._raise_upload_errors()
        weights = full_state_dict(model, keep=self._is_writer)
        lora = lora_state_dict(model, keep=self._is_writer)
        if not self._is_writer:
            return
        with temporary_folder("slick-checkpoint-") as part:
            model.save_pretrained(part, state_dict=weights)  # type: ignore[operator]
            self._tokenizer.save_pretrained(part)
            if lora:
                _save_lora(model, lora, Path(part, "lora"))
        self._uploads.append(self._pool.submit(_upload, part, [self._folder.child(name) for name in names]))

    def finish(self) -> None:
        """Wait until everything is uploaded.

        Raises:
            StudyError: an upload failed.
        """
        self._pool.shutdown()
        self._raise_upload_errors()
        self._uploads.clear()

    def _raise_upload_errors(self) -> None:
        for upload in self._uploads:
            if upload.done():
                upload.result()


def _upload(part: str, folders: list[Folder]) -> None:
    try:
        for folder in folders:
            folder.upload(part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_lora(model: "nn.Module", weights: dict[str, Any], folder: Path) -> None:
    """In the layout of peft, which loads it onto the base model."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": weight for name, weight in weights.items()}, folder / "adapter_model.safetensors"
    )
    config: Any = model.peft_config
    shared = copy.copy(config["default"])
    shared.base_model_name_or_path = public_name(shared.base_model_name_or_path or "")
    shared.save_pretrained(str(folder))
