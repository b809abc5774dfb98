"""Questions of one to four hops about small worlds that nobody has read about, and the articles that answer them.

The embedded tasks of ``WikiSearch-v0`` and ``DeepSearch-v0``. A question names one thing and asks for what a chain of
relations leads to, such as the birthplace of the author of a novel. All the worlds' articles stand in one index; a split has
worlds of its own, so nothing that was learned by heart is of use in another. A task's id spells out the task.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from agent_envs.moves import Answer, Call, Move
from agent_envs.task import Oracle, Task, TaskSource, UnknownTask
from agent_envs.tasks.world import FIRST_SYLLABLES, OCCUPATIONS, RELATIONS, SECOND_SYLLABLES, World, is_a, make_world
from sandboxes.search import Bm25Index, Index, Passage, share_index

WORLDS: Mapping[str, range] = MappingProxyType({"validation": range(4), "test": range(4, 8), "train": range(8, 308)})
"""The worlds of each split."""

_FRAMES = ("{}", "Tell me: {}", "I want to know: {}", "{} Look it up.")
_ID = re.compile(r"tiny_wiki:(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,3}):([0-9]):([^:]{1,60}):([a-z /]{1,200})")


def _pieces() -> tuple[str, ...]:
    """The syllables of names, and what stands between names in articles, search results and questions."""
    relations = [relation for sort in RELATIONS.values() for relation in sort.values()]
    kinds = [*OCCUPATIONS, *RELATIONS]
    pieces = {f"the {relation.name} of " for relation in relations}
    pieces |= {part for relation in relations for part in relation.question.split("{}")}
    pieces |= {relation.sentence.partition("{}")[0] for relation in relations}
    pieces |= {part for frame in _FRAMES for part in frame.split("{}")}
    pieces |= {f"{is_a(kind)} " for kind in kinds} | {f" ({kind})" for kind in kinds}
    pieces |= {f"Doc {number} (Title: " for number in (1, 2, 3)} | {") ", ". ", ", also called ", ","}
    return (*sorted(pieces - {"", ".", ","}), *FIRST_SYLLABLES, *SECOND_SYLLABLES)


class TinyWiki(TaskSource):
    """Multi-hop questions about the worlds of `agent_envs.tasks.world`.

    Args:
        hops: Relations in a question, from 1 to 4, or several numbers to choose from.
        seed: Which worlds; those of two seeds have nothing to do with each other.
        pages: Whether the expert opens the pages that it finds, as in ``DeepSearch-v0``, or reads search results alone.

    Raises:
        ValueError: A number of hops is not between 1 and 4.
    """

    name = "tiny_wiki"
    vocabulary = _pieces()

    def __init__(self, hops: int | Sequence[int] = 2, seed: int = 0, *, pages: bool = False) -> None:
        self.hops = tuple(hops) if isinstance(hops, Sequence) else (hops,)
        if not self.hops or not all(isinstance(count, int) and 1 <= count <= 4 for count in self.hops):
            raise ValueError(f"hops is a number of relations from 1 to 4, or a list of them; found {hops!r}")
        self.seed = seed
        self.pages = pages

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws a question about one of the split's worlds."""
        if split not in WORLDS:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(self.splits)}, found {split!r}")
        number = WORLDS[split][int(rng.integers(len(WORLDS[split])))]
        world = make_world(self.seed, number)
        hops = self.hops[int(rng.integers(len(self.hops)))]
        starts = [*world.articles, *world.aliases]
        while True:
            start = starts[int(rng.integers(len(starts)))]
            path: list[str] = []
            here = world.title_of(start)
            while here in world.articles and len(path) < hops:
                article = world.articles[here]
                path.append([*article.facts][int(rng.integers(len(article.facts)))])
                here = article.facts[path[-1]]
            if len(path) == hops and _needs_every_hop(world, start, path):
                return self._task(world, start, path, int(rng.integers(len(_FRAMES))))

    def get(self, task_id: str) -> Task:
        """The task that the id spells out: ``tiny_wiki:SEED:WORLD:FRAME:START:RELATION/RELATION...``."""
        match = _ID.fullmatch(task_id)
        known = match and int(match[1]) == self.seed and any(int(match[2]) in worlds for worlds in WORLDS.values())
        if match and known and int(match[3]) < len(_FRAMES):
            world, start, path = make_world(self.seed, int(match[2])), match[4], match[5].split("/")
            if _needs_every_hop(world, start, path):
                return self._task(world, start, path, int(match[3]))
        raise UnknownTask(
            f"an id of these tasks reads 'tiny_wiki:{self.seed}:WORLD:FRAME:START:RELATION/RELATION' with things and "
            f"relations of that world, found {task_id!r}"
        )

    def oracle(self, task: Task) -> Oracle:
        """Follows the chain: finds each thing's article, reads there what comes next, and answers with the last."""
        world, path = make_world(self.seed, task.metadata["world"]), task.metadata["path"]
        chain = _chain(world, task.metadata["start"], path)
        moves: dict[str, Move] = {task.question: Call("search", {"query": task.metadata["start"]})}
        place = 0  # in the chain, of what was looked for last

        def expert(observation: str) -> Move:
            nonlocal place
            if observation not in moves:
                shown = [at for at, title in enumerate(chain[:-1]) if world.articles[title].text in observation]
                if shown:
                    place = (place if place in shown else shown[-1]) + 1
                moves[observation] = move_to(chain[place], bool(shown))
            return moves[observation]

        def move_to(title: str, by_link: bool) -> Move:
            if place == len(path):
                return Answer(title)
            if self.pages:
                return Call("browse", {"page": title})
            return Call("search", {"query": title if by_link else f"{title} {path[place]}"})

        return expert

    def open_index(self) -> Index:
        """The articles of all worlds, in process; whoever opens it in this process shares it."""
        return share_index((self.name, self.seed), lambda: Bm25Index.build(self.passages()))

    def passages(self) -> Iterator[Passage]:
        """The articles of all worlds."""
        for number in itertools.chain(*WORLDS.values()):
            for article in make_world(self.seed, number).articles.values():
                yield Passage(article.title, article.title, article.text)

    def _task(self, world: World, start: str, path: Sequence[str], frame: int) -> Task:
        *_, before, end = _chain(world, start, path)
        asked = start
        for relation in path[:-1]:
            asked = f"the {relation} of {asked}"
        question = RELATIONS[world.articles[before].sort][path[-1]].question.format(asked)
        answer = world.articles.get(end)
        golds = (answer.title, answer.name, answer.alias) if answer else (end,)
        return Task(
            f"{self.name}:{self.seed}:{world.number}:{frame}:{start}:{'/'.join(path)}",
            _FRAMES[frame].format(question),
            tuple(dict.fromkeys(filter(None, golds))),
            {"hops": len(path), "world": world.number, "start": start, "path": list(path)},
        )


def _chain(world: World, start: str, path: Sequence[str]) -> list[str]:
    """All that a chain of relations passes, from the title of ``start`` to the answer."""
    title = world.title_of(start)
    return [title, *world.follow(title, path)]


def _needs_every_hop(world: World, start: str, path: Sequence[str]) -> bool:
    """Whether that is a chain of things that are all different, whose end stands only in the article before it."""
    try:
        chain = _chain(world, start, path)
    except KeyError:
        return False
    names = {world.articles[title].name for title in chain if title in world.articles}
    things = sum(title in world.articles for title in chain)
    early = " ".join(world.articles[title].text for title in chain[:-2])
    end = world.articles.get(chain[-1])
    # A name alone is a right answer, so it must not stand there as that of another thing.
    return len(names) == things and (end.name if end else chain[-1]) not in early
