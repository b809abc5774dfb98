"""The Python tool: an interpreter that keeps its state for the length of an episode.

The interpreter itself, with all that keeps it apart from this machine, is `sandboxes.python`. This tool says in plain words
what came of a call and whose doing it was.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from agent_envs.task import Task
from agent_envs.tool import Fidelity, Tool, ToolResult
from sandboxes.python import Done, Interpreter, Limits, open_interpreter

_ERROR_LINES = 8  # of a traceback, counted from its end


class PythonTool(Tool):
    """Runs Python code; variables and imports stay until the end of the episode.

    A call gives back what the code printed and the value of a last bare expression, then the end of the traceback if it
    raised. The interpreter opens at the first call of an episode, and a later episode starts a clean one.

    Args:
        backend: Which interpreter: ``"auto"`` takes the strongest there is (`sandboxes.python.open_interpreter`).
        timeout: Seconds that one call may take.
        isolation: ``"none"`` permits an interpreter that nothing shuts in, where the kernel offers nothing.
        limits: Memory, output, files and processes of the interpreter.

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
    fidelity: ClassVar[Fidelity] = "replay"

    def __init__(
        self,
        backend: Literal["auto", "local", "docker"] = "auto",
        timeout: float = 5.0,
        isolation: Literal["auto", "none"] = "auto",
        limits: Limits | None = None,
    ) -> None:
        if backend not in ("auto", "local", "docker"):
            raise ValueError(f"backend must be 'auto', 'local' or 'docker', found {backend!r}")
        if isolation not in ("auto", "none"):
            raise ValueError(f"isolation must be 'auto' or 'none', found {isolation!r}")
        self.backend = backend
        self.timeout = timeout
        self.isolation = isolation
        self.limits = replace(limits or Limits(), timeout=timeout)
        self._interpreter: Interpreter | None = None
        self._used = False
        self._seed = 0

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """The next call finds a clean interpreter, its random generators seeded from ``rng``."""
        self._seed = int(rng.integers(2**32))
        self._used = self._interpreter is not None

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

    def fresh(self) -> PythonTool:
        """A tool with the same settings and no interpreter yet."""
        return type(self)(self.backend, self.timeout, self.isolation, self.limits)

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
            self._interpreter = open_interpreter(self.backend, isolation=self.isolation, limits=self.limits, seed=self._seed)
        elif self._used:
            self._interpreter.reset(self._seed)
        self._used = False
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
        text = "\n".join(part for part in parts if part)
        return ToolResult(text or "(no output)", "" if done.status == "ok" else done.status)
