"""Promises about an environment's life: pickled, made from its spec, closed, opened again, and gone without a trace."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.promises.process import made_elsewhere
from agent_envs.testing.record import Record, Recorder, departure, deviation, record, told
from agent_envs.testing.subject import Subject, opened

_OPENS = 3
_SETTLING = 5.0  # seconds in which what ends by itself may end
_PYTHONS_OWN = ("resource_tracker", "forkserver")  # multiprocessing keeps these until the process ends


def _pickle(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        twin = _pickled(env, "before its first reset")
        expected = record(env, episode)
    _as_original(subject, episode, expected, twin, "before its first reset")
    twin = _pickled(env, "after close()")
    if not departure(expected, record(env, episode)):  # else it cannot be opened again, pickled or not
        _as_original(subject, episode, expected, twin, "after close()")
    with contextlib.suppress(Exception):
        env.close()


def _as_original(subject: Subject, episode: Episode, expected: Record, twin: gym.Env[Any, Any], when: str) -> None:
    with opened(lambda: twin) as env:
        changed = deviation(subject, episode.seed, expected, record(env, episode))
        if changed:
            raise Broken(f"an environment that was pickled {when} to be as the original", changed, expected.trace)


def _pickled(env: gym.Env[Any, Any], when: str) -> gym.Env[Any, Any]:
    kind = type(env.unwrapped)
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        raise NotAsked(f"pickle finds classes by their module, and {kind.__qualname__} stands in none that can be imported")
    try:
        return pickle.loads(pickle.dumps(env))  # type: ignore[no-any-return]
    except Exception as error:
        raise Broken(f"an environment that pickles {when}", told(error)) from error


def _spec(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        spec = env.spec
        if spec is None:
            raise NotAsked("it has no spec, since gymnasium.make did not make it")
        if not isinstance(spec.entry_point, str):
            raise NotAsked("its entry point was registered as an object, and only a string 'module:name' becomes JSON")
        expected = record(env, episode)
    try:
        twin = gym.make(EnvSpec.from_json(spec.to_json()))
    except Exception as error:
        raise Broken("a spec that becomes JSON, and from there an environment", told(error)) from error
    with opened(lambda: twin) as env:
        changed = deviation(subject, episode.seed, expected, record(env, episode))
        if changed:
            raise Broken("an environment made from its spec's JSON to be as the original", changed, expected.trace)


def _close(subject: Subject, episode: Episode) -> None:
    for when, actions in (("before the first reset", None), ("in an episode", episode.actions[: episode.at])):
        with subject.env() as env:
            if actions is not None:
                record(env, Episode(episode.seed, actions))
            for number in ("once", "twice"):
                try:
                    env.close()
                except Exception as error:
                    raise Broken(f"close() {when}, {number}, to be fine", told(error)) from error
            _open_again(subject, env, episode)


def _open_again(subject: Subject, env: gym.Env[Any, Any], episode: Episode) -> None:
    with subject.env() as plain:
        expected = record(plain, episode)
    found = record(env, episode)
    says_so = isinstance(found.raised, gym.error.Error | RuntimeError) and not found.trace and not subject.is_tool_env
    changed = deviation(subject, episode.seed, expected, found, reused=True)
    if changed and not says_so:
        raise Broken("reset() after close() to open it again as it was", changed, expected.trace)


def _leftovers(subject: Subject, episode: Episode) -> None:
    grown: Mapping[str, Sequence[str]] = made_elsewhere(open_and_close, subject, subject.tour, _OPENS).value
    if grown:
        found = "; ".join(f"{len(some)} {kind} more, such as {', '.join(some[:3])}" for kind, some in grown.items())
        raise Broken(f"nothing left behind by {2 * _OPENS} more environments that were opened, used and closed", found)


def open_and_close(recipe: bytes, actions: Sequence[str], opens: int) -> dict[str, list[str]]:
    """Uses and closes ``opens`` environments, since engines that are shared may stay; and then twice as many.

    Returns:
        What there is more of than after the first ones, by kind, where there is one for each environment but one.
    """
    make = pickle.loads(recipe).fn
    _use(make, actions, opens)
    before = _holdings()
    _use(make, actions, 2 * opens)
    deadline = time.monotonic() + _SETTLING
    while True:
        grown = {
            kind: [thing for key, thing in some.items() if key not in before[kind]]
            for kind, some in _holdings().items()
            if len(some) - len(before[kind]) >= 2 * opens - 1  # by itself something may come or go meanwhile
        }
        if not grown or time.monotonic() > deadline:
            return grown
        time.sleep(0.1)


def _use(make: Any, actions: Sequence[str], times: int) -> None:
    for seed in range(times):
        with opened(make) as env:
            run = Recorder(env)
            run.reset(seed)
            for action in actions:
                if run.record.over:
                    run.reset(None)
                run.step(action)


def _holdings() -> dict[str, dict[Any, str]]:
    """What this process holds: by kind, a key for each thing and how it is called in a message."""
    gc.collect()
    folders = {Path(tempfile.gettempdir()), Path.cwd()}
    held: dict[str, dict[Any, str]] = {
        "threads": {thread.ident: repr(thread.name) for thread in threading.enumerate()},
        "files": {path: str(path) for folder in folders for path in folder.iterdir()},
    }
    if sys.platform == "linux":
        held["open descriptors"] = _descriptors()
        held["child processes"] = _children(os.getpid())
    return held


def _descriptors() -> dict[Any, str]:
    held = {}
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.lexists(path):  # the listing's own is gone by now
            held[name] = os.readlink(path)
    return held


def _children(parent: int) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for listing in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = [int(child) for child in listing.read_text().split()]
        except OSError:  # it ended meanwhile
            continue
        for child in children:
            command = _command(child)
            if not any(own in command for own in _PYTHONS_OWN):
                found[child] = f"{child} ({command[:60].strip()})"
                found.update(_children(child))
    return found


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


PROMISES = (
    Promise(
        "pickle", "It pickles before its first reset and after close(), and the copy is as the original.", _pickle, share=0.4
    ),
    Promise("spec", "Its spec becomes JSON, and from there an environment that is as the original.", _spec, share=0.4),
    Promise("close", "close() is fine at any time and twice, and reset() opens it again.", _close, share=0.4),
    Promise(
        "leftovers",
        "Opened, used and closed, it leaves no thread, process, descriptor or file.",
        _leftovers,
        once=True,
    ),
)
