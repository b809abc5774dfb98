"""Steps as Arrow tables: the columns of a shard, and how rows are cut into row groups.

A row group is the least that can be read of a shard, so it is small: a query reads a few rows from anywhere. It is bounded
in rows and in bytes; a row with texts beyond the bound has a group to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracebank.embed.embedder import Vectors
from tracebank.step import TEXTS, StepTrace, normalise_question

GROUP_ROWS = 128
"""Rows in a row group. Reading one costs 0.6 ms then, and the footer of a shard is 1 % of it."""

GROUP_BYTES = 2**20
"""Bytes of text in a row group, unless one row alone has more."""

LARGEST_TEXT = 2**26
"""Characters in a text. Parquet cannot hold a text of 2 GiB, and normalising may lengthen one."""

STEP_FIELDS = tuple(field.name for field in fields(StepTrace))
NORMALISED = "question_normalised"
VECTOR = "vector"

REPEATED = ("task_id", "source", "question", NORMALISED, "environment", "format")
"""Columns with few different texts: each is written once a row group, and read as numbers into those."""

_TYPES = {"step": pa.int32(), "reward": pa.float64(), "final": pa.bool_()}


def schema(dimension: int) -> pa.Schema:
    """The columns of a shard."""
    columns = [(name, _TYPES.get(name, pa.string())) for name in (*STEP_FIELDS, NORMALISED)]
    return pa.schema([*columns, (VECTOR, pa.list_(pa.float32(), dimension))])


def tables(steps: Sequence[StepTrace], vectors: Vectors) -> Iterator[pa.Table]:
    """Steps and their vectors, [n, dimension], as tables of bounded size.

    Raises:
        ValueError: A text that is too long.
    """
    dimension = vectors.shape[1]
    normalised: dict[str, str] = {}  # the steps of a task share their question
    for start, stop in _slices(steps):
        part = steps[start:stop]
        columns = {name: list(map(attrgetter(name), part)) for name in STEP_FIELDS}
        for question in columns["question"]:
            if question not in normalised:
                normalised[question] = normalise_question(question)
        columns[NORMALISED] = [normalised[question] for question in columns["question"]]
        arrays = [pa.array(values, type=_TYPES.get(name, pa.string())) for name, values in columns.items()]
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors[start:stop].ravel()), dimension))
        yield pa.Table.from_arrays(arrays, schema=schema(dimension))


def _slices(steps: Sequence[StepTrace]) -> Iterator[tuple[int, int]]:
    """Where to cut, so that few characters are converted at a time: an Arrow array of texts ends at 2 GiB."""
    start = characters = 0
    for row, step in enumerate(steps):
        lengths = [len(getattr(step, name)) for name in TEXTS]
        if max(lengths) > LARGEST_TEXT:
            raise ValueError(f"step {row}: expected texts of at most {LARGEST_TEXT} characters, found one of {max(lengths)}")
        if row > start and (row - start >= GROUP_ROWS or characters + sum(lengths) > GROUP_BYTES):
            yield start, row
            start, characters = row, 0
        characters += sum(lengths)
    if start < len(steps):
        yield start, len(steps)


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, in tables that are a row group each."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        ends = np.cumsum(text_bytes(table))
        start = 0
        while start < len(table):
            before = ends[start - 1] if start else 0
            fits = int(np.searchsorted(ends, before + GROUP_BYTES - size, side="right")) - start
            take = min(fits, GROUP_ROWS - rows)
            if take < 1 and not rows:
                take = 1
            if take > 0:
                held.append(table.slice(start, take))
                rows += take
                size += int(ends[start + take - 1] - before)
                start += take
            if start < len(table) or rows == GROUP_ROWS:
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def text_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Bytes of text in each row, [n]."""
    total = np.zeros(len(table), np.int64)
    for name in (*TEXTS, NORMALISED):
        total += pc.binary_length(table[name]).to_numpy()
    return total


def plain(table: pa.Table) -> pa.Table:
    """The same rows with texts as texts, not as numbers into a list of them."""
    for position, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(position, table.field(position).name, column.cast(pa.string()))
    return table


def vectors_of(column: pa.ChunkedArray, dimension: int) -> Vectors:
    """A column of vectors as an array, [n, dimension]."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, dimension) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, dimension), np.float32)
