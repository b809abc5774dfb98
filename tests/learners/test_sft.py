"""Imitation: tokens as in a rollout, trajectories out of banks, a loss that is the likelihood, and runs that resume."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from branching_parts import Wander
from learner_parts import metrics, played, same_weights, short, untaught  # noqa: F401
from policies import TOKENIZER, full_logprobs
from transformers import AutoModelForCausalLM

import agent_envs  # noqa: F401 - registers the ids
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.engine import Engine, independent
from learners.rollout.episode import Dialect, Limits
from learners.rollout.rendering import Renderer
from learners.run.command import run
from learners.run.config import UsageError
from learners.run.demonstrations import Choice, choose, transcript
from learners.sampling.sampler import Continuation
from learners.sft import SFT, SFTConfig, main
from tracebank import TraceBank, Trajectory, Turn, steps_of, write_trajectories
from tracebank.build import build

RENDERER = Renderer(TOKENIZER)
ALL = Choice(keep=0, min_reward=-9.0, split="train")


def math_tool(**options):
    return gym.make("agent_envs/MathTool-v0", disable_env_checker=True, **options)


@pytest.fixture(scope="module")
def tags() -> Dialect:
    environment = math_tool()
    environment.close()
    return Dialect.of(environment)


def trajectory(task="1+1", turns=(("", "<answer>\\boxed{2}</answer>", ""),), **fields) -> Trajectory:
    plain = Trajectory(
        environment="agent_envs/MathTool-v0",
        format="tag",
        task_id=task,
        question=f"How much is {task}?",
        split="train",
        turns=tuple(Turn(*turn) for turn in turns),
        segments=(),
        reward=1.0,
        score={},
        success=True,
        fault="",
        stop="terminated",
        tool_calls=max(0, len(turns) - 1),
        policy_version=0,
        step=0,
        path=(0,),
        source="test",
    )
    return replace(plain, **fields)


def sums(count: int) -> list[Trajectory]:
    """Trajectories in the plain format, an answer each."""
    return [
        trajectory(f"{n}+1", [("", str(n + 1), "")], format="plain", environment="tests/Parity-v0") for n in range(count)
    ]


def file_of(path, trajectories):
    write_trajectories(path, trajectories)
    return path


# Tokens


class Dictated:
    """A sampler that writes what an actor makes of the environment's last observation, as a policy would write it."""

    entropy, version, vocabulary = "full", 0, len(TOKENIZER)

    def __init__(self, act, stops):
        self.act, self.stops = act, stops

    def start(self, path):
        return _Dictation(self)


class _Dictation:
    def __init__(self, sampler):
        self.ids, self._sampler = [], sampler

    def append(self, ids):
        self.ids.extend(ids)

    def decode(self, decoding):
        self._text = self._sampler.act()

    async def rest(self):
        stopped = bool(self._sampler.stops) and self._text.endswith(self._sampler.stops)
        ids = TOKENIZER.encode(self._text, add_special_tokens=False) + ([] if stopped else [TOKENIZER.eos_token_id])
        self.ids.extend(ids)
        zeros = (0.0,) * len(ids)
        return Continuation(tuple(ids), zeros, zeros, self._text, "stop" if stopped else "eos")

    def cancel(self):
        pass


def wanders():
    actions = iter(["one", "two", "three", "four", "five", "six"])
    return Wander(), lambda environment: next(actions)


def calculates(**options):
    environment = math_tool(**options)
    seen: list[str] = []

    class Heard(gym.Wrapper):
        def reset(self, **named):
            observation, info = self.env.reset(**named)
            self.expert = self.unwrapped.oracle()
            seen.append(observation)
            return observation, info

        def step(self, action):
            observation, *rest = self.env.step(action)
            seen.append(observation)
            return observation, *rest

    return Heard(environment), lambda heard: heard.expert(seen[-1])


@pytest.mark.parametrize(
    "played_by", [wanders, calculates, lambda: calculates(format="hermes")], ids=["plain", "tags", "hermes"]
)
def test_texts_become_the_tokens_that_a_rollout_has(played_by):
    environment, actor = played_by()
    dialect = Dialect.of(environment)
    sampler = Dictated(lambda: actor(environment), dialect.format.stop(dialect.tools))
    limits = Limits(turn_tokens=400, total_tokens=4000)
    engine = Engine(lambda: environment, sampler, RENDERER, limits=limits, concurrency=1, deterministic=True)
    rollout = engine.rollout([3], lambda group: independent(group, 1), path=(0,), group_size=1, temperature=1.0)
    (tree,) = asyncio.run(rollout)
    engine.close()
    (leaf,) = tree.leaves
    assert len(leaf.turns) > 1
    expected = [(segment.author, segment.turn, list(segment.ids)) for segment, _ in tree.path(leaf)]
    assert list(transcript(RENDERER, dialect, tree.question, leaf.turns)) == expected


# Trajectories


def test_a_bank_gives_back_whole_trajectories(tags, tmp_path):
    call, answer = "<python>print(1)</python>", "<answer>\\boxed{1}</answer>"
    shared = ("<think>first</think>", call, "1\n2\n")
    told = [
        trajectory("a", [shared, ("", answer, "")]),
        trajectory("a", [shared, ("<think>again</think>", call, "x"), ("", answer, "")], reward=0.5),
        trajectory(
            "b", [("", "no tag at all", "Use a tag."), ("so\n<result>\nno\n", call, "\n</result>\n"), ("", answer, "")]
        ),
        trajectory("c", [("", answer, "")]),
        trajectory("d", [("", call, "a"), ("", call, "b")], stop="length", reward=-1.0),  # nobody had the last word
    ]
    with TraceBank.create(tmp_path / "bank") as bank:
        report = build(bank, told)
        assert report.repeated  # the first step of two trajectories is there once
    found, dropped = choose(str(tmp_path / "bank"), [], tags, ALL)
    assert not dropped
    wanted = {(one.task_id, one.question, one.turns, one.reward, one.tool_calls) for one in told[:4]}
    wanted = {w if w[0] != "b" else (*w[:4], 1) for w in wanted}  # what had no tag was no call
    assert {(one.task_id, one.question, one.turns, one.reward, one.tool_calls) for one in found} == wanted


def test_a_trajectory_that_lacks_a_step_in_the_bank_is_left_out_and_counted(tags, tmp_path):
    call, answer = "<python>print(1)</python>", "<answer>1</answer>"
    steps = steps_of(trajectory("a", [("", call, "1"), ("", call, "2"), ("", answer, "")]))
    with TraceBank.create(tmp_path / "bank") as bank:
        bank.add([steps[0], steps[2], *steps_of(trajectory("b"))])
    found, dropped = choose(str(tmp_path / "bank"), [], tags, ALL)
    assert [one.task_id for one in found] == ["b"]
    assert dropped == {"of a bank that lacks a step of it": 1}


def test_of_each_task_the_best_are_imitated_and_only_what_training_may_see(tags, tmp_path):
    told = [
        trajectory("a", reward=0.2, turns=[("", "<answer>0</answer>", "")]),
        trajectory("a", reward=0.9),
        trajectory("a", reward=0.9, turns=[("", "<answer>2</answer>", "")]),
        trajectory("a", reward=0.9, path=(7,)),  # word for word like the second
        trajectory("b", reward=0.0),
        trajectory("c", split="test"),
        trajectory("d", fault="engine: gone"),
        trajectory("e", format="hermes"),
        trajectory("f", turns=[]),
        trajectory("g", split=""),
    ]
    found, dropped = choose(None, [str(file_of(tmp_path / "told.jsonl", told))], tags, Choice(2, 0.0, "train"))
    assert found == [told[1], told[2], told[9]]
    assert dropped == Counter(
        {
            "word for word like another": 1,
            "with a reward not above 0": 1,
            "of the split 'test'": 1,
            "ended by an environment fault": 1,
            "in the format 'hermes', not 'tag'": 1,
            "without a turn": 1,
            "beyond the best 2 of a task": 1,
        }
    )


# Runs


def sft(*arguments) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return file_of(tmp_path_factory.mktemp("told") / "sums.jsonl", sums(8))


@pytest.fixture(scope="module")
def finished(untaught, told, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "whole"
    sft(*short(untaught, folder, "--trajectories", told, "--minibatch-groups", 0, steps=4))
    return folder


def test_the_loss_is_the_mean_negative_log_likelihood_of_what_the_policy_wrote(untaught, finished):  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(untaught)
    surprise, entropies = [], []
    for shown in played(finished, 1):
        logprobs = full_logprobs(model, list(shown.token_ids))
        place = len(shown.segments[0].ids)
        assert [segment.author for segment in shown.segments] == ["prompt", "policy"]
        for token in shown.segments[1].ids:
            surprise.append(-float(logprobs[place - 1, token]))
            entropies.append(-float((logprobs[place - 1].exp() * logprobs[place - 1]).sum()))
            place += 1
    record = metrics(finished)[0]
    assert record["loss"] == pytest.approx(sum(surprise) / len(surprise), rel=1e-4)
    assert record["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_the_policy_becomes_likelier_to_write_so(finished):
    losses = [record["loss"] for record in metrics(finished)]
    assert losses[-1] < losses[0] - 0.3


def test_every_trajectory_is_taken_once_before_any_is_taken_again(finished):
    orders = [[one.task_id for one in played(finished, step)] for step in range(1, 5)]
    assert sorted(orders[0] + orders[1]) == sorted(orders[2] + orders[3]) == sorted(f"{n}+1" for n in range(8))
    assert orders[:2] != orders[2:]


def test_a_run_leaves_what_every_run_leaves_and_a_policy_to_go_on_from(finished, untaught, tmp_path):  # noqa: F811
    summary = json.loads((finished / "summary.json").read_text())
    assert {"success_before", "success_after_greedy", "tool_calls_after"} <= summary.keys()
    assert same_weights(finished / "policy", finished / "checkpoints" / "step_000004")
    assert not same_weights(finished / "policy", untaught)
    assert not (finished / "policy" / "optimizer.pt").exists()
    run(GRPOConfig, GRPO, "", short(finished / "policy", tmp_path / "next", "--group-size", 2, steps=1))
    assert (tmp_path / "next" / "summary.json").exists()


def test_a_run_that_was_cut_goes_on_exactly_though_its_sources_are_gone(
    finished,
    untaught,  # noqa: F811
    told,
    tmp_path,
    monkeypatch,
):
    own = shutil.copy(told, tmp_path / "own.jsonl")
    arguments = short(untaught, tmp_path / "run", "--trajectories", own, "--minibatch-groups", 0, steps=4)
    credit, calls = SFT.credit, []

    def dies(self, trees):
        calls.append(1)
        if len(calls) == 3:
            raise SystemError("cut")
        return credit(self, trees)

    monkeypatch.setattr(SFT, "credit", dies)
    with pytest.raises(SystemError):
        sft(*arguments)
    monkeypatch.undo()
    own.unlink()
    sft("--resume", tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(finished)
    assert same_weights(tmp_path / "run" / "policy", finished / "policy")


def test_what_is_too_long_is_cut_and_what_has_no_room_is_refused(untaught, tmp_path):  # noqa: F811
    long = trajectory("x", [("", "y" * 500, "")], format="plain")
    hopeless = trajectory("z" * 500, format="plain")
    told = file_of(tmp_path / "told.jsonl", [long, hopeless])
    arguments = short(untaught, tmp_path / "run", "--trajectories", told, "--tasks-per-step", 2, steps=1)
    sft(*arguments)
    (record,) = metrics(tmp_path / "run")
    shown = played(tmp_path / "run", 1)
    assert {len(one.token_ids) for one in shown} == {120}
    assert record["refused"] == sum(one.task_id == hopeless.task_id for one in shown) >= 1
    assert record["groups"] <= 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is nothing to imitate: give a bank by --bank, or files or run folders by --trajectories"),
        (["--bank", "no/bank"], "--bank: no/bank"),
        (["--trajectories", "no/file.jsonl"], "--trajectories no/file.jsonl"),
        (["--trajectories", "TOLD", "--min-reward", "1"], "8 with a reward not above 1"),
        (["--trajectories", "TOLD", "--env", "MathTool-v0"], "8 in the format 'plain', not 'tag'"),
        (["--trajectories", "BAD"], "line 2"),
        (["--trajectories", "TOLD", "--keep", "-1"], "--keep must not be negative"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_anything_is_made(
    arguments,
    says,
    untaught,  # noqa: F811
    told,
    tmp_path,
    capsys,
):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{sums(1)[0].to_json()}\nnonsense\n")
    named = [{"TOLD": told, "BAD": bad}.get(argument, argument) for argument in arguments]
    with pytest.raises(SystemExit) as exit:
        sft(*short(untaught, tmp_path / "run"), *named)
    assert exit.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line
    assert not (tmp_path / "run").exists()


def test_the_surrogate_is_minus_the_log_likelihood():
    learner = object.__new__(SFT)
    found = learner.surrogate(torch.tensor([-1.5, -0.25]), torch.ones(2), torch.ones(2))
    assert found.loss.tolist() == [1.5, 0.25]
    assert not found.clipped_low.any()
    assert not found.clipped_high.any()


def test_learning_rates_are_those_of_imitation():
    assert SFTConfig().learning_rate == 3e-4
    assert SFTConfig(model="Qwen/Qwen3-1.7B").learning_rate == 1e-5
    with pytest.raises(UsageError, match="nothing to imitate"):
        SFT(SFTConfig())
