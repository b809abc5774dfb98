"""Tasks from files of questions and gold answers, in the forms in which the usual data sets come.

========================== ===================================================================================
GSM8K, and most others     JSON lines: ``{"question": ..., "answer": ...}``, the answer after ``####`` if there
FlashRAG, Search-R1        JSON lines: ``{"id": ..., "question": ..., "golden_answers": [...]}``
HotpotQA, 2WikiMultihopQA  one JSON array: ``[{"_id": ..., "question": ..., "answer": ..., "type": ...}, ...]``
MuSiQue                    JSON lines: ``{"id": ..., "question": ..., "answer": ..., "answer_aliases": [...]}``
========================== ===================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_envs.task import SPLITS, Task, TaskSource, UnknownTask, split_of

_GOLDS = ("golden_answers", "answers", "answer")  # the first that a question has
_ALIASES = "answer_aliases"
_ABOUT = ("id", "_id", "type", "level")  # kept as metadata
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_SOLID = re.compile(r"[^ \t\r\n]")


class BrokenTaskFile(ValueError):
    """A file of tasks does not hold what it should."""

    def __init__(self, path: str | Path, line: int, expected: str, found: str) -> None:
        super().__init__(f"{path}:{line}: expected {expected}, found {found}")


class JsonlTasks(TaskSource):
    """Questions from a file: one JSON object a line, or one JSON array of objects.

    The gold answers are those under ``"golden_answers"``, or else ``"answers"``, or else ``"answer"``, each a text, a number
    or a list of them, and those under ``"answer_aliases"``. Where ``"answer"`` is a text whose last line begins with
    ``####``, the gold answer is what follows there, as in GSM8K. An id, type and level become the task's metadata.

    Splits are those of several files, or an object's own ``"split"``, or else by the question's content as for generated
    tasks. Everything is read and checked at once; blank lines are passed over.

    Args:
        files: The path of a file, or one path a split.
        name: Short name, the start of every task id; the file's own if empty.

    Raises:
        BrokenTaskFile: A question is not as expected, or a file has none.
        OSError: A file cannot be read.
    """

    def __init__(self, files: str | Path | Mapping[str, str | Path], name: str = "") -> None:
        by_split = dict(files) if isinstance(files, Mapping) else {"": files}
        self.name = name or Path(next(iter(by_split.values()))).stem
        self._tasks: dict[str, Task] = {}
        self._ids: dict[str, list[str]] = {}
        for split, path in by_split.items():
            for number, line, row in _read_rows(Path(path)):
                task = self._task(row, path, number, line, split)
                self._tasks[task.id] = task
                self._ids.setdefault(split or row.get("split") or split_of(task.question), []).append(task.id)
        self.splits = tuple(sorted(self._ids, key=lambda split: (SPLITS.index(split) if split in SPLITS else 9, split)))

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws a task of the split, all alike."""
        ids = self.ids(split)
        return self._tasks[ids[int(rng.integers(len(ids)))]]

    def get(self, task_id: str) -> Task:
        """The task of a line, or of a place in the array, from 1 on.

        Ids read ``NAME:NUMBER``, with the split in between where there are several files.
        """
        if task_id not in self._tasks:
            raise UnknownTask(f"tasks {self.name!r} have no task {task_id!r}; ids read like {next(iter(self._tasks))!r}")
        return self._tasks[task_id]

    def ids(self, split: str) -> Sequence[str]:
        """The ids of a split in the order of the file."""
        if split not in self._ids:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(self.splits)}, found {split!r}")
        return tuple(self._ids[split])

    def _task(self, row: Mapping[str, Any], path: str | Path, number: int, line: int, split: str) -> Task:
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise BrokenTaskFile(path, line, 'a text under "question"', _kind(row, "question"))
        if not isinstance(row.get("split", ""), str):
            raise BrokenTaskFile(path, line, 'a name under "split"', _kind(row, "split"))
        about = {name.strip("_"): row[name] for name in _ABOUT if isinstance(row.get(name), str | int)}
        return Task(":".join(filter(None, (self.name, split, str(number)))), question, _golds(row, path, line), about)


def _read_rows(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The number of each object (its line, or its place in the array), the line that it begins in, and the object."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BrokenTaskFile(path, line, "UTF-8", f"byte {content[error.start]:#04x}") from error
    line = 0
    for number, line, row in _read_array(path, text) if text.lstrip().startswith("[") else _read_lines(path, text):
        if not isinstance(row, dict):
            raise BrokenTaskFile(path, line, "a JSON object", type(row).__name__)
        yield number, line, row
    if not line:
        found = "an empty array" if text.strip() else "an empty file"
        raise BrokenTaskFile(path, 1, "a JSON object a line, or an array of them", found)


def _read_lines(path: Path, text: str) -> Iterator[tuple[int, int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BrokenTaskFile(path, number, "a JSON object", f"{line[:60]!r} ({error})") from error
            yield number, number, row


def _read_array(path: Path, text: str) -> Iterator[tuple[int, int, Any]]:
    """Object by object, since an array of questions with all their paragraphs would fill the memory."""
    decoder = json.JSONDecoder()
    start = _next(text, text.index("[") + 1)
    number, line, counted = 0, 1, 0
    more = not text.startswith("]", start)
    end = start
    while more:
        number, line, counted = number + 1, line + text.count("\n", counted, start), start
        try:
            row, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            found = f"{_excerpt(text, start)} ({error})"
            raise BrokenTaskFile(path, line, f"a JSON object as number {number} of the array", found) from error
        yield number, line, row
        end = _next(text, end)
        more = text.startswith(",", end)
        start = _next(text, end + 1)
    rest = _next(text, end + 1) if text.startswith("]", end) else end
    if rest < len(text) or not text.startswith("]", end):
        expected = f"a comma, or ] and no more, after number {number} of the array"
        raise BrokenTaskFile(path, text.count("\n", 0, rest) + 1, expected, _excerpt(text, rest))


def _next(text: str, at: int) -> int:
    """Where the next character stands that is no white space."""
    match = _SOLID.search(text, at)
    return match.start() if match else len(text)


def _excerpt(text: str, at: int) -> str:
    return repr(text[at : at + 60]) if at < len(text) else "the end of the file"


def _golds(row: Mapping[str, Any], path: str | Path, line: int) -> tuple[str, ...]:
    main = next((key for key in _GOLDS if key in row), "answer")
    golds: list[str] = []
    for key in [main, _ALIASES] if _ALIASES in row else [main]:
        value = row.get(key)
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, bool) or not isinstance(text, str | int | float) for text in texts):
            raise BrokenTaskFile(path, line, f'a text or a number under "{key}", or a list of them', _kind(row, key))
        golds += [_final(value)] if key == "answer" and isinstance(value, str) else [str(text).strip() for text in texts]
    if not any(golds):
        raise BrokenTaskFile(path, line, f'a gold answer under "{main}", after #### or as a whole', _kind(row, main))
    return tuple(dict.fromkeys(filter(None, golds)))


def _final(answer: str) -> str:
    """What follows ``####`` in the last line, without thousands separators, or the whole answer where nothing does."""
    answer = answer.strip()
    last = answer.rpartition("\n")[2]
    return _THOUSANDS.sub("", last.removeprefix("####")).strip() if last.startswith("####") else answer


def _kind(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return f"no such key among {sorted(row)}"
    return f"{type(row[key]).__name__} {row[key]!r}"[:80]
