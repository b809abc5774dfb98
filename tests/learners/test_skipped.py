"""Mini-batches that no step is taken for: those in which nothing was written, and those whose gradient is not finite."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_parts import metrics, same_weights, short, untaught
from policies import random_policy
from test_update import rows, weights_of
from world_jobs import Wild

from learners.aepo import AEPO, AEPOConfig
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.skipped import PATIENCE, NotFinite, SkipWatch
from learners.update.batch import Row, rows_of, terms_of
from learners.update.losses import TokenLoss, clip_surrogate
from learners.update.step import UpdateSettings, update_policy

__all__ = ["untaught"]  # the fixture

POISON = 977.0
"""An advantage that `surrogate` makes infinite losses of."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These models are so small that a second thread only waits."""
    torch.set_num_threads(1)


def unwritten(count: int = 2) -> RolloutTree:
    """A group whose prompt left the policy no room."""
    tree = RolloutTree(task_id="t", question="", seed=0, version=0)
    prompt = tree.add("prompt", [5, 6, 7], None, turn=0)
    tree.leaves = [Leaf(path=(index,), segment=prompt, reward=-1.0, stop="length") for index in range(count)]
    return tree


def unwritten_rows() -> list[Row]:
    tree = unwritten()
    return rows_of([tree], [terms_of(tree, torch.tensor([1.0, -1.0]))])[0]


def poisoned(group: list[Row]) -> list[Row]:
    return [Row(row.tokens, replace(row.terms, advantage=torch.full_like(row.terms.advantage, POISON))) for row in group]


def surrogate(log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
    found = clip_surrogate(log_ratio, advantage, clip_low=0.2, clip_high=0.28, ratio_scale=ratio_scale)
    return replace(found, loss=found.loss * math.inf) if bool((advantage == POISON).any()) else found


def learned(groups: list[list[Row]], orders: list[list[int]], **options: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """The weights and the metrics of an update of a random policy by AdamW, with a penalty towards where it began."""
    model = random_policy()
    settings = UpdateSettings(**{"minibatch_groups": 1, "epochs": len(orders), "kl_coefficient": 0.1, **options})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = update_policy(model, optimizer, groups, surrogate, settings, orders=orders, reference=random_policy())
    return weights_of(model), found


# The update


KINDS: list[dict[str, Any]] = [
    {"layout": "tree", "importance_cap": 2.0},
    {"layout": "padded", "ratio_to": "sampler"},
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("kind", ["unwritten", "skipped"])
def test_an_update_is_that_of_the_other_mini_batches(options: dict[str, Any], kind: str) -> None:
    """As if the mini-batch had not been among those of the order; the optimiser's state is untouched by it too."""
    first, second, third = rows([0, 1, 2])
    groups = [first, unwritten_rows() if kind == "unwritten" else poisoned(second), third]
    weights, found = learned(groups, [[0, 1, 2], [2, 1, 0]], **options)
    expected, others = learned(groups, [[0, 2], [2, 0]], **options)
    assert torch.equal(weights, expected)
    assert (others["optimizer_steps"], others["unwritten"], others["skipped"]) == (4.0, 0.0, 0.0)
    assert found == others | {kind: 2.0}
    assert all(map(math.isfinite, found.values()))


def test_what_leads_an_order_may_be_left_out_too() -> None:
    """The mismatch of ratios to the sampler is then that of the first mini-batch that a step was taken for."""
    groups = [poisoned(rows([1])[0]), unwritten_rows(), *rows([0, 2])]
    _, found = learned(groups, [[0, 1, 2, 3]], ratio_to="sampler")
    _, others = learned(groups, [[2, 3]], ratio_to="sampler")
    assert found == others | {"skipped": 1.0, "unwritten": 1.0}


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("micro_tokens", [1, 4096])
def test_rows_without_a_token_by_the_policy_change_nothing_in_a_mini_batch(layout: str, micro_tokens: int) -> None:
    groups = [*rows([0]), unwritten_rows(), *rows([2])]
    options = {"minibatch_groups": 0, "layout": layout, "micro_tokens": micro_tokens, "importance_cap": 2.0}
    weights, found = learned(groups, [[0, 1, 2]], **options)
    expected, others = learned(groups, [[0, 2]], **options)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    assert found == pytest.approx(others, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_where_no_step_is_taken_there_is_nothing_to_tell_but_that(layout: str) -> None:
    began = weights_of(random_policy())
    groups = [unwritten_rows(), poisoned(rows([1])[0]), unwritten_rows()]
    for order, unwritten_, skipped in (([0, 2], 2.0, 0.0), ([1], 0.0, 1.0), ([0, 1, 2], 2.0, 1.0)):
        weights, found = learned(groups, [order], layout=layout)
        assert torch.equal(weights, began)
        assert found == {"optimizer_steps": 0.0, "skipped": skipped, "unwritten": unwritten_}


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_one_number_of_a_gradient_that_is_not_finite_is_enough(number: float) -> None:
    model = random_policy()
    began = weights_of(model)
    model.lm_head.weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), number))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = UpdateSettings(max_grad_norm=math.inf)
    found = update_policy(model, optimizer, rows([0, 1]), surrogate, settings, orders=[[0, 1]])
    assert found == {"optimizer_steps": 0.0, "skipped": 1.0, "unwritten": 0.0}
    assert torch.equal(weights_of(model), began)
    assert not optimizer.state


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan])
def test_a_limit_that_would_undo_every_gradient_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match="max_grad_norm: expected more than 0"):
        UpdateSettings(max_grad_norm=norm)


def test_entropies_of_a_batch_in_which_nothing_was_written_are_no_part_of_its_credit() -> None:
    trees = [unwritten(), unwritten()]
    for tree in trees:
        tree.measured = {leaf.path: torch.zeros(3) for leaf in tree.leaves}
    credit = AEPO(AEPOConfig(entropy_advantage=0.2)).credit(trees)
    assert all(torch.isfinite(terms.advantage).all() for group in credit for terms in group)


# A run


def look(watch: SkipWatch, step: int, taken: int, skipped: int = 0, unwritten_: int = 0) -> None:
    watch.look(step, {"optimizer_steps": taken, "skipped": skipped, "unwritten": unwritten_})


def test_a_run_ends_when_no_gradient_was_finite_for_some_batches_in_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = SkipWatch(tmp_path / "checkpoints")
    for step in range(1, 9):
        look(watch, step, taken=3, skipped=1)  # some of a batch, however often
    assert caplog.text.count("the gradient of 1 of 4 mini-batches was not finite") == 8
    look(watch, 9, taken=0, skipped=4)
    look(watch, 10, taken=1, skipped=3)
    for step in range(11, 10 + PATIENCE):
        look(watch, step, taken=0, skipped=4)
        look(watch, step, taken=0, unwritten_=4)  # which says nothing about gradients
    assert watch.in_a_row == PATIENCE - 1
    with pytest.raises(NotFinite, match="begin another run"):
        look(SkipWatch(tmp_path / "checkpoints", in_a_row=watch.in_a_row), 20, taken=0, skipped=1)
    assert caplog.text.count("hold no token to learn from") == 1


def grpo(*arguments: Any) -> None:
    run(GRPOConfig, GRPO, "", [str(argument) for argument in arguments])


def begun(finished: Path, folder: Path, steps: int) -> Path:
    """A copy of a run with nothing but its first checkpoints."""
    shutil.copytree(finished, folder)
    for path in sorted((folder / "checkpoints").iterdir())[steps:]:
        shutil.rmtree(path)
    return folder


def test_a_batch_in_which_nothing_was_written_is_gone_past(
    untaught: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    grpo(*short(untaught, folder, "--group-size", 4, total_tokens=12, minibatch_groups=1))
    steps = metrics(folder)
    assert [record["unwritten"] for record in steps] == [4.0, 4.0]
    for record in steps:
        assert record["optimizer_steps"] == record["tokens/policy"] == 0.0
        assert record["groups_without_signal"] == record["stop/length"] == 1.0
        assert not record.keys() & {"loss", "grad_norm", "entropy", "entropy_sampled", "kl_old", "mismatch_mean"}
    assert "4 of 4 mini-batches hold no token to learn from" in caplog.text
    assert same_weights(untaught, folder / "checkpoints" / "step_000002")
    grpo("--resume", begun(folder, tmp_path / "again", 1))
    assert metrics(tmp_path / "again") == steps


def test_a_run_without_finite_gradients_ends_with_its_policy_whole(
    untaught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    newest = folder / "checkpoints" / f"step_{PATIENCE - 1:06d}"
    told = []
    for arguments in (short(untaught, folder, "--group-size", 4, steps=2 * PATIENCE), ["--resume", str(folder)]):
        with pytest.raises(SystemExit) as caught:
            run(GRPOConfig, Wild, "", arguments)
        assert caught.value.code == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]  # a resumed run knows how often it has happened
    assert told[0].startswith(f"error: step {PATIENCE}: for {PATIENCE} batches in a row no gradient was finite")
    assert f"--model {newest}," in told[0]
    assert told[0].count("\n") == 1
    assert "step 1: the gradient of 2 of 2 mini-batches was not finite" in caplog.text
    assert [(step["optimizer_steps"], step["skipped"]) for step in metrics(folder)] == [(0.0, 2.0)] * (PATIENCE - 1)
    assert same_weights(untaught, newest)
    assert json.loads((newest / "trainer.json").read_text())["skipped_in_a_row"] == PATIENCE - 1


def test_no_limit_of_the_norm_is_0(untaught: Path, tmp_path: Path) -> None:
    for name, norm in (("none", 0), ("high", 1e9), ("low", 1e-3)):
        grpo(*short(untaught, tmp_path / name, "--group-size", 4, "--max-grad-norm", norm, steps=1, eval_tasks=1))
    weights = {name: tmp_path / name / "checkpoints" / "step_000001" for name in ("none", "high", "low")}
    assert metrics(tmp_path / "none")[0]["grad_norm"] > 1e-3
    assert same_weights(weights["none"], weights["high"])
    assert not same_weights(weights["none"], weights["low"])
    assert not same_weights(weights["none"], untaught)


@pytest.mark.parametrize("norm", [-1.0, math.nan])
def test_a_limit_that_cannot_be_meant_is_refused(
    untaught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], norm: float
) -> None:
    with pytest.raises(SystemExit) as caught:
        grpo(*short(untaught, tmp_path / "run", "--max-grad-norm", norm))
    assert caught.value.code == 2
    assert f"--max-grad-norm must not be negative, but is {norm}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
