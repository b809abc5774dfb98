"""What a point of the comparison is: every length and count that both sides must have alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One point of the comparison.

    Args:
        model: "tiny" or "60M".
        turns: Tool calls of an episode. After the result of the last one the policy writes once more.
        latency: Seconds that a call takes.
        prompt: Tokens of the prompt.
        written: Tokens that the policy writes in a turn.
        result: Words, and so about as many tokens, of a tool result.
        tasks: Groups in a batch.
        group_size: Trajectories of a group.
        threads: Threads of torch.
    """

    model: str = "tiny"
    turns: int = 1
    latency: float = 0.0
    prompt: int = 256
    written: int = 32
    result: int = 32
    tasks: int = 2
    group_size: int = 8
    threads: int = 1

    @property
    def rows(self) -> int:
        """Trajectories of a batch."""
        return self.tasks * self.group_size

    @property
    def generated(self) -> int:
        """Tokens that the policy writes for a batch."""
        return self.rows * (self.turns + 1) * self.written
