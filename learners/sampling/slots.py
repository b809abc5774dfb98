"""Keys and values of many live sequences, one slot a sequence, kept between the turns of an episode.

Transformers' own caches hold one batch whose rows begin and end together. Here rows come and go: a forward pass names the
slots that it works on and where each row's new tokens go (`SlotCache.forward_over`), and the rest stays as it is. A slot's
first tokens can be copied into another slot, which is how prompts and branches share what was computed once.

What a slot holds may be anywhere in the storage, and sequences that write together are moved to its beginning, side by side
(`SlotCache.line_up`): then a pass reads their history where it lies, instead of copying all of it for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, PretrainedConfig

_LENGTH_STEP = 64  # slots grow, and forward passes are cut, by whole multiples of this many tokens


class SlotCache(Cache):
    """Slot storage with the interface that Transformers' attention layers call.

    Each layer's keys and values are tensors [slots, heads, length, head size], which may differ in the last, made at the
    first forward pass and grown when needed.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._free: list[int] = []
        self._slots = 0
        self._stored_at: list[int] = []  # where in the storage each slot is
        self._longest = 0  # tokens of the longest sequence that was ever stored
        self._rows: torch.Tensor | None = None  # where in the storage the present pass's rows are; None: at its beginning
        self._places = torch.empty(0, 0, dtype=torch.long)
        self._length = 0

    def take(self) -> int:
        """A free slot."""
        if not self._free:
            grown = max(8, 2 * self._slots)
            self._free = list(range(grown - 1, self._slots - 1, -1))
            self._stored_at += range(self._slots, grown)
            self._slots = grown
            for layer in range(len(self._keys)):
                self._grow(layer)
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Ends the use of a slot."""
        self._free.append(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` tokens of one slot into another."""
        to, from_ = self._stored_at[target], self._stored_at[source]
        for stored in (*self._keys, *self._values):
            stored[to, :, :length] = stored[from_, :, :length]

    def release(self) -> None:
        """Drops all storage; no slot may be in use."""
        self._keys, self._values, self._free, self._slots = [], [], [], 0
        self._stored_at, self._longest = [], 0

    def settled(self, slots: Sequence[int]) -> list[int]:
        """An order of these slots for `line_up` in which the fewest have to move."""
        staying = {self._stored_at[slot]: slot for slot in slots if self._stored_at[slot] < len(slots)}
        moving = [slot for slot in slots if self._stored_at[slot] >= len(slots)]
        return [staying[place] if place in staying else moving.pop() for place in range(len(slots))]

    def line_up(self, slots: Sequence[int]) -> None:
        """Moves slots to the beginning of the storage, in this order. A pass over just these then copies no history."""
        slot_at = {place: slot for slot, place in enumerate(self._stored_at)}
        ahead = set(slots)
        left = iter([place for place in range(len(slots), self._slots) if slot_at[place] in ahead])
        wanted = dict(enumerate(slots))  # which slot each place gets: these, and whoever they drive out takes the room
        for place in range(len(slots)):
            if slot_at[place] not in ahead:
                wanted[next(left)] = slot_at[place]
        places = [place for place, slot in wanted.items() if self._stored_at[slot] != place]
        if not places:
            return
        sources = [self._stored_at[wanted[place]] for place in places]
        for stored in (*self._keys, *self._values):
            stored[places, :, : self._longest] = stored[sources, :, : self._longest]
        for place in places:
            self._stored_at[wanted[place]] = place

    def forward_over(
        self, slots: list[int], ends: list[int], counts: list[int], width: int, *, lined_up: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Says what the next forward pass works on: row i appends ``counts[i]`` tokens to slot i, up to place ``ends[i]``.

        Rows are left-padded to ``width``: a row's real tokens are its last ones.

        Args:
            slots: The slot of each row, [R].
            ends: Each row's length after the pass, [R].
            counts: Real tokens of each row in this pass, [R].
            width: Tokens a row, padding included.
            lined_up: Whether the slots are those that were lined up last, so that their history is read where it is.

        Returns:
            Position ids [R, width] and the attention mask [R, 1, width, length], True where a token may look.
        """
        self._rows = None if lined_up else torch.tensor([self._stored_at[slot] for slot in slots])
        self._longest = max(self._longest, *ends)
        columns = torch.arange(width)[None, :]
        places = torch.tensor(ends)[:, None] - width + columns
        padding = columns < width - torch.tensor(counts)[:, None]
        self._length = -(-max(ends) // _LENGTH_STEP) * _LENGTH_STEP
        # Padding is written to a spare place behind the longest row, where no mask reaches.
        self._places = torch.where(padding, self._length, places)
        positions = torch.where(padding, 0, places)
        mask = torch.arange(self._length)[None, None, :] <= positions[:, :, None]
        return positions, mask[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a layer's new keys and values [R, heads, width, head size]; returns the rows' whole history.

        It is not to be written to: that of rows that are lined up is the storage itself.
        """
        if layer_idx == len(self._keys):
            for all_stored, new in ((self._keys, key_states), (self._values, value_states)):
                all_stored.append(new.new_zeros(self._slots, new.shape[1], 0, new.shape[3]))
        self._grow(layer_idx)
        places = self._places.to(key_states.device)
        count = len(places)
        rows = (torch.arange(count) if self._rows is None else self._rows).to(key_states.device)
        history = []
        for stored, new in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            stored[rows[:, None], :, places] = new.transpose(1, 2)
            stored_length = stored[:, :, : self._length]
            history.append(stored_length[:count] if self._rows is None else stored_length[rows])
        return history[0], history[1]

    def _grow(self, layer: int) -> None:
        """Makes a layer's storage hold every slot, and every place of the present pass with a spare one behind."""
        for all_stored in (self._keys, self._values):
            old = all_stored[layer]
            slots, heads, length, size = old.shape
            if slots < self._slots or length <= self._length:
                longer = length if length > self._length else 2 * self._length
                new = old.new_zeros(self._slots, heads, longer, size)
                new[:slots, :, :length] = old
                all_stored[layer] = new


def added_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask, True where a token may look, for attention that adds it to its scores (``eager``, of Transformers)."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def limit_of_attention(config: PretrainedConfig, length: int | None) -> str:
    """What keeps layers from attending to everything before a token, as far as a configuration tells; "" for nothing.

    Args:
        config: Of the model, or of a larger one that it is the language part of.
        length: Tokens of the longest sequence, where a window that is no shorter hides nothing; None: any window does.
    """
    text = config.get_text_config()
    kinds = {str(kind) for name in ("layer_types", "attention_layers") for kind in getattr(text, name, None) or ()}
    window = getattr(text, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None
    known = {"full_attention", "global", *(["sliding_attention"] if window is not None else [])}
    if others := sorted(kinds - known):
        return f"{', '.join(others)} layers"
    if window is not None and (length is None or window < length):
        return f"a sliding window of {window} tokens"
    return ""


def check_full_attention(config: PretrainedConfig, length: int | None = None) -> None:
    """Raises ``ValueError`` for a model whose layers do not all attend to the whole of a sequence of so many tokens."""
    if limit := limit_of_attention(config, length):
        raise ValueError(f"expected full attention in every layer, found {limit}")
