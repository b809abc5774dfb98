"""What a request leads to: a page, or a change of the session's state and a page to go to.

A GET never changes anything, so no address does, whoever makes it up. A POST that is refused changes nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from agent_envs.tasks.site import pages
from agent_envs.tasks.site.state import FORMATS, Order, Refused, Settings, State, check_order
from agent_envs.tasks.world import World

Fields = Mapping[str, str]
"""The fields of a query or of a form; of a name that occurs twice, the last."""


@dataclass(frozen=True)
class Reply:
    """What the site answers.

    Args:
        page: HTML; "" where ``location`` says where to go.
        status: Of HTTP.
        location: A path of this site, or "".
    """

    page: str
    status: int = 200
    location: str = ""


def show(world: World, state: State, path: str, query: Fields) -> Reply:
    """Answers a GET.

    Args:
        world: The session's world.
        state: The session's state.
        path: Without the query, percent signs decoded.
        query: The query's fields.
    """
    page: str | None = None
    title, sought = "", ""
    match path.split("/")[1:]:
        case [""]:
            title, page = "Start", pages.start(world)
        case ["list", sort] if sort in pages.SORTS:
            title, page = pages.SORTS[sort], pages.listing(world, sort, _page(query))
        case ["search"]:
            sought = query.get("q", "")[:200]
            title, page = "Search results", pages.results(world, sought, _page(query))
        case ["wiki", slug] if pages.title_of(slug) in world.articles:
            title = pages.title_of(slug)
            page = pages.article(world, state, title)
        case ["order", slug] if _is_work(world, pages.title_of(slug)):
            title, page = "Order", pages.order_form(world, pages.title_of(slug))
        case ["review"] if _is_work(world, query.get("title", "")):
            return _review(world, query)
        case ["reading"]:
            title, page = "Reading list", pages.reading_list(state)
        case ["orders"]:
            title, page = "Orders", pages.orders(state)
        case ["settings"]:
            title, page = "Settings", pages.settings(world, state.settings)
    if page is None:
        return Reply(pages.layout("Not found", "<p>There is no such page.</p>"), 404)
    return Reply(pages.layout(title, page, sought))


def act(world: World, state: State, path: str, form: Fields) -> tuple[State, Reply]:
    """Answers a POST.

    Returns:
        The state afterwards, and the answer.
    """
    title = form.get("title", "")
    try:
        match path:
            case "/reading/add":
                state, location = state.with_listed(world, title), "/reading"
            case "/reading/remove":
                state, location = state.without_listed(title), "/reading"
            case "/note":
                state, location = state.with_note(world, title, form.get("text", "")), pages.address(title)
            case "/settings":
                chosen = Settings(form.get("home_city", ""), form.get("theme", ""), "weekly_letter" in form)
                state, location = state.with_settings(world, chosen), "/settings"
            case "/orders":
                state, location = state.with_order(world, _order(form)), "/orders"
            case _:
                return state, Reply(pages.layout("Not found", "<p>There is no such form.</p>"), 404)
    except Refused as problem:
        return state, Reply(pages.layout("That was not done", f"<p>{escape(str(problem))}</p>"), 400)
    return state, Reply("", 303, location)


def _review(world: World, query: Fields) -> Reply:
    order = _order(query)
    try:
        check_order(world, order)
    except Refused as problem:
        return Reply(pages.layout("Order", pages.order_form(world, order.title, str(problem))), 400)
    return Reply(pages.layout("Review order", pages.review(order)))


def _order(fields: Fields) -> Order:
    return Order(fields.get("title", ""), fields.get("format", ""), _number(fields.get("copies", "")))


def _is_work(world: World, title: str) -> bool:
    return title in world.articles and world.articles[title].sort in FORMATS


def _page(query: Fields) -> int:
    return _number(query.get("page", "1"))


def _number(text: str) -> int:
    """A number of at most three digits, or 0 for what is none."""
    text = text.strip()
    return int(text) if len(text) <= 3 and text.isascii() and text.isdigit() else 0
