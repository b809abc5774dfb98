"""What a bank holds, in numbers: counts and distributions.

`stats` gives plain values that JSON can hold; `tracebank.show` makes tables and a picture of them. Everything is exact but
the likeness of tasks, which is taken of a sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from tracebank.embed.embedder import Vectors
from tracebank.index import Kind
from tracebank.nearest import Filters, Found
from tracebank.store import Snapshot

Nearest = Callable[[Vectors, int, Filters], list[Found]]
"""`tracebank.bank.TraceBank.nearest`."""

_SAMPLE = 256
"""Keys whose nearest neighbour in another task is looked for."""

_BINS = 20


def stats(snapshot: Snapshot, kind: Kind, nearest: Nearest) -> dict[str, Any]:
    """Counts and distributions of a bank (`tracebank.bank.TraceBank.stats`). It reads all texts, a batch at a time.

    Args:
        snapshot: The bank's state.
        kind: How its steps are found.
        nearest: Finds them.

    Returns:
        A dictionary of plain values.

        - ``steps``, ``trajectories`` (those with a name), ``tasks`` (ids), ``questions`` (in normalised form),
          ``final`` (steps that ended their trajectory), ``without_question`` (steps that only their task's id keeps from
          their own task) and ``unnamed`` (neither question nor id: nothing does);
        - ``sources``: steps by source, most first; ``environments`` and ``formats``: names;
        - distributions: ``reward`` (of steps), ``trajectory_steps`` (steps a trajectory, of those with a name),
          ``key_characters``, ``value_characters``, ``nearest_other_task`` (cosine of a sample of keys to the nearest key of
          another task). Each is None where there is nothing to count, or has ``count``, ``min``, ``mean``, ``max``, and a
          histogram as ``edges`` and ``counts``, a bin reaching from its edge to before the next, the last one to its end;
        - ``embedder``, ``dimension``, ``index`` (``asked``, ``kind``, ``rows`` it covers), ``shards``, ``bytes``.
    """
    manifest, columns = snapshot.manifest, snapshot.columns()
    steps_of_name: defaultdict[str, int] = defaultdict(int)
    keys: list[npt.NDArray[np.int64]] = []
    values: list[npt.NDArray[np.int64]] = []
    for batch in snapshot.batches():
        names, numbers = batch.column("trajectory").to_pylist(), batch.column("step").to_pylist()
        for name, number in zip(names, numbers, strict=True):
            if name:  # not a count of rows: steps that trajectories share are kept once
                steps_of_name[name] = max(steps_of_name[name], number + 1)
        for lengths, column in ((keys, "key"), (values, "value")):
            lengths.append(pc.utf8_length(batch.column(column)).to_numpy(zero_copy_only=False).astype(np.int64))
    has_question = np.array([bool(text) for text in columns.questions], dtype=bool)[columns.question]
    has_id = np.array([bool(text) for text in columns.tasks], dtype=bool)[columns.task]
    files = (*manifest.shards, *([manifest.index] if manifest.index else []))
    steps_each = np.bincount(columns.source, minlength=len(columns.sources)).tolist()
    by_source = sorted(zip(columns.sources, steps_each, strict=True), key=lambda pair: -pair[1])
    return {
        "steps": manifest.rows,
        "trajectories": len(steps_of_name),
        "tasks": sum(map(bool, columns.tasks)),
        "questions": sum(map(bool, columns.questions)),
        "final": int(columns.final.sum()),
        "without_question": int((~has_question).sum()),
        "unnamed": int((~has_question & ~has_id).sum()),
        "sources": dict(by_source),
        "environments": list(manifest.environments),
        "formats": list(manifest.formats),
        "reward": _distribution(columns.reward),
        "trajectory_steps": _distribution(np.fromiter(steps_of_name.values(), dtype=np.int64)),
        "key_characters": _distribution(np.concatenate(keys or [np.zeros(0, np.int64)]), growing=True),
        "value_characters": _distribution(np.concatenate(values or [np.zeros(0, np.int64)]), growing=True),
        "nearest_other_task": _distribution(_nearest_other_task(snapshot, nearest, np.flatnonzero(has_question | has_id))),
        "embedder": manifest.embedder,
        "dimension": manifest.dimension,
        "index": {
            "asked": manifest.index_kind,
            "kind": kind,
            "rows": manifest.index.rows if manifest.index else 0,
        },
        "shards": len(manifest.shards),
        "bytes": sum(file.bytes for file in files),
    }


def _nearest_other_task(snapshot: Snapshot, nearest: Nearest, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The cosine of keys, evenly taken from the given rows, to the nearest key of another task, where there is one."""
    if not len(rows):
        return np.zeros(0)
    columns = snapshot.columns()
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64))]
    vectors = np.concatenate([snapshot.vectors(row, row + 1) for row in sample.tolist()])
    running = [
        [name for name in (columns.tasks[columns.task[row]], columns.questions[columns.question[row]]) if name]
        for row in sample.tolist()
    ]
    found = nearest(vectors, 1, Filters(exclude_task=running, exclude_final=False))
    return np.array([one.scores[0] for one in found if one.scores], dtype=np.float64)


def _distribution(values: npt.NDArray[Any], *, growing: bool = False) -> dict[str, Any] | None:
    """Least, mean, greatest, and a histogram.

    Args:
        values: Numbers, [n].
        growing: Let the bins grow (edges 0, 1, 2, 3, 4, 6, 8, 12, 16, ...), for lengths, of which few are very large.
    """
    if not len(values):
        return None
    least, greatest = values.min().item(), values.max().item()
    if growing:
        powers = 2 ** np.arange(int(greatest).bit_length() + 1)
        edges = np.unique([0, *powers, *(powers[1:] * 3 // 2)])
        edges = edges[: np.searchsorted(edges, greatest, side="right") + 1]
    elif np.issubdtype(values.dtype, np.integer):  # whole numbers in every bin, as many in each
        width = (greatest - least) // _BINS + 1
        edges = np.arange(least, greatest + width + 1, width)
    else:
        edges = np.histogram_bin_edges(values, bins=_BINS)
    counts, edges = np.histogram(values, bins=edges)
    return {
        "count": len(values),
        "min": least,
        "mean": float(np.mean(values, dtype=np.float64)),
        "max": greatest,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }
