"""Servers that cannot do what is needed, or fail on the way: what is tried again or refused, and what a file then holds."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter

import pytest
import torch
import yaml
from completions_server import CompletionsServer, Manners
from policies import TOKENIZER, random_policy, saved_policy

from learners import collect, evaluate
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.sampling.sampler import Decoding, SamplerFault
from learners.sampling.server import ServerSampler
from learners.sampling.server_connection import KEY, ServerConnection
from tracebank.trajectory import read_trajectories

ENDS = (TOKENIZER.eos_token_id, *range(0, 256, 6))
LENGTH = 400


@pytest.fixture(scope="module")
def running():
    server = CompletionsServer(random_policy())
    yield server
    server.close()


@pytest.fixture
def server(running):
    """The server, as polite as can be, for a test to spoil."""
    running.manners = Manners()
    running.bodies.clear()
    running.aborted = 0
    return running


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("served") / "policy", ENDS)


def sampler_on(server: CompletionsServer, *, patience: float = 600.0, retries: int = 3, **changed) -> ServerSampler:
    settings = {"vocabulary": len(TOKENIZER), "seed": 0, "eos": (), "length": LENGTH} | changed
    connection = ServerConnection(server.address, "", concurrency=8, patience=patience, retries=retries, pause=0.01)
    try:
        return ServerSampler(connection, "policy", TOKENIZER, **settings)
    except BaseException:
        connection.close()
        raise


@pytest.fixture
def opened():
    """Samplers to be closed."""
    samplers: list[ServerSampler] = []
    yield samplers
    for sampler in samplers:
        sampler.close()


async def act(sampler, path=(0,), **decoding):
    stream = sampler.start(path)
    stream.append(TOKENIZER.encode("abc", add_special_tokens=False))
    stream.decode(Decoding(**decoding))
    try:
        return await stream.rest()
    finally:
        stream.cancel()


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What is tried again


@pytest.mark.parametrize("refusals", [[429], [503, 502, 504], ["cut"], ["cut", 429, "cut"]])
def test_a_request_that_is_refused_for_now_is_sent_again(server, opened, caplog, refusals):
    opened.append(sampler := sampler_on(server))
    expected = asyncio.run(act(sampler, max_tokens=6))
    server.bodies.clear()
    server.manners.refusals = list(refusals)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(act(sampler, max_tokens=6)) == expected
    assert len(server.bodies) == len(refusals) + 1
    assert all(body == server.bodies[0] for body in server.bodies)
    (record,) = caplog.records
    assert "requests are sent again, up to 3 times" in record.getMessage()


@pytest.mark.parametrize(("refusal", "says"), [(429, "answers 429 Too Many Requests: not now"), ("cut", "isconnected")])
def test_not_for_ever(server, opened, refusal, says):
    opened.append(sampler := sampler_on(server))
    server.bodies.clear()
    server.manners.refusals = [refusal] * 9
    with pytest.raises(SamplerFault, match=f"did not answer a request sent 4 times: .*{says}"):
        asyncio.run(act(sampler))
    assert len(server.bodies) == 4


def test_a_connection_that_breaks_after_a_token_is_a_fault_at_once(server, opened):
    """Asking again would be another sample."""
    opened.append(sampler := sampler_on(server))
    server.bodies.clear()
    server.manners.cut_after = 5
    with pytest.raises(SamplerFault, match="broke off in the middle of an action"):
        asyncio.run(act(sampler, max_tokens=20))
    assert len(server.bodies) == 1


def test_a_server_that_keeps_silent_is_given_up(server, opened):
    opened.append(sampler := sampler_on(server, patience=0.3))
    server.manners.wait = 30.0
    with pytest.raises(SamplerFault, match=r"does not answer: .*; 0\.3 s may pass between two words"):
        asyncio.run(act(sampler, max_tokens=20))


# What is aborted


def test_cancelling_a_stream_aborts_its_request(server, opened):
    opened.append(sampler := sampler_on(server))
    until(lambda: server.running == 0)
    before = server.aborted  # of the questions at the start: whoever has the answer need not wait for the end
    server.manners.wait = 0.02

    async def abandon():
        streams = [sampler.start((index,)) for index in range(4)]
        for stream in streams:
            stream.append([5, 6])
            stream.decode(Decoding(max_tokens=300))
        await streams[0].first(2)
        await asyncio.to_thread(until, lambda: server.running == 4)
        for stream in streams:
            stream.cancel()
        await asyncio.to_thread(until, lambda: server.running == 0)  # as long as there is a loop to deliver tokens to

    asyncio.run(abandon())
    assert server.aborted == before + 4


def test_a_stop_string_aborts_what_the_server_would_still_write(server, opened):
    opened.append(sampler := sampler_on(server))
    server.manners.wait = 0.02
    whole = asyncio.run(act(sampler, max_tokens=8))
    stop = TOKENIZER.decode([whole.ids[3]])

    async def cut_short():
        stream = sampler.start((0,))
        stream.append(TOKENIZER.encode("abc", add_special_tokens=False))
        stream.decode(Decoding(max_tokens=300, stop=(stop,)))
        action = await stream.rest()
        await asyncio.to_thread(until, lambda: server.running == 0)  # while the stream lives
        return action

    cut = asyncio.run(cut_short())
    assert cut.stop == "stop"
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert len(cut.ids) <= 4
    assert server.aborted == 1


def test_closing_a_sampler_ends_what_is_live(server):
    sampler = sampler_on(server)
    server.manners.wait = 0.02

    async def leave():
        stream = sampler.start((0,))
        stream.append([5, 6])
        stream.decode(Decoding(max_tokens=300))
        await stream.first(1)
        sampler.close()
        await asyncio.to_thread(until, lambda: server.running == 0)

    asyncio.run(leave())
    assert server.aborted == 1


# What a server must be able to do


@pytest.mark.parametrize("ids", ["field", "names"])
def test_ids_come_in_a_field_or_as_names(server, opened, ids):
    server.manners.ids = ids
    opened.append(sampler := sampler_on(server))
    action = asyncio.run(act(sampler, max_tokens=9))
    assert (len(action.ids), sampler.entropy) == (9, "top-k")
    body = server.bodies[-1]
    assert body["prompt"] == TOKENIZER.encode("abc", add_special_tokens=False)
    assert body["return_token_ids"] is body["return_tokens_as_token_ids"] is body["stream"] is body["ignore_eos"] is True
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)


def test_likeliest_tokens_without_ids_leave_the_surprisal(server, opened, caplog):
    """Tokens of equal text would be one, and the entropy another."""
    server.manners.names_ids = False
    with pytest.raises(SamplerFault, match="by their text, which some share: use --entropy surprisal"):
        sampler_on(server, entropy="top-k")
    opened.append(sampler := sampler_on(server))
    assert "entropies: surprisal; " in caplog.text
    action = asyncio.run(act(sampler, max_tokens=9))
    assert sampler.entropy == "surprisal"
    assert action.entropies == tuple(-logprob for logprob in action.logprobs)


def test_full_entropies_are_refused(server):
    with pytest.raises(ValueError, match="expected top-k, top-k-sum or surprisal, found full"):
        sampler_on(server, entropy="full")


def test_a_server_with_logprobs_of_one_temperature_samples_at_that(server, opened):
    server.manners.tempered = False
    opened.append(sampler := sampler_on(server))
    for temperature in (0.0, 1.0):
        assert len(asyncio.run(act(sampler, temperature=temperature, max_tokens=3)).ids) == 3
    with pytest.raises(ValueError, match=r"of temperature 1 and of all tokens only: .*processed_logprobs"):
        asyncio.run(act(sampler, temperature=0.7))


def test_a_limit_of_the_servers_own_is_no_end_of_an_action(server, opened):
    opened.append(sampler := sampler_on(server))
    server.manners.limit = 7
    with pytest.raises(SamplerFault, match="ended a request after 7 of 20 tokens: it has a limit of its own"):
        asyncio.run(act(sampler, max_tokens=20))


def test_a_server_that_ends_an_action_for_a_reason_unknown_here_is_a_fault(server, opened, monkeypatch):
    opened.append(sampler := sampler_on(server, eos=range(256)))
    ends = sampler._eos
    body = sampler._body
    monkeypatch.setattr(sampler, "_body", lambda *asked, **more: body(*asked, **more) | {"stop_token_ids": [*ends]})
    monkeypatch.setattr(sampler, "_eos", frozenset())
    with pytest.raises(SamplerFault, match=r"gave a request up after [0-9]+ tokens: stop"):
        asyncio.run(act(sampler, max_tokens=200))


def test_a_server_that_does_not_say_why_it_ends_is_a_fault(server, opened):
    opened.append(sampler := sampler_on(server))
    server.manners.limit, server.manners.silent = 7, True
    with pytest.raises(SamplerFault, match="ended a request without saying why"):
        asyncio.run(asyncio.wait_for(act(sampler, max_tokens=20), 10))


@pytest.mark.parametrize("token", [-1, 10**9])
def test_an_id_that_is_no_token_is_a_fault(server, opened, token):
    opened.append(sampler := sampler_on(server))
    server.manners.instead = token
    with pytest.raises(SamplerFault, match=f"told the token id {token} of a vocabulary of {sampler.vocabulary}"):
        asyncio.run(asyncio.wait_for(act(sampler, max_tokens=5, stop=("never",)), 10))


def test_what_goes_wrong_with_a_token_reaches_whoever_waits(server, opened, monkeypatch):
    opened.append(sampler := sampler_on(server))

    def broken(token):
        raise OverflowError("no text")

    monkeypatch.setattr(sampler, "_text_of", broken)
    with pytest.raises(OverflowError, match="no text"):
        asyncio.run(asyncio.wait_for(act(sampler, max_tokens=5, stop=("never",)), 10))


class LargeServer:
    """Answers for a vocabulary of the usual size as vLLM's does: the sampled token and the likeliest ones."""

    address = "http://large"

    def __init__(self, logits: torch.Tensor, processed: bool, seed: int) -> None:
        self._logits, self._processed = logits, processed
        self._draw = torch.Generator().manual_seed(seed)

    def get(self, path):
        return {"data": [{"id": "policy"}]}

    def ask(self, path, body):
        tempered = torch.log_softmax(self._logits / body["temperature"], dim=-1)
        token = int(torch.multinomial(tempered.exp(), 1, generator=self._draw))
        told = tempered if self._processed else torch.log_softmax(self._logits, dim=-1)
        names = {f"token_id:{one}": float(told[one]) for one in (token, *told.topk(body["logprobs"]).indices.tolist())}
        logprobs = {"tokens": [f"token_id:{token}"], "token_logprobs": [float(told[token])], "top_logprobs": [names]}
        return [{"choices": [{"token_ids": [token], "logprobs": logprobs, "finish_reason": "length"}]}]


RANK = torch.arange(1, 150_001, dtype=torch.float64).log()


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize(
    "logits",
    [
        -1.5 * RANK,
        -3.0 * RANK,
        torch.where(RANK == 0, 6.0, -1.5 * RANK),
        2.5 * torch.randn(len(RANK), generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    ],
    ids=["power", "steep", "peaked", "normal"],
)
def test_whether_log_probabilities_are_of_the_temperature_is_seen_whatever_is_sampled(logits, processed):
    for seed in range(5):
        sampler = ServerSampler(
            LargeServer(logits, processed, seed), "policy", TOKENIZER, vocabulary=len(logits), seed=0, eos=(), length=LENGTH
        )
        assert sampler.tempered == processed


def test_one_that_rewrites_prompts_is_refused(server):
    server.manners.rewrites = True
    with pytest.raises(SamplerFault, match="went on from other ids than it was sent"):
        sampler_on(server)


# Commands


def playing(server: CompletionsServer, policy, *more: object) -> list[str]:
    chosen = ["--env", "user_environments:tests/LastWord-v0", "--sampler", "server", "--server", server.address]
    chosen += ["--model", policy, "--served-model", "policy", "--turn-tokens", 12, "--total-tokens", 200]
    return [str(part) for part in (*chosen, *more)]


@pytest.mark.parametrize(
    ("manners", "arguments", "says"),
    [
        ({"served": ("one", "other")}, [], "does not serve policy, but one, other: give one of these as --served-model"),
        ({"ids": "none"}, ["--entropy", "surprisal"], "does not tell token ids.*vllm serve MODEL"),
        ({"ids": "none"}, [], "does not tell token ids.*vllm serve MODEL"),
        ({"room": 100}, [], "takes sequences of 100 tokens, fewer than the 200.*--total-tokens 100"),
        ({"key": "right"}, [], f"answers 401 Unauthorized; it does not take the key in the environment variable {KEY}"),
        ({"tempered": False}, ["--temperature", "0.5"], "of all tokens only.*--logprobs-mode processed_logprobs"),
        ({}, ["--entropy", "full"], "it tells no entropies of the whole vocabulary: use --entropy top-k"),
        ({}, ["--deterministic"], "it cannot promise bit-equal reruns"),
        ({}, ["--temperature", "0.005"], r"it samples at a temperature of 0 or at least 0\.01, not at 0\.005"),
        ({}, ["--dtype", "bfloat16"], "--dtype is for the server to choose"),
        ({}, ["--model", "tiny"], "name the served model's id or folder by --model, for its tokenizer; found tiny"),
        ({}, ["--model", "oracle"], "for its tokenizer; found oracle"),
        ({}, ["--model", "/no/such/model"], "--model /no/such/model: its tokenizer and configuration cannot be loaded"),
        ({}, ["--sampler", "transformers"], "--server is of --sampler server, not of --sampler transformers"),
        ({}, ["--server", "ftp://host/v1"], "is an address such as http://localhost:8000/v1, not ftp://host/v1"),
        ({}, ["--server", "http://me:secret@host/v1"], r"--server http://\*\*\*@host/v1: no passwords here"),
        ({}, ["--server", "http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1 cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(server, policy, tmp_path, capsys, monkeypatch, manners, arguments, says):
    monkeypatch.setenv(KEY, "wrong")
    server.manners = Manners(**manners)
    for main in (collect.main, evaluate.main):
        with pytest.raises(SystemExit) as ended:
            main(playing(server, policy, "--output", tmp_path / "all.jsonl", *arguments))
        assert ended.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert re.search(says, line), line
        assert "wrong" not in line
        assert list(tmp_path.iterdir()) == []


def test_a_key_is_asked_for_where_there_is_none(server, policy, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    server.manners.key = "right"
    arguments = playing(server, policy, "--output", tmp_path / "all.jsonl", "--n", 1, "--task-count", 2)
    with pytest.raises(SystemExit):
        collect.main(arguments)
    assert f"it wants a key: put it into the environment variable {KEY}" in capsys.readouterr().err
    monkeypatch.setenv(KEY, "right")
    collect.main(arguments)
    assert len(list(read_trajectories(tmp_path / "all.jsonl"))) == 2


def test_nothing_is_trained_with_a_server(server, policy, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(GRPOConfig, GRPO, "", playing(server, policy, "--output", tmp_path / "run"))
    assert ended.value.code == 2
    assert "a server takes no new weights, so nothing can be trained with it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_server_that_fails_ends_a_collection_and_is_held_against_nobody(server, policy, tmp_path, capsys):
    """The file holds whole groups without a fault, and is gone on with, from another address too."""
    path, other = tmp_path / "all.jsonl", CompletionsServer(random_policy())
    written = {"groups": 0}
    count = collect.CollectionFile.add

    def add(file, number, records):
        count(file, number, records)
        written["groups"] += 1
        if written["groups"] == 3:
            server.manners.cut_after = 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect.CollectionFile, "add", add)
        with pytest.raises(SystemExit) as ended:
            collect.main(playing(server, policy, "--output", path, "--n", 2, "--task-count", 20, "--concurrency", 2))
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {server.address} broke off in the middle of an action: ")
    held = list(read_trajectories(path))
    assert len(held) == 2 * written["groups"] < 40
    assert (
        f"{len(held) // 2} of 20 tasks are in {path}; go on by: python -m learners.collect --output {path} --resume" in last
    )
    assert not any(record.fault for record in held)
    try:
        collect.main(["--output", str(path), "--resume", "--server", other.address])
    finally:
        other.close()
    records = list(read_trajectories(path))
    assert Counter(record.step for record in records) == dict.fromkeys(range(20), 2)
    assert {record.stop for record in records} <= {"terminated", "length"}
    at_first = {(record.step, record.path): record for record in records}
    assert all(at_first[record.step, record.path] == record for record in held)
    assert yaml.safe_load((tmp_path / "all.jsonl.config.yaml").read_text())["server"] == server.address
