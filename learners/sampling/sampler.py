"""The contract of a sampler: streams of token ids that can be read, forked and abandoned.

A stream is one token sequence, the sampler's cache of it included. Foreign tokens (the prompt, a tool's result) are put in
with `Stream.append`; `Stream.decode` lets the policy go on; `Stream.first` and `Stream.rest` wait for what it writes.
Everything is asyncio: hundreds of streams wait while one loop advances them all.

The noise of a sampled token is a function of (run seed, the stream's path, the token's position) and of nothing else, so
that the order in which requests arrive cannot change what is sampled (`Noise`).

Example, inside a coroutine::

    stream = sampler.start(path=(step, task, rollout))
    stream.append(prompt_ids)
    stream.decode(Decoding(temperature=1.0, stop=("</python>",), max_tokens=256))
    action = await stream.rest()
    stream.append(result_ids)            # the cache of everything so far is kept
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from learners.sampling.entropy import EntropyKind

StopReason = Literal["stop", "eos", "length"]
"""Why decoding ended: a stop string, the end-of-turn token, or the token limit."""


class SamplerFault(RuntimeError):
    """The sampler cannot go on: a server that is not reached, refuses, or breaks off. No fault of the policy's nor of the
    environment's, so it ends what is being played."""


@dataclass(frozen=True)
class Decoding:
    """How an action is decoded.

    Args:
        temperature: Softmax temperature; 0 takes the most likely token.
        stop: Strings that end the action once they stand in its text.
        max_tokens: Tokens after which the action is cut.
        top_p: Only the likeliest tokens are sampled from that together have this probability, above 0; 1 is all of them.
        top_k: Only so many of the likeliest tokens are sampled from; 0 is all of them. At temperature 0 neither is read.
    """

    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Continuation:
    """What the policy wrote, n tokens.

    Args:
        ids: Token ids, [n], exactly as sampled: the end-of-turn token and characters after a stop string are kept.
        logprobs: Natural log-probability of each token under the sampling distribution, [n] (at temperature 0: under T = 1).
        entropies: Entropy in nats of the distribution that each token was drawn from, [n], of the kind `Sampler.entropy`.
        text: The decoded ids without the end-of-turn token.
        stop: Why it ended, or None while the policy is still writing.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    text: str
    stop: StopReason | None


class Stream(Protocol):
    """One token sequence that a sampler goes on with."""

    @property
    def ids(self) -> Sequence[int]:
        """Every token so far, foreign and sampled."""

    def append(self, ids: Sequence[int]) -> None:
        """Puts tokens at the end that the policy did not write. Not while an action is being decoded."""

    def decode(self, decoding: Decoding) -> None:
        """Lets the policy write an action from here on. One action at a time; needs at least one token before it."""

    async def first(self, k: int) -> Continuation:
        """The first k tokens of the action that is being decoded, as soon as they exist (fewer if it ended before)."""

    async def rest(self) -> Continuation:
        """The whole action, once it has ended."""

    def fork(self, path: tuple[int, ...], at: int | None = None) -> Stream:
        """Another stream that shares the first ``at`` tokens (default: all), with noise of its own path."""

    def park(self) -> None:
        """Says that nothing will be asked of this stream until other streams have gone on; `unpark` takes it back.

        A deterministic sampler waits until it has heard from every live stream; from parked ones it expects nothing.
        """

    def unpark(self) -> None:
        """Ends what `park` began."""

    def cancel(self) -> None:
        """Ends the stream and frees what it holds; whoever waits for it gets ``asyncio.CancelledError``. Twice is fine."""


class Sampler(Protocol):
    """What turns token ids into continuations.

    Attributes:
        entropy: What the entropies of its continuations are; see `learners.sampling.entropy`.
        version: The policy version that it samples from.
        vocabulary: Number of tokens that the distributions are over.
    """

    entropy: EntropyKind
    version: int
    vocabulary: int

    def start(self, path: tuple[int, ...]) -> Stream:
        """An empty stream. ``path`` is unique among live streams; it orders them and seeds their noise."""

    def load_weights(self, parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes new weights. No stream may be live: its cache would be of another policy."""

    def release_memory(self) -> None:
        """Gives back what is only needed while sampling; the next `start` takes it again. No stream may be live."""

    def close(self) -> None:
        """Ends the sampler and all that it began. Twice is fine."""


class Noise:
    """Uniform numbers in [0, 1) that depend on (seed, path, position) alone.

    A counter-based generator (Philox) is keyed by a hash of seed and path; the position is its counter.

    Example:
        >>> Noise(0, (1, 2)).at(5) == Noise(0, (1, 2)).at(5) != Noise(0, (1, 3)).at(5)
        True
    """

    BLOCK = 64  # positions drawn at a time; Philox makes four numbers a counter step

    def __init__(self, seed: int, path: tuple[int, ...]) -> None:
        text = ",".join(str(number) for number in (seed, *path))
        self._key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
        self._block = -1
        self._numbers: list[float] = []

    def at(self, position: int) -> float:
        """The number at a position of the sequence."""
        block, offset = divmod(position, self.BLOCK)
        if block != self._block:
            philox = np.random.Philox(key=self._key, counter=block * (self.BLOCK // 4))
            self._numbers = np.random.Generator(philox).random(self.BLOCK).tolist()
            self._block = block
        return self._numbers[offset]
