"""Speaks the Model Context Protocol for an episode, over standard input and output or over HTTP.

The question is the server's instructions, a prompt (``question``) and a resource (``task://question``). All calls run in one
thread, one after the other: an episode is one thread's at a time, and a tool may hold what only its own thread may touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar, cast

from agent_envs.faults import EnvironmentFault
from agent_envs.mcp.episode import Episode, UsageError
from agent_envs.mcp.sdk import MCPError, Server, anyio, stdio_server, types, uvicorn

QUESTION = "task://question"
"""Address of the question as a resource."""

PATH = "/mcp"
"""Where the server is to be found, over HTTP."""

_CLOSE_SECONDS = 15.0  # for the call that is running, and to close what the environment has opened
_HANGUP_SECONDS = 2  # for clients to go, once the server is told to

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Stage:
    """The one thread in which an episode is made, played and closed.

    Args:
        make: Makes the episode.
    """

    def __init__(self, make: Callable[[], Episode]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "episode")
        self.episode: Episode

    async def do(self, work: Callable[[], T]) -> T:
        """Does something in the episode's thread, after what is being done there."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def __aenter__(self) -> Self:
        self.episode = await self.do(self._make)
        return self

    async def __aexit__(self, *exception: object) -> None:
        try:
            await asyncio.wait_for(self.do(self.episode.close), _CLOSE_SECONDS)
        except TimeoutError:
            # A tool hangs in the thread, which Python would wait for without end.
            logger.error("the episode does not end within %g s: leaving all the same", _CLOSE_SECONDS)
            logging.shutdown()
            os._exit(1)
        self._thread.shutdown()


async def serve_stdio(make: Callable[[], Episode], wire: Wire, stopped: asyncio.Event) -> None:
    """Serves an episode to whoever has started this process, until that one hangs up.

    Args:
        make: Makes the episode.
        wire: This process's standard input and output.
        stopped: Set, it ends the serving.

    Raises:
        UsageError: The episode cannot be made as it was asked for.
        EnvironmentFault: The environment broke while it was made.
    """
    async with Stage(make) as stage:
        server = make_server(stage)

        async def serve() -> None:
            lines, output = wire.streams()
            async with stdio_server(lines, output) as (read, write):
                await server.run(read, write, server.create_initialization_options())

        await _until(stopped, serve())


async def serve_http(
    make: Callable[[], Episode], host: str, port: int, stopped: asyncio.Event, announce: Callable[[str], None]
) -> None:
    """Serves an episode over HTTP, to all clients the same one, until it is told to stop.

    Args:
        make: Makes the episode.
        host: The address to listen on; this machine's own names are safe from web pages that a browser shows.
        port: 0 for any that is free.
        stopped: Set, it ends the serving.
        announce: Is told the server's address, once it listens.

    Raises:
        UsageError: The episode cannot be made as it was asked for, or the address cannot be listened on.
        EnvironmentFault: The environment broke while it was made.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as problem:
            raise UsageError(f"cannot listen on {host}, port {port} ({problem}): choose another") from problem
        async with Stage(make) as stage:
            app = make_server(stage).streamable_http_app(streamable_http_path=PATH, host=host)
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_HANGUP_SECONDS)
            shown = f"[{host}]" if ":" in host else host
            listening.listen(128)
            announce(f"http://{shown}:{listening.getsockname()[1]}{PATH}")
            await _until(stopped, uvicorn.Server(config).serve([listening]))


class Wire:
    """This process's standard input and output, kept for the protocol from the moment this is made.

    Everything else in the process, and its children, find an empty input, and what they print goes to standard error.
    """

    def __init__(self) -> None:
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def streams(self) -> tuple[anyio.AsyncFile[str], anyio.AsyncFile[str]]:
        """The two as the SDK takes them; the input can be left while nothing comes."""
        # The SDK only goes through the lines of its input.
        lines = cast("anyio.AsyncFile[str]", _lines(self._input))
        return lines, anyio.wrap_file(os.fdopen(self._output, "w", encoding="utf-8", newline="\n"))


def make_server(stage: Stage) -> Server[Any]:
    """The SDK's server of an episode, for any of its transports.

    Args:
        stage: Where the episode is played; open.
    """
    episode = stage.episode

    async def list_tools(context: object, params: object) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(name=offer.name, description=offer.description, input_schema=dict(offer.parameters))
                for offer in episode.tools
            ]
        )

    async def call_tool(context: object, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            reply = await stage.do(lambda: episode.call(params.name, params.arguments or {}))
        except LookupError as problem:
            raise MCPError(types.INVALID_PARAMS, str(problem)) from problem
        except EnvironmentFault as fault:
            raise MCPError(types.INTERNAL_ERROR, f"the environment broke: {fault}") from fault
        return types.CallToolResult(content=[types.TextContent(text=reply.text)], is_error=reply.refused)

    async def list_prompts(context: object, params: object) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[types.Prompt(name="question", description="The task of this episode.")])

    async def get_prompt(context: object, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name != "question":
            raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name!r}; there is 'question'")
        content = types.TextContent(text=episode.instructions)
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=content)])

    async def list_resources(context: object, params: object) -> types.ListResourcesResult:
        question = types.Resource(name="question", uri=QUESTION, description="The question alone.", mime_type="text/plain")
        return types.ListResourcesResult(resources=[question])

    async def list_templates(context: object, params: object) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=[])

    async def read_resource(context: object, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        if str(params.uri) != QUESTION:
            raise MCPError(types.INVALID_PARAMS, f"there is no resource {str(params.uri)!r}; there is {QUESTION!r}")
        contents = types.TextResourceContents(uri=QUESTION, mime_type="text/plain", text=episode.question)
        return types.ReadResourceResult(contents=[contents])

    return Server(
        episode.name,
        instructions=episode.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


async def _until(stopped: asyncio.Event, serving: Any) -> None:
    """Waits for the serving to end by itself, or ends it."""
    tasks = asyncio.ensure_future(serving), asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[0]


async def _lines(descriptor: int) -> AsyncIterator[str]:
    """The lines that come in, read by a thread that nobody waits for: reading cannot be interrupted."""
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while chunk := os.read(descriptor, 1 << 16):
                loop.call_soon_threadsafe(waiting.put_nowait, chunk)
            loop.call_soon_threadsafe(waiting.put_nowait, b"")

    threading.Thread(target=read, name="standard input", daemon=True).start()
    rest = b""
    while chunk := await waiting.get():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
