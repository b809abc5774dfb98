"""The pool of warm interpreters, with families that are cheap and keep a record of what was done to them."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandboxes import shared
from sandboxes.faults import SandboxFault
from sandboxes.python import open_interpreter
from sandboxes.python.pool import Pool


class Workshop:
    """Makes families, and knows how many of them live.

    Args:
        uses: How many users each family may serve.
        start_seconds: How long a start takes.
        renew_seconds: How long a cleaning takes.

    Attributes:
        cleaning: Cleanings wait until it is set, as it is at first.
        fault: What every start raises, if anything.
    """

    def __init__(self, uses: int | None = None, start_seconds: float = 0.0, renew_seconds: float = 0.0) -> None:
        self.uses = uses
        self.start_seconds = start_seconds
        self.renew_seconds = renew_seconds
        self.cleaning = threading.Event()
        self.cleaning.set()
        self.fault: Exception | None = None
        self.lock = threading.Lock()
        self.started: list[FakeFamily] = []
        self.starts: list[str] = []
        self.living = 0
        self.most_living = 0
        self.starting = 0
        self.most_starting = 0

    def start(self) -> FakeFamily:
        with self.lock:
            self.starts.append(threading.current_thread().name)
            self.living += 1
            self.most_living = max(self.most_living, self.living)
            self.starting += 1
            self.most_starting = max(self.most_starting, self.starting)
        time.sleep(self.start_seconds)
        with self.lock:
            self.starting -= 1
            if self.fault is not None:
                self.living -= 1
                raise self.fault
            family = FakeFamily(self)
            self.started.append(family)
        return family


class FakeFamily:
    """A family that is dirty once somebody used it, until it is renewed."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.alive = True
        self.uses_left = None if workshop.uses is None else workshop.uses - 1
        self.fault: Exception | None = None
        self.dirty = False
        self.user: object = None
        self.renewed = 0
        self.closed = 0

    def use(self, user: object) -> None:
        assert self.user is None, "two users at once"
        assert self.alive
        assert not self.dirty, "another user was here"
        self.user = user
        self.dirty = True

    def leave(self) -> None:
        self.user = None

    def renew(self) -> None:
        assert self.user is None, "cleaned while in use"
        time.sleep(self.workshop.renew_seconds)
        assert self.workshop.cleaning.wait(10), "somebody waits for a cleaning who should not"
        if self.fault is not None:
            self.alive = False
            raise self.fault
        if self.uses_left is not None:
            assert self.uses_left > 0, "it has served as many as it may"
            self.uses_left -= 1
        self.renewed += 1
        self.dirty = False

    def close(self) -> None:
        assert self.user is None, "ended while in use"
        if self.closed == 0:
            with self.workshop.lock:
                self.workshop.living -= 1
        self.alive = False
        self.closed += 1


@pytest.fixture
def pools() -> Iterator[list[Pool]]:
    """Pools that are closed after the test; then no thread of theirs may be left."""
    opened: list[Pool] = []
    yield opened
    for pool in opened:
        pool.close()
    assert threads() == []


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("interpreter-pool")]


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)


def opened(pools: list[Pool], workshop: Workshop, **arguments: float) -> Pool:
    pool = Pool(workshop.start, **arguments)  # type: ignore[arg-type]
    pools.append(pool)
    return pool


def test_without_warm_ones_nothing_is_kept_and_no_thread_runs(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop)
    first, second = pool.take(), pool.take()
    assert workshop.starts == [threading.current_thread().name] * 2
    pool.give_back(first)
    assert first.closed == 1
    assert workshop.living == 1
    pool.give_back(second)
    assert workshop.living == 0
    assert threads() == []


def test_warm_ones_are_ready_before_anybody_asks_and_are_replaced(pools: list[Pool]) -> None:
    workshop = Workshop(start_seconds=0.01)
    pool = opened(pools, workshop, warm=3)
    eventually(lambda: workshop.living == 3)
    time.sleep(0.05)
    assert workshop.living == 3, "no more than was asked for"
    family = pool.take()
    assert family in workshop.started[:3]
    eventually(lambda: workshop.living == 4)
    assert threading.current_thread().name not in workshop.starts


def test_what_is_given_back_is_cleaned_in_the_background_and_handed_out_again(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=1)
    seen = set()
    for number in range(20):
        family = pool.take()
        family.use(number)
        seen.add(family)
        family.leave()
        workshop.cleaning.clear()
        pool.give_back(family)
        assert family.dirty
        workshop.cleaning.set()
        eventually(lambda: not any(family.dirty for family in seen))
    assert len(seen) < 20
    assert not any(family.closed for family in workshop.started)


def test_whoever_finds_none_ready_cleans_one_that_waits_for_it(pools: list[Pool]) -> None:
    workshop = Workshop(renew_seconds=0.3)
    pool = opened(pools, workshop, warm=1, most=16)
    taken = [pool.take() for _ in range(16)]
    for family in taken:
        pool.give_back(family)
    # The keepers are busy with some of them; the others are there for the taking.
    again = pool.take(timeout=0)
    assert again.renewed == 1
    assert len(workshop.started) == 16


def test_one_that_served_its_number_is_ended_and_another_stands_ready(pools: list[Pool]) -> None:
    workshop = Workshop(uses=2)
    pool = opened(pools, workshop, warm=1, most=3)
    for number in range(30):
        family = pool.take()
        family.use(number)
        family.leave()
        pool.give_back(family)
    assert all(family.renewed <= 1 for family in workshop.started)
    assert len(workshop.started) >= 15
    eventually(lambda: all(family.closed == 1 for family in workshop.started if family.uses_left == 0 and family.dirty))


def test_never_again_means_never_cleaned(pools: list[Pool]) -> None:
    workshop = Workshop(uses=1)
    pool = opened(pools, workshop, warm=2)
    for number in range(10):
        family = pool.take()
        family.use(number)
        family.leave()
        pool.give_back(family)
        assert pool.exchange(swapped := pool.take()) is not swapped
    assert not any(family.renewed for family in workshop.started)


@pytest.mark.parametrize("warm", [0, 4])
def test_128_threads_share_a_bounded_pool(pools: list[Pool], warm: int) -> None:
    workshop = Workshop(uses=5)
    pool = opened(pools, workshop, warm=warm, most=8)
    begin = threading.Barrier(128)
    failures: list[BaseException] = []

    def works(number: int) -> None:
        rng = random.Random(number)
        try:
            begin.wait()
            for _ in range(8):
                family = pool.take()
                family.use(number)
                time.sleep(rng.random() * 0.002)
                if rng.random() < 0.1:
                    family.alive = False
                family.leave()
                if rng.random() < 0.5:
                    family = pool.exchange(family)
                    family.use(number)
                    family.leave()
                pool.give_back(family)
        except BaseException as problem:
            failures.append(problem)

    workers = [threading.Thread(target=works, args=(number,)) for number in range(128)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failures == []
    assert workshop.most_living <= 8
    pool.close()
    assert workshop.living == 0
    assert all(family.closed == 1 for family in workshop.started)


def test_a_full_pool_lets_wait_and_says_so(pools: list[Pool]) -> None:
    pool = opened(pools, Workshop(), most=2)
    kept = [pool.take(), pool.take()]
    started = time.monotonic()
    with pytest.raises(SandboxFault, match=r"one of the 2 interpreters .* within 0\.1 s, found all in use") as caught:
        pool.take(timeout=0.1)
    assert 0.1 <= time.monotonic() - started < 2
    assert caught.value.retryable
    pool.give_back(kept[0])
    assert pool.take(timeout=0).alive


def test_whoever_came_first_is_served_first(pools: list[Pool]) -> None:
    pool = opened(pools, Workshop(), warm=1, most=1)
    family = pool.take()
    served: list[int] = []

    def waits(number: int) -> None:
        mine = pool.take()
        served.append(number)
        pool.give_back(mine)

    waiting = []
    for number in range(8):
        thread = threading.Thread(target=waits, args=(number,))
        thread.start()
        waiting.append(thread)
        time.sleep(0.02)
    pool.give_back(family)
    for thread in waiting:
        thread.join(10)
    assert served == list(range(8))


def test_one_who_gave_up_does_not_hold_up_the_line(pools: list[Pool]) -> None:
    pool = opened(pools, Workshop(), most=1)
    family = pool.take()
    faults: list[SandboxFault] = []
    served: list[object] = []

    def gives_up() -> None:
        try:
            pool.take(timeout=0.05)
        except SandboxFault as fault:
            faults.append(fault)

    first = threading.Thread(target=gives_up)
    second = threading.Thread(target=lambda: served.append(pool.take(timeout=10)))
    first.start()
    time.sleep(0.01)
    second.start()
    first.join(10)
    assert len(faults) == 1
    pool.give_back(family)
    second.join(10)
    assert len(served) == 1


def test_exchange_gives_a_ready_one(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=2)
    family = pool.take()
    family.use("me")
    family.leave()
    eventually(lambda: workshop.living == 3)
    workshop.cleaning.clear()
    other = pool.exchange(family)
    assert other is not family
    assert not other.dirty
    assert family.dirty
    workshop.cleaning.set()
    eventually(lambda: not family.dirty)
    with pytest.raises(ValueError, match="given back"):
        pool.give_back(family)


def test_exchange_cleans_the_same_one_where_none_is_ready(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, most=1)
    family = pool.take()
    family.use("me")
    family.leave()
    assert pool.exchange(family) is family
    assert not family.dirty


@pytest.mark.parametrize("why", ["used up", "dead", "cannot be cleaned"])
def test_exchange_starts_another_one_in_place_of_one_that_will_not_do(pools: list[Pool], why: str) -> None:
    workshop = Workshop(uses=1 if why == "used up" else None)
    pool = opened(pools, workshop, most=1)
    family = pool.take()
    if why == "dead":
        family.alive = False
    elif why == "cannot be cleaned":
        family.fault = SandboxFault("files are left")
    other = pool.exchange(family)
    assert other is not family
    assert family.closed == 1
    assert workshop.most_living == 1
    pool.give_back(other)
    assert workshop.living == 0


def test_an_exchange_that_fails_leaves_its_place_free(pools: list[Pool]) -> None:
    workshop = Workshop(uses=1)
    pool = opened(pools, workshop, most=1)
    family = pool.take()
    workshop.fault = SandboxFault("the engine is gone", retryable=True)
    with pytest.raises(SandboxFault, match="the engine is gone"):
        pool.exchange(family)
    assert not family.alive
    workshop.fault = None
    assert pool.take(timeout=0).alive


def test_one_that_died_while_it_stood_ready_is_not_handed_out(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=3)
    eventually(lambda: workshop.living == 3)
    dead = workshop.started[:3]
    for family in dead:
        family.alive = False
    assert pool.take().alive
    eventually(lambda: all(family.closed == 1 for family in dead))


def test_one_that_cannot_be_cleaned_is_ended(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=1, most=4)
    taken = [pool.take() for _ in range(4)]
    for family in taken:
        family.fault = SandboxFault("files are left")
        pool.give_back(family)
    after = [pool.take(timeout=5) for _ in range(4)]
    assert not set(after) & set(taken)
    assert workshop.most_living <= 4
    eventually(lambda: all(family.closed == 1 for family in taken))


def test_a_start_that_fails_is_tried_again_after_a_pause_and_a_taker_sees_the_reason(
    pools: list[Pool], caplog: pytest.LogCaptureFixture
) -> None:
    workshop = Workshop()
    workshop.fault = SandboxFault("there is no image of that name", retryable=False)
    with caplog.at_level(logging.WARNING):
        pool = opened(pools, workshop, warm=2, most=2)
        eventually(lambda: len(workshop.starts) >= 1)
        time.sleep(0.3)
        assert len(workshop.starts) <= 2 * (os.cpu_count() or 1), "nothing spins"
        for _ in range(3):
            with pytest.raises(SandboxFault, match="no image of that name") as caught:
                pool.take(timeout=1)
            assert not caught.value.retryable
    assert "no image of that name" in caplog.text
    workshop.fault = None
    eventually(lambda: workshop.living == 2, seconds=20)


def test_where_many_ask_at_once_a_few_are_started_at_a_time(pools: list[Pool]) -> None:
    workshop = Workshop(start_seconds=0.02)
    pool = opened(pools, workshop)
    with ThreadPoolExecutor(64) as threads:
        taken = list(threads.map(lambda _: pool.take(timeout=0.1), range(64)))
    assert len(set(taken)) == 64, "each waits as long as others come to stand"
    assert workshop.most_starting <= max(4, 2 * (os.cpu_count() or 1))


def test_nobody_waits_for_ever_while_starts_are_stuck(pools: list[Pool]) -> None:
    workshop = Workshop(start_seconds=3)
    pool = opened(pools, workshop)
    starters = [threading.Thread(target=pool.take) for _ in range(max(4, 2 * (os.cpu_count() or 1)))]
    for starter in starters:
        starter.start()
    eventually(lambda: workshop.starting == len(starters))
    with pytest.raises(SandboxFault, match="engine stuck") as caught:
        pool.take(timeout=0.2)
    assert caught.value.retryable
    assert workshop.starting == len(starters)
    for starter in starters:
        starter.join(10)


def test_not_more_are_started_at_once_than_there_are_cores(pools: list[Pool]) -> None:
    workshop = Workshop(start_seconds=0.02)
    opened(pools, workshop, warm=32)
    eventually(lambda: workshop.living == 32)
    assert workshop.most_starting <= (os.cpu_count() or 1)


def test_the_number_of_warm_ones_can_be_raised(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, most=4)
    pool.want(2)
    eventually(lambda: workshop.living == 2)
    pool.want(1)
    pool.want(4)
    eventually(lambda: workshop.living == 4)
    with pytest.raises(ValueError, match="0 to 4 warm"):
        pool.want(5)


def test_more_than_were_asked_for_end_when_nobody_needs_them(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=2, linger=0.2)
    taken = [pool.take() for _ in range(10)]
    for family in taken:
        pool.give_back(family)
    eventually(lambda: not any(family.dirty for family in taken))
    assert workshop.living >= 10, "the next ones come soon, as a rule"
    eventually(lambda: workshop.living == 2)


def test_close_ends_the_ready_ones_and_those_in_use_when_they_come_back(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=4, most=8)
    family = pool.take()
    swapped = pool.take()
    eventually(lambda: workshop.living == 6)
    pool.close()
    pool.close()
    assert workshop.living == 2
    assert not pool.alive
    assert threads() == []
    with pytest.raises(SandboxFault, match="pool is closed"):
        pool.take()
    with pytest.raises(SandboxFault, match="pool is closed"):
        pool.want(1)
    with pytest.raises(SandboxFault, match="pool is closed"):
        pool.exchange(swapped)
    pool.give_back(family)
    assert workshop.living == 0


def test_close_wakes_those_who_wait(pools: list[Pool]) -> None:
    pool = opened(pools, Workshop(), most=1)
    pool.take()
    faults: list[SandboxFault] = []

    def waits() -> None:
        try:
            pool.take(timeout=60)
        except SandboxFault as fault:
            faults.append(fault)

    waiting = [threading.Thread(target=waits) for _ in range(3)]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    pool.close()
    for thread in waiting:
        thread.join(5)
    assert [str(fault).partition(":")[0] for fault in faults] == ["the interpreter pool is closed"] * 3


def test_what_is_being_started_or_cleaned_at_the_close_is_ended(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=2, most=4)
    eventually(lambda: workshop.living == 2)
    workshop.start_seconds = workshop.renew_seconds = 0.3
    pool.give_back(pool.take())
    pool.take(timeout=0)
    eventually(lambda: workshop.starting > 0)
    pool.close()
    assert workshop.living == 1, "the one in use"
    pool.give_back(next(family for family in workshop.started if family.alive))
    assert workshop.living == 0


def test_a_forked_child_leaves_its_parents_families_alone(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, warm=1)
    family = pool.take()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pool.give_back(family)
            pool.close()
            try:
                pool.take()
            except SandboxFault as fault:
                os.write(writer, f"{fault} {family.closed} {family.renewed}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reader, 1000).decode()
    assert f"belongs to process {os.getpid()}" in said
    assert said.endswith(" 0 0")
    os.close(reader)
    os.close(writer)
    pool.give_back(family)


def test_a_failure_of_any_kind_in_a_start_leaves_its_place_free(pools: list[Pool]) -> None:
    workshop = Workshop()
    pool = opened(pools, workshop, most=1)
    workshop.fault = RuntimeError("a bug")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="a bug"):
            pool.take(timeout=0)
    workshop.fault = None
    assert pool.take(timeout=0).alive


def test_what_makes_no_sense_is_refused(pools: list[Pool]) -> None:
    workshop = Workshop()
    with pytest.raises(ValueError, match="most >= 1"):
        Pool(workshop.start, most=0)
    with pytest.raises(ValueError, match="0 to 4 warm interpreters"):
        Pool(workshop.start, warm=5, most=4)
    with pytest.raises(ValueError, match="0 to 4 warm interpreters"):
        Pool(workshop.start, warm=-1, most=4)
    pool, other = opened(pools, workshop), opened(pools, workshop)
    family = pool.take()
    with pytest.raises(ValueError, match="another pool's"):
        other.give_back(family)
    with pytest.raises(ValueError, match="another pool's"):
        other.exchange(family)
    pool.give_back(family)
    with pytest.raises(ValueError, match="given back"):
        pool.give_back(family)


def local_supervisors() -> set[int]:
    """Process ids of the local backend's supervisors that are this process's own."""
    children = Path("/proc/self/task").glob("*/children")
    zygotes = [pid for file in children for pid in file.read_text().split() if is_zygote(pid)]
    return {int(pid) for zygote in zygotes for pid in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()}


def is_zygote(pid: str) -> bool:
    with contextlib.suppress(OSError):
        return b"sandboxes.python.local.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_real_ones_that_were_killed_while_they_stood_ready_are_not_handed_out() -> None:
    shared.close_idle()
    with open_interpreter("local", preload=(), warm=3) as python:
        eventually(lambda: len(local_supervisors()) == 4)
        python.run("x = 1")
        ready = local_supervisors()
        # The one in use is killed too, which is that episode's bad luck alone.
        for pid in ready:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not ready & local_supervisors())
        with ExitStack() as stack:
            others = [stack.enter_context(open_interpreter("local", preload=(), warm=3)) for _ in range(4)]
            assert [other.run("print(6 * 7)").stdout for other in others] == ["42\n"] * 4
        python.reset()
        assert python.run("print(6 * 7)").stdout == "42\n"
    shared.close_idle()
    eventually(lambda: local_supervisors() == set())


def test_real_ones_are_clean_when_they_are_handed_out_again() -> None:
    shared.close_idle()
    look = "import os, random\nprint(os.listdir(), sorted(globals()), sorted(os.environ), random.random())"
    dirty = "x = 1; open('file', 'w').write('x'); os.environ['WHO'] = 'me'; os.mkdir('folder'); twin = os.fork()"
    seen = set()
    for number in range(12):
        with open_interpreter("local", preload=(), warm=1, seed=7) as python:
            done = python.run(look)
            assert done.status == "ok", done.error
            seen.add(done.stdout)
            python.run(dirty, timeout=1)
            if number % 2:
                python.fork().run("y = 1")
            if number % 3 == 0:
                python.run("while True: pass", timeout=0.05)
    assert len(seen) == 1, seen
    shared.close_idle()
