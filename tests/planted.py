"""An object whose pickle creates a file when it is loaded."""

import os
from collections.abc import Callable
from pathlib import Path


class MaliciousPickle:
    """Represents a pickle that an attacker placed into a study folder."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (self._path,)
