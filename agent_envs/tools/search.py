"""The search tool: a query in, the best passages out, in the form that the papers' prompts use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent_envs.tool import Tool, ToolResult
from sandboxes.search import Index, Passage

OpenIndex = Callable[[], Index]
"""What opens an index: a picklable function, called at the first call of an episode."""


class SearchTool(Tool):
    """Searches an index of passages.

    Results read ``Doc 1 (Title: Paris) Paris is ...``, one a line, best first. With ``ids`` each also names the id by which
    `agent_envs.tools.browse.BrowseTool` opens the whole page. The tool keeps nothing from call to call.

    Args:
        open_index: What opens the index, such as ``functools.partial(open_index, "elasticsearch://host:9200/wiki")``.
        k: Passages in a result.
        budget: Characters of a passage's text; a longer one is cut at a word and marked.
        ids: Whether results name their ids where they differ from the titles.

    Raises:
        ValueError: A number is below 1.
    """

    name = "search"
    description = "Searches the encyclopedia and gives back the passages that fit best."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "what to look for"}},
        "required": ["query"],
    }
    examples = ({"query": "the mayor of a city"}, {"query": ""})

    def __init__(self, open_index: OpenIndex, k: int = 3, budget: int = 700, *, ids: bool = False) -> None:
        for name, value in (("k", k), ("budget", budget)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        self.open_index = open_index
        self.k = k
        self.budget = budget
        self.ids = ids
        self._index: Index | None = None

    def run(self, *, query: str) -> ToolResult:
        """The best passages for a query.

        Raises:
            SandboxFault: The index cannot be reached.
        """
        if self._index is None:
            self._index = self.open_index()
        (hits,) = self._index.search([query], self.k)
        lines = [
            f"Doc {number} ({self._head(hit)}) {cut(_one_line(hit.text), self.budget)}" for number, hit in enumerate(hits, 1)
        ]
        return ToolResult("\n".join(lines) or "Nothing was found.")

    def fork(self) -> SearchTool:
        """A tool with a share of its own in the index."""
        return type(self)(self.open_index, self.k, self.budget, ids=self.ids)

    def close(self) -> None:
        """Lets go of the index."""
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}

    def _head(self, hit: Passage) -> str:
        title = f"Title: {_one_line(hit.title)}"
        return f"id: {hit.id}, {title}" if self.ids and hit.id != hit.title else title


def cut(text: str, budget: int) -> str:
    """The beginning of a text up to a word's end, and a mark if that is not all of it.

    Example:
        >>> cut("Kovamir is a novel.", 11), cut("Kovamir is a novel.", 19), cut("a" + 40 * "-", 10)
        ('Kovamir is ...', 'Kovamir is a novel.', 'a--------- ...')
    """
    if len(text) <= budget:
        return text
    end = text.rfind(" ", 0, budget + 1)
    if end < budget // 2:  # a word without end, or a script that parts no words
        end = budget
    return f"{text[:end].rstrip()} ..."


def _one_line(text: str) -> str:
    """What stands in one line of results, so that no text of a passage looks like a further result."""
    return " ".join(text.split())
