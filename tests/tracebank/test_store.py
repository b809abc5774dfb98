"""A bank's files behave as a list of steps that grows at its end, whatever is done to them in between."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracebank.embed.embedder import Vectors
from tracebank.faults import BankError
from tracebank.step import StepTrace, normalise_question
from tracebank.store import Columns, File, Manifest, Snapshot, Store, layout, snapshot, writing
from tracebank.store.shard import Shard

EMPTY = Manifest("hashing v1 of 3", "hashing?dimension=3", 3, "auto")


def some_steps(start: int, count: int) -> list[StepTrace]:
    """Steps that differ from each other, in which questions and tasks come up again."""
    return [
        StepTrace(
            task_id=f"task {row // 5}",
            step=row % 4,
            key=f"What is {row}?\x00",
            value=f"<answer>{row}</answer>",
            reward=row / 3 - 1,
            final=row % 4 == 3,
            source=("oracle", "somebody")[row // 10 % 2],
            question=f"What  is Nº{row // 5}?",
            environment=("", "agent_envs/MathTool-v0", "mine")[row % 3],
            format="tag",
            trajectory=f"{row // 4:016x}",
        )
        for row in range(start, start + count)
    ]


def some_vectors(start: int, count: int) -> Vectors:
    return (np.arange(start * 3, (start + count) * 3, dtype=np.float32) / 7).reshape(count, 3)


def add(store: Store, count: int) -> None:
    """Appends the next so many of `some_steps`, in a change of their own."""
    with store.change() as change:
        change.append(some_steps(change.manifest.rows, count), some_vectors(change.manifest.rows, count))


def save_index(path: Path) -> None:
    path.write_bytes(b"an index")


def plain_columns(steps: Sequence[StepTrace]) -> list[tuple[str, str, str, int, float, bool]]:
    return [(s.task_id, normalise_question(s.question), s.source, s.step, s.reward, s.final) for s in steps]


def readable(columns: Columns) -> list[tuple[str, str, str, int, float, bool]]:
    """The columns row by row, with texts for their numbers."""
    return [
        (columns.tasks[task], columns.questions[question], columns.sources[source], int(step), float(reward), bool(final))
        for task, question, source, step, reward, final in zip(
            columns.task, columns.question, columns.source, columns.step, columns.reward, columns.final, strict=True
        )
    ]


def check_equal(state: Snapshot, steps: Sequence[StepTrace], vectors: Vectors) -> None:
    assert state.manifest.rows == len(steps)
    assert state.steps(range(len(steps))) == list(steps)
    assert np.array_equal(state.vectors(), vectors)
    assert state.vectors().shape == (len(steps), 3)
    assert readable(state.columns()) == plain_columns(steps)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "bank", EMPTY)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 4 rows and shards of 16, so that few rows are many pieces."""
    monkeypatch.setattr(layout, "GROUP_ROWS", 4)
    monkeypatch.setattr(writing, "GROUP_ROWS", 4)
    monkeypatch.setattr(writing, "SHARD_ROWS", 16)
    monkeypatch.setattr(snapshot, "_VECTOR_GROUPS", 3)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
steps_of_any_kind = st.builds(
    StepTrace,
    task_id=texts,
    step=st.integers(0, 2**31 - 1),
    key=st.one_of(texts, texts.map(lambda text: text * 400)),
    value=texts,
    reward=st.floats(allow_nan=False, allow_infinity=False),
    final=st.booleans(),
    source=texts,
    question=texts,
    environment=texts,
    format=texts,
    trajectory=texts,
)
actions = st.one_of(st.lists(steps_of_any_kind, max_size=9), st.integers(0, 40), st.just("merge"))


@pytest.mark.usefixtures("small_pieces")
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.lists(actions, max_size=3), max_size=5), data=st.data())
def test_any_changes_give_what_a_plain_list_would(
    tmp_path_factory: pytest.TempPathFactory, changes: list[list[list[StepTrace] | int | str]], data: st.DataObject
) -> None:
    store = Store.create(tmp_path_factory.mktemp("any") / "bank", EMPTY)
    steps: list[StepTrace] = []
    states: list[tuple[Snapshot, int]] = []
    for actions in changes:
        with store.change() as change:
            for action in actions:
                if action == "merge":
                    change.merge()
                    continue
                new = some_steps(len(steps), action) if isinstance(action, int) else list(action)
                change.append(new, some_vectors(len(steps), len(new)))
                steps += new
        states.append((store.snapshot(), len(steps)))
    check_equal(store.snapshot(), steps, some_vectors(0, len(steps)))
    check_equal(Store(store.path).snapshot(), steps, some_vectors(0, len(steps)))
    for state, rows in states:  # what was current once is still what it was
        check_equal(state, steps[:rows], some_vectors(0, rows))
    assert store.problems() == []
    if steps:
        rows = data.draw(st.lists(st.integers(0, len(steps) - 1), max_size=9))
        assert store.snapshot().steps(rows) == [steps[row] for row in rows]
        start, stop = sorted(data.draw(st.tuples(st.integers(0, len(steps)), st.integers(0, len(steps)))))
        assert np.array_equal(store.snapshot().vectors(start, stop), some_vectors(start, stop - start))


def test_an_empty_bank_is_readable(store: Store) -> None:
    check_equal(store.snapshot(), [], np.empty((0, 3), np.float32))
    assert list(store.snapshot().batches()) == []
    assert store.snapshot().index_path() is None
    with store.change() as change:
        change.append([], np.empty((0, 3), np.float32))
        change.merge()
    assert store.snapshot().manifest.generation == 0


def test_long_and_odd_texts_come_back(store: Store) -> None:
    odd = ["", "\x00", "a\x00b", "\r\n\u2028", "\ufeff\uffff\U0010ffff", "e\u0301é", "😀" * 1_000_000, "x" * 10_000_000]
    steps = [StepTrace(text[:99], number, text, text, 0.0, False, "", text) for number, text in enumerate(odd)]
    with store.change() as change:
        change.append(steps, some_vectors(0, len(steps)))
    check_equal(store.snapshot(), steps, some_vectors(0, len(steps)))
    more = some_steps(0, 100)
    with store.change() as change:
        change.append(more, some_vectors(len(steps), 100))  # which absorbs the long ones
    assert len(store.snapshot().manifest.shards) == 1
    check_equal(store.snapshot(), [*steps, *more], some_vectors(0, len(steps) + 100))


def test_row_groups_are_bounded_in_rows_and_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "GROUP_BYTES", 10_000)
    sizes = [5] * 300 + [4_000] * 10 + [50_000] * 2 + [5] * 3
    steps = [StepTrace("", 1, "x" * size, "", 0.0, False, "") for size in sizes]
    with store.change() as change:
        change.append(steps, some_vectors(0, len(steps)))
    (shard,) = store.snapshot().manifest.shards
    footer = pq.read_metadata(store.path / shard.name)
    groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    assert sum(groups) == len(sizes)
    assert max(groups) == layout.GROUP_ROWS
    ends = np.cumsum(groups)
    for start, stop in zip(ends - groups, ends, strict=True):
        assert stop - start == 1 or sum(sizes[start:stop]) <= 10_000
    check_equal(store.snapshot(), steps, some_vectors(0, len(steps)))


@pytest.mark.usefixtures("small_pieces")
def test_adding_one_by_one_leaves_few_files_and_keeps_the_order(store: Store) -> None:
    for _ in range(70):
        add(store, 1)
        state = store.snapshot()
        assert all(shard.rows <= 16 for shard in state.manifest.shards)
        assert len(state.manifest.shards) <= state.manifest.rows // 13 + 5  # full ones have 13 rows or more; 1 + 2 + 4 + 8
        assert len(list(store.path.iterdir())) == len(state.manifest.shards) + 2  # the manifest and the lock
    check_equal(store.snapshot(), some_steps(0, 70), some_vectors(0, 70))


@pytest.mark.usefixtures("small_pieces")
def test_merging_leaves_as_few_shards_as_there_need_be(store: Store) -> None:
    for count in (40, 7, 6, 5, 2, 1):
        add(store, count)
    before = store.snapshot().manifest
    with store.change() as change:
        change.merge()
    after = store.snapshot().manifest
    assert [shard.rows for shard in after.shards] == [16, 16, 16, 13]
    assert after.shards[:2] == before.shards[:2]  # full ones are left alone
    with store.change() as change:
        change.merge()
    assert store.snapshot().manifest == after  # there is nothing to do
    check_equal(store.snapshot(), some_steps(0, 61), some_vectors(0, 61))


def test_shards_are_bounded_in_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 30_000)
    for _ in range(3):
        add(store, 2_000)
    with store.change() as change:
        change.merge()
    shards = store.snapshot().manifest.shards
    assert len(shards) > 3
    assert all(30_000 <= shard.bytes < 60_000 for shard in shards[:-1])
    check_equal(store.snapshot(), some_steps(0, 6_000), some_vectors(0, 6_000))


def test_a_snapshot_outlives_the_files(store: Store) -> None:
    add(store, 300)
    with store.change() as change:
        change.set_index("hnsw", 300, save_index)
    state = store.snapshot()
    names = {file.name for file in state.manifest.files}
    add(store, 1_000)
    with store.change() as change:
        change.merge()
        change.drop_index()
    assert not names & set(os.listdir(store.path))
    check_equal(state, some_steps(0, 300), some_vectors(0, 300))
    path = state.index_path()
    assert path is not None
    assert path.read_bytes() == b"an index"
    assert store.snapshot().index_path() is None


def test_closing_lets_go_of_every_file(store: Store) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(5):
        add(store, 3)
        with store.change() as change:
            change.set_index("flat", 3, save_index)
    state = store.snapshot()
    state.steps([0])
    state.columns()
    assert held() > before
    with state:
        pass
    assert held() == before
    state.close()
    with pytest.raises(BankError, match="closed"):
        state.steps([0])


def test_batches_are_what_other_programs_can_read(store: Store) -> None:
    add(store, 300)
    table = pa.Table.from_batches(store.snapshot().batches())
    records = table.drop_columns("vector").to_pylist()
    assert [StepTrace(**record) for record in records] == some_steps(0, 300)
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), some_vectors(0, 300))
    shard = pq.read_table(store.path / store.snapshot().manifest.shards[0].name)
    assert shard.column_names == [*table.column_names[:-1], "question_normalised", "vector"]
    assert shard["key"].to_pylist() == [step.key for step in some_steps(0, 300)]


def test_the_manifest_keeps_what_the_bank_is(store: Store) -> None:
    add(store, 4)
    with store.change() as change:
        change.set_index("hnsw", 4, save_index)
    manifest = Store(store.path).snapshot().manifest
    assert (manifest.embedder, manifest.embedder_spec, manifest.dimension) == (EMPTY.embedder, EMPTY.embedder_spec, 3)
    assert (manifest.index_kind, manifest.index and manifest.index.rows) == ("hnsw", 4)
    assert (manifest.environments, manifest.formats) == (("agent_envs/MathTool-v0", "mine"), ("tag",))
    assert (manifest.rows, manifest.generation) == (4, 2)
    assert manifest.written_by["pyarrow"] == pa.__version__
    assert Manifest.from_json(manifest.to_json()) == manifest
    with store.change() as change:
        change.drop_index("flat")
    assert (store.snapshot().manifest.index_kind, store.snapshot().manifest.index) == ("flat", None)


def test_an_error_in_a_change_leaves_the_bank_as_it_was(store: Store) -> None:
    add(store, 5)
    before = store.snapshot().manifest
    files = set(os.listdir(store.path))

    def change_and_fail() -> None:
        with store.change() as change:
            change.append(some_steps(5, 50), some_vectors(5, 50))
            change.set_index("ivf", 55, save_index)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        change_and_fail()
    assert store.snapshot().manifest == before
    assert set(os.listdir(store.path)) == files
    check_equal(store.snapshot(), some_steps(0, 5), some_vectors(0, 5))


def test_what_a_change_refuses_it_leaves_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LARGEST_TEXT", 100)
    steps = some_steps(0, 2)
    with store.change() as change:
        with pytest.raises(ValueError, match=r"expected \(2, 3\) float32, found \(3, 3\) float32"):
            change.append(steps, some_vectors(0, 3))
        with pytest.raises(ValueError, match="float64"):
            change.append(steps, some_vectors(0, 2).astype(np.float64))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="finite"):
            change.append(steps, some_vectors(0, 2) * np.float32(np.nan))
        with pytest.raises(ValueError, match="step 1: expected texts of at most 100 characters, found one of 101"):
            change.append([steps[0], StepTrace("", 1, "x" * 101, "", 0.0, False, "")], some_vectors(0, 2))
        with pytest.raises(ValueError, match="expected one of auto"):
            change.set_index("best", 1, Path.touch)
        change.append(steps, some_vectors(0, 2))
        with pytest.raises(ValueError, match="rows: expected 1 to 2, found 3"):
            change.set_index("flat", 3, Path.touch)
    check_equal(store.snapshot(), steps, some_vectors(0, 2))
    with pytest.raises(BankError, match="this change is over"):
        change.append(steps, some_vectors(0, 2))
    with pytest.raises(IndexError, match="expected one of the 2 rows, found 2"):
        store.snapshot().steps([0, 2])
    with pytest.raises(IndexError, match="found -1"):
        store.snapshot().steps([-1])
    with pytest.raises(IndexError, match="found 1 to 3"):
        store.snapshot().vectors(1, 3)


def test_creating_needs_an_empty_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="found a bank: open it"):
        Store.create(store.path, EMPTY)
    with pytest.raises(BankError, match="found bank in it: choose another folder"):
        Store.create(tmp_path, EMPTY)
    (tmp_path / "file").write_text("")
    with pytest.raises(BankError, match="file: cannot be written"):
        Store.create(tmp_path / "file", EMPTY)
    with pytest.raises(BankError, match=r"expected a bank, found no manifest\.json"):
        Store(tmp_path / "nothing")
    with pytest.raises(ValueError, match="dimension: expected a whole number from 1 up, found 0"):
        Store.create(tmp_path / "other", Manifest("name", "spec", 0, "auto"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / writing.LOCK_NAME).touch()  # of somebody who was killed while he made one
    (tmp_path / "half" / writing.NEW_MANIFEST).write_text("{")
    with pytest.raises(BankError, match="found lock in it"):
        Store.create(tmp_path / "half", EMPTY)


def test_rows_that_were_read_lately_are_kept_within_a_budget(store: Store) -> None:
    add(store, 1_000)
    group = store.snapshot()._open()[0].read([0], layout.STEP_FIELDS)
    reads: list[int] = []
    cache = snapshot.GroupCache(budget=group.nbytes * 5 // 2)
    file = store.snapshot().manifest.shards[0]

    def get(number: int) -> None:
        cache.get((file, number), lambda: (reads.append(number), group)[1])

    for number in (0, 1, 0, 1, 2, 1, 2, 0):
        get(number)
    assert reads == [0, 1, 2, 0]


def test_many_threads_read_while_one_writes(store: Store) -> None:
    add(store, 50)
    wrong: list[BaseException] = []
    over = threading.Event()

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            while not over.is_set():
                state = store.snapshot()
                rows = state.manifest.rows
                wanted = random.integers(0, rows, 20).tolist()
                assert state.steps(wanted) == [some_steps(row, 1)[0] for row in wanted]
                assert np.array_equal(state.vectors(rows // 2), some_vectors(rows // 2, rows - rows // 2))
                assert readable(state.columns())[rows - 1] == plain_columns(some_steps(rows - 1, 1))[0]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for count in [1] * 20 + [200, 3, 7]:
        add(store, count)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


def _add_many(path: Path, source: str, count: int) -> None:
    store = Store(path)
    for number in range(count):
        with store.change() as change:
            change.append([StepTrace(source, number, "", "", 0.0, False, source)], some_vectors(number, 1))


def test_two_processes_and_two_threads_write_in_turn(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(store.path, f"process {n}", 30)) for n in range(2)]
    threads = [threading.Thread(target=_add_many, args=(store.path, f"thread {n}", 30)) for n in range(2)]
    for writer in (*processes, *threads):
        writer.start()
    for writer in (*processes, *threads):
        writer.join()
    steps = store.snapshot().steps(range(120))
    for source in ("process 0", "process 1", "thread 0", "thread 1"):
        assert [step.step for step in steps if step.source == source] == list(range(30))
    assert store.snapshot().manifest.generation == 120
    assert store.problems() == []


def test_waiting_for_another_writer_is_said(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_WAIT", 0.1)
    order: list[str] = []

    def late() -> None:
        with store.change() as change:
            order.append("second")
            change.append(some_steps(1, 1), some_vectors(1, 1))

    with caplog.at_level(logging.INFO, logger="tracebank"):
        with store.change() as change:
            thread = threading.Thread(target=late)
            thread.start()
            deadline = time.monotonic() + 30
            while "waiting for another writer" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            order.append("first")
            change.append(some_steps(0, 1), some_vectors(0, 1))
        thread.join()
    assert "waiting for another writer" in caplog.text
    assert order == ["first", "second"]
    check_equal(store.snapshot(), some_steps(0, 2), some_vectors(0, 2))


def test_a_reader_that_loses_the_race_reads_the_newer_state(store: Store) -> None:
    add(store, 3)
    races = iter([1, 2])

    class Slow(Store):
        """A reader to whom it happens, twice, that a writer replaces what it is about to open."""

        def _shard(self, file: File, dimension: int) -> Shard:
            if next(races, 0):
                add(store, 200)
                with store.change() as change:
                    change.merge()
            return super()._shard(file, dimension)

    state = Slow(store.path).snapshot()
    assert next(races, None) is None
    check_equal(state, some_steps(0, 403), some_vectors(0, 403))
