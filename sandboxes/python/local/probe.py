"""Finds out how well this machine lets code be shut in, by really shutting some in and having it try the walls.

A trial is an ordinary episode with a candidate plan, in which `ATTEMPTS` runs as the code. The strongest plan is tried
first; where it fails, each layer is tried alone, and those that hold are tried together.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sandboxes.python.inside.frames import ChannelClosed, FrameChannel
from sandboxes.python.interpreter import Limits
from sandboxes.python.local.confinement import NAMESPACES, Home, Plan, landlock
from sandboxes.python.local.episode import fork_episode

SECONDS = 30.0

ATTEMPTS = """
import errno, json, os, socket, sys

def attempt(action):
    try:
        action()
    except OSError as problem:
        return problem.errno
    return 0

def reach():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("192.0.2.1", 9))

def forks():
    reader, writer = os.pipe()
    for done in range(2):
        try:
            if os.fork() == 0:
                os.read(reader, 1)
                os._exit(0)
        except BlockingIOError:
            return done
    return 2

def write():
    with open("attempt", "w") as file:
        file.write("x")
    os.unlink("attempt")

print(json.dumps({
    "library": attempt(lambda: os.listdir(os.path.dirname(os.__file__))),
    "folder": attempt(write),
    "secret": attempt(lambda: open(SECRET).close()),
    "network": attempt(reach),
    "signal": attempt(lambda: os.kill(HOST, 0)),
    "forks": forks() if LIMIT else 1,
}))
"""


class NoTrial(RuntimeError):
    """A plan does not work on this machine; the message says why."""


class Probe:
    """Tries plans.

    Args:
        home: Of the zygote that asks.
        to_close: Its descriptors that episodes must not have.
    """

    def __init__(self, home: Home, to_close: tuple[int, ...]) -> None:
        self._home = home
        self._to_close = to_close

    def strongest(self) -> tuple[Plan, tuple[str, ...]]:
        """The strongest plan that holds here, and what was not granted, with reasons.

        Raises:
            NoTrial: Not even an interpreter without any walls works.
        """
        root = os.geteuid() == 0
        version = _landlock_version()
        filtered = bool(self._home.syscall_filter)
        names = NAMESPACES if root else ("user", *NAMESPACES)
        best = Plan(namespaces=names, own_user=root, landlock=version, seccomp=filtered, process_limit=True)
        missing: dict[str, list[str]] = {}
        if not version:
            missing["the kernel or the package landlock does not have it"] = ["landlock"]
        try:
            self.try_out(best)
            return best, _in_words(missing)
        except NoTrial:
            self.try_out(Plan())
        granted = Plan()
        layers: list[tuple[str, Callable[[Plan], Plan]]] = [
            *((f"{name} namespace", _with_namespace(name, root)) for name in NAMESPACES),
            ("landlock", lambda plan: replace(plan, landlock=version)),
            ("seccomp", lambda plan: replace(plan, seccomp=filtered)),
            ("own user", lambda plan: replace(plan, own_user=root)),
            ("kernel limit of processes", lambda plan: replace(plan, process_limit=True)),
        ]
        for name, add in layers:
            candidate = add(granted)
            if candidate == granted:
                continue
            try:
                self.try_out(candidate)
                granted = candidate
            except NoTrial as problem:
                missing.setdefault(str(problem), []).append(name)
        return granted, _in_words(missing)

    def try_out(self, plan: Plan) -> None:
        """Runs `ATTEMPTS` under ``plan``; raises ``NoTrial`` when an interpreter does not work or a wall does not hold."""
        secret = os.path.join(self._home.folder, "secret")
        with open(secret, "w"):
            os.chmod(secret, 0o644)
        try:
            names = f"SECRET = {secret!r}\nHOST = {os.getpid()}\nLIMIT = {plan.process_limit}\n"
            found = self._attempt(plan, names + ATTEMPTS)
        finally:
            os.unlink(secret)
        protection = plan.protection(False, ())
        for fault, present in (
            (f"Python's own files cannot be read: {os.strerror(found['library'])}", found["library"] != 0),
            (f"the work folder cannot be written: {os.strerror(found['folder'])}", found["folder"] != 0),
            ("the host's files can be read", found["secret"] == 0 and protection.files != "open"),
            ("the network can be reached", found["network"] == 0 and protection.network != "open"),
            ("the host's processes can be signalled", found["signal"] == 0 and protection.signals != "open"),
            ("the kernel counts the processes of others too, or none", found["forks"] != 1),
        ):
            if present:
                raise NoTrial(fault)

    def _attempt(self, plan: Plan, code: str) -> dict[str, int]:
        """What came of the attempts: 0 or an error number for each, and how many forks there were."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                fork_episode(
                    plan, Limits(processes=2, branches=1), self._home, theirs.fileno(), (ours.fileno(), *self._to_close)
                )
            except OSError as problem:
                raise NoTrial(problem.strerror) from problem
            theirs.close()
            channel = FrameChannel(ours.fileno(), ours.fileno())
            try:
                _no_fault(channel.receive(SECONDS))
                channel.send({"branch": 0, "op": "run", "code": code, "timeout": SECONDS, "display": False})
                done = _no_fault(channel.receive(SECONDS + 5))
            except (ChannelClosed, TimeoutError) as problem:
                raise NoTrial(f"a trial interpreter gave no answer: {problem}") from problem
        if done["status"] != "ok":
            raise NoTrial(f"a trial interpreter ended in {done['status']}: {done['error'].strip().splitlines()[-1]}")
        found: dict[str, int] = json.loads(done["stdout"])
        return found


def _in_words(missing: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(f"{', '.join(names)} ({reason})" for reason, names in missing.items())


def _with_namespace(name: str, root: bool) -> Callable[[Plan], Plan]:
    def add(plan: Plan) -> Plan:
        user = () if root or "user" in plan.namespaces else ("user",)
        return replace(plan, namespaces=(*user, *plan.namespaces, name))

    return add


def _no_fault(message: dict[str, Any]) -> dict[str, Any]:
    if "fault" in message:
        raise NoTrial(str(message["fault"]))
    return message


def _landlock_version() -> int:
    if landlock is None:
        return 0
    try:
        return int(landlock.landlock_abi_version())
    except (landlock.LandlockError, OSError):
        return 0
