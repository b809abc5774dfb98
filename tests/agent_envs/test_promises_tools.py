"""What the promises about environments with tools leave alone, of whom they are not asked, and what they hold on to."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gallery.words import Words
from gallery.workshop import OURS, Boxes, Lots, Opener, SameWord, Waiter, word_in, workshop

from agent_envs import Transcript
from agent_envs.actions import HermesFormat, PlainFormat, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault, ForkError
from agent_envs.task import Task, TaskSource, Verdict, Verifier
from agent_envs.testing import EXPERT, Episode, Finding, check_agent_env
from agent_envs.testing.stand_ins import exchanged, let_tools_run, occurs
from agent_envs.tool import Tool, ToolResult, tool
from agent_envs.verifiers.math import MathVerifier
from agent_envs.verifiers.qa import QAVerifier


def ask(make: Any, promise: str, **settings: Any) -> Finding:
    (finding,) = check_agent_env(make, only=promise, verbose=False, **settings).findings
    return finding


# --- nothing is wrong with these


SOUND = {
    "with thoughts named otherwise": lambda: workshop(format=TagFormat("thought", "final", "out", boxed=False)),
    "with JSON calls": lambda: workshop(format=HermesFormat()),
    "without calls": lambda: workshop(format=PlainFormat()),
    "with two turns": lambda: workshop(max_turns=2),
    "with accuracy as its reward": lambda: workshop(rewards=["accuracy"]),
    "with no reward": lambda: workshop(rewards=[]),
    "with small observations": lambda: workshop(max_observation=100),
    "as a transcript": lambda: Transcript(workshop()),
    "under a time limit": lambda: gym.wrappers.TimeLimit(workshop(), 3),
}


@pytest.mark.parametrize("what", SOUND)
def test_other_environments_that_keep_every_promise(what):
    check_agent_env(SOUND[what], only=OURS, verbose=False).raise_if_broken()


def test_of_an_environment_without_tools_only_copies_are_asked():
    report = check_agent_env(Words, only=OURS, verbose=False)
    assert {finding.promise.name for finding in report.findings if finding.status == "kept"} == {"fork", "fork apart"}
    assert {finding.found for finding in report.findings if finding.status != "kept"} == {"Words is no ToolEnv"}


@pytest.mark.parametrize(
    ("promise", "make", "why"),
    [
        ("examples", lambda: workshop(tools=[]), "it has no tools"),
        ("timeouts", lambda: workshop(tools=[Opener(), Lots()]), "no tool states both a timeout and an endless call"),
        ("oracle", lambda: workshop(format=PlainFormat()), "the format 'plain' has no calls of tools"),
        ("oracle", lambda: workshop(tasks=NoExpert()), "task source 'boxes' has no oracle"),
        ("secrets", lambda: workshop(tasks=YesOrNo()), "stand in the questions"),
        ("fork", lambda: workshop(tools=[Uncopyable()]), "it says that it cannot be copied: tool 'lots' cannot"),
        ("fork", lambda: Locked(), "copy.deepcopy raises TypeError: cannot"),
    ],
)
def test_what_is_not_asked_and_why(promise, make, why):
    finding = ask(make, promise)
    assert finding.status == "not asked"
    assert why in finding.found


class NoExpert(Boxes):
    """Boxes that nobody knows how to open."""

    def oracle(self, task: Task) -> Any:
        return TaskSource.oracle(self, task)


class YesOrNo(Boxes):
    """The answer is one of two, and both stand in the question."""

    def task(self, box: int) -> Task:
        return Task(f"boxes:{box}", f"Is box {box} empty, yes or no?", ("yes" if box % 2 else "no",))


class Uncopyable(Lots):
    """Says that it has no copy."""

    name = "lots"
    fidelity = "none"


class Locked(Words):
    """Holds what Python cannot copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Locked:
        raise TypeError("cannot copy a lock")


# --- what could be taken for a bug, and is none


class Numbers(Boxes):
    """Boxes with numbers in them, which are written in many ways."""

    def task(self, box: int) -> Task:
        return Task(f"boxes:{box}", f"How many are {box} and one?", (str(box + 1),))


def test_a_number_written_otherwise_is_no_garbage():
    make = lambda: workshop(tasks=Numbers(), verifier=MathVerifier())  # noqa: E731
    with make() as env:
        env.reset(seed=0)
        gold = env.task.answers[0]
        assert env.verifier.verify(f"0{gold}", env.task).success  # so it would be found, were it taken for garbage
    assert ask(make, "garbage", example=Episode(actions=[f"0{gold}", f"{gold}.0", f"+{gold}"])).status == "kept"


def test_a_share_of_the_accuracy_for_a_hedged_answer_is_no_success():
    make = lambda: workshop(verifier=QAVerifier())  # noqa: E731
    assert ask(make, "hedges").status == "kept"
    lenient = ask(lambda: workshop(verifier=QAVerifier(threshold=0.5)), "hedges")
    assert lenient.status == "broken"
    assert " or " in lenient.found


class NumberedByWord(Boxes):
    """Every third id holds the answer."""

    def task(self, box: int) -> Task:
        task = super().task(box)
        return Task(f"boxes:{box}:{task.answers[0]}", task.question, task.answers) if box % 3 == 0 else task

    def get(self, task_id: str) -> Task:
        return super().get(task_id.rpartition(":")[0] if task_id.count(":") == 2 else task_id)


def test_a_secret_is_told_where_most_tasks_tell_it():
    assert ask(lambda: workshop(tasks=NumberedByWord()), "secrets").status == "kept"


class SaysDone(Verifier):
    """Judges what the tools have changed, whatever the answer is; an answer alone cannot be judged."""

    def verify(self, answer: str, task: Task) -> Verdict:
        raise EnvironmentFault("this takes the tools")

    def verify_episode(self, answer: str, task: Task, tools: Any) -> Verdict:
        done = any(getattr(tool, "opened", None) == task.answers[0] for tool in tools)
        return Verdict(float(done), done)


class Watched(Opener):
    """Keeps in mind which word it has found last."""

    name = "opener"

    def __init__(self, opened: str = "") -> None:
        self.opened = opened

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.opened = ""

    def run(self, boxes: list[int]) -> str:
        found = super().run(boxes)
        self.opened = found
        return found

    def fork(self) -> Tool:
        return type(self)(self.opened)


def test_tasks_that_are_judged_by_what_was_done():
    make = lambda: workshop(tools=[Watched(), Waiter()], verifier=SaysDone())  # noqa: E731
    check_agent_env(make, only=OURS, verbose=False).raise_if_broken()


class RefusesOnce(Lots):
    """Has a copy until something was drawn."""

    name = "lots"

    def fork(self) -> Tool:
        if self.drawn:
            raise ForkError("a lot was drawn")
        return super().fork()


def test_a_tool_may_refuse_a_copy_of_some_states():
    make = lambda: workshop(tools=[Opener(), RefusesOnce()])  # noqa: E731
    assert [finding.status for finding in check_agent_env(make, only=["fork", "fork apart"], verbose=False).findings] == [
        "kept",
        "kept",
    ]


# --- what is held on to


@pytest.mark.parametrize(
    "kind",
    [
        "RuntimeError",
        "SandboxFault",
        "OSError",
        "TimeoutError",
        "MemoryError",
        "KeyError",
        "AssertionError",
        "RecursionError",
    ],
)
def test_faults_of_every_kind_are_looked_for(kind):
    class Swallows(ToolEnv):
        def step(self, action: str) -> Any:
            try:
                return super().step(action)
            except EnvironmentFault as fault:
                if type(fault.__cause__).__name__ != kind:
                    raise
                return "Error", 0.0, True, False, {}

    finding = ask(lambda: workshop(Swallows), "faults")
    assert finding.status == "broken"
    assert kind in finding.expected


def test_faults_in_reset_are_looked_for():
    class Starts(ToolEnv):
        def reset(self, **arguments: Any) -> Any:
            try:
                return super().reset(**arguments)
            except EnvironmentFault:
                return super().reset(**arguments)  # once more, in silence

    finding = ask(lambda: workshop(Starts), "faults")
    assert finding.status == "broken"
    assert "reset of opener raises" in finding.expected


class Hangs(Waiter):
    """Comes back long after its time limit."""

    name = "waiter"

    def run(self, seconds: int) -> ToolResult:
        if seconds > self.timeout:
            time.sleep(8)
        return ToolResult("done")


def test_a_call_that_does_not_come_back_is_left_behind():
    begin = time.monotonic()
    finding = ask(lambda: workshop(tools=[Hangs()]), "timeouts")
    assert time.monotonic() - begin < 7
    assert finding.status == "broken"
    assert "was left behind in its thread" in finding.found
    assert "whose timeout is 0.2 s" in finding.expected


class SlowByDefault(Waiter):
    """Has a long time limit, which may be set to a shorter one."""

    name = "waiter"
    timeout = 30.0


def test_a_shorter_time_limit_is_tried_where_a_tool_takes_one():
    begin = time.monotonic()
    assert ask(lambda: workshop(tools=[SlowByDefault()]), "timeouts").status == "kept"
    assert time.monotonic() - begin < 10


def test_a_copy_is_asked_for_before_in_and_after_the_episode():
    for at in range(4):
        assert ask(workshop, "fork", example=Episode(0, [EXPERT, EXPERT], at)).status == "kept"


# --- stand-ins


@tool
def echo(text: str) -> str:
    """Says it again."""
    return text


def test_a_stand_in_leaves_the_tool_as_it_was():
    env = workshop(tools=[echo, Waiter()])
    let_tools_run(env, lambda tool, /, **arguments: f"{tool.name} stands in")
    env.reset(seed=0)
    assert env.step("<echo>hello</echo>")[0] == "echo stands in"
    assert workshop(tools=[echo]).tools == (echo,)
    assert echo.run(text="hello").text == "hello"


def test_an_exchanged_object_is_of_the_same_class_and_state():
    lots = Lots()
    lots.drawn = 3
    twin = exchanged(lots, timeout=1.0)
    assert type(twin) is Lots
    assert (twin.drawn, twin.timeout, lots.timeout) == (3, 1.0, None)


@pytest.mark.parametrize(
    ("text", "within", "expected"),
    [
        ("paris", "In Paris.", True),
        ("42", "142", False),
        ("a+b", "is a+b?", True),
        ("art", "party", False),
        ("-1", "it is -1", True),
    ],
)
def test_where_a_text_occurs(text, within, expected):
    assert occurs(text, within) is expected


@tool
def hammer(tool: str) -> str:
    """Names another tool."""
    return tool


def test_a_parameter_may_be_called_tool():
    for promise in ("authorship", "faults", "tool errors", "floods", "arguments", "examples"):
        assert ask(lambda: workshop(tools=[hammer]), promise).status == "kept"


def test_a_schema_with_a_tuple_is_no_json():
    class Tuple(Opener):
        """Opens boxes."""

        name = "opener"
        parameters = {"type": "object", "properties": {"boxes": {"type": "array"}}, "required": ("boxes",)}  # noqa: RUF012

    assert "('boxes',)" in ask(lambda: workshop(tools=[Tuple()]), "tools").found


def test_the_schema_of_a_read_only_mapping_is_no_json():
    class ReadOnly(Opener):
        """Opens boxes."""

        name = "opener"
        parameters = MappingProxyType({"type": "object", "properties": {}, "required": []})

        def run(self) -> str:
            return word_in(1)

    assert "mappingproxy is not JSON" in ask(lambda: workshop(tools=[ReadOnly()], verifier=SameWord()), "tools").found
