"""The configuration of a run: a dataclass that is the command line, the ``config.yaml`` of the run folder, and nothing else.

`PlayConfig` is what every command is told that rolls out a policy, `RunConfig` what is trained by besides; a learner's own
configuration extends that with its algorithm's options. What a user gets wrong is a `UsageError`: one line that says what
was expected, what was found and what to do; the command line prints it and exits with code 2.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import gymnasium as gym
import yaml
from gymnasium.envs.registration import load_env_creator

import agent_envs
from agent_envs.registration import env_arguments, full_id
from learners.sampling.entropy import EntropyKind


class UsageError(ValueError):
    """Something that the user asked for cannot be done as asked."""


@dataclass(frozen=True)
class PlayConfig:
    """Who plays in what: the options of everything that rolls out a policy."""

    env: str = "MathTool-v0"
    """Environment id. With ':' or '/' it is used as it is (module:id is Gymnasium's convention); else agent_envs/NAME if
    registered, else NAME."""
    tasks: str | None = None
    """Task source of the environment, such as gsm8k, a JSONL file or reasoning_gym:chain_sum; default: its own."""
    env_args: str = "{}"
    """Further arguments of the environment, a JSON object."""
    model: str = "tiny"
    """The policy: tiny (built and taught here, no download), a Hugging Face id, or a folder."""
    seed: int = 0
    """Seed of all that is left to chance."""

    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability; 1: from all. Not while training."""
    top_k: int = 0
    """Sample from so many of the likeliest tokens; 0: from all. Not while training."""
    turn_tokens: int = 0
    """Tokens that the policy may write in a turn. 0: 64 for the tiny policy, 1024 for any other."""
    total_tokens: int = 0
    """Tokens of a whole trajectory, prompt and tool results included. 0: 512 for the tiny policy, 4096 for any other."""
    cut_reward: float = -1.0
    """Added to the return of a trajectory that a token limit cut (learners/rollout/episode.py has the rule)."""
    concurrency: int = 256
    """Trajectories that are live at once."""
    max_fault_share: float = 0.1
    """The run stops when a larger share of a batch's trajectories ends in environment faults."""

    sampler: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """What samples: transformers (in process), vllm (its engine, which the extra vllm installs), or server (a server
    elsewhere, to collect and to evaluate with). auto takes vllm where it is installed, the policy is on a GPU, and neither
    bit-equal reruns nor full entropies are asked for."""
    vllm_memory: float = 0.4
    """Share of a GPU's memory that vLLM may take for its weights and caches; on CPU, of the machine's for its caches."""
    server: str | None = None
    """Address of the server of --sampler server, such as http://host:8000/v1. Its key, where it wants one, is in the
    environment variable OPENAI_API_KEY. --model then names the tokenizer, and no weights are loaded."""
    served_model: str | None = None
    """The model's name on the server; default: --model."""
    entropy: Literal["auto"] | EntropyKind = "auto"
    """What the sampler's entropies are: of the whole vocabulary, the middle of what the likeliest tokens leave possible,
    those tokens' part of the sum (the papers' released codes), or the sampled token's surprisal. auto: full, or top-k from
    vllm, which cannot tell the first."""
    entropy_top: int = 20
    """How many of the likeliest tokens top-k and top-k-sum look at."""
    device: str = "auto"
    """Device of the policy: auto, cpu, cuda."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the policy; auto: float32 on CPU, bfloat16 elsewhere."""
    threads: int = 0
    """CPU threads of the policy's arithmetic; part of what makes two runs equal. 0: one for the tiny policy, which leaves
    the other cores to its tools, else all."""
    deterministic: bool | None = None
    """Bit-equal reruns and resumes, on a CPU alone (--deterministic, --no-deterministic); default: for the tiny policy."""

    def __post_init__(self) -> None:
        for name, value in self.unset().items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    def unset(self) -> dict[str, float]:
        """What the options mean that are left at 0."""
        tiny = self.model == "tiny"
        return {
            "turn_tokens": 64 if tiny else 1024,
            "total_tokens": 512 if tiny else 4096,
            "threads": 1 if tiny else os.cpu_count() or 1,
        }

    def save(self, path: Path) -> None:
        """Writes the configuration, with its learner's name, as YAML."""
        path.write_text(yaml.safe_dump({"learner": learner_name(type(self)), **dataclasses.asdict(self)}, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote. Raises `UsageError` where it is another learner's, or not readable."""
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as problem:
            raise UsageError(f"{path} cannot be read: {problem}") from None
        if not isinstance(values, dict) or "learner" not in values:
            raise UsageError(f"{path} is no run configuration: expected a mapping with the key 'learner'")
        learner = values.pop("learner")
        if learner != learner_name(cls):
            raise UsageError(f"{path} is of a run of the learner {learner!r}, not of {learner_name(cls)!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"{path} has options that this version does not know: {', '.join(unknown)}")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**(values | lists))


@dataclass(frozen=True)
class RunConfig(PlayConfig):
    """What every learner's run is told beside.

    Attributes:
        PRESETS: What ``--preset`` may name, and the options that each stands for, as on a command line. A learner that has
            some has an option ``preset``; what is written out goes before it.
    """

    PRESETS: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    output: str | None = None
    """Run folder; default: a new one under runs/."""
    resume: str | None = None
    """Run folder to go on with, from its newest checkpoint. Other options then default to that run's."""

    steps: int = 40
    """Batches to learn from."""
    tasks_per_step: int = 16
    """Groups in a batch."""
    learning_rate: float = 0.0
    """Peak learning rate of AdamW. 0: 3e-4 for the tiny policy, 1e-6 for any other; with adapters ten times that."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup_steps: int = 0
    """Batches over which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    optimizer_device: Literal["auto", "cpu"] = "auto"
    """Where AdamW keeps its moments, and float32 copies of weights that are in another format, and takes its steps: auto is
    beside the policy, cpu the machine's memory."""
    lora_rank: int = 0
    """Rank of adapters (LoRA), which are trained in place of the policy's weights, on every linear layer but the output head
    and no experts of a mixture; 0 for none."""
    lora_alpha: float = 0.0
    """What the adapters add is multiplied by this over their rank. 0: twice the rank."""
    epochs: int = 1
    """Passes over a batch."""
    minibatch_groups: int | None = None
    """Groups an optimiser step; 0: the whole batch. Default: 4, or the whole batch where that is less."""
    micro_tokens: int = 4096
    """Tokens in one forward and backward pass, padding included; changes memory, not results."""
    update: Literal["tree", "padded"] = "tree"
    """What forward and backward passes run over: trees, in which tokens that trajectories share are computed once, or each
    trajectory by itself, padded to the longest. Changes time and memory, not results."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more arithmetic,
    the same results."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: they are left as they are."""
    importance_cap: float | None = None
    """Weigh each token's loss by how much likelier it was to the trainer than to the sampler, at most by this (truncated
    importance sampling); 0: no weights. Default: 0, or 2 with --async-steps 1."""
    async_steps: int = 0
    """1: the next batch is played while this one is learned from, by weights that are one step behind; 0: in turn."""

    eval_tasks: int = 200
    """Held-out tasks of each evaluation."""
    eval_every: int = 0
    """Steps between evaluations during training; 0: only before and after."""
    train_split: str = "train"
    """Split to train on, where the environment has splits."""
    eval_split: str = "test"
    """Held-out split, where the environment has splits."""
    checkpoint_every: int = 5
    """Steps between checkpoints; there is always one at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatch_groups is None:
            object.__setattr__(self, "minibatch_groups", min(4, self.tasks_per_step))

    def unset(self) -> dict[str, float]:
        return {**super().unset(), "learning_rate": self.usual_rate(1e-6), "lora_alpha": 2.0 * self.lora_rank}

    def usual_rate(self, rate: float) -> float:
        """The peak learning rate where none is given, of a learner whose usual one is ``rate``; adapters take a larger one
        (Schulman et al. 2025, "LoRA without regret")."""
        usual = 3e-4 if self.model == "tiny" else rate
        return 10 * usual if self.lora_rank else usual


def learner_name(config_class: type[PlayConfig]) -> str:
    """The name of the learner or command that a configuration belongs to: ``grpo`` of GRPOConfig, ``leave_one_out`` of
    LeaveOneOutConfig."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", config_class.__name__.removesuffix("Config")).lower()


def environment_maker(config: PlayConfig, split: str) -> Callable[[], gym.Env[Any, Any]]:
    """What makes the environment of a run.

    Args:
        config: Names the environment and its arguments.
        split: Given to the environment where it takes one.

    Returns:
        A function that makes one environment.

    Raises:
        UsageError: There is no such environment, or it does not take these arguments.
    """
    try:
        arguments = env_arguments(config.env_args)
    except ValueError as problem:
        raise UsageError(f"--env-args {problem}") from None
    name = full_id(config.env)
    try:
        module, _, id = name.rpartition(":")
        if module:
            importlib.import_module(module)
        spec = gym.spec(id)
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (gym.error.Error, ImportError, AttributeError) as problem:
        known = sorted(id.removeprefix("agent_envs/") for id in gym.registry)
        close = difflib.get_close_matches(config.env, known, n=3)
        hint = f"; close: {', '.join(close)}" if close else f"; ours: {', '.join(sorted(agent_envs.ENVIRONMENTS))}"
        raise UsageError(f"--env {config.env}: there is no such environment ({str(problem).rstrip('.')}){hint}") from None
    assert creator is not None
    taken = inspect.signature(creator).parameters
    if "split" in taken:
        arguments.setdefault("split", split)
    if config.tasks is not None:
        if "tasks" not in taken:
            raise UsageError(f"--tasks {config.tasks}: the environment {name} takes no task source")
        arguments["tasks"] = config.tasks
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    if not open_ended and (unknown := sorted(set(arguments) - set(taken))):
        raise UsageError(f"--env-args: {name} takes no {', '.join(unknown)}; it takes {', '.join(sorted(taken))}")

    def make() -> gym.Env[Any, Any]:
        return gym.make(name, disable_env_checker=True, **arguments)

    try:
        make().close()
    except (ValueError, TypeError, OSError, ImportError) as problem:
        raise UsageError(f"--env {config.env}: {problem}") from None
    return make


def check(config: RunConfig) -> None:
    """Raises `UsageError` for values of a training run that cannot be meant."""
    positive = ("steps", "tasks_per_step", "epochs", "micro_tokens", "eval_tasks", "checkpoint_every")
    check_least(config, 1, (*PLAY_POSITIVE, *positive))
    not_negative = ("minibatch_groups", "warmup_steps", "eval_every", "seed", "learning_rate", "lora_rank", "max_grad_norm")
    check_least(config, 0, not_negative)
    if config.sampler == "server" or config.server is not None:
        raise UsageError(
            "--sampler server: a server takes no new weights, so nothing can be trained with it; train with --sampler vllm "
            "or transformers, and collect or evaluate with a server"
        )
    if config.lora_alpha and not config.lora_rank:
        raise UsageError(f"--lora-alpha {config.lora_alpha:g} is of adapters, and there are none: give --lora-rank too")
    if config.lora_alpha < 0:
        raise UsageError(f"--lora-alpha must be above 0, not {config.lora_alpha:g}")
    if not config.temperature > 0:
        raise UsageError(f"--temperature must be above 0 to explore, not {config.temperature}")
    check_decoding(config)
    if config.top_p < 1 or config.top_k:
        cut = f"--top-p {config.top_p}" if config.top_p < 1 else f"--top-k {config.top_k}"
        raise UsageError(
            f"{cut}: a training run must sample from all tokens, since the trainer's probabilities are over all of them and "
            "every ratio to the sampler's would be biased (to a mean of 0.9 at --top-p 0.8); collect and evaluate can cut"
        )
    if config.async_steps not in (0, 1):
        raise UsageError(
            f"--async-steps must be 0 or 1, not {config.async_steps}: staleness is bounded, and batches are played one step "
            "ahead of the weights at the most"
        )
    if config.importance_cap is not None and not config.importance_cap >= 0:
        raise UsageError(f"--importance-cap must be above 0, or 0 for no importance weights, not {config.importance_cap}")
    if config.minibatch_groups and config.minibatch_groups > config.tasks_per_step:
        raise UsageError(
            f"--minibatch-groups {config.minibatch_groups} is more than the {config.tasks_per_step} groups of a batch"
        )


PLAY_POSITIVE = ("turn_tokens", "total_tokens", "concurrency", "threads", "entropy_top")
"""The options of `PlayConfig` that must be at least 1."""


def check_decoding(config: PlayConfig) -> None:
    """Raises `UsageError` for a cut of what is sampled from that cannot be meant."""
    if not 0.0 < config.top_p <= 1.0:
        raise UsageError(f"--top-p must be above 0 and at most 1, not {config.top_p}")
    check_least(config, 0, ("top_k",))


def check_least(config: PlayConfig, least: int, names: Sequence[str]) -> None:
    """Raises `UsageError` where one of these options is less than that."""
    for name in names:
        if not getattr(config, name) >= least:  # nor NaN
            told = "must not be negative, but is" if least == 0 else f"must be at least {least}, not"
            raise UsageError(f"--{name.replace('_', '-')} {told} {getattr(config, name)}")
