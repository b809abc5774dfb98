"""Advantages: how much better a trajectory did than others, those of its group (the G trajectories of one task) or batch.

Pure functions on returns. GRPO is Shao et al. 2024, arXiv 2402.03300; Dr. GRPO is Liu et al. 2025, arXiv 2503.20783;
REINFORCE++ is Hu et al. 2025, arXiv 2501.03262.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_advantages(returns: Tensor, *, scale_by_std: bool = True, eps: float = 1e-6, std_floor: float = 0.0) -> Tensor:
    """Each return relative to the mean of its group.

    ``A_i = (r_i - mean(r)) / (std(r) + eps)`` (GRPO, section 4.1.2), or ``A_i = r_i - mean(r)`` without the scale (Dr.
    GRPO). The standard deviation is the unbiased one (ddof = 1) and eps is 1e-6, as in ARPO's and RAPO's released code; the
    GRPO paper states neither.

    A group of one, or one in which all returns are equal, has advantages of exactly 0: it says nothing about which
    trajectory was better. The rule is needed, since the rounded mean of equal numbers may differ from them by a rounding
    error, which the small eps would blow up into an advantage.

    Args:
        returns: Shape (G,), floating point: the return of each trajectory of one group.
        scale_by_std: Whether to divide by the standard deviation.
        eps: Added to the standard deviation.
        std_floor: The least that is divided by (and eps), so that differences which are mere noise stay small.

    Returns:
        Shape (G,), of the type of ``returns``.

    Raises:
        ValueError: Returns that are not one dimension of finite floating point numbers.

    Example:
        >>> group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), scale_by_std=False)
        tensor([ 0.5000,  0.5000, -0.5000, -0.5000])
    """
    _check(returns)
    if returns.numel() < 2 or bool((returns == returns[0]).all()):
        return torch.zeros_like(returns)
    centred = returns - returns.mean()
    return centred / (returns.std(correction=1).clamp(min=std_floor) + eps) if scale_by_std else centred


def batch_advantages(returns: Tensor, counts: Tensor, *, scale_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """Each return relative to the mean over all tokens of a batch, in units of their standard deviation.

    ``A_i = (r_i - mean) / (std + eps)`` (REINFORCE++), where each token has the return of its trajectory, so that one with n
    tokens counts n times. The standard deviation is that of the batch itself, divided by the number of tokens.

    Args:
        returns: Shape (S,), floating point: the return of each trajectory of the batch, less its baseline if it has one.
        counts: Shape (S,), whole numbers from 0 up: how many tokens the policy wrote in each.
        scale_by_std: Whether to divide by the standard deviation.
        eps: Added to the standard deviation.

    Returns:
        Shape (S,), of the type of ``returns``. Where all tokens have the same return, exactly 0, for the reason that
        `group_advantages` gives.

    Raises:
        ValueError: Returns that are not one dimension of finite floating point numbers, or not as many counts.

    Example:
        >>> batch_advantages(torch.tensor([1.0, 0.0]), torch.tensor([1, 3]), scale_by_std=False)
        tensor([ 0.7500, -0.2500])
    """
    _check(returns)
    if counts.shape != returns.shape:
        raise ValueError(f"counts: expected one for each of {len(returns)} returns, found shape {tuple(counts.shape)}")
    counted = returns[counts > 0]
    if bool((counted == counted[:1]).all()):  # also where there is none
        return torch.zeros_like(returns)
    shares = (counts / counts.sum()).to(returns.dtype)
    centred = returns - (shares * returns).sum()
    return centred / ((shares * centred.square()).sum().sqrt() + eps) if scale_by_std else centred


def means_over_sharers(values: Sequence[Tensor], numbers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each token of each path, the mean over all paths that contain it, and how many those are.

    ARPO's hard attribution (arXiv 2507.19849, equation 4): a shared token has the mean of the d advantages of the
    trajectories that contain it.

    Args:
        values: A number for each token of each path, [T_i].
        numbers: Which token of the rollout tree each is, [T_i] int64 from 0 (`PathTokens.numbers`).

    Returns:
        For each path the means, [T_i], and the number of sharers as floats, [T_i].

    Example:
        >>> means, sharers = means_over_sharers([torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])],
        ...                                     [torch.tensor([0, 1]), torch.tensor([0, 2])])[0]
        >>> means, sharers
        (tensor([0.5000, 1.0000]), tensor([2., 1.]))
    """
    flat, all_numbers = torch.cat(list(values)), torch.cat(list(numbers))
    zeros = torch.zeros(int(all_numbers.max()) + 1, dtype=flat.dtype)
    sharers = zeros.index_add(0, all_numbers, torch.ones_like(flat))
    means = zeros.index_add(0, all_numbers, flat) / sharers.clamp(min=1)
    return [(means[own], sharers[own]) for own in numbers]


def _check(returns: Tensor) -> None:
    if returns.dim() != 1 or not returns.is_floating_point():
        found = f"shape {tuple(returns.shape)} and {returns.dtype}"
        raise ValueError(f"returns: expected the floating point returns of one group, shape (G,), found {found}")
    if not returns.isfinite().all():
        raise ValueError(f"returns: expected finite numbers, found {returns.tolist()}: drop faulty trajectories beforehand")
