"""Steps go out to files and data sets, and come back as they were."""

from __future__ import annotations

import builtins
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracebank.export import export_steps, from_dataset, to_dataset
from tracebank.importers import read
from tracebank.step import StepTrace

datasets = pytest.importorskip("datasets")

texts = st.text(st.characters(exclude_categories=["Cs"]))
step_traces = st.builds(
    StepTrace,
    task_id=texts,
    step=st.integers(0, 2**31 - 1),
    key=texts,
    value=texts,
    reward=st.floats(allow_nan=False, allow_infinity=False),
    final=st.booleans(),
    source=texts,
    question=texts,
    environment=texts,
    format=texts,
    trajectory=texts,
)
STEPS = [
    StepTrace(
        "t\0", 0, "Où?\n\u2028", "<think>\U0001f600</think>", -0.0, False, "s", environment="E", format="tag", trajectory="x"
    ),
    StepTrace("t", 7, "", "", 5e-324, True, "", "q"),
    StepTrace("t", 1, "k" * 100_000, "v\r\n", 0.1 + 0.2, False, "s"),
]


def bits(steps: list[StepTrace]) -> list[tuple[StepTrace, bytes]]:
    """What makes steps equal to the bit: -0.0 equals 0.0, but is not the same."""
    return [(step, struct.pack("d", step.reward)) for step in steps]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files_bring_steps_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"steps{suffix}"
    assert export_steps(iter(STEPS), path) == 3
    assert bits(list(read("steps", path))) == bits(STEPS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step_traces, max_size=5))
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_any_steps_come_back_from_files_and_data_sets(tmp_path: Path, suffix: str, steps: list[StepTrace]) -> None:
    path = tmp_path / f"steps{suffix}"
    export_steps(steps, path, overwrite=True)
    assert bits(list(read("steps", path))) == bits(steps)
    assert bits(list(from_dataset(to_dataset(steps)))) == bits(steps)


def test_more_steps_than_one_piece_holds(tmp_path: Path) -> None:
    many = [StepTrace(f"t{n}", n, f"k{n}", "v" * (n % 7), n / 3, n % 5 == 0, "s") for n in range(2_500)]
    vectors = np.arange(2_500 * 3, dtype=np.float32).reshape(-1, 3)
    path = tmp_path / "steps.parquet"
    assert export_steps(many, path, vectors=vectors) == 2_500
    assert list(read("steps", path)) == many
    assert list(from_dataset(to_dataset(many))) == many
    stored = pq.read_table(path).column("vector").combine_chunks()
    assert np.array_equal(stored.flatten().to_numpy().reshape(-1, 3), vectors)


@pytest.mark.parametrize(("suffix", "builder"), [(".jsonl", "json"), (".parquet", "parquet")])
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_what_was_exported(tmp_path: Path, suffix: str, builder: str, streaming: bool) -> None:
    path = tmp_path / f"steps{suffix}"
    export_steps(STEPS, path)
    loaded = datasets.load_dataset(
        builder, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"), streaming=streaming
    )
    assert bits(list(from_dataset(loaded))) == bits(STEPS)


def test_texts_that_a_loader_took_for_dates_are_refused(tmp_path: Path) -> None:
    dated = [StepTrace("2024-01-01", 0, "2024-01-01T00:00:00", "v", 1.0, True, "s")]
    path = tmp_path / "steps.jsonl"
    export_steps(dated, path)
    assert list(read("steps", path)) == dated
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TypeError, match="task_id: expected text, found datetime"):
        list(from_dataset(loaded))


def test_datasets_loads_vectors_too(tmp_path: Path) -> None:
    path = tmp_path / "steps.parquet"
    export_steps(STEPS, path, vectors=np.eye(3, dtype=np.float32))
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["vector"][1] == [0.0, 1.0, 0.0]
    assert list(from_dataset(loaded)) == STEPS


def test_a_data_set_saved_by_its_own_library_can_be_imported(tmp_path: Path) -> None:
    to_dataset(STEPS).to_parquet(str(tmp_path / "steps.parquet"))
    assert bits(list(read("steps", tmp_path / "steps.parquet"))) == bits(STEPS)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_no_steps_are_a_file_and_a_data_set_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"steps{suffix}"
    assert export_steps([], path) == 0
    assert list(read("steps", path)) == []
    assert list(from_dataset(to_dataset([]))) == []


def failing() -> Iterator[StepTrace]:
    yield from STEPS
    raise RuntimeError("the source broke")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_was_there_stays_when_writing_fails(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"steps{suffix}"
    export_steps(STEPS[:1], path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the source broke"):
        export_steps(failing(), path, overwrite=True)
    with pytest.raises(FileExistsError, match="found one"):
        export_steps(STEPS, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    export_steps(STEPS, path, overwrite=True)
    assert list(read("steps", path)) == STEPS


def test_exports_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.parquet"):
        export_steps(STEPS, tmp_path / "steps.csv")
    with pytest.raises(ValueError, match="only such files hold vectors"):
        export_steps(STEPS, tmp_path / "steps.jsonl", vectors=np.eye(3, dtype=np.float32))
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        export_steps(STEPS, tmp_path / "no" / "steps.jsonl")
    for rows, message in ((2, "expected one a step, found 2"), (4, "for each of 3 steps, found more")):
        with pytest.raises(ValueError, match=message):
            export_steps(STEPS, tmp_path / "steps.parquet", vectors=np.ones((rows, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="a row of numbers"):
        export_steps(STEPS, tmp_path / "steps.parquet", vectors=list(np.ones(3, dtype=np.float32)))
    assert list(tmp_path.iterdir()) == []


def test_hits_are_written_as_the_steps_that_they_are(tmp_path: Path) -> None:
    class Found(StepTrace):
        score = 0.5

    export_steps([Found("t", 0, "k", "v", 1.0, False, "s")], tmp_path / "steps.jsonl")
    assert "score" not in json.loads((tmp_path / "steps.jsonl").read_text())


def test_data_sets_that_hold_no_steps_are_refused() -> None:
    with pytest.raises(
        ValueError, match="found no task_id, no step, no key, no value, no reward, no final, no source, a column 'x'"
    ):
        list(from_dataset(datasets.Dataset.from_dict({"x": [1]})))
    with pytest.raises(TypeError, match=r"expected one split of a data set, found train: choose one, as in data\['train'\]"):
        list(from_dataset(datasets.DatasetDict({"train": to_dataset(STEPS)})))
    row = {"task_id": "t", "step": 0, "key": None, "value": "", "reward": 0.0, "final": True, "source": ""}
    with pytest.raises(TypeError, match="key: expected text, found NoneType"):
        list(from_dataset(datasets.Dataset.from_list([row])))


def test_without_the_library_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"agent-envs\[datasets\]"):
        to_dataset(STEPS)
