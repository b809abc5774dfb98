"""Losses of single tokens, and how they are averaged.

Pure functions on flat tensors of T tokens, the policy's own tokens of a batch one after the other: what the policy did not
write never gets here. A *surrogate* turns log-ratios and advantages into losses (to be minimised, so they are the papers'
objectives with the sign turned) and says which tokens it clipped. Weights decide what an average means.

Sources: PPO (Schulman et al. 2017, arXiv 1707.06347), GRPO (Shao et al. 2024, arXiv 2402.03300), DAPO (Yu et al. 2025, arXiv
2503.14476), dual clip (Ye et al. 2020, arXiv 1912.09729), GPPO (arXiv 2508.07629), AEPO (arXiv 2510.14545), RAPO (arXiv
2603.03078), the k3 estimator (Schulman 2020, joschu.net/blog/kl-approx.html), truncated importance sampling (Ionides 2008,
J. Comput. Graph. Stat. 17(2)), decoupled PPO (Hilton et al. 2021, arXiv 2110.00641).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Differences of log-probabilities are clamped to ± this before they go into an exponential: ratios lie between 2.1e-9 and
4.9e8, so that neither a loss nor its gradient overflows. A token beyond the limit has no gradient."""

Average = Literal["token-mean", "sequence-mean"]


@dataclass(frozen=True)
class TokenLoss:
    """The loss of each token, and where it was clipped: its gradient is gone there, or bounded where a surrogate says so.

    Args:
        loss: Shape (T,), to be minimised.
        clipped_low: Shape (T,), bool: the ratio is below its lower bound and the advantage would push it further down.
        clipped_high: Shape (T,), bool: the ratio is above an upper bound and the loss is held there for it.
    """

    loss: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


class Surrogate(Protocol):
    """What every surrogate of `SURROGATES` can be called with."""

    def __call__(
        self,
        log_ratio: Tensor,
        advantage: Tensor,
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        ratio_scale: float | Tensor = 1.0,
    ) -> TokenLoss:
        """The loss of each token, shape (T,)."""


def clip_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_scale: float | Tensor = 1.0,
) -> TokenLoss:
    """The clipped surrogate, ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)``, ``r = ratio_scale * exp(log_ratio)``.

    PPO, equation 7; GRPO, equation 3, whose one epsilon DAPO (equation 8) splits in two. ``ratio_scale`` is RAPO's shaping
    of the ratio (equation 8), which multiplies it before the clip.

    Args:
        log_ratio: Shape (T,): log-probability of each token under the policy in training, less that under the policy that
            sampled it. Clamped to ±`LOG_RATIO_LIMIT`.
        advantage: Shape (T,): advantage of each token.
        clip_low: How far below 1 the ratio may fall, 0 to 1.
        clip_high: How far above 1 the ratio may rise, 0 or more.
        ratio_scale: A number or shape (T,), positive.

    Returns:
        Losses and clipped tokens, in 32 bits where ``log_ratio`` has fewer.

    Raises:
        ValueError: Shapes that differ, or bounds out of range.
    """
    return _clip(_ratio(log_ratio, advantage, clip_low, clip_high, ratio_scale), advantage, clip_low, clip_high)


def dual_clip(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_scale: float | Tensor = 1.0,
    dual: float = 3.0,
) -> TokenLoss:
    """The clipped surrogate with a floor for bad tokens: where ``A < 0`` the objective is at least ``dual * A``.

    Dual-clip PPO: ``max(min(r A, clip(r) A), dual A)`` for negative advantages, which keeps one token whose ratio ran away
    from ruling the whole update. For other advantages it is `clip_surrogate`.

    Args:
        log_ratio: As in `clip_surrogate`.
        advantage: As in `clip_surrogate`.
        clip_low: As in `clip_surrogate`.
        clip_high: As in `clip_surrogate`.
        ratio_scale: As in `clip_surrogate`.
        dual: The ratio beyond which a token with a negative advantage has no gradient, above 1 + ``clip_high``.

    Returns:
        As `clip_surrogate`; a token held by the floor counts as clipped high.

    Raises:
        ValueError: As `clip_surrogate`, and a ``dual`` that is too small.
    """
    ratio = _ratio(log_ratio, advantage, clip_low, clip_high, ratio_scale)
    if not dual > 1 + clip_high:
        raise ValueError(f"dual: expected more than 1 + clip_high = {1 + clip_high:g}, found {dual!r}")
    clipped = _clip(ratio, advantage, clip_low, clip_high)
    held = (ratio > dual) & (advantage < 0)
    loss = torch.where(held, -dual * advantage, clipped.loss)
    return TokenLoss(loss, clipped.clipped_low, clipped.clipped_high | held)


def preserving_clip(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_scale: float | Tensor = 1.0,
) -> TokenLoss:
    """The clipped surrogate whose clipped tokens keep a gradient, bounded by the clip: GPPO.

    The loss is that of `clip_surrogate`. Its derivative in the log-ratio is ``-(1 + clip_high) A`` where the ratio is
    clipped high and ``-(1 - clip_low) A`` where it is clipped low, instead of 0: the bound is multiplied by ``r / sg(r)``,
    sg being the gradient's stop (arXiv 2508.07629).

    Args:
        log_ratio: As in `clip_surrogate`.
        advantage: As in `clip_surrogate`.
        clip_low: As in `clip_surrogate`.
        clip_high: As in `clip_surrogate`.
        ratio_scale: As in `clip_surrogate`.

    Returns:
        As `clip_surrogate`; a token counts as clipped where its ratio is beyond the bound, gradient or not.

    Raises:
        ValueError: As `clip_surrogate`.
    """
    ratio = _ratio(log_ratio, advantage, clip_low, clip_high, ratio_scale)
    clipped = _clip(ratio, advantage, clip_low, clip_high)
    beyond = clipped.clipped_low | clipped.clipped_high
    return replace(clipped, loss=torch.where(beyond, clipped.loss * _one(ratio), clipped.loss))


def preserving_high_clip(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_scale: float | Tensor = 1.0,
) -> TokenLoss:
    """The clipped surrogate whose tokens keep a bounded gradient where they are clipped high, and there alone: AEPO.

    As `preserving_clip`, but what is clipped low has no gradient (arXiv 2510.14545).

    Args:
        log_ratio: As in `clip_surrogate`.
        advantage: As in `clip_surrogate`.
        clip_low: As in `clip_surrogate`.
        clip_high: As in `clip_surrogate`.
        ratio_scale: As in `clip_surrogate`.

    Returns:
        As `preserving_clip`.

    Raises:
        ValueError: As `clip_surrogate`.
    """
    ratio = _ratio(log_ratio, advantage, clip_low, clip_high, ratio_scale)
    clipped = _clip(ratio, advantage, clip_low, clip_high)
    return replace(clipped, loss=torch.where(clipped.clipped_high, clipped.loss * _one(ratio), clipped.loss))


SURROGATES: Mapping[str, Surrogate] = MappingProxyType(
    {
        "clip": clip_surrogate,
        "dual-clip": dual_clip,
        "preserve": preserving_clip,
        "preserve-high": preserving_high_clip,
    }
)
"""The surrogates by name, as command lines know them."""


def kl_penalty(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from tokens that the policy sampled: ``exp(d) - d - 1``, d = log(ref / policy).

    Schulman's k3, unbiased and never negative; GRPO, equation 4.

    Args:
        logp: Shape (T,): log-probabilities of the sampled tokens under the policy in training.
        reference_logp: Shape (T,): the same under the reference policy. The difference is clamped to ±`LOG_RATIO_LIMIT`.

    Returns:
        Shape (T,), in 32 bits where ``logp`` has fewer.

    Raises:
        ValueError: Shapes that differ.
    """
    _same_shape(logp=logp, reference_logp=reference_logp)
    difference = _clamped(reference_logp - logp)
    return torch.expm1(difference) - difference  # exp(d) - 1 would lose the digits of a small difference


def truncated_importance(old_logp: Tensor, sampled_logp: Tensor, cap: float) -> Tensor:
    """What a token's loss is weighted by to stand for the old policy where another sampled: ``min(old / sampler, cap)``.

    Truncated importance sampling (Ionides 2008): without the cap, means over the sampler's tokens would be means over the
    old policy's, with a variance that a few tokens rule; the cap bounds it, at the price of a bias towards the sampler. As
    a factor of a clipped surrogate, whose ratios are to the old policy, it is decoupled PPO (AReaL, arXiv 2505.24298).

    Args:
        old_logp: Shape (T,): log-probability of each token under the policy that ratios are taken to.
        sampled_logp: Shape (T,): the same under what sampled it. The difference is clamped to ±`LOG_RATIO_LIMIT`.
        cap: The largest weight, positive.

    Returns:
        Shape (T,), without gradient, in 32 bits where ``old_logp`` has fewer.

    Raises:
        ValueError: Shapes that differ, or a cap that is not positive.

    Example:
        >>> old, sampled = torch.tensor([0.3, 0.2, 0.9]).log(), torch.tensor([0.6, 0.2, 0.1]).log()
        >>> truncated_importance(old, sampled, cap=2.0)
        tensor([0.5000, 1.0000, 2.0000])
    """
    _same_shape(old_logp=old_logp, sampled_logp=sampled_logp)
    if not cap > 0:
        raise ValueError(f"cap: expected a positive number, found {cap!r}")
    return _clamped(old_logp - sampled_logp).exp().clamp(max=cap).detach()


def token_weights(lengths: Tensor | Sequence[int], mode: Average) -> Tensor:
    """Weights with which a weighted mean over all tokens of a mini-batch is the average that ``mode`` names.

    ``"token-mean"``: every token counts the same (DAPO, equation 8). ``"sequence-mean"``: the mean over sequences of the
    mean over each one's tokens (GRPO, equation 3); a sequence without tokens does not count.

    Weights are made for a whole mini-batch. Where it is cut into micro-batches, each takes its own tokens' weights and the
    whole mini-batch's total (`weighted_mean`), and the parts add up to what the uncut mini-batch would give.

    Args:
        lengths: Shape (S,): number of tokens of each sequence, in the order in which the tokens lie.
        mode: ``"token-mean"`` or ``"sequence-mean"``.

    Returns:
        Shape (T,), float32, T the sum of ``lengths``; on the device of ``lengths``.

    Raises:
        ValueError: An unknown mode, or lengths that are not whole numbers from 0 up.
    """
    counts = torch.as_tensor(lengths)
    if counts.numel() == 0:
        counts = counts.to(torch.int64)
    if counts.dim() != 1 or counts.is_floating_point() or bool((counts < 0).any()):
        raise ValueError(f"lengths: expected whole numbers from 0 up, shape (S,), found {lengths!r}")
    if mode == "token-mean":
        each = torch.ones(counts.shape, dtype=torch.float32, device=counts.device)
    elif mode == "sequence-mean":
        each = 1.0 / counts.clamp(min=1)
    else:
        raise ValueError(f'mode: expected "token-mean" or "sequence-mean", found {mode!r}')
    return each.repeat_interleave(counts)


def weighted_mean(values: Tensor, weights: Tensor, *, total: float | Tensor | None = None) -> Tensor:
    """``sum(weights * values) / total``.

    Args:
        values: Shape (T,).
        weights: Shape (T,).
        total: The sum of the weights of the whole mini-batch, where ``values`` is a part of it; by default the sum of
            ``weights``.

    Returns:
        A scalar.

    Raises:
        ValueError: Shapes that differ, or a total that is not positive.
    """
    _same_shape(values=values, weights=weights)
    total = weights.sum() if total is None else total
    if not float(total) > 0:
        raise ValueError(f"total: expected a positive sum of weights, found {float(total)}: there is no token to average")
    return (values * weights).sum() / total


def _ratio(log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, ratio_scale: float | Tensor) -> Tensor:
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    if isinstance(ratio_scale, Tensor) and ratio_scale.dim() > 0:
        _same_shape(log_ratio=log_ratio, ratio_scale=ratio_scale)
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low: expected a number from 0 to 1, found {clip_low!r}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high: expected a number from 0 up, found {clip_high!r}")
    return ratio_scale * _clamped(log_ratio).exp()


def _clip(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> TokenLoss:
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    return TokenLoss(loss, (ratio < 1 - clip_low) & (advantage < 0), (ratio > 1 + clip_high) & (advantage > 0))


def _one(ratio: Tensor) -> Tensor:
    """1 in value; its derivative in the log-ratio is 1."""
    return ratio / ratio.detach()


def _clamped(difference: Tensor) -> Tensor:
    """The difference of two log-probabilities within the limit, in 32 bits at least: 16 bits overflow at exp(11)."""
    return difference.to(torch.promote_types(difference.dtype, torch.float32)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected tensors of one shape (T,), found {found}")
