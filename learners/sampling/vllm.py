"""A sampler on vLLM's engine: paged caches, continuous batching, and prefixes that are computed once.

Each action is a request (`learners.sampling.request` says what follows from that), of whose prompt the engine finds in its
cache what any earlier request has computed, whole blocks at a time: the turns before, the prompt that a group shares, the
prefix that a branch has in common with its parent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from learners.sampling.entropy import EntropyKind
from learners.sampling.request import Deliver, Fail, RequestSampler, RequestStream, Told
from learners.sampling.sampler import Decoding
from learners.sampling.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)


class VllmSampler(RequestSampler):
    """See the module; the contract is `learners.sampling.sampler.Sampler`.

    Args:
        model: The policy. The engine has its own copy of the weights; `load_weights` brings it up to date.
        tokenizer: Its tokenizer.
        weights: The first weights, by the names that they had when the model was loaded; default: its parameters.
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
        weights: Iterable[tuple[str, torch.Tensor]] | None = None,
        seed: int,
        eos: Sequence[int],
        length: int,
        concurrency: int = 256,
        entropy: EntropyKind = "top-k",
        entropy_top: int = 20,
        memory: float = 0.4,
    ) -> None:
        config = model.config.get_text_config()
        super().__init__(
            tokenizer,
            name="vLLM",
            vocabulary=config.vocab_size,
            seed=seed,
            eos=eos,
            length=min(length, getattr(config, "max_position_embeddings", length)),
            entropy=entropy,
            entropy_top=entropy_top,
        )
        self._told = False  # that nothing is released on CPU
        self._engine = VllmEngine(
            model,
            dict(model.named_parameters() if weights is None else weights),
            length=self._length,
            concurrency=concurrency,
            logprobs=max(1, self._top),
            memory=memory,
        )

    def start(self, path: tuple[int, ...]) -> RequestStream:
        self._engine.wake()
        return super().start(path)

    def load_weights(self, parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self._refuse_live("the weights change")
        self._engine.load_weights({name: tensor.detach().cpu() for name, tensor in parameters})  # from there to the disk
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
        self._cancel_all()
        self._engine.close()

    def _request(
        self, number: int, ids: Sequence[int], decoding: Decoding, seed: int, deliver: Deliver, fail: Fail
    ) -> Future[None]:
        parameters = SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            max_tokens=decoding.max_tokens,
            seed=seed,
            stop_token_ids=sorted(self._eos),
            ignore_eos=True,  # those above are all that end a turn
            logprobs=self._top,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        return self._engine.request(
            str(number), ids, parameters, lambda output: deliver(_told(output), output.finish_reason), fail
        )


def _told(output: Any) -> list[Told]:
    """What the engine tells of the tokens that it has written since it told last."""
    return [
        Told(token, told[token].logprob, sorted((entry.logprob for entry in told.values()), reverse=True))
        for token, told in zip(output.token_ids, output.logprobs, strict=True)
    ]
