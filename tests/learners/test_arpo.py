"""ARPO: its equations against numbers worked by hand, its gradients against each other, and whole runs."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from branching_parts import ENDS, WANDER
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import metrics, same_weights, short
from policies import random_policy, saved_policy

from learners.arpo import ARPO, ARPOConfig, change_of_entropy, grants
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import UsageError
from learners.update.advantages import means_over_sharers
from learners.update.batch import rows_of
from learners.update.losses import clip_surrogate
from learners.update.step import UpdateSettings, token_logprobs, update_policy
from tracebank.trajectory import read_trajectories

FOLDER = Path(__file__).parent

# Equations 1 and 3


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (100, 0.02),  # ((2 − 1) + (3 − 1.5) + (0.5 − 1)) / 100
        (math.log(100), 2 / (2 * math.log(10))),  # the same 2 / log 100
    ],
)
def test_the_change_of_entropy_is_the_sum_of_differences_by_the_size_of_the_vocabulary(scale, expected):
    assert change_of_entropy([2.0, 3.0, 0.5], [1.0, 1.5, 1.0], scale) == pytest.approx(expected, rel=1e-15)


def test_only_tokens_that_both_actions_have_are_compared():
    """(2 − 1) / 10, whichever of the two is the shorter one."""
    assert change_of_entropy([2.0], [1.0, 9.0], 10) == pytest.approx(0.1)
    assert change_of_entropy([2.0, 9.0], [1.0], 10) == pytest.approx(0.1)


def test_the_change_of_entropy_is_bounded_as_the_documentation_says():
    """k = 20 tokens from no entropy to log V, V = 150,000: β ΔH = 0.2 · 20 · 11.92 / 150,000 = 3.2e-4."""
    vocabulary = 150_000
    most = change_of_entropy([math.log(vocabulary)] * 20, [0.0] * 20, vocabulary)
    assert 0.2 * most == pytest.approx(3.18e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("wishes", "budget", "granted"),
    [
        ([1, 0, 1, 1], 2, [1, 0, 1, 0]),
        ([3, 3, 3], 5, [3, 2, 0]),  # Z = 3 is clipped to what is left
        ([1, 1], 0, [0, 0]),
        ([], 4, []),
    ],
)
def test_slots_are_granted_in_the_order_of_the_paths(wishes, budget, granted):
    assert grants(wishes, budget) == granted


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 30))
def test_no_more_is_granted_than_there_is_and_no_less_than_can_be(wishes, budget):
    granted = grants(wishes, budget)
    assert sum(granted) == min(budget, sum(wishes))
    assert all(0 <= got <= wish for got, wish in zip(granted, wishes, strict=True))


# Equations 4 and 5, on a tree drawn by hand:
#
#   prompt(2) ─ a(2) ─ tool(1) ┬ b(2)                      leaf 0, R = 1
#      │                       └ c(1) ─ tool(1) ┬ d(1)     leaf 1, R = 0
#      │                                        └ e(3)     leaf 2, R = 1
#      └ f(1)                                              leaf 3, R = 0
#
# mean R = 1/2, and without the standard deviation A = 1/2, −1/2, 1/2, −1/2. Shared tokens:
#   prompt: (1/2 − 1/2 + 1/2 − 1/2) / 4 = 0;  a and its tool: (1/2 − 1/2 + 1/2) / 3 = 1/6;  c and its tool: 0 / 2 = 0


def drawn_tree(shift: int = 0, rewards=(1.0, 0.0, 1.0, 0.0)) -> RolloutTree:
    tree = RolloutTree(task_id=str(shift), question="", seed=shift, version=0)

    def add(author, count, parent):
        first = shift + 7 * len(tree.segments)
        numbers = [0.0] * count if author == "policy" else []
        ids = [(first + 31 * place) % 200 for place in range(count)]
        return tree.add(author, ids, parent, turn=0, logprobs=numbers, entropies=numbers)

    root = add("prompt", 2, None)
    first = add("tool", 1, add("policy", 2, root))
    b = add("policy", 2, first)
    second = add("tool", 1, add("policy", 1, first))
    d, e, f = add("policy", 1, second), add("policy", 3, second), add("policy", 1, root)
    paths = [(0,), (0, 1, 0), (0, 1, 0, 2, 0), (1,)]
    for path, segment, reward in zip(paths, (b, d, e, f), rewards, strict=True):
        tree.leaves.append(Leaf(path=path, segment=segment, reward=reward))
    return tree


def learner(**options) -> ARPO:
    return ARPO(ARPOConfig(**{"group_size": 4, "initial_rollouts": 1, "scale_by_std": False} | options))


def credit_of(tree: RolloutTree, **options) -> list[tuple[list[float], list[float]]]:
    return [(terms.advantage.tolist(), terms.weight.tolist()) for terms in learner(**options).credit([tree])[0]]


PLACES = [
    ("prompt", "prompt", "a", "a", "a", "b", "b"),
    ("prompt", "prompt", "a", "a", "a", "c", "c", "d"),
    ("prompt", "prompt", "a", "a", "a", "c", "c", "e", "e", "e"),
    ("prompt", "prompt", "f"),
]
HARD = {"prompt": 0.0, "a": 1 / 6, "b": 0.5, "c": 0.0, "d": -0.5, "e": 0.5, "f": -0.5}
SHARERS = {"prompt": 4, "a": 3, "b": 1, "c": 2, "d": 1, "e": 1, "f": 1}


def test_soft_gives_every_token_of_a_trajectory_its_own_advantage():
    expected = [([a] * len(places), [1.0] * len(places)) for a, places in zip((0.5, -0.5, 0.5, -0.5), PLACES, strict=True)]
    assert credit_of(drawn_tree()) == expected


def test_hard_gives_shared_tokens_the_mean_of_those_who_share_them():
    for (advantage, weight), places in zip(credit_of(drawn_tree(), advantage="hard"), PLACES, strict=True):
        assert advantage == pytest.approx([HARD[place] for place in places], abs=1e-7)
        assert weight == [1.0] * len(places)


@pytest.mark.parametrize("advantage", ["soft", "hard"])
def test_once_divides_by_the_number_of_sharers_and_leaves_advantages_alone(advantage):
    tree = drawn_tree()
    copies, once = (credit_of(tree, advantage=advantage, shared_weight=weight) for weight in ("copies", "once"))
    for (ours, weight), (theirs, _), places in zip(once, copies, PLACES, strict=True):
        assert ours == theirs
        assert weight == pytest.approx([1 / SHARERS[place] for place in places])


def test_once_divides_the_weights_of_sequence_mean_likewise():
    """Leaf 1 wrote a a c d: each of its tokens weighs 1/4, and those that are shared 1/12 and 1/8."""
    _, weight = credit_of(drawn_tree(), shared_weight="once", average="sequence-mean")[1]
    assert weight[2:] == pytest.approx([1 / 12, 1 / 12, 1 / 12, 1 / 8, 1 / 8, 1 / 4])


def test_a_trajectory_with_a_fault_shares_nothing():
    """Without leaf 2: R = 1, 0, 0, A = 2/3, −1/3, −1/3; a is shared by two, (2/3 − 1/3) / 2 = 1/6, and c by nobody."""
    tree = drawn_tree()
    tree.leaves[2].fault = "engine: gone"
    (b, _), (d, weight), (f, _) = credit_of(tree, advantage="hard", shared_weight="once")
    assert b[2:] == pytest.approx([1 / 6] * 3 + [2 / 3] * 2)
    assert d[2:] == pytest.approx([1 / 6] * 3 + [-1 / 3] * 3)
    assert f[2:] == pytest.approx([-1 / 3])
    assert weight[2:] == pytest.approx([1 / 2] * 3 + [1.0] * 3)


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True), min_size=1, max_size=6), st.data())
def test_means_over_sharers_are_those_of_a_plain_loop(numbers, data):
    values = [[data.draw(st.floats(-4, 4, width=32)) for _ in own] for own in numbers]
    found = means_over_sharers([torch.tensor(own) for own in values], [torch.tensor(own) for own in numbers])
    for own, (means, sharers) in zip(numbers, found, strict=True):
        for place, number in enumerate(own):
            shared = [v for vs, ns in zip(values, numbers, strict=True) for v, n in zip(vs, ns, strict=True) if n == number]
            assert sharers[place] == len(shared)
            assert float(means[place]) == pytest.approx(sum(shared) / len(shared), abs=1e-5)


# Gradients

TREES = (drawn_tree(0), drawn_tree(3, rewards=(0.0, 1.0, 1.0, 1.0)), drawn_tree(5, rewards=(0.0, 0.0, 0.0, 1.0)))


def learned(learning_rate=1.0, minibatch_groups=0, epochs=1, clip=(0.2, 0.28), **options):
    """A random policy's weights after an update, and its metrics."""
    model = random_policy()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)  # nearer to uniform, so that no token is all but impossible
    groups = rows_of(TREES, learner(**options).credit(TREES))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    settings = UpdateSettings(epochs=epochs, minibatch_groups=minibatch_groups, max_grad_norm=1e9)

    def surrogate(log_ratio, advantage, ratio_scale):
        return clip_surrogate(log_ratio, advantage, clip_low=clip[0], clip_high=clip[1], ratio_scale=ratio_scale)

    before = copy.deepcopy(model)
    metrics = update_policy(model, optimizer, groups, surrogate, settings, orders=[[0, 1, 2]] * epochs)
    steps = [(new - old).detach().flatten() for new, old in zip(model.parameters(), before.parameters(), strict=True)]
    return torch.cat(steps), metrics, before, groups


def test_hard_and_soft_have_the_same_gradient_while_no_ratio_is_clipped():
    """Σ over d copies of A_i ∇r = d · mean(A) · ∇r, since the ratio r of a shared token is one and the same."""
    soft, *_ = learned()
    hard, *_ = learned(advantage="hard")
    assert soft.norm() > 1e-3
    torch.testing.assert_close(hard, soft, atol=1e-6, rtol=1e-4)
    unclipped = {"learning_rate": 2.0, "minibatch_groups": 1, "epochs": 2, "clip": (1.0, 1e9)}
    soft, metrics, *_ = learned(**unclipped)
    hard, *_ = learned(**unclipped, advantage="hard")
    assert metrics["kl_old"] > 1e-3  # ratios are no longer 1
    torch.testing.assert_close(hard, soft, atol=1e-4, rtol=1e-3)


def test_hard_and_soft_part_where_ratios_are_clipped():
    """After a first step the copies of a shared token, whose signs differ, are clipped one by one; their mean, as one."""
    clipped = {"learning_rate": 2.0, "minibatch_groups": 1, "epochs": 2}
    soft, metrics, *_ = learned(**clipped)
    hard, *_ = learned(**clipped, advantage="hard")
    assert metrics["clip_low"] + metrics["clip_high"] > 0.02
    assert (hard - soft).norm() > 0.01 * soft.norm()


def test_hard_and_once_is_a_mean_over_the_tokens_of_the_tree():
    """The gradient, written out with each token of each tree once: −Σ mean(A) ∇log π / number of tokens."""
    found, _, model, groups = learned(advantage="hard", shared_weight="once")
    loss, count = torch.zeros(()), 0
    for group in groups:
        seen: set[int] = set()
        for row in group:
            ids = row.tokens.ids[None]
            logprobs, _ = token_logprobs(model, ids, torch.ones_like(ids, dtype=torch.bool), 1.0)
            for place in row.tokens.policy.nonzero()[:, 0].tolist():
                number = int(row.tokens.numbers[place])
                if number not in seen:
                    seen.add(number)
                    loss = loss - row.terms.advantage[place] * logprobs[0, place]
                    count += 1
    assert count == 3 * (2 + 2 + 1 + 1 + 3 + 1)
    (loss / count).backward()
    expected = torch.cat([-parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_a_rate_of_branches_that_says_nothing_is_warned_of(caplog):
    tree = drawn_tree()
    tree.notes = (
        [("branch/turn_1", 1.0)] * 40
        + [("branch/turn_2", 1.0)] * 39
        + [("branch/turn_3", number % 2) for number in range(40)]
    )
    tree.notes += [("branch/refused", 0.0)] * 80
    with caplog.at_level("WARNING"):
        learner().credit([tree])
        learner(branch_rule="random").credit([tree])  # whose rate was asked for
    assert [record.getMessage() for record in caplog.records] == [
        "branch/turn_1: 100 % of 40 paths branch; see --alpha, --beta and --tau"
    ]


# Runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """An untaught policy that ends its turns; any of many tokens does."""
    return saved_policy(tmp_path_factory.mktemp("policy"), ENDS)


def command(policy: Path, output: Path, *more: object) -> list[str]:
    options = {
        "env": WANDER,
        "env_args": '{"wait": 0.01}',
        "steps": 4,
        "tasks_per_step": 3,
        "group_size": 6,
        "turn_tokens": 12,
    }
    return short(policy, output, *more, total_tokens=400, learning_rate=1e-3, **options)


BRANCHING = ("--initial-rollouts", 2, "--advantage", "hard", "--branch-rule", "coin")


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "arpo"
    run(ARPOConfig, ARPO, "", command(policy, folder, *BRANCHING))
    return folder


def test_a_run_branches_learns_and_says_what_it_executed(finished):
    for step, record in enumerate(metrics(finished), 1):
        trajectories = list(read_trajectories(finished / f"trajectories/step_{step:06d}.jsonl"))
        assert len(trajectories) == 18
        own = [t.tool_calls - (t.path[-2] if len(t.path) > 1 else 0) for t in trajectories]  # Wander calls one a turn
        assert record["tool_calls_executed"] == sum(own) < sum(t.tool_calls for t in trajectories)
        groups = [trajectories[first : first + 6] for first in (0, 6, 12)]
        segments = [{segment.id: segment for one in group for segment in one.segments} for group in groups]
        written = [segment for group in segments for segment in group.values() if segment.author == "policy"]
        assert record["tokens_generated"] == sum(len(segment.ids) for segment in written)
        assert record["tokens_generated"] < record["tokens/policy"] * record["trajectories"]
        assert record["branch/turn_1"] > 0
        assert record["grad_norm"] > 0
        assert record["mismatch_max"] < 1e-3


def test_with_as_many_initial_rollouts_as_trajectories_it_is_grpo_bit_for_bit(policy, tmp_path):
    run(GRPOConfig, GRPO, "", command(policy, tmp_path / "grpo"))
    run(ARPOConfig, ARPO, "", command(policy, tmp_path / "arpo", "--initial-rollouts", 6))
    assert metrics(tmp_path / "arpo") == metrics(tmp_path / "grpo")
    assert metrics(tmp_path / "grpo")[0]["grad_norm"] > 0
    for path in sorted((tmp_path / "grpo" / "trajectories").iterdir()):
        theirs = path.read_text()
        assert (tmp_path / "arpo" / "trajectories" / path.name).read_text() == theirs.replace('"grpo:', '"arpo:')
    assert same_weights(*(tmp_path / name / "checkpoints" / "step_000004" for name in ("arpo", "grpo")))


def test_a_run_that_is_killed_and_resumed_is_one_that_was_not(policy, finished, tmp_path):
    folder = tmp_path / "run"
    arguments = command(policy, folder, *BRANCHING)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen([sys.executable, "-m", "learners.arpo", *arguments], stdout=subprocess.DEVNULL, env=paths)
    while child.poll() is None and not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_bytes()):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run(ARPOConfig, ARPO, "", ["--resume", str(folder)])
    assert metrics(folder) == metrics(finished)
    assert same_weights(*(one / "checkpoints" / "step_000004" for one in (folder, finished)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initial_rollouts": 17}, "--initial-rollouts must be from 1 to the --group-size of 16, not 17"),
        ({"initial_rollouts": -1}, "--initial-rollouts must be from 1 to the --group-size of 16, not -1"),
        ({"branch_rate": 1.5}, "--branch-rate must be from 0 to 1, not 1.5"),
        ({"branch_rate": -0.1}, "--branch-rate must be from 0 to 1, not -0.1"),
        ({"entropy_tokens": 0}, "--entropy-tokens must be at least 1, not 0"),
        ({"branches": 0}, "--branches must be at least 1, not 0"),
        ({"group_size": 1, "initial_rollouts": 1}, "--group-size must be at least 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, says):
    with pytest.raises(UsageError) as caught:
        ARPO(ARPOConfig(**options))
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(("group_size", "initial_rollouts"), [(16, 8), (4, 2), (5, 3), (2, 1)])
def test_half_of_the_group_begins_at_the_question_unless_another_number_is_given(group_size, initial_rollouts):
    assert ARPOConfig(group_size=group_size).initial_rollouts == initial_rollouts
    assert ARPOConfig(group_size=group_size, initial_rollouts=2).initial_rollouts == 2
    assert ARPO(ARPOConfig(group_size=group_size)).group_size == group_size


def test_the_command_line_refuses_it_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(ARPOConfig, ARPO, "", ["--initial-rollouts", "20", "--group-size", "8"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: --initial-rollouts must be from 1 to the --group-size of 8, not 20\n"
    assert list(tmp_path.iterdir()) == []
