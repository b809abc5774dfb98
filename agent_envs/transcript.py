"""``Transcript``: the observation is the whole conversation so far, as one text.

A ``ToolEnv`` gives raw observations: the question, then each tool result. An RL code that keeps no conversation of its own
reads the whole of it from this wrapper, as the environment's format writes it.
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from agent_envs.actions import Message
from agent_envs.env import ToolEnv
from agent_envs.spaces import String, replace_surrogates


class Transcript(gym.Wrapper[str, str, str, str], RecordConstructorArgs):
    """The conversation as text: each message under a line with its role, the policy's actions up to where they count.

    Args:
        env: A ``ToolEnv``, wrapped or not.

    Raises:
        TypeError: The environment underneath is no ``ToolEnv``.

    Example:
        >>> env = Transcript(gym.make("agent_envs/MathTool-v0", system_prompt="Be brief.", instructions=False))
        >>> text, info = env.reset(options={"task_id": "arithmetic:0:6*7"})
        >>> print(text)
        [system]
        Be brief.
        [user]
        What is 6*7?
        [assistant]
        <BLANKLINE>
    """

    def __init__(self, env: gym.Env[str, str]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, ToolEnv):
            raise TypeError(
                f"Transcript wraps a ToolEnv, which knows its conversation; found {type(env.unwrapped).__name__}"
            )
        tools = env.unwrapped
        turn = tools.max_action + _longest(tools, tools.max_observation)
        self.observation_space = String(_longest_opening(tools) + tools.max_turns * turn)
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode; the observation is its opening."""
        question, info = self.env.reset(seed=seed, options=options)
        tools = self._tool_env()
        opening = tools.format.opening(question, tools.system_prompt, tools.tools)
        self._text = "".join(_block(message.role, message.text) for message in opening) + "[assistant]\n"
        return self._text, info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes an action; it and its observation come at the end of the conversation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._text += replace_surrogates(action)[: info["action_chars"]]
        if not terminated:
            self._text += _continue(self._tool_env().format.observe(observation))
        return self._text, reward, terminated, truncated, info

    def _tool_env(self) -> ToolEnv:
        assert isinstance(self.env.unwrapped, ToolEnv)
        return self.env.unwrapped


def _block(role: str, text: str) -> str:
    return f"[{role}]\n{text}\n"


def _continue(message: Message) -> str:
    """An observation inside the assistant's turn goes on in it; another one ends the turn and opens the next."""
    if message.role == "assistant":
        return message.text
    return "\n" + _block(message.role, message.text) + "[assistant]\n"


def _longest(env: ToolEnv, characters: int) -> int:
    """How long an observation of that many characters can get: a format may escape each tag in it, at least four long."""
    return len(_continue(env.format.observe(""))) + characters + characters // 4


def _longest_opening(env: ToolEnv) -> int:
    opening = env.format.opening("", env.system_prompt, env.tools)
    wrapped = sum(len(_block(message.role, message.text)) for message in opening) + len("[assistant]\n")
    return wrapped + env.max_observation + env.max_observation // 4
