"""Batches that are played while the one before is learned from: by which weights, how exactly it resumes, how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from learner_parts import metrics, played, same_weights, short, untaught  # noqa: F401
from policies import full_logprobs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learners.grpo import GRPO, GRPOConfig
from learners.run.checkpoint import CheckpointError, load_in_flight
from learners.run.command import run
from learners.run.overlap import Batches, Ended
from learners.run.players import TooManyFaults

FOLDER = Path(__file__).parent
STEPS = 4
OPTIONS = ("--async-steps", 1, "--group-size", 3, "--eval-every", 2)


class Watched(GRPO):
    """GRPO that asks for measured entropies and remembers them, and that can be made to die at a moment."""

    measure = True

    def __init__(self, config, dies=None):
        super().__init__(config)
        self.measured, self._dies = [], dies

    def _moment(self, what, step):
        if self._dies == (what, step):
            raise KeyError(f"dead at {what} {step}")

    async def explore(self, group):
        phase, step, *_ = group.place
        tree = await super().explore(group)
        if phase == 0:
            self._moment("playing", step + 1)
        return tree

    def credit(self, trees):
        self.measured.append([(tree.tokens(leaf), tree.measured[leaf.path]) for tree in trees for leaf in tree.leaves])
        self._moment("learning", trees[0].version + 2)  # of the second batch on
        return super().credit(trees)


def trained(arguments, dies=None) -> Watched:
    made = []

    def learner(config):
        made.append(Watched(config, dies))
        return made[0]

    run(GRPOConfig, learner, "", arguments)
    return made[0]


@pytest.fixture(scope="module")
def finished(untaught, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("overlap") / "run"
    trained(short(untaught, folder, *OPTIONS, steps=STEPS))
    return folder


def is_the_same_run(one: Path, other: Path) -> bool:
    last = f"checkpoints/step_{STEPS:06d}"
    evaluations = [(folder / "evaluations.jsonl").read_text() for folder in (one, other)]
    return metrics(one) == metrics(other) and evaluations[0] == evaluations[1] and same_weights(one / last, other / last)


def test_every_batch_but_the_first_is_one_step_stale(finished):
    assert [record["staleness"] for record in metrics(finished)] == [0, 1, 1, 1]
    for step, version in enumerate((0, 0, 1, 2), start=1):
        assert {record.policy_version for record in played(finished, step)} == {version}
    evaluated = [json.loads(line)["step"] for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    assert evaluated == [0, 0, 2, 2, 4, 4]
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert {"seconds/rollout", "seconds/update", "seconds/waited"} <= json.loads(line).keys()


def test_it_repeats_bit_for_bit(finished, untaught, tmp_path):  # noqa: F811
    trained(short(untaught, tmp_path / "again", *OPTIONS, steps=STEPS))
    assert is_the_same_run(tmp_path / "again", finished)


def test_it_resumes_bit_for_bit_and_weights_are_what_they_are_said_to_be(finished, untaught, tmp_path):  # noqa: F811
    """The run dies while it learns from batch 4, which was sampled from the weights after 2, and goes on from step 3."""
    folder = tmp_path / "run"
    with pytest.raises(KeyError, match="dead at learning 4"):
        trained(short(untaught, folder, *OPTIONS, steps=STEPS), dies=("learning", 4))
    second, third = (folder / "checkpoints" / f"step_{step:06d}" for step in (2, 3))
    behind = load_in_flight(third)
    saved = load_file(second / "model.safetensors")
    assert saved.keys() == behind.keys()
    assert all(torch.equal(behind[name], weights) for name, weights in saved.items())
    sampled_from, learned_from = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (second, third))

    resumed = trained(["--resume", str(folder)])
    assert is_the_same_run(folder, finished)

    for record in played(folder, 4):
        ids = [token for segment in record.segments for token in segment.ids]
        told = [logprob for segment in record.segments if segment.author == "policy" for logprob in segment.logprobs]
        begin = len(ids) - len(told)
        expected = full_logprobs(sampled_from, ids)[torch.arange(begin, len(ids)) - 1, torch.tensor(ids[begin:])]
        torch.testing.assert_close(torch.tensor(told), expected, atol=1e-4, rtol=1e-4)
    assert len(resumed.measured) == 1
    for tokens, entropies in resumed.measured[0]:  # of the policy that ratios are to
        logprobs = full_logprobs(learned_from, tokens.ids.tolist())
        torch.testing.assert_close(entropies[1:], -(logprobs.exp() * logprobs).sum(-1)[:-1], atol=1e-4, rtol=1e-4)


def test_it_resumes_bit_for_bit_after_dying_in_the_batch_ahead(finished, untaught, tmp_path, caplog):  # noqa: F811
    folder, before = tmp_path / "run", threading.active_count()
    with pytest.raises(KeyError, match="dead at playing 3"):
        trained(short(untaught, folder, *OPTIONS, steps=STEPS), dies=("playing", 3))
    assert threading.active_count() <= before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    trained(["--resume", str(folder)])
    assert is_the_same_run(folder, finished)


def test_a_checkpoint_without_the_weights_in_flight_is_refused(finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name == f"step_{STEPS:06d}":
            assert not (path / "in_flight.pt").exists()  # nothing is in flight at the end
            shutil.rmtree(path)
        else:
            (path / "in_flight.pt").write_bytes(b"torn")
    with pytest.raises(SystemExit):
        trained(["--resume", str(tmp_path / "run")])
    assert "in_flight.pt" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="weights that the batch in flight"):
        load_in_flight(finished / "checkpoints" / f"step_{STEPS:06d}")


@pytest.mark.thorough
def test_it_resumes_bit_for_bit_from_kills_at_any_moment(finished, untaught, tmp_path):  # noqa: F811
    rng, folder = random.Random(3), tmp_path / "run"
    source = f"import sys; sys.path[:0] = [{str(FOLDER)!r}]; from test_overlap import trained; trained(sys.argv[1:])"
    program, lines = [sys.executable, "-c", source], folder / "metrics.jsonl"
    arguments = short(untaught, folder, *OPTIONS, steps=STEPS)
    for _ in range(6):
        done = lines.read_bytes().count(b"\n") if lines.exists() else 0
        child = subprocess.Popen([*program, *arguments], cwd=FOLDER.parents[1], stdout=subprocess.DEVNULL)
        while child.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > min(done, STEPS - 1)):
            time.sleep(0.01)
        time.sleep(0.6 * rng.random())
        child.kill()
        child.wait()
        arguments = ["--resume", str(folder)]
    subprocess.run([*program, *arguments], cwd=FOLDER.parents[1], check=True, stdout=subprocess.DEVNULL)
    assert is_the_same_run(folder, finished)


# The two halves, without a policy


class Weights:
    """A sampler of which nothing is asked but whose weights it has."""

    def __init__(self):
        self.version, self.released = 0, 0

    def load_weights(self, parameters, version):
        self.version = version

    def release_memory(self):
        self.released += 1


def batches(play, *, steps=3, ahead=True):
    return Batches(play, Weights(), lambda: (), steps=steps, ahead=ahead, saves_after=lambda step: False)


def test_the_next_batch_is_played_while_this_one_is_learned_from():
    is_playing, has_learned = threading.Event(), threading.Event()

    async def play(step):
        if step == 1:
            is_playing.set()
            assert await asyncio.to_thread(has_learned.wait, 20)
        return [], []

    def learn(go_on):
        assert is_playing.wait(20)
        has_learned.set()
        return 7

    async def both():
        async with batches(play, steps=2) as source:
            await source.take(0)
            assert await source.learn(learn) == 7
            await source.take(1)

    asyncio.run(both())


def test_in_turn_nothing_overlaps_and_memory_is_released():
    async def both():
        async def play(step):
            return [], []

        async with batches(play, ahead=False) as source:
            await source.take(0)
            sampler = source._sampler
            assert sampler.released == 1
            assert len(asyncio.all_tasks()) == 1
            assert await source.learn(lambda go_on: threading.current_thread()) is threading.main_thread()
            source.load(1)
            assert sampler.version == 1

    asyncio.run(both())


class Halves:
    """A batch ahead and a learning, either of which can be made to fail; both tell how they ended."""

    def __init__(self, *, play_fails=None, learn_fails=None):
        self.ends = []
        self._play_fails, self._learn_fails = play_fails, learn_fails
        self._learning = threading.Event()

    async def play(self, step):
        if step == 0:
            return [], []
        try:
            await asyncio.to_thread(self._learning.wait, 20)
            if self._play_fails:
                raise self._play_fails
            await asyncio.sleep(20)
        except BaseException as problem:
            self.ends.append(("playing", type(problem)))
            raise
        return [], []

    def learn(self, go_on):
        self._learning.set()
        try:
            if self._learn_fails and not self._play_fails:
                raise self._learn_fails
            for _ in range(2000):
                go_on()
                time.sleep(0.01)
        except BaseException as problem:
            self.ends.append(("learning", type(problem)))
            if self._learn_fails:
                raise self._learn_fails from None
            raise

    async def act(self):
        async with batches(self.play) as source:
            await source.take(0)
            await source.learn(self.learn)

    def both(self, error):
        begun = time.monotonic()
        with pytest.raises(error) as caught:
            asyncio.run(self.act())
        assert time.monotonic() - begun < 15  # neither waited for its own end
        return caught.value


def test_what_ends_the_rollouts_ends_the_learning():
    faults = TooManyFaults("the tools are gone")
    halves = Halves(play_fails=faults)
    assert halves.both(TooManyFaults) is faults
    assert halves.ends == [("playing", TooManyFaults), ("learning", Ended)]


def test_what_ends_the_learning_ends_the_rollouts():
    problem = ValueError("a loss that is not finite")
    halves = Halves(learn_fails=problem)
    assert halves.both(ValueError) is problem
    assert halves.ends == [("learning", ValueError), ("playing", asyncio.CancelledError)]


def test_a_second_error_is_logged(caplog):
    halves = Halves(play_fails=TooManyFaults("first"), learn_fails=ValueError("second"))
    halves.both(TooManyFaults)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "learning from the batch has failed as well: ValueError('second')" in record.getMessage()


def test_an_interrupt_ends_both():
    halves, main = Halves(), threading.main_thread().ident

    def interrupt():
        assert halves._learning.wait(20)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    halves.both(KeyboardInterrupt)
    thread.join()
    assert sorted(halves.ends) == [("learning", Ended), ("playing", asyncio.CancelledError)]


@pytest.mark.parametrize("steps", [-1, 2])
def test_more_than_one_step_ahead_is_refused(steps, capsys, untaught, tmp_path):  # noqa: F811
    with pytest.raises(SystemExit) as caught:
        run(GRPOConfig, GRPO, "", short(untaught, tmp_path / "run", "--async-steps", steps))
    assert caught.value.code == 2
    assert f"--async-steps must be 0 or 1, not {steps}: staleness is bounded" in capsys.readouterr().err
