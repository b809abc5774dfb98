"""The contract of a browser: pages that an agent reads and acts on.

A browser is a policy of what may be reached, and an engine behind it that others share. A page belongs to one episode: it
has cookies, a history and tabs of its own and shares nothing with other pages. Whatever a site or an agent does is an
ordinary outcome of an ordinary call, or a `PageProblem`; only an engine that is gone raises a ``SandboxFault``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

ProblemKind = Literal["error", "timeout", "killed"]


class PageProblem(Exception):
    """What an agent asked for did not happen, and the reason lies with the page, the site or the agent.

    Args:
        message: What was expected, what was found and what to do, for the agent to read.
        kind: ``"error"``; ``"timeout"`` where the page did not come to rest in time; ``"killed"`` where it crashed or was
            ended for what it used, so that the next action finds a blank page.
    """

    def __init__(self, message: str, kind: ProblemKind = "error") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[PageProblem], tuple[str, ProblemKind]]:
        return type(self), (str(self), self.kind)


@dataclass(frozen=True)
class Cookie:
    """A cookie that a page starts with, such as the session of an episode.

    Args:
        name, value: The cookie.
        url: The site that it is sent to.
    """

    name: str
    value: str
    url: str


@dataclass(frozen=True)
class PageLimits:
    """What a page may use.

    Args:
        timeout: Seconds that one action may take, the loading of what it leads to included.
        bytes: Of one response's body; what is longer is cut there and the snapshot says so.
        requests: In one action.
        snapshot: Characters of a snapshot.

    Raises:
        ValueError: A value is not above 0.
    """

    timeout: float = 10.0
    bytes: int = 8_000_000
    requests: int = 200
    snapshot: int = 6_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} of a page's limits must be above 0, found {value!r}")


class Page(ABC):
    """One page: what an agent sees and does. Actions name elements by the refs of the latest `snapshot`."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is; ``about:blank`` at first."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The document's title."""

    @abstractmethod
    def goto(self, url: str) -> None:
        """Opens an address.

        Raises:
            PageProblem: It is no http, https or about:blank address, the policy denies it, or it did not load.
        """

    @abstractmethod
    def click(self, ref: str) -> None:
        """Clicks on an element. Raises `PageProblem` where there is no such ref, or it cannot be clicked on."""

    @abstractmethod
    def type(self, ref: str, text: str) -> None:
        """Replaces what stands in a text field. Raises `PageProblem`."""

    @abstractmethod
    def select(self, ref: str, option: str) -> None:
        """Chooses the option with that label or value. Raises `PageProblem`, which names the options."""

    @abstractmethod
    def press(self, key: str) -> None:
        """Presses a key, such as ``Enter``, for the element that was last acted on. Raises `PageProblem`."""

    @abstractmethod
    def scroll(self, direction: Literal["up", "down"]) -> None:
        """Moves the part that a snapshot shows by about one snapshot. At an end it stays there."""

    @abstractmethod
    def back(self) -> None:
        """Goes back to the page before. Raises `PageProblem` where there is none."""

    @abstractmethod
    def snapshot(self, budget: int | None = None) -> str:
        """The page as text, in the form of `sandboxes.browser.snapshot`, with a ref for each element that can be acted on.

        Args:
            budget: Characters; the page's limit by default.
        """

    @abstractmethod
    def screenshot(self) -> bytes:
        """A picture of what the viewport shows, as PNG. Raises `PageProblem` where this engine shows nothing."""

    @abstractmethod
    def close(self) -> None:
        """Ends the page. Calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:  # `type` is a method in here
        self.close()


class Browser(ABC):
    """What pages come from. Safe for threads; one page is for one thread at a time."""

    @abstractmethod
    def new_page(self, cookies: Sequence[Cookie] = ()) -> Page:
        """A blank page that shares nothing with any other.

        Raises:
            SandboxFault: The engine cannot be started, or is gone.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for people: which engine, which protections are on, what may be reached."""

    @abstractmethod
    def close(self) -> None:
        """Ends its pages and its share of the engine. Calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
