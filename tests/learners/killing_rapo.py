"""RAPO as its command line runs it, for a parent that kills it: it tells which part of a step it is in.

    python killing_rapo.py DESCRIPTOR OPTION...

Whenever another part begins, its name goes into the pipe of that descriptor as a line: ``rollout``, ``update``,
``checkpoint``, and ``between`` after each of the last two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from learners.rapo import RAPO, RAPOConfig
from learners.rollout.engine import Group
from learners.rollout.tree import RolloutTree
from learners.run import oracle_bank, trainer
from learners.run.command import run


class Teller:
    """Tells of each part as it begins.

    Args:
        descriptor: The pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._last = descriptor, ""

    def tell(self, part: str) -> None:
        if part != self._last:
            os.write(self._descriptor, f"{part}\n".encode())
            self._last = part

    def telling(self, part: str, function: Callable[..., Any], then: str) -> Callable[..., Any]:
        """The function, which tells that the part begins with it, and which one does when it has ended."""

        def told(*arguments: Any, **options: Any) -> Any:
            self.tell(part)
            result = function(*arguments, **options)
            self.tell(then)
            return result

        return told


def main(descriptor: int, arguments: list[str]) -> None:
    teller = Teller(descriptor)

    class Telling(RAPO):
        async def explore(self, group: Group) -> RolloutTree:
            teller.tell("rollout")
            return await super().explore(group)

    trainer.measured = teller.telling("update", trainer.measured, "update")
    trainer.update_policy = teller.telling("update", trainer.update_policy, "between")
    trainer.save_checkpoint = teller.telling("checkpoint", trainer.save_checkpoint, "between")
    oracle_bank._TASKS = 12
    run(RAPOConfig, Telling, "", arguments)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
