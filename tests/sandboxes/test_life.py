"""The life of interpreters and of the processes behind them: births, deaths, threads, forks, and what outlives whom."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from driver import REPOSITORY, HostProcess, processes_with, python_is_closed

from sandboxes import shared
from sandboxes.faults import SandboxFault
from sandboxes.python import Interpreter, Limits, open_interpreter


def folders(parent: Path) -> list[str]:
    return [name for name in os.listdir(parent) if name.startswith("sandbox-")]


@pytest.mark.parametrize("refuse", [(), ("namespaces",)], ids=["namespaces", "no namespaces"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_killed_host_leaves_no_process_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: tuple[str, ...], busy: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tmp_path.chmod(0o755)
    host = HostProcess(refuse=refuse)
    try:
        for name in ("a", "b", "c"):
            host.ask("open", name=name)
            host.ask("run", name=name, code="open('file', 'w').write('x')")
        assert len(host.settled(7)) == 7
        if busy:
            assert host.process.stdin is not None
            host.process.stdin.write('{"operation": "run", "name": "a", "code": "while True: pass", "timeout": 60}\n')
            host.process.stdin.flush()
            time.sleep(0.1)
        assert len(folders(tmp_path)) == 1
        host.process.kill()
        assert host.settled(0) == {}
        end = time.monotonic() + 3
        while folders(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        assert folders(tmp_path) == []
    finally:
        host.close()


@pytest.mark.parametrize("refuse", [(), ("namespaces",)], ids=["namespaces", "no namespaces"])
def test_a_host_that_forgets_to_close_ends_at_once(tmp_path: Path, refuse: tuple[str, ...]) -> None:
    script = (
        "import time\nfrom sandboxes.python import open_interpreter\n"
        "kept = [open_interpreter() for _ in range(3)]\nkept[0].run('x = 1')\nprint(time.monotonic())"
    )
    token = f"token-{os.getpid()}-{time.monotonic_ns()}"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:/{token}", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert time.monotonic() - float(done.stdout) < 3
    assert processes_with(token) == {}
    assert folders(tmp_path) == []


def warm_processes() -> set[int]:
    """Process ids of this process's zygotes."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    others = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    children = {child for found in (mine, *others) for child in found}
    return {int(child) for child in children if b"python.local.zygote" in Path(f"/proc/{child}/cmdline").read_bytes()}


def test_the_zygote_may_die() -> None:
    shared.close_idle()
    with open_interpreter() as old:
        old.run("x = 1")
        (zygote,) = warm_processes()
        os.kill(zygote, signal.SIGKILL)
        assert old.run("print(x)").stdout == "1\n", "what it forked lives on"
        with open_interpreter() as new:
            assert new.run("print(6 * 7)").stdout == "42\n"
            assert zygote not in warm_processes()


def supervisors() -> set[str]:
    """Process ids of what the zygotes have forked."""
    return {
        child for zygote in warm_processes() for child in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    }


def test_the_supervisor_may_die() -> None:
    with open_interpreter() as python:
        before = supervisors()
        with open_interpreter() as doomed:
            doomed.run("x = 1")
            (supervisor,) = supervisors() - before
            os.kill(int(supervisor), signal.SIGKILL)
            time.sleep(0.1)
            with pytest.raises(SandboxFault, match="reset the interpreter") as caught:
                doomed.run("print(x)")
            assert caught.value.retryable
            with pytest.raises(SandboxFault):
                doomed.run("print(x)")
            doomed.reset()
            assert doomed.run("print(6 * 7)").stdout == "42\n"
        assert python.run("print(6 * 7)").stdout == "42\n"


def test_code_whose_sandbox_dies_was_killed() -> None:
    with open_interpreter() as python:
        before = supervisors()
        with open_interpreter() as doomed:
            doomed.run("open('file', 'w').close()")
            (supervisor,) = supervisors() - before
            timer = threading.Timer(0.3, os.kill, (int(supervisor), signal.SIGKILL))
            timer.start()
            done = doomed.run("import time; time.sleep(5)")
            assert (done.status, done.state_lost) == ("killed", True)
            assert "files are gone" in done.error
            assert doomed.run("import os; print(os.listdir('.'))").stdout == "[]\n"
        assert python.run("print(6 * 7)").stdout == "42\n"


def test_128_at_once_from_128_threads() -> None:
    start = threading.Barrier(128)

    def episode(number: int) -> str:
        start.wait()
        with open_interpreter(seed=number) as python:
            python.run(f"n = {number}")
            python.run("import os; open('n', 'w').write(str(n))")
            return python.run("print(n, open('n').read())").stdout

    with concurrent.futures.ThreadPoolExecutor(128) as pool:
        outputs = list(pool.map(episode, range(128)))
    assert outputs == [f"{number} {number}\n" for number in range(128)]


def test_calls_of_different_interpreters_overlap() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        interpreters = [open_interpreter() for _ in range(8)]
        started = time.monotonic()
        done = list(pool.map(lambda python: python.run("import time; time.sleep(0.5)"), interpreters))
        assert time.monotonic() - started < 2.5
        assert {one.status for one in done} == {"ok"}
        for python in interpreters:
            python.close()


def test_an_interpreter_outlives_the_thread_that_opened_it() -> None:
    opened: list[Interpreter] = []

    def opens() -> None:
        python = open_interpreter()
        python.run("x = 1")
        opened.append(python)

    shared.close_idle()  # so that the zygote, too, is started by that thread
    thread = threading.Thread(target=opens)
    thread.start()
    thread.join()
    time.sleep(0.2)
    with opened[0] as python:
        assert python.run("print(x)").stdout == "1\n"


def work_in_a_daemonic_process(connection: Connection) -> None:
    with open_interpreter() as python:
        python.run("x = 6 * 7")
        connection.send(python.run("print(x)").stdout)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_in_a_daemonic_worker(method: str) -> None:
    with open_interpreter() as mine:
        mine.run("x = 'mine'")
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=work_in_a_daemonic_process, args=(theirs,), daemon=True)
        process.start()
        assert ours.poll(60)
        assert ours.recv() == "42\n"
        process.join(20)
        assert process.exitcode == 0
        assert mine.run("print(x)").stdout == "mine\n"


def test_a_forked_child_does_not_touch_its_parents_interpreter() -> None:
    with open_interpreter() as python:
        python.run("x = 1")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                python.run("x = 2")
            except SandboxFault as fault:
                os.write(writer, str(fault).encode())
            python.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert b"belongs to process" in os.read(reader, 1000)
        os.close(reader)
        os.close(writer)
        assert python.run("print(x)").stdout == "1\n"


def test_closing_during_a_call_ends_the_call() -> None:
    python = open_interpreter()
    raised: list[SandboxFault] = []

    def runs() -> None:
        try:
            python.run("while True: pass", timeout=60)
        except SandboxFault as fault:
            raised.append(fault)

    thread = threading.Thread(target=runs)
    thread.start()
    time.sleep(0.2)
    python.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "closed during a call" in str(raised[0])


def test_after_close() -> None:
    python = open_interpreter()
    python.close()
    python.close()
    for use in (lambda: python.run("1"), python.reset, python.describe):
        with pytest.raises(SandboxFault, match="open another"):
            use()


def test_an_impossible_module_is_one_clear_fault() -> None:
    with pytest.raises(SandboxFault, match=r"cannot preload 'no_such_module': .*install it"):
        open_interpreter(preload=("no_such_module",))


def test_programs_that_are_named_can_be_run_and_no_others():
    run = "import subprocess\nprint(subprocess.run([{!r}, *{!r}], capture_output=True, text=True).stdout)"
    with open_interpreter("local", preload=(), programs=("cat", "wc")) as python, python.fork() as twin:
        for each in (python, twin):
            each.run("open('lines', 'w').write('1\\n2\\n')")
            assert each.run(run.format("cat", ["lines"])).stdout == "1\n2\n\n"
            assert each.run(run.format("wc", ["-l", "lines"])).stdout == "2 lines\n\n"
            assert "FileNotFoundError" in each.run(run.format("sort", ["lines"])).error
    with pytest.raises(SandboxFault, match=r"programs names 'no_such_program', which is no program here: install it"):
        open_interpreter("local", preload=(), programs=("no_such_program",))


def test_no_isolation_is_said_to_be_none() -> None:
    with open_interpreter(isolation="none", preload=(), limits=Limits(memory_bytes=64 * 2**20)) as python:
        protection = python.describe()
        assert (protection.network, protection.files, protection.signals) == ("open", "open", "open")
        assert python.run("x = bytes(10**9)").status == "error"
        assert python.run("while True: pass", timeout=0.2).status == "timeout"
        assert python.run("print(6 * 7)").stdout == "42\n"


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="found 'cloud'"):
        open_interpreter(backend="cloud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found 'some'"):
        open_interpreter(isolation="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("refuse", [("namespaces", "seccomp")])
def test_without_anything_against_the_network_it_refuses(refuse: tuple[str, ...]) -> None:
    host = HostProcess(refuse=refuse)
    try:
        fault = host.ask("open").fault
        assert "can keep no interpreter from the network" in fault
        assert "isolation='none'" in fault
        assert not hasattr(host.ask("open", isolation="none", preload=[]), "fault")
    finally:
        host.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_without_anything_for_files_refuses() -> None:
    if not python_is_closed():
        pytest.skip("here Python is open to every user, so the code can have a user of its own")
    host = HostProcess(refuse=("namespaces", "landlock"), reach=False)
    try:
        assert "would run as root" in host.ask("open").fault
    finally:
        host.close()
