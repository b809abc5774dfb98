"""A terminal in a sandbox: a tool whose state lives in another process. From the repository's root:

    import gymnasium as gym
    env = gym.make("examples.terminal:Terminal-v0")

The sandbox is the Python interpreter of `sandboxes.python`; a command is a bash that it starts. What is shown here:

- an engine that opens at ``reset``, is used again by the next episode, and is gone after ``close`` or a fault;
- state in two places: files in the sandbox, which ``fork`` copies with it, and the current folder, which the next bash is
  told;
- whose doing a failure is: a command's time-out is the policy's to read, a machine without bash is nobody's answer.

An interpreter of this machine shows its code Python and no other program but those that are named (`PROGRAMS`); in a
container (``backend="docker"``, which "auto" takes where it is set up) a command finds what the image has.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import gymnasium as gym
import numpy as np

from agent_envs import Answer, Call, ForkError, Move, Task, TaskSource, Tool, ToolEnv, ToolResult, UnknownTask
from agent_envs.task import Oracle, split_of
from agent_envs.verifiers.qa import QAVerifier
from sandboxes.faults import SandboxFault
from sandboxes.python import ForkRefused, Interpreter, open_interpreter

gym.register("Terminal-v0", "examples.terminal:environment")

Backend = Literal["auto", "docker", "local"]
Isolation = Literal["auto", "none"]


def environment(
    split: str = "train",
    backend: Backend = "auto",
    isolation: Isolation = "auto",
    image: str | None = None,
    timeout: float = 5.0,
) -> ToolEnv:
    """``Terminal-v0``.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        backend: Of the interpreter; see `Terminal`.
        isolation: Likewise.
        image: Likewise.
        timeout: Seconds that one command may take.
    """
    tool = Terminal(backend, isolation, image, timeout)
    return ToolEnv(tasks=LogTasks(), tools=[tool], verifier=QAVerifier("em"), split=split, max_turns=6)


# --- the tool

PROGRAMS = (
    *("bash", "awk", "cat", "cp", "cut", "diff", "dirname", "find", "grep", "head", "ls", "mkdir", "mv", "paste"),
    *("printf", "rm", "rmdir", "sed", "seq", "sleep", "sort", "tail", "tee", "touch", "tr", "true", "uniq", "wc", "xargs"),
)
"""What a command can run on the local backend, as far as it is installed."""

_PREPARE = """
import os, subprocess
for name, text in {files!r}.items():
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "w") as file:
        file.write(text)
try:
    subprocess.run(["bash", "-c", "echo ready"])
except OSError as problem:
    print(problem)
"""

# The command is an argument of bash and no part of its program, so that no quote of it ends anything. At its end bash says
# in which folder it is, through a pipe of its own.
_COMMAND = """
import os, subprocess
home, folder = os.getcwd(), globals().get("folder", ".")
told, tell = os.pipe()
os.set_blocking(told, False)
shell = subprocess.run(
    ["bash", "-c", "trap 'pwd >&%d' EXIT; eval \\"$1\\"" % tell, "bash", {command!r}],
    cwd=folder if os.path.isdir(folder) else home,
    env={{**os.environ, "HOME": home, "LC_ALL": "C"}},
    stdin=subprocess.DEVNULL,
    pass_fds=[tell],
)
os.close(tell)
try:
    where = os.fsdecode(os.read(told, 4096)).rstrip("\\n")
except BlockingIOError:  # bash is gone without a word, and something that it has started holds the pipe
    where = ""
folder = os.path.relpath(where, home) if where else folder
os.close(told)
if shell.returncode:
    print(f"[exit status {{shell.returncode}}]")
"""


class Terminal(Tool):
    """Runs a bash command and gives back what it prints. Files and the current folder stay for later commands.

    Args:
        backend: Which interpreter bash runs in (`sandboxes.python.open_interpreter`).
        isolation: ``"none"`` permits one that nothing shuts in.
        image: Docker image; by default that of ``python -m sandboxes build-image``.
        timeout: Seconds that one command may take.
    """

    examples = (
        {"command": "mkdir -p notes; cd notes; echo more >> list.txt; cat list.txt; pwd"},
        {"command": "wc -l < /dev/null; ls ~"},
        {"command": "nonsense"},
    )
    endless: Mapping[str, str] = MappingProxyType({"command": "while true; do :; done"})

    def __init__(
        self,
        backend: Backend = "auto",
        isolation: Isolation = "auto",
        image: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.backend: Backend = backend
        self.isolation: Isolation = isolation
        self.image = image
        self.timeout: float = timeout
        self._interpreter: Interpreter | None = None
        self._home = ""

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """Opens a clean interpreter, with the task's files in its work folder.

        Raises:
            SandboxFault: It could not be opened, or has no bash.
        """
        seed = int(rng.integers(2**32))
        try:
            if self._interpreter is None:
                self._interpreter = open_interpreter(
                    self.backend,
                    isolation=self.isolation,
                    programs=[name for name in PROGRAMS if shutil.which(name)],
                    image=self.image,
                    seed=seed,
                )
            else:
                self._interpreter.reset(seed)
            prepared = self._interpreter.run(_PREPARE.format(files=make_logs(task.metadata["logs"]).files()))
            if prepared.status != "ok":
                raise SandboxFault(f"the task's files could not be written: {prepared.error}", retryable=True)
            if prepared.stdout.strip() != "ready":
                raise SandboxFault(
                    f"a terminal needs bash, which a {self._interpreter.describe().backend} interpreter does not find here: "
                    "install it, on this machine or in the image"
                )
            self._home = _home(self._interpreter)
        except BaseException:
            self.close()
            raise

    def run(self, command: str) -> ToolResult:
        """Runs a command.

        Args:
            command: Anything that bash takes, such as a pipe or several lines.
        """
        assert self._interpreter is not None, "reset() opens the interpreter"
        try:
            done = self._interpreter.run(_COMMAND.format(command=command), timeout=self.timeout)
        except BaseException:
            self.close()
            raise
        parts = [done.stdout.rstrip("\n")]
        if done.truncated:
            parts.append("[the rest of the output was left out]")
        if done.status == "timeout":
            parts.append(f"timed out after {self.timeout:g} s; the current folder is ~ again")
        elif done.error:
            parts.append(done.error.rstrip("\n").split("\n")[-1])
        # The work folder of a copy has another path, which nobody is to see.
        text = re.sub(rf"{re.escape(self._home)}(?![\w-])", "~", "\n".join(filter(None, parts)))
        return ToolResult(text or "(no output)", "" if done.status == "ok" else done.status)

    def fork(self) -> Terminal:
        """A terminal with a copy of the interpreter and its files."""
        twin = type(self)(self.backend, self.isolation, self.image, self.timeout)
        if self._interpreter is not None:
            try:
                twin._interpreter = self._interpreter.fork()
            except ForkRefused as refusal:
                raise ForkError(str(refusal)) from refusal
            twin._home = _home(twin._interpreter)
        return twin

    def close(self) -> None:
        """Ends the interpreter."""
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()


def _home(interpreter: Interpreter) -> str:
    return interpreter.run("import os; print(os.getcwd())").stdout.strip()


# --- the tasks

_USERS = ("ada", "ben", "cleo", "dan", "eve", "finn", "gita", "hugo", "iris", "jan", "kim", "leo", "mia", "noor", "pia")
_PAGES = ("home", "search", "basket", "login", "orders", "help", "offers", "contact", "stores", "returns")
_FILES = ("logs/mon.log", "logs/tue.log", "logs/wed.log")
_LEVELS = ("INFO", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True)
class Line:
    """A line of a log file."""

    file: str
    level: str
    user: str
    page: str


@dataclass(frozen=True)
class Logs:
    """Three files of forty lines."""

    lines: tuple[Line, ...]

    def files(self) -> dict[str, str]:
        """The text of each file."""
        return {
            name: "".join(f"{line.level} {line.user} /{line.page}\n" for line in self.lines if line.file == name)
            for name in _FILES
        }


def make_logs(number: int) -> Logs:
    """The logs of a number."""
    rng = np.random.default_rng(number)
    users = [_USERS[i] for i in rng.permutation(len(_USERS))[:6]]
    lines = (
        Line(name, _LEVELS[int(rng.integers(4))], users[int(rng.integers(6))], _PAGES[int(rng.integers(len(_PAGES)))])
        for name in _FILES
        for _ in range(40)
    )
    return Logs(tuple(lines))


_KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "lines": (
            "How many {level} lines of user {user} are there in all the files under logs?",
            "cat logs/*.log | grep -c '^{level} {user} '",
        ),
        "users": (
            "How many different users have asked for /{page} in {file}?",
            "grep ' /{page}$' {file} | cut -d ' ' -f 2 | sort -u | wc -l",
        ),
        "most": (
            "Which user has the most {level} lines in {file}?",
            "grep '^{level} ' {file} | cut -d ' ' -f 2 | sort | uniq -c | sort -rn | head -n 1",
        ),
    }
)
"""Kinds of questions about one line's file, level, user and page: the wording, and the command that answers it."""


class LogTasks(TaskSource):
    """Questions about log files. An id reads ``logs:NUMBER:KIND:LINE``; the question is about what stands in that line.

    Example:
        >>> task = LogTasks().sample(np.random.default_rng(0), "test")
        >>> LogTasks().get(task.id) == task
        True
    """

    name = "logs"

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws logs and questions until one belongs to the split."""
        if split not in self.splits:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(self.splits)}, found {split!r}")
        while True:
            number, kind = int(rng.integers(2**31)), list(_KINDS)[int(rng.integers(len(_KINDS)))]
            task = self.get(f"logs:{number}:{kind}:{int(rng.integers(120))}")
            if split_of(task.question) == split:
                return task

    def get(self, task_id: str) -> Task:
        """The task that the id spells out."""
        match = re.fullmatch(r"logs:([0-9]{1,10}):([a-z]+):([0-9]{1,3})", task_id)
        if not match or match[2] not in _KINDS or int(match[3]) >= 120:
            raise UnknownTask(
                f"a task id of logs reads 'logs:NUMBER:KIND:LINE' with a kind of {list(_KINDS)} and a line below 120, "
                f"found {task_id!r}"
            )
        logs, kind = make_logs(int(match[1])), match[2]
        line = logs.lines[int(match[3])]
        question = _KINDS[kind][0].format(**vars(line))
        return Task(task_id, question, _answers(logs, kind, line), {"logs": int(match[1]), "kind": kind, **vars(line)})

    def oracle(self, task: Task) -> Oracle:
        """Runs the command of the question's kind, then answers with the last word that came back."""

        def expert(observation: str) -> Move:
            if observation == task.question:
                return Call("terminal", {"command": _KINDS[task.metadata["kind"]][1].format(**task.metadata)})
            return Answer(observation.split()[-1] if observation.split() else "")

        return expert


def _answers(logs: Logs, kind: str, asked: Line) -> tuple[str, ...]:
    """The right answers; several where users share the first place."""
    if kind == "lines":
        return (str(sum(line.level == asked.level and line.user == asked.user for line in logs.lines)),)
    in_file = [line for line in logs.lines if line.file == asked.file]
    if kind == "users":
        return (str(len({line.user for line in in_file if line.page == asked.page})),)
    users = [line.user for line in in_file if line.level == asked.level]
    return tuple(sorted({user for user in users if users.count(user) == max(map(users.count, users))}))
