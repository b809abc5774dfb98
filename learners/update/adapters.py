"""Adapters: low-rank corrections of a policy's linear layers, which are trained in place of its weights.

LoRA (Hu et al. 2021, arXiv 2106.09685): a layer computes W x + (α / R) B A x. W is frozen, in the number format of the
policy; A [R, in] and B [out, R] are float32. A is drawn, B begins at 0, so that a policy with new adapters is the policy
without; and so the policy that a run began with is always at hand, as the one with its adapters switched off.

Linear layers are modules with one matrix each. The experts of a mixture, which transformers keeps as parameters with three
dimensions, are none, and stay frozen.

The layers are peft's (`peft.tuners.lora`), put into the model in place: it stays the class that it was, and whatever reads
its configuration or asks for its embeddings finds them where they were. Its parameters have other names, though:
`learners.update.weights` tells them by the model's own. Files are as peft saves and loads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ADAPTERS = "default"  # what peft calls the adapters of a layer when there are no others
ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every name in peft's files


def add_adapters(model: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> None:
    """Gives every linear layer of a policy but its output head adapters, and freezes all else.

    Args:
        model: The policy, changed in place. Where it was loaded from is what the adapters' files name as their base.
        rank: R.
        alpha: α; what adapters add is multiplied by α / R.
        seed: Of the first A.

    Raises:
        ValueError: It has no such layers, or some that peft gives adapters of another kind.
    """
    names = _linear_layers(model)
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layers that adapters could be added to")
    source = model.name_or_path or ""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # any number does
        target_modules=sorted(names),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(Path(source).resolve()) if source and Path(source).is_dir() else source,
    )
    with torch.random.fork_rng(devices=[]):  # they are drawn on the CPU, wherever the policy is
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTERS)
    config.target_modules = sorted(config.target_modules or ())  # a set by now, of ends of names that tell them from others
    config.target_parameters = None
    expected = {id(tensor) for tensor in _by_peft_names(model).values()}
    if set(adapted_layers(model)) != names or {id(parameter) for parameter in trained(model)} != expected:
        raise ValueError(f"peft gives {type(model).__name__} other adapters than those of its linear layers")
    for parameter in trained(model):
        parameter.data = parameter.data.float()


def _linear_layers(model: PreTrainedModel) -> set[str]:
    """The names of the linear layers that get adapters: all but the output head, and those that peft takes for experts.

    Of many mixtures of experts, peft reads the names that the experts' layers had before they became one parameter as that
    parameter's, wherever they stand: asked for a dense layer's or a shared expert's ``gate_proj``, it adapts the experts
    instead. Such layers can be no part of a file that it reads.
    """
    head = model.get_output_embeddings()
    names = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    read = LoraConfig(target_modules=sorted(names))
    convert_peft_config_for_transformers(read, model, None)
    return set(read.target_modules or ())


def adapted_layers(model: torch.nn.Module) -> dict[str, Linear]:
    """The layers with adapters, by the names that they have in the model; none in a policy whose own weights are trained."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that an optimiser changes: the adapters' where there are some, else all."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def without_adapters(model: torch.nn.Module) -> Iterator[None]:
    """Has a policy compute as if it had no adapters, for as long as the context lasts. Not while gradients are taken."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Writes adapters and their configuration into a folder, which `peft.PeftModel.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config[ADAPTERS].save_pretrained(folder)
    tensors = {name: tensor.detach().contiguous() for name, tensor in _by_peft_names(model).items()}
    save_file(tensors, folder / _ADAPTER_WEIGHTS, metadata={"format": "pt"})


def read_adapters(model: PreTrainedModel, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A policy's own adapters and those in a folder, by the names that peft's files have for them."""
    return _by_peft_names(model), load_file(folder / _ADAPTER_WEIGHTS)


def _by_peft_names(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        f"{_PREFIX}{name}.{part}.weight": getattr(layer, part)[ADAPTERS].weight
        for name, layer in adapted_layers(model).items()
        for part in ("lora_A", "lora_B")
    }
