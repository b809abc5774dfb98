"""What a check found, as data and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Promise

Status = Literal["kept", "broken", "not asked"]


@dataclass(frozen=True)
class Finding:
    """What was found about one promise.

    Args:
        promise: The promise.
        status: ``"kept"``, ``"broken"`` or ``"not asked"``.
        expected: What should have been, where it is broken.
        found: What was instead; why, where it was not asked.
        episode: The smallest failing episode.
        actions: Its actions as they were played.
        reproduce: A line of Python that shows it again.
        examples: Episodes that were tried.
        seconds: How long it took.
    """

    promise: Promise
    status: Status
    expected: str = ""
    found: str = ""
    episode: Episode | None = None
    actions: Sequence[str] = ()
    reproduce: str = ""
    examples: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        head = f"{self.status.upper():<9} {self.promise.name}"
        if self.status == "kept":
            return head
        if self.status == "not asked":
            return f"{head}: {self.found}"
        lines = [f"{head}: {self.promise.says}", _field("expected", self.expected), _field("found", self.found)]
        if self.episode is not None and not self.promise.once:
            lines.append(f"  actions after reset(seed={self.episode.seed}):" + (" none" if not self.actions else ""))
            lines += [f"    {number}. {_short(action)}" for number, action in enumerate(self.actions, 1)]
        return "\n".join([*lines, _field("again", self.reproduce)])


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        name: The environment.
        profile: How thoroughly it was asked.
        findings: One for each promise, in the order of the list.
    """

    name: str
    profile: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings about broken promises."""
        return tuple(finding for finding in self.findings if finding.status == "broken")

    @property
    def ok(self) -> bool:
        """Whether no promise is broken."""
        return not self.broken

    def raise_if_broken(self) -> None:
        """Raises AssertionError with the whole report if a promise is broken."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        counts = {status: sum(f.status == status for f in self.findings) for status in ("kept", "broken", "not asked")}
        seconds = sum(finding.seconds for finding in self.findings)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        head = f"{self.name}: {summary} (profile {self.profile}, {seconds:.1f} s)"
        order = ("kept", "not asked", "broken")
        return "\n".join([head, *(str(f) for status in order for f in self.findings if f.status == status)])


def _field(name: str, text: str) -> str:
    return textwrap.indent(f"{name}: {text}", "  ")


def _short(action: str) -> str:
    text = repr(action)
    return text if len(text) <= 400 else f"{text[:300]}...{text[-97:]} ({len(action)} characters)"
