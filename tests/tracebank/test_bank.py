"""A bank is a list of steps that can be asked: whatever was added, in whatever pieces, it answers as brute force would."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import tracebank.bank
from tracebank import BankError, Hit, StepTrace, TraceBank
from tracebank.step import normalise_question

WORDS = ("sum", "of", "two", "three", "Sum", "größe", "東京", "print(1)", "")


def step(key: str = "a key", **changes: Any) -> StepTrace:
    fields = {"task_id": "t", "step": 1, "value": "a value", "reward": 1.0, "final": False, "source": "me", "question": "q"}
    return StepTrace(key=key, **(fields | changes))


def stripped(hit: Hit) -> StepTrace:
    """The step that a hit is."""
    return StepTrace(**{name: getattr(hit, name) for name in StepTrace.__dataclass_fields__})


@pytest.fixture
def bank(tmp_path: Path):
    with TraceBank.create(tmp_path / "bank") as opened:
        yield opened


# Asking


def test_what_is_asked_for_word_by_word_comes_first(bank: TraceBank):
    bank.add([step("the sum of two numbers"), step("who painted the night watch"), step("the largest of all lakes")])
    (hits,) = bank.query(["who painted the night watch"], k=2)
    assert hits[0].key == "who painted the night watch"
    assert hits[0].id == 1
    assert hits[0].score == pytest.approx(1.0)
    assert hits[1].score < hits[0].score


def test_a_hit_is_its_step_whole(bank: TraceBank):
    one = step("k", value="v\x00é", reward=-0.1, source="s", environment="e", format="f", trajectory="x", task_id="i")
    bank.add([one])
    ((hit,),) = bank.query(["k"])
    assert stripped(hit) == one


def test_equal_scores_come_in_order_of_their_ids(bank: TraceBank):
    bank.add([step("same", value=str(number)) for number in range(10)])
    (hits,) = bank.query(["same"], k=5)
    assert [hit.id for hit in hits] == [0, 1, 2, 3, 4]
    assert len({hit.score for hit in hits}) == 1


def test_every_query_has_its_answer_in_order(bank: TraceBank):
    bank.add([step("red apple"), step("blue sky")])
    assert [hits[0].key for hits in bank.query(["blue sky", "red apple", "blue sky"], k=1)] == [
        "blue sky",
        "red apple",
        "blue sky",
    ]
    assert bank.query([]) == []


def test_an_empty_bank_answers_with_nothing(bank: TraceBank):
    (hits,) = bank.query(["anything"])
    assert hits == ()
    assert len(bank) == 0


# Leaks


def test_by_default_no_step_that_ended_a_trajectory_comes_back(bank: TraceBank):
    bank.add([step("k", final=True), step("k", final=False), step("k", final=True)])
    (hits,) = bank.query(["k"])
    assert [hit.id for hit in hits] == [1]
    assert hits.removed == {"final": 2}
    (hits,) = bank.query(["k"], exclude_final=False)
    assert [hit.id for hit in hits] == [0, 1, 2]
    assert hits.removed == {}


def test_the_running_task_is_known_by_its_id_and_by_its_question(bank: TraceBank):
    bank.add(
        [
            step("k", task_id="gsm8k:1", question="What is 1+1?"),
            step("k", task_id="math:7", question="what is  1+1?"),  # the same question under another name
            step("k", task_id="math:7", question=""),  # its question got lost
            step("k", task_id="math:8", question="What is 1+2?"),
        ]
    )
    for running in ("gsm8k:1", "math:7", "WHAT IS 1+1?", ["unknown", "What is 1+1?"], ("gsm8k:1",)):
        (hits,) = bank.query(["k"], exclude_task=[running])
        assert [hit.id for hit in hits] == [3]
        assert hits.removed == {"task": 3, "final": 0}


def test_each_query_has_a_task_of_its_own(bank: TraceBank):
    bank.add([step("k", task_id="a", question="A"), step("k", task_id="b", question="B")])
    found = bank.query(["k"] * 4, exclude_task=["a", "b", None, ["a", "b"]])
    assert [[hit.task_id for hit in hits] for hits in found] == [["b"], ["a"], ["a", "b"], []]
    assert found[3].removed["task"] == 2


def test_what_has_no_name_is_nobodys(bank: TraceBank):
    bank.add(
        [step("k", task_id="", question="one"), step("k", task_id="", question=""), step("k", task_id="x", question="")]
    )
    (hits,) = bank.query(["k"], exclude_task=["one"])
    assert [hit.id for hit in hits] == [1, 2]
    (hits,) = bank.query(["k"], exclude_task=[""])
    assert [hit.id for hit in hits] == [0, 1, 2]
    (hits,) = bank.query(["k"], exclude_task=["x"])
    assert [hit.id for hit in hits] == [0, 1]


# Filters


def test_the_minimum_reward_is_strict(bank: TraceBank):
    bank.add([step("k", reward=reward) for reward in (-1.0, 0.0, 1e-9, 1.0)])
    (hits,) = bank.query(["k"], min_reward=0.0)
    assert [hit.reward for hit in hits] == [1e-9, 1.0]
    assert hits.removed == {"final": 0, "reward": 2}


def test_sources_and_step_numbers(bank: TraceBank):
    bank.add([step("k", source=source, step=number) for number, source in enumerate("aabbc")])
    assert [hit.id for hit in bank.query(["k"], k=9, source="b")[0]] == [2, 3]
    assert [hit.id for hit in bank.query(["k"], k=9, source=["a", "c"])[0]] == [0, 1, 4]
    assert [hit.id for hit in bank.query(["k"], k=9, source="nobody")[0]] == []
    assert [hit.id for hit in bank.query(["k"], k=9, steps=range(1, 3))[0]] == [1, 2]


def test_filters_lose_no_hit_however_far_down_it_stands(bank: TraceBank):
    bank.add([step("who painted it", source="many") for _ in range(3000)])
    bank.add([step("something else entirely", source="few", value=str(number)) for number in range(2)])
    (hits,) = bank.query(["who painted it"], k=3, source="few")
    assert [hit.id for hit in hits] == [3000, 3001]
    assert hits.removed["source"] == 3000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: expected at least 1, found 0"),
        ({"exclude_task": "a"}, TypeError, r"exclude_task: expected one entry a query, such as \['a'\]"),
        ({"exclude_task": ["a", "b"]}, ValueError, "one entry for each of the 1 queries, found 2"),
        ({"exclude_task": [[7]]}, TypeError, "exclude_task: expected a task id or a question as text, found 7"),
        ({"min_reward": float("nan")}, ValueError, "min_reward: expected a number"),
        ({"steps": (1, 3)}, TypeError, r"steps: expected a range such as range\(1, 5\), found \(1, 3\)"),
        ({"steps": range(0, 9, 2)}, ValueError, "range without gaps"),
        ({"queries": "text"}, TypeError, r"queries: expected a list of texts, such as \['text'\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(bank: TraceBank, arguments: dict[str, Any], error: type, message: str):
    bank.add([step()])
    with pytest.raises(error, match=message):
        bank.query(**({"queries": ["k"]} | arguments))


# Against a list


@st.composite
def steps(draw: st.DrawFn) -> StepTrace:
    return StepTrace(
        task_id=draw(st.sampled_from(["", "a", "b", "c"])),
        step=draw(st.integers(0, 3)),
        key=draw(st.one_of(st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), st.text(max_size=12))),
        value=draw(st.text(max_size=8)),
        reward=draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
        final=draw(st.booleans()),
        source=draw(st.sampled_from(["", "x", "y"])),
        question=draw(st.sampled_from(["", "Q1", "q1", "Q2"])),
    )


def brute_force(
    bank: TraceBank, known: Sequence[StepTrace], query: str, k: int, task: str | None, arguments: dict[str, Any]
) -> tuple[list[int], dict[str, int]]:
    """The ids of the k best steps, and what each filter took out before the last of them."""
    (asked,) = bank.embedder.embed([query]).astype(np.float64)
    keys = bank.embedder.embed([step.key for step in known]).astype(np.float64)
    scores = [np.float32(np.sum(key * asked)) for key in keys]
    ids = {task} if task else set()
    questions = {normalise_question(task)} if task else set()
    questions |= {normalise_question(one.question) for one in known if one.task_id in ids}
    ids |= {one.task_id for one in known if normalise_question(one.question) in questions - {""}}
    removed = {"task": 0} if task is not None else {}
    removed |= {"final": 0} if arguments["exclude_final"] else {}
    removed |= {"reward": 0} if arguments["min_reward"] is not None else {}
    removed |= {"source": 0} if arguments["source"] is not None else {}
    removed |= {"step": 0} if arguments["steps"] is not None else {}
    best: list[int] = []
    for row in sorted(range(len(known)), key=lambda row: (-scores[row], row)):
        if len(best) == k:
            break
        one = known[row]
        refused = {
            "task": one.task_id in ids - {""} or normalise_question(one.question) in questions - {""},
            "final": one.final,
            "reward": arguments["min_reward"] is not None and not one.reward > arguments["min_reward"],
            "source": arguments["source"] is not None and one.source not in arguments["source"],
            "step": arguments["steps"] is not None and one.step not in arguments["steps"],
        }
        for name in removed:
            removed[name] += refused[name]
        if not any(refused[name] for name in removed):
            best.append(row)
    return best, removed


class BankMachine(RuleBasedStateMachine):
    """Adds, asks, compacts, opens again; a plain list does the same."""

    @initialize(
        kind=st.sampled_from(["auto", "flat", "hnsw", "ivf"]),
        deterministic=st.booleans(),
        at_once=st.sampled_from([10, 20_000]),
    )
    def make(self, kind: str, deterministic: bool, at_once: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tracebank.bank, "FLAT_ROWS", at_once)  # few are enough for adding to extend an index
        self.deterministic = deterministic
        self.bank = TraceBank.create(Path(self.folder.name) / "bank", index=kind, deterministic=deterministic)
        self.known: list[StepTrace] = []

    @rule(added=st.lists(steps(), max_size=8), times=st.integers(1, 3), index=st.booleans())
    def add(self, added: list[StepTrace], times: int, index: bool) -> None:
        ids = self.bank.add(added * times, index=index)
        assert ids == range(len(self.known), len(self.known) + len(added) * times)
        self.known += added * times

    @rule(kind=st.sampled_from([None, "auto", "flat", "hnsw", "ivf"]), rebuild=st.booleans())
    def compact(self, kind: str | None, rebuild: bool) -> None:
        self.bank.compact(index=kind, rebuild=rebuild)

    @rule()
    def open_again(self) -> None:
        self.bank.close()
        self.bank = TraceBank.open(Path(self.folder.name) / "bank", deterministic=self.deterministic)

    @rule(
        queries=st.lists(
            st.tuples(steps(), st.sampled_from([None, "a", "b", "Q1", "q2", "nobody"])), min_size=1, max_size=3
        ),
        k=st.integers(1, 5),
        arguments=st.fixed_dictionaries(
            {
                "exclude_final": st.booleans(),
                "min_reward": st.sampled_from([None, -1.0, 0.0, 0.7]),
                "source": st.sampled_from([None, ["x"], ["x", "y"], ["nobody"]]),
                "steps": st.sampled_from([None, range(1, 3), range(0)]),
            }
        ),
    )
    def ask(self, queries: list[tuple[StepTrace, str | None]], k: int, arguments: dict[str, Any]) -> None:
        tasks = [task for _, task in queries]
        found = self.bank.query([one.key for one, _ in queries], k, exclude_task=tasks, **arguments)
        for hits, (one, task) in zip(found, queries, strict=True):
            best, removed = brute_force(self.bank, self.known, one.key, k, task or "", arguments)
            assert [hit.id for hit in hits] == best
            assert dict(hits.removed) == removed
            for hit in hits:
                assert all(
                    getattr(hit, name) == getattr(self.known[hit.id], name) for name in StepTrace.__dataclass_fields__
                )

    @invariant()
    def it_is_as_long_as_the_list(self) -> None:
        if hasattr(self, "bank"):
            assert len(self.bank) == len(self.known)

    def teardown(self) -> None:
        if hasattr(self, "bank"):
            assert self.bank.check() == []
            self.bank.close()
            self.patch.undo()
            self.folder.cleanup()


BankMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestBankAgainstAList = BankMachine.TestCase


# Life of a bank


def test_opened_with_another_embedder_both_are_named(tmp_path: Path):
    TraceBank.create(tmp_path / "bank", embedder="hashing").close()
    with pytest.raises(BankError, match=r"made with the embedder hashing.*128.*, this is hashing.*64"):
        TraceBank.open(tmp_path / "bank", embedder="hashing?dimension=64")
    with TraceBank.open(tmp_path / "bank", embedder="hashing") as bank:
        assert len(bank) == 0


def test_a_full_folder_is_not_made_a_bank(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BankError, match="expected an empty folder"):
        TraceBank.create(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_no_bank_is_no_bank(tmp_path: Path):
    with pytest.raises(BankError, match="expected a bank"):
        TraceBank.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="index: expected one of auto, flat, hnsw, ivf, found 'fast'"):
        TraceBank.create(tmp_path / "bank", index="fast")  # type: ignore[arg-type]


def test_two_open_banks_of_one_folder(tmp_path: Path):
    with TraceBank.create(tmp_path / "bank") as one, TraceBank.open(tmp_path / "bank") as other:
        one.add([step("first")])
        assert len(other) == 0  # as it was when it was opened
        assert other.add([step("second")]) == range(1, 2)  # after what the first one wrote
        assert [hit.key for hit in other.query(["first"], k=2)[0]] == ["first", "second"]
        one.compact()
        assert one.add([step("third")]) == range(2, 3)
        assert len(one) == 3
    with TraceBank.open(tmp_path / "bank") as again:
        assert {hit.key for hit in again.query(["first"], k=9)[0]} == {"first", "second", "third"}


def test_asked_from_many_threads_while_it_grows(bank: TraceBank):
    bank.add([step(f"key number {number}") for number in range(50)])
    wrong: list[object] = []

    def ask(number: int) -> None:
        for _ in range(30):
            ((hit,),) = bank.query([f"key number {number}"], k=1)
            if hit.key != f"key number {number}":
                wrong.append(hit)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for number in range(50, 80):
        bank.add([step(f"key number {number}")])
        if number % 10 == 0:
            bank.compact(index="hnsw")
    for thread in threads:
        thread.join()
    assert not wrong


def test_ids_stay_when_the_bank_is_compacted(bank: TraceBank):
    for number in range(20):
        bank.add([step(f"key number {number}")])
    bank.compact(index="hnsw")
    assert bank.kind == "hnsw"
    bank.compact(index="flat")
    assert bank.kind == "flat"
    for number in range(20):
        assert bank.query([f"key number {number}"], k=1)[0][0].id == number


@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=50))
def test_any_text_is_a_key_and_a_query(text: str):
    with tempfile.TemporaryDirectory() as folder, TraceBank.create(folder) as bank:
        bank.add([step(text), step("other")])
        (hits,) = bank.query([text], k=2)
        assert {hit.id for hit in hits} == {0, 1}
        assert hits[0].key == text or hits[0].score == hits[1].score


def test_a_key_of_ten_megabytes(bank: TraceBank):
    long = "a long history " * 700_000
    bank.add([step(long, value=long), step("short")])
    ((hit,),) = bank.query(["a long history"], k=1)
    assert hit.value == long
