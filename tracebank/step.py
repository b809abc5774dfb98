"""What a step is, and the one way in which histories and steps become text.

RAPO (arXiv 2603.03078, section 4.1.1) keeps trajectories as steps: the *key* of step t is the history before it (for step 0
the question itself), its *value* is the step: thought, action, observation. A key in a bank and the query of a running agent
are both written by `render_history`, so that like is compared with like.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tracebank.trajectory import Trajectory, Turn

UNFINISHED_STOPS = ("length", "truncated", "fault")
"""Ways to stop in which nobody had the last word: the last step of such a trajectory is a step like any other."""


@dataclass(frozen=True)
class StepTrace:
    """One step of somebody's trajectory, as a bank keeps it.

    Args:
        task_id: The task, as its source names it.
        step: Number of the step within its trajectory, from 0.
        key: The history before the step, as `render_history` writes it.
        value: The step itself, as `render_step` writes it.
        reward: Return of the whole trajectory.
        final: Whether the trajectory ended with this step: it may hold the answer.
        source: Who made it.
        question: What the task asks. Where there is none, step 0 takes its key; a step without a question can be kept from
            its own task by the task's id alone.
        environment: Id of the environment, or "".
        format: Name of the action format, or "".
        trajectory: What the steps of one trajectory share, or "".

    Raises:
        ValueError: A step below 0, a reward that is not finite, or text that is not Unicode (a lone surrogate).
        TypeError: A field of another type.

    Example:
        >>> StepTrace("1+1", 0, "What is 1+1?", "<answer>2</answer>", 1.0, True, "oracle").question
        'What is 1+1?'
    """

    task_id: str
    step: int
    key: str
    value: str
    reward: float
    final: bool
    source: str
    question: str = ""
    environment: str = ""
    format: str = ""
    trajectory: str = ""

    def __post_init__(self) -> None:
        for name in TEXTS:
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"{name}: expected text, found {type(text).__name__}")
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise ValueError(f"{name}: expected Unicode text, found a lone surrogate at {error.start}") from None
        if not isinstance(self.final, bool):
            raise TypeError(f"final: expected True or False, found {self.final!r}")
        if isinstance(self.step, bool) or not isinstance(self.step, int):
            raise TypeError(f"step: expected a whole number, found {self.step!r}")
        if not 0 <= self.step < 2**31:
            raise ValueError(f"step: expected a number from 0 to 2**31 - 1, found {self.step}")
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float):
            raise TypeError(f"reward: expected a number, found {self.reward!r}")
        if not math.isfinite(self.reward):
            raise ValueError(f"reward: expected a finite number, found {self.reward}")
        object.__setattr__(self, "reward", float(self.reward))
        if not self.question and self.step == 0:
            object.__setattr__(self, "question", self.key)


TEXTS = ("task_id", "key", "value", "source", "question", "environment", "format", "trajectory")
"""The fields of a step that are text."""


@dataclass(frozen=True, kw_only=True)
class Hit(StepTrace):
    """A step that a query found.

    Args:
        id: Its number in the bank, which it keeps for good.
        score: Cosine of the angle between its key and the query, as the bank's embedder sees them.
    """

    id: int
    score: float


def render_step(turn: Turn) -> str:
    """A step as text: what was thought and done, as it was written, and what came back, in the papers' ``<result>`` tags."""
    result = f"\n<result>\n{turn.observation}\n</result>\n" if turn.observation else ""
    return f"{turn.thought}{turn.action}{result}"


def render_history(question: str, turns: Sequence[Turn] = ()) -> str:
    """A history as text: the question alone, or the question and the steps after it."""
    if not turns:
        return question
    return f"{question}\n{''.join(map(render_step, turns))}"


def steps_of(trajectory: Trajectory, source: str | None = None) -> list[StepTrace]:
    """The steps of a trajectory, each with the history before it as its key.

    Args:
        trajectory: Any, with or without its tokens.
        source: Overrides the trajectory's own.
    """
    turns = trajectory.turns
    written = "\x00".join([trajectory.question, *map(render_step, turns)])
    name = hashlib.blake2b(f"{trajectory.task_id}\x00{written}".encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return [
        StepTrace(
            task_id=trajectory.task_id,
            step=number,
            key=render_history(trajectory.question, turns[:number]),
            value=render_step(turn),
            reward=trajectory.reward,
            final=number == len(turns) - 1 and trajectory.stop not in UNFINISHED_STOPS,
            source=trajectory.source if source is None else source,
            question=trajectory.question,
            environment=trajectory.environment,
            format=trajectory.format,
            trajectory=name,
        )
        for number, turn in enumerate(turns)
    ]


def follows(step: StepTrace, other: StepTrace) -> bool:
    """Whether a step is the one after another in the same trajectory, by its number and the history in its key."""
    between = "\n" if other.step == 0 else ""
    return (step.step, step.trajectory, step.key) == (
        other.step + 1,
        other.trajectory,
        f"{other.key}{between}{other.value}",
    )


def normalise_question(question: str) -> str:
    """The text by which two questions are one: case, width of characters and white space make no difference."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())
