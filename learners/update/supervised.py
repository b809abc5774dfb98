"""Supervised learning: maximum likelihood of given tokens.

What warm starts and imitation share. An example is token ids with a weight each; tokens of weight 0 are only context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from learners.update.step import token_logprobs

_POOL = 8  # batches drawn at a time and sorted by length


@dataclass(frozen=True)
class Example:
    """T tokens to imitate.

    Args:
        ids: Token ids, [T].
        weights: Weight of each token's negative log-likelihood, [T].
    """

    ids: Sequence[int]
    weights: Sequence[float]


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    warmup_steps: int = 10,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains a model in place on random batches of examples, with learning rates that fall linearly to a tenth.

    Args:
        model: A causal language model.
        examples: What to imitate.
        optimizers: Over its parameters; their learning rates are the peaks of the schedule.
        steps: Optimiser steps.
        batch_size: Examples a step.
        rng: Draws the batches.
        warmup_steps: Steps over which the learning rates rise.
        report: Called with the step and the weighted mean negative log-likelihood of its batch, in nats.
    """
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    for step, chosen in zip(range(steps), _batches(examples, batch_size, rng), strict=False):
        rate = min((step + 1) / warmup_steps, 1.0 - 0.9 * step / steps)
        for group, peak in groups:
            group["lr"] = peak * rate
        ids = _padded([torch.tensor(example.ids) for example in chosen])
        weights = _padded([torch.tensor(example.weights, dtype=torch.float32) for example in chosen])
        real = _padded([torch.ones(len(example.ids), dtype=torch.bool) for example in chosen])
        logprobs, _ = token_logprobs(model, ids.to(model.device), real.to(model.device), 1.0)
        weights = weights.to(model.device)
        loss = -(weights * logprobs).sum() / weights[:, 1:].sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        report(step, float(loss.detach()))


def _batches(examples: Sequence[Example], batch_size: int, rng: np.random.Generator) -> Iterator[list[Example]]:
    """Random batches without end, each of examples of like length, so that little of a batch is padding."""
    while True:
        pool = [examples[index] for index in rng.integers(len(examples), size=_POOL * batch_size)]
        pool.sort(key=lambda example: len(example.ids))
        for start in rng.permutation(_POOL) * batch_size:
            yield pool[start : start + batch_size]


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
