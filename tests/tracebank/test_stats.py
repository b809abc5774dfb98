"""What is told about a bank: the numbers are those of its steps, and nothing in it can steer a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from attempts import attempt
from rich.console import Console

from tracebank import StepTrace, TraceBank, show, steps_of


@pytest.fixture
def bank(tmp_path: Path):
    with TraceBank.create(tmp_path / "bank") as opened:
        yield opened


def printed(show_it) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_it(console)
    return console.file.getvalue()


def step(**changes) -> StepTrace:
    fields = {"task_id": "t", "step": 1, "key": "a key", "value": "v", "reward": 1.0, "final": False, "source": "me"}
    return StepTrace(**(fields | changes))


def test_counts_are_those_of_the_steps(bank: TraceBank) -> None:
    bank.add(steps_of(attempt("1+1", reward=0.5, thoughts=("a", "b"))))  # 3 steps
    bank.add(steps_of(attempt("2+2", reward=1.0, thoughts=(), source="other", environment="Other-v0", format="hermes")))
    bank.add([step(question="", source="other"), step(question="", task_id="", reward=-1.0)])
    numbers = bank.stats()
    assert {name: numbers[name] for name in ("steps", "trajectories", "tasks", "questions", "final")} == {
        "steps": 6,
        "trajectories": 2,
        "tasks": 3,
        "questions": 2,
        "final": 2,
    }
    assert (numbers["without_question"], numbers["unnamed"]) == (2, 1)
    assert list(numbers["sources"].items()) == [("tests", 3), ("other", 2), ("me", 1)]
    assert numbers["environments"] == ["", "Other-v0", "Sums-v0"] or numbers["environments"] == ["Other-v0", "Sums-v0"]
    reward = numbers["reward"]
    assert (reward["min"], reward["max"], reward["count"]) == (-1.0, 1.0, 6)
    assert reward["mean"] == pytest.approx((3 * 0.5 + 1 + 1 - 1) / 6)
    assert numbers["trajectory_steps"]["mean"] == 2
    assert numbers["trajectory_steps"]["counts"] == [1, 0, 1]
    assert numbers["dimension"] == bank.embedder.dimension
    assert numbers["bytes"] == sum(path.stat().st_size for path in bank.path.glob("*-*"))


def test_lengths_are_counted_in_characters_in_bins_that_grow(bank: TraceBank) -> None:
    bank.add([step(value=text) for text in ("", "é", "東京", "ok", "abc", "seven ch", "twelve chars")])
    lengths = bank.stats()["value_characters"]
    assert (lengths["min"], lengths["mean"], lengths["max"]) == (0, 4, 12)
    assert lengths["edges"] == [0, 1, 2, 3, 4, 6, 8, 12, 16]
    assert lengths["counts"] == [1, 1, 2, 1, 0, 0, 1, 1]


def test_every_histogram_counts_everything_once(bank: TraceBank) -> None:
    for number in range(30):
        bank.add(steps_of(attempt(f"{number}+1", reward=number / 7, thoughts=("x" * number,) * (1 + number % 4))))
    numbers = bank.stats()
    for name in ("reward", "trajectory_steps", "key_characters", "value_characters", "nearest_other_task"):
        assert sum(numbers[name]["counts"]) == numbers[name]["count"], name
        assert len(numbers[name]["edges"]) == len(numbers[name]["counts"]) + 1
        assert numbers[name]["edges"][0] <= numbers[name]["min"] <= numbers[name]["max"] <= numbers[name]["edges"][-1]


def test_likeness_is_to_another_task_and_never_to_the_own(bank: TraceBank) -> None:
    bank.add([step(task_id="a", question="one"), step(task_id="a", question="one", value="w")])
    assert bank.stats()["nearest_other_task"] is None
    bank.add([step(task_id="b", question="two")])
    assert bank.stats()["nearest_other_task"]["min"] == pytest.approx(1.0)
    bank.add([step(task_id="c", question="ONE", key="something else entirely")])  # a's question, and so its task
    likeness = bank.stats()["nearest_other_task"]
    assert likeness["count"] == 4
    assert likeness["min"] < 0.9


def test_the_numbers_of_an_empty_bank_are_zero(bank: TraceBank) -> None:
    numbers = bank.stats()
    assert numbers["steps"] == numbers["trajectories"] == 0
    assert numbers["reward"] is None
    assert "steps" in printed(lambda console: show.stats(console, numbers))


def test_the_numbers_are_json(bank: TraceBank) -> None:
    bank.add(steps_of(attempt()))
    numbers = bank.stats()
    assert numbers["steps"] == len(bank)
    assert json.loads(json.dumps(numbers)) == numbers


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_one(bank: TraceBank, tmp_path: Path, suffix: str) -> None:
    start = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    for name, steps in (("empty", []), ("one", steps_of(attempt())), ("more", steps_of(attempt("2+2", reward=0.5)))):
        bank.add(steps)
        path = tmp_path / f"{name}{suffix}"
        show.picture(bank.stats(), path)
        assert path.read_bytes().startswith(start)


def test_nothing_in_a_bank_can_steer_a_terminal(bank: TraceBank) -> None:
    evil = "\x1b[2Jgone\x07\x9b31m\u202etxt\r\x00[bold]kept[/bold]"
    bank.add([step(task_id=evil, source=evil, value=f"{evil}\n{evil}", question=evil, environment=evil, format=evil)])
    (hits,) = bank.query(["a key"])
    for text in (
        printed(lambda console: show.hits(console, hits, full=True)),
        printed(lambda console: show.stats(console, bank.stats())),
    ):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r\x00")
        assert "\\x1b" in text
        assert "[bold]kept[/bold]" in "".join(text.split())


def test_long_values_are_shortened_unless_asked_for(bank: TraceBank) -> None:
    bank.add([step(value="start " + 5000 * "x" + " end")])
    (hits,) = bank.query(["a key"])
    short, full = (printed(lambda console, full=full: show.hits(console, hits, full=full)) for full in (False, True))
    assert "start" in short
    assert "end" not in short
    assert "4,410 more; --full" in short
    assert " end" in full


def test_hits_tell_what_filters_took_out(bank: TraceBank) -> None:
    bank.add([step(task_id="a", final=True), step(task_id="b", final=True), step(task_id="c")])
    (hits,) = bank.query(["a key"], exclude_task=["a"])
    text = printed(lambda console: show.hits(console, hits, full=False))
    assert "task c" in text
    assert "better ones that filters took out: task 1, final 2" in text


def test_progress_is_a_bar_at_a_terminal_and_a_line_a_stage_elsewhere() -> None:
    def work(console: Console) -> None:
        with show.progress(console) as tell:
            for number in range(1000):
                tell("reading trajectories", number, 1000)
            tell("building the index", 0, 0)

    assert printed(work).split("\n") == ["reading trajectories", "building the index", ""]
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    work(terminal)
    assert "━" in terminal.file.getvalue()
    assert terminal.file.getvalue().count("reading") < 100  # a thousand reports are not a thousand pictures
