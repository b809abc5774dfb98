"""Promises about the order of calls, and about the end of an episode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agent_envs.testing.episode import Episode, Trace
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.record import Record, Recorder, departure, deviation, place, record, repeats, short, told
from agent_envs.testing.stand_ins import only_tool_env
from agent_envs.testing.subject import Subject

_PATIENCE = 20  # empty actions after which an episode of an environment without max_turns is given up


def _order(subject: Subject, episode: Episode) -> None:
    with subject.env() as plain:
        expected = record(plain, episode)
        patience = only_tool_env(plain).max_turns if subject.is_tool_env else _PATIENCE
    with subject.env() as env:
        _must_raise(env, "before the first reset", subject, ())
        run = Recorder(env)
        changed = deviation(subject, episode.seed, expected, run.play(episode))
        if changed:
            raise Broken("a step before the first reset to do no harm", changed, expected.trace)
        for _ in range(patience):
            run.step("")
        if not run.record.over or run.record.raised is not None:
            return
        _must_raise(env, "after the end of the episode", subject, run.record.trace)
        changed = deviation(subject, episode.seed, expected, run.play(episode), reused=True)
        if changed:
            raise Broken("a step after the end to leave the next episode as it would be", changed, expected.trace)


def _must_raise(env: gym.Env[Any, Any], when: str, subject: Subject, trace: Trace) -> None:
    expected = f"{'a gymnasium.error.ResetNeeded' if subject.is_tool_env else 'an exception'} from a step {when}"
    try:
        result = env.step("")
    except ResetNeeded:
        return
    except Exception as error:
        if subject.is_tool_env:
            raise Broken(expected, told(error), trace) from error
    else:
        raise Broken(expected, f"that it gave {short(result)}", trace)


def _end(subject: Subject, episode: Episode) -> None:
    if not subject.is_tool_env:
        raise NotAsked("only a ToolEnv has max_turns")
    with subject.env() as env:
        limit = only_tool_env(env).max_turns
        run = Recorder(env)
        run.reset(episode.seed)
        for action in (*episode.actions, *[""] * limit)[:limit]:
            run.step(action)
        trace = run.record.trace
        if run.record.raised is not None:
            return
        if not run.record.over:
            raise Broken(f"an episode to end with its turn {limit}", f"that it goes on after {place(trace)}", trace)
        last, outer = trace[-1], env.spec.max_episode_steps if env.spec else None
        if len(trace) - 1 != outer and (last.truncated or not last.terminated):
            raise Broken(
                "terminated and not truncated at the end, since a ToolEnv scores an episode that is out of turns",
                f"terminated={last.terminated}, truncated={last.truncated} after {place(trace)}",
                trace,
            )


def _time_limit(subject: Subject, episode: Episode) -> None:
    with subject.env() as plain:
        expected = record(plain, episode)
    if expected.raised is not None:
        return
    limit = max(1, min(episode.at, len(expected.trace) - 1))
    before, last = expected.trace[:limit], expected.trace[limit : limit + 1]
    cut = Record((*before, *(replace(moment, truncated=True) for moment in last)))
    with subject.env() as env:
        run = Recorder(gym.wrappers.TimeLimit(env, limit))
        for once_more in ("", " when it began once more"):
            changed = departure(cut, run.play(episode))
            if changed and repeats(subject, episode.seed, expected, reused=True):
                what = f"TimeLimit({limit}) to cut the episode off and change nothing else{once_more}"
                raise Broken(what, changed, expected.trace)


PROMISES = (
    Promise("order", "A step before the reset or after the end raises, and does no harm.", _order),
    Promise("end", "An episode ends within its turns: terminated at max_turns, where a ToolEnv scores it.", _end, share=0.4),
    Promise("time limit", "Gymnasium's TimeLimit cuts an episode off and changes nothing else.", _time_limit, share=0.4),
)
