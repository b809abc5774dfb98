"""The contract of an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into vectors.

    The same texts give the same vectors, whatever stands beside them in the batch, to within float rounding.
    """

    @property
    def name(self) -> str:
        """What makes two embedders the same, options and version included: two of one name give the same vectors.

        A bank's manifest holds it, and a bank is only ever asked through an embedder of that name.
        """

    @property
    def spec(self) -> str:
        """What `tracebank.embed.open_embedder` makes it from again, here; a manifest holds that too."""

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, [n, dimension], each of length one or, for a text in which nothing is found, zero."""
