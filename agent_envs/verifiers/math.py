"""Whether a mathematical answer equals the gold one, by math-verify in a process that can be killed."""

from __future__ import annotations

import itertools
import re

from agent_envs.actions import last_boxed
from agent_envs.task import Task
from agent_envs.verifiers import Verdict, Verifier, pool

# No gold answer comes near these; parsing what is longer or deeper takes seconds.
_LONGEST = 400  # characters beyond four times the gold answer's
_DEEPEST = 20  # brackets that are open at one time
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")


class MathVerifier(Verifier):
    r"""Accepts an answer that math-verify holds equal to one of the gold answers.

    The answer is the content of its last ``\boxed{}``, or the whole text where there is none. Where the gold answer is a
    number, the answer must be a number too, not a calculation. A comparison that hangs is stopped and counts as wrong; so
    does, at once, what is much longer than the gold answer or nested deeply. The worker processes are shared by all
    environments of this process.

    Args:
        timeout: Seconds that one comparison may take.

    Raises:
        ValueError: ``timeout`` is out of range.

    Example:
        >>> from agent_envs.task import Task
        >>> MathVerifier().verify(r"\boxed{\frac{1}{2}}", Task("1", "What is 2/4?", ("0.5",)))
        Verdict(accuracy=1.0, success=True)
    """

    def __init__(self, timeout: float = 5.0) -> None:
        if not 0 < timeout < 3600:
            raise ValueError(f"timeout is a number of seconds above 0, found {timeout!r}")
        self.timeout = float(timeout)

    def verify(self, answer: str, task: Task) -> Verdict:
        """Compares with each gold answer; equal strings and plain integers need no worker."""
        boxed = last_boxed(answer)
        answer = (answer if boxed is None else boxed).strip()
        golds = [gold.strip() for gold in task.answers]
        right = answer in golds or (bool(golds) and self._is_equal(answer, golds))
        return Verdict(float(right), right)

    def _is_equal(self, answer: str, golds: list[str]) -> bool:
        if all(_INTEGER.fullmatch(text) for text in (answer, *golds)):
            return int(answer) in map(int, golds)
        if not answer or len(answer) > _LONGEST + 4 * max(map(len, golds)) or _depth(answer) > _DEEPEST:
            return False
        return pool.score("math", {"golds": golds, "answer": answer}, self.timeout) == 1.0


def _depth(text: str) -> int:
    """The most brackets that are open at one time."""
    steps = (1 if character in "([{" else -1 if character in ")]}" else 0 for character in text)
    return max(itertools.accumulate(steps), default=0)
