"""How text flows into lines: blocks, spaces, prefixes, cells of rows.

White space counts as HTML has it: any run of it is one space, and none stands at the ends of a line. A break is made only
once something follows it, so that ``<li><p>text</p></li>`` is one line and a cell with a paragraph in it stays in its row.
"""

from __future__ import annotations

import re
from collections.abc import Container

from sandboxes.browser.document import WIDEST, Piece

SPACES = re.compile(r"\s+")

_ELEMENT_WIDTH = 40  # characters that an element counts as; its text is known later


class Spoken(str):
    """A label's text: left out in the end if it names a field, since the field says it."""

    label: int


class Flow:
    """Lines in the making.

    Attributes:
        lines: Those that are finished.
        prefix: What the next line begins with, such as ``"- "``.
    """

    def __init__(self) -> None:
        self.lines: list[list[Piece]] = []
        self.prefix = ""
        self._line: list[Piece] = []
        self._width = 0
        self._break = False
        self._space = False
        self._rows: list[tuple[int, int]] = []  # of each row that is open: where it begins, and its cells so far

    @property
    def position(self) -> int:
        """The line that the next piece will be in."""
        return len(self.lines) + (1 if self._line and self._break else 0)

    def text(self, text: str, label: int | None = None) -> None:
        """Adds text as it stands in a document, be it a label's."""
        words = SPACES.sub(" ", text)
        core = words.strip(" ")
        self._space = self._space or words.startswith(" ")
        if core and label is not None:
            core = Spoken(core)
            core.label = label
        if core:
            self.put(core)
            self._space = words.endswith(" ")

    def preformatted(self, text: str) -> None:
        """Adds text whose lines and spaces count."""
        for number, line in enumerate(text.replace("\r", "").expandtabs(4).split("\n")):
            self._break = self._break or number > 0
            if line.strip() or (line and self._line and not self._break):
                self._space = False
                self.put(line)

    def put(self, piece: Piece) -> None:
        """Adds a piece to the line, after the break or the space that is due."""
        if self._break:
            self.flush()
        if not self._line and self.prefix:
            self._line.append(self.prefix)
            self.prefix = ""
        elif self._line:
            last = self._line[-1]
            if not last.endswith(" ") and self._space if isinstance(last, str) else self._space or isinstance(piece, int):
                self._line.append(" ")
        self._space = False
        if isinstance(piece, str):
            piece = self._fill(piece)
        self._line.append(piece)
        self._width += len(piece) if isinstance(piece, str) else _ELEMENT_WIDTH
        if self._width > WIDEST:
            self.flush()

    def space(self) -> None:
        """Parts what comes from what was."""
        self._space = True

    def stop(self) -> None:
        """Ends the line, if anything follows."""
        self._break = True

    def flush(self) -> None:
        """Ends the line."""
        self._break = self._space = False
        if self._line:
            self.lines.append(self._line)
            self._line, self._width = [], 0

    def open_row(self) -> None:
        """A row of a table begins."""
        self.flush()
        self._rows.append((len(self.lines), 0))

    def close_row(self) -> None:
        """It ends."""
        self._break = True
        if self._rows:
            self._rows.pop()

    def open_cell(self) -> None:
        """A cell begins: in the row's line, if all before it are in one."""
        if not self._rows:
            return
        start, cells = self._rows.pop()
        self._rows.append((start, cells + 1))
        if cells and self._line and len(self.lines) == start:
            self._break = False
            self._line.append("| " if str(self._line[-1]).endswith(" ") else " | ")
            self._width += 3
        else:
            self._break = True

    def finish(self, said: Container[int]) -> tuple[list[list[Piece]], list[int]]:
        """Ends the text.

        Args:
            said: The labels that are left out.

        Returns:
            The lines, and for each line as it was counted while they were made, where it is now.
        """
        self.flush()
        lines: list[list[Piece]] = []
        places: list[int] = []
        for line in self.lines:
            places.append(len(lines))
            if any(isinstance(piece, Spoken) and piece.label in said for piece in line):
                line = _without_labels(line, said)
            if line:
                lines.append(line)
        return lines, [*places, len(lines)]

    def _fill(self, text: str) -> str:
        """Fills lines with a long text; its rest."""
        while len(text) > (room := max(1, WIDEST - self._width)):
            at = text.rfind(" ", 1, room) + 1 or room
            self._line.append(text[:at].rstrip(" "))
            self.flush()
            text = text[at:]
        return text


def _without_labels(line: list[Piece], said: Container[int]) -> list[Piece]:
    kept: list[Piece] = []
    for piece in line:
        if isinstance(piece, Spoken) and piece.label in said:
            continue
        if piece == " " and (not kept or str(kept[-1]).endswith(" ")):
            continue
        kept.append(piece)
    while kept and kept[-1] == " ":
        kept.pop()
    return kept if any(isinstance(piece, int) or piece.strip(" -#|") for piece in kept) else []
