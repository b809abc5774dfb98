"""Group advantages against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.update.advantages import group_advantages

returns = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=16)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([6, 3], [1.5, -1.5]),
        ([9, 12], [-1.5, 1.5]),
        ([1, 1, 0], [1 / 3, 1 / 3, -2 / 3]),
        ([1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_without_the_scale_it_is_the_distance_from_the_mean(group: list[float], expected: list[float]) -> None:
    found = group_advantages(torch.tensor(group, dtype=torch.float64), scale_by_std=False)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("group", "std"),
    [
        ([6, 3], 3 / math.sqrt(2)),  # ((1.5² + 1.5²) / 1)^½
        ([1, 1, 0], math.sqrt(1 / 3)),  # ((1/9 + 1/9 + 4/9) / 2)^½
        ([0, 0, 0, 2], 1.0),  # ((3 · 1/4 + 9/4) / 3)^½
        ([1, 2, 3, 4, 5], math.sqrt(2.5)),  # ((4 + 1 + 0 + 1 + 4) / 4)^½
    ],
)
@pytest.mark.parametrize("eps", [1e-6, 1e-4])
def test_the_scale_is_the_unbiased_standard_deviation_plus_eps(group: list[float], std: float, eps: float) -> None:
    mean = sum(group) / len(group)
    expected = torch.tensor([(value - mean) / (std + eps) for value in group], dtype=torch.float64)
    found = group_advantages(torch.tensor(group, dtype=torch.float64), eps=eps)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_eps_is_a_millionth_by_default() -> None:
    found = group_advantages(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert found[0].item() == pytest.approx(1 / (math.sqrt(2) + 1e-6), rel=1e-14)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("group", [[0.7], [0.1] * 3, [1.1] * 7, [-0.3] * 16, []])
def test_a_group_that_says_nothing_has_advantages_of_exactly_zero(group: list[float], scale: bool) -> None:
    found = group_advantages(torch.tensor(group, dtype=torch.float32), scale_by_std=scale)
    assert found.tolist() == [0.0] * len(group)


@given(returns)
def test_advantages_have_mean_zero_and_keep_the_order(group: list[float]) -> None:
    tensor = torch.tensor(group, dtype=torch.float64)
    found = group_advantages(tensor)
    assert abs(found.sum().item()) < 1e-6
    for i in range(len(group)):
        for j in range(len(group)):
            if group[i] > group[j] + 1e-6:
                assert found[i] > found[j]


@given(returns, st.floats(-5, 5), st.floats(0.1, 5))
def test_shifting_returns_changes_nothing_and_scaling_them_cancels(group: list[float], shift: float, scale: float) -> None:
    tensor = torch.tensor(group, dtype=torch.float64)
    if tensor.std() < 1e-3:
        return
    moved = group_advantages(tensor * scale + shift, eps=0.0)
    torch.testing.assert_close(moved, group_advantages(tensor, eps=0.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.tensor([1, 2]), torch.zeros(2, 2), torch.tensor(1.0)])
def test_something_else_than_one_group_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected the floating point returns of one group"):
        group_advantages(bad)


def test_a_fault_is_no_return() -> None:
    with pytest.raises(ValueError, match="expected finite numbers, found"):
        group_advantages(torch.tensor([1.0, math.nan]))
