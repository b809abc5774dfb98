"""JSON schemas of tools: made from a function's types and docstring, and checked against what a policy wrote.

What is checked is what `schema_of` makes (types, enumerations, arrays, nested objects, alternatives), and the same keywords
in schemas from elsewhere; a keyword beyond these is left to the tool itself.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

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


def schema_of(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The JSON schema of a function's parameters, from its annotations and the ``Args`` of its docstring.

    Args:
        function: Takes str, int, float, bool, list, dict, Literal or unions of them; ``self`` is left out.
        where: What messages call it, such as ``"tool 'add'"``.

    Raises:
        TypeError: A parameter cannot be passed by name, has no annotation, or one that has no JSON schema.
    """
    notes = _parameter_notes(inspect.getdoc(function) or "")
    parameters = [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "self"]
    hints = _hints(function, [parameter.name for parameter in parameters], where)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in parameters:
        place = f"parameter {parameter.name!r} of {where}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{place} must be an ordinary one that can be passed by name, found {parameter}")
        if parameter.name not in hints:
            raise TypeError(f"{place} needs an annotation, such as str or int")
        properties[parameter.name] = _schema_of_type(hints[parameter.name], place)
        if parameter.name in notes:
            properties[parameter.name]["description"] = notes[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required}


def description_of(name: str, docstring: str | None) -> str:
    """The first paragraph of a tool's docstring as one line.

    Raises:
        ValueError: There is none.
    """
    if not docstring:
        raise ValueError(f"tool {name!r} needs a docstring: the policy reads its first paragraph")
    return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())


def mismatch(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Where arguments don't fit a schema; "" if they do."""
    return _object_mismatch(parameters, arguments, "")


def signature(parameters: Mapping[str, Any]) -> str:
    """The parameters of a schema as one line for the policy, such as ``a: integer, b: integer (optional)``."""
    required = parameters.get("required", ())
    properties: Mapping[str, Any] = parameters.get("properties", {})
    optional = {name: "" if name in required else " (optional)" for name in properties}
    takes = ", ".join(f"{name}: {_describe(schema)}{optional[name]}" for name, schema in properties.items())
    return takes or "no arguments"


def _object_mismatch(schema: Mapping[str, Any], value: Mapping[str, Any], where: str) -> str:
    """Of an object; what the schema does not name is refused at the top, and within an object only where it says so."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    if not schema.get("additionalProperties", bool(where)):
        for name in value:
            if name not in properties:
                return f"there is no {_short(where + name)}"
    for name, expected in properties.items():
        if name in value:
            if problem := _mismatch(expected, value[name], where + name):
                return problem
        elif name in schema.get("required", ()):
            return f"{where + name!r} is missing"
    return ""


def _mismatch(schema: Any, value: Any, where: str) -> str:
    if not isinstance(schema, Mapping):
        return ""
    if "anyOf" in schema:
        fits = any(not _mismatch(option, value, where) for option in schema["anyOf"])
    elif "enum" in schema:
        fits = any(value == option and type(value) is type(option) for option in schema["enum"])
    else:
        kinds = _kinds(schema)
        fits = not kinds or any(_is(value, kind) for kind in kinds)
    if not fits:
        return f"{where!r} must be {_describe(schema)}, found {_short(value)}"
    if isinstance(value, list) and "items" in schema:
        wrong_items = (_mismatch(schema["items"], item, f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, wrong_items), "")
    return _object_mismatch(schema, value, f"{where}.") if isinstance(value, dict) else ""


def _kinds(schema: Mapping[str, Any]) -> Sequence[str]:
    kind: str | Sequence[str] = schema.get("type", ())
    return (kind,) if isinstance(kind, str) else kind


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean" or kind not in _JSON_TYPES
    return isinstance(value, _JSON_TYPES.get(kind, (object,)))


def _describe(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any value"
    if "anyOf" in schema:
        return " or ".join(_describe(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array" and "items" in schema:
        return f"array of {_describe(schema['items'])}"
    return " or ".join(_kinds(schema)) or "any value"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parameter_notes(docstring: str) -> dict[str, str]:
    """The description of each parameter under ``Args:``."""
    notes: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    if section:
        for entry in re.split(r"\n(?=[ \t]{1,4}\S)", section[1].rstrip()):
            name, _, note = entry.strip().partition(":")
            notes[name.split("(")[0].strip()] = " ".join(note.split())
    return notes


def _hints(function: Callable[..., Any], names: Sequence[str], where: str) -> dict[str, Any]:
    """The parameters' types; what the function returns is not looked at, so its name need not be known here."""
    annotations = {name: hint for name, hint in inspect.get_annotations(function).items() if name in names}
    holder = types.SimpleNamespace(__annotations__=annotations)
    try:
        return typing.get_type_hints(holder, globalns=getattr(inspect.unwrap(function), "__globals__", {}))
    except NameError as error:
        raise TypeError(f"the annotations of {where} cannot be read ({error}): import the name in its module") from error


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
