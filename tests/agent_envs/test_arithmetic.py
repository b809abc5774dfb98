"""Arithmetic tasks: right, short, split by content, made again from their ids."""

import ast
import pickle
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

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
        "arithmetic:0:007+1",
        "arithmetic:0:2(3)",
        "arithmetic:0:f(1)",
        "arithmetic:0:" + "(" * 199 + "1",
        "riddles:1",
    ],
)
def test_ids_of_no_task(task_id):
    with pytest.raises(UnknownTask, match="an arithmetic task id reads"):
        Arithmetic().get(task_id)


def plain(tree):
    """Whether a syntax tree holds whole numbers, + - * and nothing else."""
    match tree:
        case ast.Constant(value=int()):
            return True
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult(), right):
            return plain(left) and plain(right)
    return False


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # Python's, about calls of numbers
def test_an_id_is_read_as_python_reads_it():
    rng, read = np.random.default_rng(0), 0
    for _ in range(5000):
        text = "".join(rng.choice(list("01279+*()-"), size=rng.integers(1, 9)))
        try:
            tree = ast.parse(text, mode="eval").body
            expected = (str(eval(text)),) if plain(tree) and "**" not in text else None
        except SyntaxError:
            expected = None
        if expected is None or abs(int(expected[0])) >= 10**6 or re.search("[0-9]{7}", text):
            continue
        assert Arithmetic().get(f"arithmetic:0:{text}").answers == expected
        read += 1
    assert read > 300


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_what_python_reads_as_something_else_is_no_task():
    rng, refused = np.random.default_rng(1), 0
    for _ in range(5000):
        text = "".join(rng.choice(list("01279+*()-"), size=rng.integers(1, 9)))
        try:
            fine = plain(ast.parse(text, mode="eval").body)
        except SyntaxError:
            fine = False
        if not fine:
            with pytest.raises(UnknownTask):
                Arithmetic().get(f"arithmetic:0:{text}")
            refused += 1
    assert refused > 1000


def test_threads_draw_what_one_thread_draws():
    def share(seed):
        return draw(100, seed=seed, difficulty=[1, 8])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(share, range(16))) == [share(seed) for seed in range(16)]


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


def test_the_oracle_calls_what_it_is_told_to():
    source = Arithmetic(call=Call("calculator", {"expression": "{}", "digits": 9}))
    task = source.get("arithmetic:1:2*(3-10)")
    assert source.oracle(task)(task.question) == Call("calculator", {"expression": "2*(3-10)", "digits": 9})
    assert pickle.loads(pickle.dumps(source)).oracle(task)(task.question) == source.oracle(task)(task.question)


def test_a_call_without_a_place_for_the_expression():
    with pytest.raises(ValueError, match="an argument of the call must hold"):
        Arithmetic(call=Call("calculator", {"expression": "6*7"}))


def test_it_generates_without_end():
    assert Arithmetic().ids("train") is None
