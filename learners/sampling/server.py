"""A sampler on a server that speaks OpenAI's completions and tells token ids: for collecting and evaluating.

Each action is a request (`learners.sampling.request` says what follows from that). Prompts are sent as token ids to
``/completions``, and what comes back is read as ids: the server's text is never looked at, since the ids that it was made
from cannot be told from it. Tokens stream as they are sampled, so that a stop string ends a request at its token; a request
that nobody waits for any more is aborted by closing its connection.

What a server must be able to do is tried out once when the sampler is made, and said clearly where it cannot:

- take ids and tell ids: as ``token_ids`` (asked for by ``return_token_ids``: vLLM from 0.10.2 on, SGLang since July 2026),
  or as tokens that are named ``token_id:N`` (``return_tokens_as_token_ids``: older vLLM);
- tell log-probabilities, and for the entropies ``top-k`` and ``top-k-sum`` those of the likeliest tokens one by one. SGLang
  names these by their text, so that those of equal text fall into one: only ``surprisal`` can be had from it;
- at temperatures other than 0 and 1, and where top-p or top-k cut, tell the log-probabilities of the distribution that is
  sampled from. vLLM does where it was started with ``--logprobs-mode processed_logprobs``.

A server's own defaults (top-p, top-k, penalties, which vLLM takes from what the model's publisher recommends) are all
written over. It takes no new weights, so no policy can be trained with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from learners.sampling.entropy import EntropyKind
from learners.sampling.request import Deliver, Fail, RequestSampler, Told
from learners.sampling.sampler import Decoding, SamplerFault
from learners.sampling.server_connection import ServerConnection

logger = logging.getLogger(__name__)

_PATH = "/completions"
_NAMED = "token_id:"  # what vLLM's names of tokens begin with when asked for their ids
_HOW = (
    "start one that does, such as vLLM from 0.10.2 on: vllm serve MODEL --logprobs-mode processed_logprobs "
    "--generation-config vllm"
)


class ServerSampler(RequestSampler):
    """See the module; the contract is `learners.sampling.sampler.Sampler`.

    Args:
        connection: To the server; the sampler closes it.
        model: The served model's name.
        tokenizer: The model's tokenizer.
        vocabulary: Number of tokens that it chooses from.
        seed: Seed of the noise.
        eos: Ids that end an assistant turn.
        length: Tokens of the longest sequence.
        entropy: What the entropies are: top-k, top-k-sum, surprisal; None for top-k where the server can tell it, else
            surprisal.
        entropy_top: How many of the likeliest tokens the first two look at.

    Attributes:
        tempered: Whether the log-probabilities are of the distribution that is sampled from at any temperature.

    Raises:
        ValueError: ``entropy`` is full.
        SamplerFault: The server cannot be reached, has no such model or too little room, or cannot do what is needed.
    """

    def __init__(
        self,
        connection: ServerConnection,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary: int,
        seed: int,
        eos: Sequence[int],
        length: int,
        entropy: EntropyKind | None = None,
        entropy_top: int = 20,
    ) -> None:
        super().__init__(
            tokenizer,
            name=connection.address,
            vocabulary=vocabulary,
            seed=seed,
            eos=eos,
            length=length,
            entropy=entropy or "top-k",
            entropy_top=entropy_top,
        )
        self._connection, self._model = connection, model
        self._find_model()
        self.tempered = True
        self._try_out(may_change=entropy is None)

    def load_weights(self, parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        raise RuntimeError(f"{self.name} takes no new weights: train with another sampler")

    def release_memory(self) -> None:
        """What the server holds is its own."""
        self._refuse_live("the caches are dropped")

    def close(self) -> None:
        """Ends live streams and the connection; the server goes on. Twice is fine."""
        self._cancel_all()
        self._connection.close()

    def _request(
        self, number: int, ids: Sequence[int], decoding: Decoding, seed: int, deliver: Deliver, fail: Fail
    ) -> Future[None]:
        if refusal := self.refusal(decoding):
            raise ValueError(refusal)

        sent = list(ids)  # the stream's own grow

        def take(event: dict[str, Any]) -> bool:
            told, end = self._read(event, sent)
            deliver(told, end)
            return bool(told)

        return self._connection.request(_PATH, self._body(sent, decoding, seed), take, fail)

    def refusal(self, decoding: Decoding) -> str:
        """Why nothing can be sampled in this way, or ""."""
        if self.tempered or (decoding.temperature in (0.0, 1.0) and decoding.top_p == 1.0 and not decoding.top_k):
            return ""
        return f"{self.name} tells log-probabilities of temperature 1 and of all tokens only: {_HOW}"

    def _body(self, ids: Sequence[int], decoding: Decoding, seed: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": ids,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k or -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed & 0x7FFFFFFF,  # what any server's type has room for
            "stop_token_ids": sorted(self._eos),
            "ignore_eos": True,  # those above are all that end a turn
            "logprobs": max(1, self._top),
            "stream": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _find_model(self) -> None:
        """Refuses a name that is not served, and a server with less room than a sequence may take."""
        listed = self._connection.get("/models")
        try:
            served = {str(model["id"]): model for model in listed["data"]}
        except (TypeError, KeyError):
            raise SamplerFault(f"{self.name}/models lists no models: is this an OpenAI-compatible server?") from None
        if self._model not in served:
            names = ", ".join(served) or "nothing"
            raise SamplerFault(f"{self.name} does not serve {self._model}, but {names}: give one of these as --served-model")
        room = served[self._model].get("max_model_len")
        if isinstance(room, int) and room < self._length:
            raise SamplerFault(
                f"{self.name} takes sequences of {room} tokens, fewer than the {self._length} that a trajectory may have: "
                f"start it with more (--max-model-len of vLLM), or ask for --total-tokens {room}"
            )

    def _try_out(self, may_change: bool) -> None:
        """Samples one token at two temperatures, and looks at all that later requests rely on."""
        probe = self._tokenizer.encode("Once upon a time", add_special_tokens=False)
        answers = []
        for temperature in (1.0, 2.0):
            body = self._body(probe, Decoding(temperature=temperature, max_tokens=1), seed=0)
            body["logprobs"] = max(2, self._top)
            events = self._connection.ask(_PATH, body)
            choices = [event["choices"][0] for event in events if event.get("choices")]
            named = _likeliest(choices)
            if self._top and not all(name.startswith(_NAMED) for name in named):
                if not may_change:
                    raise SamplerFault(
                        f"{self.name} names the likeliest tokens by their text, which some share: use --entropy surprisal"
                    )
                self.entropy = "surprisal"
                logger.warning(
                    "entropies: surprisal; %s names the likeliest tokens by their text, which some share", self.name
                )
            if not any(self._read(event, probe)[0] for event in events):
                raise SamplerFault(f"{self.name} brought no token: expected one for {len(probe)} ids as a prompt")
            answers.append(named)
        # Twice the temperature halves the differences between the same tokens' log-probabilities. Each answer also has the
        # token that was sampled, which may be any.
        both = answers[0].keys() & answers[1].keys()
        cool, warm = (
            max(named[one] for one in both) - min(named[one] for one in both) if both else 0.0 for named in answers
        )
        self.tempered = abs(warm - cool / 2) < abs(warm - cool)

    def _read(self, event: Mapping[str, Any], prompt: Sequence[int]) -> tuple[list[Told], str | None]:
        """The tokens of an event and, in a request's last, why it ended."""
        if not event.get("choices"):
            return [], None  # such as how many tokens were used
        choice = event["choices"][0]
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and list(echoed) != list(prompt):
            raise SamplerFault(f"{self.name} went on from other ids than it was sent: it cuts or rewrites prompts")
        logprobs = choice.get("logprobs") or {}
        ids = choice.get("token_ids")
        names = logprobs.get("tokens") or []
        if ids is None:
            if not all(str(name).startswith(_NAMED) for name in names) or (choice.get("text") and not names):
                raise SamplerFault(f"{self.name} does not tell token ids, and text is not what was sampled: {_HOW}")
            ids = [int(name.removeprefix(_NAMED)) for name in names]
        own = logprobs.get("token_logprobs") or []
        likeliest = (logprobs.get("top_logprobs") or []) if self._top else [{}] * len(ids)
        if not len(ids) == len(own) == len(likeliest):
            raise SamplerFault(f"{self.name} does not tell log-probabilities of every token: {_HOW}")
        told = [
            Told(token, logprob, sorted({str(token): logprob, **_by_id(top)}.values(), reverse=True))
            for token, logprob, top in zip(ids, own, likeliest, strict=True)
        ]
        if any(len(one.seen) < self._top for one in told):
            raise SamplerFault(
                f"{self.name} tells fewer than {self._top} of the likeliest tokens: ask for fewer by --entropy-top"
            )
        end = choice.get("finish_reason")
        return told, None if end is None else str(end)


def _by_id(top: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(_NAMED): logprob for name, logprob in top.items()}


def _likeliest(choices: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The log-probabilities of a first token's rivals and its own, by the names that the server gives them."""
    for choice in choices:
        logprobs = choice.get("logprobs") or {}
        if logprobs.get("top_logprobs") and logprobs["top_logprobs"][0]:
            return dict(logprobs["top_logprobs"][0])
    return {}
