"""The host's end of a supervisor: a family of interpreters behind one stream of bytes.

Any number of threads ask at once, each about a branch of its own. There is no thread that reads: of those that wait for an
answer one does, for all of them. A launcher (`local`, `docker`) brings the stream.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from sandboxes.faults import SandboxFault
from sandboxes.python.inside.frames import ChannelClosed, Decoder, encode
from sandboxes.python.interpreter import Limits, Protection

ANSWER_SECONDS = 60.0
"""How much longer than a call's own limit the supervisor may take to answer before it counts as gone."""
CHECK_SECONDS = 2.0
"""How often the engine is asked whether it is still there, while an answer is awaited."""


class Link(Protocol):
    """The bytes between this process and one supervisor, and what its launcher knows about the other end."""

    @property
    def protection(self) -> Protection:
        """How the interpreters are shut in."""

    def send(self, data: bytes) -> None:
        """Sends all of it, from one thread at a time; raises ``ChannelClosed`` when nobody can read it any more."""

    def receive(self, timeout: float) -> bytes:
        """Waits for a byte or more, in one thread at a time, while others may send.

        Raises:
            TimeoutError: Nothing came within ``timeout`` seconds.
            ChannelClosed: Nothing can come any more.
        """

    def check(self) -> None:
        """Raises ``SandboxFault`` when the engine behind the supervisor does not answer."""

    def how_it_ended(self) -> str:
        """After ``ChannelClosed``: what became of the supervisor, in words.

        Raises:
            SandboxFault: The engine itself is gone, so it was not the code's doing.
        """

    def close(self) -> None:
        """Ends the other side, from any thread; a ``receive`` in another one raises. Twice is fine."""


class SandboxEnded(Exception):
    """The supervisor died while it ran a call, and its engine did not: that was the code's doing. Says how it died."""


class Family:
    """A supervisor and its branches, from the moment at which the first one stands ready.

    Args:
        link: To the supervisor, which has just been started.
        limits: What each branch may use.
        uses: How many families in sequence the supervisor may serve; None for any number.

    Raises:
        SandboxFault: It could not start.
    """

    def __init__(self, link: Link, limits: Limits, uses: int | None = None) -> None:
        self.limits = limits
        self.protection = link.protection
        self._link = link
        self._uses = uses
        self._decoder = Decoder()
        self._sending = threading.Lock()
        self._state = threading.Condition()  # guards what follows
        self._reading = False  # some thread is, for all
        self._answers: dict[int, dict[str, Any]] = {}
        self._waiting = {_SUPERVISOR}
        self._branches = {0}
        self._why_dead: Exception | None = None
        try:
            hello = self._await(_SUPERVISOR, ANSWER_SECONDS)
        except SandboxEnded as problem:
            self.close()
            raise SandboxFault(f"an interpreter could not be started: it {problem}", retryable=True) from problem
        except BaseException:
            self.close()
            raise
        self._waiting.discard(_SUPERVISOR)
        if "fault" in hello:
            self.close()
            raise SandboxFault(f"an interpreter could not be started: {hello['fault']}", retryable=True)

    @property
    def alive(self) -> bool:
        """Whether it can be used, as far as this side can tell without asking."""
        with self._state:
            self._notice_the_end()
            return self._why_dead is None

    @property
    def uses_left(self) -> int | None:
        """How often it may still be renewed; None for any number of times."""
        return None if self._uses is None else self._uses - 1

    def ask(self, branch: int, request: Mapping[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        """Sends a request about a branch, and waits for the answer.

        Args:
            branch: Its number; one request at a time.
            request: What the supervisor is told.
            seconds: How long it may be busy with it.

        Raises:
            SandboxFault: The engine is gone, or the branch was closed.
            SandboxEnded: The supervisor died meanwhile, and the engine did not.
        """
        with self._state:
            self._notice_the_end()
            if self._why_dead is not None:
                raise SandboxFault(
                    f"the interpreter's engine is gone ({self._why_dead}): reset the interpreter", retryable=True
                )
            self._waiting.add(branch)
        try:
            self._send({"branch": branch, **request})
            return self._await(branch, seconds + ANSWER_SECONDS)
        finally:
            with self._state:
                self._waiting.discard(branch)
                self._answers.pop(branch, None)

    def fork(self, branch: int) -> dict[str, Any]:
        """Has a branch copied; the answer says ``forked`` with the copy's number, or ``refused`` with a reason."""
        answer = self.ask(branch, {"op": "fork"})
        if "forked" in answer:
            with self._state:
                self._branches.add(answer["forked"])
        return answer

    def is_alone(self, branch: int) -> bool:
        """Whether no other branch is alive."""
        with self._state:
            return self._branches == {branch}

    def leave(self, branch: int) -> bool:
        """Ends a branch, at once if others live on. A call of it in another thread ends with a fault.

        Returns:
            Whether it was the last: then what becomes of the family is the caller's to decide.
        """
        with self._state:
            self._branches.discard(branch)
            last, busy = not self._branches, branch in self._waiting
        if last:
            if busy:
                self.close()
            return True
        with contextlib.suppress(SandboxFault):
            self._send({"branch": branch, "op": "drop"})
        return False

    def renew(self) -> None:
        """Makes it a single, clean interpreter again: ends all processes, removes all files, and has that verified.

        Raises:
            SandboxFault: That failed; it cannot be used any more.
        """
        with self._state:
            self._branches = {0}
        if self._uses is not None:
            self._uses -= 1
        try:
            self.ask(0, {"op": "reset"})
        except SandboxEnded as problem:
            raise SandboxFault(f"the interpreter could not be cleaned: it {problem}", retryable=True) from problem

    def close(self) -> None:
        """Ends the supervisor with all that it started. Twice is fine."""
        with self._state:
            self._die(SandboxFault("the interpreter was closed during a call"))
        self._link.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            with self._sending:
                self._link.send(encode(message))
        except ChannelClosed as problem:
            with self._state:
                self._die(
                    SandboxFault(f"the interpreter's engine is gone ({problem}): reset the interpreter", retryable=True)
                )
                raise self._cause() from problem

    def _await(self, branch: int, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        with self._state:
            while branch not in self._answers:
                if self._why_dead is not None:
                    raise self._cause()
                left = deadline - time.monotonic()
                if left <= 0:
                    self._die(SandboxFault("the interpreter's engine gave no answer: reset the interpreter", retryable=True))
                elif self._reading:
                    self._state.wait(left)
                else:
                    self._read(min(left, CHECK_SECONDS))
            answer = self._answers.pop(branch)
            if "dropped" in answer or "gone" in answer:
                raise SandboxFault("the interpreter was closed during a call")
            return answer

    def _read(self, seconds: float) -> None:
        """Reads once, for all that wait. With the lock held, which it lets go of in between."""
        self._reading = True
        self._state.release()
        data = b""
        problem: Exception | None = None
        try:
            data = self._link.receive(seconds)
        except TimeoutError:
            try:
                self._link.check()
            except SandboxFault as fault:
                problem = fault
        except ChannelClosed:
            problem = self._autopsy()
        finally:
            self._state.acquire()
            self._reading = False
            self._state.notify_all()
        self._take_in(data, problem)

    def _take_in(self, data: bytes, problem: Exception | None) -> None:
        if problem is not None:
            self._die(problem)
        try:
            messages = self._decoder.feed(data)
        except ChannelClosed as nonsense:
            self._die(SandboxFault(f"the interpreter's engine failed: {nonsense}", retryable=True))
            return
        for message in messages:
            if "fault" in message and _SUPERVISOR not in self._waiting:
                self._die(SandboxFault(f"the interpreter's engine failed: {message['fault']}", retryable=True))
                continue
            branch = message.get("branch", _SUPERVISOR)
            if branch in self._waiting:  # else it is about a branch that was closed
                self._answers[branch] = message

    def _notice_the_end(self) -> None:
        """Finds out, without waiting, whether the other side has hung up while nobody was asking."""
        if self._reading or self._waiting or self._why_dead is not None:
            return
        try:
            self._take_in(self._link.receive(0.0), None)
        except TimeoutError:
            pass
        except ChannelClosed as problem:
            self._die(SandboxFault(f"the interpreter's engine is gone ({problem}): reset the interpreter", retryable=True))

    def _autopsy(self) -> Exception:
        try:
            return SandboxEnded(self._link.how_it_ended())
        except SandboxFault as fault:
            return fault

    def _die(self, why: Exception) -> None:
        self._why_dead = self._why_dead or why
        self._state.notify_all()

    def _cause(self) -> Exception:
        """A new exception a thread, of the one that says why this family is dead."""
        why = self._why_dead
        return SandboxFault(str(why), why.retryable) if isinstance(why, SandboxFault) else SandboxEnded(str(why))


_SUPERVISOR = -1
"""Stands for the supervisor itself, which speaks before any branch does."""
