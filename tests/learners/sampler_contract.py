"""The contract of a sampler as tests, against plain forward passes of the same weights.

A sampler's own tests make a class of those that it promises, `SamplerContract` at least, with two fixtures: ``model`` is the
policy, and ``make`` makes the sampler that plays it. ``make`` may be told ``seed`` (else 0), ``eos`` (else `ENDS`),
``entropy`` and ``entropy_top`` (else the sampler's own).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch
from policies import TOKENIZER, cut_as_transformers_cuts, full_logprobs, random_policy
from transformers import PreTrainedModel

from learners.sampling.entropy import full_entropy, sampled_entropy
from learners.sampling.sampler import Continuation, Decoding, Sampler, Stream

Make = Callable[..., Sampler]

ENDS = (TOKENIZER.eos_token_id, *range(0, 256, 40))
LENGTH = 400
LONG = "What is 12*3? " * 8  # several blocks of any cache


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


async def write(stream: Stream, **decoding) -> Continuation:
    stream.decode(Decoding(**decoding))
    return await stream.rest()


def begun(sampler: Sampler, path: tuple[int, ...], text: str) -> Stream:
    stream = sampler.start(path)
    stream.append(ids_of(text))
    return stream


class SamplerContract:
    """What every sampler promises.

    Attributes:
        tolerance: By how much log-probabilities may differ from those of a plain forward pass.
    """

    tolerance = 1e-3

    def test_logprobs_and_entropies_over_several_turns_are_those_of_a_plain_forward_pass(self, make: Make, model):
        sampler, temperatures = make(), (1.0, 0.7, 0.0, 1.5)

        async def episode(index):
            stream = begun(sampler, (0, index), LONG[: 20 + index] + "!" * (index % 5))
            actions = []
            for turn in range(3):
                begin, temperature = len(stream.ids), temperatures[index % 4]
                actions.append((begin, temperature, await write(stream, temperature=temperature, max_tokens=3 + index % 7)))
                stream.append(ids_of(f" result {turn * index}"))
            ids = list(stream.ids)
            stream.cancel()
            return ids, actions

        async def everyone():
            return await asyncio.gather(*(episode(index) for index in range(16)))

        for ids, actions in asyncio.run(everyone()):
            for begin, temperature, action in actions:
                expected = full_logprobs(model, ids, temperature=temperature or 1.0)
                written = torch.tensor(action.ids)
                expected = expected[torch.arange(begin, begin + len(written)) - 1]
                assert ids[begin : begin + len(written)] == list(action.ids)
                own = expected.gather(-1, written[:, None])[:, 0]
                torch.testing.assert_close(torch.tensor(action.logprobs), own, atol=self.tolerance, rtol=0)
                entropies = sampled_entropy(sampler.entropy, expected, written, 20).double()
                found = torch.tensor(action.entropies, dtype=torch.float64)
                torch.testing.assert_close(found, entropies, atol=self.tolerance, rtol=0)
                if temperature == 0.0:
                    assert list(action.ids) == expected.argmax(-1).tolist()

    @pytest.mark.parametrize("kind", ["top-k", "top-k-sum", "surprisal"])
    def test_entropies_are_of_the_kind_that_is_asked_for(self, make: Make, model, kind):
        sampler, prompt = make(entropy=kind, entropy_top=5), ids_of("What is 12*3?")

        async def act():
            stream = sampler.start((1,))
            stream.append(prompt)
            return await write(stream, max_tokens=20, temperature=1.2)

        action = asyncio.run(act())
        assert sampler.entropy == kind
        expected = full_logprobs(model, [*prompt, *action.ids], temperature=1.2)[len(prompt) - 1 : -1]
        entropies = sampled_entropy(kind, expected, torch.tensor(action.ids), 5)
        assert action.entropies == pytest.approx(entropies.tolist(), abs=self.tolerance)

    def test_samples_follow_the_distribution(self, make: Make, model):
        prompt, count, sampler = ids_of("abc"), 1500, make()
        expected = full_logprobs(model, prompt, temperature=1.7)[-1].exp().numpy()

        async def draw():
            drawn = [begun(sampler, (2, index), "abc") for index in range(count)]
            for stream in drawn:
                stream.decode(Decoding(temperature=1.7, max_tokens=1))
            return [(await stream.rest()).ids[0] for stream in drawn]

        counts = np.bincount(asyncio.run(draw()), minlength=len(expected))
        likely = expected > 0.01
        assert likely.sum() >= 5
        deviation = (counts[likely] / count - expected[likely]) / np.sqrt(expected[likely] / count)
        assert np.abs(deviation).max() < 4.5

    def test_what_is_cut_is_cut_as_transformers_cuts_it(self, make: Make, model):
        """Log-probabilities and entropies are of what is left, and nothing else is ever sampled; at T = 0 nothing is cut."""
        sampler, cuts, temperatures = make(), [(1.0, 0), (0.7, 0), (1.0, 4), (0.9, 15), (1.0, 1), (1e-6, 0)], (1.0, 1.3, 0.0)

        async def act(index):
            (top_p, top_k), temperature = cuts[index % len(cuts)], temperatures[index // len(cuts) % 3]
            stream = begun(sampler, (3, index), f"What is {index}?")
            prompt = list(stream.ids)
            action = await write(stream, temperature=temperature, max_tokens=5, top_p=top_p, top_k=top_k)
            stream.cancel()
            return (top_p, top_k), temperature, prompt, action

        async def everyone():
            return await asyncio.gather(*(act(index) for index in range(18)))

        for (top_p, top_k), temperature, prompt, action in asyncio.run(everyone()):
            whole = full_logprobs(model, [*prompt, *action.ids], temperature or 1.0)[len(prompt) - 1 : -1]
            rows = zip(whole, action.ids, action.logprobs, action.entropies, strict=True)
            for row, token, logprob, entropy in rows:
                expected = cut_as_transformers_cuts(row, top_p, top_k) if temperature else row
                assert logprob == pytest.approx(float(expected[token]), abs=self.tolerance)
                if sampler.entropy == "full" or (temperature and top_k):  # all that is left is seen
                    assert entropy == pytest.approx(float(full_entropy(expected)), abs=2 * self.tolerance)

    def test_prompts_may_be_many_and_long(self, make: Make, model):
        """More tokens at once than anybody computes in one pass."""
        sampler, draw = make(eos=()), torch.Generator().manual_seed(0)
        prompts = torch.randint(256, (30, LENGTH - 20), generator=draw).tolist()

        async def act(index):
            stream = sampler.start((16, index))
            stream.append(prompts[index])
            return await write(stream, max_tokens=2)

        async def everyone():
            return await asyncio.gather(*map(act, range(len(prompts))))

        for prompt, action in zip(prompts, asyncio.run(everyone()), strict=True):
            assert action.logprobs == pytest.approx(_own(model, [*prompt, *action.ids], action), abs=self.tolerance)

    def test_what_is_sampled_depends_on_the_seed_the_path_and_the_position(self, make: Make):
        async def act(sampler, path, company=0):
            others = [begun(sampler, (9, number), "!" * (number + 1)) for number in range(company)]
            for other in others:
                other.decode(Decoding(max_tokens=100))
            stream = begun(sampler, path, "What is")
            action = await write(stream, max_tokens=12)
            for one in (*others, stream):
                one.cancel()
            return action.ids

        sampler = make(eos=())
        alone = asyncio.run(act(sampler, (4, 1)))
        assert asyncio.run(act(sampler, (4, 1))) == alone
        assert asyncio.run(act(sampler, (4, 1), company=5)) == alone
        assert asyncio.run(act(sampler, (4, 2))) != alone
        assert asyncio.run(act(make(eos=(), seed=1), (4, 1))) != alone

    def test_an_action_ends_with_the_token_that_completes_its_stop_string(self, make: Make):
        """The noise is the same with the stop string and without: what is written until then is, too."""
        sampler = make(eos=())

        async def act(path, **decoding):
            stream = begun(sampler, path, "abc")
            action = await write(stream, **decoding)
            again = await write(stream, max_tokens=2)  # at once, whatever is still being computed
            ids = list(stream.ids)
            stream.cancel()
            assert ids == [*ids_of("abc"), *action.ids, *again.ids]
            return action

        split = inside = 0
        for number in range(5):
            whole = asyncio.run(act((5, number), max_tokens=24))
            assert (len(whole.ids), whole.stop) == (24, "length")
            texts = [TOKENIZER.decode([token]) for token in whole.ids]
            wide = [place for place in range(3, 24) if len(texts[place]) > 1 and texts[place].isascii()]
            for stop in {"".join(texts[10:12]), *(texts[place][:-1] for place in wide[:1])}:
                if "\ufffd" in stop:
                    continue
                end = next(place for place in range(24) if stop in "".join(texts[: place + 1]))
                action = asyncio.run(act((5, number), max_tokens=24, stop=("never written", stop)))
                assert (action.ids, action.stop) == (whole.ids[: end + 1], "stop")
                assert action.text == TOKENIZER.decode(list(action.ids))
                split += not any(stop in text for text in texts)
                inside += texts[end].find(stop) >= 0 and not texts[end].endswith(stop)
        assert split > 0  # a stop string over two tokens
        assert inside > 0  # characters behind a stop string in its last token

    def test_an_end_of_turn_is_kept_among_the_ids_and_left_out_of_the_text(self, make: Make):
        sampler = make()

        async def act():
            streams = [begun(sampler, (6, index), "abc") for index in range(30)]
            for stream in streams:
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

    def test_first_comes_while_the_policy_goes_on_writing(self, make: Make):
        sampler = make(eos=())

        async def act():
            stream = begun(sampler, (7,), "abc")
            stream.decode(Decoding(max_tokens=250))
            first = await stream.first(4)
            assert (len(first.ids), first.stop) == (4, None)
            assert len(stream.ids) < 250
            with pytest.raises(RuntimeError, match="still writing"):
                stream.append([2])
            with pytest.raises(RuntimeError, match="already being decoded"):
                stream.decode(Decoding())
            whole = await stream.rest()
            assert (await stream.first(4)).ids == first.ids == whole.ids[:4]
            assert (await stream.first(999)).ids == whole.ids
            assert (len(whole.ids), whole.stop) == (250, "length")

        asyncio.run(act())

    @pytest.mark.parametrize("at", [1, 40, None])
    @pytest.mark.parametrize("close_source", [False, True])
    def test_a_fork_continues_as_its_whole_prefix_would(self, make: Make, model, at, close_source):
        """A forked stream samples what a fresh one with the same tokens and the same path samples."""
        sampler = make(eos=())

        async def act():
            parent = begun(sampler, (8, 0), LONG)
            await write(parent, max_tokens=6)
            child = parent.fork((8, 1), at)
            prefix = list(child.ids)
            if close_source:
                parent.cancel()
            child.append(ids_of("!"))
            forked = await write(child, max_tokens=8)
            ids = list(child.ids)
            child.cancel()
            fresh = sampler.start((8, 1))
            fresh.append([*prefix, *ids_of("!")])
            return prefix, list(parent.ids), forked, await write(fresh, max_tokens=8), ids

        prefix, parent, forked, plain, ids = asyncio.run(act())
        assert prefix == parent[: len(parent) if at is None else at]
        assert forked.ids == plain.ids
        assert forked.logprobs == pytest.approx(_own(model, ids, forked), abs=self.tolerance)

    def test_a_fork_while_its_parent_is_writing(self, make: Make, model):
        sampler = make(eos=())

        async def act():
            parent = begun(sampler, (8, 0), LONG)
            parent.decode(Decoding(max_tokens=40))
            await parent.first(5)
            child = parent.fork((8, 1), len(ids_of(LONG)))
            branch = await write(child, max_tokens=10)
            return branch, await parent.rest(), list(child.ids)

        branch, trunk, ids = asyncio.run(act())
        assert branch.logprobs == pytest.approx(_own(model, ids, branch), abs=self.tolerance)
        assert len(trunk.ids) == 40
        assert branch.ids != trunk.ids[:10]

    def test_whoever_waits_for_a_cancelled_stream_is_told(self, make: Make):
        """And it has given back what it held."""
        sampler = make(eos=())

        async def act():
            for wave in range(3):
                streams = [begun(sampler, (wave, index), LONG) for index in range(8)]
                for stream in streams:
                    stream.decode(Decoding(max_tokens=250))
                waiting = [asyncio.ensure_future(stream.rest()) for stream in streams]
                # In the last wave nothing has come yet; in the others some may have ended, where the machine is busy.
                await (streams[0].first(2) if wave < 2 else asyncio.sleep(0))
                writing = [stream.stop is None for stream in streams]
                for stream in streams:
                    stream.cancel()
                    stream.cancel()
                results = await asyncio.gather(*waiting, return_exceptions=True)
                assert [isinstance(result, asyncio.CancelledError) for result in results] == writing
                with pytest.raises(RuntimeError, match="cancelled"):
                    streams[0].decode(Decoding())
            assert all(writing)
            with pytest.raises(asyncio.CancelledError):
                await streams[0].rest()
            assert all(len(stream.ids) < len(ids_of(LONG)) + 250 for stream in streams)
            sampler.release_memory()

        asyncio.run(act())
        assert self.held(sampler) == 0

    def test_a_stream_that_was_parked_and_memory_that_was_released_are_taken_up_again(self, make: Make):
        sampler = make(eos=())

        async def act(rests):
            stream = begun(sampler, (15,), LONG)
            first = await write(stream, max_tokens=4)
            if rests:
                stream.park()
                await asyncio.sleep(0.01)
                stream.unpark()
            second = await write(stream, max_tokens=4)
            stream.cancel()
            if rests:
                sampler.release_memory()
            return first.ids, second.ids

        assert asyncio.run(act(rests=True)) == asyncio.run(act(rests=False))

    def held(self, sampler: Sampler) -> int:
        """How much the sampler still holds for streams that were cancelled, where it can be told."""
        return 0

    def test_misuse_is_an_error(self, make: Make):
        sampler = make()

        async def act():
            stream = sampler.start((10,))
            with pytest.raises(ValueError, match="append at least one token"):
                stream.decode(Decoding())
            with pytest.raises(ValueError, match=f"from 1 to 1000000, but the policy's vocabulary has {sampler.vocabulary}"):
                stream.append([1, 10**6])
            stream.append([1])
            with pytest.raises(ValueError, match="fork at token 99"):
                stream.fork((11,), 99)
            with pytest.raises(RuntimeError, match="1 streams are live"):
                sampler.release_memory()
            stream.cancel()

        asyncio.run(act())


class TakesWeights:
    """What a sampler promises that a policy is trained with."""

    def test_new_weights_change_what_comes_and_are_refused_while_streams_live(self, make: Make, model):
        sampler, other = make(eos=()), random_policy(seed=5)

        async def greedy(policy):
            stream = begun(sampler, (12,), LONG)  # cached under the weights before
            action = await write(stream, temperature=0.0, max_tokens=8)
            logprobs = full_logprobs(policy, list(stream.ids))[len(stream.ids) - len(action.ids) - 1 : -1]
            assert list(action.ids) == logprobs.argmax(-1).tolist()
            assert action.logprobs == pytest.approx(logprobs.max(-1).values.tolist(), abs=1e-3)
            with pytest.raises(RuntimeError, match="1 streams are live"):
                sampler.load_weights(other.named_parameters(), 1)
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


class ByRequest:
    """What samplers promise that ask somebody else (`learners.sampling.request`), with sequences of `LENGTH`."""

    def test_a_sequence_ends_where_there_is_no_more_room(self, make: Make):
        sampler = make(eos=())

        async def act():
            stream = sampler.start((13,))
            stream.append([5] * (LENGTH - 3))
            action = await write(stream, max_tokens=50)
            assert (len(action.ids), action.stop) == (3, "length")
            with pytest.raises(ValueError, match=f"may have {LENGTH}"):
                stream.decode(Decoding())

        asyncio.run(act())

    def test_what_the_other_side_refuses_is_an_error(self, make: Make, monkeypatch):
        sampler = make()

        async def act():
            stream = begun(sampler, (14,), "abc")
            with pytest.raises(ValueError, match=r"at least 0\.01"):
                stream.decode(Decoding(temperature=0.001))
            monkeypatch.setattr(sampler, "_length", 2 * LENGTH)  # which the other side's is not
            stream.append([5] * LENGTH)
            stream.decode(Decoding(max_tokens=2))
            for _ in range(2):
                with pytest.raises(Exception, match="maximum context length"):
                    await stream.rest()

        asyncio.run(act())


def _own(model: PreTrainedModel, ids: list[int], action: Continuation) -> list[float]:
    """Log-probabilities of an action at the end of a sequence."""
    begin = len(ids) - len(action.ids)
    return full_logprobs(model, ids)[torch.arange(begin - 1, len(ids) - 1), torch.tensor(action.ids)].tolist()
