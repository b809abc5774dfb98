"""One shard, open for reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tracebank.faults import BankError
from tracebank.store.layout import NORMALISED, REPEATED, plain, schema
from tracebank.store.manifest import File
from tracebank.store.writing import SHARD_KEY

FILTER_COLUMNS = ("task_id", NORMALISED, "source", "step", "reward", "final")
MEND = "restore it from a copy of the bank; `python -m tracebank check` says what else is damaged"


class Shard:
    """A shard that is open: it stays readable after it is removed from the folder. Safe from many threads.

    Attributes:
        file: What the manifest says of it.
        starts: First row of each row group, and at the end all rows; counted within the shard.

    Args:
        folder: The bank.
        file: The shard.
        dimension: Numbers in a vector.

    Raises:
        FileNotFoundError: No such file: it is missing, or a writer has just replaced it.
        BankError: Not the file that the manifest names.
    """

    def __init__(self, folder: Path, file: File, dimension: int) -> None:
        self.file = file
        self._path = folder / file.name
        self._lock = threading.Lock()
        self._columns: pa.Table | None = None
        try:
            # Reading by offset, not a memory map: a map of a file that somebody cuts short ends the process.
            source = pa.OSFile(str(self._path), "rb")
            size = source.size()
            if size != file.bytes:
                raise self._damaged(f"{file.bytes} bytes", f"{size}")
            self._parquet = pq.ParquetFile(source, read_dictionary=list(REPEATED), page_checksum_verification=True)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise self._damaged("a Parquet file", str(error)) from error
        found = self._parquet.schema_arrow
        expected = schema(dimension)
        self._names = expected.names
        for name in expected.names:
            kind = found.field(name).type if name in found.names else "no such column"
            if pa.types.is_dictionary(kind) if name in REPEATED else kind == expected.field(name).type:
                continue
            raise self._damaged(f"the column {name} of {expected.field(name).type}", str(kind))
        written_as = (found.metadata or {}).get(SHARD_KEY, b"").decode(errors="replace")
        if written_as != file.name:
            raise self._damaged("the shard of that name", f"what was written as {written_as!r}")
        footer = self._parquet.metadata
        if footer.num_rows != file.rows:
            raise self._damaged(f"{file.rows} rows", f"{footer.num_rows}")
        counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some columns of some row groups.

        Raises:
            BankError: They are damaged.
        """
        with self._lock:
            return self._read(groups, columns, threads=False)

    def tables(self) -> Iterator[pa.Table]:
        """All columns of all rows, with texts as texts, a row group at a time.

        Raises:
            BankError: They are damaged.
        """
        for group in range(len(self.starts) - 1):
            yield plain(self.read([group], self._names)).replace_schema_metadata()

    def columns(self) -> pa.Table:
        """What filters look at, in one piece each; kept."""
        with self._lock:
            if self._columns is None:
                table = self._read(range(len(self.starts) - 1), FILTER_COLUMNS, threads=True)
                self._columns = table.unify_dictionaries().combine_chunks()
            return self._columns

    def _read(self, groups: Sequence[int], columns: Sequence[str], threads: bool) -> pa.Table:
        try:
            return self._parquet.read_row_groups(list(groups), columns=list(columns), use_threads=threads)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged("whole row groups", str(error)) from error

    def _damaged(self, expected: str, found: str) -> BankError:
        found = " ".join(found.split())  # a library's message may have several lines
        return BankError(f"{self._path}: damaged: expected {expected}, found {found}; {MEND}")
