"""A forward pass over kept caches: the one way in which a model is asked for what comes next.

Rows of unlike lengths go through the model together, each with new tokens of its own behind a history of its own
(`learners.sampling.slots`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from learners.sampling.grouped_attention import grouped_attention
from learners.sampling.slots import SlotCache, added_mask


def next_logits(
    model: PreTrainedModel,
    cache: SlotCache,
    rows: Sequence[Sequence[int]],
    slots: Sequence[int],
    ends: Sequence[int],
    *,
    lined_up: bool = False,
) -> torch.Tensor:
    """Appends tokens to slots.

    Args:
        model: A causal language model.
        cache: Has the slots.
        rows: The new tokens of each of R rows, one at least.
        slots: The slot of each, [R].
        ends: Each row's length after the pass, [R].
        lined_up: Whether the slots are those that were lined up last; see `SlotCache.forward_over`.

    Returns:
        The logits after each row's last token, [R, V].
    """
    counts = [len(row) for row in rows]
    width = max(counts)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=model.device)
    positions, mask = cache.forward_over(list(slots), list(ends), counts, width, lined_up=lined_up)
    mask = mask.to(model.device)
    if model.config._attn_implementation == "eager":
        mask = added_mask(mask, model.dtype)
    with grouped_attention(model):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits: torch.Tensor = output.logits
    return logits[:, -1]
