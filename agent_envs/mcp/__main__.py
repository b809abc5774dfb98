"""``python -m agent_envs.mcp``: serves one episode of an environment to clients of the Model Context Protocol.

A client finds the episode's tools and ``answer``; the question is in the server's instructions. One process is one episode.
What the environment thinks of it is not told to the client: ``--result`` has it written into a file.

Exit status: 0 when the client has gone or the process was told to end, 1 when the environment broke while it was made, 2
when what was asked for cannot be served.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_envs.faults import EnvironmentFault
from agent_envs.mcp.episode import Episode, UsageError, open_environment
from agent_envs.registration import env_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves an episode.

    Args:
        arguments: The command line, without the program; this process's own by default.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        settings = _settings(options)
        asyncio.run(_serve(options, settings))
    except (UsageError, ImportError) as problem:
        _say(f"error: {problem}")
        return 2
    except EnvironmentFault as fault:
        _say(f"error: {fault}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent_envs.mcp", description="Serve one episode of an environment.")
    parser.add_argument(
        "--env", required=True, metavar="ID", help="such as MathTool-v0, or module:id (the module registers the id)"
    )
    parser.add_argument("--tasks", help="task source of the environment; default: its own")
    parser.add_argument("--split", help="where tasks come from; default: the environment's own")
    parser.add_argument("--seed", type=int, default=0, help="which task (%(default)s)")
    parser.add_argument("--task-id", metavar="TASK", help="that task instead")
    parser.add_argument("--env-args", default="{}", metavar="JSON", help="further arguments of the environment, an object")
    parser.add_argument("--transport", choices=("stdio", "http"), default="stdio", help="how to speak (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="with http: the address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="with http: 0 for any that is free (%(default)s)")
    parser.add_argument(
        "--result", type=Path, metavar="FILE", help="append the episode's score to this file, as a line of JSON"
    )
    return parser


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the environment."""
    try:
        settings = env_arguments(options.env_args)
    except ValueError as problem:
        raise UsageError(f"--env-args {problem}") from None
    given = {name: value for name in ("tasks", "split") if (value := getattr(options, name)) is not None}
    return {**settings, **given}


async def _serve(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    # Here, so that the SDK's absence is told in one line, and what it takes to import it is not waited for before that.
    server = importlib.import_module("agent_envs.mcp.server")
    stopped = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stopped.set)

    def make() -> Episode:
        env = open_environment(options.env, settings)
        try:
            return Episode(env, options.seed, options.task_id, options.result)
        except BaseException:
            env.close()
            raise

    if options.transport == "stdio":
        await server.serve_stdio(make, server.Wire(), stopped)
    else:
        await server.serve_http(make, options.host, options.port, stopped, lambda url: _say(f"serving at {url}"))


def _say(line: str) -> None:
    print(line.encode("utf-8", "replace").decode(), file=sys.stderr, flush=True)  # noqa: T201 - a command line talks


if __name__ == "__main__":
    sys.exit(main())
