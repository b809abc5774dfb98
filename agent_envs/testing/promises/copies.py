"""Promises about copies of a live episode."""

from __future__ import annotations

import copy

from agent_envs.faults import ForkError
from agent_envs.testing.episode import Episode, Moment, act, difference, play, start
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.subject import Subject


def _fork_then_the_same(subject: Subject, episode: Episode) -> None:
    with subject.env() as env, subject.env() as plain:
        expected = play(plain, episode)
        moments: list[Moment] = [start(env, episode)]
        current, twin = env, None
        try:
            for turn, moment in enumerate(expected[1:]):
                if turn == episode.at:
                    try:
                        current = twin = copy.deepcopy(env)
                    except ForkError as refusal:
                        raise NotAsked(f"it says that it cannot be copied: {refusal}") from None
                assert moment.action is not None
                moments.append(act(current, moment.action, moments[-1]))
        finally:
            if twin is not None:
                twin.close()
        changed = difference(expected, tuple(moments))
        if changed:
            raise Broken(f"a copy made after action {episode.at} to go on as the original would have", changed, expected)


PROMISES = (Promise("fork", "A copy of a live episode goes on as the original would have.", _fork_then_the_same),)
