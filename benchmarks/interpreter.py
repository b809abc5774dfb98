"""How fast the Python interpreter is, on each backend.

Method: wall-clock time as the caller sees it (`time.perf_counter`), every sample counted, after one warm-up. Machine load is
printed before and after each backend, since two cores are soon shared.

- call: one `run` of a trivial statement in a live interpreter, one caller.
- after a time-out: the first call after one that was stopped for its time.
- fork: of an interpreter that has numpy and 200 MB of its own data resident; "and first call" up to the copy's first reply.
- cold: from `open_interpreter` to the first reply where no interpreter stands ready: on docker a new container, with what it
  preloads by default and with nothing; local: a fork of the warm process.
- reset: from `reset` to the next reply.
- at once: calls a second of 32 threads with an interpreter each.
- pool: episodes are opened at a fixed rate, each in a thread of its own, whether or not the ones before it are ready; an
  episode opens an interpreter of the warm pool, calls it once, keeps it for a while and closes it. "take" is the opening,
  "and first call" goes up to the first reply, "behind" is how late an episode began.

    python benchmarks/interpreter.py [--backend local docker] [--image NAME] [--only call fork cold at-once pool]
"""

from __future__ import annotations

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from timing import show, show_load, timed

from sandboxes import shared
from sandboxes.python import Interpreter, open_interpreter

PARTS = ("call", "fork", "cold", "at-once", "pool")
GROW = "import numpy\ndata = numpy.ones(25_000_000)\nwords = {str(number): number for number in range(1000)}"
"""200 MB in an array, and something small beside it."""


def calls(options: dict[str, Any], arguments: argparse.Namespace) -> None:
    with open_interpreter(**options) as python:
        python.run("x = 1")
        show("call", [timed(lambda: python.run("x = 1")) for _ in range(arguments.calls)])
        show("call that prints 10 kB", [timed(lambda: python.run("print('x' * 10_000)")) for _ in range(arguments.calls)])
        show("reset and first call", [timed(lambda: reset_and_call(python)) for _ in range(arguments.opens)])
        after = []
        for _ in range(10):
            done = python.run("while True: pass", timeout=0.2)
            assert done.status == "timeout"
            assert done.state_lost
            after.append(timed(lambda: python.run("1")))
        show("first call after a time-out", after)


def reset_and_call(python: Interpreter) -> None:
    python.reset()
    python.run("1")


def forks(options: dict[str, Any], arguments: argparse.Namespace) -> None:
    with open_interpreter(**options) as python:
        grown = python.run(GROW, timeout=60)
        assert grown.status == "ok", grown.error
        forked, called = [], []
        for _ in range(arguments.opens + 1):
            started = time.perf_counter()
            with python.fork() as twin:
                forked.append(time.perf_counter() - started)
                reply = twin.run("print(data.sum() + words['7'])")
                called.append(time.perf_counter() - started)
                assert reply.stdout == "25000007.0\n", reply
        show("fork, numpy and 200 MB resident", forked[1:])
        show("and first call, which adds them up", called[1:])


def cold(options: dict[str, Any], arguments: argparse.Namespace) -> None:
    shared.close_idle()
    show("very first open and call", [timed(lambda: open_and_call(options))])
    show("cold open and first call", [timed(lambda: open_and_call(options)) for _ in range(arguments.opens)])
    bare = {**options, "preload": ()}
    open_and_call(bare)
    show("the same, nothing preloaded", [timed(lambda: open_and_call(bare)) for _ in range(arguments.opens)])


def open_and_call(options: dict[str, Any]) -> None:
    with open_interpreter(**options) as python:
        python.run("1")


def at_once(options: dict[str, Any], arguments: argparse.Namespace) -> None:
    threads, each = arguments.threads, max(1, 4 * arguments.calls // arguments.threads)
    with ThreadPoolExecutor(threads) as pool:
        interpreters = list(pool.map(lambda _: open_interpreter(**options), range(threads)))
        start = threading.Barrier(threads + 1)

        def work(python: Interpreter) -> None:
            start.wait()
            for _ in range(each):
                python.run("x = 1")

        working = [pool.submit(work, python) for python in interpreters]
        start.wait()
        seconds = timed(lambda: [one.result() for one in working])
        for python in interpreters:
            python.close()
    print(f"  {threads} at once: {threads * each / seconds:.0f} calls/s", flush=True)


def held(options: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Opens episodes at a fixed rate."""
    warm = {**options, "warm": arguments.warm}
    open_and_call(warm)
    time.sleep(arguments.settle)  # until they stand ready
    behind: list[float] = []
    taken: list[float] = []
    called: list[float] = []

    def episode(due: float) -> None:
        began = time.perf_counter()
        with open_interpreter(**warm) as python:
            ready = time.perf_counter()
            done = python.run("x = 6 * 7")
            replied = time.perf_counter()
            assert done.status == "ok", done.error
            behind.append(began - due)
            taken.append(ready - began)
            called.append(replied - began)
            time.sleep(arguments.episode)

    count = int(arguments.rate * arguments.seconds)
    started = time.perf_counter()
    with ThreadPoolExecutor(256) as pool:
        episodes = []
        for number in range(count):
            due = started + number / arguments.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            episodes.append(pool.submit(episode, due))
        for one in episodes:
            one.result()
    seconds = time.perf_counter() - started
    print(f"  pool of {arguments.warm}: {count} episodes of {arguments.episode:g} s in {seconds:.1f} s", flush=True)
    show("take", taken)
    show("and first call", called)
    show("behind", behind)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the Python interpreter.")
    parser.add_argument("--backend", nargs="+", choices=("local", "docker"), default=["local"])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to time")
    parser.add_argument("--image", help="the docker backend's image")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--opens", type=int, default=30)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--warm", type=int, default=16, help="interpreters that the pool keeps ready")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds that the pool is given to get ready")
    parser.add_argument("--rate", type=float, default=50.0, help="episodes a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long that rate is held")
    parser.add_argument("--episode", type=float, default=0.1, help="seconds that an episode keeps its interpreter")
    arguments = parser.parse_args()
    parts = {"call": calls, "fork": forks, "cold": cold, "at-once": at_once, "pool": held}
    for backend in arguments.backend:
        options: dict[str, Any] = {"backend": backend}
        if backend == "docker" and arguments.image:
            options["image"] = arguments.image
        with open_interpreter(**options) as python:
            print(python.describe())
        show_load("before")
        for name in PARTS:
            if name in arguments.only:
                parts[name](options, arguments)
        show_load("after")
        shared.close_idle()


if __name__ == "__main__":
    main()
