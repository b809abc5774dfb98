"""The arguments of a call as the body of a tag: a sole string parameter as it is, anything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent_envs.tool import Tool


def sole_parameter(tool: Tool) -> tuple[str, Mapping[str, Any]] | None:
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    return next(iter(properties.items())) if len(properties) == 1 else None


def body_hint(tool: Tool) -> str:
    sole = sole_parameter(tool)
    return sole[0] if sole else json.dumps(dict.fromkeys(tool.parameters.get("properties", {}), "..."))


def read_body(tool: Tool, body: str) -> Mapping[str, Any]:
    sole = sole_parameter(tool)
    if sole and sole[1].get("type") == "string":
        return {sole[0]: body}
    try:
        value = json.loads(body, parse_constant=refuse_constant) if body.strip() or sole else {}
    except (ValueError, RecursionError) as error:
        expected = f"a JSON value for {sole[0]!r}" if sole else f"a JSON object such as {body_hint(tool)}"
        raise ValueError(f"expected {expected}; {error}") from error
    if sole:
        return {sole[0]: value}
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as {body_hint(tool)}, found {type(value).__name__}")
    return value


def write_body(tool: Tool, arguments: Mapping[str, Any]) -> str:
    sole = sole_parameter(tool)
    if sole and sole[1].get("type") == "string":
        return str(arguments.get(sole[0]))
    value = arguments.get(sole[0]) if sole else dict(arguments)
    return json.dumps(value, ensure_ascii=False).replace("</", r"<\/")


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
