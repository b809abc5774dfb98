"""Arithmetic tasks: right, short, split by content, made again from their ids."""

import re
from collections import Counter

import numpy as np
import pytest

from agent_envs.actions import Answer, Call
from agent_envs.task import SPLITS, UnknownTask, normalise_question, split_of
from agent_envs.tasks.arithmetic import PHRASINGS, Arithmetic


def draw(count, split="train", seed=0, **settings):
    rng = np.random.default_rng(seed)
    source = Arithmetic(**settings)
    return [source.sample(rng, split) for _ in range(count)]


def expression_of(task):
    return re.search(r"[0-9+*()-]*[0-9][0-9+*()-]*", task.question)[0]


def test_the_answer_is_the_value_of_the_expression_in_the_question():
    for task in draw(500):
        assert task.answers == (str(eval(expression_of(task))),)


def test_questions_are_short_and_values_small():
    tasks = draw(1000)
    lengths = [len(task.question) for task in tasks]
    assert min(lengths) >= 12
    assert max(lengths) <= 60
    assert all(len(task.answers[0].lstrip("-")) <= 6 for task in tasks)
    assert len({task.question for task in tasks}) > 950
    assert len({re.sub(r"[0-9+*()-]+", "", task.question) for task in tasks}) == len(PHRASINGS)


def test_every_operator_and_parentheses_occur():
    text = "".join(expression_of(task) for task in draw(300))
    assert set("+-*()0123456789") == set(text)


@pytest.mark.parametrize("difficulty", [1, 2, 5, 8, [1, 4]])
def test_difficulty_is_the_number_of_operations(difficulty):
    allowed = {difficulty} if isinstance(difficulty, int) else set(difficulty)
    counts = Counter(len(re.findall(r"[+*-]", expression_of(task))) for task in draw(200, difficulty=difficulty))
    assert set(counts) == allowed
    assert {task.metadata["difficulty"] for task in draw(50, difficulty=difficulty)} == allowed


@pytest.mark.parametrize("difficulty", [0, 9, [], [2, 0], "2", 1.5])
def test_a_difficulty_out_of_range(difficulty):
    with pytest.raises(ValueError, match="difficulty is a number of operations"):
        Arithmetic(difficulty)


def test_the_same_generator_state_gives_the_same_task():
    assert draw(20, seed=3) == draw(20, seed=3) != draw(20, seed=4)


def test_splits_are_disjoint_by_content_and_ids_make_tasks_again():
    seen = {}
    for split in SPLITS:
        for task in draw(400, split):
            assert split_of(task.question) == split
            assert seen.setdefault(normalise_question(task.question), split) == split
            assert Arithmetic(difficulty=1).get(task.id) == task


def test_ids_read_as_documented():
    task = Arithmetic().get("arithmetic:1:2*(3-10)")
    assert (task.question, task.answers) == ("Compute 2*(3-10).", ("-14",))


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "arithmetic",
        "arithmetic:0:",
        "arithmetic:9:1+1",
        "arithmetic:0:1+",
        "arithmetic:0:2**9",
        "arithmetic:0:999999*2",
        "arithmetic:0:1 + 1",
        "arithmetic:0:-5",
        "arithmetic:0:f(1)",
        "arithmetic:0:" + "(" * 199 + "1",
        "riddles:1",
    ],
)
def test_ids_of_no_task(task_id):
    with pytest.raises(UnknownTask, match="an arithmetic task id reads"):
        Arithmetic().get(task_id)


def test_an_unknown_split():
    with pytest.raises(UnknownTask, match="'dev'"):
        Arithmetic().sample(np.random.default_rng(0), "dev")


def test_the_oracle_needs_the_question_alone():
    for task in draw(100):
        expert = Arithmetic().oracle(task)
        call = expert(task.question)
        assert call == Call("python", {"code": f"print({expression_of(task)})"})
        assert expert(f"{task.answers[0]}\n") == Answer(task.answers[0])
        assert expert("no idea") == Answer("no idea")


def test_it_generates_without_end():
    assert Arithmetic().ids("train") is None
