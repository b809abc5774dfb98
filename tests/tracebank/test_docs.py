"""The page about banks: its commands and its code run, on real trajectories, and what it lists is there."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import gymnasium as gym
import pytest
from attempts import attempt

import agent_envs  # noqa: F401  # registers the environments
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.run.tiny import Recipe, tiny_tokenizer, untaught
from tracebank import TraceBank, Turn, importers, read_trajectories, write_trajectories
from tracebank.commands import main

PAGE = (Path(__file__).parents[2] / "docs" / "tracebank.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
TWO_COMMANDS = [line for line in BLOCKS[0][1].splitlines() if line]


def play(seed: int):
    """An episode of WikiSearch by its oracle, as a trajectory."""
    env = gym.make("agent_envs/WikiSearch-v0", split="train", disable_env_checker=True)
    observation, info = env.reset(seed=seed)
    question, oracle, turns, ended = observation, env.unwrapped.oracle(), [], False
    while not ended:
        action = oracle(observation)
        observation, reward, terminated, truncated, last = env.step(action)
        ended = terminated or truncated
        turns.append(Turn("", action, observation))
    env.close()
    return attempt(
        environment="agent_envs/WikiSearch-v0", task_id=info["task_id"], question=question, turns=tuple(turns),
        reward=float(reward), score=last["score"], success=last["success"], source="oracle",
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page speaks of, and in it."""
    monkeypatch.chdir(tmp_path)
    Path("runs/math/trajectories").mkdir(parents=True)
    write_trajectories("runs/math/trajectories/step_000001.jsonl", [play(seed) for seed in range(4)])
    write_trajectories("sums.jsonl", [attempt("1+1"), attempt("2+2", "4")])
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": messages, "score": 0.5}) + "\n")
    Path("history.txt").write_text("How many apples are left if 3 of 12 are eaten?")
    return tmp_path


def command(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a line as a shell would."""
    line, _, given = line.partition(" < ")
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "tracebank"]
    if given:
        monkeypatch.setattr("sys.stdin", io.StringIO(Path(given).read_text()))
    return main(words[3:])


def test_everything_on_the_page_runs_from_top_to_bottom(place: Path, monkeypatch, capsys) -> None:
    names: dict[str, object] = {}
    for number, (language, text) in enumerate(BLOCKS):
        if language == "python":
            exec(compile(text, f"block {number} of tracebank.md", "exec"), names)
        else:
            for line in filter(None, text.splitlines()):
                assert command(line, monkeypatch) == 0, (line, capsys.readouterr().err)
    assert Path("bank.png").exists()
    with TraceBank.open("bank") as bank, TraceBank.open("copy") as copy:
        assert len(bank) == len(copy) == len(names["steps"]) > 0


def test_a_real_run_becomes_a_bank_that_answers_in_two_commands(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    untaught(Recipe(), tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    options = "--model model --output runs/math --steps 1 --tasks-per-step 3 --group-size 4 --eval-tasks 2 --turn-tokens 24"
    run(GRPOConfig, GRPO, "", [*options.split(), "--total-tokens", "200", "--minibatch-groups", "3"])
    capsys.readouterr()
    assert [command(line, monkeypatch) for line in TWO_COMMANDS] == [0, 0], capsys.readouterr().err
    assert "trajectories read" in capsys.readouterr().out
    with TraceBank.open("bank") as bank:
        played = {one.task_id for one in read_trajectories("runs/math/trajectories/step_000001.jsonl") if one.turns}
        assert bank.stats()["tasks"] == len(played) > 0
        assert all(step.environment == "agent_envs/MathTool-v0" for step in bank.snapshot.steps(range(len(bank))))


def test_the_page_lists_every_command_filter_and_format() -> None:
    rows = {line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| `")}
    assert {f"`{name}`" for name in importers.FORMATS} <= rows
    assert {"`exclude_task`", "`exclude_final`", "`min_reward`", "`source`", "`steps`"} <= rows
    for name in ("build", "query", "import", "export", "stats", "check", "compact"):
        assert f"python -m tracebank {name} " in PAGE
