"""Putting things on the disk so that they stay: new files, the manifest, the lock; and taking away what is left over."""

from __future__ import annotations

import fcntl
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracebank.faults import BankError
from tracebank.store.layout import GROUP_ROWS, REPEATED, VECTOR
from tracebank.store.manifest import INDEX_NAME, MANIFEST_NAME, SHARD_NAME, File, Manifest

SHARD_ROWS = 65_536
"""Rows in a shard, at most."""

SHARD_BYTES = 2**30
"""Bytes at which a shard counts as full, however few its rows."""

LOCK_NAME = "lock"
NEW_MANIFEST = MANIFEST_NAME + ".new"
SHARD_KEY = b"shard"
"""Where a shard's footer has the name that it was written under, so that shards in each other's place are noticed."""

_WAIT = 1.0
"""Seconds of waiting for the lock before it is said."""

_logger = logging.getLogger(__name__)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into a `BankError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise BankError(f"{path}: cannot be written: {reason}; the bank is as it was before") from error


def is_full(rows: int, size: int) -> bool:
    """Whether a shard of so many rows and bytes takes no more row groups."""
    return rows > SHARD_ROWS - GROUP_ROWS or size >= SHARD_BYTES


def write_shards(folder: Path, number: int, groups: Iterable[pa.Table], schema: pa.Schema) -> list[File]:
    """Writes row groups into as many new shards as it takes, numbered from ``number``, and puts them on the disk."""
    files: list[File] = []
    shard: _Shard | None = None
    try:
        for group in groups:
            if shard is not None and is_full(shard.rows, shard.bytes):
                files.append(shard.finish())
                shard = None
            if shard is None:
                shard = _Shard(folder / f"steps-{number + len(files):06d}.parquet", schema)
            shard.write(group)
        if shard is not None:
            files.append(shard.finish())
            shard = None
    finally:
        if shard is not None:
            shard.abandon()
    return files


class _Shard:
    """A shard that is being written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self.rows = 0
        self._schema = schema.with_metadata({SHARD_KEY: path.name.encode()})
        with writing(path):
            self._file = _NewFile(path)
            self._parquet = pq.ParquetWriter(
                self._file,
                self._schema,
                # Vectors of length one are as good as random: compressing them costs time and saves nothing.
                compression={name: "none" if name == VECTOR else "zstd" for name in _leaves(schema)},
                use_dictionary=list(REPEATED),
                write_statistics=False,
                write_page_checksum=True,
            )

    @property
    def bytes(self) -> int:
        return self._file.tell()

    def write(self, group: pa.Table) -> None:
        with writing(self._path):
            self._parquet.write_table(group.cast(self._schema), row_group_size=len(group))
        self.rows += len(group)

    def finish(self) -> File:
        with writing(self._path):
            self._parquet.close()
            self._file.settle()
        return File(self._path.name, self.rows, self._file.tell(), self._file.crc32)

    def abandon(self) -> None:
        """Closes what is open; the file is left over."""
        self._file.stop()
        with suppress(ValueError, OSError, pa.ArrowException):  # it tries to write the footer to a closed file
            self._parquet.close()


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{VECTOR}.list.element" if name == VECTOR else name for name in schema.names]


class _NewFile:
    """A new file that sums up what is written to it; what `ParquetWriter` needs of a file."""

    mode = "wb"

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=2**18)  # noqa: SIM115 - `settle` or `stop` closes it
        self._size = 0
        self.crc32 = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing: `settle` does it once, at the end."""

    def close(self) -> None:
        """Nothing, for the same reason."""

    def settle(self) -> None:
        """Puts all of it on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self.stop()

    def stop(self) -> None:
        """Closes the file, whatever becomes of what is still buffered."""
        with suppress(OSError):
            self._file.close()


def settle_file(path: Path, rows: int) -> File:
    """Puts a file that somebody else wrote on the disk, and sums it up."""
    with writing(path), open(path, "rb+") as file:
        os.fsync(file.fileno())
        size, crc32 = sum_up(file.fileno())
    return File(path.name, rows, size, crc32)


def sum_up(descriptor: int) -> tuple[int, int]:
    """Size and CRC-32 of an open file."""
    size = crc32 = 0
    while data := os.pread(descriptor, 2**20, size):
        crc32 = zlib.crc32(data, crc32)
        size += len(data)
    return size, crc32


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest: before the rename the bank is as it was, after it as the manifest says.

    Raises:
        BankError: It cannot be written.
    """
    new = folder / NEW_MANIFEST
    with writing(new):
        sync_folder(folder)  # the files that it names have to be found after a power cut
        with open(new, "w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / MANIFEST_NAME)
    try:
        sync_folder(folder)
    except OSError as error:
        raise BankError(f"{folder}: the change is made, but may not outlast a power cut: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Puts the folder's list of files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def left_over(folder: Path, manifest: Manifest) -> list[Path]:
    """Files of ours that the manifest does not name."""
    named = {file.name for file in manifest.files}
    return sorted(
        path
        for path in folder.iterdir()
        if path.name not in named
        and (path.name == NEW_MANIFEST or SHARD_NAME.fullmatch(path.name) or INDEX_NAME.fullmatch(path.name))
    )


def sweep(folder: Path, manifest: Manifest) -> None:
    """Removes what is left over. What cannot be removed stays for the next time."""
    try:
        for path in left_over(folder, manifest):
            path.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("%s: left-over files stay: %s", folder, error)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the bank, waiting for whoever holds it; other threads of this process are kept out as well.

    Args:
        shared: Keep out writers only. Nothing is written then: where there is no lock, nobody has ever been writing.

    Raises:
        BankError: The lock cannot be opened.
    """
    path = folder / LOCK_NAME
    if shared and not path.exists():
        yield
        return
    with writing(path):
        # A descriptor of our own each time: the kernel keeps apart open files, not processes.
        descriptor = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with writing(path):
            _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder)
        try:
            yield
        finally:
            # Closing alone would not let go where the process has forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _take(descriptor: int, how: int, folder: Path) -> None:
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        try:
            return fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
    _logger.info("%s: waiting for another writer", folder)
    fcntl.flock(descriptor, how)
