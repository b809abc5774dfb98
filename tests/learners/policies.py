"""Small untaught policies, and ways to run coroutines on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, TopKLogitsWarper, TopPLogitsWarper

from learners.run.tiny import Recipe, tiny_tokenizer, untaught

TOKENIZER = tiny_tokenizer()


def random_policy(layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """A random model over the tiny tokenizer, with logits that are far from uniform."""
    model = untaught(Recipe(hidden=64, layers=layers, heads=2, key_value_heads=1, feed_forward=96, seed=seed), TOKENIZER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def full_logprobs(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities after each token by one plain forward pass, [T, V]: what every cache must agree with."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float() / temperature, dim=-1)


def cut_as_transformers_cuts(logprobs: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """What is left of a distribution, renormalised, [V]."""
    row = logprobs[None]
    if top_k:
        row = TopKLogitsWarper(top_k)(None, row)
    if top_p < 1:
        row = TopPLogitsWarper(top_p)(None, row)
    return torch.log_softmax(row[0], dim=-1)


def saved_policy(folder: Path, ends: Sequence[int]) -> Path:
    """A random policy as a folder that ``--model`` takes; any of the given tokens ends its turns."""
    model = random_policy()
    model.generation_config.eos_token_id = list(ends)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder
