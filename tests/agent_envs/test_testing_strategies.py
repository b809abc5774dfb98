"""Actions and episodes that the kit draws of an environment."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import parts
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from kit_parts import Parrot

from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.task import NoOracle
from agent_envs.testing import EXPERT, Episode, Subject, Trace, actions, episodes, play
from agent_envs.testing.strategies import Action

DRAWN = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
SHRUNK = settings(DRAWN, phases=[Phase.generate, Phase.shrink])


def played(make: Any, count: int) -> list[Trace]:
    """Drawn episodes, as the environment played them."""
    traces: list[Trace] = []
    with make() as env:

        @settings(DRAWN, max_examples=count)
        @given(episodes(make, 5))
        def collect(episode: Episode) -> None:
            traces.append(play(env, episode))

        collect()
    return traces


@pytest.mark.parametrize("name", parts.SETTINGS)
def test_most_episodes_reach_a_tool(name: str) -> None:
    traces = played(functools.partial(parts.make, name), 300)
    infos = [[moment.info for moment in trace[1:]] for trace in traces]
    assert sum(any(info["tool"] for info in trace) for trace in infos) > 150
    assert sum(any(info["tool"] and not info["policy_fault"] for info in trace) for trace in infos) > 75
    assert {info["policy_fault"] for trace in infos for info in trace} > {"", "no_action"}
    assert {info["tool"] for trace in infos for info in trace} >= {tool.name for tool in parts.make(name).unwrapped.tools}  # type: ignore[attr-defined]


def test_actions_of_a_tool_environment_are_of_every_kind() -> None:
    env = ToolEnv(tasks=parts.Riddles(), verifier=parts.SameString(), tools=[parts.divide, parts.shout])
    drawn: list[Action] = []

    @settings(DRAWN, max_examples=3_000)
    @given(actions(lambda: ToolEnv(tasks=parts.Riddles(), verifier=parts.SameString(), tools=[parts.divide, parts.shout])))
    def collect(action: Action) -> None:
        drawn.append(action)

    collect()
    assert EXPERT in drawn
    parsed = [env.format.parse(action, env.tools) for action in drawn if isinstance(action, str)]
    calls = [read.move for read in parsed if isinstance(read.move, Call)]
    assert {call.tool for call in calls} == {"divide", "shout"}
    fitting = [call.arguments for call in calls if call.tool == "divide" and set(call.arguments) <= {"a", "b", "exact"}]
    assert {frozenset(arguments) for arguments in fitting} >= {frozenset("a"), frozenset({"a", "b"})}
    assert any(not isinstance(arguments.get("a", 0), int) for arguments in fitting), "wrong types"
    assert any(not {"a", "b", "exact"} >= set(call.arguments) for call in calls if call.tool == "divide"), (
        "unknown arguments"
    )
    assert any(call.thought for call in calls)
    assert any(isinstance(read.move, Answer) for read in parsed)
    assert {"unknown_tool", "no_action", "bad_arguments"} <= {read.fault for read in parsed}


def test_actions_of_another_text_environment_are_texts_and_samples_of_its_space() -> None:
    class Letters(Parrot):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Text(min_length=7, max_length=7, charset="xyz")  # type: ignore[assignment]

    drawn: list[Action] = []

    @settings(DRAWN, max_examples=200)
    @given(actions(Letters))
    def collect(action: Action) -> None:
        drawn.append(action)

    collect()
    texts = [action for action in drawn if isinstance(action, str)]
    assert len(texts) == len(drawn)
    assert sum(len(text) == 7 and set(text) <= set("xyz") for text in texts) > 20
    assert any(len(text) > 10_000 for text in texts)


def test_episodes_shrink_to_few_and_simple_actions() -> None:
    make = functools.partial(parts.make, "MathTool-v0")
    assert find(episodes(make), lambda episode: True, settings=SHRUNK) == Episode(0, (), 0)
    assert find(episodes(make), lambda episode: len(episode.actions) > 1, settings=SHRUNK).actions == (EXPERT, EXPERT)
    called = find(
        episodes(make), lambda episode: any("<python>" in str(action) for action in episode.actions), settings=SHRUNK
    )
    assert len(called.actions) == 1
    assert called.seed == called.at == 0


def test_they_take_an_id_an_environment_a_function_and_a_subject() -> None:
    env = gym.make("agent_envs/MathTool-v0")
    for what in ("MathTool-v0", "agent_envs/MathTool-v0", "agent_envs:agent_envs/MathTool-v0", env, Parrot, Subject(Parrot)):
        episode = find(episodes(what), lambda episode: bool(episode.actions), settings=SHRUNK)  # type: ignore[arg-type]
        assert len(episode.actions) == 1


def test_what_is_no_text_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="action_space of strings"):
        actions(lambda: WithNumbers())
    with pytest.raises(TypeError, match=r"CartPole|observation_space of strings"):
        episodes("CartPole-v1")


class WithNumbers(Parrot):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(2)  # type: ignore[assignment]


def test_an_episode_can_be_written_down_and_read_again() -> None:
    episode = Episode(3, (EXPERT, "<think>" * 20_000 + "\ud800", "short"), 2)
    assert eval(repr(episode)) == Episode(3, [EXPERT, "<think>" * 20_000 + "\ud800", "short"], 2)
    assert len(repr(episode)) < 120


def test_an_oracle_that_has_lost_its_way_does_nothing() -> None:
    class Lost(parts.Riddles):
        def oracle(self, task: Any) -> Any:
            def expert(observation: str) -> Answer:
                if observation != task.question:
                    raise LookupError("where am I?")
                return Answer(task.answers[0])

            return expert

    with ToolEnv(tasks=Lost(), verifier=parts.SameString()) as env:
        trace = play(env, Episode(0, ("nonsense", EXPERT)))
    assert [moment.action for moment in trace] == [None, "nonsense", ""]


def test_a_task_without_an_oracle_is_played_without() -> None:
    class Some(parts.Riddles):
        def oracle(self, task: Any) -> Any:
            raise NoOracle("not for this one")

    with ToolEnv(tasks=Some(), verifier=parts.SameString()) as env:
        trace = play(env, Episode(0, (EXPERT,)))
    assert [moment.action for moment in trace] == [None, ""]
