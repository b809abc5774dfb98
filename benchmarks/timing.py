"""What the benchmarks measure and print alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def timed(operation: Callable[[], object]) -> float:
    """Seconds that ``operation`` took."""
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started


def show(name: str, samples: list[float]) -> None:
    ordered = sorted(samples)
    middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    figures = f"p50 {middle * 1e3:8.2f} ms   p95 {high * 1e3:8.2f} ms   max {ordered[-1] * 1e3:8.2f} ms"
    print(f"  {name:<38} {figures}   ({len(ordered)} samples)", flush=True)


def show_load(when: str) -> None:
    print(f"  load {when}: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
