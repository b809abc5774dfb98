"""Entropies of next-token distributions, from as much of them as a sampler sees.

The entropy H = −Σ p_j log p_j is over all V tokens of the vocabulary, and a sampler in process computes just that
(``full``). An inference server hands out the k largest log-probabilities and the sampled token's: from these there is

``top-k-sum``
    −Σ p_j log p_j over the tokens that are seen, which is what ARPO's and RAPO's released codes take. All of the tail is
    left out: it is below H, by most of H where the policy is unsure.
``top-k``
    The middle of the least and the most that H can be, given p_1 ≥ … ≥ p_k. The tail has the mass m = 1 − Σ p_j on V − k
    tokens of at most p_k each. Entropy is concave, so it is least at a corner of what is allowed, where the tail is as
    concentrated as can be: ⌊m / p_k⌋ tokens of p_k, and one of what remains. It is most where the tail is uniform, m /
    (V − k) each. Both are attained: without further assumptions nobody can say more. The middle is never off by more than
    half of what lies between them, whatever the tail is like.
``surprisal``
    −log p of the token that was sampled. Its mean over sampling is H, so it has no bias; its standard deviation is of the
    size of H, so that only means over many tokens say anything.

In nats, at V = 151,936 and k = 20, with the bounds in brackets:

    distribution         full    top-k                   top-k-sum
    p ∝ 1 / rank         8.21    7.42  (5.02, 9.83)      1.09
    p ∝ rank^−1.5        3.18    3.39  (2.70, 4.08)      1.78
    p ∝ rank^−2          1.64    1.71  (1.58, 1.84)      1.38
    uniform              11.93   11.93 (11.93, 11.93)    0.002

ARPO decides by the sign of a change of entropy, summed over 20 tokens. Over 60 pairs of sequences each, that sign was the
one of the full entropies in so many cases (tests/learners/test_entropy.py has the method):

    power laws, exponents 0.9 to 2.3      top-k  98 %    surprisal 77 %    top-k-sum 28 %
    eight peaks over a flat tail          top-k 100 %    surprisal 72 %    top-k-sum  5 %

So the partial sum turns the decision round more often than not: as a distribution spreads, its likeliest tokens lose mass,
and their part of the sum falls while the whole rises.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EntropyKind = Literal["full", "top-k", "top-k-sum", "surprisal"]
"""What a sampler's entropies are; see the module."""


def full_entropy(logprobs: Tensor, probabilities: Tensor | None = None) -> Tensor:
    """The entropy of distributions that are wholly known.

    Args:
        logprobs: Natural log-probabilities, [..., V]; −inf is no probability.
        probabilities: Their exponentials, where these are there already.

    Returns:
        Nats, [...].

    Example:
        >>> full_entropy(torch.tensor([0.5, 0.25, 0.25]).log()) / torch.tensor(2.0).log()
        tensor(1.5000)
    """
    probabilities = logprobs.exp() if probabilities is None else probabilities
    return -(probabilities * logprobs.clamp(min=-1e9)).sum(-1)


def entropy_bounds(top: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The least and the most that an entropy can be, given the k likeliest tokens.

    Args:
        top: Their natural log-probabilities, [..., k], in falling order.
        vocabulary: V, the number of tokens that the distribution is over.

    Returns:
        Nats, [...] each, in float64. Equal where nothing is left to the tail.

    Example:
        >>> top = torch.tensor([0.4, 0.2]).log()  # the rest: 0.2 and 0.2, or a tenth of 0.4 each
        >>> least, most = entropy_bounds(top, vocabulary=12)
        >>> round(float(least), 3), round(float(most), 3)
        (1.332, 1.976)
    """
    logs = top.double()
    probabilities = logs.exp()
    seen = _plogp(probabilities).sum(-1)
    hidden = vocabulary - top.shape[-1]
    if hidden <= 0:
        return seen, seen.clone()
    tail = (1 - probabilities.sum(-1)).clamp(min=0)  # below 0 by rounding only
    largest = probabilities[..., -1]
    whole = torch.where(largest > 0, (tail / largest).floor(), 0.0).clamp(max=hidden)
    rest = (tail - whole * largest).clamp(min=0)
    least = seen + whole * _plogp(largest) + _plogp(rest)
    most = seen + hidden * _plogp(tail / hidden)
    return least, torch.maximum(least, most)


def sampled_entropy(
    kind: EntropyKind, logprobs: Tensor, token: Tensor, top: int, *, probabilities: Tensor | None = None
) -> Tensor:
    """The entropy of each distribution, of the kind that is asked for.

    Every kind but ``full`` reads no more than the ``top`` largest log-probabilities and the token's own.

    Args:
        kind: See the module.
        logprobs: Natural log-probabilities that tokens are drawn by, after the temperature, [..., V].
        token: The token that was drawn from each, [...] int64.
        top: How many of the likeliest tokens are seen (k).
        probabilities: As in `full_entropy`.

    Returns:
        Nats, [...].
    """
    if kind == "full":
        return full_entropy(logprobs, probabilities)
    own = logprobs.gather(-1, token[..., None])[..., 0]
    if kind == "surprisal":
        return -own
    largest = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1).values
    if kind == "top-k":
        least, most = entropy_bounds(largest, logprobs.shape[-1])
        return (least + most) / 2
    outside = own < largest[..., -1]  # a server tells of the sampled token in any case
    return full_entropy(largest) + torch.where(outside, _plogp(own.exp()), 0.0)


def _plogp(probabilities: Tensor) -> Tensor:
    """−p log p, 0 at 0."""
    return -torch.xlogy(probabilities, probabilities)
