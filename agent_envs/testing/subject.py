"""What is checked: an environment, as something that can be made again and again, in this process or in another one."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import CloudpickleWrapper

from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call, Move
from agent_envs.registration import full_id
from agent_envs.testing.episode import Episode, oracle_of

Checkable = str | gym.Env[Any, Any] | Callable[[], gym.Env[Any, Any]]


class Subject:
    """Makes environments that are alike, out of an id, a function or an environment.

    Args:
        what: An id (``"agent_envs/MathTool-v0"``, ``"MathTool-v0"``, ``"module:id"``), a function that makes an environment,
            or an environment. An environment with a spec is made again from it; one without is pickled, or else copied. The
            given one itself is never stepped or closed.

    Attributes:
        name: What the report calls it.
        source: The Python expression that names it in a line to reproduce.
        spec_id: The id, where it was given as one.
        is_tool_env: Whether there is a ``ToolEnv`` under its wrappers.
        has_oracle: Whether its tasks have a scripted expert.
        tour: Actions that use whatever there is to use: each tool's examples, and answers.
        folder: The working directory before the first environment was made.
        variables: The environment variables of that time.

    Raises:
        gym.error.Error: There is no such id.
        TypeError: It is none of these, or takes or gives something other than text.
    """

    def __init__(self, what: Checkable) -> None:
        self.folder, self.variables = os.getcwd(), dict(os.environ)
        self.source = "env"
        self.spec_id = ""
        if isinstance(what, str):
            self.spec_id = full_id(what)
            self.name, self.source = self.spec_id, repr(what)
            spec = spec_of(what)  # held, so that another process need not have registered the id
            self._make: Callable[[], gym.Env[Any, Any]] = lambda: gym.make(copy.deepcopy(spec), disable_env_checker=True)
        elif isinstance(what, gym.Env):
            self.name = str(what.spec.id) if what.spec else type(what.unwrapped).__name__
            self._make = _maker_of(what)
        elif callable(what):
            self.name, self.source, self._make = getattr(what, "__name__", repr(what)), "make_env", what
        else:
            raise TypeError(f"what is checked is an id, an environment or a function that makes one; found {what!r}")
        with self.env() as env:
            _require_text(env)
            self.is_tool_env = isinstance(env.unwrapped, ToolEnv)
            self.has_oracle = _has_oracle(env)
            self.tour = _tour(env)

    def make(self) -> gym.Env[Any, Any]:
        """A new environment; whoever makes it closes it.

        Raises:
            TypeError: The given function makes something else.
        """
        env = self._make()
        if not isinstance(env, gym.Env):
            raise TypeError(f"expected {self.name} to make a gymnasium.Env, found {type(env).__name__}")
        return env

    @contextlib.contextmanager
    def env(self) -> Iterator[gym.Env[Any, Any]]:
        """A new environment for the length of a block; errors of its ``close`` are left to the promise about that."""
        with opened(self.make) as env:
            yield env

    def toured(self, episode: Episode) -> Episode:
        """The episode, or the tour where it is empty: for promises that are asked with few episodes."""
        return episode if episode.actions else replace(episode, actions=self.tour)

    def recipe(self) -> bytes:
        """A pickled function that makes such an environment in another process.

        Functions and classes that no module holds (a lambda, a notebook's class) go along by value.

        Raises:
            Exception: Whatever pickling raises, where it cannot be pickled.
        """
        return pickle.dumps(CloudpickleWrapper(self._make))


def spec_of(name: str) -> EnvSpec:
    """The spec of an id, which is ``Name-v0``, ``namespace/Name-v0``, or ``module:id`` for one that a module registers.

    Raises:
        gym.error.Error: There is no such id.
        ModuleNotFoundError: There is no such module.
    """
    module, _, registered = full_id(name).rpartition(":")
    if module:
        importlib.import_module(module)
    return gym.spec(registered)


@contextlib.contextmanager
def opened(make: Callable[[], gym.Env[Any, Any]]) -> Iterator[gym.Env[Any, Any]]:
    """What ``make`` makes for the length of a block; errors of its ``close`` are left to the promise about that."""
    env = make()
    try:
        yield env
    finally:
        with contextlib.suppress(Exception):
            env.close()


def _maker_of(env: gym.Env[Any, Any]) -> Callable[[], gym.Env[Any, Any]]:
    spec = env.spec
    if spec is not None and spec.entry_point is not None:
        return lambda: gym.make(copy.deepcopy(spec), disable_env_checker=True)
    try:
        frozen = pickle.dumps(env)
    except Exception:
        return lambda: copy.deepcopy(env)
    return lambda: pickle.loads(frozen)


def _require_text(env: gym.Env[Any, Any]) -> None:
    for name in ("observation_space", "action_space"):
        space = copy.deepcopy(getattr(env, name, None))
        if not isinstance(space, gym.Space) or not isinstance(space.sample(), str):
            raise TypeError(
                f"the checks are for environments of text: expected a {name} of strings (agent_envs.String or "
                f"gymnasium.spaces.Text), found {space!r}"
            )


def _has_oracle(env: gym.Env[Any, Any]) -> bool:
    if not isinstance(env.unwrapped, ToolEnv):
        return False
    env.reset(seed=0)
    return oracle_of(env) is not None


def _tour(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    inner = env.unwrapped
    if not isinstance(inner, ToolEnv):
        return ("", "a", "<answer>a</answer>")
    moves: list[Move] = [Call(tool.name, arguments) for tool in inner.tools for arguments in tool.examples]
    written = [""]
    for move in (*moves, Answer("a")):
        with contextlib.suppress(ValueError):  # no action of this format means that
            written.append(inner.format.write(move, inner.tools))
    return tuple(written)
