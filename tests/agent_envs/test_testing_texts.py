"""Texts and values that the kit draws: whether what they are for comes up, and how they shrink."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from agent_envs.testing import texts
from agent_envs.testing.adversarial import mutations
from agent_envs.testing.literal import excerpt, literal, printable
from agent_envs.testing.values import values, wrong_arguments

DRAWN = settings(
    max_examples=1_000,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
UNTIL_FOUND = settings(DRAWN, max_examples=20_000)  # the rarest comes once in a few hundred; the first ends the search
SHRUNK = settings(UNTIL_FOUND, phases=[Phase.generate, Phase.shrink])


def tags(text: str) -> list[tuple[int, int]]:
    """How often each tag in the text is opened and closed."""
    return [(text.count(f"<{name}>"), text.count(f"</{name}>")) for name in set(re.findall(r"</?(\w+)>", text))]


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(lambda text: any("\ud800" <= c <= "\udfff" for c in text), id="lone surrogate"),
        pytest.param(lambda text: any("\ud800" <= c <= "\udfff" for c in text) and "<" in text, id="surrogate beside a tag"),
        pytest.param(lambda text: "\0" in text, id="NUL"),
        pytest.param(lambda text: "\x1b" in text, id="escape"),
        pytest.param(lambda text: "\r\n" in text, id="CRLF"),
        pytest.param(lambda text: "\u202e" in text, id="right to left"),
        pytest.param(lambda text: "\u200b" in text, id="zero width"),
        pytest.param(lambda text: any(ord(c) > 0xFFFF for c in text), id="astral"),
        pytest.param(lambda text: re.search(r"<\w+$", text), id="half-open tag"),
        pytest.param(lambda text: "<think><think>" in text, id="tags in tags"),
        pytest.param(lambda text: any(opened > closed > 0 for opened, closed in tags(text)), id="unclosed"),
        pytest.param(lambda text: any(closed > opened > 0 for opened, closed in tags(text)), id="closed too often"),
        pytest.param(lambda text: "<|im_start|>" in text, id="chat template"),
        pytest.param(lambda text: "[INST]" in text or "</s>" in text, id="other templates"),
        pytest.param(lambda text: '{"name": "' in text, id="half a JSON call"),
        pytest.param(lambda text: r"\boxed{\boxed{" in text, id="boxes in boxes"),
        pytest.param(
            lambda text: text.startswith(("<" * 5_000, "<think>" * 5_000, r"\boxed{" * 5_000)), id="5,000 openings"
        ),
        pytest.param(lambda text: max(map(text.count, ("[", '{"a":'))) > 5_000, id="JSON that is too deep"),
        pytest.param(lambda text: len(text) > 90_000, id="90,000 characters"),
        pytest.param(lambda text: "<mine>" in text, id="a marker of its own"),
    ],
)
def test_texts_hold_whatever_breaks_parsers(wanted: Callable[[str], bool]) -> None:
    assert wanted(find(texts(["<mine>"]), wanted, settings=UNTIL_FOUND))


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_texts_shrink_to_short_and_simple_ones() -> None:
    assert find(texts(), lambda text: True, settings=SHRUNK) == ""
    lone = find(texts(), lambda text: any("\ud800" <= c <= "\udfff" for c in text), settings=SHRUNK)
    assert len(lone) < 20, "it stands alone, or in a single pair of tags"
    long = find(texts(), lambda text: len(text) > 50_000, settings=SHRUNK)
    assert len(long) < 52_000
    assert len(literal(long)) < 100, "a long text is a repetition, so that a line to reproduce it is short"


def test_mutations_of_a_call_are_almost_the_call() -> None:
    call = "<python>print(1)</python>"
    seen: set[str] = set()

    @settings(DRAWN, max_examples=300)
    @given(mutations(st.just(call), st.just("<think>")))
    def collect(text: str) -> None:
        seen.add(text)

    collect()
    assert {"print(1)</python>", "<python>print(1)", "<python><python>print(1)</python>", "<pyth"} <= seen
    assert {"<python><think>print(1)</python>", "print(1)</python><python>"} <= seen


@settings(DRAWN, max_examples=300)
@given(
    st.one_of(texts(), st.text(), st.builds(lambda a, n, b: a * n + b, st.text(max_size=70), st.integers(0, 900), st.text()))
)
def test_a_literal_is_the_text(text: str) -> None:
    assert eval(literal(text)) == text
    assert printable(literal(text)) == literal(text)


def test_literals_are_short_and_excerpts_too() -> None:
    assert literal("ab" * 50_000 + "!") == "'ab' * 50000 + '!'"
    assert literal("x" + "<think>" * 9_000) == "'x' + '<think>' * 9000"
    assert literal("short " * 3) == repr("short " * 3)
    scattered = "".join(chr(0x4E00 + i) for i in range(5_000))
    assert len(excerpt(scattered)) < 500
    assert excerpt(scattered).endswith("(5000 characters)")


def test_what_is_printed_holds_nothing_that_a_terminal_acts_on() -> None:
    assert printable("a\x1b[2J\n\ud800\u202eé") == "a\\x1b[2J\n\\ud800\\u202eé"


SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "types": {
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "share": {"type": "number"},
            "really": {"type": "boolean"},
            "nothing": {"type": "null"},
        },
        "required": ["text", "count"],
    },
    "limits": {
        "properties": {
            "word": {"type": "string", "minLength": 2, "maxLength": 5},
            "count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9.5},
            "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "pair": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        },
        "required": ["word", "count", "share", "pair"],
    },
    "choices": {
        "properties": {
            "mode": {"enum": ["a", "b", 3, None]},
            "unit": {"const": "kg"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
            "both": {"allOf": [{"type": "object"}, {"properties": {"x": {"type": "integer"}}, "required": ["x"]}]},
            "several": {"type": ["integer", "null"], "default": 7},
        },
        "required": ["mode", "unit", "either", "both", "several"],
    },
    "nested": {
        "properties": {
            "filter": {
                "type": "object",
                "properties": {
                    "names": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}}
                },
                "required": ["names"],
            },
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "required": ["filter"],
    },
    "recursive": {
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
                },
                "required": ["label"],
            }
        },
        "properties": {"tree": {"$ref": "#/$defs/Tree"}},
        "required": ["tree"],
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_values_fit_their_schema_by_another_validator(name: str) -> None:
    schema = {"type": "object", **SCHEMAS[name]}
    validator = jsonschema.Draft202012Validator(schema)
    drawn: list[Any] = []

    @settings(DRAWN, max_examples=150)
    @given(values(schema, st.text(max_size=5)))
    def fits(value: Any) -> None:
        validator.validate(value)
        json.dumps(value)
        drawn.append(value)

    fits()
    assert len({repr(value) for value in drawn}) > 20
    optional = set(schema["properties"]) - set(schema["required"])
    assert all(any(field in value for value in drawn) and any(field not in value for value in drawn) for field in optional)


def test_wrong_arguments_are_mostly_wrong_and_each_in_one_way() -> None:
    schema = {"type": "object", "additionalProperties": False, **SCHEMAS["types"]}
    validator = jsonschema.Draft202012Validator(schema)
    wrong: list[str] = []
    tried = 0

    @settings(DRAWN, max_examples=300)
    @given(wrong_arguments(schema, st.text(max_size=3)))
    def collect(arguments: dict[str, Any]) -> None:
        nonlocal tried
        tried += 1
        wrong.extend(error.validator for error in validator.iter_errors(arguments))

    collect()
    assert len(wrong) > tried / 2
    assert {"required", "additionalProperties", "type"} == set(wrong)
