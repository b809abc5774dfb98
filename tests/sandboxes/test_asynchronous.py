"""The interpreter for asyncio: nothing waits for anybody else, and nobody is the worse for a call that was given up."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from sandboxes.faults import SandboxFault
from sandboxes.python import Limits, open_interpreter
from sandboxes.python.asynchronous import AsyncInterpreter, open_async
from sandboxes.python.interpreter import Done, Interpreter, Protection


class Notebook(Interpreter):
    """An interpreter that writes down what it is asked, and takes as long as the test wants."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.threads: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        self.closed = 0

    def run(self, code: str, timeout: float | None = None, display: bool = False) -> Done:
        self.threads.add(threading.current_thread().name)
        self.asked.append(code)
        self.go_on.wait(10)
        if code == "closed":
            raise SandboxFault("the interpreter was closed during a call")
        return Done(code, "", "ok", 0.0)

    def fork(self) -> Notebook:
        self.asked.append("fork")
        self.go_on.wait(10)
        self.twin = Notebook()
        return self.twin

    def reset(self, seed: int = 0) -> None:
        self.asked.append(f"reset {seed}")

    def close(self) -> None:
        self.closed += 1
        self.go_on.set()

    def describe(self) -> Protection:
        return Protection("notebook")


async def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.002)


def threads() -> int:
    """How many threads of interpreters there are, once those that are ending have ended."""
    mine = [thread for thread in threading.enumerate() if thread.name == "interpreter-async"]
    for thread in mine:
        thread.join(2)
    return sum(thread.is_alive() for thread in mine)


def test_it_opens_as_the_other_does() -> None:
    parameters = [
        [(name, parameter.kind, parameter.default) for name, parameter in inspect.signature(opens).parameters.items()]
        for opens in (open_interpreter, open_async)
    ]
    assert parameters[0] == parameters[1]


def test_state_fork_reset_and_close() -> None:
    async def main() -> None:
        async with await open_async("local", preload=(), seed=3) as python:
            assert (await python.run("x = 6 * 7")).status == "ok"
            twin = await python.fork()
            assert (await twin.run("x += 1\nx", display=True)).stdout == "43\n"
            await python.run("x -= 1")
            assert (await twin.run("print(x)")).stdout == "43\n"
            assert (await python.run("print(x)")).stdout == "41\n"
            assert (await twin.run("while True: pass", timeout=0.1)).status == "timeout"
            await python.reset(seed=4)
            assert (await python.run("print(x)")).status == "error"
            assert python.describe().backend == "local"
            await twin.close()
            await twin.close()
        for use in (lambda: python.run("1"), python.reset, python.fork):
            with pytest.raises(SandboxFault, match="open another"):
                await use()

    asyncio.run(main())
    assert threads() == 0


def test_calls_of_different_interpreters_overlap() -> None:
    async def main() -> None:
        pythons = [AsyncInterpreter(Notebook()) for _ in range(200)]
        notebooks = [python._interpreter for python in pythons]
        for notebook in notebooks:
            notebook.go_on.clear()
        calls = [asyncio.create_task(python.run("x")) for python in pythons]
        await eventually(lambda: all(notebook.asked for notebook in notebooks))
        assert not any(call.done() for call in calls)
        for notebook in notebooks:
            notebook.go_on.set()
        await asyncio.gather(*calls)
        await asyncio.gather(*(python.close() for python in pythons))

    asyncio.run(main())
    assert threads() == 0


def test_a_cancelled_call_leaves_the_interpreter_usable() -> None:
    async def main() -> None:
        async with await open_async("local", preload=()) as python:
            await python.run("x = 1")
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(python.run("import time; time.sleep(0.5); x = 2"), 0.1)
            assert time.monotonic() - started < 0.4
            assert (await python.run("print(x)")).stdout == "2\n", "it waited for the end of the abandoned one"
            assert time.monotonic() - started >= 0.5

    asyncio.run(main())


def test_a_call_that_is_given_up_before_its_turn_is_never_made() -> None:
    async def main() -> None:
        notebook = Notebook()
        async with AsyncInterpreter(notebook) as python:
            notebook.go_on.clear()
            first = asyncio.create_task(python.run("first"))
            await eventually(lambda: notebook.asked == ["first"])
            second = asyncio.create_task(python.run("second"))
            third = asyncio.create_task(python.run("third"))
            await asyncio.sleep(0.01)
            second.cancel()
            first.cancel()
            await asyncio.sleep(0.01)
            notebook.go_on.set()
            assert (await third).stdout == "third"
            assert notebook.asked == ["first", "third"]
            assert len(notebook.threads) == 1

    asyncio.run(main())


def test_a_copy_that_nobody_waits_for_is_closed() -> None:
    async def main() -> None:
        notebook = Notebook()
        async with AsyncInterpreter(notebook) as python:
            notebook.go_on.clear()
            fork = asyncio.create_task(python.fork())
            await eventually(lambda: notebook.asked == ["fork"])
            fork.cancel()
            await asyncio.wait([fork])
            notebook.go_on.set()
            await python.run("next")
            await eventually(lambda: notebook.twin.closed == 1)

    asyncio.run(main())


def test_an_interpreter_whose_opening_is_given_up_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook()
    opening = threading.Event()
    may_open = threading.Event()

    def opens(*arguments: object, **keywords: object) -> Notebook:
        opening.set()
        may_open.wait(10)
        return notebook

    monkeypatch.setattr("sandboxes.python.asynchronous.open_interpreter", opens)

    async def main() -> None:
        task = asyncio.create_task(open_async())
        await eventually(opening.is_set)
        task.cancel()
        await asyncio.wait([task])
        may_open.set()
        await eventually(lambda: notebook.closed == 1)

    asyncio.run(main())
    assert threads() == 0


def test_closing_ends_a_call_that_is_under_way() -> None:
    async def main() -> None:
        python = await open_async("local", preload=())
        call = asyncio.create_task(python.run("while True: pass", timeout=60))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await python.close()
        with pytest.raises(SandboxFault, match="closed"):
            await call
        assert time.monotonic() - started < 5

    asyncio.run(main())
    assert threads() == 0


def test_errors_pass_through() -> None:
    async def main() -> None:
        async with await open_async("local", preload=(), limits=Limits(branches=1)) as python:
            with pytest.raises(TypeError, match="string of Python"):
                await python.run(7)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="timeout must be"):
                await python.run("1", timeout=-1)
            assert (await python.run("1")).status == "ok"
        with pytest.raises(ValueError, match="found 'cloud'"):
            await open_async("cloud")  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_program_ends_although_a_call_is_under_way() -> None:
    code = (
        "import asyncio\nfrom sandboxes.python.asynchronous import open_async\n"
        "async def main():\n    python = await open_async('local', preload=())\n"
        "    call = asyncio.create_task(python.run('while True: pass', timeout=600))\n    await asyncio.sleep(0.3)\n"
        "asyncio.run(main())\nprint('the end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("the end\n", "")
