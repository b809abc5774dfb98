"""A sampler in process, on any Hugging Face causal language model with full attention.

Continuous batching over kept caches: every stream owns a slot of keys and values for as long as it lives, so a turn of an
episode computes only its own new tokens. Identical prompts are computed once. One task on the event loop advances all
streams by a token at a time; the forward pass runs in a thread, so that environments go on meanwhile.

With ``deterministic=True`` streams join only when all live ones wait: then the batches, and with them the last bits of every
number, are a function of what is sampled and not of how long tools took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from learners.sampling.entropy import EntropyKind, sampled_entropy
from learners.sampling.passes import next_logits
from learners.sampling.sampler import Decoding, Noise
from learners.sampling.slots import SlotCache, check_full_attention
from learners.sampling.stream import SamplerBase, StreamBase
from learners.sampling.truncation import likeliest

_PREFILL_TOKENS = 8192  # padded tokens in one forward pass over prompts and tool results


class TransformersSampler(SamplerBase["_Stream"]):
    """See the module; the contract is `learners.sampling.sampler.Sampler`.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        seed: Seed of the noise.
        eos: Ids that end an assistant turn.
        deterministic: Whether streams join a batch only when every live stream waits for its turn.
        entropy: What the entropies are, such as those that an inference server can tell.
        entropy_top: How many of the likeliest tokens they are computed of, where they are not of all.
        length: Tokens of the longest sequence, if that is known: a sliding window that is no shorter is none.
        in_place: Whether new weights are already there when `load_weights` tells of them, since who trains does so in this
            very module; else they are copied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        eos: Sequence[int],
        deterministic: bool = False,
        entropy: EntropyKind = "full",
        entropy_top: int = 20,
        length: int | None = None,
        in_place: bool = False,
    ) -> None:
        check_full_attention(model.config, length)
        vocabulary: int = model.config.get_text_config().vocab_size
        super().__init__(tokenizer, vocabulary=vocabulary, seed=seed, eos=eos, entropy=entropy, entropy_top=entropy_top)
        self._model, self._deterministic, self._in_place = model, deterministic, in_place
        self._cache = SlotCache()
        self._waiting: list[_Stream] = []  # have asked to decode and are not in the batch yet
        self._decoding: list[_Stream] = []  # the batch
        self._closing: list[_Stream] = []  # cancelled; their slots go back between two steps
        self._serving: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")

    def start(self, path: tuple[int, ...]) -> _Stream:
        return _Stream(self, path)

    def load_weights(self, parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self._refuse_live("the weights change")
        if not self._in_place:
            own = dict(self._model.named_parameters())
            with torch.no_grad():
                for name, new in parameters:
                    own[name].copy_(new)
        self.version = version

    def release_memory(self) -> None:
        self._refuse_live("the caches are dropped")
        self._collect()
        self._cache.release()

    def close(self) -> None:
        """Ends the sampler's thread; live streams end with it. Twice is fine."""
        self._cancel_all()
        self._thread.shutdown()

    # The loop that advances all streams. It ends when nobody waits, and is started again by the next `decode`.

    def _join(self, stream: _Stream) -> None:
        self._waiting.append(stream)
        self._wake.set()
        if self._serving is None or self._serving.done():
            self._wake = asyncio.Event()  # of this loop: another may have served before
            self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._collect()
                if not self._waiting and not self._decoding:
                    return
                self._admit()
                if self._decoding:
                    self._hand_out(await loop.run_in_executor(self._thread, self._advance))
                else:
                    self._wake.clear()
                    await self._wake.wait()
        except Exception as broken:
            for stream in (*self._waiting, *self._decoding):
                stream._fail(broken)
            self._waiting, self._decoding = [], []

    def _collect(self) -> None:
        """Drops cancelled streams; a slot that a fork still has to copy from is kept until it has."""
        for stream in self._closing:
            for place in (self._waiting, self._decoding):
                if stream in place:
                    place.remove(stream)
        kept = []
        for stream in self._closing:
            if stream.copies_due:
                kept.append(stream)
            elif stream.slot is not None:
                self._cache.give_back(stream.slot)
                stream.slot = None
        self._closing = kept

    @torch.inference_mode()
    def _admit(self) -> None:
        """Moves waiting streams into the batch, each with a slot; a fork's slot begins as a copy of its source's."""
        if not self._waiting:
            return
        if self._deterministic and (self._decoding or any(self._is_expected(stream) for stream in self._live)):
            return
        for stream in self._waiting:
            if stream.slot is None:
                stream.slot = self._cache.take()
            if stream.source is not None:
                source, stream.source = stream.source, None
                source.copies_due -= 1
                stream.cached = min(stream.cached, source.cached) if source.slot is not None else 0
                if source.slot is not None and stream.cached:
                    self._cache.copy(source.slot, stream.slot, stream.cached)
        self._decoding = sorted([*self._decoding, *self._waiting], key=lambda stream: stream.path)
        self._waiting = []

    def _is_expected(self, stream: _Stream) -> bool:
        """Whether a live stream may still ask to join the next batch."""
        return not stream.parked and stream not in self._waiting

    @torch.inference_mode()
    def _advance(self) -> list[tuple[_Stream, int, float, float]]:
        """One token for every stream of the batch; runs in the sampler's thread.

        Of a stream nothing changes here but what is cached of it: whoever asks meanwhile, on the loop, finds it as it was.

        Returns:
            Each stream with its token, that one's log-probability, and the entropy of what it was drawn from.
        """
        self._prefill([stream for stream in self._decoding if len(stream.ids) - stream.cached > 1])
        batch = self._decoding = self._lined_up()
        logits = self._forward(batch, [len(stream.ids) for stream in batch], lined_up=True)
        temperatures = torch.tensor([stream.decoding.temperature for stream in batch], device=logits.device)[:, None]
        logprobs = torch.log_softmax(logits.float() / torch.where(temperatures > 0, temperatures, 1.0), dim=-1)
        logprobs = _cut(logprobs, [stream.decoding for stream in batch])
        probabilities = logprobs.exp()
        uniform = torch.tensor([stream.noise.at(len(stream.ids)) for stream in batch], dtype=torch.float64)
        cumulated = probabilities.double().cumsum(-1)
        drawn = torch.searchsorted(cumulated, uniform.to(logits.device)[:, None] * cumulated[:, -1:], right=True)
        drawn = drawn.clamp(max=logits.shape[-1] - 1)
        chosen = torch.where(temperatures > 0, drawn, logprobs.argmax(-1, keepdim=True))
        chances = logprobs.gather(-1, chosen)[:, 0].tolist()
        entropies = sampled_entropy(self.entropy, logprobs, chosen[:, 0], self._entropy_top, probabilities=probabilities)
        return list(zip(batch, chosen[:, 0].tolist(), chances, entropies.tolist(), strict=True))

    def _lined_up(self) -> list[_Stream]:
        """The batch, with what its streams have cached side by side.

        Their order is that of their paths where it is part of what makes two runs equal; else those stay that are in place.
        """
        slots = {stream.slot: stream for stream in self._decoding if stream.slot is not None}
        order = list(slots) if self._deterministic else self._cache.settled(list(slots))
        self._cache.line_up(order)
        return [slots[slot] for slot in order]

    def _prefill(self, streams: list[_Stream]) -> None:
        """Caches all but the last token of each stream. What streams have in common is computed once and copied."""
        leaders: dict[tuple[int, ...], _Stream] = {}
        followers: list[tuple[_Stream, _Stream]] = []
        for stream in streams:
            if stream.cached == 0:
                leader = leaders.setdefault(tuple(stream.ids[:-1]), stream)
                if leader is not stream:
                    followers.append((leader, stream))
        followed = {id(stream) for _, stream in followers}
        due = [stream for stream in streams if id(stream) not in followed and len(stream.ids) - stream.cached > 1]
        due.sort(key=lambda stream: len(stream.ids) - stream.cached)
        while due:
            width = len(due[-1].ids) - due[-1].cached - 1
            rows = max(1, _PREFILL_TOKENS // width)
            chunk, due = due[-rows:], due[:-rows]
            self._forward(chunk, [len(stream.ids) - 1 for stream in chunk])
        for leader, stream in followers:
            assert leader.slot is not None
            assert stream.slot is not None
            self._cache.copy(leader.slot, stream.slot, leader.cached)
            stream.cached = leader.cached

    def _forward(self, streams: list[_Stream], ends: list[int], *, lined_up: bool = False) -> torch.Tensor:
        """Caches each stream's tokens up to place ``ends[i]``.

        Returns:
            The logits after each row's last token, [R, V].
        """
        rows = [stream.ids[stream.cached : end] for stream, end in zip(streams, ends, strict=True)]
        slots = [stream.slot for stream in streams if stream.slot is not None]
        logits = next_logits(self._model, self._cache, rows, slots, ends, lined_up=lined_up)
        for stream, end in zip(streams, ends, strict=True):
            stream.cached = end
        return logits

    def _hand_out(self, rows: list[tuple[_Stream, int, float, float]]) -> None:
        """Gives each stream its token, and wakes whoever waited for it. Runs on the loop."""
        for stream, token, chance, entropy in rows:
            if stream in self._live:
                stream.entropies.append(entropy)
                stream._take(token, chance)
                stream._report()
        self._decoding = [stream for stream in self._decoding if stream.stop is None]


def _cut(logprobs: torch.Tensor, decodings: Sequence[Decoding]) -> torch.Tensor:
    """Cuts each row down to the tokens that its decoding samples from, [R, V]; the very same where none cuts anything."""
    top_p = [decoding.top_p if decoding.temperature > 0 else 1.0 for decoding in decodings]
    top_k = [decoding.top_k if decoding.temperature > 0 else 0 for decoding in decodings]
    if min(top_p) == 1.0 and max(top_k) == 0:
        return logprobs
    return likeliest(logprobs, torch.tensor(top_p, device=logprobs.device), torch.tensor(top_k, device=logprobs.device))


class _Stream(StreamBase):
    """One sequence of a `TransformersSampler`."""

    _sampler: TransformersSampler

    def __init__(self, sampler: TransformersSampler, path: tuple[int, ...]) -> None:
        super().__init__(sampler, path)
        self.noise = Noise(sampler._seed, path)
        self.parked = False
        # The cache: its slot, how many tokens it holds, and where a fork's first ones are still to be copied from.
        self.slot: int | None = None
        self.cached = 0
        self.source: _Stream | None = None
        self.copies_due = 0
        # The action that is being decoded.
        self.decoding = Decoding()
        self.entropies: list[float] = []

    def fork(self, path: tuple[int, ...], at: int | None = None) -> _Stream:
        child = super().fork(path, at)
        child.cached = max(0, len(child.ids) - 1)  # at most: what the source has cached by then is copied
        child.source = self
        self.copies_due += 1
        return child

    def park(self) -> None:
        self.parked = True
        self._sampler._wake.set()

    def unpark(self) -> None:
        self.parked = False

    def _ask(self, decoding: Decoding) -> None:
        self.decoding, self.entropies = decoding, []
        self._sampler._join(self)

    def _entropies(self, count: int) -> Sequence[float]:
        return self.entropies[:count]

    def _leave(self) -> None:
        self._sampler._closing.append(self)
        if self.source is not None:
            self.source.copies_due -= 1
            self.source = None
        self._sampler._wake.set()
