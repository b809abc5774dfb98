"""What a process reports that is not the first of its run: nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learners.run.report import Report


class NoReport(Report):
    """A `Report` that opens no file and shows nothing.

    Args:
        folder: The run folder, which another process writes to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> NoReport:
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Where it is."""
        return self.folder / "summary.json"

    def curves(self) -> Path:
        """Where they are."""
        return self.folder / "curves.png"

    def closing_table(
        self,
        rows: Sequence[Sequence[str]],
        *,
        heading: Sequence[str] = (),
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
