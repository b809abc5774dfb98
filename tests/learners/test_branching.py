"""ARPO's trees: which branches there are, where they begin, and that each goes on exactly from where it left its parent."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy

from agent_envs import Tool, ToolEnv
from agent_envs.faults import EnvironmentFault
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.verifiers.math import MathVerifier
from learners.arpo import ARPO, ARPOConfig
from learners.rollout.engine import Engine
from learners.rollout.episode import Limits
from learners.rollout.rendering import Renderer
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.config import UsageError
from learners.run.metrics import rollout_metrics
from learners.sampling.sampler import Continuation
from learners.sampling.transformers import TransformersSampler

RENDERER = Renderer(TOKENIZER)
END = TOKENIZER.eos_token_id
ENDS = (END, *range(0, 256, 6))  # an untaught policy would hardly ever end its turn by the one right token
FIRST = (0, 1)  # names the batch; a group's place is this and its index
VOCABULARY = 16


# An environment whose every observation depends on all that was done before it


def digest(history: list[str]) -> bytes:
    return hashlib.blake2b("|".join(history).encode()).digest()


def is_over(history: list[str]) -> bool:
    """Whether an episode ends with these, its question and its actions so far: between one turn and five."""
    return digest(history)[0] % 3 == 0 or len(history) == 6


class Wander(gym.Env[str, str]):
    """Observations are digests of the whole history, and so is where it ends."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(200)

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.history = [f"question {seed}"]
        return self.history[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.wait:
            time.sleep(np.random.default_rng().random() * self.wait)  # nobody's seed
        self.history.append(action)
        found = digest(self.history)
        return found[:4].hex(), found[1] / 256, is_over(self.history), False, {"tool_calls": len(self.history) - 1}


# A policy that is a function of a path and a turn, behind the contract of a sampler


@dataclass(frozen=True)
class Written:
    """What the policy writes in one turn."""

    text: str
    entropies: tuple[float, ...]


def drawn(path: tuple[int, ...], turn: int) -> Written:
    """One to six letters, each as unsure as chance will have it; the end of the turn is sure."""
    rng = np.random.default_rng([*path, 0, turn])
    length = int(rng.integers(1, 7))
    return Written("".join(rng.choice(list("abcd"), length)), (*rng.uniform(0, 3, length).tolist(), 0.0))


class Scripted:
    """A sampler that writes what a function of path and turn says, and takes its time."""

    entropy = "full"
    version = 0
    vocabulary = VOCABULARY

    def __init__(self, script=drawn, patience: int = 3) -> None:
        self.script, self.patience = script, patience
        self.rng = np.random.default_rng()  # of arrival, which must not matter
        self.live: set[tuple[int, ...]] = set()
        self.most = 0
        self.deserted = 0  # times that the loop went on with no stream
        self.alone = False

    def start(self, path):
        return ScriptedStream(self, path)

    def load_weights(self, parameters, version): ...

    def release_memory(self): ...


class ScriptedStream:
    def __init__(self, sampler: Scripted, path: tuple[int, ...]) -> None:
        self.path, self.ids, self.turn, self.began = path, [], 0, 0
        self.sampler = sampler
        self.action: Continuation
        assert path not in sampler.live
        sampler.live.add(path)
        sampler.alone = False
        sampler.most = max(sampler.most, len(sampler.live))

    def append(self, ids):
        self.ids.extend(ids)

    def decode(self, decoding):
        written = self.sampler.script(self.path, self.turn)
        stopped = any(written.text.endswith(stop) for stop in decoding.stop)
        ids = [*TOKENIZER.encode(written.text, add_special_tokens=False), *([] if stopped else [END])]
        entropies = (*written.entropies, *[0.0] * len(ids))[: len(ids)]
        self.action = Continuation(tuple(ids), (-1.0,) * len(ids), entropies, written.text, "stop" if stopped else "eos")
        self.began = len(self.ids)
        self.ids.extend(ids)
        self.turn += 1

    async def first(self, k):
        await self.pause()
        action = self.action
        return Continuation(action.ids[:k], action.logprobs[:k], action.entropies[:k], "", None)

    async def rest(self):
        await self.pause()
        return self.action

    async def pause(self):
        for _ in range(int(self.sampler.rng.integers(1 + self.sampler.patience))):
            await asyncio.sleep(0)

    def fork(self, path, at=None):
        twin = ScriptedStream(self.sampler, path)
        twin.ids = self.ids[:at]
        twin.turn = self.turn if at is None or at > self.began else self.turn - 1
        return twin

    def park(self): ...

    def unpark(self): ...

    def cancel(self):
        if self.path in self.sampler.live:
            self.sampler.live.discard(self.path)
            asyncio.get_running_loop().call_soon(self.look_around)

    def look_around(self):
        alone = not self.sampler.live
        self.sampler.deserted += alone and not self.sampler.alone
        self.sampler.alone = alone


ROOMY = Limits(turn_tokens=300, total_tokens=6000)


def explored(config: ARPOConfig, make_env=Wander, sampler=None, *, groups=1, limits=ROOMY, deterministic=False):
    """The trees of some groups."""

    async def everything():
        own = Scripted() if sampler is None else sampler
        engine = Engine(
            make_env, own, RENDERER, limits=limits, concurrency=2 * config.group_size, deterministic=deterministic
        )
        try:
            play = engine.rollout(
                list(range(groups)), ARPO(config).explore, path=FIRST, group_size=config.group_size, temperature=1.0
            )
            return await asyncio.wait_for(play, 120)
        finally:
            engine.close()

    return asyncio.run(everything())


def actions_of(leaf: Leaf) -> list[str]:
    return [turn.thought + turn.action for turn in leaf.turns]


def branches_of(tree: RolloutTree) -> list[Leaf]:
    return [leaf for leaf in tree.leaves if len(leaf.path) > 1]


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
def configs(draw, rules=("threshold", "coin")):
    most = draw(st.integers(2, 9))
    return ARPOConfig(
        group_size=most,
        initial_rollouts=draw(st.integers(1, most)),
        branches=draw(st.integers(1, 4)),
        branch_rule=draw(st.sampled_from(rules)),
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


def always(**options) -> ARPOConfig:
    """Branches wherever it may."""
    return ARPOConfig(**{"group_size": 6, "initial_rollouts": 2, "alpha": 1.0, "beta": 0.0} | options)


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
        config = ARPOConfig(group_size=16, initial_rollouts=15, **options)
        trees = explored(config, TwoTurns, Scripted(script, patience), groups=60)
        names = {name for tree in trees for name, _ in tree.notes}
        assert names == {"branch/turn_1"}
        return [[wish for _, wish in tree.notes] for tree in trees]

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


class Stubborn(Tool):
    """Adds up what it is given."""

    fidelity = "none"

    def reset(self, task, rng):
        self.total = 0

    def run(self, amount: int) -> str:
        self.total += amount
        return str(self.total)


def adding(path: tuple[int, ...], turn: int) -> Written:
    text = rf"<answer>\boxed{{{turn}}}</answer>" if turn == 3 else f"<stubborn>{sum(path) + turn}</stubborn>"
    return Written(text, (1.0,) * 40)


def stubborn() -> ToolEnv:
    return ToolEnv(tasks=Arithmetic(), tools=[Stubborn()], verifier=MathVerifier(), max_turns=4)


def test_a_tool_that_has_no_copy_is_named_and_the_way_out():
    with pytest.raises(UsageError, match=r"'stubborn' cannot be copied.*--branch replay") as caught:
        explored(always(), stubborn, Scripted(adding), groups=3)
    assert "\n" not in str(caught.value)


def test_a_tool_that_has_no_copy_is_played_again():
    tree = explored(always(branch="replay"), stubborn, Scripted(adding))[0]
    assert len(branches_of(tree)) == 4
    assert_replays(tree, stubborn)


def test_an_environment_that_python_cannot_copy_is_named_too():
    class Locked(Wander):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(UsageError, match=r"Locked.* has no copy: cannot pickle '_thread.lock' object; --branch replay"):
        explored(always(), Locked)


def test_an_environment_that_answers_differently_when_played_again_is_refused():
    class Moody(Wander):
        def step(self, action):
            observation, *others = super().step(action)
            return f"{observation} {time.perf_counter_ns()}", *others

    with pytest.raises(UsageError, match=r"--branch replay cannot make a branch: .*Moody.* another observation in turn 0"):
        explored(always(branch="replay"), Moody)


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


def sampled(config, *, deterministic, wait=0.0, groups=4):
    sampler = TransformersSampler(random_policy(), TOKENIZER, seed=config.seed, eos=ENDS, deterministic=deterministic)
    limits = Limits(turn_tokens=12, total_tokens=600)
    return explored(config, lambda: Wander(wait), sampler, groups=groups, limits=limits, deterministic=deterministic)


HALF = ARPOConfig(group_size=6, initial_rollouts=2, entropy_tokens=4)


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
