"""The reward of an episode: ARPO's (arXiv 2507.19849, Eq. 8), in parts that can be switched off one by one.

R = max(Acc + r_M, Acc) if the format is kept and Acc > 0; 0 if it is kept and Acc = 0; -1 if it is not.

In the released code r_M is paid as soon as the tools' closing tags occur anywhere in the text; here each tool must have run
without a fault.
"""

from __future__ import annotations

from collections.abc import Collection

REWARDS = ("accuracy", "format", "tool_bonus")
TOOL_BONUS = 0.1


def reward_parts(accuracy: float, *, kept: bool, all_tools_worked: bool, rewards: Collection[str]) -> dict[str, float]:
    """The parts of an episode's reward; they sum to its return.

    Args:
        accuracy: How right the answer is, from 0 to 1; 0 without an answer.
        kept: Whether every action was well formed and an answer was given.
        all_tools_worked: Whether there are several tools and each ran without a fault.
        rewards: The parts that count, out of `REWARDS`; the others are 0.

    Returns:
        ``accuracy``; ``format``, which is -1 if it is not kept, and then nothing else counts; ``tool_bonus``, which is
        `TOOL_BONUS` for a kept format, some accuracy and all tools at work.
    """
    broken = "format" in rewards and not kept
    parts = {
        "accuracy": 0.0 if broken else float(accuracy),
        "format": -1.0 if broken else 0.0,
        "tool_bonus": TOOL_BONUS if kept and accuracy > 0 and all_tools_worked else 0.0,
    }
    return {part: value if part in rewards else 0.0 for part, value in parts.items()}
