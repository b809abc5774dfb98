"""REINFORCE++: advantages over all tokens of a batch, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_parts import advantages, metrics, short, tree_of, untaught, weights_of  # noqa: F401

from learners.grpo import GRPO, GRPOConfig
from learners.reinforce_plus_plus import ReinforcePlusPlus, ReinforcePlusPlusConfig
from learners.run.command import run
from learners.run.config import UsageError
from learners.update.advantages import batch_advantages


def learner(**options) -> ReinforcePlusPlus:
    return ReinforcePlusPlus(ReinforcePlusPlusConfig(**options))


def test_a_long_trajectory_weighs_more_in_mean_and_deviation():
    # Returns 1 (6 tokens) and 0 (2 tokens): the mean over tokens is 6/8, the variance 6/8 · 2/8 = 3/16.
    found = batch_advantages(torch.tensor([1.0, 0.0]).double(), torch.tensor([6, 2]), eps=0.0)
    assert found.tolist() == pytest.approx([0.25 / math.sqrt(3 / 16), -0.75 / math.sqrt(3 / 16)])


def test_the_batch_is_normalised_and_not_the_group():
    # Tokens of the policy 2, 2 and 2, 2; returns 3, 3 and 1, 1: mean 2, deviation 1. Within its group nobody is better.
    trees = [tree_of([3.0, 3.0], [2, 2]), tree_of([1.0, 1.0], [2, 2])]
    assert advantages(learner().credit(trees)) == [pytest.approx([1.0, 1.0]), pytest.approx([-1.0, -1.0])]
    assert advantages(learner(baseline="group").credit(trees)) == [[0.0, 0.0], [0.0, 0.0]]


def test_the_groups_mean_takes_out_how_hard_a_task_is():
    # Less their groups' means the returns are 1, -1 and 2, -2; their variance over equally many tokens is (1+1+4+4)/4.
    trees = [tree_of([9.0, 7.0], [2, 2]), tree_of([4.0, 0.0], [2, 2])]
    deviation = math.sqrt(2.5)
    expected = [pytest.approx([1 / deviation, -1 / deviation]), pytest.approx([2 / deviation, -2 / deviation])]
    assert advantages(learner(baseline="group").credit(trees)) == expected
    plain = learner(baseline="group", scale_by_std=False).credit(trees)
    assert advantages(plain) == [pytest.approx([1.0, -1.0]), pytest.approx([2.0, -2.0])]


def test_of_one_group_with_equal_lengths_it_is_grpo_up_to_how_the_deviation_is_estimated():
    tree = tree_of([1.0, 0.0, 0.0, 3.0], [4, 4, 4, 4])
    (ours,), (theirs,) = (advantages(one.credit([tree])) for one in (learner(), GRPO(GRPOConfig())))
    assert ours == pytest.approx([value * math.sqrt(4 / 3) for value in theirs], rel=1e-5)


batches = st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(0, 9)), min_size=1, max_size=12)


@settings(deadline=None)
@given(batches)
def test_over_the_tokens_of_the_batch_the_mean_is_0_and_the_variance_1(batch):
    returns, counts = (torch.tensor(column) for column in zip(*batch, strict=True))
    found = batch_advantages(returns.double(), counts, eps=0.0)
    tokens = found.repeat_interleave(counts)
    counted = returns[counts > 0]
    if not len(counted) or (counted == counted[0]).all():
        assert not found.any()
    elif counted.double().std() > 1e-3:
        assert tokens.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert tokens.var(correction=0).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("returns", [[0.1] * 7, [1.1], [0.3, 0.3, 0.3]])
def test_a_batch_that_says_nothing_has_advantages_of_exactly_zero(returns):
    found = batch_advantages(torch.tensor(returns), torch.arange(1, len(returns) + 1))
    assert found.tolist() == [0.0] * len(returns)


def test_returns_without_counts_are_refused():
    with pytest.raises(ValueError, match="counts: expected one for each of 2 returns"):
        batch_advantages(torch.zeros(2), torch.tensor([1]))
    with pytest.raises(ValueError, match="expected finite numbers"):
        batch_advantages(torch.tensor([math.nan, 0.0]), torch.tensor([1, 1]))


def test_what_a_fault_ended_is_not_in_the_batch():
    trees = [tree_of([3.0, 3.0, 99.0], [2, 2, 2]), tree_of([1.0, 1.0], [2, 2])]
    trees[0].leaves[2].fault = "engine: gone"
    assert advantages(learner().credit(trees)) == [pytest.approx([1.0, 1.0]), pytest.approx([-1.0, -1.0])]


def test_the_average_is_an_option_as_in_grpo():
    trees = [tree_of([1.0, 0.0], [4, 8])]
    mean = weights_of(learner(average="sequence-mean").credit(trees))
    assert [float(weights[0]) for weights in mean] == [0.25, 0.125]


def test_one_trajectory_a_task_will_do_unless_it_is_compared_with_its_group(untaught, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match="--baseline group needs a --group-size of at least 2, not 1"):
        learner(group_size=1, baseline="group")
    options = short(untaught, tmp_path / "run", "--group-size", 1, steps=1)
    run(ReinforcePlusPlusConfig, ReinforcePlusPlus, "", options)
    (record,) = metrics(tmp_path / "run")
    assert record["groups"] == 4
    assert record["grad_norm"] > 0
