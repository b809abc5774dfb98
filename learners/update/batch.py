"""From rollout trees and a learner's credit to the rows that an update runs over.

``Terms`` is what a learner says about each token of a trajectory; ``Row`` joins it with the tokens. Rows of one group stay
together, so that a mini-batch is made of whole groups. ``flat`` lines up what the policy wrote in some rows, for the loss;
``pad`` makes a rectangle of them, for the model (`learners.update.packing` makes trees instead).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from learners.rollout.tree import PathTokens, RolloutTree
from learners.update.losses import Average, token_weights


@dataclass(frozen=True)
class Terms:
    """A learner's credit for the T tokens of one path, prompt included; entries of tokens by others are not read.

    Args:
        advantage: Advantage of each token, [T].
        weight: Its weight in the loss, [T]; the loss of a mini-batch is Σ weight · loss / Σ weight over its policy tokens.
        ratio_scale: Factor on the probability ratio before any clipping, [T]; 1 leaves it alone (RAPO Eq. 8 does not).
    """

    advantage: torch.Tensor
    weight: torch.Tensor
    ratio_scale: torch.Tensor

    @classmethod
    def constant(cls, tokens: PathTokens, *, advantage: float, weight: float) -> Terms:
        """The same terms for every token of a trajectory."""
        ones = torch.ones(len(tokens.ids))
        return cls(advantage * ones, weight * ones, ones)


Credit = list[list[Terms]]
"""Terms of every surviving leaf of every tree, in the trees' and leaves' order."""


@dataclass(frozen=True)
class Row:
    """One trajectory of an update."""

    tokens: PathTokens
    terms: Terms


@dataclass(frozen=True)
class Flat:
    """The N tokens that the policy wrote in some rows, one row after the other.

    Args:
        advantage, weight, ratio_scale: The rows' terms, [N].
        sampled_logprobs: The sampler's log-probabilities, [N].
    """

    advantage: torch.Tensor
    weight: torch.Tensor
    ratio_scale: torch.Tensor
    sampled_logprobs: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """R rows padded on the right to the longest, L tokens.

    Args:
        ids: Token ids, [R, L]; 0 where padded.
        real: True where a token is, [R, L].
    """

    ids: torch.Tensor
    real: torch.Tensor


def terms_of(tree: RolloutTree, advantages: torch.Tensor, average: Average = "token-mean") -> list[Terms]:
    """The terms of a group whose trajectories have one advantage each.

    Args:
        tree: The group.
        advantages: Of its surviving trajectories, [S].
        average: What the loss is averaged over.
    """
    terms = []
    for leaf, advantage in zip(tree.survivors(), advantages.tolist(), strict=True):
        tokens = tree.tokens(leaf)
        weight = float(token_weights([max(1, int(tokens.policy.sum()))], average)[0])
        terms.append(Terms.constant(tokens, advantage=advantage, weight=weight))
    return terms


def rows_of(trees: Sequence[RolloutTree], credit: Credit) -> list[list[Row]]:
    """The rows of each group, in order."""
    return [
        [Row(tree.tokens(leaf), terms) for leaf, terms in zip(tree.survivors(), group, strict=True)]
        for tree, group in zip(trees, credit, strict=True)
    ]


def flat(rows: Sequence[Row], device: torch.device) -> Flat:
    """Lines up what the policy wrote in some rows."""

    def written(values: Callable[[Row], torch.Tensor]) -> torch.Tensor:
        return torch.cat([values(row)[row.tokens.policy] for row in rows]).to(device)

    return Flat(
        advantage=written(lambda row: row.terms.advantage),
        weight=written(lambda row: row.terms.weight),
        ratio_scale=written(lambda row: row.terms.ratio_scale),
        sampled_logprobs=written(lambda row: row.tokens.logprobs),
    )


def pad(rows: Sequence[Row], device: torch.device) -> Batch:
    """Pads rows to a rectangle."""

    def stack(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)

    return Batch(
        ids=stack([row.tokens.ids for row in rows]),
        real=stack([torch.ones(len(row.tokens.ids), dtype=torch.bool) for row in rows]),
    )


def micro_batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
    """Cuts rows into index lists of at most ``max_tokens`` padded tokens each (one row at least), longest rows first."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].tokens.ids))
    while order:
        count = max(1, max_tokens // len(rows[order[0]].tokens.ids))
        yield order[:count]
        order = order[count:]
