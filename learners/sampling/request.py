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
import contextlib
import hashlib
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from learners.sampling.entropy import EntropyKind, entropy_bounds, full_entropy
from learners.sampling.sampler import Decoding, SamplerFault
from learners.sampling.stream import SamplerBase, StreamBase

LEAST_TEMPERATURE = 0.01
"""Below it vLLM would sample at this one, and only log that it does."""


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


def too_cold(temperature: float) -> str:
    """Why nothing can be sampled at a temperature by request, or ""."""
    if not 0 < temperature < LEAST_TEMPERATURE:
        return ""
    return f"it samples at a temperature of 0 or at least {LEAST_TEMPERATURE}, not at {temperature}"


Deliver = Callable[[Sequence[Told], str | None], object]
"""Takes the next tokens of a request and, with the last ones, why it ended there: ``"length"`` or anything else."""

Fail = Callable[[Exception], object]
"""Takes what kept a request from its end."""


class RequestSampler(SamplerBase["RequestStream"]):
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
        super().__init__(tokenizer, vocabulary=vocabulary, seed=seed, eos=eos, entropy=entropy, entropy_top=entropy_top)
        self.name = name
        self._length = length
        self._numbers = itertools.count()

    @property
    def _top(self) -> int:
        """How many of the likeliest tokens are to be told."""
        return 0 if self.entropy == "surprisal" else self._entropy_top

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

    def _seed_of(self, path: tuple[int, ...], position: int) -> int:
        text = ",".join(map(str, (self._seed, *path, position)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def _entropies_of(self, seen: Sequence[Sequence[float]], logprobs: Sequence[float]) -> list[float]:
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


class RequestStream(StreamBase):
    """One sequence of a `RequestSampler`."""

    _sampler: RequestSampler

    def __init__(self, sampler: RequestSampler, path: tuple[int, ...]) -> None:
        super().__init__(sampler, path)
        # The action that is being decoded.
        self._room = 0  # tokens that the request may bring
        self._seen: list[Sequence[float]] = []  # what was told of each token, in falling order
        self._asked: Future[None] | None = None
        self._number = -1  # of the request; what an earlier one still brings is dropped

    def park(self) -> None:
        """Nothing waits for a stream here."""

    def unpark(self) -> None:
        """Nothing waits for a stream here."""

    def _ask(self, decoding: Decoding) -> None:
        sampler = self._sampler
        if len(self.ids) >= sampler._length:
            raise ValueError(
                f"a sequence of {len(self.ids)} tokens cannot be gone on with: {sampler.name}'s may have {sampler._length}"
            )
        if refusal := too_cold(decoding.temperature):
            raise ValueError(f"{sampler.name}: {refusal}")
        room = min(decoding.max_tokens, sampler._length - len(self.ids))
        number, seed = next(sampler._numbers), sampler._seed_of(self.path, len(self.ids))
        loop = asyncio.get_running_loop()

        def tell(method: Callable[..., None], *told: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(method, number, *told)

        self._asked = sampler._request(
            number,
            self.ids,
            replace(decoding, max_tokens=room),
            seed,
            lambda told, end: tell(self._receive, told, end),
            lambda problem: tell(self._give_up, problem),
        )
        self._number, self._room, self._seen = number, room, []
        silent = SamplerFault(f"{sampler.name} ended a request without saying why")
        self._asked.add_done_callback(lambda _: tell(self._give_up, silent))  # nothing, where it has said so before

    def _entropies(self, count: int) -> Sequence[float]:
        return self._sampler._entropies_of(self._seen[:count], self._logprobs[:count])

    def _leave(self) -> None:
        self._number = -1
        if self._asked is not None:
            self._asked.cancel()

    def _receive(self, number: int, told: Sequence[Told], end: str | None) -> None:
        """Adds the tokens that a request brings. Runs on the loop that asked for them."""
        if number != self._number or self.stop is not None:
            return
        try:
            self._add(told, end)
        except Exception as problem:  # else it would be the loop's, which tells nobody who waits
            self._fail(problem)
        if self.stop is not None and self._asked is not None:
            self._asked.cancel()  # nothing, where it has ended by itself
        self._report()

    def _add(self, told: Sequence[Told], end: str | None) -> None:
        sampler = self._sampler
        for one in told:
            if not 0 <= one.token < sampler.vocabulary:
                raise SamplerFault(f"{sampler.name} told the token id {one.token} of a vocabulary of {sampler.vocabulary}")
            self._seen.append(one.seen)
            self._take(one.token, one.logprob)
            if self.stop is not None:
                return
        if end is not None:
            written = len(self._logprobs)
            if end != "length":
                raise SamplerFault(f"{sampler.name} gave a request up after {written} tokens: {end}")
            if written < self._room:
                raise SamplerFault(
                    f"{sampler.name} ended a request after {written} of {self._room} tokens: it has a limit of its own"
                )
            self.stop = "length"  # of the whole sequence

    def _give_up(self, number: int, problem: Exception) -> None:
        if number == self._number:
            self._fail(problem)
