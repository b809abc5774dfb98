"""A server of the Model Context Protocol that owes nothing to any library: the handshake of 2025-06-18 over standard input.

Run as a program: ``mcp_peer.py [mute|dumb]``. Mute answers nothing; dumb ends with a word on standard error. The file that
``PEER_PIDS`` names gets a line with the process's id.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


TEXT = {"type": "string"}
TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "note": ("Remembers a word.", schema(word=TEXT)),
    "recall-all": ("All words, in the order in which they were noted.\n\nA second paragraph.", schema()),
    "chance": ("Never the same twice.", schema()),
    "fail": ("Says that the call was wrong.", schema()),
    "refuse": ("Refuses its arguments.", schema()),
    "break": ("An internal error.", schema()),
    "picture": ("A picture between two texts, and more.", schema()),
    "facts": ("Structured content alone.", schema()),
    "lie": ("Structured content that is not what it says.", schema()),
    "nothing": ("Nothing at all.", schema()),
    "sleep": ("Sleeps.", schema(seconds={"type": "number"})),
    "stay": ("Goes on from now on when it is told to leave.", schema()),
    "die": ("Dies.", schema()),
}


class Refusal(Exception):
    pass


def text(*lines: str, wrong: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": line} for line in lines], "isError": wrong}


def call(name: str, arguments: dict[str, Any], words: list[str]) -> dict[str, Any]:
    if name == "note":
        words.append(arguments["word"])
        return text(f"{len(words)} noted")
    if name == "recall-all":
        return text(" ".join(words))
    if name == "chance":
        return text(str(time.monotonic_ns()))
    if name == "fail":
        return text("no such thing", wrong=True)
    if name == "refuse":
        raise Refusal(-32602, "the word must be shorter")
    if name == "break":
        raise Refusal(-32603, "out of order")
    if name == "picture":
        link = {"type": "resource_link", "name": "more", "uri": "file:///more"}
        inner = {"type": "resource", "resource": {"uri": "file:///inner", "text": "inner text"}}
        picture = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
        return {"content": [*text("before")["content"], picture, *text("after")["content"], link, inner]}
    if name in ("facts", "lie"):
        return {"content": [], "structuredContent": {"height": 3, "name": "Ö"}}
    if name == "nothing":
        return {"content": []}
    if name == "sleep":
        time.sleep(arguments["seconds"])
        return text("rested")
    if name == "stay":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return text("here")
    print("these are my last words", file=sys.stderr, flush=True)
    os._exit(3)


def answer(method: str, parameters: dict[str, Any], words: list[str]) -> dict[str, Any]:
    if method == "initialize":
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "peer", "version": "1"},
        }
    if method == "tools/list":  # in pages of four
        start = int(parameters.get("cursor") or 0)
        page = list(TOOLS.items())[start : start + 4]
        more = {"nextCursor": str(start + 4)} if start + 4 < len(TOOLS) else {}
        tools: list[dict[str, Any]] = [{"name": name, "description": d, "inputSchema": s} for name, (d, s) in page]
        for tool in tools:
            if tool["name"] == "lie":
                tool["outputSchema"] = schema(height=TEXT)
        return {"tools": tools, **more}
    if method == "tools/call":
        return call(parameters["name"], parameters.get("arguments") or {}, words)
    raise Refusal(-32601, "no such method")


def main(kind: str) -> None:
    if "PEER_PIDS" in os.environ:
        with open(os.environ["PEER_PIDS"], "a") as file:
            file.write(f"{os.getpid()}\n")
    if kind == "dumb":
        sys.exit("I speak no protocol")
    words: list[str] = []
    for line in sys.stdin:
        message = json.loads(line)
        if kind == "mute" or "id" not in message:
            continue
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            reply["result"] = answer(message["method"], message.get("params") or {}, words)
        except Refusal as refusal:
            reply["error"] = {"code": refusal.args[0], "message": refusal.args[1]}
        print(json.dumps(reply), flush=True)
    while signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
