"""DAPO: the punishment of length in closed form, what dynamic sampling refuses, and what is done about it."""

from __future__ import annotations

import pytest
from learner_parts import advantages, metrics, played, same_weights, short, tree_of, untaught  # noqa: F401

from learners.dapo import DAPO, DAPOConfig, overlong_punishment
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.run.config import UsageError

PLAIN = {"dynamic_sampling": "off", "overlong": False}


def dapo(*arguments: str) -> None:
    run(DAPOConfig, DAPO, "", arguments)


@pytest.mark.parametrize(
    ("length", "limit", "margin", "punishment"),
    [
        (16_384, 20_480, 4_096, 0.0),  # the paper's numbers: nothing up to the margin,
        (17_408, 20_480, 4_096, -0.25),  # (16384 − 17408) / 4096
        (18_432, 20_480, 4_096, -0.5),
        (20_480, 20_480, 4_096, -1.0),
        (20_481, 20_480, 4_096, -1.0),
        (3, 20, 5, 0.0),
        (16, 20, 5, -0.2),
        (3, 10, 10, -0.3),  # the margin may be all there is
    ],
)
def test_the_punishment_of_length(length, limit, margin, punishment):
    assert overlong_punishment(length, limit=limit, margin=margin) == pytest.approx(punishment, abs=1e-12)


@pytest.mark.parametrize(("model", "total", "margin"), [("tiny", 0, 102), ("other", 0, 819), ("other", 20_480, 4_096)])
def test_the_margin_is_a_fifth_of_the_limit_as_in_the_paper(model, total, margin):
    assert DAPOConfig(model=model, total_tokens=total).overlong_tokens == margin
    assert DAPOConfig(model=model, total_tokens=total, overlong_tokens=7).overlong_tokens == 7


def test_long_trajectories_are_compared_by_what_is_left_of_their_returns():
    # 4 of the prompt, 2 of a tool, and 4, 10, 12 of the policy: 10, 16 and 18 tokens. With limit 20 and margin 5 they are
    # punished by 0, 1/5 and 3/5: what is compared is 1, 0.8 and 0.4, of mean 11/15.
    learner = DAPO(DAPOConfig(total_tokens=20, overlong_tokens=5, scale_by_std=False))
    tree = tree_of([1.0, 1.0, 1.0], [4, 10, 12])
    assert learner.returns(tree).tolist() == pytest.approx([1.0, 0.8, 0.4])
    assert advantages(learner.credit([tree]))[0] == pytest.approx([4 / 15, 1 / 15, -1 / 3], abs=1e-6)
    assert [leaf.reward for leaf in tree.leaves] == [1.0, 1.0, 1.0]  # what is written down is what was paid


def test_a_trajectory_that_was_cut_is_not_punished_twice():
    learner = DAPO(DAPOConfig(total_tokens=20, overlong_tokens=5))
    assert learner.returns(tree_of([-1.0, -1.0], [14, 14], stop="length")).tolist() == [-1.0, -1.0]
    assert learner.returns(tree_of([0.0, 0.0], [14, 14])).tolist() == [-1.0, -1.0]  # as one that just was not


@pytest.mark.parametrize(
    ("rule", "rewards", "successes", "accepted"),
    [
        ("success", [1.0, 1.0, 1.0], [True, True, True], False),
        ("success", [0.0, 0.0, 0.0], [False, False, False], False),
        ("success", [0.0, -1.0, 0.5], [False, False, False], False),  # returns differ, but nobody was right
        ("success", [1.0, 1.0, 0.0], [True, True, False], True),
        ("return", [0.0, -1.0, 0.5], [False, False, False], True),
        ("return", [0.0, 0.0, 0.0], [False, False, False], False),
        ("off", [0.0, 0.0, 0.0], [False, False, False], True),
    ],
)
def test_a_group_that_teaches_nothing_is_refused(rule, rewards, successes, accepted):
    tree = tree_of(rewards, successes=successes)
    assert DAPO(DAPOConfig(dynamic_sampling=rule)).accept(tree) is accepted


def test_what_a_fault_ended_does_not_make_a_difference_in_a_group():
    tree = tree_of([1.0, 1.0, 0.0], successes=[True, True, False])
    tree.leaves[2].fault = "engine: gone"
    assert not DAPO(DAPOConfig()).accept(tree)


def test_groups_may_differ_by_the_punishment_alone():
    learner = DAPO(DAPOConfig(dynamic_sampling="return", total_tokens=20, overlong_tokens=5))
    assert learner.accept(tree_of([1.0, 1.0], [4, 12]))
    assert not learner.accept(tree_of([1.0, 1.0], [3, 4]))


def test_without_what_is_its_own_it_is_grpo():
    trees = [tree_of([1.0, 0.0, 0.5]), tree_of([2.0, 2.0])]
    ours = DAPO(DAPOConfig(**PLAIN, total_tokens=9)).credit(trees)
    theirs = GRPO(GRPOConfig()).credit(trees)
    assert advantages(ours) == advantages(theirs)
    config = DAPOConfig()
    assert (config.clip_low, config.clip_high, config.average, config.kl_coefficient) == (0.2, 0.28, "token-mean", 0.0)


def test_refused_groups_are_replaced_by_others_and_counted(untaught, tmp_path):  # noqa: F811
    dapo(*short(untaught, tmp_path / "run", "--group-size", 2))
    for step, record in enumerate(metrics(tmp_path / "run"), start=1):
        groups: dict[str, set[bool]] = {}
        for trajectory in played(tmp_path / "run", step):
            groups.setdefault(trajectory.task_id, set()).add(trajectory.success)
        telling = sum(len(successes) == 2 for successes in groups.values())
        assert record["groups"] == telling == 4
        assert record["refused"] == len(groups) - telling
    assert sum(record["refused"] for record in metrics(tmp_path / "run")) > 0


def test_a_batch_without_any_group_left_changes_nothing_and_the_run_goes_on(untaught, tmp_path):  # noqa: F811
    options = ["--group-size", 2, "--env", "user_environments:tests/LastWord-v0", "--steps", 1]
    dapo(*short(untaught, tmp_path / "run", *options))
    (record,) = metrics(tmp_path / "run")
    assert (record["groups"], record["refused"]) == (0.0, 8 * 4.0)  # tried eight times
    assert "loss" not in record
    assert same_weights(tmp_path / "run" / "checkpoints" / "step_000001", untaught)


@pytest.mark.parametrize("margin", [-1, 21])
def test_a_margin_that_cannot_be_is_refused(margin):
    with pytest.raises(UsageError, match=rf"--overlong-tokens must be from 1 to the --total-tokens of 20, not {margin}"):
        DAPO(DAPOConfig(total_tokens=20, overlong_tokens=margin))
