"""The sampler contract, on the transformers sampler: caches, noise, stops, forks, and independence of arrival."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy

from learners.sampling.sampler import Decoding, Noise
from learners.sampling.transformers import TransformersSampler

END = TOKENIZER.eos_token_id


def sampler(model, *, deterministic=False, seed=0, eos=(END,)):
    return TransformersSampler(model, TOKENIZER, seed=seed, eos=eos, deterministic=deterministic)


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


async def write(stream, **decoding):
    stream.decode(Decoding(**decoding))
    return await stream.rest()


@pytest.fixture(scope="module")
def model():
    return random_policy()


def test_logprobs_and_entropies_over_several_turns_are_those_of_a_plain_forward_pass(model):
    async def episode(source, index):
        stream = source.start((index,))
        stream.append(ids_of("What is 12*3?" + "!" * (index % 5)))
        actions = []
        for turn in range(3):
            begin = len(stream.ids)
            actions.append((begin, await write(stream, max_tokens=5 + index % 7)))
            stream.append(ids_of(f" result {turn * index}"))
        ids = list(stream.ids)
        stream.cancel()
        return ids, actions

    async def everyone():
        source = sampler(model, eos=())
        return await asyncio.gather(*(episode(source, index) for index in range(40)))

    for ids, actions in asyncio.run(everyone()):
        expected = full_logprobs(model, ids)
        entropy = -(expected.exp() * expected).sum(-1)
        for begin, action in actions:
            places = torch.arange(begin, begin + len(action.ids))
            assert ids[begin : begin + len(action.ids)] == list(action.ids)
            torch.testing.assert_close(
                torch.tensor(action.logprobs), expected[places - 1, torch.tensor(action.ids)], atol=3e-5, rtol=3e-5
            )
            torch.testing.assert_close(torch.tensor(action.entropies), entropy[places - 1], atol=3e-5, rtol=3e-5)


def test_samples_follow_the_distribution(model):
    prompt = ids_of("abc")
    expected = full_logprobs(model, prompt, temperature=1.7)[-1].exp()

    async def draw(count):
        source = sampler(model)
        drawn = []
        for index in range(count):
            stream = source.start((index,))
            stream.append(prompt)
            drawn.append(stream)
            stream.decode(Decoding(temperature=1.7, max_tokens=1))
        return [(await stream.rest()).ids[0] for stream in drawn]

    count = 4000
    counts = np.bincount(asyncio.run(draw(count)), minlength=len(expected))
    likely = expected.numpy() > 0.01
    assert likely.sum() >= 5
    deviation = (counts[likely] / count - expected.numpy()[likely]) / np.sqrt(expected.numpy()[likely] / count)
    assert np.abs(deviation).max() < 4.5


def test_temperature_zero_takes_the_most_likely_token(model):
    async def greedy():
        stream = sampler(model, eos=()).start((0,))
        stream.append(ids_of("abc"))
        return await write(stream, temperature=0.0, max_tokens=12)

    action = asyncio.run(greedy())
    expected = full_logprobs(model, ids_of("abc") + list(action.ids))
    assert list(action.ids) == expected.argmax(-1)[2:-1].tolist()


def certain_policy(text: str):
    """A model that can only write ``text``: a real one whose logits after token i name token i + 1."""
    model = random_policy()
    script = torch.tensor(ids_of(text))

    def only_the_script(module, arguments, keywords, output):
        place = keywords["position_ids"][:, -1]
        output.logits = torch.full_like(output.logits, -50.0)
        output.logits[torch.arange(len(place)), -1, script[(place + 1).clamp(max=len(script) - 1)]] = 50.0
        return output

    model.register_forward_hook(only_the_script, with_kwargs=True)
    return model


@pytest.mark.parametrize(
    ("script", "stop", "max_tokens", "text", "reason"),
    [
        ("ab</python>cd", ("</python>",), 50, "ab</python>", "stop"),
        ("ab</pyth no", ("</python>",), 9, "ab</pyth ", "length"),
        ("ab<|end|>cd", ("</python>",), 50, "ab", "eos"),
        ("ab.;cd", (".;",), 50, "ab.;", "stop"),
        ("é漢.;", (".;",), 50, "é漢.;", "stop"),
        ("abcdef", (), 3, "abc", "length"),
    ],
)
def test_an_action_ends_at_its_stop_string_its_end_of_turn_or_its_limit(script, stop, max_tokens, text, reason):
    async def act():
        stream = sampler(certain_policy("?" + script)).start((0,))
        stream.append(ids_of("?"))
        return await write(stream, stop=stop, max_tokens=max_tokens), list(stream.ids)

    action, ids = asyncio.run(act())
    assert (action.text, action.stop) == (text, reason)
    assert ids == ids_of("?") + list(action.ids)
    assert (action.ids[-1] == END) == (reason == "eos")  # the end-of-turn token is kept among the ids


def test_characters_behind_a_stop_string_in_its_last_token_stay_in_the_ids():
    class Wide:
        """A tokenizer with one token that holds a stop string and more."""

        def decode(self, ids, **_):
            return "".join({1: "x", 2: ".;rest"}.get(token, "a") for token in ids)

    model = random_policy()

    def second(module, arguments, keywords, output):
        output.logits = torch.full_like(output.logits, -50.0)
        output.logits[:, -1, 2] = 50.0
        return output

    model.register_forward_hook(second, with_kwargs=True)

    async def act():
        stream = TransformersSampler(model, Wide(), seed=0, eos=(END,)).start((0,))
        stream.append([1])
        return await write(stream, stop=(".;",), max_tokens=9)

    action = asyncio.run(act())
    assert (action.ids, action.text, action.stop) == ((2,), ".;rest", "stop")


def test_first_comes_while_the_policy_goes_on_writing(model):
    async def act():
        stream = sampler(model, eos=()).start((0,))
        stream.append(ids_of("abc"))
        stream.decode(Decoding(max_tokens=30))
        first = await stream.first(4)
        assert first.stop is None
        whole = await stream.rest()
        assert (await stream.first(4)).ids == first.ids == whole.ids[:4]
        assert (await stream.first(99)).ids == whole.ids
        assert whole.stop == "length"

    asyncio.run(act())


@pytest.mark.parametrize("at", [1, 5, None])
@pytest.mark.parametrize("close_source", [False, True])
def test_a_fork_continues_as_its_whole_prefix_would(model, at, close_source):
    """A forked stream samples what a fresh one with the same tokens and the same path samples."""

    async def act():
        source = sampler(model, eos=())
        parent = source.start((0,))
        parent.append(ids_of("What is"))
        await write(parent, max_tokens=6)
        child = parent.fork((7,), at)
        prefix = list(child.ids)
        if close_source:
            parent.cancel()
        child.append(ids_of("!"))
        forked = await write(child, max_tokens=8)
        fresh = source.start((7,))
        fresh.append([*prefix, *ids_of("!")])
        plain = await write(fresh, max_tokens=8)
        return prefix, list(parent.ids), forked, plain

    prefix, parent, forked, plain = asyncio.run(act())
    assert prefix == parent[: len(prefix)]
    assert forked.ids == plain.ids
    assert forked.logprobs == pytest.approx(plain.logprobs, abs=1e-5)


def test_a_fork_while_its_parent_is_writing(model):
    async def act():
        source = sampler(model, eos=())
        parent = source.start((0,))
        parent.append(ids_of("What is"))
        parent.decode(Decoding(max_tokens=40))
        await parent.first(5)
        child = parent.fork((1,), len(ids_of("What is")))
        branch = await write(child, max_tokens=10)
        trunk = await parent.rest()
        return branch, trunk, list(child.ids)

    branch, trunk, ids = asyncio.run(act())
    expected = full_logprobs(random_policy(), ids)
    start = len(ids) - len(branch.ids)
    chosen = expected[torch.arange(start - 1, len(ids) - 1), torch.tensor(branch.ids)]
    assert branch.logprobs == pytest.approx(chosen.tolist(), abs=1e-5)
    assert len(trunk.ids) == 40
    assert branch.ids != trunk.ids[:10]


def _play(model, *, deterministic, delays, count=24):
    """Episodes of two turns whose tools take given times; what they wrote, bit for bit."""

    async def episode(source, index):
        stream = source.start((index,))
        await asyncio.sleep(delays[index])
        stream.append(ids_of(f"{index % 3} + {index % 5} ="))
        first = await write(stream, max_tokens=4 + index % 9)
        await asyncio.sleep(delays[-1 - index])
        stream.append(ids_of(f"<result>{index}</result>"))
        second = await write(stream, max_tokens=6)
        stream.cancel()
        return first, second

    async def everyone():
        source = sampler(model, deterministic=deterministic, eos=())
        return await asyncio.gather(*(episode(source, index) for index in range(count)))

    return asyncio.run(everyone())


def test_deterministic_sampling_does_not_depend_on_how_long_anything_takes(model):
    delays = random.Random(1)
    runs = [_play(model, deterministic=True, delays=[delays.random() * 0.02 for _ in range(24)]) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_what_is_sampled_depends_on_the_seed_and_the_path_only(model):
    """Without the promise of equal bits the tokens are still the same, but for ties within rounding."""
    instant = _play(model, deterministic=False, delays=[0.0] * 24)
    slow = _play(model, deterministic=False, delays=[0.001 * (index % 7) for index in range(24)])
    same = [a.ids == b.ids for one, other in zip(instant, slow, strict=True) for a, b in zip(one, other, strict=True)]
    assert sum(same) >= len(same) - 1


def test_streams_that_are_cancelled_give_their_slots_back(model):
    async def act():
        source = sampler(model, eos=())
        for wave in range(6):
            streams = [source.start((wave, index)) for index in range(8)]
            for stream in streams:
                stream.append(ids_of("abcdefgh"))
                stream.decode(Decoding(max_tokens=200))
            waiting = [asyncio.ensure_future(stream.rest()) for stream in streams]
            await streams[0].first(2)
            for stream in streams:
                stream.cancel()
                stream.cancel()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
        source.release_memory()
        return source._cache._slots

    assert asyncio.run(act()) == 0


def test_new_weights_change_what_comes_and_are_refused_while_streams_live(model):
    other = random_policy(seed=5)
    own = random_policy()

    async def act():
        source = sampler(own, eos=())
        stream = source.start((0,))
        stream.append(ids_of("abc"))
        before = await write(stream, temperature=0.0, max_tokens=8)
        with pytest.raises(RuntimeError, match="live"):
            source.load_weights(other.named_parameters(), 1)
        stream.cancel()
        source.load_weights(other.named_parameters(), 1)
        assert source.version == 1
        stream = source.start((0,))
        stream.append(ids_of("abc"))
        after = await write(stream, temperature=0.0, max_tokens=8)
        expected = full_logprobs(other, ids_of("abc") + list(after.ids)).argmax(-1)[2:-1].tolist()
        assert list(after.ids) == expected != list(before.ids)

    asyncio.run(act())


def test_an_error_in_the_model_reaches_whoever_waits():
    model = random_policy()

    def broken(*_):
        raise MemoryError("no room")

    model.register_forward_pre_hook(broken)

    async def act():
        stream = sampler(model).start((0,))
        stream.append([1, 2])
        return await write(stream, max_tokens=3)

    with pytest.raises(MemoryError, match="no room"):
        asyncio.run(act())


def test_misuse_is_a_clear_error(model):
    async def act():
        stream = sampler(model, eos=()).start((0,))
        with pytest.raises(ValueError, match="append at least one token"):
            stream.decode(Decoding())
        stream.append([1])
        stream.decode(Decoding(max_tokens=4))
        with pytest.raises(RuntimeError, match="still writing"):
            stream.append([2])
        with pytest.raises(RuntimeError, match="already being decoded"):
            stream.decode(Decoding())
        await stream.rest()
        with pytest.raises(ValueError, match="fork at token 99"):
            stream.fork((1,), 99)

    asyncio.run(act())


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**40), st.lists(st.integers(0, 1000), max_size=4), st.lists(st.integers(0, 500), min_size=1, max_size=9)
)
def test_noise_is_a_function_of_seed_path_and_position(seed, path, positions):
    one, other = Noise(seed, tuple(path)), Noise(seed, tuple(path))
    forwards = {position: one.at(position) for position in positions}
    assert all(other.at(position) == forwards[position] for position in reversed(positions))
    assert all(0 <= number < 1 for number in forwards.values())
    assert Noise(seed + 1, tuple(path)).at(positions[0]) != forwards[positions[0]]


def test_noise_is_uniform():
    numbers = np.array([Noise(3, (path,)).at(position) for path in range(40) for position in range(150)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 300) ** 2 / 300).sum() < 45  # chi-square with 19 degrees of freedom: beyond 43.8 in 0.1 % of cases
