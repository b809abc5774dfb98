"""Demonstrations: whole trajectories to imitate, from files of trajectories, run folders, and banks of steps.

A bank holds steps, and a step that several trajectories share it holds once. So its trajectories are put together again by
their histories: the step before another is the one whose history, with itself at the end, is the other's history. A bank's
trajectories are those whose last step it holds as such.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from agent_envs.actions import Piece
from agent_envs.moves import Call
from learners.rollout.episode import Dialect
from learners.rollout.rendering import Renderer
from learners.run.config import UsageError
from tracebank import BankError, StepTrace, TraceBank, Trajectory, TrajectoryError, Turn, read_trajectories, render_history
from tracebank.build import trajectory_files
from tracebank.step import normalise_question
from tracebank.trajectory import Author, write_trajectories

_RESULT, _END = "\n<result>\n", "\n</result>\n"  # around an observation, as `tracebank.render_step` writes it


@dataclass(frozen=True)
class Choice:
    """Which trajectories are imitated.

    Args:
        keep: Of each task the best so many, by reward, ties in order of appearance; 0: all.
        min_reward: Only trajectories with a higher reward.
        split: Only trajectories of this split, and of none.
    """

    keep: int
    min_reward: float
    split: str


def choose(
    bank: str | None, files: Sequence[str], dialect: Dialect, choice: Choice
) -> tuple[list[Trajectory], Counter[str]]:
    """The trajectories to imitate, without their tokens, in order of appearance; best first within a task.

    Args:
        bank: Folder of a bank of steps, or None.
        files: Files of trajectories and run folders.
        dialect: How the environment is talked to.
        choice: Which of them.

    Returns:
        The trajectories, and how many were left out, by reason.

    Raises:
        UsageError: One of the sources cannot be read.
    """
    dropped: Counter[str] = Counter()
    tasks: dict[str, list[Trajectory]] = {}
    known: set[bytes] = set()
    for trajectory in _read(bank, files, dialect, dropped):
        if reason := _unfit(trajectory, dialect, choice):
            dropped[reason] += 1
            continue
        name = _digest(render_history(trajectory.question, trajectory.turns))
        if name in known:
            dropped["word for word like another"] += 1
            continue
        known.add(name)
        tasks.setdefault(normalise_question(trajectory.question), []).append(trajectory)
    chosen: list[Trajectory] = []
    for together in tasks.values():
        together.sort(key=lambda trajectory: -trajectory.reward)
        chosen += together[: choice.keep or None]
    if beyond := sum(map(len, tasks.values())) - len(chosen):
        dropped[f"beyond the best {choice.keep} of a task"] = beyond
    return chosen, dropped


def save(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes trajectories to a new file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    write_trajectories(unfinished, trajectories)
    os.replace(unfinished, path)


def transcript(
    renderer: Renderer, dialect: Dialect, question: str, turns: Sequence[Turn]
) -> Iterator[tuple[Author, int, list[int]]]:
    """A trajectory as the tokens that a rollout of it would have.

    Args:
        renderer: Turns texts into the policy's tokens.
        dialect: How the environment is talked to.
        question: What the policy was asked.
        turns: What it did, and what came back.

    Yields:
        Author, turn and token ids of one segment after another. An action that no stop string ends ends its turn.
    """
    yield "prompt", 0, renderer.opening(dialect.format.opening(question, dialect.system_prompt, dialect.tools))
    stops = dialect.format.stop(dialect.tools)
    for number, turn in enumerate(turns):
        action = turn.thought + turn.action
        ended = not (stops and action.endswith(stops))
        written = renderer.encode([Piece(action, trusted=True)])
        yield "policy", number, [*written, renderer.end_id] if ended else written
        if number < len(turns) - 1:
            yield "tool", number + 1, renderer.observation(dialect.format.observe(turn.observation), turn_ended=ended)


def _read(bank: str | None, files: Sequence[str], dialect: Dialect, dropped: Counter[str]) -> Iterator[Trajectory]:
    if bank is not None:
        try:
            with TraceBank.open(bank, use_index=False) as opened:
                yield from _of_bank(opened, dialect, dropped)
        except BankError as problem:
            raise UsageError(f"--bank: {problem}") from None
    for name in files:
        try:
            for path in trajectory_files(name):
                yield from read_trajectories(path, segments=False)
        except (OSError, TrajectoryError) as problem:
            raise UsageError(f"--trajectories {problem}") from None


def _of_bank(bank: TraceBank, dialect: Dialect, dropped: Counter[str]) -> Iterator[Trajectory]:
    """The trajectories whose last steps a bank holds. Of the histories only hashes are kept."""
    before: dict[bytes, tuple[bytes | None, str]] = {}  # by the history after a step: the one before it, and the step
    for step in bank:
        history = None if step.step == 0 else _digest(step.key)
        after = f"{step.key}\n{step.value}" if step.step == 0 else f"{step.key}{step.value}"
        before.setdefault(_digest(after), (history, step.value))
    for step in bank:
        if not step.final:
            continue
        values, history = [step.value], None if step.step == 0 else _digest(step.key)
        while history is not None and history in before:
            history, value = before[history]
            values.append(value)
        if history is not None:
            dropped["of a bank that lacks a step of it"] += 1
            continue
        yield _trajectory(step, [_turn(value, dialect) for value in reversed(values)], dialect)


def _trajectory(last: StepTrace, turns: Sequence[Turn], dialect: Dialect) -> Trajectory:
    calls = [dialect.format.parse(turn.thought + turn.action, dialect.tools).move for turn in turns]
    return Trajectory(
        environment=last.environment,
        format=last.format,
        task_id=last.task_id,
        question=last.question,
        split="",
        turns=tuple(turns),
        segments=(),
        reward=last.reward,
        score={},
        success=last.reward >= 1.0,
        fault="",
        stop="terminated",
        tool_calls=sum(isinstance(move, Call) for move in calls),
        policy_version=0,
        step=0,
        path=(0,),
        source=last.source,
    )


def _turn(value: str, dialect: Dialect) -> Turn:
    """A bank's step, taken apart again: the observation begins after the first text that is a whole action."""
    places = [match.start() for match in re.finditer(f"(?={_RESULT})", value)] if value.endswith(_END) else []
    places = places or [len(value)]
    moves = [dialect.format.parse(value[:at], dialect.tools) for at in places]
    whole = [(at, parsed) for at, parsed in zip(places, moves, strict=True) if parsed.end == at]
    at, parsed = next((pair for pair in whole if pair[1].move is not None), (whole or [(places[0], moves[0])])[0])
    return Turn(value[: parsed.begin], value[parsed.begin : at], value[at + len(_RESULT) : -len(_END)])


def _unfit(trajectory: Trajectory, dialect: Dialect, choice: Choice) -> str:
    """Why a trajectory is not imitated, whatever the others are; "" where it is."""
    if trajectory.fault:
        return "ended by an environment fault"
    if not trajectory.turns:
        return "without a turn"
    if trajectory.split not in (choice.split, ""):
        return f"of the split {trajectory.split!r}"
    if trajectory.format not in (dialect.format.name, ""):
        return f"in the format {trajectory.format!r}, not {dialect.format.name!r}"
    if trajectory.reward <= choice.min_reward:
        return f"with a reward not above {choice.min_reward:g}"
    return ""


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
