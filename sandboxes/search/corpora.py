"""Reading a corpus: the files that people index, as passages.

- ``wiki18``: JSON lines ``{"id", "contents"}``, contents being ``"Title"``, a line end and the text (the Wikipedia of 2018
  in passages of 100 words, as Search-R1 and FlashRAG use it);
- ``dpr``: tab-separated ``id text title``, quoted as CSV where needed, with or without that line on top (``psgs_w100.tsv``);
- ``hotpotqa``: JSON lines ``{"title", "text": [sentences], "url"}``, an article's abstract each, in many ``.bz2`` files;
- ``beir``: JSON lines ``{"_id", "title", "text"}`` (``corpus.jsonl``).

Files may be compressed by bzip2 or gzip, and a folder stands for the files in it. What is broken is reported by its line and
left out, and the rest is read: one bad line in twenty million should not cost a night.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from sandboxes.search.index import Passage

CorpusFormat = Literal["auto", "wiki18", "dpr", "hotpotqa", "beir"]

_SUFFIXES = frozenset({".jsonl", ".json", ".tsv", ".bz2", ".gz"})
_REPORTED = 20  # broken lines that are kept with their reasons; all are counted
_REPORT_EVERY = 10_000  # passages between two calls of ``progress``
_HOPELESS = 1_000  # broken lines without one that is whole: this is something else


class CorpusError(ValueError):
    """There is no corpus there, or it is of no form that can be read."""


class _BadLine(ValueError):
    """A line is not what the format says."""


@dataclass(frozen=True)
class BrokenLine:
    """A line that was left out.

    Args:
        file: Where it is.
        line: Its number, from 1, in the file as it is uncompressed.
        reason: What was expected and what was found.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass
class CorpusReport:
    """What reading a corpus came to. It grows while the corpus is read.

    Args:
        read: Passages.
        broken: Lines that were left out.
        examples: The first of these.
        cut: Files that end in the middle or are damaged from some point on, a line of text each.
    """

    read: int = 0
    broken: int = 0
    examples: list[BrokenLine] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.read:,} passages read, broken lines left out: {self.broken:,}", *map(str, self.examples)]
        if self.broken > len(self.examples):
            lines.append(f"... and {self.broken - len(self.examples):,} more broken lines")
        return "\n".join(lines + self.cut)

    def add_broken(self, file: str, line: int, reason: str) -> None:
        """Counts a broken line."""
        self.broken += 1
        if len(self.examples) < _REPORTED:
            self.examples.append(BrokenLine(file, line, reason))


class Corpus(Iterator[Passage]):
    """The passages of some files, one after the other, and in ``report`` what has been read so far.

    Args:
        files: What is read, in this order.
        format: Of all of them; "auto" finds out for each file by its lines.
        progress: Is told, now and then and at the end, how many passages were read and which part of all bytes, 0 to 1.
    """

    def __init__(self, files: list[Path], format: CorpusFormat, progress: Callable[[int, float], None]) -> None:
        self.report = CorpusReport()
        self._files = files
        self._format = format
        self._progress = progress
        self._passages = self._read()

    def __next__(self) -> Passage:
        return next(self._passages)

    def _read(self) -> Iterator[Passage]:
        sizes = [file.stat().st_size for file in self._files]
        done, total = 0, sum(sizes) or 1
        for file, size in zip(self._files, sizes, strict=True):
            with file.open("rb") as raw:
                for passage in self._read_file(raw, str(file)):
                    self.report.read += 1
                    yield passage
                    if self.report.read % _REPORT_EVERY == 0:
                        self._progress(self.report.read, (done + min(raw.tell(), size)) / total)
            done += size
        self._progress(self.report.read, 1.0)

    def _read_file(self, raw: BufferedReader, name: str) -> Iterator[Passage]:
        report, read_before, broken_before = self.report, self.report.read, self.report.broken
        lines = _Lines(raw)
        parse: Callable[[str], Passage] | None = None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if parse is None:
                    parse = _PARSERS[_detect(text) if self._format == "auto" else self._format]
                    if parse is _parse_dpr and text.lower().split("\t") == ["id", "text", "title"]:
                        continue
                passage = parse(text)
            except CorpusError as problem:
                raise CorpusError(f"{name} {problem}") from None
            except (ValueError, RecursionError) as problem:
                if not line.endswith(b"\n") and report.read > read_before and lines.damage is None:
                    lines.damage = "ends in the middle of a line"
                    continue
                report.add_broken(name, number, _reason(problem))
                if report.read == read_before and report.broken - broken_before == _HOPELESS:
                    report.cut.append(f"{name} is left out: its first {_HOPELESS:,} lines are all broken")
                    break
                continue
            yield passage
        if report.read == 0 and report.broken:
            expected = "any known format" if self._format == "auto" else f"the format {self._format}"
            raise CorpusError(f"no line is of {expected}; the first problem is in {report.examples[0]}")
        if lines.damage is not None:
            report.cut.append(
                f"{name} {lines.damage} after {lines.whole:,} whole lines: those are read, get the file again for the rest"
            )


def read_corpus(
    path: str | PathLike[str],
    format: CorpusFormat = "auto",
    *,
    progress: Callable[[int, float], None] = lambda read, part: None,
) -> Corpus:
    """Reads a corpus.

    Args:
        path: A file, or a folder whose files are read in the order of their names, folders within it too.
        format: One of the formats of this module, or "auto", which finds out for each file by its lines.
        progress: Is told, now and then and at the end, how many passages were read and which part of all bytes, 0 to 1.

    Returns:
        The passages one by one; its ``report`` says how many lines were broken, which, and which files were cut.

    Raises:
        CorpusError: There is no such file, the folder holds none, or (while it is read) the format is another one.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "corpus.jsonl"
        >>> _ = file.write_text('{"_id": "7", "title": "Kovamir", "text": "A river."}')
        >>> list(read_corpus(file))
        [Passage(id='7', title='Kovamir', text='A river.', score=0.0)]
    """
    if format not in get_args(CorpusFormat):
        raise CorpusError(f"a corpus format is one of {', '.join(get_args(CorpusFormat))}, found {format!r}")
    path = Path(path)
    if not path.exists():
        raise CorpusError(f"there is no corpus at {str(path)!r}: name a file or a folder of files")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise CorpusError(f"the folder {str(path)!r} holds no file of a corpus ({', '.join(sorted(_SUFFIXES))})")
    return Corpus(files, format, progress)


class _Lines(Iterator[bytes]):
    """The lines of a file, uncompressed where it is compressed.

    Attributes:
        damage: What is wrong with the file, once that is known.
        whole: Lines so far that have an end.
    """

    def __init__(self, raw: BufferedReader) -> None:
        self.damage: str | None = None
        self.whole = 0
        magic = raw.peek(3)[:3]
        self._stream: BufferedReader | bz2.BZ2File | gzip.GzipFile = raw
        if magic == b"BZh":
            self._stream = bz2.BZ2File(raw)
        elif magic[:2] == b"\x1f\x8b":
            self._stream = gzip.GzipFile(fileobj=raw)

    def __next__(self) -> bytes:
        try:
            line = self._stream.readline()
        except EOFError:
            self.damage = "ends in the middle of its compressed data"
        except (gzip.BadGzipFile, zlib.error) as problem:
            self.damage = f"has damaged compressed data ({problem})"
        except OSError as problem:
            if problem.errno is not None:  # the disk's doing; bz2 gives its own complaints no number
                raise
            self.damage = f"has damaged compressed data ({problem})"
        else:
            if line:
                self.whole += line.endswith(b"\n")
                return line
        raise StopIteration


def _detect(line: str) -> CorpusFormat:
    """The format that a line is of."""
    if "ustar" in line and "\0" in line:
        raise CorpusError("is a tar archive: unpack it first, then name the folder")
    found = f"the line {line[:60]!r}"
    try:
        entry = json.loads(line)
    except ValueError:
        if line.count("\t") == 2:
            return "dpr"
    else:
        if isinstance(entry, dict):
            if "_id" in entry and "text" in entry:
                return "beir"
            if "contents" in entry:
                return "wiki18"
            if "title" in entry and isinstance(entry.get("text"), list):
                return "hotpotqa"
            found = f"JSON with {', '.join(map(repr, entry)) or 'nothing in it'}"
    raise _BadLine(
        f"expected JSON with 'id' and 'contents' (wiki18), '_id' and 'text' "
        f"(beir) or 'title' and a list 'text' (hotpotqa), or three columns parted by tabs (dpr); found {found}"
    )


def _parse_wiki18(line: str) -> Passage:
    entry = _object(line)
    return Passage.from_contents(_id(entry, "id"), _text(entry, "contents"))


def _parse_beir(line: str) -> Passage:
    entry = _object(line)
    return Passage(_id(entry, "_id"), _text(entry, "title", ""), _text(entry, "text"))


def _parse_hotpotqa(line: str) -> Passage:
    entry = _object(line)
    title, sentences = _text(entry, "title"), entry.get("text")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise _BadLine(f"'text' must be a list of sentences, found {_short(sentences)}")
    text = " ".join(filter(None, (sentence.strip() for sentence in sentences)))
    name = next(key for key in ("id", "url", "title") if key in entry)
    return Passage(_id(entry, name), title, text)


def _parse_dpr(line: str) -> Passage:
    columns = line.split("\t")
    if '"' in line:
        with suppress(csv.Error):  # quotes that are no CSV's are the text's own
            columns = next(csv.reader([line], delimiter="\t", strict=True))
    if len(columns) != 3:
        raise _BadLine(f"expected the three columns id, text and title parted by tabs, found {len(columns)}")
    id, text, title = columns
    if not id:
        raise _BadLine("the column id is empty")
    return Passage(id, title, text)


_PARSERS: Mapping[CorpusFormat, Callable[[str], Passage]] = MappingProxyType(
    {"wiki18": _parse_wiki18, "dpr": _parse_dpr, "hotpotqa": _parse_hotpotqa, "beir": _parse_beir}
)


def _object(line: str) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise _BadLine(f"expected a JSON object, found {_short(entry)}")
    return entry


def _id(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _BadLine(f"{key!r} must be a text or a whole number, found {_short(value)}")
    return str(value)


def _text(entry: dict[str, Any], key: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str):
        raise _BadLine(f"{key!r} must be a text, found {_short(value)}")
    return value


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "expected an entry, found JSON that is nested too deeply"
    if isinstance(problem, UnicodeDecodeError):
        return f"expected UTF-8, found the byte 0x{problem.object[problem.start]:02x} at position {problem.start}"
    if isinstance(problem, json.JSONDecodeError):
        return f"expected JSON, found {problem.doc[:40]!r} ({problem.msg} at position {problem.pos})"
    return str(problem)
