"""Attention over trees on a CPU: as many operations as the tree has pairs of a token and one before it, and no mask.

Laid out depth first (`learners.update.packing`), a tree falls into *runs*, tokens of which each follows the last. A token
attends to what stands before it in its own run, and to all of the runs above. So a run has two blocks: its own tokens among
themselves, which is causal attention, and everything that stands under it against it, which is attention without a mask.
Both are calls of PyTorch's own kernel. That gives with its result the logarithm of the sum that the softmax divided by; by
these, results over different keys are put together, and the kernel's backward pass, which is given the whole result and the
whole sum, finds each block's part of the gradient (as in ring attention, Liu et al. 2023, arXiv 2310.01889).

A mask would do as well, but the kernel computes what it then masks: with a group of eight that share a prompt, several times
as much as this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

NAME = "depth_first_tree"
"""What `tree_attention_forward` is called by, for ``set_attn_implementation``."""

Run = tuple[int, int, int]
"""The first token of a run, the one after its last, and the one after the last that stands under it."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tree_mask(ends: torch.Tensor) -> torch.Tensor:
    """What `tree_attention_forward` takes for a mask: four dimensions, which models hand on as they are.

    Args:
        ends: The place after the last token that stands under each, [R, L]; 0 for filling, which attends to nothing.

    Returns:
        [R, 1, 1, L] int64.
    """
    return ends[:, None, None, :]


def runs_of(ends: torch.Tensor) -> list[Run]:
    """The runs of one tree, given its tokens' ends, [L]."""
    length = int((ends > 0).sum())  # filling stands behind
    if not length:
        return []
    places = torch.arange(1, length)
    goes_on = (ends[1:length] == ends[: length - 1]) & (places < ends[: length - 1])
    firsts = [0, *(places[~goes_on]).tolist()]
    return [(first, after, int(ends[first])) for first, after in zip(firsts, [*firsts[1:], length], strict=True)]


def longest_path(runs: Sequence[Run]) -> int:
    """How many tokens the longest path of a tree has."""
    above: list[tuple[int, int]] = []  # of the runs that the present one is under, the end and the tokens up to there
    longest = 0
    for first, after, end in runs:
        while above and above[-1][0] <= first:
            above.pop()
        tokens = after - first + (above[-1][1] if above else 0)
        above.append((end, tokens))
        longest = max(longest, tokens)
    return longest


def tree_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as Transformers calls it.

    Args:
        module: The layer.
        query: [R, heads, L, head size].
        key, value: [R, key and value heads, L, head size]; that of a value may be another.
        attention_mask: `tree_mask`. With a mask of any other kind this is plain attention.
        dropout, scaling, kwargs: As for every attention function.

    Returns:
        [R, L, heads, head size of a value], 0 for filling, and no weights.

    Raises:
        ValueError: The layer has dropout, its attention is more than a softmax of products, or a path is longer than it
            looks back.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    trees = [runs_of(ends[0, 0]) for ends in attention_mask]
    more = sorted(name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None)
    if dropout:
        more.append(f"dropout {dropout}")
    window = kwargs.get("sliding_window")
    if window is not None and window < max(map(longest_path, trees)):
        more.append(f"a sliding window of {window} tokens")
    if more:
        raise ValueError(f"an update over trees needs plain attention on a CPU, and this model has {', '.join(more)}")
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    heads = [query.shape[-1], value.shape[-1]]
    if heads[0] != heads[1]:  # the kernel knows one size: what is missing is filled up with zeros, which change nothing
        query, key, value = (pad(tensor, (0, max(heads) - tensor.shape[-1])) for tensor in (query, key, value))
    found = _TreeAttention.apply(query, key, value, trees, scale)  # type: ignore[no-untyped-call]
    assert isinstance(found, torch.Tensor)
    return found[..., : heads[1]].transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, tree_attention_forward)


class _TreeAttention(torch.autograd.Function):
    """(query, key, value [R, heads, L, head size], the runs of each tree, scale) -> [R, heads, L, head size]."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, trees: list[list[Run]], scale: float
    ) -> torch.Tensor:
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        found = torch.zeros_like(query, dtype=wide)
        sums = torch.full(query.shape[:-1], -math.inf, dtype=wide)
        for row, asking, asked, causal in _blocks(trees):
            part, part_sum = _flash(
                query[row, :, asking], key[row, :, asked], value[row, :, asked], 0.0, causal, scale=scale
            )
            before = sums[row, :, asking]
            both = torch.logaddexp(before, part_sum)
            whole = found[row, :, asking]
            whole *= (before - both).exp()[..., None]
            whole += part * (part_sum - both).exp()[..., None]
            sums[row, :, asking] = both
        found = found.to(query.dtype)
        ctx.save_for_backward(query, key, value, found, sums)
        ctx.trees, ctx.scale = trees, scale
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        query, key, value, found, sums = ctx.saved_tensors
        of_query, of_key, of_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        for row, asking, asked, causal in _blocks(ctx.trees):
            parts = _flash_backward(
                gradient[row, :, asking],
                query[row, :, asking],
                key[row, :, asked],
                value[row, :, asked],
                found[row, :, asking],
                sums[row, :, asking],
                0.0,
                causal,
                scale=ctx.scale,
            )
            for whole, where, part in zip((of_query, of_key, of_value), (asking, asked, asked), parts, strict=True):
                whole[row, :, where] += part
        return of_query, of_key, of_value, None, None


def _blocks(trees: list[list[Run]]) -> list[tuple[slice, slice, slice, bool]]:
    """Row, queries, keys, and whether attention is causal, of every call of the kernel."""
    found = []
    for row, runs in enumerate(trees):
        for first, after, end in runs:
            own, rows = slice(first, after), slice(row, row + 1)
            found.append((rows, own, own, True))
            if after < end:
                found.append((rows, slice(after, end), own, False))
    return found
