"""The docker backend: what a container is shut in by, how it ends, and who is to blame when something goes wrong."""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_engine import IMAGE, OwnEngine, client_or_skip, own_engine
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.faults import SandboxFault
from sandboxes.python import Limits
from sandboxes.python.docker import container
from sandboxes.python.docker import engine as backend
from sandboxes.python.docker.client import DockerClient
from sandboxes.python.docker.container import CAPABILITIES
from sandboxes.python.docker.engine import DockerEngine
from sandboxes.python.docker.image import build_from_debian, build_from_dockerfile, mirror_of
from sandboxes.python.docker.link import LAST_WORDS, StreamDecoder
from sandboxes.python.docker.program import MAIN, boot_text, first_message, sources
from sandboxes.python.docker.settings import BASE_MEMORY, BASE_PROCESSES, ContainerSettings, container_configuration
from sandboxes.python.family import Family, SandboxEnded
from sandboxes.python.inside.frames import Decoder
from sandboxes.python.owners import owner
from sandboxes.python.reaper import OWNER_LABEL

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
SMALL = Limits(branches=2, memory_bytes=64 * MIB, file_bytes=8 * MIB, processes=8)
SETTINGS = ContainerSettings(image=IMAGE, cpus=1.5)
FAULT_SECONDS = 5.0


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with contextlib.closing(client_or_skip()) as found:
        yield found


@pytest.fixture(scope="module")
def engine(client: Any) -> Iterator[DockerEngine]:
    with contextlib.closing(DockerEngine(SETTINGS, preload=())) as found:
        yield found


@pytest.fixture(scope="module")
def family(engine: DockerEngine) -> Iterator[Family]:
    """One container for all the questions that change nothing in it."""
    with contextlib.closing(engine.start(SMALL)) as found:
        yield found


def run(family: Family, code: str, seconds: float = 10.0) -> dict[str, Any]:
    return family.ask(0, {"op": "run", "code": code, "timeout": seconds, "display": False}, seconds)


def say(family: Family, expression: str) -> Any:
    """What an expression is inside."""
    done = run(family, f"import json, os, socket\nprint(json.dumps({expression}))")
    assert done["status"] == "ok", done
    return json.loads(done["stdout"])


def ours(client: Any) -> set[str]:
    """Containers of this process."""
    found = client.containers(all=True, filters={"label": f"{OWNER_LABEL}={owner()}"})
    return {entry["Id"] for entry in found}


def id_of(client: Any, start: Callable[[], Family]) -> tuple[Family, str]:
    before = ours(client)
    family = start()
    (new,) = ours(client) - before
    return family, new


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


# The stream


@given(
    pieces=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=20),
    cuts=st.lists(st.integers(1, 30), max_size=60),
)
def test_headers_are_taken_out_of_the_stream_wherever_it_was_cut(pieces: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(bytes([kind, 0, 0, 0]) + struct.pack(">I", len(data)) + data for kind, data in pieces)
    decoder = StreamDecoder()
    output = b""
    for cut in cuts:
        output += decoder.feed(stream[:cut])
        stream = stream[cut:]
    output += decoder.feed(stream)
    assert output == b"".join(data for kind, data in pieces if kind == 1)
    assert decoder.last_words == b"".join(data for kind, data in pieces if kind == 2)


def test_of_standard_error_only_the_end_is_kept() -> None:
    decoder = StreamDecoder()
    for letter in (b"a", b"b"):
        data = letter * (LAST_WORDS - 5)
        assert decoder.feed(b"\x02\0\0\0" + struct.pack(">I", len(data)) + data) == b""
    assert decoder.last_words == b"a" * 5 + b"b" * (LAST_WORDS - 5)


# The program


def boot(text: str, message: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-s", "-B", "-c", text]
    return subprocess.run(
        command, input=message, capture_output=True, timeout=60, check=False, cwd="/", env={"PATH": "/usr/bin"}
    )


def test_the_program_needs_nothing_but_itself_and_the_standard_library() -> None:
    program = sources()
    needed = {MAIN}
    for name, text in program.items():
        for node in ast.walk(ast.parse(text or "")):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                package = program.get(node.module, "") is None
                modules = [f"{node.module}.{alias.name}" for alias in node.names] if package else [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                assert top in {*sys.stdlib_module_names, "sandboxes"}, f"{name} imports {module}"
                needed |= {module} if top == "sandboxes" else set()
    assert needed == {name for name, text in program.items() if text is not None}


def test_outside_a_container_it_refuses_to_serve() -> None:
    options = {"limits": {}, "folders": ["/sandbox"], "user": 12345, "preload": [], "filter": ""}
    done = boot(boot_text(), first_message(options))
    assert done.returncode == container.FAILED, done.stderr.decode()
    (answer,) = Decoder().feed(done.stdout)
    assert answer["fault"].startswith("the engine did not grant what this container was asked to have: ")


def test_an_old_python_is_told_so_in_one_line() -> None:
    done = boot(boot_text().replace("(3, 11)", "(9, 99)"), b"")
    (answer,) = Decoder().feed(done.stdout)
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert answer == {"fault": f"the image's python3 is version {found}, and 9.99 is the oldest that will do"}


def test_a_traceback_of_the_program_shows_its_source() -> None:
    done = boot(boot_text(), first_message({"limits": {"no_such_limit": 1}}))
    assert done.returncode == container.FAILED
    assert 'File "sandboxes/python/docker/container.py", line ' in done.stderr.decode()
    assert 'Limits(**options["limits"])' in done.stderr.decode()


# Settings and absent engines


@pytest.mark.parametrize(
    "setting",
    [
        {"image": ""},
        {"image": None},
        {"runtime": ""},
        {"cpus": 0},
        {"cpus": float("nan")},
        {"cpus": "2"},
        {"reuse": 0},
        {"reuse": 1.5},
        {"time_to_live": -1},
        {"time_to_live": float("inf")},
    ],
)
def test_a_setting_out_of_range_is_named(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=f"ContainerSettings.{name} must be "):
        ContainerSettings(**setting)


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9"])
def test_an_engine_that_is_not_there_is_a_retryable_fault(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(SandboxFault) as caught:
        DockerEngine(SETTINGS)
    assert caught.value.retryable
    assert f"the Docker engine at {address} cannot be reached: [Errno " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_that_nobody_let_this_user_use_is_not_worth_a_second_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = "import os; os.setgroups([]); os.setresuid(54321, 54321, 54321)\n" if os.geteuid() == 0 else ""
    tmp_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        server.listen()
        (tmp_path / "sock").chmod(0)
        code += "import sys\ntry:\n    DockerClient()\nexcept SandboxFault as fault:\n    print(fault.retryable, fault)\n"
        first = "from sandboxes.faults import SandboxFault\nfrom sandboxes.python.docker.client import DockerClient\n"
        environment = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/sock", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", first + code], capture_output=True, text=True, env=environment, check=False
        )
    # pytest's folders above are root's alone, which is the same refusal one step earlier
    assert done.stdout.startswith(f"False the Docker engine at unix://{tmp_path}/sock cannot be used: Permission denied"), (
        done
    )


def test_an_engine_that_says_nothing_is_asked_once_a_second_by_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A listening socket that speaks once, to tell its version, and then never again."""
    asked = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        server.listen(100)
        kept = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    request = connection.recv(65536)
                    asked.append(request.split()[1])
                    if b"/version" in request:
                        body = b'{"ApiVersion": "1.41"}'
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/sock")
        client = DockerClient()
        faults: list[SandboxFault] = []

        def check() -> None:
            with pytest.raises(SandboxFault) as caught:
                client.check()
            faults.append(caught.value)

        started = time.monotonic()
        threads = [threading.Thread(target=check) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < FAULT_SECONDS - 2
        assert len(faults) == 30
        assert all(fault.retryable and "gave no answer in time" in str(fault) for fault in faults)
        assert sum(b"_ping" in request for request in asked) == 1
        client.close()
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


# Images


@pytest.fixture(scope="module")
def build(client: Any) -> Iterator[Callable[[str], str]]:
    """Builds an image from lines of a Dockerfile on top of the tests' image."""
    made = []

    def build(lines: str) -> str:
        tag = f"agent-envs-test-{len(made)}-{os.getpid()}"
        made.append(tag)
        steps = client.build(fileobj=io.BytesIO(f"FROM {IMAGE}\n{lines}\n".encode()), tag=tag, rm=True, decode=True)
        problems = [step["error"] for step in steps if "error" in step]
        assert not problems, problems
        return tag

    yield build
    for tag in made:
        client.remove_image(tag, force=True)


@pytest.mark.docker
def test_a_missing_image_is_a_fault_that_says_how_to_get_it(client: Any) -> None:
    with pytest.raises(SandboxFault) as caught:
        DockerEngine(ContainerSettings(image="agent-envs-no-such-image"))
    assert not caught.value.retryable
    assert "has no image agent-envs-no-such-image: build it with `python -m sandboxes build-image`" in str(caught.value)


@pytest.mark.docker
def test_a_missing_runtime_is_a_fault_that_names_those_there_are(client: Any) -> None:
    with pytest.raises(SandboxFault, match=r"has no runtime no-such-runtime, only .*runc") as caught:
        DockerEngine(ContainerSettings(image=IMAGE, runtime="no-such-runtime"))
    assert not caught.value.retryable


@pytest.mark.docker
def test_an_image_without_python_is_a_fault_that_says_so(client: Any) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    client.import_image_from_data(archive.getvalue(), repository="agent-envs-test-empty")
    try:
        with (
            contextlib.closing(DockerEngine(ContainerSettings(image="agent-envs-test-empty"))) as engine,
            pytest.raises(SandboxFault, match="the image agent-envs-test-empty has no python3") as caught,
        ):
            engine.start(SMALL)
        assert not caught.value.retryable
    finally:
        client.remove_image("agent-envs-test-empty", force=True)
    assert wait_until(lambda: not ours(client) - _alive(client))


@pytest.mark.docker
def test_an_image_with_volumes_is_refused(build: Callable[[str], str]) -> None:
    with pytest.raises(SandboxFault, match=r"declares volumes \(/data\), which code could write to"):
        DockerEngine(ContainerSettings(image=build("VOLUME /data")))


@pytest.mark.docker
def test_any_image_with_python_will_do(build: Callable[[str], str]) -> None:
    """One without numpy and sympy, with its Python where only the image knows, and with things that are not wanted."""
    remove = "import shutil, sys; [shutil.rmtree(f'{p}/{m}', True) for p in sys.path for m in ('numpy', 'sympy')]"
    image = build(
        f'RUN python3 -c "{remove}" && mkdir /elsewhere && cp -L /usr/bin/python3 /elsewhere/ && rm /usr/bin/python3\n'
        "ENV PATH=/elsewhere:/bin HELLO=world\nWORKDIR /nowhere\nUSER 1234\n"
        'HEALTHCHECK CMD true\nENTRYPOINT ["/bin/false"]\nCMD ["and", "more"]'
    )
    settings = ContainerSettings(image=image)
    with contextlib.closing(DockerEngine(settings)) as engine, contextlib.closing(engine.start(SMALL)) as family:
        assert run(family, "import numpy")["error"].endswith("ModuleNotFoundError: No module named 'numpy'")
        assert say(family, "[6 * 7, os.environ['HELLO'], os.getcwd()]") == [42, "world", "/sandbox"]
    with (
        contextlib.closing(DockerEngine(settings, preload=["numpy"])) as engine,
        pytest.raises(SandboxFault, match="cannot preload 'numpy'"),
    ):
        engine.start(SMALL)


@pytest.mark.docker
def test_numpy_and_sympy_are_warm_where_they_are(client: Any) -> None:
    with contextlib.closing(DockerEngine(SETTINGS)) as engine, contextlib.closing(engine.start(SMALL)) as family:
        assert say(family, "[name in __import__('sys').modules for name in ('numpy', 'sympy')]") == [True, True]


@pytest.mark.docker
def test_the_dockerfile_builds_on_any_base(client: Any) -> None:
    said: list[str] = []
    tag = f"agent-envs-test-built-{os.getpid()}"
    identity = build_from_dockerfile(tag, IMAGE, [], said.append)
    try:
        assert client.inspect_image(tag)["Id"] == identity
        assert client.inspect_image(tag)["Config"]["Cmd"] == ["python3"]
        assert any("FROM" in line for line in said)
        with pytest.raises(SandboxFault, match="could not be built from the Dockerfile: "):
            build_from_dockerfile(tag, "agent-envs-no-such-image:0", [], said.append)
    finally:
        client.remove_image(tag, force=True)


def test_a_release_that_apt_does_not_know_needs_a_mirror() -> None:
    with pytest.raises(SandboxFault, match="knows no mirror of Debian no-such-release: name one with --mirror"):
        mirror_of("no-such-release")


def test_only_root_can_put_debian_packages_together() -> None:
    if os.geteuid() == 0:
        pytest.skip("root can")
    with pytest.raises(SandboxFault, match="needs root"):
        build_from_debian("agent-envs-test-none", "bookworm", "http://127.0.0.1:9/debian", [], print)


# Inside


@pytest.mark.docker
def test_the_code_has_another_user_and_no_rights(family: Family) -> None:
    status = say(family, "dict(line.strip('\\n').split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)")
    users = {*status["Uid"].split(), *status["Gid"].split()}
    assert len(users) == 1
    assert backend.FIRST_USER <= int(users.pop()) < backend.LAST_USER
    assert status.get("Groups", "").strip() == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert int(status["NoNewPrivs"]) == 1
    assert int(status["Seccomp"]) == 2
    first = say(family, "[line.split()[1:] for line in open('/proc/1/status') if line.startswith(('Uid', 'CapEff'))]")
    assert first == [["0"] * 4, [f"{1 << 5 | 1 << 6 | 1 << 7:016x}"]]  # kill, setgid, setuid: their numbers in the kernel


@pytest.mark.docker
def test_nothing_but_the_work_folder_can_be_written(family: Family) -> None:
    code = """
import os
made = []
for folder, folders, files in os.walk("/"):
    if folder.startswith(("/proc", "/sys")):
        folders.clear()
        continue
    try:
        os.mkdir(os.path.join(folder, "attempt"))
        made.append(folder)
        os.rmdir(os.path.join(folder, "attempt"))
    except OSError:
        pass
    for name in files:
        try:
            os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_NONBLOCK))
            made.append(os.path.join(folder, name))
        except OSError:
            pass
print(made)
"""
    done = run(family, code, 60)
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts/ptmx")}
    written = set(json.loads(done["stdout"].replace("'", '"')))
    written = {place for place in written - devices if not place.startswith(("/dev/fd", "/dev/std"))}
    assert written == {"/sandbox", "/sandbox-1"}, done


@pytest.mark.docker
def test_the_work_folder_is_bounded_and_runs_nothing(family: Family) -> None:
    code = f"""
import errno, os
def attempt(action):
    try:
        action()
    except OSError as problem:
        return errno.errorcode[problem.errno]
def fill():
    for number in range(4):
        with open(f"file-{{number}}", "wb") as file:
            file.write(bytes({SMALL.file_bytes // 2}))
def many():
    for number in range(20000):
        os.mkdir(str(number))
def execute():
    with open("program", "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod("program", 0o755)
    os.execv("./program", ["program"])
print(attempt(execute), attempt(fill), end=" ")
for number in range(4):
    if os.path.exists(f"file-{{number}}"):
        os.unlink(f"file-{{number}}")
print(attempt(many))
"""
    assert run(family, code, 60)["stdout"].split() == ["EACCES", "ENOSPC", "ENOSPC"]
    family.renew()
    assert say(family, "os.listdir('.')") == []


@pytest.mark.docker
def test_there_is_no_network(family: Family) -> None:
    assert say(family, "[line.split(':')[0].strip() for line in open('/proc/net/dev')][2:]") == ["lo"]
    assert say(family, "len(open('/proc/net/route').readlines())") == 1
    done = run(family, "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))")
    assert done["error"].rpartition("\n")[2] in (
        "PermissionError: [Errno 1] Operation not permitted",  # the filter
        "OSError: [Errno 101] Network is unreachable",  # where none could be compiled
    )


@pytest.mark.docker
def test_the_container_is_limited_as_a_whole(client: Any, engine: DockerEngine) -> None:
    family, identity = id_of(client, lambda: engine.start(SMALL))
    with contextlib.closing(family):
        told = client.inspect_container(identity)["HostConfig"]
        memory = 2 * (64 + 8) * MIB + BASE_MEMORY
        assert (told["Memory"], told["MemorySwap"], told["NanoCpus"]) == (memory, memory, 1_500_000_000)
        assert told["PidsLimit"] == 2 * 8 + BASE_PROCESSES
        assert told["AutoRemove"] is True
        assert told["LogConfig"]["Type"] == "none"
        assert not told["Binds"]
        assert not client.inspect_container(identity)["Mounts"]
        paths = {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(memory),  # control groups of version 1
            "/sys/fs/cgroup/pids/pids.max": str(2 * 8 + BASE_PROCESSES),
            "/sys/fs/cgroup/memory.max": str(memory),  # of version 2
            "/sys/fs/cgroup/pids.max": str(2 * 8 + BASE_PROCESSES),
        }
        found = say(family, f"{{path: open(path).read().strip() for path in {list(paths)} if os.path.exists(path)}}")
        assert len(found) == 2
        assert found == {path: paths[path] for path in found}
        assert say(family, "__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE)") == [0, 0]


@pytest.mark.docker
def test_nothing_of_the_host_shows(family: Family) -> None:
    variables = say(family, "dict(os.environ)")
    assert not {name for name in os.environ if name.startswith(("HOME", "USER", "PYTEST"))} & (set(variables) - {"HOME"})
    assert variables["HOME"] == "/sandbox"
    assert say(family, "socket.gethostname()") == "sandbox"
    assert say(family, "sorted(int(name) for name in os.listdir('/proc') if name.isdigit())")[0] == 1
    assert run(family, "import sandboxes")["error"].endswith("ModuleNotFoundError: No module named 'sandboxes'")
    assert run(family, "open('/proc/1/environ').read()")["error"].endswith("Permission denied: '/proc/1/environ'")
    assert say(family, "hash('a constant')") == int(
        subprocess.run(
            [sys.executable, "-c", "print(hash('a constant'))"], env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True
        ).stdout
    )


@pytest.mark.docker
def test_what_it_says_of_its_walls(engine: DockerEngine, family: Family) -> None:
    assert family.protection == engine.protection
    text = str(engine.protection)
    assert text.startswith("docker interpreter; network: no network; files: container; ")
    assert "own user: yes" in text
    assert "fixed addresses (the engine's seccomp profile refuses them)" in text


@pytest.mark.docker
@pytest.mark.parametrize(
    ("changes", "wall"),
    [
        ({"CapAdd": ["SETUID", "SETGID", "KILL", "NET_RAW"]}, "no capabilities but those"),
        ({"SecurityOpt": []}, "no new privileges"),
        ({"NetworkMode": "host"}, "no network"),
        ({"ReadonlyRootfs": False}, "a read-only root"),
        ({"IpcMode": "private"}, r"no place to write to but the work folders \(found /dev/shm\)"),
        ({"Tmpfs": {"/sandbox-1": "mode=1777"}}, "empty work folders of their own"),
        ({"Binds": ["/dev/shm:/shared"]}, r"no place to write to but the work folders \(found /shared\)"),
    ],
)
def test_a_container_without_one_of_its_walls_does_not_serve(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], wall: str
) -> None:
    whole = container_configuration

    def without(*arguments: Any) -> dict[str, Any]:
        configuration = whole(*arguments)
        told = configuration["HostConfig"]
        told.update({name: {**told[name], **new} if name == "Tmpfs" else new for name, new in changes.items()})
        if changes.get("NetworkMode") == "host":
            del configuration["Hostname"]
        return configuration

    monkeypatch.setattr(backend, "container_configuration", without)
    with pytest.raises(SandboxFault, match=f"did not grant what this container was asked to have: .*{wall}"):
        engine.start(SMALL)


# Families in sequence


@pytest.mark.docker
def test_files_and_processes_of_one_family_are_gone_for_the_next(engine: DockerEngine) -> None:
    with contextlib.closing(engine.start(SMALL)) as family:
        user = say(family, "os.getuid()")
        assert family.fork(0)["forked"]
        run(family, "open('left', 'w').write('x')\nx = 1\nos = __import__('os')\nos.makedirs('a/b/c')\nos.chmod('a', 0)")
        family.renew()
        assert say(family, "[os.listdir('/sandbox'), os.listdir('/sandbox-1'), 'x' in globals()]") == [[], [], False]
        assert say(family, "sorted(int(name) for name in os.listdir('/proc') if name.isdigit())[2:]") == []
        assert say(family, "os.getuid()") == user
        assert family.uses_left == SETTINGS.reuse - 2


@pytest.mark.docker
def test_another_container_has_another_user(engine: DockerEngine) -> None:
    users = set()
    for _ in range(3):
        with contextlib.closing(engine.start(SMALL)) as family:
            users.add(say(family, "os.getuid()"))
    assert len(users) > 1


# Ends


def _alive(client: Any) -> set[str]:
    return {entry["Id"] for entry in client.containers()}


@pytest.mark.docker
def test_a_closed_container_is_gone(client: Any, engine: DockerEngine) -> None:
    family, identity = id_of(client, lambda: engine.start(SMALL))
    started = time.monotonic()
    family.close()
    family.close()
    assert time.monotonic() - started < 1
    assert wait_until(lambda: identity not in ours(client))
    with pytest.raises(SandboxFault):
        run(family, "1")


@pytest.mark.docker
def test_a_closed_engine_has_no_containers(client: Any) -> None:
    engine = DockerEngine(SETTINGS, preload=())
    others = ours(client)
    families = [engine.start(SMALL) for _ in range(3)]
    assert len(ours(client) - others) == 3
    engine.close()
    engine.close()
    assert not ours(client) - others
    assert not engine.alive
    assert not any(family.alive for family in families)
    with pytest.raises(SandboxFault, match="was closed"):
        engine.start(SMALL)


@pytest.mark.docker
def test_closing_wakes_a_call_in_another_thread(engine: DockerEngine) -> None:
    family = engine.start(SMALL)
    timer = threading.Timer(0.3, family.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(SandboxFault, match="closed"):
        run(family, "__import__('time').sleep(30)", 60)
    assert time.monotonic() - started < 3
    timer.join()


@pytest.mark.docker
def test_a_forked_process_leaves_its_parents_containers_alone(client: Any, engine: DockerEngine) -> None:
    family = engine.start(SMALL)
    run(family, "x = 6")
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            family._link.close()
            engine.close()
            try:
                engine.start(SMALL)
            except SandboxFault:
                status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert run(family, "print(x * 7)")["stdout"] == "42\n"
    assert engine.alive
    family.close()


@pytest.mark.docker
def test_no_container_outlives_a_killed_process(client: Any) -> None:
    code = f"""
import os, signal
from sandboxes.python.docker.engine import DockerEngine
from sandboxes.python.docker.settings import ContainerSettings
from sandboxes.python import Limits
from sandboxes.python.owners import owner
engine = DockerEngine(ContainerSettings(image={IMAGE!r}), preload=())
families = [engine.start(Limits(branches=2)) for _ in range(3)]
print(owner(), flush=True)
families[0].ask(0, {{"op": "run", "code": "while True: pass", "timeout": 60, "display": False}}, 60)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        found = {"label": f"{OWNER_LABEL}={name}"}
        assert len(client.containers(all=True, filters=found)) == 3
        time.sleep(0.2)
        process.kill()
    assert wait_until(lambda: not client.containers(all=True, filters=found))


@pytest.mark.docker
def test_a_process_that_ends_waits_for_its_containers(client: Any) -> None:
    code = f"""
from sandboxes import shared
from sandboxes.python.docker.engine import DockerEngine
from sandboxes.python.docker.settings import ContainerSettings
from sandboxes.python import Limits
from sandboxes.python.owners import owner
engine = shared.acquire("engine", lambda: DockerEngine(ContainerSettings(image={IMAGE!r}), preload=()), linger=True).engine
families = [engine.start(Limits(branches=2)) for _ in range(2)]
print(owner())
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert not done.stderr
    assert not client.containers(all=True, filters={"label": f"{OWNER_LABEL}={done.stdout.strip()}"})


@pytest.mark.docker
def test_many_are_started_at_once(client: Any, engine: DockerEngine) -> None:
    def start() -> str:
        with contextlib.closing(engine.start(SMALL)) as family:
            return str(run(family, "print(6 * 7)")["stdout"])

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        said = [pool.submit(start) for _ in range(12)]
    assert [future.result() for future in said] == ["42\n"] * 12


# Whose fault it is


def inside(client: Any, identity: str, code: str) -> None:
    """Runs something as the container's root, beside the supervisor: what code that broke out of its user could do."""
    order = client.exec_create(identity, ["python3", "-c", code], user="0:0")
    client.exec_start(order["Id"])


@pytest.mark.docker
def test_a_container_that_ends_itself_is_the_codes_own_doing(client: Any, engine: DockerEngine) -> None:
    family, identity = id_of(client, lambda: engine.start(SMALL))
    timer = threading.Timer(0.3, lambda: inside(client, identity, "import os; os.kill(1, 15)"))
    timer.start()
    with pytest.raises(SandboxEnded, match=r"^ended: its container's exit status was 143$"):
        run(family, "__import__('time').sleep(30)", 60)
    timer.join()
    assert not family.alive
    family.close()


@pytest.mark.docker
def test_a_container_without_memory_is_the_codes_own_doing(client: Any, engine: DockerEngine) -> None:
    family, identity = id_of(client, lambda: engine.start(SMALL))
    # The kernel is told to choose the first process, though it would rather take the worker or the one that is to blame.
    fill = """
import os
for name in os.listdir("/proc"):
    if name.isdigit():
        with open(f"/proc/{name}/oom_score_adj", "w") as file:
            file.write("1000" if name == "1" else "0")
x = b"x" * (1 << 30)
"""
    timer = threading.Timer(0.3, lambda: inside(client, identity, fill))
    timer.start()
    with pytest.raises(SandboxEnded, match=r"^was killed: its container was out of memory$"):
        run(family, "__import__('time').sleep(30)", 60)
    timer.join()
    family.close()


@pytest.mark.docker
def test_a_container_that_somebody_removes_is_a_retryable_fault(client: Any, engine: DockerEngine) -> None:
    family, identity = id_of(client, lambda: engine.start(SMALL))
    timer = threading.Timer(0.3, lambda: client.kill(identity))
    timer.start()
    with pytest.raises(SandboxFault, match="was ended from outside, or its engine is being stopped") as caught:
        run(family, "__import__('time').sleep(30)", 60)
    assert caught.value.retryable
    timer.join()
    family.close()


@pytest.fixture(scope="module")
def mortal(client: Any) -> Iterator[OwnEngine]:
    with own_engine(client) as engine:
        yield engine


@pytest.mark.docker
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_engine_that_stops_in_the_middle_of_a_call_is_a_retryable_fault(
    mortal: OwnEngine, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", mortal.address)
    mortal.stop()
    mortal.start()
    engine = DockerEngine(ContainerSettings(image=IMAGE), preload=())
    families = [engine.start(SMALL) for _ in range(3)]
    faults: list[tuple[float, BaseException]] = []

    def call(family: Family) -> None:
        try:
            run(family, "__import__('time').sleep(60)", 60)
        except (SandboxFault, SandboxEnded) as problem:
            faults.append((time.monotonic(), problem))

    threads = [threading.Thread(target=call, args=(family,)) for family in families]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stopped = time.monotonic()
    mortal.signal(number)
    for thread in threads:
        thread.join(30)
    assert len(faults) == 3
    for moment, fault in faults:
        assert isinstance(fault, SandboxFault), fault
        assert fault.retryable
        assert f"the Docker engine at {mortal.address} cannot be reached" in str(fault)
        assert moment - stopped < FAULT_SECONDS
    for family in families:
        family.close()
    mortal.stop()
    mortal.start()
    with contextlib.closing(engine.start(SMALL)) as family:
        assert run(family, "print(1)")["stdout"] == "1\n"
    engine.close()
    with contextlib.closing(mortal.client()) as client:
        assert wait_until(lambda: not client.containers(all=True))


def test_gvisor_runs_the_same_program(client: Any) -> None:
    if "runsc" not in client.info()["Runtimes"]:
        pytest.skip("the engine has no runtime runsc")
    with (
        contextlib.closing(DockerEngine(ContainerSettings(image=IMAGE, runtime="runsc"), preload=())) as engine,
        contextlib.closing(engine.start(SMALL)) as family,
    ):
        assert engine.protection.backend == "docker (runsc)"
        assert say(family, "6 * 7") == 42
        assert "4.4.0" in run(family, "print(open('/proc/version').read())")["stdout"], "the version that gVisor says it has"
        assert run(family, "while True: pass", 0.5)["status"] == "timeout"
        run(family, "x = 6")
        copied = family.fork(0)["forked"]
        run(family, "x = 7")
        again = {"op": "run", "code": "print(x)", "timeout": 5.0, "display": False}
        assert family.ask(copied, again)["stdout"] == "6\n"
        family.renew()
        assert "NameError" in run(family, "x")["error"]


def test_the_supervisors_capabilities_are_the_ones_in_the_table() -> None:
    told = container_configuration("image", ContainerSettings(), SMALL, 12345, {})["HostConfig"]
    assert told["CapDrop"] == ["ALL"]
    assert sorted(told["CapAdd"]) == ["KILL", "SETGID", "SETUID"] == sorted(name.upper() for name in CAPABILITIES)
