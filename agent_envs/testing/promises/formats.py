"""Promises about a format: what it writes it reads, it reads anything, and an action means the same once it is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from agent_envs.actions import Message, Parsed, Piece, Role
from agent_envs.env import ToolEnv
from agent_envs.faults import POLICY_FAULTS
from agent_envs.moves import Answer, Call, Move
from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.stand_ins import arguments_for, call_of, only_tool_env, short, texts_of, written
from agent_envs.testing.subject import Subject

_LONG = 2_000  # characters


def _reads_what_it_writes(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        for move in _moves(inner, ["", "a", *texts_of(episode.actions)]):
            action = written(inner, move)
            if action is None:
                continue
            read = inner.format.parse(action, inner.tools)
            if read.move != move:
                raise Broken(f"that {short(action)}, as it was written, means {move!r}", f"{read.move!r} {read.message}")
            if read.end != len(action):
                raise Broken(
                    f"that all of {short(action)} counts, as it was written", f"{read.end} of {len(action)} characters"
                )


def _moves(inner: ToolEnv, texts: Sequence[str]) -> Iterator[Move]:
    for text in texts:
        for thought in {"", text}:
            yield Answer(text, thought)
            for tool in inner.tools:
                yield Call(tool.name, arguments_for(tool, text), thought)
    for tool in inner.tools:
        for example in tool.examples:
            yield Call(tool.name, example)


def _reads_anything(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        for text in _texts(inner, episode):
            try:
                read = inner.format.parse(text, inner.tools)
            except Exception as error:
                raise Broken(f"that parse({short(text)}) raises nothing", f"{type(error).__name__}: {error}") from error
            for expected, found in _wrong_in(inner, text, read):
                raise Broken(f"{expected} from parse({short(text)})", found)
            for message in (inner.format.observe(text), *inner.format.opening(text, "", inner.tools)):
                _expect_message(message, text)


def _texts(inner: ToolEnv, episode: Episode) -> list[str]:
    """The drawn texts, alone and with an answer or a call before and behind them, and what an action begins with."""
    drawn = [text[:_LONG] for text in texts_of(episode.actions)]  # how long it may take is asked elsewhere
    own = [written(inner, Answer("42")), *(call_of(inner, tool) for tool in inner.tools)]
    actions = [action for action in own if action]
    texts = ["", *drawn, "".join(drawn), *(text for action in actions for text in (action, *_around(action, drawn)))]
    begun = actions[(episode.seed + episode.at) % len(actions)] if actions else ""
    return texts + [begun[:end] for end in range(len(begun))]


def _around(action: str, drawn: Sequence[str]) -> Iterator[str]:
    yield action + action
    for text in drawn:
        yield text + action
        yield action + text


def _wrong_in(inner: ToolEnv, text: str, read: Parsed) -> Iterator[tuple[str, str]]:
    """What was expected, and what was found."""
    if not 0 <= read.begin <= read.end <= len(text):
        yield f"0 <= begin <= end <= {len(text)}", f"begin {read.begin}, end {read.end}"
    if read.fault not in ("", *POLICY_FAULTS):
        yield "a kind of agent_envs.faults.POLICY_FAULTS", repr(read.fault)
    if read.move is None and not (read.fault and read.message):
        yield "a fault and a message where there is no move", f"fault {read.fault!r}, message {read.message!r}"
    if isinstance(read.move, Call) and read.move.tool not in [tool.name for tool in inner.tools]:
        yield "a call of a tool that there is", repr(read.move)
    for what, cut in (("up to its end", text[: read.end]), ("up to its first stop string", _decoded(inner, text))):
        again = inner.format.parse(cut, inner.tools)
        if (again.move, again.fault, again.well_formed) != (read.move, read.fault, read.well_formed):
            yield f"the same meaning of the text {what}", f"{_meaning(again)} instead of {_meaning(read)}"


def _decoded(inner: ToolEnv, text: str) -> str:
    """The text as a policy's decoder leaves it that stops at the format's stop strings."""
    ends = sorted({end for stop in inner.format.stop(inner.tools) for end in _ends(stop, text)})
    return next((text[:end] for end in ends if not inner.format.unfinished(text[:end], inner.tools)), text)


def _ends(stop: str, text: str) -> Iterator[int]:
    """Where a stop string ends; the first hundred times."""
    at = -1
    for _ in range(100):
        at = text.find(stop, at + 1)
        if at < 0:
            return
        yield at + len(stop)


def _meaning(read: Parsed) -> str:
    how = "well formed" if read.well_formed else "not well formed"
    return f"{short(read.move)}, fault {read.fault!r}, {how}"


def _expect_message(message: Message, text: str) -> None:
    if message.role not in get_args(Role):
        raise Broken(f"one of the roles {get_args(Role)} around {short(text)}", repr(message.role))
    if not isinstance(message.pieces, tuple) or not all(isinstance(piece, Piece) for piece in message.pieces):
        raise Broken(f"a tuple of pieces around {short(text)}", short(message.pieces))


PROMISES = (
    Promise("written", "A move that the format writes it reads as the same move.", _reads_what_it_writes),
    Promise("parsing", "The format reads any text, and what is cut off means nothing.", _reads_anything),
)
