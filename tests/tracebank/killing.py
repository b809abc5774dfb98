"""Kills writers of a bank at random moments and looks at what they leave; run as a program by test_bank_killed.py.

Its children are forks, so that nothing is imported anew for each; it starts no threads itself.

    python killing.py FOLDER KILLS SEED
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from killing_store import in_child, numbered_step

from tracebank import TraceBank


def write(folder: Path, acknowledged: int, seed: int) -> None:
    """Adds and compacts without end, and says how many steps it was promised are safe."""
    chance = random.Random(seed)
    bank = TraceBank.open(folder)
    while True:
        count = chance.choice([1, 3, 40])
        bank.add([numbered_step(len(bank) + place) for place in range(count)])
        os.write(acknowledged, f"{len(bank)}\n".encode())
        if chance.random() < 0.3:
            bank.compact(index=chance.choice(["flat", "hnsw"]), rebuild=chance.random() < 0.3)


def look(folder: Path, promised: int) -> None:
    """The bank opens, holds all that was acknowledged, in order, and answers; compacted, nothing is wrong with it."""
    bank = TraceBank.open(folder)
    assert len(bank) >= promised, f"{promised} steps were acknowledged, {len(bank)} are there"
    for number, step in enumerate(bank.snapshot.steps(range(len(bank)))):
        assert step == numbered_step(number), f"step {number} is {step}"
    asked = range(0, len(bank), max(1, len(bank) // 5))
    for number, hits in zip(asked, bank.query([f"key {number}" for number in asked], k=1), strict=True):
        assert hits[0].key == f"key {number}", f"asked for key {number}, found {hits[0].key}"
    assert all(problem.mendable for problem in bank.check()), bank.check()
    bank.compact()
    assert bank.check() == [], bank.check()


def main(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    assert os.waitpid(in_child(lambda: TraceBank.create(folder)), 0)[1] == 0
    for kill in range(kills):
        reading, writing = os.pipe()
        child = in_child(write, folder, writing, chance.randrange(2**31))
        os.close(writing)
        time.sleep(chance.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the writer of kill {kill} ended by itself"
        with os.fdopen(reading) as file:
            whole = [line for line in file if line.endswith("\n")]
        promised = int(whole[-1]) if whole else 0
        assert os.waitpid(in_child(look, folder, promised), 0)[1] == 0, f"after kill {kill}"
    print(f"{kills} kills")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
