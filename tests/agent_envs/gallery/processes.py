"""Broken environments: what they do to the process around them, and what they leave behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from typing import Any

import gymnasium as gym
from gallery.words import Outcome, Words
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle

from agent_envs.spaces import replace_surrogates


class Prints(Words):
    """A line of debugging in the parser."""

    def read(self, action: str) -> str:
        if not action:
            print("empty action", file=sys.stderr)
        return super().read(action)


class PrintsPastPython(Words):
    """A program that it starts writes to the terminal."""

    def draw(self) -> tuple[str, ...]:
        os.write(1, b"loading the model\n")
        return super().draw()


class ConfiguresLogging(Words):
    """It sets up the root logger as if the program were its own."""

    def draw(self) -> tuple[str, ...]:
        logging.basicConfig(level=logging.INFO)
        return super().draw()


class Silences(Words):
    """It turns off all warnings of the process."""

    def draw(self) -> tuple[str, ...]:
        warnings.filterwarnings("ignore")
        return super().draw()


class ChangesFolder(Words):
    """It works in a folder of its own, and everybody else now does too."""

    def draw(self) -> tuple[str, ...]:
        os.chdir(tempfile.gettempdir())
        return super().draw()


class SetsVariable(Words):
    """It leaves a variable for its tools in the environment of the process."""

    def __init__(self) -> None:
        super().__init__()
        os.environ["WORDS_MODE"] = "on"


class AlarmInStep(Words):
    """A time limit by SIGALRM: its handler stays, and in any thread but the first one it is an error."""

    def read(self, action: str) -> str:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(100)
        try:
            return super().read(action)
        finally:
            signal.alarm(0)


class ThreadForEach(Words):
    """A thread for each environment, which nobody ends or joins."""

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=threading.Event().wait, name="heartbeat", daemon=True).start()


class ProcessForEach(Words):
    """A server for each environment; ``close`` names the function that ends it and does not call it."""

    server: subprocess.Popen[bytes] | None = None

    def draw(self) -> tuple[str, ...]:
        self.server = self.server or subprocess.Popen(["sleep", "60"])
        return super().draw()

    def close(self) -> None:
        if self.server is not None:
            self.server.kill  # noqa: B018 - that is the bug
            self.server = None


class FolderForEach(Words):
    """A scratch folder for each environment, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="words-")


class DescriptorForEach(Words):
    """A log that is opened at each reset and never closed."""

    def draw(self) -> tuple[str, ...]:
        os.open(os.devnull, os.O_RDONLY)
        return super().draw()


class CloseOnce(Words):
    """The second close finds nothing to close."""

    def __init__(self) -> None:
        super().__init__()
        self.board: list[str] | None = []

    def close(self) -> None:
        assert self.board is not None, "already closed"
        self.board = None


class CloseNeedsReset(Words):
    """To be closed it must have been opened."""

    def draw(self) -> tuple[str, ...]:
        self.board: list[str] = []
        return super().draw()

    def close(self) -> None:
        self.board.clear()


class ClosedForGood(Words):
    """After a close it cannot be reset, and fails somewhere inside instead of saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: list[str] | None = []

    def draw(self) -> tuple[str, ...]:
        self.engine.append("draw")  # type: ignore[union-attr]
        return super().draw()

    def close(self) -> None:
        self.engine = None


class Unpicklable(Words):
    """A lock from the start, so that it goes to no other process."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class PicklesAsAnother(Words, EzPickle):
    """What pickle makes it from is not what it was made from."""

    def __init__(self, greeting: str = "hello") -> None:
        EzPickle.__init__(self)
        Words.__init__(self)
        self.greeting = greeting

    def info(self) -> dict[str, Any]:
        return super().info() | {"greeting": self.greeting}


class OwnProcesses(Words):
    """A pool of processes to read an action, which the daemonic processes of a vector environment may not have."""

    def read(self, action: str) -> str:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return super().read(pool.apply(replace_surrogates, (action,)))


class HangsInWorkers(Words):
    """It waits for a lock that some thread of the parent process held when it was forked."""

    home = os.getpid()

    def draw(self) -> tuple[str, ...]:
        if os.getpid() != self.home:
            threading.Event().wait()
        return super().draw()


class TextOfGymnasium(Words):
    """Its space is Gymnasium's own, which does not get through shared memory."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Text(500, charset="".join(map(chr, range(32, 127))))  # type: ignore[assignment]

    def read(self, action: str) -> str:
        return "".join(letter for letter in super().read(action) if " " <= letter <= "~")


class SometimesANumber(Words):
    """A key of the info is a number in one task and a text in another."""

    def info(self) -> dict[str, Any]:
        return super().info() | {"level": 1 if len(self.words[-1]) == 5 else "easy"}


class OnlyInTheFirstThread(Words):
    """Its engine belongs to the thread that has imported this module."""

    home = threading.get_ident()

    def step(self, action: str) -> Outcome:
        if threading.get_ident() != self.home:
            raise RuntimeError("signal only works in main thread of the main interpreter")
        return super().step(action)


class Levels(Words):
    """Sound, if only it were not made with a set, which is no JSON."""

    def __init__(self, levels: frozenset[int] = frozenset({1})) -> None:
        super().__init__()
        self.levels = levels


class Shout(gym.Wrapper[str, str, str, str]):
    """A wrapper that does not record how it was made, so that no spec can make it again."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        question, info = self.env.reset(seed=seed, options=options)
        return question.upper(), info


def shouting() -> gym.Env[str, str]:
    """One of our own environments in that wrapper."""
    return Shout(gym.make("agent_envs:agent_envs/MathTool-v0", disable_env_checker=True))


def with_a_set() -> gym.Env[str, str]:
    """An environment made with what is no JSON."""
    spec = EnvSpec("tests/Levels-v0", entry_point="gallery.processes:Levels")
    return gym.make(spec, levels=frozenset({1, 2}), disable_env_checker=True)


def pickled_as_another() -> gym.Env[str, str]:
    """An environment with a setting that gets lost when it is pickled."""
    return PicklesAsAnother(greeting="good morning")
