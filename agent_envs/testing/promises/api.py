"""Promises about the Gymnasium API: what a reset and a step take and give."""

from __future__ import annotations

from agent_envs.testing.episode import Episode, difference, play
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.subject import Subject


def _same_by_seed(subject: Subject, episode: Episode) -> None:
    with subject.env() as first, subject.env() as second:
        trace = play(first, episode)
        changed = difference(trace, play(second, episode))
        if changed:
            raise Broken(f"the same episode twice with seed {episode.seed}", changed, trace)


PROMISES = (Promise("seed", "The same seed and actions give the same episode in a new environment.", _same_by_seed),)
