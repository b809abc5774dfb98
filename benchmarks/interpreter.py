"""How fast the local Python interpreter is.

Method: wall-clock time as the caller sees it, `time.perf_counter` around each operation, after one warm-up; the median and
the 95th percentile of all samples. "open" is from `open_interpreter` to the reply of a first call, with the warm process
already there; "reset" likewise; "after a time-out" is the first call after one that was stopped. "at once" is the number of
calls per second that 32 threads with an interpreter each get through. Standard library only.

    python benchmarks/interpreter.py [--calls 500] [--opens 30] [--threads 32]
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable

from sandboxes.python import Interpreter, open_interpreter


def measure(operation: Callable[[], object], times: int) -> list[float]:
    """Seconds that each of ``times`` runs of ``operation`` took."""
    samples = []
    for _ in range(times):
        started = time.perf_counter()
        operation()
        samples.append(time.perf_counter() - started)
    return samples


def show(name: str, samples: list[float]) -> None:
    ordered = sorted(samples)
    middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    print(f"{name:<28} p50 {middle * 1e3:8.2f} ms   p95 {high * 1e3:8.2f} ms   ({len(ordered)} samples)")


def open_and_call() -> None:
    with open_interpreter() as python:
        python.run("1")


def reset_and_call(python: Interpreter) -> None:
    python.reset()
    python.run("1")


def at_once(threads: int, calls: int) -> float:
    """Calls per second of ``threads`` interpreters, each called in a thread of its own."""
    interpreters = [open_interpreter() for _ in range(threads)]
    start = threading.Barrier(threads + 1)
    each = max(1, calls // threads)

    def work(python: Interpreter) -> None:
        start.wait()
        for _ in range(each):
            python.run("x = 1")

    workers = [threading.Thread(target=work, args=(python,)) for python in interpreters]
    for worker in workers:
        worker.start()
    start.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    for python in interpreters:
        python.close()
    return threads * each / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the local Python interpreter.")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--opens", type=int, default=30)
    parser.add_argument("--threads", type=int, default=32)
    arguments = parser.parse_args()
    started = time.perf_counter()
    with open_interpreter() as python:
        print(python.describe())
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; first open {time.perf_counter() - started:.2f} s")
        python.run("x = 1")
        show("call", measure(lambda: python.run("x = 1"), arguments.calls))
        show("call that prints 10 kB", measure(lambda: python.run("print('x' * 10_000)"), arguments.calls))
        show("open and first call", measure(open_and_call, arguments.opens))
        show("reset and first call", measure(lambda: reset_and_call(python), arguments.opens))
        stopped = []
        after = []
        for _ in range(5):
            stopped += measure(lambda: python.run("while True: pass", timeout=0.2), 1)
            after += measure(lambda: python.run("1"), 1)
        show("a time-out of 200 ms", stopped)
        show("first call after a time-out", after)
    print(f"{arguments.threads} at once: {at_once(arguments.threads, 4 * arguments.calls):.0f} calls/s")


if __name__ == "__main__":
    main()
