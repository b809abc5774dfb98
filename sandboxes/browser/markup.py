"""Reads HTML into a document.

lxml takes the HTML of the web as it is, and fast; its events become lines as they come. No tree is built, so what a page
costs is bounded by what is kept of it, whatever it nests or repeats. The extractors of articles (trafilatura, readability)
throw away just what an agent needs, navigation and forms; those of layout (inscriptis, html2text) lose where an element was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lxml import etree

from sandboxes.browser.document import MOST_CHARACTERS, Document, Element
from sandboxes.browser.flow import SPACES, Flow
from sandboxes.browser.form_markup import FormCollector

_CHUNK = 16_384  # bytes that are read between two looks at the clock
_MOST_ELEMENTS = 20_000  # links, fields and options
_MOST_EVENTS = 400_000  # tags and texts
_DEEPEST = 1_000  # tags in each other

_BLOCKS = frozenset(
    [
        *("address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details", "dialog", "dir"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
        *("header", "hgroup", "hr", "legend", "li", "main", "menu", "nav", "ol", "optgroup", "p", "pre", "search"),
        *("section", "summary", "table", "tbody", "tfoot", "thead", "ul"),
    ]
)
_PREFIXES = {**{f"h{level}": "#" * level + " " for level in range(1, 7)}, "li": "- "}
_UNSEEN = frozenset(
    ["audio", "canvas", "datalist", "math", "object", "script", "style", "svg", "template", "title", "video"]
)
_FIELDS = frozenset(["input", "button", "select", "textarea"])
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_REFRESH = re.compile(r"\s*(\d{1,6})(?:\.\d*)?\s*(?:[;,\s]\s*(?:url\s*=\s*)?[\"']?([^\"']*))?", re.IGNORECASE)


def read_html(text: str, deadline: float) -> Document:
    """Reads HTML of any quality.

    Args:
        text: The page.
        deadline: Of ``time.monotonic()``; what is not read by then is cut off.
    """
    builder = _Builder()
    parser = etree.HTMLParser(encoding="utf-8", target=builder, huge_tree=True)
    data = text.encode("utf-8", "replace")
    cut = False
    for start in range(0, len(data), _CHUNK):
        if builder.full or time.monotonic() > deadline:
            cut = True
            break
        parser.feed(data[start : start + _CHUNK])
    if data.strip():  # lxml does not end what has not begun
        parser.close()
    return builder.document(cut)


def read_refresh(content: str) -> tuple[int, str] | None:
    """What a ``Refresh`` header, or the like in a document, asks for: seconds, and the address ("" for the same)."""
    match = _REFRESH.match(content)
    return (int(match[1]), (match[2] or "").strip()) if match else None


@dataclass
class _Capture:
    """An element whose text is its name, while it is read."""

    place: int
    depth: int
    texts: list[str] = field(default_factory=list)
    has_blocks: bool = False


class _Builder:
    """Makes a document of lxml's events (its "parser target" interface). ``full``: there is no room for more."""

    def __init__(self) -> None:
        self.full = False
        self._flow = Flow()
        self._forms = FormCollector()
        self._elements: list[Element] = []
        self._spare_names: dict[int, str] = {}  # of elements that nothing better names
        self._title: list[str] = []
        self._anchors: dict[str, int] = {}
        self._base = ""
        self._refresh: tuple[int, str] | None = None
        self._stack: list[str] = []
        self._hidden = 0  # the depth from which on nothing is shown, or 0
        self._disabled = 0  # likewise for fields
        self._pre = 0
        self._capture: _Capture | None = None
        self._texts: list[str] = []  # since the latest tag
        self._events = self._characters = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """A tag begins."""
        self._end_text()
        self._stack.append(tag)
        self._events += 1
        things = len(self._elements) + self._forms.size
        self.full = self.full or self._events > _MOST_EVENTS or len(self._stack) > _DEEPEST or things > _MOST_ELEMENTS
        if self.full:
            return
        if tag == "base":
            self._base = self._base or attributes.get("href", "").strip()
        elif tag == "meta" and attributes.get("http-equiv", "").strip().lower() == "refresh":
            self._refresh = self._refresh or read_refresh(attributes.get("content", ""))
        if not self._hidden and (tag in _UNSEEN or _is_hidden(tag, attributes)):
            self._hidden = len(self._stack)
        if tag in _FIELDS:
            self._open_field(tag, attributes)  # also one that is hidden is sent
        elif tag == "option":
            self._forms.open_option(attributes)
        elif tag == "form":
            self._forms.open_form(attributes)
        elif tag == "fieldset" and "disabled" in attributes and not self._disabled:
            self._disabled = len(self._stack)
        if not self._hidden:
            self._open_shown(tag, attributes)

    def end(self, tag: str) -> None:
        """A tag ends; lxml sees to it that each does, in order."""
        self._end_text()
        if self.full:
            return
        depth = len(self._stack)
        self._stack.pop()
        self._forms.close(tag)
        if self._capture and depth == self._capture.depth:
            self._close_capture()
        if self._disabled == depth:
            self._disabled = 0
        if self._hidden:
            self._hidden = 0 if self._hidden == depth else self._hidden
            return
        if tag == "pre":
            self._pre -= 1
        if tag == "tr":
            self._flow.close_row()
        elif tag in _BLOCKS:
            self._part(tag)
        if tag in _PREFIXES and not self._capture:
            self._flow.prefix = ""  # of an empty one

    def data(self, text: str) -> None:
        """Text between tags, or a part of it."""
        if not self.full:
            self._texts.append(text)
            self._events += 1
            self._characters += len(text)
            self.full = self._events > _MOST_EVENTS or self._characters > MOST_CHARACTERS

    def comment(self, text: str) -> None:
        """Comments say nothing to a reader."""

    def close(self) -> None:
        """The input ends; `document` gives what it was."""

    def document(self, cut: bool) -> Document:
        """What was read; ``cut`` if not all of it."""
        self._end_text()
        if self._capture:
            self._close_capture()
        fields, forms, named = self._forms.finish()
        lines, places = self._flow.finish(named)
        names = {element: self._forms.labels[label].text for label, element in reversed(named.items())}
        elements = [
            replace(found, name=_name(found, names.get(place, ""), self._spare_names.get(place, "")))
            for place, found in enumerate(self._elements)
        ]
        return Document(
            SPACES.sub(" ", "".join(self._title)).strip(),
            lines,
            elements,
            fields,
            forms,
            {name: places[min(line, len(places) - 1)] for name, line in self._anchors.items()},
            self._base,
            self._refresh,
            cut or self.full,
        )

    def _open_shown(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = attributes.get("id") or (attributes.get("name") if tag == "a" else None)
        if tag == "tr":
            self._flow.open_row()
        elif tag in ("td", "th"):
            self._flow.open_cell()
        elif tag in _BLOCKS:
            self._part(tag)
        elif tag == "label":
            self._forms.open_label(attributes)
        elif tag in ("a", "area") and "href" in attributes:
            href = attributes["href"].strip()
            self._open_capture(Element("link", attributes.get("aria-label", "").strip(), href), attributes, _last_part(href))
            if tag == "area":
                self._close_capture()
        elif tag in ("iframe", "frame") and attributes.get("src", "").strip():
            href = attributes["src"].strip()
            self._place(Element("link", f"frame {attributes.get('title') or href[:60]}", href))
        elif tag == "img" and attributes.get("alt", "").strip():
            self._text(f" {attributes['alt']} " if self._capture else attributes["alt"])
        if tag == "pre":
            self._pre += 1
        if tag in _PREFIXES:
            self._flow.prefix = _PREFIXES[tag] if tag == "li" or not self._flow.prefix else self._flow.prefix
        if name:
            self._anchors.setdefault(name, self._flow.position)

    def _end_text(self) -> None:
        if self._texts:
            text, self._texts = "".join(self._texts), []
            if self._forms.reads_text:
                self._forms.text(text)
            elif self._stack[-1:] == ["title"] and "svg" not in self._stack:
                self._title.append(text)
            elif not self._hidden:
                self._text(text)

    def _text(self, text: str) -> None:
        label = self._forms.label
        if label is not None:
            self._forms.labels[label].texts.append(text)
        if self._capture is not None:
            self._capture.texts.append(text)
        elif self._pre:
            self._flow.preformatted(text)
        else:
            self._flow.text(text, label)

    def _part(self, tag: str) -> None:
        """A block begins or ends, or a line does."""
        if self._capture is not None:
            self._capture.texts.append(" ")
            self._capture.has_blocks |= tag != "br"
        if self._capture is None or tag != "br":
            self._flow.stop()

    def _open_capture(self, added: Element, attributes: Mapping[str, str], spare: str = "") -> None:
        if self._capture is not None:
            self._close_capture()
        self._elements.append(added)
        place = len(self._elements) - 1
        self._spare_names[place] = attributes.get("title") or attributes.get("name") or spare
        self._capture = _Capture(place, len(self._stack))

    def _close_capture(self) -> None:
        capture, self._capture = self._capture, None
        assert capture is not None
        text = SPACES.sub(" ", "".join(capture.texts))
        found = self._elements[capture.place]
        self._elements[capture.place] = replace(found, name=found.name or text.strip())
        if text.startswith(" "):
            self._flow.space()
        self._flow.put(capture.place)
        if text.endswith(" "):
            self._flow.space()
        if capture.has_blocks:
            self._flow.stop()

    def _place(self, added: Element) -> int:
        """Adds an element that has no text in it."""
        if self._capture is not None:
            self._close_capture()
        self._elements.append(added)
        self._flow.put(len(self._elements) - 1)
        return len(self._elements) - 1

    def _open_field(self, tag: str, attributes: Mapping[str, str]) -> None:
        place, made = self._forms.open_field(tag, attributes, self._disabled > 0)
        self._characters += len(made.value)
        if self._hidden or made.kind in ("hidden", "file"):
            return
        role = {"text": "textbox", "submit": "button", "reset": "button"}.get(made.kind, made.kind)
        role += " (disabled)" if made.disabled else ""
        name = attributes.get("aria-label", "").strip()
        if tag == "button":
            self._open_capture(Element(role, name, field=place), attributes)
            self._forms.shown(len(self._elements) - 1, attributes)
            return
        if made.kind in ("submit", "reset", "button"):
            own = "alt" if attributes.get("type", "").strip().lower() == "image" else "value"
            name = name or attributes.get(own, "").strip() or made.kind.capitalize()
        number = self._place(Element(role, name, field=place))
        self._spare_names[number] = attributes.get("placeholder") or attributes.get("title") or made.name
        self._forms.shown(number, attributes)


def _name(found: Element, label: str, spare: str) -> str:
    return found.name or label or spare.strip()


def _is_hidden(tag: str, attributes: Mapping[str, str]) -> bool:
    if "hidden" in attributes or attributes.get("aria-hidden") == "true" or (tag == "dialog" and "open" not in attributes):
        return True
    return bool(_INVISIBLE.search(attributes.get("style", "")))


def _last_part(href: str) -> str:
    return re.sub(r"[?#].*", "", href, flags=re.DOTALL).rstrip("/").rpartition("/")[2][:60]
