"""The browse tool of deep search: opens one page, by a search result's id or by its address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agent_envs.tool import Tool, ToolError, ToolResult
from agent_envs.tools.search import OpenIndex, cut
from sandboxes.browser import Browser, PageLimits, PageProblem, open_browser
from sandboxes.search import Index, UnknownPassage


class BrowseTool(Tool):
    """Shows the whole of a page: a passage of the index by its id, or a page of the web by its address.

    Addresses are opened by a browser that may reach what ``allow`` names and nothing else; by default that is nothing. The
    tool keeps nothing from call to call; for pages that are acted on there is `agent_envs.tools.web.WebTool`.

    Args:
        open_index: What opens the index, as for `agent_envs.tools.search.SearchTool`.
        backend: Browser of addresses: ``"auto"``, ``"chromium"`` or ``"reader"`` (`sandboxes.browser.open_browser`).
        allow: Hosts that may be reached, such as ``"en.wikipedia.org"``.
        budget: Characters of a page; a longer one is cut at a word and marked.

    Raises:
        ValueError: ``budget`` is below 1.
    """

    name = "browse"
    description = "Opens a page by the title or id of a search result, or by an address, and shows what it says."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"page": {"type": "string", "description": "the id of a result, or an address"}},
        "required": ["page"],
    }
    examples = ({"page": "nothing of that name"}, {"page": "http://127.0.0.1:1/"})

    def __init__(
        self,
        open_index: OpenIndex,
        backend: Literal["auto", "chromium", "reader"] = "auto",
        allow: Sequence[str] = (),
        budget: int = 6_000,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1, found {budget}")
        self.open_index = open_index
        self.backend: Literal["auto", "chromium", "reader"] = backend
        self.allow = tuple(allow)
        self.budget = budget
        self._index: Index | None = None
        self._browser: Browser | None = None

    def run(self, *, page: str) -> ToolResult:
        """The page's title and text.

        Returns:
            The page. Faults are ``error`` (there is no such page, or it may not be reached), ``timeout`` and ``killed``.

        Raises:
            SandboxFault: The index or the browser cannot be reached.
        """
        page = page.strip()
        if page.lower().startswith(("http://", "https://")):
            return self._open_address(page)
        if self._index is None:
            self._index = self.open_index()
        try:
            passage = self._index.get(page)
        except UnknownPassage as unknown:
            raise ToolError(
                f"there is no page {cut(page, 80)!r}: take the id of a search result, or an address"
            ) from unknown
        return ToolResult(f"{passage.title}\n{cut(passage.text, self.budget)}")

    def fork(self) -> BrowseTool:
        """A tool with a share of its own in the index."""
        return type(self)(self.open_index, self.backend, self.allow, self.budget)

    def close(self) -> None:
        """Lets go of the index and the browser."""
        index, self._index = self._index, None
        browser, self._browser = self._browser, None
        if index is not None:
            index.close()
        if browser is not None:
            browser.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_browser": None}

    def _open_address(self, address: str) -> ToolResult:
        if self._browser is None:
            self._browser = open_browser(self.backend, allow=self.allow, limits=PageLimits(snapshot=self.budget))
        with self._browser.new_page() as page:
            try:
                page.goto(address)
                return ToolResult(page.snapshot())
            except PageProblem as problem:
                return ToolResult(str(problem), problem.kind)
