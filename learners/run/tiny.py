"""The ``tiny`` policy: a Qwen3-shaped model of under a million parameters that is built and taught where it is used.

It makes every part of a run real on a bare machine: a real tokenizer with a chat template, a real causal language model, a
policy that can already act, but badly. It reads bytes, each tag of the formats and of the environment's tools as one token,
and so the pieces that its tasks are largely made of; its chat template leaves the system prompt out, since so small a model
reads no instructions.

It is taught by a short supervised warm start with a seed of its own: first on episodes of the environment's oracle, then on
a mix in which most episodes hold a mistake, so that something is left to learn, and some a step of another episode, so that
it can read one (`learners.run.teacher`). The result is cached under a hash of all that goes into it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agent_envs.actions import HermesFormat
from agent_envs.env import ToolEnv
from agent_envs.tool import Tool
from learners.rollout.rendering import Renderer
from learners.run.teacher import Teacher
from learners.update.supervised import fit

TAGS = ("think", "python", "search", "browse", "result", "answer", "retrieve")

_CHAT_TEMPLATE = (
    "{%- for message in messages if message.role != 'system' -%}"
    "<|{{ 'assistant' if message.role == 'assistant' else 'user' }}|>{{ message.content }}<|end|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@dataclass(frozen=True)
class Recipe:
    """How the policy is built and taught.

    Args:
        hidden, layers, heads, key_value_heads, head_size, feed_forward: Its shape.
        weight_std: Standard deviation of its first weights, before the circuit that copies is put into them.
        rope_theta: Base of its positions.
        seed: Of its weights, its episodes and its batches.
        clean_episodes, clean_steps: Episodes of the oracle, and optimiser steps on them.
        mixed_episodes, mixed_steps: The same for the second part.
        spoilt_share: Share of the second part's episodes that hold a mistake.
        retrieved_share: Share of the second part's steps after which a step of another episode is read.
        batch_size: Episodes an optimiser step.
        learning_rate, matrix_learning_rate: Peak learning rates of the first part, of AdamW for embeddings and norms and of
            Muon for the matrices between them; the second part has a third of both.
        copied_weight: Weight of the tokens that the policy does not write but could copy, since they followed the same token
            earlier on.
        context_weight: Weight of the other tokens that it does not write.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 4
    head_size: int = 64
    feed_forward: int = 256
    weight_std: float = 0.06
    rope_theta: float = 10_000.0
    seed: int = 2026
    clean_episodes: int = 4096
    clean_steps: int = 320
    mixed_episodes: int = 1024
    mixed_steps: int = 100
    spoilt_share: float = 0.6
    retrieved_share: float = 0.5
    batch_size: int = 24
    learning_rate: float = 8e-3
    matrix_learning_rate: float = 2e-2
    copied_weight: float = 0.5
    context_weight: float = 0.03


def tiny_tokenizer(vocabulary: Sequence[str] = (), tags: Sequence[str] = TAGS) -> PreTrainedTokenizerFast:
    """Bytes, digits two by two, and one token for each tag, for ``\\boxed{`` and for the turns of a conversation.

    Args:
        vocabulary: Further texts that are one token each, such as the words of an environment's own tasks.
        tags: Names of the tags.
    """
    pairs = [(first, second) for first in "0123456789" for second in "0123456789"]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in pairs)]
    words = [*dict.fromkeys([*words, *map(_byte_level, vocabulary)])]
    tokenizer = Tokenizer(
        models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=pairs, ignore_merges=bool(vocabulary))
    )
    pieces = [*map(re.escape, sorted(vocabulary, key=lambda text: (-len(text), text))), r"\d{1,2}"]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(pieces)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|end|>", "<|user|>", "<|assistant|>")])
    spelled = [text for tag in tags for text in (f"<{tag}>", f"</{tag}>")]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*spelled, "\\boxed{")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=_CHAT_TEMPLATE
    )


def _byte_level(text: str) -> str:
    """A text as the byte-level alphabet spells it."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def untaught(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model before its warm start."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.head_size,
        max_position_embeddings=8192,
        initializer_range=recipe.weight_std,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: PreTrainedModel = Qwen3ForCausalLM(config).eval()
        _ready_to_copy(model, recipe.rope_theta)
        return model


@torch.no_grad()
def _ready_to_copy(model: Any, theta: float) -> None:
    """Puts the circuit by which language models copy into the first weights; training finds it only after many minutes.

    It is the circuit of Olsson et al. 2022 (arXiv 2209.11895): a head of the first layer leaves at each position what stood
    before it, and a head of the second looks for the position that was left the present token, that is to say for what
    followed that token earlier. All tokens share a direction, by which the first one finds its position whatever stands
    there. The values of every other head are written back as they were read (mimetic initialisation, Trockman and Kolter
    2023, arXiv 2305.09828), so that what it looks at becomes likelier.
    """
    embeddings: torch.Tensor = model.get_input_embeddings().weight
    hidden = embeddings.shape[1]
    shared = torch.randn(hidden)
    embeddings += embeddings.std() * shared
    shared /= shared.norm()
    others = torch.eye(hidden) - torch.outer(shared, shared)  # all directions but the shared one
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.v_proj.weight.copy_(attention.v_proj.weight @ others)
        values = attention.v_proj.weight.unflatten(0, (-1, attention.head_dim))  # [key and value heads, head size, hidden]
        attention.o_proj.weight.copy_(values.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1).T)
        layer.mlp.down_proj.weight *= 0.05
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    size = first.head_dim
    half = size // 2
    first.o_proj.weight *= 0.05  # so that the second layer sees the tokens and what was before them, and little else

    # Rotary positions: a query that is turned on by one step in the fast dimensions fits best to the key before it.
    fast = torch.arange(4)
    turn = theta ** (-fast / half)
    key, query = torch.zeros(2, size)
    key[fast] = 1.0
    query[fast], query[half + fast] = turn.cos(), -turn.sin()
    first.k_proj.weight[:size] = torch.outer(key, shared)
    first.q_proj.weight[:size] = torch.outer(query, shared)
    read = torch.linalg.qr(torch.randn(hidden, hidden))[0][:size] @ others
    left = torch.linalg.qr(torch.randn(hidden, hidden))[0][:, :size]
    first.v_proj.weight[:size] = read * embeddings.std()
    first.o_proj.weight[:, :size] = 2.0 * left

    # The second head compares in the slow dimensions, which hardly turn over a few hundred tokens.
    compare = torch.linalg.qr(torch.randn(size, size))[0]
    compare[: half // 2] = compare[half : half + half // 2] = 0.0
    second.q_proj.weight[:size] = 0.5 * compare @ read
    second.k_proj.weight[:size] = 0.5 * compare @ left.T


def tiny_policy(
    make_env: Callable[[], gym.Env[Any, Any]],
    *,
    recipe: Recipe | None = None,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny policy for an environment, from the cache or taught now.

    Args:
        make_env: Makes the environment that it is to act in, with training tasks.
        recipe: How; default: `Recipe`'s own.
        cache: Folder of finished policies; default: ``$AGENT_ENVS_CACHE``, else ``~/.cache/agent-envs``.
        progress: Called with the stage, what is done and what there is to do.

    Returns:
        The model and its tokenizer.
    """
    recipe = recipe or Recipe()
    cache = cache or Path(os.environ.get("AGENT_ENVS_CACHE", "~/.cache/agent-envs")).expanduser()
    tokenizer = _tokenizer_for(make_env)
    teacher = Teacher(
        make_env,
        Renderer(tokenizer),
        seed=recipe.seed,
        copied_weight=recipe.copied_weight,
        context_weight=recipe.context_weight,
    )
    folder = cache / "tiny" / _fingerprint(recipe, tokenizer, teacher)
    if not folder.exists():
        model = untaught(recipe, tokenizer)
        _teach(model, teacher, recipe, progress)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unfinished-"))
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first; its result is the same
            shutil.rmtree(unfinished)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _tokenizer_for(make_env: Callable[[], gym.Env[Any, Any]]) -> PreTrainedTokenizerFast:
    """The tokenizer that knows what the environment's tasks are made of, and the tags of its format and of its tools."""
    environment = make_env()
    environment.close()
    tool_env = environment.unwrapped
    if not isinstance(tool_env, ToolEnv):
        return tiny_tokenizer()
    vocabulary = tuple(tool_env.tasks.vocabulary)
    if isinstance(tool_env.format, HermesFormat):
        vocabulary += tuple(piece for piece in _pieces_of_calls(tool_env.tools) if piece not in vocabulary)
    spelled = "".join(tool_env.format.stop(tool_env.tools)) + tool_env.format.observe("").text
    tags = dict.fromkeys((*TAGS, *re.findall(r"</(\w+)>", spelled)))
    return tiny_tokenizer(vocabulary, tuple(tags))


def _pieces_of_calls(tools: Sequence[Tool]) -> tuple[str, ...]:
    """What calls as JSON are made of beside their values: spelled in bytes, it would take most of a turn's tokens."""
    names = ["name", "arguments"]
    for tool in tools:
        names += [tool.name, *tool.parameters.get("properties", {})]
    return ('{"', '": "', '", "', '": {"', '"}}', *dict.fromkeys(name for name in names if len(name) > 1))


def _fingerprint(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, teacher: Teacher) -> str:
    """A hash of all that the weights depend on: this code, the teacher's and his episodes, the libraries, the recipe."""
    probe = teacher.episodes(16, spoilt_share=0.5, stage="fingerprint", retrieved_share=0.5)
    parts = (
        *(inspect.getsource(sys.modules[module]) for module in (__name__, Teacher.__module__)),
        torch.__version__,
        transformers.__version__,
        str(torch.get_num_threads()),
        json.dumps(asdict(recipe)),
        tokenizer.backend_tokenizer.to_str(),
        json.dumps([list(example.ids) for example in probe]),
    )
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def _teach(model: PreTrainedModel, teacher: Teacher, recipe: Recipe, progress: Callable[[str, int, int], None]) -> None:
    """The warm start."""
    model.train()
    parts = (
        ("clean", recipe.clean_episodes, 0.0, 0.0, recipe.clean_steps, 1.0),
        ("mixed", recipe.mixed_episodes, recipe.spoilt_share, recipe.retrieved_share, recipe.mixed_steps, 1 / 3),
    )
    total = recipe.clean_steps + recipe.mixed_steps
    begun = 0
    for stage, count, spoilt_share, retrieved_share, steps, share_of_rate in parts:
        progress(f"{stage} episodes", begun, total)
        examples = teacher.episodes(count, spoilt_share=spoilt_share, stage=stage, retrieved_share=retrieved_share)
        fit(
            model,
            examples,
            optimizers=optimizers(model, recipe, share_of_rate),
            steps=steps,
            batch_size=recipe.batch_size,
            rng=np.random.default_rng([recipe.seed, begun]),
            report=lambda step, loss, stage=stage, begun=begun: progress(  # type: ignore[misc]
                f"{stage} episodes, loss {loss:.2f}", begun + step + 1, total
            ),
        )
        begun += steps
    model.eval()


def optimizers(model: PreTrainedModel, recipe: Recipe, share_of_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices, which learns to copy in half of AdamW's steps; AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    rate = recipe.learning_rate * share_of_rate
    return [
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95)),
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate * share_of_rate, weight_decay=0.0),
    ]
