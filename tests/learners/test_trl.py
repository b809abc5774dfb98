"""Our GRPO against TRL's, on the same model and batch.

TRL's trainer is built as a user would build it, on a small random Qwen3 and a tokenizer made here, and asked for its real
loss and its real advantages. Ours come from a twin of the model, the ids, the masks and the old log-probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from learners.update.advantages import group_advantages
from learners.update.losses import SURROGATES, kl_penalty, token_weights, weighted_mean

VOCABULARY = 40
RETURNS = [1.0, 0.0, 0.5, 1.1, 0.3, 0.3, 0.3, 0.3]  # two groups of four, the second of which says nothing


def small_model() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    return Qwen3ForCausalLM(config)


def trainer(folder: Path, **options: Any) -> GRPOTrainer:
    """TRL's trainer for groups of four, two of them a step, on CPU in 32 bits."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    small_model().save_pretrained(folder / "model")  # where TRL loads its reference model from
    arguments = GRPOConfig(
        output_dir=str(folder / "run"),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=5,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    return GRPOTrainer(
        model=Qwen3ForCausalLM.from_pretrained(folder / "model"),
        args=arguments,
        reward_funcs=lambda completions, **_: RETURNS[: len(completions)],
        train_dataset=Dataset.from_list([{"prompt": "w2 w3"}, {"prompt": "w4 w5 w6"}]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"),
    )


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Eight sequences of a prompt and up to nine tokens, some of which a tool wrote; old log-probabilities off by some."""
    generator = torch.Generator().manual_seed(3)
    prompt_ids = torch.randint(2, VOCABULARY, (8, 4), generator=generator)
    completion_ids = torch.randint(2, VOCABULARY, (8, 9), generator=generator)
    lengths = torch.tensor([9, 4, 7, 1, 9, 6, 2, 8])
    completion_mask = (torch.arange(9) < lengths[:, None]).long()
    tool_mask = torch.ones_like(completion_mask)
    tool_mask[0, 3:6] = 0
    tool_mask[4, 1:4] = 0
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.9, 0.8, 0.0, -0.3, 0.5]),
        "num_items_in_batch": (completion_mask * tool_mask).sum(),
        "noise": 0.5 * torch.randn(8, 9, generator=generator),
    }


def policy_logprobs(model: Qwen3ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the completions, shape (8, 9), from a plain forward pass."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, 3:-1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]


@pytest.mark.parametrize(("loss_type", "average"), [("dapo", "token-mean"), ("grpo", "sequence-mean")])
@pytest.mark.parametrize(
    ("epsilon", "epsilon_high", "beta", "delta"),
    [(0.2, 0.2, 0.0, None), (0.2, 0.28, 0.0, None), (0.1, 0.4, 0.05, None), (0.3, 0.3, 1.0, None), (0.2, 0.28, 0.02, 1.4)],
)
def test_the_loss_and_its_gradient_are_those_of_trl(
    tmp_path: Path,
    batch: dict[str, Tensor],
    loss_type: str,
    average: Any,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    delta: float | None,
) -> None:
    """TRL multiplies the KL penalty by the probability ratio unless told not to; equation 4 of GRPO does not."""
    theirs = trainer(
        tmp_path,
        loss_type=loss_type,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        beta=beta,
        delta=delta,
        use_bias_correction_kl=False,
    )
    theirs.model.train()
    theirs.current_gradient_accumulation_steps = 1
    ours = small_model()  # not a copy: TRL replaces its model's forward
    with torch.no_grad():
        now = policy_logprobs(ours, batch)
    old, reference = now + batch["noise"], now - 0.5 * batch["noise"].flip(0)

    their_loss = theirs.compute_loss(theirs.model, batch | {"old_per_token_logps": old, "ref_per_token_logps": reference})
    their_loss.backward()

    written = (batch["completion_mask"] * batch["tool_mask"]).bool()
    lengths = written.sum(1)
    logp = policy_logprobs(ours, batch)[written]
    advantage = batch["advantages"].repeat_interleave(lengths)
    options = {} if delta is None else {"dual": delta}  # TRL's two-sided clipping is the dual clip
    surrogate: Any = SURROGATES["clip" if delta is None else "dual-clip"]
    found = surrogate(logp - old[written], advantage, clip_low=epsilon, clip_high=epsilon_high, **options)
    losses = found.loss + beta * kl_penalty(logp, reference[written])
    our_loss = weighted_mean(losses, token_weights(lengths, average))
    our_loss.backward()  # type: ignore[no-untyped-call]

    assert found.clipped_low.any()
    assert found.clipped_high.any()
    torch.testing.assert_close(our_loss, their_loss, rtol=0, atol=1e-6)
    names = dict(theirs.model.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, names[name].grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert max(parameter.grad.abs().max() for parameter in ours.parameters()) > 1e-2
    metrics = theirs._metrics["train"]
    assert metrics["clip_ratio/low_mean"][0] == pytest.approx(found.clipped_low.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize(("scale_rewards", "scale_by_std"), [("group", True), ("none", False)])
def test_the_advantages_are_those_of_trl(tmp_path: Path, scale_rewards: str, scale_by_std: bool) -> None:
    """TRL's std is unbiased (ddof = 1) as ours is; its eps is 1e-4 and fixed, so ours is set to that here."""
    theirs = trainer(tmp_path, scale_rewards=scale_rewards)
    prompts = [{"prompt": "w2 w3"}] * 4 + [{"prompt": "w4 w5 w6"}] * 4
    found = theirs._generate_and_score_completions(prompts)["advantages"]
    groups = torch.tensor(RETURNS).view(2, 4)
    ours = torch.cat([group_advantages(group, scale_by_std=scale_by_std, eps=1e-4) for group in groups])
    torch.testing.assert_close(ours, found, rtol=0, atol=1e-6)
    assert ours[:4].abs().max() > 0.3
    assert ours[4:].tolist() == [0.0] * 4
