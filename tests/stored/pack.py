"""Pack a finished study for `tests/unit/test_stored_study.py`: `python -m tests.stored.pack STUDY ZIP`."""

import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

LEFT_OUT = ("report", "model", "checkpoint-best", "checkpoint-last", "tensorboard", ".locks", "logs")
"""Folders that are large, or that no later step reads."""


def pack(study: Path, target: Path, left_out: Collection[str] = LEFT_OUT) -> None:
    """Write the files of a folder, in a fixed order and with a fixed date."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(study.rglob("*")):
            name = path.relative_to(study)
            if path.is_file() and not set(left_out) & set(name.parts):
                archive.writestr(zipfile.ZipInfo(name.as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
