"""Activations that are computed again instead of kept (gradient checkpointing; Chen et al. 2016, arXiv 1604.06174).

A backward pass needs what every layer computed on the way forward. Kept, that is most of an update's memory beside the
weights; with this only each layer's input is, and the layer is computed once more when its gradient is due: about a third
more arithmetic, the same gradients.

transformers has this as a switch of training mode, which this project never uses: dropout stays off, so that the trainer's
probabilities are the sampler's. So it is switched on here, for a policy in evaluation mode, around an update and nowhere
else: what samples between two updates pays nothing and keeps its caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def recomputable_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a model that may be computed again: those that transformers itself would."""
    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]


@contextmanager
def recomputation(model: torch.nn.Module) -> Iterator[None]:
    """Has a model keep no activations within its layers, until the end of the backward pass.

    Raises:
        ValueError: A model without such layers.
    """
    layers = recomputable_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers whose activations could be computed again")
    for layer in layers:
        # Nothing is drawn in evaluation mode, so no generator's state has to be kept.
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = again
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
