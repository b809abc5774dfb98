"""The tools of a Model Context Protocol server, as tools of ours.

Whose doing a failure is: what a server answers with ``isError`` or refuses as bad arguments, and a call that takes too long,
is the agent's own doing. A server that cannot be started or reached, that dies or breaks the protocol, is the environment's
fault. Many servers report their own breakdowns with ``isError`` too; the protocol has no way to tell.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agent_envs.faults import ForkError
from agent_envs.mcp.connection import CallTimedOut, Connection, ServerAddress
from agent_envs.mcp.sdk import MCPError, types
from agent_envs.task import Task
from agent_envs.tool import Tool, ToolResult, replay_difference

_NAME_LENGTH = 64


def mcp_tools(
    command: Sequence[str] | None = None,
    *,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    only: Sequence[str] | None = None,
    prefix: str = "",
    session: Literal["episode", "environment"] = "episode",
    replay: bool = False,
) -> list[Tool]:
    """The tools of a server.

    The server is asked for them at once, in a session that is closed again. The tools that come back have one session
    between them, which opens at the first call of an episode: for a ``command``, a server process of its own. So they belong
    to one environment, and whatever a tool changes the others see. Each reset ends the session, so that no episode finds
    what an earlier one has left. A server behind a ``url`` runs on, and may remember what it likes.

    Args:
        command: Starts a server that speaks over its standard input and output, such as ``["uvx", "mcp-server-sqlite"]``.
        url: Of a server that speaks streamable HTTP, such as ``"http://localhost:8000/mcp"``.
        env: For a command: variables beside the few that every server inherits, such as PATH and HOME.
        headers: For a url: sent with each request.
        timeout: Seconds that opening may take, and each call.
        only: The server's names of the tools to take, in this order; by default all.
        prefix: Put before each name, where two servers have tools of the same name.
        session: ``"environment"`` keeps the session over resets, for a server that is slow to start and remembers nothing.
        replay: Says that the server gives the same results when the same calls are made in a new session. Then an episode
            can be copied: the calls of all the tools are made again, in their order, in a session of the copy's own, and the
            results are compared.

    Returns:
        The tools. Names that hold other characters than letters, digits and underscores have underscores there.

    Raises:
        ImportError: The SDK is not installed.
        ValueError: An argument is none of those it may be, or the server has no such tool.
        EnvironmentFault: The server cannot be started or reached.

    Example:
        >>> tools = mcp_tools(["uvx", "mcp-server-time"], only=["get_current_time"])  # doctest: +SKIP
        >>> env = ToolEnv(tasks=..., tools=tools, verifier=...)  # doctest: +SKIP
    """
    if session not in ("episode", "environment"):
        raise ValueError(f"session is 'episode' or 'environment', found {session!r}")
    if replay and session == "environment":
        raise ValueError("replay needs session='episode': what is run again is what has run since the session began")
    if isinstance(command, str):
        raise ValueError(f"command is a list such as ['program', '--option'], found {command!r}")
    server = ServerAddress(tuple(command or ()), url or "", dict(env or {}), dict(headers or {}), timeout)
    connection = Connection(server)
    listed = {tool.name: tool for tool in connection.tools}
    connection.close()
    if unknown := [name for name in only or () if name not in listed]:
        raise ValueError(f"{server} has the tools {sorted(listed)}, not {unknown}")
    taken = list(listed.values()) if only is None else [listed[name] for name in only]
    shared = _Session(server, keep=session == "environment", replay=replay)
    names = _legal_names([prefix + tool.name for tool in taken])
    return [McpTool(name, tool, shared) for name, tool in zip(names, taken, strict=True)]


class McpTool(Tool):
    """One tool of a server; `mcp_tools` makes it.

    Args:
        name: What the policy calls it by.
        listed: As the server lists it.
        session: What it shares with the server's other tools.
    """

    def __init__(self, name: str, listed: types.Tool, session: _Session) -> None:
        self.name = name
        self.description = " ".join((listed.description or listed.title or listed.name).split())
        self.parameters: Mapping[str, Any] = listed.input_schema
        self.timeout: float = session.server.timeout
        self.fidelity = "exact" if session.replay else "none"  # the session itself makes the calls again, for all its tools
        self._listed_name = listed.name
        self._session = session

    def run(self, /, **arguments: Any) -> ToolResult:
        """Calls the tool.

        Returns:
            Its text; without text, its structured content as JSON. Anything else is named in a line of its own.

        Raises:
            EnvironmentFault: The server could not be opened, died, or broke the protocol.
        """
        return self._session.call(self._listed_name, arguments)

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """The next call finds a new session, unless this one is to be kept."""
        self._session.reset()

    def fork(self) -> McpTool:
        """The same tool in a copy of the session.

        Raises:
            ForkError: The server is not said to be one whose calls can be made again, or they gave other results.
            EnvironmentFault: The copy's server could not be opened.
        """
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._session = self._session.twin_for(self.name)
        return twin

    def close(self) -> None:
        """Ends the session, and the server if it was started for it."""
        self._session.close()


class _Session:
    """What the tools of one call of `mcp_tools` share: a connection, and the calls of the episode."""

    def __init__(self, server: ServerAddress, keep: bool, replay: bool) -> None:
        self.server = server
        self.replay = replay
        self._keep = keep
        self._connection: Connection | None = None
        self._end: weakref.finalize[[], _Session] | None = None
        self._calls: list[tuple[str, dict[str, Any], ToolResult]] = []
        self._twin: tuple[_Session, set[str]] | None = None  # the latest copy, and the tools that have gone over to it

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        result = self._call(name, arguments)
        if self.replay:
            self._calls.append((name, dict(arguments), result))
        return result

    def reset(self) -> None:
        if not self._keep:
            self.close()

    def close(self) -> None:
        self._calls = []
        self._twin = None
        self._connection = None
        end, self._end = self._end, None
        if end is not None:
            end()

    def twin_for(self, tool: str) -> _Session:
        """The copy that this tool goes over to: one for all tools that are copied together, that is, one after the other."""
        if not self.replay:
            raise ForkError(
                f"tool {tool!r} cannot be copied, since what {self.server} keeps is out of reach; if it gives the same "
                "results when the same calls are made again, say so by mcp_tools(..., replay=True)"
            )
        if self._twin is not None:
            twin, gone = self._twin
            if tool not in gone and twin._calls == self._calls:
                gone.add(tool)
                return twin
        twin = self._copy(tool)
        self._twin = twin, {tool}
        return twin

    def _copy(self, tool: str) -> _Session:
        twin = _Session(self.server, self._keep, self.replay)
        try:
            for turn, (name, arguments, result) in enumerate(self._calls, 1):
                changed = replay_difference(result, twin.call(name, arguments))
                if changed:
                    raise ForkError(
                        f"tool {tool!r} cannot be copied: call {turn} of the session, of {name!r}, gave another result when "
                        f"it was made again: {changed}"
                    )
        except BaseException:
            twin.close()
            raise
        twin._calls = list(self._calls)
        return twin

    def _call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        if self._connection is None or not self._connection.here:
            self._connection = Connection(self.server)
            # So that a session that nobody closes ends with its last tool, or with the program.
            self._end = weakref.finalize(self, self._connection.close)
        try:
            return _result(self._connection.call(name, arguments))
        except CallTimedOut:
            return ToolResult(f"timed out after {self.server.timeout:g} s", "timeout")
        except MCPError as refusal:
            return ToolResult(refusal.message, "bad_arguments")
        except BaseException:
            self.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        if self._connection is not None:
            raise TypeError("tools with an open session cannot be pickled or copied: close them first")
        return self.__dict__


def _result(answer: types.CallToolResult) -> ToolResult:
    texts = [block.text for block in answer.content if isinstance(block, types.TextContent)]
    lines = [_line(block) for block in answer.content]
    if not any(texts) and answer.structured_content is not None:
        lines = [line for line in lines if line]
        lines.append(json.dumps(answer.structured_content, ensure_ascii=False, separators=(",", ":")))
    return ToolResult("\n".join(lines) or "(no output)", "error" if answer.is_error else "")


def _line(block: types.ContentBlock) -> str:
    """A block of content as the policy reads it: its text, or what it is."""
    if isinstance(block, types.TextContent):
        return block.text
    if isinstance(block, types.ResourceLink):
        return f"[resource {block.uri}]"
    if isinstance(block, types.EmbeddedResource):
        if isinstance(block.resource, types.TextResourceContents):
            return block.resource.text
        return f"[resource {block.resource.uri}]"
    return f"[{block.type} {block.mime_type}]"


def _legal_names(names: Sequence[str]) -> list[str]:
    """Letters, digits and underscores, none of them twice; a name that comes again has a number at its end."""
    legal: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", name, flags=re.ASCII)
        base = (f"_{base}" if not base or base[0].isdigit() else base)[:_NAME_LENGTH]
        candidate, number = base, 1
        while candidate in legal:
            number += 1
            candidate = f"{base[: _NAME_LENGTH - len(str(number)) - 1]}_{number}"
        legal.append(candidate)
    return legal
