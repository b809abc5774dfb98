"""Trajectories as values and as lines of a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebank import Segment, Trajectory, TrajectoryError, Turn, read_trajectories, write_trajectories
from tracebank.trajectory import FORMAT_VERSION

PROMPT = Segment("prompt", (11, 12, 13), (), (), turn=0, id=0, parent=None, at=0)
CALL = Segment("policy", (21, 22, 23, 24), (-0.1, -0.2, -0.3, -0.4), (0.5, 0.6, 0.7, 0.8), turn=0, id=1, parent=0, at=3)
RESULT = Segment("tool", (31,), (), (), turn=0, id=2, parent=1, at=4)
BRANCH = Segment("policy", (41, 42), (-1.5, -2.5), (1.0, 0.0), turn=0, id=5, parent=1, at=2)


def trajectory(**changes: Any) -> Trajectory:
    plain = Trajectory(
        environment="agent_envs/MathTool-v0",
        format="tags",
        task_id="arithmetic:7",
        question="What is 6 times 7, en français?",
        split="train",
        turns=(Turn("a product", "<python>print(6*7)</python>", "42"), Turn("", "\\boxed{42}", "")),
        segments=(PROMPT, CALL, RESULT),
        reward=1.1,
        score={"accuracy": 1.0, "tool_bonus": 0.1},
        success=True,
        fault="",
        stop="answer",
        tool_calls=1,
        policy_version=3,
        step=4,
        path=(0, 2),
    )
    return dataclasses.replace(plain, **changes)


def record(**changes: Any) -> str:
    """A written line with some fields changed."""
    return json.dumps(json.loads(trajectory().to_json()) | changes)


def test_a_line_reads_back_as_the_trajectory_it_was() -> None:
    one = trajectory(source="Qwen3-14B")
    assert Trajectory.from_json(one.to_json()) == one
    assert "\n" not in one.to_json()


def test_a_continuation_takes_the_whole_parent_and_a_branch_only_its_start() -> None:
    straight, branched = trajectory(), trajectory(segments=(PROMPT, CALL, BRANCH))
    assert straight.lengths == (3, 4, 1)
    assert straight.token_ids == (11, 12, 13, 21, 22, 23, 24, 31)
    assert branched.lengths == (3, 2, 2)
    assert branched.token_ids == (11, 12, 13, 21, 22, 41, 42)
    assert trajectory(segments=()).token_ids == ()


# --- round trip of anything that is legal ---

finite = st.floats(allow_nan=False, allow_infinity=False)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=[]), max_size=20).filter(lambda text: not has_pair(text))


def has_pair(text: str) -> bool:
    return any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in itertools.pairwise(text))


@st.composite
def paths(draw: st.DrawFn) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for number in range(draw(st.integers(0, 4))):
        author = draw(st.sampled_from(["prompt", "policy", "tool", "retrieved"]))
        ids = tuple(draw(st.lists(st.integers(0, 200_000), max_size=5)))
        told = [tuple(draw(floats32) for _ in ids) if author == "policy" else () for _ in range(2)]
        before = segments[-1] if segments else None
        at = draw(st.integers(0, len(before.ids))) if before else 0
        parent = before.id if before else None
        segments.append(Segment(author, ids, *told, draw(st.integers(0, 9)), number * 3, parent, at))  # type: ignore[arg-type]
    return tuple(segments)


trajectories = st.builds(
    Trajectory,
    **dict.fromkeys(["environment", "format", "task_id", "question", "split", "fault", "stop", "source"], texts),
    turns=st.lists(st.builds(Turn, texts, texts, texts), max_size=3).map(tuple),
    segments=paths(),
    reward=finite,
    score=st.dictionaries(texts, finite, max_size=3),
    success=st.booleans(),
    tool_calls=st.integers(0, 2**40),
    policy_version=st.integers(),
    step=st.integers(-1, 2**70),
    path=st.lists(st.integers(0, 99), max_size=4).map(tuple),
)


@given(trajectories)
def test_every_trajectory_survives_the_file_bit_for_bit(one: Trajectory) -> None:
    line = one.to_json()
    again = Trajectory.from_json(line)
    assert again == one
    assert again.to_json() == line  # also tells -0.0 from 0.0
    assert line.isascii()
    assert line.splitlines() == [line]


@given(st.binary(min_size=4, max_size=4).map(lambda bits: struct.unpack("<f", bits)[0]).filter(math.isfinite))
def test_log_probabilities_keep_all_32_bits(value: float) -> None:
    one = trajectory(segments=(Segment("policy", (1,), (value,), (0.0,), 0, 0, None, 0),))
    again = Trajectory.from_json(one.to_json()).segments[0].logprobs[0]
    assert struct.pack("<f", again) == struct.pack("<f", value)


def test_log_probabilities_are_written_with_few_digits() -> None:
    value = float(np.float32(0.1))  # 0.10000000149011612 as a double
    one = trajectory(segments=(Segment("policy", (1,), (value,), (value,), 0, 0, None, 0),))
    assert '"logprobs":[0.1]' in one.to_json()


def test_doubles_are_rounded_to_what_a_sampler_computes() -> None:
    assert Segment("policy", (1,), (0.1,), (0.1,), 0, 0, None, 0).logprobs == (float(np.float32(0.1)),)


def test_a_lone_surrogate_survives_and_a_pair_is_refused() -> None:
    lone = trajectory(question="\ud83d alone \udc00")
    assert Trajectory.from_json(lone.to_json()) == lone
    with pytest.raises(TrajectoryError, match=r"^turns\[0\]\.observation: expected text without surrogate pairs"):
        trajectory(turns=(Turn("", "", "\ud83d\ude00"),)).to_json()


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": math.nan}, r"^reward: expected a finite number, found nan$"),
        ({"score": {"accuracy": math.inf}}, r"^score\.accuracy: expected a finite number, found inf$"),
        ({"success": np.True_}, r"^success: expected true or false, found "),
        ({"tool_calls": -1}, r"^tool_calls: expected a whole number from 0 up, found -1$"),
        ({"turns": (Turn("", "", None),)}, r"^turns\[0\]\.observation: expected text, found None$"),  # type: ignore[arg-type]
        ({"segments": (dataclasses.replace(PROMPT, ids=(1, np.int64(2))),)}, r"^segments\[0\]\.ids\[1\]: expected a whole"),
        ({"segments": (dataclasses.replace(PROMPT, ids=(-1,)),)}, r"^segments\[0\]\.ids\[0\]: expected .* found -1$"),
        ({"path": (0, "1")}, r"^path\[1\]: expected a whole number, found '1'$"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        trajectory(**changes).to_json()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"expected a trajectory as one JSON object, found '\{' \("),
        ("[" * 100_000, r"expected a trajectory as one JSON object"),
        ("7", r"^expected an object, found 7$"),
        (record(version=FORMAT_VERSION + 1), rf"^version: expected {FORMAT_VERSION}, found {FORMAT_VERSION + 1}; .*upgrade"),
        (record(version="1"), r"^version: expected 1, found '1'"),
        (record(version=True), r"^version: expected 1, found True"),
        ('{"version": 1}', r"^environment: expected this field, found none$"),
        (record(rewards=1), r"^rewards: expected one of version, environment, .*, found an unknown field$"),
        (record(reward=True), r"^reward: expected a finite number, found True$"),
        (record(reward=10**400), r"^reward: expected a finite number, found 1000"),
        (record(reward=0).replace('"reward": 0', '"reward": 1e999'), r"^reward: expected a finite number, found inf$"),
        (record(reward=0).replace('"reward": 0', '"reward": NaN'), r"^reward: expected a finite number, found nan$"),
        (record(score=[]), r"^score: expected an object of numbers, found \[\]$"),
        (record(turns="x"), r"^turns: expected a list, found 'x'$"),
        (record(turns=[{"thought": ""}]), r"^turns\[0\]\.action: expected this field, found none$"),
        (record(tool_calls=1.5), r"^tool_calls: expected a whole number from 0 up, found 1\.5$"),
    ],
)
def test_a_broken_line_says_which_field_is_wrong(line: str, message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        Trajectory.from_json(line)


def test_source_may_be_left_out() -> None:
    values = json.loads(trajectory().to_json())
    del values["source"]
    assert Trajectory.from_json(json.dumps(values)).source == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"author": "user"}, r"^author: expected one of prompt, policy, tool, retrieved, found 'user'$"),
        ({"logprobs": (-0.1,)}, r"^logprobs: expected 4 numbers for 4 tokens of author 'policy', found 1$"),
        ({"entropies": ()}, r"^entropies: expected 4 numbers for 4 tokens of author 'policy', found 0$"),
        ({"author": "tool"}, r"^logprobs: expected 0 numbers for 4 tokens of author 'tool', found 4$"),
        ({"logprobs": (-0.1, math.nan, -0.1, -0.1)}, r"^logprobs\[1\]: expected a finite 32-bit float, found nan$"),
        ({"entropies": (0.0, 0.0, 0.0, 1e39)}, r"^entropies\[3\]: expected a finite 32-bit float, found 1e\+39$"),
        ({"parent": None}, r"^at: expected 0 for a segment without a parent, found 3$"),
    ],
)
def test_a_segment_that_contradicts_itself_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        dataclasses.replace(CALL, **changes)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((CALL,), r"^segments\[0\]\.parent: expected none for the root, found 0$"),
        ((PROMPT, RESULT), r"^segments\[1\]\.parent: expected 0, the segment before it, found 1$"),
        (
            (PROMPT, dataclasses.replace(CALL, at=4)),
            r"^segments\[1\]\.at: expected 0 to 3, .* found 4$",
        ),
        ((PROMPT, dataclasses.replace(CALL, id=0)), r"^segments: expected ids that differ, found \[0, 0\]$"),
    ],
)
def test_segments_must_form_one_path(segments: tuple[Segment, ...], message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        trajectory(segments=segments)


def test_an_error_in_a_nested_segment_names_the_segment() -> None:
    values = json.loads(trajectory().to_json())
    values["segments"][1]["logprobs"].pop()
    with pytest.raises(TrajectoryError, match=r"^segments\[1\]\.logprobs: expected 4 numbers .* found 3$"):
        Trajectory.from_json(json.dumps(values))


# --- files ---


def test_files_grow_by_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "step_000001.jsonl"
    several = [trajectory(step=step) for step in range(3)]
    write_trajectories(file, several[:2])
    write_trajectories(file, iter(several[2:]))
    assert list(read_trajectories(file)) == several
    assert file.read_bytes().count(b"\n") == 3
    file.write_bytes(file.read_bytes() + b"\n  \n")
    assert list(read_trajectories(file)) == several  # blank lines are passed over


def test_a_trajectory_that_cannot_be_written_leaves_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    with pytest.raises(TrajectoryError, match="reward"):
        write_trajectories(file, [trajectory(), trajectory(reward=math.nan), trajectory()])
    assert list(read_trajectories(file)) == [trajectory()]


def test_half_a_line_is_reported_by_reader_and_writer(tmp_path: Path) -> None:
    file = tmp_path / "killed.jsonl"
    write_trajectories(file, [trajectory()])
    file.write_bytes(file.read_bytes() + b'{"version":1,"envi')
    before = file.read_bytes()
    with pytest.raises(TrajectoryError, match=r"killed\.jsonl: expected whole lines, found half a line at its end"):
        write_trajectories(file, [trajectory()])
    assert file.read_bytes() == before
    lines = read_trajectories(file)
    assert next(lines) == trajectory()
    with pytest.raises(TrajectoryError, match=r"killed\.jsonl, line 2: expected a trajectory as one JSON object, found"):
        next(lines)


def test_a_file_in_another_encoding_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'\n{"question": "caf\xe9"}\n')
    with pytest.raises(TrajectoryError, match=r"latin\.jsonl, line 2: 'utf-8' codec can't decode"):
        list(read_trajectories(file))
