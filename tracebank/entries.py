"""Distinct vectors in a FAISS index, the rows that they stand for, and the file that keeps both.

Rows whose vectors are equal share one *entry*: in a graph, vectors that are all alike would be each other's only neighbours,
and nobody would find the way to them or out again. The index brings entries near a query; what they score is counted anew
(`tracebank.flat`).
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import faiss
import numpy as np
import numpy.typing as npt

from tracebank.embed.embedder import Vectors
from tracebank.faults import BankError
from tracebank.flat import Numbers, Pairs, joined, pair_scores, search_flat

IndexedKind = Literal["hnsw", "ivf"]

_LINKS, _EF_CONSTRUCTION, _EF_SEARCH = 32, 200, 128
"""The graph as in the RAPO paper (arXiv 2603.03078, appendix C.3): M, efConstruction, efSearch."""

_EF_FILTERED = 48
"""What is added to efSearch, since filters take the nearest away and those behind count then."""

_PROBES = 64
"""Clusters that an IVF search looks into at least."""

_ROUNDS, _SAMPLE = 10, 64
"""Rounds of clustering, and vectors a cluster that take part in it."""

_PIECE = 1 << 16
"""Vectors that are copied at once."""

_ENOUGH = 16
"""Flat search takes over where more than one in so many entries is wanted: it is not slower there, and exact."""

_MAGIC, _VERSION = b"agent-envs index", 1
_FOOTER = struct.Struct("<16sII4sIQQQdI")
"""The end of the file: magic, version, CRC-32 of all before the footer, kind, dimension, bytes of FAISS, rows, entries,
length of the longest vector, CRC-32 of the footer up to here. Before it: FAISS's part, the rows' entries, the digests."""


@dataclass(frozen=True)
class Entries:
    """Rows that are found through an index. Searching is safe from many threads at once.

    Args:
        kind: "hnsw" or "ivf".
        index: An `IndexRefineFlat`: the entries' vectors as they are, over an index of shortened ones.
        entry: The entry of each row, [rows] int32; entries are numbered in the order of their first rows.
        digests: A digest of each entry's vector, [entries] uint64.
    """

    kind: IndexedKind
    index: Any
    entry: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint64]

    @property
    def vectors(self) -> Vectors:
        """The entries' vectors, [entries, dimension]: FAISS's own memory, which moves when something is added."""
        storage = faiss.downcast_index(self.index.refine_index)
        numbers: Vectors = faiss.rev_swig_ptr(storage.get_xb(), len(self.digests) * self.index.d)
        return numbers.reshape(len(self.digests), self.index.d)

    @cached_property
    def _scored(self) -> Vectors:
        """``vectors`` for searches, which are many; nothing moves while these entries are searched."""
        return self.vectors

    @cached_property
    def _rows(self) -> tuple[Numbers, Numbers]:
        """Rows by entry, and where each entry's rows begin."""
        begins = np.concatenate([[0], np.cumsum(np.bincount(self.entry, minlength=len(self.digests)))])
        return np.argsort(self.entry, kind="stable"), begins

    @cached_property
    def _short(self) -> Any:
        return faiss.downcast_index(self.index.base_index)

    def search(self, queries: Vectors, fetch: int, longest: float) -> Pairs:
        """At least the ``fetch`` best rows of each query (all rows where there are fewer), as far as the index can tell.

        Args:
            queries: [B, dimension], none of them zero.
            fetch: From 1.
            longest: Length that no vector exceeds.
        """
        entries = len(self.digests)
        if fetch * _ENOUGH >= entries:
            return self._expanded(search_flat(self._scored, longest, queries, fetch))
        asked = fetch + 16  # shortened vectors may err at the lower end
        if self.kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(_EF_SEARCH, fetch) + _EF_FILTERED)
        else:
            lists = self._short.nlist
            probes = min(lists, max(_PROBES, lists // 16, 8 * asked * lists // entries))
            params = faiss.SearchParametersIVF(nprobe=probes)
        _, found = self._short.search(queries, asked, params=params)
        whole = found[:, -1] >= 0  # what FAISS does not find it marks with -1, at the end
        query, place = np.repeat(np.flatnonzero(whole), asked), found[whole].ravel()
        parts = [Pairs(query, place, pair_scores(self._scored, place, queries, query))]
        if not whole.all():
            short = np.flatnonzero(~whole)
            rest = search_flat(self._scored, longest, queries[short], fetch)
            parts.append(rest._replace(query=short[rest.query]))
        return self._expanded(joined(parts))

    def _expanded(self, pairs: Pairs) -> Pairs:
        """Every row of each entry in its place."""
        rows, begins = self._rows
        starts = begins[pairs.place]
        counts = begins[pairs.place + 1] - starts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Pairs(pairs.query.repeat(counts), rows[starts.repeat(counts) + within], pairs.score.repeat(counts))

    def outgrown(self, entries: int) -> bool:
        """Whether so many entries need other clusters than there are."""
        return self.kind == "ivf" and _lists(entries) >= 2 * int(self._short.nlist)

    def save(self, path: Path, longest: float) -> None:
        """Writes all in one file.

        Raises:
            OSError: It cannot be written.
        """
        with open(path, "wb") as file:
            written = _Checksum(file.write)
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(written))
            size = file.tell()
            written(self.entry.astype("<i4").tobytes())
            written(self.digests.astype("<u8").tobytes())
            counts = (size, len(self.entry), len(self.digests), longest)
            kind = self.kind.ljust(4).encode()
            footer = _FOOTER.pack(_MAGIC, _VERSION, written.crc32, kind, self.index.d, *counts, 0)[:-4]
            file.write(footer + struct.pack("<I", zlib.crc32(footer)))

    @classmethod
    def load(cls, path: Path, dimension: int) -> tuple[Entries, float]:
        """Reads what `save` wrote.

        Returns:
            The entries, and ``longest``.

        Raises:
            BankError: Not such a file, a damaged one, or one of another dimension.
        """
        try:
            with open(path, "rb") as file:
                kind, longest, (size, rows, entries) = _check(file, path, dimension)
                file.seek(size)
                entry = np.frombuffer(file.read(4 * rows), dtype="<i4").astype(np.int32)
                digests = np.frombuffer(file.read(8 * entries), dtype="<u8").astype(np.uint64)
            index = faiss.read_index(str(path))
        except BankError:
            raise
        except (OSError, RuntimeError) as error:
            raise BankError(f"{path}: expected an index, found what cannot be read ({error})") from error
        loaded = cls(kind, index, entry, digests)
        if index.ntotal != entries or index.d != dimension or len(loaded._rows[1]) != entries + 1:
            raise BankError(f"{path}: expected an index of {entries} vectors, found one of {index.ntotal}")
        return loaded, longest


def absorbed(kind: IndexedKind, tail: Vectors, old: Entries | None) -> Entries:
    """Brings rows into an index.

    Args:
        kind: What it shall be.
        tail: The rows, [n, dimension] without negative zeros. Either there are some, or ``old`` is of another kind.
        old: What they come after. Where it is of this kind and has not outgrown its clusters it is extended, and must not be
            used again; should that fail, only its vectors are still as they were.
    """
    entry, digests, fresh = _distinct(tail, old)
    if old is not None and old.kind == kind and not old.outgrown(len(digests)):
        old.index.add(tail[fresh])
        return Entries(kind, old.index, entry, digests)

    def vectors(places: Numbers) -> Vectors:
        if old is None:
            return tail[fresh[places]]
        known = len(old.digests)
        return np.concatenate([old.vectors[places[places < known]], tail[fresh[places[places >= known] - known]]])

    return Entries(kind, _built(kind, vectors, len(digests), tail.shape[1]), entry, digests)


def _distinct(tail: Vectors, old: Entries | None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64], Numbers]:
    """Finds out which rows are new vectors.

    Returns:
        The entry of every row, old rows and tail; the digests of all entries; the rows of the tail that become entries.
    """
    known = np.empty(0, dtype=np.uint64) if old is None else old.digests
    hashed = b"".join(hashlib.blake2b(vector, digest_size=8).digest() for vector in tail)
    digests = np.concatenate([known, np.frombuffer(hashed, dtype="<u8").astype(np.uint64)])
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    itself = np.arange(len(known), len(digests))
    twin = first[inverse][len(known) :]  # the first of each row's digest: an entry, or a row counted on from the entries
    for rows in np.array_split(np.flatnonzero(twin != itself), 1 + len(tail) // _PIECE):
        is_old = twin[rows] < len(known)
        vectors = np.empty((len(rows), tail.shape[1]), dtype=np.float32)
        vectors[~is_old] = tail[twin[rows][~is_old] - len(known)]
        if old is not None:
            vectors[is_old] = old.vectors[twin[rows][is_old]]
        different = rows[(vectors != tail[rows]).any(axis=1)]
        twin[different] = itself[different]  # one digest for two vectors, which should not happen in a lifetime
    fresh = np.flatnonzero(twin == itself)
    number = np.arange(len(digests))
    number[itself[fresh]] = len(known) + np.arange(len(fresh))
    entry = number[twin].astype(np.int32)
    all_entry = entry if old is None else np.concatenate([old.entry, entry])
    return all_entry, np.concatenate([known, digests[itself[fresh]]]), fresh


def _lists(entries: int) -> int:
    """How many clusters an IVF index of so many entries has."""
    return max(1, min(int(4 * entries**0.5), entries // 39))


def _built(kind: IndexedKind, vectors: Callable[[Numbers], Vectors], count: int, dimension: int) -> Any:
    """A FAISS index of ``count`` vectors, which ``vectors`` gives by their (ascending) places.

    It finds candidates by shortened vectors, which are quicker to read: two bytes a number in a graph, one in clusters,
    whose range of numbers it learns. The vectors themselves stand beside.
    """
    if kind == "hnsw":
        learnt_from = 1  # nothing is learnt, but FAISS asks for it
        shortened = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_bf16, _LINKS, faiss.METRIC_INNER_PRODUCT)
        shortened.hnsw.efConstruction = _EF_CONSTRUCTION
    else:
        lists = _lists(count)
        learnt_from = min(count, _SAMPLE * lists)
        shape = (dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        shortened = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dimension), *shape)
        shortened.cp.niter, shortened.cp.max_points_per_centroid, shortened.cp.min_points_per_centroid = _ROUNDS, _SAMPLE, 1
    refined = faiss.IndexRefineFlat(shortened)
    refined.train(vectors(np.linspace(0, count - 1, learnt_from).astype(np.int64)))
    for start in range(0, count, _PIECE):  # not all at once: there may be little memory for a second copy of so many
        refined.add(vectors(np.arange(start, min(count, start + _PIECE))))
    return refined


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Lets FAISS use so many threads for what it does here; None: as many as before.

    OpenMP keeps the number for each calling thread, so that others are not disturbed.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class _Checksum:
    """Writes, and keeps the CRC-32 of what was written."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self.crc32 = 0

    def __call__(self, data: bytes) -> None:
        self.crc32 = zlib.crc32(data, self.crc32)
        self._write(data)


def _check(file: BinaryIO, path: Path, dimension: int) -> tuple[IndexedKind, float, tuple[int, int, int]]:
    """Reads all of a file before FAISS does, which would trust any number in it.

    Returns:
        Kind, length of the longest vector, and sizes: bytes of FAISS, rows, entries.
    """
    end = file.seek(0, io.SEEK_END) - _FOOTER.size
    if end < 0:
        raise BankError(f"{path}: expected an index, found only {end + _FOOTER.size} bytes")
    file.seek(end)
    footer = file.read(_FOOTER.size)
    magic, version, crc32, kind, found, size, rows, entries, longest, own = _FOOTER.unpack(footer)
    if magic != _MAGIC or own != zlib.crc32(footer[:-4]):
        raise BankError(f"{path}: expected an index, found a file without an index's end: cut off or changed")
    if version != _VERSION:
        raise BankError(f"{path}: expected an index of version {_VERSION}, found {version}: upgrade agent-envs to read it")
    if found != dimension:
        raise BankError(f"{path}: expected vectors of dimension {dimension}, found {found}")
    if end != size + 4 * rows + 8 * entries:
        raise BankError(f"{path}: expected {size + 4 * rows + 8 * entries} bytes before its end, found {end}")
    file.seek(0)
    checksum = 0
    for start in range(0, end, 1 << 20):
        checksum = zlib.crc32(file.read(min(1 << 20, end - start)), checksum)
    if checksum != crc32:
        raise BankError(f"{path}: expected a checksum of {crc32:08x}, found {checksum:08x}: it was changed")
    return "hnsw" if kind == b"hnsw" else "ivf", longest, (size, rows, entries)
