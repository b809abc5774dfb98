"""A policy that a server plays: what is loaded of it here, and the sampler that asks the server.

The server has the weights. From ``--model`` come the tokenizer, the size of the vocabulary and the tokens that end a turn,
so that episodes are rendered and cut as they are for a policy in process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from learners.rollout.rendering import Renderer, TokenizerError
from learners.run.config import PlayConfig, UsageError
from learners.run.policy import ends_of
from learners.sampling.request import too_cold
from learners.sampling.sampler import Decoding, SamplerFault
from learners.sampling.server import ServerSampler
from learners.sampling.server_connection import KEY, ServerConnection


@dataclass(frozen=True)
class ServedPolicy:
    """All of a policy but its weights.

    Args:
        tokenizer: Its tokenizer.
        renderer: Turns a format's messages into its tokens.
        vocabulary: Number of tokens that it chooses from.
        ends: Ids that end an assistant's turn.
    """

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    vocabulary: int
    ends: Sequence[int]


def check_served(config: PlayConfig) -> None:
    """Raises `UsageError` for options of a server that do not go together."""
    if config.sampler != "server":
        for name in ("server", "served_model"):
            if getattr(config, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is of --sampler server, not of --sampler {config.sampler}")
        return
    told = "--sampler server:"
    if config.model in ("tiny", "oracle"):
        raise UsageError(f"{told} name the served model's id or folder by --model, for its tokenizer; found {config.model}")
    if config.server is None:
        raise UsageError(f"{told} where? Give its address by --server, such as http://localhost:8000/v1")
    if config.deterministic:
        raise UsageError(f"{told} it cannot promise bit-equal reruns: give them up by --no-deterministic")
    if config.entropy == "full":
        raise UsageError(f"{told} it tells no entropies of the whole vocabulary: use --entropy top-k")
    if refusal := too_cold(config.temperature):
        raise UsageError(f"{told} {refusal}")
    for name in ("device", "dtype"):
        if getattr(config, name) != "auto":
            raise UsageError(f"{told} --{name} is for the server to choose")
    try:
        parts = urlsplit(config.server)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"--server is an address such as http://localhost:8000/v1, not {_shown(config.server)}")
    if "@" in parts.netloc:
        raise UsageError(
            f"--server {_shown(config.server)}: no passwords here; a key goes into the environment variable {KEY}"
        )


def open_served(config: PlayConfig) -> ServedPolicy:
    """What there is to know of the policy without its weights.

    Raises:
        UsageError: There is no such model here, or none that can talk to the environment.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        model = AutoConfig.from_pretrained(config.model)
    except (OSError, ValueError) as problem:
        first = str(problem).strip().splitlines()[0]
        raise UsageError(
            f"--model {config.model}: its tokenizer and configuration cannot be loaded (expected an id or a folder): {first}"
        ) from None
    try:
        generation = GenerationConfig.from_pretrained(config.model)
    except OSError:  # it was published without one
        generation = GenerationConfig.from_model_config(model)
    try:
        renderer = Renderer(tokenizer)
    except TokenizerError as problem:
        raise UsageError(f"--model {config.model}: {problem}") from None
    return ServedPolicy(tokenizer, renderer, model.get_text_config().vocab_size, ends_of(generation, tokenizer))


def open_server(config: PlayConfig, policy: ServedPolicy) -> ServerSampler:
    """What samples from a served policy.

    Raises:
        UsageError: The server cannot be reached, or cannot do what is needed.
    """
    assert config.server is not None
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"the environment variable {KEY} has characters in it that no key has")
    connection = ServerConnection(config.server.rstrip("/"), key, concurrency=config.concurrency)
    try:
        sampler = ServerSampler(
            connection,
            config.served_model or config.model,
            policy.tokenizer,
            vocabulary=policy.vocabulary,
            seed=config.seed,
            eos=policy.ends,
            length=config.total_tokens,
            entropy=None if config.entropy == "auto" else config.entropy,
            entropy_top=config.entropy_top,
        )
        if refusal := sampler.refusal(Decoding(config.temperature, top_p=config.top_p, top_k=config.top_k)):
            raise SamplerFault(refusal)
    except SamplerFault as problem:
        connection.close()
        raise UsageError(f"--sampler server: {problem}") from None
    except BaseException:
        connection.close()
        raise
    return sampler


def _shown(address: str) -> str:
    """An address without what stands before its host."""
    begin, at, host = address.rpartition("@")
    return f"{begin.partition('//')[0]}//***@{host}" if at else address
