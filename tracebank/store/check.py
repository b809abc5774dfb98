"""Everything that is wrong with the files of a bank, found by reading all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tracebank.faults import BankError
from tracebank.store.manifest import MANIFEST_NAME, File, Manifest, read_manifest
from tracebank.store.shard import Shard
from tracebank.store.writing import left_over, sum_up


@dataclass(frozen=True)
class Problem:
    """Something wrong with a bank.

    Args:
        file: The file it is about.
        what: What was expected and what was found.
        mendable: Whether `compact` can mend it, since nothing is lost (an index, left-over files).
    """

    file: str
    what: str
    mendable: bool


def problems(folder: Path) -> Iterator[Problem]:
    """What is wrong, file by file. Nobody may be writing meanwhile: what he has not finished would look left over."""
    try:
        manifest = read_manifest(folder)
    except BankError as error:
        yield Problem(MANIFEST_NAME, str(error), mendable=False)
        return
    for shard in manifest.shards:
        what = _difference(folder, shard) or _unreadable(folder, shard, manifest)
        if what:
            yield Problem(shard.name, what, mendable=False)
    if manifest.index is not None and (what := _difference(folder, manifest.index)):
        yield Problem(manifest.index.name, what, mendable=True)
    for path in left_over(folder, manifest):
        yield Problem(path.name, "expected no such file, found one: somebody who wrote was stopped", mendable=True)


def _difference(folder: Path, file: File) -> str:
    """How a file differs from what the manifest says of it, or ""."""
    try:
        descriptor = os.open(folder / file.name, os.O_RDONLY)
    except FileNotFoundError:
        return f"expected {file.bytes} bytes, found no file"
    except OSError as error:
        return f"expected a file that can be read, found: {error.strerror}"
    try:
        size = os.fstat(descriptor).st_size
        if size != file.bytes:
            return f"expected {file.bytes} bytes, found {size}"
        crc32 = sum_up(descriptor)[1]
    except OSError as error:
        return f"expected a file that can be read, found: {error.strerror}"
    finally:
        os.close(descriptor)
    return "" if crc32 == file.crc32 else f"expected the CRC-32 {file.crc32:08x}, found {crc32:08x}"


def _unreadable(folder: Path, file: File, manifest: Manifest) -> str:
    """Why a shard whose bytes are right cannot be read, or ""."""
    try:
        rows = sum(len(table) for table in Shard(folder, file, manifest.dimension).tables())
    except (BankError, OSError) as error:
        return str(error)
    return "" if rows == file.rows else f"expected {file.rows} rows, found {rows}"
