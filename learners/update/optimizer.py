"""AdamW over float32 weights, whatever format the policy computes in and wherever it is.

A weight in bfloat16 has eight significant bits: a step of less than about 1/512 of its size, as nearly all are at the
learning rates of reinforcement learning, would leave it as it is. So the optimiser has a float32 copy of each trained weight
(the *master*), which takes the step; the policy gets it back rounded, and small steps add up until the rounded weight moves.

Masters, and the two moments that AdamW keeps of each, are 12 bytes a trained weight: more than the policy itself. They may
live in the machine's memory instead of the GPU's. Gradients are then copied there, the step is taken there, and the rounded
weights are copied back, some tensors at a time, so that copies go on while the processor computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

_CHUNK = 1 << 24  # gradients of so many weights are float32 at once (64 MiB); a single tensor may have more

_Pair = tuple[torch.Tensor, torch.Tensor]  # of a parameter and its master


def open_optimizer(
    parameters: Iterable[torch.nn.Parameter], *, weight_decay: float, device: torch.device | None = None
) -> torch.optim.AdamW:
    """AdamW for some parameters.

    Args:
        parameters: What is trained.
        weight_decay: AdamW's.
        device: Where its state is to be, and the step taken; default: where the parameters are.

    Returns:
        PyTorch's AdamW over the parameters themselves where they are float32 and already there, else `MasterAdamW`.
    """
    trained = list(parameters)
    there = all(device is None or parameter.device.type == device.type for parameter in trained)
    if there and all(parameter.dtype == torch.float32 for parameter in trained):
        return torch.optim.AdamW(trained, weight_decay=weight_decay)
    return MasterAdamW(trained, weight_decay=weight_decay, device=device)


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose own parameters are the masters of others; see the module.

    Learning rates are set in ``param_groups`` as ever. Gradients are read from the parameters as they stand at `step`,
    clipped or not. The state is complete, masters included.

    Args:
        parameters: What is trained, of any floating format and on any device.
        weight_decay: AdamW's.
        device: Where masters and moments are, and the step is taken; default: where each parameter is.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], *, weight_decay: float, device: torch.device | None = None
    ) -> None:
        self._trained: list[torch.Tensor] = list(parameters)
        self._masters = [
            parameter.detach().to(device or parameter.device, torch.float32, copy=True) for parameter in self._trained
        ]
        super().__init__(self._masters, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes a step, and gives the parameters their new values.

        Args:
            closure: Must be None: gradients are those that the parameters have.
        """
        if closure is not None:
            raise ValueError("closure: expected none, since gradients are read from the parameters")
        for pairs, gradients, arrived in _ahead(map(_fetched, self._chunks())):
            if arrived is not None:
                arrived.synchronize()
            for (_, master), gradient in zip(pairs, gradients, strict=True):
                master.grad = gradient.float()
            super().step()
            for (parameter, master), gradient in zip(pairs, gradients, strict=True):
                master.grad = None
                if arrived is None:
                    parameter.copy_(master)
                else:  # rounded into the pinned memory that the gradient came in, so that the way back is asynchronous too
                    parameter.copy_(gradient.copy_(master), non_blocking=True)

    def take_over(
        self, now: Mapping[torch.Tensor, torch.Tensor], part: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> dict[torch.Tensor, torch.Tensor]:
        """Goes on with other parameters, and with their parts of the masters.

        Args:
            now: What is trained from now on in place of each parameter.
            part: Of a tensor as large as the parameter was, what belongs to the parameter in its place.

        Returns:
            What is in place of each master. ``param_groups`` and ``state`` are the caller's to change.
        """
        trained = [now[parameter] for parameter in self._trained]
        masters = [part(master, parameter) for master, parameter in zip(self._masters, trained, strict=True)]
        replaced = dict(zip(self._masters, masters, strict=True))
        self._trained, self._masters = trained, masters
        return replaced

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of the parameters."""
        for parameter in self._trained:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, and under ``masters`` the masters in the order of the parameters."""
        return {**super().state_dict(), "masters": list(self._masters)}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave, masters included; the parameters are left as they are.

        Raises:
            ValueError: It is the state of another optimiser; nothing was changed then.
        """
        masters = state_dict.get("masters")
        expected = [tuple(master.shape) for master in self._masters]
        found = None if masters is None else [tuple(master.shape) for master in masters]
        if masters is None or found != expected:
            kinds = "none" if found is None else f"{len(found)}, or of other shapes"
            raise ValueError(f"expected {len(expected)} float32 masters, found {kinds}")
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "masters"})
        for master, saved in zip(self._masters, masters, strict=True):
            master.copy_(saved)

    def _chunks(self) -> Iterator[list[_Pair]]:
        """The parameters that have gradients, some at a time."""
        chunk: list[_Pair] = []
        size = 0
        for parameter, master in zip(self._trained, self._masters, strict=True):
            if parameter.grad is None:
                continue
            if chunk and size + master.numel() > _CHUNK:
                yield chunk
                chunk, size = [], 0
            chunk.append((parameter, master))
            size += master.numel()
        if chunk:
            yield chunk


_Fetched = tuple[list[_Pair], list[torch.Tensor], torch.cuda.Event | None]


def _fetched(pairs: list[_Pair]) -> _Fetched:
    """Some parameters' gradients where their masters are, and what says that they have arrived (None: they have)."""
    gradients = [
        parameter.grad.to(master.device, non_blocking=True)  # from a GPU into pinned memory
        for parameter, master in pairs
        if parameter.grad is not None
    ]
    (parameter, master), *_ = pairs
    if parameter.device.type != "cuda" or master.device.type == "cuda":
        return pairs, gradients, None
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(parameter.device))
    return pairs, gradients, arrived


def _ahead(chunks: Iterator[_Fetched]) -> Iterator[_Fetched]:
    """The same, with the next one always under way."""
    before = next(chunks, None)
    while before is not None:
        following = next(chunks, None)
        yield before
        before = following
