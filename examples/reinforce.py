"""DeepSearch-v0 in a training loop of one's own, with nothing but Gymnasium, torch and transformers: REINFORCE.

    python -m examples.reinforce --model Qwen/Qwen3-0.6B --device cuda

``--model`` is any causal language model with a chat template, by its Hugging Face id or its folder. Without one a small
random model that reads bytes takes its place: every line runs, on any machine and without a download, but nothing is learnt,
since a policy that never finds an answer has no return to learn from.

Two things make such a loop right. What is trained on are the very tokens that were sampled, never a text that was decoded
and encoded again; and of those only what the model wrote itself counts, not the question and not what the tools gave back.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, Qwen3Config, Qwen3ForCausalLM

import agent_envs  # noqa: F401 - registers the ids


class Rollout(NamedTuple):
    """An episode: its tokens, which of them the model wrote, the return, and whether the answer was right."""

    ids: list[int]
    written: list[bool]
    total: float
    success: bool


def play(env: gym.Env[str, str], model: Any, tokenizer: Any, seed: int, turn_tokens: int) -> Rollout:
    """Plays one episode; an action ends at a stop string of the environment's format or after ``turn_tokens`` tokens."""
    question, _ = env.reset(seed=seed)
    inner: Any = env.unwrapped
    opening = inner.format.opening(question, inner.system_prompt, inner.tools)
    messages = [{"role": message.role, "content": message.text} for message in opening]
    ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    written, total, over = [False] * len(ids), 0.0, False
    info: dict[str, Any] = {}
    while not over:
        before = torch.tensor([ids], device=model.device)
        after = model.generate(
            before,
            attention_mask=torch.ones_like(before),
            max_new_tokens=turn_tokens,
            do_sample=True,
            temperature=1.0,  # with no cut of the distribution: the loss is that of these very samples
            top_k=0,
            top_p=1.0,
            stop_strings=list(inner.format.stop(inner.tools)),
            tokenizer=tokenizer,
            pad_token_id=tokenizer.pad_token_id,
        )
        action = after[0, len(ids) :].tolist()
        observation, reward, terminated, truncated, info = env.step(tokenizer.decode(action, skip_special_tokens=True))
        result = tokenizer.encode(inner.format.observe(observation).text, add_special_tokens=False)
        total, over = total + float(reward), terminated or truncated
        ids += action if over else action + result
        written += [True] * len(action) + [False] * (len(ids) - len(written) - len(action))
    return Rollout(ids, written, total, bool(info.get("success", False)))


def update(model: Any, optimizer: torch.optim.Optimizer, rollouts: list[Rollout]) -> float:
    """One step of REINFORCE; the baseline of an episode is the mean return of the others. Gives back the loss."""
    returns = torch.tensor([rollout.total for rollout in rollouts])
    advantages = (returns - (returns.sum() - returns) / (len(rollouts) - 1)).tolist()
    count, loss = sum(sum(rollout.written) for rollout in rollouts), 0.0
    optimizer.zero_grad()
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        ids = torch.tensor([rollout.ids], device=model.device)
        written = torch.tensor(rollout.written[1:], device=model.device)
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        part = -advantage * logprobs[written].sum() / count
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss


def random_model() -> tuple[Any, Any]:
    """A small model that has learnt nothing, and a tokenizer of bytes."""
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    tokenizer = ByT5Tokenizer(extra_ids=0, chat_template=template)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config), tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", default="agent_envs/DeepSearch-v0")
    parser.add_argument("--model", help="Hugging Face id or folder (a small random model)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=8, help="episodes a step")
    parser.add_argument("--turn-tokens", type=int, default=64, help="tokens that an action may have")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    if options.model:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    else:
        model, tokenizer = random_model()
    model.to(options.device).eval()  # no dropout, so that sampling and learning see one policy
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    env = gym.make(options.env)
    for step in range(options.steps):
        seeds = range(step * options.episodes, (step + 1) * options.episodes)
        rollouts = [play(env, model, tokenizer, seed, options.turn_tokens) for seed in seeds]
        loss = update(model, optimizer, rollouts)
        mean, success = (sum(column) / len(rollouts) for column in list(zip(*rollouts, strict=True))[2:])
        print(f"step {step + 1}: return {mean:.2f}  success {success:.2f}  loss {loss:.3f}", flush=True)  # noqa: T201
    env.close()


if __name__ == "__main__":
    main()
