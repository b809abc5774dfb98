"""What a check found, as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent_envs.testing.episode import Action, Episode
from agent_envs.testing.literal import excerpt, printable
from agent_envs.testing.promise import Promise

Status = Literal["kept", "broken", "not asked", "failed"]

_IMPORTS = "from agent_envs.testing import EXPERT, Episode, check_agent_env"


@dataclass(frozen=True)
class Finding:
    """What was found about one promise.

    Args:
        promise: The promise.
        status: ``"kept"``, ``"broken"``, ``"not asked"``, or ``"failed"`` where the kit itself broke: then nothing is known.
        expected: What should have been, where it is broken.
        found: What was instead; why it was not asked; the traceback of the kit's own error.
        episode: The smallest failing episode.
        actions: Its actions as they were played.
        reproduce: A Python expression that shows it again; the report adds the imports.
        examples: Episodes that it was asked with.
        seconds: How long it took.
    """

    promise: Promise
    status: Status
    expected: str = ""
    found: str = ""
    episode: Episode | None = None
    actions: Sequence[Action] = ()
    reproduce: str = ""
    examples: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        head = f"{self.status.upper():<9} {self.promise.name}"
        if self.status == "kept":
            return f"{head} ({self.examples} episode{'s'[: self.examples != 1]})"
        if self.status == "not asked":
            return printable(f"{head}: {self.found}")
        if self.status == "failed":
            fields = [("cause", "an error in the check itself (agent_envs.testing): nothing is known about the environment")]
            head = f"{head}: the check of this promise broke"
        else:
            fields = [("expected", self.expected)]
            head = f"{head}: {self.promise.says}"
        fields.append(("found", self.found))
        if self.episode is not None and not self.promise.once:
            fields.append(("episode", self._episode(self.episode)))
        fields.append(("again", f"{_IMPORTS}; {self.reproduce}"))
        return printable("\n".join([head, *(_field(name, text) for name, text in fields)]))

    def _episode(self, episode: Episode) -> str:
        if not self.actions:
            return f"reset(seed={episode.seed}) alone"
        shown = [excerpt(action) if isinstance(action, str) else repr(action) for action in self.actions]
        lines = [f"{number}. {action}" for number, action in enumerate(shown, 1)]
        return "\n".join([f"reset(seed={episode.seed}), then the action{'s'[: len(shown) != 1]}", *lines])


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
    def failed(self) -> tuple[Finding, ...]:
        """The promises about which nothing is known, since their checks broke."""
        return tuple(finding for finding in self.findings if finding.status == "failed")

    @property
    def ok(self) -> bool:
        """Whether no promise is broken and no check failed."""
        return not self.broken and not self.failed

    def raise_if_broken(self) -> None:
        """Raises AssertionError with the whole report if a promise is broken, or a check failed."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        order: tuple[Status, ...] = ("kept", "not asked", "failed", "broken")
        groups = {status: [finding for finding in self.findings if finding.status == status] for status in order}
        counts = [f"{len(found)} {status}" for status, found in groups.items() if found or status != "failed"]
        summary = ", ".join(counts)
        seconds = sum(finding.seconds for finding in self.findings)
        head = f"{self.name}: {summary} (profile {self.profile}, {seconds:.1f} s)"
        return "\n".join([head, *(str(finding) for status in order for finding in groups[status])])


def _field(name: str, text: str) -> str:
    """``  name:    text``, with further lines of the text below its first."""
    first, *others = text.split("\n")
    return "\n".join([f"  {name + ':':<10}{first}", *(f"{'':12}{line}" for line in others)])
