"""The other side: TRL's ``GRPOTrainer`` with an ``environment_factory``, step by step at a word from outside."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from side_by_side.pacing import Finished, Pace, Work, silent
from side_by_side.shape import Shape
from side_by_side.task import Lookups


class Paced(GRPOTrainer):
    """TRL's trainer, which counts what each batch was and how long it took to play. Nothing else is changed."""

    pace: Pace | None = None
    seconds_of_rollout = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        began = time.perf_counter()
        batch = super()._generate_and_score_completions(inputs)
        self.seconds_of_rollout = time.perf_counter() - began
        if self.pace is not None:
            written = int((batch["completion_mask"] * batch["tool_mask"]).sum())
            self.pace.work = Work(
                generated=written,
                trained=written,
                tokens=int(batch["prompt_mask"].sum() + batch["completion_mask"].sum()),
                calls=sum(environment.calls for environment in self.environments),
            )
        return batch


class Turns(TrainerCallback):
    """Waits before every step."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began = 0.0
        self.trainer: Paced | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ended = time.perf_counter()
        assert self.trainer is not None
        played = self.trainer.seconds_of_rollout
        self._pace.turn(lambda: ended - self._began - played)
        self._began = time.perf_counter()


def trainer_of(shape: Shape, policy: Path, folder: Path, steps: int) -> Paced:
    """TRL's trainer, with options that mean what ours do: dapo is the mean over all tokens of a batch."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    torch.set_num_threads(shape.threads)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.response_template = qwen3_template  # how Qwen3's tool calls are read
    each = (shape.turns + 1) * shape.written + shape.turns * (shape.result + 64)
    config = GRPOConfig(
        output_dir=str(folder / "theirs"),
        max_steps=steps,
        num_generations=shape.group_size,
        per_device_train_batch_size=shape.rows,
        max_completion_length=each,  # of the whole episode; a turn has its own limit
        generation_kwargs={"max_new_tokens": shape.written},
        max_tool_calling_iterations=shape.turns,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        epsilon_high=0.28,
        loss_type="dapo",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"prompt": [{"role": "user", "content": ""}], "seed": seed} for seed in range(steps * shape.tasks)]
    return Paced(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        processing_class=tokenizer,
        args=config,
        train_dataset=Dataset.from_list(rows),
        environment_factory=lambda: Lookups(shape),
    )


def play(connection: Connection, shape: Shape, policy: Path, folder: Path, steps: int) -> None:
    """Runs steps, one at each word that comes through the connection; see `side_by_side.pacing`."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    trainer = trainer_of(shape, policy, folder, steps + 1)
    trainer.pace = Pace(connection, steps)
    turns = Turns(trainer.pace)
    turns.trainer = trainer
    trainer.add_callback(turns)
    with silent(), suppress(Finished):
        trainer.train()
    connection.close()
