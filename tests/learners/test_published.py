"""Policies whose generation configuration transformers reads and would not write: they train, and are saved as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_parts import metrics, short
from policies import saved_policy
from transformers import AutoModelForCausalLM, GenerationConfig

from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.run.config import UsageError
from learners.run.policy import load_model, load_policy
from learners.update.adapters import add_adapters, save_adapters

ENDS = [*range(0, 256, 6), 2]
VICUNA = {"_from_model_config": True, "eos_token_id": ENDS, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
GREEDY = {"do_sample": False, "eos_token_id": ENDS, "temperature": 0.7, "top_k": 20, "length_penalty": 2.0}
SAMPLED = {"do_sample": True, "eos_token_id": ENDS, "temperature": 0.7}
NAME = "generation_config.json"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These models are so small that a second thread only waits."""
    torch.set_num_threads(1)


def published(folder: Path, generation: dict[str, Any]) -> Path:
    saved_policy(folder, ENDS)
    (folder / NAME).write_text(json.dumps(generation))
    return folder


def told(folder: Path) -> dict[str, Any]:
    """What a generation configuration says, but for who wrote it down."""
    return {name: value for name, value in json.loads((folder / NAME).read_text()).items() if name != "transformers_version"}


@pytest.mark.parametrize("generation", [VICUNA, GREEDY, SAMPLED])
def test_what_was_published_is_what_is_saved(tmp_path: Path, generation: dict[str, Any]) -> None:
    policy = published(tmp_path / "policy", generation)
    model = load_model(str(policy), torch.float32)
    model.save_pretrained(tmp_path / "saved")
    assert told(tmp_path / "saved") == generation
    for _ in range(2):  # and of what was saved again
        again = load_model(str(tmp_path / "saved"), "auto")
        assert (
            again.generation_config.to_diff_dict()
            == AutoModelForCausalLM.from_pretrained(policy).generation_config.to_diff_dict()
        )
        again.save_pretrained(tmp_path / "saved")
    assert told(tmp_path / "saved") == generation


def test_transformers_would_not_save_them(tmp_path: Path) -> None:
    """Else there is nothing left to cure."""
    for generation in (VICUNA, GREEDY):
        with pytest.raises(ValueError, match="`temperature`"):
            GenerationConfig(**generation).save_pretrained(tmp_path)


def test_a_base_that_adapters_are_merged_into_can_be_saved_too(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(published(tmp_path / "policy", VICUNA))
    add_adapters(model, rank=2, alpha=4.0, seed=0)
    save_adapters(model, tmp_path / "adapters")
    load_model(str(tmp_path / "adapters"), "auto").save_pretrained(tmp_path / "whole")
    assert told(tmp_path / "whole") == VICUNA


def test_such_a_policy_trains_and_is_resumed(tmp_path: Path) -> None:
    policy = published(tmp_path / "policy", VICUNA)
    run(GRPOConfig, GRPO, "", short(policy, tmp_path / "run", "--group-size", 4, steps=1, eval_tasks=1))
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000001"
    assert told(checkpoint) == VICUNA
    assert metrics(tmp_path / "run")[0]["stop/terminated"] > 0  # it ends its turns where it was published to
    run(GRPOConfig, GRPO, "", ["--resume", str(tmp_path / "run")])
    run(GRPOConfig, GRPO, "", short(checkpoint, tmp_path / "on", "--group-size", 4, steps=1, eval_tasks=1))
    assert told(tmp_path / "on" / "checkpoints" / "step_000001") == VICUNA


def test_what_transformers_cannot_read_is_refused_at_once(tmp_path: Path) -> None:
    policy = published(tmp_path / "policy", {"num_return_sequences": 3})
    with pytest.raises(UsageError, match=r"--model .* cannot be loaded .*num_return_sequences"):
        load_policy(GRPOConfig(model=str(policy)), lambda: None, lambda *_: None)  # type: ignore[arg-type,return-value]
