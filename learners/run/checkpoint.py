"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A checkpoint is a folder ``step_NNNNNN`` with the model as `transformers` saves it (so that ``from_pretrained`` reads it, and
a server of models too), or with its adapters alone as peft saves them, the optimiser's state, the trainer's own state as
JSON, and a manifest with the size and checksum of every file; where a batch was in flight (`learners.run.overlap`), also
with the weights that this one is sampled from. It is written under another name, put safely on the disk and only then
renamed, so that whatever is called ``step_NNNNNN`` is whole: a run may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from learners.sampling.progress_bars import no_progress_bars
from learners.update.adapters import ADAPTER_CONFIG, adapted_layers, read_adapters, save_adapters
from learners.update.sharding import whole
from learners.update.world import ALONE, World

_FINISHED = re.compile(r"step_(\d{6,})")
_UNFINISHED = "unfinished_"
_MANIFEST, _OPTIMIZER, _TRAINER = "manifest.json", "optimizer.pt", "trainer.json"
_IN_FLIGHT = "in_flight.pt"  # no .safetensors: servers of models take every file of that kind for the model's


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded. The message names the file and what is wrong with it."""


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    trainer_state: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    in_flight: Mapping[str, torch.Tensor] | None = None,
    keep: int = 2,
    world: World = ALONE,
) -> Path:
    """Saves a run.

    Args:
        folder: Where the checkpoints of the run are; it is made when there is none.
        step: Updates made so far.
        model: The policy, with parameters of one number format or with adapters, which are then all that is saved of it.
        optimizer: Its optimiser.
        trainer_state: Whatever else the trainer goes on from: JSON values that come back as they are (no tuples, keys that
            are text, finite numbers).
        tokenizer: Saved beside the model, so that the folder is a complete model.
        in_flight: The weights that the batch in flight is sampled from, if any, by name.
        keep: How many of the newest checkpoints stay; older ones are removed.
        world: The processes of the run, all of which must call it; the first one writes what all have, as one alone would.

    Returns:
        The folder of the checkpoint, ``folder/step_NNNNNN``.

    Raises:
        FileExistsError: There is a checkpoint of this step.
        ValueError: A state that would not come back as it is.
    """
    final = folder / f"step_{step:06d}"
    if final.exists():
        raise FileExistsError(f"{final} exists already: every step has one checkpoint")
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, found {keep}")
    state = _as_json(trainer_state)
    adapters_alone = bool(adapted_layers(model))
    formats = sorted({str(parameter.dtype) for parameter in model.parameters()})
    if len(formats) > 1 and not adapters_alone:  # from_pretrained would cast all of them to one
        raise ValueError(f"model: expected parameters of one number format, found {', '.join(formats)}")
    weights = None if adapters_alone else whole(model.state_dict(keep_vars=True), world)
    moments = whole(optimizer.state_dict(), world)
    if world.first:
        _write(folder, final, model, weights, moments, state, tokenizer, in_flight, keep)
    world.barrier()
    return final


def _write(
    folder: Path,
    final: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor] | None,
    moments: dict[str, Any],
    state: str,
    tokenizer: PreTrainedTokenizerBase | None,
    in_flight: Mapping[str, torch.Tensor] | None,
    keep: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    unfinished = folder / f"{_UNFINISHED}{final.name}"
    with no_progress_bars():
        if weights is None:
            save_adapters(model, unfinished)
        else:
            model.save_pretrained(unfinished, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
    torch.save(moments, unfinished / _OPTIMIZER)
    if in_flight is not None:
        torch.save(dict(in_flight), unfinished / _IN_FLIGHT)
    (unfinished / _TRAINER).write_text(state)
    paths = sorted(unfinished.rglob("*"))
    files = {str(path.relative_to(unfinished)): _fingerprint(path) for path in paths if path.is_file()}
    (unfinished / _MANIFEST).write_text(json.dumps({"version": 1, "files": files}, indent=1))
    for path in unfinished.rglob("*"):
        _to_disk(path)
    _to_disk(unfinished)
    os.rename(unfinished, final)
    _to_disk(folder)
    for _, old in _finished(folder)[:-keep]:
        os.rename(old, folder / f"{_UNFINISHED}{old.name}")  # half removed, it must not look whole
    _remove_unfinished(folder)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, or None where there is none; clears away what a kill left unfinished.

    Args:
        folder: Where the checkpoints of the run are. No other process may be saving there.
    """
    if not folder.is_dir():
        return None
    _remove_unfinished(folder)
    finished = _finished(folder)
    return finished[-1][1] if finished else None


def load_checkpoint(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts a saved run back, bit for bit.

    Args:
        path: The folder of the checkpoint.
        model: A policy of the same architecture and number format, changed in place. One with adapters is the one that these
            were trained on.
        optimizer: An optimiser over its parameters, changed in place.

    Returns:
        The trainer's state.

    Raises:
        CheckpointError: A damaged or incomplete checkpoint, or one of another model or optimiser; nothing was changed then.
    """
    _verify(path, ADAPTER_CONFIG if adapted_layers(model) else "config.json")
    state: dict[str, Any] = json.loads((path / _TRAINER).read_text())
    optimizer_state = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
    present, weights = read_adapters(model, path) if adapted_layers(model) else _read_model(model, path)
    for name in sorted(weights.keys() | present.keys()):
        expected, found = (_kind(tensors.get(name)) for tensors in (present, weights))
        if expected != found:
            raise CheckpointError(f"{path}: expected the model in training, whose {name} is {expected}, found {found}")
    try:
        optimizer.load_state_dict(optimizer_state)
    except ValueError as error:
        raise CheckpointError(f"{path / _OPTIMIZER}: expected the state of this optimiser, found another: {error}") from None
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(weights[name])
    return state


def load_in_flight(path: Path) -> dict[str, torch.Tensor]:
    """The weights that the batch in flight was being sampled from, by name, on the CPU.

    Args:
        path: The folder of a checkpoint that `load_checkpoint` has found to be whole.

    Raises:
        CheckpointError: No batch was in flight when it was saved.
    """
    if not (path / _IN_FLIGHT).is_file():
        raise CheckpointError(
            f"{path / _IN_FLIGHT}: expected the weights that the batch in flight is sampled from, found none"
        )
    weights: dict[str, torch.Tensor] = torch.load(path / _IN_FLIGHT, map_location="cpu", weights_only=True)
    return weights


def _read_model(model: PreTrainedModel, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model's own weights and those of a checkpoint, by their names."""
    with no_progress_bars():
        loaded: Any = type(model).from_pretrained(path, dtype=model.dtype, local_files_only=True, output_loading_info=True)
    saved, problems = loaded
    if any(problems.values()):
        raise CheckpointError(f"{path}: expected the weights of a {type(model).__name__}, found others: {problems}")
    return model.state_dict(), saved.state_dict()


def _as_json(state: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(state), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"trainer_state: expected JSON values, found others: {error}") from None
    again = json.loads(text)
    for key, value in state.items():
        if key not in again or again[key] != value:
            raise ValueError(f"trainer_state[{key!r}]: expected JSON values, found {value!r}, which comes back otherwise")
    return text


def _verify(path: Path, config: str) -> None:
    """Raises unless every file of a checkpoint is what was written, and a configuration of this name is among them."""
    advice = "the checkpoint is damaged: remove it and resume from the one before it"
    try:
        files = json.loads((path / _MANIFEST).read_text())["files"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path / _MANIFEST}: expected the manifest of a checkpoint, found none ({error!r})") from None
    for name in {_OPTIMIZER, _TRAINER, config} - files.keys():
        raise CheckpointError(f"{path / _MANIFEST}: expected {name} among its files, found none; {advice}")
    for name, written in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: expected this file, found none; {advice}")
        found = _fingerprint(path / name)
        if found != written:
            raise CheckpointError(f"{path / name}: expected {written}, found {found}; {advice}")


def _fingerprint(path: Path) -> dict[str, int]:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
        return {"bytes": file.tell(), "crc32": checksum}


def _finished(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder, oldest first."""
    matches = [(_FINISHED.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def _to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kind(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}"
