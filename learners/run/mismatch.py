"""What is done where trainer and sampler disagree about a token's probability: importance weights, or a word of warning.

`learners.update.step` measures by how much they do, and applies the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from learners.run.config import RunConfig, UsageError, learner_name
from learners.update.step import BAND

logger = logging.getLogger(__name__)

_RARE = 0.05  # share of the tokens on which they may disagree without a warning
_CAP_AHEAD = 2.0  # where batches are a step stale and nothing else was said: no token counts more than two


def importance_cap(config: RunConfig, ratio_to: Literal["trainer", "sampler"]) -> float:
    """The largest importance weight of a run; 0 for no such weights.

    Args:
        config: May name it.
        ratio_to: What the learner's ratios are to; see `learners.update.step.UpdateSettings`.

    Raises:
        UsageError: Weights were asked for, and the ratios are to the sampler.
    """
    if ratio_to == "sampler":
        if config.importance_cap:
            raise UsageError(
                f"--importance-cap {config.importance_cap:g}: {learner_name(type(config))} takes its ratios to the sampler "
                "already, which would be corrected for twice: leave it out"
            )
        return 0.0
    if config.importance_cap is not None:
        return config.importance_cap
    return _CAP_AHEAD if config.async_steps else 0.0


class MismatchWatch:
    """Warns once when trainer and sampler disagree on more than a few tokens, and nothing corrects for it.

    Args:
        corrected: Whether something does.
    """

    def __init__(self, *, corrected: bool) -> None:
        self._silent = corrected

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of a step."""
        share = metrics.get("mismatch_outside", 0.0)
        if share > _RARE and not self._silent:
            self._silent = True
            logger.warning(
                "step %d: for %.0f%% of the tokens the trainer's probability is not within %g to %g times the sampler's "
                "(mismatch_outside; docs/speed.md says what is usual): find out why, or correct it by --importance-cap 2",
                step,
                100 * share,
                *BAND,
            )
