"""``@tool``, the check of arguments, and whose doing a failure is."""

import copy
import pickle
import sys
from typing import Literal

import pytest
from parts import divide, shout

from agent_envs.actions import Call, TagFormat
from agent_envs.faults import POLICY_FAULTS
from agent_envs.tool import FunctionTool, ToolError, ToolResult, check_arguments, tool


def test_a_function_becomes_a_tool_with_its_schema():
    assert divide.name == "divide"
    assert divide.description == "Divides two numbers."
    assert divide.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "What is divided."},
            "b": {"type": "integer", "description": "By what. A line that is long goes on here."},
            "exact": {"type": "boolean", "description": "Whether to keep the fraction."},
        },
        "required": ["a"],
    }
    assert divide(7, 2) == 3  # still the function


def test_it_runs():
    assert divide.run(a=7) == ToolResult("3")
    assert divide.run(a=7, b=2, exact=True) == ToolResult("3.5")
    assert shout.run(text="hi") == ToolResult("HI")


def test_a_tool_may_return_a_result_and_have_another_name():
    @tool(name="say")
    def function(text: str) -> ToolResult:
        """Says it."""
        return ToolResult(text, "killed")

    assert function.name == "say"
    assert function.run(text="x") == ToolResult("x", "killed")


TAKES = "divide takes a: integer, b: integer (optional), exact: boolean (optional); "


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "'a' is missing"),
        ({"a": "7"}, "'a' must be integer, found '7'"),
        ({"a": 1.5}, "'a' must be integer, found 1.5"),
        ({"a": True}, "'a' must be integer, found True"),
        ({"a": None}, "'a' must be integer, found None"),
        ({"a": 1, "exact": 1}, "'exact' must be boolean, found 1"),
        ({"a": 1, "c": 2}, "there is no 'c'"),
        ({"a": "x" * 100_000}, "'a' must be integer, found '" + "x" * 56 + "..."),
    ],
)
def test_wrong_arguments_are_a_policy_fault_that_says_what_was_expected(arguments, problem):
    assert divide.run(**arguments) == ToolResult(TAKES + problem, "bad_arguments")


def test_every_kind_of_annotation():
    @tool
    def many(names: list[str], table: dict[str, int], mode: Literal["a", "b"], share: float, note: str | None = None) -> str:
        """Takes many things."""
        return ""

    good = {"names": ["x"], "table": {"y": 1}, "mode": "a", "share": 1, "note": None}
    assert check_arguments(many, good) == ""
    assert check_arguments(many, {**good, "share": 0.5, "note": "n", "names": []}) == ""
    for wrong, message in [
        ({"names": ["x", 3]}, "'names[1]' must be string, found 3"),
        ({"names": "x"}, "'names' must be array of string"),
        ({"table": []}, "'table' must be object"),
        ({"mode": "c"}, "'mode' must be one of 'a', 'b'"),
        ({"share": True}, "'share' must be number"),
        ({"note": 5}, "'note' must be string or null"),
    ]:
        assert message in check_arguments(many, {**good, **wrong})


def test_a_tool_error_is_read_by_the_policy():
    assert divide.run(a=1, b=0) == ToolResult("cannot divide by zero", "error")


def test_any_other_exception_is_what_it_is_in_the_authors_own_test():
    @tool
    def fetch(city: str) -> str:
        """Asks a server."""
        raise ConnectionError("server down")

    with pytest.raises(ConnectionError, match="server down"):
        fetch.run(city="Paris")


def test_what_cannot_become_a_tool():
    def bare(x: int) -> int:
        return x

    def unannotated(x):
        """Something."""

    def starred(*x: int):
        """Something."""

    def odd(x: bytes):
        """Something."""

    with pytest.raises(ValueError, match="'bare' needs a docstring"):
        tool(bare)
    with pytest.raises(TypeError, match="parameter 'x' of tool 'unannotated' needs an annotation"):
        tool(unannotated)
    with pytest.raises(TypeError, match="passed by name"):
        tool(starred)
    with pytest.raises(TypeError, match=r"annotated with str, int, .* found <class 'bytes'>"):
        tool(odd)


def test_a_tool_of_a_module_pickles_and_is_its_own_copy():
    assert sys.modules[shout.__module__].shout is shout
    assert pickle.loads(pickle.dumps(shout)) is shout
    assert copy.deepcopy(shout) is shout
    assert shout.fork() is shout
    assert isinstance(shout, FunctionTool)


def test_a_result_has_a_known_fault():
    for fault in ("", *POLICY_FAULTS):
        assert ToolResult("x", fault).fault == fault
    with pytest.raises(ValueError, match="found 'oops'"):
        ToolResult("x", "oops")


def test_tool_errors_are_ordinary_exceptions():
    assert issubclass(ToolError, Exception)


def test_the_format_reads_a_sole_parameter_that_is_no_string_as_json():
    @tool
    def double(numbers: list[int]) -> str:
        """Doubles numbers."""
        return str([2 * number for number in numbers])

    move = TagFormat().parse("<double>[1, 2]</double>", (double,)).move
    assert move == Call("double", {"numbers": [1, 2]})
    assert double.run(**move.arguments).text == "[2, 4]"
