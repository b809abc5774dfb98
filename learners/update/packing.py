"""Forward passes over trees of rows, in which every token that rows share stands once.

The log-probability of a token is a function of the ids up to it and of nothing else. So rows that agree up to a token share
it, whoever wrote it and in whichever trajectory: a prompt that a group has in common, what was written before a branch.
`packs` lays rows out as trees (*packs*), each token at its position along its own path and attending to its ancestors
alone; `side_by_side` and `stacked` make passes of packs; `tree_logprobs` gives every row the log-probabilities of its own
tokens back, a shared token's to each row that contains it.

Each row then has its loss for each of its tokens, with its own advantage, weight and ratio scale, exactly as if it had been
computed by itself: what reaches a shared token in the backward pass is the sum over its rows. No surrogate need be known
here, and clipped or not, shaped or not, the gradient is that of the rows one by one.

On a GPU attention is FlexAttention, on a CPU that of `learners.update.tree_attention`: both leave out what no token attends
to, so that rows share a pack wherever it has room for them. Elsewhere it is PyTorch's own, or the model's, with a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from learners.sampling.slots import added_mask, limit_of_attention
from learners.update import tree_attention as on_cpu

ATTENTION: Mapping[str, str] = MappingProxyType({"cuda": "flex_attention", "cpu": on_cpu.NAME})
"""What attention over trees is called by in a model's configuration, by the device that it is on; elsewhere, sdpa."""

_BLOCK = 128  # FlexAttention's block size; passes are multiples of it, so that few lengths are compiled for
_BLOCKS = 2  # the least that a pass has, since one alone would be compiled for by itself, and dynamo stops at eight variants
_ALIKE = 0.8  # packs stand side by side that are at least as long as this share of the longest


@dataclass(frozen=True)
class Pack:
    """Rows as a tree of N tokens, depth first: what follows a token stands right after it, one branch after the other.

    Args:
        rows: Which rows, in the order of their ids.
        places: Where the tokens of each stand, [T] each.
        ids: Token ids, [N].
        positions: Of each token along its path, from 0, [N].
        parents: Where the token before it stands, [N]; -1 for a first one.
        ends: The place after the last token that follows it on any path, [N].
    """

    rows: list[int]
    places: list[torch.Tensor]
    ids: torch.Tensor
    positions: torch.Tensor
    parents: torch.Tensor
    ends: torch.Tensor


@dataclass(frozen=True)
class Forest:
    """R packs side by side, L tokens each; what is short of that is filled up with tokens that nothing attends to.

    Args:
        rows: Which rows the packs hold.
        places: Where the tokens of each stand among all R · L, [T] each.
        ids, positions, ends: As of the packs, [R, L].
        parents: Where the token before each stands among all R · L, [R · L]; -1 for a first one.
        real: True where a token is, [R, L].
    """

    rows: list[int]
    places: list[torch.Tensor]
    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    parents: torch.Tensor
    real: torch.Tensor


def packs(rows: Sequence[torch.Tensor], most: int) -> list[Pack]:
    """Lays rows out as trees.

    Args:
        rows: Their token ids, [T] each.
        most: Tokens of a pack, unless a single row has more. A tree that is larger is cut: its prefix is repeated.

    Returns:
        The packs; every row is in one of them.
    """
    spelled = [row.tolist() for row in rows]
    order = sorted(range(len(rows)), key=spelled.__getitem__)
    found: list[list[tuple[int, int]]] = []  # of each pack its rows, with how many tokens each shares with the one before it
    size, last = 0, -1
    for index in order:
        length = len(spelled[index])
        shared = _common(rows[last], rows[index]) if found else 0
        together = size + length - shared
        if not found or together > most:
            found.append([(index, 0)])
            size = length
        else:
            found[-1].append((index, shared))
            size = together
        last = index
    return [_pack(rows, members) for members in found]


def dealt(rows: Sequence[torch.Tensor], hands: int) -> list[list[int]]:
    """Deals rows out so that each hand has about as many tokens to compute, what its rows share counted once.

    Rows that begin alike go to one hand, unless that would be more than its part.

    Args:
        rows: Their token ids, [T] each.
        hands: How many to deal to.

    Returns:
        The rows of each hand, in their order.
    """
    if hands == 1:
        return [list(range(len(rows)))]
    spelled = [row.tolist() for row in rows]
    order = sorted(range(len(rows)), key=spelled.__getitem__)
    new = [len(rows[at]) - (_common(rows[last], rows[at]) if last >= 0 else 0) for last, at in pairwise([-1, *order])]
    total, before = sum(new), 0
    found: list[list[int]] = [[] for _ in range(hands)]
    for at, tokens in zip(order, new, strict=True):
        middle = before + tokens / 2  # whose part the middle of a row is in has it
        found[min(hands - 1, int(middle * hands / total))].append(at)
        before += tokens
    return [sorted(own) for own in found]


def _pack(rows: Sequence[torch.Tensor], members: Sequence[tuple[int, int]]) -> Pack:
    """The tree of some rows, each with how many tokens it shares with the one before it."""
    size = sum(len(rows[index]) - shared for index, shared in members)
    ids, positions, parents, ends = (torch.empty(size, dtype=torch.int64) for _ in range(4))
    places: list[torch.Tensor] = []
    path, start = torch.empty(0, dtype=torch.int64), 0
    for index, shared in members:
        ends[path[shared:]] = start  # nothing else follows these
        new = torch.arange(start, start + len(rows[index]) - shared)
        path = torch.cat([path[:shared], new])
        ids[new], positions[new] = rows[index][shared:], torch.arange(shared, len(path))
        parents[new] = torch.cat([path.new_tensor([-1]), path])[shared:-1]
        places.append(path)
        start += len(new)
    ends[path] = size
    return Pack([index for index, _ in members], places, ids, positions, parents, ends)


def _common(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many tokens two rows begin with alike."""
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length


def side_by_side(found: Sequence[Pack], most: int) -> Iterator[list[Pack]]:
    """Puts packs together that make up a pass: of about the same length, and of at most so many tokens, padding included."""
    left = sorted(found, key=lambda pack: -len(pack.ids))
    while left:
        length = len(left[0].ids)
        alike = sum(len(pack.ids) >= _ALIKE * length for pack in left)
        count = min(alike, max(1, most // length))
        yield left[:count]
        left = left[count:]


def length_of_pass(tokens: int, device: torch.device) -> int:
    """What packs of up to so many tokens are filled up to: on a GPU whole blocks of FlexAttention, two at least."""
    return max(_BLOCKS, -(-tokens // _BLOCK)) * _BLOCK if device.type == "cuda" else tokens


def stacked(chosen: Sequence[Pack], device: torch.device) -> Forest:
    """Puts packs side by side on a device, filled up to the longest, or further (`length_of_pass`)."""
    length = length_of_pass(max(len(pack.ids) for pack in chosen), device)
    ids = torch.zeros(len(chosen), length, dtype=torch.int64)
    positions, ends = ids.clone(), torch.arange(1, length + 1).repeat(len(chosen), 1)
    parents, real = torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool)
    for number, pack in enumerate(chosen):
        own = slice(len(pack.ids))
        ids[number, own], positions[number, own], ends[number, own] = pack.ids, pack.positions, pack.ends
        real[number, own] = True
        parents[number, own] = torch.where(pack.parents < 0, -1, pack.parents + number * length)
    return Forest(
        rows=[row for pack in chosen for row in pack.rows],
        places=[(own + number * length).to(device) for number, pack in enumerate(chosen) for own in pack.places],
        ids=ids.to(device),
        positions=positions.to(device),
        ends=ends.to(device),
        parents=parents.flatten().to(device),
        real=real.to(device),
    )


def ancestors(ends: torch.Tensor) -> torch.Tensor:
    """Which tokens each attends to: itself and those before it on its path, that is those whose end is not yet reached.

    Args:
        ends: Of each token, [R, L].

    Returns:
        [R, 1, L, L] bool, tokens along the third dimension and what they attend to along the last.
    """
    place = torch.arange(ends.shape[1], device=ends.device)
    return ((place <= place[:, None]) & (place[:, None] < ends[:, None, :]))[:, None]


def blocks_of_ancestors(ends: torch.Tensor) -> BlockMask:
    """The same for FlexAttention."""

    def attends(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < ends[row, key])

    rows, length = ends.shape
    # Compiled on a GPU: else every pair of tokens is looked at in memory.
    make = torch.compile(create_block_mask) if ends.device.type == "cuda" else create_block_mask
    made: BlockMask = make(attends, rows, None, length, length, device=ends.device, BLOCK_SIZE=_BLOCK)
    return made


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[None]:
    """Has a model attend as trees need it, until the end of the backward pass; nobody else may use it in the meantime.

    Models whose attention cannot be exchanged, older architectures, go on with their own and a mask. Whether an architecture
    heeds that is found out by `learners.update.tree_trial`.

    Raises:
        ValueError: A model that has no FlexAttention, on a GPU.
    """
    config = model.config
    needed = ATTENTION.get(model.device.type, "sdpa")
    before = config._attn_implementation
    if needed == before or not model._can_set_attn_implementation():
        yield
        return
    model.set_attn_implementation(needed)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _mask_of(forest: Forest, model: PreTrainedModel) -> torch.Tensor | BlockMask:
    """Which tokens each attends to, as the attention that a model has takes it."""
    attention = model.config._attn_implementation
    if attention == on_cpu.NAME:
        return on_cpu.tree_mask(forest.ends * forest.real)
    if attention == "flex_attention":
        return blocks_of_ancestors(forest.ends)
    mask = ancestors(forest.ends)
    return added_mask(mask, model.dtype) if attention == "eager" else mask


def tree_logprobs(
    model: PreTrainedModel, forest: Forest, wanted: Sequence[torch.Tensor], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of tokens given those before them, and the entropy of the distribution they came from.

    Logits are computed only where a wanted token is chosen from them.

    Args:
        model: A causal language model, within `tree_attention`.
        forest: The rows.
        wanted: Which of the tokens of each, [T] bool each.
        temperature: Logits are divided by it.

    Returns:
        Log-probabilities and entropies in nats of the N wanted tokens of one row after the other, both [N] in float32; 0
        for a row's first token, which nothing comes before. The entropies carry no gradient.

    Raises:
        ValueError: A model that does not attend to everything before a token of the longest row.
    """
    if limit := limit_of_attention(model.config, max(map(len, forest.places))):
        raise ValueError(f"an update over trees needs a model with full attention, and this one has {limit}")
    device = forest.ids.device
    copies = torch.cat([places[mask.to(device)] for places, mask in zip(forest.places, wanted, strict=True)])
    tokens, copied = copies.unique(return_inverse=True)
    parents = forest.parents[tokens]
    choosers, chooser = parents.clamp(min=0).unique(return_inverse=True)
    mask = _mask_of(forest, model)
    with _logits_only_at(model, choosers):
        output = model(input_ids=forest.ids, attention_mask=mask, position_ids=forest.positions, use_cache=False)
    distribution = torch.log_softmax(output.logits[0].float() / temperature, dim=-1)
    chosen = distribution[chooser, forest.ids.flatten()[tokens]].masked_fill(parents < 0, 0.0)
    with torch.no_grad():
        entropies = -(distribution.exp() * distribution.clamp(min=-1e9)).sum(-1)[chooser].masked_fill(parents < 0, 0.0)
    return chosen[copied], entropies[copied]


@contextmanager
def _logits_only_at(model: PreTrainedModel, places: torch.Tensor) -> Iterator[None]:
    """Has a model compute logits at some of its R · L tokens alone, [1, U, V]."""

    def select(head: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0].flatten(0, 1)[places][None], *arguments[1:])

    head: Callable[..., torch.Tensor] | torch.nn.Module = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
