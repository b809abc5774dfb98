"""Whole runs of RAPO: the bank that a run makes, finds again or refuses, and what stays exact."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from policies import saved_policy
from retrieval_parts import ENDS, bank_of, step, text_of

from agent_envs import NoOracle, ToolEnv
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.tools.python import PythonTool
from agent_envs.verifiers.math import MathVerifier
from learners.grpo import GRPO, GRPOConfig
from learners.rapo import RAPO, RAPOConfig
from learners.rollout.retrieved import HINT
from learners.run.command import run
from learners.run.config import UsageError
from learners.run.oracle_bank import check_oracle, oracle_bank
from tracebank import BankError, StepTrace, TraceBank, read_trajectories


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """An untaught policy that ends its turns often."""
    return saved_policy(tmp_path_factory.mktemp("policy"), ENDS)


@pytest.fixture(autouse=True)
def small_oracle_bank(monkeypatch):
    monkeypatch.setattr("learners.run.oracle_bank._TASKS", 12)


def short(policy: Path, output: Path, **options) -> list[str]:
    """The command line of a small run. That a cut costs less than a bad form gives such a policy something to learn."""
    chosen = {"model": policy, "output": output, "steps": 3, "tasks_per_step": 3, "group_size": 4, "eval_tasks": 4}
    chosen |= {"turn_tokens": 12, "total_tokens": 400, "cut_reward": -0.5, "minibatch_groups": 2, "threads": 1}
    chosen |= {"checkpoint_every": 1, "learning_rate": 1e-3} | options
    pairs = (("--" + name.replace("_", "-"), str(value)) for name, value in chosen.items())
    return ["--deterministic", *(part for pair in pairs for part in pair)]


def rapo(arguments) -> None:
    run(RAPOConfig, RAPO, "", [*arguments])


def metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run without its times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")} for line in lines]


def weights(folder: Path) -> bytes:
    return max((folder / "checkpoints").iterdir()).joinpath("model.safetensors").read_bytes()


def played(folder: Path) -> dict[str, str]:
    """All that was played, without who played it."""
    files = sorted((folder / "trajectories").iterdir())
    return {file.name: re.sub(r'"source": ?"\w+:', '"source": "', file.read_text()) for file in files}


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("learners.run.oracle_bank._TASKS", 12)
        rapo(short(policy, folder, noise=0.3))
    return folder


def test_a_run_makes_a_bank_of_the_oracle_and_retrieves_from_it(finished):
    with TraceBank.open(finished / "bank") as bank:
        values = {one.value for one in bank}
        assert bank.manifest.formats == ("tag",)
    retrieved = 0
    for file in sorted((finished / "trajectories").iterdir()):
        for record in read_trajectories(file):
            blocks = [text_of(segment.ids) for segment in record.segments if segment.author == "retrieved"]
            retrieved += len(blocks)
            assert all(text.removeprefix("<retrieve>\n").removesuffix("\n</retrieve>\n") in values for text in blocks)
            if file.name.startswith("evaluation") or record.path[0] < 2:
                assert blocks == []
    assert retrieved > 0
    counts = [record["retrieval/count"] * 6 for record in metrics(finished)]  # 3 groups with 2 hybrid trajectories each
    assert sum(counts) == pytest.approx(retrieved)
    assert all(0 <= record["retrieval/share"] < 1 for record in metrics(finished))
    assert any(record["grad_norm"] > 0 for record in metrics(finished))
    assert all(record["mismatch_max"] < 1e-4 for record in metrics(finished))


def test_without_hybrid_trajectories_a_run_is_grpos_bit_for_bit(policy, tmp_path):
    rapo(short(policy, tmp_path / "rapo", steps=2, hybrid_rollouts=0))
    run(GRPOConfig, GRPO, "", short(policy, tmp_path / "grpo", steps=2))
    assert metrics(tmp_path / "rapo") == metrics(tmp_path / "grpo")
    assert any(record["grad_norm"] > 0 for record in metrics(tmp_path / "grpo"))
    assert played(tmp_path / "rapo") == played(tmp_path / "grpo")
    assert weights(tmp_path / "rapo") == weights(tmp_path / "grpo")
    assert not (tmp_path / "rapo" / "bank").exists()


def test_credit_reads_the_entropies_that_the_policy_was_sampled_with(policy, tmp_path):
    """The sampler and the trainer compute them by different code: they must agree wherever the policy wrote."""
    seen = []

    class Watched(RAPO):
        def credit(self, trees):
            seen.extend(trees)
            return super().credit(trees)

    bank = bank_of(tmp_path, *(step("anything", f"step {n}", format="tag") for n in range(3)))
    run(RAPOConfig, Watched, "", short(policy, tmp_path / "run", steps=1, hybrid_rollouts=2, bank=bank))
    assert any(segment.author == "retrieved" for tree in seen for segment in tree.segments)
    for tree in seen:
        for leaf in tree.survivors():
            tokens = tree.tokens(leaf)
            own = tokens.policy
            torch.testing.assert_close(tree.measured[leaf.path][own], tokens.entropies[own], atol=1e-3, rtol=1e-3)


def test_a_run_with_a_bank_from_outside_leaves_it_as_it_was(policy, finished, tmp_path):
    """The bank that a run made, given to another run of the same options, makes that run the same."""
    bank = shutil.copytree(finished / "bank", tmp_path / "bank")
    before = {file: file.read_bytes() for file in sorted(bank.rglob("*")) if file.is_file()}
    rapo(short(policy, tmp_path / "run", noise=0.3, bank=bank))
    assert metrics(tmp_path / "run") == metrics(finished)
    assert weights(tmp_path / "run") == weights(finished)
    assert not (tmp_path / "run" / "bank").exists()
    assert {file: file.read_bytes() for file in sorted(bank.rglob("*")) if file.is_file()} == before


_COMMAND = "from learners.run import oracle_bank; oracle_bank._TASKS = 12; from learners.rapo import main; main()"


def test_a_run_that_is_killed_and_resumed_is_one_that_was_not(policy, finished, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _COMMAND]
    child = subprocess.Popen([*command, *short(policy, folder, noise=0.3)], stdout=subprocess.DEVNULL)
    log = folder / "metrics.jsonl"
    while child.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 1):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    bank = {file: file.read_bytes() for file in sorted((folder / "bank").rglob("*")) if file.is_file()}
    rapo(["--resume", str(folder)])
    assert metrics(folder) == metrics(finished)
    assert weights(folder) == weights(finished)
    assert {file: file.read_bytes() for file in sorted((folder / "bank").rglob("*")) if file.is_file()} == bank


# The bank that a run goes on with


def whole_bank(folder: Path, *more: StepTrace) -> Path:
    return bank_of(folder, *(step("anything", f"step {n}", format="tag") for n in range(3)), *more)


@pytest.fixture
def begun(policy, tmp_path, monkeypatch) -> Path:
    """A run folder whose run was told of its bank by a relative path."""
    (tmp_path / "here").mkdir()
    whole_bank(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    rapo(short(policy, "run", steps=1, tasks_per_step=2, eval_tasks=1, bank="bank"))
    return tmp_path / "here" / "run"


def test_a_run_says_which_bank_it_was_and_finds_it_from_anywhere(begun, tmp_path, monkeypatch):
    account = json.loads((begun / "bank.json").read_text())
    assert account["path"] == str(tmp_path / "here" / "bank")
    assert account["steps"] == 3
    monkeypatch.chdir(tmp_path)
    before = weights(begun)
    rapo(["--resume", "here/run"])
    rapo(["--resume", "here/run", "--bank", "here/bank"])
    assert weights(begun) == before
    assert json.loads((begun / "bank.json").read_text()) == account


def _grown(bank: Path) -> None:
    with TraceBank.open(bank) as opened:
        opened.add([step("anything", "one more", format="tag")])


def _another(bank: Path) -> None:
    shutil.rmtree(bank)
    bank_of(bank.parent, *(step("anything", f"other {n}", format="tag") for n in range(3)))


@pytest.mark.parametrize(("change", "steps"), [(_grown, 4), (_another, 3)])
def test_resuming_with_a_bank_that_has_changed_is_refused(capsys, begun, change, steps):
    before = {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()}
    change(begun.parent / "bank")
    line = refused(capsys, "--resume", begun)
    assert "the run retrieved from a bank of 3 steps" in line
    assert f"({steps} steps" in line
    assert "put the bank back as it was, or begin a new run" in line
    assert {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()} == before


def test_an_account_of_the_bank_that_cannot_be_read_is_named(capsys, begun):
    (begun / "bank.json").write_text('{"path": "bank"')
    assert "bank.json: expected path, steps, digest of the run's bank" in refused(capsys, "--resume", begun)


def test_resuming_with_a_changed_bank_of_the_runs_own_is_refused(capsys, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    rapo(["--resume", str(folder)])  # it has moved, and is the same
    assert metrics(folder) == metrics(finished)
    _grown(folder / "bank")
    assert "is another or has changed" in refused(capsys, "--resume", folder)


def test_a_bank_that_breaks_on_the_way_ends_the_run_in_one_line(capsys, policy, tmp_path, monkeypatch):
    asked = []

    def query(self, *arguments, **options):
        asked.append(self.path)
        raise BankError(f"{self.path}/steps-000001.parquet: damaged")

    monkeypatch.setattr(TraceBank, "query", query)
    with pytest.raises(SystemExit) as caught:
        rapo(short(policy, tmp_path / "run", bank=whole_bank(tmp_path)))
    assert asked
    assert caught.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {tmp_path / 'bank'}/steps-000001.parquet: damaged"]


def test_the_released_preset_needs_no_forward_pass_for_its_entropies(policy, tmp_path):
    seen = []

    class Watched(RAPO):
        def credit(self, trees):
            seen.extend(trees)
            return super().credit(trees)

    options = {"preset": "released", "hybrid_rollouts": 3, "bank": whole_bank(tmp_path), "steps": 1}
    run(RAPOConfig, Watched, "", short(policy, tmp_path / "run", **options))
    blocks = [segment for tree in seen for segment in tree.segments if segment.author == "retrieved"]
    assert blocks
    assert all(text_of(block.ids).startswith(f"{HINT}<retrieve>\n") for block in blocks)
    assert all(not tree.measured for tree in seen)


# The oracle's bank


class Half(Arithmetic):
    """Tasks of which every other one has an oracle."""

    def __init__(self, everyone: bool = False) -> None:
        super().__init__()
        self.everyone = everyone

    def knows(self, task) -> bool:
        return not self.everyone and sum(map(ord, task.question)) % 2 == 0

    def oracle(self, task):
        if not self.knows(task):
            raise NoOracle(f"task {task.id} has no oracle")
        return super().oracle(task)


def test_tasks_without_an_oracle_are_left_out_of_the_bank_aloud(caplog, tmp_path):
    tasks = Half()
    make_env = lambda: ToolEnv(tasks=tasks, tools=[PythonTool()], verifier=MathVerifier())  # noqa: E731
    check_oracle(make_env, RAPOConfig())
    with TraceBank.open(oracle_bank(tmp_path / "bank", make_env, RAPOConfig())) as bank:
        questions = {one.question for one in bank}
    assert questions
    assert all(sum(map(ord, question)) % 2 == 0 for question in questions)
    assert len(questions) < 12
    assert f"{12 - len(questions)} tasks have no oracle and are not in the bank" in caplog.text


def test_without_any_oracle_there_is_no_bank(tmp_path):
    make_env = lambda: ToolEnv(tasks=Half(everyone=True), tools=[], verifier=MathVerifier())  # noqa: E731
    for ask in (lambda: check_oracle(make_env, RAPOConfig()), lambda: oracle_bank(tmp_path / "b", make_env, RAPOConfig())):
        with pytest.raises(UsageError, match=r"has no oracle: give a bank by --bank"):
            ask()
    assert not (tmp_path / "b").exists()


# What is refused


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        rapo([*map(str, arguments)])
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


class Elsewhere:
    """An embedder whose model is on another machine."""

    name, spec, dimension = "elsewhere", "sentence-transformers:/no/such/model", 4

    def embed(self, texts):
        return torch.nn.functional.normalize(torch.ones(len(texts), 4)).numpy()


def _missing(folder):
    return folder / "nowhere"


def _file(folder):
    (folder / "bank").write_text("no bank")
    return folder / "bank"


def _hermes(folder):
    return bank_of(folder, step("key", "value", format="hermes"))


def _mixed(folder):
    return bank_of(folder, step("key", "value", format="hermes"), step("key", "value", format="tag"))


def _unnamed(folder):
    return bank_of(folder, step("key", "value", format=""))


def _elsewhere(folder):
    with TraceBank.create(folder / "bank", embedder=Elsewhere()) as bank:
        bank.add([step("key", "value", format="tag")])
    return folder / "bank"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "nowhere"),
        (_file, "bank"),
        (_hermes, "holds steps of the format 'hermes', but MathTool-v0 is talked to in 'tag'"),
        (_mixed, "holds steps of the format 'hermes', 'tag', but MathTool-v0 is talked to in 'tag'"),
        (_unnamed, "holds steps of the format none that it names"),
        (bank_of, "holds no steps"),
        (_elsewhere, "its embedder elsewhere cannot be loaded"),
    ],
)
def test_a_bank_that_cannot_be_used_is_refused_before_anything_is_made(capsys, tmp_path, make, says):
    line = refused(capsys, "--bank", make(tmp_path), "--output", tmp_path / "run")
    assert "--bank" in line
    assert says in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hybrid-rollouts", "17"], "--hybrid-rollouts must be from 0 to the --group-size of 16, not 17"),
        (["--noise", "-0.1"], "--noise must be from 0 to 1, not -0.1"),
        (["--retrieve-probability", "1.01"], "--retrieve-probability must be from 0 to 1, not 1.01"),
        (["--shaping", "0.5"], "--shaping must be from 0 to the --clip-high of 0.28, not 0.5"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, tmp_path, arguments, says):
    assert says in refused(capsys, *arguments, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_environment_without_an_oracle_needs_a_bank(capsys, tmp_path):
    """Which is seen before the policy is looked for."""
    line = refused(capsys, "--env", "tests/Talk-v0", "--model", "/no/such/model", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "tests/Talk-v0 has none, since it is no ToolEnv: give a bank by --bank" in line


def test_tasks_without_an_oracle_need_a_bank(capsys, tmp_path):
    """Few tasks in a file of the user's own: what is missing is their oracle, not their number."""
    file = tmp_path / "tasks.jsonl"
    rows = [{"question": f"Which colour has number {n}?", "answer": "red"} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(capsys, "--tasks", file, "--model", "/no/such/model", "--output", tmp_path / "run")
    assert "has no oracle: give a bank by --bank" in line
    assert not (tmp_path / "run").exists()
