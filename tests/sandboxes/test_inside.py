"""The parts that the local interpreter is made of, each by itself."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxes.python import open_interpreter
from sandboxes.python.inside.folders import empty_folder, remove_folder, size_of_folder
from sandboxes.python.inside.frames import ChannelClosed, FrameChannel
from sandboxes.python.inside.processes import ProcessTree
from sandboxes.python.local.libraries import is_below, readable_paths, steps_to_mirror


@pytest.fixture
def channels() -> Iterator[tuple[FrameChannel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield FrameChannel(ours.fileno(), ours.fileno()), theirs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@settings(max_examples=50, deadline=None)
@given(message=st.dictionaries(st.text(st.characters()), JSON))
def test_messages_arrive_as_they_were_sent(message: dict[str, object]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = FrameChannel(ours.fileno(), ours.fileno())
        thread = threading.Thread(target=sender.send, args=(message,))
        thread.start()
        assert FrameChannel(theirs.fileno(), theirs.fileno()).receive(5) == message
        thread.join()


def test_a_message_in_pieces(channels: tuple[FrameChannel, socket.socket]) -> None:
    channel, other = channels
    thread = threading.Thread(
        target=lambda: [(other.send(bytes([byte])), time.sleep(0.001)) for byte in b'\0\0\0\x08{"a": 1}']
    )
    thread.start()
    assert channel.receive(5) == {"a": 1}
    thread.join()


@pytest.mark.parametrize("text", [b"\0\0\0\x02[]", struct.pack("!I", 1 << 31)])
def test_what_is_no_message(channels: tuple[FrameChannel, socket.socket], text: bytes) -> None:
    channel, other = channels
    other.send(text)
    with pytest.raises(ChannelClosed, match="expected"):
        channel.receive(5)


def test_silence_and_hanging_up(channels: tuple[FrameChannel, socket.socket]) -> None:
    channel, other = channels
    with pytest.raises(TimeoutError):
        channel.receive(0.05)
    other.send(b"\0\0")
    other.close()
    with pytest.raises(ChannelClosed, match="gone"):
        channel.receive(5)
    with pytest.raises(ChannelClosed, match="gone"):
        channel.send({"text": "x" * 10**7})


def test_a_folder_is_emptied_whatever_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    os.link(outside / "kept", folder / "hard")
    closed = folder / "closed"
    (closed / "inner" / "most").mkdir(parents=True)
    (closed / "inner" / "link").symlink_to(outside)
    (closed / "inner").chmod(0)
    closed.chmod(0)
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        for _ in range(2500):  # deeper than any path may be long
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
        os.close(here)
    empty_folder(str(folder))
    assert os.listdir(folder) == []
    assert (outside / "kept").read_text() == "kept"
    remove_folder(str(folder))
    remove_folder(str(folder))
    assert not folder.exists()


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    empty = size_of_folder(str(tmp_path), 10)
    assert empty == 0
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to("/usr")
    size = size_of_folder(str(tmp_path), 10)
    assert size is not None
    assert 100_000 <= size < 130_000
    assert size_of_folder(str(tmp_path), 2) is None
    deep = tmp_path.joinpath(*["d"] * 200)
    deep.mkdir(parents=True)
    assert size_of_folder(str(tmp_path), 10_000) is None


def grandchildren() -> tuple[int, int]:
    """A child with a child of its own, both asleep: their ids."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild:
            os.write(writer, str(grandchild).encode())
        time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    return child, grandchild


@pytest.mark.parametrize("children_files", [True, False])
def test_the_processes_below(children_files: bool) -> None:
    with open_interpreter() as python:  # its processes have other ids in a namespace of their own
        python.run("1")
        child, grandchild = grandchildren()
        proc = os.open("/proc", os.O_RDONLY)
        try:
            tree = ProcessTree(proc)
            tree._has_children_file = tree._has_children_file and children_files
            below = {process.id: process for process in tree.below()}
            assert {child, grandchild} <= set(below)
            assert all(process.id == int(process.entry) for process in below.values()), (
                "ids of this namespace, to be signalled"
            )
            assert below[child].threads >= 1
            assert below[child].resident_bytes > 2**20
            assert child in tree.children()
            assert grandchild not in tree.children()
            os.kill(child, signal.SIGKILL)
            end = time.monotonic() + 5
            while not {process.id: process for process in tree.below()}[child].zombie and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(grandchild, signal.SIGKILL)
            os.waitpid(child, 0)
            assert child not in {process.id for process in tree.below()}
        finally:
            os.close(proc)


def test_what_may_be_read_is_python_and_not_this_project() -> None:
    readable = readable_paths()
    assert is_below(os.path.realpath(os.__file__), [os.path.realpath(path) for path in readable])
    for private in (
        str(REPOSITORY / "sandboxes"),
        str(REPOSITORY / "pyproject.toml"),
        "/etc/passwd",
        os.path.expanduser("~/.ssh"),
    ):
        assert not is_below(private, readable)
    for path in readable:
        others = [other for other in readable if other != path]
        assert not is_below(path, others)


def test_a_mirror_follows_links(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "lib").mkdir(parents=True)
    (real / "python").write_text("")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "absolute").symlink_to(real / "lib")
    steps = steps_to_mirror([str(tmp_path / "link" / "lib"), str(tmp_path / "absolute"), str(real / "python")])
    by_path = {(step.path, step.kind) for step in steps}
    assert (str(tmp_path / "link"), "link") in by_path
    assert (str(real / "lib"), "mount") in by_path
    assert (str(real / "python"), "file") in by_path
    assert [step.path for step in steps].count(str(real / "lib")) == 2, "made once as a folder, and mounted once"
    made: set[str] = set()
    for step in steps:
        parent = os.path.dirname(step.path)
        assert parent == "/" or parent in made, "a folder comes before what is in it"
        made.add(step.path)


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many symbolic links"):
        steps_to_mirror([str(tmp_path / "a" / "x")])


def test_this_python_is_the_sandboxes_python() -> None:
    with open_interpreter() as python:
        version = python.run(
            "import sys; print(sys.version_info[:3] == VERSION, sys.argv)".replace("VERSION", str(sys.version_info[:3]))
        )
        assert version.stdout == "True ['']\n"
