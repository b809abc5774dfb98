"""Collections: who plays what how often, what the file holds, that it repeats and resumes, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml
from policies import TOKENIZER, full_logprobs, random_policy

from learners import collect
from learners.run.checkpoint import save_checkpoint
from tracebank.step import steps_of
from tracebank.trajectory import Trajectory, read_trajectories

LAST_WORD = "user_environments:tests/LastWord-v0"
OUTAGE = "user_environments:tests/Outage-v0"


def run(output: Path, *arguments: object) -> list[Trajectory]:
    """A collection, and what its file holds."""
    collect.main(["--output", str(output), *map(str, arguments)])
    return list(read_trajectories(output))


def oracle(output: Path, *arguments: object, tasks: int = 12, n: int = 4) -> list[Trajectory]:
    return run(output, "--model", "oracle", "--task-count", tasks, "--n", n, *arguments)


def places(records: list[Trajectory]) -> list[tuple[int, tuple[int, ...]]]:
    return [(record.step, record.path) for record in records]


@pytest.fixture(scope="module")
def parrot(tmp_path_factory) -> Path:
    """The checkpoint of a run with an untaught policy, which writes at random."""
    folder = tmp_path_factory.mktemp("parrot")
    model = random_policy()
    optimizer = torch.optim.AdamW(model.parameters())
    model.generation_config.eos_token_id = [TOKENIZER.eos_token_id, *range(0, 256, 6)]  # else it would hardly ever end
    return save_checkpoint(folder, 1, model=model, optimizer=optimizer, trainer_state={}, tokenizer=TOKENIZER)


def by(policy: Path) -> list[object]:
    """A small deterministic collection of a policy: waves of four groups of two."""
    limits = ["--turn-tokens", 12, "--total-tokens", 200, "--threads", 1]
    return ["--model", policy, "--n", 2, "--concurrency", 8, *limits, "--deterministic"]


# The oracle


def test_an_oracle_without_errors_solves_every_task(tmp_path, capsys):
    records = oracle(tmp_path / "new" / "folder.jsonl")
    assert all(record.success and record.reward == 1.0 and not record.fault for record in records)
    assert places(records) == list(product(range(12), [(attempt,) for attempt in range(4)]))
    assert Counter(Counter(record.task_id for record in records).values()) == {4: 12}
    assert {record.source for record in records} == {"oracle"}
    assert {record.segments for record in records} == {()}
    assert {(record.environment, record.format, record.split) for record in records} == {
        ("agent_envs/MathTool-v0", "tag", "train")
    }
    shown = capsys.readouterr().out
    assert "python -m tracebank build --trajectories" in shown
    for name, value in {"tasks": "12", "trajectories": "48", "success": "100.0%", "environment faults": "0"}.items():
        assert any(line.split() == [*name.split(), value] for line in shown.splitlines())


def test_an_error_rate_is_the_share_of_actions_that_are_spoilt(tmp_path):
    records = oracle(tmp_path / "all.jsonl", "--error-rate", 0.3, tasks=40, n=8)
    right = {task_id: f"<python>print({task_id.rpartition(':')[2]})</python>" for task_id in {r.task_id for r in records}}
    spoilt = sum(record.turns[0].thought + record.turns[0].action != right[record.task_id] for record in records)
    sigma = math.sqrt(0.3 * 0.7 * len(records))
    assert abs(spoilt - 0.3 * len(records)) < 4 * sigma
    assert 0.5 < sum(record.success for record in records) / len(records) < 0.9
    assert {record.source for record in records} == {"oracle, 30 % errors"}


def test_an_oracle_that_always_errs_solves_next_to_nothing(tmp_path):
    assert sum(record.success for record in oracle(tmp_path / "all.jsonl", "--error-rate", 1)) <= 4


def test_equal_seeds_give_equal_files_however_many_play_at_once(tmp_path):
    for name, arguments in {"one": [], "again": ["--concurrency", 3], "other": ["--seed", 1]}.items():
        oracle(tmp_path / name, "--error-rate", 0.5, *arguments)
    one, again, other = ((tmp_path / name).read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other


@pytest.mark.parametrize(("env", "arguments"), [("MathTool-v0", []), ("WikiSearch-v0", []), ("DeepSearch-v0", [])])
def test_the_record_is_what_happens_when_its_actions_are_played_again(tmp_path, env, arguments):
    records = oracle(tmp_path / "all.jsonl", "--env", env, "--error-rate", 0.4, *arguments, tasks=6, n=3)
    assert any(len(record.turns) > 2 for record in records)
    environment = gym.make(f"agent_envs/{env}")
    for record in records:
        question, _ = environment.reset(options={"task_id": record.task_id})
        assert question == record.question
        total = 0.0
        for turn in record.turns:
            observation, reward, ended, _, info = environment.step(turn.thought + turn.action)
            assert observation == turn.observation
            total += reward
        assert ended
        assert (total, info["success"], info["score"]) == (record.reward, record.success, record.score)
        assert info["tool_calls"] == record.tool_calls
        assert [step.final for step in steps_of(record)] == [False] * (len(record.turns) - 1) + [True]
    environment.close()


# Policies


def test_a_policy_is_written_down_with_its_tokens(tmp_path, parrot):
    records = run(tmp_path / "all.jsonl", "--env", LAST_WORD, *by(parrot), "--task-count", 8)
    assert len(records) == 16
    assert {record.source for record in records} == {str(parrot)}
    assert {record.stop for record in records} == {"terminated", "length"}
    for record in records:
        prompt, written = record.segments
        assert (prompt.author, written.author) == ("prompt", "policy")
        assert record.question in TOKENIZER.decode(prompt.ids)
        ids = list(record.token_ids)
        expected = full_logprobs(random_policy(), ids)
        for place, logprob in enumerate(written.logprobs, start=len(prompt.ids)):
            assert logprob == pytest.approx(float(expected[place - 1, ids[place]]), abs=1e-4)
        for turn in record.turns:  # what ends the turn is no part of the action
            assert turn.thought + turn.action == TOKENIZER.decode(written.ids[:-1])


def test_every_listed_task_is_played_so_often_in_its_order(tmp_path, parrot):
    questions = tmp_path / "questions.jsonl"
    asked = [{"question": f"What is {k}+{k}?", "answer": 2 * k, "split": "train"} for k in range(9)]
    questions.write_text("".join(json.dumps(question) + "\n" for question in asked))
    every = run(tmp_path / "all.jsonl", "--tasks", questions, *by(parrot))
    assert [record.task_id for record in every] == [f"questions:{k + 1}" for k in range(9) for _ in range(2)]
    assert [record.question for record in every[::2]] == [f"What is {k}+{k}?" for k in range(9)]
    first = run(tmp_path / "first.jsonl", "--tasks", questions, *by(parrot), "--task-count", 4)
    assert first == every[:8]


def test_a_task_that_is_drawn_twice_is_played_once(tmp_path, parrot, capsys):
    records = run(tmp_path / "all.jsonl", "--env", LAST_WORD, *by(parrot), "--task-count", 60)
    questions = [record.question for record in records[::2]]
    assert len(set(questions)) == len(questions) < 60  # of 120 that there are
    assert Counter(record.question for record in records) == Counter(2 * questions)
    assert f"{60 - len(questions)} draws were of a task that had been drawn before" in capsys.readouterr().out


def test_one_attempt_may_be_greedy(tmp_path, parrot):
    arguments = ["--env", LAST_WORD, *by(parrot), "--n", 1, "--temperature", 0, "--task-count", 5]
    one, other = (run(tmp_path / str(seed), *arguments, "--seed", 0) for seed in range(2))
    assert one == other


# Going on


@pytest.fixture(scope="module")
def whole(tmp_path_factory, parrot) -> Path:
    """Collections that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder / "policy", "--env", LAST_WORD, *by(parrot))
    oracle(folder / "oracle", *ORACLE)
    return folder


ORACLE = ["--error-rate", 0.3, "--task-count", 80, "--concurrency", 8]  # some groups end long before the others begin


@pytest.mark.parametrize("who", ["policy", "oracle"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("missing", [0, 1, 1500])
def test_what_was_cut_anywhere_becomes_whole_again(tmp_path, whole, who, share, missing):
    """At the end of a line, or so many bytes before it: within the line, or within the group."""
    content = (whole / who).read_bytes()
    cut = content.rfind(b"\n", 0, int(share * len(content))) + 1
    (tmp_path / who).write_bytes(content[: max(0, cut - missing)])
    shutil.copy(whole / f"{who}.config.yaml", tmp_path)
    run(tmp_path / who, "--resume")
    assert (tmp_path / who).read_bytes() == content


@pytest.mark.parametrize(("who", "shares"), [("policy", (0.2, 0.6)), ("oracle", (0.5,))])
def test_a_collection_that_is_killed_and_resumed_is_one_that_was_not(tmp_path, parrot, whole, who, shares):
    path, content = tmp_path / who, (whole / who).read_bytes()
    begin = ["--env", LAST_WORD, *by(parrot)] if who == "policy" else ["--model", "oracle", "--n", 4, *ORACLE]
    for share in shares:
        arguments = ["--resume"] if path.exists() else begin
        code, _ = _start_and_signal(path, arguments, signal.SIGKILL, at=int(share * len(content)))
        assert code == -signal.SIGKILL
        assert len(path.read_bytes()) < len(content)
    run(path, "--resume")
    assert path.read_bytes() == content


def test_an_interrupted_collection_holds_whole_groups_and_says_how_to_go_on(tmp_path, whole):
    path, content = tmp_path / "oracle", (whole / "oracle").read_bytes()
    begin = ["--model", "oracle", "--n", 4, *ORACLE]
    code, errors = _start_and_signal(path, begin, signal.SIGINT, at=1)
    assert code == 130
    held = list(read_trajectories(path))
    assert set(Counter(record.step for record in held).values()) == {4}
    told = f"{len(held) // 4} of 80 tasks are in {path}; go on by: python -m learners.collect --output {path} --resume"
    assert errors.splitlines()[-1] == f"interrupted; {told}"
    run(path, "--resume")
    assert path.read_bytes() == content


def _start_and_signal(path: Path, arguments: list[object], number: int, at: int) -> tuple[int, str]:
    """Runs a collection until its file has so many bytes."""
    command = [sys.executable, "-m", "learners.collect", "--output", path, *arguments]
    folders = [Path(__file__).parent, Path(__file__).parents[2]]
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(map(str, folders))},
    )
    while child.poll() is None and not (path.exists() and path.stat().st_size >= at):
        time.sleep(0.002)
    child.send_signal(number)
    _, errors = child.communicate()
    return child.returncode, errors


# Faults


def outage(path: Path, switch: Path, policy: Path) -> list[object]:
    arguments = json.dumps({"switch": str(switch)})
    return ["--env", OUTAGE, "--env-args", arguments, *by(policy), "--task-count", 60]


def test_faults_are_written_down_and_played_again_by_resuming(tmp_path, parrot):
    switch = tmp_path / "switch"
    clean = run(tmp_path / "clean.jsonl", *outage(tmp_path, switch, parrot))
    switch.write_text("red")
    records = run(tmp_path / "all.jsonl", *outage(tmp_path, switch, parrot), "--max-fault-share", 0.9)
    broken = [record for record in records if record.fault]
    assert 0 < len(broken) < len(records) == len(clean)
    assert {record.question.split()[0] for record in broken} == {"red"}
    assert {(record.fault, record.stop, record.success) for record in broken} == {
        ("engine: the engine is gone", "fault", False)
    }
    switch.unlink()
    assert run(tmp_path / "all.jsonl", "--resume") == clean


def test_too_many_faults_end_a_collection(tmp_path, parrot, capsys):
    switch = tmp_path / "switch"
    switch.write_text("")
    path = tmp_path / "all.jsonl"
    with pytest.raises(SystemExit) as caught:
        run(path, *outage(tmp_path, switch, parrot))
    assert caught.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "of the trajectories ended in environment faults, more than --max-fault-share 10%" in last
    assert "engine: the engine is gone" in last
    assert "--resume" in last
    assert len(list(read_trajectories(path))) < 60  # it stopped long before the end
    switch.unlink()
    assert not any(record.fault for record in run(path, "--resume"))


# What is refused: one clear line, exit code 2, nothing overwritten


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        collect.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env", "MathTol-v0"], "close: MathTool-v0"),
        (["--tasks", "missing.jsonl"], "there is no such file"),
        (["--env-args", "{"], "--env-args must be a JSON object"),
        (["--split", "holdout"], "holdout"),
        (["--model", "/no/such/model"], "--model /no/such/model cannot be loaded"),
        (["--n", "0"], "--n must be at least 1"),
        (["--task-count", "-1"], "--task-count must not be negative"),
        (["--temperature", "-1"], "--temperature must not be negative"),
        (["--error-rate", "0.1"], "--error-rate is of --model oracle; tiny makes its own errors"),
        (["--model", "oracle", "--error-rate", "10"], "--error-rate is a share from 0 to 1, not 10.0"),
        (["--model", "oracle", "--env", LAST_WORD], "it is no ToolEnv"),
        (["--model", "oracle", "--tasks", "reasoning_gym:leg_counting"], "so there is no oracle"),
        (["--output", "."], "is a folder"),
        (["--resume"], "there is no collection rollouts.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, tmp_path, monkeypatch, arguments, says):
    if any("reasoning_gym" in argument for argument in arguments):
        pytest.importorskip("reasoning_gym")
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_questions_has_no_oracle_and_may_be_too_short(capsys, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What is 1+1?", "answer": "2", "split": "train"}\n')
    arguments = ["--tasks", questions, "--output", tmp_path / "all.jsonl"]
    assert "task source 'questions' has no oracle" in refused(capsys, *arguments, "--model", "oracle")
    assert "--task-count 2 is more than the 1 tasks" in refused(capsys, *arguments, "--task-count", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


def test_a_file_that_is_there_is_left_alone(capsys, tmp_path):
    (tmp_path / "all.jsonl").write_text("mine")
    line = refused(capsys, "--model", "oracle", "--output", tmp_path / "all.jsonl")
    assert "is there already: choose a new file, or go on with it by --resume" in line
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"all.jsonl": "mine"}


def test_a_collection_goes_on_as_it_began(capsys, tmp_path):
    path = tmp_path / "all.jsonl"
    oracle(path, tasks=3)
    before = path.read_bytes()
    line = refused(capsys, "--output", path, "--resume", "--n", 8)
    assert "--n is 8 here and 4 there" in line
    options = yaml.safe_load((tmp_path / "all.jsonl.config.yaml").read_text())
    (tmp_path / "all.jsonl.config.yaml").write_text(yaml.safe_dump(options | {"learner": "grpo"}))
    assert "a run of the learner 'grpo', not of 'collect'" in refused(capsys, "--output", path, "--resume")
    assert path.read_bytes() == before


def test_a_file_of_other_tasks_or_of_no_trajectories_is_not_gone_on_with(capsys, tmp_path):
    path = tmp_path / "all.jsonl"
    oracle(path, tasks=3)
    whole = path.read_text()
    path.write_text(whole.replace("arithmetic:", "arithmetics:"))
    assert "but the tasks are others now" in refused(capsys, "--output", path, "--resume")
    lines = whole.splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:100] + "\n", *lines[2:]]))
    assert "line 2: expected a trajectory" in refused(capsys, "--output", path, "--resume")


def test_two_cannot_write_to_one_file(capsys, tmp_path):
    path = tmp_path / "all.jsonl"
    oracle(path, tasks=2)
    with collect.sole_writer(path, tmp_path / "all.jsonl.config.yaml"):
        assert "another run is writing to it" in refused(capsys, "--output", path, "--resume")


def test_options_of_training_are_no_options_of_a_collection(capsys):
    with pytest.raises(SystemExit):
        collect.main(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--n INT", "--error-rate", "--task-count", "--sampler", "--resume"))
    assert not any(option in shown for option in ("--learning-rate", "--steps", "--eval-tasks", "--epochs"))
