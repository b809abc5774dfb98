"""LoRA: what is trained and what is not, weights under the model's own names, files that peft reads, runs that resume."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import peft
import pytest
import torch
from learner_parts import ENDS, metrics, short
from policies import TOKENIZER, random_policy, saved_policy
from safetensors.torch import load_file
from test_recompute import rows, surrogate
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from learners.evaluate import main as evaluate
from learners.grpo import GRPO, GRPOConfig
from learners.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from learners.run.command import run
from learners.run.config import UsageError
from learners.run.policy import load_model, ready_to_learn
from learners.sampling.transformers import TransformersSampler
from learners.sft import main as sft
from learners.update import adapters as adapters_module
from learners.update.adapters import ADAPTER_CONFIG, adapted_layers, add_adapters, save_adapters, trained, without_adapters
from learners.update.optimizer import open_optimizer
from learners.update.step import UpdateSettings, update_policy
from learners.update.weights import plain_copy, sampling_weights

IDS = torch.arange(60, 80)[None]


class OnlyAHead(PreTrainedModel):
    """A model that has nothing to adapt."""

    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear(2, 2)

    def get_output_embeddings(self):
        return self.head


FOLDER = Path(__file__).parent
LAYERS = 2 * 7  # q, k, v, o, gate, up, down


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These models are so small that a second thread only waits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("base") / "policy", ENDS)


def adapted(source: Path | None = None, *, rank: int = 4, dtype: torch.dtype = torch.float32, drawn: int | None = 7):
    """A policy with adapters, whose B is drawn too unless ``drawn`` is None."""
    model = random_policy() if source is None else AutoModelForCausalLM.from_pretrained(source).eval()
    add_adapters(model.to(dtype), rank=rank, alpha=3.0, seed=0)
    if drawn is not None:
        draw = torch.Generator().manual_seed(drawn)
        for parameter in trained(model):
            parameter.data.normal_(std=0.1, generator=draw)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits.float()


def learn(model, *, optimizer=None, reference=None, kl_coefficient=0.0, **settings) -> dict[str, float]:
    optimizer = optimizer or torch.optim.SGD(trained(model), lr=1.0)
    settings = UpdateSettings(kl_coefficient=kl_coefficient, **settings)
    return update_policy(model, optimizer, [rows(), rows(3)], surrogate, settings, orders=[[0, 1]], reference=reference)


# The policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_adapters_change_nothing_and_are_all_that_is_trained(dtype):
    plain, model = random_policy().to(dtype), adapted(dtype=dtype, drawn=None)
    assert type(model) is type(plain)
    assert torch.equal(logits(model), logits(plain))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * LAYERS
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert {parameter.dtype for parameter in trained(model)} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {dtype}
    assert not any("lm_head" in name or "embed" in name for name in adapted_layers(model))


def test_adapters_are_drawn_from_their_own_seed():
    before = torch.random.get_rng_state()
    ours, same, other = (copy.deepcopy(random_policy()) for _ in range(3))
    for model, seed in ((ours, 1), (same, 1), (other, 2)):
        add_adapters(model, rank=4, alpha=8.0, seed=seed)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one, two) for one, two in zip(trained(ours), trained(same), strict=True))
    assert not torch.equal(trained(ours)[0], trained(other)[0])


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_the_merged_weights_gradient(layout, recompute):
    """With W' = W + s B A, dL/dB = s dL/dW' Aᵀ and dL/dA = s Bᵀ dL/dW'; all but the adapters stays as it is."""
    model = adapted()
    plain = plain_copy(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learn(model, layout=layout, recompute=recompute, max_grad_norm=1e9)
    learn(plain, layout="padded", max_grad_norm=1e9)
    weights = dict(sampling_weights(adapted()))
    scale = 3.0 / 4
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            gradient = weights[f"{name}.weight"] - plain.get_submodule(name).weight  # SGD of rate 1
            a, b = (before[f"{name}.{part}.default.weight"] for part in ("lora_A", "lora_B"))
            torch.testing.assert_close(b - layer.lora_B.default.weight, scale * gradient @ a.T, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(a - layer.lora_A.default.weight, scale * b.T @ gradient, rtol=1e-3, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad)


# Mixtures of experts


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 32}


def mixture(kind: str):
    """An untaught mixture of experts, whose first layer is dense; ``qwen2_moe`` has an expert that all tokens share, too."""
    shared = {"mlp_only_layers": [0]} | ({"shared_expert_intermediate_size": 24} if kind == "qwen2_moe" else {})
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(TOKENIZER)}
    config = AutoConfig.for_model(kind, **sizes, **heads, **EXPERTS, **shared, initializer_range=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


DENSE = {f"mlp.{where}{part}_proj" for where in ("", "shared_expert.") for part in ("gate", "up", "down")}


@pytest.mark.parametrize(("kind", "others"), [("qwen3_moe", set()), ("qwen2_moe", DENSE | {"mlp.shared_expert_gate"})])
def test_experts_of_a_mixture_are_frozen_and_all_that_is_trained_is_kept(tmp_path, kind, others):
    first = mixture(kind)
    first.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    add_adapters(model, rank=4, alpha=3.0, seed=0)
    names = {name.partition("layers.")[2].partition(".")[2] for name in adapted_layers(model)}
    assert names == {f"self_attn.{part}_proj" for part in "qkvo"} | others
    ours = {
        id(layer.get_parameter(f"lora_{part}.default.weight")) for layer in adapted_layers(model).values() for part in "AB"
    }
    assert ours == {id(parameter) for parameter in trained(model)}
    assert learn(model, layout="padded")["grad_norm"] > 0
    assert not torch.equal(logits(model), logits(first))
    with without_adapters(model):
        assert torch.equal(logits(model), logits(first))
    assert {name for name, _ in sampling_weights(model)} == {name for name, _ in first.named_parameters()}
    torch.testing.assert_close(logits(plain_copy(model)), logits(model), rtol=1e-4, atol=1e-4)
    optimizer = open_optimizer(trained(model), weight_decay=0.0)
    path = save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer, trainer_state={})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    add_adapters(again, rank=4, alpha=3.0, seed=1)
    load_checkpoint(path, again, open_optimizer(trained(again), weight_decay=0.0))
    assert torch.equal(logits(again), logits(model))
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), path)
    assert torch.equal(logits(loaded), logits(model))
    torch.testing.assert_close(logits(load_model(str(path), torch.float32)), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The following")  # peft's own, of an unusual request
def test_adapters_that_could_not_be_kept_are_refused(monkeypatch):
    """Here peft adapts the experts all the same, as it does where it is left to find the layers."""
    monkeypatch.setattr(adapters_module, "_linear_layers", lambda model: {"gate_proj", "up_proj", "down_proj", "q_proj"})
    config = GRPOConfig(lora_rank=2, update="padded")
    with pytest.raises(
        UsageError, match=r"--lora-rank 2: peft gives Qwen3MoeForCausalLM other adapters than .*--lora-rank 0"
    ):
        ready_to_learn(mixture("qwen3_moe"), config)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--lora-rank 2: OnlyAHead has no linear layers"):
        ready_to_learn(OnlyAHead(random_policy().config), config)


def test_the_reference_is_the_policy_with_its_adapters_off():
    model, first = adapted(), random_policy()
    twin = copy.deepcopy(model)
    ours = learn(model, reference=model, kl_coefficient=0.5)
    theirs = learn(twin, reference=first, kl_coefficient=0.5)
    assert ours["kl_reference"] > 0.01
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(trained(model), trained(twin), strict=True))
    with without_adapters(model):
        assert torch.equal(logits(model), logits(first))
    assert len(trained(model)) == 2 * LAYERS


# Weights for samplers


def test_a_policys_own_weights_are_its_parameters():
    model = random_policy()
    for (name, weight), (own, parameter) in zip(sampling_weights(model), model.named_parameters(), strict=True):
        assert name == own
        assert weight is parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_under_the_models_own_names(dtype):
    first, model = random_policy().to(dtype), adapted(dtype=dtype)
    own, found = dict(first.named_parameters()), dict(sampling_weights(model))
    assert list(found) == list(own)
    for name, weight in found.items():
        layer = adapted_layers(model).get(name.removesuffix(".weight"))
        change = 0.0 if layer is None else (layer.lora_B.default.weight @ layer.lora_A.default.weight) * (3.0 / 4)
        torch.testing.assert_close(weight, (own[name].float() + change).to(dtype), rtol=0, atol=0)


def test_layers_that_keep_their_weights_transposed_are_merged_too():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    add_adapters(model, rank=2, alpha=4.0, seed=0)
    for parameter in trained(model):
        parameter.data.normal_(std=0.1)
    torch.testing.assert_close(logits(plain_copy(model)), logits(model), rtol=1e-4, atol=1e-4)


def test_another_samplers_weights_are_the_merged_ones():
    model, other = adapted(), random_policy(seed=5)
    for module, in_place in ((other, False), (model, True)):
        sampler = TransformersSampler(module, TOKENIZER, seed=0, eos=(), in_place=in_place)
        sampler.load_weights(sampling_weights(model), 3)
        sampler.close()
        assert sampler.version == 3
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(plain_copy(model)), logits(model), rtol=1e-4, atol=1e-4)


# Files


def test_peft_reads_what_is_saved_and_saves_the_same(base, tmp_path):
    model = adapted(base)
    save_adapters(model, tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), tmp_path / "ours")
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((tmp_path / "ours" / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(config["target_modules"])
    torch.testing.assert_close(
        logits(load_model(str(tmp_path / "ours"), torch.float32)), logits(model), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_holds_the_adapters_and_goes_on_bit_for_bit(base, tmp_path, dtype):
    model, again = adapted(base, dtype=dtype), adapted(base, dtype=dtype, drawn=8)
    optimizers = [open_optimizer(trained(one), weight_decay=0.0) for one in (model, again)]
    learn(model, optimizer=optimizers[0])
    path = save_checkpoint(tmp_path, 1, model=model, optimizer=optimizers[0], trainer_state={"step": 1})
    assert not (path / "model.safetensors").exists()
    assert load_checkpoint(path, again, optimizers[1]) == {"step": 1}
    for one, optimizer in zip((model, again), optimizers, strict=True):
        learn(one, optimizer=optimizer)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_other_adapters_or_of_none_is_refused(base, tmp_path):
    model = adapted(base)
    path = save_checkpoint(
        tmp_path, 1, model=model, optimizer=open_optimizer(trained(model), weight_decay=0.0), trainer_state={}
    )
    wider, plain = adapted(base, rank=8), AutoModelForCausalLM.from_pretrained(base)
    before = [parameter.detach().clone() for parameter in trained(wider)]
    with pytest.raises(CheckpointError, match=r"lora_A\.weight is \(8, .*, found \(4, "):
        load_checkpoint(path, wider, open_optimizer(trained(wider), weight_decay=0.0))
    assert all(torch.equal(one, other) for one, other in zip(before, trained(wider), strict=True))
    with pytest.raises(CheckpointError, match=r"expected config\.json among its files"):
        load_checkpoint(path, plain, open_optimizer(plain.parameters(), weight_decay=0.0))


# Runs


def grpo(*arguments) -> None:
    run(GRPOConfig, GRPO, "", [str(argument) for argument in arguments])


LARGER = ("--lora-rank", 4, "--kl-coefficient", 0.05, "--gradient-checkpointing", "--dtype", "bfloat16")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    grpo(*short(base, folder), *LARGER)
    return folder


def adapters(folder: Path) -> bytes:
    return (folder / "checkpoints" / "step_000002" / "adapter_model.safetensors").read_bytes()


def test_a_run_learns_in_its_adapters(finished):
    steps = metrics(finished)
    assert all(step["kl_reference"] > 0 for step in steps)
    assert all(step["grad_norm"] > 0 for step in steps)
    folder = finished / "checkpoints" / "step_000002"
    assert not list(folder.glob("model*"))
    assert any(tensor.any() for name, tensor in load_file(folder / "adapter_model.safetensors").items() if "lora_B" in name)


def test_a_run_with_adapters_resumes_exactly(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000002")
    grpo("--resume", tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(finished)
    assert adapters(tmp_path / "run") == adapters(finished)


@pytest.mark.thorough
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_killed_run_with_adapters_is_one_that_was_not(base, tmp_path, layout):
    options = short(base, tmp_path / "whole", *LARGER, "--update", layout, env="learner_parts:tests/Parity-v0", steps=3)
    grpo(*options)
    command = [sys.executable, "-m", "learners.grpo"]
    places = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (FOLDER.parents[1], FOLDER)))}
    killed = tmp_path / "killed"
    options[options.index(str(tmp_path / "whole"))] = str(killed)
    child = subprocess.Popen([*command, *options], env=places, stdout=subprocess.DEVNULL)
    while child.poll() is None and not (killed / "checkpoints" / "step_000001").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    grpo("--resume", killed)
    assert metrics(killed) == metrics(tmp_path / "whole")


def test_a_checkpoint_with_adapters_is_a_policy_for_every_command(finished, tmp_path, capsys):
    folder = finished / "checkpoints" / "step_000002"
    played = ["--model", folder, "--turn-tokens", 24, "--total-tokens", 120, "--threads", 1]
    evaluate(
        [str(part) for part in (*played, "--env", "tests/Parity-v0", "--task-count", 4, "--output", tmp_path / "e.jsonl")]
    )
    assert json.loads((tmp_path / "e.jsonl.summary.json").read_text())["attempts"] == 4
    grpo(*short(folder, tmp_path / "on", steps=1))
    assert (tmp_path / "on" / "checkpoints" / "step_000001" / "model.safetensors").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        grpo(*short(folder, tmp_path / "again"), "--lora-rank", 2)
    assert "holds adapters already: merge them" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_sft_leaves_a_whole_policy_that_takes_adapters_again(base, finished, tmp_path):
    sft([*short(base, tmp_path / "sft", "--trajectories", finished, "--lora-rank", 2, steps=1)])
    whole = tmp_path / "sft" / "policy"
    assert not (whole / ADAPTER_CONFIG).exists()
    merged = load_model(str(tmp_path / "sft" / "checkpoints" / "step_000001"), torch.float32)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(whole).eval()), logits(merged.eval()))
    assert not torch.equal(logits(merged), logits(AutoModelForCausalLM.from_pretrained(base).eval()))
    grpo(*short(whole, tmp_path / "grpo", "--lora-rank", 2, steps=1))
    config = json.loads((tmp_path / "grpo" / "checkpoints" / "step_000001" / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(whole)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lora-rank", -1], "--lora-rank must not be negative, but is -1"),
        (["--lora-alpha", 8], "--lora-alpha 8 is of adapters, and there are none: give --lora-rank too"),
        (["--lora-rank", 2, "--lora-alpha", -8], "--lora-alpha must be above 0, not -8"),
    ],
)
def test_what_cannot_be_meant_is_refused(base, tmp_path, capsys, arguments, says):
    with pytest.raises(SystemExit) as caught:
        grpo(*short(base, tmp_path / "run"), *arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_adapters_have_a_learning_rate_and_a_scale_of_their_own():
    assert GRPOConfig(model="other").learning_rate == 1e-6
    config = GRPOConfig(model="other", lora_rank=8)
    assert (config.learning_rate, config.lora_alpha) == (pytest.approx(1e-5), 16.0)
    assert GRPOConfig(lora_rank=8, learning_rate=0.5, lora_alpha=1.0).learning_rate == 0.5
