"""Attention of grouped heads over kept caches: the numbers of Transformers' own, bit for bit, and only while it samples."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, random_policy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from learners.sampling.grouped_attention import NAME, grouped_attention, grouped_attention_forward
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made meanwhile; views make none."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        held = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        if isinstance(found, torch.Tensor) and found.untyped_storage().data_ptr() not in held:
            self.made = max(self.made, found.numel())
        return found


def drawn(rows, heads, groups, width, length, size, seed, dtype=torch.float32):
    """Queries, a part of longer storage as keys and values, and a mask that leaves every query something to look at."""
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, heads * groups, width, size, generator=draw).to(dtype)
    key, value = (torch.randn(rows, heads, length + 9, size, generator=draw).to(dtype)[:, :, :length] for _ in range(2))
    mask = torch.rand(rows, 1, width, length, generator=draw) > 0.3
    mask[..., 0] = True
    return query, key, value, mask


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 2, 7, 40]),
    st.integers(1, 90),
    st.sampled_from([8, 64]),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_it_is_transformers_own_to_the_last_bit(rows, heads, groups, width, length, size, seed, dtype):
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    given_ = drawn(rows, heads, groups, width, length, size, seed, dtype)
    with torch.inference_mode():
        expected, _ = sdpa_attention_forward(module, *given_, scaling=0.3)
        found, weights = grouped_attention_forward(module, *given_, scaling=0.3)
    assert weights is None
    assert torch.equal(found, expected)


def test_it_copies_no_keys_and_values():
    module = SimpleNamespace(num_key_value_groups=4, is_causal=True)
    query, key, value, mask = drawn(8, 2, 4, 1, 64, 16, seed=0)
    made = []
    for attend in (sdpa_attention_forward, grouped_attention_forward):
        with torch.inference_mode(), Largest() as largest:
            attend(module, query, key, value, mask)
        made.append(largest.made)
    theirs, ours = made
    assert theirs == 4 * key.numel()
    assert ours < key.numel()


def attends_by(model):
    return model.config._attn_implementation


def test_a_model_attends_so_while_it_samples_and_at_no_other_time():
    model, seen = random_policy(), []
    model.register_forward_pre_hook(lambda *_: seen.append(attends_by(model)))

    async def act():
        stream = TransformersSampler(model, TOKENIZER, seed=0, eos=()).start((0,))
        stream.append([5] * 20)
        stream.decode(Decoding(max_tokens=3))
        await stream.rest()

    asyncio.run(act())
    assert set(seen) == {NAME}
    assert attends_by(model) == "sdpa"
    with pytest.raises(MemoryError), grouped_attention(model):
        raise MemoryError
    assert attends_by(model) == "sdpa"


def test_a_model_that_attends_in_another_way_is_left_alone():
    model = random_policy()
    model.set_attn_implementation("eager")
    with grouped_attention(model):
        assert attends_by(model) == "eager"
    assert attends_by(model) == "eager"
