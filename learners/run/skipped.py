"""What is done where an update left mini-batches out: a word of warning, and an end to a run that learns nothing any more.

`learners.update.step` leaves out a mini-batch whose gradient is not finite. That may be a single batch's bad luck, and the
weights are what they were before: the run goes on. An error at once would end it for good, since a resumed run plays the
same batch again. But if it goes on like that, something is broken that further batches will not mend.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from learners.run.checkpoint import latest_checkpoint

logger = logging.getLogger(__name__)

PATIENCE = 3
"""So many batches in a row may have no finite gradient before the run ends."""


class NotFinite(RuntimeError):
    """No gradient is finite any more. The policy is as the last finite one left it."""


class SkipWatch:
    """Looks at what each update left out.

    Args:
        checkpoints: Where the checkpoints of the run are.
        in_a_row: For how many batches up to now there was no finite gradient.
    """

    def __init__(self, checkpoints: Path, *, in_a_row: int = 0) -> None:
        self.in_a_row = in_a_row
        """Batches in a row that no step was taken for, since no gradient was finite."""
        self._checkpoints = checkpoints
        self._told_of_unwritten = False

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of an update.

        Raises:
            NotFinite: It is the last of `PATIENCE` batches in a row whose gradients were all not finite.
        """
        taken, skipped, unwritten = (int(metrics[name]) for name in ("optimizer_steps", "skipped", "unwritten"))
        all_of_them = taken + skipped + unwritten
        if unwritten and not self._told_of_unwritten:
            self._told_of_unwritten = True
            logger.warning(
                "step %d: %d of %d mini-batches hold no token to learn from (metric unwritten): where prompts leave no room "
                "below --total-tokens, the policy writes nothing",
                step,
                unwritten,
                all_of_them,
            )
        if skipped:
            logger.warning(
                "step %d: the gradient of %d of %d mini-batches was not finite; they are left out (metric skipped)",
                step,
                skipped,
                all_of_them,
            )
        if taken or skipped:
            self.in_a_row = 0 if taken else self.in_a_row + 1
        if self.in_a_row >= PATIENCE:
            newest = latest_checkpoint(self._checkpoints)
            begin = f"begin a run from the last checkpoint, --model {newest}" if newest else "begin another run"
            raise NotFinite(
                f"step {step}: for {self.in_a_row} batches in a row no gradient was finite, and nothing was learned; "
                f"{begin}, with a lower --learning-rate or --dtype float32"
            )
