"""Data sets of the package `datasets`: objects, and folders that `save_to_disk` wrote."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from slick.curation.containers import EditCursor, NewColumns, RowEdit
from slick.curation.data import DataFile, MemoryData, check_target
from slick.curation.in_memory import edit_next_rows, table_rows
from slick.errors import DataError
from slick.storage import Folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_BATCH_ROWS = 1024
_FILES = ("state.json", "dataset_info.json")
_DICT_FILE = "dataset_dict.json"


def is_saved_dataset(folder: Folder) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a folder."""
    return folder.exists(_DICT_FILE) or all(map(folder.exists, _FILES))


class _Splits(DataFile):
    """The splits of a data set, one after the other. A copy is a folder of `save_to_disk`."""

    container, suffix = "datasets", ""

    def __init__(self, dataset: "Dataset | DatasetDict", name: str) -> None:
        """The rows of a data set.

        Raises:
            DataError: it is of another type, such as `IterableDataset`.
        """
        import datasets

        if not isinstance(dataset, datasets.Dataset | datasets.DatasetDict):
            raise DataError(
                f"{name} is a {type(dataset).__name__}, expected datasets.Dataset or DatasetDict; convert it, for "
                "example with datasets.Dataset.from_list(list(...))"
            )
        self.name, self._dataset = name, dataset
        self._splits: Mapping[str, Dataset] = {"": dataset} if isinstance(dataset, datasets.Dataset) else dataset

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """All rows; see `DataFile.rows`."""
        self._check_unchanged()
        is_empty = True
        for split, dataset in self._splits.items():
            where, number = f"{self.name}, split {split}" if split else self.name, 0
            for part in _parts(dataset if columns is None else dataset.select_columns(list(columns))):
                for row in table_rows(part, where):
                    number += 1
                    is_empty = False
                    yield f"{where}, row {number}", row
        if is_empty:
            raise DataError(f"{self.name} holds no row; name another")

    def _edited(self, edits: Iterable[RowEdit], new_columns: NewColumns, folder: str | None) -> "Dataset | DatasetDict":
        """A copy in memory, or in files of a folder."""
        import datasets

        cursor = EditCursor(edits)
        splits = {
            split: self._edit(dataset, cursor, new_columns, folder and os.path.join(folder, f"{i}.arrow"))
            for i, (split, dataset) in enumerate(self._splits.items())
        }
        cursor.finish()
        return datasets.DatasetDict(splits) if isinstance(self._dataset, datasets.DatasetDict) else splits[""]

    def _edit(self, dataset: "Dataset", cursor: EditCursor, new_columns: NewColumns, file: str | None) -> "Dataset":
        import datasets

        info = dataset.info.copy()
        new_features = datasets.Features.from_arrow_schema(pa.schema(list(new_columns.items())))
        info.features = datasets.Features({**dataset.features, **new_features})
        schema = info.features.arrow_schema
        edited = (edit_next_rows(part, cursor, new_columns, schema, self.name) for part in _parts(dataset))
        if file is None:
            table = pa.concat_tables([schema.empty_table(), *edited])
            return datasets.Dataset(table, info=info, split=dataset.split)
        with pa.OSFile(file, "wb") as output, pa.ipc.new_stream(output, schema) as writer:
            for table in edited:
                writer.write_table(table)
        return datasets.Dataset.from_file(file, info=info, split=dataset.split)

    def write(self, to: str, edits: Iterable[RowEdit], new_columns: NewColumns, *, overwrite: bool = False) -> None:
        """Write an edited copy with `save_to_disk`; see `DataFile.write`."""
        target = Folder(to)
        check_target(target, self._source(), overwrite=overwrite, replaceable=_saved_files(target))
        self._check_unchanged()  # first: reading a memory-mapped file that was truncated kills the process
        with tempfile.TemporaryDirectory(prefix="slick-edited-") as folder, target.atomic_replace() as new:
            with _no_progress_bars():
                self._edited(edits, new_columns, folder).save_to_disk(new.local_path)
            self._check_unchanged()

    def _source(self) -> Folder | None:
        return None

    def _check_unchanged(self) -> None:
        """Raise DataError if the data changed since it was opened."""

    def loading_code(self, path: str) -> str:
        """See `DataFile.loading_code`."""
        return f"load_from_disk({path!r})"


class DatasetData(_Splits, MemoryData):
    """A `datasets.Dataset` or `DatasetDict`. A copy is a new one, or a folder of `save_to_disk`."""

    def edited(self, edits: Iterable[RowEdit], new_columns: NewColumns) -> "Dataset | DatasetDict":
        """An edited copy; see `DataFile.write`."""
        return self._edited(edits, new_columns, folder=None)


class SavedDataset(_Splits):
    """A folder that `save_to_disk` wrote."""

    def __init__(self, name: str, folder: Folder) -> None:
        """Open a folder; one in an object store is copied to this machine.

        Raises:
            DataError: the package is not installed, or the folder is damaged.
        """
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{name} was written by the package datasets, which is not installed; install it with `pip install "
                "datasets`, or save the data as Parquet"
            ) from error
        self._folder, self._etag = folder, folder.etag()
        path = folder.uri
        if not folder.is_local:
            self._copy = tempfile.TemporaryDirectory(prefix="slick-fetched-")
            path = self._copy.name
            folder.download(path)
        try:
            dataset = datasets.load_from_disk(path)
        except (OSError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
            raise DataError(f"{name} is not a whole folder of save_to_disk: {error}; save it again") from error
        super().__init__(dataset, name)

    def _source(self) -> Folder | None:
        return self._folder

    def _check_unchanged(self) -> None:
        if self._folder.etag() != self._etag:
            raise DataError(
                f"{self.name} changed since it was opened; run the command again when no other program writes to it"
            )


def open_dataset_object(source: Any) -> DataFile | None:
    """The rows of an object of the package `datasets`; None for other objects. Does not import the package."""
    is_dataset = type(source).__module__.partition(".")[0] == "datasets"
    return DatasetData(source, "the data set") if is_dataset else None


def _saved_files(target: Folder) -> list[str]:
    """The files of an earlier copy by `save_to_disk` in a folder."""
    return [name for name in target.sizes() if name.endswith((".arrow", *_FILES, _DICT_FILE))]


def _parts(dataset: "Dataset") -> Iterator[pa.Table]:
    """The rows in order, in tables of bounded size."""
    yield from dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
