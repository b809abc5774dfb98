"""What a bank is, and the one file that says it."""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tracebank.faults import BankError

MANIFEST_VERSION = 1
"""Version of the folder's layout. A later one is refused, since it cannot be known how to read it."""

MANIFEST_NAME = "manifest.json"
IndexKind = Literal["auto", "flat", "hnsw", "ivf"]
INDEX_KINDS: tuple[str, ...] = get_args(IndexKind)
SHARD_NAME = re.compile(r"steps-(\d{6,})\.parquet")
INDEX_NAME = re.compile(r"index-(\d{6,})\.faiss")


@dataclass(frozen=True)
class File:
    """A file that belongs to the bank: its name, the rows that it holds, its size in bytes, its CRC-32."""

    name: str
    rows: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What a bank is.

    Args:
        embedder: Name of the embedder (`Embedder.name`).
        embedder_spec: What it can be opened from (`Embedder.spec`).
        dimension: Numbers in a vector.
        index_kind: The index asked for: "auto", "flat", "hnsw" or "ivf".
        shards: In order of their rows.
        index: The index file, of the first ``index.rows`` rows; None where all are searched flat.
        environments: Ids of the environments whose steps are here, sorted.
        formats: Names of their action formats, sorted.
        generation: Counts changes, from 0.
        next_file: Number of the next new file. A number is given to one file only, so that a reader who comes late finds a
            file gone, never another one in its place.
        written_by: Versions of what wrote it last: agent-envs, faiss, pyarrow.
    """

    embedder: str
    embedder_spec: str
    dimension: int
    index_kind: IndexKind
    shards: tuple[File, ...] = ()
    index: File | None = None
    environments: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    generation: int = 0
    next_file: int = 1
    written_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(shard.rows for shard in self.shards)

    @property
    def files(self) -> tuple[File, ...]:
        """The files that belong to the bank, beside the manifest itself."""
        return self.shards if self.index is None else (*self.shards, self.index)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"version": MANIFEST_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads `to_json`.

        Raises:
            BankError: Not such a text: what was expected and found, without the file's name.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BankError(f"expected JSON, found {reprlib.repr(text)} ({error})") from None
        version = record.get("version") if isinstance(record, dict) else None
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise BankError(f"version: expected {MANIFEST_VERSION}, found {version}: written by a later agent-envs, upgrade")
        fields = _fields(record, {"version": _at_least(1), **_MANIFEST}, "")
        del fields["version"]
        manifest = cls(**fields)
        names = [file.name for file in manifest.files]
        if len(set(names)) < len(names):
            raise BankError(f"expected every file once, found {', '.join(names)}")
        if manifest.index is not None and manifest.index.rows > manifest.rows:
            raise BankError(f"index.rows: expected at most the {manifest.rows} of the shards, found {manifest.index.rows}")
        for file in manifest.files:
            if _number(file.name) >= manifest.next_file:
                raise BankError(f"next_file: expected a number above that of {file.name}, found {manifest.next_file}")
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bank.

    Raises:
        BankError: There is none, it is damaged, or of a later version.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BankError(f"{folder}: expected a bank, found no {MANIFEST_NAME}: TraceBank.create makes one") from None
    except OSError as error:
        raise BankError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise BankError(f"{path}: damaged: expected JSON, found bytes that are no text; {_RESTORE}") from None
    try:
        return Manifest.from_json(text)
    except BankError as error:
        advice = "" if "upgrade" in str(error) else f"; {_RESTORE}"
        raise BankError(f"{path}: {error}{advice}") from None


_RESTORE = "restore the file from a copy of the bank"


def _number(name: str) -> int:
    match = SHARD_NAME.fullmatch(name) or INDEX_NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1])


# Reading. A reader takes a value as JSON gives it and where it stands, and returns the field's value.
_Reader = Callable[[Any, str], Any]


def _wrong(where: str, expected: str, found: object) -> BankError:
    return BankError(f"{where or 'damaged'}: expected {expected}, found {reprlib.repr(found)}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    return value


def _words(value: Any, where: str) -> str:
    if not _text(value, where):
        raise _wrong(where, "text that is not empty", value)
    return str(value)


def _at_least(least: int) -> _Reader:
    def read(value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _wrong(where, f"a whole number from {least} up", value)
        return value

    return read


def _kind(value: Any, where: str) -> str:
    if value not in INDEX_KINDS:
        raise _wrong(where, f"one of {', '.join(INDEX_KINDS)}", value)
    return str(value)


def _name(pattern: re.Pattern[str]) -> _Reader:
    def read(value: Any, where: str) -> str:
        if not pattern.fullmatch(_text(value, where)):
            raise _wrong(where, f"a file name like {pattern.pattern}", value)
        return str(value)

    return read


def _tuple(reader: _Reader) -> _Reader:
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        return tuple(reader(item, f"{where}[{number}]") for number, item in enumerate(value))

    return read


def _versions(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    return {name: _text(version, f"{where}.{name}") for name, version in value.items()}


def _file(pattern: re.Pattern[str]) -> _Reader:
    readers = {"name": _name(pattern), "rows": _at_least(1), "bytes": _at_least(1), "crc32": _at_least(0)}
    return lambda value, where: File(**_fields(value, readers, where))


def _fields(value: Any, readers: Mapping[str, _Reader], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    within = f"{where}." if where else ""
    for name in readers:
        if name not in value:
            raise BankError(f"{within}{name}: expected this field, found none")
    for name in value:
        if name not in readers:
            raise BankError(f"{within}{name}: expected one of {', '.join(readers)}, found an unknown field")
    return {name: read(value[name], f"{within}{name}") for name, read in readers.items()}


_MANIFEST: Mapping[str, _Reader] = {
    "embedder": _words,
    "embedder_spec": _text,
    "dimension": _at_least(1),
    "index_kind": _kind,
    "shards": _tuple(_file(SHARD_NAME)),
    "index": lambda value, where: None if value is None else _file(INDEX_NAME)(value, where),
    "environments": _tuple(_text),
    "formats": _tuple(_text),
    "generation": _at_least(0),
    "next_file": _at_least(1),
    "written_by": _versions,
}
