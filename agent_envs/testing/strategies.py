"""What Hypothesis draws: texts that break parsers, actions, episodes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.testing.episode import EXPERT, Action, Episode
from agent_envs.testing.subject import Checkable, Subject


def texts() -> st.SearchStrategy[str]:
    """Texts that break parsers."""
    return st.text(max_size=40)


def actions(subject: Subject | Checkable) -> st.SearchStrategy[Action]:
    """Actions for an environment: calls that its tools take, answers, the oracle's, and texts of any kind."""
    subject = subject if isinstance(subject, Subject) else Subject(subject)
    choices: list[st.SearchStrategy[Any]] = [texts()]
    with subject.env() as env:
        inner = env.unwrapped
        if isinstance(inner, ToolEnv):
            calls = [Call(tool.name, arguments) for tool in inner.tools for arguments in tool.examples]
            written = [inner.format.write(call, inner.tools) for call in calls]
            if written:
                choices.insert(0, st.sampled_from(written))
            choices.append(st.text("ab1 ", max_size=5).map(lambda text: inner.format.write(Answer(text), inner.tools)))
    if subject.has_oracle:
        choices.insert(0, st.just(EXPERT))
    return st.one_of(choices)


def episodes(subject: Subject | Checkable, max_actions: int = 6) -> st.SearchStrategy[Episode]:
    """Episodes of an environment."""
    subject = subject if isinstance(subject, Subject) else Subject(subject)
    return st.builds(
        Episode,
        seed=st.integers(0, 10_000),
        actions=st.lists(actions(subject), max_size=max_actions).map(tuple),
        at=st.integers(0, max_actions),
    )
