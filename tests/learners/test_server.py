"""The sampler contract on inference servers: a small one of the tests' own, and vLLM's where it is installed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from completions_server import CompletionsServer
from policies import TOKENIZER, full_logprobs, random_policy, saved_policy
from sampler_contract import ENDS, LENGTH, ByRequest, SamplerContract

from learners import collect, evaluate
from learners.sampling.server import ServerSampler
from learners.sampling.server_connection import KEY, ServerConnection
from tracebank.trajectory import read_trajectories

SECRET = "a key of this test"


@pytest.fixture(scope="module")
def model():
    return random_policy()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("served") / "policy", ENDS)


@pytest.fixture(scope="module")
def small(model):
    server = CompletionsServer(model)
    server.manners.key = SECRET
    yield server.address
    server.close()


@pytest.fixture(scope="module")
def vllm(policy, tmp_path_factory):
    """vLLM's server, as its documentation says to start it."""
    pytest.importorskip("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": policy, "served-model-name": "policy", "host": "127.0.0.1", "port": port, "max-model-len": LENGTH}
    options |= {"dtype": "float32", "logprobs-mode": "processed_logprobs", "generation-config": "vllm", "block-size": 32}
    # On a CPU vLLM dies of a prompt that it takes in parts (`learners.sampling.vllm_engine`).
    options |= {"max-num-batched-tokens": 4096}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", "--no-enable-chunked-prefill"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_API_KEY": SECRET}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not healthy(port):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module", params=["small", pytest.param("vllm", marks=pytest.mark.vllm)])
def address(request) -> str:
    return request.getfixturevalue(request.param)


class TestServer(SamplerContract, ByRequest):
    @pytest.fixture
    def make(self, address):
        made = []

        def one(**changed):
            settings = {"vocabulary": len(TOKENIZER), "seed": 0, "eos": ENDS, "length": LENGTH} | changed
            connection = ServerConnection(address, SECRET, concurrency=32)
            made.append(ServerSampler(connection, "policy", TOKENIZER, **settings))
            assert made[-1].tempered
            return made[-1]

        yield one
        for one in made:
            one.close()
            one.close()

    def test_new_weights_are_refused(self, make):
        with pytest.raises(RuntimeError, match="takes no new weights: train with another sampler"):
            make().load_weights([], 1)


def test_a_served_policy_is_collected_from_and_evaluated(address, policy, model, tmp_path, monkeypatch):
    """With the ids, the log-probabilities and the ends that it would have in process, and without its weights."""
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # not to be called
    playing = ["--env", "user_environments:tests/LastWord-v0", "--model", policy, "--sampler", "server", "--server", address]
    playing += ["--served-model", "policy", "--turn-tokens", 12, "--total-tokens", 200, "--n", 2, "--task-count", 4]
    for main, name in ((collect.main, "rollouts"), (evaluate.main, "evaluation")):
        main([str(part) for part in (*playing, "--output", tmp_path / name)])
        records = list(read_trajectories(tmp_path / name))
        assert len(records) == 8
        assert not any(record.fault for record in records)
        for record in records:
            prompt, written = record.segments
            ids = list(record.token_ids)
            places = torch.arange(len(prompt.ids), len(ids))
            expected = full_logprobs(model, ids)[places - 1, torch.tensor(written.ids)]
            assert written.logprobs == pytest.approx(expected.tolist(), abs=1e-3)
            assert (record.stop == "terminated") == (written.ids[-1] in ENDS)
        assert SECRET not in (tmp_path / f"{name}.config.yaml").read_text()
