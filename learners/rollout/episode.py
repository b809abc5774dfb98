"""One episode: an environment, the stream of tokens that plays it, and its path in the rollout tree.

An episode runs by itself: it waits for its own tokens and its own tool calls and for nobody else's. Environments are
synchronous, so each call runs in a thread. `Episode.play` goes from the question to the end; an algorithm that does more on
the way takes the turns one by one, in two halves (`begin`, `finish`) where it branches: what `fork` copies is the state
before the action that has begun.

A trajectory that a token limit cuts ends there: its environment is not stepped with the unfinished action; it earns what the
environment paid until then plus ``Limits.cut_reward``; it is no success; and it is trained on like any other, all tokens of
it. The default is what ARPO's reward gives a reply without an answer, so that rambling pays no better than a bad form.
"""

from __future__ import annotations

import asyncio
import copy
import reprlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import gymnasium as gym

from agent_envs.actions import Format, Piece, PlainFormat
from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault, ForkError
from agent_envs.tool import Tool
from learners.rollout.rendering import Renderer
from learners.rollout.tree import Leaf, RolloutTree
from learners.sampling.sampler import Continuation, Decoding, Stream
from tracebank.trajectory import Turn

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How long a trajectory may become.

    Args:
        turn_tokens: Tokens that the policy may write in one turn.
        total_tokens: Tokens of the whole sequence, prompt and observations included.
        cut_reward: What is added to the return of a trajectory that one of the two cut.
    """

    turn_tokens: int = 256
    total_tokens: int = 2048
    cut_reward: float = -1.0


@dataclass(frozen=True)
class Dialect:
    """How an environment is talked to.

    Args:
        format: Its format; `PlainFormat` for an environment that is no ``ToolEnv``.
        system_prompt: The instructions that open the conversation.
        tools: The tools that its actions may call.
    """

    format: Format
    system_prompt: str
    tools: tuple[Tool, ...]

    @classmethod
    def of(cls, environment: gym.Env[Any, Any]) -> Dialect:
        inner = environment.unwrapped
        if isinstance(inner, ToolEnv):
            return cls(inner.format, inner.system_prompt, tuple(inner.tools))
        return cls(PlainFormat(), "", ())


class Episode:
    """One trajectory being played.

    Args:
        environment: A Gymnasium text environment; this episode is its only user until it ends.
        stream: Its live sequence.
        tree: The group's tree, which it writes its segments to.
        path: Its place in the group.
        task_id: The task to open with; None for the one that the tree's seed draws.
        renderer: From messages to token ids.
        limits: When it is cut.
        temperature, top_p, top_k: Of decoding.
        threads: Where the environment's calls run.
    """

    def __init__(
        self,
        environment: gym.Env[Any, Any],
        stream: Stream,
        tree: RolloutTree,
        path: tuple[int, ...],
        *,
        task_id: str | None,
        renderer: Renderer,
        limits: Limits,
        temperature: float,
        threads: Executor,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> None:
        self.environment, self.stream, self.tree = environment, stream, tree
        self.leaf = Leaf(path=path, segment=0)
        self.ended = False
        self._begun = self._room = 0  # where the present action begins, and how many tokens it may have
        self._named: dict[str, Any] = {} if task_id is None else {"options": {"task_id": task_id}}
        self._renderer, self._limits, self._threads = renderer, limits, threads
        self._decoding = Decoding(temperature=temperature, top_p=top_p, top_k=top_k)
        self._dialect = Dialect.of(environment)

    async def play(self, between: Callable[[Episode], Awaitable[None]] | None = None) -> Leaf:
        """Plays from the reset to the end; the leaf is then part of the tree, whatever happened.

        Args:
            between: Awaited after every turn that the episode goes on from, before the policy writes again.
        """
        await self.reset()
        while not self.ended:
            await self.turn()
            if between is not None and not self.ended:
                await between(self)
        return self.leaf

    async def reset(self) -> None:
        """Opens the episode; the first of a group to get here writes the prompt into the tree."""
        with self._boundary():
            await self._reset()

    async def turn(self) -> None:
        """One action and the observation that answers it."""
        self.begin()
        await self.finish()

    def begin(self) -> None:
        """Lets the policy begin an action; where there is no room for one, the episode ends."""
        self._begun = len(self.stream.ids)
        self._room = min(self._limits.turn_tokens, self._limits.total_tokens - self._begun)
        if self._room > 0:
            self._decode(self._room)
        else:
            self._cut()

    async def first(self, k: int) -> Continuation:
        """The first k tokens of the action that has begun, fewer where it has fewer."""
        return await self.stream.first(k)

    async def finish(self) -> None:
        """The rest of the action that has begun, and the observation that answers it."""
        with self._boundary():
            if not self.ended:
                await self._finish()

    def fork(self, path: tuple[int, ...], stream_path: tuple[int, ...]) -> Episode:
        """Another episode that stands where this one stood before its present action: same history, noise of its own.

        It needs an environment before anything else is done with it (`copy_environment`), and this episode is not to be
        gone on with until it has one.

        Args:
            path: The twin's place in the group.
            stream_path: Seeds its noise.
        """
        twin = copy.copy(self)
        twin.leaf, twin.stream = self.leaf.branch(path), self.stream.fork(stream_path, at=self._begun)
        return twin

    async def copy_environment(self, spare: gym.Env[Any, Any] | None = None) -> bool:
        """Gives an episode that was forked an environment in the state of its parent's; a fault there ends the episode.

        Args:
            spare: An environment to play the actions again in; None copies the parent's.

        Returns:
            False where that state has no copy, such as one with a thread in it, or where the actions gave other
            observations: a fault of this episode too, and no concern of its parent's.
        """
        refused = False
        with self._boundary():
            try:
                if spare is None:
                    parents = self.environment
                    self.environment = await self._call(lambda: copy_of(parents))
                else:
                    self.environment = spare
                    await self._call(lambda: self._play_again(spare))
            except ForkError as refusal:
                refused = True
                raise EnvironmentFault(str(refusal), component="copy") from refusal
        return not refused

    def _play_again(self, environment: gym.Env[Any, Any]) -> None:
        observation, _ = environment.reset(seed=self.tree.seed, **self._named)
        expected = self.tree.question
        for number, turn in enumerate(self.leaf.turns):
            if observation == expected:
                observation, expected = environment.step(turn.thought + turn.action)[0], turn.observation
            if observation != expected:
                raise ForkError(
                    f"{environment} gave another observation in turn {number} when its actions were played again: "
                    f"expected {reprlib.repr(expected)}, found {reprlib.repr(observation)}"
                )

    @property
    def dialect(self) -> Dialect:
        """How its environment is talked to."""
        return self._dialect

    def tokens_of(self, pieces: Sequence[Piece]) -> int:
        """How many tokens `insert` would put in."""
        return len(self._renderer.encode(pieces))

    def insert(self, pieces: Sequence[Piece]) -> bool:
        """Puts text into the sequence that neither the policy nor the environment wrote; the policy goes on after it.

        Args:
            pieces: Trusted or not, as in `Renderer.encode`.

        Returns:
            Whether there was room for it and an action after it.
        """
        ids = self._renderer.encode(pieces)
        if len(self.stream.ids) + len(ids) >= self._limits.total_tokens:
            return False
        self.stream.append(ids)
        self.leaf.segment = self.tree.add("retrieved", ids, self.leaf.segment, turn=len(self.leaf.turns))
        return True

    async def _reset(self) -> None:
        question, info = await self._call(lambda: self.environment.reset(seed=self.tree.seed, **self._named))
        if not isinstance(question, str):
            raise TypeError(
                f"the learners train on text environments, whose observations are str, but {self.environment} gave "
                f"{type(question).__name__}: wrap it so that observations and actions are text"
            )
        prompt = self._renderer.opening(
            self._dialect.format.opening(question, self._dialect.system_prompt, self._dialect.tools)
        )
        if not self.tree.segments:
            self.tree.question = question
            self.tree.task_id = str(info.get("task_id", f"seed {self.tree.seed}"))
            self.tree.add("prompt", prompt, None, turn=0)
        elif question != self.tree.question:
            raise ValueError(
                f"two resets of {self.environment} with seed {self.tree.seed} gave different questions, but the episodes of "
                "a group must be of one task: make its task a function of the seed"
            )
        self.stream.append(prompt)

    async def _finish(self) -> None:
        action = await self._write()
        if action.stop == "length":
            self._cut()
            return
        text, leaf = action.text, self.leaf
        stepped = await self._call(lambda: self.environment.step(text))
        if end := note_step(leaf, self._dialect, text, stepped):
            self._end(end)
            return
        observation = leaf.turns[-1].observation
        answer = self._renderer.observation(self._dialect.format.observe(observation), turn_ended=action.stop == "eos")
        if len(self.stream.ids) + len(answer) >= self._limits.total_tokens:
            self._cut()
            return
        self.stream.append(answer)
        leaf.segment = self.tree.add("tool", answer, leaf.segment, turn=len(leaf.turns))

    async def _write(self) -> Continuation:
        """Waits for the action that has begun, and puts it into the tree."""
        room, parts, text = self._room, [], ""
        while True:
            part = await self.stream.rest()
            parts.append(part)
            text += part.text
            room -= len(part.ids)
            if part.stop != "stop" or room <= 0 or not self._dialect.format.unfinished(text, self._dialect.tools):
                break
            self._decode(room)
        action = Continuation(
            ids=tuple(token for part in parts for token in part.ids),
            logprobs=tuple(number for part in parts for number in part.logprobs),
            entropies=tuple(number for part in parts for number in part.entropies),
            text=text,
            stop=parts[-1].stop,
        )
        self.leaf.segment = self.tree.add(
            "policy",
            action.ids,
            self.leaf.segment,
            turn=len(self.leaf.turns),
            logprobs=action.logprobs,
            entropies=action.entropies,
        )
        return action

    def _decode(self, room: int) -> None:
        stop = self._dialect.format.stop(self._dialect.tools)
        self.stream.decode(replace(self._decoding, stop=stop, max_tokens=room))

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    @contextmanager
    def _boundary(self) -> Iterator[None]:
        """Ends the episode where an environment fault gets here."""
        try:
            yield
        except EnvironmentFault as fault:
            note_fault(self.leaf, fault)
            self._end("fault")

    def _cut(self) -> None:
        self.leaf.reward += self._limits.cut_reward
        self._end("length")

    def _end(self, stop: str) -> None:
        self.leaf.stop = stop
        self.ended = True
        self.stream.cancel()
        self.tree.leaves.append(self.leaf)


def copy_of(environment: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """A copy of an environment in its present state, wrappers included.

    Raises:
        ForkError: It has none.
    """
    try:
        return copy.deepcopy(environment)
    except (TypeError, copy.Error) as problem:  # such as "cannot pickle '_thread.lock' object"
        raise ForkError(f"{environment} has no copy: {problem}") from problem


def note_step(leaf: Leaf, dialect: Dialect, action: str, stepped: tuple[Any, Any, bool, bool, dict[str, Any]]) -> str:
    """Writes into a trajectory's record what a step of its environment brought.

    Args:
        leaf: The record.
        dialect: How the environment is talked to.
        action: What it was stepped with.
        stepped: What ``step`` returned.

    Returns:
        How the episode ended, ``"terminated"`` or ``"truncated"``; "" while it goes on.
    """
    observation, reward, terminated, truncated, info = stepped
    parsed = dialect.format.parse(action, dialect.tools)
    leaf.turns.append(Turn(action[: parsed.begin], action[parsed.begin : parsed.end], observation))
    leaf.reward += float(reward)
    leaf.tool_calls = int(info.get("tool_calls", 0))
    if info.get("policy_fault"):
        leaf.policy_faults.append(info["policy_fault"])
    if terminated or truncated:
        leaf.score = info.get("score", {})
        leaf.success = bool(info["success"]) if "success" in info else leaf.reward >= 1.0
    return "terminated" if terminated else "truncated" if truncated else ""


def note_fault(leaf: Leaf, fault: EnvironmentFault) -> None:
    """Writes into a trajectory's record the environment fault that ended it."""
    leaf.fault = f"{fault.component or 'environment'}: {fault}"
    leaf.stop = "fault"
