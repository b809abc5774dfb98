"""The trainer: explore, credit, update, report, again. It knows no algorithm by name.

A learner is four functions (`Learner`). The trainer draws tasks, has the rollout engine play what the learner explores,
hands all trees of the batch to its credit at once, learns from the rows with its surrogate, and writes down what happened.

Where batches come from, and what overlaps what with ``--async-steps 1``, `learners.run.overlap` knows.

Everything random is a function of the run's seed and of where in the run it is used (`seed_of`), so that a checkpoint of
weights, optimiser and step count is all there is to restore: the batch in flight when a run was killed is played again, from
the weights that it was being sampled from. For the same reason it makes no difference which process plays a group: where a
run has several (`learners.update.world`), each plays its share, and learns its share of all.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
import torch
from transformers import PreTrainedModel

from learners.rollout.engine import Group, independent
from learners.rollout.tree import RolloutTree
from learners.run.checkpoint import latest_checkpoint, load_checkpoint, load_in_flight, save_checkpoint
from learners.run.config import RunConfig, check, environment_maker, learner_name
from learners.run.folder import folder_of, held
from learners.run.metrics import rollout_metrics
from learners.run.mismatch import MismatchWatch, importance_cap
from learners.run.no_report import NoReport
from learners.run.overlap import Batches
from learners.run.players import (
    PHASES,
    Policy,
    open_engine,
    open_policy,
    open_sampler,
    records_of,
    refuse_too_many_faults,
    seed_of,
)
from learners.run.policy import check_processes, device_of, is_deterministic, part_of, ready_to_learn
from learners.run.report import Report
from learners.run.skipped import SkipWatch
from learners.run.summary import close_with, held_out, summary_of
from learners.sampling.sampler import SamplerFault
from learners.update.adapters import adapted_layers, trained
from learners.update.batch import Credit, Row, Terms, rows_of
from learners.update.losses import TokenLoss
from learners.update.optimizer import open_optimizer
from learners.update.sharding import shard
from learners.update.step import UpdateSettings, measured, update_policy
from learners.update.weights import sampling_weights
from learners.update.world import ALONE, World
from tracebank.trajectory import write_trajectories

logger = logging.getLogger(__name__)

_ATTEMPTS = 8  # times that refused groups of a batch are replaced


class Learner(Protocol):
    """An algorithm, as the trainer sees it.

    With ``--async-steps 1``, `credit` and `surrogate` run in a thread while `explore` and `accept` are at the next batch.

    Attributes:
        group_size: The most trajectories of one task that `explore` has live at once.
        kl_coefficient: Weight of the KL penalty towards the policy that the run began with; 0 for none.
        measure: Whether `credit` reads entropies of the trainer's own forward pass (`RolloutTree.measured`).
        ratio_to: Whose log-probabilities ratios are taken to; see `UpdateSettings`.
    """

    group_size: int
    kl_coefficient: float
    measure: bool
    ratio_to: Literal["trainer", "sampler"]

    @property
    def config(self) -> RunConfig:
        """Its configuration."""

    def prepare(self, folder: Path, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        """Gets ready what exploring needs beside the policy. Called once, before anything is played.

        Args:
            folder: The run folder, which keeps what a resumed run has to find again.
            make_env: Makes the environment to train in.
        """

    def explore(self, group: Group) -> Awaitable[RolloutTree]:
        """Plays the trajectories of one task."""

    def accept(self, tree: RolloutTree) -> bool:
        """Whether a group is learned from; a refused one is replaced by one of another task."""

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        """Terms for every token of every surviving trajectory of the batch."""

    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
        """The loss of each of N tokens."""


def train(learner: Learner, world: World = ALONE) -> dict[str, Any]:
    """Runs a learner from its configuration to the summary of its run folder, and prints the short closing table.

    Args:
        learner: The algorithm.
        world: The processes of the run, all of which must call it.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UsageError: The configuration cannot be run as it stands.
        TooManyFaults: More than ``max_fault_share`` of a batch's trajectories ended in environment faults.
        NotFinite: Batch after batch no gradient was finite.
        SamplerFault: What samples has died.
    """
    config = learner.config
    check(config)
    check_processes(config, world)
    cap = importance_cap(config, learner.ratio_to)
    folder = world.of_first(lambda: folder_of(config))
    makers = {split: environment_maker(config, split) for split in (config.train_split, config.eval_split)}
    with world.first_goes_first():  # what is taught or downloaded, the others find
        # What is going to be sharded may be too large for one GPU by the time that its moments are loaded.
        device = None if world.size == 1 else torch.device("cpu")
        policy = open_policy(part_of(config, world), makers[config.train_split], device)
    ready_to_learn(policy.model, config)
    with held(folder, config) if world.first else nullcontext():
        with world.first_goes_first():
            learner.prepare(folder, makers[config.train_split])
        run = _Run(learner, folder, policy, makers, cap, world)
        try:
            with run.report:
                return asyncio.run(run.to_the_end())
        except SamplerFault as problem:
            raise SamplerFault(f"{problem}; go on by --resume {folder}") from problem
        finally:
            run.close()


class _Run:
    """What a run works with, and how far it is."""

    def __init__(
        self,
        learner: Learner,
        folder: Path,
        policy: Policy,
        makers: Mapping[str, Callable[[], gym.Env[Any, Any]]],
        cap: float,
        world: World,
    ) -> None:
        config, part = learner.config, part_of(learner.config, world)
        self._world, self._players = world, world.channel()
        self._learner, self._config, self._folder = learner, config, folder
        model = policy.model
        self._model, self._tokenizer = model, policy.tokenizer
        self._reference: PreTrainedModel | None = None
        if learner.kl_coefficient > 0:  # without its adapters, where it has some, a policy is what it was
            self._reference = model if adapted_layers(model) else copy.deepcopy(model)
        self._optimizer = open_optimizer(
            trained(model),
            weight_decay=config.weight_decay,
            device=torch.device("cpu") if config.optimizer_device == "cpu" else None,
        )
        self._step = 0  # batches learned from
        self._before: dict[str, float] = {}  # the evaluation before training
        self._earlier_seconds = 0.0  # of the sittings before this one
        self._began = time.monotonic()
        skipped_in_a_row = 0
        newest = world.of_first(lambda: latest_checkpoint(folder / "checkpoints")) if config.resume else None
        if newest:
            state = load_checkpoint(newest, model, self._optimizer)
            self._step, self._before, self._earlier_seconds = state["step"], state["before"], state["seconds"]
            skipped_in_a_row = state.get("skipped_in_a_row", 0)
            _tell_of_processes(config, state.get("processes", 1), world.size)
        self._cap = cap  # of importance weights
        self._watch = MismatchWatch(corrected=cap > 0 or learner.ratio_to == "sampler")
        self._skips = SkipWatch(folder / "checkpoints", in_a_row=skipped_in_a_row)
        ahead = config.async_steps > 0
        self._sampler = open_sampler(part, policy, own_weights=ahead or world.size > 1)
        self._sampler.version = self._step
        if ahead and newest and self._step < config.steps:
            self._sampler.load_weights(load_in_flight(newest).items(), self._step - 1)
        shard(model, world, device_of(config), self._optimizer)
        if self._reference is not None:
            shard(self._reference, world, device_of(config))
        self._batches = Batches(
            self._play_batch,
            self._sampler,
            lambda: sampling_weights(model),
            steps=config.steps,
            ahead=ahead,
            saves_after=self._saves_after,
            keeps=world.first,
        )
        self._engines = {
            split: open_engine(part, make, policy, self._sampler, group_size=learner.group_size)
            for split, make in makers.items()
        }
        resume_at = self._step if config.resume else None
        self.report = Report(folder, total_steps=config.steps, resume_at=resume_at) if world.first else NoReport(folder)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._sampler.close()

    async def to_the_end(self) -> dict[str, Any]:
        config = self._config
        async with self._batches:
            if not self._before:
                self._before = await self._evaluate()
            while self._step < config.steps:
                await self._one_step()
                if config.eval_every and self._step % config.eval_every == 0 and self._step < config.steps:
                    await self._evaluate()
                if self._saves_after(self._step):
                    self._save()
            after = await self._evaluate()
        summary = summary_of(config, self._before, after, self._seconds())
        close_with(self.report, summary)
        return summary

    async def _one_step(self) -> None:
        config, begun = self._config, time.monotonic()
        batch = await self._batches.take(self._step)
        trees, played = batch.trees, batch.everything
        metrics = rollout_metrics(played)
        metrics["groups"], metrics["refused"] = float(len(trees)), float(len(played) - len(trees))
        rolled_out = time.monotonic()
        if trees:
            rate = _learning_rate(config, self._step)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            metrics["learning_rate"] = rate
            metrics |= await self._batches.learn(lambda go_on: self._learn(trees, go_on))
            self._skips.look(self._step + 1, metrics)
            self._watch.look(self._step + 1, metrics)
        else:
            logger.warning("step %d: no group of %d could be learned from", self._step + 1, len(played))
        if config.async_steps:
            metrics["staleness"] = float(self._step - played[0].version)
            metrics["seconds/waited"] = rolled_out - begun
        self._step += 1
        if not config.async_steps:
            self._batches.load(self._step)
        self._write(f"step_{self._step:06d}", played, config.train_split)
        metrics["seconds/rollout"] = batch.seconds
        metrics["seconds/weights"] = self._batches.seconds_of_load
        metrics["seconds/update"] = time.monotonic() - rolled_out
        self.report.log(self._step, metrics)

    async def _play_batch(self, step: int) -> tuple[list[RolloutTree], list[RolloutTree]]:
        """A batch of groups to learn from, and all that were played for it."""
        config, learner = self._config, self._learner
        enough = min(2, learner.group_size)  # fewer survivors cannot be compared
        trees: list[RolloutTree] = []
        played: list[RolloutTree] = []
        for attempt in range(_ATTEMPTS):
            missing = config.tasks_per_step - len(trees)
            if missing == 0:
                break
            place = (PHASES["train"], step, attempt)
            now = await self._rollout(
                config.train_split,
                [seed_of(config.seed, *place, index) for index in range(missing)],
                learner.explore,
                path=place,
                group_size=learner.group_size,
                temperature=config.temperature,
            )
            self._refuse_too_many_faults(now)
            played += now
            trees += [tree for tree in now if len(tree.survivors()) >= enough and learner.accept(tree)]
        return trees, played

    async def _rollout(
        self,
        split: str,
        seeds: Sequence[int],
        explore: Callable[[Group], Awaitable[RolloutTree]],
        *,
        path: tuple[int, ...],
        group_size: int,
        temperature: float,
    ) -> list[RolloutTree]:
        """One group a seed, each played by one of the processes, and all of them for all (`Engine.rollout`)."""
        engine, own = self._engines[split], self._players.share(len(seeds))
        trees = await engine.rollout(seeds, explore, path=path, group_size=group_size, temperature=temperature, only=own)
        return self._players.joined(trees)

    def _learn(self, trees: Sequence[RolloutTree], go_on: Callable[[], None]) -> dict[str, float]:
        config, learner = self._config, self._learner
        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)  # where a thread is not by itself

        def surrogate(log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
            go_on()
            return learner.surrogate(log_ratio, advantage, ratio_scale)

        if learner.measure:
            self._measure(trees)
        credit = learner.credit(trees)
        rows = rows_of(trees, credit)
        flat = [all(not row.terms.advantage[row.tokens.policy].any() for row in group) for group in rows]
        orders = [
            np.random.default_rng(seed_of(config.seed, self._step, epoch)).permutation(len(trees)).tolist()
            for epoch in range(config.epochs)
        ]
        metrics = update_policy(
            self._model,
            self._optimizer,
            rows,
            surrogate,
            self._settings(),
            orders=orders,
            reference=self._reference,
            world=self._world,
        )
        return metrics | {"groups_without_signal": sum(flat) / len(flat)}

    def _settings(self) -> UpdateSettings:
        config = self._config
        return UpdateSettings(
            epochs=config.epochs,
            minibatch_groups=config.minibatch_groups or 0,
            micro_tokens=config.micro_tokens,
            max_grad_norm=config.max_grad_norm or math.inf,
            temperature=config.temperature,
            kl_coefficient=self._learner.kl_coefficient,
            ratio_to=self._learner.ratio_to,
            layout=config.update,
            importance_cap=self._cap,
            recompute=config.gradient_checkpointing,
        )

    def _measure(self, trees: Sequence[RolloutTree]) -> None:
        """Has the policy that is about to learn tell how sure it is of every token.

        With ``--async-steps 1`` that is the policy that the batch's ratios are to, and not the one of a step before, which
        sampled it: its weights are gone by then. Either way the entropies of a batch are of one policy.
        """
        paths = [(tree, leaf, tree.tokens(leaf)) for tree in trees for leaf in tree.survivors()]
        rows = [Row(tokens, Terms.constant(tokens, advantage=0.0, weight=0.0)) for _, _, tokens in paths]
        found = measured(self._model, rows, self._settings(), self._world)
        for (tree, leaf, _), (_, entropies) in zip(paths, found, strict=True):
            tree.measured[leaf.path] = entropies.cpu()

    async def _evaluate(self) -> dict[str, float]:
        """Held-out success, sampled at T = 1 and greedy; the same tasks for every run of an environment."""
        config = self._config
        await self._batches.current(self._step)
        found: dict[str, float] = {}
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            trees = await self._rollout(
                config.eval_split,
                [seed_of(PHASES[name], index) for index in range(config.eval_tasks)],
                lambda group: independent(group, 1),
                path=(PHASES[name], self._step),
                group_size=1,
                temperature=temperature,
            )
            self._refuse_too_many_faults(trees)
            self._write(f"evaluation_{self._step:06d}_{name}", trees, config.eval_split)
            metrics = rollout_metrics(trees)
            self.report.evaluation(self._step, name, metrics)
            found |= held_out(metrics, name)
        return found

    def _refuse_too_many_faults(self, trees: Sequence[RolloutTree]) -> None:
        refuse_too_many_faults((leaf.fault for tree in trees for leaf in tree.leaves), self._config.max_fault_share)

    def _write(self, name: str, trees: Sequence[RolloutTree], split: str) -> None:
        """Writes trajectories to the run folder, in place of what an earlier sitting wrote under this name."""
        if not self._world.first:
            return
        config = self._config
        path = self._folder / "trajectories" / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        source = f"{learner_name(type(config))}:{config.model}"
        format = self._engines[split].dialect.format.name
        write_trajectories(
            path,
            [
                record
                for tree in trees
                if tree.segments
                for record in records_of(tree, config, format=format, split=split, step=self._step, source=source)
            ],
        )

    def _save(self) -> None:
        state = {"step": self._step, "before": self._before, "seconds": self._seconds(), "processes": self._world.size}
        state["skipped_in_a_row"] = self._skips.in_a_row
        save_checkpoint(
            self._folder / "checkpoints",
            self._step,
            model=self._model,
            optimizer=self._optimizer,
            trainer_state=state,
            tokenizer=self._tokenizer,
            in_flight=self._batches.in_flight,
            world=self._world,
        )

    def _saves_after(self, step: int) -> bool:
        """Whether there is a checkpoint after so many batches."""
        return step % self._config.checkpoint_every == 0 or step == self._config.steps

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._began


def _tell_of_processes(config: RunConfig, before: int, now: int) -> None:
    """Warns of a resumed run that is not bit-equal to one that was never interrupted."""
    if before != now and is_deterministic(config):
        logger.warning("the run was in %d process(es) and goes on in %d: the last bits of its numbers differ", before, now)


def _learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of the update after ``step`` others."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    course = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    falling = {"constant": 1.0, "linear": 1.0 - course, "cosine": 0.5 * (1.0 + math.cos(math.pi * course))}
    return config.learning_rate * falling[config.schedule]
