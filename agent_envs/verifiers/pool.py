"""Worker processes that judge answers, shared by all environments of a process.

A comparison of two expressions can hang in C code or take all memory, and Python's signals only reach the main thread. So
it runs in a process that can be killed: launched by ``subprocess`` (never a fork of the trainer), kept for the next request,
and thrown away when it overruns its time. What runs inside is `agent_envs.verifiers.worker`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_envs.faults import EnvironmentFault
from sandboxes import shared

_LOG = logging.getLogger(__name__)
_SCRIPT = Path(__file__).with_name("worker.py")
_START_SECONDS = 60.0
_REPLY_BYTES = 1 << 16


class WorkerPool:
    """Up to ``size`` worker processes of one kind, started when they are needed.

    Args:
        kind: What the workers do, ``"math"`` or ``"reasoning_gym"``.
        timeout: Seconds that one request may take.
        size: Workers at one time; further requests wait for one.
    """

    def __init__(self, kind: str, timeout: float, size: int) -> None:
        self.kind = kind
        self.timeout = timeout
        self._free = threading.BoundedSemaphore(size)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the pool takes requests."""
        return not self._closed

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """A worker's reply, or None where the request made it overrun its time or die. Safe for threads.

        Raises:
            EnvironmentFault: No worker starts, or it replies with an error or with what is no reply.
        """
        with self._free:
            # A worker that dies may have been killed from outside, by a kernel short of memory: so twice before it counts.
            for _ in range(2):
                worker = self._take()
                try:
                    reply = worker.ask(request, self.timeout)
                except TimeoutError:
                    worker.kill()
                    _LOG.warning("a %s request took over %g s and was stopped", self.kind, self.timeout)
                    return None
                except EOFError:
                    worker.kill()
                    continue
                except BaseException:
                    worker.kill()
                    raise
                self._give_back(worker)
                if "error" in reply:
                    raise EnvironmentFault(f"the {self.kind} worker failed: {reply['error']}", "verifier")
                return reply
        _LOG.warning("a %s request ended its process twice", self.kind)
        return None

    def close(self) -> None:
        """Ends the idle workers; busy ones end with their request."""
        with self._lock:
            self._closed = True
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.kill()

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Worker(self.kind, self.timeout)

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.kill()


class _Worker:
    """One process and its pipes."""

    def __init__(self, kind: str, timeout: float) -> None:
        # -P keeps the script's folder off the path: a file in it is called math.py.
        command = [sys.executable, "-P", str(_SCRIPT), kind, repr(timeout)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise EnvironmentFault(f"the verifier's worker could not start: {error}", "verifier", True) from error
        self._buffer = b""
        try:
            reply = self._receive(time.monotonic() + _START_SECONDS)
        except (TimeoutError, EOFError) as error:
            self.kill()
            code = self._process.returncode
            raise EnvironmentFault(f"the verifier's worker did not start (exit code {code})", "verifier", True) from error
        if reply != {"ready": kind}:
            self.kill()
            raise EnvironmentFault(f"the verifier's worker could not start: {reply.get('error', reply)}", "verifier")

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Sends a request and waits for its reply.

        Raises:
            TimeoutError: There was none in time.
            EOFError: The process is gone.
            EnvironmentFault: The reply is not JSON.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        return self._receive(time.monotonic() + timeout)

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if len(self._buffer) > _REPLY_BYTES:
                    break
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                data = os.read(descriptor, _REPLY_BYTES)
                if not data:
                    raise EOFError
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise EnvironmentFault(
                f"expected a line of JSON from the verifier's worker, found {line[:80]!r}", "verifier", True
            )
        return reply


def ask(kind: str, request: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
    """`WorkerPool.ask` by the pool that everything of this kind and time limit shares in this process."""
    size = max(1, min(8, os.cpu_count() or 1))
    lease = shared.acquire(("verifier", kind, timeout), lambda: WorkerPool(kind, timeout, size), linger=True)
    with contextlib.closing(lease):
        return lease.engine.ask(request)


def score(kind: str, request: Mapping[str, Any], timeout: float) -> float:
    """The score of an answer; 0 where judging it overran its time.

    Raises:
        EnvironmentFault: The worker is broken.
    """
    reply = ask(kind, request, timeout)
    if reply is None:
        return 0.0
    if not isinstance(reply.get("score"), float):
        raise EnvironmentFault(f"expected a score from the {kind} worker, found {reply}", "verifier", True)
    return float(reply["score"])


def _environment() -> dict[str, str]:
    """The host's variables, one thread a worker for the maths libraries, and a fixed hash seed."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
