"""The official SDK and what it brings along, taken in at one place, so that one line says what to do where it is missing."""

from __future__ import annotations

try:
    import anyio
    import mcp_types as types
    import uvicorn
    from httpx2 import AsyncClient, HTTPError, Timeout
    from mcp import Client, MCPError, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.server import Server, ServerRequestContext
    from mcp.server.stdio import stdio_server
except ImportError as problem:
    raise ImportError(
        f"the Model Context Protocol needs its SDK, version 2.3 or later ({problem}): pip install 'agent-envs[mcp]'"
    ) from problem

__all__ = [
    "AsyncClient",
    "Client",
    "HTTPError",
    "MCPError",
    "Server",
    "ServerRequestContext",
    "StdioServerParameters",
    "Timeout",
    "anyio",
    "stdio_client",
    "stdio_server",
    "streamable_http_client",
    "types",
    "uvicorn",
]
