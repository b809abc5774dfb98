"""A small world that nobody has read about: people, places, works and organisations, and an article on each.

Every world of a seed is consistent in itself and has names of its own, so what is known about one is of no use in another.
Each relation leads from one thing to exactly one other, so a chain of relations has one end. Some things share their name
and are told apart by what stands in parentheses, with articles that read almost alike; some have a second name.

There is no environment and no question in here: questions are `agent_envs.tasks.tiny_wiki`, pages `agent_envs.tasks.site`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

_OPEN = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
FIRST_SYLLABLES = tuple((syllable + coda).capitalize() for syllable in _OPEN for coda in ("l", "m", "n", "r", "s"))
SECOND_SYLLABLES = tuple(syllable + coda for syllable in _OPEN for coda in ("", "l", "n", "r", "s"))
_NAMES = len(FIRST_SYLLABLES) * len(SECOND_SYLLABLES)
_LINK = re.compile(r"\[\[(.*?)\]\]")


@dataclass(frozen=True)
class Relation:
    """What leads from one thing to another, or to a year.

    Args:
        name: Its noun: "the ``name`` of X".
        target: What it leads to: ``"person"``, ``"city"``, ``"country"``, ``"organisation"`` or ``"year"``.
        sentence: How an article says it; ``{}`` is the target.
        question: How it is asked for at the end of a chain; ``{}`` is the subject.
    """

    name: str
    target: str
    sentence: str
    question: str


def _relations(*rows: tuple[str, str, str, str]) -> Mapping[str, Relation]:
    return MappingProxyType({name: Relation(name, target, sentence, question) for name, target, sentence, question in rows})


RELATIONS: Mapping[str, Mapping[str, Relation]] = MappingProxyType(
    {
        "person": _relations(
            ("birthplace", "city", "The birthplace is {}.", "Where was {} born?"),
            ("year of birth", "year", "The year of birth is {}.", "When was {} born?"),
            ("best friend", "person", "The best friend is {}.", "Who is the best friend of {}?"),
            ("spouse", "person", "The spouse is {}.", "Who is the spouse of {}?"),
            ("employer", "organisation", "The employer is {}.", "Who is the employer of {}?"),
        ),
        "novel": _relations(
            ("author", "person", "The author is {}.", "Who is the author of {}?"),
            ("publisher", "organisation", "The publisher is {}.", "Who is the publisher of {}?"),
            ("year of release", "year", "The year of release is {}.", "When was {} released?"),
        ),
        "film": _relations(
            ("director", "person", "The director is {}.", "Who is the director of {}?"),
            ("publisher", "organisation", "The publisher is {}.", "Who is the publisher of {}?"),
            ("year of release", "year", "The year of release is {}.", "When was {} released?"),
        ),
        "organisation": _relations(
            ("founder", "person", "The founder is {}.", "Who is the founder of {}?"),
            ("seat", "city", "The seat is {}.", "Where is the seat of {}?"),
            ("year of foundation", "year", "The year of foundation is {}.", "When was {} founded?"),
        ),
        "city": _relations(
            ("country", "country", "The country is {}.", "What is the country of {}?"),
            ("mayor", "person", "The mayor is {}.", "Who is the mayor of {}?"),
        ),
        "country": _relations(
            ("capital", "city", "The capital is {}.", "What is the capital of {}?"),
        ),
    }
)
"""The relations that each sort of thing has, in the order in which an article tells them."""

OCCUPATIONS = ("painter", "doctor", "singer", "lawyer", "farmer", "actor")
_COUNTS = MappingProxyType({"country": 2, "city": 6, "organisation": 8, "person": 24, "novel": 9, "film": 9})
_SHARED = 4  # pairs of things in a world that share a name
_ALIASED = 6  # things in a world that have a second name


@dataclass(frozen=True)
class Article:
    """One thing of a world, and what is known about it.

    Args:
        title: Its name, with what it is in parentheses where it shares that name; no other thing of any world has it.
        name: Its name alone.
        sort: ``"person"``, ``"novel"``, ``"film"``, ``"organisation"``, ``"city"`` or ``"country"``.
        occupation: Of a person, else "".
        alias: A second name, or "".
        facts: By relation: the title of another thing, or a year.
        markup: The article, each link as ``[[title]]``.
    """

    title: str
    name: str
    sort: str
    occupation: str
    alias: str
    facts: Mapping[str, str]
    markup: str = field(repr=False)

    @property
    def text(self) -> str:
        """The article without the marks of its links."""
        return _LINK.sub(r"\1", self.markup)

    @property
    def links(self) -> tuple[str, ...]:
        """The titles that it links to, in order."""
        return tuple(_LINK.findall(self.markup))


@dataclass(frozen=True)
class World:
    """The articles of one world by title."""

    number: int
    articles: Mapping[str, Article]

    @functools.cached_property
    def aliases(self) -> Mapping[str, str]:
        """The title behind each second name."""
        return MappingProxyType({article.alias: title for title, article in self.articles.items() if article.alias})

    def title_of(self, name: str) -> str:
        """The title of what is named by its title or its second name."""
        return self.aliases.get(name, name)

    def follow(self, start: str, path: Sequence[str]) -> tuple[str, ...]:
        """What a chain of relations leads to, one after the other, ``start`` left out.

        Raises:
            KeyError: A thing on the way does not have the relation.
        """
        reached = []
        for relation in path:
            start = self.articles[start].facts[relation]
            reached.append(start)
        return tuple(reached)


@functools.lru_cache(maxsize=512)
def make_world(seed: int, number: int) -> World:
    """World ``number`` of ``seed``.

    Args:
        seed: Which universe; worlds of one universe share no name.
        number: Which world of it, below `MOST_WORLDS`.
    """
    if not 0 <= number < MOST_WORLDS:
        raise ValueError(f"a world's number is below {MOST_WORLDS}, found {number}")
    rng = np.random.default_rng([seed, number])
    names = _names(seed, number)
    things = _things(rng, names)
    facts = _facts(rng, things)
    articles = {
        title: Article(title, **thing, facts=MappingProxyType(facts[title]), markup=_write(title, thing, facts[title]))
        for title, thing in things.items()
    }
    return World(number, MappingProxyType(articles))


def _things(rng: np.random.Generator, names: Iterator[str]) -> dict[str, dict[str, str]]:
    """The things of a world by title, without facts."""
    sorts = [sort for sort, count in _COUNTS.items() for _ in range(count)]
    order = [int(position) for position in rng.permutation(len(sorts))]
    occupations = [OCCUPATIONS[int(rng.integers(len(OCCUPATIONS)))] if sort == "person" else "" for sort in sorts]
    kinds = [occupation or sort for occupation, sort in zip(occupations, sorts, strict=True)]
    pairs = zip(order[: 2 * _SHARED : 2], order[1 : 2 * _SHARED : 2], strict=True)
    shared = {second: first for first, second in pairs if kinds[first] != kinds[second]}  # else nothing tells them apart
    aliased = set(order[2 * _SHARED : 2 * _SHARED + _ALIASED])
    own = [next(names) for _ in sorts]
    things: dict[str, dict[str, str]] = {}
    for position, (sort, occupation) in enumerate(zip(sorts, occupations, strict=True)):
        name = own[shared.get(position, position)]
        alias = next(names) if position in aliased else ""
        told_apart = position in shared or position in shared.values()
        title = f"{name} ({kinds[position]})" if told_apart else name
        things[title] = {"name": name, "sort": sort, "occupation": occupation, "alias": alias}
    return things


def _facts(rng: np.random.Generator, things: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """What is true of each thing. Nobody is married to two, a capital lies in its country, nobody works before birth."""
    of_sort = {sort: [title for title, thing in things.items() if thing["sort"] == sort] for sort in _COUNTS}
    countries, cities, people = of_sort["country"], _shuffled(rng, of_sort["city"]), _shuffled(rng, of_sort["person"])
    lies_in = {city: countries[index % len(countries)] for index, city in enumerate(cities)}
    capitals = {country: city for city, country in lies_in.items()}
    spouses = dict(zip(people, [*people[len(people) // 2 :], *people[: len(people) // 2]], strict=True))
    era = int(rng.integers(1000, 1900))
    facts: dict[str, dict[str, str]] = {}
    for title, thing in things.items():
        known = facts[title] = {}
        for relation in RELATIONS[thing["sort"]].values():
            if relation.name == "country":
                known["country"] = lies_in[title]
            elif relation.name == "capital":
                known["capital"] = capitals[title]
            elif relation.name == "spouse":
                known["spouse"] = spouses[title]
            elif relation.target == "year":
                known[relation.name] = str(
                    era + int(rng.integers(30) if thing["sort"] == "person" else rng.integers(50, 90))
                )
            else:
                taken = {title, spouses.get(title), *known.values()}
                others = [other for other in of_sort[relation.target] if other not in taken]
                known[relation.name] = others[int(rng.integers(len(others)))]
    return facts


def _shuffled(rng: np.random.Generator, things: list[str]) -> list[str]:
    return [things[int(position)] for position in rng.permutation(len(things))]


def is_a(kind: str) -> str:
    """How an article says what a thing is, after its name."""
    return f" is {'an' if kind[0] in 'aeiou' else 'a'} {kind}."


def _write(title: str, thing: Mapping[str, str], facts: Mapping[str, str]) -> str:
    what = thing["occupation"] or thing["sort"]
    also = f", also called {thing['alias']}," if thing["alias"] else ""
    sentences = [f"{title}{also}{is_a(what)}"]
    for relation in RELATIONS[thing["sort"]].values():
        value = facts[relation.name]
        sentences.append(relation.sentence.format(value if relation.target == "year" else f"[[{value}]]"))
    return " ".join(sentences)


_NAMES_A_WORLD = sum(_COUNTS.values()) + _ALIASED
MOST_WORLDS = _NAMES // _NAMES_A_WORLD
"""Worlds of one seed; then the names are used up."""


def _names(seed: int, number: int) -> Iterator[str]:
    """Names of two syllables that no other world of the seed has: a stretch of a permutation of all there are."""
    rng = np.random.default_rng([seed, 2**31])
    step = int(rng.integers(_NAMES // 4, _NAMES // 2))
    while math.gcd(step, _NAMES) != 1:
        step += 1
    offset = int(rng.integers(_NAMES))
    for index in range(number * _NAMES_A_WORLD, (number + 1) * _NAMES_A_WORLD):
        first, second = divmod((offset + index * step) % _NAMES, len(SECOND_SYLLABLES))
        yield FIRST_SYLLABLES[first] + SECOND_SYLLABLES[second]
