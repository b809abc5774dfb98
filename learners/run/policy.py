"""The policy of a run: where its weights and its tokenizer come from, and on which device they live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import gymnasium as gym
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from learners.run.config import PlayConfig, RunConfig, UsageError
from learners.run.published import keep_as_published
from learners.run.tiny import tiny_policy
from learners.sampling.slots import limit_of_attention
from learners.update.adapters import add_adapters
from learners.update.recompute import recomputable_layers
from learners.update.tree_trial import refusal_of_trees
from learners.update.world import World

R = TypeVar("R", bound=RunConfig)


def load_policy(
    config: PlayConfig,
    make_env: Callable[[], gym.Env[Any, Any]],
    progress: Callable[[str, int, int], None],
    device: torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy that ``config.model`` names, in evaluation mode, and its tokenizer.

    Args:
        config: Names the policy.
        make_env: Makes the environment that the tiny policy is taught in.
        progress: Hears how far that is.
        device: Where to put it; default: where ``config`` has it.

    Raises:
        UsageError: There is no such model here, or the device or number format cannot be had.
    """
    computing = device_of(config)
    model: PreTrainedModel  # whose own `to` is typed wrongly
    tokenizer: PreTrainedTokenizerBase
    if config.model == "tiny":
        model, tokenizer = tiny_policy(make_env, progress=progress)
        if config.dtype == "bfloat16":
            torch.nn.Module.to(model, torch.bfloat16)
    else:
        dtype = config.dtype if config.dtype != "auto" else "float32" if computing.type == "cpu" else "bfloat16"
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.model)
            model = load_model(config.model, getattr(torch, dtype))
        except (OSError, ValueError) as problem:
            first = str(problem).strip().splitlines()[0]
            raise UsageError(
                f"--model {config.model} cannot be loaded (expected tiny, a model id or a folder): {first}"
            ) from None
    torch.nn.Module.to(model, device or computing)
    return model.eval(), tokenizer


def load_model(source: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """A causal language model; where there are only adapters, their base with them merged into its weights.

    It can be saved, whatever its publisher recommends for generation.

    Args:
        source: A Hugging Face id or a folder.
        dtype: Number format of its weights, or "auto" for that of its files.

    Raises:
        OSError, ValueError: There is no such model here, or no base for the adapters.
    """
    model: PreTrainedModel
    if find_adapter_config_file(source) is None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    else:
        model = AutoPeftModelForCausalLM.from_pretrained(source, dtype=dtype).merge_and_unload()
        model.requires_grad_(True)  # peft has frozen it
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if capped and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # PyTorch's kernel knows no cap, and would be given none
    keep_as_published(model)
    return model


def ready_to_learn(model: PreTrainedModel, config: RunConfig) -> None:
    """Gives a policy the adapters that the configuration asks for, once it is clear that it can be trained as told.

    Args:
        model: The policy that `load_policy` loaded, changed in place.
        config: How it is to be trained.

    Raises:
        UsageError: It cannot be trained like that.
    """
    if config.gradient_checkpointing and not recomputable_layers(model):
        raise UsageError(
            f"--gradient-checkpointing: {type(model).__name__} has no layers that could be computed again; leave it out"
        )
    if config.update == "tree" and (refusal := _refusal_of_trees(model, config)):
        raise UsageError(f"--update tree does not go with {type(model).__name__}: {refusal}; use --update padded")
    if not config.lora_rank:
        return
    if config.model != "tiny" and find_adapter_config_file(config.model) is not None:
        raise UsageError(
            f"--model {config.model} holds adapters already: merge them into their base first (docs/speed.md says how), "
            "or train all weights by --lora-rank 0"
        )
    try:
        add_adapters(model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    except ValueError as problem:
        first = str(problem).strip().splitlines()[0]
        raise UsageError(f"--lora-rank {config.lora_rank}: {first}; train all weights by --lora-rank 0") from None


def limit_for(model: PreTrainedModel, config: PlayConfig) -> str:
    """What keeps a policy from attending to the whole of a trajectory, or ""."""
    limit = limit_of_attention(model.config, config.total_tokens)
    return limit and f"it has {limit}, and --total-tokens is {config.total_tokens}"


def _refusal_of_trees(model: PreTrainedModel, config: RunConfig) -> str:
    """Why the policy cannot learn over trees on the device that it is going to, or ""."""
    if limit := limit_for(model, config):
        return limit
    before, device = model.device, device_of(config)
    if before.type == device.type:
        return refusal_of_trees(model)
    torch.nn.Module.to(model, device)  # it waits elsewhere to be sharded
    try:
        return refusal_of_trees(model)
    finally:
        torch.nn.Module.to(model, before)
        torch.cuda.empty_cache()


def device_of(config: PlayConfig) -> torch.device:
    """The device that ``config.device`` names."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and config.model != "tiny" else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as problem:
        raise UsageError(f"--device {config.device}: {str(problem).splitlines()[0]}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {config.device}: this torch sees no CUDA device; use --device cpu")
    return device


def is_deterministic(config: PlayConfig) -> bool:
    """Whether the run promises bit-equal reruns: what was asked for, else only the tiny policy on CPU does."""
    if config.deterministic is not None:
        return config.deterministic
    return config.model == "tiny" and device_of(config).type == "cpu"


def check_deterministic(config: PlayConfig) -> None:
    """Raises `UsageError` where bit-equal reruns are asked for and cannot be promised."""
    if is_deterministic(config) and device_of(config).type == "cuda":
        raise UsageError(
            "--deterministic: on a GPU some of the sums that sampling and learning need have no fixed order; use --device "
            "cpu, or --no-deterministic"
        )


def check_processes(config: RunConfig, world: World) -> None:
    """Raises `UsageError` where a run cannot be shared by these processes."""
    if world.size == 1:
        return
    if config.tasks_per_step < world.size:
        raise UsageError(
            f"--tasks-per-step {config.tasks_per_step} leaves some of {world.size} processes nothing to play: expected at "
            "least a group for each; use more groups or fewer processes"
        )
    if config.lora_rank:
        raise UsageError(
            f"--lora-rank {config.lora_rank}: adapters are trained in one process, and these are {world.size}: start it by "
            "python -m, without torchrun, or train all weights by --lora-rank 0"
        )
    if config.optimizer_device == "cpu":
        raise UsageError(
            f"--optimizer-device cpu: {world.size} processes keep a part each of what the optimiser has where their part of "
            "the policy is; leave it out, or use one process"
        )
    device = device_of(config)
    if device.type != "cuda":
        return
    if device.index is not None:
        raise UsageError(f"--device {config.device}: each process takes a GPU of its own; use --device cuda")
    if torch.cuda.device_count() < world.size:
        raise UsageError(
            f"expected a GPU for each of {world.size} processes, found {torch.cuda.device_count()}: use torchrun "
            f"--nproc-per-node {torch.cuda.device_count()}"
        )


def part_of(config: R, world: World) -> R:
    """What one process of a run is told: its part of the trajectories that are live at once, and of the CPU's threads."""
    if world.size == 1:
        return config
    concurrency = -(-config.concurrency // world.size)
    return replace(config, concurrency=concurrency, threads=max(1, config.threads // world.size))


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """Every id that ends an assistant's turn: the tokenizer's, and those that the model was published with."""
    return ends_of(model.generation_config, tokenizer)


def ends_of(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """`end_ids`, where all that is there of a model is how it was published."""
    published = getattr(generation, "eos_token_id", None)
    listed = published if isinstance(published, list) else [] if published is None else [published]
    return sorted({tokenizer.eos_token_id, *listed} - {None})
