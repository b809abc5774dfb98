"""Forward and backward passes over trees: each shared token once, and nothing else about an update changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learner_parts import metrics, short, untaught  # noqa: F401
from policies import TOKENIZER, random_policy
from torch.nn.attention.flex_attention import create_mask
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.tree import Leaf, PathTokens, RolloutTree
from learners.run.command import run
from learners.update.batch import Row, Terms
from learners.update.losses import SURROGATES
from learners.update.packing import Pack, ancestors, blocks_of_ancestors, packs, side_by_side, stacked
from learners.update.step import UpdateSettings, frozen_logprobs, measured, token_logprobs, update_policy
from learners.update.tree_attention import NAME, longest_path, runs_of, tree_attention_forward, tree_mask

CPU = torch.device("cpu")
MODEL = random_policy().double()  # so that rounding, which a ratio of exp(2) makes more of, is no matter
Group = list[list[Row]]


# Trees by chance: branches after any token of a segment, texts by all authors, two ids, so that paths also meet by accident


@st.composite
def trees(draw: st.DrawFn) -> RolloutTree:
    tree = RolloutTree(task_id="t", question="", seed=0, version=0)

    def ids(most: int) -> list[int]:
        return draw(st.lists(st.integers(7, 8), min_size=1, max_size=most))

    tree.add("prompt", ids(12), None, turn=0)
    for _ in range(draw(st.integers(1, 9))):
        parent = draw(st.integers(0, len(tree.segments) - 1))
        author = draw(st.sampled_from(["policy", "policy", "tool", "retrieved"]))
        own = ids(6)
        numbers = [0.0] * len(own) if author == "policy" else []
        at = draw(st.integers(1, len(tree.segments[parent].ids)))
        tree.add(author, own, parent, turn=0, logprobs=numbers, entropies=numbers, at=at)  # type: ignore[arg-type]
    ends = draw(st.lists(st.sampled_from(range(1, len(tree.segments))), min_size=1, max_size=6))
    tree.leaves = [Leaf(path=(index,), segment=end) for index, end in enumerate(ends)]
    return tree


@st.composite
def groups(draw: st.DrawFn, model: PreTrainedModel = MODEL) -> Group:
    """Some groups' rows with terms by chance, of which ratios to the sampler's log-probabilities are anywhere."""
    found = []
    for tree in draw(st.lists(trees(), min_size=1, max_size=3)):
        rows = []
        for leaf in tree.leaves:
            tokens = tree.tokens(leaf)

            def chosen(values: Sequence[float], tokens: PathTokens = tokens) -> torch.Tensor:
                count = len(tokens.ids)
                return torch.tensor(draw(st.lists(st.sampled_from(values), min_size=count, max_size=count)))

            advantage = chosen([-1.5, -1.0, 0.0, 0.5, 2.0])
            terms = Terms(advantage, chosen([0.25, 1.0, 3.0]), chosen([1.0, 1.1]))
            # No ratio times no scale is anywhere near a bound of a clip, 0.8, 1.28 or 3, where rounding would decide.
            distances = chosen([-2.0, -0.5, -0.1, 0.0, 0.1, 0.5, 2.0])
            (logprobs,) = (found for found, _ in measured(model, [Row(tokens, terms)], UpdateSettings()))
            rows.append(Row(dataclasses.replace(tokens, logprobs=logprobs - distances), terms))
        found.append(rows)
    return found


def flat(batch: Group) -> list[Row]:
    return [row for rows in batch for row in rows]


def ids_of(rows: Sequence[Row]) -> list[torch.Tensor]:
    return [row.tokens.ids for row in rows]


def gradient(
    batch: Group, model: PreTrainedModel = MODEL, *, surrogate: str = "clip", reference=None, **options
) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient of one mini-batch, and its metrics; the weights stay."""
    own = SURROGATES[surrogate]
    metrics = update_policy(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        batch,
        lambda ratio, advantage, scale: own(ratio, advantage, clip_low=0.2, clip_high=0.28, ratio_scale=scale),
        UpdateSettings(max_grad_norm=float("inf"), **{"ratio_to": "sampler", **options}),
        orders=[list(range(len(batch)))],
        reference=reference,
    )
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), metrics  # type: ignore[union-attr]


def assert_equal(found: tuple[torch.Tensor, dict[str, float]], expected: tuple[torch.Tensor, dict[str, float]]) -> None:
    assert (found[0] - expected[0]).norm() <= 1e-5 * expected[0].norm() + 1e-6
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-5)


def any_policy_token(batch: Group) -> bool:
    return any(bool(row.tokens.policy.any()) for row in flat(batch))


by_chance = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


# Trees of rows


def test_a_tree_drawn_by_hand():
    """5 6 ┬ 7 ─ 8          The second row is a beginning of the first one; the third and the fourth are one and the same.
    .      └ 9 ─ 7"""
    rows = [torch.tensor(ids) for ids in ([5, 6, 7, 8], [5, 6, 7], [5, 6, 9, 7], [5, 6, 9, 7])]
    (pack,) = packs(rows, 100)
    assert pack.ids.tolist() == [5, 6, 7, 8, 9, 7]
    assert pack.positions.tolist() == [0, 1, 2, 3, 2, 3]
    assert pack.parents.tolist() == [-1, 0, 1, 2, 1, 4]
    assert pack.ends.tolist() == [6, 6, 4, 4, 6, 6]
    found = {row: places.tolist() for row, places in zip(pack.rows, pack.places, strict=True)}
    assert found == {0: [0, 1, 2, 3], 1: [0, 1, 2], 2: [0, 1, 4, 5], 3: [0, 1, 4, 5]}


def test_trees_that_share_nothing_lie_side_by_side():
    (pack,) = packs([torch.tensor([7, 8]), torch.tensor([5]), torch.tensor([7, 9])], 100)
    assert pack.rows == [1, 0, 2]
    assert pack.ids.tolist() == [5, 7, 8, 9]
    assert pack.parents.tolist() == [-1, -1, 1, 1]
    assert pack.ends.tolist() == [1, 4, 3, 4]


rows_by_chance = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(torch.tensor), min_size=1, max_size=12)


@settings(deadline=None)
@given(rows_by_chance, st.integers(1, 60))
def test_every_row_can_be_read_off_its_pack(rows: list[torch.Tensor], most: int):
    found = packs(rows, most)
    assert sorted(row for pack in found for row in pack.rows) == list(range(len(rows)))
    for pack in found:
        assert len(pack.ids) <= max(most, max(len(rows[row]) for row in pack.rows))
        prefixes = {tuple(rows[row][: length + 1].tolist()) for row in pack.rows for length in range(len(rows[row]))}
        assert len(pack.ids) == len(prefixes)  # each shared token once
        for row, places in zip(pack.rows, pack.places, strict=True):
            assert pack.ids[places].tolist() == rows[row].tolist()
            assert pack.positions[places].tolist() == list(range(len(rows[row])))
            assert pack.parents[places].tolist() == [-1, *places[:-1].tolist()]


def descends(pack: Pack, token: int, other: int) -> bool:
    """Whether one token is the other or comes after it on a path, by the way back along its parents."""
    while token > other:
        token = int(pack.parents[token])
    return token == other


@settings(deadline=None)
@given(rows_by_chance, rows_by_chance)
def test_tokens_attend_to_themselves_and_to_those_before_them_on_their_path(one, other):
    two = [packs(rows, 1000)[0] for rows in (one, other)]
    ends = stacked(two, CPU).ends
    mask = ancestors(ends)
    length = ends.shape[1]
    for number, pack in enumerate(two):
        size = len(pack.ids)
        expected = [[descends(pack, query, key) for key in range(size)] for query in range(size)]
        assert mask[number, 0, :size, :size].tolist() == expected
        filled = torch.arange(length) >= size  # attends to itself, and nothing to it
        assert torch.equal(mask[number, 0, filled], torch.eye(length, dtype=torch.bool)[filled])
        assert torch.equal(mask[number, 0, :, filled], torch.eye(length, dtype=torch.bool)[:, filled])
    blocks = blocks_of_ancestors(ends)
    assert torch.equal(create_mask(blocks.mask_mod, 2, 1, length, length, device="cpu"), mask)


def test_rows_share_a_pack_where_it_has_room_for_them():
    near = [torch.tensor([1] * 60 + [last] * 10) for last in (2, 3)]
    apart = [torch.full((70,), first) for first in (2, 3)]
    assert [len(packs(rows, 80)) for rows in (near, apart)] == [1, 2]
    assert [len(packs(rows, 79)) for rows in (near, apart)] == [2, 2]
    assert [len(packs(rows, 140)) for rows in (near, apart)] == [1, 1]


def test_packs_of_about_the_same_length_make_up_a_pass():
    """Of 30, 29, 25, 24, 23 and 10 tokens, the first four have 0.8 · 30; three of them fill 95."""
    rows = [torch.full((length,), length) for length in (10, 23, 24, 25, 29, 30)]
    found = [pack for row in rows for pack in packs([row], 1000)]
    lengths = [[[len(pack.ids) for pack in chosen] for chosen in side_by_side(found, most)] for most in (95, 1000, 1)]
    assert lengths == [[[30, 29, 25], [24, 23], [10]], [[30, 29, 25, 24], [23], [10]], [[30], [29], [25], [24], [23], [10]]]


# Attention on a CPU


def test_the_runs_of_a_tree_drawn_by_hand():
    """The tree above, and filling: 5 6, then 7 8 and 9 7 under it."""
    assert runs_of(torch.tensor([6, 6, 4, 4, 6, 6, 0, 0])) == [(0, 2, 6), (2, 4, 4), (4, 6, 6)]
    assert runs_of(torch.tensor([1, 4, 3, 4])) == [(0, 1, 1), (1, 2, 4), (2, 3, 3), (3, 4, 4)]
    assert runs_of(torch.zeros(3, dtype=torch.int64)) == []


@settings(deadline=None, max_examples=40)
@given(rows_by_chance, rows_by_chance, st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.integers(0, 99))
def test_attention_over_runs_is_that_of_the_mask_and_so_is_its_gradient(one, other, heads, seed):
    forest = stacked([packs(rows, 1000)[0] for rows in (one, other)], CPU)
    draw = torch.Generator().manual_seed(seed)
    sizes = [(2, count, forest.ends.shape[1], 16) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True) for size in sizes]
    query, key, value = inputs
    found, _ = tree_attention_forward(torch.nn.Module(), query, key, value, tree_mask(forest.ends * forest.real))
    wide = [tensor.repeat_interleave(heads[0] // heads[1], 1) for tensor in (key, value)]
    masked = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=ancestors(forest.ends))
    expected = masked.transpose(1, 2) * forest.real[:, :, None, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    reached = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    pairs = zip(*(torch.autograd.grad(result, inputs, reached) for result in (found, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(rows_by_chance)
def test_a_layer_that_looks_back_less_far_than_its_longest_path_is_refused(rows: list[torch.Tensor]):
    (pack,) = packs(rows, 1000)
    longest = max(map(len, rows))
    assert longest_path(runs_of(pack.ends)) == longest
    tensors = [torch.randn(1, 2, len(pack.ids), 8) for _ in range(3)]
    whole = tree_attention_forward(torch.nn.Module(), *tensors, tree_mask(pack.ends[None]))[0]
    found, _ = tree_attention_forward(torch.nn.Module(), *tensors, tree_mask(pack.ends[None]), sliding_window=longest)
    assert torch.equal(found, whole)
    with pytest.raises(ValueError, match=f"this model has a sliding window of {longest - 1} tokens"):
        tree_attention_forward(torch.nn.Module(), *tensors, tree_mask(pack.ends[None]), sliding_window=longest - 1)


@pytest.mark.parametrize("sizes", [(16, 8), (8, 16)])
def test_values_may_have_another_size_than_keys(sizes: tuple[int, int]):
    (pack,) = packs([torch.tensor([1] * 5 + [last] * 4) for last in (2, 3)], 100)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 13, size, generator=draw).double() for size in (sizes[0], *sizes))
    found, _ = tree_attention_forward(torch.nn.Module(), query, key, value, tree_mask(pack.ends[None]))
    scores = (query @ key.mT / sizes[0] ** 0.5).masked_fill(~ancestors(pack.ends[None]), -torch.inf)
    torch.testing.assert_close(found, (scores.softmax(-1) @ value).transpose(1, 2), rtol=0, atol=1e-12)


def test_with_any_other_mask_it_is_plain_attention():
    module, tensors = torch.nn.Module(), [torch.randn(1, 2, 5, 8) for _ in range(3)]
    lower = torch.ones(5, 5).tril().bool()[None, None]
    for mask in (lower, None):
        found, _ = tree_attention_forward(module, *tensors, mask)
        torch.testing.assert_close(
            found.transpose(1, 2), torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=lower)
        )


@pytest.mark.parametrize("more", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
def test_attention_that_is_more_than_a_softmax_of_products_is_refused(more):
    tensors = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    with pytest.raises(ValueError, match=f"needs plain attention on a CPU, and this model has {next(iter(more))}"):
        tree_attention_forward(torch.nn.Module(), *tensors, tree_mask(torch.full((1, 5), 5)), **more)


# Log-probabilities


@by_chance
@given(groups(), st.sampled_from([1, 40, 10_000]))
def test_log_probabilities_and_entropies_are_those_of_each_row_by_itself(batch: Group, micro_tokens: int):
    rows = flat(batch)
    found = measured(MODEL, rows, UpdateSettings(layout="tree", micro_tokens=micro_tokens, temperature=1.3))
    written = frozen_logprobs(MODEL, rows, UpdateSettings(layout="tree", micro_tokens=micro_tokens, temperature=1.3))
    for row, (logprobs, entropies), own in zip(rows, found, written, strict=True):
        ids = row.tokens.ids[None]
        with torch.no_grad():
            expected = token_logprobs(MODEL, ids, torch.ones_like(ids, dtype=torch.bool), 1.3)
        torch.testing.assert_close(logprobs, expected[0][0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(entropies, expected[1][0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(own, expected[0][0, row.tokens.policy], atol=1e-6, rtol=1e-6)


# Gradients


@by_chance
@given(groups().filter(any_policy_token), st.sampled_from(sorted(SURROGATES)), st.integers(1, 200))
def test_gradients_are_those_of_padded_rows(batch: Group, surrogate: str, micro_tokens: int):
    expected = gradient(batch, surrogate=surrogate, layout="padded")
    assert_equal(gradient(batch, surrogate=surrogate, layout="tree"), expected)
    assert_equal(gradient(batch, surrogate=surrogate, layout="tree", micro_tokens=micro_tokens), expected)


@by_chance
@given(groups().filter(any_policy_token))
def test_gradients_are_those_of_padded_rows_with_a_penalty_and_ratios_to_the_trainer(batch: Group):
    found = [
        gradient(batch, reference=REFERENCE, kl_coefficient=0.3, ratio_to="trainer", temperature=0.8, layout=layout)
        for layout in ("tree", "padded")
    ]
    assert_equal(*found)


REFERENCE = random_policy(seed=1).double()


def drawn(count: int = 4, prompt: int = 40, written: int = 6, shape: str = "group") -> Group:
    """A group whose rows share a prompt, with advantages of both signs; ratios are well beyond a clip."""
    draw = torch.Generator().manual_seed(5)
    tree = RolloutTree(task_id="t", question="", seed=0, version=0)

    def ids(length: int) -> list[int]:
        return torch.randint(len(TOKENIZER), (length,), generator=draw).tolist()

    root = tree.add("prompt", ids(prompt), None, turn=0)
    for index in range(count):
        first = tree.add("policy", ids(written), root, turn=0, logprobs=[-6.0] * written, entropies=[0.0] * written)
        tool = tree.add("tool", ids(3), first, turn=0)
        last = tree.add("policy", ids(written), tool, turn=1, logprobs=[-6.0] * written, entropies=[0.0] * written)
        tree.leaves += [Leaf(path=(index,), segment=last)]
    tokens = [tree.tokens(leaf) for leaf in tree.leaves]
    return [[Row(own, Terms.constant(own, advantage=(-1.0) ** place, weight=1.0)) for place, own in enumerate(tokens)]]


def test_another_architecture_and_another_attention():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    assert_equal(gradient(drawn(), model, layout="tree"), gradient(drawn(), model, layout="padded"))
    assert model.config._attn_implementation == "eager"


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_those_of_padded_rows_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    expected, _ = gradient(drawn(), layout="padded")
    model = random_policy().cuda()
    for micro_tokens in (64, 4096):
        found, _ = gradient(drawn(), model, layout="tree", micro_tokens=micro_tokens)
        assert (found.cpu() - expected).norm() <= 1e-3 * expected.norm()


# What is computed, and what is left alone


def computed(**options) -> tuple[int, int]:
    """How many tokens an update puts through the model, and at how many it computes logits."""
    model = copy.deepcopy(MODEL)
    counts = [0, 0]
    for place, layer in enumerate((model.get_input_embeddings(), model.get_output_embeddings())):

        def count(module: torch.nn.Module, arguments: object, output: torch.Tensor, place: int = place) -> None:
            counts[place] += output.shape[:-1].numel()

        layer.register_forward_hook(count)
    gradient(drawn(), model, **options)
    return counts[0], counts[1]


def test_a_shared_token_is_computed_once_and_logits_only_where_the_policy_chose():
    assert computed(layout="padded") == (4 * 55, 4 * 55)
    assert computed(layout="tree") == (40 + 4 * 15, 1 + 4 * 11)  # the first tokens are chosen from the same logits
    assert computed(layout="tree", micro_tokens=70) == (2 * (40 + 2 * 15), 2 * (1 + 2 * 11))  # the prompt is repeated


def test_tokens_of_others_have_no_gradient():
    """Whatever terms stand at the prompt's and the tools' tokens, nothing changes."""
    changed = [
        [
            Row(row.tokens, Terms(*(torch.where(row.tokens.policy, terms, 1e6) for terms in dataclasses.astuple(row.terms))))
            for row in rows
        ]
        for rows in drawn()
    ]
    assert torch.equal(gradient(changed, layout="tree")[0], gradient(drawn(), layout="tree")[0])


def test_only_the_logits_that_the_policys_tokens_are_chosen_by_have_a_gradient():
    """A path that a tool ends: what it returned is read by nobody, and its embedding has no gradient but as an output."""
    model, (rows,) = copy.deepcopy(MODEL), drawn()
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    (row,) = rows[:1]
    cut = len(row.tokens.ids) - 6  # up to and with the tool's tokens
    tokens = PathTokens(*(part[:cut] for part in vars(row.tokens).values()))
    gradient([[Row(tokens, Terms.constant(tokens, advantage=1.0, weight=1.0))]], model, layout="tree")
    assert seen[0].grad is not None
    reached = seen[0].grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True] * (40 + 6 - 1) + [False] * (1 + 3)


def test_two_updates_are_equal_bit_for_bit():
    assert torch.equal(gradient(drawn(), layout="tree")[0], gradient(drawn(), layout="tree")[0])


def test_a_model_with_a_window_is_refused_where_rows_are_longer():
    """These have 40 + 6 + 3 + 6 tokens."""
    model = copy.deepcopy(MODEL)
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ValueError, match="needs a model with full attention, and this one has chunked_attention layers"):
        gradient(drawn(), model, layout="tree")
    model.config.layer_types, model.config.sliding_window = ["full_attention"] * 2, 54  # which no layer heeds
    expected = gradient(drawn(), model, layout="padded")
    assert_equal(gradient(drawn(), model, layout="tree"), expected)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="this one has a sliding window of 54 tokens"):
        gradient(drawn(), model, layout="tree")


def test_a_model_attends_as_before_when_an_update_failed():
    model = copy.deepcopy(MODEL)
    model.set_attn_implementation("eager")

    def stop(module: torch.nn.Module, arguments: object) -> None:
        assert model.config._attn_implementation == NAME
        raise RuntimeError("stop")

    model.get_output_embeddings().register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        gradient(drawn(), model, layout="tree")
    assert model.config._attn_implementation == "eager"


def test_whole_runs_over_trees_and_over_padded_rows_learn_the_same(untaught, tmp_path, monkeypatch):  # noqa: F811
    lengths: list[list[int]] = []

    def noted(rows: list[torch.Tensor], most: int) -> list[Pack]:
        lengths.append([sum(map(len, rows)), sum(len(pack.ids) for pack in packs(rows, most))])
        return packs(rows, most)

    monkeypatch.setattr("learners.update.step.packs", noted)
    for options in ([], ["--update", "padded"]):
        lengths.append([])
        run(GRPOConfig, GRPO, "", short(untaught, tmp_path / "-".join(["run", *options]), "--group-size", 4, *options))
    apart = lengths.index([], 1)
    assert apart == len(lengths) - 1  # after it, no tree was made
    assert all(tree < rows for rows, tree in lengths[1:apart])
    tree, padded = (metrics(tmp_path / name)[0] for name in ("run", "run---update-padded"))
    assert tree.pop("mismatch_max") == pytest.approx(padded.pop("mismatch_max"), abs=1e-4)
    assert tree == pytest.approx(padded, rel=1e-4, abs=1e-6)
