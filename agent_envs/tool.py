"""Tools: what an agent can call.

A tool has a name, a description, a JSON schema of its parameters and a ``run`` method. A tool with state also has
``reset``, ``fork`` or ``fresh``, and ``close``. ``@tool`` makes one out of a documented, typed function; a class takes what
it does not say itself from its docstring and the types of its ``run``.

Whose doing a failure is, is decided by one rule:

- arguments that don't fit the schema never reach the tool: the policy reads what it takes and what was wrong;
- ``ToolError``, and any exception that the tool lists in ``policy_errors``, is the agent's own doing: the policy reads it;
- every other exception means that the tool itself is broken. In the author's own test it is what it is, with its
  traceback; an environment raises an ``EnvironmentFault`` with that exception as its cause, and nothing is scored.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from agent_envs.faults import POLICY_FAULTS
from agent_envs.schema import description_of, mismatch, schema_of, signature
from agent_envs.task import Task

Fidelity = Literal["exact", "replay", "none"]


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
    """One tool, as an environment sees it. What a class does not say itself comes from its docstring and ``run``'s types.

    Attributes:
        name: What the policy calls it by; letters, digits and underscores. Default: the class's name in small letters.
        description: One or two sentences for the policy. Default: the first paragraph of the class's docstring.
        parameters: JSON schema (``{"type": "object", "properties": ..., "required": [...]}``) of ``run``'s arguments.
            Default: from the types of ``run`` and the ``Args`` of its docstring.
        fidelity: How a copy is made in the middle of an episode: ``"exact"`` by ``fork``, ``"replay"`` by running the
            episode's calls again in a ``fresh`` tool, ``"none"`` not at all.
        policy_errors: Exceptions out of ``run`` that are the agent's own doing, beside ``ToolError``.
        timeout: Seconds that one call may take, where the tool has such a limit.
        examples: Arguments of calls that can be made at any time of an episode; checks make these calls.
        endless: Arguments of a call that runs until its time limit; checks make this call too.

    Example:
        >>> class Counter(Tool):
        ...     '''Counts what it is given.'''
        ...
        ...     def reset(self, task, rng):
        ...         self.total = 0
        ...
        ...     def run(self, amount: int) -> str:
        ...         self.total += amount
        ...         return str(self.total)
        ...
        ...     def fork(self):
        ...         return copy.copy(self)
        >>> Counter.name, Counter.description, Counter.parameters["properties"]
        ('counter', 'Counts what it is given.', {'amount': {'type': 'integer'}})
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    fidelity: Fidelity = "exact"
    policy_errors: tuple[type[Exception], ...] = ()
    timeout: float | None = None
    examples: Sequence[Mapping[str, Any]] = ()
    endless: Mapping[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "run" not in cls.__dict__:
            return
        if not hasattr(cls, "name"):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if not hasattr(cls, "description"):
            cls.description = description_of(cls.name, cls.__doc__)
        takes_any = any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(cls.run).parameters.values()
        )
        if not hasattr(cls, "parameters") and not takes_any:  # such a class has the parameters of each instance
            cls.parameters = schema_of(cls.run, f"tool {cls.name!r}")

    @abstractmethod
    def run(self, *args: Any, **arguments: Any) -> ToolResult | str:
        """Runs one call. Declare the parameters that the schema names; ``*args`` only says that any may be declared.

        Args:
            arguments: Values that fit ``parameters``, by name; an environment checks them first.

        Returns:
            What the policy reads. What is the agent's own doing is a fault in here, or a ``ToolError``.

        Raises:
            ToolError: The agent's own doing.
            Exception: Anything else says that the tool is broken, unless ``policy_errors`` lists it.
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
        policy_errors: Exceptions of the function that are the agent's own doing, beside ``ToolError``.
        examples: Arguments of calls that can be made at any time; checks make these calls.

    Raises:
        TypeError: A parameter has no annotation, or one that has no JSON schema.
        ValueError: There is no docstring.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str = "",
        policy_errors: tuple[type[Exception], ...] = (),
        examples: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.name = name or function.__name__
        self.description = description_of(self.name, function.__doc__)
        self.parameters = schema_of(function, f"tool {self.name!r}")
        self.policy_errors = policy_errors
        self.examples = examples

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function itself."""
        return self._function(*args, **kwargs)

    def run(self, *args: Any, **arguments: Any) -> ToolResult:
        """Runs the function on arguments by name. A string is what the policy reads, other values as ``str`` gives them.

        Returns:
            The result; ``bad_arguments`` if they don't fit, ``error`` if the failure is the agent's own doing.

        Raises:
            Exception: Whatever else the function raises.
        """
        message = check_arguments(self, arguments)
        if message:
            return ToolResult(message, "bad_arguments")
        return _outcome(self, self._function, arguments)

    def __reduce__(self) -> str:
        # The decorated name stands for the tool, so pickle finds the tool under it and would refuse the bare function.
        return str(self.__qualname__)  # type: ignore[attr-defined]


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...


@overload
def tool(
    *,
    name: str = "",
    policy_errors: tuple[type[Exception], ...] = (),
    examples: Sequence[Mapping[str, Any]] = (),
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(function: Callable[..., Any] | None = None, /, **settings: Any) -> FunctionTool | Callable[..., FunctionTool]:
    """Makes a tool out of a documented, typed function.

    The JSON schema comes from the annotations (str, int, float, bool, list, dict, Literal, and ``X | None``) and the
    ``Args`` of the docstring; a parameter with a default is optional. ``name``, ``policy_errors`` and ``examples`` are those
    of `FunctionTool`.

    Example:
        >>> @tool(policy_errors=(ZeroDivisionError,))
        ... def divide(a: int, b: int = 1) -> float:
        ...     '''Divides two numbers.
        ...
        ...     Args:
        ...         a: What is divided.
        ...         b: By what.
        ...     '''
        ...     return a / b
        >>> divide.run(a=3, b=2)
        ToolResult(text='1.5', fault='')
        >>> divide.run(a="two").text
        "divide takes a: integer, b: integer (optional); 'a' must be integer, found 'two'"
        >>> divide.run(a=1, b=0)
        ToolResult(text='ZeroDivisionError: division by zero', fault='error')
    """
    return functools.partial(FunctionTool, **settings) if function is None else FunctionTool(function)


def check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Whether arguments fit a tool's schema.

    Returns:
        "" if they do, else a line for the policy: what the tool takes, and what was wrong.
    """
    problem = mismatch(tool.parameters, arguments)
    return f"{tool.name} takes {signature(tool.parameters)}; {problem}" if problem else ""


def call_tool(tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
    """Runs a tool on arguments that fit its schema, on a copy of them.

    Returns:
        What the policy reads; a failure that is the agent's own doing has fault ``error``.

    Raises:
        Exception: The tool is broken.
    """
    own = {name: value if isinstance(value, str) else copy.deepcopy(value) for name, value in arguments.items()}
    return _outcome(tool, tool.run, own)


def replay_difference(first: ToolResult, again: ToolResult) -> str:
    """How the result of a call differs where the call was made again, in a few words; "" if it does not.

    What was said before a time limit or a kill depends on the clock; that the call ended so is what matters.
    """
    if again == first or (again.fault == first.fault and again.fault in ("timeout", "killed")):
        return ""
    return f"first {_excerpt(first)}, then {_excerpt(again)}"


def _excerpt(result: ToolResult) -> str:
    text = repr(result.text)
    return text if len(text) <= 80 else text[:77] + "..."


def _outcome(tool: Tool, function: Callable[..., Any], arguments: Mapping[str, Any]) -> ToolResult:
    try:
        value = function(**arguments)
    except ToolError as error:
        return ToolResult(str(error), "error")
    except tool.policy_errors as error:
        return ToolResult(f"{type(error).__name__}: {error}", "error")
    return value if isinstance(value, ToolResult) else ToolResult(str(value))
