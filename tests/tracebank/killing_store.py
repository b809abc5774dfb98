"""Kills writers of a bank's files and looks at what they leave; run as a program by test_store_killed.py.

Its children are forks, so that nothing is imported anew for each; it starts no threads itself.

    python killing_store.py write FOLDER SEED           writes without end, and says how many rows are promised to be safe
    python killing_store.py random FOLDER KILLS SEED    kills such writers at random moments
    python killing_store.py each FOLDER                 kills a writer just before everything that it puts on the disk
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tracebank.embed.embedder import Vectors
from tracebank.step import StepTrace
from tracebank.store import Change, Manifest, Snapshot, Store, layout, writing

EMPTY = Manifest("name", "spec", 2, "auto")
INDEX = b"an index" * 1_000


def numbered_step(row: int) -> StepTrace:
    """The step of this row: everything in it follows from the number."""
    return StepTrace(f"task {row // 7}", row % 5, f"key {row}", f"value {row}" * 20, row / 8, row % 5 == 4, "me")


def numbered_vectors(rows: Sequence[int]) -> Vectors:
    return np.outer(np.asarray(rows), [1, 10]).astype(np.float32)


def append(change: Change, count: int) -> None:
    new = range(change.manifest.rows, change.manifest.rows + count)
    change.append(list(map(numbered_step, new)), numbered_vectors(new))


def save_index(path: Path) -> None:
    path.write_bytes(INDEX)


def write(folder: Path, output: int, seed: int) -> None:
    """Appends, merges and sets indexes at random, and says after each change how many rows are there."""
    chance = random.Random(seed)
    store = Store(folder)
    while True:
        with store.change() as change:
            for _ in range(chance.choice([1, 1, 2])):
                append(change, chance.choice([1, 1, 3, 30]))
            if chance.random() < 0.3:
                change.merge()
            if chance.random() < 0.3:
                change.set_index("hnsw", change.manifest.rows, save_index)
        os.write(output, f"{change.manifest.rows}\n".encode())


def check_rows(state: Snapshot, promised: int) -> None:
    """What was promised is there, and all there is is whole."""
    rows = range(state.manifest.rows)
    assert len(rows) >= promised, f"{promised} rows were promised, {len(rows)} are there"
    assert state.steps(rows) == [numbered_step(row) for row in rows]
    assert np.array_equal(state.vectors(), numbered_vectors(rows))
    columns = state.columns()
    assert [columns.tasks[number] for number in columns.task] == [f"task {row // 7}" for row in rows]
    if (path := state.index_path()) is not None:
        assert path.read_bytes() == INDEX


def look(folder: Path, promised: int) -> None:
    """The bank holds what it should, and the next change removes whatever is left over."""
    store = Store(folder)
    with store.snapshot() as state:
        check_rows(state, promised)
    problems = store.problems()
    assert all(problem.mendable for problem in problems), problems
    with store.change():
        pass
    assert store.problems() == []
    named = {file.name for file in store.snapshot().manifest.files}
    assert {path.name for path in folder.iterdir()} == named | {"manifest.json", "lock"}


def in_child(work: Callable[..., None], *arguments: object) -> int:
    """Runs a function in a fork of this process; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException as problem:
            print(f"{type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return child


def ended_well(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def kill_at_random(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    Store.create(folder, EMPTY)
    promised = 0
    for kill in range(kills):
        reading, output = os.pipe()
        child = in_child(write, folder, output, chance.randrange(2**31))
        os.close(output)
        with os.fdopen(reading) as file:
            first = file.readline()
            time.sleep(chance.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), f"the writer of kill {kill} ended by itself"
            more = [int(line) for line in (first, *file) if line.endswith("\n")]
        assert more[0] > promised
        promised = more[-1]
        assert ended_well(in_child(look, folder, promised)), f"after kill {kill}"
    print(f"{kills} kills")


def kill_before_each(folder: Path) -> None:
    """One change after another, killed before its first, second, third ... touch of the disk, until it is left alone."""
    Store.create(folder, EMPTY)

    def change(count: int) -> None:
        with Store(folder).change() as change:
            append(change, count)
            change.merge()
            append(change, 1)
            change.set_index("hnsw", change.manifest.rows, save_index)

    def change_and_die(count: int, touches: int) -> None:
        left = iter(range(touches))

        def counted(touch: Callable[..., Any]) -> Callable[..., Any]:
            def counted_touch(*arguments: Any, **named: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return touch(*arguments, **named)

            return counted_touch

        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        change(count)

    assert ended_well(in_child(change, 10))
    for touches in itertools.count():
        ended = ended_well(in_child(change_and_die, 6, touches))
        assert ended_well(in_child(look, folder, 11)), f"killed before touch {touches} of the disk"
        if ended:
            break
    print(f"{touches} kills")


if __name__ == "__main__":
    # Few rows are many pieces then.
    layout.GROUP_ROWS = writing.GROUP_ROWS = 4
    writing.SHARD_ROWS = 64
    pa.array([""])  # imports pandas where it is installed, which every child would do anew
    match sys.argv[1:]:
        case ["write", folder, seed]:
            write(Path(folder), 1, int(seed))
        case ["random", folder, kills, seed]:
            kill_at_random(Path(folder), int(kills), int(seed))
        case ["each", folder]:
            kill_before_each(Path(folder))
        case _:
            sys.exit(__doc__)
