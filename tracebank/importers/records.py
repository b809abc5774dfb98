"""The records of a file, one at a time: JSON lines, a JSON list, or Parquet; the first two may be gzipped."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tracebank.importers.form import FormatError

LINES = (".jsonl", ".ndjson")
SUFFIXES = (*LINES, ".json", ".parquet")

_CHUNK = 1 << 20
_ROWS = 256
_BLANK = re.compile(r"\s*")


class Record(NamedTuple):
    """A record: where it stands ("line 3"), its value, and why it has none ("" where it has one)."""

    place: str
    value: Any
    problem: str = ""


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, without a ``.gz`` behind it.

    Raises:
        FormatError: It says nothing.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    suffix = suffixes[-2:][0] if zipped and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if suffix not in SUFFIXES or (zipped and suffix == ".parquet"):
        raise FormatError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)} (or .gz after the JSON ones)")
    return suffix


def records(path: Path, ignored: Collection[str] = ()) -> Iterator[Record]:
    """The records of a file, in order; only a few are in memory at a time.

    Args:
        path: A file whose suffix says what it holds. A ``.json`` file may be a list, or hold a record a line.
        ignored: Columns of a Parquet file that are left out.

    Raises:
        FormatError: A file that is damaged or is not what its suffix says. A bad line is no such thing: it is a record with
            a ``problem``.
    """
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            try:
                yield from _rows(path, ignored)
            except (pa.ArrowException, OSError) as error:  # pages that are damaged are an OSError
                raise FormatError(f"{path}: expected a Parquet file, found none or a damaged one ({error})") from None
        elif kind == ".json" and _is_list(path):
            with _open(path) as file:
                yield from _items(path, io.TextIOWrapper(file, encoding="utf-8-sig"))
        else:
            with _open(path) as file:
                yield from _lines(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: expected UTF-8, found something else ({error.reason})") from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb"))


def _is_list(path: Path) -> bool:
    with _open(path) as file:
        while chunk := file.read(4096):
            start = chunk.removeprefix(codecs.BOM_UTF8).lstrip()
            if start:
                return start.startswith(b"[")
    return False


def _lines(file: IO[bytes]) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not content.strip():
            continue
        place = f"line {number}"
        try:
            value = json.loads(content.decode())
        except UnicodeDecodeError:
            yield Record(place, content, "the line is no UTF-8")
        except (ValueError, RecursionError):
            yield Record(place, content, "the line is no JSON")
        else:
            yield Record(place, value)


def _items(path: Path, file: TextIO) -> Iterator[Record]:
    """The items of a list, read piece by piece: the standard library can only take in the whole."""
    decoder = json.JSONDecoder()
    text, at, line, number = file.read(_CHUNK), 0, 1, 0

    def more() -> bool:
        nonlocal text, at
        added = file.read(max(_CHUNK, len(text) - at))  # as much again, so that a huge item is tried but a few times
        text, at = text[at:] + added, 0
        return added != ""

    def skip() -> str:
        """Passes over blanks and returns the character behind them; "" at the end of the file."""
        nonlocal at, line
        while True:
            end = cast(re.Match[str], _BLANK.match(text, at)).end()
            line += text.count("\n", at, end)
            at = end
            if at < len(text) or not more():
                return text[at : at + 1]

    def damaged(expected: str) -> FormatError:
        found = f"{text[at : at + 40]!r}" if at < len(text) else "the end of the file"
        return FormatError(f"{path}, line {line}: expected {expected}, found {found}")

    skip()
    at += 1  # the bracket
    while skip() != "]":
        if number:
            if text[at : at + 1] != ",":
                raise damaged("a comma or the end of the list")
            at += 1
            skip()
        number += 1
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
            except RecursionError:
                raise damaged("a record of less deeply nested lists and objects") from None
            except json.JSONDecodeError as error:
                if not more():
                    raise damaged(f"record {number} of a list as JSON ({error.msg})") from None
            else:
                if end < len(text) or not more():  # a number that ends with the piece may go on in the next
                    break
        yield Record(f"record {number} (line {line})", value)
        line += text.count("\n", at, end)
        at = end
    at += 1
    if skip():
        raise damaged("nothing after the list (a file with a record a line should be named .jsonl)")


def _rows(path: Path, ignored: Collection[str]) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name not in ignored]
        number = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"row {number}", _without_nulls(row))


def _without_nulls(value: Any) -> Any:
    """Objects without the fields that are null: in Arrow all objects of a column have the same fields, absent ones too."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
