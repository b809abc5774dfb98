"""ARPO's trees: which branches there are, where they begin, and what is left for trajectories from the question."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from branching_parts import (
    FIRST,
    VOCABULARY,
    WANDER,
    Scripted,
    ScriptedStream,
    Wander,
    Written,
    actions_of,
    always,
    branches_of,
    drawn,
    explored,
    is_over,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.arpo import ARPOConfig

# Which branches there are


@dataclass
class Walk:
    """A path, as the oracle below follows it."""

    actions: list[str]
    initial: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    here: list[str] = field(default_factory=list)


def by_hand(config: ARPOConfig) -> dict[tuple[int, ...], list[str]]:
    """The first group's trajectories under the rule of the threshold: turn by turn, one path after the other."""
    most, initial, k = config.group_size, config.initial_rollouts, config.entropy_tokens
    scale = VOCABULARY if config.entropy_norm == "vocab" else np.log(VOCABULARY)
    place = (*FIRST, 0)
    left, turn = most - initial, 0
    live = {(index,): Walk([]) for index in range(initial)}
    done = {}

    def over(walk):
        return is_over(["question 0", *walk.actions])

    while live:
        for path in sorted(live):
            walk = live[path]
            now = drawn((*place, *path), turn).entropies[:k]
            if walk.before:  # not its first action
                judged = now if config.entropy_of == "after" else walk.before
                change = sum(a - b for a, b in zip(judged, walk.initial, strict=False)) / scale
                if config.alpha + config.beta * change > config.tau:
                    for number in range(min(config.branches, left)):
                        live[(*path, turn, number)] = Walk(list(walk.actions), walk.initial)
                        left -= 1
            elif not walk.initial or config.entropy_of == "before":
                walk.initial = now
            walk.before = now
        for path, walk in list(live.items()):
            if not walk.before:  # a branch of this turn, which is not judged for the action it begins with
                walk.before = drawn((*place, *path), turn).entropies[:k]
                if config.entropy_of == "before":
                    walk.initial = walk.before
            walk.actions.append(drawn((*place, *path), turn).text)
            if over(walk):
                done[path] = live.pop(path).actions
        turn += 1
    for index in range(initial, initial + left):
        walk = Walk([])
        while not walk.actions or not over(walk):
            walk.actions.append(drawn((*place, index), len(walk.actions)).text)
        done[(index,)] = walk.actions
    return done


@st.composite
def configs(draw, rules=("threshold", "coin", "random")):
    most = draw(st.integers(2, 9))
    return ARPOConfig(
        env=WANDER,
        group_size=most,
        initial_rollouts=draw(st.integers(1, most)),
        branches=draw(st.integers(1, 4)),
        branch_rule=draw(st.sampled_from(rules)),
        branch_rate=draw(st.sampled_from([0.0, 0.3, 1.0])),
        tau=draw(st.sampled_from([0.0, 0.4, 0.5, 0.55, 0.7, 2.0])),
        alpha=draw(st.sampled_from([0.2, 0.5, 0.9])),
        entropy_tokens=draw(st.sampled_from([1, 3, 20])),
        entropy_norm=draw(st.sampled_from(["vocab", "log-vocab"])),
        entropy_of=draw(st.sampled_from(["after", "before"])),
        branch=draw(st.sampled_from(["fork", "replay"])),
        seed=draw(st.integers(0, 100)),
    )


@settings(max_examples=80, deadline=None)
@given(configs())
def test_a_group_is_its_budget_in_every_tree(config):
    sampler = Scripted()
    tree = explored(config, sampler=sampler)[0]
    most, initial = config.group_size, config.initial_rollouts
    paths = [leaf.path for leaf in tree.leaves]
    assert len(paths) == len(set(paths)) == most
    branches = branches_of(tree)
    assert len(branches) <= most - initial
    assert sorted(path for path in paths if len(path) == 1) == [(index,) for index in range(most - len(branches))]
    assert sampler.most <= most
    by_path = {leaf.path: leaf for leaf in tree.leaves}
    for leaf in branches:
        *above, turn, _ = leaf.path
        own, parents = tree.path(leaf), tree.path(by_path[tuple(above)])
        shared = 1 + 2 * turn  # the prompt, and an action and its observation a turn
        assert own[:shared] == parents[:shared]
        assert own[shared - 1][0].author == "tool"
        assert own[shared - 1][1] == len(own[shared - 1][0].ids)
        assert own[shared][0].author == "policy"
        assert own[shared][0].id not in {segment.id for segment, _ in parents}
        assert leaf.inherited_calls == turn


@settings(max_examples=80, deadline=None)
@given(configs(rules=("threshold",)))
def test_the_branches_are_those_of_the_rule_turn_by_turn_in_the_order_of_the_paths(config):
    tree = explored(config)[0]
    assert {leaf.path: actions_of(leaf) for leaf in tree.leaves} == by_hand(config)


def test_fresh_rollouts_begin_when_the_paths_have_ended_and_no_sooner():
    """With a threshold that nothing exceeds, N play first and M − N after them, with no moment without a live stream."""
    order = []

    class Watched(Scripted):
        def start(self, path):
            order.append(("begins", path[-1]))
            stream = super().start(path)
            stream.cancel = lambda: (order.append(("ends", path[-1])), ScriptedStream.cancel(stream))
            return stream

    sampler = Watched()
    tree = explored(always(tau=2.0), sampler=sampler)[0]
    assert [leaf.path for leaf in tree.leaves] == [(index,) for index in range(6)]
    assert set(order[:4]) == {("begins", 0), ("begins", 1), ("ends", 0), ("ends", 1)}
    assert order[4:8] == [("begins", index) for index in range(2, 6)]
    assert sampler.deserted == 1  # at the very end


def test_the_chance_of_the_coin_is_alpha_and_beta_times_the_change():
    """Entropies 1 after the question and 2 after each result, k = 4, V = 16: ΔH = 4 · 1 / 16 = 0.25, P = 0.5 + 0.25 = 0.75.

    900 paths come to their second turn: the standard deviation of the share is √(0.75 · 0.25 / 900) = 0.0144.
    """

    def script(path, turn):
        return Written(f"{'abcdefgh'[path[-1] % 8]}{turn}long", (1.0 if turn == 0 else 2.0,) * 8)

    class TwoTurns(Wander):
        def step(self, action):
            observation, reward, _, truncated, info = super().step(action)
            return observation, reward, len(self.history) > 2, truncated, info

    def wishes(seed: int, patience: int) -> list[list[float]]:
        options = {"branch_rule": "coin", "beta": 1.0, "entropy_tokens": 4, "seed": seed}
        config = ARPOConfig(env=WANDER, group_size=16, initial_rollouts=15, **options)
        trees = explored(config, TwoTurns, Scripted(script, patience), groups=60)
        names = {name for tree in trees for name, _ in tree.notes}
        assert names == {"branch/turn_1", "branch/refused"}
        return [[wish for name, wish in tree.notes if name == "branch/turn_1"] for tree in trees]

    found = wishes(seed=0, patience=0)
    assert [len(group) for group in found] == [15] * 60
    assert abs(np.mean(found) - 0.75) < 4 * 0.0144
    assert sum(0 < np.mean(group) < 1 for group in found) > 50  # each path throws its own: 0.75¹⁵ = 1 % agree
    assert wishes(seed=0, patience=5) == found  # whoever comes first
    assert wishes(seed=1, patience=0) != found


@pytest.mark.parametrize(("alpha", "branched"), [(-0.1, 0), (0.0, 0), (1.0, 4), (7.0, 4)])
def test_a_coin_of_no_chance_never_comes_up_and_a_sure_one_always(alpha, branched):
    config = always(branch_rule="coin", alpha=alpha)

    class Long(Wander):
        def step(self, action):
            observation, reward, _, truncated, info = super().step(action)
            return observation, reward, len(self.history) > 5, truncated, info

    assert len(branches_of(explored(config, Long)[0])) == branched


class Four(Wander):
    """Ends with its fourth turn."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, len(self.history) > 4, truncated, info


def branched(tree, parent: tuple[int, ...], turn: int) -> int:
    """How many branches a path has in a turn."""
    return sum(leaf.path[:-1] == (*parent, turn) for leaf in tree.leaves)


@pytest.mark.parametrize(
    ("options", "chance"),
    [({"branch_rule": "coin", "alpha": 0.5}, 0.5), ({"branch_rule": "random", "branch_rate": 0.25, "alpha": 0.9}, 0.25)],
)
def test_a_coin_is_thrown_for_each_of_the_branches_of_a_turn(options, chance):
    """8 paths in each of 30 groups throw 3 coins in turn 1, for which the 24 slots suffice: binomial numbers of branches.

    240 throws: the mean of n = 3 coins has the standard deviation √(3 p (1 − p) / 240), a share q √(q (1 − q) / 240).
    """
    config = ARPOConfig(env=WANDER, group_size=32, initial_rollouts=8, branches=3, beta=0.0, **options)
    trees = explored(config, Four, groups=30)
    counts = np.array([branched(tree, (index,), 1) for tree in trees for index in range(8)])
    assert abs(counts.mean() - 3 * chance) < 4 * np.sqrt(3 * chance * (1 - chance) / 240)
    for share, expected in ((np.mean(counts == 0), (1 - chance) ** 3), (np.mean(counts == 3), chance**3)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 240)


def test_random_branches_do_not_depend_on_entropies_and_all_else_is_as_under_the_other_rules():
    """The same texts at other entropies give the same trees, and a rate of 1 those of a threshold that all exceed."""
    config = ARPOConfig(env=WANDER, group_size=12, initial_rollouts=4, branch_rule="random", branch_rate=0.3)

    def unsure(path, turn):
        return Written(drawn(path, turn).text, (3.0,) * 8 if turn else (0.0,) * 8)

    one = explored(config, groups=10)
    other = explored(config, sampler=Scripted(unsure), groups=10)
    found = [[leaf.path for leaf in tree.leaves] for tree in one]
    assert found == [[leaf.path for leaf in tree.leaves] for tree in other]
    assert found != [[leaf.path for leaf in tree.leaves] for tree in explored(replace(config, seed=1), groups=10)]
    assert sum(len(branches_of(tree)) for tree in one) > 20
    assert explored(always(), groups=4) == explored(always(branch_rule="random", branch_rate=1.0, alpha=-9.0), groups=4)
    assert branches_of(explored(always(branch_rule="random", branch_rate=0.0))[0]) == []
