"""Which trajectories become steps: the paper's rule, what is left out and why, and that a build can be broken off."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from attempts import attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracebank import Segment, StepTrace, TraceBank, Trajectory, TrajectoryError, Turn, steps_of, write_trajectories
from tracebank.bank import BankError
from tracebank.build import add_steps, build, trajectory_files

FIELDS = tuple(StepTrace.__dataclass_fields__)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[TraceBank]:
    with TraceBank.create(tmp_path / "bank") as opened:
        yield opened


def held(bank: TraceBank) -> list[StepTrace]:
    """All steps of a bank, in order."""
    return [
        StepTrace(*row)
        for batch in bank.snapshot.batches()
        for row in zip(*(batch.column(name).to_pylist() for name in FIELDS), strict=True)
    ]


def answers(bank: TraceBank) -> list[str]:
    return [step.value for step in held(bank) if step.final]


# --- the rule ---


def test_of_each_task_the_best_five_are_kept_and_ties_in_order_of_appearance(bank: TraceBank) -> None:
    rewards = [0.0, 1.0, 0.5, 1.0, 0.5, 0.5, 0.5, 1.0]
    report = build(bank, [attempt(answer=str(number), reward=reward) for number, reward in enumerate(rewards)])
    assert answers(bank) == ["1", "3", "7", "2", "4"]
    assert report.dropped == {"beyond the best 5 of its task": 3}
    assert (report.read, report.kept, report.tasks) == (8, 5, 1)


def test_the_rank_decides_and_not_the_reward(bank: TraceBank) -> None:
    build(bank, [attempt("1+1", str(number), -1.0) for number in range(7)] + [attempt("2+2", "4", 1.0)], keep=5)
    assert len(answers(bank)) == 6


def test_keep_0_keeps_all(bank: TraceBank) -> None:
    assert build(bank, [attempt(answer=str(number), reward=0.0) for number in range(9)], keep=0).kept == 9


def test_the_minimum_reward_is_strict(bank: TraceBank) -> None:
    tried = [attempt(answer=str(reward), reward=reward) for reward in (0.4, 0.5, 0.6)]
    assert build(bank, tried, min_reward=0.5).dropped == {"with a reward not above 0.5": 2}
    assert answers(bank) == ["0.6"]


def test_the_same_question_under_another_id_is_the_same_task(bank: TraceBank) -> None:
    tried = [
        attempt(answer="a", reward=0.1),
        attempt(answer="b", reward=0.9, task_id="another", question=" what is  1+1? "),
        attempt(answer="c", reward=0.5, task_id="third", environment="Other-v0"),
    ]
    assert build(bank, tried, keep=1).tasks == 1
    assert answers(bank) == ["b"]


def test_an_id_names_a_task_within_its_environment_only(bank: TraceBank) -> None:
    tried = [attempt("1+1", "a", task_id="0"), attempt("2+2", "b", task_id="0", environment="Other-v0")]
    assert build(bank, tried, keep=1).tasks == 2


def test_what_is_the_same_through_a_third_is_the_same(bank: TraceBank) -> None:
    tried = [
        attempt("1+1", "a", 0.1, task_id="x"),
        attempt("2+2", "b", 0.2, task_id="y"),
        attempt("1+1", "c", 0.3, task_id="y"),  # the question of the first, the id of the second
    ]
    assert build(bank, tried, keep=1).tasks == 1
    assert answers(bank) == ["c"]


def test_what_has_neither_id_nor_question_is_nobodys_task(bank: TraceBank) -> None:
    tried = [attempt(answer=str(number), task_id="", question="") for number in range(3)]
    assert build(bank, tried, keep=1).tasks == 3


def test_word_for_word_the_same_counts_once_with_its_best_reward(bank: TraceBank) -> None:
    tried = [attempt(answer="x", reward=0.1), attempt(answer="y", reward=0.5), attempt(answer="x", reward=0.9)]
    assert build(bank, tried, keep=2).dropped == {"word for word another of its task": 1}
    assert [(step.value, step.reward) for step in held(bank) if step.final] == [("x", 0.9), ("y", 0.5)]


def test_steps_that_branches_share_are_added_once_with_the_best_reward(bank: TraceBank) -> None:
    trunk = ("first", "second")
    report = build(bank, [attempt(answer="3", reward=0.0, thoughts=trunk), attempt(answer="2", reward=1.0, thoughts=trunk)])
    assert report.repeated == {"shared with what came before": 2}
    assert report.steps == len(bank) == 4
    assert [step.reward for step in held(bank)] == [1.0, 1.0, 1.0, 0.0]
    assert report.sources == {"tests": (2, 4)}


def test_of_equally_near_steps_the_best_rewarded_is_found(bank: TraceBank) -> None:
    build(bank, [attempt(answer="x", reward=reward, thoughts=(f"try {reward}",)) for reward in (0.2, 0.9, 0.5)])
    (hits,) = bank.query(["What is 1+1?"], k=3, steps=range(1))
    assert [hit.reward for hit in hits] == [0.9, 0.5, 0.2]


# --- what is left out ---


def test_every_drop_is_counted_by_its_reason(bank: TraceBank) -> None:
    tried = [
        attempt(answer="good"),
        attempt(answer="plain", split=""),
        attempt(fault="the engine is down", split="test"),
        attempt(turns=()),
        attempt(answer="leak", split="test"),
        attempt(answer="half \ud800 of a pair"),
    ]
    report = build(bank, tried)
    assert report.dropped == {
        "ended by an environment fault": 1,
        "without a turn": 1,
        "of the split 'test'": 1,
        "with text that is not Unicode (a lone surrogate)": 1,
    }
    assert report.read == report.kept + sum(report.dropped.values()) == 6
    assert answers(bank) == ["good", "plain"]


def test_other_splits_can_be_asked_for(bank: TraceBank) -> None:
    tried = [attempt(answer=split, split=split) for split in ("train", "validation", "test", "")]
    build(bank, tried, splits=["validation"])
    assert answers(bank) == ["validation"]
    build(bank, tried, splits=None)
    assert set(answers(bank)) == {"train", "validation", "test", ""}


@pytest.mark.parametrize("wrong", [{"keep": -1}, {"splits": "train"}])
def test_what_cannot_be_meant_is_refused(bank: TraceBank, wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(bank, [attempt()], **wrong)


# --- where trajectories come from ---


def test_files_run_folders_and_trajectories_give_the_same_bank(bank: TraceBank, tmp_path: Path) -> None:
    tried = [attempt(f"{a}+{b}", str(a + b)) for a in range(3) for b in range(3)]
    run = tmp_path / "run" / "trajectories"
    run.mkdir(parents=True)
    write_trajectories(run / "step_000002.jsonl", tried[6:])
    write_trajectories(run / "step_000001.jsonl", tried[2:6])
    write_trajectories(tmp_path / "one.jsonl", tried[:2])
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    report = build(bank, [tmp_path / "one.jsonl", str(tmp_path / "run")])
    assert report.read == 9
    assert held(bank) == [step for trajectory in tried for step in steps_of(trajectory)]
    for number, source in enumerate([tried, iter(tried), [tmp_path / "one.jsonl", *tried[2:]], run]):
        with TraceBank.create(tmp_path / f"bank{number}") as other:
            build(other, source)
            assert held(other) == held(bank)[len(bank) - len(other) :]


def test_a_source_can_be_named(bank: TraceBank) -> None:
    report = build(bank, [attempt("1+1"), attempt("2+2", source="")], source="Qwen3-14B")
    assert {step.source for step in held(bank)} == {"Qwen3-14B"}
    assert report.sources == {"Qwen3-14B": (2, 4)}


def test_half_a_line_at_the_end_is_left_out_and_told(bank: TraceBank, tmp_path: Path) -> None:
    file = tmp_path / "killed.jsonl"
    write_trajectories(file, [attempt("1+1"), attempt("2+2")])
    file.write_bytes(file.read_bytes()[:-40])
    report = build(bank, file)
    assert (report.read, report.kept) == (2, 1)
    assert report.dropped == {"half a line at the end of a file": 1}


def test_a_bad_line_is_told_with_its_place_and_nothing_is_added(bank: TraceBank, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f'{attempt().to_json()}\n{{"not": "one"}}\n{attempt("2+2").to_json()}\n')
    with pytest.raises(TrajectoryError, match=r"bad\.jsonl, line 2: .*expected"):
        build(bank, file)
    assert len(bank) == 0


def test_what_is_missing_is_told_before_anything_is_read(bank: TraceBank, tmp_path: Path) -> None:
    write_trajectories(tmp_path / "one.jsonl", [attempt()])
    (tmp_path / "empty").mkdir()
    for path, found in ((tmp_path / "none.jsonl", "found nothing"), (tmp_path / "empty", "no such file")):
        with pytest.raises(FileNotFoundError, match=found):
            build(bank, [tmp_path / "one.jsonl", path])
    assert len(bank) == 0


def test_the_files_of_a_run_folder_are_those_of_its_trajectories_in_order(tmp_path: Path) -> None:
    (tmp_path / "trajectories").mkdir()
    for name in ("metrics.jsonl", "trajectories/step_000010.jsonl", "trajectories/step_000009.jsonl", "trajectories/x.txt"):
        (tmp_path / name).touch()
    names = [file.name for file in trajectory_files(tmp_path)]
    assert names == ["step_000009.jsonl", "step_000010.jsonl"]


def test_progress_ends_where_everything_is_done(bank: TraceBank, tmp_path: Path) -> None:
    write_trajectories(tmp_path / "one.jsonl", [attempt("1+1"), attempt("2+2")])
    told: list[tuple[str, int, int]] = []
    build(bank, tmp_path / "one.jsonl", progress=lambda *what: told.append(what))
    size = (tmp_path / "one.jsonl").stat().st_size
    assert told[-4:] == [
        ("reading trajectories", size, size),
        ("adding steps", 1, 2),
        ("adding steps", 2, 2),
        ("building the index", 0, 0),
    ]


# --- tokens ---

HOSTILE = st.text(st.sampled_from(list('",:[]{}\\segment 0é\n')), max_size=30) | st.sampled_from(
    [',"segments":[{', '\\",\\"segments\\":[{', '"segments":[]', '}],"reward":', "\\"]
)


@given(question=HOSTILE, action=HOSTILE, source=HOSTILE, tokens=st.integers(0, 3))
@settings(deadline=None)
def test_a_line_reads_the_same_without_its_tokens_whatever_is_written_in_it(question, action, source, tokens) -> None:
    reply = Segment("policy", tuple(range(tokens)), (-0.5,) * tokens, (0.5,) * tokens, turn=0, id=0, parent=None, at=0)
    for segments in ((), (reply,), (reply, replace(reply, id=1, parent=0, at=tokens))):
        one = attempt(question=question, turns=(Turn("", action, ""),), source=source, segments=segments)
        bare = replace(one, segments=())
        assert Trajectory.from_json(one.to_json(), segments=False) == bare
        assert Trajectory.from_json(one.to_json().replace('"segments":', '"segments" : '), segments=False) == bare


def test_without_tokens_a_bad_line_is_still_refused() -> None:
    line = attempt().to_json()
    for bad in (line[:-1], line.replace('"reward":1.0', '"reward":"1"'), line.replace(',"segments":[]', ""), "[]"):
        with pytest.raises(TrajectoryError):
            Trajectory.from_json(bad, segments=False)


def test_trajectories_are_not_held_in_memory(bank: TraceBank) -> None:
    seen: list[weakref.ref[Trajectory]] = []
    alive: list[int] = []

    def many() -> Iterator[Trajectory]:
        for number in range(400):
            one = attempt(f"{number}+1")
            seen.append(weakref.ref(one))
            yield one
            del one
            alive.append(sum(reference() is not None for reference in seen))

    assert build(bank, many()).kept == 400
    assert max(alive) <= 2


# --- building again ---


def test_building_again_adds_nothing(bank: TraceBank) -> None:
    tried = [attempt(f"{number}+1") for number in range(10)]
    build(bank, tried)
    before = held(bank)
    report = build(bank, tried)
    assert report.repeated == {"in the bank already": 20}
    assert report.steps == 0
    assert held(bank) == before


def test_a_build_that_was_broken_off_is_finished_by_running_it_again(bank: TraceBank, tmp_path: Path, monkeypatch) -> None:
    tried = [attempt(f"{number}+1", str(answer), float(answer)) for number in range(10) for answer in range(8)]
    with TraceBank.create(tmp_path / "whole") as whole:
        build(whole, tried)
        expected = held(whole)
    monkeypatch.setattr("tracebank.build._CHUNK_STEPS", 12)
    real_add, added = TraceBank.add, []

    def add(self: TraceBank, steps: list[StepTrace], *, index: bool = True) -> range:
        if len(added) == 2:
            raise BankError("disk full")
        added.append(len(steps))
        return real_add(self, steps, index=index)

    with monkeypatch.context() as broken:
        broken.setattr(TraceBank, "add", add)
        with pytest.raises(BankError, match="disk full"):
            build(bank, tried)
    assert 0 < len(bank) == sum(added) < len(expected)
    build(bank, tried)
    assert held(bank) == expected


def test_nothing_is_left_beside_the_bank(bank: TraceBank, tmp_path: Path) -> None:
    build(bank, [attempt()])
    with TraceBank.create(tmp_path / "plain") as plain:
        plain.add(steps_of(attempt()))
        plain.compact()
        assert sorted(path.name.split("-")[0] for path in bank.path.iterdir()) == sorted(
            path.name.split("-")[0] for path in plain.path.iterdir()
        )


# --- steps ---


def test_steps_are_added_as_they_are_but_none_twice(bank: TraceBank) -> None:
    steps = [*steps_of(attempt("1+1", reward=0.2)), *steps_of(attempt("2+2", reward=0.8))]
    report = add_steps(bank, [*steps, *steps])
    assert held(bank) == steps
    assert (report.read, report.kept, report.steps, report.tasks) == (8, 4, 4, 2)
    assert report.dropped == {"shared with what came before": 4}
    again = add_steps(bank, steps, min_reward=0.2)
    assert again.dropped == {"with a reward not above 0.2": 2, "in the bank already": 2}


# --- against the rule said plainly ---

attempts = st.builds(
    lambda task, name, thought, answer, reward, split: attempt(
        task, answer, reward, thoughts=thought, task_id=name, split=split
    ),
    st.sampled_from(["1+1", "2+2"]),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([(), ("x",), ("x", "y"), ("y",)]),
    st.sampled_from(["2", "3"]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["train", "train", "test"]),
)


def plainly(tried: list[Trajectory], keep: int) -> list[StepTrace]:
    """The steps that a bank should hold, by the rule and without any haste."""
    task = list(range(len(tried)))  # of each trajectory: the first that is of the same task
    for _ in tried:
        for a, b in itertools.product(range(len(tried)), repeat=2):
            if tried[a].task_id == tried[b].task_id or tried[a].question == tried[b].question:
                task[a] = min(task[a], task[b])
    steps: list[StepTrace] = []
    for first in sorted(set(task)):
        ranked = sorted((one for one, of in zip(tried, task, strict=True) if of == first), key=lambda one: -one.reward)
        different = [one for place, one in enumerate(ranked) if one.turns not in [other.turns for other in ranked[:place]]]
        for one in different[: keep or None]:
            for step in steps_of(one):
                if (step.key, step.value, step.final) not in [(other.key, other.value, other.final) for other in steps]:
                    steps.append(step)
    return steps


@given(tried=st.lists(attempts, max_size=12), keep=st.integers(0, 3))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bank_holds_what_the_rule_says(tmp_path_factory: pytest.TempPathFactory, tried, keep) -> None:
    with TraceBank.create(tmp_path_factory.mktemp("bank")) as bank:
        report = build(bank, tried, keep=keep)
        assert held(bank) == plainly([one for one in tried if one.split == "train"], keep)
        assert report.read == len(tried) == report.kept + sum(report.dropped.values())
        assert report.steps == len(bank)
