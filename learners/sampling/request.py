"""Streams of a sampler that computes elsewhere: ids are kept here, and each action is a request.

What an engine in other processes (`learners.sampling.vllm`) and a server (`learners.sampling.server`) have in common. A
stream is the ids of its sequence and nothing else. Each action is a request with all of them as the prompt; what any
request has computed of it before, the other side finds in a cache of its own. There is nothing to keep or to copy for a
stream that waits, so `park` does nothing.

Stop strings are looked for here, token by token, as in `learners.sampling.transformers`; the other side sees no text, and
what it has written beyond the end by the time that it hears of it is dropped. Requests have seeds of their own, functions
of the run's seed, the stream's path and the position. What they sample is then the same again up to rounding, which depends
on what else is in the batch: bit-equal reruns are not to be had here.

The likeliest tokens' log-probabilities are what is told, so entropies are of one of the kinds that are computed from those
(`learners.sampling.entropy`), not ``full``.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from learners.sampling.ending import Ending
from learners.sampling.entropy import EntropyKind, entropy_bounds, full_entropy
from learners.sampling.sampler import Continuation, Decoding, SamplerFault, StopReason

_LEAST_TEMPERATURE = 0.01  # below it vLLM would sample at this one and only log that it does


@dataclass(frozen=True)
class Told:
    """What is told of one sampled token.

    Args:
        token: Its id.
        logprob: Its natural log-probability.
        seen: Those of the likeliest tokens and its own, in falling order.
    """

    token: int
    logprob: float
    seen: Sequence[float]


Deliver = Callable[[Sequence[Told], str | None], object]
"""Takes the next tokens of a request and, with the last ones, why it ended there: ``"length"`` or anything else."""

Fail = Callable[[Exception], object]
"""Takes what kept a request from its end."""


class RequestSampler(ABC):
    """What does not depend on who computes; the contract is `learners.sampling.sampler.Sampler`.

    Args:
        tokenizer: The policy's tokenizer.
        name: Who computes, for messages.
        vocabulary: Number of tokens that the policy chooses from.
        seed: Seed of the noise.
        eos: Ids that end an assistant turn.
        length: Tokens of the longest sequence.
        entropy: What the entropies are: top-k, top-k-sum or surprisal.
        entropy_top: How many of the likeliest tokens the first two look at.

    Raises:
        ValueError: ``entropy`` is full.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        vocabulary: int,
        seed: int,
        eos: Sequence[int],
        length: int,
        entropy: EntropyKind,
        entropy_top: int,
    ) -> None:
        if entropy == "full":
            raise ValueError(
                f"{name} tells no entropies of the whole vocabulary: expected top-k, top-k-sum or surprisal, found full"
            )
        self.name = name
        self.version = 0
        self.entropy: EntropyKind = entropy
        self.vocabulary = vocabulary
        self._top = 0 if entropy == "surprisal" else min(entropy_top, vocabulary)
        self._tokenizer, self._seed, self._eos = tokenizer, seed, frozenset(eos)
        self._length = length
        self._token_texts: dict[int, str] = {}
        self._live: set[RequestStream] = set()  # started and not cancelled
        self._numbers = itertools.count()

    def start(self, path: tuple[int, ...]) -> RequestStream:
        return RequestStream(self, path)

    @abstractmethod
    def _request(
        self, number: int, ids: Sequence[int], decoding: Decoding, seed: int, deliver: Deliver, fail: Fail
    ) -> Future[None]:
        """Asks for a continuation.

        Args:
            number: Unique among all requests.
            ids: The tokens to go on from.
            decoding: How; ``max_tokens`` fits into the sequence, and ``stop`` is not to be looked for.
            seed: Of the request's noise, below 2**63.
            deliver, fail: Called from any thread.

        Returns:
            Cancelling it aborts the request.
        """

    def _refuse_live(self, otherwise: str) -> None:
        if self._live:
            raise RuntimeError(f"{len(self._live)} streams are live: end them before {otherwise}")

    def _cancel_all(self) -> None:
        for stream in list(self._live):
            stream.cancel()

    def _seed_of(self, path: tuple[int, ...], position: int) -> int:
        text = ",".join(map(str, (self._seed, *path, position)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def _entropies(self, seen: Sequence[Sequence[float]], logprobs: Sequence[float]) -> list[float]:
        """Entropies of n tokens, given the log-probabilities that were told of each, in falling order."""
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


class RequestStream:
    """One sequence of a `RequestSampler`; the contract is `learners.sampling.sampler.Stream`."""

    def __init__(self, sampler: RequestSampler, path: tuple[int, ...]) -> None:
        self.path = path
        self.ids: list[int] = []
        self._sampler = sampler
        # The action that is being decoded.
        self._stop: StopReason | None = "stop"
        self._begin = 0
        self._room = 0  # tokens that the request may bring
        self._logprobs: list[float] = []
        self._seen: list[Sequence[float]] = []  # what was told of each token, in falling order
        self._problem: Exception | None = None
        self._waiters: list[tuple[int | None, asyncio.Future[None]]] = []
        self._asked: Future[None] | None = None
        self._number = -1  # of the request; what an earlier one still brings is dropped
        sampler._live.add(self)

    def append(self, ids: Sequence[int]) -> None:
        if self._stop is None:
            raise RuntimeError("tokens were appended while the policy is still writing: wait for rest() first")
        if ids and not 0 <= min(ids) <= max(ids) < self._sampler.vocabulary:  # an engine would die of it
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
                f"a sequence of {len(self.ids)} tokens cannot be gone on with: {sampler.name}'s may have {sampler._length}"
            )
        if 0 < decoding.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"{sampler.name} samples at a temperature of 0 or at least {_LEAST_TEMPERATURE}, "
                f"not at {decoding.temperature}"
            )
        self._room = min(decoding.max_tokens, sampler._length - len(self.ids))
        number, seed = next(sampler._numbers), sampler._seed_of(self.path, len(self.ids))
        loop = asyncio.get_running_loop()
        asked = sampler._request(
            number,
            self.ids,
            replace(decoding, max_tokens=self._room),
            seed,
            lambda told, end: loop.call_soon_threadsafe(self._take, number, told, end),
            lambda problem: loop.call_soon_threadsafe(self._fail, number, problem),
        )
        self._number, self._asked = number, asked
        self._stop, self._problem = None, None
        self._begin, self._logprobs, self._seen = len(self.ids), [], []
        self._ending = Ending(decoding, sampler._eos, sampler._text_of)

    async def first(self, k: int) -> Continuation:
        await self._wait(k)
        return self._continuation(min(k, len(self._logprobs)))

    async def rest(self) -> Continuation:
        await self._wait(None)
        return self._continuation(len(self._logprobs))

    def fork(self, path: tuple[int, ...], at: int | None = None) -> RequestStream:
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
        if self._asked is not None:
            self._asked.cancel()
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

    def _take(self, number: int, told: Sequence[Told], end: str | None) -> None:
        """Adds the tokens that a request brings. Runs on the loop that asked for them."""
        if number != self._number or self._stop is not None:
            return
        for one in told:
            self.ids.append(one.token)
            self._logprobs.append(one.logprob)
            self._seen.append(one.seen)
            self._stop = self._ending.after(one.token)
            if self._stop is not None:
                break
        if self._stop is None and end is not None:
            written, name = len(self._logprobs), self._sampler.name
            if end != "length":
                self._fail(number, SamplerFault(f"{name} gave a request up after {written} tokens: {end}"))
                return
            if written < self._room:
                problem = f"{name} ended a request after {written} of {self._room} tokens: it has a limit of its own"
                self._fail(number, SamplerFault(problem))
                return
            self._stop = "length"  # of the whole sequence
        if self._stop is not None and self._asked is not None:
            self._asked.cancel()  # nothing, where it has ended by itself
        self._report()

    def _fail(self, number: int, problem: Exception) -> None:
        """Hands an error to whoever waits, now or later."""
        if number == self._number and self._stop is None:
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
