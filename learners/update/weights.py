"""A policy's weights, as whoever samples from it with weights of his own has to have them.

Training may keep them otherwise: frozen, with adapters beside them, or in parts that several processes have. This is the one
place that puts them together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from learners.update.adapters import ADAPTERS, adapted_layers


def sampling_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that a policy computes with, each under the name that it has in the model as it was loaded.

    Adapters are merged: W + (α / R) B A, summed in float32 and rounded to the format of W. A merged weight is made when it
    is asked for, so that whoever takes one after the other never has all of them. So is one that is spread over processes
    (`learners.update.sharding`), by all of them at once: all must go through to the end.

    Args:
        model: The policy in training.

    Yields:
        Name and weight; without gradients, and where nothing is put together the very memory of the parameter.
    """
    layers = adapted_layers(model)
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".base_layer.")
        if owner in layers and kind == "weight":
            with torch.no_grad():
                yield f"{owner}.weight", (parameter.float() + layers[owner].get_delta_weight(ADAPTERS)).to(parameter.dtype)
        elif owner in layers:
            yield f"{owner}.{kind}", parameter
        elif not any(part in name for part in (".lora_A.", ".lora_B.")):
            weight = parameter.detach()
            yield name, weight.full_tensor() if isinstance(weight, DTensor) else parameter


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A policy of its own with the same weights and no adapters, which are merged; names are those of `sampling_weights`."""
    plain = copy.deepcopy(model)
    for name, layer in adapted_layers(plain).items():
        plain.set_submodule(name, layer.get_base_layer())
    with torch.no_grad():
        own = dict(plain.named_parameters())
        for name, weight in sampling_weights(model):
            own[name].copy_(weight)
    return plain.requires_grad_(True)
