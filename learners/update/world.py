"""The processes of a run: one, or several that `torchrun` started, one a GPU.

Every process runs the same program. What can be dealt out, groups to play and rows to learn from, is shared by rank and
gathered again, so that afterwards all processes know all of it and go on alike; what must happen once, such as writing
files, the first one does. A run in one process is a world of size 1, in which gathering gives back what was put in and
torch.distributed is never initialised: the code above is the same for both.

Objects travel over gloo, from the machine's memory to the machine's memory. Parameters and gradients of a sharded policy
(`learners.update.sharding`) travel over nccl where they are on GPUs.

The first process that fails says why (`World.speaks`); what the others then see, a connection that was closed, is no news.
torchrun ends them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for another, whose tools may be slow; of one that died it hears at once."""

_FAILED = "agent_envs/failed"


class WorldError(ValueError):
    """Processes that a run cannot be made of. The message says what was expected and what was found."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them.

    Args:
        rank: Which of them this one is, from 0.
        size: How many there are.
        store: Where they leave word for each other; None in a world of one.
        group: What objects are gathered over; likewise.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, and that talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank. All must call it, and none goes on before all have.

        Args:
            value: This one's; it is pickled, and tensors in it should be on the CPU.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def barrier(self) -> None:
        """Waits for all."""
        self.gather(None)

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all."""
        made: T = self.gather(make() if self.first else None)[0]  # type: ignore[assignment]
        return made

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process goes through what is in the context before the others: it makes what they find made."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: every ``size``-th."""
        return range(self.rank, count, self.size)

    def joined(self, own: Sequence[T]) -> list[T]:
        """All things in their order, where each process has those of its `share`."""
        shares = self.gather(list(own))
        return [shares[index % self.size][index // self.size] for index in range(sum(map(len, shares)))]

    def channel(self) -> World:
        """The same processes over connections of their own, for what is gathered in another thread. All must call it."""
        if self.size == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=PATIENCE))

    def speaks(self) -> bool:
        """Whether this process, which is failing, is the one to say why: the first that asks."""
        if self.store is None:
            return True
        try:
            return bool(self.store.compare_set(_FAILED, "", str(self.rank)) == str(self.rank).encode())
        except RuntimeError:  # the store has ended before us
            return True

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keeps all but the first process from printing and from logging less than errors."""
        if self.first:
            yield
            return
        logging.disable(logging.WARNING)
        try:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            logging.disable(logging.NOTSET)

    def close(self) -> None:
        """Ends the connections. Not after a failure: the others may never come."""
        if self.size > 1:
            self.barrier()
            dist.destroy_process_group()


ALONE = World()
"""One process."""


def open_world() -> World:
    """The processes that torchrun started this one among, or this one alone.

    Each takes a GPU of its own, by its rank, where there are as many.

    Raises:
        WorldError: They are on several machines.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return ALONE
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if here != everywhere:
        raise WorldError(
            f"expected all processes of a run on one machine, found {here} of {everywhere} on this one: use torchrun "
            f"--nproc-per-node {everywhere} without --nnodes"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        if here <= torch.cuda.device_count():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return World(rank, size, store).channel()
