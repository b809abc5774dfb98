"""A document as the reader shows it: lines, what can be acted on in them, and forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sandboxes.browser.forms import Entries, Field, Form
from sandboxes.browser.snapshot import element

WIDEST = 2_000  # characters of a line; a longer one goes on in the next
MOST_CHARACTERS = 1_000_000  # of a document

Piece = str | int
"""A piece of a line: text, or the place of an element."""


@dataclass(frozen=True)
class Element:
    """What can be acted on.

    Args:
        role: As in `sandboxes.browser.snapshot.element`.
        name: What it is called.
        href: Of a link, as the page has it.
        field: The place of its field among the document's.
    """

    role: str
    name: str = ""
    href: str = ""
    field: int | None = None


@dataclass(frozen=True)
class Document:
    """What was read.

    Args:
        title: Of the document.
        lines: Of pieces.
        elements: In document order; the first is e1.
        fields, forms: All of them, also those that are not shown.
        anchors: The lines at which ids stand.
        base: What its links are relative to, where it says so.
        refresh: Seconds, and where it wants to go then ("" for itself).
        cut: Whether it was too large to be read to its end.
    """

    title: str = ""
    lines: Sequence[Sequence[Piece]] = ()
    elements: Sequence[Element] = ()
    fields: Sequence[Field] = ()
    forms: Sequence[Form] = ()
    anchors: Mapping[str, int] = field(default_factory=dict)
    base: str = ""
    refresh: tuple[int, str] | None = None
    cut: bool = False

    def render(self, entries: Entries) -> list[str]:
        """The lines as text, with what stands in the fields."""
        return ["".join(self._piece(piece, entries) for piece in line) for line in self.lines]

    def _piece(self, piece: Piece, entries: Entries) -> str:
        if isinstance(piece, str):
            return piece
        found = self.elements[piece]
        value = None if found.field is None else entries.shown(found.field)
        return element(f"e{piece + 1}", found.role, found.name, value)


def plain(text: str) -> Document:
    """The document of a plain text."""
    kept = text[:MOST_CHARACTERS]
    lines = [
        [line[start : start + WIDEST]]
        for line in map(str.rstrip, kept.expandtabs(4).splitlines())
        for start in range(0, len(line), WIDEST)
    ]
    return Document(lines=lines, cut=len(text) > len(kept))
