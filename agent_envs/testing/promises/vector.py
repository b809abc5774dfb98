"""Promises about being one of many: in a vector environment an environment gives what it gives alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from agent_envs.testing.episode import Episode, Moment, difference
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.promises.outputs import well_typed
from agent_envs.testing.record import Recorder, repeats, told
from agent_envs.testing.subject import Subject
from agent_envs.testing.surroundings import heard
from agent_envs.vector import ThreadVectorEnv

Kind = Callable[[Sequence[Callable[[], gym.Env[Any, Any]]]], VectorEnv[Any, Any, Any]]

_ENVS = 3
_PATIENCE = 60.0  # seconds for one reset or step of processes, in which a lock that was held at the fork is held for ever


def _sync(subject: Subject, episode: Episode) -> None:
    _Comparison(subject, SyncVectorEnv).play(episode)


def _threads(subject: Subject, episode: Episode) -> None:
    _Comparison(subject, ThreadVectorEnv).play(episode)


def _processes(subject: Subject, episode: Episode) -> None:
    try:
        subject.recipe()
    except Exception as error:
        raise NotAsked(f"it cannot be made in another process ({type(error).__name__}: {error})") from error
    _Comparison(subject, AsyncVectorEnv).play(subject.toured(episode))


class _Comparison:
    """Environments in a vector environment, and beside it as many alone."""

    def __init__(self, subject: Subject, kind: Kind) -> None:
        self.subject = subject
        self.kind = kind
        self.name = getattr(kind, "__name__", "vector environment")

    def play(self, episode: Episode) -> None:
        """Plays until an episode ends. What goes wrong alone too is no matter of vector environments."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(heard())  # what workers print and warn of stands in the finding, where it matters
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            alone = [Recorder(stack.enter_context(self.subject.env())) for _ in range(_ENVS)]
            for number, run in enumerate(alone):
                run.reset(episode.seed + number)
            if not all(map(_sound, alone)):
                return
            try:
                with _opened(self.kind([self.subject.make] * _ENVS)) as envs:
                    self._play_beside(alone, envs, episode)
            except Broken:
                raise
            except Exception as error:
                raise Broken(f"{self.name} to run as the environments alone do", told(error)) from error

    def _play_beside(self, alone: list[Recorder], envs: VectorEnv[Any, Any, Any], episode: Episode) -> None:
        observations, infos = _reset(envs, episode.seed)
        self._compare(alone, episode.seed, observations, (np.zeros(_ENVS), [False] * _ENVS, [False] * _ENVS), infos)
        for action in episode.actions:
            if any(run.record.over for run in alone):
                return
            texts = [run.step(action).trace[-1].action for run in alone]
            if not all(map(_sound, alone)):
                return
            observations, *outcome, infos = _step(envs, texts)
            self._compare(alone, episode.seed, observations, outcome, infos)

    def _compare(self, alone: list[Recorder], seed: int, observations: Any, outcome: Sequence[Any], infos: Any) -> None:
        for number, run in enumerate(alone):
            *before, last = run.record.trace
            reward, terminated, truncated = (column[number] for column in outcome)
            info = _entry(infos, number, last.info)
            found = Moment(last.action, observations[number], float(reward), bool(terminated), bool(truncated), info)
            expected = replace(last, reward=float(last.reward), info=_plain(last.info))
            changed = difference((*before, expected), (*before, found))
            if changed and repeats(self.subject, seed + number, run.record):
                found_out = f"{changed}{self._why(run.env, infos, number)}"
                raise Broken(f"environment {number} of {self.name} to be as it is alone", found_out, run.record.trace)

    def _why(self, env: gym.Env[Any, Any], infos: Any, number: int) -> str:
        faults = infos.get("environment_fault")
        if faults is not None and faults[number]:
            return f", since it raised {str(faults[number]).strip().splitlines()[-1]}"
        if self.kind is AsyncVectorEnv and isinstance(env.observation_space, gym.spaces.Text):
            return "; in shared memory gymnasium.spaces.Text shows its first text for ever: take agent_envs.String"
        return ""


def _sound(run: Recorder) -> bool:
    return run.record.raised is None and well_typed(run.record.trace)


def _reset(envs: VectorEnv[Any, Any, Any], seed: int) -> tuple[Any, Any]:
    if not isinstance(envs, AsyncVectorEnv):
        return envs.reset(seed=seed)
    envs.reset_async(seed)
    return envs.reset_wait(timeout=_PATIENCE)


def _step(envs: VectorEnv[Any, Any, Any], actions: list[Any]) -> tuple[Any, ...]:
    if not isinstance(envs, AsyncVectorEnv):
        return envs.step(actions)
    envs.step_async(actions)
    return envs.step_wait(timeout=_PATIENCE)


@contextlib.contextmanager
def _opened(envs: VectorEnv[Any, Any, Any]) -> Iterator[VectorEnv[Any, Any, Any]]:
    try:
        yield envs
    except multiprocessing.TimeoutError:
        envs.close(terminate=True)  # nothing else ends a worker that hangs
        raise
    finally:
        with contextlib.suppress(Exception):  # left to the promise about close
            envs.close()


def _entry(infos: dict[str, Any], number: int, like: dict[str, Any]) -> dict[str, Any]:
    """The info of one environment, out of infos that Gymnasium has batched."""
    return {
        key: _entry(infos[key], number, value) if isinstance(value, dict) else _plain(infos[key][number])
        for key, value in like.items()
        if key in infos
    }


def _plain(value: Any) -> Any:
    """A value without what batching may do to it: numpy's types, and lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


PROMISES = (
    Promise("vector", "In a SyncVectorEnv it gives what it gives alone.", _sync, share=0.4),
    Promise("threads", "In a ThreadVectorEnv, a thread each, it gives what it gives alone.", _threads, share=0.4),
    Promise("processes", "In an AsyncVectorEnv, a process each, it gives what it gives alone.", _processes, share=0.04),
)
