"""What a trajectory is, and how it stands in a file: this module is the only definition of either.

A *trajectory* is one root-to-leaf path through a rollout tree. It is told twice: as *turns* of text, which people and
trace banks read, and as *segments* of token ids, which learners train on. A segment is a run of tokens with one author, and
only what the policy wrote has log-probabilities. A branch shares the start of its parent: it begins after the parent's
first ``at`` tokens, so that a shared prefix is the same segment in every trajectory that runs through it.

In a file a trajectory is one line of JSON, in ASCII (other characters are escaped, so that no reader can take one for the
end of a line). Floats come back bit for bit. Log-probabilities and entropies are 32-bit floats, written with the fewest
digits that name them.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

FORMAT_VERSION = 1
"""Version of the line format. A reader refuses lines of a later version, which it cannot know how to read."""

Author = Literal["prompt", "policy", "tool", "retrieved"]
AUTHORS: tuple[str, ...] = get_args(Author)

_SURROGATE_PAIR = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")


class TrajectoryError(ValueError):
    """A trajectory that breaks the format.

    Args:
        problem: What was expected and what was found.
        field: Where, such as ``"segments[2].ids"``; "" for the whole.
    """

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.problem = problem
        self.field = field

    def inside(self, outer: str) -> TrajectoryError:
        """The same error, seen from the object that holds the field."""
        joint = "" if not self.field or self.field.startswith("[") else "."
        return TrajectoryError(self.problem, f"{outer}{joint}{self.field}")


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one author.

    Args:
        author: Who wrote the tokens. Only ``"policy"`` segments are trained on.
        ids: Token ids.
        logprobs: Log-probability of each token under the policy that sampled it; () unless the author is the policy.
            Rounded to 32-bit floats, which is what samplers compute.
        entropies: Entropy in nats of the distribution that each token was drawn from; otherwise as ``logprobs``.
        turn: The turn of the episode that the tokens belong to, counted from 0.
        id: Number of the segment within its rollout tree.
        parent: ``id`` of the segment that this one follows; None for the root.
        at: This segment starts after the first ``at`` tokens of its parent: ``len(parent.ids)`` for a plain continuation,
            less for a branch; 0 for the root.

    Raises:
        TrajectoryError: An unknown author, a number of log-probabilities or entropies that is not the number of the
            policy's tokens, one that is not finite, or a root that starts within a parent.
    """

    author: Author
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    turn: int
    id: int
    parent: int | None
    at: int

    def __post_init__(self) -> None:
        if self.author not in AUTHORS:
            raise TrajectoryError(f"expected one of {', '.join(AUTHORS)}, found {self.author!r}", "author")
        expected = len(self.ids) if self.author == "policy" else 0
        for name in ("logprobs", "entropies"):
            values = getattr(self, name)
            if len(values) != expected:
                whose = f"{len(self.ids)} tokens of author {self.author!r}"
                raise TrajectoryError(f"expected {expected} numbers for {whose}, found {len(values)}", name)
            with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused below
                rounded = np.asarray(values, dtype=np.float32)
            if not np.isfinite(rounded).all():
                first = int(np.flatnonzero(~np.isfinite(rounded))[0])
                raise TrajectoryError(f"expected a finite 32-bit float, found {values[first]!r}", f"{name}[{first}]")
            object.__setattr__(self, name, tuple(rounded.tolist()))
        if self.parent is None and self.at != 0:
            raise TrajectoryError(f"expected 0 for a segment without a parent, found {self.at}", "at")


@dataclass(frozen=True)
class Turn:
    """One turn as text: what the policy thought, what it did, and what came back ("" where there was none)."""

    thought: str
    action: str
    observation: str


@dataclass(frozen=True)
class Trajectory:
    """One root-to-leaf path of a rollout tree: what a learner credits and a bank stores.

    Args:
        environment: Id of the environment.
        format: Name of the action format.
        task_id: The task, as its source names it.
        question: What the policy was asked.
        split: The split that the task belongs to.
        turns: The episode as text, in order.
        segments: The episode as tokens, root to leaf; () where nobody kept the tokens.
        reward: Return of the episode.
        score: The parts of the return, by name.
        success: Whether the verifier accepted the answer.
        fault: The environment fault that ended the episode, or "".
        stop: Why the episode ended.
        tool_calls: Tool calls made.
        policy_version: Version of the weights that sampled it.
        step: Training step that it was sampled for.
        path: Its place in the rollout tree, as the explorer numbers branches.
        source: Who made it, where that is not the policy in training.

    Raises:
        TrajectoryError: Segments that are not one path: each must follow the one before it, at a token that exists.

    Example:
        >>> prompt = Segment("prompt", (5, 6), (), (), turn=0, id=0, parent=None, at=0)
        >>> reply = Segment("policy", (7,), (-0.5,), (1.25,), turn=0, id=1, parent=0, at=2)
        >>> one = Trajectory("MathTool-v0", "tags", "1+1", "What is 1+1?", "train", (Turn("", "2", ""),), (prompt, reply),
        ...                  1.0, {"accuracy": 1.0}, True, "", "answer", 0, 0, 1, (0,))
        >>> one.token_ids
        (5, 6, 7)
        >>> Trajectory.from_json(one.to_json()) == one
        True
    """

    environment: str
    format: str
    task_id: str
    question: str
    split: str
    turns: tuple[Turn, ...]
    segments: tuple[Segment, ...]
    reward: float
    score: Mapping[str, float]
    success: bool
    fault: str
    stop: str
    tool_calls: int
    policy_version: int
    step: int
    path: tuple[int, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if self.segments and self.segments[0].parent is not None:
            raise TrajectoryError(f"expected none for the root, found {self.segments[0].parent}", "segments[0].parent")
        for number, (before, segment) in enumerate(pairwise(self.segments), start=1):
            if segment.parent != before.id:
                problem = f"expected {before.id}, the segment before it, found {segment.parent}"
                raise TrajectoryError(problem, f"segments[{number}].parent")
            if not 0 <= segment.at <= len(before.ids):
                problem = f"expected 0 to {len(before.ids)}, the length of its parent, found {segment.at}"
                raise TrajectoryError(problem, f"segments[{number}].at")
        ids = [segment.id for segment in self.segments]
        if len(set(ids)) != len(ids):
            raise TrajectoryError(f"expected ids that differ, found {ids}", "segments")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each segment that lie on this path: up to where the next one starts, and all of the last."""
        starts = tuple(segment.at for segment in self.segments[1:])
        return (*starts, len(self.segments[-1].ids)) if self.segments else ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids of this path, root to leaf."""
        pairs = zip(self.segments, self.lengths, strict=True)
        return tuple(token for segment, length in pairs for token in segment.ids[:length])

    def to_json(self) -> str:
        """The trajectory as one line of JSON, without a line end.

        Raises:
            TrajectoryError: A field that could not be read back: of a wrong type, not finite, or text in which a
                surrogate pair stands for one character (JSON cannot tell the two apart).
        """
        record = {
            "version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in _TRAJECTORY},
            "turns": [{name: getattr(turn, name) for name in _TURN} for turn in self.turns],
            "segments": [_segment_record(segment) for segment in self.segments],
            "score": dict(self.score),
        }
        _trajectory(record)  # what would not be accepted on reading is not written
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str, *, segments: bool = True) -> Trajectory:
        """Reads what `to_json` wrote; without ``segments`` the tokens are passed over unread, twenty times as fast.

        Raises:
            TrajectoryError: Not such a line, or one of a later format version.
        """
        try:
            record = json.loads(line if segments else _without_segments(line))
        except (ValueError, RecursionError) as error:
            problem = f"expected a trajectory as one JSON object, found {reprlib.repr(line)} ({error})"
            raise TrajectoryError(problem) from None
        if not segments and isinstance(record, dict) and "segments" in record:
            record["segments"] = []
        return _trajectory(record)


def read_trajectories(path: str | Path, *, segments: bool = True) -> Iterator[Trajectory]:
    """Reads a file of trajectories, one at a time.

    Args:
        path: A file with one trajectory a line; blank lines are passed over.
        segments: Whether to read the tokens too.

    Raises:
        TrajectoryError: A line that is no trajectory; the message starts with the file and the line number.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield Trajectory.from_json(line.decode("utf-8"), segments=segments)
            except (TrajectoryError, UnicodeDecodeError) as error:
                raise TrajectoryError(f"{path}, line {number}: {error}") from None


def write_trajectories(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Appends trajectories to a file as whole lines and flushes it; makes the file when there is none.

    Raises:
        TrajectoryError: A trajectory that cannot be written (those before it are in the file), or a file that ends in half
            a line, which a new line would become part of.
    """
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                raise TrajectoryError(f"{path}: expected whole lines, found half a line at its end: delete that and retry")
        for trajectory in trajectories:
            file.write(trajectory.to_json().encode("ascii") + b"\n")
        file.flush()


def _without_segments(line: str) -> str:
    """A line as `to_json` writes it, with an empty list for the segments; another spelling stays as it is."""
    # Within a JSON string a quote is always escaped, so only the field's own name matches; and segments hold no objects.
    before, name, after = line.partition(',"segments":[{')
    _, end, rest = after.partition("}]")
    return f'{before},"segments":[]{rest}' if name and end else line


def _segment_record(segment: Segment) -> dict[str, Any]:
    record = {name: getattr(segment, name) for name in _SEGMENT}
    return record | {"logprobs": _shortest(segment.logprobs), "entropies": _shortest(segment.entropies)}


def _shortest(values: tuple[float, ...]) -> list[float]:
    """The values as doubles with the fewest decimal digits that round to the same 32-bit floats."""
    exact = np.asarray(values, dtype=np.float32)
    short = exact.astype(np.str_).astype(np.float64)
    # Rounding twice, to a double and then to 32 bits, could in principle end elsewhere than rounding once.
    return short.tolist() if np.array_equal(short.astype(np.float32), exact) else list(values)


# Reading. Each reader takes a value as JSON gives it and returns a field's value, or says what it expected and found.
_Reader = Callable[[Any], Any]


def _wrong(expected: str, found: object) -> TrajectoryError:
    return TrajectoryError(f"expected {expected}, found {reprlib.repr(found)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong("text", value)
    if _SURROGATE_PAIR.search(value):
        raise _wrong("text without surrogate pairs (JSON reads a pair as one character)", value)
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong("true or false", value)
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong("a whole number", value)
    return value


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong("a whole number from 0 up", value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number too large for a float
            number = math.inf
        if math.isfinite(number):
            return number
    raise _wrong("a finite number", value)


def _list(reader: _Reader) -> _Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _wrong("a list", value)
        items = []
        for number, item in enumerate(value):
            try:
                items.append(reader(item))
            except TrajectoryError as error:
                raise error.inside(f"[{number}]") from None
        return tuple(items)

    return read


def _numbers_by_name(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _wrong("an object of numbers", value)
    return _object(value, {_text(name): _number for name in value})


def _object(value: Any, readers: Mapping[str, _Reader], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong("an object", value)
    for name in readers:
        if name not in value and name not in optional:
            raise TrajectoryError("expected this field, found none", name)
    fields = {}
    for name, item in value.items():
        if name not in readers:
            raise TrajectoryError(f"expected one of {', '.join(readers)}, found an unknown field", name)
        try:
            fields[name] = readers[name](item)
        except TrajectoryError as error:
            raise error.inside(name) from None
    return fields


def _trajectory(record: Any) -> Trajectory:
    version = record.get("version", FORMAT_VERSION) if isinstance(record, dict) else FORMAT_VERSION
    if version != FORMAT_VERSION or isinstance(version, bool):
        found = f"{reprlib.repr(version)}; a later version was written by a later agent-envs: upgrade to read it"
        raise TrajectoryError(f"expected {FORMAT_VERSION}, found {found}", "version")
    fields = _object(record, {"version": _whole, **_TRAJECTORY}, optional=("source",))
    del fields["version"]
    return Trajectory(**fields)


_TURN: Mapping[str, _Reader] = {"thought": _text, "action": _text, "observation": _text}

_SEGMENT: Mapping[str, _Reader] = {
    "author": _text,
    "ids": _list(_natural),
    "logprobs": _list(_number),
    "entropies": _list(_number),
    "turn": _natural,
    "id": _natural,
    "parent": lambda value: None if value is None else _natural(value),
    "at": _natural,
}

_TRAJECTORY: Mapping[str, _Reader] = {
    "environment": _text,
    "format": _text,
    "task_id": _text,
    "question": _text,
    "split": _text,
    "turns": _list(lambda value: Turn(**_object(value, _TURN))),
    "segments": _list(lambda value: Segment(**_object(value, _SEGMENT))),
    "reward": _number,
    "score": _numbers_by_name,
    "success": _truth,
    "fault": _text,
    "stop": _text,
    "tool_calls": _natural,
    "policy_version": _whole,
    "step": _whole,
    "path": _list(_whole),
    "source": _text,
}
