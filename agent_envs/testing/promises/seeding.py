"""Promises about seeds: an episode is a function of its seed and actions, and of nothing that was before or is beside it."""

from __future__ import annotations

from dataclasses import replace

from gymnasium.utils.seeding import np_random

from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.record import Record, Recorder, departure, deviation, record, short
from agent_envs.testing.stand_ins import only_tool_env
from agent_envs.testing.subject import Subject
from agent_envs.testing.surroundings import generator_states, generators_kept, seed_generators

_SEEDS = 20


def _generators(subject: Subject, episode: Episode) -> None:
    with generators_kept():
        seed_generators(1)
        before = generator_states()
        with subject.env() as env:
            expected = record(env, episode)
        after = generator_states()
        moved = [name for name in before if before[name] != after[name]]
        if moved:
            found = f"that {' and '.join(moved)} had been drawn from or seeded"
            raise Broken("the global generators to be left alone", found, expected.trace)
        seed_generators(2)
        with subject.env() as env:
            changed = deviation(subject, episode.seed, expected, record(env, episode))
        if changed:
            raise Broken("an episode that does not depend on the global generators", changed, expected.trace)


def _seed(subject: Subject, episode: Episode) -> None:
    with subject.env() as one, subject.env() as other:
        first, second = Recorder(one), Recorder(other)
        expected = first.play(episode)
        changed = departure(expected, second.play(episode))
        if changed:
            raise Broken(f"the same episode twice with seed {episode.seed}", changed, expected.trace)
        for run in (first, second):
            run.play(replace(episode, seed=None))  # type: ignore[arg-type]  # a reset without seed goes on
        changed = departure(first.record, second.record)
        if changed:
            what = f"reset() after reset(seed={episode.seed}) and the same actions to begin the same episode twice"
            raise Broken(what, changed, expected.trace)


def _tasks(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        run = Recorder(env)
        begun = [run.reset(seed) for seed in range(_SEEDS)]
        if any(one.raised is not None for one in begun) or any(departure(begun[0], other) for other in begun[1:]):
            return
        if subject.is_tool_env:
            inner = only_tool_env(env)
            if len(inner.tasks.ids(inner.split) or (1, 2)) == 1:
                raise NotAsked(f"its split {inner.split!r} has one task")
        elif env.unwrapped.np_random.bit_generator.state != np_random(_SEEDS - 1)[0].bit_generator.state:
            raise NotAsked("every episode begins alike; what its reset draws from the seed does not show at once")
        found = f"that all of them begin with {short(begun[0].trace[0].observation)}"
        raise Broken(f"the seeds 0 to {_SEEDS - 1} to give more than one task", found)


def _episodes(subject: Subject, episode: Episode) -> None:
    with subject.env() as plain:
        expected = record(plain, episode)
    with subject.env() as env:
        run = Recorder(env)
        run.play(Episode(episode.seed + 1, tuple(reversed(episode.actions))[: episode.at]))
        before = f"an episode of seed {episode.seed + 1} and {len(run.record.trace[1:])} actions"
        for what in (f"after {before}", "once more"):
            changed = deviation(subject, episode.seed, expected, run.play(episode))
            if changed:
                raise Broken(f"an episode {what} to be as it is in a new environment", changed, expected.trace)


def _neighbours(subject: Subject, episode: Episode) -> None:
    two = (episode, replace(episode, seed=episode.seed + 1, actions=tuple(reversed(episode.actions))))
    alone: list[Record] = []
    for one in two:
        with subject.env() as env:
            alone.append(record(env, one))
    with subject.env() as left, subject.env() as right:
        runs = (Recorder(left), Recorder(right))
        for run, one in zip(runs, two, strict=True):
            run.reset(one.seed)
        for actions in zip(*(one.actions for one in two), strict=True):
            for run, action in zip(runs, actions, strict=True):
                run.step(action)
    for run, one, expected in zip(runs, two, alone, strict=True):
        changed = deviation(subject, one.seed, expected, run.record)
        if changed:
            raise Broken("two environments that are stepped in turns to be as each is alone", changed, expected.trace)


PROMISES = (
    Promise("global generators", "The generators of random, numpy and torch are neither read nor moved.", _generators),
    Promise("seed", "The same seed and actions give the same episode in a new environment, and the same next one.", _seed),
    Promise("tasks by seed", "Another seed gives another task, now and then.", _tasks, once=True),
    Promise("episodes apart", "An episode is no other after other episodes in the same environment.", _episodes),
    Promise("environments apart", "Two environments, stepped in turns, don't touch each other.", _neighbours, share=0.6),
)
