"""Tasks on a small web site: find something out, or change something and nothing else.

The embedded tasks of ``WebBrowse-v0``, on the site of `agent_envs.tasks.site`. What is found out is judged by the answer,
what is changed by what the site keeps at the end: exactly the state that the task asks for. So an agent that does more than
that earns nothing, nor does one that only says that it has done it. Every question names a thing of its world and each split
has worlds of its own, so no question is in two. A task's id spells out the task.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agent_envs.faults import EnvironmentFault
from agent_envs.task import Oracle, Task, TaskSource, UnknownTask, Verdict, Verifier
from agent_envs.tasks.site.state import FORMATS, MOST_COPIES, NOTES, THEMES, Order, Refused, State, cities, initial_state
from agent_envs.tasks.tiny_web_expert import expert
from agent_envs.tasks.tiny_wiki import WORLDS, TinyWiki
from agent_envs.tasks.world import World, make_world
from agent_envs.verifiers.qa import QAVerifier

PHRASINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "find": ("{question}", "{question}"),  # as TinyWiki phrases it
        "add": ("Add {it} to the reading list.", "Put {it} on the reading list."),
        "remove": ("Remove {it} from the reading list.", "Take {it} off the reading list."),
        "swap": (
            "Remove {detail} from the reading list and add {it}.",
            "On the reading list, put {it} in the place of {detail}.",
        ),
        "note": ('Write the note "{detail}" on the article about {it}.', 'Note "{detail}" on the page of {it}.'),
        "settings": ("In the settings, {changes}.", "Go to the settings and {changes}."),
        "order": ("Order {copies} copies of {it}, format {format}.", "Place an order: {it}, {copies} copies, {format}."),
    }
)
"""The kinds of tasks, each with the ways in which it is asked for."""

KINDS = tuple(PHRASINGS)

_BY_CHAIN = ("find", "add", "swap", "note")  # these reach their thing through relations
_ID = re.compile(
    r"tiny_web:(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,3}):([a-z]{1,9}):([01]):([^:]{1,60}):([a-z /]{0,200}):([^:]{0,100})"
)
_SETTINGS = re.compile(rf"({'|'.join(THEMES)}|-) (on|off|-)")
_ORDER = re.compile(r"([2-9]) ([A-Z][a-z]+)")


class _Unfit(Exception):
    """These parts make no task."""


class TinyWeb(TaskSource):
    """Tasks on the site of `agent_envs.tasks.site`.

    Args:
        kinds: Which of `KINDS`: ``find`` something out; ``add`` a thing to the reading list, ``remove`` one, or both
            (``swap``); leave a ``note``; change the ``settings``; ``order`` copies of a work.
        hops: Relations between the thing that a question names and the answer, or the thing to act on, a number from 1 to 4
            or several to choose from; tasks to ``remove``, ``settings`` and ``order`` name their thing itself.
        seed: Which worlds; those of two seeds have nothing to do with each other.

    Raises:
        ValueError: There is no such kind, or a number of hops is not between 1 and 4.
    """

    name = "tiny_web"

    def __init__(self, kinds: Sequence[str] = KINDS, hops: int | Sequence[int] = (1, 2), seed: int = 0) -> None:
        self.kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds are some of {list(KINDS)}, found {kinds!r}")
        self.seed = seed
        self._wiki = TinyWiki(hops, seed)

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws a kind, then tasks of that kind until one is fit to be asked."""
        if split not in WORLDS:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(self.splits)}, found {split!r}")
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        while True:
            number, start, path = self._draw(rng, split, kind)
            world, before = _opening(self.seed, number)
            detail = _draw_detail(rng, kind, world, before, start)
            try:
                return self._task(number, kind, int(rng.integers(2)), start, path, detail)
            except _Unfit:
                continue

    def get(self, task_id: str) -> Task:
        """The task that the id spells out: ``tiny_web:SEED:WORLD:KIND:PHRASING:START:RELATION/RELATION...:DETAIL``."""
        match = _ID.fullmatch(task_id)
        if match and int(match[1]) == self.seed and any(int(match[2]) in worlds for worlds in WORLDS.values()):
            path = match[6].split("/") if match[6] else []
            try:
                return self._task(int(match[2]), match[3], int(match[4]), match[5], path, match[7])
            except _Unfit:
                pass
        raise UnknownTask(
            f"an id of these tasks reads 'tiny_web:{self.seed}:WORLD:KIND:PHRASING:START:RELATION/RELATION:DETAIL', such as "
            f"those that are drawn, found {task_id!r}"
        )

    def oracle(self, task: Task) -> Oracle:
        """Does the task through the pages; see `agent_envs.tasks.tiny_web_expert`."""
        return expert(task)

    def verifier(self) -> TinyWebVerifier:
        """What looks at the answer or at the site, as the task asks for."""
        return TinyWebVerifier()

    def _draw(self, rng: np.random.Generator, split: str, kind: str) -> tuple[int, str, Sequence[str]]:
        if kind in _BY_CHAIN:
            chain = self._wiki.sample(rng, split).metadata
            return chain["world"], chain["start"], chain["path"]
        number = WORLDS[split][int(rng.integers(len(WORLDS[split])))]
        world, before = _opening(self.seed, number)
        if kind == "remove":
            starts: Sequence[str] = before.reading_list
        elif kind == "settings":
            starts = cities(world)
        else:
            starts = [title for title, article in world.articles.items() if article.sort in FORMATS]
        return number, starts[int(rng.integers(len(starts)))], []

    def _task(self, number: int, kind: str, phrasing: int, start: str, path: Sequence[str], detail: str) -> Task:
        world, before = _opening(self.seed, number)
        thing = world.title_of(start)
        if thing not in world.articles or bool(path) != (kind in _BY_CHAIN):
            raise _Unfit
        chain, question = [thing], ""
        answers: tuple[str, ...] = ("done",)
        if path:
            try:
                asked = self._wiki.get(f"tiny_wiki:{self.seed}:{number}:{phrasing}:{start}:{'/'.join(path)}")
            except UnknownTask as problem:
                raise _Unfit from problem
            chain += world.follow(thing, path)
            question = asked.question
            answers = asked.answers if kind == "find" else answers
        goal: dict[str, Any] | None = None
        words: dict[str, str] = {}
        if kind == "find" and not detail:
            chain.pop()  # the answer, which may be no thing
        else:
            after, words = _goal(kind, world, before, chain[-1], detail)
            if after == before:
                raise _Unfit
            goal = after.as_json()
        named = functools.reduce(lambda name, relation: f"the {relation} of {name}", path, start)
        return Task(
            f"{self.name}:{self.seed}:{number}:{kind}:{phrasing}:{start}:{'/'.join(path)}:{detail}",
            PHRASINGS[kind][phrasing].format(question=question, it=named, detail=detail, **words),
            answers,
            {"kind": kind, "seed": self.seed, "world": number, "start": start, "chain": chain, "goal": goal},
        )


@runtime_checkable
class KeepsState(Protocol):
    """A tool that can tell what its site keeps of the episode, such as `agent_envs.tools.web.WebTool`."""

    def state(self) -> Mapping[str, Any]:
        """The state as JSON values."""


class TinyWebVerifier(Verifier):
    """Judges by exact match where an answer is asked for, else by the state of the site, whatever the answer says."""

    def __init__(self) -> None:
        self._answers = QAVerifier(metric="em")

    def verify(self, answer: str, task: Task) -> Verdict:
        """Judges an answer. Raises `EnvironmentFault` for a task that is not about one: it takes the tools to judge that."""
        return self.verify_episode(answer, task, ())

    def verify_episode(self, answer: str, task: Task, tools: Sequence[object]) -> Verdict:
        """Judges the answer, or what the site keeps: all that the task asks for must be there, and nothing else changed.

        Raises:
            EnvironmentFault: No tool can tell what the site keeps.
            SandboxFault: The site is gone.
        """
        goal = task.metadata.get("goal")
        if goal is None:
            return self._answers.verify(answer, task)
        for tool in tools:
            if isinstance(tool, KeepsState):
                reached = tool.state() == goal
                return Verdict(float(reached), reached)
        raise EnvironmentFault(
            f"task {task.id!r} is judged by the state of its site: give the environment a WebTool with site=WikiSite()",
            component="verifier",
        )


@functools.lru_cache(maxsize=128)
def _opening(seed: int, number: int) -> tuple[World, State]:
    """A world, and the state in which its sessions open."""
    world = make_world(seed, number)
    return world, initial_state(world, seed)


def _goal(kind: str, world: World, before: State, target: str, detail: str) -> tuple[State, dict[str, str]]:
    """The state that a task asks for, and words for its question.

    Raises:
        _Unfit: These parts make no task.
    """
    try:
        match kind:
            case "add" if not detail:
                return before.with_listed(world, target), {}
            case "remove" if not detail:
                return before.without_listed(target), {}
            case "swap" if detail in before.reading_list and target not in before.reading_list:
                return before.without_listed(detail).with_listed(world, target), {}
            case "note" if detail in NOTES:
                return before.with_note(world, target, detail), {}
            case "settings":
                return _changed_settings(world, before, target, detail)
            case "order" if found := _ORDER.fullmatch(detail):
                order = Order(target, found[2], int(found[1]))
                if all(target != placed.title for placed in before.orders):
                    return before.with_order(world, order), {"copies": found[1], "format": found[2]}
    except Refused as problem:
        raise _Unfit from problem
    raise _Unfit


def _changed_settings(world: World, before: State, home: str, detail: str) -> tuple[State, dict[str, str]]:
    found = _SETTINGS.fullmatch(detail)
    now = before.settings
    letter = "on" if now.weekly_letter else "off"
    if not found or home == now.home_city or found[1] == now.theme or found[2] == letter:  # what is so need not be asked for
        raise _Unfit
    changes, settings = [f"set the home city to {home}"], replace(now, home_city=home)
    if found[1] != "-":
        changes.append(f"set the theme to {found[1]}")
        settings = replace(settings, theme=found[1])
    if found[2] != "-":
        changes.append(f"turn the weekly letter {found[2]}")
        settings = replace(settings, weekly_letter=found[2] == "on")
    return before.with_settings(world, settings), {
        "changes": " and ".join(filter(None, (", ".join(changes[:-1]), changes[-1])))
    }


def _draw_detail(rng: np.random.Generator, kind: str, world: World, before: State, start: str) -> str:
    """What else a task of that kind says; not every draw is fit."""

    def one_of(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    match kind:
        case "swap":
            return one_of(before.reading_list)
        case "note":
            return one_of(NOTES)
        case "settings":
            themes = [theme for theme in THEMES if theme != before.settings.theme]
            return f"{one_of((*themes, '-'))} {one_of(('off' if before.settings.weekly_letter else 'on', '-'))}"
        case "order":
            return f"{int(rng.integers(2, MOST_COPIES + 1))} {one_of(FORMATS[world.articles[start].sort])}"
    return ""
