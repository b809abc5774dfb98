"""The rollout tree: every token of one task's group, each stored once, with its author.

A *segment* is a run of tokens with one author; it starts after the first ``at`` tokens of its parent. A *leaf* is the end of
one trajectory. A path is what a learner credits: the tokens from the root to a leaf, of which only those by the policy carry
gradient. Branches share their prefix's segments, so which tokens are shared is known and never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

from tracebank.trajectory import Author, Segment, Trajectory, Turn


@dataclass
class Leaf:
    """How one trajectory ended.

    Args:
        path: Its place among the trajectories of the group.
        segment: The id of its last segment.
        turns: What was thought, done and observed.
        reward: The return: what the environment paid over the episode, and the trainer's reward for a cut.
        score: The parts of the return, where the environment names them.
        success: Whether the task was solved.
        stop: "terminated" or "truncated" by the environment, "length" where the token limit cut it, "fault".
        fault: The environment fault that ended it, or "". A leaf with a fault has no return and is never trained on.
        tool_calls: Calls that were executed.
        policy_faults: Kinds of policy faults, one per occurrence.
        inherited_calls: How many of its tool calls were made before it branched off, and so by another trajectory.
        retrieved_tokens: Tokens of the steps that were retrieved into it, each by itself, without what stands around it.
    """

    path: tuple[int, ...]
    segment: int
    turns: list[Turn] = field(default_factory=list)
    reward: float = 0.0
    score: Mapping[str, float] = field(default_factory=dict)
    success: bool = False
    stop: str = ""
    fault: str = ""
    tool_calls: int = 0
    policy_faults: list[str] = field(default_factory=list)
    inherited_calls: int = 0
    retrieved_tokens: int = 0

    def branch(self, path: tuple[int, ...]) -> Leaf:
        """A record that goes on from this one on a path of its own."""
        return replace(
            self,
            path=path,
            turns=list(self.turns),
            policy_faults=list(self.policy_faults),
            inherited_calls=self.tool_calls,
        )


@dataclass(frozen=True)
class PathTokens:
    """The tokens of one path, T of them, prompt included.

    Args:
        ids: Token ids, [T] int64.
        policy: True where the policy is the author, [T] bool.
        logprobs: The sampler's log-probabilities, [T]; 0 where the policy is not the author.
        entropies: The sampler's entropies, [T]; 0 likewise.
        segments: The segment of each token, [T] int64.
        numbers: A number for each token of the tree, [T] int64: two paths hold the same number where they share a token.
    """

    ids: torch.Tensor
    policy: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    segments: torch.Tensor
    numbers: torch.Tensor


@dataclass
class RolloutTree:
    """All trajectories of one task's group.

    Args:
        task_id: The task.
        question: Its question, as the environment showed it.
        seed: The seed that every episode of the group was reset with.
        version: The policy version that wrote it.
        notes: What a learner wants counted: (name, number) pairs, of which the metrics hold the means, or the largest where
            the name ends in ``_max``.
        measured: Entropies of each path's tokens, by its leaf's place, from the trainer's own forward pass, [T] each; for
            learners that ask for it.
    """

    task_id: str
    question: str
    seed: int
    version: int
    segments: list[Segment] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    notes: list[tuple[str, float]] = field(default_factory=list)
    measured: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def add(
        self,
        author: Author,
        ids: Sequence[int],
        parent: int | None,
        *,
        turn: int,
        logprobs: Sequence[float] = (),
        entropies: Sequence[float] = (),
        at: int | None = None,
    ) -> int:
        """Adds a segment after the first ``at`` tokens (default: all) of ``parent``; returns its id."""
        own = len(self.segments)
        if at is None:
            at = 0 if parent is None else len(self.segments[parent].ids)
        self.segments.append(
            Segment(
                author=author,
                ids=tuple(ids),
                logprobs=tuple(logprobs),
                entropies=tuple(entropies),
                turn=turn,
                id=own,
                parent=parent,
                at=at,
            )
        )
        return own

    def path(self, leaf: Leaf) -> list[tuple[Segment, int]]:
        """The segments from the root to a leaf, each with how many of its tokens are on the path.

        None where nobody kept tokens, or where faults left none: no episode of the group got as far as its question.
        """
        if not self.segments:
            return []
        steps: list[tuple[Segment, int]] = []
        segment, length = self.segments[leaf.segment], len(self.segments[leaf.segment].ids)
        while True:
            steps.append((segment, length))
            if segment.parent is None:
                return steps[::-1]
            segment, length = self.segments[segment.parent], segment.at

    def tokens(self, leaf: Leaf) -> PathTokens:
        """The tokens of a leaf's path, as tensors."""
        ids: list[int] = []
        policy: list[bool] = []
        logprobs: list[float] = []
        entropies: list[float] = []
        segments: list[int] = []
        numbers: list[int] = []
        firsts = [0, *accumulate(len(segment.ids) for segment in self.segments)]
        for segment, length in self.path(leaf):
            written = segment.author == "policy"
            ids += segment.ids[:length]
            policy += [written] * length
            logprobs += segment.logprobs[:length] if written else [0.0] * length
            entropies += segment.entropies[:length] if written else [0.0] * length
            segments += [segment.id] * length
            numbers += range(firsts[segment.id], firsts[segment.id] + length)
        return PathTokens(
            ids=torch.tensor(ids),
            policy=torch.tensor(policy),
            logprobs=torch.tensor(logprobs, dtype=torch.float32),
            entropies=torch.tensor(entropies, dtype=torch.float32),
            segments=torch.tensor(segments),
            numbers=torch.tensor(numbers),
        )

    def put_in_order(self) -> None:
        """Numbers leaves and segments by path, so that nothing depends on which episode was faster."""
        self.leaves.sort(key=lambda leaf: leaf.path)
        self.notes.sort()
        order: dict[int, int] = {}
        for leaf in self.leaves:
            for segment, _ in self.path(leaf):
                order.setdefault(segment.id, len(order))
        for leaf in self.leaves:
            leaf.segment = order.get(leaf.segment, 0)  # 0 where there are no segments
        self.segments = [
            replace(self.segments[old], id=new, parent=None if parent is None else order[parent])
            for old, new in order.items()
            for parent in [self.segments[old].parent]
        ]

    def survivors(self) -> list[Leaf]:
        """The leaves that no environment fault ended."""
        return [leaf for leaf in self.leaves if not leaf.fault]

    def trajectory(self, leaf: Leaf, *, environment: str, format: str, split: str, step: int, source: str) -> Trajectory:
        """The record of one path, as it is written and read everywhere."""
        return Trajectory(
            environment=environment,
            format=format,
            task_id=self.task_id,
            question=self.question,
            split=split,
            turns=tuple(leaf.turns),
            segments=tuple(segment for segment, _ in self.path(leaf)),
            reward=leaf.reward,
            score=dict(leaf.score),
            success=leaf.success,
            fault=leaf.fault,
            stop=leaf.stop,
            tool_calls=leaf.tool_calls,
            policy_version=self.version,
            step=step,
            path=leaf.path,
            source=source,
        )
