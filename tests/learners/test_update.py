"""The update: aligned log-probabilities, one loss for any cut into micro-batches, gradient on the policy's tokens alone."""

from __future__ import annotations

import copy

import pytest
import torch
from policies import TOKENIZER, full_logprobs, random_policy

from learners.rollout.tree import Leaf, RolloutTree
from learners.update.batch import Row, Terms, flat, micro_batches, pad, rows_of, terms_of
from learners.update.losses import TokenLoss, clip_surrogate
from learners.update.step import UpdateSettings, frozen_logprobs, token_logprobs, update_policy

VOCABULARY = len(TOKENIZER)


def group(seed: int, count: int = 3) -> RolloutTree:
    """A tree of a prompt and ``count`` trajectories: policy, tool, policy."""
    draw = torch.Generator().manual_seed(seed)

    def ids(least: int) -> list[int]:
        length = least + int(torch.randint(0, 5, (1,), generator=draw))
        return torch.randint(0, VOCABULARY, (length,), generator=draw).tolist()

    tree = RolloutTree(task_id=str(seed), question="", seed=seed, version=0)
    root = tree.add("prompt", ids(4), None, turn=0)
    for index in range(count):
        parent = root
        for author in ("policy", "tool", "policy"):
            tokens = ids(2)
            numbers = [0.0] * len(tokens) if author == "policy" else []
            parent = tree.add(author, tokens, parent, turn=0, logprobs=numbers, entropies=numbers)
        tree.leaves.append(Leaf(path=(index,), segment=parent))
    return tree


def rows(seeds, advantage=lambda seed, index: (-1.0) ** index * (1 + seed)):
    trees = [group(seed) for seed in seeds]
    credit = [
        [
            Terms.constant(tree.tokens(leaf), advantage=advantage(seed, index), weight=1.0)
            for index, leaf in enumerate(tree.leaves)
        ]
        for seed, tree in zip(seeds, trees, strict=True)
    ]
    return rows_of(trees, credit)


def learn(model, groups, settings, orders=None, learning_rate=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    orders = orders or [list(range(len(groups)))] * settings.epochs
    return update_policy(model, optimizer, groups, clip_surrogate_of, settings, orders=orders)


def clip_surrogate_of(log_ratio, advantage, ratio_scale):
    return clip_surrogate(log_ratio, advantage, clip_low=0.2, clip_high=0.28, ratio_scale=ratio_scale)


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_logprobs_stand_with_the_token_that_they_are_of():
    model = random_policy()
    batch = pad([row for rows_ in rows([0, 1]) for row in rows_], torch.device("cpu"))
    logprobs, entropies = token_logprobs(model, batch.ids, batch.real, 1.7)
    for row in range(len(batch.ids)):
        ids = batch.ids[row, batch.real[row]].tolist()
        expected = full_logprobs(model, ids, temperature=1.7)
        chosen = expected[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        torch.testing.assert_close(logprobs[row, 1 : len(ids)], chosen, atol=1e-4, rtol=1e-4)
        entropy = -(expected.exp() * expected).sum(-1)[:-1]
        torch.testing.assert_close(entropies[row, 1 : len(ids)], entropy, atol=1e-4, rtol=1e-4)
    assert not logprobs[:, 0].any()


def test_micro_batches_change_nothing_and_cover_every_row_once():
    parts = [row for rows_ in rows([0, 1, 2]) for row in rows_]
    cuts = list(micro_batches(parts, 60))
    assert sorted(index for cut in cuts for index in cut) == list(range(len(parts)))
    assert all(len(cut) == 1 or len(cut) * max(len(parts[i].tokens.ids) for i in cut) <= 60 for cut in cuts)
    results = []
    for tokens in (1, 60, 10_000):
        model = random_policy()
        metrics = learn(model, rows([0, 1, 2]), UpdateSettings(micro_tokens=tokens))
        results.append((weights_of(model), metrics["loss"], metrics["grad_norm"]))
    for weights, loss, norm in results[1:]:
        torch.testing.assert_close(weights, results[0][0], atol=1e-6, rtol=1e-5)
        assert (loss, norm) == pytest.approx(results[0][1:], rel=1e-4)


def test_the_gradient_is_that_of_the_policy_gradient_at_ratio_one():
    """At ratio 1 the surrogate's gradient is −Σ w A ∇log π / Σ w, written out here token by token."""
    model, groups = random_policy(), rows([3, 4])
    twin = copy.deepcopy(model)
    learn(model, groups, UpdateSettings(max_grad_norm=1e9))
    loss, total = torch.zeros(()), 0
    for row in [row for rows_ in groups for row in rows_]:
        ids = row.tokens.ids
        logprobs = torch.log_softmax(twin(input_ids=ids[None]).logits[0], -1)
        for place in row.tokens.policy.nonzero()[:, 0].tolist():
            loss = loss - row.terms.advantage[place] * logprobs[place - 1, ids[place]]
            total += 1
    (loss / total).backward()
    expected = torch.cat([(parameter - 0.1 * parameter.grad).detach().flatten() for parameter in twin.parameters()])
    torch.testing.assert_close(weights_of(model), expected, atol=1e-5, rtol=1e-4)


def test_tokens_of_others_have_no_gradient():
    """Whatever terms stand at the prompt's and the tools' tokens, nothing changes."""
    changed = [
        [
            Row(
                row.tokens,
                Terms(
                    torch.where(row.tokens.policy, row.terms.advantage, 1e6),
                    torch.where(row.tokens.policy, row.terms.weight, 1e6),
                    torch.where(row.tokens.policy, row.terms.ratio_scale, 1e6),
                ),
            )
            for row in rows_
        ]
        for rows_ in rows([0, 1])
    ]
    plain, other = random_policy(), random_policy()
    learn(plain, rows([0, 1]), UpdateSettings())
    learn(other, changed, UpdateSettings())
    assert torch.equal(weights_of(plain), weights_of(other))


def test_no_advantage_no_change():
    model = random_policy()
    before = weights_of(model)
    metrics = learn(model, rows([0, 1], advantage=lambda *_: 0.0), UpdateSettings())
    assert torch.equal(weights_of(model), before)
    assert metrics["grad_norm"] == 0.0


def test_several_steps_a_batch_keep_the_old_policy_and_clip():
    model = random_policy()
    settings = UpdateSettings(epochs=4, minibatch_groups=1)
    metrics = learn(model, rows([0, 1, 2]), settings, orders=[[0, 1, 2], [2, 1, 0]] * 2, learning_rate=2.0)
    assert metrics["kl_old"] > 0
    assert metrics["clip_low"] + metrics["clip_high"] > 0
    single = learn(random_policy(), rows([0, 1, 2]), UpdateSettings(), learning_rate=2.0)
    assert single["kl_old"] == single["clip_low"] == single["clip_high"] == 0


def test_ratios_may_be_taken_to_what_the_trajectories_came_with():
    """The log-probabilities of these rows are 0, so that −A · log ratio is −A · log π, step after step."""
    groups, twin = rows([0, 1, 2]), random_policy()
    parts = [row for rows_ in groups for row in rows_]
    found = frozen_logprobs(twin, parts, UpdateSettings())
    gains = [row.terms.advantage[row.tokens.policy] for row in parts]
    expected = -(torch.cat(gains) * torch.cat(found)).mean()

    def likelihood(log_ratio, advantage, ratio_scale):
        never = torch.zeros_like(log_ratio, dtype=torch.bool)
        return TokenLoss(-advantage * log_ratio, never, never)

    metrics = []
    for epochs in (1, 2):
        optimizer = torch.optim.SGD((model := random_policy()).parameters(), lr=0.0)
        settings = UpdateSettings(ratio_to="sampler", epochs=epochs)
        metrics.append(update_policy(model, optimizer, groups, likelihood, settings, orders=[[0, 1, 2]] * epochs))
        assert metrics[-1]["loss"] == pytest.approx(float(expected), rel=1e-5)
        assert not metrics[-1].keys() & {"kl_old", "mismatch_mean", "mismatch_max"}  # the trainer's own are not asked


def test_terms_of_one_advantage_a_trajectory_stand_at_its_leaf():
    tree = group(0)
    tree.leaves[1].fault = "engine: gone"
    first, third = terms_of(tree, torch.tensor([2.0, -3.0]), "sequence-mean")
    for terms, leaf, advantage in ((first, tree.leaves[0], 2.0), (third, tree.leaves[2], -3.0)):
        tokens = tree.tokens(leaf)
        assert terms.advantage.tolist() == [advantage] * len(tokens.ids)
        assert terms.weight.tolist() == pytest.approx([1 / int(tokens.policy.sum())] * len(tokens.ids))
        assert terms.ratio_scale.tolist() == [1.0] * len(tokens.ids)


def test_a_trajectory_in_which_the_policy_wrote_nothing_has_terms_that_weigh_nothing():
    tree = RolloutTree(task_id="t", question="", seed=0, version=0)
    tree.leaves.append(Leaf(path=(0,), segment=tree.add("prompt", [1, 2, 3], None, turn=0)))
    for average in ("token-mean", "sequence-mean"):
        (terms,) = terms_of(tree, torch.ones(1), average)
        assert not flat(rows_of([tree], [[terms]])[0], torch.device("cpu")).weight.any()


def test_the_kl_penalty_pulls_towards_the_reference():
    reference = random_policy(seed=1)
    distances = []
    for coefficient in (0.0, 5.0):
        model = random_policy()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        settings = UpdateSettings(kl_coefficient=coefficient)
        for _ in range(20):
            metrics = update_policy(
                model, optimizer, rows([0, 1]), clip_surrogate_of, settings, orders=[[0, 1]], reference=reference
            )
        distances.append(metrics["kl_reference"])
    assert distances[1] < 0.5 * distances[0]
