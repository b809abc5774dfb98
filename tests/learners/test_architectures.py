"""Architectures that are unlike the others: what they compute over trees and by kept caches is right, or is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from learner_parts import short
from policies import TOKENIZER, full_logprobs, random_policy
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.flex_attention import WrappedFlexAttention

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.rendering import Renderer
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import PlayConfig, UsageError
from learners.run.players import Policy, open_sampler
from learners.run.policy import check_deterministic, load_model, ready_to_learn
from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler
from learners.sampling.trial import Trial, refusal_of_kept_caches
from learners.update import packing
from learners.update.batch import Row, Terms
from learners.update.losses import SURROGATES
from learners.update.packing import length_of_pass
from learners.update.step import UpdateSettings, frozen_logprobs, update_policy
from learners.update.tree_trial import refusal_of_trees

CPU = torch.device("cpu")
USUAL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
USUAL |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
LATENT |= {"first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 4}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
FULL = {"layer_types": ["full_attention"] * 2, "query_pre_attn_scalar": 8}
SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
SEEING |= {"patch_size": 14}

OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": OLD,
    "gptj": OLD | {"rotary_dim": 4},
    "codegen": OLD | {"rotary_dim": 4},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256}
    | {"attention_types": [[["global", "local"], 1]], "window_size": 100},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "lfm2": USUAL | {"layer_types": ["conv", "full_attention"]},
    "deepseek_v3": USUAL | LATENT,
    "qwen3_moe": USUAL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gemma2": USUAL | FULL | {"attn_logit_softcapping": 2.0},
    "mistral": USUAL | {"sliding_window": 60},
}


def architecture(name: str, **more: Any) -> PreTrainedModel:
    """A small random model of an architecture, with logits that are far from uniform."""
    if name == "gemma3":  # of which the language model is a part
        options: dict[str, Any] = {
            "text_config": {**USUAL, **BOTH, "sliding_window": 60, "vocab_size": len(TOKENIZER), **more}
        }
        options |= {"vision_config": SEEING, "mm_tokens_per_image": 4, "image_token_index": len(TOKENIZER) - 1}
    else:
        options = {**OPTIONS.get(name, USUAL), "vocab_size": len(TOKENIZER), **more}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def rows(count: int = 3, prompt: int = 20, written: int = 6) -> list[Row]:
    """Rows that share a prompt, with advantages of both signs."""
    draw = torch.Generator().manual_seed(5)
    tree = RolloutTree(task_id="t", question="", seed=0, version=0)

    def ids(length: int) -> list[int]:
        return torch.randint(5, len(TOKENIZER) - 1, (length,), generator=draw).tolist()

    root = tree.add("prompt", ids(prompt), None, turn=0)
    for index in range(count):
        zeros = [0.0] * written
        tree.leaves.append(Leaf((index,), tree.add("policy", ids(written), root, turn=0, logprobs=zeros, entropies=zeros)))
    tokens = [tree.tokens(leaf) for leaf in tree.leaves]
    return [Row(own, Terms.constant(own, advantage=(-1.0) ** place, weight=1.0)) for place, own in enumerate(tokens)]


def gradient(model: PreTrainedModel, layout: Any) -> torch.Tensor:
    update_policy(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        [rows()],
        lambda ratio, advantage, scale: SURROGATES["clip"](ratio, advantage, ratio_scale=scale),
        UpdateSettings(layout=layout, max_grad_norm=float("inf")),
        orders=[[0]],
    )
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


# Trees


@pytest.mark.parametrize(
    "name", ["gpt2", "gptj", "codegen", "xglm", "falcon", "deepseek_v3", "qwen3_moe", "mistral", "gemma3"]
)
def test_over_trees_gradients_are_those_of_padded_rows(name: str) -> None:
    """Also of those that cannot exchange their attention, that take other values than keys, that look back far enough, and
    of the language model within another."""
    model = architecture(name)
    ready_to_learn(model, GRPOConfig(total_tokens=60))
    before = model.config._attn_implementation
    expected = gradient(model, "padded")
    assert float((gradient(model, "tree") - expected).norm()) <= 1e-5 * float(expected.norm())
    assert model.config._attn_implementation == before


WRONG = "its log-probabilities are wrong by"
NO_TREES = {
    "doge": WRONG,  # makes a mask of its own
    "mpt": WRONG,  # counts positions by itself
    "rwkv": WRONG,  # has a state, and tells of it nowhere
    "bloom": "too many values to unpack",
    "gpt_neo": "it has local layers, and --total-tokens is 61",
    "mamba2": "it has linear_attention layers",
    "lfm2": "it has conv layers",
    "mistral": "it has a sliding window of 60 tokens",
    "gemma3": "it has a sliding window of 60 tokens",
    "gemma2": "an update over trees needs plain attention on a CPU, and this model has softcap",
}


@pytest.mark.parametrize("name", NO_TREES)
def test_what_cannot_learn_over_trees_is_refused_before_it_is_trained(name: str) -> None:
    model = architecture(name)
    with pytest.raises(UsageError) as caught:
        ready_to_learn(model, GRPOConfig(total_tokens=61))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--update tree does not go with {type(model).__name__}: {NO_TREES[name]}")
    assert line.endswith("; use --update padded")
    ready_to_learn(model, GRPOConfig(total_tokens=61, update="padded"))


def test_a_command_refuses_in_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture("doge").save_pretrained(tmp_path / "doge")
    TOKENIZER.save_pretrained(tmp_path / "doge")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(GRPOConfig, GRPO, "", short(tmp_path / "doge", tmp_path / "run"))
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith("error: --update tree does not go with DogeForCausalLM: ")
    assert line.endswith("; use --update padded")
    assert not (tmp_path / "run").exists()


# Kept caches


def written(model: PreTrainedModel) -> list[tuple[list[int], int, list[float]]]:
    """Two actions of unlike histories, the second after a fork: ids, where the action begins, its log-probabilities."""

    async def act() -> list[tuple[list[int], int, list[float]]]:
        sampler = TransformersSampler(model, TOKENIZER, seed=0, eos=(), length=60)
        first = sampler.start((0,))
        first.append(list(range(40, 60)))
        first.decode(Decoding(max_tokens=4))
        await first.rest()
        fork = first.fork((1,), at=22)
        fork.append([7, 8, 9])
        first.append([9] * 8)
        found = []
        for stream in (first, fork):
            stream.decode(Decoding(max_tokens=4))
        for stream in (first, fork):
            action = await stream.rest()
            found.append((list(stream.ids), len(stream.ids) - 4, list(action.logprobs)))
        sampler.close()
        return found

    return asyncio.run(act())


@pytest.mark.parametrize("name", ["gptj", "codegen", "mpt", "falcon", "deepseek_v3", "gemma2", "mistral", "gemma3"])
def test_what_is_sampled_by_kept_caches_is_what_a_plain_pass_says(name: str) -> None:
    model = architecture(name, **({"attn_implementation": "eager"} if name == "gemma2" else {}))
    assert refusal_of_kept_caches(model) == ""
    for ids, begin, logprobs in written(model):
        expected = full_logprobs(model, ids)[range(begin - 1, len(ids) - 1), ids[begin:]]
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-4)


NO_CACHES = {
    "rwkv": WRONG,
    "bloom": "too many values to unpack",
    "gpt_neo": "it has local layers, and --total-tokens is 61",
    "mamba2": "it has linear_attention layers",
    "gemma3": "it has a sliding window of 60 tokens",
}


@pytest.mark.parametrize("name", NO_CACHES)
def test_what_cannot_be_sampled_by_kept_caches_is_refused(name: str) -> None:
    policy = Policy(architecture(name), TOKENIZER, Renderer(TOKENIZER))
    with pytest.raises(UsageError) as caught:
        open_sampler(PlayConfig(total_tokens=61, sampler="transformers"), policy)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--sampler transformers does not go with {type(policy.model).__name__}: {NO_CACHES[name]}")
    assert line.endswith("; use --sampler vllm, or another model")


def test_a_window_is_refused_by_a_sampler_that_is_told_no_length() -> None:
    with pytest.raises(ValueError, match="expected full attention in every layer, found a sliding window of 60 tokens"):
        TransformersSampler(architecture("mistral"), TOKENIZER, seed=0, eos=())


# What a trial takes for rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_rounding_is_let_pass_and_a_wrong_count_of_positions_is_not(name: str, dtype: torch.dtype) -> None:
    model = architecture(name, num_hidden_layers=6)
    torch.nn.Module.to(model, dtype)
    assert refusal_of_trees(model) == refusal_of_kept_caches(model) == ""

    def by_place(module: torch.nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
        return arguments, named | {"position_ids": torch.arange(named["input_ids"].shape[1])[None]}

    model.register_forward_pre_hook(by_place, with_kwargs=True)
    assert refusal_of_trees(model).startswith(WRONG)
    assert refusal_of_kept_caches(model).startswith(WRONG)


def test_numbers_that_are_none_are_wrong_and_a_lack_of_memory_says_nothing_of_a_model() -> None:
    trial = Trial.of(random_policy())
    assert trial.refusal(lambda: [(trial.expected[0], trial.expected[0])]) == ""
    assert trial.refusal(lambda: [(torch.full((3,), torch.nan), torch.zeros(3))]).startswith(WRONG)
    never = torch.full((3,), -torch.inf)
    assert trial.refusal(lambda: [(never, never)]) == ""
    assert trial.refusal(lambda: [(never, torch.zeros(3))]).startswith(WRONG)

    def fails(problem: Exception) -> Callable[[], Any]:
        def ask() -> Any:
            raise problem

        return ask

    assert trial.refusal(fails(KeyError("first line\nsecond"))) == "'first line\\nsecond'"
    assert trial.refusal(fails(ValueError("first line.\nsecond"))) == "first line"
    assert trial.refusal(fails(AssertionError())) == "AssertionError"
    with pytest.raises(torch.OutOfMemoryError):
        trial.refusal(fails(torch.OutOfMemoryError()))


# FlexAttention: the numbers of its own reference, which is what it compiles for a GPU


@pytest.fixture
def flexing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees are attended to by FlexAttention, as on a GPU, but without a compiler."""
    monkeypatch.setattr(packing, "ATTENTION", MappingProxyType({"cpu": "flex_attention"}))
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda self: flex_attention)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["qwen3", "opt", "deepseek_v3", "gemma2", "gemma3"])
def test_flex_attention_over_trees_is_plain_attention(name: str, flexing: None) -> None:
    more: dict[str, Any] = {"attn_implementation": "eager"} if name == "gemma2" else {}
    if name == "opt":
        more = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    model = architecture(name, **more)
    assert refusal_of_trees(model) == ""
    own = rows()
    found, expected = (frozen_logprobs(model, own, UpdateSettings(layout=layout)) for layout in ("tree", "padded"))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "says"), [("gpt2", "GPT2LMHeadModel does not support"), ("doge", WRONG)], ids=["gpt2", "doge"]
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_has_no_flex_attention_is_refused_on_a_gpu(name: str, says: str, flexing: None) -> None:
    with pytest.raises(UsageError, match=rf"--update tree does not go with \w+: {says}.*; use --update padded$"):
        ready_to_learn(architecture(name), GRPOConfig(total_tokens=60))


def test_passes_on_a_gpu_are_of_whole_blocks_and_more_than_one() -> None:
    gpu = torch.device("cuda")
    assert [length_of_pass(tokens, gpu) for tokens in (1, 128, 256, 257)] == [256, 256, 256, 384]
    assert length_of_pass(5, CPU) == 5


@pytest.mark.thorough
def test_all_passes_of_a_run_are_compiled_within_dynamos_limit() -> None:
    """FlexAttention and its masks take fewer than eight variants, whatever the passes are."""
    counts = {"attention": 0, "mask": 0}

    def counting(what: str) -> Callable[..., Any]:
        def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
            counts[what] += 1
            return graph

        return backend

    torch._dynamo.reset()
    attend = torch.compile(flex_attention, backend=counting("attention"))
    mask = torch.compile(create_block_mask, backend=counting("mask"))
    packs_and_tokens = [(1, 100), (3, 500), (2, 130), (1, 700), (1, 1000), (5, 20), (2, 256), (7, 300), (1, 1)]
    for packs, tokens in packs_and_tokens:
        length = length_of_pass(tokens, torch.device("cuda"))
        ends = torch.full((packs, length), length)

        def attends(row: Any, head: Any, query: Any, key: Any, ends: torch.Tensor = ends) -> Any:
            return (key <= query) & (query < ends[row, key])

        blocks = mask(attends, packs, None, length, length, device="cpu", BLOCK_SIZE=128)
        for learns in (False, True):
            with torch.set_grad_enabled(learns):
                query, key, value = (torch.randn(packs, heads, length, 16) for heads in (4, 2, 2))
                attend(query, key, value, block_mask=blocks, enable_gqa=True)
    torch._dynamo.reset()
    assert counts["attention"] < 8
    assert counts["mask"] < 8


# What else a command sees to


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_cap_on_the_scores_is_heeded_wherever_the_policy_computes(tmp_path: Path, flexing: None) -> None:
    """Padded rows and kept caches know the cap as FlexAttention does; transformers' own sdpa would leave it out."""
    architecture("gemma2").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), torch.float32)
    assert model.config._attn_implementation == "eager"
    expected = torch.cat(frozen_logprobs(model, rows(), UpdateSettings(layout="padded")))
    found = torch.cat(frozen_logprobs(model, rows(), UpdateSettings(layout="tree")))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    model.set_attn_implementation("sdpa")
    uncapped = torch.cat(frozen_logprobs(model, rows(), UpdateSettings(layout="padded")))
    assert float((uncapped - expected).abs().max()) > 0.01
    architecture("qwen3").save_pretrained(tmp_path)
    assert load_model(str(tmp_path), torch.float32).config._attn_implementation == "sdpa"


def test_bit_equal_reruns_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for config in (GRPOConfig(), GRPOConfig(deterministic=True), GRPOConfig(model="m", device="cuda")):
        check_deterministic(config)
    for asked in (GRPOConfig(model="m", deterministic=True), GRPOConfig(device="cuda:1", deterministic=True)):
        with pytest.raises(UsageError, match=r"--deterministic: on a GPU .* use --device cpu, or --no-deterministic"):
            check_deterministic(asked)
