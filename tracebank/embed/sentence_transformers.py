"""Any model of the sentence-transformers library, with the paper's way of cutting and pooling as options.

A model's name does not tell its weights: a folder can be trained again, and a name on a hub can be given new ones. So an
embedder is known by a hash of its files and its options, and a copy in a folder is the same as what it is a copy of.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download

from tracebank.embed.embedder import Vectors
from tracebank.embed.networks import first_line, identify, no_progress_bars, of_length_one, readable
from tracebank.faults import BankError

_POOLING: Mapping[str, str] = MappingProxyType(
    {"mean": "mean", "last": "lasttoken", "cls": "cls"}
)  # as they are called there
_BATCH_TEXTS = 32


class SentenceTransformersEmbedder:
    """A sentence-transformers model, in 32-bit floats and without gradients. Threads take turns.

    Texts are padded on the right and padding is masked, so that no vector depends on the texts beside it: a BERT whose
    batches are padded on the left, as in RAPO's released code, counts its positions from the padding.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        pooling: "mean" over the tokens, "last" or "cls" (the first); by default what the model's own configuration says.
        characters: Only so many characters at a text's end are read; by default all.
        tokens: How many tokens the model reads, the first ones of what ``characters`` left; by default its own limit.
        device: Where it runs; by default the GPU where there is one.

    Raises:
        ValueError: Another pooling, or one for a model that does not simply pool its tokens; more tokens than the model has
            positions for.
        BankError: sentence-transformers is not installed, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        *,
        pooling: str | None = None,
        characters: int | None = None,
        tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        if pooling is not None and pooling not in _POOLING:
            raise ValueError(f"pooling: expected {', '.join(_POOLING)}, found {pooling!r}")
        if characters is not None and characters < 1:
            raise ValueError(f"characters: expected a number from 1, found {characters}")
        self._characters = characters
        self._model = _load(model, device)
        if pooling is not None:
            self._set_pooling(model, pooling)
        if tokens is not None:
            self._set_tokens(model, tokens)
        if getattr(self._model, "tokenizer", None) is not None:
            self._model.tokenizer.padding_side = "right"
        options = {"pooling": pooling, "characters": characters, "tokens": tokens}
        said = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
        said = f"?{said}" if said else ""
        folder = Path(model).expanduser()
        self._name = f"sentence-transformers:{identify(_where(model))}{said}"
        self._spec = f"sentence-transformers:{folder.resolve() if folder.is_dir() else model}{said}"
        self._dimension = self._model.get_embedding_dimension()
        self._turn = threading.Lock()

    def _set_pooling(self, name: str, pooling: str) -> None:
        modules = list(self._model)
        kinds = [type(module).__name__ for module in modules]
        if kinds[1:] not in (["Pooling"], ["Pooling", "Normalize"]):
            raise ValueError(
                f"{name}: pooling can be chosen for a transformer whose tokens are pooled, found {', '.join(kinds)}"
            )
        before = modules[1]
        self._model[1] = type(before)(before.embedding_dimension, _POOLING[pooling], before.include_prompt)

    def _set_tokens(self, name: str, tokens: int) -> None:
        config = getattr(self._model, "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        if tokens < 1 or (positions is not None and tokens > positions):
            raise ValueError(f"tokens: expected a number from 1 to the {positions} positions of {name}, found {tokens}")
        self._model.max_seq_length = tokens

    @property
    def name(self) -> str:
        """A hash of the model's files, wherever they are, and the options."""
        return self._name

    @property
    def spec(self) -> str:
        """Model and options, without the device."""
        return self._spec

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self._dimension)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, [n, dimension], each of length one; zero for a text that is blank."""
        shown = [readable(text if self._characters is None else text[-self._characters :]) for text in texts]
        there = [number for number, text in enumerate(shown) if text.strip()]
        vectors = np.zeros((len(shown), self.dimension), np.float32)
        if there:
            with self._turn:
                vectors[there] = self._model.encode(  # puts texts of like length together
                    [shown[number] for number in there], batch_size=_BATCH_TEXTS, show_progress_bar=False
                )
        return of_length_one(vectors, self.name)


def _load(model: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer  # an extra, which takes seconds to load
    except ImportError as error:
        raise BankError(
            f"sentence-transformers:{model}: expected the package sentence-transformers, found {first_line(error)}; "
            "pip install 'agent-envs[embedders]'"
        ) from error
    folder = Path(model).expanduser()
    try:
        with no_progress_bars():
            loaded = SentenceTransformer(
                str(folder) if folder.is_dir() else model, device=device, model_kwargs={"dtype": torch.float32}
            )
    except Exception as error:  # whatever a missing or damaged model makes these libraries raise
        raise BankError(
            f"sentence-transformers:{model}: expected a folder or a name on the hub that can be loaded, found "
            f"{first_line(error)}; without a network, download the model first and give its folder"
        ) from error
    return loaded.float().eval().requires_grad_(False)


def _where(model: str) -> Path:
    """The folder that a model was loaded from: its own, or the hub's cache."""
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else Path(snapshot_download(model, local_files_only=True))
