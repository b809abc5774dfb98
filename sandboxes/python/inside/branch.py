"""One branch of a family as its supervisor sees it: a worker, a work folder, and what the worker is busy with.

Runs inside, in the supervisor; standard library only.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from sandboxes.python.inside.handle import Output, WorkerHandle
from sandboxes.python.inside.worker import ERROR_BYTES, PACKET_BYTES

WATCH_SECONDS = 0.04
"""How often a running call's processes, memory and files are looked at."""
AFRESH = "The interpreter starts afresh: variables and imports are gone."


class SupervisorFault(RuntimeError):
    """The supervisor cannot do its work; the host hears of it as a fault."""


def new_nonce() -> str:
    """A number that code cannot guess: what a worker says counts only with the one of the request at hand."""
    return os.urandom(16).hex()


def read_hint(packet: bytes, nonce: str) -> dict[str, Any]:
    """What a worker says about the request ``nonce``; {} if it is about nothing or another one."""
    try:
        hint = json.loads(packet)
    except (ValueError, RecursionError):
        return {}
    return hint if isinstance(hint, dict) and hint.get("nonce") == nonce else {}


def plain_text(value: object) -> str:
    """Text of a worker's, which runs the code's threads too and may say anything: bounded, and free of lone surrogates."""
    return str(value)[: 2 * ERROR_BYTES].encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass
class Starting:
    """A fresh worker is shutting itself in."""

    due: float
    attempts: int = 1


@dataclass
class Call:
    """Code is running.

    Args:
        nonce: Of its request.
        timeout: Its limit, in seconds.
        output: What it has printed.
        packets: The rest of the request that the worker has still to be sent, the next one last.
        started: When it began.
        watch: When its processes, memory and files are to be looked at.
    """

    nonce: str
    timeout: float
    output: Output
    packets: list[bytes]
    started: float = field(default_factory=time.monotonic)
    watch: float = 0.0

    def __post_init__(self) -> None:
        self.watch = self.started + WATCH_SECONDS

    @property
    def deadline(self) -> float:
        """When its time is up."""
        return self.started + self.timeout

    @property
    def due(self) -> float:
        """When it is next to be looked at."""
        return min(self.watch, self.deadline)


@dataclass
class Copying:
    """The worker is copying itself.

    Args:
        nonce: Of the order.
        copy: What comes of it.
        due: When it has taken too long.
        copied: The original has said that it is through.
        lost: The copy has hung up before it stood ready.
    """

    nonce: str
    copy: Branch
    due: float
    copied: bool = False
    lost: bool = False


class Branch:
    """A branch.

    Args:
        number: Its name; a family never uses one twice.
        slot: Which of the work folders it has.
        worker: Its process.

    Attributes:
        seed: Seeds the random generators of its next fresh worker.
        activity: What it is busy with; None while it waits, stopped, for a request.
        request: A request that came while a fresh worker was starting.
    """

    def __init__(self, number: int, slot: int, worker: WorkerHandle) -> None:
        self.number = number
        self.slot = slot
        self.worker = worker
        self.seed = 0
        self.activity: Starting | Call | Copying | None = None
        self.request: dict[str, Any] | None = None

    def begin(self, request: dict[str, Any], output_bytes: int) -> Call:
        """Lets the worker go on with a request's code."""
        self.worker.forget_late_words()
        if "seed" in request:
            self.seed = request["seed"]
        nonce = new_nonce()
        told = {"nonce": nonce, "code": request["code"], "display": request["display"]}
        if self.worker.fresh or "seed" in request:
            told["seed"] = self.seed
        self.worker.fresh = False
        text = json.dumps(told).encode("ascii")
        starts = range(0, len(text), PACKET_BYTES - 1)
        parts = [text[start : start + PACKET_BYTES - 1] for start in starts]
        packets = [(b"." if start == starts[-1] else b"+") + part for start, part in zip(starts, parts, strict=True)]
        packets.reverse()
        call = Call(nonce, request["timeout"], Output(output_bytes), packets)
        self.activity = call
        self.worker.go_on()
        return call
