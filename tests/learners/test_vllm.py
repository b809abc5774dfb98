"""The sampler contract on vLLM's engine, against plain forward passes of the same weights; and who may ask for it."""

from __future__ import annotations

import asyncio
import gc
import importlib.machinery
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy, saved_policy
from transformers import TopKLogitsWarper, TopPLogitsWarper

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.rendering import Renderer
from learners.run.command import run
from learners.run.players import Policy, open_sampler
from learners.sampling.ending import Ending
from learners.sampling.entropy import entropy_bounds, full_entropy
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler

ENDS = (TOKENIZER.eos_token_id, *range(0, 256, 40))
LENGTH = 400
LONG = "What is 12*3? " * 8  # several blocks of the engine's cache
needs_vllm = pytest.mark.vllm


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


async def write(stream, **decoding):
    stream.decode(Decoding(**decoding))
    return await stream.rest()


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


@pytest.fixture
def sampler(shared):
    """The engine, with nothing live before and after a test."""
    assert not shared._live
    yield shared
    for stream in list(shared._live):
        stream.cancel()


@needs_vllm
def test_logprobs_and_entropies_over_several_turns_are_those_of_a_plain_forward_pass(sampler, model):
    temperatures = (1.0, 0.7, 0.0, 1.5)

    async def episode(index):
        stream = sampler.start((0, index))
        stream.append(ids_of(LONG[: 20 + index] + "!" * (index % 5)))
        actions = []
        for turn in range(3):
            begin = len(stream.ids)
            temperature = temperatures[index % 4]
            actions.append((begin, temperature, await write(stream, temperature=temperature, max_tokens=5 + index % 7)))
            stream.append(ids_of(f" result {turn * index}"))
        ids = list(stream.ids)
        stream.cancel()
        return ids, actions

    async def everyone():
        return await asyncio.gather(*(episode(index) for index in range(24)))

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
            exact = full_entropy(expected[places]).double()
            assert ((exact - entropies).abs() <= (most - least) / 2 + 1e-3).all()
            if temperature == 0.0:
                assert list(action.ids) == expected[places].argmax(-1).tolist()


@needs_vllm
@pytest.mark.parametrize("kind", ["top-k-sum", "surprisal"])
def test_other_entropies_are_of_what_the_engine_tells(sampler, model, kind, monkeypatch):
    """They are those that the transformers sampler gives for the same tokens."""
    monkeypatch.setattr(sampler, "entropy", kind)
    monkeypatch.setattr(sampler, "_top", 5 if kind == "top-k-sum" else 0)
    prompt = ids_of("What is 12*3?")

    async def act():
        stream = sampler.start((1,))
        stream.append(prompt)
        return await write(stream, max_tokens=30, temperature=1.2)

    action = asyncio.run(act())
    logprobs = full_logprobs(model, [*prompt, *action.ids], temperature=1.2)[len(prompt) - 1 : -1]
    expected = []
    for row, token in zip(logprobs, action.ids, strict=True):
        if kind == "surprisal":
            expected.append(-float(row[token]))
        else:
            seen = {*row.topk(5).indices.tolist(), token}
            expected.append(sum(-float(row[one].exp() * row[one]) for one in seen))
    assert action.entropies == pytest.approx(expected, abs=1e-3)


@needs_vllm
def test_full_entropies_are_refused(engine, model):
    from learners.sampling.vllm import VllmSampler

    with pytest.raises(ValueError, match="expected top-k, top-k-sum or surprisal, found full"):
        VllmSampler(model, TOKENIZER, seed=0, eos=ENDS, length=LENGTH, entropy="full")


@needs_vllm
def test_samples_follow_the_distribution(sampler, model):
    prompt, count = ids_of("abc"), 1500
    expected = full_logprobs(model, prompt, temperature=1.7)[-1].exp().numpy()

    async def draw():
        drawn = []
        for index in range(count):
            stream = sampler.start((2, index))
            stream.append(prompt)
            drawn.append(stream)
            stream.decode(Decoding(temperature=1.7, max_tokens=1))
        return [(await stream.rest()).ids[0] for stream in drawn]

    counts = np.bincount(asyncio.run(draw()), minlength=len(expected))
    likely = expected > 0.01
    assert likely.sum() >= 5
    deviation = (counts[likely] / count - expected[likely]) / np.sqrt(expected[likely] / count)
    assert np.abs(deviation).max() < 4.5


@needs_vllm
def test_what_is_cut_is_cut_as_transformers_cuts_it(sampler, model):
    """Log-probabilities and entropies are of what is left, and nothing else is ever sampled."""
    cuts = [(1.0, 0), (0.7, 0), (1.0, 4), (0.9, 30), (1.0, 1)]

    async def act(index, cut):
        stream = sampler.start((9, index))
        stream.append(ids_of(f"What is {index}?"))
        prompt = list(stream.ids)
        action = await write(stream, temperature=1.3, max_tokens=8, top_p=cut[0], top_k=cut[1])
        stream.cancel()
        return cut, prompt, action

    async def everyone():
        return await asyncio.gather(*(act(index, cuts[index % 5]) for index in range(20)))

    for (top_p, top_k), prompt, action in asyncio.run(everyone()):
        ids = [*prompt, *action.ids]
        for place, (token, logprob) in enumerate(zip(action.ids, action.logprobs, strict=True), start=len(prompt)):
            expected = full_logprobs(model, ids, 1.3)[place - 1 : place]
            if top_k:
                expected = TopKLogitsWarper(top_k)(None, expected)
            if top_p < 1:
                expected = TopPLogitsWarper(top_p)(None, expected)
            expected = torch.log_softmax(expected[0], dim=-1)
            assert logprob == pytest.approx(float(expected[token]), abs=1e-3)
            if top_k and top_k <= 20:  # the engine tells of all that is left
                probabilities = expected.exp()
                entropy = float(-torch.xlogy(probabilities, probabilities).sum())
                assert action.entropies[place - len(prompt)] == pytest.approx(entropy, abs=2e-3)


@needs_vllm
def test_what_is_sampled_depends_on_the_seed_the_path_and_the_position(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act(path, prompt="What is", company=0):
        others = [sampler.start((9, number)) for number in range(company)]
        for number, other in enumerate(others):
            other.append(ids_of("!" * (number + 1)))
            other.decode(Decoding(max_tokens=100))
        stream = sampler.start(path)
        stream.append(ids_of(prompt))
        action = await write(stream, max_tokens=12)
        for one in (*others, stream):
            one.cancel()
        return action.ids

    alone = asyncio.run(act((3, 1)))
    assert asyncio.run(act((3, 1))) == alone
    assert asyncio.run(act((3, 1), company=7)) == alone
    assert asyncio.run(act((3, 2))) != alone
    monkeypatch.setattr(sampler, "_seed", 1)
    assert asyncio.run(act((3, 1))) != alone


@needs_vllm
def test_an_action_ends_with_the_token_that_completes_its_stop_string(sampler, monkeypatch):
    """The noise is the same with the stop string and without: what is written until then is, too."""
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act(path, **decoding):
        stream = sampler.start(path)
        stream.append(ids_of("abc"))
        action = await write(stream, **decoding)
        again = await write(stream, max_tokens=3)  # at once, whatever the engine is still writing
        ids = list(stream.ids)
        stream.cancel()
        assert ids == [*ids_of("abc"), *action.ids, *again.ids]
        return action

    split = inside = 0
    for number in range(12):
        whole = asyncio.run(act((4, number), max_tokens=40))
        assert whole.stop == "length"
        assert len(whole.ids) == 40
        texts = [TOKENIZER.decode([token]) for token in whole.ids]
        wide = [place for place in range(5, 40) if len(texts[place]) > 1 and texts[place].isascii()]
        for stop in {"".join(texts[10:12]), *(texts[place][:-1] for place in wide[:1])}:
            if "\ufffd" in stop:
                continue
            end = next(place for place in range(40) if stop in "".join(texts[: place + 1]))
            action = asyncio.run(act((4, number), max_tokens=40, stop=("never written", stop)))
            assert (action.ids, action.stop) == (whole.ids[: end + 1], "stop")
            assert action.text == TOKENIZER.decode(list(action.ids))
            split += not any(stop in text for text in texts)
            inside += texts[end].find(stop) >= 0 and not texts[end].endswith(stop)
    assert split > 0  # a stop string over two tokens
    assert inside > 0  # characters behind a stop string in its last token


@needs_vllm
def test_an_end_of_turn_is_kept_among_the_ids_and_left_out_of_the_text(sampler):
    async def act():
        streams = [sampler.start((5, index)) for index in range(40)]
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


@needs_vllm
def test_first_comes_while_the_policy_goes_on_writing(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act():
        stream = sampler.start((6,))
        stream.append(ids_of("abc"))
        stream.decode(Decoding(max_tokens=300))
        first = await stream.first(4)
        assert (len(first.ids), first.stop) == (4, None)
        assert len(stream.ids) < 300
        with pytest.raises(RuntimeError, match="still writing"):
            stream.append([2])
        with pytest.raises(RuntimeError, match="already being decoded"):
            stream.decode(Decoding())
        whole = await stream.rest()
        assert (await stream.first(4)).ids == first.ids == whole.ids[:4]
        assert (await stream.first(999)).ids == whole.ids
        assert (len(whole.ids), whole.stop) == (300, "length")

    asyncio.run(act())


@needs_vllm
@pytest.mark.parametrize("at", [1, 40, None])
@pytest.mark.parametrize("close_source", [False, True])
def test_a_fork_continues_as_its_whole_prefix_would(sampler, model, at, close_source):
    async def act():
        parent = sampler.start((7, 0))
        parent.append(ids_of(LONG))
        await write(parent, max_tokens=6)
        child = parent.fork((7, 1), at)
        prefix = list(child.ids)
        if close_source:
            parent.cancel()
        child.append(ids_of("!"))
        forked = await write(child, max_tokens=8)
        ids = list(child.ids)
        child.cancel()
        fresh = sampler.start((7, 1))
        fresh.append([*prefix, *ids_of("!")])
        plain = await write(fresh, max_tokens=8)
        return prefix, list(parent.ids), forked, plain, ids

    prefix, parent, forked, plain, ids = asyncio.run(act())
    assert prefix == parent[: len(parent) if at is None else at]
    assert forked.ids == plain.ids
    begin = len(ids) - len(forked.ids)
    expected = full_logprobs(model, ids)[torch.arange(begin - 1, len(ids) - 1), torch.tensor(forked.ids)]
    assert forked.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


@needs_vllm
def test_a_cancelled_stream_is_aborted_and_gives_back_what_it_held(sampler, model, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act():
        streams = [sampler.start((8, index)) for index in range(8)]
        for stream in streams:
            stream.append(ids_of(LONG))
            stream.decode(Decoding(max_tokens=250))
        waiting = [asyncio.ensure_future(stream.rest()) for stream in streams]
        await streams[0].first(2)
        for stream in streams:
            stream.cancel()
            stream.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        with pytest.raises(RuntimeError, match="cancelled"):
            streams[0].decode(Decoding())
        assert all(len(stream.ids) < 250 for stream in streams)

    asyncio.run(act())
    # The engine resets its cache of prefixes only when no request holds a block of it.
    sampler.load_weights(model.named_parameters(), 0)
    assert sampler._engine._llm.get_num_unfinished_requests() == 0


@needs_vllm
def test_new_weights_change_what_comes_and_are_refused_while_streams_live(sampler, model):
    other = random_policy(seed=5)

    async def greedy(policy):
        stream = sampler.start((10,))
        stream.append(ids_of(LONG))  # cached under the weights before
        action = await write(stream, temperature=0.0, max_tokens=8)
        logprobs = full_logprobs(policy, list(stream.ids))[len(stream.ids) - len(action.ids) - 1 : -1]
        assert list(action.ids) == logprobs.argmax(-1).tolist()
        assert action.logprobs == pytest.approx(logprobs.max(-1).values.tolist(), abs=1e-3)
        with pytest.raises(RuntimeError, match="1 streams are live"):
            sampler.load_weights(other.named_parameters(), 1)
        with pytest.raises(RuntimeError, match="1 streams are live"):
            sampler.release_memory()
        stream.cancel()
        return action.ids

    before = asyncio.run(greedy(model))

    async def inside_a_loop():  # where the trainer is
        sampler.load_weights(other.named_parameters(), 1)
        assert sampler.version == 1
        return await greedy(other)

    assert asyncio.run(inside_a_loop()) != before
    sampler.load_weights(model.named_parameters(), 0)
    assert asyncio.run(greedy(model)) == before


@needs_vllm
def test_releasing_memory_on_cpu_says_once_that_there_is_nothing_to_release(sampler, caplog):
    if sampler._engine.can_sleep:
        pytest.skip("this vLLM is not of the CPU")
    with caplog.at_level("INFO", logger="learners.sampling.vllm"):
        sampler.release_memory()
        sampler.release_memory()
    assert len(caplog.records) == 1
    assert "no sleep mode on CPU" in caplog.text


@needs_vllm
def test_a_sequence_ends_where_the_engine_has_no_more_room(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_eos", frozenset())

    async def act():
        stream = sampler.start((11,))
        stream.append([5] * (LENGTH - 3))
        action = await write(stream, max_tokens=50)
        assert (len(action.ids), action.stop) == (3, "length")
        with pytest.raises(ValueError, match=f"may have {LENGTH}"):
            stream.decode(Decoding())

    asyncio.run(act())


@needs_vllm
def test_misuse_and_what_the_engine_refuses_are_errors(sampler, monkeypatch):
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
        monkeypatch.setattr(sampler, "_length", 2 * LENGTH)  # which the engine's is not
        stream.append([5] * LENGTH)
        for _ in range(2):
            with pytest.raises(Exception, match="maximum context length"):
                await (write(stream, max_tokens=2) if stream._problem is None else stream.rest())

    asyncio.run(act())


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
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
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
    killed, _ = program
    processes = engines_below(killed.pid)
    try:
        assert processes
        assert all(map(is_running, processes))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert have_ended(processes)
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
