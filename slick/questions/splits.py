"""Where the split of a row comes from: its column, else the name of its file, else a hash of its content. Pure."""

import re
from collections.abc import Sequence
from typing import Literal

SPLITS = ("train", "dev", "test")

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
    "testing": "test",
}
"""Each name that a split may have in a column or in the name of a file, and the split that it means."""

_AMBIGUOUS = ("eval", "evaluation")
"""In the name of a file: some mean the dev split by it, others the test split."""

SplitOrigin = Literal["column", "file name", "share"]
SPLIT_ORIGINS: tuple[SplitOrigin, ...] = ("column", "file name", "share")
"""`share`: the row states no split, and gets one by `--dev-share` and `--test-share`."""


def splits_in_name(name: str) -> tuple[str, ...]:
    """The splits that the name of a file may mean, in the order train, dev, test; empty if it names none.

    Only whole words count, in any letter case; everything that is no letter separates words.

    Args:
        name: of the file, with the folders between the question set and the file.

    >>> [splits_in_name(name) for name in ("my.train.jsonl", "val-00000-of-00002.parquet", "test/P17.csv")]
    [('train',), ('dev',), ('test',)]
    >>> [splits_in_name(name) for name in ("latest.jsonl", "train_dev.csv", "eval.jsonl")]
    [(), ('train', 'dev'), ('dev', 'test')]
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if not named and any(word in _AMBIGUOUS for word in words):
        named = {"dev", "test"}
    return tuple(split for split in SPLITS if split in named)


def explicit_split(column: str | None, named: Sequence[str]) -> tuple[str, SplitOrigin] | None:
    """The split that a row states and where; None if it states none.

    Args:
        column: the split in the row itself.
        named: the splits that the name of its file may mean, see `splits_in_name`.

    Raises:
        ValueError: column and name contradict each other, or the name may mean several splits and there is no column.
    """
    if column is not None:
        if named and column not in named:
            raise ValueError(
                f"column split says {column}, but the name of the file says {' or '.join(named)}; correct the column, "
                "or rename the file"
            )
        return column, "column"
    if len(named) > 1:
        raise ValueError(
            f"no split, and the name of the file may mean {' or '.join(named)}, wanted one split; rename the file, or "
            "add a column split"
        )
    return (named[0], "file name") if named else None
