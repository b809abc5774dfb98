"""Whether a model computes the same when it is asked in another way: tried on a few short rows before it matters.

Kept caches, and passes over trees (`learners.update.tree_trial`), give a model masks, positions and caches that plain text
has no need of. Its configuration does not tell whether an architecture heeds them. Some make a mask of their own, count
positions by themselves, or carry a state from each token to whatever stands next. Nothing fails then: the numbers are wrong,
and the policy learns from them. So they are compared with those of plain forward passes, one row at a time, without a mask.

They are equal up to rounding, which depends on the model and on its number format: no number of nats is too much for all.
The yardstick is what the model makes of what it reads, that is how far the same log-probabilities move when the first half
of a row is another. Who looks at wrong tokens is wrong by about as much, and who counts positions wrongly by a third of it.
Who only rounds, by far less than the square root of a format's precision times that: 3e-4 in 32 bits, a tenth in bfloat16.
The worst row counts, and of a row the mean: in a mixture of experts rounding may send a token elsewhere. A model that hardly
heeds what it reads is allowed the rounding of the numbers themselves.

What shows in long rows only, such as a window, is told by `learners.sampling.slots.limit_of_attention`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from transformers import PreTrainedModel

from learners.sampling.passes import next_logits
from learners.sampling.slots import SlotCache

logger = logging.getLogger(__name__)

SHARED, _BRANCH, _LATE = 8, 32, 4
"""Tokens that the first three rows begin with alike; tokens of a branch; after how many of these another leaves it."""

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Log-probabilities of several rows or tokens, and those that were expected."""


@dataclass(frozen=True)
class Trial:
    """Some rows and what a model says of them.

    Args:
        rows: Token ids, [T] each: two that part after `SHARED` tokens, one that leaves the second of these later, and a
            shorter one of its own.
        expected: By plain forward passes, the log-probabilities of what follows each token, [T, V] each.
        most: By how much others may differ from these in the mean.
    """

    rows: list[torch.Tensor]
    expected: list[torch.Tensor]
    most: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> Self:
        """A trial of a model, which is asked where it is."""
        vocabulary = model.config.get_text_config().vocab_size
        draw = torch.Generator().manual_seed(0)
        start, one, two, late, other = (
            torch.randint(vocabulary, (length,), generator=draw)
            for length in (SHARED, _BRANCH, _BRANCH, _BRANCH - _LATE, 2 * SHARED)
        )
        rows = [torch.cat(parts) for parts in ([start, one], [start, two], [start, two[:_LATE], late], [other])]
        expected = [_plain(model, row) for row in rows]
        changed, half = rows[0].clone(), len(rows[0]) // 2
        changed[:half] = (changed[:half] + 1) % vocabulary
        moved = _apart(_plain(model, changed)[half:], expected[0][half:])
        precision = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)  # logits are taken in 32 bits at most
        size = float(expected[0].clamp(min=-100.0).abs().mean())
        return cls(rows, expected, max(2 * precision * size, precision**0.5 * moved))

    def refusal(self, ask: Callable[[], Pairs]) -> str:
        """What speaks against another way of asking, or "".

        Args:
            ask: Asks so.
        """
        try:
            gaps = [_apart(found, expected) for found, expected in ask()]
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # whatever an architecture says that was not made for this
            logger.info("a trial has failed", exc_info=True)
            return (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
        if all(gap <= self.most for gap in gaps):  # not where one is no number
            return ""
        return f"its log-probabilities are wrong by {max(gaps):.2g} (rounding would be below {self.most:.2g})"


@torch.no_grad()
def refusal_of_kept_caches(model: PreTrainedModel) -> str:
    """Why a model cannot be sampled from by kept caches, or "" where it can.

    Args:
        model: In evaluation mode; whole, where it is to sample.
    """
    trial = Trial.of(model)
    return trial.refusal(lambda: _by_kept_caches(model, trial))


def _plain(model: PreTrainedModel, row: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=row[None].to(model.device), use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1)


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far log-probabilities differ in the mean; what is impossible by both is no difference."""
    return float((found - expected).masked_fill(found == expected, 0.0).abs().mean())


def _by_kept_caches(model: PreTrainedModel, trial: Trial) -> Pairs:
    """What follows some of the tokens by what a sampler does: rows of unlike lengths, a copy, rows that are lined up."""
    one, two, _, other = (row.tolist() for row in trial.rows)
    cache = SlotCache()
    first, second, third = (cache.take() for _ in range(3))
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []

    def go_on(*rows: tuple[int, int, Sequence[int], int, int], lined_up: bool = False) -> None:
        """Each row: which one, its slot, its tokens, and from where to where they are appended now."""
        new = [tokens[begin:end] for _, _, tokens, begin, end in rows]
        slots, ends = [row[1] for row in rows], [row[4] for row in rows]
        logits = next_logits(model, cache, new, slots, ends, lined_up=lined_up)
        found.extend(torch.log_softmax(logits.float(), dim=-1))
        expected.extend(trial.expected[number][end - 1] for number, _, _, _, end in rows)

    go_on((0, first, one, 0, len(one) - 1), (3, second, other, 0, len(other) - 2))
    cache.copy(first, third, SHARED)
    go_on((1, third, two, SHARED, len(two) - 1), (0, first, one, len(one) - 1, len(one)))
    go_on((3, second, other, len(other) - 2, len(other) - 1))
    cache.line_up([third, second])
    go_on((1, third, two, len(two) - 1, len(two)), (3, second, other, len(other) - 1, len(other)), lined_up=True)
    return list(zip(found, expected, strict=True))
