"""What a batch of trajectories was like, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent_envs.faults import POLICY_FAULTS
from learners.rollout.tree import RolloutTree


def rollout_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    """Means over the trajectories of a batch that no environment fault ended.

    Returns:
        ``reward``, ``success``, ``tool_calls`` and ``turns`` an episode; ``environment_faults``, the share of trajectories
        that one ended; ``tokens/policy`` and ``tokens/total`` a trajectory; ``entropy_sampled`` in nats a token of the
        policy, where it wrote any; ``stop/...``, the share that ended so; ``policy_faults/...`` an episode; ``score/...``,
        parts of the return; ``trajectories``, how many there are; ``tool_calls_executed`` and ``tokens_generated``, the
        calls and the policy's tokens of all of them together, what branches share counted once; of what the learner
        noted the means, or the largest where the name ends in ``_max``.
    """
    everyone = [leaf for tree in trees for leaf in tree.leaves]
    rows = [(tree, leaf) for tree in trees for leaf in tree.survivors()]
    if not rows:
        return {"environment_faults": 1.0}
    metrics = {
        "trajectories": float(len(rows)),
        "reward": _mean(leaf.reward for _, leaf in rows),
        "success": _mean(leaf.success for _, leaf in rows),
        "tool_calls": _mean(leaf.tool_calls for _, leaf in rows),
        "tool_calls_executed": float(sum(leaf.tool_calls - leaf.inherited_calls for leaf in everyone)),
        "tokens_generated": float(sum(len(s.ids) for tree in trees for s in tree.segments if s.author == "policy")),
        "turns": _mean(len(leaf.turns) for _, leaf in rows),
        "environment_faults": 1 - len(rows) / len(everyone),
    }
    tokens = [tree.tokens(leaf) for tree, leaf in rows]
    written = sum(int(path.policy.sum()) for path in tokens)
    metrics["tokens/policy"] = written / len(rows)
    metrics["tokens/total"] = _mean(len(path.ids) for path in tokens)
    if written:
        metrics["entropy_sampled"] = math.fsum(float(path.entropies.sum()) for path in tokens) / written
    for stop in ("terminated", "truncated", "length"):
        metrics[f"stop/{stop}"] = _mean(leaf.stop == stop for _, leaf in rows)
    for fault in POLICY_FAULTS:
        metrics[f"policy_faults/{fault}"] = _mean(leaf.policy_faults.count(fault) for _, leaf in rows)
    noted = [note for tree in trees for note in tree.notes]
    for name in sorted({name for name, _ in noted}):
        values = [value for own, value in noted if own == name]
        metrics[name] = max(values) if name.endswith("_max") else _mean(values)
    for part in sorted({part for _, leaf in rows for part in leaf.score}):
        metrics[f"score/{part}"] = _mean(leaf.score.get(part, 0.0) for _, leaf in rows)
    return metrics


def _mean(numbers: Iterable[float]) -> float:
    values = [float(number) for number in numbers]
    return math.fsum(values) / len(values)
