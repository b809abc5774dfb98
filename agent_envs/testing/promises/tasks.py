"""Promises about tasks: drawn by the generator alone, found again by their id, never in two splits, and solvable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault
from agent_envs.spaces import replace_surrogates
from agent_envs.task import Task, TaskSource, UnknownTask, normalise_question
from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.stand_ins import only_tool_env, short
from agent_envs.testing.subject import Subject

_NO_IDS = ("no task has this id", "", "\ud800", "x" * 10_000)
_DRAWS = 100  # tasks of a split that are compared with those of the others
_LISTED = 2_000  # ids of a split that are looked at
_FEW = 12  # draws among which there are two different tasks


def _tasks_are_what_they_say(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        source = inner.tasks
        for split in source.splits:
            task = _draw(source, split, episode.seed)
            if task is None:
                continue
            where = f"that generator {episode.seed} draws in split {split!r}"
            again = _draw(source, split, episode.seed)
            if again != task:
                raise Broken(f"the same task twice {where}", f"first {short(task)}, then {short(again)}")
            for expected, found in (*_wrong_in(task, inner), *_wrong_by_id(source, task)):
                raise Broken(f"{expected} of the task {where}", found)
            listed = source.ids(split)
            others = [_draw(source, split, episode.seed + number) for number in range(1, _FEW)]
            if (listed is None or len(set(listed)) > 1) and all(other == task for other in others):
                raise Broken(f"other tasks by other generators in split {split!r}", f"{short(task)} {_FEW} times")


def _draw(source: TaskSource, split: str, seed: int) -> Task | None:
    """The task that a generator draws, or None where the split holds none."""
    try:
        return source.sample(np.random.default_rng(seed), split)
    except UnknownTask:
        return None


def _wrong_in(task: Task, inner: ToolEnv) -> Iterator[tuple[str, str]]:
    """What was expected, and what was found."""
    question = task.question
    if not isinstance(question, str) or not question.strip() or replace_surrogates(question) != question:
        yield "a question that can be shown", repr(question)
    elif len(question) > inner.max_observation:
        yield f"a question of at most {inner.max_observation} characters", f"{len(question)}"
    if not isinstance(task.id, str) or not task.id:
        yield "an id that is a text", repr(task.id)
    if not isinstance(task.answers, tuple) or not all(isinstance(answer, str) for answer in task.answers):
        yield "a tuple of texts as the answers", repr(task.answers)
    try:
        json.dumps(dict(task.metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield "metadata that is JSON", str(error)


def _wrong_by_id(source: TaskSource, task: Task) -> Iterator[tuple[str, str]]:
    try:
        again = source.get(task.id)
    except Exception as error:
        yield f"that get({task.id!r}) gives the task again", f"{type(error).__name__}: {error}"
        return
    if again != task:
        yield f"that get({task.id!r}) gives the same again", f"{short(again)} instead of {short(task)}"


def _splits_are_disjoint(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        source = only_tool_env(env).tasks
        split_of: dict[str, str] = {}
        for split in source.splits:
            for task in _tasks_of(source, split):
                question = normalise_question(task.question)
                other = split_of.setdefault(question, split)
                if other != split:
                    raise Broken("questions that are in one split alone", f"{task.question!r} is in {other!r} and {split!r}")


def _tasks_of(source: TaskSource, split: str) -> Iterator[Task]:
    """Those that are listed, and some that are drawn, with the same generators in each split."""
    for task_id in list(source.ids(split) or ())[:_LISTED]:
        yield source.get(task_id)
    for seed in range(_DRAWS):
        task = _draw(source, split, seed)
        if task is not None:
            yield task


def _options_are_heeded(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        observation, info = env.reset(seed=episode.seed)
        task = inner.task
        for seed in (episode.seed + 1, None):
            again, told = env.reset(seed=seed, options={"task_id": task.id})
            if told["task_id"] != task.id or inner.task != task or again != observation:
                found = f"task {told['task_id']!r} with the observation {short(again)}"
                raise Broken(f"the task {task.id!r} by reset(options={{'task_id': ...}})", found)
        refused: list[tuple[dict[str, Any], type[Exception]]] = [({"zz_unknown": 1}, ValueError)]
        refused += [({"task_id": task_id}, UnknownTask) for task_id in _NO_IDS]
        for options, kind in refused:
            try:
                env.reset(seed=episode.seed, options=options)
            except kind:
                pass
            except Exception as error:
                raise Broken(f"{kind.__name__} for options={short(options)}", f"{type(error).__name__}: {error}") from error
            else:
                raise Broken(f"{kind.__name__} for options={short(options)}", f"the task {inner.task.id!r}")
        again, told = env.reset(seed=episode.seed, options={"task_id": task.id})
        if (again, told) != (observation, info):
            raise Broken("that reset works after options were refused", f"{short(again)}, {told}")


def _gold_is_accepted(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        env.reset(seed=episode.seed)
        task = inner.task
        for answer in task.answers:
            try:
                verdict = inner.verifier.verify(answer, task)
            except EnvironmentFault:
                return  # it is not the answer that is judged
            if not verdict.success or verdict.accuracy != 1.0:
                raise Broken(
                    f"that the verifier accepts the gold answer {answer!r} of task {task.id!r}",
                    f"accuracy {verdict.accuracy:g}, success {verdict.success}",
                )


PROMISES = (
    Promise("tasks", "A task depends on the generator alone, and its id names it.", _tasks_are_what_they_say),
    Promise("splits", "No question is in two splits.", _splits_are_disjoint, once=True),
    Promise("options", "reset takes a task's id, and refuses what it does not know.", _options_are_heeded),
    Promise("gold", "The verifier accepts every gold answer.", _gold_is_accepted),
)
