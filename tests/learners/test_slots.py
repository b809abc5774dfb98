"""The storage of caches: whatever is moved, copied and given back, a slot holds what was put into it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.sampling.slots import SlotCache

HEADS, SIZE, LAYERS = 2, 4, 2


def written(cache: SlotCache, held: dict[int, torch.Tensor], slots: list[int], fresh: float, *, lined_up: bool) -> None:
    """Appends a token to some slots, and checks that what a pass reads is what they hold."""
    new = [torch.full((1, LAYERS, 2, HEADS, SIZE), fresh + index) for index in range(len(slots))]
    for slot, token in zip(slots, new, strict=True):
        held[slot] = torch.cat([held[slot], token])
    ends = [len(held[slot]) for slot in slots]
    cache.forward_over(slots, ends, [1] * len(slots), 1, lined_up=lined_up)
    for layer in range(LAYERS):
        put = [torch.stack([token[0, layer, part] for token in new])[:, :, None] for part in (0, 1)]
        for part, history in enumerate(cache.update(*put, layer)):
            for row, slot in enumerate(slots):
                expected = held[slot][:, layer, part].transpose(0, 1)
                assert torch.equal(history[row, :, : ends[row]], expected)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_slots_hold_what_was_put_into_them_wherever_they_are(data: st.DataObject) -> None:
    cache = SlotCache()
    held: dict[int, torch.Tensor] = {}
    for step in range(data.draw(st.integers(1, 25))):
        what = data.draw(
            st.sampled_from(["take", "give back", "copy", "write", "write", "write together", "write together"])
        )
        if what == "take" or not held:
            slot = cache.take()
            assert slot not in held
            held[slot] = torch.empty(0, LAYERS, 2, HEADS, SIZE)
            continue
        some = data.draw(st.lists(st.sampled_from(sorted(held)), unique=True, min_size=1))
        if what == "give back":
            cache.give_back(some[0])
            del held[some[0]]
        elif what == "copy" and len(some) > 1 and len(held[some[0]]):
            length = data.draw(st.integers(1, len(held[some[0]])))
            cache.copy(some[0], some[1], length)
            held[some[1]] = held[some[0]][:length].clone()
        elif what == "write":
            written(cache, held, some, 100.0 * step, lined_up=False)
        elif what == "write together":
            order = cache.settled(some) if data.draw(st.booleans()) else some
            assert sorted(order) == sorted(some)
            cache.line_up(order)
            written(cache, held, order, 100.0 * step, lined_up=True)


def test_few_move_where_the_order_is_free() -> None:
    """Of places 0 to 3 the slot at 1 leaves, and so the one at 3 takes its place."""
    cache = SlotCache()
    slots = [cache.take() for _ in range(4)]
    cache.line_up(slots)
    assert cache.settled([slots[3], slots[2], slots[0]]) == [slots[0], slots[3], slots[2]]


def test_history_of_what_is_lined_up_is_not_copied() -> None:
    cache = SlotCache()
    slots = [cache.take() for _ in range(3)]
    new = torch.ones(3, HEADS, 1, SIZE)
    reads = []
    for lined_up in (True, True, False):
        cache.line_up(slots)
        cache.forward_over(slots, [1] * 3, [1] * 3, 1, lined_up=lined_up)
        reads.append(cache.update(new, new, 0)[0].data_ptr())
    assert reads[0] == reads[1] != reads[2]
