"""Rendering, episodes and trees: token in, token out; who wrote what; faults, cuts and overlap."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import groupby
from operator import itemgetter

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy
from user_environments import Forgetful, LastWord, Rounds

from agent_envs.actions import Message, Piece
from agent_envs.faults import EnvironmentFault
from learners.rollout.engine import Engine, Start, as_they_finish, independent
from learners.rollout.episode import Limits
from learners.rollout.rendering import Renderer, TokenizerError
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.tiny import tiny_tokenizer
from learners.sampling.transformers import TransformersSampler

RENDERER = Renderer(TOKENIZER)
END = TOKENIZER.eos_token_id
ENDS = (END, *range(0, 256, 6))  # an untaught policy would hardly ever end its turn by the one right token
CONTROLS = {token.content: index for index, token in TOKENIZER.added_tokens_decoder.items()}


def text_of(ids) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


# Rendering


def test_the_opening_is_the_chat_template_applied_once():
    system, question = Message("system", (Piece("Be brief.", True),)), Message("user", (Piece("What is 2+2?"),))
    template = TOKENIZER.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert RENDERER.opening([system, question]) == template


def test_turns_put_one_after_the_other_are_what_the_template_makes_of_the_whole_conversation():
    ids = RENDERER.opening([Message("user", (Piece("Hello"),))])
    ids += [*TOKENIZER.encode("Hi.", add_special_tokens=False), END]
    ids += RENDERER.observation(Message("user", (Piece("Bye"),)), turn_ended=True)
    roles = ("user", "assistant", "user")
    conversation = [{"role": role, "content": text} for role, text in zip(roles, ("Hello", "Hi.", "Bye"), strict=True)]
    assert ids == TOKENIZER.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)


def test_an_action_that_was_cut_before_its_end_of_turn_gets_one():
    ended = RENDERER.observation(Message("user", (Piece("Bye"),)), turn_ended=True)
    assert RENDERER.observation(Message("user", (Piece("Bye"),)), turn_ended=False) == [END, *ended]


def test_an_inline_observation_goes_on_inside_the_turn_unless_the_policy_ended_it():
    message = Message("assistant", (Piece("<result>", True), Piece("42"), Piece("</result>", True)))
    assert text_of(RENDERER.observation(message, turn_ended=False)) == "<result>42</result>"
    closed = text_of(RENDERER.observation(message, turn_ended=True))
    assert closed == "<|user|><result>42</result><|end|><|assistant|>"


texts = st.lists(
    st.sampled_from([*CONTROLS, "<", "|", ">", "re", "sult>", "</", "é", "\U0001f600", " a\n"]), max_size=8
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(texts, st.booleans()), max_size=6))
def test_only_trusted_text_becomes_control_tokens(pieces):
    ids = RENDERER.encode([Piece(text, trusted) for text, trusted in pieces])
    assert text_of(ids) == "".join(text for text, _ in pieces)
    trusted_runs = ["".join(text for text, _ in run) for trusted, run in groupby(pieces, key=itemgetter(1)) if trusted]
    expected = [token for run in trusted_runs for token in RENDERER.encode([Piece(run, True)]) if token in CONTROLS.values()]
    assert [token for token in ids if token in CONTROLS.values()] == expected


def test_a_control_token_is_not_made_across_a_border_of_trust():
    ids = RENDERER.encode([Piece("<result", True), Piece(">", False)])
    assert CONTROLS["<result>"] not in ids
    assert text_of(ids) == "<result>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokenizer: setattr(tokenizer, "chat_template", None), "no chat template"),
        (lambda tokenizer: setattr(tokenizer, "eos_token", None), "no end-of-turn token"),
    ],
)
def test_a_tokenizer_that_lacks_something_is_refused_in_one_line(change, message):
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    with pytest.raises(TokenizerError, match=message) as caught:
        Renderer(tokenizer)
    assert "\n" not in str(caught.value)


def test_a_template_without_a_system_role_reads_the_instructions_in_the_first_message():
    tokenizer = tiny_tokenizer()
    refusal = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif -%}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    opening = Renderer(tokenizer).opening(
        [Message("system", (Piece("Be brief.", True),)), Message("user", (Piece("2+2?"),))]
    )
    assert text_of(opening) == "<|user|>Be brief.\n\n2+2?<|end|><|assistant|>"


# Trees


def test_a_branch_shares_the_tokens_before_it():
    tree = RolloutTree(task_id="t", question="q", seed=0, version=0)
    root = tree.add("prompt", [1, 2], None, turn=0)
    trunk = tree.add("policy", [3, 4, 5], root, turn=0, logprobs=[-1.0, -2.0, -3.0], entropies=[0.1, 0.2, 0.3])
    branch = tree.add("policy", [6], trunk, turn=0, logprobs=[-4.0], entropies=[0.4], at=1)
    tree.leaves = [Leaf(path=(1,), segment=branch), Leaf(path=(0,), segment=trunk)]
    tokens = tree.tokens(tree.leaves[0])
    assert tokens.ids.tolist() == [1, 2, 3, 6]
    assert tokens.policy.tolist() == [False, False, True, True]
    assert tokens.logprobs.tolist() == [0.0, 0.0, -1.0, -4.0]
    assert tokens.segments.tolist() == [root, root, trunk, branch]
    tree.put_in_order()
    assert [leaf.path for leaf in tree.leaves] == [(0,), (1,)]
    assert tree.tokens(tree.leaves[1]).ids.tolist() == [1, 2, 3, 6]


# Episodes

SHORT = Limits(turn_tokens=12)


def play(make_env, *, groups=3, count=4, deterministic=False, limits=SHORT, temperature=1.0, seed=0):
    model = random_policy()

    async def everything():
        sampler = TransformersSampler(model, TOKENIZER, seed=seed, eos=ENDS, deterministic=deterministic)
        engine = Engine(make_env, sampler, RENDERER, limits=limits, concurrency=64, deterministic=deterministic)
        try:
            return await engine.rollout(
                list(range(groups)),
                lambda group: independent(group, count),
                path=(0, 1),
                group_size=count,
                temperature=temperature,
            )
        finally:
            engine.close()

    return asyncio.run(everything())


def test_paths_hold_exactly_what_was_sampled_and_observed():
    model = random_policy()
    for tree in play(Rounds, limits=Limits(turn_tokens=6, cut_reward=0.0)):
        for leaf in tree.leaves:
            tokens = tree.tokens(leaf)
            expected = full_logprobs(model, tokens.ids.tolist())
            places = tokens.policy.nonzero()[:, 0]
            torch.testing.assert_close(
                tokens.logprobs[places], expected[places - 1, tokens.ids[places]], atol=1e-4, rtol=1e-4
            )
            kinds = [segment.author for segment, _ in tree.path(leaf)]
            assert kinds[0] == "prompt"
            assert all(kind == ("policy" if place % 2 else "tool") for place, kind in enumerate(kinds) if place)


def test_an_episode_is_paid_what_its_environment_pays():
    trees = play(Rounds, limits=Limits(turn_tokens=400, total_tokens=3000))
    ended = [leaf for tree in trees for leaf in tree.leaves if leaf.stop == "terminated"]
    for leaf in ended:
        assert leaf.reward == pytest.approx(0.75)
        assert leaf.success
        assert [turn.observation for turn in leaf.turns] == ["observation 1", "observation 2", "observation 3"]
    assert [tree.task_id for tree in trees] == ["task-0", "task-1", "task-2"]


@pytest.mark.parametrize("limits", [Limits(turn_tokens=3), Limits(turn_tokens=50, total_tokens=20)])
def test_a_trajectory_that_a_token_limit_cuts_is_charged_and_trained_on(limits):
    cut = [(tree, leaf) for tree in play(Rounds, limits=limits) for leaf in tree.leaves if leaf.stop == "length"]
    assert cut
    for tree, leaf in cut:
        assert leaf.reward == pytest.approx(0.25 * len(leaf.turns) - 1.0)
        assert not leaf.success
        assert leaf in tree.survivors()
        assert len(tree.tokens(leaf).ids) <= limits.total_tokens


def test_an_environment_fault_is_no_reward_and_ends_its_own_trajectory_only():
    trees = play(lambda: Rounds(fails=0.3), groups=6, limits=Limits(turn_tokens=6, cut_reward=0.0))
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    faults = [leaf for leaf in leaves if leaf.fault]
    assert 0 < len(faults) < len(leaves) == 24
    assert all(leaf.fault == "engine: the engine is gone" and leaf.stop == "fault" for leaf in faults)
    assert all(leaf not in tree.survivors() for tree in trees for leaf in tree.leaves if leaf.fault)


def test_a_group_whose_engine_never_starts_has_leaves_and_no_tokens():
    class Absent(Rounds):
        def reset(self, **_):
            raise EnvironmentFault("the engine does not start", component="engine")

    for tree in play(Absent, groups=2, count=2):
        assert tree.segments == []
        assert [leaf.path for leaf in tree.leaves] == [(0,), (1,)]
        for leaf in tree.leaves:
            record = tree.trajectory(leaf, environment="Absent", format="plain", split="", step=0, source="")
            assert (record.fault, record.stop, record.token_ids) == ("engine: the engine does not start", "fault", ())


@pytest.mark.parametrize("deterministic", [False, True])
def test_groups_of_named_tasks_are_of_these_tasks(deterministic):
    ids = ["arithmetic:0:6*7", "arithmetic:3:1+2", "arithmetic:1:90-8"]
    starts = [Start(seed=index, path=(0, index), task_id=task_id) for index, task_id in enumerate(ids)]
    make_env = lambda: gym.make("agent_envs/MathTool-v0", disable_env_checker=True)  # noqa: E731

    async def everything():
        sampler = TransformersSampler(random_policy(), TOKENIZER, seed=0, eos=ENDS, deterministic=deterministic)
        engine = Engine(make_env, sampler, RENDERER, limits=SHORT, concurrency=4, deterministic=deterministic)
        explore = lambda group: independent(group, 2)  # noqa: E731
        try:
            async with aclosing(engine.stream(starts, explore, group_size=2, temperature=1.0)) as finished:
                return {index: tree async for index, tree in finished}
        finally:
            engine.close()

    trees = asyncio.run(everything())
    assert [trees[index].task_id for index in range(3)] == ids
    assert trees[1].question == "How much is 1+2?"
    assert all(len(tree.leaves) == 2 for tree in trees.values())


def test_what_finishes_first_comes_first_and_leaving_early_ends_the_rest():
    ended = []

    async def job(number):
        try:
            await asyncio.sleep(number / 50 if number < 3 else 3600)
            return number
        finally:
            ended.append(number)

    async def first_two():
        async with aclosing(as_they_finish(job(number) for number in (3, 2, 1, 4))) as finished:
            return [await anext(finished), await anext(finished)]

    assert asyncio.run(first_two()) == [1, 2]
    assert sorted(ended) == [1, 2, 3, 4]


def test_tools_of_different_episodes_overlap():
    Rounds.most = 0
    play(lambda: Rounds(wait=0.3), groups=4, count=8, limits=Limits(turn_tokens=6))
    assert Rounds.most >= 8  # one after the other it would be 1


def test_a_group_is_of_one_task():
    with pytest.raises(ValueError, match="function of the seed"):
        play(Forgetful)


def test_an_environment_that_is_not_text_is_refused():
    class Numbers(LastWord):
        def reset(self, **_):
            return 3, {}

    with pytest.raises(TypeError, match="text environments"):
        play(Numbers)


def test_deterministic_rollouts_are_equal_bit_for_bit():
    assert play(Rounds, deterministic=True) == play(lambda: Rounds(wait=0.003), deterministic=True)


def test_a_trajectory_survives_its_record(tmp_path):
    from tracebank.trajectory import read_trajectories, write_trajectories

    tree = play(Rounds, groups=1)[0]
    records = [
        tree.trajectory(leaf, environment="tests/Rounds-v0", format="plain", split="train", step=1, source="random")
        for leaf in tree.leaves
    ]
    write_trajectories(tmp_path / "all.jsonl", records)
    assert list(read_trajectories(tmp_path / "all.jsonl")) == records
