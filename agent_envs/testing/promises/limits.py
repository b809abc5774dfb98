"""Promises about limits: what a tool returns is cut to the budget and can end no tag; a tool's time limit holds."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agent_envs.actions import Message
from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.stand_ins import (
    call_of,
    exchanged,
    has_syntax,
    let_tools_run,
    only_tool_env,
    short,
    texts_of,
    tools_of,
    written,
)
from agent_envs.testing.subject import Subject
from agent_envs.tool import Tool, ToolError, ToolResult

_MEGABYTE = 1_000_000
_FLOODS: Mapping[str, str] = {
    "a line of 1 MB": "x" * _MEGABYTE,
    "300,000 lines": "line\n" * 300_000,
    "1,000,000 characters of four bytes": "\U0001f600" * _MEGABYTE,
    "lone surrogates": "\ud800\udfff" * 100,
    "control characters": "\0\x1b[2J\x07\r" * 100,
}
_SHORT = 1.0  # seconds, of a time limit that a check sets
_GRACE = 1.0  # seconds beyond a time limit
_CLOSING = re.compile(r"</[A-Za-z_]\w*>")


def _results_are_cut(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        names = [tool.name for tool in tools_of(only_tool_env(env))]
    for position, name in enumerate(names):
        for what, flood in _FLOODS.items():
            for raised in (False, True):
                with subject.env() as env:
                    inner = only_tool_env(env)
                    action = call_of(inner, inner.tools[position])
                    if action is None:
                        return  # the format has no calls
                    let_tools_run(inner, _returning(flood, raised))
                    env.reset(seed=episode.seed)
                    observation = env.step(action)[0]
                    where = f"where {name} {'fails with' if raised else 'returns'} {what}"
                    if observation not in env.observation_space:
                        expected = f"an observation in {env.observation_space} {where}"
                        raise Broken(expected, f"{_size(observation)} that are not in it: {short(observation)}")
                    if len(flood) > inner.max_observation and str(observation) in flood:
                        found = f"the result's first {_size(observation)}, without a mark"
                        raise Broken(f"a mark that says that something was left out, {where}", found)


def _returning(text: str, raised: bool) -> Any:
    def run(tool: Tool, /, **arguments: Any) -> ToolResult:
        if raised:
            raise ToolError(text)
        return ToolResult(text)

    return run


def _size(observation: Any) -> str:
    return f"{len(observation)} characters" if isinstance(observation, str) else type(observation).__name__


def _long_actions_are_refused(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        env.reset(seed=episode.seed)
        length = inner.max_action + 1
        _, _, terminated, _, info = env.step("x" * length)
        what = f"an action of {length} characters, where {inner.max_action} are allowed"
        if info["policy_fault"] != "too_long":
            raise Broken(f"policy_fault 'too_long' for {what}", f"{info['policy_fault']!r}")
        if terminated and inner.max_turns > 1:
            raise Broken(f"that the episode goes on after {what}", "it ended")


def _content_closes_nothing(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        for text in (*_hostile(inner), *texts_of(episode.actions)):
            observed = inner.format.observe(text)
            _expect_content(inner, "an observation", text, [observed])
            if observed.role == "assistant" and has_syntax(inner):
                move = inner.format.parse(observed.text, inner.tools).move
                if move is not None:
                    raise Broken(f"that the observation {short(text)} makes no move in the assistant's turn", f"{move!r}")
            _expect_content(inner, "a question", text, inner.format.opening(text, inner.system_prompt, inner.tools))


def _hostile(inner: ToolEnv) -> list[str]:
    """Texts that could be taken for the format's own."""
    actions = [written(inner, Answer("42")), *(call_of(inner, tool) for tool in inner.tools)]
    own = [action for action in actions if action is not None]
    closing = [stop for stop in (*inner.format.stop(inner.tools), *_closers(inner)) if stop]
    halves = [stop[: len(stop) // 2] + stop + stop[len(stop) // 2 :] for stop in closing]
    return [*own, *closing, *halves, *(stop + action for stop in closing for action in own)]


def _closers(inner: ToolEnv) -> set[str]:
    """The closing tags that the format itself puts around an observation."""
    trusted = "".join(piece.text for piece in inner.format.observe("").pieces if piece.trusted)
    return set(_CLOSING.findall(trusted))


def _expect_content(inner: ToolEnv, what: str, text: str, messages: Sequence[Message]) -> None:
    content = "\n".join(piece.text for message in messages for piece in message.pieces if not piece.trusted)
    for closer in sorted({*inner.format.stop(inner.tools), *_closers(inner)}):
        if closer in content:
            raise Broken(f"no {closer} within the content of {what} that says {short(text)}", short(content))


def _time_limits_hold(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        tools = tools_of(only_tool_env(env))
        limited = [at for at, tool in enumerate(tools) if tool.timeout is not None and tool.endless is not None]
    if not limited:
        raise NotAsked("no tool states both a timeout and an endless call")
    for position in limited:
        trial = _Trial(subject, episode.seed, position)
        trial.run()


class _Trial:
    """An endless call in a thread of its own, so that a tool that never comes back is found out and left behind."""

    def __init__(self, subject: Subject, seed: int, position: int) -> None:
        self.subject, self.seed, self.position = subject, seed, position
        self.broken: BaseException | None = None
        self.stated = 0.0  # the tool's own limit, in seconds
        self.began = threading.Event()
        self.name = ""

    def run(self) -> None:
        """Raises what the trial has found."""
        thread = threading.Thread(target=self._try, daemon=True)
        thread.start()
        self.began.wait()
        thread.join(self.stated + 2 * _GRACE)
        if thread.is_alive():
            waited = f"it ran for more than {self.stated + 2 * _GRACE:g} s and was left behind in its thread"
            raise Broken(self._expected(), waited)
        if self.broken is not None:
            raise self.broken

    def _expected(self) -> str:
        return (
            f"that {self.name}, whose timeout is {self.stated:g} s, ends an endless call within {self.stated + _GRACE:g} s"
        )

    def _try(self) -> None:
        try:
            with self.subject.env() as env:
                self._call(env)
        except BaseException as error:
            self.broken = error
        finally:
            self.began.set()

    def _call(self, env: Any) -> None:
        inner = only_tool_env(env)
        tool = inner.tools[self.position]
        assert tool.timeout is not None
        assert tool.endless is not None
        self.name, self.stated = tool.name, tool.timeout
        endless = written(inner, Call(tool.name, tool.endless))
        afterwards = [written(inner, Call(tool.name, example)) for example in tool.examples[:1]]
        if endless is None:
            return
        limit = min(tool.timeout, _SHORT)
        quicker = exchanged(tool)
        with contextlib.suppress(AttributeError):  # a limit that cannot be set is waited for
            quicker.timeout = limit
        inner.tools = (*inner.tools[: self.position], quicker, *inner.tools[self.position + 1 :])
        env.reset(seed=self.seed)
        begin = time.monotonic()
        self.began.set()
        info = env.step(endless)[4]
        seconds = time.monotonic() - begin
        if seconds > self.stated + _GRACE:
            raise Broken(self._expected(), f"it took {seconds:.1f} s")
        if info["policy_fault"] != "timeout":
            raise Broken(f"policy_fault 'timeout' for an endless call of {self.name}", f"{info['policy_fault']!r}")
        for action in afterwards:
            if action is not None and inner.max_turns > 1:
                fault = env.step(action)[4]["policy_fault"]
                if fault in ("timeout", "killed"):
                    raise Broken(f"that {self.name} works again after a call that ran out of time", f"fault {fault!r}")


PROMISES = (
    Promise("too long", "An action beyond the action space is a policy fault.", _long_actions_are_refused, once=True),
    Promise("floods", "A tool's result is cut to the budget, with a mark, whatever it is.", _results_are_cut, once=True),
    Promise("escaping", "Content never closes a tag of the format and never makes a move.", _content_closes_nothing),
    Promise("timeouts", "A call that never ends is a policy fault within its time limit.", _time_limits_hold, once=True),
)
