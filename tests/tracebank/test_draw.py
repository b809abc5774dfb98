"""Random steps, and steps with what comes after them: what a bank gives to those who do not ask for likeness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebank import BankError, Filters, StepTrace, TraceBank, Trajectory, Turn, steps_of


def step(value: str, **changes: object) -> StepTrace:
    fields = {"task_id": "t", "step": 1, "key": "k", "reward": 1.0, "final": False, "source": "me", "question": "q"}
    return StepTrace(value=value, **(fields | changes))


def attempt(task: str, *actions: str, question: str = "", stop: str = "answer") -> list[StepTrace]:
    turns = tuple(Turn("", action, f"saw {action}") for action in actions)
    return steps_of(Trajectory("E", "tag", task, question or task, "", turns, (), 1.0, {}, True, "", stop, 0, 0, 0, ()))


@pytest.fixture
def bank(tmp_path: Path):
    with TraceBank.create(tmp_path / "bank") as opened:
        yield opened


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        (Filters(), {0, 1, 3, 4}),
        (Filters(exclude_final=False), {0, 1, 2, 3, 4}),
        (Filters(min_reward=0.5), {1, 3, 4}),
        (Filters(steps=range(1)), {4}),
        (Filters(sources=["you"]), {3}),
        (Filters([["q"]]), {4}),  # the question stands for the task
        (Filters([["u"]]), {0, 1, 3}),
        (Filters(sources=["nobody"]), set()),
    ],
)
def test_every_step_that_the_filters_let_through_is_equally_likely(bank: TraceBank, filters: Filters, allowed: set[int]):
    bank.add([step("a", reward=0.0), step("b"), step("c", final=True), step("d", source="you")])
    bank.add([step("e", task_id="u", question="r", step=0)], index=False)
    numbers = [(place + 0.5) / 60 for place in range(60)]  # evenly over [0, 1)
    running = filters.exclude_task and list(filters.exclude_task) * 60
    drawn = bank.draw(numbers, Filters(running, *(getattr(filters, name) for name in list(vars(filters))[1:])))
    if allowed:
        assert {id: drawn.count(id) for id in set(drawn)} == dict.fromkeys(allowed, 60 // len(allowed))
    else:
        assert set(drawn) == {None}


def test_the_ends_of_the_interval_are_the_first_and_the_last_step(bank: TraceBank):
    bank.add([step(str(number)) for number in range(7)])
    assert bank.draw([0.0, np.nextafter(1.0, 0.0)]) == [0, 6]


def test_each_number_has_a_running_task_of_its_own(bank: TraceBank):
    bank.add([step("a"), step("b", task_id="u", question="r")])
    assert bank.draw([0.1, 0.1, 0.9], Filters([None, "t", "u"])) == [0, 1, 0]
    with pytest.raises(ValueError, match="expected one entry for each of the 2 queries, found 1"):
        bank.draw([0.1, 0.2], Filters(["t"]))


def test_an_empty_bank_draws_nothing(bank: TraceBank):
    assert bank.draw([0.3]) == [None]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_what_comes_after_a_step_is_the_rest_of_its_trajectory(tmp_path_factory, lengths: list[int], data: st.DataObject):
    """Also where trajectories share their task, their question and the words of their beginning."""
    actions = st.sampled_from(["look", "think", "look again"])
    attempts = [attempt("t", *(data.draw(actions) for _ in range(length)), question="q") for length in lengths]
    with TraceBank.create(tmp_path_factory.mktemp("banks") / "bank") as bank:
        bank.add([step for steps in attempts for step in steps])
        first = 0
        for steps in attempts:
            for place in range(len(steps)):
                assert bank.onward(first + place) == steps[place:]
            first += len(steps)


def test_steps_without_a_trajectorys_name_are_known_by_their_histories(bank: TraceBank):
    named = attempt("t", "a", "b", "c")
    bare = [StepTrace(**(vars(one) | {"trajectory": ""})) for one in named]
    bank.add([*bare, *bare[:2]])
    assert bank.onward(0) == bare
    assert bank.onward(3) == bare[:2]


def test_a_step_out_of_order_ends_what_is_known(bank: TraceBank):
    first, second, third = attempt("t", "a", "b", "c")
    bank.add([first, third, second])
    assert bank.onward(0) == [first]
    assert bank.onward(1) == [third]


def test_no_such_step(bank: TraceBank):
    bank.add([step("a")])
    with pytest.raises(IndexError, match="found 1"):
        bank.onward(1)
    bank.close()
    with pytest.raises(BankError, match="closed"):
        bank.onward(0)
