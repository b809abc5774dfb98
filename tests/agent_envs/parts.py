"""Small real parts that the tests of environments are built from."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from agent_envs.actions import Answer, Call
from agent_envs.task import Oracle, Task, TaskSource, UnknownTask
from agent_envs.tool import Fidelity, Tool, ToolError, ToolResult, tool
from agent_envs.verifiers import Verdict, Verifier


class Riddles(TaskSource):
    """Three questions with one word each as their answer."""

    name = "riddles"
    splits = ("train",)
    answers: Mapping[str, str] = {"Capital of France?": "Paris", "Seven times six?": "42", "Colour of snow?": "white"}

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        return self.get(f"riddles:{int(rng.integers(len(self.answers)))}")

    def get(self, task_id: str) -> Task:
        for number, (question, answer) in enumerate(self.answers.items()):
            if task_id == f"riddles:{number}":
                return Task(task_id, question, (answer,))
        raise UnknownTask(f"no riddle {task_id!r}")

    def oracle(self, task: Task) -> Oracle:
        return lambda observation: Answer(task.answers[0])


class SameString(Verifier):
    """Accepts the gold answer, letter by letter."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = answer in task.answers
        return Verdict(float(right), right)


class Dice(Tool):
    """Rolls dice from its own generator and counts the rolls: state that a copy must take along."""

    name = "dice"
    description = "Rolls a die with that many sides."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {"sides": {"type": "integer"}}, "required": ["sides"]}
    fidelity: ClassVar[Fidelity] = "exact"

    def __init__(self, rolls: int = 0, rng: np.random.Generator | None = None) -> None:
        self.rolls = rolls
        self.rng = rng

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.rolls, self.rng = 0, rng

    def run(self, *, sides: int) -> ToolResult:
        if sides < 1:
            raise ToolError("a die has at least one side")
        assert self.rng is not None
        self.rolls += 1
        return ToolResult(f"roll {self.rolls}: {int(self.rng.integers(sides)) + 1}")

    def fork(self) -> Dice:
        twin = np.random.default_rng()
        assert self.rng is not None
        twin.bit_generator.state = self.rng.bit_generator.state
        return Dice(self.rolls, twin)


class ReplayedDice(Dice):
    """The same dice, copied by rolling again."""

    fidelity: ClassVar[Fidelity] = "replay"

    def fresh(self) -> ReplayedDice:
        return ReplayedDice()


class Clockwork(ReplayedDice):
    """Dice that never roll the same twice: no replay can be right."""

    turned: ClassVar[int] = 0

    def run(self, *, sides: int) -> ToolResult:
        Clockwork.turned += 1
        return ToolResult(f"turn {Clockwork.turned}")

    def fresh(self) -> Clockwork:
        return Clockwork()


class Uncopyable(Dice):
    """Dice that cannot be copied."""

    fidelity: ClassVar[Fidelity] = "none"


class Broken(Tool):
    """Raises whatever it was given, in ``run`` or in ``reset``."""

    name = "broken"
    description = "Does not work."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {}, "required": []}

    def __init__(self, error: Exception, at: str = "run") -> None:
        self.error = error
        self.at = at

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        if self.at == "reset":
            raise self.error

    def run(self) -> ToolResult:
        raise self.error


class BrokenVerifier(Verifier):
    """A verifier whose engine is gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def verify(self, answer: str, task: Task) -> Verdict:
        raise self.error


@tool
def shout(text: str) -> str:
    """Gives the text back in capitals.

    Args:
        text: Any text.
    """
    return text.upper()


@tool
def divide(a: int, b: int = 2, exact: bool = False) -> float | int:
    """Divides two numbers.

    The second paragraph is for people.

    Args:
        a: What is divided.
        b: By what. A line that is long
            goes on here.
        exact: Whether to keep the fraction.

    Returns:
        The quotient.
    """
    if b == 0:
        raise ToolError("cannot divide by zero")
    return a / b if exact else a // b


def call(name: str, **arguments: Any) -> Call:
    return Call(name, arguments)


# --- every registered id

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "MathTool-v0": {},
    "WikiSearch-v0": {},
    "DeepSearch-v0": {"browser": "reader"},
    "WebBrowse-v0": {"backend": "reader"},
}
"""For each registered name, what makes it need nothing but this machine's Python."""

CALLS: Mapping[str, tuple[str, ...]] = {
    "MathTool-v0": (
        "<python>import random; print(random.random())</python>",
        "<python>x = globals().get('x', 0) + 1; x</python>",
        "<python>1/0</python>",
    ),
    "WikiSearch-v0": (
        "<search>the mayor of a city</search>",
        "<search>Who is the spouse of Tal?</search>",
        "<search></search>",
    ),
    "DeepSearch-v0": (
        "<search>the mayor of a city</search>",
        "<browse>nothing of that name</browse>",
        "<browse>http://127.0.0.1:1/</browse>",
        "<python>x = globals().get('x', 0) + 1; x</python>",
    ),
    "WebBrowse-v0": (
        '<browse>{"action": "read"}</browse>',
        '<browse>{"action": "click", "ref": "e9"}</browse>',
        '<browse>{"action": "goto", "text": "http://wiki.test/list/novel"}</browse>',
        '<browse>{"action": "goto", "text": "http://wiki.test/settings"}</browse>',
    ),
}
"""For each registered name, calls of its tools that can be made at any time."""


def make(name: str, **settings: Any) -> gym.Env[str, str]:
    """The environment of a registered name, on this machine's Python alone."""
    return gym.make(f"agent_envs/{name}", **{**SETTINGS[name], **settings})


def finish(env: gym.Env[str, str], observation: str) -> tuple[float, dict[str, Any], list[str]]:
    """Lets the oracle finish an episode: the last reward, the last info, and what it did."""
    oracle = env.unwrapped.oracle()  # type: ignore[attr-defined]
    reward, terminated, info, actions = 0.0, False, {}, []
    while not terminated:
        actions.append(oracle(observation))
        observation, reward, terminated, _, info = env.step(actions[-1])
    return float(reward), info, actions


def boxed(answer: str) -> str:
    """The action that gives this answer."""
    return rf"<answer>\boxed{{{answer}}}</answer>"


@contextlib.contextmanager
def pages(content: Mapping[str, str]) -> Iterator[str]:
    """A web site on this machine with a page at each path; its ``host:port``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = content.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever asked may have heard enough
                self.wfile.write((page or "not here").encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
