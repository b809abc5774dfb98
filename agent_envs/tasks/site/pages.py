"""What the pages show: plain HTML that reads and works alike with scripts, styles or neither.

Each function gives the inside of one page; `layout` puts the head with its links and the search around it. All text goes
through `escape`. No page shows a time, a port, a key or anything else that is not a function of world, state and address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType
from urllib.parse import quote, urlencode

from agent_envs.tasks.site.state import FORMATS, THEMES, Order, Settings, State, cities
from agent_envs.tasks.world import Article, World

SORTS: Mapping[str, str] = MappingProxyType(
    {
        "person": "People",
        "novel": "Novels",
        "film": "Films",
        "organisation": "Organisations",
        "city": "Cities",
        "country": "Countries",
    }
)
"""The lists that there are, each with its heading."""

_A_PAGE = 10  # entries of a list or of search results
_LINK = re.compile(r"\[\[(.*?)\]\]")
_WORD = re.compile(r"\w+")
_STYLE = "body{font-family:sans-serif;max-width:46em;margin:1em auto}form{display:inline}"


def layout(title: str, body: str, query: str = "") -> str:
    """A whole page.

    Args:
        title: Of the document, and its first heading.
        body: HTML.
        query: What stands in the search field.
    """
    links = " ".join(
        _link(text, href)
        for text, href in (("Start", "/"), ("Reading list", "/reading"), ("Orders", "/orders"), ("Settings", "/settings"))
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<nav><p>{links}</p></nav>\n"
        f'<form action="/search" role="search"><p>{_text_field("Search", "q", query)} <button>Go</button></p></form>\n'
        f"<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body></html>\n"
    )


def plain(title: str, message: str) -> str:
    """A page that only says something."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>\n'
        f"<body><h1>{escape(title)}</h1><p>{escape(message)}</p></body></html>\n"
    )


def start(world: World) -> str:
    """The lists, with how many entries each has."""
    sorts = [article.sort for article in world.articles.values()]
    entries = [f"{_link(heading, f'/list/{sort}')} ({sorts.count(sort)})" for sort, heading in SORTS.items()]
    return "<p>An encyclopedia of a small world.</p>\n" + _items(entries)


def listing(world: World, sort: str, page: int) -> str | None:
    """One page of the articles of a sort, A to Z; None where there is no such page."""
    articles = sorted((article for article in world.articles.values() if article.sort == sort), key=lambda one: one.title)
    return _paged([_link(article.title, address(article.title)) for article in articles], f"/list/{sort}", {}, page)


def results(world: World, query: str, page: int) -> str | None:
    """One page of what a search finds; None where there is no such page."""
    found = search(world, query)
    if not found:
        return "<p>Nothing was found.</p>"
    entries = [f"{_link(one.title, address(one.title))}: {escape(one.text.split('. ')[0].rstrip('.'))}." for one in found]
    return _paged(entries, "/search", {"q": query}, page)


def search(world: World, query: str) -> list[Article]:
    """The articles with all words of a query in title or second name, or where there are none, in their text; by title."""
    words = set(_WORD.findall(query.casefold()))
    if not words:
        return []
    articles = sorted(world.articles.values(), key=lambda article: article.title)
    named = [one for one in articles if words <= set(_WORD.findall(f"{one.title} {one.alias}".casefold()))]
    return named or [one for one in articles if words <= set(_WORD.findall(one.text.casefold()))]


def article(world: World, state: State, title: str) -> str:
    """An article, and what can be done with it."""
    one = world.articles[title]
    pieces = enumerate(_LINK.split(one.markup))  # every second one is a title
    text = "".join(_link(piece, address(piece)) if position % 2 else escape(piece) for position, piece in pieces)
    verb, path = ("Remove from", "remove") if title in state.reading_list else ("Add to", "add")
    parts = [f"<p>{text}</p>", f"<p>{_button(f'/reading/{path}', f'{verb} reading list', title=title)}</p>"]
    if one.sort in FORMATS:
        parts.append(f"<p>{_link('Order', f'/order/{_slug(title)}')}</p>")
    note = state.notes.get(title, "")
    parts.append(f"<h2>Your note</h2>\n<p>{escape(note) or 'There is none.'}</p>")
    field = f'<label for="note">Note</label> <textarea id="note" name="text" rows="3" cols="60">\n{escape(note)}</textarea>'
    parts.append(_form("/note", f"{field} <button>Save note</button>", title=title))
    return "\n".join(parts)


def reading_list(state: State) -> str:
    """The reading list, with a button for each entry that removes it."""
    entries = [
        f'{_link(title, address(title))} <button name="title" value="{escape(title)}">Remove {escape(title)}</button>'
        for title in state.reading_list
    ]
    return _form("/reading/remove", _items(entries)) if entries else "<p>It is empty.</p>"


def settings(world: World, now: Settings) -> str:
    """The settings as they are saved, and a form to change them."""
    letter = "on" if now.weekly_letter else "off"
    saved = f"Saved: home city {now.home_city}, theme {now.theme}, weekly letter {letter}."
    fields = (
        f"<p>{_choice('Home city', 'home_city', cities(world), now.home_city)}</p>\n"
        f"<p>{_choice('Theme', 'theme', THEMES, now.theme)}</p>\n"
        f'<p><input type="checkbox" id="weekly_letter" name="weekly_letter"{" checked" if now.weekly_letter else ""}> '
        f'<label for="weekly_letter">Weekly letter</label></p>\n<p><button>Save settings</button></p>'
    )
    return f"<p>{escape(saved)}</p>\n{_form('/settings', fields)}"


def order_form(world: World, title: str, problem: str = "") -> str:
    """What is ordered, how many and in which format. Only a look at it comes of sending it."""
    formats = FORMATS[world.articles[title].sort]
    fields = (
        f'<input type="hidden" name="title" value="{escape(title)}">'
        f"<p>{_text_field('Copies', 'copies', '1')}</p>\n<p>{_choice('Format', 'format', formats, formats[0])}</p>\n"
        "<p><button>Review order</button></p>"
    )
    said = f"<p>{escape(problem)}</p>\n" if problem else ""
    return f'{said}<p>What: {_link(title, address(title))}</p>\n<form action="/review">{fields}</form>'


def review(order: Order) -> str:
    """An order before it is placed."""
    kept = {"title": order.title, "format": order.format, "copies": str(order.copies)}
    button = _button("/orders", "Confirm order", **kept)
    change = _link("Change", f"/order/{_slug(order.title)}")
    return f"<p>{_described(order)}</p>\n<p>Nothing is ordered yet.</p>\n<p>{button} {change}</p>"


def orders(state: State) -> str:
    """The orders that were placed."""
    return _items([_described(order) for order in state.orders]) if state.orders else "<p>There are none.</p>"


def address(title: str) -> str:
    """The path of an article."""
    return f"/wiki/{_slug(title)}"


def title_of(slug: str) -> str:
    """The title that a path stands for, in which blanks are written as ``_``."""
    return slug.replace("_", " ")


def _slug(title: str) -> str:
    return quote(title.replace(" ", "_"), safe="()")


def _described(order: Order) -> str:
    return f"{order.copies} of {_link(order.title, address(order.title))} ({escape(order.format)})"


def _paged(entries: Sequence[str], path: str, query: Mapping[str, str], page: int) -> str | None:
    pages = -(-len(entries) // _A_PAGE)
    if not 1 <= page <= pages:
        return None
    turns = [
        _link(text, f"{path}?{urlencode({**query, 'page': to})}")
        for text, to in (("Previous page", page - 1), ("Next page", page + 1))
        if 1 <= to <= pages
    ]
    shown = _items(entries[(page - 1) * _A_PAGE : page * _A_PAGE])
    return f"{shown}\n<p>Page {page} of {pages} {' '.join(turns)}</p>" if pages > 1 else shown


def _items(entries: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{entry}</li>" for entry in entries) + "\n</ul>"


def _link(text: str, href: str) -> str:
    return f'<a href="{escape(href)}">{escape(text)}</a>'


def _form(path: str, inside: str, **hidden: str) -> str:
    kept = "".join(f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in hidden.items())
    return f'<form method="post" action="{escape(path)}">{kept}{inside}</form>'


def _button(path: str, label: str, **hidden: str) -> str:
    return _form(path, f"<button>{escape(label)}</button>", **hidden)


def _text_field(label: str, name: str, value: str) -> str:
    return (
        f'<label for="{name}">{label}</label> <input id="{name}" name="{name}" value="{escape(value)}" autocomplete="off">'
    )


def _choice(label: str, name: str, options: Sequence[str], chosen: str) -> str:
    inside = "".join(f"<option{' selected' if one == chosen else ''}>{escape(one)}</option>" for one in options)
    return f'<label for="{name}">{label}</label> <select id="{name}" name="{name}" autocomplete="off">{inside}</select>'
