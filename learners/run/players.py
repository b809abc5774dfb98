"""Who plays: a run's policy with all that it needs to act, and what is written down about how it did.

Training and collecting both stand on this: a policy, a sampler over it, an engine over an environment, the records of what
was played, and when environment faults are too many.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agent_envs.registration import full_id
from learners.rollout.engine import Engine
from learners.rollout.episode import Limits
from learners.rollout.rendering import Renderer, TokenizerError
from learners.rollout.tree import RolloutTree
from learners.run.config import PlayConfig, UsageError
from learners.run.policy import check_deterministic, device_of, end_ids, is_deterministic, limit_for, load_policy
from learners.run.report import stage_progress
from learners.run.served import ServedPolicy
from learners.sampling.request import too_cold
from learners.sampling.sampler import Sampler, SamplerFault
from learners.sampling.transformers import TransformersSampler
from learners.sampling.trial import refusal_of_kept_caches
from learners.update.weights import plain_copy, sampling_weights
from tracebank.trajectory import Trajectory

logger = logging.getLogger(__name__)

PHASES = {"train": 0, "sampled": 1, "greedy": 2, "collect": 3}
"""First number of every place in a run: what is drawn for one phase is never drawn for another."""


class TooManyFaults(RuntimeError):
    """Environment faults are not rare: what is left of the batch would be a biased sample."""


@dataclass(frozen=True)
class Policy:
    """A policy that can act.

    Args:
        model: Its weights, in evaluation mode.
        tokenizer: Its tokenizer.
        renderer: Turns a format's messages into its tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer


def open_policy(config: PlayConfig, make_env: Callable[[], gym.Env[Any, Any]], device: torch.device | None = None) -> Policy:
    """The policy that the configuration names; sets torch's threads and its determinism on the way.

    Args:
        config: Names the policy.
        make_env: Makes the environment that the tiny policy is taught in.
        device: Where to put it; default: where ``config`` has it.

    Raises:
        UsageError: There is no such model here, none that can talk to the environment, or no bit-equal reruns.
    """
    check_deterministic(config)
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(is_deterministic(config))
    with stage_progress("teaching the tiny policy") as progress:
        model, tokenizer = load_policy(config, make_env, progress, device)
    try:
        return Policy(model, tokenizer, Renderer(tokenizer))
    except TokenizerError as problem:
        raise UsageError(f"--model {config.model}: {problem}") from None


def open_sampler(config: PlayConfig, policy: Policy, *, own_weights: bool = False) -> Sampler:
    """What samples from the policy.

    Args:
        config: Names the sampler and its options.
        policy: What it samples from.
        own_weights: Whether it must have weights of its own, which nothing but `Sampler.load_weights` changes.

    Raises:
        UsageError: The sampler that was asked for is not installed, or cannot do what else was asked for, or not with this
            policy.
    """
    assert config.sampler != "server", "learners.run.served opens that one"
    model, tokenizer = policy.model, policy.tokenizer
    ends = end_ids(model, tokenizer)
    if _takes_vllm(config):
        from learners.sampling.vllm import VllmSampler  # an extra, which takes seconds to load

        try:
            sampler: Sampler = VllmSampler(
                model,
                tokenizer,
                weights=sampling_weights(model),
                seed=config.seed,
                eos=ends,
                length=config.total_tokens,
                concurrency=config.concurrency,
                entropy="top-k" if config.entropy == "auto" else config.entropy,
                entropy_top=config.entropy_top,
                memory=config.vllm_memory,
            )
        except SamplerFault as problem:
            raise UsageError(f"{problem}; try another --vllm-memory, or --sampler transformers") from problem
        return sampler
    playing: PreTrainedModel = torch.nn.Module.to(plain_copy(model), device_of(config)) if own_weights else model
    if refusal := limit_for(playing, config) or refusal_of_kept_caches(playing):
        raise UsageError(
            f"--sampler transformers does not go with {type(playing).__name__}: {refusal}; use --sampler vllm, or another "
            "model"
        )
    return TransformersSampler(
        playing,
        tokenizer,
        seed=config.seed,
        eos=ends,
        deterministic=is_deterministic(config),
        entropy="full" if config.entropy == "auto" else config.entropy,
        entropy_top=config.entropy_top,
        length=config.total_tokens,
        in_place=not own_weights,
    )


def _takes_vllm(config: PlayConfig) -> bool:
    """Whether vLLM samples. Where it was asked for and cannot, that is an error; ``auto`` says what it took and why."""
    refusal = _refusal_of_vllm(config)
    if not 0 < config.vllm_memory < 1:
        raise UsageError(f"--vllm-memory is a share, above 0 and below 1, not {config.vllm_memory}")
    if config.sampler == "vllm" and refusal:
        raise UsageError(f"--sampler vllm: {refusal}; or use --sampler transformers")
    if config.sampler == "auto":
        if not refusal and device_of(config).type != "cuda":
            refusal = "the policy is not on a GPU: ask for vLLM by --sampler vllm"
        logger.info("sampler: %s", f"transformers; {refusal}" if refusal else "vllm, which is installed, and there is a GPU")
    return not refusal and config.sampler != "transformers"


def _refusal_of_vllm(config: PlayConfig) -> str:
    """Why vLLM cannot sample in this run, or ""."""
    if find_spec("vllm") is None:
        return "vLLM is not installed here: pip install 'agent-envs[vllm]'"
    if is_deterministic(config):
        return "it cannot promise bit-equal reruns: give them up by --no-deterministic"
    if config.entropy == "full":
        return "it tells no entropies of the whole vocabulary: use --entropy top-k"
    return too_cold(config.temperature)


def open_engine(
    config: PlayConfig,
    make_env: Callable[[], gym.Env[Any, Any]],
    policy: Policy | ServedPolicy,
    sampler: Sampler,
    *,
    group_size: int,
) -> Engine:
    """What plays groups of up to ``group_size`` trajectories in an environment."""
    return Engine(
        make_env,
        sampler,
        policy.renderer,
        limits=Limits(config.turn_tokens, config.total_tokens, config.cut_reward),
        concurrency=max(config.concurrency, group_size),
        deterministic=is_deterministic(config),
        top_p=config.top_p,
        top_k=config.top_k,
    )


def records_of(
    tree: RolloutTree, config: PlayConfig, *, format: str, split: str, step: int, source: str
) -> list[Trajectory]:
    """The records of a group's trajectories.

    Args:
        tree: The group.
        config: Names the environment.
        format: Name of the action format.
        split: The split that the task belongs to.
        step: When it was played; see `tracebank.trajectory.Trajectory`.
        source: Who played.
    """
    environment = full_id(config.env)
    return [
        tree.trajectory(leaf, environment=environment, format=format, split=split, step=step, source=source)
        for leaf in tree.leaves
    ]


def refuse_too_many_faults(faults: Iterable[str], most: float) -> None:
    """Raises `TooManyFaults` where environment faults are not rare.

    Args:
        faults: The fault that ended each trajectory of a batch, or "".
        most: The largest share of faults that is put up with.
    """
    told = list(faults)
    broken = Counter(fault for fault in told if fault)
    share = broken.total() / len(told) if told else 0.0
    if share > most:
        commonest, times = broken.most_common(1)[0]
        raise TooManyFaults(
            f"{share:.0%} of the trajectories ended in environment faults, more than --max-fault-share {most:.0%}; "
            f"{times} times: {commonest}"
        )


def seed_of(*place: int) -> int:
    """A seed below 2**31 for a place in the run, which is all that it depends on."""
    text = ",".join(map(str, place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1
