"""The Python tool: an interpreter that keeps its state for the length of an episode.

The interpreter itself, with all that keeps it apart from this machine, is `sandboxes.python`. This tool says in plain words
what came of a call and whose doing it was.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from agent_envs.faults import ForkError
from agent_envs.task import Task
from agent_envs.tool import Tool, ToolResult
from agent_envs.tools.settings import read_limits, read_options
from sandboxes.python import Done, ForkRefused, Interpreter, Limits, open_interpreter

_ERROR_LINES = 8  # of a traceback, counted from its end
_ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]{6,16}\b")  # as in "<object at 0x7f...>"


class PythonTool(Tool):
    """Runs Python code; variables and imports stay until the end of the episode.

    A call gives back what the code printed and the value of a last bare expression, then the end of the traceback if it
    raised; addresses in memory are masked, so that an episode reads the same each time. The interpreter opens at the first
    call of an episode, and a later episode finds a clean one. A copy in the middle of an episode has a copy of the live
    interpreter.

    Args:
        backend: Which interpreter: ``"auto"`` takes the strongest there is (`sandboxes.python.open_interpreter`).
        timeout: Seconds that one call may take.
        isolation: ``"none"`` permits an interpreter that nothing shuts in, where the kernel offers nothing.
        limits: Memory, output, files and processes of the interpreter: `Limits`, or a mapping of some of its fields.
        stateful: Whether a call finds what earlier ones left; without it each is a program of its own.
        fidelity: ``"exact"`` copies the live interpreter and refuses where something in it has no copy (a thread, a socket);
            ``"replay"`` runs the episode's calls again instead.
        options: Further arguments of `open_interpreter`, such as ``{"image": ..., "warm": 4}``.

    Raises:
        ValueError: An argument is none of those it may be.
    """

    name = "python"
    description = "Runs Python code and gives back what it prints. Variables stay for later calls."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python source"}},
        "required": ["code"],
    }
    examples = (
        {"code": "import random; print(random.random())"},
        {"code": "x = globals().get('x', 0) + 1; x"},
        {"code": "open('notes.txt', 'a').write('more'); print(open('notes.txt').read())"},
        {"code": "1/0"},
    )
    endless: Mapping[str, Any] | None = MappingProxyType({"code": "while True: pass"})

    def __init__(
        self,
        backend: Literal["auto", "local", "docker"] = "auto",
        timeout: float = 5.0,
        isolation: Literal["auto", "none"] = "auto",
        limits: Limits | Mapping[str, Any] | None = None,
        *,
        stateful: bool = True,
        fidelity: Literal["exact", "replay"] = "exact",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, known in (
            ("backend", backend, ("auto", "local", "docker")),
            ("isolation", isolation, ("auto", "none")),
            ("fidelity", fidelity, ("exact", "replay")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, found {value!r}")
        self.backend = backend
        self.timeout: float = timeout
        self.isolation = isolation
        self.limits = replace(read_limits(Limits, limits), timeout=timeout)
        self.stateful = stateful
        self.fidelity: Literal["exact", "replay"] = fidelity
        self.options = read_options(open_interpreter, options, own=("backend", "isolation", "limits", "seed"))
        if not stateful:
            self.description = "Runs a Python program and gives back what it prints."
        self._interpreter: Interpreter | None = None
        self._stale = False  # what ran in the interpreter belongs to an earlier episode, or to an earlier program
        self._seed = 0

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """The next call finds a clean interpreter, its random generators seeded from ``rng``."""
        self._seed = int(rng.integers(2**32))
        self._stale = self._interpreter is not None

    def run(self, *, code: str) -> ToolResult:
        """Runs code in the episode's interpreter.

        Returns:
            The output; faults are ``error`` (it raised), ``timeout`` and ``killed``.

        Raises:
            SandboxFault: The interpreter's engine is gone or could not start.
        """
        first_line = code.lstrip("\n")
        if first_line[:1] in (" ", "\t"):  # models like to put a blank after the tag, or indent the whole
            code = textwrap.dedent(code) if textwrap.dedent(code) != code else code.lstrip()
        try:
            return self._describe(self._open().run(code, timeout=self.timeout, display=True))
        except BaseException:
            self.close()
            raise

    def fork(self) -> PythonTool:
        """A tool with a copy of the live interpreter, or without one where none is needed.

        Raises:
            ForkError: Something in the interpreter has no copy; the message names it.
            SandboxFault: The interpreter's engine is gone.
        """
        twin = self.fresh()
        twin._seed = self._seed
        if self._interpreter is not None and not self._stale:
            try:
                twin._interpreter = self._interpreter.fork()
            except ForkRefused as refusal:
                raise ForkError(f"{refusal}; or give the tool fidelity='replay'") from refusal
        return twin

    def fresh(self) -> PythonTool:
        """A tool with the same settings and no interpreter yet."""
        return type(self)(
            self.backend,
            self.timeout,
            self.isolation,
            self.limits,
            stateful=self.stateful,
            fidelity=self.fidelity,
            options=self.options,
        )

    def close(self) -> None:
        """Ends the interpreter."""
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._interpreter is not None:
            raise TypeError("a Python tool with an open interpreter cannot be pickled or copied: close it first")
        return self.__dict__

    def _open(self) -> Interpreter:
        if self._interpreter is None:
            self._interpreter = open_interpreter(
                self.backend, isolation=self.isolation, limits=self.limits, seed=self._seed, **self.options
            )
        elif self._stale:
            self._interpreter.reset(self._seed)
        self._stale = not self.stateful
        if not self.stateful:
            self._seed += 1  # the next program draws other numbers, the same in each run of the episode
        return self._interpreter

    def _describe(self, done: Done) -> ToolResult:
        parts = [done.stdout.rstrip("\n")]
        if done.truncated:
            parts.append("[the rest of the output was left out]")
        if done.status == "timeout":
            parts.append(
                f"timed out after {self.timeout:g} s; the interpreter starts afresh, variables and imports are gone"
            )
        elif done.error:
            parts.append("\n".join(done.error.rstrip("\n").split("\n")[-_ERROR_LINES:]))
        text = _ADDRESS.sub("0x...", "\n".join(part for part in parts if part))
        return ToolResult(text or "(no output)", "" if done.status == "ok" else done.status)
