"""Other people's records, as ours: one file a format.

    rapo        the released RAPO buffer, lines of key, value and reward    steps
    steps       our own, as `tracebank.export` writes them                  steps
    sharegpt    conversations of {"from", "value"} messages                 trajectories
    openai      {"messages": [...]} with tool calls                         trajectories
    arpo        one assistant text in which everything stands inline        trajectories

Files are JSON lines, JSON lists (either gzipped, if need be) or Parquet, and are read a record at a time. A record that
cannot be used is left out and counted with its reason; a file in which nothing looks like the format is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Literal, get_args, overload

from tracebank.importers import arpo, openai, rapo, sharegpt, steps
from tracebank.importers.form import FormatError
from tracebank.importers.imported import Imported, Labels
from tracebank.step import StepTrace
from tracebank.trajectory import Trajectory

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]
StepFormat = Literal["rapo", "steps"]
TranscriptFormat = Literal["sharegpt", "openai", "arpo"]
FORMATS: tuple[str, ...] = (*get_args(StepFormat), *get_args(TranscriptFormat))

_STEPS = {form.name: form for form in (rapo.FORM, steps.FORM)}
_TRANSCRIPTS = {form.name: form for form in (sharegpt.FORM, openai.FORM, arpo.FORM)}

__all__ = ["FORMATS", "FormatError", "Imported", "StepFormat", "TranscriptFormat", "read"]


@overload
def read(
    format: StepFormat,
    paths: Paths,
    *,
    source: str | None = None,
    environment: str = "",
    reward: None = None,
    reward_field: str | None = None,
) -> Imported[StepTrace]: ...
@overload
def read(
    format: TranscriptFormat,
    paths: Paths,
    *,
    source: str | None = None,
    environment: str = "",
    reward: float | None = None,
    reward_field: str | None = None,
) -> Imported[Trajectory]: ...
@overload
def read(
    format: str,
    paths: Paths,
    *,
    source: str | None = None,
    environment: str = "",
    reward: float | None = None,
    reward_field: str | None = None,
) -> Imported[StepTrace] | Imported[Trajectory]: ...
def read(
    format: str,
    paths: Paths,
    *,
    source: str | None = None,
    environment: str = "",
    reward: float | None = None,
    reward_field: str | None = None,
) -> Imported[StepTrace] | Imported[Trajectory]:
    """The records of some files.

    Args:
        format: One of `FORMATS`.
        paths: A file or several.
        source: Who made them; the name of each file without its suffixes unless given (steps keep their own).
        environment: Id of the environment that they belong to, if any (steps keep their own).
        reward: Reward of every transcript: 1.0 unless given, since transcripts mostly are demonstrations.
        reward_field: The field of a record that holds its reward, in place of ``reward``; of a RAPO record, in place of its
            ``reward``. A truth value counts 1 or 0.

    Returns:
        What to iterate over; it keeps the account of what was dropped, and why.

    Raises:
        FormatError: No such format, a file whose suffix is not known, or (while it is iterated over) a file that is damaged
            or holds something else.
        ValueError: A reward for records that have their own, or one that is not finite.
        OSError: A file that cannot be opened.

    Example:
        >>> transcripts = read("openai", "chats.jsonl", source="GPT", reward_field="score")  # doctest: +SKIP
        >>> bank.add(step for transcript in transcripts for step in steps_of(transcript))  # doctest: +SKIP
        >>> print(transcripts.dropped, transcripts.examples)  # doctest: +SKIP
    """
    files = [Path(paths)] if isinstance(paths, str | PathLike) else [Path(path) for path in paths]
    if format not in FORMATS:
        raise FormatError(f"expected one of the formats {', '.join(FORMATS)}, found {format!r}")
    if reward is not None and not math.isfinite(reward):
        raise ValueError(f"reward: expected a finite number, found {reward}")
    if reward is not None and (format in _STEPS or reward_field is not None):
        owner = f"{format} records have their own" if format in _STEPS else f"reward_field={reward_field!r} was given too"
        raise ValueError(f"reward: expected none, since {owner}; found {reward}")
    if reward_field is not None and format == "steps":
        raise ValueError(f"reward_field: expected none, since steps have their own; found {reward_field!r}")
    labels = Labels(source, environment, 1.0 if reward is None else float(reward), reward_field)
    if format in _STEPS:
        return Imported(_STEPS[format], files, labels)
    return Imported(_TRANSCRIPTS[format], files, labels)
