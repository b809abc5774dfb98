"""What is left of a process that was killed, and what its being killed must not cost anybody else."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker_engine import IMAGE, client_or_skip
from driver import REPOSITORY, processes_with

from sandboxes.python.owners import fate, folder_name, is_gone, owner, owner_of_folder
from sandboxes.python.reaper import EXPIRES_LABEL, OWNER_LABEL, reap, reap_in_background

ELSEWHERE = "0123456789abcdef-4026531836-1-1"
"""A process of another machine."""
EXIT_CALL = {"x86_64": 60, "aarch64": 93, "riscv64": 93}
"""Number of the system call that ends one thread."""


def sleeper(code: str = "import time; time.sleep(600)") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def living() -> Iterator[str]:
    """The owner of another process, which lives."""
    with sleeper() as process:
        yield owner(process.pid)
        process.kill()


@pytest.fixture
def gone() -> str:
    """The owner of a process that was killed."""
    with sleeper() as process:
        name = owner(process.pid)
        process.kill()
    return name


def wait_until_empty(find: Any, seconds: float = 15.0) -> Any:
    """What ``find`` still finds when that is nothing, or after so many seconds."""
    end = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


# Owners


def test_an_owner_lives_until_its_process_ends() -> None:
    assert fate(owner()) == "alive"
    with sleeper() as process:
        name = owner(process.pid)
        assert fate(name) == "alive"
        process.kill()
        process.wait()
        assert fate(name) == "gone"
        assert is_gone(name)
    with pytest.raises(ProcessLookupError, match="found"):
        owner(process.pid)


def test_one_that_was_killed_and_that_nobody_has_buried_is_gone() -> None:
    with sleeper() as process:
        name = owner(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert fate(name) == "gone"
        with pytest.raises(ProcessLookupError):
            owner(process.pid)


@pytest.mark.skipif(platform.machine() not in EXIT_CALL, reason="no number of the system call is known")
def test_one_whose_first_thread_has_ended_is_alive() -> None:
    code = (
        "import ctypes, threading, time\nthreading.Thread(target=lambda: time.sleep(600)).start()\n"
        f"print(1, flush=True)\nctypes.CDLL(None).syscall({EXIT_CALL[platform.machine()]}, 0)"
    )
    with sleeper(code) as process:
        name = owner(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        status = Path(f"/proc/{process.pid}/status")
        end = time.monotonic() + 5
        while "State:\tZ" not in status.read_text() and time.monotonic() < end:
            time.sleep(0.005)
        assert "State:\tZ" in status.read_text()
        assert fate(name) == "alive"
        process.kill()


def test_the_same_process_id_later_is_another_owner() -> None:
    front, _, start = owner().rpartition("-")
    assert fate(f"{front}-{int(start) - 1}") == "gone"


def test_nothing_is_known_of_other_machines_and_namespaces() -> None:
    machine, namespace, number, start = owner().split("-")
    assert fate(ELSEWHERE) == "unknown"
    assert fate(f"{'0' * 16}-{namespace}-{number}-{start}") == "unknown"
    assert fate(f"{machine}-1{namespace}-99999999-{start}") == "unknown"
    for name in ("", "somebody", f"{owner()}/..", f"{owner()}\n"):
        assert fate(name) == "unknown"
        assert not is_gone(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("options", [["--mount-proc"], []], ids=["own /proc", "somebody else's /proc"])
def test_a_process_in_another_namespace_is_not_taken_for_gone(options: list[str]) -> None:
    code = "import time; from sandboxes.python.owners import fate, owner; print(owner(), fate(owner())); time.sleep(600)"
    command = ["unshare", "--pid", "--fork", "--kill-child", *options, sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ) as other:
        assert other.stdout is not None
        said = other.stdout.readline().split()
        if not said:
            pytest.skip("no process-id namespaces here")
        name, its_own_view = said
        assert fate(name) == "unknown"
        assert its_own_view == ("alive" if options else "unknown")
        other.kill()


def test_folders_tell_whose_they_are() -> None:
    assert owner_of_folder(folder_name(owner())) == owner()
    assert folder_name(owner()) != folder_name(owner())
    for name in ("sandbox-0123456789abcdef", "sandbox-", f"{folder_name(owner())}.old", f"sandbox-{owner()}"):
        assert owner_of_folder(name) == ""


# Folders


def test_only_folders_of_the_gone_are_removed(tmp_path: Path, gone: str, living: str) -> None:
    left = tmp_path / folder_name(gone)
    deep = left / "4711" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (left / "4711" / "link").symlink_to(tmp_path)
    (left / "4711" / "a").chmod(0)
    stay = [
        tmp_path / folder_name(living),
        tmp_path / folder_name(owner()),
        tmp_path / folder_name(ELSEWHERE),
        tmp_path / f"sandbox-{gone}",
        tmp_path / f"my-{folder_name(gone)}",
    ]
    for folder in stay:
        folder.mkdir()
        (folder / "file").write_text("x")
    link = tmp_path / folder_name(gone)
    link.symlink_to(stay[0])
    plain_file = tmp_path / folder_name(gone)
    plain_file.write_text("x")
    removed = reap(temporary=str(tmp_path))
    assert [words for words in removed if words.startswith("folder")] == [f"folder {left}: its process is gone"]
    assert not left.exists()
    assert all((folder / "file").exists() for folder in stay)
    assert link.is_symlink()
    assert plain_file.exists()


def test_a_folder_that_is_still_written_to_is_removed_in_the_end(tmp_path: Path, gone: str) -> None:
    left = tmp_path / folder_name(gone)
    left.mkdir()
    end = time.monotonic() + 0.25

    def writes() -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            try:
                (left / str(number)).write_text("x")
            except OSError:
                return

    writer = threading.Thread(target=writes)
    writer.start()
    reap(temporary=str(tmp_path))
    writer.join()
    reap(temporary=str(tmp_path))
    assert not left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_one_that_cannot_be_removed_does_not_stop_the_rest(
    tmp_path: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    folders = sorted(tmp_path / folder_name(gone) for _ in range(3))
    for folder in folders:
        (folder / "inner").mkdir(parents=True)
    stuck = folders[1] / "inner"
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(stuck)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with caplog.at_level(logging.WARNING):
            removed = reap(temporary=str(tmp_path))
    finally:
        subprocess.run(["umount", str(stuck)], check=True)
    assert len([words for words in removed if words.startswith("folder")]) == 2
    assert os.listdir(tmp_path) == [folders[1].name]
    assert f"{folders[1]} could not be removed" in caplog.text


def test_without_an_engine_folders_are_removed_all_the_same(
    tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / folder_name(gone)).mkdir()
    with caplog.at_level(logging.INFO):
        reap_in_background().join(30)
    assert os.listdir(tmp_path) == []
    assert "no container was looked for" in caplog.text
    assert "left by a process that is gone, removed: folder" in caplog.text


# Containers


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """A client of a real engine that has the tests' image."""
    client = client_or_skip()
    yield client
    client.close()


@pytest.fixture
def make_container(engine: Any) -> Iterator[Callable[..., str]]:
    """Makes containers that sleep; those that are left are removed after the test."""
    made: list[str] = []

    def make(labels: dict[str, str], start: bool = True, command: str = "import time; time.sleep(600)") -> str:
        container: str = engine.create_container(IMAGE, ["python3", "-c", command], labels=labels)["Id"]
        made.append(container)
        if start:
            engine.start(container)
        return container

    yield make
    for container in made:
        with contextlib.suppress(docker.errors.APIError):  # it is gone, or going
            engine.remove_container(container, force=True, v=True)


def here(engine: Any) -> set[str]:
    """Ids of all containers of the engine."""
    return {container["Id"] for container in engine.containers(all=True)}


@pytest.mark.docker
def test_only_containers_of_the_gone_and_the_expired_are_removed(
    engine: Any, make_container: Callable[..., str], gone: str, living: str, tmp_path: Path
) -> None:
    past, future = str(int(time.time()) - 1), str(int(time.time()) + 3600)
    ended = make_container({OWNER_LABEL: gone, EXPIRES_LABEL: future}, command="")
    assert engine.wait(ended, timeout=30)["StatusCode"] == 0
    go = {
        make_container({OWNER_LABEL: gone, EXPIRES_LABEL: future}): "running): its process is gone",
        make_container({OWNER_LABEL: gone}, start=False): "created): its process is gone",
        ended: "exited): its process is gone",
        make_container({OWNER_LABEL: ELSEWHERE, EXPIRES_LABEL: past}): "running): its time to live is over",
        make_container({OWNER_LABEL: "?", EXPIRES_LABEL: past}, start=False): "created): its time to live is over",
    }
    stay = {
        make_container({OWNER_LABEL: living, EXPIRES_LABEL: past}),
        make_container({OWNER_LABEL: owner(), EXPIRES_LABEL: past}, start=False),
        make_container({OWNER_LABEL: ELSEWHERE, EXPIRES_LABEL: future}),
        make_container({OWNER_LABEL: ELSEWHERE, EXPIRES_LABEL: "soon"}, start=False),
        make_container({OWNER_LABEL: ELSEWHERE}, start=False),
        make_container({EXPIRES_LABEL: past}, start=False),
        make_container({}, start=False),
    }
    removed = reap(temporary=str(tmp_path))
    # Another process that opens its first container at this moment reaps as well.
    assert wait_until_empty(lambda: here(engine) & set(go)) == set()
    assert here(engine) >= stay
    for container, words in go.items():
        assert {word for word in removed if container[:12] in word} <= {f"container {container[:12]} ({words}"}


@pytest.mark.docker
def test_several_reapers_at_once_remove_everything_once(
    engine: Any, make_container: Callable[..., str], gone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    containers = {make_container({OWNER_LABEL: gone}, start=number % 2 == 0) for number in range(6)}
    with caplog.at_level(logging.WARNING), concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: reap(temporary=str(tmp_path)), range(4)))
    assert wait_until_empty(lambda: here(engine) & containers) == set()
    assert caplog.text == ""


# The whole of it

EPISODES = """
import concurrent.futures, sys, time
from sandboxes.python import open_interpreter

def episode(number):
    python = open_interpreter(**arguments, seed=number)
    python.run("import subprocess, sys; open('file', 'w').write('x' * 100000)")
    python.run("from multiprocessing import shared_memory; memory = shared_memory.SharedMemory(create=True, size=10)")
    if number % 3 == 0:
        twin = python.fork() if number % 2 else None
        python.run("import os, time\\nif os.fork() == 0: time.sleep(100)")
        python.reset()
        if twin is not None:
            twin.run("x = 1")
            twin.close()
    print(number, flush=True)
    if number % 4:
        python.close()
    else:
        kept.append(python)
        if number % 8 == 0:
            python.run("while True: pass", timeout=0.05)

arguments = eval(sys.argv[2])
kept = []
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for _ in pool.map(episode, range(int(sys.argv[1]))):
        pass
time.sleep(600)
"""


def kill_in_the_middle(episodes: int, arguments: dict[str, Any], temporary: Path) -> tuple[str, str]:
    """Has a process run half of its episodes, and kills it.

    Returns:
        A word that is on the command lines of what it started, and its name as an owner.
    """
    token = f"token-{uuid.uuid4().hex}"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:/{token}", "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", EPISODES, str(episodes), repr(arguments)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(episodes // 2):
            assert process.stdout.readline(), "the process died by itself"
        name = owner(process.pid)
        process.send_signal(signal.SIGKILL)
    return token, name


def local_leftovers(episodes: int, tmp_path: Path, arguments: dict[str, Any]) -> None:
    tmp_path.chmod(0o755)
    token, _ = kill_in_the_middle(episodes, {"backend": "local", **arguments}, tmp_path)
    assert wait_until_empty(lambda: processes_with(token)) == {}
    reap(temporary=str(tmp_path))
    assert os.listdir(tmp_path) == []


def docker_leftovers(engine: Any, episodes: int, tmp_path: Path, warm: int) -> None:
    volumes = volume_names(engine)
    token, name = kill_in_the_middle(episodes, {"backend": "docker", "image": IMAGE, "warm": warm}, tmp_path)
    assert wait_until_empty(lambda: processes_with(token)) == {}

    def left() -> list[Any]:
        # The engine may still be making a container that was asked for by the process that is dead now; and it removes by
        # itself those that ended by themselves, which takes its time.
        reap(temporary=str(tmp_path))
        found: list[Any] = engine.containers(all=True, filters={"label": f"{OWNER_LABEL}={name}"})
        return found

    assert wait_until_empty(left) == []
    assert volume_names(engine) - volumes == set()
    assert os.listdir(tmp_path) == []


def volume_names(engine: Any) -> set[str]:
    return {volume["Name"] for volume in engine.volumes()["Volumes"] or ()}


@pytest.mark.parametrize("warm", [0, 4])
def test_a_killed_trainer_leaves_nothing(tmp_path: Path, warm: int) -> None:
    local_leftovers(40, tmp_path, {"warm": warm})


@pytest.mark.docker
@pytest.mark.parametrize("warm", [0, 4])
def test_a_killed_trainer_leaves_no_container(engine: Any, tmp_path: Path, warm: int) -> None:
    docker_leftovers(engine, 40, tmp_path, warm)


@pytest.mark.thorough
@pytest.mark.docker
def test_a_trainer_killed_after_hundreds_of_episodes_leaves_no_container(engine: Any, tmp_path: Path) -> None:
    docker_leftovers(engine, 1000, tmp_path, 4)


@pytest.mark.thorough
def test_a_trainer_killed_after_hundreds_of_episodes_leaves_nothing(tmp_path: Path) -> None:
    local_leftovers(1000, tmp_path, {"warm": 4})


def test_a_warm_process_that_is_killed_with_its_host_leaves_nothing_after_the_reaper(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    token = f"token-{uuid.uuid4().hex}"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:/{token}", "TMPDIR": str(tmp_path)}
    code = (
        "import time\nfrom sandboxes.python import open_interpreter\npython = open_interpreter('local')\n"
        "python.run('x = 1')\nprint(1, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(os.listdir(tmp_path)) == 1
        reap(temporary=str(tmp_path))
        assert len(os.listdir(tmp_path)) == 1, "it is in use"
        # The warm process is the parent of all the others of its kind.
        for warm in processes_with(token):
            os.kill(warm, signal.SIGSTOP)
        for warm in sorted(processes_with(token)):
            os.kill(warm, signal.SIGKILL)
        process.kill()
    assert wait_until_empty(lambda: processes_with(token)) == {}
    assert len(os.listdir(tmp_path)) == 1, "nobody was left to remove it"
    assert len([words for words in reap(temporary=str(tmp_path)) if words.startswith("folder")]) == 1
    assert os.listdir(tmp_path) == []
