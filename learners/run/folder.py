"""The run folder: where it is, that it is free, and that one run at a time writes to it."""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learners.run.config import RunConfig, UsageError, learner_name


def folder_of(config: RunConfig) -> Path:
    """Where a run is to be: the folder it resumes, the one that was asked for, or a new one under ``runs``.

    Raises:
        UsageError: It is in use.
    """
    if config.resume:
        return Path(config.resume)
    name = re.sub(r"[^\w.-]+", "-", config.env)
    default = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{learner_name(type(config))}-{name}-seed{config.seed}"
    folder = Path(config.output or default)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output {folder} is in use: choose a new folder, or go on with its run by --resume {folder}")
    return folder


@contextmanager
def held(folder: Path, config: RunConfig) -> Iterator[None]:
    """Makes the folder if it is a new run's, and holds it as long as the context lasts.

    Raises:
        UsageError: Another run holds it, or it cannot be made.
    """
    try:
        (folder / "trajectories").mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"--output {folder} cannot be made: {problem.strerror}") from None
    with sole_writer(folder, folder / "lock"):
        if not config.resume:
            config.save(folder / "config.yaml")
        yield


@contextmanager
def sole_writer(output: Path, lock: Path) -> Iterator[None]:
    """Holds a lock on what is being written as long as the context lasts; it ends with the process, however that ends.

    Args:
        output: What is written, as the user knows it.
        lock: File that stands for it; made when there is none.

    Raises:
        UsageError: Another run holds it, or the file cannot be made.
    """
    try:
        file = lock.open("a")
    except OSError as problem:
        raise UsageError(f"--output {output} cannot be made: {problem.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{output} is in use: another run is writing to it") from None
        yield
