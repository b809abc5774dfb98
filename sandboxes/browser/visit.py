"""A page that the reader has opened: what it says, and what has been done to it since."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

from sandboxes.browser.addresses import Address
from sandboxes.browser.content import characters, kind_of
from sandboxes.browser.document import Document, plain
from sandboxes.browser.fetching import Response
from sandboxes.browser.forms import Entries
from sandboxes.browser.markup import read_html


@dataclass
class Visit:
    """A page that was opened, and what has been done to it.

    Args:
        address: Where it is; None for ``about:blank``.
        document: What it says.
        notes: Lines before those of the document.
        first: The first line that is shown.
        focus: The place of the element that was last acted on.
    """

    address: Address | None
    document: Document
    notes: list[str] = field(default_factory=list)
    first: int = 0
    focus: int | None = None
    entries: Entries = field(init=False)
    _lines: list[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.entries = Entries(self.document.fields)

    @property
    def url(self) -> str:
        return "about:blank" if self.address is None else str(self.address)

    @property
    def lines(self) -> list[str]:
        if self._lines is None:
            self._lines = [*self.notes, *self.document.render(self.entries)]
        return self._lines

    def changed(self) -> None:
        """What stands in the fields is another."""
        self._lines = None

    def show(self, fragment: str) -> None:
        """Scrolls to what a fragment names."""
        line = self.document.anchors.get(fragment, self.document.anchors.get(unquote(fragment)))
        if line is not None:
            self.first = min(line + len(self.notes), max(0, len(self.lines) - 1))
        elif fragment in ("", "top"):
            self.first = 0


def read(response: Response, deadline: float) -> Visit:
    """Opens what came back.

    Args:
        response: With its body, if it is one of text.
        deadline: Of ``time.monotonic()``; what is not read by then is cut off.
    """
    kind = kind_of(response.headers, response.body)
    if kind == "other":
        stated = response.headers.get("content-type", "").partition(";")[0].strip()[:100] or "unknown"
        notes = [f"[a file of type {stated}, which this browser does not show]"]
        return Visit(response.address, Document(), notes)
    text = characters(response.body, response.headers, kind)
    document = read_html(text, deadline) if kind == "html" else plain(text)
    notes = []
    if response.cut or document.cut:
        notes.append("[this page is longer than what is read of it: the rest is cut off]")
    if response.status >= 400 and not document.lines:
        notes.append(f"[the server answered with status {response.status}]")
    return Visit(response.address, document, notes)
