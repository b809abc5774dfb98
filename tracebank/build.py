"""Which trajectories become steps of a bank.

RAPO (arXiv 2603.03078, section 4.1.1) rolls out every training task N times, ranks a task's trajectories by their reward
and keeps the best K: by rank, not by a threshold. `build` does that with trajectories from anywhere. What it leaves out it
counts, by reason: that a bank is smaller than it should be, or holds what it should not, is hard to notice otherwise.

Two trajectories are of one task if they share its environment and id, or its question. Only a number or two a trajectory is
held in memory; the texts wait in an unnamed temporary file in the bank's folder, and the tokens are not read at all.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import IO

from tracebank.bank import TraceBank
from tracebank.faults import BankError
from tracebank.ranking import Candidates
from tracebank.step import StepTrace, normalise_question, steps_of
from tracebank.trajectory import Trajectory, TrajectoryError

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done and how much there is to do (0: nobody knows)."""

TRAINING_SPLITS = ("train", "")
"""What a bank is made of unless it is asked otherwise: steps of held-out tasks would leak into training."""

_CHUNK_STEPS = 8_192
_CHUNK_CHARACTERS = 16_000_000


@dataclass(frozen=True)
class BuildReport:
    """What became of what was read.

    Args:
        read: Trajectories looked at, or steps where whole steps were added (`add_steps`).
        kept: How many of them were kept.
        dropped: How many were not, by reason; with ``kept`` they add up to ``read``.
        steps: Steps that the bank has now and had not before.
        repeated: Steps of what was kept that are in the bank once already, by reason.
        tasks: Tasks among what was kept.
        sources: How many trajectories were kept and steps added, by source.
    """

    read: int
    kept: int
    dropped: Mapping[str, int]
    steps: int
    repeated: Mapping[str, int]
    tasks: int
    sources: Mapping[str, tuple[int, int]]


def build(
    bank: TraceBank,
    trajectories: str | os.PathLike[str] | Iterable[Trajectory | str | os.PathLike[str]],
    *,
    keep: int = 5,
    min_reward: float | None = None,
    splits: Collection[str] | None = TRAINING_SPLITS,
    source: str | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Adds the steps of the best trajectories of each task, and brings the bank into shape (`TraceBank.compact`).

    Left out are, in this order: trajectories that an environment fault ended, those without a turn, those of another split,
    those whose text is not Unicode, those whose reward is too low, and of each task those that repeat a trajectory word for
    word and those beyond the best ``keep``. Steps that several trajectories share (branches of one rollout do) are added
    once, and steps that the bank has already are not added again: a build that was killed is finished by running it again.

    The steps of a task are added in order of their trajectories' rewards. Since of equally near steps a query returns the
    one that was added first, it returns the one with the best reward.

    Args:
        bank: Where they go.
        trajectories: Trajectories, or files of them, or run folders (all files in their ``trajectories/``), or any of these
            mixed. They are read once, one at a time.
        keep: Trajectories of a task, best reward first, ties in order of appearance; 0 keeps all.
        min_reward: Only trajectories with a higher reward.
        splits: Only trajectories of these splits; None: of all.
        source: Who made them, in place of what the trajectories say.
        progress: Is told how far it is.

    Returns:
        What was kept and what was dropped and why.

    Raises:
        ValueError: ``keep`` below 0, or ``splits`` that is one text in place of several.
        FileNotFoundError: No such file, or a folder without trajectories; nothing was added.
        TrajectoryError: A line that is no trajectory; nothing was added.
        BankError: The disk is full; what was added before stays.
    """
    if keep < 0:
        raise ValueError(f"keep: expected a number from 0 (all) up, found {keep}")
    if isinstance(splits, str):
        raise ValueError(f"splits: expected several, such as ({splits!r},), found one text")
    tell = progress if progress is not None else _say_nothing
    items = [trajectories] if isinstance(trajectories, str | os.PathLike) else trajectories
    dropped: Counter[str] = Counter()
    with _aside(bank.path) as file:
        candidates = Candidates(file)
        for trajectory in _read(items, dropped, tell):
            reason = _unfit(trajectory, min_reward, splits)
            if reason:
                dropped[reason] += 1
            else:
                candidates.add(trajectory if source is None else replace(trajectory, source=source))
        chosen = candidates.best(keep, dropped)
        wanted = (steps_of(candidates.read(number)) for numbers in chosen for number in numbers)
        report = _add(bank, wanted, tell, total=sum(map(len, chosen)))
    _finish(bank, tell)
    return replace(report, read=report.kept + dropped.total(), dropped=dict(dropped), tasks=len(chosen))


def add_steps(
    bank: TraceBank,
    steps: Iterable[StepTrace],
    *,
    min_reward: float | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Adds steps as they are, but none twice, and brings the bank into shape: for steps that somebody has chosen already.

    Args:
        bank: Where they go.
        steps: Any number; they are read once, a few thousand at a time.
        min_reward: Only steps of trajectories with a higher reward.
        progress: Is told how far it is.

    Returns:
        What was added and what was dropped and why, counted in steps.

    Raises:
        BankError: The disk is full; what was added before stays.
    """
    tell = progress if progress is not None else _say_nothing
    dropped: Counter[str] = Counter()

    def fit() -> Iterator[list[StepTrace]]:
        for step in steps:
            if min_reward is not None and step.reward <= min_reward:
                dropped[_too_low(min_reward)] += 1
            else:
                yield [step]

    report = _add(bank, fit(), tell, total=0)
    _finish(bank, tell)
    dropped.update(report.repeated)
    return replace(report, read=report.steps + dropped.total(), kept=report.steps, dropped=dict(dropped), repeated={})


def trajectory_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of trajectories that a path stands for: itself, or those of a run folder in order of their names.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file of trajectories or a run folder, found nothing")
    if not path.is_dir():
        return [path]
    folder = path / "trajectories" if (path / "trajectories").is_dir() else path
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{path}: expected a run folder with trajectories/*.jsonl in it, found no such file")
    return files


# --- reading ---


def _read(
    items: Iterable[Trajectory | str | os.PathLike[str]], dropped: Counter[str], tell: Progress
) -> Iterator[Trajectory]:
    """The trajectories, those of files without their tokens; says how far it is, in bytes where all are files."""
    if isinstance(items, list | tuple) and not any(isinstance(item, Trajectory) for item in items):
        files = [file for item in items for file in trajectory_files(item)]
        total, done = sum(file.stat().st_size for file in files), 0
        for file in files:
            for trajectory, size in _lines(file, dropped):
                tell("reading trajectories", done + size, total)
                yield trajectory
            done += file.stat().st_size
        return
    for number, item in enumerate(items, start=1):
        if isinstance(item, Trajectory):
            tell("reading trajectories", number, 0)
            yield replace(item, segments=()) if item.segments else item
        else:
            for file in trajectory_files(item):
                yield from (trajectory for trajectory, _ in _lines(file, dropped))


def _lines(path: Path, dropped: Counter[str]) -> Iterator[tuple[Trajectory, int]]:
    """The trajectories of a file, each with the number of bytes read so far."""
    done = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            if not line.strip():
                continue
            try:
                yield Trajectory.from_json(line.decode("utf-8"), segments=False), done
            except (TrajectoryError, UnicodeDecodeError) as error:
                if line.endswith(b"\n"):
                    raise TrajectoryError(f"{path}, line {number}: {error}") from None
                dropped["half a line at the end of a file"] += 1  # its writer was killed, or is still at it


def _unfit(trajectory: Trajectory, min_reward: float | None, splits: Collection[str] | None) -> str:
    """Why a trajectory is left out whatever the others are; "" where it is not."""
    if trajectory.fault:
        return "ended by an environment fault"
    if not trajectory.turns:
        return "without a turn"
    if splits is not None and trajectory.split not in splits:
        return f"of the split {trajectory.split!r}"
    texts = [trajectory.task_id, trajectory.question, trajectory.source, trajectory.environment, trajectory.format]
    texts += [text for turn in trajectory.turns for text in (turn.thought, turn.action, turn.observation)]
    if not all(map(_is_unicode, texts)):
        return "with text that is not Unicode (a lone surrogate)"
    if min_reward is not None and trajectory.reward <= min_reward:
        return _too_low(min_reward)
    return ""


def _too_low(min_reward: float) -> str:
    return f"with a reward not above {min_reward:g}"


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


# --- adding ---


@contextmanager
def _aside(folder: Path) -> Iterator[IO[bytes]]:
    """An unnamed file in a folder: gone when this process is, whatever ends it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as problem:
        if problem.filename is not None and not Path(problem.filename).is_relative_to(folder):
            raise  # one of the files that are read
        raise BankError(f"{folder}: trajectories could not be set aside while they are ranked: {problem}") from None


def _add(bank: TraceBank, trajectories: Iterable[list[StepTrace]], tell: Progress, *, total: int) -> BuildReport:
    """Adds the steps of trajectories, each step once."""
    present = dict.fromkeys(_present(bank), True)  # of each step: whether the bank had it before
    kept: Counter[str] = Counter()
    added: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    tasks = set()
    chunk: list[StepTrace] = []
    characters = 0
    for number, steps in enumerate(trajectories, start=1):
        kept[steps[0].source] += 1
        tasks.add(normalise_question(steps[0].question) or steps[0].task_id)
        for step in steps:
            identity = _identity(step.key, step.value, step.final, step.question or step.task_id)
            if identity in present:
                repeated["in the bank already" if present[identity] else "shared with what came before"] += 1
                continue
            present[identity] = False
            added[step.source] += 1
            chunk.append(step)
            characters += len(step.key) + len(step.value)
        if len(chunk) >= _CHUNK_STEPS or characters >= _CHUNK_CHARACTERS:
            bank.add(chunk, index=False)
            chunk, characters = [], 0
        tell("adding steps", number, total)
    if chunk:
        bank.add(chunk, index=False)
    return BuildReport(
        read=kept.total(),
        kept=kept.total(),
        dropped={},
        steps=added.total(),
        repeated=dict(repeated),
        tasks=len(tasks),
        sources={source: (count, added[source]) for source, count in kept.items()},
    )


def _present(bank: TraceBank) -> Iterator[bytes]:
    """What the bank has already."""
    for batch in bank.snapshot.batches():
        keys, values, finals, questions, tasks = (
            batch.column(name).to_pylist() for name in ("key", "value", "final", "question", "task_id")
        )
        for key, value, final, question, task in zip(keys, values, finals, questions, tasks, strict=True):
            yield _identity(key, value, final, question or task)


def _identity(key: str, value: str, final: bool, task: str) -> bytes:
    """What two steps share that are one: the same was done in the same situation of the same task."""
    text = f"{len(key)} {len(value)} {final} {key}{value}{normalise_question(task)}"
    return blake2b(text.encode(), digest_size=16).digest()


def _finish(bank: TraceBank, tell: Progress) -> None:
    tell("building the index", 0, 0)
    bank.compact()


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass
