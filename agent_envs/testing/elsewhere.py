"""Runs a function in a new Python process: another hash seed, nothing imported, nothing open.

This file is also what runs there. It reads its request from one file and writes its reply into another, since standard
output belongs to whatever is checked. It needs nothing but Python until it has the path that the request names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_REQUEST, _REPLY = "request", "reply"


class Elsewhere(RuntimeError):
    """The function raised in the other process, or the process died; the message says what was the case there."""


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Args:
        value: What the function returned.
        printed: What the process wrote to its standard output and standard error.
    """

    value: Any
    printed: str


def run_elsewhere(
    function: Callable[..., Any],
    *arguments: Any,
    hash_seed: int = 1,
    folder: str | None = None,
    variables: Mapping[str, str] | None = None,
    timeout: float = 300.0,
) -> Outcome:
    """Calls a function in a new process that imports from the same path as this one.

    Args:
        function: At the top of a module.
        arguments: Its arguments; they and what it returns are pickled.
        hash_seed: The process's ``PYTHONHASHSEED``.
        folder: Its working directory; this process's own if None.
        variables: Its environment variables; this process's own if None.
        timeout: Seconds that it may take.

    Raises:
        Elsewhere: It raised, died or took too long.
        Exception: What pickling raises.

    The process has a temporary folder of its own, which is removed afterwards with whatever was left in it.
    """
    with tempfile.TemporaryDirectory(prefix="kit-", ignore_cleanup_errors=True) as exchange:
        temporary, printed, reply = (Path(exchange, name) for name in ("tmp", "printed", _REPLY))
        temporary.mkdir()
        Path(exchange, _REQUEST).write_bytes(pickle.dumps((sys.path, pickle.dumps((function, arguments)))))
        own = {"PYTHONHASHSEED": str(hash_seed), "TMPDIR": str(temporary)}
        with printed.open("wb") as output:
            status = _run(
                [sys.executable, "-P", __file__, exchange], folder, {**(variables or os.environ), **own}, output, timeout
            )
        said = printed.read_text(errors="replace")
        if not reply.exists():
            raise Elsewhere(f"the process ended with status {status}: {said[-500:].strip()}")
        good, value = pickle.loads(reply.read_bytes())
    if not good:
        raise Elsewhere(value)
    return Outcome(value, said)


def _run(command: list[str], folder: str | None, variables: Mapping[str, str], output: BinaryIO, timeout: float) -> int:
    """Waits for a process, though not for those that it leaves behind: these are killed."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, **streams) as process:
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Elsewhere(f"nothing came of it in {timeout:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _main(exchange: str) -> None:
    path, request = pickle.loads(Path(exchange, _REQUEST).read_bytes())
    sys.path[:] = path
    logging.lastResort = logging.NullHandler()  # what is logged to nobody is no print
    try:
        function, arguments = pickle.loads(request)
        reply = pickle.dumps((True, function(*arguments)))
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.name} ({Path(last.filename).name}:{last.lineno})"
        reply = pickle.dumps((False, f"{type(error).__name__}: {error}, in {place}"))
    Path(exchange, _REPLY).write_bytes(reply)


if __name__ == "__main__":
    _main(sys.argv[1])
