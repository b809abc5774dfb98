"""Top-p and top-k: cut as transformers' own processors cut; who may ask for it, and who may not."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_parts import short, untaught  # noqa: F401
from policies import TOKENIZER, cut_as_transformers_cuts, full_logprobs, random_policy

from learners import collect, evaluate
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler
from learners.sampling.truncation import likeliest
from tracebank import read_trajectories


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(0, 30)), min_size=1, max_size=5),
    st.integers(1, 25),
    st.integers(0, 2**31),
)
def test_rows_are_cut_as_transformers_cuts_them(cuts, size, seed):
    logprobs = torch.log_softmax(3 * torch.randn(len(cuts), size, generator=torch.Generator().manual_seed(seed)), dim=-1)
    top_p, top_k = (torch.tensor(values) for values in zip(*cuts, strict=True))
    expected = torch.stack(
        [cut_as_transformers_cuts(row, p, min(k, size)) for row, (p, k) in zip(logprobs, cuts, strict=True)]
    )
    torch.testing.assert_close(likeliest(logprobs, top_p, top_k), expected, atol=1e-5, rtol=1e-5)


def test_tokens_that_tie_with_the_last_of_the_k_stay():
    row = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    kept = likeliest(row, torch.ones(1), torch.tensor([2]))
    torch.testing.assert_close(kept, row)


def test_samples_follow_what_is_left():
    model = random_policy()
    prompt = TOKENIZER.encode("abc", add_special_tokens=False)
    expected = cut_as_transformers_cuts(full_logprobs(model, prompt, temperature=1.7)[-1], 0.9, 12).exp().numpy()
    assert 4 < (expected > 0).sum() <= 12

    async def draw(count):
        source = TransformersSampler(model, TOKENIZER, seed=0, eos=())
        drawn = []
        for index in range(count):
            stream = source.start((index,))
            stream.append(prompt)
            drawn.append(stream)
            stream.decode(Decoding(temperature=1.7, max_tokens=1, top_p=0.9, top_k=12))
        return [(await stream.rest()).ids[0] for stream in drawn]

    count = 1500
    counts = np.bincount(asyncio.run(draw(count)), minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    deviation = (counts[likely] / count - expected[likely]) / np.sqrt(expected[likely] / count)
    assert np.abs(deviation).max() < 4.5


def collected(module, policy, path, *more):
    options = {"--env": "tests/Parity-v0", "--model": policy, "--output": path, "--task-count": 3, "--n": 2}
    options |= {"--turn-tokens": 12, "--total-tokens": 120, "--threads": 1}
    arguments = [str(part) for pair in options.items() for part in pair]
    module.main([*arguments, *map(str, more)])
    return list(read_trajectories(path))


@pytest.mark.parametrize("module", [collect, evaluate])
def test_collect_and_evaluate_sample_from_the_likeliest_tokens(module, untaught, tmp_path):  # noqa: F811
    """Of one token there is nothing to choose: what is written is what greedy decoding writes, with probability 1."""
    alone = collected(module, untaught, tmp_path / "alone.jsonl", "--top-k", 1)
    greedy = collected(module, untaught, tmp_path / "greedy.jsonl", "--temperature", 0)
    for one, other in zip(alone, greedy, strict=True):
        written = [segment for segment in one.segments if segment.author == "policy"]
        assert [s.ids for s in written] == [s.ids for s in other.segments if s.author == "policy"]
        assert {number for segment in written for number in segment.logprobs} == {0.0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--top-p", "0.8"], "--top-p 0.8: a training run must sample from all tokens"),
        (["--top-k", "20"], "--top-k 20: a training run must sample from all tokens"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1, not 0.0"),
        (["--top-k", "-1"], "--top-k must not be negative"),
    ],
)
def test_a_training_run_refuses_to_cut(arguments, says, capsys, tmp_path, untaught):  # noqa: F811
    with pytest.raises(SystemExit) as caught:
        run(GRPOConfig, GRPO, "", short(untaught, tmp_path / "run", *arguments))
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [("--top-p", "1.5"), ("--top-k", "-3")])
def test_a_collection_refuses_what_cannot_be_meant(option, capsys, tmp_path, untaught):  # noqa: F811
    with pytest.raises(SystemExit) as caught:
        collected(collect, untaught, tmp_path / "out.jsonl", *option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
