"""The sampler contract on vLLM's engine, whole runs with it, and who may ask for it."""

from __future__ import annotations

import gc
import importlib.machinery
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policies import TOKENIZER, random_policy, saved_policy
from sampler_contract import ENDS, LENGTH, ByRequest, SamplerContract, TakesWeights

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.rendering import Renderer
from learners.run.command import run
from learners.run.players import Policy, open_sampler
from learners.sampling.ending import Ending
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler

needs_vllm = pytest.mark.vllm


def engines_below(program: int) -> set[int]:
    """The engine's processes that a program has begun."""
    found, due = set(), [program]
    while due:
        parent = due.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            children = [int(pid) for pid in task.read_text().split()]
            due += children
            found |= set(children)
    return {pid for pid in found if "VLLM" in Path(f"/proc/{pid}/cmdline").read_text()}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def have_ended(processes: set[int], within: float = 20.0) -> bool:
    """Whether they end, within so many seconds."""
    deadline = time.monotonic() + within
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_running, processes))


@pytest.fixture(scope="module")
def engine():
    """Makes vLLM's import, or the tests' skip."""
    pytest.importorskip("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.fixture(scope="module")
def model():
    return random_policy()


@pytest.fixture(scope="module")
def shared(engine, model):
    from learners.sampling.vllm import VllmSampler

    environment, threads = dict(os.environ), torch.get_num_threads()
    sampler = VllmSampler(model, TOKENIZER, seed=0, eos=ENDS, length=LENGTH, concurrency=64)
    assert dict(os.environ) == environment  # tools inherit nothing of the engine's
    assert torch.get_num_threads() == threads
    processes = engines_below(os.getpid())
    assert processes
    yield sampler
    sampler.close()
    sampler.close()
    assert have_ended(processes)


@needs_vllm
class TestVllm(SamplerContract, TakesWeights, ByRequest):
    @pytest.fixture
    def make(self, shared, model):
        """The one engine, since each takes half a minute to start, with what a test wants changed."""
        assert not shared._live
        before = shared._seed, shared._eos, shared.entropy, shared._entropy_top

        def one(*, seed=0, eos=ENDS, entropy="top-k", entropy_top=20):
            shared._seed, shared._eos, shared.entropy, shared._entropy_top = seed, frozenset(eos), entropy, entropy_top
            return shared

        yield one
        shared._cancel_all()
        shared._seed, shared._eos, shared.entropy, shared._entropy_top = before

    def held(self, sampler):
        sampler.load_weights(random_policy().named_parameters(), 0)  # fails where a request holds a block of the cache
        return sampler._engine._llm.output_processor.get_num_unfinished_requests()


@needs_vllm
def test_full_entropies_are_refused(engine, model):
    from learners.sampling.vllm import VllmSampler

    with pytest.raises(ValueError, match="expected top-k, top-k-sum or surprisal, found full"):
        VllmSampler(model, TOKENIZER, seed=0, eos=ENDS, length=LENGTH, entropy="full")


@needs_vllm
def test_releasing_memory_on_cpu_says_once_that_there_is_nothing_to_release(shared, caplog, monkeypatch):
    if shared._engine.can_sleep:
        pytest.skip("this vLLM is not of the CPU")
    monkeypatch.setattr(shared, "_told", False)
    with caplog.at_level("INFO", logger="learners.sampling.vllm"):
        shared.release_memory()
        shared.release_memory()
    assert len(caplog.records) == 1
    assert "no sleep mode on CPU" in caplog.text


_DEATH = """
import asyncio, os, signal, tempfile, threading
from pathlib import Path
from policies import TOKENIZER, random_policy
from learners.sampling.sampler import SamplerFault
from learners.sampling.vllm import VllmSampler
from sampler_contract import begun, write
from test_vllm import engines_below, have_ended

def kill(processes):
    for pid in processes:
        os.kill(pid, signal.SIGKILL)

async def act(sampler):
    return await write(begun(sampler, (0,), "abc"), max_tokens=2)

if __name__ == "__main__":
    model = random_policy()
    sampler = VllmSampler(model, TOKENIZER, seed=0, eos=(), length=100, concurrency=4)
    processes = engines_below(os.getpid())
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)  # so that it cannot answer before it is killed
    threading.Timer(0.5, kill, [processes]).start()
    for job in (lambda: sampler.load_weights(model.named_parameters(), 1), *[lambda: asyncio.run(act(sampler))] * 2):
        try:
            job()
        except SamplerFault as problem:
            print(problem, flush=True)
    for stream in list(sampler._live):
        stream.cancel()
    sampler.close()
    print(have_ended(processes), list(Path(tempfile.gettempdir()).glob("weights-*")), flush=True)
"""


@needs_vllm
def test_an_engine_that_dies_is_told_of_to_whoever_waits(engine, tmp_path_factory):
    """For new weights, which vLLM would wait for without end, and for what is written, then and later."""
    folder = tmp_path_factory.mktemp("dies")  # vLLM has sockets in TMPDIR, whose paths must be short
    (folder / "program.py").write_text(_DEATH)
    here = Path(__file__).parent
    paths = {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}", "TMPDIR": str(folder)}
    command = [sys.executable, folder / "program.py"]
    done = subprocess.run(command, env=paths, stdout=subprocess.PIPE, text=True, timeout=180)
    told = [line for line in done.stdout.splitlines() if line.startswith("vLLM's engine has died")]
    assert (done.returncode, len(told)) == (0, 3), done.stdout
    assert "True []" in done.stdout.splitlines()


class Stub:
    """An engine that does nothing, and remembers what it was asked for and which GPUs it could see."""

    asked: ClassVar[list[str]] = []
    errored = False

    @classmethod
    def from_engine_args(cls, arguments):
        cls.asked[:] = [f"start on {os.environ.get('CUDA_VISIBLE_DEVICES', 'any')}"]
        return cls()

    async def collective_rpc(self, method, args=()):
        self.asked.append(method)

    async def sleep(self, level):
        self.asked.append(f"sleep {level}")

    async def wake_up(self, tags):
        self.asked.append(f"wake {' '.join(tags)}")

    async def reset_prefix_cache(self):
        return True

    def shutdown(self, timeout):
        self.asked.append("end")


@pytest.fixture
def stubbed(engine, monkeypatch):
    from learners.sampling import vllm_engine

    monkeypatch.setattr(vllm_engine, "AsyncLLM", Stub)
    return vllm_engine.VllmEngine


def on_stub(stubbed, model):
    return stubbed(model, dict(model.named_parameters()), length=100, concurrency=2, logprobs=5, memory=0.4)


@needs_vllm
@pytest.mark.parametrize(("own", "visible", "seen"), [(3, None, "3"), (1, "4,6", "6"), (0, "4,6", "4,6"), (0, None, "any")])
def test_an_engine_takes_the_gpu_of_the_thread_that_makes_it(stubbed, model, monkeypatch, own, visible, seen):
    """The current device belongs to a thread, and is the first one in every other."""
    mine = threading.current_thread()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: own if threading.current_thread() is mine else 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    on_stub(stubbed, model).close()
    assert Stub.asked[0] == f"start on {seen}"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@needs_vllm
def test_an_engine_that_sleeps_takes_memory_for_new_weights_first_and_for_its_caches_last(stubbed, model):
    engine = on_stub(stubbed, model)
    weights = dict(model.named_parameters())
    engine.load_weights(weights)
    engine.sleep()
    engine.sleep()
    engine.load_weights(weights)
    engine.sleep()
    engine.wake()
    engine.wake()
    engine.close()
    assert Stub.asked[2:] == [
        *("take_weights", "sleep 1"),
        *("wake weights", "take_weights", "wake kv_cache", "sleep 1"),
        *("wake weights kv_cache", "end"),
    ]


@needs_vllm
def test_an_engine_that_does_not_start_says_why(stubbed, model, tmp_path, monkeypatch, capsys):
    def too_little(arguments):
        raise RuntimeError("Engine core initialization failed")

    monkeypatch.setattr(Stub, "from_engine_args", too_little)
    policy = saved_policy(tmp_path / "policy", ENDS)
    with pytest.raises(SystemExit) as ended:
        run(GRPOConfig, GRPO, "", short(policy, tmp_path / "run", "--sampler", "vllm", "--no-deterministic"))
    assert ended.value.code == 2
    says = "vLLM's engine did not start: Engine core initialization failed; try another --vllm-memory, or --sampler"
    assert says in capsys.readouterr().err


def short(policy: Path, output: Path, *more: str) -> list[str]:
    chosen = {"model": policy, "output": output, "steps": 3, "tasks_per_step": 3, "group_size": 4, "eval_tasks": 4}
    chosen |= {"turn_tokens": 12, "total_tokens": 400, "cut_reward": -0.5, "minibatch_groups": 2, "threads": 1}
    chosen |= {"checkpoint_every": 1, "learning_rate": 1e-3}
    return [*(part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))), *more]


_RUN = """
import sys, time
from learners.rapo import RAPO, RAPOConfig
from learners.run import oracle_bank
from learners.run.command import run
from learners.sampling.vllm import VllmSampler

def close(sampler):
    print("the sampler is to be closed", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    oracle_bank._TASKS = 12
    VllmSampler.close = close
    run(RAPOConfig, RAPO, "", sys.argv[1:])
"""


@pytest.fixture(scope="module")
def program(engine, tmp_path_factory):
    """A program that has run RAPO to the moment when it closes the sampler, where it stays; and its run folder."""
    folder = tmp_path_factory.mktemp("rapo")
    (folder / "program.py").write_text(_RUN)
    policy = saved_policy(folder / "policy", (TOKENIZER.eos_token_id, *range(0, 256, 6)))
    command = [sys.executable, folder / "program.py"]
    command += short(policy, folder / "run", "--sampler", "vllm", "--no-deterministic")
    (folder / "temporary").mkdir()
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder / "temporary")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths) as program:
        try:
            assert program.stdout is not None
            assert "the sampler is to be closed\n" in iter(program.stdout.readline, "")
            yield program, folder / "run"
        finally:
            program.kill()


@needs_vllm
def test_a_whole_run_of_rapo(program):
    """What the engine samples with is what the trainer has: under old weights the mismatch would be far larger."""
    _, folder = program
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "mismatch_max" in record]
    assert len(steps) == 3
    assert all(record["mismatch_max"] < 1e-3 for record in steps)
    assert any(record["grad_norm"] > 0 for record in steps)
    assert any(record["retrieval/count"] > 0 for record in steps)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3


@needs_vllm
@pytest.mark.thorough
def test_a_whole_run_that_is_played_ahead(engine, tmp_path):
    """Each batch but the first is sampled from the weights of the step before, which is what its mismatch is made of."""
    policy = saved_policy(tmp_path / "policy", (TOKENIZER.eos_token_id, *range(0, 256, 6)))
    others = engines_below(os.getpid())
    ahead = ("--sampler", "vllm", "--no-deterministic", "--async-steps", "1", "--minibatch-groups", "0")
    run(GRPOConfig, GRPO, "", short(policy, tmp_path / "run", *ahead))
    first, *later = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert first["mismatch_max"] < 1e-3
    assert [record["staleness"] for record in (first, *later)] == [0, 1, 1]
    assert all(record["mismatch_mean"] > 10 * first["mismatch_mean"] for record in later)
    assert all("importance_mean" in record for record in (first, *later))
    gc.collect()
    assert engines_below(os.getpid()) == others


@needs_vllm
def test_the_engine_ends_with_a_program_that_is_killed(program):
    """And takes the folder away that weights travel in."""
    killed, folder = program
    processes, temporary = engines_below(killed.pid), folder.parent / "temporary"
    try:
        assert processes
        assert all(map(is_running, processes))
        assert list(temporary.glob("weights-*"))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert have_ended(processes)
        assert not list(temporary.glob("weights-*"))
    finally:
        for pid in filter(is_running, processes):
            os.kill(pid, signal.SIGKILL)


# Who may ask for it


def installed(monkeypatch, there: bool) -> None:
    spec = importlib.machinery.ModuleSpec("vllm", None) if there else None
    monkeypatch.setattr("learners.run.players.find_spec", lambda name: spec)


@pytest.mark.parametrize(
    ("there", "arguments", "problem"),
    [
        (False, ["--no-deterministic"], r"vLLM is not installed here: pip install 'agent-envs\[vllm\]'"),
        (True, ["--deterministic"], "it cannot promise bit-equal reruns: give them up by --no-deterministic"),
        (
            True,
            ["--no-deterministic", "--entropy", "full"],
            "it tells no entropies of the whole vocabulary: use --entropy top-k",
        ),
        (
            True,
            ["--no-deterministic", "--temperature", "0.005"],
            r"it samples at a temperature of 0 or at least 0\.01, not at 0\.005",
        ),
    ],
)
def test_vllm_is_refused_in_one_line_where_it_cannot_do_what_is_asked_for(
    tmp_path, monkeypatch, capsys, there, arguments, problem
):
    installed(monkeypatch, there)
    policy = saved_policy(tmp_path / "policy", ENDS)
    with pytest.raises(SystemExit) as ended:
        run(GRPOConfig, GRPO, "", short(policy, tmp_path / "run", "--sampler", "vllm", *arguments))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "--sampler vllm" in line]
    assert re.search(rf"--sampler vllm: {problem}; or use --sampler transformers", line)


def test_a_share_of_memory_that_cannot_be_meant_is_refused(tmp_path, capsys):
    policy = saved_policy(tmp_path / "policy", ENDS)
    with pytest.raises(SystemExit):
        run(GRPOConfig, GRPO, "", short(policy, tmp_path / "run", "--vllm-memory", "40"))
    assert "--vllm-memory is a share, above 0 and below 1, not 40.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "reason"), [(False, "not installed"), (True, "not on a GPU: ask for vLLM by --sampler vllm")]
)
def test_auto_says_which_sampler_it_takes_and_why(model, monkeypatch, caplog, there, reason):
    installed(monkeypatch, there)
    config = GRPOConfig(model="any", sampler="auto", deterministic=False, device="cpu")
    with caplog.at_level("INFO", logger="learners.run.players"):
        sampler = open_sampler(config, Policy(model, TOKENIZER, Renderer(TOKENIZER)))
    assert isinstance(sampler, TransformersSampler)
    assert sampler.entropy == "full"
    (record,) = caplog.records
    assert re.search(rf"^sampler: transformers; .*{reason}", record.getMessage())


@given(
    st.lists(st.sampled_from(["a", "b", ".;", ";.", ".", ";", "b.;a", ""]), min_size=1, max_size=12),
    st.lists(st.sampled_from([".;", "ab", "b.", ";"]), max_size=2),
    st.integers(1, 12),
    st.integers(1, 13),
)
def test_an_ending_is_found_as_in_the_whole_text(texts, stops, limit, eos):
    """Token i writes ``texts[i]``; the token ``eos`` ends the turn."""
    ending = Ending(Decoding(stop=tuple(stops), max_tokens=limit), frozenset({eos}), texts.__getitem__)
    for token in range(len(texts)):
        written = "".join(texts[: token + 1])
        stopped = any(stop in written for stop in stops)
        expected = "eos" if token == eos else "stop" if stopped else "length" if token + 1 == limit else None
        assert ending.after(token) == expected
        if expected is not None:
            break
