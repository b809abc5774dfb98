"""The state machine: sound environments pass it, and what only shows in a mixture of episodes it finds."""

from __future__ import annotations

import functools
import unittest
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import parts
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from kit_parts import Mindful, Parrot, Raising, Siamese, Unseeded

from agent_envs.env import ToolEnv
from agent_envs.testing import AgentEnvMachine, Broken

QUICK = settings(
    max_examples=60,
    stateful_step_count=12,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    phases=[Phase.generate, Phase.shrink],
)
UNTIL_FOUND = settings(QUICK, max_examples=600)  # one of fifteen runs finds the rarest; the first that does ends the search


class ParrotMachine(AgentEnvMachine):
    env = Parrot


TestParrot = ParrotMachine.TestCase
TestParrot.settings = QUICK


def machine(make: Callable[[], gym.Env[Any, Any]]) -> type[AgentEnvMachine]:
    """A machine for whatever the function makes."""
    return type("Machine", (AgentEnvMachine,), {"env": make})


@pytest.mark.parametrize("name", parts.SETTINGS)
def test_our_environments_pass(name: str) -> None:
    run_state_machine_as_test(machine(functools.partial(parts.make, name)), settings=settings(QUICK, max_examples=6))


@pytest.mark.parametrize("tool", [parts.Dice, parts.ReplayedDice, parts.Uncopyable])
def test_tools_with_state_pass_whichever_way_they_are_copied(
    tool: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.Dice, "policy_errors", (ValueError,))  # numpy's dice have at most 2 ** 63 sides

    def make() -> ToolEnv:
        return ToolEnv(tasks=parts.Riddles(), verifier=parts.SameString(), tools=[tool()])

    run_state_machine_as_test(machine(make), settings=settings(QUICK, max_examples=25))


@pytest.mark.parametrize(
    ("broken", "steps"),
    [
        pytest.param(Siamese, ("state.fork(", "action="), id="a copy that shares state"),
        pytest.param(Mindful, ("action=", "state.re"), id="state left from an earlier episode"),
        pytest.param(Unseeded, ("state.begin(",), id="the global generator"),
    ],
)
def test_it_finds(broken: type[Parrot], steps: tuple[str, ...]) -> None:
    with pytest.raises(Broken, match="what a new environment gives that is asked for the same, alone") as caught:
        run_state_machine_as_test(machine(broken), settings=UNTIL_FOUND)
    program = "\n".join(caught.value.__notes__)
    assert all(step in program for step in steps), program
    assert program.count("state.") <= 12, "it is made smaller"


def test_it_finds_what_a_step_gives_wrongly() -> None:
    class Nan(Parrot):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest  # type: ignore[return-value]

    with pytest.raises(Broken, match="expected a finite number as reward; found nan after action 1"):
        run_state_machine_as_test(machine(Nan), settings=UNTIL_FOUND)


def test_long_actions_are_printed_short_and_given_as_plain_texts() -> None:
    class Brief(Parrot):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            assert type(action) is str
            if len(action) > 5_000:
                raise MemoryError("too much")
            return super().step(action)

    with pytest.raises(MemoryError) as caught:
        run_state_machine_as_test(machine(Brief), settings=UNTIL_FOUND)
    program = "\n".join(caught.value.__notes__)
    assert "action='" in program
    assert len(program) < 1_000


def test_what_an_environment_raises_is_raised_and_everything_is_closed() -> None:
    class Raises(Raising):
        opened = 0

        def __init__(self) -> None:
            super().__init__()
            type(self).opened += 1

    with pytest.raises(RuntimeError, match="the parrot is dead"):
        run_state_machine_as_test(machine(Raises), settings=settings(QUICK, max_examples=10))
    assert Raises.closed >= Raises.opened - 1  # pickle and the first look make and close some more


def test_three_lines_are_enough_and_one_less_is_told() -> None:
    result = unittest.TestResult()
    ParrotMachine.TestCase().run(result)
    assert result.wasSuccessful(), result.errors + result.failures

    class Forgetful(AgentEnvMachine):
        pass

    with pytest.raises(TypeError, match="Forgetful does not say what to check"):
        Forgetful()


def test_it_takes_seconds_unless_it_is_told_otherwise() -> None:
    class Mine(AgentEnvMachine):
        env = Parrot

    assert (Mine.TestCase.settings.max_examples, Mine.TestCase.settings.stateful_step_count) == (20, 25)
    assert Mine.TestCase.settings.deadline is None
