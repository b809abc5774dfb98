"""One environment and the thread that it lives in: made, stepped and closed there, since some engines are bound to a thread.

Work comes in through a queue of the worker's own and goes out through one that all workers share. Whatever an environment
raises becomes a result like any other, so that it stays the matter of this environment alone.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from agent_envs.faults import EnvironmentFault

logger = logging.getLogger(__name__)

Env = gym.Env[Any, Any]

_EXCERPT = 80  # characters of an action in a message


@dataclass(frozen=True, slots=True)
class Step:
    """Work: take one action."""

    action: Any

    def __str__(self) -> str:
        text = repr(self.action)
        return f"step({text if len(text) <= _EXCERPT else text[: _EXCERPT - 3] + '...'})"


@dataclass(frozen=True, slots=True)
class Reset:
    """Work: start an episode."""

    seed: int | None = None
    options: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"reset(seed={self.seed!r}, options={self.options!r})"


@dataclass(frozen=True, slots=True)
class Apply:
    """Work: hand the environment to a function; what comes of it goes to ``done`` and not among the results."""

    function: Callable[[Env], Any]
    done: Future[Any]
    name: str

    def __str__(self) -> str:
        return self.name


class Facts(NamedTuple):
    """What an environment says about itself."""

    metadata: dict[str, Any]
    render_mode: str | None
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]


class Result(NamedTuple):
    """What came of a step or a reset.

    Attributes:
        number: Of the environment.
        observation: What the environment gave, or after a fault its filler.
        reward: 0 for a reset, NaN for a fault.
        terminated: As the environment said.
        truncated: Likewise, and True for a fault.
        info: As the environment gave it; what the fault was; with ``same_step`` also how the last episode ended.
        over: Whether no episode is running now.
        error: What the environment raised, if that was no ``EnvironmentFault``.
    """

    number: int
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    over: bool
    error: BaseException | None = None


class Worker:
    """One environment in its thread, which starts at once.

    Args:
        number: Of the environment among the others.
        make: Makes it.
        made: Is told the environment's facts, or what ``make`` raised.
        results: Where results go, one for each ``Step`` and ``Reset``.
        same_step: A step that ends an episode also begins the next one (Gymnasium's autoreset mode SAME_STEP).

    Attributes:
        inbox: Work in the order it is to be done; None closes the environment and ends the thread.
        thread: A daemon, since a tool that never returns must not keep the process from ending.
        doing: What it is busy with now; "" for nothing.
    """

    def __init__(
        self, number: int, make: Callable[[], Env], made: Future[Facts], results: SimpleQueue[Result], same_step: bool
    ) -> None:
        self.number = number
        self.inbox: SimpleQueue[Step | Reset | Apply | None] = SimpleQueue()
        self.doing: Step | Reset | Apply | str = "its constructor"
        self._results = results
        self._same_step = same_step
        self._filler: Any = None
        self.thread = threading.Thread(target=self._live, args=(make, made), name=f"environment {number}", daemon=True)
        self.thread.start()

    def _live(self, make: Callable[[], Env], made: Future[Facts]) -> None:
        env: Env | None = None
        try:
            env = make()
            facts = Facts(dict(env.metadata), env.render_mode, env.observation_space, env.action_space)
            self._filler = empty_element(env.observation_space)
        except BaseException as error:  # SystemExit too: whoever waits for the environment would wait for ever
            if env is not None:
                self._close(env)
            made.set_exception(error)
            return
        made.set_result(facts)
        self.doing = ""
        while (work := self.inbox.get()) is not None:
            self.doing = work
            if isinstance(work, Step):
                self._results.put(self._step(env, work))
            elif isinstance(work, Reset):
                self._results.put(self._reset(env, work))
            else:
                _apply(env, work)
            self.doing, work = "", None  # the next work may be long in coming, and an action is large
        self._close(env)

    def _step(self, env: Env, work: Step) -> Result:
        last = self._act(env, work)
        if not (self._same_step and last.over):
            return last
        first = self._reset(env, Reset())
        fault = last.info if math.isnan(last.reward) and "environment_fault" in last.info else {}
        info = {**fault, **first.info, "final_obs": last.observation, "final_info": last.info}
        return last._replace(observation=first.observation, info=info, over=first.over)

    def _act(self, env: Env, work: Step) -> Result:
        try:
            observation, reward, terminated, truncated, info = env.step(work.action)
            terminated, truncated = bool(terminated), bool(truncated)
            over = terminated or truncated
            return Result(self.number, observation, float(reward), terminated, truncated, _checked(info), over)
        except BaseException as error:  # as above
            return self._broken(error, work)

    def _reset(self, env: Env, work: Reset) -> Result:
        try:
            observation, info = env.reset(seed=work.seed, options=work.options)
            return Result(self.number, observation, 0.0, False, False, _checked(info), False)
        except BaseException as error:  # as above
            return self._broken(error, work)

    def _broken(self, error: BaseException, work: Step | Reset) -> Result:
        if isinstance(error, EnvironmentFault):
            logger.info("environment %d: %s", self.number, error)
            info, unforeseen = _fault(str(error), error.component or "", error.retryable), None
        else:
            logger.warning("environment %d broke in %s; its episode is lost", self.number, work, exc_info=error)
            info, unforeseen = _fault("".join(traceback.format_exception(error)), "", False), error
        return Result(self.number, copy.deepcopy(self._filler), math.nan, False, True, info, True, unforeseen)

    def _close(self, env: Env) -> None:
        self.doing = "close()"
        try:
            env.close()
        except BaseException:  # as above, for close()
            logger.warning("environment %d raised this when it was closed", self.number, exc_info=True)


def empty_element(space: gym.Space[Any]) -> Any:
    """The element of a space that says nothing: the empty string or zeros; always the same one where those are not in it."""
    empty = next(iter(iterate(batch_space(space, 1), create_empty_array(space, 1))))
    if empty in space:
        return empty
    space = copy.deepcopy(space)
    space.seed(0)
    return space.sample()


def _apply(env: Env, work: Apply) -> None:
    try:
        work.done.set_result(work.function(env))
    except BaseException as error:  # as above
        work.done.set_exception(error)


def _fault(message: str, component: str, retryable: bool) -> dict[str, Any]:
    """Flat and of one Python type a key, which is what Gymnasium makes arrays of."""
    return {
        "environment_fault": message,
        "environment_fault_component": component,
        "environment_fault_retryable": retryable,
    }


def _checked(info: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise TypeError(f"an environment's info is a dict, found {type(info).__name__}")
    return info
