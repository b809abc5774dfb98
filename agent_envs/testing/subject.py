"""What is checked: an environment, as something that can be made again and again."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym

from agent_envs.env import ToolEnv
from agent_envs.registration import full_id
from agent_envs.task import NoOracle

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

    Raises:
        gym.error.Error: There is no such id.
        TypeError: It is none of these.
    """

    def __init__(self, what: Checkable) -> None:
        self.source = "env"
        self.spec_id = ""
        if isinstance(what, str):
            self.spec_id = full_id(what)
            self.name, self.source = self.spec_id, repr(what)
            self._make: Callable[[], gym.Env[Any, Any]] = lambda: gym.make(self.spec_id, disable_env_checker=True)
        elif isinstance(what, gym.Env):
            self.name = str(what.spec.id) if what.spec else type(what.unwrapped).__name__
            self._make = _maker_of(what)
        elif callable(what):
            self.name, self.source, self._make = getattr(what, "__name__", repr(what)), "make_env", what
        else:
            raise TypeError(f"what is checked is an id, an environment or a function that makes one; found {what!r}")
        with self.env() as env:
            self.is_tool_env = isinstance(env.unwrapped, ToolEnv)
            self.has_oracle = _has_oracle(env)

    def make(self) -> gym.Env[Any, Any]:
        """A new environment; whoever makes it closes it."""
        return self._make()

    @contextlib.contextmanager
    def env(self) -> Iterator[gym.Env[Any, Any]]:
        """A new environment for the length of a block."""
        env = self.make()
        try:
            yield env
        finally:
            env.close()


def _maker_of(env: gym.Env[Any, Any]) -> Callable[[], gym.Env[Any, Any]]:
    spec = env.spec
    if spec is not None and spec.entry_point is not None:
        return lambda: gym.make(copy.deepcopy(spec), disable_env_checker=True)
    try:
        frozen = pickle.dumps(env)
    except Exception:
        return lambda: copy.deepcopy(env)
    return lambda: pickle.loads(frozen)  # type: ignore[no-any-return]


def _has_oracle(env: gym.Env[Any, Any]) -> bool:
    if not isinstance(env.unwrapped, ToolEnv):
        return False
    env.reset(seed=0)
    try:
        env.unwrapped.oracle()
    except NoOracle:
        return False
    return True


def tool_env(env: gym.Env[Any, Any]) -> ToolEnv:
    """The ``ToolEnv`` under an environment's wrappers; promises about tools are asked of these alone."""
    inner = env.unwrapped
    if not isinstance(inner, ToolEnv):
        raise TypeError(f"expected a ToolEnv under the wrappers, found {type(inner).__name__}")
    return inner
