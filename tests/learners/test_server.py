"""The sampler contract on inference servers, against plain forward passes of the same weights.

Every promise is kept by a small server of the tests' own, and by vLLM's where it is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from completions_server import CompletionsServer
from policies import TOKENIZER, full_logprobs, random_policy, saved_policy

from learners import collect, evaluate
from learners.sampling.entropy import entropy_bounds
from learners.sampling.sampler import Decoding
from learners.sampling.server import ServerSampler
from learners.sampling.server_connection import KEY, ServerConnection
from tracebank.trajectory import read_trajectories

ENDS = (TOKENIZER.eos_token_id, *range(0, 256, 40))
LENGTH = 400
LONG = "What is 12*3? " * 8
SECRET = "a key of this test"


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


async def write(stream, **decoding):
    stream.decode(Decoding(**decoding))
    return await stream.rest()


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
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
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


def sampler_on(address: str, **changed) -> ServerSampler:
    settings = {"vocabulary": len(TOKENIZER), "seed": 0, "eos": ENDS, "length": LENGTH} | changed
    return ServerSampler(ServerConnection(address, SECRET, concurrency=32), "policy", TOKENIZER, **settings)


@pytest.fixture(scope="module")
def shared(address):
    sampler = sampler_on(address)
    yield sampler
    sampler.close()
    sampler.close()


@pytest.fixture
def sampler(shared):
    """The server, with nothing live before and after a test."""
    assert not shared._live
    yield shared
    for stream in list(shared._live):
        stream.cancel()


def test_logprobs_and_entropies_over_several_turns_are_those_of_a_plain_forward_pass(sampler, model):
    temperatures = (1.0, 0.7, 0.0, 1.5)

    async def episode(index):
        stream = sampler.start((0, index))
        stream.append(ids_of(LONG[: 20 + index] + "!" * (index % 5)))
        actions = []
        for turn in range(3):
            begin, temperature = len(stream.ids), temperatures[index % 4]
            actions.append((begin, temperature, await write(stream, temperature=temperature, max_tokens=3 + index % 7)))
            stream.append(ids_of(f" result {turn * index}"))
        ids = list(stream.ids)
        stream.cancel()
        return ids, actions

    async def everyone():
        return await asyncio.gather(*(episode(index) for index in range(12)))

    assert (sampler.entropy, sampler.tempered) == ("top-k", True)
    for ids, actions in asyncio.run(everyone()):
        for begin, temperature, action in actions:
            expected = full_logprobs(model, ids, temperature=temperature or 1.0)
            places = torch.arange(begin, begin + len(action.ids)) - 1
            assert ids[begin : begin + len(action.ids)] == list(action.ids)
            own = expected[places, torch.tensor(action.ids)]
            torch.testing.assert_close(torch.tensor(action.logprobs), own, atol=1e-3, rtol=0)
            least, most = entropy_bounds(expected[places].topk(20).values, expected.shape[-1])
            entropies = torch.tensor(action.entropies, dtype=torch.float64)
            torch.testing.assert_close(entropies, (least + most) / 2, atol=1e-3, rtol=0)
            if temperature == 0.0:
                assert list(action.ids) == expected[places].argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["top-k-sum", "surprisal"])
def test_other_entropies_are_of_what_the_server_tells(address, model, kind):
    prompt = ids_of("What is 12*3?")
    sampler = sampler_on(address, entropy=kind, entropy_top=5)

    async def act():
        stream = sampler.start((1,))
        stream.append(prompt)
        return await write(stream, max_tokens=12, temperature=1.2)

    action = asyncio.run(act())
    sampler.close()
    logprobs = full_logprobs(model, [*prompt, *action.ids], temperature=1.2)[len(prompt) - 1 : -1]
    expected = []
    for row, token in zip(logprobs, action.ids, strict=True):
        seen = {*row.topk(5).indices.tolist(), token}
        partial = sum(-float(row[one].exp() * row[one]) for one in seen)
        expected.append(-float(row[token]) if kind == "surprisal" else partial)
    assert action.entropies == pytest.approx(expected, abs=1e-3)


@pytest.mark.vllm
def test_samples_follow_the_distribution(vllm, model):
    """The small server's sampler is tested for this by itself."""
    prompt, count, sampler = ids_of("abc"), 600, sampler_on(vllm)
    expected = full_logprobs(model, prompt, temperature=1.7)[-1].exp().numpy()

    async def draw():
        streams = [sampler.start((2, index)) for index in range(count)]
        for stream in streams:
            stream.append(prompt)
            stream.decode(Decoding(temperature=1.7, max_tokens=1))
        return [(await stream.rest()).ids[0] for stream in streams]

    counts = np.bincount(asyncio.run(draw()), minlength=len(expected))
    sampler.close()
    likely = expected > 0.01
    assert likely.sum() >= 5
    deviation = (counts[likely] / count - expected[likely]) / np.sqrt(expected[likely] / count)
    assert np.abs(deviation).max() < 4.5


def test_what_is_sampled_depends_on_the_seed_the_path_and_the_position(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act(path, company=0):
        others = [sampler.start((9, number)) for number in range(company)]
        for number, other in enumerate(others):
            other.append(ids_of("!" * (number + 1)))
            other.decode(Decoding(max_tokens=100))
        stream = sampler.start(path)
        stream.append(ids_of("What is"))
        action = await write(stream, max_tokens=12)
        for one in (*others, stream):
            one.cancel()
        return action.ids

    alone = asyncio.run(act((3, 1)))
    assert asyncio.run(act((3, 1))) == alone
    assert asyncio.run(act((3, 1), company=4)) == alone
    assert asyncio.run(act((3, 2))) != alone
    monkeypatch.setattr(sampler, "_seed", 1)
    assert asyncio.run(act((3, 1))) != alone


def test_an_action_ends_with_the_token_that_completes_its_stop_string(sampler, monkeypatch):
    """The noise is the same with the stop string and without: what is written until then is, too."""
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act(path, **decoding):
        stream = sampler.start(path)
        stream.append(ids_of("abc"))
        action = await write(stream, **decoding)
        again = await write(stream, max_tokens=2)  # at once, whatever the server is still writing
        ids = list(stream.ids)
        stream.cancel()
        assert ids == [*ids_of("abc"), *action.ids, *again.ids]
        return action

    split = inside = 0
    for number in range(5):
        whole = asyncio.run(act((4, number), max_tokens=24))
        assert (len(whole.ids), whole.stop) == (24, "length")
        texts = [TOKENIZER.decode([token]) for token in whole.ids]
        wide = [place for place in range(3, 24) if len(texts[place]) > 1 and texts[place].isascii()]
        for stop in {"".join(texts[10:12]), *(texts[place][:-1] for place in wide[:1])}:
            if "\ufffd" in stop:
                continue
            end = next(place for place in range(24) if stop in "".join(texts[: place + 1]))
            action = asyncio.run(act((4, number), max_tokens=24, stop=("never written", stop)))
            assert (action.ids, action.stop) == (whole.ids[: end + 1], "stop")
            assert action.text == TOKENIZER.decode(list(action.ids))
            split += not any(stop in text for text in texts)
            inside += texts[end].find(stop) >= 0 and not texts[end].endswith(stop)
    assert split > 0  # a stop string over two tokens
    assert inside > 0  # characters behind a stop string in its last token


def test_an_end_of_turn_is_kept_among_the_ids_and_left_out_of_the_text(sampler):
    async def act():
        streams = [sampler.start((5, index)) for index in range(24)]
        for stream in streams:
            stream.append(ids_of("abc"))
            stream.decode(Decoding(max_tokens=25))
        return [await stream.rest() for stream in streams]

    actions = asyncio.run(act())
    assert {action.stop for action in actions} == {"eos", "length"}
    for action in actions:
        assert not set(ENDS) & set(action.ids[:-1])
        assert (action.ids[-1] in ENDS) == (action.stop == "eos")
        assert (len(action.ids) == 25) >= (action.stop == "length")
        assert action.text == TOKENIZER.decode(list(action.ids[:-1] if action.stop == "eos" else action.ids))
        assert len(action.ids) == len(action.logprobs) == len(action.entropies)


def test_first_comes_while_the_policy_goes_on_writing(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act():
        stream = sampler.start((6,))
        stream.append(ids_of("abc"))
        stream.decode(Decoding(max_tokens=80))
        first = await stream.first(4)
        assert (len(first.ids), first.stop) == (4, None)
        assert len(stream.ids) < 80
        with pytest.raises(RuntimeError, match="still writing"):
            stream.append([2])
        with pytest.raises(RuntimeError, match="already being decoded"):
            stream.decode(Decoding())
        whole = await stream.rest()
        assert (await stream.first(4)).ids == first.ids == whole.ids[:4]
        assert (await stream.first(999)).ids == whole.ids
        assert (len(whole.ids), whole.stop) == (80, "length")

    asyncio.run(act())


@pytest.mark.parametrize("at", [1, 40, None])
def test_a_fork_continues_as_its_whole_prefix_would(sampler, model, at):
    async def act():
        parent = sampler.start((7, 0))
        parent.append(ids_of(LONG))
        await write(parent, max_tokens=6)
        child = parent.fork((7, 1), at)
        prefix = list(child.ids)
        parent.cancel()
        child.append(ids_of("!"))
        forked = await write(child, max_tokens=8)
        ids = list(child.ids)
        child.cancel()
        fresh = sampler.start((7, 1))
        fresh.append([*prefix, *ids_of("!")])
        return prefix, list(parent.ids), forked, await write(fresh, max_tokens=8), ids

    prefix, parent, forked, plain, ids = asyncio.run(act())
    assert prefix == parent[: len(parent) if at is None else at]
    assert forked.ids == plain.ids
    begin = len(ids) - len(forked.ids)
    expected = full_logprobs(model, ids)[torch.arange(begin - 1, len(ids) - 1), torch.tensor(forked.ids)]
    assert forked.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


def test_whoever_waits_for_a_cancelled_stream_is_told(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act():
        streams = [sampler.start((8, index)) for index in range(6)]
        for stream in streams:
            stream.append(ids_of(LONG))
            stream.decode(Decoding(max_tokens=250))
        waiting = [asyncio.ensure_future(stream.rest()) for stream in streams]
        await asyncio.sleep(0)  # all wait, and nothing has come yet: the whole of it may come at once
        for stream in streams:
            stream.cancel()
            stream.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        with pytest.raises(RuntimeError, match="cancelled"):
            streams[0].decode(Decoding())
        assert all(len(stream.ids) < 250 for stream in streams)

    asyncio.run(act())


def test_a_sequence_ends_where_there_is_no_more_room(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act():
        stream = sampler.start((11,))
        stream.append([5] * (LENGTH - 3))
        action = await write(stream, max_tokens=50)
        assert (len(action.ids), action.stop) == (3, "length")
        with pytest.raises(ValueError, match=f"may have {LENGTH}"):
            stream.decode(Decoding())

    asyncio.run(act())


def test_misuse_and_what_the_server_refuses_are_errors(sampler, monkeypatch):
    async def act():
        stream = sampler.start((12,))
        with pytest.raises(ValueError, match="append at least one token"):
            stream.decode(Decoding())
        with pytest.raises(ValueError, match=f"from 1 to 1000000, but the policy's vocabulary has {sampler.vocabulary}"):
            stream.append([1, 10**6])
        stream.append([1])
        with pytest.raises(ValueError, match=r"at least 0\.01"):
            stream.decode(Decoding(temperature=0.001))
        with pytest.raises(ValueError, match="fork at token 99"):
            stream.fork((13,), 99)
        with pytest.raises(RuntimeError, match="takes no new weights"):
            sampler.load_weights([], 1)
        with pytest.raises(RuntimeError, match="1 streams are live"):
            sampler.release_memory()
        monkeypatch.setattr(sampler, "_length", 2 * LENGTH)  # which the server's is not
        stream.append([5] * LENGTH)
        for _ in range(2):
            with pytest.raises(Exception, match=r"answers 400 Bad Request: .*maximum context length"):
                await (write(stream, max_tokens=2) if stream._problem is None else stream.rest())

    asyncio.run(act())


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
