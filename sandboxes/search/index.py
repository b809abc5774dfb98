"""The contract of a search index: passages, found by words.

An index answers many queries at once, gives a passage back by its id, and may be used by any number of threads. What a query
says is never an error: one without a word that occurs anywhere finds nothing.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Passage:
    """A piece of text that can be found.

    Args:
        id: Names it within its index.
        title: Of the article that it is from; "" where there is none.
        text: What it says, without the title.
        score: How well it fits the query that found it, by the index's own measure; 0 where no query did.
    """

    id: str
    title: str
    text: str
    score: float = 0.0

    @property
    def contents(self) -> str:
        """Title, in quotes, and text as one: what is indexed, and what Search-R1's servers and corpora call by this name."""
        return f'"{self.title.replace(chr(10), " ")}"\n{self.text}'

    @classmethod
    def from_contents(cls, id: str, contents: str, score: float = 0.0) -> Self:
        """The passage that has these `contents`: the first line is the title, where there is more than one line.

        Example:
            >>> Passage.from_contents("7", '"Kovamir"\\nA river.')
            Passage(id='7', title='Kovamir', text='A river.', score=0.0)
        """
        title, line_end, text = contents.partition("\n")
        if not line_end:
            return cls(id, "", contents, score)
        title = title.strip()
        if len(title) > 1 and title[0] == title[-1] == '"':
            title = title[1:-1]
        return cls(id, title, text, score)


def check_search(queries: Sequence[str], k: int) -> None:
    """Raises what `Index.search` raises for arguments that it does not take."""
    if isinstance(queries, str):
        raise TypeError(f"queries is a list of texts, found one text: search([{queries[:40]!r}])")
    if k < 1:
        raise ValueError(f"k, the number of passages for each query, must be 1 or more, found {k}")


class UnknownPassage(KeyError):
    """There is no passage of that id."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


class Index(ABC):
    """A search index. Safe for threads; a context manager that closes it at the end."""

    @abstractmethod
    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        """The passages that fit each query best.

        Args:
            queries: Any texts.
            k: How many passages each may have at most.

        Returns:
            One list a query, in the order of the queries: best first, equal scores by id, at most ``k``, none with score 0.

        Raises:
            TypeError: ``queries`` is one text and no list.
            ValueError: ``k`` is below 1.
            SandboxFault: The index cannot be reached, or is closed.
        """

    @abstractmethod
    def get(self, id: str) -> Passage:
        """The passage of that id.

        Raises:
            UnknownPassage: There is none.
            SandboxFault: The index cannot be reached, or is closed.
        """

    async def search_async(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        """`search` for asyncio: other tasks go on meanwhile."""
        return await asyncio.to_thread(self.search, queries, k)

    @abstractmethod
    def __len__(self) -> int:
        """How many passages there are."""

    def __bool__(self) -> bool:
        """True, however many passages there are: ``if index`` asks whether there is an index."""
        return True

    @abstractmethod
    def describe(self) -> str:
        """One line for people: what this is, how large, and where."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of files and connections. Calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
