"""What embedders that run a neural network have in common: what they are known by, what they read, what they give."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.utils import logging as transformers_logging

from tracebank.embed.embedder import Vectors
from tracebank.faults import BankError

_SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_*/*.json",
    "[0-9]*_*/*.safetensors",
    "[0-9]*_*/*.bin",
)
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")


def identify(folder: Path) -> str:
    """A hash of the files of a model that its vectors depend on: weights, tokenizer, and how they are used.

    Where the same thing is there in two forms, the one that is loaded counts: safetensors, and tokenizer.json.

    Args:
        folder: As transformers or sentence-transformers save it; what else lies there makes no difference.

    Returns:
        32 hexadecimal digits, the same wherever the files are.

    Raises:
        BankError: No folder, or one without configuration, weights or tokenizer.
    """
    settings = [path for pattern in _SETTINGS for path in folder.glob(pattern)]
    weights, tokenizer = _first(folder, _WEIGHTS), _first(folder, _TOKENIZERS)
    missing = [
        name
        for name, there in (
            ("config.json or modules.json", (folder / "config.json").is_file() or (folder / "modules.json").is_file()),
            ("weights (*.safetensors)", weights or any(path.suffix != ".json" for path in settings)),
            ("a tokenizer (tokenizer.json)", tokenizer or any(path.name == "tokenizer.json" for path in settings)),
        )
        if not there
    ]
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing" if folder.is_dir() else "no folder"
        raise BankError(f"{folder}: expected a model with {' and '.join(missing)}, found {found}")
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({*settings, *weights, *tokenizer}):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, hashlib.blake2b)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _first(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of the first pattern that has any."""
    return next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars of its own across those of whoever embeds."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def readable(text: str) -> str:
    """A text that every tokenizer can read: lone surrogates, which are no characters, become question marks."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def of_length_one(vectors: npt.NDArray[Any], name: str) -> Vectors:
    """Vectors divided by their lengths, [n, dimension]; zero stays zero.

    Args:
        vectors: Any, [n, dimension].
        name: The embedder they come from, for the message.

    Raises:
        BankError: A vector is not finite, and has no direction.
    """
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        bad = int((~np.isfinite(lengths)).sum())
        raise BankError(
            f"{name}: expected finite vectors, found {bad} of {len(exact)} that are not; check the model's weights"
        )
    unit: Vectors = (exact / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit
