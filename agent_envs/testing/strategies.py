"""What Hypothesis draws of an environment: actions and episodes.

Most of the actions mean something to the environment, so that episodes get somewhere: calls that its tools take, its
oracle's moves, answers. Some are almost right, and a few are any text at all (`agent_envs.testing.adversarial`).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from hypothesis import strategies as st

from agent_envs.actions import Format
from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call, Move
from agent_envs.testing.adversarial import mutations, texts
from agent_envs.testing.episode import EXPERT, Action, Episode
from agent_envs.testing.subject import Checkable, Subject
from agent_envs.testing.values import values, wrong_arguments
from agent_envs.testing.weighted import weighted
from agent_envs.tool import Tool

_WORDS = st.text("ab 01", max_size=6)

_LONGEST_SAMPLE = 200  # characters of a sample of a space; a longer text comes from `texts`, which can be made smaller


def actions(env: Subject | Checkable) -> st.SearchStrategy[Action]:
    """Actions for an environment.

    For a `ToolEnv`: tool calls with arguments that fit the tools' schemas and with their ``examples``, the oracle's moves
    (``EXPERT``), answers, calls of unknown tools or with wrong arguments, mutations of all these, and texts that break
    parsers. For another text environment: texts, and samples of its action space.

    Args:
        env: An id, an environment, a function that makes one, or a `Subject`.

    Raises:
        TypeError: The environment takes or gives something other than text.

    Example:
        >>> from hypothesis import given
        >>> @given(actions("agent_envs/MathTool-v0"))
        ... def test_mine(action): ...
    """
    subject = env if isinstance(env, Subject) else Subject(env)
    with subject.env() as made:
        if not isinstance(made.unwrapped, ToolEnv):
            return _texts_for(made.action_space)
        moves = _moves(made.unwrapped.format, made.unwrapped.tools)
    expert: list[tuple[int, st.SearchStrategy[Action]]] = [(3, st.just(EXPERT))] if subject.has_oracle else []
    return weighted(*expert, *moves)


def episodes(env: Subject | Checkable, max_actions: int = 6) -> st.SearchStrategy[Episode]:
    """Episodes of an environment: a seed, actions, and a point of time; they shrink to short ones of simple actions.

    Args:
        env: As for `actions`.
        max_actions: The most actions in an episode.
    """
    subject = env if isinstance(env, Subject) else Subject(env)
    drawn = actions(subject)
    some, several = min(1, max_actions), min(2, max_actions)
    lists = [
        (weight, st.lists(drawn, min_size=least, max_size=max_actions))
        for weight, least in ((1, 0), (3, some), (3, several))
    ]
    return st.builds(
        Episode,
        seed=st.one_of(st.integers(0, 100), st.integers(0, 2**31 - 1)),
        actions=weighted(*lists).map(tuple),  # of plain lists every fourth would be empty
        at=st.integers(0, max_actions),
    )


def _moves(format: Format, tools: Sequence[Tool]) -> list[tuple[int, st.SearchStrategy[Action]]]:
    """Actions of a `ToolEnv` as its format writes them, with their weights."""
    names = [tool.name for tool in tools]
    anything = texts([*format.stop(tools), *(f"<{name}>" for name in names)])
    strings = weighted((3, _WORDS), (1, anything))
    write = _writer(format, tools)
    moves = [(2, st.builds(Answer, strings).map(write))]
    if tools:
        examples = [Call(tool.name, arguments) for tool in tools for arguments in tool.examples]
        calls = st.one_of([_calls(tool, strings) for tool in tools]).map(write)
        wrong = st.one_of([_calls(tool, strings, wrong=True) for tool in tools]).map(write)
        named = re.compile("|".join(map(re.escape, names)))
        unknown = calls.map(lambda action: named.sub("no_such_tool", action))
        moves = [*([(4, st.sampled_from(examples).map(write))] if examples else []), (4, calls), *moves]
        moves += [(1, unknown), (1, wrong)]
    return [*moves, (2, mutations(weighted(*moves), anything)), (1, anything)]


@st.composite
def _calls(draw: st.DrawFn, tool: Tool, strings: st.SearchStrategy[str], wrong: bool = False) -> Call:
    schema = {**tool.parameters, "type": "object"}
    arguments = draw(wrong_arguments(schema, strings) if wrong else values(schema, strings))
    return Call(tool.name, arguments, draw(weighted((2, st.just("")), (1, _WORDS))))


def _writer(format: Format, tools: Sequence[Tool]) -> Callable[[Move], str]:
    """The format's ``write``; a move that it has no action for becomes a text that looks like one.

    A format that cannot even write what it should is found by the promise about formats, not by a crash here.
    """

    def write(move: Move) -> str:
        try:
            return format.write(move, tools)
        except Exception:
            if isinstance(move, Answer):
                return f"<answer>{move.text}</answer>"
            return f"<{move.tool}>{json.dumps(dict(move.arguments), default=str)}</{move.tool}>"

    return write


def _texts_for(space: gym.Space[Any]) -> st.SearchStrategy[Action]:
    """Actions of an environment that is no `ToolEnv`."""

    def sample(seed: int) -> str:
        mine = copy.deepcopy(space)
        mine.seed(seed)
        return str(mine.sample())[:_LONGEST_SAMPLE]

    samples = st.integers(0, 2**31 - 1).map(sample)
    return weighted((3, _WORDS), (3, texts()), (1, mutations(_WORDS, texts())), (3, samples))
