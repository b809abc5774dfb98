"""A policy that is spread over the processes of a run, and put together again.

`shard` leaves each process its part of every parameter, gradient and moment (FSDP2, `torch.distributed.fsdp.fully_shard`):
a layer is whole only while it computes. `whole` and `learners.update.weights` gather tensors again, one at a time, for
checkpoints and samplers. In a world of one nothing is sharded, and there is nothing to gather.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from learners.update.optimizer import MasterAdamW
from learners.update.world import World


def shard(
    model: PreTrainedModel, world: World, device: torch.device, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Spreads a model over the processes, in place, and moves it to their devices; alone, there is nothing to do.

    Layers are made whole one by one, forward and again backward. Gradients are summed over the processes, since a loss is
    normalised over the mini-batch and not over one process's part of it, in 32 bits whatever the parameters have.

    Args:
        model: The same on every process, whole.
        world: The processes.
        device: What kind of device they compute on.
        optimizer: Goes over to the parameters' shards, with what it knows of them.
    """
    if world.size == 1:
        return
    before = list(model.named_parameters())
    mesh = init_device_mesh(device.type, (world.size,))
    layers = set(model._no_split_modules or ())
    for part in (*(module for module in model.modules() if type(module).__name__ in layers), model):
        # The outermost part, with the embeddings and what shares their weights, is put away after a forward pass as well:
        # between two passes there are then shards and nothing else, which is what everybody may read.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction that does not divide
    if optimizer is not None:
        now = dict(model.named_parameters())
        _move(optimizer, {parameter: now[name] for name, parameter in before})


def _move(optimizer: torch.optim.Optimizer, now: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Has an optimiser go on with the shards of its parameters, and with those of what is as large as they are."""
    if isinstance(optimizer, MasterAdamW):
        now = optimizer.take_over(now, _part)
    for group in optimizer.param_groups:
        group["params"] = [now[parameter] for parameter in group["params"]]
    for parameter in list(optimizer.state):
        new, state = now[parameter], optimizer.state.pop(parameter)
        optimizer.state[new] = {name: _part(value, new) for name, value in state.items()}
        if optimizer.defaults["fused"]:  # which counts its steps where the parameter is
            optimizer.state[new]["step"] = state["step"].to(new.device)


def _part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of what belongs to a parameter; what does not, such as a count of steps, is everybody's."""
    if value.shape != like.shape or not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def whole(value: Any, world: World) -> Any:
    """A state of model or optimiser with its shards put together, in the memory of the first process's machine.

    Args:
        value: Mappings and lists of tensors and other things. All processes must call it with the same.
        world: The processes.

    Returns:
        For the first process the same, without gradients, a shared tensor shared still; for the others, None in place of
        what was sharded.
    """
    found: dict[int, torch.Tensor | None] = {}  # by what was put together

    def together(each: Any) -> Any:
        if isinstance(each, DTensor):
            if id(each) not in found:
                full = each.full_tensor()
                found[id(each)] = full.detach().cpu() if world.first else None
            return found[id(each)]
        if isinstance(each, torch.Tensor):
            return each.detach()
        if isinstance(each, Mapping):
            return {key: together(one) for key, one in each.items()}
        if isinstance(each, list | tuple):
            return type(each)(together(one) for one in each)
        return each

    return together(value)


def norm_of(value: torch.Tensor) -> float:
    """A norm as a number, whether it is of whole tensors or of shards."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
