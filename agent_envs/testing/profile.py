"""How thoroughly promises are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Profile:
    """How many episodes are tried, and for how long a failing one is made smaller.

    Args:
        examples: Episodes a promise.
        shrink_seconds: Seconds that may be spent on finding a smaller failing episode.
        max_actions: Actions in an episode.
    """

    examples: int
    shrink_seconds: float
    max_actions: int


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {"quick": Profile(8, 5.0, 4), "ci": Profile(60, 20.0, 6), "thorough": Profile(500, 120.0, 8)}
)
"""``quick`` takes seconds, ``ci`` a minute or so, ``thorough`` what it takes."""
