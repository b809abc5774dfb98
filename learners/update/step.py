"""Optimiser steps: log-probabilities of a policy's tokens, a surrogate loss over them, its gradient, one step a mini-batch.

Nothing here knows an algorithm: advantages, weights and ratio scales come with the rows, the surrogate is a function. The
loss of a mini-batch is normalised over the whole of it before it is cut to micro-batches, so their size changes nothing.

The forward passes run over trees, in which what rows share is computed once (`learners.update.packing`), or over padded
rows. The loss is the same either way, and knows nothing of it: it is taken of every token of every row.

What sampled a batch is never quite the policy that learns from it: another program computes other last digits, or, where the
sampler plays ahead, weights are a step older. `update_policy` measures by how much, and with ``importance_cap`` corrects it:
each token's loss is weighted by how much likelier the token is to the trainer than it was to the sampler
(`learners.update.losses.truncated_importance`). Ratios, clipping and the KL penalty stay as they are.

A mini-batch in which nothing weighs anything has no mean loss, and one whose gradient is not finite would leave no weight
finite: no step is taken for either. Both are counted, and whoever calls may judge how many are too many.

In a world of several processes (`learners.update.world`) each goes through its part of the rows, over a model that is spread
over all of them (`learners.update.sharding`); losses, gradients and metrics are sums over all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from transformers import PreTrainedModel

from learners.rollout.tree import PathTokens
from learners.update.adapters import without_adapters
from learners.update.batch import Row, Terms, flat, micro_batches, pad
from learners.update.losses import TokenLoss, kl_penalty, truncated_importance, weighted_mean
from learners.update.packing import Pack, dealt, packs, side_by_side, stacked, tree_attention, tree_logprobs
from learners.update.recompute import recomputation
from learners.update.sharding import norm_of
from learners.update.world import ALONE, World

BoundSurrogate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], TokenLoss]
"""A surrogate with its options bound: (log ratio [N], advantage [N], ratio scale [N]) -> the loss of each of N tokens."""

BAND = (0.9, 1.1)
"""A probability ratio of trainer to sampler outside of this counts as a mismatch."""


@dataclass(frozen=True)
class UpdateSettings:
    """How a batch is learned from.

    Args:
        epochs: Passes over the batch.
        minibatch_groups: Groups an optimiser step; 0 takes the whole batch.
        micro_tokens: Tokens in one forward and backward pass, padding included; a single row may have more.
        max_grad_norm: Gradients are scaled down to this norm, above 0; ``math.inf`` leaves them as they are.
        temperature: The sampling temperature, which log-probabilities are taken at.
        kl_coefficient: Weight of the KL penalty towards the reference policy; 0 needs no reference.
        ratio_to: Whose log-probabilities the ratio of a token is taken to: those of the trainer before the batch, or those
            that the rows came with.
        layout: Whether forward passes run over trees, each shared token once, or over padded rows.
        importance_cap: The largest weight of a token's loss that corrects for who sampled it; 0 for no such weights. Only
            where ratios are to the trainer: those to the sampler correct for it themselves.
        recompute: Whether activations are computed again in the backward pass; changes memory and time, not results.
    """

    epochs: int = 1
    minibatch_groups: int = 0
    micro_tokens: int = 4096
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    kl_coefficient: float = 0.0
    ratio_to: Literal["trainer", "sampler"] = "trainer"
    layout: Literal["tree", "padded"] = "tree"
    importance_cap: float = 0.0
    recompute: bool = False

    def __post_init__(self) -> None:
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected more than 0, math.inf for no limit, found {self.max_grad_norm!r}")
        if self.importance_cap and self.ratio_to == "sampler":
            raise ValueError("importance_cap: expected 0 where ratios are to the sampler, which corrects for it already")


def token_logprobs(
    model: PreTrainedModel, ids: torch.Tensor, real: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token given those before it, and the entropy of the distribution it came from.

    Args:
        model: A causal language model.
        ids: [R, L].
        real: True where a token is, [R, L]; padding is on the right.
        temperature: Logits are divided by it.

    Returns:
        Log-probabilities and entropies in nats, both [R, L] in float32 and aligned with ``ids``; a row's first token, which
        nothing comes before, has 0 for both. The entropies carry no gradient.
    """
    logits = model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits[:, :-1].float() / temperature
    distribution = torch.log_softmax(logits, dim=-1)
    logprobs = distribution.gather(-1, ids[:, 1:, None])[..., 0]
    with torch.no_grad():
        entropies = -(distribution.exp() * distribution.clamp(min=-1e9)).sum(-1)
    return torch.nn.functional.pad(logprobs, (1, 0)), torch.nn.functional.pad(entropies, (1, 0))


_Found = tuple[list[int], torch.Tensor, torch.Tensor]
"""Of a forward pass: which rows, and of the N wanted tokens of one after the other log-probabilities and entropies, [N]."""


def _passes(
    model: PreTrainedModel, rows: Sequence[Row], wanted: Sequence[torch.Tensor], settings: UpdateSettings, world: World
) -> Iterator[_Found]:
    """Forward passes over this process's share of rows. ``wanted`` are some of the tokens of each row, [T] bool each.

    All processes make as many passes, since each has a part of the model. Who has no more rows goes over next to nothing,
    and gets no rows and empty tensors, which a backward pass can begin at all the same.
    """
    share = dealt([row.tokens.ids for row in rows], world.size)[world.rank]
    passes = _cut(model, [rows[index] for index in share], [wanted[index] for index in share], settings)
    spare = max(world.gather(len(passes))) - len(passes)
    for make in passes:
        indices, logprobs, entropies = make()
        yield [share[index] for index in indices], logprobs, entropies
    nothing = _next_to_nothing()
    for _ in range(spare):
        (make,) = _cut(model, [nothing], [nothing.tokens.policy], settings)
        _, logprobs, entropies = make()
        yield [], logprobs, entropies


def _cut(
    model: PreTrainedModel, rows: Sequence[Row], wanted: Sequence[torch.Tensor], settings: UpdateSettings
) -> list[Callable[[], _Found]]:
    """Cuts rows into passes that are still to be made."""

    def padded(indices: list[int]) -> _Found:
        batch = pad([rows[index] for index in indices], model.device)
        logprobs, entropies = token_logprobs(model, batch.ids, batch.real, settings.temperature)
        masks = torch.nn.utils.rnn.pad_sequence([wanted[index] for index in indices], batch_first=True)
        masks = masks.to(model.device)
        return indices, logprobs[masks], entropies[masks]

    def over_trees(chosen: list[Pack]) -> _Found:
        forest = stacked(chosen, model.device)
        found = tree_logprobs(model, forest, [wanted[index] for index in forest.rows], settings.temperature)
        return forest.rows, *found

    if settings.layout == "padded":
        return [partial(padded, indices) for indices in micro_batches(rows, settings.micro_tokens)]
    trees = packs([row.tokens.ids for row in rows], settings.micro_tokens)
    return [partial(over_trees, chosen) for chosen in side_by_side(trees, settings.micro_tokens)]


def _next_to_nothing() -> Row:
    """A row of two tokens, neither by the policy."""
    none, numbers = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    tokens = PathTokens(numbers, none.bool(), logprobs=none, entropies=none, segments=numbers, numbers=numbers)
    return Row(tokens, Terms.constant(tokens, advantage=0.0, weight=0.0))


@dataclass
class _Seen:
    """What one process saw of mini-batches: sums over tokens, how many these are, and of tokens one by one the gaps between
    trainer and sampler and the importance weights."""

    sums: dict[str, float]
    tokens: int = 0
    gaps: list[torch.Tensor] = field(default_factory=list)
    corrections: list[torch.Tensor] = field(default_factory=list)

    def copy(self) -> _Seen:
        return _Seen(dict(self.sums), self.tokens, list(self.gaps), list(self.corrections))


def _attention(model: PreTrainedModel, settings: UpdateSettings) -> AbstractContextManager[None]:
    return tree_attention(model) if settings.layout == "tree" else nullcontext()


def frozen_logprobs(
    model: PreTrainedModel, rows: Sequence[Row], settings: UpdateSettings, world: World = ALONE
) -> list[torch.Tensor]:
    """Log-probabilities under the present weights of what the policy wrote in each row, in the rows' order."""
    return [logprobs for logprobs, _ in _frozen(model, rows, [row.tokens.policy for row in rows], settings, world)]


def measured(
    model: PreTrainedModel, rows: Sequence[Row], settings: UpdateSettings, world: World = ALONE
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each row's log-probabilities and entropies (`token_logprobs`) under the present weights, [T] each, in order."""
    return _frozen(model, rows, [torch.ones(len(row.tokens.ids), dtype=torch.bool) for row in rows], settings, world)


@torch.no_grad()
def _frozen(
    model: PreTrainedModel, rows: Sequence[Row], wanted: Sequence[torch.Tensor], settings: UpdateSettings, world: World
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    counts = [int(mask.sum()) for mask in wanted]
    own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with _attention(model, settings):
        for indices, *values in _passes(model, rows, wanted, settings, world):
            sizes = [counts[index] for index in indices]
            logprobs, entropies = (value.cpu().split(sizes) for value in values)
            own |= dict(zip(indices, zip(logprobs, entropies, strict=True), strict=True))
    found = {index: values for share in world.gather(own) for index, values in share.items()}
    device = model.device
    return [(logprobs.to(device), entropies.to(device)) for logprobs, entropies in map(found.__getitem__, range(len(rows)))]


def update_policy(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Row]],
    surrogate: BoundSurrogate,
    settings: UpdateSettings,
    *,
    orders: Iterable[Sequence[int]],
    reference: PreTrainedModel | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """Learns from one batch of groups.

    Args:
        model: The policy, changed in place; sharded over the processes where there are several.
        optimizer: Over the policy's parameters.
        groups: The rows of each group, [B].
        surrogate: The loss of a token.
        settings: How.
        orders: For each epoch, in which order the groups are taken.
        reference: The policy that the KL penalty pulls towards, taken without adapters: it may be ``model`` itself. Sharded
            as the policy is.
        world: The processes, which are all given the same groups.

    Returns:
        ``optimizer_steps``, how many were taken; ``skipped``, for how many mini-batches none was since their gradient was
        not finite, and ``unwritten``, for how many since no token in them weighs anything (the policy wrote none). All
        others are over the steps that were taken, and are missing where none was.

        ``loss``, ``grad_norm``, ``entropy``, ``clip_low`` and ``clip_high`` (shares of tokens), ``kl_reference`` where there
        is a reference; and, where ratios are to the trainer's own log-probabilities, ``kl_old`` (k3 estimate to the
        trainer's policy before the batch).

        Between that policy and the sampler, over the tokens that were sampled: ``mismatch_mean`` and ``mismatch_max``
        (|Δ log p|), and ``mismatch_outside``, the share whose probability ratio is outside `BAND`. Where ratios are to the
        sampler, of the first mini-batch alone: what the trainer thought of the others before it changed would take a
        further pass. Not of demonstrations, which nobody sampled: all of their log-probabilities are 0.

        With ``importance_cap``: ``importance_mean``, the mean weight (1 but for noise and the cap), and
        ``importance_capped``, the share of tokens that the cap holds.
    """
    with _attention(model, settings), recomputation(model) if settings.recompute else nullcontext():
        return _update(model, optimizer, groups, surrogate, settings, [list(order) for order in orders], reference, world)


def _update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Row]],
    surrogate: BoundSurrogate,
    settings: UpdateSettings,
    orders: Sequence[Sequence[int]],
    reference: PreTrainedModel | None,
    world: World,
) -> dict[str, float]:
    size = settings.minibatch_groups or len(groups)
    cuts = [order[start : start + size] for order in orders for start in range(0, len(order), size)]
    weights = [_weight(row for group in cut for row in groups[group]) for cut in cuts]
    minibatches = [(cut, weight) for cut, weight in zip(cuts, weights, strict=True) if weight != 0]
    counts = {"unwritten": float(len(cuts) - len(minibatches))}
    rows = [row for group in groups for row in group]
    firsts = [0]
    for group in groups:
        firsts.append(firsts[-1] + len(group))
    recorded = settings.ratio_to == "sampler"
    # With a single step the old policy is the present one, and its log-probabilities are those of the forward pass itself.
    old = frozen_logprobs(model, rows, settings, world) if len(minibatches) > 1 and not recorded else None
    anchor = None
    if reference is not None and minibatches:
        with without_adapters(reference):
            anchor = frozen_logprobs(reference, rows, settings, world)
    seen = _Seen(dict.fromkeys(("loss", "entropy", "kl_old", "clip_low", "clip_high", "kl_reference"), 0.0))
    norms: list[float] = []
    for minibatch, weight in minibatches:
        chosen = [index for group in minibatch for index in range(firsts[group], firsts[group + 1])]
        part = [rows[index] for index in chosen]
        before_it = seen.copy()
        optimizer.zero_grad(set_to_none=True)
        for indices, logprobs, entropies in _passes(model, part, [row.tokens.policy for row in part], settings, world):
            if not len(logprobs):  # only the others have rows left, or the policy wrote nothing in these
                logprobs.sum().backward()
                continue
            terms = flat([part[index] for index in indices], model.device)
            sampled = terms.sampled_logprobs
            if old is not None:
                before = torch.cat([old[chosen[index]] for index in indices])
            else:
                before = sampled if recorded else logprobs.detach()
            token_loss = surrogate(logprobs - before, terms.advantage, terms.ratio_scale)
            losses = token_loss.loss
            if settings.importance_cap:
                # The sum that the loss is divided by stays that of the terms' own weights: these corrections are 1 in the
                # mean over what was sampled, so that nothing drifts, while dividing by their sum would undo what they do
                # to a mini-batch as a whole, and would need all of it before the first micro-batch.
                seen.corrections.append(truncated_importance(before, sampled, settings.importance_cap))
                losses = losses * seen.corrections[-1]
            if anchor is not None:
                penalty = kl_penalty(logprobs, torch.cat([anchor[chosen[index]] for index in indices]))
                losses = losses + settings.kl_coefficient * penalty
                seen.sums["kl_reference"] += float(penalty.detach().sum())
            loss = weighted_mean(losses, terms.weight, total=weight)
            loss.backward()
            with torch.no_grad():
                seen.tokens += len(losses)
                seen.sums["loss"] += float(loss)
                seen.sums["entropy"] += float(entropies.sum())
                if not recorded:
                    seen.sums["kl_old"] += float(kl_penalty(logprobs, before).sum())
                if not recorded or (not norms and sampled.any()):
                    seen.gaps.append((logprobs if recorded else before) - sampled)
                seen.sums["clip_low"] += float(token_loss.clipped_low.sum())
                seen.sums["clip_high"] += float(token_loss.clipped_high.sum())
        norm = norm_of(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
        if math.isfinite(norm):  # the same on all processes: it is the whole gradient's
            norms.append(norm)
            optimizer.step()
        else:
            seen = before_it
    counts |= {"optimizer_steps": float(len(norms)), "skipped": float(len(minibatches) - len(norms))}
    if not norms:
        return counts
    shares = world.gather(
        (seen.sums, seen.tokens, [gap.cpu() for gap in seen.gaps], [each.cpu() for each in seen.corrections])
    )
    totals = {name: math.fsum(share[0][name] for share in shares) for name in seen.sums}
    tokens = sum(share[1] for share in shares)
    gaps, corrections = [gap for share in shares for gap in share[2]], [each for share in shares for each in share[3]]
    means = ("entropy", "clip_low", "clip_high", *(() if recorded else ("kl_old",)))
    metrics = counts | {name: totals[name] / tokens for name in means}
    metrics["loss"] = totals["loss"] / len(norms)
    metrics["grad_norm"] = math.fsum(norms) / len(norms)
    if gaps:
        gap = torch.cat(gaps)
        metrics["mismatch_mean"], metrics["mismatch_max"] = float(gap.abs().mean()), float(gap.abs().max())
        ratio = gap.exp()
        metrics["mismatch_outside"] = float(((ratio < BAND[0]) | (ratio > BAND[1])).float().mean())
    if corrections:
        correction = torch.cat(corrections)
        metrics["importance_mean"] = float(correction.mean())
        metrics["importance_capped"] = float((correction >= settings.importance_cap).float().mean())
    if anchor is not None:
        metrics["kl_reference"] = totals["kl_reference"] / tokens
    return metrics


def _weight(rows: Iterable[Row]) -> float:
    """The weights of all that the policy wrote in some rows, summed."""
    return math.fsum(float((row.terms.weight * row.tokens.policy).sum()) for row in rows)
