"""What a trace bank costs at the RAPO paper's size and above: to build, to open, to ask.

Method. Five trajectories for each of 10,000 tasks, as the paper keeps them: 50,000 trajectories, 169,489 steps, 15,648,438
tokens in their values (arXiv 2603.03078, appendix C.3.1; a word here stands for a token). Words are drawn from 50,000 whose
probabilities fall by Zipf's law; half of a task's words come from forty of its own, so that the texts of a task are alike
and its first key, the question, is the same five times. ``--times 10`` makes ten times as many tasks.

- build: ``python -m tracebank build`` as a process of its own, from trajectories as JSON lines without tokens; wall-clock
  time, and the most memory that it held at once.
- open: ``TraceBank.open`` and its first answer, in a new process.
- ask: histories as running agents have them: the key of a step with every fifth word changed, the running task excluded,
  final steps excluded. One at a time (p50) and 256 at once (queries a second). Embedding, index with filters, and the
  reading of the hits' texts are timed apart; recall@1 says how often the best hit scores as flat search's best hit does.

    python benchmarks/bank.py [--times 1] [--index auto] [--embedder hashing] [--folder DIR]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timing import show, show_load

from tracebank import Hits, TraceBank, Trajectory, Turn, write_trajectories
from tracebank.nearest import Filters, Found

TASKS, KEPT, STEPS, TOKENS = 10_000, 5, 169_489, 15_648_438
WORDS, OWN = 50_000, 40
QUESTION_WORDS = 30
BATCH = 256


class Writer:
    """Draws texts.

    Args:
        seed: Of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        weights = 1 / (np.arange(WORDS) + 10)
        self._ends = np.cumsum(weights / weights.sum())
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        lengths = self._generator.integers(2, 9, WORDS)
        self.words = np.array(["".join(self._generator.choice(letters, length)) for length in lengths], dtype=object)

    def draw(self, count: int) -> np.ndarray:
        """Words by Zipf's law, as numbers."""
        return np.searchsorted(self._ends, self._generator.random(count))

    def text(self, own: np.ndarray, count: int) -> str:
        """``count`` words, half of them from a task's own."""
        drawn = np.where(self._generator.random(count) < 0.5, self._generator.choice(own, count), self.draw(count))
        return " ".join(self.words[drawn])

    def changed(self, text: str) -> str:
        """The text with every fifth word another."""
        words = text.split(" ")
        others = self.words[self.draw(len(words))]
        change = self._generator.random(len(words)) < 0.2
        return " ".join(np.where(change, others, words))


def trajectories(times: float, seed: int) -> Iterator[Trajectory]:
    """The trajectories, task by task."""
    writer = Writer(seed)
    count, steps = round(TASKS * times) * KEPT, round(STEPS * times)
    lengths = _share(steps, count)
    tokens = _share(round(TOKENS * times), steps)
    np.random.default_rng(seed).shuffle(lengths)
    written = 0
    for number in range(count):
        if number % KEPT == 0:
            own = writer.draw(OWN)
            question = writer.text(own, QUESTION_WORDS)
        turns = []
        for step in range(lengths[number]):
            words = int(tokens[written])
            written += 1
            final = step == lengths[number] - 1
            thought, done = f"<think>{writer.text(own, words // 2)}</think>", writer.text(own, words // 4)
            action = f"<answer>{done}</answer>" if final else f"<python>{done}</python>"
            turns.append(Turn(thought, action, "" if final else writer.text(own, words - words // 2 - words // 4)))
        yield Trajectory(
            environment="synthetic",
            format="tag",
            task_id=f"task-{number // KEPT}",
            question=question,
            split="train",
            turns=tuple(turns),
            segments=(),
            reward=float(number % KEPT) / KEPT,
            score={},
            success=True,
            fault="",
            stop="terminated",
            tool_calls=lengths[number] - 1,
            policy_version=0,
            step=0,
            path=(number % KEPT,),
            source="synthetic",
        )


def _share(total: int, parts: int) -> list[int]:
    """``total`` in whole parts as equal as can be."""
    ends = (np.arange(parts + 1, dtype=np.int64) * total) // parts
    return np.diff(ends).tolist()


def build(folder: Path, times: float, embedder: str, index: str) -> Path:
    """Writes the trajectories and builds the bank."""
    file, bank = folder / f"trajectories-{times:g}.jsonl", folder / f"bank-{times:g}-{index}"
    if not file.exists():
        write_trajectories(file, trajectories(times, seed=0))
    print(f"  {file.stat().st_size / 2**20:,.0f} MiB of trajectories", flush=True)
    command = [sys.executable, "-m", "tracebank", "build", "--trajectories", str(file), "--output", str(bank)]
    started = time.perf_counter()
    subprocess.run([*command, "--embedder", embedder, "--index", index], check=True)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    size = sum(part.stat().st_size for part in bank.iterdir()) / 2**20
    print(f"  build: {seconds:.0f} s, at most {memory:.2f} GiB of memory, {size:,.0f} MiB on disk", flush=True)
    return bank


def ask(path: Path, count: int, *, recall: bool) -> None:
    """Opens the bank and asks it; runs in a process of its own."""
    started = time.perf_counter()
    bank = TraceBank.open(path)
    opened = time.perf_counter() - started
    bank.query(["anything"])
    print(f"  open: {opened:.2f} s, with the first answer {time.perf_counter() - started:.2f} s", flush=True)
    rng, writer = np.random.default_rng(1), Writer(1)
    steps = bank.snapshot.steps(rng.integers(0, len(bank), count).tolist())
    queries, running = [writer.changed(step.key) for step in steps], [[step.task_id, step.question] for step in steps]
    started = time.perf_counter()
    vectors = bank.embedder.embed(queries)
    embedding = time.perf_counter() - started

    def find(start: int, stop: int) -> list[Found]:
        return bank.nearest(vectors[start:stop], 3, Filters(running[start:stop]))

    def read(start: int, stop: int) -> list[Hits]:
        return bank.search(vectors[start:stop], 3, Filters(running[start:stop]))

    print(f"  {bank.kind}, {len(bank):,} steps")
    print(f"  embedding: {count / embedding:,.0f} texts a second", flush=True)
    find(0, BATCH)
    singles = [_seconds(lambda start=start: find(start, start + 1)) for start in range(min(count, 2000))]
    show("one query: index and filters", singles)
    whole = [_seconds(lambda start=start: read(start, start + 1)) for start in range(min(count, 2000))]
    show("one query: with the texts of its hits", whole)
    starts = range(0, count - BATCH + 1, BATCH)
    spent = sum(_seconds(lambda start=start: find(start, start + BATCH)) for start in starts)
    print(f"  {BATCH} at once: index and filters {BATCH * len(starts) / spent:,.0f} queries a second", flush=True)
    spent = sum(_seconds(lambda start=start: read(start, start + BATCH)) for start in starts)
    print(f"  {BATCH} at once: with the texts {BATCH * len(starts) / spent:,.0f} queries a second", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  at most {memory:.2f} GiB of memory while asking", flush=True)
    if recall:
        few = min(count, 1000)
        with TraceBank.open(path, deterministic=True) as flat:
            exact = flat.nearest(vectors[:few], 3, Filters(running[:few]))
        found = find(0, few)
        for best in (1, 3):
            right = [
                sum(score >= true.scores[best - 1] for score in ours.scores[:best]) / best
                for ours, true in zip(found, exact, strict=True)
            ]
            print(f"  recall@{best} against flat search: {np.mean(right):.3f} ({len(right)} queries)", flush=True)


def _seconds(operation) -> float:
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=1.0, help="multiples of the paper's size")
    parser.add_argument("--index", default="auto")
    parser.add_argument("--embedder", default="hashing")
    parser.add_argument("--folder", type=Path, help="where files are kept and found again; default: a temporary one")
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--ask", type=Path, help="ask this bank only")
    options = parser.parse_args()
    if options.ask:
        ask(options.ask, options.queries, recall=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        show_load("before")
        bank = build(folder, options.times, options.embedder, options.index)
        subprocess.run([sys.executable, __file__, "--ask", str(bank), "--queries", str(options.queries)], check=True)
        show_load("after")


if __name__ == "__main__":
    main()
