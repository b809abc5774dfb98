"""Rooms and doors: four calls that depend on one another, a rule that nothing spells out, and a move that is seldom made.

A question names the room to begin in and two more that only make it unique. A call names a door and the room behind it, as
in ``<go> red bak</go>``, and the room says what is in it:

    SIGN red ROOM blue ROOM green ROOM gold ROOM   four doors: the sign says which is right, by a rule that is the same in
                                                   all tasks and told in none
    on ROOM                                        one door: nothing to decide
    locked ROOM                                    right is to ``unlock`` it; to ``go`` leads on as well, but astray
    end NAME                                       the answer

In three houses of five one meets a sign, a single door, a sign and the end; in the others three locked doors in a row and
the end. Rooms behind a wrong door look just like those behind the right one, so that only an episode's end tells. Each word
is one token for the policy of `lab.policy`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import gymnasium as gym
import numpy as np

from agent_envs import Call, ToolEnv
from agent_envs.actions import TagFormat
from agent_envs.moves import Answer, Move
from agent_envs.task import Oracle, Task, TaskSource, UnknownTask, split_of
from agent_envs.tool import Tool, ToolError
from agent_envs.verifiers.qa import QAVerifier

gym.register("Lab-v0", "lab.task:environment")

ROOMS = tuple(f" {first}{vowel}{last}" for first in "bdgklmnp" for vowel in "aiou" for last in "km")
COLOURS = (" red", " blue", " green", " gold")
SIGNS = (" sun", " moon", " star", " rain", " wind", " snow", " fire", " sand")
RULE = {sign: COLOURS[number % len(COLOURS)] for number, sign in enumerate(SIGNS)}
"""The colour that is right at each sign."""

LOCKED_SHARE = 0.4


@dataclass(frozen=True)
class House:
    """The rooms of one task.

    Args:
        inside: What each room says when it is entered, by the door and the room, such as " red bak".
        unlocked: What the room behind a locked door says to those who unlocked it.
    """

    inside: dict[str, str]
    unlocked: dict[str, str]


@lru_cache(maxsize=4096)
def house_of(question: str) -> House:
    """The house that a question is about."""
    start = f" {question.split()[1]}"
    seed = hashlib.blake2b(question.encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    free = [room for room in (ROOMS[index] for index in rng.permutation(len(ROOMS))) if room != start]
    inside: dict[str, str] = {}
    unlocked: dict[str, str] = {}

    def end() -> str:
        return f" end{ROOMS[rng.integers(len(ROOMS))]}"

    def signed() -> tuple[str, list[str]]:
        doors = [colour + free.pop() for colour in COLOURS]
        return SIGNS[rng.integers(len(SIGNS))] + "".join(doors), doors

    def locked(left: int) -> str:
        if not left:
            return end()
        door = f" locked{free.pop()}"
        inside[door], unlocked[door] = locked(left - 1), locked(left - 1)
        return door

    if rng.random() < LOCKED_SHARE:
        inside[f" begin{start}"] = locked(3)
        return House(inside, unlocked)
    inside[f" begin{start}"], first = signed()
    for door in first:
        inside[door] = f" on{free.pop()}"
        inside[inside[door]], last = signed()
        inside |= {behind: end() for behind in last}
    return House(inside, unlocked)


def move_for(text: str) -> Move:
    """The right move after a room's text."""
    words = [f" {word}" for word in text.split()]
    if words[0] == " end":
        return Answer(words[1])
    at = words.index(RULE[words[0]]) if words[0] in RULE else 0
    return Call("unlock" if words[0] == " locked" else "go", {"door": words[at] + words[at + 1]})


class Go(Tool):
    """Goes through a door."""

    house: House | None = None

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.house = house_of(task.question)

    def fork(self) -> Tool:
        twin = type(self)()
        twin.house = self.house
        return twin

    def run(self, door: str) -> str:
        return _behind(door, self.house.inside if self.house else {})


class Unlock(Go):
    """Unlocks a door and goes through it."""

    name = "unlock"
    description = "Unlocks a door and goes through it."

    def run(self, door: str) -> str:
        return _behind(door, self.house.unlocked if self.house else {})


def _behind(door: str, rooms: dict[str, str]) -> str:
    name = f" {' '.join(door.split())}"
    if name not in rooms:
        raise ToolError(" no such door")
    return rooms[name]


class Houses(TaskSource):
    """All the houses that three rooms can name."""

    name = "lab"
    vocabulary = (*ROOMS, *COLOURS, *SIGNS, " begin", " on", " locked", " end", " no such door")

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        while True:
            question = " begin" + "".join(ROOMS[index] for index in rng.choice(len(ROOMS), size=3, replace=False))
            if split_of(question) == split:
                return self._task(question)

    def get(self, task_id: str) -> Task:
        source, _, rooms = task_id.partition(":")
        names = [f" {room}" for room in rooms.split("-")]
        if source != self.name or len(set(names) & set(ROOMS)) != 3 or len(names) != 3:
            raise UnknownTask(f"there is no task {task_id!r}: expected {self.name}: and three rooms with - in between")
        return self._task(" begin" + "".join(names))

    def oracle(self, task: Task) -> Oracle:
        return move_for

    def _task(self, question: str) -> Task:
        house = house_of(question)
        text, move = question, move_for(question)
        while isinstance(move, Call):
            behind = house.unlocked if move.tool == "unlock" else house.inside
            text = behind[str(move.arguments["door"])]
            move = move_for(text)
        return Task(f"{self.name}:{'-'.join(question.split()[1:])}", question, (move.text,))


def environment(split: str = "train") -> ToolEnv:
    """The environment that ``--env lab:Lab-v0`` names."""
    return ToolEnv(
        tasks=Houses(),
        tools=[Go(), Unlock()],
        verifier=QAVerifier(),
        format=TagFormat(boxed=False),
        max_turns=6,
        split=split,
        rewards=("accuracy",),
    )
