"""The vector environment: a thread an environment, and no environment waits for another.

Gymnasium's ``step`` is a barrier: it returns when the slowest tool has. ``send``, ``send_reset`` and ``recv`` are none: work
goes to single environments, and what is ready comes back in the order in which it got ready.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from agent_envs.vector.crew import Crew
from agent_envs.vector.episodes import Episodes, require_length
from agent_envs.vector.worker import Env, Facts, Reset, Result

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class ThreadVectorEnv(gym.vector.VectorEnv[Any, Any, npt.NDArray[Any]]):
    """Environments that each live in a thread of their own: made, stepped and closed there.

    It has two faces. ``reset`` and ``step`` are Gymnasium's, for all environments at once, and agree with ``SyncVectorEnv``
    in every autoreset mode. ``send``, ``send_reset`` and ``recv`` deal with single environments. They may take turns, if
    everything that was sent is received before ``reset`` or ``step``. One thread at a time may call.

    Batches of observations are what Gymnasium makes of the space: arrays, or tuples of str for `agent_envs.String`.

    **Episodes that are over.** In mode NEXT_STEP the next ``step`` or ``send`` resets the environment and ignores the
    action; the reward is 0, the info is the reset's. In SAME_STEP the result that ends an episode already has the
    observation and info of the next one, and ``final_obs`` and ``final_info`` in its info are the end's. In DISABLED
    sending an action is an error: use ``send_reset``, or ``reset`` with ``options={"reset_mask": ...}``.

    **Faults.** What an environment raises is its own matter, and the others go on. Its result has the empty observation (""
    or zeros; where zeros are not in the space one that is, always the same), reward NaN, terminated False, truncated True,
    and in its info ``environment_fault`` (str: the message of an ``EnvironmentFault``, or the traceback of anything else,
    which is logged as a warning too), ``environment_fault_component`` (str) and ``environment_fault_retryable`` (bool).
    Then its episode is over, as above. In SAME_STEP a fault that ended an episode stands in ``final_info`` as well; one of
    the reset that followed does not, leaves the reward alone, and makes the next step reset once more. A reward of NaN
    spoils whatever averages rewards: ``NormalizeReward`` never recovers.

    Args:
        env_fns: Make the environments, all at the same time, each in its thread.
        autoreset_mode: What becomes of an episode that is over: a member of ``AutoresetMode``, or its value.
        close_timeout: Seconds that ``close`` waits for environments that are busy.

    Raises:
        ValueError: There is no environment, no such mode, or the time is negative.
        RuntimeError: The environments' spaces differ.
        Exception: What one of ``env_fns`` raised; the other environments are closed again.

    Example:
        >>> envs = ThreadVectorEnv([lambda: gym.make("CartPole-v1")] * 3)
        >>> observations, infos = envs.reset(seed=0)
        >>> envs.send([0, 2], [1, 1])
        >>> env_ids, observations, rewards, terminations, truncations, infos = envs.recv(1)
        >>> rewards
        array([1.])
        >>> envs.close()
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], Env]],
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        close_timeout: float = 10.0,
    ) -> None:
        if not env_fns:
            raise ValueError("a vector environment has at least one environment, found none")
        if not close_timeout >= 0:
            raise ValueError(f"close_timeout is a number of seconds, at least 0; found {close_timeout!r}")
        self.num_envs = len(env_fns)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.close_timeout = close_timeout
        self._crew = Crew(env_fns, self.autoreset_mode is AutoresetMode.SAME_STEP, close_timeout)
        try:
            self._describe(self._crew.facts)
        except BaseException:
            self._crew.close(close_timeout)
            raise

    def _describe(self, facts: Sequence[Facts]) -> None:
        first = facts[0]
        for number, other in enumerate(facts):
            for name in ("observation_space", "action_space"):
                expected, found = getattr(first, name), getattr(other, name)
                if found != expected:
                    raise RuntimeError(
                        f"all environments have the same spaces: {name} is {expected} in environment 0, "
                        f"and {found} in environment {number}"
                    )
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self.action_space = batch_space(first.action_space, self.num_envs)
        self._episodes = Episodes(self.num_envs, self.autoreset_mode, first.action_space)

    # --- all environments at once, as Gymnasium has it

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets all environments, or those of a mask, and waits for them.

        Args:
            seed: One for each environment, or the first one's, from which the others count up.
            options: Go to every environment, except ``"reset_mask"``: a boolean array of shape (num_envs,), True for those
                to reset. The others' episodes go on, and their latest observations stand in the batch.

        Returns:
            A batch of observations, and ``infos`` as Gymnasium batches them.

        Raises:
            AlreadyPendingCallError: Something was sent and not received.
            ResetNeeded: The mask leaves out an environment that was never reset.
            TypeError: The mask is no boolean array.
            ValueError: It has another shape or no True in it, or there are not as many seeds as environments.
            Exception: What the environments raised, where every single one raised something that is no
                ``EnvironmentFault``, since the arguments must be to blame then.
        """
        self._require_idle("reset")
        numbers: Sequence[int] = range(self.num_envs)
        own = options
        if options is not None and "reset_mask" in options:
            own = {name: value for name, value in options.items() if name != "reset_mask"}
            numbers = self._masked(options["reset_mask"])
        seeds = self._seeds(seed)
        for number in numbers:
            self._crew.put(number, _reset(seeds[number], own))
        results = self._take(None)
        if all(result.error is not None for result in results):
            raise results[0].error  # type: ignore[misc]  # no result is without one, as was just asked
        return self._batch(self._episodes.observations), self._infos(results)

    def step(self, actions: Any) -> tuple[Any, Floats, Flags, Flags, dict[str, Any]]:
        """Steps all environments and waits for the slowest.

        Args:
            actions: A batch of the action space.

        Returns:
            A batch of observations, rewards (float64), terminations and truncations (bool), each of shape (num_envs,), and
            ``infos`` as Gymnasium batches them.

        Raises:
            AlreadyPendingCallError: Something was sent and not received.
            ResetNeeded: There was no reset, or in mode DISABLED an episode is over.
            ValueError: There are not as many actions as environments.
            TypeError: An action is not the text that it should be.
        """
        self._require_idle("step")
        self._refuse_one_text(actions)
        works = self._episodes.works(range(self.num_envs), list(iterate(self.action_space, actions)))
        for number, work in enumerate(works):
            self._crew.put(number, work)
        results = self._take(None)
        return self._batch(self._episodes.observations), *_columns(results), self._infos(results)

    def render(self) -> tuple[Any, ...]:
        """What ``render`` of each environment gives."""
        return self.call("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls a method of every environment in its thread, or reads an attribute; wrappers are looked through.

        Returns:
            What came of it, for each environment.

        Raises:
            AlreadyPendingCallError: Something was sent and not received.
            Exception: What an environment raised, once all are done.
        """
        self._require_idle("call")
        return self._crew.apply([functools.partial(_call, name, args, kwargs)] * self.num_envs, f"{name}(...)")

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment, or what its method of that name returns; see `call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of every environment in its thread; wrappers are looked through.

        Args:
            name: Of the attribute.
            values: A list or tuple with one for each environment, or one for all.

        Raises:
            AlreadyPendingCallError: Something was sent and not received.
            ValueError: There are not as many values as environments.
            Exception: What an environment raised, once all are done.
        """
        self._require_idle("set_attr")
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        require_length("values", each, self.num_envs)
        self._crew.apply([functools.partial(_set, name, value) for value in each], f"set_attr({name!r}, ...)")

    @property  # type: ignore[misc]  # SyncVectorEnv has it so too
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The environments' generators."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The environments' seeds."""
        return self.get_attr("np_random_seed")

    # --- single environments

    def send(self, env_ids: Iterable[int], actions: Sequence[Any]) -> None:
        """Hands actions to environments and returns at once. If anything is wrong with the arguments, none gets any.

        Args:
            env_ids: Numbers of environments of which nothing is still to be received.
            actions: One for each of ``env_ids``; ignored where mode NEXT_STEP resets instead.

        Raises:
            AlreadyPendingCallError: What was sent to an environment before was not received yet.
            ResetNeeded: An environment was never reset, or in mode DISABLED its episode is over.
            ValueError: There is no such environment, one is named twice, or there are not as many actions.
            TypeError: An action is not the text that it should be.
        """
        numbers = self._idle(env_ids, "send")
        self._refuse_one_text(actions)
        for number, work in zip(numbers, self._episodes.works(numbers, actions), strict=True):
            self._crew.put(number, work)

    def send_reset(
        self,
        env_ids: Iterable[int],
        seeds: Sequence[int | None] | None = None,
        options: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Has environments start an episode and returns at once. What `recv` gives then has reward 0 and no flag set.

        Args:
            env_ids: As for `send`; an episode that is running is given up.
            seeds: One for each of ``env_ids``.
            options: One mapping for all, or one for each of ``env_ids``, such as ``[{"task_id": "riddles:7"}, None]``.

        Raises:
            AlreadyPendingCallError: As for `send`.
            ValueError: There is no such environment, one is named twice, or there are not as many seeds or options.
        """
        numbers = self._idle(env_ids, "send_reset")
        each_seed = [None] * len(numbers) if seeds is None else seeds
        each_options = [options] * len(numbers) if options is None or isinstance(options, Mapping) else options
        require_length("seeds", each_seed, len(numbers))
        require_length("options", each_options, len(numbers))
        for number, seed, own in zip(numbers, each_seed, each_options, strict=True):
            self._crew.put(number, _reset(seed, own))

    def recv(self, n: int | None = None) -> tuple[npt.NDArray[np.int64], Any, Floats, Flags, Flags, list[dict[str, Any]]]:
        """Waits for one result and takes those that are ready, in the order in which they got ready.

        Args:
            n: The most to take; all that are ready if None.

        Returns:
            Numbers of the environments (int64), a batch of as many observations, rewards (float64), terminations and
            truncations (bool), each of shape (at most n,), and infos: a list with the dict of each.

        Raises:
            NoAsyncCallError: Nothing is to be received, so this would wait for ever.
            ValueError: ``n`` is less than 1.
        """
        self._require_open("recv")
        most = self.num_envs if n is None else operator.index(n)
        if most < 1:
            raise ValueError(f"recv takes at least one result, found n={n}")
        if not self._crew.pending:
            raise NoAsyncCallError(
                "recv would wait for ever, since nothing was sent: call send() or send_reset() first", "recv"
            )
        results = self._take(most)
        numbers = np.array([result.number for result in results], np.int64)
        observations = self._batch([result.observation for result in results])
        return numbers, observations, *_columns(results), [result.info for result in results]

    def close_extras(self, *, timeout: float | None = None) -> None:
        """Closes every environment in its thread; what ``close()`` and ``close(timeout=...)`` do.

        An environment that is still busy when the time is over is named in a logged warning, with what it is busy with. Its
        thread closes it when it is done, and ends with the process if it never is.

        Args:
            timeout: Seconds to wait; ``close_timeout`` if None.
        """
        self._crew.close(self.close_timeout if timeout is None else timeout)

    # --- what both have in common

    def _require_open(self, name: str) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{name}() after close(): make another vector environment")

    def _require_idle(self, name: str) -> None:
        self._require_open(name)
        if self._crew.pending:
            owing = [number for number, owes in enumerate(self._crew.owes) if owes]
            raise AlreadyPendingCallError(f"{name}() while environments {owing} have work under way: recv() it first", name)

    def _idle(self, env_ids: Iterable[int], name: str) -> list[int]:
        self._require_open(name)
        numbers = [operator.index(number) for number in env_ids]
        for number in numbers:
            if not 0 <= number < self.num_envs:
                raise ValueError(f"environments are numbered from 0 to {self.num_envs - 1}, found {number}")
            if self._crew.owes[number]:
                raise AlreadyPendingCallError(
                    f"{name}() to environment {number}, which has work under way: recv() it first", name
                )
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"an environment can be named once, found env_ids={numbers}")
        return numbers

    def _refuse_one_text(self, actions: Any) -> None:
        if isinstance(actions, str):
            raise TypeError(f"actions are a sequence with one for each environment, found a single str: {actions[:40]!r}")

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + number for number in range(self.num_envs)]
        require_length("seeds", seed, self.num_envs)
        return seed

    def _masked(self, mask: Any) -> list[int]:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask is a numpy array of bool, found {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"reset_mask has the shape ({self.num_envs},) and at least one True, found {mask!r}")
        self._episodes.require_begun(np.flatnonzero(~mask), f"reset_mask must be True for it, found {mask!r}")
        return [int(number) for number in np.flatnonzero(mask)]

    def _take(self, most: int | None) -> list[Result]:
        results = self._crew.take_all() if most is None else self._crew.take(most)
        self._episodes.note(results)
        return results

    def _batch(self, observations: Sequence[Any]) -> Any:
        space = self.single_observation_space
        empty: Any = create_empty_array(space, len(observations))
        return concatenate(space, observations, empty)

    def _infos(self, results: Sequence[Result]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for result in results:
            infos = self._add_info(infos, result.info, result.number)
        return infos


def _reset(seed: int | None, options: Mapping[str, Any] | None) -> Reset:
    # A dict of its own for each: an environment may keep or change what it is given.
    return Reset(seed, None if options is None else dict(options))


def _columns(results: Sequence[Result]) -> tuple[Floats, Flags, Flags]:
    return (
        np.array([result.reward for result in results], np.float64),
        np.array([result.terminated for result in results], np.bool_),
        np.array([result.truncated for result in results], np.bool_),
    )


def _call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], env: Env) -> Any:
    found = env.get_wrapper_attr(name)
    return found(*args, **kwargs) if callable(found) else found


def _set(name: str, value: Any, env: Env) -> None:
    env.set_wrapper_attr(name, value)
