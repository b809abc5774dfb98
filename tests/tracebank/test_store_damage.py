"""Damaged, foreign and half-written banks: a clear error, and nothing made worse."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracebank.faults import BankError
from tracebank.step import StepTrace
from tracebank.store import Manifest, Store

EMPTY = Manifest("hashing v1 of 8", "hashing?dimension=8", 8, "auto")


def steps_of(count: int, length: int = 20) -> list[StepTrace]:
    random = np.random.default_rng(count)
    return [StepTrace(f"task {n}", n, random.bytes(length).hex(), f"value {n}", 1.0, False, "me") for n in range(count)]


def add(store: Store, count: int, length: int = 20) -> None:
    with store.change() as change:
        change.append(steps_of(count, length), np.ones((count, 8), np.float32))


def save_index(path: Path) -> None:
    path.write_bytes(b"an index")


def add_index(store: Store) -> None:
    with store.change() as change:
        change.set_index("hnsw", 3, save_index)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A bank of two shards, of 20 and 3 rows, and an index."""
    store = Store.create(tmp_path / "bank", EMPTY)
    add(store, 20)
    add(store, 3)
    add_index(store)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard(store: Store, number: int = 0) -> Path:
    return store.path / store.snapshot().manifest.shards[number].name


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def overwrite(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def flip_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40:-8] = b"\xff" * 32
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"expected \d+ bytes, found \d+"),
        (lengthen, r"expected \d+ bytes, found \d+"),
        (overwrite, "expected a Parquet file, found"),
        (flip_footer, "expected"),
        (Path.unlink, "expected a shard of this name, found no file"),
    ],
)
def test_a_damaged_shard_is_refused_and_found(store: Store, damage: Callable[[Path], None], message: str) -> None:
    path = shard(store)
    damage(path)
    before = contents(store.path)
    fresh = Store(store.path)
    with pytest.raises(BankError, match=rf"{path.name}: damaged: {message}.*restore it.*python -m tracebank check"):
        fresh.snapshot()
    with pytest.raises(BankError, match=path.name):
        add(fresh, 1)
    assert contents(store.path) == before
    (problem,) = fresh.problems()
    assert (problem.file, problem.mendable) == (path.name, False)
    assert "expected" in problem.what
    assert "found" in problem.what


def test_a_flipped_bit_is_noticed_when_it_is_read(store: Store) -> None:
    path = shard(store)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    (problem,) = Store(store.path).problems()
    assert problem.file == path.name
    assert "CRC-32" in problem.what
    with pytest.raises(BankError, match=rf"{path.name}: damaged"):
        for _ in Store(store.path).snapshot().batches():
            pass


def test_shards_in_each_others_place_are_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "bank", EMPTY)
    with store.change() as change:
        change.append(steps_of(8), np.ones((8, 8), np.float32))
        change.append(steps_of(7), np.ones((7, 8), np.float32))
    one, two = shard(store, 0), shard(store, 1)
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)
    manifest = store.path / "manifest.json"
    record = json.loads(manifest.read_text())
    for number, path in enumerate((one, two)):  # even where their sizes and rows are the same
        record["shards"][number]["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(record))
    with pytest.raises(BankError, match=rf"{one.name}: damaged: .* found what was written as '{two.name}'"):
        Store(store.path).snapshot()
    assert [problem.file for problem in Store(store.path).problems()] == [one.name, two.name]


def test_a_shard_of_another_bank_is_refused(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", Manifest("name", "spec", 4, "auto"))
    with other.change() as change:
        change.append(steps_of(20), np.ones((20, 4), np.float32))
    path = shard(store)
    shutil.copy(shard(other), path)
    manifest = store.path / "manifest.json"
    record = json.loads(manifest.read_text())
    record["shards"][0]["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(record))
    with pytest.raises(
        BankError, match=r"expected the column vector of fixed_size_list.*\[8\], found fixed_size_list.*\[4\]"
    ):
        Store(store.path).snapshot()
    record["shards"][0]["rows"] = 19
    record["dimension"] = 4
    manifest.write_text(json.dumps(record))
    with pytest.raises(BankError, match="expected 19 rows, found 20"):
        Store(store.path).snapshot()


@pytest.mark.parametrize("damage", [Path.unlink, cut, lengthen])
def test_a_broken_index_can_be_mended(store: Store, damage: Callable[[Path], None]) -> None:
    index = store.snapshot().manifest.index
    assert index is not None
    damage(store.path / index.name)
    state = Store(store.path).snapshot()
    assert len(state.steps(range(23))) == 23
    with pytest.raises(BankError, match=rf"{index.name}: damaged: .*found.*`python -m tracebank compact` rebuilds it"):
        state.index_path()
    assert [(problem.file, problem.mendable) for problem in store.problems()] == [(index.name, True)]
    add_index(store)
    assert store.problems() == []


def test_an_index_whose_bytes_changed_is_found(store: Store) -> None:
    index = store.snapshot().manifest.index
    assert index is not None
    overwrite(store.path / index.name)
    (problem,) = store.problems()
    assert problem.file == index.name
    assert problem.mendable
    assert f"expected the CRC-32 {index.crc32:08x}, found" in problem.what


def test_left_overs_are_found_and_removed_and_nothing_else_is(store: Store) -> None:
    ours = ["steps-000099.parquet", "index-000100.faiss", "manifest.json.new"]
    theirs = ["notes.txt", "steps-1.parquet", "my-steps-000099.parquet", "steps-000099.parquet.gz", "index-000100.faiss~"]
    for name in ours + theirs:
        (store.path / name).write_text("half")
    assert [(problem.file, problem.mendable) for problem in store.problems()] == [(name, True) for name in sorted(ours)]
    with store.change():
        pass
    assert store.problems() == []
    assert {path.name for path in store.path.iterdir()} >= set(theirs)


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: record | fields


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {key: value for key, value in record.items() if key != name}


def with_shard(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: record | {"shards": [record["shards"][0] | fields, *record["shards"][1:]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(version=2), "version: expected 1, found 2: written by a later agent-envs, upgrade"),
        (changed(version=0), "version: expected a whole number from 1 up, found 0"),
        (changed(version=True), "version: expected a whole number from 1 up, found True"),
        (without("version"), "version: expected this field, found none"),
        (without("embedder"), "embedder: expected this field, found none"),
        (changed(embedder=""), "embedder: expected text that is not empty, found ''"),
        (changed(embedder=None), "embedder: expected text, found None"),
        (changed(flavour=1), "flavour: expected one of version, embedder, .* found an unknown field"),
        (changed(dimension="8"), "dimension: expected a whole number from 1 up, found '8'"),
        (changed(index_kind="best"), "index_kind: expected one of auto, flat, hnsw, ivf, found 'best'"),
        (changed(index_kind=["auto"]), "index_kind: expected one of auto, flat, hnsw, ivf"),
        (changed(shards={}), "shards: expected a list, found {}"),
        (changed(formats=[1]), r"formats\[0\]: expected text, found 1"),
        (changed(written_by={"pyarrow": 1}), "written_by.pyarrow: expected text, found 1"),
        (changed(next_file=1), "next_file: expected a number above that of steps-000001.parquet, found 1"),
        (with_shard(name="../../secret"), r"shards\[0\].name: expected a file name like .*, found '../../secret'"),
        (with_shard(rows=0), r"shards\[0\].rows: expected a whole number from 1 up, found 0"),
        (with_shard(rows=-3), r"shards\[0\].rows"),
        (with_shard(extra=0), r"shards\[0\].extra: expected one of name, rows, bytes, crc32, found an unknown field"),
        (with_shard(name="steps-000002.parquet"), "expected every file once"),
        (with_shard(rows=1), None),
        (
            lambda record: record | {"index": record["index"] | {"rows": 24}},
            "index.rows: expected at most the 23 of the shards",
        ),
        (lambda record: [record], r"expected an object, found \["),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(
    store: Store, change: Callable[[dict[str, Any]], Any], message: str | None
) -> None:
    path = store.path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    before = contents(store.path)
    if message is None:  # it could be right, were it not for the files
        with pytest.raises(BankError, match="expected 1 rows, found 20"):
            Store(store.path).snapshot()
        return
    with pytest.raises(BankError, match=rf"manifest.json: .*{message}"):
        Store(store.path)
    with pytest.raises(BankError, match=r"manifest\.json"):
        add(store, 1)
    assert contents(store.path) == before
    (problem,) = store.problems()
    assert (problem.file, problem.mendable) == ("manifest.json", False)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_garbage_for_a_manifest_is_refused(store: Store, text: bytes) -> None:
    (store.path / "manifest.json").write_bytes(text)
    before = contents(store.path)
    with pytest.raises(BankError, match=r"manifest\.json: .*expected .* found .*restore"):
        Store(store.path)
    with pytest.raises(BankError):
        add(store, 1)
    assert contents(store.path) == before


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """What a full disk is like: writing beyond so many bytes of a file is an error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1, 300, 1_000, 5_000, 40_000, 300_000])
def test_a_write_that_is_refused_changes_nothing(store: Store, size: int) -> None:
    before = contents(store.path)
    with no_file_above(size), pytest.raises(BankError, match=r"cannot be written: File too large; the bank is as it was"):
        add(store, 3_000, length=200)
    assert contents(store.path) == before
    with no_file_above(1), pytest.raises(BankError, match=r"index-\d+.faiss: cannot be written: File too large"):
        add_index(store)
    with no_file_above(300), pytest.raises(BankError, match="cannot be written"), store.change() as change:
        change.merge()
    with (
        no_file_above(10),
        pytest.raises(BankError, match=r"manifest.json.new: cannot be written"),
        store.change() as change,
    ):
        change.drop_index()
    assert contents(store.path) == before
    add(store, 3_000, length=200)
    assert store.snapshot().manifest.rows == 3_023
    assert store.problems() == []


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mount.stderr.decode().strip()}")
    try:
        store = Store.create(disk / "bank", EMPTY)
        rows, full = 0, ""
        for count in range(20, 1_000):
            try:
                add(store, count, length=100)
            except BankError as error:
                full = str(error)
                break
            rows += count
        assert full.endswith("cannot be written: No space left on device; the bank is as it was before")
        assert rows > 100
        assert store.snapshot().manifest.rows == rows
        assert len(Store(store.path).snapshot().steps(range(rows))) == rows
        assert store.problems() == []
        add(store, 1)
        del store
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_an_error_of_the_callers_own_stays_what_it_is(store: Store) -> None:
    before = contents(store.path)
    with pytest.raises(FileNotFoundError), store.change():
        (store.path / "nothing").read_text()
    assert contents(store.path) == before


def test_a_folder_that_may_not_be_written_is_said(store: Store) -> None:
    (store.path / "lock").unlink()
    (store.path / "lock").mkdir()
    with pytest.raises(BankError, match=r"lock: cannot be written: Is a directory; the bank is as it was before"):
        add(store, 1)
    (store.path / "lock").rmdir()
    assert store.problems() == []  # looking needs no lock where nobody has ever been writing
    assert not (store.path / "lock").exists()
