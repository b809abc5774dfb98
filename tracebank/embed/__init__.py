"""Embedders: from text to a vector of length one, in which a nearer text is a more alike one.

`open_embedder` reads what ``--embedder`` may be:

    hashing                                     words and character n-grams, no download (`tracebank.embed.hashing`)
    sentence-transformers:NAME                  any model of that library (`tracebank.embed.sentence_transformers`)
    policy:FOLDER                               a language model's own hidden state (`tracebank.embed.policy`)
    rapo                                        the RAPO paper's encoder: MiniLM, last token, last 1,300 characters

Options follow a question mark, as in ``sentence-transformers:NAME?pooling=last&characters=1300``:

    hashing                                     dimension
    sentence-transformers                       pooling (mean, last, cls), characters, tokens, device
    policy                                      pooling (mean, last), tokens, device
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tracebank.embed.embedder import Embedder, Vectors

__all__ = ["RAPO", "Embedder", "Vectors", "open_embedder"]

RAPO = "sentence-transformers:sentence-transformers/all-MiniLM-L6-v2?pooling=last&characters=1300&tokens=512"
"""The encoder of RAPO's released code (arXiv 2603.03078): MiniLM, the last token of at most 512, the last 1,300 characters.

There batches are padded on the left, which shifts the positions that a BERT adds to its tokens: a text's vector depends on
the longest text beside it. Here padding never shows, so that vectors equal those of the released code for a text by itself.
"""

_OPTIONS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "hashing": MappingProxyType({"dimension": int}),
        "sentence-transformers": MappingProxyType({"pooling": str, "characters": int, "tokens": int, "device": str}),
        "policy": MappingProxyType({"pooling": str, "tokens": int, "device": str}),
    }
)

_SPEC = re.compile(r"(?P<kind>[^:?]*)(:(?P<what>.*?))?(\?(?P<options>[^?/]*))?", re.DOTALL)


def open_embedder(spec: str) -> Embedder:
    """Opens the embedder that a spec names.

    Args:
        spec: As the description of this package says. ``hashing`` may state its version, ``hashing:v1``.

    Raises:
        ValueError: No such embedder, version or option; the message lists those there are.
        BankError: The embedder is known but cannot be loaded: a package or a model is missing.

    Example:
        >>> open_embedder("hashing?dimension=256").name
        'hashing:v1?dimension=256'
    """
    match = _SPEC.fullmatch(RAPO if spec == "rapo" else spec)
    kind = match["kind"] if match else ""
    if match is None or kind not in _OPTIONS:
        raise ValueError(
            f"embedder: expected 'hashing', 'sentence-transformers:NAME', 'policy:FOLDER' or 'rapo', found {spec!r}"
        )
    what, options = match["what"], _read_options(spec, match["options"], _OPTIONS[kind])
    if kind == "hashing":
        from tracebank.embed.hashing import VERSION, HashingEmbedder  # here and not above: numba takes its time to load

        if what not in (None, VERSION):
            raise ValueError(f"embedder: expected 'hashing' or 'hashing:{VERSION}', found {spec!r}")
        return HashingEmbedder(**options)
    if not what:
        raise ValueError(f"embedder: expected '{kind}:' and what to load, found {spec!r}")
    if kind == "policy":
        from tracebank.embed.policy import PolicyEmbedder  # as torch does

        return PolicyEmbedder(what, **options)
    from tracebank.embed.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(what, **options)


def _read_options(spec: str, text: str | None, known: Mapping[str, type]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in text.split("&") if text else ():
        name, _, value = item.partition("=")
        if name not in known or name in options:
            raise ValueError(f"embedder: expected of the options {', '.join(known)} each once, found {item!r} in {spec!r}")
        if known[name] is str:
            options[name] = value
        elif value.isascii() and value.isdigit() and int(value) > 0:
            options[name] = int(value)
        else:
            raise ValueError(f"embedder: expected {name} to be a whole number above 0, found {value!r} in {spec!r}")
    return options
