"""The Model Context Protocol: tools from its servers, and environments served to its clients.

One way: `connection` talks to a server, for `agent_envs.tools.mcp`. The other way: `episode` is an episode as a client sees
it, `server` speaks the protocol for it, and ``python -m agent_envs.mcp`` is the command. The protocol itself is the official
SDK's, an extra (``pip install 'agent-envs[mcp]'``): nothing outside this room imports it, and this file does not either.
"""
