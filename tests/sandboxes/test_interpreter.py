"""What a call means: the contract of `sandboxes.python.Interpreter`."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxes.faults import SandboxFault
from sandboxes.python import Interpreter, Limits, open_interpreter


@pytest.fixture(scope="module")
def shared_python() -> Iterator[Interpreter]:
    with open_interpreter() as python:
        yield python


@pytest.fixture
def python(shared_python: Interpreter) -> Interpreter:
    shared_python.reset(seed=0)
    return shared_python


def test_state_stays_from_call_to_call(python: Interpreter) -> None:
    python.run("import math\nx = 6\ndef f(): return x * 7")
    done = python.run("print(f(), math.pi)", timeout=5)
    assert (done.stdout, done.error, done.status) == (f"42 {math.pi}\n", "", "ok")
    assert not done.truncated
    assert not done.state_lost
    assert 0 < done.seconds < 5


def test_definitions_are_those_of_a_main_module(python: Interpreter) -> None:
    code = (
        "import dataclasses, pickle, typing\n@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "print(pickle.loads(pickle.dumps(Point(1))), Point.__module__, __name__)"
    )
    assert python.run(code).stdout == "Point(x=1) __main__ __main__\n"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("6 * 7", "42\n"),
        ("x = 1", ""),
        ("None", ""),
        ("x = 3\nx + 1", "4\n"),
        ("print('a')\n'b'", "a\n'b'\n"),
        ("1;", "1\n"),
        ("", ""),
        ("# nothing", ""),
        ("if True:\n    5", ""),
        ("import sympy\nsympy.Symbol('a') ** 2", "a**2\n"),
    ],
)
def test_display_shows_a_last_bare_expression(python: Interpreter, code: str, shown: str) -> None:
    assert python.run(code, display=True).stdout == shown
    assert python.run("2 + 2").stdout == ""


def test_output_and_errors_keep_their_order(python: Interpreter) -> None:
    code = (
        "import os, subprocess, sys\nprint(1)\nprint(2, file=sys.stderr)\nos.write(1, b'3\\n')\nprint(4, end='')\n"
        "print(' 5', file=sys.stderr)\nsubprocess.run([sys.executable, '-c', 'print(6)'])\nprint(7)"
    )
    assert python.run(code, timeout=20).stdout == "1\n2\n3\n4 5\n6\n7\n"


def test_the_traceback_has_the_frames_of_the_code_alone(python: Interpreter) -> None:
    python.run("import functools\ndef half(n):\n    return functools.reduce(lambda a, b: a / b, [n, 0])")
    done = python.run("y = 1\nhalf(y)")
    lines = done.error.splitlines()
    assert done.status == "error"
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "<cell 2>", line 2, in <module>'
    assert lines[2] == "    half(y)"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert [line for line in lines if line.startswith("  File") and "<cell" not in line] == []


def test_causes_are_shown_too(python: Interpreter) -> None:
    done = python.run("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")
    assert "ZeroDivisionError: division by zero" in done.error
    assert "direct cause" in done.error
    assert done.error.endswith("KeyError: 'k'")


def test_library_frames_are_left_out(python: Interpreter) -> None:
    done = python.run("import json\njson.loads('{')")
    assert "json/decoder" not in done.error
    assert "JSONDecodeError" in done.error


@pytest.mark.parametrize("code", ["x = = 1", "def f(:", "return 1", "'unclosed", "\tx\n y"])
def test_what_does_not_compile_is_an_error(python: Interpreter, code: str) -> None:
    done = python.run(code)
    assert done.status == "error"
    assert 'File "<cell 1>"' in done.error
    assert "Error: " in done.error


def test_recursion_is_shown_in_short(python: Interpreter) -> None:
    done = python.run("def f(n):\n    return f(n + 1)\nf(0)")
    assert done.error.endswith("RecursionError: maximum recursion depth exceeded")
    assert len(done.error.splitlines()) < 60


def test_output_is_cut_at_a_whole_character() -> None:
    with open_interpreter(limits=Limits(output_bytes=10)) as python:
        done = python.run("print('a' + 'é€😀' * 9)")
        assert done.truncated
        assert done.stdout == "aé€😀"
        assert python.run("print('x' * 9)").stdout == "x" * 9 + "\n"
        assert not python.run("print('x' * 9)").truncated
        assert python.run("print('x' * 10)").truncated


def test_code_of_any_length(python: Interpreter) -> None:
    assert python.run(f"x = '{'é' * 2_000_000}'\nprint(len(x))", timeout=20).stdout == "2000000\n"


def test_seeds(python: Interpreter) -> None:
    draw = "import random, numpy\nprint(random.random(), numpy.random.rand(), hash('a'), id(object()))"
    python.reset(seed=7)
    first = python.run(draw).stdout
    python.reset(seed=7)
    assert python.run(draw).stdout == first
    python.reset(seed=8)
    assert python.run(draw).stdout.split()[:2] != first.split()[:2]
    with open_interpreter(seed=7) as other:
        assert other.run(draw).stdout.split()[:3] == first.split()[:3]


def test_a_seed_is_that_of_plain_python(python: Interpreter) -> None:
    import random

    python.reset(seed=5)
    assert python.run("import random; print(random.random())").stdout == f"{random.Random(5).random()}\n"


def test_reset_starts_afresh(python: Interpreter) -> None:
    python.run("import os\nx = 1\nos.makedirs('a/b'); open('a/b/c', 'w').close()")
    python.reset()
    assert python.run("import os\nprint(os.listdir('.'), 'x' in globals())").stdout == "[] False\n"


def test_files_can_be_written_and_imported(python: Interpreter) -> None:
    python.run("import tempfile\nopen('helper.py', 'w').write('value = 42')")
    assert python.run("import helper; print(helper.value)").stdout == "42\n"
    assert python.run("with tempfile.NamedTemporaryFile('w+') as f: print(f.write('abc'))").stdout == "3\n"


def test_what_agents_use_works(python: Interpreter) -> None:
    code = """
import asyncio, collections, concurrent.futures, datetime, decimal, fractions, itertools, json, math, multiprocessing, os
import random, re, sqlite3, statistics, string, subprocess, sys, threading, time, zoneinfo
import numpy as np, sympy
async def twice(n):
    await asyncio.sleep(0)
    return 2 * n
print(asyncio.run(twice(21)))
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(lambda n: n * n, range(10))))
x = sympy.Symbol('x')
print(np.linalg.det(np.array([[1.0, 2], [3, 4]])).round(6), sympy.integrate(x**2, (x, 0, 3)))
print(subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout.strip())
process = multiprocessing.get_context('fork').Process(target=print, args=('child',))
process.start(); process.join()
print(datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).isoformat(), os.cpu_count() > 0)
print(sqlite3.connect(':memory:').execute('select 1 + 1').fetchone()[0])
"""
    done = python.run(code, timeout=30)
    assert done.error == ""
    assert done.stdout.splitlines() == ["42", "285", "-2.0 9", "42", "child", "2024-01-01T00:00:00+01:00 True", "2"]


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "1", True, 10**400])
def test_a_bad_timeout_is_refused(python: Interpreter, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
        python.run("1", timeout=timeout)


def test_code_must_be_text(python: Interpreter) -> None:
    with pytest.raises(TypeError, match="string of Python, found bytes"):
        python.run(b"1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_bytes": 1},
        {"processes": 0},
        {"open_files": 10**6},
        {"timeout": 0},
        {"output_bytes": -1},
        {"file_bytes": 1.5},
    ],
)
def test_limits_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{next(iter(wrong))} must be"):
        Limits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_a_bad_seed_is_refused(python: Interpreter, seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number"):
        python.reset(seed=seed)


def test_the_default_timeout_is_the_limits_own() -> None:
    with open_interpreter(limits=Limits(timeout=0.2)) as python:
        assert python.run("while True: pass").status == "timeout"


def test_the_description_is_one_line(python: Interpreter) -> None:
    protection = python.describe()
    assert protection.network != "open"
    assert "\n" not in str(protection)
    assert protection.network in str(protection)


def test_faults_pickle() -> None:
    fault = pickle.loads(pickle.dumps(SandboxFault("gone", retryable=True)))
    assert (str(fault), fault.retryable) == ("gone", True)


NAMES = st.sampled_from("abc")
VALUES = st.one_of(st.integers(-9, 9).map(str), st.sampled_from(["[]", "'t'", "None", "1.5"]), NAMES)
STATEMENTS = st.one_of(
    st.builds("{} = {}".format, NAMES, VALUES),
    st.builds("{} = [{}, {}]".format, NAMES, VALUES, VALUES),
    st.builds("{} += {}".format, NAMES, VALUES),
    st.builds("print({}, {})".format, NAMES, VALUES),
    st.builds("del {}".format, NAMES),
    st.builds("def {}(n={}):\n    return [n, {}]".format, NAMES, VALUES, NAMES),
    st.builds("print({}({}))".format, NAMES, VALUES),
    st.builds("for {} in range({}):\n    print({})".format, NAMES, st.integers(0, 3), NAMES),
    st.builds("try:\n    {}.append({})\nexcept Exception as {}:\n    print(type({}))".format, NAMES, VALUES, NAMES, NAMES),
    st.builds("class {}:\n    {} = {}".format, NAMES, NAMES, VALUES),
    st.builds("global {}\n{} = {}".format, NAMES, NAMES, VALUES),
)
PROGRAMS = st.lists(st.lists(STATEMENTS, min_size=1, max_size=4).map("\n".join), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=PROGRAMS)
def test_calls_are_an_exec_in_one_namespace(shared_python: Interpreter, calls: list[str]) -> None:
    shared_python.reset()
    namespace: dict[str, object] = {"__name__": "__main__"}
    for call in calls:
        expected, output = "ok", io.StringIO()
        last = ""
        with contextlib.redirect_stdout(output):
            try:
                exec(compile(call, "<cell>", "exec", dont_inherit=True), namespace)
            except Exception as problem:
                expected, last = "error", type(problem).__name__
        done = shared_python.run(call)
        assert done.status == expected
        assert last in done.error
        if "object at 0x" not in output.getvalue() and "function" not in output.getvalue():
            assert done.stdout == output.getvalue()


def test_files_move_between_folders(python: Interpreter) -> None:
    move = "import os\nos.mkdir('a'); os.mkdir('b'); open('a/f', 'w').close(); os.rename('a/f', 'b/g'); os.link('b/g', 'h')"
    assert python.run(move).error == ""
    assert python.run("print(os.listdir('b'), os.stat('h').st_nlink)").stdout == "['g'] 2\n"
