"""Engines shared by the users of a process."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sandboxes import shared


class Bell:
    """An engine that remembers how it was treated."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = 0

    def close(self) -> None:
        self.alive = False
        self.closed += 1


def test_users_of_one_key_share_one_engine_until_the_last_is_gone() -> None:
    first = shared.acquire("a", Bell)
    second = shared.acquire("a", Bell)
    other = shared.acquire("b", Bell)
    assert first.engine is second.engine
    assert other.engine is not first.engine
    first.close()
    first.close()
    assert first.engine.closed == 0, "closing a lease twice is closing it once"
    second.close()
    other.close()
    assert (first.engine.closed, other.engine.closed) == (1, 1)
    third = shared.acquire("a", Bell)
    assert third.engine is not first.engine
    third.close()


def test_a_lingering_engine_waits_for_its_next_user() -> None:
    lease = shared.acquire("lingers", Bell, linger=True)
    engine = lease.engine
    lease.close()
    assert engine.closed == 0
    again = shared.acquire("lingers", Bell, linger=True)
    assert again.engine is engine
    shared.close_idle()
    assert engine.closed == 0, "it is in use"
    again.close()
    shared.close_idle()
    assert engine.closed == 1


def test_a_dead_engine_is_replaced_and_closed_once() -> None:
    first = shared.acquire("dies", Bell)
    first.engine.alive = False
    second = shared.acquire("dies", Bell)
    assert second.engine is not first.engine
    first.close()
    assert (first.engine.closed, second.engine.closed) == (1, 0)
    second.close()
    assert second.engine.closed == 1


def test_latecomers_wait_for_one_start() -> None:
    started: list[Bell] = []

    def slow() -> Bell:
        time.sleep(0.1)
        started.append(Bell())
        return started[-1]

    leases: list[shared.Lease[Bell]] = []
    threads = [threading.Thread(target=lambda: leases.append(shared.acquire("slow", slow))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1
    for lease in leases:
        lease.close()
    assert started[0].closed == 1


def test_a_slow_start_of_one_key_does_not_hold_up_another() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow() -> Bell:
        entered.set()
        assert leave.wait(10)
        return Bell()

    thread = threading.Thread(target=lambda: shared.acquire("held up", slow).close())
    thread.start()
    assert entered.wait(10)
    shared.acquire("quick", Bell).close()
    leave.set()
    thread.join()


def test_a_start_that_fails_leaves_nothing() -> None:
    def fails() -> Bell:
        raise OSError("no engine today")

    for _ in range(2):
        with pytest.raises(OSError, match="no engine today"):
            shared.acquire("fails", fails)
    lease = shared.acquire("fails", Bell)
    lease.close()
    assert lease.engine.closed == 1


def test_a_forked_child_has_no_engines_and_closes_none() -> None:
    lease = shared.acquire("parent's", Bell)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lease.close()
        mine = shared.acquire("parent's", Bell)
        os.write(writer, f"{lease.engine.closed} {mine.engine is lease.engine}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"0 False"
    os.close(reader)
    os.close(writer)
    lease.close()
