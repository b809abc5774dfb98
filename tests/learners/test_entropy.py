"""Entropies of what a sampler sees: bounds, biases at the size of a real vocabulary, and ARPO's decision under each kind."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy

from learners.arpo import ARPOConfig, change_of_entropy
from learners.rollout.rendering import Renderer
from learners.run.command import parse
from learners.run.config import UsageError, check
from learners.run.players import Policy, open_sampler
from learners.sampling.entropy import EntropyKind, entropy_bounds, full_entropy, sampled_entropy
from learners.sampling.sampler import Decoding, Noise
from learners.sampling.transformers import TransformersSampler

VOCABULARY = 151_936
RANKS = torch.arange(1, VOCABULARY + 1, dtype=torch.float64)


def of(kind: EntropyKind, probabilities: torch.Tensor, top: int, token: int = 0) -> float:
    return float(sampled_entropy(kind, probabilities.log()[None], torch.tensor([token]), top)[0])


def power_law(exponent: float) -> torch.Tensor:
    weights = RANKS**-exponent
    return weights / weights.sum()


def peaked(head: list[float]) -> torch.Tensor:
    """Some probabilities, and what is left spread evenly over the rest of the vocabulary."""
    rest = (1 - math.fsum(head)) / (VOCABULARY - len(head))
    return torch.cat([torch.tensor(head, dtype=torch.float64), torch.full((VOCABULARY - len(head),), rest).double()])


# The bounds

weights = st.lists(st.one_of(st.floats(1e-9, 1), st.just(0.0), st.just(0.25)), min_size=1, max_size=30).filter(any)


@given(weights, st.integers(1, 40))
def test_the_entropy_lies_between_the_bounds(numbers, k):
    probabilities = torch.tensor(numbers, dtype=torch.float64) / math.fsum(numbers)
    full = -math.fsum(p * math.log(p) for p in probabilities.tolist() if p > 0)
    top = probabilities.log().topk(min(k, len(numbers))).values
    least, most = map(float, entropy_bounds(top, len(numbers)))
    assert least - 1e-9 <= full <= most + 1e-9
    assert least >= -1e-9
    assert most <= math.log(len(numbers)) + 1e-9
    if k >= len(numbers):
        assert least == most == pytest.approx(full, abs=1e-12)


def test_both_bounds_are_attained():
    """0.4 and 0.2 are seen and 0.4 is left: as 0.2 + 0.2 it is as concentrated as can be, over ten tokens as spread."""
    top = torch.tensor([0.4, 0.2]).log()
    least, most = map(float, entropy_bounds(top, 12))
    assert least == pytest.approx(-0.4 * math.log(0.4) - 3 * 0.2 * math.log(0.2), rel=1e-6)
    assert most == pytest.approx(-0.4 * math.log(0.4) - 0.2 * math.log(0.2) - 10 * 0.04 * math.log(0.04), rel=1e-6)


def test_the_least_tail_ends_in_what_is_left_over():
    """0.5 and 0.2 are seen and 0.3 is left: 0.2 + 0.1."""
    least, _ = entropy_bounds(torch.tensor([0.5, 0.2]).log(), 10)
    assert float(least) == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.2, 0.2, 0.1)), rel=1e-6)


def test_bounds_of_many_distributions_are_those_of_each():
    top = torch.log_softmax(torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)), -1).topk(7).values
    least, most = entropy_bounds(top, 50)
    for index in ((0, 0), (1, 2)):
        assert (least[index], most[index]) == entropy_bounds(top[index], 50)


def test_a_sure_distribution_has_no_entropy_of_any_kind():
    probabilities = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for kind in ("full", "top-k", "top-k-sum", "surprisal"):
        assert of(kind, probabilities, 2) == 0.0


# What each kind is off by, at the size of a real vocabulary


def test_flat_all_of_the_tail_is_missed_by_the_sum_and_nothing_by_the_bounds():
    """p = 1/V: H = log V = 11.93. The sum of 20 is 20/V · log V = 0.0016; no token may exceed p_k, so the bounds meet."""
    probabilities = torch.full((VOCABULARY,), 1 / VOCABULARY, dtype=torch.float64)
    entropy = math.log(VOCABULARY)
    assert of("full", probabilities, 20) == pytest.approx(entropy)
    assert of("top-k-sum", probabilities, 20) == pytest.approx(20 / VOCABULARY * entropy)
    assert of("top-k", probabilities, 20) == pytest.approx(entropy, abs=1e-3)
    assert of("surprisal", probabilities, 20, token=77) == pytest.approx(entropy)


def test_peaked_with_a_flat_tail():
    """p = 0.5, 0.2, 0.05 and 0.25 over the rest: H is the upper bound; the lower one has five more tokens of 0.05."""
    head, tail = [0.5, 0.2, 0.05], 0.25
    probabilities = peaked(head)
    seen = -sum(p * math.log(p) for p in head)
    entropy = seen + tail * math.log((VOCABULARY - 3) / tail)
    least = seen + 5 * -0.05 * math.log(0.05)
    assert entropy - least > 2.5
    assert of("full", probabilities, 3) == pytest.approx(entropy)
    assert of("top-k", probabilities, 3) == pytest.approx((entropy + least) / 2, rel=1e-6)
    assert of("top-k-sum", probabilities, 3) == pytest.approx(seen)


@pytest.mark.parametrize(
    ("exponent", "full", "partial", "middle"), [(1.0, 8.21, 1.09, 7.42), (1.5, 3.18, 1.78, 3.39), (2.0, 1.64, 1.38, 1.71)]
)
def test_power_laws_as_the_documentation_has_them(exponent, full, partial, middle):
    """The entropy of p ∝ rank^−s is s · Σ p log rank + log Σ rank^−s; the partial sum misses most of it where s is small."""
    probabilities = power_law(exponent)
    entropy = exponent * float((probabilities * RANKS.log()).sum()) + math.log(float((RANKS**-exponent).sum()))
    assert entropy == pytest.approx(full, abs=0.005)
    assert of("full", probabilities, 20) == pytest.approx(entropy)
    assert of("top-k-sum", probabilities, 20) == pytest.approx(partial, abs=0.005)
    assert of("top-k", probabilities, 20) == pytest.approx(middle, abs=0.005)
    least, most = entropy_bounds(probabilities.log()[:20], VOCABULARY)
    assert abs(middle - entropy) < float(most - least) / 2
    assert abs(middle - entropy) < 0.4 * abs(partial - entropy) + 0.1


def test_the_sum_has_the_sampled_token_too_where_it_is_not_among_the_likeliest():
    """−Σ p log p over 0.4 and 0.3, and −0.1 log 0.1 beside if the last token was drawn."""
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    seen = -0.4 * math.log(0.4) - 0.3 * math.log(0.3)
    assert of("top-k-sum", probabilities, 2, token=1) == pytest.approx(seen)
    assert of("top-k-sum", probabilities, 2, token=3) == pytest.approx(seen - 0.1 * math.log(0.1))
    assert of("top-k-sum", probabilities, 9) == pytest.approx(float(full_entropy(probabilities.log())))


def test_surprisal_has_no_bias_and_much_noise():
    """Its expectation is H, term by term; for p ∝ 1/rank its standard deviation is half of H."""
    probabilities = power_law(1.0)
    tokens = torch.tensor([0, 1, 99, 12_345, VOCABULARY - 1])
    found = sampled_entropy("surprisal", probabilities.log().expand(len(tokens), -1), tokens, 20)
    torch.testing.assert_close(found, -probabilities.log()[tokens])
    surprisal = -probabilities.log()
    mean = float((probabilities * surprisal).sum())
    assert mean == pytest.approx(of("full", probabilities, 20))
    spread = float((probabilities * (surprisal - mean) ** 2).sum()) ** 0.5
    assert 0.3 * mean < spread < mean


# ARPO's decision


def agreements(family, pairs: int = 8, k: int = 20) -> dict[str, float]:
    """How often the sign of a change of entropy over k tokens is that of the full entropies.

    Args:
        family: From numbers in [0, 1), [k, 1], and a shift to logits, [k, V]; each pair of sequences differs by the shift.
    """
    random = torch.Generator().manual_seed(8)
    kinds: tuple[EntropyKind, ...] = ("top-k", "top-k-sum", "surprisal")
    right = dict.fromkeys(kinds, 0)
    for _ in range(pairs):
        shift = 0.3 * float(torch.randn(1, generator=random))
        found: dict[str, list[list[float]]] = {}
        for moved in (0.0, shift):
            logprobs = torch.log_softmax(family(torch.rand(k, 1, generator=random), moved), -1)
            cumulated = logprobs.exp().cumsum(-1)
            drawn = torch.rand(k, 1, generator=random) * cumulated[:, -1:]
            token = torch.searchsorted(cumulated, drawn)[:, 0].clamp(max=VOCABULARY - 1)
            for kind in ("full", *kinds):
                found.setdefault(kind, []).append(sampled_entropy(kind, logprobs, token, 20).tolist())
        changes = {kind: change_of_entropy(now, before, 1.0) for kind, (before, now) in found.items()}
        for kind in kinds:
            right[kind] += (changes[kind] > 0) == (changes["full"] > 0)
    return {kind: count / pairs for kind, count in right.items()}


def power_laws(numbers: torch.Tensor, shift: float) -> torch.Tensor:
    return -(0.9 + 1.4 * numbers - shift) * RANKS.float().log()


def peaks(numbers: torch.Tensor, shift: float) -> torch.Tensor:
    head = torch.tensor([0, -1, -2, -2.5, -3, -3.5, -4, -4.5]) + 10 + 6 * numbers - 3 * shift
    return torch.cat([head, torch.zeros(len(numbers), VOCABULARY - 8)], dim=1)


@pytest.mark.parametrize("family", [power_laws, peaks])
def test_the_middle_of_the_bounds_decides_as_the_full_entropies_do_and_the_partial_sum_does_not(family):
    found = agreements(family)
    assert found["top-k"] >= 0.85
    assert found["top-k-sum"] <= 0.5
    assert found["surprisal"] >= 0.5


# In the sampler


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["full", "top-k", "top-k-sum", "surprisal"])
def test_the_sampler_tells_what_is_asked_of_the_distribution_after_the_temperature(kind, temperature):
    """And the same tokens, whatever is asked."""
    model = random_policy()
    sampler = TransformersSampler(model, TOKENIZER, seed=3, eos=[TOKENIZER.eos_token_id], entropy=kind, entropy_top=5)

    async def written():
        stream = sampler.start((0,))
        stream.append([5, 9, 30])
        stream.decode(Decoding(temperature=temperature, max_tokens=24))
        return await stream.rest()

    found = asyncio.run(written())
    ids = [5, 9, 30, *found.ids]
    rows = full_logprobs(model, ids, temperature or 1.0)[2:-1]
    expected = sampled_entropy(kind, rows, torch.tensor(found.ids), 5)
    torch.testing.assert_close(torch.tensor(found.entropies), expected.float(), atol=1e-4, rtol=1e-4)
    assert sampler.entropy == kind
    noise = Noise(3, (0,))
    if temperature:  # drawn by the same noise
        cumulated = rows.exp().double().cumsum(-1)
        uniform = torch.tensor([noise.at(3 + place) for place in range(len(found.ids))], dtype=torch.float64)
        assert found.ids == tuple(torch.searchsorted(cumulated, uniform[:, None], right=True)[:, 0].tolist())


def test_a_run_samples_with_the_kind_of_entropy_that_it_was_told(tmp_path):
    model = random_policy()
    config = parse(ARPOConfig, ["--entropy", "top-k", "--entropy-top", "7"], "")
    config.save(tmp_path / "config.yaml")
    for told in (config, parse(ARPOConfig, ["--resume", str(tmp_path)], "")):
        sampler = open_sampler(told, Policy(model, TOKENIZER, Renderer(TOKENIZER)))
        assert (sampler.entropy, sampler._entropy_top) == ("top-k", 7)
    with pytest.raises(UsageError, match="--entropy-top must be at least 1, not 0"):
        check(parse(ARPOConfig, ["--entropy-top", "0"], ""))
