"""What an import yields, and the account of what it did not yield."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tracebank.importers.form import Context, Dropped, Form, FormatError
from tracebank.importers.records import kind_of, records

T = TypeVar("T")

_PATIENCE = 100
"""So many records at the start of a file may look like nothing of the format before the file is refused."""


@dataclass(frozen=True)
class Labels:
    """What is said about all records of an import; see `tracebank.importers.read`."""

    source: str | None
    environment: str
    reward: float
    reward_field: str | None


class Imported(Generic[T]):
    """The steps or trajectories of some files, read one at a time as it is iterated over.

    Each iteration reads the files again and counts afresh.

    Attributes:
        read: Records read so far.
        kept: Steps or trajectories yielded so far.
        dropped: Records that could not be used, by reason.
        repaired: Records in which something was repaired, by what it was.
        examples: For each reason the first such record: file, place, and what was found.
    """

    def __init__(self, form: Form[T], paths: Sequence[Path], labels: Labels) -> None:
        for path in paths:
            kind_of(path)
            with open(path, "rb"):
                pass  # a file that is missing should be told before the first is read
        self._form = form
        self._paths = tuple(paths)
        self._labels = labels
        self.read = 0
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def __iter__(self) -> Iterator[T]:
        self.read = self.kept = 0
        for account in (self.dropped, self.repaired, self.examples):
            account.clear()
        for path in self._paths:
            yield from self._file(path)

    def _file(self, path: Path) -> Iterator[T]:
        fits = False
        foreign: list[Any] = []  # records at the start of the file that look like nothing of the format
        for place, value, problem in records(path, self._form.ignored):
            self.read += 1
            if problem or not self._form.fits(value):
                self._drop(problem or f"no {self._form.name} record", f"{path}, {place}: {reprlib.repr(value)}")
                if not fits:
                    foreign.append(value)
                    if len(foreign) == _PATIENCE:
                        raise self._refusal(path, foreign[0])
                continue
            fits = True
            context = self._context(path)
            try:
                found = self._form.read(value, context)
            except Dropped as error:
                self._drop(error.reason, f"{path}, {place}: {error}")
            except (
                TypeError,
                ValueError,
                RecursionError,
            ) as error:  # what a step refuses, or JSON that is nested too deeply
                self._drop("a field that cannot be kept", f"{path}, {place}: {error}")
            else:
                self.repaired.update(context.repaired.keys())
                self.kept += len(found)
                yield from found
        if foreign and not fits:
            raise self._refusal(path, foreign[0])

    def _context(self, path: Path) -> Context:
        labels = self._labels
        source = labels.source
        if source is None:  # steps say themselves where they are from
            source = "" if self._form.name == "steps" else path.name.partition(".")[0] or path.name
        return Context(source, labels.environment, labels.reward, labels.reward_field)

    def _drop(self, reason: str, example: str) -> None:
        self.dropped[reason] += 1
        self.examples.setdefault(reason, example)

    def _refusal(self, path: Path, record: object) -> FormatError:
        if isinstance(record, dict):
            found = f"objects with the fields {', '.join(map(str, list(record)[:12])) or '(none)'}"
            if {"turns", "policy_version"} <= record.keys():
                found += ": trajectories, which need no import (python -m tracebank build)"
        else:
            found = reprlib.repr(record)
        return FormatError(f"{path}: expected {self._form.name} records, {self._form.expected}; found {found}")
