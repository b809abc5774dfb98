"""A language model's own view of a text: the last hidden state of a frozen checkpoint.

What a policy has learned to tell apart, its hidden states tell apart too. The checkpoint is a folder as `transformers` saves
one; each of a run's ``checkpoints/step_NNNNNN`` is. It is known by a hash of its files and not by where it lies, so that a
bank can move with its checkpoint, and is never asked through the weights of another step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from tracebank.embed.embedder import Vectors
from tracebank.embed.networks import first_line, identify, no_progress_bars, of_length_one, readable
from tracebank.faults import BankError

Pooling = Literal["mean", "last"]

TOKENS = 1024
"""How many tokens of a text are read where nobody says otherwise and the model can read so many."""

_BATCH_TOKENS, _BATCH_TEXTS = 8192, 64


class PolicyEmbedder:
    """The last hidden state of a causal language model, in 32-bit floats and without gradients.

    A text is read as it is, without a chat template or added tokens. Threads take turns.

    Args:
        folder: The checkpoint.
        pooling: "mean" over the tokens, or the "last" of them, the only one that has seen all others.
        tokens: How many tokens are read, the last ones of a longer text; by default 1,024, or as many as the model can.
        device: Where it runs; by default the GPU where there is one.

    Raises:
        ValueError: Another pooling, or more tokens than the model can read.
        BankError: The folder holds no such checkpoint, or one that cannot be loaded.
    """

    def __init__(
        self, folder: str | Path, *, pooling: str = "mean", tokens: int | None = None, device: str | None = None
    ) -> None:
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling: expected {' or '.join(get_args(Pooling))}, found {pooling!r}")
        self._folder = Path(folder).expanduser().resolve()
        self._pooling = pooling
        identity = identify(self._folder)
        try:
            with no_progress_bars():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
                model: Any = AutoModel.from_pretrained(self._folder, dtype=torch.float32, local_files_only=True)
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model = model.to(self._device).eval().requires_grad_(False)
        except Exception as error:  # whatever a damaged file makes these libraries raise
            raise BankError(
                f"{self._folder}: expected a language model that transformers can load, found {first_line(error)}"
            ) from error
        context = int(getattr(self._model.config, "max_position_embeddings", None) or TOKENS)
        self._tokens = min(TOKENS, context) if tokens is None else tokens
        if not 1 <= self._tokens <= context:
            raise ValueError(f"tokens: expected a number from 1 to the model's {context}, found {tokens}")
        self._name = f"policy:{identity}?{self._options}"
        self._turn = threading.Lock()

    @property
    def _options(self) -> str:
        return f"pooling={self._pooling}&tokens={self._tokens}"

    @property
    def name(self) -> str:
        """A hash of the checkpoint's weights, shape and tokenizer, and the options."""
        return self._name

    @property
    def spec(self) -> str:
        """The folder and the options."""
        return f"policy:{self._folder}?{self._options}"

    @property
    def dimension(self) -> int:
        """The model's hidden size."""
        return int(self._model.config.hidden_size)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, [n, dimension], each of length one; zero for a text that is blank."""
        with self._turn:
            rows = [self._read(text) for text in texts]
            vectors = np.zeros((len(rows), self.dimension), np.float32)
            for batch in _batches([len(row) for row in rows]):
                vectors[batch] = self._pool([rows[number] for number in batch])
        return of_length_one(vectors, self.name)

    def _read(self, text: str) -> list[int]:
        if not text.strip():
            return []
        ids: list[int] = self._tokenizer(readable(text), add_special_tokens=False, verbose=False)["input_ids"]
        return ids[-self._tokens :]

    @torch.inference_mode()
    def _pool(self, rows: list[list[int]]) -> Vectors:
        """One vector for each row of token ids, [rows, dimension].

        Padding is on the right, where no token of a causal model looks, and is left out of what is pooled.
        """
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)  # any id will do for padding
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        shown = {"input_ids": ids.to(self._device), "attention_mask": mask.long().to(self._device)}
        hidden = self._model(**shown, use_cache=False).last_hidden_state.cpu()
        if self._pooling == "last":
            pooled = hidden[torch.arange(len(rows)), lengths - 1]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / lengths[:, None]
        vectors: Vectors = pooled.numpy()
        return vectors


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of like length, the longest first; texts without tokens are in none."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if lengths[number] == 0:
            break
        if batch and (len(batch) == _BATCH_TEXTS or (len(batch) + 1) * lengths[batch[0]] > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
