"""The optimiser: float32 AdamW whatever the weights' format, steps too small for bfloat16, a state that is complete."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from policies import random_policy

from learners.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from learners.update import optimizer as module
from learners.update.optimizer import MasterAdamW, open_optimizer

SHAPES = ((7, 5), (3,), (4, 4), (1,))


def parameters(seed: int, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw).to(device, dtype)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter], which: range, rate: float = 1e-2) -> None:
    """Optimiser steps, each with gradients of its own."""
    for step in which:
        draw = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for parameter in trained:
            drawn = torch.randn(parameter.shape, generator=draw).bfloat16()  # the same in whatever format
            parameter.grad = drawn.to(parameter.device, parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] = rate * (step + 1)
        optimizer.step()


def test_steps_that_bfloat16_would_lose_add_up():
    """With a gradient that never changes every step of Adam's is the learning rate, here a millionth of the weight; float32
    makes 17 · 2⁻²⁴ of it. Between 0.5 and 1 bfloat16 has a number every 2⁻⁸: after 2100 steps the one below 1 is nearest."""
    plain, ours = (torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    without = torch.optim.AdamW([plain], lr=1e-6, weight_decay=0.0)
    kept = open_optimizer([ours], weight_decay=0.0)
    kept.param_groups[0]["lr"] = 1e-6
    for step in range(2100):
        for parameter, optimizer in ((plain, without), (ours, kept)):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        if step == 0:
            assert (ours == 1.0).all()  # not yet
    assert (plain == 1.0).all()  # never
    assert (ours == 1.0 - 2.0**-8).all()
    (master,) = kept.state_dict()["masters"]
    assert master.tolist() == pytest.approx([1 - 2100 * 17 * 2.0**-24] * 3, abs=1e-6)


def test_it_is_adamw_over_float32_weights():
    ours, theirs = parameters(0), [torch.nn.Parameter(p.detach().float()) for p in parameters(0)]
    optimizer = open_optimizer(ours, weight_decay=0.1)
    assert isinstance(optimizer, MasterAdamW)
    steps(optimizer, ours, range(12))
    steps(torch.optim.AdamW(theirs, weight_decay=0.1), theirs, range(12))
    for master, expected, parameter in zip(optimizer.state_dict()["masters"], theirs, ours, strict=True):
        torch.testing.assert_close(master, expected.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(parameter, master.bfloat16())


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_float32_weights_have_pytorchs_own_adamw(device):
    ours, theirs = parameters(1, torch.float32), parameters(1, torch.float32)
    optimizer, plain = open_optimizer(ours, weight_decay=0.1, device=device), torch.optim.AdamW(theirs, weight_decay=0.1)
    assert type(optimizer) is torch.optim.AdamW
    steps(optimizer, ours, range(5))
    steps(plain, theirs, range(5))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    files = [io.BytesIO(), io.BytesIO()]
    for file, state in zip(files, (optimizer.state_dict(), plain.state_dict()), strict=True):
        torch.save(state, file)
    assert files[0].getvalue() == files[1].getvalue()


def test_some_tensors_at_a_time_change_nothing(monkeypatch):
    whole, cut = parameters(2), parameters(2)
    steps(open_optimizer(whole, weight_decay=0.0), whole, range(6))
    monkeypatch.setattr(module, "_CHUNK", 10)  # less than the largest tensor
    steps(open_optimizer(cut, weight_decay=0.0), cut, range(6))
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_gradients_are_those_that_stand_there_and_stay():
    """Clipped ones, and none: what has no gradient is left alone."""
    (first, second, *_), (lone, *_) = (ours := parameters(3)), (others := parameters(3))
    for trained in (ours, others):
        optimizer = open_optimizer(trained, weight_decay=0.5)
        trained[0].grad = torch.full_like(trained[0], 3.0)
        if trained is ours:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
        else:
            trained[0].grad = torch.full_like(trained[0], 1 / 35**0.5)
        before = trained[0].grad.clone()
        optimizer.param_groups[0]["eps"] = 1.0  # or Adam's step would not depend on the gradient's size
        optimizer.step()
        assert torch.equal(trained[0].grad, before)
    torch.testing.assert_close(first, lone, rtol=2e-2, atol=0)
    assert torch.equal(second, parameters(3)[1])
    optimizer.zero_grad()
    assert others[0].grad is None


def test_a_loaded_state_goes_on_bit_for_bit():
    ours, again = parameters(4), parameters(5)
    optimizer = open_optimizer(ours, weight_decay=0.1)
    steps(optimizer, ours, range(3), rate=1e-4)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in ours]}, file)
    steps(optimizer, ours, range(3, 9), rate=1e-4)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = open_optimizer(again, weight_decay=0.1)
    resumed.load_state_dict(saved["optimizer"])
    with torch.no_grad():
        for parameter, weight in zip(again, saved["weights"], strict=True):
            parameter.copy_(weight)
    steps(resumed, again, range(3, 9), rate=1e-4)
    ends = (optimizer.state_dict()["masters"] + ours, resumed.state_dict()["masters"] + again)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    assert not torch.equal(optimizer.state_dict()["masters"][0], ours[0].float())  # more than the weights hold


def test_a_state_of_another_optimiser_is_refused_and_nothing_changed():
    ours = parameters(6)
    optimizer = open_optimizer(ours, weight_decay=0.1)
    before = [master.clone() for master in optimizer.state_dict()["masters"]]
    plain = torch.optim.AdamW(parameters(6, torch.float32))
    fewer = open_optimizer(parameters(6)[1:], weight_decay=0.1)
    for other in (plain, fewer):
        with pytest.raises(ValueError, match="expected 4 float32 masters, found"):
            optimizer.load_state_dict(other.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(before, optimizer.state_dict()["masters"], strict=True))
    with pytest.raises(ValueError, match="closure: expected none"):
        optimizer.step(lambda: 0.0)


def test_a_bfloat16_policy_resumes_with_its_masters(tmp_path: Path):
    policies = [random_policy(seed=seed).to(torch.bfloat16) for seed in (0, 1)]
    optimizers = [open_optimizer(model.parameters(), weight_decay=0.0) for model in policies]
    steps(optimizers[0], list(policies[0].parameters()), range(2), rate=1e-5)
    path = save_checkpoint(tmp_path, 2, model=policies[0], optimizer=optimizers[0], trainer_state={})
    load_checkpoint(path, policies[1], optimizers[1])
    for model, optimizer in zip(policies, optimizers, strict=True):
        steps(optimizer, list(model.parameters()), range(2, 4), rate=1e-5)
    for one, other in zip(*(optimizer.state_dict()["masters"] for optimizer in optimizers), strict=True):
        assert torch.equal(one, other)
    plain = torch.optim.AdamW(policies[1].parameters())
    with pytest.raises(CheckpointError, match="float32 masters, found none"):
        load_checkpoint(
            save_checkpoint(tmp_path, 3, model=policies[1], optimizer=plain, trainer_state={}), policies[0], optimizers[0]
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_in_the_machines_memory_is_the_gpus(dtype, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    monkeypatch.setattr(module, "_CHUNK", 10)
    ours, theirs = parameters(7, dtype, "cuda"), [torch.nn.Parameter(p.detach().float()) for p in parameters(7, dtype)]
    optimizer = open_optimizer(ours, weight_decay=0.1, device=torch.device("cpu"))
    assert {master.device.type for master in optimizer.state_dict()["masters"]} == {"cpu"}
    steps(optimizer, ours, range(12))
    steps(torch.optim.AdamW(theirs, weight_decay=0.1), theirs, range(12))
    for master, expected, parameter in zip(optimizer.state_dict()["masters"], theirs, ours, strict=True):
        torch.testing.assert_close(master, expected.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(parameter.cpu(), master.to(dtype))
