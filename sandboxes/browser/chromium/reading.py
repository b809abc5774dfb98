"""A page as an agent reads it: lines of text with a ref for each element, across its frames.

``reader.js`` reads one document, in one go, inside the page; here the documents of a page are put together in document
order, and refs are given out. A reading also keeps what its refs stand for, so that actions find their elements.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Frame, JSHandle, Page

from sandboxes.browser.browser import PageProblem
from sandboxes.browser.snapshot import element

WIDEST = 2_000
"""Characters of a line; a longer one goes on in the next."""

MOST_FRAMES = 30
FRAME_SECONDS = 2.0
"""How long a frame of another site, which has a process of its own, may take to be read."""

_LIMITS = {"characters": 300_000, "nodes": 100_000, "elements": 5_000, "options": 500, "milliseconds": 1_000}
"""Of one document. What comes behind is left out, and a snapshot says so."""

_READER = files("sandboxes.browser.chromium").joinpath("reader.js").read_text("utf-8")


@dataclass(frozen=True)
class Target:
    """What a ref stands for.

    Args:
        document: The reader's object of the document that it is in.
        index: Its place among that object's elements.
        frame: Whose document that is.
    """

    document: JSHandle
    index: int
    frame: Frame


@dataclass(frozen=True)
class Reading:
    """What a page said when it was read.

    Args:
        title: The document's.
        cut: Whether there was more than is read of a document.
        lines: All of the page.
        targets: What the refs stand for: that of ``e1`` first.
        goal: The line that the address's fragment names; -1 where it names none.
        anchors: The document and the place among its nodes that each line begins with.
        documents: The reader's objects, that of the page itself first.
    """

    title: str
    cut: bool
    lines: tuple[str, ...]
    targets: tuple[Target, ...]
    goal: int
    anchors: tuple[tuple[JSHandle, int], ...]
    documents: tuple[JSHandle, ...]

    def target(self, ref: str) -> Target:
        """What a ref stands for.

        Raises:
            PageProblem: There is no such ref.
        """
        number = int(ref[1:]) if ref[:1] == "e" and ref[1:].isascii() and ref[1:].isdigit() and len(ref) < 8 else 0
        if 1 <= number <= len(self.targets):
            return self.targets[number - 1]
        known = f"its refs are e1 to e{len(self.targets)}" if self.targets else "it has no refs"
        raise PageProblem(f"there is no element {ref[:40]!r} in the latest snapshot: {known}")

    async def dispose(self) -> None:
        """Lets go of the elements.

        Raises:
            playwright.async_api.Error: They are gone, and the page with them.
        """
        for document in self.documents:
            await document.dispose()


async def read(page: Page) -> Reading:
    """Reads a page with all its frames.

    Raises:
        playwright.async_api.Error: The document went away meanwhile.
    """
    document = await _Document.read(page.main_frame, MOST_FRAMES)
    builder = _Builder()
    builder.add(document)
    goal = (document.handle, document.data["goal"])
    return Reading(
        document.data["title"],
        document.data["cut"],
        tuple(builder.lines),
        tuple(builder.targets),
        next((line for line, anchor in enumerate(builder.anchors) if anchor == goal), -1),
        tuple(builder.anchors),
        tuple(builder.documents),
    )


@dataclass(frozen=True)
class _Document:
    """A document that was read, and those of its frames by their index."""

    frame: Frame
    handle: JSHandle
    data: dict[str, Any]
    frames: dict[int, _Document]

    @classmethod
    async def read(cls, frame: Frame, room: int) -> _Document:
        handle = await frame.evaluate_handle(_READER, _LIMITS)
        data: dict[str, Any] = await handle.evaluate("reading => reading.data")
        children = frame.child_frames[:room] if data["frames"] else []
        share = max(0, (room - len(children)) // max(1, len(children)))
        found = await asyncio.gather(*(cls._read_child(handle, child, share) for child in children))
        return cls(frame, handle, data, {index: child for index, child in found if child is not None})

    @classmethod
    async def _read_child(cls, parent: JSHandle, frame: Frame, room: int) -> tuple[int, _Document | None]:
        try:
            if not frame.url:  # nothing has come, or may come, such as a file of this machine
                return -1, None
            async with asyncio.timeout(FRAME_SECONDS):
                holder = await frame.frame_element()
                index: int = await parent.evaluate("(reading, holder) => reading.frames.indexOf(holder)", holder)
                return index, await cls.read(frame, room) if index >= 0 else None
        except (PlaywrightError, TimeoutError):
            return -1, None  # it went away, or its scripts keep it busy: the others are there


class _Builder:
    """Puts documents together."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.targets: list[Target] = []
        self.anchors: list[tuple[JSHandle, int]] = []
        self.documents: list[JSHandle] = []

    def add(self, document: _Document) -> None:
        self.documents.append(document.handle)
        for place, line in enumerate(document.data["lines"]):
            if isinstance(line, dict):
                child = document.frames.get(line["frame"])
                if child is not None:
                    self.add(child)
                    continue
                line = ["[a frame that could not be read]"]
            texts = [part if isinstance(part, str) else self._element(document, *part) for part in line]
            for text in _filled(texts):
                self.lines.append(text)
                self.anchors.append((document.handle, place))

    def _element(self, document: _Document, index: int, role: str, name: str, value: str | None) -> str:
        self.targets.append(Target(document.handle, index, document.frame))
        return element(f"e{len(self.targets)}", role, name, value)


def _filled(pieces: list[str]) -> list[str]:
    """The line, or several where it is too wide; elements stay whole."""
    lines = [""]
    for piece in pieces:
        while len(lines[-1]) + len(piece) > WIDEST and not (piece.startswith("[e") and len(piece) < WIDEST):
            room = WIDEST - len(lines[-1])
            cut = piece.rfind(" ", 1, room) + 1 or room
            lines[-1] += piece[:cut].rstrip()
            lines.append("")
            piece = piece[cut:]
        if len(lines[-1]) + len(piece) > WIDEST:
            lines.append("")
        lines[-1] += piece
    return [line for line in lines if line]
