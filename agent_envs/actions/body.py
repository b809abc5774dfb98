"""What the policy wrote as JSON, and the arguments of a call as the body of a tag.

A tool's sole string parameter is the body as it is; anything else is JSON. The JSON that is accepted is what a tool can be
given as it stands: no NaN or infinity (which is not JSON), no lone surrogates (which nothing can encode), and no nesting so
deep that copying the value would fail.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from agent_envs.spaces import replace_surrogates
from agent_envs.tool import Tool

_DEEPEST = 64  # lists and objects within each other; copying a value takes several Python frames for each


def sole_parameter(tool: Tool) -> tuple[str, Mapping[str, Any]] | None:
    """The name and the schema of a tool's parameter, if it has exactly one."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    return next(iter(properties.items())) if len(properties) == 1 else None


def body_hint(tool: Tool) -> str:
    """What the policy is shown in place of a body: the sole parameter's name, or a JSON object of all."""
    sole = sole_parameter(tool)
    return sole[0] if sole else json.dumps(dict.fromkeys(tool.parameters.get("properties", {}), "..."))


def read_body(tool: Tool, body: str) -> Mapping[str, Any]:
    """The arguments that a body stands for; whether they fit the tool's schema is not asked here.

    Args:
        tool: What is called.
        body: The text between its tags. A blank one is no arguments, unless there is a sole parameter.

    Raises:
        ValueError: It is not the JSON that it must be.
    """
    sole = sole_parameter(tool)
    if sole and sole[1].get("type") == "string":
        return {sole[0]: body}
    try:
        value = read_json(body) if body.strip() or sole else {}
    except ValueError as error:
        expected = f"a JSON value for {sole[0]!r}" if sole else f"a JSON object such as {body_hint(tool)}"
        raise ValueError(f"expected {expected}; {error}") from error
    if sole:
        return {sole[0]: value}
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as {body_hint(tool)}, found {type(value).__name__}")
    return value


def write_body(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """The body that stands for these arguments, in which no tag of a JSON body is closed.

    Raises:
        ValueError: They are no JSON.
    """
    sole = sole_parameter(tool)
    if sole and sole[1].get("type") == "string":
        return str(arguments.get(sole[0]))
    return write_json(arguments.get(sole[0]) if sole else dict(arguments)).replace("</", r"<\/")


def read_json(text: str) -> Any:
    r"""The value of a JSON text, with lone surrogates (``"\ud800"``) replaced.

    Raises:
        ValueError: It is no JSON, holds a number that is not finite, or is nested too deeply.
    """
    try:
        return _usable(json.loads(text, parse_constant=_refuse_constant), _DEEPEST)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def write_json(value: Any) -> str:
    """The JSON text of a value, on one line, as chat templates write it.

    Raises:
        ValueError: It has none.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"expected a value that JSON can hold: {error}") from error


_TOO_DEEP = f"at most {_DEEPEST} lists and objects may stand within each other"


def _usable(value: Any, depth: int) -> Any:
    """The value as a tool can be given it; ``depth`` more lists and objects may stand within each other."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large to be held")
    if isinstance(value, (list, dict)) and depth == 0:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, list):
        return [_usable(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(name): _usable(item, depth - 1) for name, item in value.items()}
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
