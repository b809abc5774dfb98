"""The lab: that its task is what it says, that its policy can begin it, and that its table counts right."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import gymnasium as gym
import learning
import numpy as np
import pytest
from lab.results import Arms, first_crossing, table
from lab.task import COLOURS, RULE, SIGNS, environment, house_of, move_for

from agent_envs.moves import Answer, Call
from agent_envs.testing import check_agent_env


def played(seed: int, choose=move_for) -> tuple[list[str], bool]:
    """The texts of an episode, and whether it was solved."""
    env = environment()
    text, _ = env.reset(seed=seed)
    texts, ended = [text], False
    while not ended:
        text, _, terminated, truncated, info = env.step(env.format.write(choose(text), env.tools))
        texts.append(text)
        ended = terminated or truncated
    return texts, info["success"]


def test_the_environment_keeps_what_environments_promise():
    check_agent_env("lab.task:Lab-v0", profile="quick").raise_if_broken()


def test_the_right_moves_solve_every_task_in_four_calls():
    kinds = Counter()
    for seed in range(200):
        texts, success = played(seed)
        assert success
        assert len(texts) == 6
        met = [text.split()[0] for text in texts[1:5]]
        locked = met == ["locked", "locked", "locked", "end"]
        assert locked or (f" {met[0]}" in SIGNS and met[1] == "on" and f" {met[2]}" in SIGNS and met[3] == "end")
        kinds["locked" if locked else "sign"] += 1
    assert 0.3 < kinds["locked"] / 200 < 0.5  # 0.4, 2.9 standard deviations


def test_a_wrong_door_looks_like_a_right_one_and_leads_elsewhere():
    def wrong(text):
        move = move_for(text)
        words = [f" {word}" for word in text.split()]
        if words[0] not in RULE:
            return move if isinstance(move, Answer) or move.tool == "go" else Call("go", move.arguments)
        colour = COLOURS[(COLOURS.index(RULE[words[0]]) + 1) % 4]
        return Call("go", {"door": colour + words[words.index(colour) + 1]})

    solved = 0
    for seed in range(100):
        texts, success = played(seed, wrong)
        assert [len(text.split()) for text in texts] == [len(text.split()) for text in played(seed)[0]]
        solved += success
    assert solved <= 8  # the end is one of 64 rooms


def test_the_rule_is_even_and_a_house_depends_on_its_question_alone():
    assert Counter(RULE.values()) == dict.fromkeys(COLOURS, 2)
    assert house_of(" begin bak bok buk") == house_of.__wrapped__(" begin bak bok buk")
    assert house_of(" begin bak bok buk") != house_of(" begin bak buk bok")


def test_a_door_that_is_not_there_is_the_policys_own_mistake():
    env = environment()
    env.reset(seed=0)
    text, _, terminated, _, info = env.step("<go> red bak</go>")
    assert (text, terminated, info["policy_fault"]) == (" no such door", False, "error")


def rows(name: str, curves: list[list[tuple[float, float]]], finals: list[float]) -> list[dict]:
    """Rows of an arm: (cost, success) at each evaluation, seed by seed."""
    return [
        {
            "arm": name,
            "seed": seed,
            "test": {"sampled": final, "greedy": final},
            "curve": [
                dict.fromkeys(("trajectories", "tool_calls", "tokens_generated", "tokens_processed", "seconds"), cost)
                | {"success": success}
                for cost, success in curve
            ],
            "retrievals": {},
        }
        for seed, (curve, final) in enumerate(zip(curves, finals, strict=True))
    ]


def test_a_curve_crosses_a_level_where_a_straight_line_does():
    costs, successes = np.array([0.0, 10.0, 20.0]), np.array([0.1, 0.3, 0.5])
    assert first_crossing(costs, successes, 0.4) == pytest.approx(15.0)
    assert first_crossing(costs, successes, 0.05) == 0.0
    assert first_crossing(costs, successes, 0.6) == math.inf


def test_the_table_compares_arms_on_equal_seeds():
    # The baseline ends at 0.5 (its last three evaluations) and is there at 30; the other passes 0.5 at 15: half of that.
    grpo = rows("grpo", [[(0, 0.1), (30, 0.5), (40, 0.5), (50, 0.5)]] * 3, [0.5, 0.4, 0.6])
    other = rows("arpo", [[(0, 0.1), (10, 0.4), (20, 0.6), (25, 0.6)]] * 3, [0.55, 0.45, 0.65])
    arms = Arms([*grpo, *other], "grpo")
    assert arms.interval(arms.cost_ratio("arpo", "tool_calls")) == pytest.approx((0.5, 0.5, 0.5))
    assert arms.interval(arms.gain("arpo", "greedy")) == pytest.approx((0.05, 0.05, 0.05))  # pairs do not vary
    low, high = arms.interval(arms.final("arpo", "sampled"))[1:]
    assert low < 0.55 < high
    # At 25, all that the other paid, the baseline's line is at 0.1 + 0.4 · 25 / 30.
    assert arms.at_equal("arpo", "seconds")(range(3)) == pytest.approx(0.6 - (0.1 + 0.4 * 25 / 30))
    never = Arms([*grpo, *rows("rapo", [[(0, 0.1), (10, 0.2), (20, 0.2), (30, 0.2)]] * 3, [0.2] * 3)], "grpo")
    assert "never" in table(never)


def test_seeds_that_an_arm_has_not_run_yet_are_left_out():
    grpo = rows("grpo", [[(0, 0.1), (1, 0.2), (2, 0.3)]] * 3, [0.1, 0.2, 0.3])
    arms = Arms([*grpo, *rows("rapo", [[(0, 0.1), (1, 0.2), (2, 0.3)]] * 2, [0.1, 0.2])], "grpo")
    assert arms.seeds == [0, 1]


def test_rows_are_read_and_the_environment_is_found_by_its_name(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert learning.read(path) == []
    written = [{"arm": arm, "seed": seed} for arm, seed in (("rapo", 1), ("grpo", 2), ("grpo", 1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    assert learning.read(path) == written[::-1]
    assert gym.make("lab.task:Lab-v0", split="test").unwrapped.split == "test"


def test_the_page_has_the_table_of_the_rows():
    root = Path(__file__).parents[2]
    arms = Arms(learning.read(root / "benchmarks" / "learning.jsonl"), "grpo")
    page = (root / "docs" / "learners.md").read_text()
    assert table(arms) in page, "python benchmarks/learning.py --table prints the right one"
