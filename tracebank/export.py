"""Steps as files and data sets that others can read: JSON lines, Parquet, Hugging Face `datasets`.

All three hold the fields of a `StepTrace` under their own names, and bring them back unchanged to the bit
(``tracebank.importers.read("steps", ...)``, `from_dataset`). ``datasets.load_dataset("parquet", data_files=...)`` and
``"json"`` read the files as well. Parquet is the safer: the JSON loader of ``datasets`` takes a column in which every text
looks like a date for dates, which `from_dataset` then refuses.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tracebank.step import StepTrace

if TYPE_CHECKING:
    import datasets

_FIELDS = tuple(field.name for field in dataclasses.fields(StepTrace))
_TYPES = {"step": pa.int32(), "reward": pa.float64(), "final": pa.bool_()}
_SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, pa.string()), nullable=False) for name in _FIELDS])

_ROWS = 1_000
_CHARACTERS = 1 << 24


def export_steps(
    steps: Iterable[StepTrace],
    path: str | PathLike[str],
    *,
    vectors: Iterable[npt.NDArray[np.float32]] | None = None,
    overwrite: bool = False,
) -> int:
    """Writes steps to a file, which appears under its name once it is whole.

    Args:
        steps: Any number; only some are in memory at a time.
        path: A name that ends in ``.jsonl`` or ``.parquet``.
        vectors: For Parquet: the vector of each step, [dimension], as the column ``vector``.
        overwrite: Whether a file of that name may be replaced.

    Returns:
        How many steps were written.

    Raises:
        ValueError: Another suffix, vectors in JSON lines, or not one vector a step.
        FileExistsError: There is such a file.
        OSError: It cannot be written; what was there before still is.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .parquet")
    if vectors is not None and path.suffix != ".parquet":
        raise ValueError(f"{path}: expected a name that ends in .parquet, since only such files hold vectors")
    if not overwrite and path.exists():
        raise FileExistsError(f"{path}: expected no such file, found one: remove it, or say that it may be overwritten")
    with _whole(path) as unfinished:
        return _write_lines(steps, unfinished) if path.suffix == ".jsonl" else _write_parquet(steps, unfinished, vectors)


def to_dataset(steps: Iterable[StepTrace]) -> datasets.Dataset:
    """Steps as a Hugging Face data set, in memory; for more than that, export Parquet and let ``datasets`` map it.

    Raises:
        ImportError: The library ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data sets need the Hugging Face library: pip install 'agent-envs[datasets]'") from error
    batches = [_batch(chunk, _SCHEMA) for chunk in _chunks(steps)]
    return datasets.Dataset(pa.Table.from_batches(batches or [_batch([], _SCHEMA)]))  # a table of no batch is refused


def from_dataset(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterator[StepTrace]:
    """The steps of a Hugging Face data set, which may be streamed.

    Args:
        dataset: One split, with a column for each field of `StepTrace`; those with a default may be missing, and a column
            ``vector`` is passed over.

    Raises:
        ValueError: Columns that are missing or that steps do not have, or a value that no step may have.
        TypeError: A value of the wrong type, or no single split.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, dict):
        raise TypeError(
            f"expected one split of a data set, found {', '.join(columns)}: choose one, as in data[{next(iter(columns))!r}]"
        )
    if columns is not None:
        needed = [field.name for field in dataclasses.fields(StepTrace) if field.default is dataclasses.MISSING]
        missing = [name for name in needed if name not in columns]
        unknown = [name for name in columns if name not in (*_FIELDS, "vector")]
        if missing or unknown:
            found = [*(f"no {name}" for name in missing), *(f"a column {name!r}" for name in unknown)]
            raise ValueError(f"expected a data set with the columns {', '.join(_FIELDS)}; found {', '.join(found)}")
        dataset = dataset.select_columns([name for name in columns if name in _FIELDS])
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
        for row in table.to_pylist():
            yield StepTrace(**row)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when all went well and is gone when not."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder {path.parent} to write it to, found none")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_lines(steps: Iterable[StepTrace], path: Path) -> int:
    count = 0
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for step in steps:
            file.write(json.dumps({name: getattr(step, name) for name in _FIELDS}) + "\n")
            count += 1
    return count


def _write_parquet(steps: Iterable[StepTrace], path: Path, vectors: Iterable[npt.NDArray[np.float32]] | None) -> int:
    rows = None if vectors is None else iter(vectors)
    count, writer = 0, None
    try:
        for chunk in _chunks(steps):
            beside = None if rows is None else _vectors(rows, len(chunk), count)
            if writer is None:
                schema = _SCHEMA if beside is None else _SCHEMA.append(pa.field("vector", beside.type, nullable=False))
                writer = pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_batch(_batch(chunk, writer.schema, beside))
            count += len(chunk)
        if rows is not None and next(rows, None) is not None:
            raise ValueError(f"vectors: expected one for each of {count} steps, found more")
        if writer is None:
            writer = pq.ParquetWriter(path, _SCHEMA, compression="zstd")
    finally:
        if writer is not None:
            writer.close()
    return count


def _vectors(rows: Iterator[npt.NDArray[np.float32]], count: int, before: int) -> pa.FixedSizeListArray:
    taken = [row for _, row in zip(range(count), rows, strict=False)]
    if len(taken) < count:
        raise ValueError(f"vectors: expected one a step, found {before + len(taken)} for more steps than that")
    together = np.asarray(taken, dtype=np.float32)
    if together.ndim != 2:
        raise ValueError(f"vectors: expected each to be a row of numbers, found the shape {together.shape[1:]}")
    return pa.FixedSizeListArray.from_arrays(pa.array(together.ravel()), together.shape[1])


def _chunks(steps: Iterable[StepTrace]) -> Iterator[list[StepTrace]]:
    chunk: list[StepTrace] = []
    characters = 0
    for step in steps:
        chunk.append(step)
        characters += len(step.key) + len(step.value) + len(step.question)
        if len(chunk) == _ROWS or characters > _CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _batch(steps: list[StepTrace], schema: Any, vectors: pa.FixedSizeListArray | None = None) -> pa.RecordBatch:
    columns = [pa.array([getattr(step, field.name) for step in steps], field.type) for field in _SCHEMA]
    return pa.RecordBatch.from_arrays(columns if vectors is None else [*columns, vectors], schema=schema)
