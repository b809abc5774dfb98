"""What a session of the site keeps: a value, and the few changes that can be made to it.

A change gives a new state and leaves the old one as it is, so a copy of a session is the same value under another key.
Whatever a visitor can make grow has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from agent_envs.tasks.world import World

THEMES = ("Light", "Dark", "Sepia")
FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"novel": ("Paperback", "Hardcover", "Audiobook"), "film": ("Disc", "Tape", "Download")}
)
"""The formats in which each sort of work can be ordered."""

NOTES = tuple(
    f"{what} {when}"
    for what in ("read again", "look up", "copy", "lend out", "compare", "translate")
    for when in ("on Monday", "on Friday", "at home", "in spring", "before the talk", "with a friend")
)
"""Notes as a reader of the site writes them: those there are at first, and those that tasks ask for."""

LONGEST_NOTE = 500
MOST_COPIES = 9
MOST_LISTED = 30
MOST_NOTES = 30
MOST_ORDERS = 10


class Refused(ValueError):
    """The site does not do that; the message says why, for the visitor to read."""


@dataclass(frozen=True)
class Settings:
    """A visitor's settings.

    Args:
        home_city: The title of a city.
        theme: One of `THEMES`.
        weekly_letter: Whether the visitor gets the letter.
    """

    home_city: str
    theme: str
    weekly_letter: bool


@dataclass(frozen=True)
class Order:
    """So many copies of a work in one format."""

    title: str
    format: str
    copies: int


@dataclass(frozen=True)
class State:
    """All that a session keeps.

    Args:
        reading_list: Titles, in alphabetical order.
        notes: By the title of the article they stand on; none is empty.
        settings: The settings.
        orders: In the order in which they were placed.
    """

    reading_list: tuple[str, ...]
    notes: Mapping[str, str]
    settings: Settings
    orders: tuple[Order, ...]

    def with_listed(self, world: World, title: str) -> State:
        """With a thing on the reading list, where it may stand already.

        Raises:
            Refused: There is no such thing, or the list is full.
        """
        listed = {*self.reading_list, _known(world, title)}
        if len(listed) > MOST_LISTED:
            raise Refused(f"The reading list holds at most {MOST_LISTED} titles: remove one first.")
        return replace(self, reading_list=tuple(sorted(listed)))

    def without_listed(self, title: str) -> State:
        """Without a thing on the reading list, where it need not stand."""
        return replace(self, reading_list=tuple(listed for listed in self.reading_list if listed != title))

    def with_note(self, world: World, title: str, text: str) -> State:
        """With a note on an article in place of the one before; an empty text takes it away.

        Raises:
            Refused: There is no such article, the note is too long, or there are too many.
        """
        text = "\n".join(line.rstrip() for line in text.splitlines()).strip()
        if len(text) > LONGEST_NOTE:
            raise Refused(f"A note has at most {LONGEST_NOTE} characters, this one has {len(text)}.")
        notes = {other: note for other, note in self.notes.items() if other != _known(world, title)}
        if text:
            notes[title] = text
        if len(notes) > MOST_NOTES:
            raise Refused(f"There can be at most {MOST_NOTES} notes: empty one first.")
        return replace(self, notes=MappingProxyType(dict(sorted(notes.items()))))

    def with_settings(self, world: World, settings: Settings) -> State:
        """With other settings.

        Raises:
            Refused: A setting has no such value.
        """
        if settings.home_city not in cities(world):
            raise Refused(f"The home city is one of {', '.join(cities(world))}.")
        if settings.theme not in THEMES:
            raise Refused(f"The theme is one of {', '.join(THEMES)}.")
        return replace(self, settings=settings)

    def with_order(self, world: World, order: Order) -> State:
        """With one more order.

        Raises:
            Refused: It is no work, there is no such format, it is too many copies, or there are too many orders.
        """
        check_order(world, order)
        if len(self.orders) == MOST_ORDERS:
            raise Refused(f"There can be at most {MOST_ORDERS} orders.")
        return replace(self, orders=(*self.orders, order))

    def as_json(self) -> dict[str, Any]:
        """The state as JSON values: what a verifier compares."""
        return {
            "reading_list": list(self.reading_list),
            "notes": dict(self.notes),
            "settings": asdict(self.settings),
            "orders": [asdict(order) for order in self.orders],
        }


def check_order(world: World, order: Order) -> None:
    """Says why an order cannot be placed.

    Raises:
        Refused: It is no work, there is no such format, or it is too many copies.
    """
    formats = FORMATS.get(world.articles[_known(world, order.title)].sort)
    if formats is None:
        raise Refused(f"{order.title} cannot be ordered: only novels and films can.")
    if order.format not in formats:
        raise Refused(f"The format is one of {', '.join(formats)}.")
    if not 1 <= order.copies <= MOST_COPIES:
        raise Refused(f"Copies is a number from 1 to {MOST_COPIES}.")


def cities(world: World) -> tuple[str, ...]:
    """The titles of a world's cities, in alphabetical order."""
    return tuple(sorted(title for title, article in world.articles.items() if article.sort == "city"))


def initial_state(world: World, seed: int) -> State:
    """What a new session holds, which is not nothing, so that doing nothing but adding is not enough everywhere.

    Args:
        world: The world that the session shows.
        seed: That of the world.
    """
    rng = np.random.default_rng([seed, world.number, 1])
    titles = sorted(world.articles)
    works = [title for title in titles if world.articles[title].sort in FORMATS]
    picked = [titles[int(position)] for position in rng.choice(len(titles), 7, replace=False)]
    homes = cities(world)
    ordered = works[int(rng.integers(len(works)))]
    formats = FORMATS[world.articles[ordered].sort]
    return State(
        reading_list=tuple(sorted(picked[:4])),
        notes=MappingProxyType({title: NOTES[int(rng.integers(len(NOTES)))] for title in sorted(picked[4:])}),
        settings=Settings(
            home_city=homes[int(rng.integers(len(homes)))],
            theme=THEMES[int(rng.integers(len(THEMES)))],
            weekly_letter=bool(rng.integers(2)),
        ),
        orders=(Order(ordered, formats[int(rng.integers(len(formats)))], 1 + int(rng.integers(MOST_COPIES))),),
    )


def _known(world: World, title: str) -> str:
    if title not in world.articles:
        raise Refused(f"There is no article {title[:60]!r}.")
    return title
