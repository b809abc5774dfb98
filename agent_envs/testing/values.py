"""Values that fit a JSON schema, and values that almost do: the arguments of tool calls."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

_MOST = 3  # items of an array or an object where the schema does not ask for more; recursive ones end soon

JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
"""Any JSON value."""


def values(schema: Mapping[str, Any], strings: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Values that fit a schema, as far as its types, enumerations, alternatives, references, limits and examples say.

    Args:
        schema: JSON schema; a keyword beyond these is left out of account.
        strings: What strings are drawn from where the schema does not limit their length.
    """
    return _Reader(schema, strings).values(schema)


@st.composite
def wrong_arguments(draw: st.DrawFn, schema: Mapping[str, Any], strings: st.SearchStrategy[str]) -> dict[str, Any]:
    """Arguments of a tool with one thing wrong: one is missing, one too many, or one is any JSON value.

    Args:
        draw: Hypothesis's own.
        schema: JSON schema of the tool's parameters, an object.
        strings: As for `values`.
    """
    arguments: dict[str, Any] = copy.deepcopy(draw(values(schema, strings)))
    how = draw(st.sampled_from(("missing", "unknown", "other")))
    if how == "unknown" or not arguments:
        arguments[draw(st.sampled_from(("argument", "self", "", "0")))] = draw(JSON)
        return arguments
    name = draw(st.sampled_from(sorted(arguments)))
    if how == "missing":
        del arguments[name]
    else:
        arguments[name] = draw(JSON)
    return arguments


class _Reader:
    """Reads one schema; ``$ref`` is looked up in the whole of it, and may be recursive."""

    def __init__(self, root: Mapping[str, Any], strings: st.SearchStrategy[str]) -> None:
        self.root = root
        self.strings = strings
        self.named: dict[str, st.SearchStrategy[Any]] = {}

    def values(self, schema: Any) -> st.SearchStrategy[Any]:
        if not isinstance(schema, Mapping):
            return JSON
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.one_of([st.just(option) for option in schema["enum"]])
        for alternatives in ("anyOf", "oneOf"):
            if alternatives in schema:
                return st.one_of([self.values(option) for option in schema[alternatives]])
        if "allOf" in schema:
            merged = {name: value for part in schema["allOf"] for name, value in part.items()}
            return self.values({**{name: value for name, value in schema.items() if name != "allOf"}, **merged})
        kinds = schema.get("type", ())
        drawn = st.one_of([self._of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)] or [JSON])
        known = [*schema.get("examples", ()), *([schema["default"]] if "default" in schema else [])]
        return st.one_of(st.sampled_from(known), drawn) if known else drawn

    def _reference(self, pointer: str) -> st.SearchStrategy[Any]:
        if pointer not in self.named:
            found: Any = self.root
            for name in pointer.removeprefix("#").strip("/").split("/"):
                found = found.get(name, {}) if isinstance(found, Mapping) else {}
            self.named[pointer] = st.deferred(lambda: self.named[pointer + " read"])
            self.named[pointer + " read"] = self.values(found)
        return self.named[pointer]

    def _of_kind(self, kind: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        if kind == "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength")
            return st.text(min_size=least, max_size=most) if least or most is not None else self.strings
        if kind == "integer":
            least, most = _limits(schema)
            least = None if least is None else math.floor(least) + 1 if "exclusiveMinimum" in schema else math.ceil(least)
            most = None if most is None else math.ceil(most) - 1 if "exclusiveMaximum" in schema else math.floor(most)
            return st.integers(least, most)
        if kind == "number":
            open_below, open_above = "exclusiveMinimum" in schema, "exclusiveMaximum" in schema
            return st.floats(*_limits(schema), allow_nan=False, exclude_min=open_below, exclude_max=open_above).filter(
                math.isfinite
            )
        if kind == "boolean":
            return st.booleans()
        if kind == "null":
            return st.none()
        if kind == "array":
            fewest = schema.get("minItems", 0)
            most = min(schema.get("maxItems", max(fewest, _MOST)), max(fewest, _MOST))
            return st.lists(self.values(schema.get("items")), min_size=fewest, max_size=most)
        if kind == "object":
            return self._object(schema)
        return JSON

    def _object(self, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        properties, required = schema.get("properties"), schema.get("required", ())
        if not isinstance(properties, Mapping) or not properties:
            further = schema.get("additionalProperties")
            drawn = self.values(further) if isinstance(further, Mapping) else JSON
            return st.dictionaries(st.text(max_size=4), drawn, max_size=_MOST)
        fields = {name: self.values(field) for name, field in properties.items()}
        optional = {name: field for name, field in fields.items() if name not in required}
        return st.fixed_dictionaries({name: fields[name] for name in fields if name in required}, optional=optional)


def _limits(schema: Mapping[str, Any]) -> tuple[Any, Any]:
    """The least and the greatest number, whether or not it is one itself; None for no limit."""
    least = schema.get("exclusiveMinimum", schema.get("minimum"))
    return least, schema.get("exclusiveMaximum", schema.get("maximum"))
