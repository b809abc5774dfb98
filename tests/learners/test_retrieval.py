"""How RAPO's rollouts retrieve: when, what, and how it is put into the context; whole runs are in test_retrieval_runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy
from retrieval_parts import (
    CONTROLS,
    RENDERER,
    Script,
    Talk,
    attempts,
    authors,
    bank_of,
    inserted,
    learner_of,
    play,
    some_steps,
    step,
    text_of,
)

from agent_envs.actions import HermesFormat, PlainFormat, TagFormat
from agent_envs.tools.python import PythonTool
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.engine import independent
from learners.rollout.episode import Dialect, Limits
from learners.rollout.rendering import Renderer
from learners.rollout.retrieved import HINT, retrieved_block
from learners.run.metrics import rollout_metrics
from learners.run.retrieval import ADVICE
from learners.run.tiny import TAGS, tiny_tokenizer
from learners.update.batch import rows_of
from learners.update.step import UpdateSettings, update_policy
from tracebank import TraceBank, render_history

# When


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_only_hybrid_trajectories_retrieve_and_each_step_with_the_same_probability(tmp_path, probability):
    bank = bank_of(tmp_path, *some_steps())
    learner = learner_of(bank, hybrid_rollouts=4, retrieve_probability=probability)
    trees = play(learner.explore, groups=8)
    moments = retrievals = undecided = 0
    for tree in trees:
        assert [leaf.path for leaf in tree.leaves] == [(index,) for index in range(6)]
        for leaf in tree.leaves:
            path = authors(tree, leaf)
            # Never before the first step, never twice in a row, and only after an observation.
            assert re.fullmatch("p(wtr?)*w?", path)
            if leaf.path[0] < 2:
                assert "r" not in path
            else:
                moments += path.count("t")
                retrievals += path.count("r")
                undecided += bool(re.search("wtr", path) and re.search("wtw", path))
    assert moments > 80
    within = 4 * math.sqrt(moments * probability * (1 - probability))
    assert abs(retrievals - moments * probability) <= within
    assert (undecided > 8) == (0 < probability < 1)  # each step draws anew, not each trajectory


def test_what_is_put_in_is_a_step_of_the_bank_in_its_tags(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    (tree,) = play(learner_of(bank, hybrid_rollouts=6).explore, groups=1)
    values = {one.value for one in some_steps()}
    found = [text for leaf in tree.leaves for text in inserted(tree, leaf)]
    assert found
    assert set(found) <= values
    for segment in tree.segments:
        if segment.author == "retrieved":
            tags = [token for token in segment.ids if token in CONTROLS.values()]
            assert tags == [CONTROLS[name] for name in ("<retrieve>", "<think>", "</think>", "</retrieve>")]
            assert segment.logprobs == segment.entropies == ()


def test_where_there_is_no_room_nothing_is_put_in(tmp_path):
    bank = bank_of(tmp_path, *(step(f"word {n}", f"{n:03} " + "x" * 300) for n in range(5)))
    limits = Limits(turn_tokens=60, total_tokens=250)
    learner = learner_of(bank, hybrid_rollouts=4, retrieve_probability=1.0)
    for tree in play(learner.explore, limits=limits):
        for leaf in tree.leaves:
            assert "r" not in authors(tree, leaf)
            assert len(tree.tokens(leaf).ids) <= limits.total_tokens
        assert {value for name, value in tree.notes if name == "retrieval/count"} == {0.0}


def test_a_retrieve_tag_of_the_policys_own_triggers_nothing(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    policy = Script("<retrieve>word 3</retrieve>", "<retrieve>\n", "</retrieve>", "stop")
    (tree,) = play(learner_of(bank, hybrid_rollouts=6, retrieve_probability=0.0).explore, sampler=policy, groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtwtwtw"}
    (tree,) = play(learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0).explore, sampler=policy, groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtrwtrwtrw"}


# What


def test_the_question_and_the_policys_own_turns_are_asked_with(tmp_path):
    question = "What is number 0?"
    first, second = f"{question}\nalpha\n<result>\nheard 5\n</result>\n", "beta\n<result>\nheard 4\n</result>\n"
    bank = bank_of(
        tmp_path,
        step(first, "zebra zebra zebra", question="one"),
        step(first + second, "after both", question="two"),
        step("zebra zebra zebra " * 3, "from what was retrieved", question="three"),
        step(f"{first}zebra zebra zebra{second}", "from what was retrieved and both", question="four"),
        step(question, "from the question alone", question="five"),
    )
    learner = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0)
    (tree,) = play(learner.explore, sampler=Script("alpha", "beta", "stop"), groups=1)
    for leaf in tree.leaves:
        assert inserted(tree, leaf) == ["zebra zebra zebra", "after both"]


def test_each_retrieval_is_what_the_bank_answers_to_the_history(tmp_path):
    folder = bank_of(tmp_path, *some_steps())
    (tree,) = play(learner_of(folder, hybrid_rollouts=6).explore, groups=1)
    with TraceBank.open(folder, deterministic=True) as bank:
        for leaf in tree.leaves:
            turns = [segment.turn for segment, _ in tree.path(leaf) if segment.author == "retrieved"]
            asked = [render_history(tree.question, leaf.turns[:turn]) for turn in turns]
            expected = [hits[0].value for hits in bank.query(asked, k=1)] if asked else []
            assert inserted(tree, leaf) == expected


LEAKS = {
    "the task by its id": step("What is number 0?\nalpha", "leak", task="talk-0", question="another text"),
    "the task by its question": step("What is number 0?\nalpha", "leak", question="what is  NUMBER 0?"),
    "a final step": step("What is number 0?\nalpha", "leak", final=True),
}


@pytest.mark.parametrize("what", LEAKS)
def test_what_may_hold_the_answer_is_left_out_unless_it_is_asked_for(tmp_path, what):
    bank = bank_of(tmp_path, LEAKS[what], step("nothing alike", "harmless", task="another"))
    policy = Script("alpha", "stop")
    guarded = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0)
    option = "exclude_final" if what == "a final step" else "exclude_task"
    open_ = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0, **{option: False})
    for learner, expected in ((guarded, ["harmless"]), (open_, ["leak"])):
        (tree,) = play(learner.explore, sampler=policy, groups=1)
        assert all(inserted(tree, leaf) == expected for leaf in tree.leaves)


@pytest.mark.parametrize("retrieved", ["best-match", "best-reward"])
def test_a_bank_that_has_nothing_to_say_is_survived(tmp_path, retrieved):
    bank = bank_of(tmp_path, *LEAKS.values())
    learner = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0, retrieved=retrieved)
    (tree,) = play(learner.explore, sampler=Script("alpha", "beta", "stop"), groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtwtw"}


@pytest.mark.parametrize(
    ("rewards", "match", "reward"),
    [
        ((0.1, 0.9, 0.5, 5.0), "nearest", "second"),  # the fourth is not looked at
        ((0.5, 0.5, 0.5, 5.0), "nearest", "nearest"),  # of equal rewards the most alike
        ((0.0, 0.0, -1.0, 5.0), "nearest", ADVICE),  # none of the three earned anything
        ((-1.0, 0.0, 1e-3, 5.0), "nearest", "third"),
    ],
)
def test_the_most_alike_step_or_the_best_rewarded_of_three(tmp_path, rewards, match, reward):
    history = "What is number 0?\nalpha\n<result>\nheard 5\n</result>\n"
    keys = (history, history + "and", history + "and something", history + "and something else that is far away from it")
    names = ("nearest", "second", "third", "fourth")
    folder = bank_of(tmp_path, *(step(key, name, reward=paid) for key, name, paid in zip(keys, names, rewards, strict=True)))
    with TraceBank.open(folder) as bank:
        assert tuple(hit.value for hit in bank.query([history], k=4)[0]) == names
    for retrieved, expected in (("best-match", match), ("best-reward", reward)):
        learner = learner_of(folder, hybrid_rollouts=6, retrieve_probability=1.0, retrieved=retrieved)
        (tree,) = play(learner.explore, sampler=Script("alpha", "stop"), groups=1)
        assert inserted(tree, tree.leaves[0]) == [expected]


# Controls: random steps, whole trajectories


def test_noise_takes_every_step_that_may_be_shown_and_no_other(tmp_path):
    allowed = [step("far from anything", f"step {n}", task="another") for n in range(5)]
    alike = step("What is number 0?\nalpha", "the most alike", task="another")
    leaks = [replace(leak, task_id="another") if leak.final else leak for leak in LEAKS.values()]
    bank = bank_of(tmp_path, *leaks, *allowed, alike)

    def drawn(**options) -> Counter[str]:
        found = Counter()
        for seed in range(20):
            learner = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0, noise=1.0, seed=seed, **options)
            (tree,) = play(learner.explore, sampler=Script("alpha", "beta", "stop"), groups=1)
            found.update(text for leaf in tree.leaves for text in inserted(tree, leaf))
        return found

    guarded = drawn()
    assert guarded.keys() == {one.value for one in (*allowed, alike)}
    assert guarded.total() == 20 * 6 * 2
    assert all(abs(times - 40) < 4 * math.sqrt(240 * 1 / 6 * 5 / 6) for times in guarded.values())
    assert "leak" in drawn(exclude_task=False)
    assert "leak" in drawn(exclude_final=False)


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_each_retrieval_is_random_with_that_probability_and_its_moment_stays(tmp_path, noise):
    bank = bank_of(tmp_path, step("What is number\nalpha beta", "alike"), *(step("zzz", f"other {n}") for n in range(99)))
    policy = Script("alpha", "beta", "alpha beta", "beta alpha", "stop")
    options = {"hybrid_rollouts": 6, "exclude_task": False}
    found = [play(learner_of(bank, noise=share, **options).explore, sampler=policy, groups=20) for share in (0.0, noise)]
    plain, noisy = (
        [(authors(tree, leaf), inserted(tree, leaf)) for tree in trees for leaf in tree.leaves] for trees in found
    )
    assert [path for path, _ in plain] == [path for path, _ in noisy]
    assert {text for _, texts in plain for text in texts} == {"alike"}
    texts = [text for _, texts in noisy for text in texts]
    replaced = sum(text != "alike" for text in texts)
    assert abs(replaced - noise * 0.99 * len(texts)) < 4 * math.sqrt(len(texts) * noise * (1 - noise))


def test_a_random_step_is_taken_whatever_it_earned(tmp_path):
    bank = bank_of(tmp_path, step("anything", "earned nothing", reward=0.0))
    options = {"hybrid_rollouts": 6, "retrieve_probability": 1.0, "retrieved": "best-reward"}
    for noise, expected in ((0.0, ADVICE), (1.0, "earned nothing")):
        (tree,) = play(learner_of(bank, noise=noise, **options).explore, sampler=Script("alpha", "stop"), groups=1)
        assert inserted(tree, tree.leaves[0]) == [expected]


def test_a_whole_trajectory_goes_in_once_and_without_the_step_that_ended_it(tmp_path):
    trajectories = attempts()
    bank = bank_of(tmp_path, *(one for steps in trajectories for one in steps))
    policy = Script("move 1", "saw 2 1", "saw 2 1", "stop")  # what was done counts for nothing: the question decides
    learner = learner_of(bank, hybrid_rollouts=4, retrieve_probability=1.0, retrieve_level="trajectory")
    (tree,) = play(learner.explore, sampler=policy, groups=1)
    with TraceBank.open(bank, deterministic=True) as opened:
        ((nearest,),) = opened.query([tree.question], k=1, steps=range(1))
    expected = next(steps for steps in trajectories if steps[0].key == nearest.key)
    assert [authors(tree, leaf) for leaf in tree.leaves] == ["pwtwtwtw"] * 2 + ["pwtrwtwtw"] * 4
    for leaf in tree.leaves[2:]:
        assert inserted(tree, leaf) == ["".join(one.value for one in expected[:-1])]
    open_ = learner_of(bank, hybrid_rollouts=4, retrieve_probability=1.0, retrieve_level="trajectory", exclude_final=False)
    (tree,) = play(open_.explore, sampler=policy, groups=1)
    assert inserted(tree, tree.leaves[2]) == ["".join(one.value for one in expected)]


def test_no_trajectory_of_the_running_task_and_none_that_ended_at_once(tmp_path):
    own = [replace(one, question="What is number 0?") for one in attempts(1)[0]]
    ended = step("What is number 0?", "leak", number=0, final=True, question="another")
    other = attempts(5)[4]
    bank = bank_of(tmp_path, *own, ended, *other)
    options = {"hybrid_rollouts": 6, "retrieve_probability": 1.0, "retrieve_level": "trajectory"}
    for noise in (0.0, 1.0):
        (tree,) = play(learner_of(bank, noise=noise, **options).explore, sampler=Script("alpha", "stop"), groups=1)
        assert all(inserted(tree, leaf) == ["".join(one.value for one in other[:2])] for leaf in tree.leaves)


def test_random_trajectories_are_whole_as_well(tmp_path):
    trajectories = attempts()
    bank = bank_of(tmp_path, *(one for steps in trajectories for one in steps))
    options = {"retrieve_probability": 1.0, "retrieve_level": "trajectory", "noise": 1.0}
    trees = play(learner_of(bank, hybrid_rollouts=6, **options).explore, sampler=Script("alpha", "stop"), groups=12)
    found = {text for tree in trees for leaf in tree.leaves for text in inserted(tree, leaf)}
    assert found == {"".join(one.value for one in steps[:-1]) for steps in trajectories}


@pytest.mark.parametrize("options", [{}, {"noise": 0.5}, {"retrieve_level": "trajectory", "noise": 0.5}])
def test_explorations_are_equal_though_the_bank_is_asked_from_threads(tmp_path, options):
    bank = bank_of(tmp_path, *some_steps(), *(one for steps in attempts() for one in steps))
    first = play(learner_of(bank, hybrid_rollouts=4, **options).explore, groups=3)
    second = play(learner_of(bank, hybrid_rollouts=4, **options).explore, groups=3, make_env=lambda: Talk(wait=0.003))
    assert first == second
    assert any(segment.author == "retrieved" for tree in first for segment in tree.segments)
    other = play(learner_of(bank, hybrid_rollouts=4, seed=1, **options).explore, groups=3)
    assert [authors(tree, leaf) for tree in first for leaf in tree.leaves] != [
        authors(tree, leaf) for tree in other for leaf in tree.leaves
    ]


@pytest.mark.parametrize(("value", "copied"), [("the sum is 17", 0.0), ("the sum is 7, I think", 1.0), ("7", 1.0)])
def test_answers_are_copied_only_as_whole_words(tmp_path, value, copied):
    bank = bank_of(tmp_path, step("anything", value, format="tag"))
    learner = learner_of(bank, env="MathTool-v0", hybrid_rollouts=3, retrieve_probability=1.0)
    make_env = lambda: gym.make("agent_envs/MathTool-v0", disable_env_checker=True)  # noqa: E731
    policy = Script("no move", "<answer>\\boxed{ 7 }</answer>")
    (tree,) = play(learner.explore, make_env=make_env, sampler=policy, groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtw", "pwtrw"}
    noted = [number for name, number in tree.notes if name == "retrieval/answers_copied"]
    assert noted == [copied] * 3


def test_the_share_is_of_the_tokens_that_the_options_count(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    for length in ("trace", "block"):
        for sequence in ("all", "response"):
            learner = learner_of(bank, hybrid_rollouts=4, shaping=0.2, fret_length=length, sequence_length=sequence)
            (tree,) = play(learner.explore, groups=1)
            tree.measured = {leaf.path: torch.ones(len(tree.tokens(leaf).ids)) for leaf in tree.leaves}
            ((*terms,),) = learner.credit([tree])
            scaled = 0
            for leaf, own in zip(tree.leaves, terms, strict=True):
                blocks = [len(segment.ids) for segment, _ in tree.path(leaf) if segment.author == "retrieved"]
                # The tags are <retrieve>, a new line, a new line, </retrieve>, a new line.
                counted = sum(blocks) - (5 * len(blocks) if length == "trace" else 0)
                whole = len(tree.tokens(leaf).ids) - (len(tree.segments[0].ids) if sequence == "response" else 0)
                assert own.ratio_scale[0] == pytest.approx(1 + 0.2 * counted / whole)
                scaled += counted > 0
            assert scaled


def test_a_step_that_grows_together_with_its_tags_counts_as_by_itself(tmp_path):
    """A tokenizer that has the new line after the tag and the first word of the step in one token."""
    tokenizer = tiny_tokenizer(vocabulary=("\nalready ",))
    trace = "already known"
    bank = bank_of(tmp_path, step("anything", trace))
    learner = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0, shaping=0.2)
    policy = Script("alpha", "stop", tokenizer=tokenizer)
    (tree,) = play(learner.explore, sampler=policy, groups=1, tokenizer=tokenizer)
    tree.measured = {leaf.path: torch.ones(len(tree.tokens(leaf).ids)) for leaf in tree.leaves}
    ((terms, *_),) = learner.credit([tree])
    (block,) = [len(segment.ids) for segment, _ in tree.path(tree.leaves[0]) if segment.author == "retrieved"]
    counted = len(tokenizer.encode(trace))
    assert counted == len(trace)  # a token a letter, in the block only one for most of them
    assert block == 5 - 1 + 1 + len("known")
    assert terms.ratio_scale[0] == pytest.approx(1 + 0.2 * counted / len(tree.tokens(tree.leaves[0]).ids))


def test_the_strongest_shaping_of_a_batch_is_a_metric(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    learner = learner_of(bank, hybrid_rollouts=4, shaping=0.2)
    trees = play(learner.explore)
    for tree in trees:
        tree.measured = {leaf.path: torch.ones(len(tree.tokens(leaf).ids)) for leaf in tree.leaves}
    scales = [float(terms.ratio_scale[0]) for group in learner.credit(trees) for terms in group]
    assert rollout_metrics(trees)["retrieval/shaping_max"] == pytest.approx(max(scales) - 1, rel=1e-5)
    assert max(scales) > 1


# How it is put into the context


@pytest.mark.parametrize("length", ["trace", "block"])
def test_a_hint_stands_before_each_block_and_belongs_to_it(tmp_path, length):
    bank = bank_of(tmp_path, step("anything", "known"))
    options = {"hybrid_rollouts": 3, "retrieve_probability": 1.0, "shaping": 0.2, "fret_length": length}
    learner = learner_of(bank, retrieve_hint="inline", **options)
    (tree,) = play(learner.explore, sampler=Script("alpha", "beta", "stop"), groups=1)
    tree.measured = {leaf.path: torch.ones(len(tree.tokens(leaf).ids)) for leaf in tree.leaves}
    (terms,) = learner.credit([tree])
    blocks = [segment for segment, _ in tree.path(tree.leaves[-1]) if segment.author == "retrieved"]
    assert [text_of(block.ids) for block in blocks] == [HINT + "<retrieve>\nknown\n</retrieve>\n"] * 2
    counted = 2 * (len("known") if length == "trace" else len(HINT) + 5 + len("known"))
    assert terms[-1].ratio_scale[0] == pytest.approx(1 + 0.2 * counted / len(tree.tokens(tree.leaves[-1]).ids))


PYTHON = Dialect(TagFormat(), "", (PythonTool(),))
pieces = st.lists(
    st.sampled_from([*CONTROLS, "</retrie", "ve>", "</", "<", ">", "retrieve>", "é", "\U0001f600", " a\n", "7"]), max_size=12
)


@settings(max_examples=400, deadline=None)
@given(pieces.map("".join))
def test_a_block_is_closed_once_and_holds_no_control_token_but_the_formats(trace):
    ids = RENDERER.encode(retrieved_block(trace, PYTHON))
    tokens = [TOKENIZER.convert_ids_to_tokens(token) for token in ids if token in CONTROLS.values()]
    read = text_of(ids)
    assert read == "<retrieve>\n" + trace.replace("</retrieve>", "</ retrieve>") + "\n</retrieve>\n"
    assert read.count("</retrieve>") == 1
    assert tokens[0] == "<retrieve>"
    assert tokens[-1] == "</retrieve>"
    # The tags of the format, each time that they are spelled, and nothing else: no end of a turn above all.
    assert tokens[1:-1] == re.findall("</?(?:think|python|result|answer)>", trace)


def test_a_block_in_another_format_has_that_formats_tags():
    tokenizer = tiny_tokenizer(tags=(*TAGS, "tool_call", "tool_response"))
    controls = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    trace = '<think>so</think><tool_call>{"name": "python"}</tool_call>\n<result>\n<python> <|end|></result>'
    for format, expected in (
        (HermesFormat(), ["think", "/think", "tool_call", "/tool_call", "result", "/result"]),
        (PlainFormat(), ["think", "/think", "result", "/result"]),
    ):
        ids = Renderer(tokenizer).encode(retrieved_block(trace, Dialect(format, "", (PythonTool(),))))
        found = [token for token in ids if token in controls.values()]
        assert found == [controls[f"<{name}>"] for name in ("retrieve", *expected, "/retrieve")]


def test_log_probabilities_are_those_with_the_retrieved_text_in_context(tmp_path):
    """The sampler's, the trainer's old and its present ones; without the retrieved tokens they would be others."""
    bank = bank_of(tmp_path, *some_steps())
    learner = learner_of(bank, hybrid_rollouts=4)
    model = random_policy()
    trees = play(learner.explore)
    without = 0.0
    for tree in trees:
        for leaf in tree.leaves:
            tokens = tree.tokens(leaf)
            tree.measured[leaf.path] = torch.ones(len(tokens.ids))
            places = tokens.policy.nonzero()[:, 0]
            expected = full_logprobs(model, tokens.ids.tolist())[places - 1, tokens.ids[places]]
            torch.testing.assert_close(tokens.logprobs[places], expected, atol=1e-4, rtol=1e-4)
            author = [segment.author for segment, count in tree.path(leaf) for _ in range(count)]
            kept = torch.tensor([who != "retrieved" for who in author])
            bare = tokens.ids[kept]
            written = tokens.policy[kept].nonzero()[:, 0]
            found = full_logprobs(model, bare.tolist())[written - 1, bare[written]]
            without = max(without, float((found - expected).abs().max()))
    assert without > 0.1
    rows = rows_of(trees, learner.credit(trees))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = update_policy(
        model, optimizer, rows, learner.surrogate, UpdateSettings(epochs=2, minibatch_groups=1), orders=[[0, 1], [1, 0]]
    )
    assert metrics["mismatch_max"] < 1e-4
    assert metrics["kl_old"] < 1e-8


# Without hybrid trajectories it is GRPO


def test_without_hybrid_trajectories_trees_and_credit_are_grpos():
    ours = learner_of(None, hybrid_rollouts=0)
    theirs = learner_of(None, GRPO, GRPOConfig)
    trees = play(ours.explore)
    assert trees == play(theirs.explore) == play(lambda group: independent(group, 6))
    credit, other = ours.credit(trees), theirs.credit(trees)
    assert any(terms.advantage.any() for group in credit for terms in group)
    for one, two in zip([t for g in credit for t in g], [t for g in other for t in g], strict=True):
        assert torch.equal(one.advantage, two.advantage)
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.ratio_scale, two.ratio_scale)
    assert not ours.measure
