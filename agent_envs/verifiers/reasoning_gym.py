"""Whether an answer is right by a reasoning-gym data set's own rules, scored in a process that can be killed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_envs.task import Task
from agent_envs.verifiers import Verdict, Verifier, pool

_LONGEST = 20_000  # characters of an answer


class ReasoningGymVerifier(Verifier):
    """Accepts an answer to which the data set's ``score_answer`` gives 1.

    Several of those scorers evaluate the answer as Python; the worker process keeps them from it
    (`agent_envs.verifiers.worker`). Partial credit is no accuracy: data sets give it for containing the right answer among
    others, and for any answer at all.

    Args:
        dataset: Name of the data set.
        config: Its options, as the task source has them.
        timeout: Seconds that scoring one answer may take; one that takes longer is wrong.
    """

    def __init__(self, dataset: str, config: Mapping[str, Any], timeout: float = 10.0) -> None:
        self.dataset = dataset
        self.config = dict(config)
        self.timeout = timeout

    def verify(self, answer: str, task: Task) -> Verdict:
        """Makes the item again from the seed in the task's id, and scores the answer."""
        if len(answer) > _LONGEST:
            return Verdict(0.0, False)
        config = {**self.config, "seed": int(task.id.rpartition(":")[2]), "size": 1}
        right = (
            pool.score("reasoning_gym", {"dataset": self.dataset, "config": config, "answer": answer}, self.timeout) >= 1.0
        )
        return Verdict(float(right), right)
