"""AEPO: its equations against numbers worked by hand, its trees, and that without its four changes it is ARPO."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from branching_parts import ENDS, WANDER, Scripted, ScriptedStream, Wander, Written, branches_of, explored, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_parts import metrics, same_weights, short
from policies import saved_policy

from learners.aepo import AEPO, AEPOConfig, balanced_rollouts, entropies_of_actions
from learners.arpo import ARPO, ARPOConfig
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import UsageError

OFF = ("--no-pre-monitoring", "--branch-penalty", 0, "--surrogate", "clip", "--entropy-advantage", 0)


def config(**options) -> AEPOConfig:
    """Branches wherever it may, unless the penalty keeps it from that."""
    return AEPOConfig(**{"env": WANDER, "group_size": 6, "alpha": 1.0, "beta": 0.0, "branch_penalty": 0.0} | options)


# How many begin at the question


@pytest.mark.parametrize(
    ("changes", "budget", "weight", "expected"),
    [
        ([], 16, 0.5, 8),  # nothing is known: a half
        ([], 5, 0.5, 3),  # 2.5, rounded up
        ([0.0], 16, 0.5, 8),
        ([-math.log(3)], 16, 1.0, 12),  # σ(log 3) = 3/4
        ([math.log(3)], 16, 1.0, 4),  # σ(−log 3) = 1/4
        ([-2 * math.log(3), 0.0], 16, 1.0, 12),  # the mean counts
        ([-2 * math.log(3)], 16, 0.5, 12),
        ([-1e6], 16, 0.5, 16),
        ([1e6], 16, 0.5, 2),  # the trial, and one that can branch
        ([1e6], 2, 0.5, 2),
    ],
)
def test_how_many_begin_at_the_question_is_the_sigmoid_of_the_gap(changes, budget, weight, expected):
    assert balanced_rollouts(changes, budget, weight) == expected


def test_the_entropies_of_a_trajectory_are_those_of_its_actions_first_tokens():
    tree = RolloutTree(task_id="", question="", seed=0, version=0)
    root = tree.add("prompt", [7], None, turn=0)
    first = tree.add("policy", [1, 2, 3], root, turn=0, logprobs=[0.0] * 3, entropies=[0.5, 1.0, 2.0])
    result = tree.add("tool", [8, 9], first, turn=1)
    last = tree.add("policy", [4], result, turn=1, logprobs=[0.0], entropies=[0.25])
    assert entropies_of_actions(tree, Leaf((0,), last), 2) == [(0.5, 1.0), (0.25,)]
    assert entropies_of_actions(tree, Leaf((0,), result), 9) == [(0.5, 1.0, 2.0)]
    assert entropies_of_actions(RolloutTree("", "", 0, 0), Leaf((0,), 0), 2) == []


class Turns(Wander):
    """Ends with its sixth turn."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, len(self.history) > 6, truncated, info


def test_the_trial_decides_and_is_the_first_of_the_group():
    """k = 4 tokens at 2 nats after the question and 1 after each result, V = 16: ΔH = −4 / log 16 = −1.4427.

    With β_m = 0.5 the share is σ(0.72135) = 0.67291, and m = 10.77 of 16, 11. The ten besides the trial branch five times.
    """
    order = []

    def script(path, turn):
        return Written(f"{path[-1] % 7}{turn}abcd", (2.0 if turn == 0 else 1.0,) * 8)

    class Watched(Scripted):
        def start(self, path):
            order.append(("begins", path[-1]))
            stream = super().start(path)
            stream.cancel = lambda: (order.append(("ends", path[-1])), ScriptedStream.cancel(stream))
            return stream

    sampler = Watched(script)
    tree = explored(config(group_size=16, entropy_tokens=4), Turns, sampler, learner=AEPO)[0]
    assert ("branch/initial_rollouts", 11.0) in tree.notes
    assert order[:2] == [("begins", 0), ("ends", 0)]
    assert sorted(order[2:12]) == [("begins", index) for index in range(1, 11)]
    assert len(tree.leaves) == 16
    assert sorted(leaf.path for leaf in tree.leaves if len(leaf.path) == 1) == [(index,) for index in range(11)]
    assert [leaf.path for leaf in branches_of(tree)] == [(index, 1, 0) for index in range(1, 6)]
    assert sampler.deserted == 1  # at the very end: no moment without a live stream between the trial and the others


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 9),
    st.sampled_from(["threshold", "coin", "random"]),
    st.sampled_from([0.0, 5.0, 50.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.sampled_from(["fork", "replay"]),
    st.integers(0, 50),
)
def test_a_group_is_its_budget_in_every_tree(most, rule, weight, penalty, alpha, branch, seed):
    options = {"branch_rule": rule, "monitoring_weight": weight, "branch_penalty": penalty, "alpha": alpha, "tau": 0.4}
    sampler = Scripted()
    tree = explored(config(group_size=most, branch=branch, seed=seed, **options), sampler=sampler, learner=AEPO)[0]
    (initial,) = (int(value) for name, value in tree.notes if name == "branch/initial_rollouts")
    paths = [leaf.path for leaf in tree.leaves]
    branches = branches_of(tree)
    assert 2 <= initial <= most
    assert len(paths) == len(set(paths)) == most
    assert len(branches) <= most - initial
    assert all(leaf.path[0] in range(1, initial) for leaf in branches)
    assert [path for path in paths if len(path) == 1] == [(index,) for index in range(most - len(branches))]
    assert sampler.most <= most


# Branches in a row


def test_branches_in_a_row_take_from_the_chance_of_the_next():
    """α = 1, β = 0, τ = 0.5, λ = 0.3: P is 1, 0.7 and 0.4 after none, one and two in a row, and 1 again after none.

    Six turns, of which turns 1 to 5 are judged: the path from the question branches in 1, 2, 4 and 5. Its branch of turn 1
    has one in a row: 2 (0.7), not 3, 4 and 5. That of turn 2 has two: not 3, but 4 and 5. Those of turn 4 and of (0, 1, 0)'s
    turn 2 likewise go on from their parents' number.
    """
    options = {"pre_monitoring": False, "initial_rollouts": 1, "group_size": 64, "branch_penalty": 0.3}
    tree = explored(config(**options), Turns, learner=AEPO)[0]
    turns: dict[tuple[int, ...], list[int]] = {}
    for leaf in branches_of(tree):
        turns.setdefault(leaf.path[:-2], []).append(leaf.path[-2])
    assert turns[(0,)] == [1, 2, 4, 5]
    assert turns[(0, 1, 0)] == [2, 4, 5]
    assert turns[(0, 2, 0)] == [4, 5]
    assert turns[(0, 1, 0, 2, 0)] == [4, 5]
    assert turns[(0, 4, 0)] == [5]


@pytest.mark.parametrize(("penalty", "expected"), [(0.0, [1, 2, 3, 4, 5]), (1.0, [1, 3, 5]), (0.6, [1, 3, 5])])
def test_the_penalty_has_no_effect_at_0_and_stops_every_second_branch_where_it_is_large(penalty, expected):
    options = {"pre_monitoring": False, "initial_rollouts": 1, "group_size": 64, "branch_penalty": penalty}
    tree = explored(config(**options), Turns, learner=AEPO)[0]
    assert [leaf.path[1] for leaf in branches_of(tree) if len(leaf.path) == 3] == expected


# Advantages


def test_tokens_of_high_entropy_count_more():
    """Two trajectories, R = 1 and 0, A = ±1/2 without the standard deviation. The policy's tokens have H = 1, 3, 2 and 2.

    Mean 2, std √(2/4) = 0.7071; z = −√2, √2, 0, 0, and with a = 0.2 the factors are 1 ∓ 0.2828 and 1. A tool's token, at an
    entropy of 100, counts for nothing.
    """
    tree = RolloutTree(task_id="", question="", seed=0, version=0)
    root = tree.add("prompt", [7], None, turn=0)
    one = tree.add("policy", [1, 2], root, turn=0, logprobs=[0.0] * 2, entropies=[0.0] * 2)
    other = tree.add("policy", [3], root, turn=0, logprobs=[0.0], entropies=[0.0])
    other = tree.add("policy", [4], tree.add("tool", [5], other, turn=1), turn=1, logprobs=[0.0], entropies=[0.0])
    tree.leaves += [Leaf((0,), one, reward=1.0), Leaf((1,), other, reward=0.0)]
    tree.measured = {(0,): torch.tensor([0.0, 1.0, 3.0]), (1,): torch.tensor([0.0, 2.0, 100.0, 2.0])}
    learner = AEPO(config(group_size=2, scale_by_std=False))
    assert learner.measure
    first, second = learner.credit([tree])[0]
    step = 0.2 * math.sqrt(2)
    assert first.advantage[1:].tolist() == pytest.approx([0.5 * (1 - step), 0.5 * (1 + step)], rel=1e-5)
    assert second.advantage[[1, 3]].tolist() == pytest.approx([-0.5, -0.5], rel=1e-5)
    assert [terms.weight.tolist() for terms in (first, second)] == [[1.0] * 3, [1.0] * 4]
    off = AEPO(config(group_size=2, scale_by_std=False, entropy_advantage=0.0))
    assert not off.measure
    assert [terms.advantage.tolist() for terms in off.credit([tree])[0]] == [[0.5] * 3, [-0.5] * 4]


def test_the_surrogate_keeps_the_gradient_of_what_is_clipped_from_above():
    """Ratio 2, A = 1, ε_high = 0.28: value −1.28 as in PPO, and the gradient by the log-ratio −1.28 instead of 0."""
    log_ratio = torch.tensor([math.log(2.0)], requires_grad=True)
    found = AEPO(config()).surrogate(log_ratio, torch.ones(1), torch.ones(1))
    assert float(found.loss.detach()) == pytest.approx(-1.28)
    found.loss.sum().backward()
    assert float(log_ratio.grad) == pytest.approx(-1.28)


# Runs


def command(policy: Path, output: Path, *more: object) -> list[str]:
    options = {"env": WANDER, "env_args": '{"wait": 0.01}', "tasks_per_step": 3, "group_size": 6, "turn_tokens": 12}
    return short(policy, output, *more, total_tokens=400, learning_rate=1e-3, **options)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("policy"), ENDS)


def test_with_everything_switched_off_it_is_arpo_bit_for_bit(policy, tmp_path):
    common = ("--entropy-norm", "log-vocab", "--advantage", "hard")
    run(ARPOConfig, ARPO, "", command(policy, tmp_path / "arpo", *common))
    run(AEPOConfig, AEPO, "", command(policy, tmp_path / "aepo", *common, *OFF))
    assert metrics(tmp_path / "aepo") == metrics(tmp_path / "arpo")
    assert metrics(tmp_path / "arpo")[0]["grad_norm"] > 0
    assert metrics(tmp_path / "arpo")[0]["branch/refused"] == 0.0  # there were branches
    for path in sorted((tmp_path / "arpo" / "trajectories").iterdir()):
        theirs = path.read_text()
        assert (tmp_path / "aepo" / "trajectories" / path.name).read_text() == theirs.replace('"arpo:', '"aepo:')
    assert same_weights(*(tmp_path / name / "checkpoints" / "step_000002" for name in ("aepo", "arpo")))


def test_a_resumed_run_is_one_that_was_never_stopped(policy, tmp_path):
    run(AEPOConfig, AEPO, "", command(policy, tmp_path / "whole"))
    for record in metrics(tmp_path / "whole"):
        assert 2 <= record["branch/initial_rollouts"] <= 6
        assert record["grad_norm"] > 0
    run(AEPOConfig, AEPO, "", command(policy, tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("step_000002*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    run(AEPOConfig, AEPO, "", ["--resume", str(tmp_path / "run")])
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_deterministic_trees_are_equal_however_long_the_tools_take():
    options = {"entropy_tokens": 4, "branch_penalty": 0.3, "monitoring_weight": 5.0}
    one = sampled(config(**options), deterministic=True, learner=AEPO)
    assert sum(len(branches_of(tree)) for tree in one) >= 4
    assert sampled(config(**options), deterministic=True, wait=0.02, learner=AEPO) == one


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"branch_penalty": 1.1}, "--branch-penalty must be from 0 to 1, not 1.1"),
        ({"entropy_advantage": -0.2}, "--entropy-advantage must not be negative, but is -0.2"),
        ({"monitoring_weight": -1.0}, "--monitoring-weight must not be negative, but is -1.0"),
        ({"initial_rollouts": 2}, "--initial-rollouts is what the trial tells: leave it out, or say --no-pre-monitoring"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, says):
    with pytest.raises(UsageError) as caught:
        AEPO(config(**options))
    assert str(caught.value) == says
