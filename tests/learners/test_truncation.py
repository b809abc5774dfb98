"""Top-p and top-k: cut as transformers' own processors cut, in the sampler too; log-probabilities are of what is left."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_parts import short, untaught  # noqa: F401
from policies import TOKENIZER, full_logprobs, random_policy
from transformers import TopKLogitsWarper, TopPLogitsWarper

from learners import collect, evaluate
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler
from learners.sampling.truncation import likeliest
from tracebank import read_trajectories

CUTS = ((1.0, 0), (0.8, 0), (1.0, 3), (0.5, 40), (1.0, 1), (1e-6, 0))  # top-p and top-k


def warped(logprobs: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """What transformers makes of one distribution, renormalised, [V]."""
    row = logprobs[None]
    if top_k:
        row = TopKLogitsWarper(top_k)(None, row)
    if top_p < 1:
        row = TopPLogitsWarper(top_p)(None, row)
    return torch.log_softmax(row[0], dim=-1)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(0, 30)), min_size=1, max_size=5),
    st.integers(1, 25),
    st.integers(0, 2**31),
)
def test_rows_are_cut_as_transformers_cuts_them(cuts, size, seed):
    logprobs = torch.log_softmax(3 * torch.randn(len(cuts), size, generator=torch.Generator().manual_seed(seed)), dim=-1)
    top_p, top_k = (torch.tensor(values) for values in zip(*cuts, strict=True))
    expected = torch.stack([warped(row, p, min(k, size)) for row, (p, k) in zip(logprobs, cuts, strict=True)])
    torch.testing.assert_close(likeliest(logprobs, top_p, top_k), expected, atol=1e-5, rtol=1e-5)


def test_tokens_that_tie_with_the_last_of_the_k_stay():
    row = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    kept = likeliest(row, torch.ones(1), torch.tensor([2]))
    torch.testing.assert_close(kept, row)


def test_the_sampler_tells_the_log_probabilities_and_entropies_of_what_it_samples_from():
    """Streams with unlike cuts in one batch, at unlike temperatures; at temperature 0 nothing is cut."""
    model = random_policy()
    temperatures = (1.0, 1.7, 0.0)

    async def episode(source, index):
        (top_p, top_k), temperature = CUTS[index % len(CUTS)], temperatures[index % 3]
        stream = source.start((index,))
        stream.append(TOKENIZER.encode(f"What is {index}?", add_special_tokens=False))
        begin = len(stream.ids)
        stream.decode(Decoding(temperature=temperature, max_tokens=6, top_p=top_p, top_k=top_k))
        return begin, temperature, (top_p, top_k), list(stream.ids), await stream.rest()

    async def everyone():
        source = TransformersSampler(model, TOKENIZER, seed=0, eos=())
        return await asyncio.gather(*(episode(source, index) for index in range(24)))

    for begin, temperature, cut, prompt, action in asyncio.run(everyone()):
        ids = [*prompt, *action.ids]
        for place, (token, logprob, entropy) in enumerate(
            zip(action.ids, action.logprobs, action.entropies, strict=True), start=begin
        ):
            whole = full_logprobs(model, ids, temperature or 1.0)[place - 1]
            expected = warped(whole, *cut) if temperature else whole
            assert logprob == pytest.approx(float(expected[token]), abs=3e-5)
            probabilities = expected.exp()
            assert entropy == pytest.approx(float(-torch.xlogy(probabilities, probabilities).sum()), abs=1e-4)


def test_samples_follow_what_is_left():
    model = random_policy()
    prompt = TOKENIZER.encode("abc", add_special_tokens=False)
    expected = warped(full_logprobs(model, prompt, temperature=1.7)[-1], 0.9, 12).exp().numpy()
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
