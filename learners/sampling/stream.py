"""What samplers and their streams have in common, whoever computes: the action that is being decoded, and who waits for it.

`StreamBase` keeps the ids, finds where an action ends and wakes whoever waits; a sampler's own stream says how an action is
asked for (`StreamBase._ask`) and hands its tokens in (`StreamBase._take`, then `StreamBase._report`), or what went wrong
(`StreamBase._fail`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

from transformers import PreTrainedTokenizerBase

from learners.sampling.ending import Ending
from learners.sampling.entropy import EntropyKind
from learners.sampling.sampler import Continuation, Decoding, StopReason

AnyStream = TypeVar("AnyStream", bound="StreamBase")


class SamplerBase(ABC, Generic[AnyStream]):
    """The contract is `learners.sampling.sampler.Sampler`.

    Args:
        tokenizer: The policy's tokenizer.
        vocabulary: Number of tokens that the policy chooses from.
        seed: Seed of the noise.
        eos: Ids that end an assistant turn.
        entropy: What the entropies are.
        entropy_top: How many of the likeliest tokens they are computed of, where they are not of all.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary: int,
        seed: int,
        eos: Sequence[int],
        entropy: EntropyKind,
        entropy_top: int,
    ) -> None:
        self.version = 0
        self.entropy: EntropyKind = entropy
        self.vocabulary = vocabulary
        self._entropy_top = min(entropy_top, vocabulary)
        self._tokenizer, self._seed, self._eos = tokenizer, seed, frozenset(eos)
        self._token_texts: dict[int, str] = {}
        self._live: set[AnyStream] = set()  # started and not cancelled

    @abstractmethod
    def start(self, path: tuple[int, ...]) -> AnyStream:
        """An empty stream."""

    def _refuse_live(self, otherwise: str) -> None:
        if self._live:
            raise RuntimeError(f"{len(self._live)} streams are live: end them before {otherwise}")

    def _cancel_all(self) -> None:
        for stream in list(self._live):
            stream.cancel()

    def _text_of(self, token: int) -> str:
        if token not in self._token_texts:
            self._token_texts[token] = self._decode([token])
        return self._token_texts[token]

    def _text(self, ids: Sequence[int]) -> str:
        """What an action says: without the token that ends the turn."""
        return self._decode(list(ids[:-1] if ids and ids[-1] in self._eos else ids))

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StreamBase(ABC):
    """One sequence of a sampler; the contract is `learners.sampling.sampler.Stream`.

    Attributes:
        path: What orders it, and seeds its noise.
        stop: Why the last action ended; None while one is being decoded.
    """

    def __init__(self, sampler: SamplerBase[Any], path: tuple[int, ...]) -> None:
        self.path = path
        self.ids: list[int] = []
        self.stop: StopReason | None = "stop"
        self._sampler = sampler
        # The action that is being decoded.
        self._begin = 0
        self._logprobs: list[float] = []
        self._problem: Exception | None = None  # what kept it from its end
        self._waiters: list[tuple[int | None, asyncio.Future[None]]] = []
        sampler._live.add(self)

    @abstractmethod
    def _ask(self, decoding: Decoding) -> None:
        """Has the sampler write an action.

        Raises:
            ValueError: It cannot.
        """

    @abstractmethod
    def _entropies(self, count: int) -> Sequence[float]:
        """Entropies of the action's first tokens, [count]."""

    def append(self, ids: Sequence[int]) -> None:
        if self.stop is None:
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
        if self.stop is None:
            raise RuntimeError("an action is already being decoded: wait for rest() first")
        if not self.ids:
            raise ValueError("there is nothing to go on from: append at least one token first")
        self._ask(decoding)
        self.stop, self._problem = None, None
        self._begin, self._logprobs = len(self.ids), []
        self._ending = Ending(decoding, sampler._eos, sampler._text_of)

    async def first(self, k: int) -> Continuation:
        await self._wait(k)
        return self._continuation(min(k, len(self._logprobs)))

    async def rest(self) -> Continuation:
        await self._wait(None)
        return self._continuation(len(self._logprobs))

    def fork(self, path: tuple[int, ...], at: int | None = None) -> Self:
        length = len(self.ids) if at is None else at
        if not 0 <= length <= len(self.ids):
            raise ValueError(f"a fork at token {length} of a stream of {len(self.ids)} tokens")
        child: Self = self._sampler.start(path)
        child.ids = self.ids[:length]
        return child

    def cancel(self) -> None:
        if self not in self._sampler._live:
            return
        self._sampler._live.discard(self)
        for _, waiter in self._waiters:
            waiter.cancel()
        self._waiters = []
        self._leave()

    @abstractmethod
    def _leave(self) -> None:
        """Frees what the stream holds, and ends its action where one is being decoded."""

    def _take(self, token: int, logprob: float) -> None:
        """Adds a sampled token."""
        self.ids.append(token)
        self._logprobs.append(logprob)
        self.stop = self._ending.after(token)

    def _fail(self, problem: Exception) -> None:
        """Hands an error to whoever waits, now or later."""
        if self.stop is None:
            self.stop, self._problem = "length", problem
            self._report()

    def _report(self) -> None:
        """Wakes those whose tokens are there."""
        still = []
        for count, waiter in self._waiters:
            if self.stop is not None or (count is not None and len(self._logprobs) >= count):
                if not waiter.done():
                    waiter.set_result(None)
            else:
                still.append((count, waiter))
        self._waiters = still

    async def _wait(self, count: int | None) -> None:
        if self.stop is None and (count is None or len(self._logprobs) < count):
            if self not in self._sampler._live:
                raise asyncio.CancelledError
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((count, waiter))
            await waiter
        if self._problem is not None:
            raise self._problem

    def _continuation(self, count: int) -> Continuation:
        ids = tuple(self.ids[self._begin : self._begin + count])
        return Continuation(
            ids=ids,
            logprobs=tuple(self._logprobs[:count]),
            entropies=tuple(self._entropies(count)),
            text=self._sampler._text(ids),
            stop=self.stop if count == len(self._logprobs) else None,
        )
