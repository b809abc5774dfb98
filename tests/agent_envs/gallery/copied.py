"""Environments whose copies are broken, each in one way."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gallery.words import Words
from gallery.workshop import Lots, LotsAgain, Opener, workshop

from agent_envs.env import ToolEnv
from agent_envs.faults import ForkError
from agent_envs.task import Task
from agent_envs.tool import Tool


class SharedLots(Lots):
    """What the copy draws, the original has drawn too: the copy is shallow."""

    name = "lots"

    def fork(self) -> Tool:
        return self


class SharedGenerator(Lots):
    """The count is copied, the generator is one for both."""

    name = "lots"

    def fork(self) -> Tool:
        return copy.copy(self)


class StaleLots(Lots):
    """A copy begins as at reset: what was drawn before is forgotten."""

    name = "lots"

    def fork(self) -> Tool:
        twin = type(self)()
        twin.rng = copy.deepcopy(self.rng)
        return twin


class Drawer(Lots):
    """Draws from a drawer that a copy takes along, and that is emptied for all when one of them is closed."""

    name = "lots"

    def __init__(self) -> None:
        super().__init__()
        self.drawer = ["open"]

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        super().reset(task, rng)
        self.drawer = ["open"]

    def run(self, many: int) -> str:
        return super().run(many) if self.drawer else "the drawer is gone"

    def fork(self) -> Tool:
        twin = copy.deepcopy(self)
        twin.drawer = self.drawer
        return twin

    def close(self) -> None:
        self.drawer.clear()


class ForgetsSettings(LotsAgain):
    """Is copied by running its calls again, in a tool that was made without its settings."""

    name = "lots"

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.first = first

    def run(self, many: int) -> str:
        return f"{self.first}, then {super().run(many)}"


class NeedsReset(Lots):
    """Has no copy until it was reset, since it has nothing to copy."""

    name = "lots"

    def __init__(self) -> None:
        self.drawn = 0

    def fork(self) -> Tool:
        twin = type(self)()
        twin.drawn, twin.rng = self.drawn, copy.deepcopy(self.rng)
        return twin


class ReadOnly(Lots):
    """Refuses a copy, and is at its beginning again after it did."""

    name = "lots"

    def fork(self) -> Tool:
        self.drawn = 0
        raise ForkError("lots have no copy")


class ForgetsGenerator(ToolEnv):
    """A copy draws other tasks than the original would have."""

    def fork(self) -> ToolEnv:
        twin = super().fork()
        twin._np_random = np.random.default_rng(1)
        return twin


class ForgetsTurns(ToolEnv):
    """A copy has all its turns before it again."""

    def fork(self) -> ToolEnv:
        twin = super().fork()
        if twin._episode is not None:
            twin._episode.turn = 0
        return twin


class SharesEpisode(ToolEnv):
    """The state of an episode is one object for the original and its copies."""

    def fork(self) -> ToolEnv:
        twin = super().fork()
        twin._episode = self._episode
        return twin


class LosesItself(gym.Wrapper[str, str, str, str]):
    """A wrapper whose copy is what it wraps."""

    def __deepcopy__(self, memo: dict[int, Any]) -> gym.Env[str, str]:
        return copy.deepcopy(self.env, memo)


class ShallowWords(Words):
    """No environment with tools; its copies share the list of what was said."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ShallowWords:
        return copy.copy(self)


class StartsAfresh(Words):
    """No environment with tools; its copies are made by the constructor, as EzPickle does."""

    def __deepcopy__(self, memo: dict[int, Any]) -> StartsAfresh:
        return type(self)()


def loses_wrapper() -> gym.Env[str, str]:
    """The sound environment in a wrapper that is not copied."""
    return LosesItself(workshop())


def with_lots(lots: Tool) -> ToolEnv:
    """The environment with another tool that draws lots."""
    return workshop(tools=[Opener(), lots])
