"""The default index: BM25 in this process, with nothing to start and nothing to reach.

What a word adds to a passage's score does not depend on the query, so all of it is computed once, by bm25s, in Lucene's
variant of the formula: ``idf · tf / (tf + k1 · (1 - b + b · length / mean length))`` with
``idf = ln(1 + (N - n + 0.5) / (n + 0.5))``. A search then only sums (`scoring`).

A saved index is a folder. Loading maps it into memory: that takes no time whatever the size, and processes share the pages.
Building takes some three minutes and 4 GB for each million passages of 100 words.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandboxes.faults import SandboxFault
from sandboxes.search.analyzer import Analyzer, AnalyzerMismatch
from sandboxes.search.collecting import TokenCollector
from sandboxes.search.index import Index, Passage, UnknownPassage, check_search
from sandboxes.search.scoring import Impacts, Scorer
from sandboxes.search.table import DuplicateName, Table

FORMAT = "sandboxes.search.bm25"
VERSION = 1
SETTINGS_FILE = "index.json"
HOW_TO_BUILD = "python -m sandboxes.search index --corpus FILE --to"

_REPORT_EVERY = 10_000  # passages between two calls of ``progress``


class DuplicatePassage(ValueError):
    """Two passages have the same id."""


@dataclass(frozen=True)
class _Parts:
    """What an index consists of. A passage's number is its rank among the ids, a word's its rank among the words."""

    passages: Table
    words: Table
    impacts: Impacts

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Each of the files, without ``.npy``."""
        return {
            "texts": self.passages.text,
            "text_bounds": self.passages.bounds,
            "id_heads": self.passages.heads,
            "words": self.words.text,
            "word_bounds": self.words.bounds,
            "word_heads": self.words.heads,
            "values": self.impacts.values,
            "passages": self.impacts.passages,
            "starts": self.impacts.starts,
        }

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]]) -> _Parts:
        passages = Table(arrays["texts"], arrays["text_bounds"], arrays["id_heads"])
        words = Table(arrays["words"], arrays["word_bounds"], arrays["word_heads"])
        impacts = Impacts(arrays["values"], arrays["passages"], arrays["starts"], len(passages))
        return cls(passages, words, impacts)


class Bm25Index(Index):
    """A BM25 index: `build` makes one, `save` and `load` keep it. Any number of threads may search at once.

    Its results depend on nothing but the passages, the query and ``k``: not on the order in which passages were read, on
    whether it was loaded, or on what else is searched at the time.

    Example:
        >>> index = Bm25Index.build([Passage("1", "Kovamir", "A river in Talido."), Passage("2", "Talido", "A town.")])
        >>> [hit.id for hit in index.search(["rivers of talido"])[0]]
        ['1', '2']
        >>> index.get("2").text
        'A town.'
    """

    def __init__(self, parts: _Parts, analyzer: Analyzer, k1: float, b: float, where: str) -> None:
        self._parts: _Parts | None = parts
        self._analyzer = analyzer
        self._k1, self._b = k1, b
        self._where = where
        self._scorer = Scorer(parts.impacts)

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        analyzer: Analyzer | None = None,
        progress: Callable[[int], None] = lambda read: None,
    ) -> Bm25Index:
        """Builds an index in memory.

        Args:
            passages: In any order. Their titles are indexed with their texts, their scores are not looked at.
            k1: How slowly a word's repetitions cease to count; 0 or more.
            b: How much a passage's length counts, 0 to 1. The defaults suit passages of Wikipedia.
            analyzer: What cuts up passages and queries; `Analyzer()` by default.
            progress: Is told now and then, and at the end, how many passages have been read.

        Raises:
            DuplicatePassage: Two passages have the same id.
            ValueError: ``k1`` or ``b`` is out of its range.
        """
        if not (0 <= k1 < math.inf and 0 <= b <= 1):
            raise ValueError(f"k1 must be 0 or more and b from 0 to 1, found k1={k1}, b={b}")
        analyzer = analyzer or Analyzer()
        tokens = TokenCollector(analyzer)

        def rows() -> Iterator[tuple[str, str, str]]:
            read = 0
            for read, passage in enumerate(passages, 1):
                tokens.add(passage.contents)
                yield passage.id, passage.title, passage.text
                if read % _REPORT_EVERY == 0:
                    progress(read)
            progress(read)

        try:
            table, order = Table.of(rows(), fields=3)
        except DuplicateName as problem:
            raise DuplicatePassage(
                f"two passages have the id {problem.name!r}: an id names one passage, so leave one out or rename it"
            ) from None
        words, impacts = tokens.impacts(order, k1, b)
        return cls(_Parts(table, words, impacts), analyzer, k1, b, "in memory")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the index to a folder, which is complete as soon as it is there: a kill leaves no half of one.

        Args:
            folder: A new or empty one, or one that holds an index, which is replaced; who has that one open keeps it.

        Raises:
            SandboxFault: The folder holds something else, it cannot be written, or this index is closed.
        """
        parts, target = self._open(), self.check_target(folder)
        mark = uuid.uuid4().hex[:8]
        new, old = (target.with_name(f".{target.name}.{kind}-{mark}") for kind in ("new", "old"))
        settings = {
            "format": FORMAT,
            "version": VERSION,
            "passages": len(parts.passages),
            "k1": self._k1,
            "b": self._b,
            "analyzer": self._analyzer.settings(),
        }
        try:
            new.mkdir(parents=True)
            for name, values in parts.arrays().items():
                np.save(new / f"{name}.npy", values, allow_pickle=False)
            settings["bytes"] = {file.name: file.stat().st_size for file in sorted(new.iterdir())}
            (new / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            if target.exists():
                target.rename(old)
            new.rename(target)
        except OSError as problem:
            raise SandboxFault(f"cannot save an index as {str(folder)!r}: {problem}") from problem
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)

    @staticmethod
    def check_target(folder: str | os.PathLike[str]) -> Path:
        """Whether `save` may write there: for those who want to know before they build.

        Returns:
            The folder without links and dots.

        Raises:
            SandboxFault: There is something else.
        """
        target = Path(folder).resolve()
        if target.exists() and not (target / SETTINGS_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise SandboxFault(f"cannot save an index as {str(folder)!r}: something else is there, name a new folder")
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mmap: bool = True) -> Bm25Index:
        """Opens a saved index.

        Args:
            folder: What `save` wrote.
            mmap: Map the files into memory and let the system read what is used; False reads all of them now.

        Raises:
            SandboxFault: There is none, it is of another version or damaged, or words would be cut up otherwise.
        """
        where = str(folder)
        settings = _read_settings(Path(folder), where)
        again = f"build it again: {HOW_TO_BUILD} {where}"
        if settings.get("version") != VERSION:
            raise SandboxFault(
                f"the search index at {where!r} is of version {settings.get('version')!r}, this release reads version "
                f"{VERSION}: {again}"
            )
        try:
            sizes: dict[str, int] = settings["bytes"]
            for name, size in sizes.items():
                found = (Path(folder) / name).stat().st_size
                if found != size:
                    raise SandboxFault(
                        f"the search index at {where!r} is damaged: {name} has {found} bytes, not {size}: {again}"
                    )
            arrays = {
                name.removesuffix(".npy"): np.asarray(np.load(Path(folder) / name, mmap_mode="r" if mmap else None))
                for name in sizes
            }
            analyzer = Analyzer.from_settings(settings["analyzer"])
            return cls(_Parts.of(arrays), analyzer, settings["k1"], settings["b"], where)
        except AnalyzerMismatch as problem:
            raise SandboxFault(
                f"the search index at {where!r} does not fit this installation: {problem}; {again}"
            ) from problem
        except (OSError, KeyError, TypeError, ValueError) as problem:
            raise SandboxFault(
                f"the search index at {where!r} is damaged ({type(problem).__name__}: {problem}): {again}"
            ) from problem

    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        check_search(queries, k)
        parts = self._open()
        return [self._search_one(parts, query, k) for query in queries]

    def get(self, id: str) -> Passage:
        passages = self._open().passages
        number = passages.find(id)
        if number is None:
            raise UnknownPassage(f"there is no passage {id!r} among the {len(passages):,} of this index")
        return _passage(passages, number)

    def __len__(self) -> int:
        return len(self._open().passages)

    def describe(self) -> str:
        stemmer = self._analyzer.stemmer or "unstemmed"
        return f"bm25 (k1 {self._k1:g}, b {self._b:g}, {stemmer}), {len(self):,} passages, {self._where}"

    def close(self) -> None:
        self._parts = None

    def _open(self) -> _Parts:
        if self._parts is None:
            raise SandboxFault(f"this search index ({self._where}) is closed: open it again")
        return self._parts

    def _search_one(self, parts: _Parts, query: str, k: int) -> list[Passage]:
        counts = Counter(self._analyzer.tokens(query))
        words = parts.words.find_all(list(counts))
        known = {word: count for word, count in zip(words, counts.values(), strict=True) if word is not None}
        numbers, scores = self._scorer.best(list(known), list(known.values()), k)
        found = zip(numbers.tolist(), scores.tolist(), strict=True)
        return [_passage(parts.passages, number, score) for number, score in found]


def _passage(passages: Table, number: int, score: float = 0.0) -> Passage:
    id, title, text = passages.row(number)
    return Passage(id, title, text, score)


def _read_settings(folder: Path, where: str) -> dict[str, Any]:
    if folder.is_file():
        raise SandboxFault(
            f"{where!r} is a file and a search index is a folder; if that is a corpus: "
            f"{HOW_TO_BUILD.replace('FILE', where)} FOLDER"
        )
    if not folder.exists():
        raise SandboxFault(f"there is no search index at {where!r}: build one with {HOW_TO_BUILD} {where}")
    settings: Any = None
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(path.name for path in folder.iterdir())
        holds = f"it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "it is empty"
        raise SandboxFault(
            f"the folder {where!r} is no search index ({holds}): build one with {HOW_TO_BUILD} FOLDER"
        ) from None
    except (OSError, ValueError) as problem:
        raise SandboxFault(
            f"cannot read {SETTINGS_FILE} of the search index at {where!r} ({problem}): build it again: "
            f"{HOW_TO_BUILD} {where}"
        ) from problem
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise SandboxFault(
            f"{where}/{SETTINGS_FILE} is of something else than a search index: build one with {HOW_TO_BUILD} FOLDER"
        )
    return settings
