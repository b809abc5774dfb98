"""A sampler on vLLM's engine: paged caches, continuous batching, and prefixes that are computed once.

A stream is the ids of its sequence and nothing else. Each action is a request of its own with all of them as the prompt, of
which the engine finds in its cache what any earlier request has computed, whole blocks at a time: the turns before, the
prompt that a group shares, the prefix that a branch has in common with its parent. There is nothing to keep or to copy for a
stream that waits, so `park` does nothing.

Stop strings are looked for here, token by token, as in `learners.sampling.transformers`; the engine sees no text, and what
it has written beyond the end by the time that it hears of it is dropped. Requests have seeds of their own, functions of the
run's seed, the stream's path and the position. What they sample is then the same again up to rounding, which depends on what
else is in the batch: bit-equal reruns are not to be had here.

The engine tells the likeliest tokens' log-probabilities, so entropies are of one of the kinds that are computed from those
(`learners.sampling.entropy`), not ``full``.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from learners.sampling.ending import Ending
from learners.sampling.entropy import EntropyKind, entropy_bounds, full_entropy
from learners.sampling.sampler import Continuation, Decoding, StopReason
from learners.sampling.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

_LEAST_TEMPERATURE = 0.01  # below it vLLM would sample at this one and only log that it does


class VllmSampler:
    """See the module; the contract is `learners.sampling.sampler.Sampler`.

    Args:
        model: The policy. The engine has its own copy of the weights; `load_weights` brings it up to date.
        tokenizer: Its tokenizer.
        seed: Seed of the noise.
        eos: Ids that end an assistant turn.
        length: Tokens of the longest sequence.
        concurrency: Sequences that are advanced at once; more may be live.
        entropy: What the entropies are: top-k, top-k-sum or surprisal.
        entropy_top: How many of the likeliest tokens the first two look at.
        memory: Share of the GPU's memory that the engine may take (on CPU, of the machine's, for its cache).

    Raises:
        ValueError: ``entropy`` is full.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        eos: Sequence[int],
        length: int,
        concurrency: int = 256,
        entropy: EntropyKind = "top-k",
        entropy_top: int = 20,
        memory: float = 0.4,
    ) -> None:
        if entropy == "full":
            raise ValueError(
                "vLLM tells no entropies of the whole vocabulary: expected top-k, top-k-sum or surprisal, found full"
            )
        self.version = 0
        self.entropy: EntropyKind = entropy
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self._top = 0 if entropy == "surprisal" else min(entropy_top, self.vocabulary)
        self._tokenizer, self._seed, self._eos = tokenizer, seed, frozenset(eos)
        self._length = min(length, getattr(model.config.get_text_config(), "max_position_embeddings", length))
        self._token_texts: dict[int, str] = {}
        self._live: set[_Stream] = set()  # started and not cancelled
        self._numbers = itertools.count()
        self._told = False  # that nothing is released on CPU
        self._engine = VllmEngine(
            model, length=self._length, concurrency=concurrency, logprobs=max(1, self._top), memory=memory
        )

    def start(self, path: tuple[int, ...]) -> _Stream:
        self._engine.wake()
        return _Stream(self, path)

    def load_weights(self, parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self._refuse_live("the weights change")
        self._engine.load_weights(dict(parameters))
        self.version = version

    def release_memory(self) -> None:
        self._refuse_live("the caches are dropped")
        if self._engine.can_sleep:
            self._engine.sleep()
        elif not self._told:
            self._told = True
            logger.info("vLLM has no sleep mode on CPU: its memory stays with it between rollouts")

    def close(self) -> None:
        """Ends the engine and its processes; live streams end with it. Twice is fine."""
        for stream in list(self._live):
            stream.cancel()
        self._engine.close()

    def _refuse_live(self, otherwise: str) -> None:
        if self._live:
            raise RuntimeError(f"{len(self._live)} streams are live: end them before {otherwise}")

    def _parameters(self, decoding: Decoding, path: tuple[int, ...], position: int) -> SamplingParams:
        text = ",".join(map(str, (self._seed, *path, position)))
        return SamplingParams(
            temperature=decoding.temperature,
            max_tokens=min(decoding.max_tokens, self._length - position),
            seed=int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1,
            stop_token_ids=sorted(self._eos),
            ignore_eos=True,  # those above are all that end a turn
            logprobs=self._top,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _entropies(self, seen: Sequence[Sequence[float]], logprobs: Sequence[float]) -> list[float]:
        """Entropies of n tokens, given the log-probabilities that the engine told of each, in falling order."""
        if self.entropy == "surprisal" or not seen:
            return [-logprob for logprob in logprobs]
        if self.entropy == "top-k":
            least, most = entropy_bounds(torch.tensor([row[: self._top] for row in seen]), self.vocabulary)
            middle: list[float] = ((least + most) / 2).tolist()
            return middle
        width = max(map(len, seen))
        told = torch.tensor([[*row, *[-math.inf] * (width - len(row))] for row in seen])
        partial: list[float] = full_entropy(told).tolist()
        return partial

    def _text_of(self, token: int) -> str:
        if token not in self._token_texts:
            self._token_texts[token] = self._decode([token])
        return self._token_texts[token]

    def _text(self, ids: Sequence[int]) -> str:
        return self._decode(list(ids[:-1] if ids and ids[-1] in self._eos else ids))

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class _Stream:
    """One sequence of a `VllmSampler`; the contract is `learners.sampling.sampler.Stream`."""

    def __init__(self, sampler: VllmSampler, path: tuple[int, ...]) -> None:
        self.path = path
        self.ids: list[int] = []
        self._sampler = sampler
        # The action that is being decoded.
        self._stop: StopReason | None = "stop"
        self._begin = 0
        self._logprobs: list[float] = []
        self._seen: list[list[float]] = []  # what the engine told of each token, in falling order
        self._problem: Exception | None = None
        self._waiters: list[tuple[int | None, asyncio.Future[None]]] = []
        self._request: Future[None] | None = None
        self._number = -1  # of the request; what an earlier one still brings is dropped
        sampler._live.add(self)

    def append(self, ids: Sequence[int]) -> None:
        if self._stop is None:
            raise RuntimeError("tokens were appended while the policy is still writing: wait for rest() first")
        if ids and not 0 <= min(ids) <= max(ids) < self._sampler.vocabulary:  # the engine would die of it
            raise ValueError(
                f"token ids from {min(ids)} to {max(ids)}, but the policy's vocabulary has {self._sampler.vocabulary}"
            )
        self.ids.extend(ids)

    def decode(self, decoding: Decoding) -> None:
        sampler = self._sampler
        if self not in sampler._live:
            raise RuntimeError("this stream was cancelled")
        if self._stop is None:
            raise RuntimeError("an action is already being decoded: wait for rest() first")
        if not self.ids:
            raise ValueError("there is nothing to go on from: append at least one token first")
        if len(self.ids) >= sampler._length:
            raise ValueError(
                f"a sequence of {len(self.ids)} tokens cannot be gone on with: the engine's may have {sampler._length}"
            )
        if 0 < decoding.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"vLLM samples at a temperature of 0 or at least {_LEAST_TEMPERATURE}, not at {decoding.temperature}"
            )
        parameters = sampler._parameters(decoding, self.path, len(self.ids))
        self._stop, self._problem = None, None
        self._begin, self._logprobs, self._seen = len(self.ids), [], []
        self._ending = Ending(decoding, sampler._eos, sampler._text_of)
        self._number = number = next(sampler._numbers)
        loop = asyncio.get_running_loop()
        self._request = sampler._engine.request(
            str(number),
            self.ids,
            parameters,
            lambda output: loop.call_soon_threadsafe(self._take, number, output),
            lambda problem: loop.call_soon_threadsafe(self._fail, number, problem),
        )

    async def first(self, k: int) -> Continuation:
        await self._wait(k)
        return self._continuation(min(k, len(self._logprobs)))

    async def rest(self) -> Continuation:
        await self._wait(None)
        return self._continuation(len(self._logprobs))

    def fork(self, path: tuple[int, ...], at: int | None = None) -> _Stream:
        length = len(self.ids) if at is None else at
        if not 0 <= length <= len(self.ids):
            raise ValueError(f"a fork at token {length} of a stream of {len(self.ids)} tokens")
        child = self._sampler.start(path)
        child.ids = self.ids[:length]
        return child

    def park(self) -> None:
        """Nothing waits for a stream here."""

    def unpark(self) -> None:
        """Nothing waits for a stream here."""

    def cancel(self) -> None:
        if self not in self._sampler._live:
            return
        self._sampler._live.discard(self)
        self._number = -1
        if self._request is not None:
            self._request.cancel()
        for _, waiter in self._waiters:
            waiter.cancel()
        self._waiters = []

    async def _wait(self, count: int | None) -> None:
        if self._stop is None and (count is None or len(self._logprobs) < count):
            if self not in self._sampler._live:
                raise asyncio.CancelledError
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((count, waiter))
            await waiter
        if self._problem is not None:
            raise self._problem

    def _take(self, number: int, output: Any) -> None:
        """Adds the tokens that the engine brings. Runs on the loop that asked for them."""
        if number != self._number or self._stop is not None:
            return
        for token, told in zip(output.token_ids, output.logprobs, strict=True):
            self.ids.append(token)
            self._logprobs.append(told[token].logprob)
            self._seen.append(sorted((entry.logprob for entry in told.values()), reverse=True))
            self._stop = self._ending.after(token)
            if self._stop is not None:
                break
        if self._stop is None and output.finish_reason is not None:
            if output.finish_reason != "length":
                self._fail(number, RuntimeError(f"vLLM gave a request up: {output.finish_reason}"))
                return
            self._stop = "length"  # of the whole sequence
        if self._stop is not None and self._request is not None:
            self._request.cancel()  # nothing, where it has ended by itself
        self._report()

    def _fail(self, number: int, problem: Exception) -> None:
        """Hands an error of the engine to whoever waits, now or later."""
        if number == self._number:
            self._stop, self._problem = "length", problem
            self._report()

    def _report(self) -> None:
        """Wakes those whose tokens are there."""
        still = []
        for count, waiter in self._waiters:
            if self._stop is not None or (count is not None and len(self._logprobs) >= count):
                if not waiter.done():
                    waiter.set_result(None)
            else:
                still.append((count, waiter))
        self._waiters = still

    def _continuation(self, count: int) -> Continuation:
        ids = tuple(self.ids[self._begin : self._begin + count])
        logprobs = self._logprobs[:count]
        return Continuation(
            ids=ids,
            logprobs=tuple(logprobs),
            entropies=tuple(self._sampler._entropies(self._seen[:count], logprobs)),
            text=self._sampler._text(ids),
            stop=self._stop if count == len(self._logprobs) else None,
        )
