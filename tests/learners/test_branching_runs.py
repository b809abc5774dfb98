"""ARPO's branches go on exactly from where they left their parents, in real environments and with the real sampler."""

from __future__ import annotations

import re
import time

import gymnasium as gym
import pytest
import torch
from branching_parts import (
    WANDER,
    Scripted,
    Wander,
    Written,
    actions_of,
    always,
    branches_of,
    digest,
    explored,
    sampled,
    stubborn,
)
from policies import TOKENIZER, full_logprobs, random_policy

from agent_envs.faults import EnvironmentFault
from learners.arpo import ARPO, ARPOConfig
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.metrics import rollout_metrics
from learners.run.players import TooManyFaults, refuse_too_many_faults

# A branch goes on exactly


def assert_replays(tree: RolloutTree, make_env) -> None:
    """Every leaf's whole list of actions, played in a fresh environment, gives what the leaf says."""
    for leaf in tree.leaves:
        environment = make_env()
        observation, _ = environment.reset(seed=tree.seed)
        assert observation == tree.question
        total, ended = 0.0, False
        for action, turn in zip(actions_of(leaf), leaf.turns, strict=True):
            assert not ended
            observation, reward, terminated, truncated, info = environment.step(action)
            assert observation == turn.observation
            total, ended = total + float(reward), terminated or truncated
        assert ended == (leaf.stop == "terminated")
        assert leaf.reward == pytest.approx(total)
        assert leaf.tool_calls == info["tool_calls"]
        assert dict(leaf.score) == info.get("score", {})
        environment.close()


def turns_of_observations(tree: RolloutTree, leaf: Leaf) -> list[str]:
    return [TOKENIZER.decode(segment.ids) for segment, _ in tree.path(leaf) if segment.author == "tool"]


@pytest.mark.parametrize("branch", ["fork", "replay"])
def test_every_path_replays_in_a_fresh_environment(branch):
    trees = explored(always(branch=branch, branches=2, group_size=9), groups=12)
    assert sum(len(branches_of(tree)) for tree in trees) > 20
    for tree in trees:
        assert_replays(tree, Wander)
        for leaf in tree.leaves:  # and the tokens say the same as the record
            seen = turns_of_observations(tree, leaf)
            assert [turn.observation in text for turn, text in zip(leaf.turns, seen, strict=False)] == [True] * len(seen)


def test_copying_and_playing_again_give_the_same_trees():
    assert explored(always(), groups=4) == explored(always(branch="replay"), groups=4)


def counting(path: tuple[int, ...], turn: int) -> Written:
    """Code whose output depends on all that ran before it, and on the interpreter's random generator."""
    own = sum(path) + 2
    if turn == 3:
        return Written(rf"<answer>\boxed{{{own}}}</answer>", (1.0,) * 40)
    code = f"import random; x = globals().get('x', []); x.append({own}); print(turn := {turn}, x, random.random())"
    return Written(f"<python>{code}</python>", (1.0,) * 40)


def math_tool() -> gym.Env[str, str]:
    return gym.make("agent_envs/MathTool-v0", disable_env_checker=True, backend="local")


@pytest.mark.parametrize("branch", ["fork", "replay"])
def test_a_branch_finds_what_its_parent_left_in_the_interpreter(branch):
    config = always(group_size=5, initial_rollouts=1, branch=branch)
    tree = explored(config, math_tool, Scripted(counting))[0]
    assert [leaf.fault for leaf in tree.leaves] == [""] * 5
    assert [leaf.path for leaf in branches_of(tree)] == [(0, 1, 0), (0, 1, 0, 2, 0), (0, 2, 0), (0, 3, 0)]
    assert_replays(tree, math_tool)
    for leaf in branches_of(tree):
        assert len(leaf.turns) == 4
        parent = next(other for other in tree.leaves if other.path == leaf.path[:-2])
        turn = leaf.path[-2]
        assert leaf.turns[:turn] == parent.turns[:turn]
        if turn < 3:  # another action than the parent's, on the same variables
            assert leaf.turns[turn].observation != parent.turns[turn].observation


def test_copies_are_closed_and_their_originals_used_again():
    """Two groups of six play at once: there are up to 2 · 6 originals and 2 · (6 − 2) copies, after any number of groups."""
    opened: set[int] = set()
    most = []

    class Counted(Wander):
        def __init__(self):
            super().__init__()
            opened.add(id(self))

        def __deepcopy__(self, memo):
            twin = Counted()
            twin.history = list(self.history)
            most.append(len(opened))
            return twin

        def close(self):
            opened.discard(id(self))

    explored(always(), Counted, groups=20)
    assert len(most) >= 40
    assert max(most) <= 12 + 8
    assert not opened


# What cannot be copied, and what breaks


def adding(path: tuple[int, ...], turn: int) -> Written:
    text = rf"<answer>\boxed{{{turn}}}</answer>" if turn == 3 else f"<stubborn>{sum(path) + turn}</stubborn>"
    return Written(text, (1.0,) * 40)


NO_COPY = [
    ("Stubborn", r"the environment cannot be copied to branch: tool 'stubborn' cannot be copied: its fidelity is 'none'; "),
    ("Locked", r"the environment cannot be copied to branch: .*Locked.* has no copy: cannot pickle '_thread.lock' object; "),
]


@pytest.mark.parametrize(("name", "says"), NO_COPY)
def test_what_can_never_be_copied_is_refused_before_anything_is_taught_or_played(name, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("learners.run.trainer.open_policy", None)  # not to be called
    arguments = ["--env", f"branching_parts:tests/{name}-v0"]
    with pytest.raises(SystemExit) as caught:
        run(ARPOConfig, ARPO, "", arguments)
    assert caught.value.code == 2
    assert re.fullmatch(f"error: {says}--branch replay plays .*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
    ARPO(ARPOConfig(env=arguments[1], branch="replay"))  # fine
    ARPO(ARPOConfig(env=arguments[1], initial_rollouts=16))  # branches never


def test_a_tool_that_has_no_copy_is_played_again():
    tree = explored(always(branch="replay"), stubborn, Scripted(adding))[0]
    assert len(branches_of(tree)) == 4
    assert_replays(tree, stubborn)


def refusals(tree: RolloutTree) -> list[float]:
    return [value for name, value in tree.notes if name == "branch/refused"]


def test_a_branch_from_a_state_without_a_copy_is_a_fault_of_that_branch_alone():
    """Code of the first path leaves a thread in its interpreter, which has no copy; the second's does not."""

    def script(path, turn):
        if turn == 2:
            return Written(r"<answer>\boxed{7}</answer>", (1.0,) * 40)
        thread = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); "
        code = f"{thread if path[-1] == turn == 0 else ''}print({turn})"
        return Written(f"<python>{code}</python>", (1.0,) * 40)

    tree = explored(always(group_size=4), math_tool, Scripted(script))[0]
    assert [leaf.path for leaf in tree.leaves] == [(0,), (0, 1, 0), (1,), (1, 1, 0)]
    refused = tree.leaves[1]
    assert refused.fault.startswith("copy: ")
    assert "thread" in refused.fault
    assert (len(refused.turns), refused.tool_calls) == (1, 1)
    for leaf in (tree.leaves[0], *tree.leaves[2:]):
        assert (leaf.fault, leaf.stop, len(leaf.turns)) == ("", "terminated", 3)
    assert sorted(refusals(tree)) == [0.0, 1.0]
    metrics = rollout_metrics([tree])
    assert (metrics["branch/refused"], metrics["environment_faults"]) == (0.5, 0.25)


def test_actions_that_answer_differently_when_played_again_end_the_branch_and_the_run_where_that_is_not_rare():
    class Moody(Wander):
        def step(self, action):
            observation, *others = super().step(action)
            return f"{observation} {time.perf_counter_ns()}", *others

    trees = explored(always(branch="replay"), Moody, groups=6)
    branches = [leaf for tree in trees for leaf in branches_of(tree)]
    assert len(branches) > 6
    assert [value for tree in trees for value in refusals(tree)] == [1.0] * len(branches)
    assert sum(len(tree.leaves) for tree in trees) == 6 * 6
    assert [leaf.stop for tree in trees for leaf in tree.survivors()] == ["terminated"] * (36 - len(branches))
    for leaf in branches:
        assert re.match(r"copy: .*Moody.* gave another observation in turn 0 when its actions were played again", leaf.fault)
    with pytest.raises(TooManyFaults, match=r"more than --max-fault-share 10%; 1 times: copy: .*Moody"):
        refuse_too_many_faults((leaf.fault for tree in trees for leaf in tree.leaves), 0.1)


def test_what_breaks_on_a_path_is_raised_as_it_is():
    class Numbers(Wander):
        def reset(self, **_):
            return 3, {}

    with pytest.raises(TypeError, match="text environments"):
        explored(always(), Numbers)


def test_a_fault_while_copying_ends_that_branch_only_and_is_counted():
    class Fragile(Wander):
        def __deepcopy__(self, memo):
            if digest(self.history)[2] % 2:
                raise EnvironmentFault("no room for a copy", component="engine")
            twin = Fragile()
            twin.history = list(self.history)
            return twin

    trees = explored(always(), Fragile, groups=12)
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    faults = [leaf for leaf in leaves if leaf.fault]
    assert len(leaves) == 12 * 6
    assert 5 < len(faults) < sum(len(branches_of(tree)) for tree in trees) - 5
    for leaf in faults:
        assert leaf.fault == "engine: no room for a copy"
        assert len(leaf.path) > 1
        assert len(leaf.turns) == leaf.path[-2]  # as far as its parent was
    assert rollout_metrics(trees)["environment_faults"] == pytest.approx(len(faults) / 72)


def test_a_fault_of_a_path_leaves_the_others_their_branches():
    class Breaking(Wander):
        def step(self, action):
            if digest([*self.history, action])[3] % 4 == 0:
                raise EnvironmentFault("the engine is gone", component="engine")
            return super().step(action)

    for tree in explored(always(group_size=8, initial_rollouts=4), Breaking, groups=12):
        assert len(tree.leaves) == 8
        for leaf in tree.survivors():
            assert leaf.stop == "terminated"


def test_shared_calls_are_counted_once():
    steps = []

    class Counted(Wander):
        def step(self, action):
            steps.append(action)
            return super().step(action)

    trees = explored(always(), Counted, groups=8)
    metrics = rollout_metrics(trees)
    assert metrics["tool_calls_executed"] == len(steps)
    assert metrics["tool_calls"] * 48 > len(steps)


# The real sampler


HALF = ARPOConfig(env=WANDER, group_size=6, initial_rollouts=2, entropy_tokens=4)


@pytest.mark.parametrize("config", [HALF, always(group_size=8, branches=2), always(initial_rollouts=5, branch="replay")])
def test_deterministic_trees_are_equal_however_long_the_tools_take(config):
    """Nor does it come to a standstill where paths wait for each other and the sampler for them all."""
    one = sampled(config, deterministic=True)
    assert sum(len(branches_of(tree)) for tree in one) >= 4
    assert sampled(config, deterministic=True, wait=0.02) == one
    assert sampled(config, deterministic=True, wait=0.002) == one


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_branch_is_written_from_the_shared_tokens(deterministic):
    """Its cache begins as a copy of its parent's: what it samples is as likely as one plain pass over its path says."""
    model = random_policy()
    for tree in sampled(HALF, deterministic=deterministic, wait=0.01):
        assert len(tree.leaves) == 6
        for leaf in tree.leaves:
            history = [tree.question]
            for turn in leaf.turns:
                history.append(turn.action)
                assert turn.observation == digest(history)[:4].hex()
        for leaf in branches_of(tree):
            tokens = tree.tokens(leaf)
            places = tokens.policy.nonzero()[:, 0]
            expected = full_logprobs(model, tokens.ids.tolist())[places - 1, tokens.ids[places]]
            torch.testing.assert_close(tokens.logprobs[places], expected, atol=1e-4, rtol=1e-4)


def test_siblings_have_noise_of_their_own():
    trees = sampled(HALF, deterministic=True)
    for tree in trees:
        written = [tree.tokens(leaf).ids.tolist() for leaf in tree.leaves]
        assert len({tuple(ids) for ids in written}) == len(written)
