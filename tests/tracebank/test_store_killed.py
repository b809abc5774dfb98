"""A writer may be killed at any moment, and readers may look at any moment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing_store import EMPTY, check_rows

from tracebank.store import Snapshot, Store

PROGRAM = Path(__file__).with_name("killing_store.py")


def command(*arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def run(*arguments: object) -> str:
    with command(*arguments) as program:
        output, errors = program.communicate(timeout=600)
    assert program.returncode == 0, errors
    return output


def test_a_writer_killed_at_random_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    assert run("random", tmp_path / "bank", 20, 1).startswith("20 kills")


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(2, 7))
def test_many_killed_writers_lose_nothing_that_was_promised(tmp_path: Path, seed: int) -> None:
    assert run("random", tmp_path / "bank", 50, seed).startswith("50 kills")


def test_a_writer_killed_before_any_of_its_steps_loses_nothing(tmp_path: Path) -> None:
    kills = re.match(r"(\d+) kills", run("each", tmp_path / "bank"))
    assert kills is not None
    # Four shards and an index, the manifest and twice the folder, a rename; and what was replaced is removed.
    assert int(kills[1]) > 9


def test_readers_are_undisturbed_by_writers_in_other_processes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "bank", EMPTY)
    writers = [command("write", store.path, seed) for seed in (1, 2)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        held: list[Snapshot] = []
        rows = 0
        until = time.monotonic() + 3
        while time.monotonic() < until:
            fresh = Store(store.path).snapshot()
            check_rows(fresh, promised=rows)
            rows = fresh.manifest.rows
            held = [*held[-3:], fresh]
            check_rows(held[0], promised=0)
        assert rows > held[0].manifest.rows > 0
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
