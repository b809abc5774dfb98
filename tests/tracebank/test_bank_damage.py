"""What is wrong with a bank is said, found and, where nothing is lost, mended; and nothing gets worse by looking."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_store_damage import contents, cut, no_file_above, overwrite

from tracebank import BankError, StepTrace, TraceBank

COUNT = 300


def step(number: int, word: str = "key") -> StepTrace:
    return StepTrace(f"t{number}", 1, f"{word} {number}", f"value {number}", 1.0, False, "me", question=f"q{number}")


def made(path: Path, word: str = "key") -> Path:
    """A bank of two shards with an HNSW index over all but its last step."""
    with TraceBank.create(path, index="hnsw") as bank:
        bank.add([step(number, word) for number in range(COUNT)])
        bank.compact()
        bank.add([step(COUNT, word)])
    return path


def index_of(path: Path) -> Path:
    (file,) = path.glob("index-*.faiss")
    return file


def holds_everything(path: Path) -> None:
    with TraceBank.open(path) as bank:
        assert bank.check() == []
        assert [hits[0].id for hits in bank.query([f"key {number}" for number in range(COUNT + 1)], k=1)] == list(
            range(COUNT + 1)
        )


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_bank_whose_index_is_broken_says_how_to_mend_it(tmp_path: Path, damage: Callable[[Path], None]):
    path = made(tmp_path / "bank")
    damage(index_of(path))
    before = contents(path)
    with pytest.raises(BankError, match=r"index-\d+\.faiss: .*compact"):
        TraceBank.open(path)
    assert contents(path) == before
    with TraceBank.open(path, use_index=False) as bank:
        assert bank.query(["key 7"], k=1)[0][0].id == 7  # searched flat
        assert [problem.mendable for problem in bank.check()] == [True]
        bank.compact()
    holds_everything(path)


def test_an_index_with_changed_bytes_is_refused(tmp_path: Path):
    path = made(tmp_path / "bank")
    overwrite(index_of(path))
    with pytest.raises(BankError, match=r"index-\d+\.faiss: .*compact"):
        TraceBank.open(path)
    with TraceBank.open(path, use_index=False) as bank:
        bank.compact()
    holds_everything(path)


def test_a_sound_index_of_other_steps_is_found_and_mended(tmp_path: Path):
    path, other = made(tmp_path / "bank"), made(tmp_path / "other", word="another word")
    index_of(path).write_bytes(index_of(other).read_bytes())
    with TraceBank.open(path) as bank:  # whole in itself, of the right size
        (problem,) = bank.check()
        assert problem.mendable
        assert "CRC-32" in problem.what
        bank.compact()
    holds_everything(path)


def test_an_index_that_disagrees_with_the_shards_is_found_even_if_the_manifest_knows_it(tmp_path: Path):
    path, other = made(tmp_path / "bank"), made(tmp_path / "other", word="another word")
    index_of(path).write_bytes(index_of(other).read_bytes())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["index"]["crc32"] = json.loads((other / "manifest.json").read_text())["index"]["crc32"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with TraceBank.open(path) as bank:
        (problem,) = bank.check()
        assert problem.mendable
        assert "expected the vector of step 0 as its shard holds it" in problem.what
        bank.compact()
    holds_everything(path)


def test_an_index_of_fewer_steps_than_the_manifest_says_is_refused(tmp_path: Path):
    path = made(tmp_path / "bank")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["index"]["rows"] = COUNT - 1
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BankError, match=r"expected an index of 299 steps, found one of 300; .*compact"):
        TraceBank.open(path)


def test_a_truncated_shard_is_refused_and_nothing_is_touched(tmp_path: Path):
    path = made(tmp_path / "bank")
    shard = sorted(path.glob("steps-*.parquet"))[0]
    cut(shard)
    before = contents(path)
    for use_index in (True, False):
        with pytest.raises(BankError, match=rf"{shard.name}: .*expected \d+ bytes, found"):
            TraceBank.open(path, use_index=use_index)
    assert contents(path) == before


def test_steps_that_found_no_room_are_not_there_and_the_bank_goes_on(tmp_path: Path):
    path = made(tmp_path / "bank")
    with TraceBank.open(path) as bank:
        with no_file_above(100), pytest.raises(BankError, match="cannot be written: File too large; the bank is as it was"):
            bank.add([step(COUNT + 1)])
        assert len(bank) == COUNT + 1
        assert bank.query(["key 7"], k=1)[0][0].id == 7
        assert bank.add([step(COUNT + 1)]) == range(COUNT + 1, COUNT + 2)
        with no_file_above(3000), pytest.raises(BankError, match="cannot be written"):
            bank.compact(rebuild=True)
        assert bank.query([f"key {COUNT + 1}"], k=1)[0][0].id == COUNT + 1
    with TraceBank.open(path) as bank:
        assert bank.check() == []
        assert len(bank) == COUNT + 2


def test_an_index_that_found_no_room_leaves_the_steps_that_were_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("tracebank.bank.FLAT_ROWS", 10)
    path = made(tmp_path / "bank")
    with TraceBank.open(path) as bank:
        with no_file_above(index_of(path).stat().st_size):
            ids = bank.add([step(number) for number in range(COUNT + 1, COUNT + 101)])
        assert "the index was not brought up to date" in caplog.text
        assert [hits[0].id for hits in bank.query([f"key {number}" for number in ids], k=1)] == list(ids)
    with TraceBank.open(path) as bank:
        assert bank.check() == []
        assert bank.query(["key 350"], k=1)[0][0].id == 350


def test_an_embedder_that_is_gone_is_named(tmp_path: Path):
    path = made(tmp_path / "bank")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= {"embedder": "policy:abc", "embedder_spec": f"policy:{tmp_path / 'gone'}"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with (
        TraceBank.open(path) as bank,
        pytest.raises(BankError, match=r"its embedder policy:abc cannot be loaded from 'policy:.*gone'"),
    ):
        bank.query(["key"])
    with TraceBank.open(path) as bank:
        assert len(bank.search(np.zeros((1, 128), np.float32))[0]) == 3  # vectors need no embedder
