"""Activations computed again: equal gradients, less that is kept, nothing but the update pays for it."""

from __future__ import annotations

import asyncio
import copy

import pytest
import torch
from policies import TOKENIZER, random_policy
from transformers import OPTConfig, OPTForCausalLM

from learners.rollout.tree import PathTokens
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler
from learners.update.batch import Row, Terms
from learners.update.losses import TokenLoss, clip_surrogate
from learners.update.recompute import recomputation
from learners.update.step import UpdateSettings, update_policy


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These models are so small that a second thread only waits."""
    torch.set_num_threads(1)


def rows(count: int = 4, length: int = 40) -> list[Row]:
    """Trajectories that share their first half."""
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 90, (length // 2,), generator=draw)
    found = []
    for index in range(count):
        ids = torch.cat([prompt, torch.randint(0, 90, (length // 2,), generator=draw)])
        policy = torch.arange(length) >= length // 2
        zeros, none = torch.zeros(length), torch.zeros(length, dtype=torch.int64)
        tokens = PathTokens(ids, policy, logprobs=zeros, entropies=zeros, segments=none, numbers=none)
        found.append(Row(tokens, Terms.constant(tokens, advantage=(-1.0) ** index, weight=1.0)))
    return found


def surrogate(log_ratio, advantage, ratio_scale) -> TokenLoss:
    return clip_surrogate(log_ratio, advantage, clip_low=0.2, clip_high=0.28, ratio_scale=ratio_scale)


def learn(model, **settings) -> torch.Tensor:
    """The weights after an update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = UpdateSettings(micro_tokens=64, **settings)
    update_policy(model, optimizer, [rows(), rows(3)], surrogate, settings, orders=[[0, 1]])
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def counted(model) -> list[int]:
    """Counts, from now on, how often each layer's feed-forward part computes."""
    counts = [0] * len(model.model.layers)
    for number, layer in enumerate(model.model.layers):

        def count(*_, number=number):
            counts[number] += 1

        layer.mlp.register_forward_pre_hook(count)  # a second pass ends as soon as it has what it needs
    return counts


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_an_update_is_the_same_with_every_layer_computed_twice(layout):
    plain, again = random_policy(), random_policy()
    once, twice = counted(plain), counted(again)
    assert torch.equal(learn(plain, layout=layout), learn(again, layout=layout, recompute=True))
    assert twice == [2 * count for count in once]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_less_is_kept_for_the_backward_pass(layout):
    kept = []
    for recompute in (False, True):
        total = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            learn(random_policy(layers=6), layout=layout, recompute=recompute)
        kept.append(total)
    assert kept[1] < 0.5 * kept[0]


def test_sampling_after_an_update_keeps_its_caches_and_computes_once():
    async def write(model):
        sampler = TransformersSampler(model, TOKENIZER, seed=0, eos=(), in_place=True)
        stream = sampler.start((0,))
        stream.append(list(range(20)))
        stream.decode(Decoding(max_tokens=6))
        written = await stream.rest()
        stream.cancel()
        sampler.close()
        return written

    model, other = random_policy(), random_policy()
    learn(model, recompute=True)
    learn(other)
    counts = counted(model)
    assert asyncio.run(write(model)) == asyncio.run(write(other))
    assert counts == [7, 7]  # the prompt and six tokens, each of them alone


def test_dropout_stays_off():
    """OPT's layers ask for dropout themselves, whatever the modules within them would do."""
    config = OPTConfig(
        vocab_size=99,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        dropout=0.5,
    )
    torch.manual_seed(0)
    model = OPTForCausalLM(config).eval()
    twin = copy.deepcopy(model)
    assert torch.equal(learn(model, layout="padded"), learn(twin, layout="padded", recompute=True))
    assert not any(module.training for module in twin.modules())


def test_a_model_without_such_layers_is_refused():
    with (
        pytest.raises(ValueError, match="Linear has no layers whose activations could be computed again"),
        recomputation(torch.nn.Linear(2, 2)),
    ):
        pass


def test_an_error_within_leaves_the_model_as_it_was():
    model = random_policy()
    with pytest.raises(ZeroDivisionError), recomputation(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())
