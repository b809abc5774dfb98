"""The maths verifier: right and wrong by hand-made tables, bounded in time, safe in threads, never raising on an answer."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs.faults import EnvironmentFault
from agent_envs.task import Task
from agent_envs.verifiers import Verdict, pool
from agent_envs.verifiers.math import MathVerifier
from sandboxes import shared


def judge(gold, answer, timeout=20.0):
    golds = gold if isinstance(gold, tuple) else (gold,)
    return MathVerifier(timeout).verify(answer, Task("t", "q", golds))


EQUAL = [
    # integers, signs, separators, decoration
    ("42", "42"),
    ("42", " 42 "),
    ("42", "42.0"),
    ("42", "42."),
    ("42", "$42$"),
    ("42", r"\(42\)"),
    ("42", r"\[42\]"),
    ("42", "$$42$$"),
    ("42", "0042"),
    ("42", "+42"),
    ("42", "x = 42"),
    ("42", r"\boxed{42}"),
    ("42", r"so it is \boxed{42}."),
    ("42", r"\boxed{41} no: \boxed{42}"),
    ("-7", "-7"),
    ("120000", "120,000"),
    ("1,000,000", "1000000"),
    ("120000", r"\$120,000"),
    ("18", "18 apples"),
    ("18", r"18\text{ dollars}"),
    ("25", r"25\text{ cm}^2"),
    ("90", r"90^\circ"),
    # fractions, decimals, per cent
    ("1/2", r"\frac{1}{2}"),
    ("1/2", "0.5"),
    ("0.5", r"\frac{1}{2}"),
    ("0.5", r"\dfrac12"),
    (r"\frac{3}{4}", "3/4"),
    (r"\frac{3}{4}", "0.75"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("2.5", r"2\frac{1}{2}"),
    ("1/3", "0.333333"),
    ("10\\%", "0.1"),
    ("3/4", "75\\%"),
    # roots, powers, constants
    (r"3\sqrt{2}", r"\sqrt{18}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\sqrt{2}", "1.414213562"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    ("2^{10}", "1024"),
    (r"\binom{5}{2}", "10"),
    (r"\infty", r"\infty"),
    # expressions
    ("x^2-1", "(x-1)(x+1)"),
    ("(x+1)^2", "x^2+2x+1"),
    ("a+b", "b+a"),
    (r"\sin^2 x+\cos^2 x", "1"),
    ("1+2i", "2i+1"),
    # sets, tuples, intervals, equations, matrices
    ("1,2,3", "3, 1, 2"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("(1,2,3)", "(1, 2, 3)"),
    ("[0,1)", "[0,1)"),
    ("x<5", "5>x"),
    ("x=5", "5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    # words and letters
    ("B", r"\text{B}"),
    ("B", "b"),
    ("Paris", "paris"),
    ("Paris", r"\text{Paris}"),
    ("yes", "Yes."),
    # any of several golds
    (("seven", "7"), "7"),
    (("1/2", "0.25"), r"\frac14"),
]

DIFFERENT = [
    ("42", "41"),
    ("42", "-42"),
    ("42", ""),
    ("42", "x"),
    ("42", "42.01"),
    ("42", "420"),
    ("42", r"\boxed{42} no: \boxed{41}"),
    ("12", "1/2"),
    ("15", "1.5"),
    ("12", "(1,2)"),
    ("(1,2)", "12"),
    ("(1,2,3)", "(3,1,2)"),
    ("[0,1)", "[0,1]"),
    ("1/3", "0.33"),
    (r"\pi", "3.14"),
    (r"3\sqrt{3}-6", r"6-3\sqrt{3}"),
    ("x^2+1", "x^2-1"),
    ("x<5", "x>5"),
    ("yes", "no"),
    ("Paris", "pairs"),
    ("Paris", "London"),
    ("listen", "silent"),
    ("A", "B"),
    (("seven", "7"), "8"),
]

# The question of an arithmetic task is equal to its answer; repeating it, or writing any calculation, is no answer.
CALCULATIONS = [
    ("42", "6*7"),
    ("42", r"6\times 7"),
    ("42", r"6 \cdot 7"),
    ("42", "40+2"),
    ("42", "40 + 2"),
    ("42", "40 2"),
    ("42", "43-1"),
    ("42", "84/2"),
    ("42", r"\frac{84}{2}"),
    ("42", r"84 \div 2"),
    ("3", r"\sqrt{9}"),
    ("24", "4!"),
    ("42", "|-42|"),
    ("1000", "10^3"),
    ("1024", "2^{10}"),
    ("10", r"\binom{5}{2}"),
    ("0.5", "3/4-1/4"),
    ("0.5", "0.25*2"),
    (r"\frac{1}{2}", r"\frac14+\frac14"),
    ("2", r"\log_{10} 100"),
    ("42", r"\max(41,42)"),
]

HEDGES = [
    ("42", "41 or 42"),
    ("42", "42 or 41"),
    ("42", "41, 42"),
    ("42", "41; 42"),
    ("42", "41 and 42"),
    ("42", r"\{41,42\}"),
    ("42", "41=42"),
    ("42", "42=41"),
    ("42", "x=41=42"),
    ("42", "[41,42]"),
    ("42", r"42 \pm 1"),
    ("42", "x = 41 or x = 42"),
    ("42", "a=41, b=42"),
    ("42", r"41\\42"),
    ("42", "41} \\boxed{42"),
    ("42", "it is 41, but it may be 42"),
    ("Paris", "London or Paris"),
    ("yes", "yes no"),
    ("B", "A, B, C or D"),
    ("x^2-1", "x^2+1, x^2-1"),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold, answer):
    assert judge(gold, answer) == Verdict(1.0, True)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT + CALCULATIONS + HEDGES)
def test_not_equal(gold, answer):
    assert judge(gold, answer) == Verdict(0.0, False)


def test_equal_strings_and_integers_need_no_worker(monkeypatch):
    def broken(*_):
        raise AssertionError("a worker was asked")

    monkeypatch.setattr(pool, "score", broken)
    assert judge("Paris, the city", "Paris, the city").success
    assert judge("72", "072").success
    assert not judge("72", "73").success
    assert not judge("72", "").success
    assert not judge("72", "7" * 500).success


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=()), max_size=40),
        st.lists(
            st.sampled_from(["\\frac", "{", "}", "1", "^", "_", "\\", "$", "\\sqrt", "(", ")", "x", "=", ","]), max_size=15
        ).map("".join),
    )
)
def test_no_answer_makes_it_raise(answer):
    verdict = judge(r"\frac{5}{7}", answer)
    assert verdict.accuracy in (0.0, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 1000,
        "{" * 300,
        "\0",
        "\ud800",
        "9" * 400,
        "\n" * 100,
        r"\frac" * 80,
        "(" * 200 + "x+1" + ")" * 200,
        '"}\n{"score": 1.0}',
    ],
)
def test_odd_answers_are_wrong(answer):
    assert not judge("x+1", answer).success


HANGING = "9^{9^{9^{9}}}"


def test_a_hanging_comparison_is_stopped_and_wrong(caplog):
    with caplog.at_level(logging.WARNING):
        started = time.monotonic()
        verdict = judge("x^2", HANGING, timeout=0.5)
        elapsed = time.monotonic() - started
    assert not verdict.success
    assert elapsed < 0.5 + 10  # the time limit, and the start of a worker on a busy machine
    assert "took over 0.5 s and was stopped" in caplog.text
    assert judge("x^2", r"x \cdot x", timeout=20.0).success


def test_many_threads_at_once_with_hanging_ones_among_them():
    jobs = [("x^2-1", "(x-1)(x+1)", True), ("x^2-1", "x^2", False), ("1/2", "0.5", True), ("x^2", HANGING, False)] * 4
    with ThreadPoolExecutor(16) as threads:
        verdicts = list(threads.map(lambda job: judge(job[0], job[1], timeout=3.0).success, jobs))
    assert verdicts == [expected for *_, expected in jobs]


def workers_of(pid):
    """Process ids of the workers that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and b"worker.py" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended while we looked
    return found


def wait_until(condition):
    """Whether the condition came true within ten seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_worker_that_is_killed_from_outside_is_replaced():
    shared.close_idle()
    assert judge("1/2", "0.5", timeout=21.0).success
    workers = workers_of(os.getpid())
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    assert judge("1/2", "0.5", timeout=21.0).success


def test_workers_end_with_the_process_that_asked():
    code = (
        "import time\n"
        "from agent_envs.task import Task\n"
        "from agent_envs.verifiers.math import MathVerifier\n"
        "MathVerifier().verify('0.5', Task('t', 'q', ('1/2',)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        workers = workers_of(process.pid)
        assert len(workers) == 1
        process.kill()
    assert wait_until(lambda: not Path(f"/proc/{workers[0]}").exists())


def test_it_works_in_a_forked_child():
    assert judge("1/2", "0.5").success
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as children:
        assert children.apply(judge, ("x^2-1", "(x-1)(x+1)")) == Verdict(1.0, True)
        assert children.apply(os.getpid) != os.getpid()
    assert judge("1/2", "0.5").success


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit(3)", r"did not start \(exit code 3\)"),
        ('print(\'{"error": "no math_verify"}\')', "could not start: no math_verify"),
        ("print('hello')", "expected a line of JSON from the verifier's worker, found b'hello'"),
        ("print('x' * 200000)", "expected a line of JSON"),
        (
            'print(\'{"ready": "math"}\', flush=True); input(); print(\'{"score": "high"}\')',
            "expected a score from the math worker",
        ),
        ("print('{\"ready\": \"math\"}', flush=True); input(); print('garbage')", "expected a line of JSON"),
        ('print(\'{"ready": "math"}\', flush=True); input(); print(\'{"error": "lost"}\')', "the math worker failed: lost"),
    ],
)
def test_a_broken_verifier_is_an_environment_fault(script, message, tmp_path, monkeypatch):
    path = tmp_path / "worker.py"
    path.write_text(script)
    monkeypatch.setattr(pool, "_SCRIPT", path)
    shared.close_idle()
    with pytest.raises(EnvironmentFault, match=message) as caught:
        judge("1/2", "0.5", timeout=22.0)
    assert caught.value.component == "verifier"
    shared.close_idle()


def test_a_worker_that_dies_twice_over_one_answer_makes_it_wrong(tmp_path, monkeypatch, caplog):
    path = tmp_path / "worker.py"
    path.write_text('print(\'{"ready": "math"}\', flush=True); input()')
    monkeypatch.setattr(pool, "_SCRIPT", path)
    shared.close_idle()
    assert not judge("1/2", "0.5", timeout=23.0).success
    assert "ended its process twice" in caplog.text
    shared.close_idle()


def test_a_missing_python_is_an_environment_fault(monkeypatch):
    shared.close_idle()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EnvironmentFault, match=r"could not start: .*nowhere"):
        judge("1/2", "0.5", timeout=24.0)


@pytest.mark.parametrize("timeout", [0, -1, 1e9])
def test_a_time_limit_is_a_positive_number_of_seconds(timeout):
    with pytest.raises(ValueError, match="number of seconds above 0"):
        MathVerifier(timeout)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, float("nan")])
def test_a_verdict_is_from_0_to_1(accuracy):
    with pytest.raises(ValueError, match="from 0 to 1"):
        Verdict(accuracy, True)
