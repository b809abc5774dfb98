"""RAPO's equations, worked by hand on trees drawn by hand, and its gradient; how rollouts retrieve is in test_retrieval."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy

from learners.grpo import GRPO, GRPOConfig
from learners.rapo import RAPO, RAPOConfig, first_entropy, retrieval_value, retrieved_share, trajectory_value
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.config import UsageError
from learners.update.advantages import group_advantages
from learners.update.batch import Row, Terms, rows_of
from learners.update.step import UpdateSettings, measured, update_policy

TANH_1, TANH_2 = 0.7615941559557649, 0.9640275800758169
OTHERS = 99.0  # entropy at tokens that the policy did not write: nobody may read it


def tree_of(*paths, rewards=None, sampled=False):
    """A tree of trajectories, each a list of segments (author, entropies of its tokens); all begin with one prompt.

    The entropies are the trainer's, or where ``sampled`` the sampler's as well.
    """
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, len(TOKENIZER), (count,), generator=draw).tolist()

    tree = RolloutTree(task_id="t", question="q", seed=0, version=0)
    root = tree.add("prompt", ids(5), None, turn=0)
    for index, path in enumerate(paths):
        parent, found = root, [OTHERS] * 5
        for author, entropies in path:
            numbers = [-1.0] * len(entropies) if author == "policy" else []
            told = entropies if author == "policy" and sampled else numbers
            parent = tree.add(author, ids(len(entropies)), parent, turn=0, logprobs=numbers, entropies=told)
            found += entropies
        reward = rewards[index] if rewards else float(index % 2)
        tree.leaves.append(Leaf(path=(index,), segment=parent, reward=reward))
        tree.measured[(index,)] = torch.tensor(found)
    return tree


def rapo(**options) -> RAPO:
    """RAPO for drawn trees, in which nobody knows how many tokens of a block are its tags."""
    return RAPO(RAPOConfig(fret_length="block", **options))


def wrote(*entropies):
    return "policy", list(entropies)


def read(count, author="tool"):
    return author, [OTHERS] * count


def retrieved(count=3):
    return read(count, "retrieved")


# Equations 5 to 7: what a retrieval is worth


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        (2.0, 1.0, 2 * TANH_1),  # H_Δ = −(1 − 2) / 2 = 1/2: surer than before, so it is worth something
        (1.0, 2.0, -TANH_2),  # H_Δ = −(2 − 1) / 1 = −1
        (0.5, 0.25, 0.5 * TANH_1),  # the same relative gain at a moment of less doubt is worth less
        (3.0, 0.0, 3 * TANH_2),  # H_Δ = 1, the most there is
        (0.7, 0.7, 0.0),  # nothing has changed
        (0.0, 0.0, 0.0),
        (0.0, 3.0, 0.0),  # it was sure: H_before = 0 leaves nothing
    ],
)
def test_a_retrieval_is_worth_the_doubt_that_it_took_away(before, after, value):
    assert retrieval_value(before, after) == pytest.approx(value, abs=1e-12)


entropies = st.floats(0, 12, allow_subnormal=False)


@given(entropies, entropies)
def test_the_value_is_bounded_by_the_doubt_before(before, after):
    value = retrieval_value(before, after)
    assert -before <= value <= TANH_2 * before + 1e-12  # H_Δ is at most 1
    assert value * (before - after) >= 0


# A trajectory's value


def value(tree, leaf) -> float:
    return trajectory_value(tree, leaf, tree.measured[leaf.path], lambda own: float(own.mean()))


def test_a_trajectory_is_worth_the_mean_of_its_retrievals():
    path = [wrote(1, 3), read(2), retrieved(), wrote(0.5, 1.5), read(1), retrieved(2), wrote(2)]
    tree = tree_of(path)
    # Means over the steps' tokens: 2, 1 and 2. The first: tanh(2 · 1/2) · 2; the second: tanh(2 · −1) · 1.
    assert value(tree, tree.leaves[0]) == pytest.approx((2 * TANH_1 - TANH_2) / 2)


@pytest.mark.parametrize(
    ("path", "worth"),
    [
        ([wrote(1, 3), read(2), wrote(1)], 0.0),  # none
        ([wrote(2), read(2), retrieved()], 0.0),  # the last segment: nothing was written after it
        ([wrote(2), read(2), retrieved(), wrote(1), read(1), retrieved()], 2 * TANH_1),  # the second does not count
        ([wrote(2), read(2), retrieved(), read(1)], 0.0),
        ([retrieved(), wrote(1)], 0.0),  # nothing was written before it
        ([wrote(2), retrieved(), retrieved(), wrote(1)], 0.0),  # neither stands between two steps of the policy
        ([wrote(2), read(2), retrieved(), wrote()], 0.0),  # a step without tokens has no entropy
    ],
)
def test_a_retrieval_that_is_not_between_two_steps_is_left_out(path, worth):
    tree = tree_of(path)
    found = value(tree, tree.leaves[0])
    assert found == pytest.approx(worth)
    assert math.isfinite(found)


@pytest.mark.parametrize(
    ("entropies", "tokens", "vocabulary", "expected"),
    [
        ([2.0, 1.0, 3.0], 20, math.e**2, 3.0),  # (2 + 1 + 3) / 2: no mean
        ([2.0, 1.0, 3.0], 2, math.e**2, 1.5),  # the third is beyond the first two
        ([math.log(7)] * 40, 20, 7, 20.0),  # as unsure as can be, twenty times
        ([0.0] * 5, 20, 151_936, 0.0),
    ],
)
def test_the_released_entropy_of_a_step_is_a_sum_over_its_first_tokens(entropies, tokens, vocabulary, expected):
    assert first_entropy(torch.tensor(entropies), tokens, vocabulary) == pytest.approx(expected)


def test_the_trainers_entropies_are_those_of_the_full_distribution():
    model = random_policy()
    tree = tree_of([wrote(1, 1, 1), read(2), retrieved(), wrote(1, 1)])
    tokens = tree.tokens(tree.leaves[0])
    row = Row(tokens, Terms.constant(tokens, advantage=0.0, weight=0.0))
    ((_, found),) = measured(model, [row], UpdateSettings(temperature=0.8))
    expected = full_logprobs(model, tokens.ids.tolist(), temperature=0.8)
    torch.testing.assert_close(found[1:], -(expected.exp() * expected).sum(-1)[:-1], atol=1e-4, rtol=1e-4)


# Equations 9 and 10: advantages


def hybrid(z_steps=(2.0, 1.0)):
    before, after = z_steps
    return [wrote(before), read(1), retrieved(), wrote(after)]


def pure():
    return [wrote(1.0), read(1), wrote(1.0)]


def advantages(learner, tree):
    """The advantage of each trajectory, which all of its tokens share."""
    (group,) = learner.credit([tree])
    assert all((terms.advantage == terms.advantage[0]).all() for terms in group)
    return [float(terms.advantage[0]) for terms in group]


def test_the_outcome_advantage_is_scaled_by_the_retrieval_advantage():
    # R = 1, 1, 0, 0: mean 1/2, deviation sqrt(4 · 1/4 / 3) = 0.57735, so A_acc = ±0.8660254.
    # Z = z, 0, 0, 0 with z = 2 tanh 1: mean z/4, deviation sqrt((9/16 + 3/16) / 3) z = z/2, so A_ret = 1.5, −.5, −.5, −.5.
    # 1 + 0.2 A_ret = 1.3, 0.9, 0.9, 0.9.
    tree = tree_of(hybrid(), pure(), pure(), pure(), rewards=[1.0, 1.0, 0.0, 0.0])
    found = advantages(rapo(group_size=4, hybrid_rollouts=2), tree)
    outcome = math.sqrt(3) / 2
    assert found == pytest.approx([1.3 * outcome, 0.9 * outcome, -0.9 * outcome, -0.9 * outcome], rel=1e-5)


def test_a_good_retrieval_makes_a_bad_outcome_worse():
    """Equation 10 multiplies: for A_acc below 0 the trajectory whose retrieval helped is pushed down the most."""
    tree = tree_of(hybrid(), pure(), pure(), pure(), rewards=[0.0, 0.0, 1.0, 1.0])
    found = advantages(rapo(group_size=4, hybrid_rollouts=2), tree)
    assert found[0] == min(found)


def test_the_weight_of_the_retrieval_advantage_is_an_option():
    tree = tree_of(hybrid(), pure(), pure(), pure(), rewards=[1.0, 1.0, 0.0, 0.0])
    found = advantages(rapo(group_size=4, hybrid_rollouts=2, retrieval_weight=0.5), tree)
    assert found[0] == pytest.approx(1.75 * math.sqrt(3) / 2, rel=1e-5)


@pytest.mark.parametrize("paths", [[pure()] * 4, [hybrid()] * 4])
def test_equal_values_leave_the_outcome_advantage_exactly(paths):
    tree = tree_of(*paths)
    ours = rapo(group_size=4, hybrid_rollouts=2)
    assert advantages(ours, tree) == advantages(GRPO(GRPOConfig(group_size=4)), tree)


@pytest.mark.parametrize(("steps", "factor"), [((2.0, 1.0), 1.75), ((1.0, 2.0), 0.25)])
def test_in_a_group_of_sixteen_the_factor_goes_from_a_quarter_to_seven_quarters(steps, factor):
    # One value apart from fifteen equal ones is the extreme: A_ret = ±(15/16) / (1/4) = ±3.75, 1 ± 0.2 · 3.75.
    tree = tree_of(hybrid(steps), *[pure()] * 15, rewards=[1.0] + [0.0] * 15)
    ours = advantages(rapo(group_size=16), tree)
    plain = advantages(GRPO(GRPOConfig(group_size=16)), tree)
    assert ours[0] / plain[0] == pytest.approx(factor, rel=1e-4)


@given(st.lists(st.floats(-12, 12, width=32), min_size=16, max_size=16))
def test_the_factor_of_sixteen_never_leaves_its_bounds(values):
    factor = 1 + 0.2 * group_advantages(torch.tensor(values))
    assert float(factor.min()) >= 0.25 - 1e-4
    assert float(factor.max()) <= 1.75 + 1e-4


def test_a_floor_keeps_noise_from_becoming_advantage():
    # Z = z, 0, 0, 0 and the floor 3 z: A_ret = (3/4) z / 3 z = 1/4 and −1/12; 1 + 0.2 A_ret = 1.05 and 0.98333.
    z = 2 * TANH_1
    tree = tree_of(hybrid(), pure(), pure(), pure(), rewards=[1.0, 1.0, 0.0, 0.0])
    found = advantages(rapo(group_size=4, hybrid_rollouts=2, retrieval_std_floor=3 * z), tree)
    assert found[0] == pytest.approx(1.05 * math.sqrt(3) / 2, rel=1e-5)
    assert found[1] == pytest.approx((1 - 0.2 / 12) * math.sqrt(3) / 2, rel=1e-5)


def test_a_trajectory_that_a_fault_ended_is_in_no_mean():
    tree = tree_of(hybrid(), pure(), pure(), pure(), hybrid(), rewards=[1.0, 1.0, 0.0, 0.0, 7.0])
    tree.leaves[-1].fault = "engine: gone"
    del tree.measured[(4,)]
    found = advantages(rapo(group_size=5, hybrid_rollouts=2), tree)
    assert len(found) == 4
    assert found[0] == pytest.approx(1.3 * math.sqrt(3) / 2, rel=1e-5)


def test_the_released_entropies_are_the_samplers_own_and_need_no_forward_pass():
    """The sum over a step's first two tokens, divided by log V, in place of the mean over all."""
    learner = rapo(group_size=4, hybrid_rollouts=2, step_entropy="first", step_entropy_tokens=2)
    assert not learner.measure
    learner._vocabulary = 7  # what it learns when it explores
    # Before: (3 + 1) / log 7; after: (1 + 1) / log 7; so H_Δ = 1/2. The other hybrid trajectory has H_Δ = −1 at 1 / log 7.
    paths = [[wrote(3, 1, 9), read(1), retrieved(), wrote(1, 1, 9)], [wrote(1), read(1), retrieved(), wrote(2)]]
    tree = tree_of(*paths, pure(), pure(), rewards=[1.0, 1.0, 0.0, 0.0], sampled=True)
    tree.measured.clear()
    values = torch.tensor([4 * TANH_1, -TANH_2, 0.0, 0.0]) / math.log(7)
    factors = 1 + 0.2 * (values - values.mean()) / (values.std() + 1e-6)
    outcome = math.sqrt(3) / 2 * torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert advantages(learner, tree) == pytest.approx((factors * outcome).tolist(), rel=1e-5)


# Equation 8: the ratio


LONG = [wrote(*[1] * 3), read(2), retrieved(8), wrote(*[1] * 4), read(2), retrieved(7), wrote(1)]
"""5 tokens of the prompt, then 27, of which 15 are retrieved; without 5 tokens of tags around each step, 3 + 2 are."""


@pytest.mark.parametrize(
    ("retrieved", "with_prompt", "share"), [(5, True, 5 / 32), (15, True, 15 / 32), (5, False, 5 / 27), (15, False, 15 / 27)]
)
def test_the_share_of_retrieved_tokens(retrieved, with_prompt, share):
    tree = tree_of(LONG, pure())
    assert retrieved_share(tree, tree.leaves[0], retrieved, with_prompt=with_prompt) == pytest.approx(share)
    assert retrieved_share(tree, tree.leaves[1], 0, with_prompt=with_prompt) == 0.0


@pytest.mark.parametrize(("sequence", "share"), [("all", 15 / 32), ("response", 15 / 27)])
def test_every_token_of_a_trajectory_has_its_ratio_scaled(sequence, share):
    config = RAPOConfig(group_size=2, hybrid_rollouts=1, shaping=0.2, fret_length="block", sequence_length=sequence)
    tree = tree_of(LONG, pure())
    ((first, second),) = RAPO(config).credit([tree])
    assert first.ratio_scale.tolist() == pytest.approx([1 + 0.2 * share] * 32)
    assert (second.ratio_scale == 1).all()


def gradient(log_ratio, advantage, scale):
    """d loss / d log π of one token under RAPO's own surrogate, ε = 0.2 below and 0.28 above."""
    at = torch.tensor([log_ratio], requires_grad=True)
    RAPO(RAPOConfig()).surrogate(at, torch.tensor([advantage]), torch.tensor([scale])).loss.sum().backward()
    return float(at.grad)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "scale", "expected"),
    [
        (0.0, 1.0, 1.3, 0.0),  # m F = 0.3 is above ε_high: a good token at ratio 1 has no gradient
        (0.0, 1.0, 1.27, -1.27),  # below it, −m̂ A
        (0.0, -1.0, 1.3, 1.3),  # a bad token has one in any case
        (math.log(1.25), 1.0, 1.05, 0.0),  # 1.25 is within the bounds, 1.05 · 1.25 = 1.3125 is not
        (math.log(1.25), 1.0, 1.0, -1.25),
        (math.log(0.78), -1.0, 1.05, 0.819),  # 0.78 is not, 1.05 · 0.78 = 0.819 is
        (math.log(0.78), -1.0, 1.0, 0.0),
    ],
)
def test_the_ratio_is_scaled_before_it_is_clipped(log_ratio, advantage, scale, expected):
    assert gradient(log_ratio, advantage, scale) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hybrid_rollouts": 17}, "--hybrid-rollouts must be from 0 to the --group-size of 16, not 17"),
        ({"hybrid_rollouts": -1}, "--hybrid-rollouts must be from 0"),
        ({"retrieve_probability": 1.5}, "--retrieve-probability must be from 0 to 1, not 1.5"),
        ({"retrieve_probability": -0.1}, "--retrieve-probability"),
        ({"retrieve_probability": math.nan}, "--retrieve-probability"),
        ({"noise": 1.5}, "--noise must be from 0 to 1, not 1.5"),
        ({"step_entropy_tokens": 0}, "--step-entropy-tokens must be at least 1, not 0"),
        ({"shaping": 0.3}, "--shaping must be from 0 to the --clip-high of 0.28"),
        ({"shaping": -0.01}, "--shaping"),
        ({"retrieval_std_floor": -1.0}, "--retrieval-std-floor must not be negative"),
        ({"group_size": 1, "hybrid_rollouts": 1}, "--group-size must be at least 2"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, says):
    with pytest.raises(UsageError) as caught:
        RAPO(RAPOConfig(**options))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("group", "hybrid"), [(16, 8), (4, 2), (5, 2), (2, 1)])
def test_half_of_a_group_retrieves_unless_something_else_is_asked_for(group, hybrid):
    assert RAPOConfig(group_size=group).hybrid_rollouts == hybrid
    assert RAPOConfig(group_size=group, hybrid_rollouts=0).hybrid_rollouts == 0


@pytest.mark.parametrize(("shaping", "warns"), [(0.28, True), (0.2, False)])
def test_a_shaping_that_uses_up_half_of_the_clip_is_told_once(caplog, shaping, warns):
    """More than half of the tokens are retrieved, 0.28 · 0.6 > 0.14 > 0.2 · 0.6."""
    tree = tree_of([wrote(1), read(1), retrieved(15), wrote(1), read(2)], pure())  # 15 of 25 tokens
    learner = rapo(group_size=2, shaping=shaping)
    for _ in range(2):
        learner.credit([tree])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == warns
    assert all("1.168" in message and "--shaping" in message for message in told)


# Gradients


def learn(model, groups, *, learning_rate=0.0, **settings):
    learner = rapo(group_size=2, hybrid_rollouts=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    chosen = UpdateSettings(**settings)
    orders = [list(range(len(groups)))] * chosen.epochs
    return update_policy(model, optimizer, groups, learner.surrogate, chosen, orders=orders)


@pytest.mark.parametrize("average", ["token-mean", "sequence-mean"])
def test_only_the_policys_own_tokens_have_a_gradient(average):
    """The gradient of the loss with respect to the logits that each token is chosen by."""
    config = RAPOConfig(group_size=2, hybrid_rollouts=1, fret_length="block", average=average)
    tree = tree_of(LONG, pure())
    rows = rows_of([tree], RAPO(config).credit([tree]))
    seen: list[torch.Tensor] = []
    model = random_policy()

    def keep(module, arguments, logits):
        logits.retain_grad()
        seen.append(logits)

    model.lm_head.register_forward_hook(keep)
    learn(model, rows, layout="padded")  # over trees, logits are computed nowhere else to begin with
    (logits,) = seen
    for place, row in enumerate(rows[0]):  # the longer one is first in the batch, as it is in the group
        has_gradient = logits.grad[place].abs().sum(-1) > 0  # [L]: the logits at t choose token t + 1
        length = len(row.tokens.ids)
        assert has_gradient[: length - 1].tolist() == row.tokens.policy[1:].tolist()
        assert not has_gradient[length - 1 :].any()
        authors = [segment.author for segment, count in tree.path(tree.leaves[place]) for _ in range(count)]
        assert [author == "policy" for author in authors] == row.tokens.policy.tolist()


def test_kl_and_mismatch_are_of_the_ratio_itself():
    """While the weights stay as they are, the old policy is the present one, whatever the ratio is scaled by."""
    found = []
    for shaping in (0.0, 0.28):
        config = RAPOConfig(group_size=2, hybrid_rollouts=1, fret_length="block", shaping=shaping)
        tree = tree_of(LONG, pure())
        found.append(learn(random_policy(), rows_of([tree], RAPO(config).credit([tree])), epochs=2))
    plain, scaled = found
    assert plain["kl_old"] == scaled["kl_old"] == 0.0
    assert plain["mismatch_mean"] == scaled["mismatch_mean"] > 0
    assert plain["loss"] != scaled["loss"]
