"""The comparison with TRL is of like with like: both sides do the same work, and learn the same from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")

from side_by_side import ours, theirs
from side_by_side.gate import compare
from side_by_side.pacing import Step, Work
from side_by_side.policy import save_policy
from side_by_side.shape import Shape
from side_by_side.task import Lookups

SHAPE = Shape(turns=2, latency=0.01, prompt=40, written=9, result=7, tasks=2, group_size=2)
BETWEEN = 7 + 22  # a result's words, and the template around them, of which "user" and "assistant" are spelled in bytes


class Here:
    """A connection to nobody: every word has been said already."""

    def __init__(self) -> None:
        self.told: list[Step | str] = []

    def send(self, told: Step | str) -> None:
        self.told.append(told)

    def recv(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save_policy("tiny", SHAPE.written, folder)
    return folder


@pytest.mark.parametrize("side", [ours, theirs], ids=["ours", "theirs"])
def test_each_side_does_the_work_that_the_shape_says(side, policy, tmp_path):
    here = Here()
    side.play(here, SHAPE, policy, tmp_path, 2)
    ready, *steps = here.told
    assert ready == "ready"
    written = 4 * 3 * 9  # trajectories, turns with the last one, tokens
    expected = Work(generated=written, trained=written, tokens=4 * (40 + 3 * 9 + 2 * BETWEEN), calls=4 * 2)
    assert [step.work for step in steps] == [expected] * 2
    assert written == SHAPE.generated
    for step in steps:
        assert 2 * SHAPE.latency < step.seconds - step.update  # at least the tools of one trajectory


def test_both_sides_learn_the_same_from_a_batch(policy, tmp_path):
    difference = compare(SHAPE, policy, tmp_path)
    assert difference.allowed, difference
    assert not replace(difference, gradient=2e-5).allowed


def test_the_last_call_takes_no_time_and_words_are_paid_for():
    lookups = Lookups(replace(SHAPE, latency=0.05, turns=1))
    question = lookups.reset(seed=3)
    assert question != lookups.reset(seed=4)
    assert question == lookups.reset(seed=3)
    began = time.perf_counter()
    found = lookups.look("aaa aaz aab")
    assert time.perf_counter() - began >= 0.05
    assert len(found.split()) == SHAPE.result
    assert lookups.get_reward() == pytest.approx(2 / 9)
    assert lookups.look("aaa") == "That was all."
    assert lookups.get_reward() == pytest.approx(2 / 9)
