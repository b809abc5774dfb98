"""How far trainer and sampler are apart: what is measured, the weights that correct for it, and the word of warning."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_parts import short, untaught  # noqa: F401
from policies import random_policy

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.tree import RolloutTree
from learners.run.command import run
from learners.run.config import RunConfig, UsageError
from learners.run.mismatch import MismatchWatch, importance_cap
from learners.update.batch import Row, Terms
from learners.update.losses import LOG_RATIO_LIMIT, TokenLoss, clip_surrogate, truncated_importance
from learners.update.step import UpdateSettings, frozen_logprobs, update_policy


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=1, max_size=20), st.floats(0.1, 10))
def test_the_weight_is_the_ratio_up_to_the_cap(tokens, cap):
    old, sampled = (torch.tensor(values, dtype=torch.float64) for values in zip(*tokens, strict=True))
    expected = [min(math.exp(max(-LOG_RATIO_LIMIT, min(LOG_RATIO_LIMIT, a - b))), cap) for a, b in tokens]
    found = truncated_importance(old.requires_grad_(), sampled, cap)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert not found.requires_grad


def test_without_a_cap_that_bites_sampled_means_become_the_old_policys():
    """Over all tokens at once: Σ q(x) · min(p(x)/q(x), C) · f(x) = Σ p(x) · f(x) where C is large enough, less where not."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    f = torch.tensor([1.0, -2.0, 4.0]).double()
    assert float((q * truncated_importance(p.log(), q.log(), 3.0) * f).sum()) == pytest.approx(float((p * f).sum()))
    assert truncated_importance(p.log(), q.log(), 2.0).tolist() == pytest.approx([2.0, 1.0, 0.4])  # 0.5 / 0.2 is cut


def test_weights_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="cap: expected a positive number, found 0"):
        truncated_importance(torch.zeros(2), torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match="expected tensors of one shape"):
        truncated_importance(torch.zeros(2), torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match="expected 0 where ratios are to the sampler"):
        UpdateSettings(ratio_to="sampler", importance_cap=2.0)


GAPS = (0.0, 0.05, -0.05, 0.2, -0.2, 1.5)  # log of the trainer's probability over the sampler's, token by token
OUTSIDE = 3 / 6  # exp(±0.05) lies within 0.9 to 1.1


def groups_of(gaps, *, groups: int = 2, rows: int = 2):
    """Groups of rows whose sampler had, of the policy's tokens, just so much less log-probability than `random_policy`."""
    plain = []
    for group in range(groups):
        tree = RolloutTree(task_id="t", question="", seed=0, version=0)
        root = tree.add("prompt", [1, 2, 3 + group], None, turn=0)
        for index in range(rows):
            ids = [(7 * group + 5 * index + place) % 50 for place in range(len(gaps))]
            zeros = [0.0] * len(ids)
            plain.append((tree, tree.add("policy", ids, root, turn=0, logprobs=zeros, entropies=zeros)))
    made = []
    for number, (tree, segment) in enumerate(plain):
        leaf = type("Leaf", (), {"segment": segment})
        tokens = tree.tokens(leaf)
        made.append(Row(tokens, Terms.constant(tokens, advantage=1.0 if number % 2 else -0.5, weight=0.3 + 0.2 * number)))
    found = frozen_logprobs(random_policy(), made, UpdateSettings())
    for number, (row, own) in enumerate(zip(made, found, strict=True)):
        told = row.tokens.logprobs.clone()
        told[row.tokens.policy] = own - torch.tensor(gaps)
        made[number] = replace(row, tokens=replace(row.tokens, logprobs=told))
    return [made[group * rows : (group + 1) * rows] for group in range(groups)]


def learn(groups, model=None, surrogate=clip_surrogate, reference=None, orders=None, rate=0.0, **options):
    model = model or random_policy()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    orders = orders or [list(range(len(groups)))]
    bound = lambda log_ratio, advantage, scale: surrogate(log_ratio, advantage, ratio_scale=scale)  # noqa: E731
    settings_ = UpdateSettings(max_grad_norm=float("inf"), epochs=len(orders), **options)
    return update_policy(model, optimizer, groups, bound, settings_, orders=orders, reference=reference)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("minibatch_groups", [0, 1])
def test_the_mismatch_is_told_in_full(layout, minibatch_groups):
    """Of the policy before the batch, however much it learns meanwhile."""
    found = learn(groups_of(GAPS), minibatch_groups=minibatch_groups, layout=layout, rate=0.05)
    assert found["mismatch_mean"] == pytest.approx(sum(map(abs, GAPS)) / 6, abs=1e-5)
    assert found["mismatch_max"] == pytest.approx(1.5, abs=1e-5)
    assert found["mismatch_outside"] == pytest.approx(OUTSIDE)
    assert not found.keys() & {"importance_mean", "importance_capped"}


def unclipped(log_ratio, advantage, ratio_scale):
    never = torch.zeros_like(log_ratio, dtype=torch.bool)
    return TokenLoss(-advantage * log_ratio, never, never)


def test_where_ratios_are_to_the_sampler_it_is_that_of_the_first_minibatch():
    one, other = groups_of(GAPS)[0], groups_of([0.0] * 6)[1]
    passes = []
    model = random_policy()
    model.register_forward_hook(lambda *_: passes.append(1))
    options = {"surrogate": unclipped, "ratio_to": "sampler", "minibatch_groups": 1, "micro_tokens": 10_000}
    found = learn([one, other], model, orders=[[0, 1]], rate=0.01, **options)
    assert found["mismatch_outside"] == pytest.approx(OUTSIDE)
    assert len(passes) == 2  # one a mini-batch, and none for this
    again = learn([one, other], orders=[[1, 0]], rate=0.01, **options)
    assert again["mismatch_outside"] == 0.0
    assert again["mismatch_max"] < 1e-5


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_weighted_losses_and_gradients_are_those_of_the_terms_times_the_weights(layout):
    """The oracle has each weight in the advantage, where this surrogate multiplies by it; the divisor stays."""
    groups, cap = groups_of(GAPS), 1.15
    weights = torch.tensor([min(math.exp(gap), cap) for gap in GAPS])

    def by_hand(row):
        advantage = row.terms.advantage.clone()
        advantage[row.tokens.policy] *= weights
        return replace(row, terms=replace(row.terms, advantage=advantage))

    model, expected = random_policy(), random_policy()
    found = learn(groups, model, surrogate=unclipped_ratio, importance_cap=cap, layout=layout)
    told = learn([[by_hand(row) for row in group] for group in groups], expected, surrogate=unclipped_ratio, layout=layout)
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-5)
    assert found["loss"] != pytest.approx(learn(groups, surrogate=unclipped_ratio)["loss"], rel=1e-2)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert found["importance_mean"] == pytest.approx(float(weights.mean()), rel=1e-5)
    assert found["importance_capped"] == pytest.approx(2 / 6)  # exp(0.2) and exp(1.5)
    assert found["mismatch_outside"] == pytest.approx(OUTSIDE)
    assert found["mismatch_max"] == pytest.approx(1.5, abs=1e-5)  # as it is


def unclipped_ratio(log_ratio, advantage, ratio_scale):
    never = torch.zeros_like(log_ratio, dtype=torch.bool)
    return TokenLoss(-advantage * log_ratio.exp(), never, never)


def test_the_kl_penalty_is_not_weighted():
    nothing = [
        [replace(row, terms=replace(row.terms, advantage=0 * row.terms.advantage)) for row in group]
        for group in groups_of(GAPS)
    ]
    reference = random_policy(seed=1)
    plain, weighted = (learn(nothing, reference=reference, kl_coefficient=0.5, importance_cap=cap) for cap in (0.0, 1.5))
    assert plain["loss"] == weighted["loss"] > 0
    assert plain["kl_reference"] == weighted["kl_reference"]


def test_a_cap_that_never_bites_changes_nothing_where_the_sampler_is_right():
    groups = groups_of([0.0] * 6)
    plain, weighted = learn(groups), learn(groups, importance_cap=2.0)
    assert weighted.pop("importance_mean") == pytest.approx(1.0, abs=1e-6)
    assert weighted.pop("importance_capped") == 0.0
    assert weighted == pytest.approx(plain, rel=1e-4, abs=1e-6)


# What a run makes of it


@pytest.mark.parametrize(
    ("options", "ratio_to", "cap"),
    [
        ({}, "trainer", 0.0),
        ({"importance_cap": 3.0}, "trainer", 3.0),
        ({"async_steps": 1}, "trainer", 2.0),
        ({"async_steps": 1, "importance_cap": 0.0}, "trainer", 0.0),
        ({"async_steps": 1, "importance_cap": 5.0}, "trainer", 5.0),
        ({"async_steps": 1}, "sampler", 0.0),
        ({"importance_cap": 0.0}, "sampler", 0.0),
    ],
)
def test_which_cap_a_run_has(options, ratio_to, cap):
    assert importance_cap(RunConfig(**options), ratio_to) == cap


def test_ratios_to_the_sampler_are_not_corrected_twice():
    with pytest.raises(UsageError, match="--importance-cap 2: run takes its ratios to the sampler already"):
        importance_cap(RunConfig(importance_cap=2.0), "sampler")


def test_a_negative_cap_is_refused(capsys, untaught, tmp_path):  # noqa: F811
    with pytest.raises(SystemExit) as caught:
        run(GRPOConfig, GRPO, "", short(untaught, tmp_path / "run", "--importance-cap", -1))
    assert caught.value.code == 2
    assert "--importance-cap must be above 0, or 0" in capsys.readouterr().err


def test_the_warning_comes_once_and_only_where_nothing_corrects(caplog):
    watch, corrected = MismatchWatch(corrected=False), MismatchWatch(corrected=True)
    with caplog.at_level(logging.WARNING):
        for share in (0.0, 0.049, 0.31, 0.5):
            watch.look(3, {"mismatch_outside": share})
            corrected.look(3, {"mismatch_outside": share})
        watch.look(4, {})
    (record,) = caplog.records
    assert record.getMessage().startswith("step 3: for 31% of the tokens the trainer's probability is not within 0.9 to 1.1")
    assert "\n" not in record.getMessage()
