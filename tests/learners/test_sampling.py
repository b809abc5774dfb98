"""The sampler contract on the transformers sampler; where actions end, independence of arrival, and noise."""

from __future__ import annotations

import asyncio
import copy
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, random_policy
from sampler_contract import ENDS, SamplerContract, TakesWeights, ids_of, write

from learners.sampling.sampler import Decoding, Noise
from learners.sampling.transformers import TransformersSampler

END = TOKENIZER.eos_token_id


def sampler(model, *, deterministic=False, seed=0, eos=(END,)):
    return TransformersSampler(model, TOKENIZER, seed=seed, eos=eos, deterministic=deterministic)


@pytest.fixture(scope="module")
def model():
    return random_policy()


class TestTransformers(SamplerContract, TakesWeights):
    tolerance = 3e-5

    @pytest.fixture
    def make(self, model):
        made = []

        def one(**changed):
            made.append(TransformersSampler(copy.deepcopy(model), TOKENIZER, **({"seed": 0, "eos": ENDS} | changed)))
            return made[-1]

        yield one
        for one in made:
            one.close()
            one.close()

    def held(self, sampler):
        return sampler._cache._slots


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


def test_an_error_in_the_model_reaches_whoever_waits():
    model = random_policy()

    def broken(*_):
        raise MemoryError("no room")

    there_is_room = model.register_forward_pre_hook(broken)

    async def act():
        stream = sampler(model).start((0,))
        stream.append([1, 2])
        stream.decode(Decoding(max_tokens=3))
        for _ in range(2):  # whoever asks later is told, too
            with pytest.raises(MemoryError, match="no room"):
                await stream.rest()
        there_is_room.remove()
        assert len((await write(stream, max_tokens=3)).ids) <= 3

    asyncio.run(act())


def test_nothing_of_a_stream_changes_while_a_token_is_computed(model):
    """Asking for the rest at any moment, and going on at once, or cancelling, is what it is when nothing is computed."""
    moments = 0

    async def episode(source, index, wait):
        stream = source.start((index,))
        stream.append(ids_of("abc"))
        written = []
        for _ in range(4):
            stream.decode(Decoding(max_tokens=5))
            await stream.first(3)
            await wait(stream)
            written += (await stream.rest()).ids
        stream.append(ids_of("result"))
        assert list(stream.ids) == [*ids_of("abc"), *written, *ids_of("result")]
        stream.park()
        await asyncio.sleep(0.05)
        assert list(stream.ids) == [*ids_of("abc"), *written, *ids_of("result")]
        stream.cancel()
        return written

    async def everyone(wait, **options):
        source = sampler(model, eos=(), **options)
        forward = source._forward

        def slow(*arguments, **named):
            found = forward(*arguments, **named)
            time.sleep(0.002)  # the loop runs meanwhile
            return found

        source._forward = slow
        found = await asyncio.gather(*(episode(source, index, wait) for index in range(3)))
        source.close()
        return found

    async def till_its_end(stream):
        nonlocal moments
        while stream.stop is None:
            moments += 1
            await asyncio.sleep(0)

    async def not_at_all(stream):
        pass

    for deterministic in (False, True):
        expected = asyncio.run(everyone(not_at_all, deterministic=deterministic))
        assert asyncio.run(everyone(till_its_end, deterministic=deterministic)) == expected
    assert moments > 100

    async def cancel(stream):
        stream.cancel()
        await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await stream.rest()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(everyone(cancel))


def test_a_deterministic_sampler_serves_one_event_loop_after_another(model):
    source = sampler(model, deterministic=True, eos=())

    async def act():
        streams = [source.start((index,)) for index in range(2)]
        for wait, stream in enumerate(streams):
            await asyncio.sleep(0.01 * wait)
            stream.append(ids_of("abc"))
            stream.decode(Decoding(max_tokens=4))
        found = [(await stream.rest()).ids for stream in streams]
        for stream in streams:
            stream.cancel()
        return found

    assert asyncio.run(act()) == asyncio.run(act())


def test_closing_ends_live_streams(model):
    async def act():
        source = sampler(model, eos=())
        stream = source.start((0,))
        stream.append(ids_of("abc"))
        stream.decode(Decoding(max_tokens=200))
        waiting = asyncio.ensure_future(stream.rest())
        await stream.first(2)
        source.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

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
