"""The scripted expert of the tasks on the small site: reads what the page shows, and does the next thing.

It looks at the latest observation alone, so that it can take over anywhere: what was done already shows on the pages. Of the
task it knows what a solver finds out on the way, which articles to go through and which state to reach. But it acts on what
it sees, by refs of the page in front of it, through links and forms, and says that it is done once it has seen that it is.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agent_envs.moves import Answer, Call, Move
from agent_envs.task import Oracle, Task
from agent_envs.tasks.site.opening import WikiSite

_ELEMENT = re.compile(r"\[(e\d+)(?: \w+)?(?: \"([^\"\n]*)\")?: ([^\]\n]*)\]")
_DONE = Answer("done")


@dataclass(frozen=True)
class _Element:
    """What can be acted on: ``label`` is its text, or that of its label; ``value`` what it holds."""

    ref: str
    label: str
    value: str


class _View:
    """A page as an observation shows it."""

    def __init__(self, observation: str) -> None:
        title = re.search(r"^Page: (.*)$", observation, re.MULTILINE)
        url = re.search(r"^URL: (.*)$", observation, re.MULTILINE)
        self.title = title[1] if title else ""
        self.path = urlsplit(url[1]).path if url else ""
        self.text = _ELEMENT.sub(lambda found: found[3], observation)
        self._elements = [
            _Element(ref, label or text, text if label else "") for ref, label, text in _ELEMENT.findall(observation)
        ]

    def get(self, label: str) -> _Element | None:
        """The last element of that label, since the site's own head stands first."""
        return next((element for element in reversed(self._elements) if element.label == label), None)

    def labels(self, beginning: str) -> list[str]:
        return [element.label for element in self._elements if element.label.startswith(beginning)]


def expert(task: Task) -> Oracle:
    """The expert for a task of `agent_envs.tasks.tiny_web.TinyWeb`."""
    kind, goal = task.metadata["kind"], task.metadata["goal"]

    def move(observation: str) -> Move:
        view = _View(observation)
        if not view.path:
            return _browse("read")
        if view.get("Search") is None:  # a blank page, or one of another site
            return _browse("goto", text=WikiSite.start_url)
        match kind:
            case "find":
                return _find(view, task)
            case "add" | "swap" | "remove":
                return _list(view, task, goal["reading_list"])
            case "note":
                return _note(view, task, goal["notes"])
            case "settings":
                return _settings(view, goal["settings"])
        return _order(view, task, goal["orders"][-1])

    return move


def _find(view: _View, task: Task) -> Move:
    answer = task.answers[0]
    if _is_article(view, task.metadata["chain"][-1]) and answer in view.text:
        return Answer(answer)
    return _towards(view, task)


def _list(view: _View, task: Task, wanted: list[str]) -> Move:
    target = task.metadata["chain"][-1]
    if view.path == "/reading":
        listed = [label.removeprefix("Remove ") for label in view.labels("Remove ")]
        extra = [title for title in listed if title not in wanted]
        if extra:
            return _click(view, f"Remove {extra[0]}")
        if target in listed or target not in wanted:
            return _DONE
    if target not in wanted:
        return _click(view, "Reading list")
    if _is_article(view, target):
        return _click(view, "Add to reading list" if view.get("Add to reading list") else "Reading list")
    return _towards(view, task)


def _note(view: _View, task: Task, wanted: dict[str, str]) -> Move:
    target = task.metadata["chain"][-1]
    if not _is_article(view, target):
        return _towards(view, task)
    saved = re.search(r"Your note\n+(.*)", view.text)
    if saved and saved[1].strip() == wanted[target]:
        return _DONE
    return _fill(view, "Note", wanted[target]) or _click(view, "Save note")


def _settings(view: _View, wanted: dict[str, Any]) -> Move:
    if view.path != "/settings":
        return _click(view, "Settings")
    letter = "on" if wanted["weekly_letter"] else "off"
    if f"home city {wanted['home_city']}, theme {wanted['theme']}, weekly letter {letter}." in view.text:
        return _DONE
    box = view.get("Weekly letter")
    if box and (box.value == "checked") != wanted["weekly_letter"]:
        return _click(view, "Weekly letter")
    chosen = _choose(view, "Home city", wanted["home_city"]) or _choose(view, "Theme", wanted["theme"])
    return chosen or _click(view, "Save settings")


def _order(view: _View, task: Task, wanted: dict[str, Any]) -> Move:
    title = wanted["title"]
    described = f"{wanted['copies']} of {title} ({wanted['format']})"
    if view.path == "/orders" and described in view.text:
        return _DONE
    if view.path == "/review" and view.get("Confirm order"):
        return _click(view, "Confirm order" if described in view.text else "Change")
    if view.get("Review order") and f"What: {title}\n" in view.text:
        filled = _fill(view, "Copies", str(wanted["copies"])) or _choose(view, "Format", wanted["format"])
        return filled or _click(view, "Review order")
    return _click(view, "Order") if _is_article(view, title) else _towards(view, task)


def _towards(view: _View, task: Task) -> Move:
    """The next move on the way to the last article of the chain: by links from the one before, else by a search."""
    chain = task.metadata["chain"]
    for here, following in itertools.pairwise(chain):
        if _is_article(view, here):
            return _click(view, following)
    if view.path == "/search" and view.get(chain[0]):
        return _click(view, chain[0])
    return _fill(view, "Search", task.metadata["start"]) or _click(view, "Go")


def _is_article(view: _View, title: str) -> bool:
    return view.path.startswith("/wiki/") and view.title == title


def _fill(view: _View, label: str, text: str) -> Move | None:
    """Types where something else stands."""
    field = view.get(label)
    return None if field is None or field.value == text else _browse("type", field.ref, text)


def _choose(view: _View, label: str, option: str) -> Move | None:
    """Selects where something else is chosen."""
    field = view.get(label)
    return None if field is None or f"*{option}*" in field.value else _browse("select", field.ref, option)


def _click(view: _View, label: str) -> Move:
    """Clicks; where there is no such thing, goes back to the start."""
    element = view.get(label)
    return _browse("click", element.ref) if element else _browse("goto", text=WikiSite.start_url)


def _browse(action: str, ref: str = "", text: str = "") -> Move:
    given = {"action": action, "ref": ref, "text": text}
    return Call("browse", {name: value for name, value in given.items() if value})
