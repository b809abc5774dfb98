"""Top-k and top-p: sampling from the likeliest tokens alone.

What is left of a distribution is renormalised, so that log-probabilities are of what is sampled from. The rules are those of
transformers' and vLLM's samplers: first the k likeliest tokens, those that tie with the last of them included (Fan et al.
2018, arXiv 1805.04833); of what remains, the fewest likeliest ones whose probabilities together reach p (Holtzman et al.
2019, arXiv 1904.09751).
"""

from __future__ import annotations

import torch
from torch import Tensor


def likeliest(logprobs: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Cuts distributions down to their likeliest tokens.

    Args:
        logprobs: Natural log-probabilities, [R, V].
        top_p: Of each row, above 0 and up to 1, [R]; 1 cuts nothing.
        top_k: Of each row, [R] int64; 0 cuts nothing.

    Returns:
        Log-probabilities of what is left, −inf elsewhere, [R, V].

    Example:
        >>> rows = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(2, 1)
        >>> likeliest(rows, top_p=torch.tensor([1.0, 0.5]), top_k=torch.tensor([2, 0])).exp()
        tensor([[0.6250, 0.3750, 0.0000],
                [1.0000, 0.0000, 0.0000]])
    """
    size = logprobs.shape[-1]
    falling, order = logprobs.sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k > 0, top_k, size).clamp(max=size) - 1
    falling = falling.masked_fill(falling < falling.gather(-1, last[:, None]), -torch.inf)
    chances = falling.double().softmax(-1)
    reached = chances.cumsum(-1) - chances  # by the likelier ones alone
    falling = falling.masked_fill((reached >= top_p.double()[:, None]) & (top_p < 1)[:, None], -torch.inf)
    return torch.empty_like(logprobs).scatter_(-1, order, torch.log_softmax(falling, dim=-1))
