"""Small trajectories for tests: attempts at sums."""

from __future__ import annotations

from typing import Any

from tracebank import Trajectory, Turn


def attempt(
    task: str = "1+1", answer: str = "2", reward: float = 1.0, *, thoughts: tuple[str, ...] = ("think",), **changes: Any
):
    """A trajectory that calls Python once a thought and then answers."""
    turns = (*(Turn(thought, f"<python>print({task})</python>", "2") for thought in thoughts), Turn("", answer, ""))
    fields: dict[str, Any] = {
        "environment": "Sums-v0",
        "format": "tag",
        "task_id": f"sum:{task}",
        "question": f"What is {task}?",
        "split": "train",
        "turns": turns,
        "segments": (),
        "reward": reward,
        "score": {"accuracy": reward},
        "success": reward > 0,
        "fault": "",
        "stop": "answer",
        "tool_calls": len(thoughts),
        "policy_version": 0,
        "step": 1,
        "path": (0,),
        "source": "tests",
    }
    return Trajectory(**(fields | changes))
