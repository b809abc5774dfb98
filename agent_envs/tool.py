"""Tools: what an agent can call.

A tool has a name, a description, a JSON schema of its parameters and a ``run`` method. A tool with state also has
``reset``, ``fork`` or ``fresh``, and ``close``. ``@tool`` makes one out of a documented, typed function.

Whose doing a failure is, is decided by one rule. A tool that wants the policy to read about a failure raises ``ToolError``
(or returns a ``ToolResult`` with a fault); every other exception means that the tool itself is broken and becomes an
``EnvironmentFault`` with that exception as its cause.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, overload

import numpy as np

from agent_envs.faults import POLICY_FAULTS, EnvironmentFault
from agent_envs.task import Task

Fidelity = Literal["exact", "replay", "none"]

_JSON_TYPES: Mapping[str, tuple[type, ...]] = types.MappingProxyType(
    {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "array": (list,),
        "object": (dict,),
        "null": (type(None),),
    }
)


class ToolError(Exception):
    """Raised by a tool for a failure that is the agent's own doing; the policy reads the message."""


@dataclass(frozen=True)
class ToolResult:
    """What a call gave back.

    Args:
        text: What the policy reads.
        fault: "" or a kind of `agent_envs.faults.POLICY_FAULTS`.

    Raises:
        ValueError: There is no such kind of fault.
    """

    text: str
    fault: str = ""

    def __post_init__(self) -> None:
        if self.fault and self.fault not in POLICY_FAULTS:
            raise ValueError(f"a policy fault is one of {sorted(POLICY_FAULTS)}, found {self.fault!r}")


class Tool(ABC):
    """One tool, as an environment sees it.

    Attributes:
        name: What the policy calls it by; letters, digits and underscores.
        description: One or two sentences for the policy.
        parameters: JSON schema (``{"type": "object", "properties": ..., "required": [...]}``) of ``run``'s arguments.
        fidelity: How a copy is made in the middle of an episode: ``"exact"`` by ``fork``, ``"replay"`` by running the
            episode's calls again in a ``fresh`` tool, ``"none"`` not at all.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    fidelity: Fidelity = "exact"

    @abstractmethod
    def run(self, *args: Any, **arguments: Any) -> ToolResult:
        """Runs one call. Declare the parameters that the schema names; ``*args`` only says that any may be declared.

        Args:
            arguments: Values that fit ``parameters``, by name; an environment checks them first.

        Returns:
            What the policy reads. What is the agent's own doing is a fault in here, or a ``ToolError``.

        Raises:
            ToolError: The agent's own doing.
            Exception: Anything else says that the tool is broken.
        """

    def reset(self, task: Task, rng: np.random.Generator) -> None:  # noqa: B027 - a tool without state need not have it
        """Starts a new episode. ``rng`` is this tool's own generator for the episode."""

    def fork(self) -> Tool:
        """An independent copy in its present state, generator included (``"exact"``); a stateless tool is its own copy."""
        return self

    def fresh(self) -> Tool:
        """A tool of the same configuration in which nothing has run yet; what ``"replay"`` runs the calls again in."""
        raise NotImplementedError(f"tool {self.name!r} has fidelity 'replay' but no fresh()")

    def close(self) -> None:  # noqa: B027 - likewise
        """Lets go of engines and processes. Calling it twice is fine; ``reset`` opens again."""


class FunctionTool(Tool):
    """A tool made of a function by ``@tool``. It has no state, so it is its own copy.

    Args:
        function: Typed, with a docstring whose first paragraph describes it and whose ``Args`` describe its parameters.
        name: What the policy calls it by; the function's own name if empty.

    Raises:
        TypeError: A parameter has no annotation, or one that has no JSON schema.
        ValueError: There is no docstring.
    """

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.name = name or function.__name__
        self.description, notes = _read_docstring(function)
        self.parameters = _schema_of(function, notes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function itself."""
        return self._function(*args, **kwargs)

    def run(self, *args: Any, **arguments: Any) -> ToolResult:
        """Runs the function on arguments by name. A string is what the policy reads, other values as ``str`` gives them.

        Returns:
            The result; ``bad_arguments`` if they don't fit, ``error`` if the function raised ``ToolError``.

        Raises:
            EnvironmentFault: The function raised anything else, which is the fault's cause.
        """
        message = check_arguments(self, arguments)
        if message:
            return ToolResult(message, "bad_arguments")
        try:
            value = self._function(*args, **arguments)
        except ToolError as error:
            return ToolResult(str(error), "error")
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(f"tool {self.name!r} raised {type(error).__name__}: {error}", self.name) from error
        return value if isinstance(value, ToolResult) else ToolResult(str(value))

    def __reduce__(self) -> str:
        # The decorated name stands for the tool, so pickle finds the tool under it and would refuse the bare function.
        return str(self.__qualname__)  # type: ignore[attr-defined]


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...


@overload
def tool(*, name: str) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(function: Callable[..., Any] | None = None, /, *, name: str = "") -> FunctionTool | Callable[..., FunctionTool]:
    """Makes a tool out of a documented, typed function.

    The JSON schema comes from the annotations (str, int, float, bool, list, dict, Literal, and ``X | None``) and the
    ``Args`` of the docstring; a parameter with a default is optional.

    Example:
        >>> @tool
        ... def add(a: int, b: int = 1) -> int:
        ...     '''Adds two numbers.
        ...
        ...     Args:
        ...         a: The first.
        ...         b: The second.
        ...     '''
        ...     return a + b
        >>> add.run(a=2)
        ToolResult(text='3', fault='')
        >>> add.run(a="two").text
        "add takes a: integer, b: integer (optional); 'a' must be integer, found 'two'"
    """
    if function is None:
        return functools.partial(FunctionTool, name=name)
    return FunctionTool(function)


def check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Whether arguments fit a tool's schema.

    Returns:
        "" if they do, else a line for the policy: what the tool takes, and what was wrong.
    """
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", ())
    problem = ""
    for name in arguments:
        if name not in properties:
            problem = f"there is no {_short(name)}"
    for name, schema in properties.items():
        if name in arguments:
            problem = problem or _mismatch(schema, arguments[name], name)
        elif name in required:
            problem = problem or f"{name!r} is missing"
    if not problem:
        return ""
    optional = {name: "" if name in required else " (optional)" for name in properties}
    takes = ", ".join(f"{name}: {_describe(schema)}{optional[name]}" for name, schema in properties.items())
    return f"{tool.name} takes {takes or 'no arguments'}; {problem}"


def _mismatch(schema: Mapping[str, Any], value: Any, where: str) -> str:
    if "anyOf" in schema:
        problems = [_mismatch(option, value, where) for option in schema["anyOf"]]
        return "" if "" in problems else f"{where!r} must be {_describe(schema)}, found {_short(value)}"
    wrong = f"{where!r} must be {_describe(schema)}, found {_short(value)}"
    if "enum" in schema:
        return "" if any(value == option and type(value) is type(option) for option in schema["enum"]) else wrong
    kind = schema.get("type")
    if kind is None:
        return ""
    if not isinstance(value, _JSON_TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number")):
        return wrong
    if isinstance(value, list) and "items" in schema:
        wrong_items = (_mismatch(schema["items"], item, f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, wrong_items), "")
    return ""


def _describe(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_describe(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array" and "items" in schema:
        return f"array of {_describe(schema['items'])}"
    return str(schema.get("type", "any value"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring as one line, and the description of each parameter under ``Args:``."""
    text = inspect.getdoc(function)
    if not text:
        raise ValueError(f"tool {function.__name__!r} needs a docstring: the policy reads its first paragraph")
    description = " ".join(text.split("\n\n")[0].split())
    notes: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    if section:
        for entry in re.split(r"\n(?=[ \t]{1,4}\S)", section[1].rstrip()):
            name, _, note = entry.strip().partition(":")
            notes[name.split("(")[0].strip()] = " ".join(note.split())
    return description, notes


def _schema_of(function: Callable[..., Any], notes: Mapping[str, str]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"parameter {parameter.name!r} of tool {function.__name__!r}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{where} must be an ordinary one that can be passed by name, found {parameter}")
        if parameter.name not in hints:
            raise TypeError(f"{where} needs an annotation, such as str or int")
        properties[parameter.name] = _schema_of_type(hints[parameter.name], where)
        if parameter.name in notes:
            properties[parameter.name]["description"] = notes[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required}


def _schema_of_type(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    for kind, (*_, python_type) in _JSON_TYPES.items():
        if hint is python_type:
            return {"type": kind}
    if origin is list:
        return {"type": "array", "items": _schema_of_type(arguments[0], where)}
    if origin is dict:
        return {"type": "object"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Union or origin is types.UnionType:
        return {"anyOf": [_schema_of_type(argument, where) for argument in arguments]}
    expected = "str, int, float, bool, list, dict, Literal or a union of them"
    raise TypeError(f"{where} must be annotated with {expected}, found {hint!r}")
