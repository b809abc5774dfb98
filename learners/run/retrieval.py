"""Steps of a trace bank for rollouts: which step is put into the context, and how a run makes sure of its bank.

A `Retriever` answers what somebody did in a situation like this, or whatever else it is told to answer with: the best
rewarded of three, a whole trajectory, a random step. A run depends on its bank as it does on its seed, so the run folder
says which bank it was (`keep_account`), and resuming with another one is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from learners.rollout.episode import Dialect
from learners.run.config import RunConfig, UsageError
from learners.run.policy import is_deterministic
from learners.sampling.sampler import Noise
from tracebank import BankError, Filters, TraceBank, Turn, render_history

ADVICE = "<think> Nothing done elsewhere helps here: reason step by step, without tools, and check the answer. </think>"
"""What takes the place of a step that earned nothing (released code; the wording is ours)."""

_ACCOUNT = "bank.json"


@dataclass(frozen=True)
class Retriever:
    """Asks a bank for what is put into a rollout.

    Args:
        bank: The bank.
        retrieved: The most alike, or the best rewarded of the three most alike, with `ADVICE` where none earned anything.
        level: The step whose history is most like the present one; or all steps, as far as the guards allow, of the
            trajectory whose question is most like the present one.
        noise: Probability that a random step (or trajectory) takes its place.
        exclude_task: Leave out steps of the task that is played.
        exclude_final: Leave out steps that ended their trajectory.
    """

    bank: TraceBank
    retrieved: Literal["best-match", "best-reward"] = "best-match"
    level: Literal["step", "trajectory"] = "step"
    noise: float = 0.0
    exclude_task: bool = True
    exclude_final: bool = True

    def retrieve(self, task_id: str, question: str, turns: Sequence[Turn], chance: Noise) -> str | None:
        """What is put into the context, or None where the bank has nothing to say.

        Args:
            task_id: The task that is played.
            question: Its question.
            turns: What was thought, done and observed so far.
            chance: Its numbers at 1 and 2 say whether a random step is taken, and which.

        Raises:
            BankError: The bank cannot be read.
        """
        whole = self.level == "trajectory"
        guards: dict[str, Any] = {
            "exclude_task": [[task_id, question]] if self.exclude_task else None,
            "exclude_final": self.exclude_final,
            "steps": range(1) if whole else None,
        }
        if chance.at(1) < self.noise:
            (row,) = self.bank.draw([chance.at(2)], Filters(**guards))
        else:
            count = 1 if self.retrieved == "best-match" else 3
            (hits,) = self.bank.query([render_history(question, () if whole else turns)], k=count, **guards)
            best = max(hits, key=lambda hit: hit.reward, default=None)
            if best and self.retrieved == "best-reward" and best.reward <= 0:
                return ADVICE
            row = best.id if best else None
        if row is None:
            return None
        steps = self.bank.onward(row) if whole else self.bank.snapshot.steps([row])
        return "".join(step.value for step in steps if not (self.exclude_final and step.final))


def open_bank(path: Path, make_env: Callable[[], gym.Env[Any, Any]], config: RunConfig) -> TraceBank:
    """Opens the bank that is retrieved from.

    Raises:
        UsageError: It is not there, cannot be asked, is empty, or was written in another format than the environment's.
    """
    try:
        bank = TraceBank.open(path, deterministic=is_deterministic(config))
        _ = bank.embedder  # loaded now
    except BankError as problem:
        raise UsageError(f"--bank: {problem}") from None
    if not len(bank):
        raise UsageError(f"--bank {path} holds no steps: add some, or choose another bank")
    environment = make_env()
    format = Dialect.of(environment).format.name
    environment.close()
    if bank.manifest.formats != (format,):
        named = ", ".join(repr(name) for name in bank.manifest.formats if name) or "none that it names"
        raise UsageError(
            f"--bank {path} holds steps of the format {named}, but {config.env} is talked to in {format!r}: build it of "
            "trajectories in that format alone"
        )
    return bank


def check_account(folder: Path, bank: TraceBank) -> bool:
    """Whether a run folder tells of its bank.

    Args:
        folder: The run folder.
        bank: What the run is about to retrieve from.

    Raises:
        UsageError: It tells of another bank, or of this one in another state.
    """
    found = _account(bank)
    try:
        known = json.loads((folder / _ACCOUNT).read_text())
        path, steps, digest = (known[name] for name in found)
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"{folder / _ACCOUNT}: expected {', '.join(found)} of the run's bank, found something else"
        ) from None
    if digest != found["digest"]:
        raise UsageError(
            f"--resume {folder}: the run retrieved from a bank of {steps} steps ({path}, digest {digest}), and "
            f"{found['path']} is another or has changed ({found['steps']} steps, digest {found['digest']}): put the bank "
            "back as it was, or begin a new run with this bank and a checkpoint as --model"
        )
    return True


def keep_account(folder: Path, bank: TraceBank) -> None:
    """Writes into a run folder which bank it retrieves from, if that is not there yet; raises as `check_account` does."""
    if check_account(folder, bank):
        return
    unfinished = folder / f".{_ACCOUNT}.unfinished"
    unfinished.write_text(json.dumps(_account(bank), indent=2) + "\n")
    os.replace(unfinished, folder / _ACCOUNT)


def _account(bank: TraceBank) -> dict[str, Any]:
    """Where a bank is, how many steps it holds, and a digest of its manifest, which has the checksum of every file."""
    digest = hashlib.blake2b(bank.manifest.to_json().encode(), digest_size=12).hexdigest()
    return {"path": str(bank.path.absolute()), "steps": len(bank), "digest": digest}
