"""Surrogates, the KL penalty and averages against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.update.losses import (
    LOG_RATIO_LIMIT,
    SURROGATES,
    clip_surrogate,
    dual_clip,
    kl_penalty,
    preserving_clip,
    preserving_high_clip,
    token_weights,
    weighted_mean,
)

numbers = st.floats(-30, 30)
token = st.tuples(numbers, st.floats(-3, 3), st.floats(0.5, 2))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a sum of losses with respect to each token's log-ratio."""
    leaf = at.clone().requires_grad_()
    loss(leaf).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


# --- the clipped surrogate ---


def test_published_numbers_of_the_dual_clip() -> None:
    found = dual_clip(tensor(2, 2, 0.5).log(), tensor(2, -2, 2), clip_low=0.2, clip_high=0.2, dual=1.5)
    torch.testing.assert_close(found.loss, tensor(-2.4, 3.0, -1.0))
    assert found.clipped_high.tolist() == [True, True, False]
    assert found.clipped_low.tolist() == [False, False, False]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "low", "high"),
    [
        # Slopes are of the loss in the log-ratio: -r A where the token is not clipped.
        (1.0, 3.0, -3.0, -3.0, False, False),
        (1.0, -3.0, 3.0, 3.0, False, False),
        (1.2, 2.0, -2.4, -2.4, False, False),
        (1.5, 2.0, -2.6, 0.0, False, True),
        (1.5, -2.0, 3.0, 3.0, False, False),
        (0.5, 2.0, -1.0, -1.0, False, False),
        (0.5, -2.0, 1.8, 0.0, True, False),
        (4.0, 0.0, 0.0, 0.0, False, False),
    ],
)
def test_each_region_of_the_clipped_surrogate(
    ratio: float, advantage: float, loss: float, slope: float, low: bool, high: bool
) -> None:
    bounds = {"clip_low": 0.1, "clip_high": 0.3}
    log_ratio, gain = tensor(ratio).log(), tensor(advantage)
    found = clip_surrogate(log_ratio, gain, **bounds)
    assert found.loss.item() == pytest.approx(loss, abs=1e-12)
    assert gradient(lambda x: clip_surrogate(x, gain, **bounds).loss, log_ratio).item() == pytest.approx(slope, abs=1e-12)
    assert (found.clipped_low.item(), found.clipped_high.item()) == (low, high)


def test_the_dual_clip_stops_the_gradient_of_a_runaway_token() -> None:
    log_ratio, advantage = tensor(2.9, 3.1, 3.1, 0.5).log(), tensor(-1, -1, 1, -1)
    found = dual_clip(log_ratio, advantage)
    torch.testing.assert_close(found.loss, tensor(2.9, 3.0, -1.2, 0.8))
    torch.testing.assert_close(gradient(lambda x: dual_clip(x, advantage).loss, log_ratio), tensor(2.9, 0, 0, 0))
    assert found.clipped_high.tolist() == [False, True, True, False]
    assert found.clipped_low.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope", "high_slope"),
    [
        # Beyond 1.3 a good token keeps -1.3 A, below 0.9 a bad one keeps -0.9 A; everywhere else it is the clip's slope.
        (1.0, 3.0, -3.0, -3.0),
        (1.5, 2.0, -2.6, -2.6),
        (9.0, 2.0, -2.6, -2.6),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.8, 0.0),
        (0.01, -2.0, 1.8, 0.0),
        (4.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_tokens_keep_the_gradient_of_the_bound(
    ratio: float, advantage: float, slope: float, high_slope: float
) -> None:
    bounds = {"clip_low": 0.1, "clip_high": 0.3}
    log_ratio, gain = tensor(ratio).log(), tensor(advantage)
    plain = clip_surrogate(log_ratio, gain, **bounds)
    for surrogate, expected in ((preserving_clip, slope), (preserving_high_clip, high_slope)):
        found = surrogate(log_ratio, gain, **bounds)
        assert (found.loss, found.clipped_low, found.clipped_high) == (plain.loss, plain.clipped_low, plain.clipped_high)
        kept = gradient(lambda x, f=surrogate: f(x, gain, **bounds).loss, log_ratio)  # type: ignore[misc]
        assert kept.item() == pytest.approx(expected, abs=1e-12)


@given(st.lists(token, min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_preserving_surrogates_have_the_clips_loss_and_at_most_the_bounds_gradient(
    tokens: list[tuple[float, float, float]], low: float, high: float
) -> None:
    log_ratio, advantage, scale = (tensor(*column) for column in zip(*tokens, strict=True))
    options = {"clip_low": low, "clip_high": high, "ratio_scale": scale}
    plain = clip_surrogate(log_ratio, advantage, **options)  # type: ignore[arg-type]
    within = log_ratio.abs() < LOG_RATIO_LIMIT
    plain_slope = gradient(lambda x: clip_surrogate(x, advantage, **options).loss, log_ratio)  # type: ignore[arg-type]
    for surrogate, keeps_low in ((preserving_clip, 1.0), (preserving_high_clip, 0.0)):
        assert torch.equal(surrogate(log_ratio, advantage, **options).loss, plain.loss)  # type: ignore[operator]
        slope = gradient(lambda x, f=surrogate: f(x, advantage, **options).loss, log_ratio)  # type: ignore[misc]
        expected = torch.where(plain.clipped_high, -(1 + high) * advantage, plain_slope)
        expected = torch.where(plain.clipped_low, -keeps_low * (1 - low) * advantage, expected)
        torch.testing.assert_close(slope[within], expected[within])


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_on_policy_the_loss_is_the_mean_of_minus_the_advantages(surrogate: Any) -> None:
    advantage = tensor(1.5, -0.5, 0.25)
    assert surrogate(torch.zeros(3).double(), advantage).loss.mean().item() == pytest.approx(-1.25 / 3)
    slope = gradient(lambda x: surrogate(x, advantage).loss, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(slope, -advantage)  # the policy gradient


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_the_scale_comes_before_the_clip(surrogate: Any) -> None:
    # 1.1 · 1.15 = 1.265 is above 1.2, 0.9 · 0.95 = 0.855 is not below 0.8, 1.1 · 0.7 = 0.77 is.
    found = surrogate(tensor(1.15, 0.95, 0.7).log(), tensor(1, 1, -1), ratio_scale=tensor(1.1, 0.9, 1.1))
    torch.testing.assert_close(found.loss, tensor(-1.2, -0.855, 0.8))
    assert found.clipped_high.tolist() == [True, False, False]
    assert found.clipped_low.tolist() == [False, False, True]
    same = surrogate(tensor(1.15, 0.95).log(), tensor(1, 1), ratio_scale=1.1)
    torch.testing.assert_close(same.loss, tensor(-1.2, -1.045))


@given(st.lists(token, min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1), st.floats(2.5, 5))
def test_surrogates_equal_their_definition(
    tokens: list[tuple[float, float, float]], low: float, high: float, c: float
) -> None:
    log_ratio, advantage, scale = (tensor(*column) for column in zip(*tokens, strict=True))
    plain = clip_surrogate(log_ratio, advantage, clip_low=low, clip_high=high, ratio_scale=scale)
    dual = dual_clip(log_ratio, advantage, clip_low=low, clip_high=high, ratio_scale=scale, dual=c)
    for i, (x, a, s) in enumerate(tokens):
        ratio = s * math.exp(max(-LOG_RATIO_LIMIT, min(LOG_RATIO_LIMIT, x)))
        objective = min(ratio * a, max(1 - low, min(1 + high, ratio)) * a)
        assert plain.loss[i].item() == pytest.approx(-objective, rel=1e-9, abs=1e-12)
        assert dual.loss[i].item() == pytest.approx(-max(objective, c * a) if a < 0 else -objective, rel=1e-9, abs=1e-12)


@given(st.lists(token, min_size=1, max_size=8))
def test_a_token_has_no_gradient_exactly_where_it_is_clipped(tokens: list[tuple[float, float, float]]) -> None:
    log_ratio, advantage, scale = (tensor(*column) for column in zip(*tokens, strict=True))
    for surrogate in (clip_surrogate, dual_clip):
        found = surrogate(log_ratio, advantage, ratio_scale=scale)
        slope = gradient(lambda x, f=surrogate: f(x, advantage, ratio_scale=scale).loss, log_ratio)  # type: ignore[misc]
        clipped = found.clipped_low | found.clipped_high
        free = ~clipped & (log_ratio.abs() <= LOG_RATIO_LIMIT)
        assert (slope[clipped] == 0).all()
        torch.testing.assert_close(slope[free], (-scale * log_ratio.exp() * advantage)[free])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_no_log_ratio_makes_a_loss_or_a_gradient_that_is_not_finite(surrogate: Any, dtype: torch.dtype) -> None:
    extreme = torch.tensor([-math.inf, -1e4, -20, -11, 0, 11, 20, 1e4, math.inf], dtype=dtype)
    for advantage in (-2.0, 0.0, 2.0):
        gain = torch.full((9,), advantage, dtype=dtype)
        assert surrogate(extreme, gain).loss.isfinite().all()
        slope = gradient(lambda x, g=gain: surrogate(x, g).loss, extreme)  # type: ignore[misc]
        # Half precision cannot hold the gradient of a log-ratio of 11; it may overflow there, but is never undefined.
        assert not slope.isnan().any() if dtype == torch.float16 else slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_no_difference_makes_a_penalty_or_a_gradient_that_is_not_finite(dtype: torch.dtype) -> None:
    extreme = torch.tensor([-math.inf, -1e4, -20, 0, 20, 1e4, math.inf], dtype=dtype)
    zero = torch.zeros_like(extreme)
    for penalty in (lambda x: kl_penalty(x, zero), lambda x: kl_penalty(zero, x)):
        assert penalty(extreme).isfinite().all()
        assert gradient(penalty, extreme).isfinite().all()


def test_sixteen_bits_are_computed_in_thirty_two() -> None:
    assert clip_surrogate(torch.zeros(1).half(), torch.ones(1).half()).loss.dtype == torch.float32
    assert clip_surrogate(torch.zeros(1).double(), torch.ones(1).double()).loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_low": 1.5}, "clip_low: expected a number from 0 to 1, found 1.5"),
        ({"clip_high": -0.1}, "clip_high: expected a number from 0 up, found -0.1"),
        ({"clip_high": math.nan}, "clip_high: expected a number from 0 up, found nan"),
        ({"ratio_scale": torch.ones(3)}, r"log_ratio \(2,\), ratio_scale \(3,\)"),
        ({"dual": 1.2}, r"dual: expected more than 1 \+ clip_high = 1.2, found 1.2"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dual_clip(torch.zeros(2), torch.ones(2), **arguments)


def test_shapes_are_never_broadcast() -> None:
    for function in (clip_surrogate, kl_penalty, weighted_mean):
        with pytest.raises(ValueError, match=r"expected tensors of one shape \(T,\), found .* \(2,\), .* \(1,\)"):
            function(torch.zeros(2), torch.ones(1))
        with pytest.raises(ValueError, match=r"expected tensors of one shape \(T,\)"):
            function(torch.zeros(2, 2), torch.ones(2, 2))


# --- the KL penalty ---


@given(st.lists(st.floats(-15, 0), min_size=1, max_size=5), st.lists(st.floats(-15, 0), min_size=5, max_size=5))
def test_the_penalty_is_the_k3_estimator(logp: list[float], reference: list[float]) -> None:
    reference = reference[: len(logp)]
    found = kl_penalty(tensor(*logp), tensor(*reference))
    for value, p, q in zip(found.tolist(), logp, reference, strict=True):
        assert value >= 0
        assert value == pytest.approx(math.exp(q - p) - (q - p) - 1, rel=1e-9, abs=1e-12)


def test_the_penalty_of_a_small_difference_keeps_its_digits() -> None:
    # exp(d) - d - 1 = d²/2 + d³/6 + ...; in 32 bits the naive form gives 0 or noise for d = 1e-4.
    found = kl_penalty(torch.tensor([0.0]), torch.tensor([1e-4]))
    assert found.item() == pytest.approx(0.5e-8, rel=1e-2)


def test_the_mean_penalty_is_the_divergence() -> None:
    policy, reference = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.3, 0.5)
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * kl_penalty(policy.log(), reference.log())).sum(), exact)


# --- averages ---


def test_token_mean_and_sequence_mean_of_a_small_batch() -> None:
    losses, lengths = tensor(1, 2, 3, 10, 20, 30, 40), [3, 0, 4]
    means = {mode: weighted_mean(losses, token_weights(lengths, mode).double()) for mode in ("token-mean", "sequence-mean")}  # type: ignore[arg-type]
    assert means["token-mean"].item() == pytest.approx(106 / 7)
    assert means["sequence-mean"].item() == pytest.approx((2 + 25) / 2, rel=1e-6)  # weights are 32-bit floats


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.randoms(use_true_random=False), st.data())
def test_micro_batches_add_up_to_the_mini_batch(lengths: list[int], random: Any, data: st.DataObject) -> None:
    if sum(lengths) == 0:
        return
    sequences = [[random.uniform(-5, 5) for _ in range(length)] for length in lengths]
    flat = tensor(*[value for sequence in sequences for value in sequence])
    full = [sequence for sequence in sequences if sequence]
    expected = {
        "token-mean": sum(map(sum, full)) / len(flat),
        "sequence-mean": sum(sum(sequence) / len(sequence) for sequence in full) / len(full),
    }
    cuts = sorted(data.draw(st.lists(st.integers(0, len(flat)), max_size=3)))
    for mode in ("token-mean", "sequence-mean"):
        weights = token_weights(torch.tensor(lengths), mode).double()  # type: ignore[arg-type]
        bounds = zip([0, *cuts], [*cuts, len(flat)], strict=True)
        parts = [weighted_mean(flat[a:b], weights[a:b], total=weights.sum()) for a, b in bounds]
        assert sum(part.item() for part in parts) == pytest.approx(expected[mode], rel=1e-5, abs=1e-5)
        assert weighted_mean(flat, weights).item() == pytest.approx(expected[mode], rel=1e-5, abs=1e-5)


def test_averages_refuse_what_they_cannot_average() -> None:
    with pytest.raises(
        ValueError, match='expected "token-mean" or "sequence-mean", found "mean"'.replace('"mean"', "'mean'")
    ):
        token_weights([1], "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected whole numbers from 0 up"):
        token_weights([1, -1], "token-mean")
    with pytest.raises(ValueError, match="expected whole numbers from 0 up"):
        token_weights(torch.tensor([1.0]), "token-mean")
    with pytest.raises(ValueError, match="there is no token to average"):
        weighted_mean(torch.zeros(0), token_weights([], "token-mean"))
