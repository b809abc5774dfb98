"""The interpreter for asyncio: the same calls, awaited, so that those of many interpreters overlap in one event loop.

Each interpreter has a thread of its own, which does its calls one after another; asyncio's own threads are too few for a
batch of episodes. Awaiting may be cancelled: what was asked for goes on in the sandbox until its time is up, nobody hears of
its end, and the next call waits for it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from sandboxes.faults import SandboxFault
from sandboxes.python.interpreter import Done, Interpreter, Limits, Protection
from sandboxes.python.opening import open_interpreter

Result = TypeVar("Result")


class AsyncInterpreter:
    """An interpreter whose calls are awaited; `open_async` and `fork` make it.

    Args:
        interpreter: An open interpreter that from here on nobody else calls.

    Example:
        >>> async def main():
        ...     async with await open_async() as python:
        ...         await python.run("x = 6 * 7")
        ...         done = await python.run("print(x)")
        ...         return done.stdout
        >>> asyncio.run(main())
        '42\\n'
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._thread = _Thread()
        self._closed = False

    async def run(self, code: str, timeout: float | None = None, display: bool = False) -> Done:
        """Runs ``code``, as `Interpreter.run` does; raises what that raises."""
        self._check_open()
        return await self._thread.do(partial(self._interpreter.run, code, timeout=timeout, display=display))

    async def fork(self) -> AsyncInterpreter:
        """An independent copy as it is now, as `Interpreter.fork` makes it; raises what that raises."""
        self._check_open()
        return AsyncInterpreter(await self._thread.do(self._interpreter.fork, discard=_close))

    async def reset(self, seed: int = 0) -> None:
        """Makes it a clean interpreter again, as `Interpreter.reset` does; raises what that raises."""
        self._check_open()
        await self._thread.do(partial(self._interpreter.reset, seed))

    async def close(self) -> None:
        """Ends the interpreter with everything that it started, a call that is under way included. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._thread.end()
        await _in_thread(self._interpreter.close)  # its own thread may be in the call that this ends

    def describe(self) -> Protection:
        """Which protections are in force, as `Interpreter.describe` says it."""
        return self._interpreter.describe()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxFault("the interpreter is closed: open another one")


async def open_async(
    backend: Literal["auto", "local", "docker"] = "auto",
    *,
    isolation: Literal["auto", "none"] = "auto",
    limits: Limits | None = None,
    preload: Sequence[str] | None = None,
    programs: Sequence[str] = (),
    image: str | None = None,
    runtime: str | None = None,
    cpus: float = 1.0,
    reuse: int = 50,
    warm: int = 0,
    seed: int = 0,
) -> AsyncInterpreter:
    """Opens an interpreter for asyncio. The arguments, and what it raises, are those of `open_interpreter`.

    Returns:
        The interpreter; close it, or use it with ``async with``.
    """
    opens = partial(
        open_interpreter,
        backend,
        isolation=isolation,
        limits=limits,
        preload=preload,
        programs=programs,
        image=image,
        runtime=runtime,
        cpus=cpus,
        reuse=reuse,
        warm=warm,
        seed=seed,
    )
    return AsyncInterpreter(await _in_thread(opens, discard=_close))


def _close(interpreter: Interpreter) -> None:
    interpreter.close()


class _Thread:
    """Does one thing after another, in a thread of its own that keeps no program from ending."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="interpreter-async", daemon=True).start()

    async def do(self, job: Callable[[], Result], discard: Callable[[Result], object] | None = None) -> Result:
        """Has ``job`` done after those before it, and waits for what it returns.

        Args:
            job: What is to be done. It is left out if nobody waits for it any more when its turn comes.
            discard: Gets what it returned, in that thread, if by then nobody waits for it any more.
        """
        future: Future[Result] = Future()
        self._jobs.put((future, job))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if discard is not None:
                future.add_done_callback(partial(_discard, discard))
            raise

    def end(self) -> None:
        """Ends the thread after what it has to do; nothing else may be asked of it."""
        self._jobs.put(None)


def _work(jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (job := jobs.get()) is not None:
        _settle(*job)
        del job  # the result may be large, and the next job long in coming


def _settle(future: Future[Any], job: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job())
        except BaseException as problem:
            future.set_exception(problem)


def _discard(discard: Callable[[Any], object], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())


async def _in_thread(job: Callable[[], Result], discard: Callable[[Result], object] | None = None) -> Result:
    """Has one thing done in a thread that ends with it."""
    thread = _Thread()
    try:
        return await thread.do(job, discard)
    finally:
        thread.end()
