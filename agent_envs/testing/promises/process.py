"""Promises about the process: an environment neither depends on what else is in its process nor changes it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from agent_envs.testing.elsewhere import Elsewhere, Outcome, run_elsewhere
from agent_envs.testing.episode import Episode, Trace, difference
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.promises.outputs import well_typed
from agent_envs.testing.record import Recorder, record, repeats, short
from agent_envs.testing.subject import Subject, opened
from agent_envs.testing.surroundings import changes, heard, look, put_back

_SEEDS = 3  # tasks that are tried in another process: a set of two names has the same order by chance


def _surroundings(subject: Subject, episode: Episode) -> None:
    with put_back(), heard() as printed:
        before = look()
        with subject.env() as env:
            played = record(env, episode)
        changed = changes(before, look())
    if changed:
        raise Broken("a process that is afterwards as it was before", "; ".join(changed), played.trace)
    if printed():
        raise Broken("nothing printed", short(printed()), played.trace)


def _first_use(subject: Subject, episode: Episode) -> None:
    done = made_elsewhere(use, subject, subject.tour)
    if done.value:
        raise Broken("a new process that is as it was after the first use", "; ".join(done.value))
    if done.printed:
        raise Broken("nothing printed in a new process", short(done.printed))


def _other_process(subject: Subject, episode: Episode) -> None:
    episode = subject.toured(episode)
    played = [replace(episode, seed=episode.seed + number) for number in range(_SEEDS)]
    try:
        one, other = (made_elsewhere(replay, subject, played, hash_seed=hash_seed).value for hash_seed in (1, 2))
    except NotAsked as why:
        if isinstance(why.__cause__, Elsewhere):
            raise Broken("to be made and played in another process as it is in this one", str(why.__cause__)) from why
        raise
    for each, first, second in zip(played, one, other, strict=True):
        changed = difference(first, second)
        with subject.env() as env:
            if changed and repeats(subject, each.seed, record(env, each)):  # else it is no matter of processes
                expected = f"the same episode of seed {each.seed} in processes with PYTHONHASHSEED=1 and 2"
                raise Broken(expected, changed, first)


def use(recipe: bytes, actions: Sequence[str]) -> list[str]:
    """Makes an environment and plays it.

    Returns:
        What has changed in this process since before that, the import of its modules included.
    """
    before = look()
    with opened(pickle.loads(recipe).fn) as env:
        run = Recorder(env)
        for seed, action in enumerate(actions):
            if seed == 0 or run.record.over:
                run.reset(seed)
            run.step(action)
    return changes(before, look())


def replay(recipe: bytes, episodes: list[Episode]) -> list[Trace]:
    """Plays episodes, each in a new environment, as far as they are made of what they should be."""
    traces = []
    for episode in episodes:
        with opened(pickle.loads(recipe).fn) as env:
            trace = record(env, episode).trace
        traces.append(tuple(moment for moment in trace if well_typed((moment,))))
    return traces


def made_elsewhere(function: Callable[..., Any], subject: Subject, *arguments: Any, hash_seed: int = 1) -> Outcome:
    """Calls a function on a subject's recipe in another process.

    Raises:
        NotAsked: The subject cannot go there, or came to grief there; the latter is broken of the promise "other process".
    """
    try:
        recipe = subject.recipe()
    except Exception as error:
        raise NotAsked(f"it cannot be made in another process ({type(error).__name__}: {error})") from error
    try:
        return run_elsewhere(
            function, recipe, *arguments, hash_seed=hash_seed, folder=subject.folder, variables=subject.variables
        )
    except Elsewhere as error:
        raise NotAsked(f"it does not work in another process ({error})") from error


PROMISES = (
    Promise("quiet", "An episode prints nothing and leaves its process as it was.", _surroundings),
    Promise("first use", "Imported and played in a new process, it prints and changes nothing.", _first_use, once=True),
    Promise(
        "other process", "The same episode is played in any process, whatever its hash seed.", _other_process, share=0.02
    ),
)
