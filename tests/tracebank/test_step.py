"""Steps as values, and the one way in which histories become text."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebank import StepTrace, Trajectory, Turn
from tracebank.step import normalise_question, render_history, render_step, steps_of

TURNS = (
    Turn("<think>a product</think>", "<python>print(6*7)</python>", "42"),
    Turn("", "<search>forty-two</search>", "a number"),
    Turn("<think>done</think>", "<answer>\\boxed{42}</answer>", ""),
)


def trajectory(**changes: Any) -> Trajectory:
    plain = Trajectory(
        environment="agent_envs/MathTool-v0",
        format="tag",
        task_id="arithmetic:7",
        question="What is 6 times 7?",
        split="train",
        turns=TURNS,
        segments=(),
        reward=1.1,
        score={},
        success=True,
        fault="",
        stop="terminated",
        tool_calls=2,
        policy_version=0,
        step=0,
        path=(0,),
        source="grpo:tiny",
    )
    return dataclasses.replace(plain, **changes)


def test_the_first_key_is_the_question_and_each_later_one_the_history_before_its_step():
    first, second, third = steps_of(trajectory())
    assert first.key == "What is 6 times 7?"
    assert first.value == "<think>a product</think><python>print(6*7)</python>\n<result>\n42\n</result>\n"
    assert second.key == f"What is 6 times 7?\n{first.value}"
    assert third.key == f"What is 6 times 7?\n{first.value}{second.value}"
    assert third.value == "<think>done</think><answer>\\boxed{42}</answer>"  # nothing came back
    assert [step.step for step in (first, second, third)] == [0, 1, 2]


def test_a_running_agent_asks_with_the_text_that_keys_are_made_of():
    for number, step in enumerate(steps_of(trajectory())):
        assert step.key == render_history("What is 6 times 7?", TURNS[:number])


def test_a_step_tells_where_it_comes_from():
    steps = steps_of(trajectory())
    assert {(step.task_id, step.question, step.reward, step.source) for step in steps} == {
        ("arithmetic:7", "What is 6 times 7?", 1.1, "grpo:tiny")
    }
    assert {(step.environment, step.format) for step in steps} == {("agent_envs/MathTool-v0", "tag")}
    assert {step.source for step in steps_of(trajectory(), source="theirs")} == {"theirs"}
    assert len({step.trajectory for step in steps}) == 1
    assert steps[0].trajectory != steps_of(trajectory(turns=TURNS[:1]))[0].trajectory


@pytest.mark.parametrize("stop", ["terminated", "answer", "", "anything"])
def test_the_last_step_is_final(stop: str):
    assert [step.final for step in steps_of(trajectory(stop=stop))] == [False, False, True]


@pytest.mark.parametrize("stop", ["length", "truncated", "fault"])
def test_where_a_limit_cut_the_last_step_is_as_any_other(stop: str):
    assert not any(step.final for step in steps_of(trajectory(stop=stop)))


def test_a_trajectory_without_turns_has_no_steps():
    assert steps_of(trajectory(turns=())) == []


def plain(**changes: Any) -> StepTrace:
    fields = {"task_id": "1", "step": 0, "key": "k", "value": "v", "reward": 1.0, "final": False, "source": "me"}
    return StepTrace(**(fields | changes))


def test_the_first_step_takes_its_key_for_the_question_and_no_other_does():
    assert plain().question == "k"
    assert plain(question="q").question == "q"
    assert plain(step=1).question == ""


def test_a_whole_number_is_a_reward():
    assert plain(reward=1) == plain(reward=1.0)
    assert isinstance(plain(reward=1).reward, float)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward": float("nan")}, ValueError, "reward: expected a finite number, found nan"),
        ({"reward": float("-inf")}, ValueError, "reward: expected a finite"),
        ({"reward": True}, TypeError, "reward: expected a number, found True"),
        ({"reward": "1"}, TypeError, "reward: expected a number, found '1'"),
        ({"step": -1}, ValueError, "step: expected a number from 0"),
        ({"step": 2**31}, ValueError, "step: expected a number from 0"),
        ({"step": 1.0}, TypeError, r"step: expected a whole number, found 1\.0"),
        ({"final": 1}, TypeError, "final: expected True or False, found 1"),
        ({"key": None}, TypeError, "key: expected text, found NoneType"),
        ({"value": "a\ud800"}, ValueError, "value: expected Unicode text, found a lone surrogate at 1"),
    ],
)
def test_what_is_no_step_is_refused(changes: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        plain(**changes)


@given(st.text(), st.lists(st.builds(Turn, st.text(), st.text(), st.text()), max_size=4))
def test_a_history_grows_by_its_steps(question: str, turns: list[Turn]):
    text = question if not turns else f"{question}\n"
    for number in range(1, len(turns) + 1):
        text += render_step(turns[number - 1])
        assert render_history(question, turns[:number]) == text


@pytest.mark.parametrize(
    "other", ["what  is 6 TIMES 7?", "\tWhat is 6 times 7?\n", "What is \uff16 times 7?", "WHAT IS 6 TIMES\u00a07?"]
)
def test_questions_that_read_alike_are_one(other: str):
    assert normalise_question(other) == normalise_question("What is 6 times 7?")


@pytest.mark.parametrize("other", ["What is 6 times 8?", "What is 6 times -7?", "What is 6 times 7", ""])
def test_questions_that_do_not_are_not(other: str):
    assert normalise_question(other) != normalise_question("What is 6 times 7?")
