"""Copies of a live interpreter: exact, independent, and bounded, whatever the backend."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxes.faults import SandboxFault
from sandboxes.python import ForkRefused, Interpreter, Limits

Open = Callable[..., Interpreter]


@pytest.fixture
def python(open_one: Open) -> Iterator[Interpreter]:
    with open_one() as interpreter:
        yield interpreter


def says(python: Interpreter, code: str, timeout: float = 10.0) -> str:
    """What code prints that must not fail."""
    done = python.run(code, timeout=timeout, display=True)
    assert (done.status, done.error) == ("ok", "")
    return done.stdout


# --- exact

SETUPS = {
    "variables": ("x = [1, {'a': (2, 3)}]; y = x", "x[0] += 1; x is y, x"),
    "closures": (
        "def count():\n    n = 0\n    def up():\n        nonlocal n; n += 1; return n\n    return up\nc = count(); c()",
        "c()",
    ),
    "generators": ("g = (n * n for n in range(9)); next(g); next(g)", "next(g)"),
    "modules": ("import fractions as f; f.extra = 7", "f.extra, f.Fraction(1, 3) + 1"),
    "classes": ("class P:\n    count = 0\n    def __init__(self): P.count += 1\np = P()", "P(); P.count, type(p) is P"),
    "the random generators": (
        "import random, numpy\nrandom.random(); numpy.random.rand(); rng = numpy.random.default_rng(3)",
        "random.random(), float(numpy.random.rand()), float(rng.random())",
    ),
    "unseeded random numbers": ("import os; s = os.urandom(9)", "s"),
    "addresses": ("o = object()", "id(o), sorted({object() for _ in range(3)}, key=id) is None"),
    "a seed for what numpy draws first": ("1", "import numpy; float(numpy.random.rand())"),
    "an open file to read": ("_ = open('f', 'w').write('abcdef'); f = open('f'); _ = f.read(2)", "f.read(2), f.tell()"),
    "an open file to write": (
        "f = open('f', 'w'); _ = f.write('not yet on disk')",
        "_ = f.write('!'); f.flush(); open('f').read()",
    ),
    "an open file to append to": (
        "import os; fd = os.open('f', os.O_CREAT | os.O_WRONLY | os.O_APPEND); os.write(fd, b'ab')",
        "os.lseek(fd, 0, 0); os.write(fd, b'c'); open('f').read()",
    ),
    "descriptors of one opening": (
        "import os; a = os.open('f', os.O_CREAT | os.O_RDWR); os.write(a, b'abcdef'); os.lseek(a, 1, 0); b = os.dup(a)\n"
        "c = os.open('f', os.O_RDONLY)",
        "os.read(a, 2), os.read(b, 2), os.read(c, 2)",
    ),
    "a file without a name": (
        "import tempfile; t = tempfile.TemporaryFile(); _ = t.write(b'abc'); t.flush(); t.seek(1)",
        "t.read(1), t.tell()",
    ),
    "a temporary folder": (
        "import tempfile, os; d = tempfile.mkdtemp(); name = os.path.relpath(d); open(name + '/x', 'w').close()",
        "os.listdir(name), os.path.dirname(tempfile.mkdtemp()) == os.getcwd()",
    ),
    "folders and links": (
        "import os; os.makedirs('a/b'); _ = open('a/b/f', 'w').write('x'); os.symlink('b/f', 'a/l'); os.link('a/b/f', 'h')\n"
        "os.symlink('nowhere', 'dangling'); os.mkfifo('pipe')",
        "open('a/l').read(), os.stat('h').st_nlink, os.path.samefile('h', 'a/b/f'), os.readlink('dangling')",
    ),
    "permissions and times": (
        "import os; open('f', 'w').close(); os.mkdir('d'); open('d/g', 'w').close()\n"
        "os.chmod('d/g', 0o600); os.chmod('f', 0); os.chmod('d', 0o311); os.utime('f', ns=(10**18, 10**18 + 1))",
        "s = os.stat('f'); oct(s.st_mode), s.st_mtime_ns, oct(os.stat('d').st_mode), oct(os.stat('d/g').st_mode)",
    ),
    "a file with holes": (
        "import os; f = open('f', 'wb'); f.seek(50_000_000); f.write(b'end'); f.close()\n"
        "g = open('g', 'wb'); g.truncate(60_000_000); g.close()",
        "os.stat('f').st_size, os.stat('g').st_size, os.stat('f').st_blocks < 100, open('f', 'rb').read()[-4:]",
    ),
    "the current folder": (
        "import os; os.makedirs('a/b'); os.chdir('a/b'); open('f', 'w').close()",
        "os.listdir('.'), os.listdir('../..')",
    ),
    "an open folder": (
        "import os; os.mkdir('d'); fd = os.open('d', os.O_RDONLY)",
        "open('d/x', 'w').close(); os.listdir(fd)",
    ),
    "streams": ("import sys; sys.stdout = sys.stderr; class_ = type(sys.stdin).__name__", "print('on', file=sys.stdout)"),
    "limits of its own making": ("import sys; sys.setrecursionlimit(500)", "sys.getrecursionlimit()"),
    "cell numbers": (
        "def f(): raise ValueError('x')",
        "import traceback\ntry: f()\nexcept ValueError: print(traceback.format_exc())",
    ),
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_copy_has(python: Interpreter, open_one: Open, name: str) -> None:
    before, after = SETUPS[name]
    says(python, before)
    with python.fork() as twin, twin.fork() as third:
        copied = [says(twin, after), says(third, after)]
        assert copied == [says(python, after)] * 2
    if "urandom" not in before and "id(" not in after:
        with open_one() as other:
            says(other, before)
            assert says(other, after) == copied[0], "and that is what happens without any copy"


def test_a_copy_shares_nothing(python: Interpreter) -> None:
    says(python, "import os; x = [1]; _ = open('f', 'w').write('mine'); r = open('f')")
    with python.fork() as twin:
        says(
            twin,
            "x.append(2); _ = open('f', 'w').write('theirs'); os.mkdir('d'); os.environ['E'] = '1'\n"
            "os.chdir('d'); os.remove('../f')",
        )
        says(twin, "r.seek(0, 2)")
        assert says(python, "x, r.read(), os.listdir('.'), 'E' in os.environ") == "([1], 'mine', ['f'], False)\n"
        says(python, "x.append(3); os.remove('f')")
        assert says(twin, "x, os.listdir('..')") == "([1, 2], ['d'])\n"


def test_either_may_be_closed_first(python: Interpreter) -> None:
    says(python, "x = 1")
    twin = python.fork()
    third = twin.fork()
    twin.close()
    assert says(python, "x") == says(third, "x") == "1\n"
    python.close()
    fourth = third.fork()
    assert says(third, "x") == says(fourth, "x") == "1\n"
    third.close()
    fourth.close()
    with pytest.raises(SandboxFault):
        fourth.run("x")


def test_a_copy_before_the_first_call(open_one: Open) -> None:
    draw = "import random; random.random()"
    with open_one(seed=5) as python, python.fork() as twin, open_one(seed=5) as other:
        assert says(python, draw) == says(twin, draw) == says(other, draw)


def test_the_seed_is_that_of_the_original_when_a_copy_starts_afresh(open_one: Open) -> None:
    draw = "import random; random.random()"
    with open_one(seed=5) as python:
        first = says(python, draw)
        with python.fork() as twin:
            assert twin.run("while True: pass", timeout=0.2).state_lost
            assert says(twin, draw) == first


def test_resetting_one_leaves_the_others_alone(python: Interpreter) -> None:
    says(python, "x = 1; open('f', 'w').close()")
    with python.fork() as twin, python.fork() as third:
        python.reset(seed=3)
        assert says(python, "import os; 'x' in globals(), os.listdir('.')") == "(False, [])\n"
        assert says(twin, "import os; x, os.listdir('.')") == says(third, "import os; x, os.listdir('.')") == "(1, ['f'])\n"
        twin.reset()
        third.reset()
        assert says(third, "'x' in globals()") == "False\n"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(
            (
                "x = x * 3 % 101; x",
                "x -= len(items)",
                "items.append(x); items[-3:]",
                "items = items[::-1]; items",
                "next(squares, 'none left')",
                "random.random()",
                "random.shuffle(items); items",
                "float(numpy.random.rand())",
                "f.write(str(x)); f.tell()",
                "f.seek(x % 7); f.read(3)",
                "os.rename('f', 'g') if os.path.exists('f') else os.rename('g', 'f'); sorted(os.listdir('.'))",
                "open(f'n{x}', 'a').write('.'); sorted(os.listdir('.'))",
                "total = sum(items) / (x - 50)",
                "raise KeyError(x)",
                "def double(n=x): return 2 * n",
                "double()",
                "os._exit(x % 3)",
                "hash(str(items)), {str(n) for n in items}",
            )
        ),
        min_size=1,
        max_size=10,
    ),
    data=st.data(),
)
def test_a_copy_followed_by_the_same_code_is_no_copy(python: Interpreter, steps: list[str], data: st.DataObject) -> None:
    setup = (
        "import os, random, numpy\nx = 7\nitems = [3, 1, 2]\nsquares = (n * n for n in range(4))\nf = open('f', 'w+')\n"
        "def double(n=0): return n"
    )

    def run(interpreter: Interpreter, code: str) -> tuple[str, str, str]:
        done = interpreter.run(code, display=True)
        return done.stdout, done.error, done.status

    def start() -> None:
        python.reset(seed=11)
        says(python, setup)

    start()
    plain = [run(python, step) for step in steps]
    point = data.draw(st.integers(0, len(steps)), label="copied before step")
    start()
    begun = [run(python, step) for step in steps[:point]]
    with python.fork() as twin:
        copied = begun + [run(twin, step) for step in steps[point:]]
        original = begun + [run(python, step) for step in steps[point:]]
    assert copied == plain
    assert original == plain


# --- what has no copy

OBSTACLES = {
    "a thread": (
        "import threading\nstop = threading.Event()\nt = threading.Thread(target=stop.wait); t.start()",
        "2 threads are running",
        "stop.set(); t.join(); import time; time.sleep(0.2)",  # a joined thread takes a moment to be gone
    ),
    "a pair of sockets": ("import socket; a, b = socket.socketpair()", "a socket", "a.close(); b.close()"),
    "a pipe": ("import os; r, w = os.pipe()", "a pipe", "os.close(r); os.close(w)"),
    "an event queue": ("import select; e = select.epoll()", "such as an event queue", "e.close()"),
    "memory that would be shared": ("import mmap; m = mmap.mmap(-1, 4096)", "a memory map", "m.close()"),
    "a map of a file": (
        "import numpy; m = numpy.memmap('f', dtype='u1', mode='w+', shape=9)",
        "a memory map",
        "del m",
    ),
    "a file elsewhere": ("import os; f = open(os.__file__)", "outside the work folder", "f.close()"),
    "a deleted file nobody can read": (
        "import os; fd = os.open('f', os.O_CREAT | os.O_WRONLY); os.remove('f')",
        "open for writing only",
        "os.close(fd)",
    ),
    "folders too deep": (
        "import os\nfor _ in range(120): os.mkdir('d'); os.chdir('d')",
        "more than 100 folders deep",
        "for _ in range(120): os.chdir('..'); os.rmdir('d')",
    ),
    "a deleted current folder": (
        "import os; os.mkdir('d'); os.chdir('d'); os.rmdir('../d')",
        "No such file",
        "os.chdir(os.environ['HOME'])",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_has_no_copy_is_named(python: Interpreter, name: str) -> None:
    obstacle, named, remedy = OBSTACLES[name]
    says(python, "x = 6")
    says(python, obstacle)
    with pytest.raises(ForkRefused, match=named):
        python.fork()
    assert says(python, "x * 7") == "42\n", "it goes on as if nobody had asked"
    says(python, remedy)
    with python.fork() as twin:
        assert says(twin, "x * 7") == "42\n"


def test_sabotage_costs_the_copy_and_nothing_else(python: Interpreter) -> None:
    says(python, "import os; x = 6; keep = os.dup2; os.dup2 = os.lstat = None")
    with pytest.raises(ForkRefused, match="TypeError"):
        python.fork()
    assert says(python, "x * 7") == "42\n"
    with pytest.raises(ForkRefused):
        python.fork()


def test_a_worker_that_does_not_listen_cannot_be_copied(python: Interpreter) -> None:
    assert python.run("import signal, os; os.kill(os.getpid(), 9)").status == "killed"
    with python.fork() as twin:
        assert says(twin, "1") == "1\n"


def test_no_more_branches_than_there_may_be(open_one: Open) -> None:
    with open_one(limits=Limits(branches=3)) as python:
        twins = [python.fork(), python.fork()]
        with pytest.raises(ForkRefused, match=r"3 branches are alive.*Limits.branches"):
            twins[0].fork()
        twins.pop().close()
        with twins[0].fork() as third:
            assert says(third, "1") == "1\n"
        twins[0].close()


def test_files_that_do_not_fit_are_refused(open_one: Open) -> None:
    with open_one(limits=Limits(file_bytes=2**20)) as python:
        says(
            python, "import os; f = open('f', 'wb'); f.write(bytes(900_000)); f.flush(); g = open('f', 'rb'); os.remove('f')"
        )
        with python.fork() as twin:
            assert says(twin, "len(g.read())") == "900000\n"


def test_hundreds_of_copies_one_after_the_other(python: Interpreter) -> None:
    says(python, "x = 0")
    for number in range(100):
        with python.fork() as twin:
            says(twin, "x += 1; open('f', 'w').close()")
            if number % 10 == 0:
                assert says(twin, "x") == "1\n"
    assert says(python, "import os; x, os.listdir('.')") == "(0, [])\n"


# --- a sibling's misfortune

MISFORTUNES = {
    "time runs out": ("while True: pass", 0.3, "timeout"),
    "a crash": ("import ctypes; ctypes.string_at(0)", 5.0, "killed"),
    "an end": ("import os; os._exit(1)", 5.0, "killed"),
    "memory": ("x = []\nwhile True: x.append(bytes(10**7))", 20.0, "error killed"),
    "memory of many": (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = b'x' * (120 * 2**20)\n"
        "        time.sleep(60)\ntime.sleep(60)",
        20.0,
        "killed",
    ),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", 1.0, "killed timeout"),
    "kill everybody": ("import os; os.kill(0, 9)", 5.0, "killed error"),
    "a full disk": ("with open('big', 'wb') as f:\n    while True: f.write(bytes(10**6))", 20.0, "error killed"),
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n    time.sleep(60)",
        5.0,
        "ok",
    ),
    "a disguised daemon": (
        "import os, resource, time\nif os.fork() == 0:\n    os.setsid()\n    resource.setrlimit(10, (77, 77))\n"
        "    if os.fork(): os._exit(0)\n    time.sleep(60)",
        5.0,
        "ok",
    ),
}


@pytest.mark.parametrize("name", MISFORTUNES)
def test_a_branch_is_not_hurt_by_its_sibling(python: Interpreter, name: str) -> None:
    code, timeout, statuses = MISFORTUNES[name]
    says(python, "x = 6; _ = open('f', 'w').write('kept')")
    with python.fork() as twin, python.fork() as third:
        working = (
            "import time\nuntil = time.monotonic() + 1.5\nn = 0\nwhile time.monotonic() < until: n += 1; time.sleep(0.01)\nx"
        )
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            meanwhile = pool.submit(says, third, working)
            done = twin.run(code, timeout=timeout)
            assert done.status in statuses.split(), done
            assert done.state_lost == (done.status in ("timeout", "killed"))
            assert says(twin, "6 * 7") == "42\n"
            assert meanwhile.result() == "6\n"
        for sibling in (python, third):
            assert says(sibling, "x, open('f').read()") == "(6, 'kept')\n"
        assert says(twin, "import os; sorted(set(os.listdir('.')) - {'big'})") == "['f']\n"


def test_calls_of_branches_overlap(python: Interpreter) -> None:
    says(python, "import time")
    branches = [python, *(python.fork() for _ in range(7))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        list(pool.map(lambda branch: says(branch, "time.sleep(0.5)"), branches))
        assert time.monotonic() - started < 2.5
    for branch in branches[1:]:
        branch.close()


def test_a_branchs_own_orphans_live_as_long_as_its_call(python: Interpreter) -> None:
    orphan = (
        "import os, time\nif os.fork() == 0:\n    if os.fork(): os._exit(0)\n    os.setsid()\n    for n in range(200):\n"
        "        open('alive', 'w').write(str(n)); time.sleep(0.02)\n    os._exit(0)\nos.wait()"
    )
    look = "def alive(): return open('alive').read() if os.path.exists('alive') else ''"
    with python.fork() as twin:
        says(twin, "import os, time\n" + look)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            call = pool.submit(says, twin, orphan + "\ntime.sleep(1.2)\nfirst = alive(); time.sleep(0.3); alive() != first")
            for _ in range(60):
                says(python, "x = 1")
                time.sleep(0.01)
            assert call.result().splitlines()[-1] == "True", "its sibling's calls have not touched it"
        assert says(twin, "first = alive(); time.sleep(0.3); alive() == first") == "True\n", "it ended with its call"


def test_closing_a_branch_during_its_call_ends_the_call_alone(python: Interpreter) -> None:
    says(python, "x = 6")
    twin = python.fork()
    raised: list[SandboxFault] = []

    def runs() -> None:
        try:
            twin.run("while True: pass", timeout=60)
        except SandboxFault as fault:
            raised.append(fault)

    thread = threading.Thread(target=runs)
    thread.start()
    time.sleep(0.2)
    twin.close()
    thread.join(5)
    assert "closed during a call" in str(raised[0])
    assert says(python, "x * 7") == "42\n"
    with python.fork() as third:
        assert says(third, "x * 7") == "42\n"


def test_many_branches_at_once_from_many_threads(open_one: Open) -> None:
    with open_one(limits=Limits(branches=64)) as python:
        says(python, "x = 0")
        with concurrent.futures.ThreadPoolExecutor(32) as pool:

            def branch(number: int) -> str:
                with python.fork() as twin:
                    says(twin, f"x += {number}; open('n', 'w').write(str(x))")
                    with twin.fork() as second:
                        says(second, "x += 1")
                        return says(second, "x, open('n').read()") + says(twin, "x")

            assert list(pool.map(branch, range(60))) == [f"({n + 1}, '{n}')\n{n}\n" for n in range(60)]
        assert says(python, "import os; x, os.listdir('.')") == "(0, [])\n"
