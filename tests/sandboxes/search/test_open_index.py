"""Opening an index by where it is, and sharing it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from retrieve_server import served

from sandboxes.faults import SandboxFault
from sandboxes.search import Bm25Index, Connection, Passage, open_index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Bm25Index.build([Passage("1", "Kovamir", "A river.")]).save(tmp_path / "index")
    return tmp_path / "index"


def test_a_folder(folder: Path) -> None:
    for where in (folder, str(folder)):
        with open_index(where) as index:
            assert index.search(["rivers"])[0][0].id == "1"
            assert index.get("1").title == "Kovamir"
            assert len(index) == 1


def test_a_server(folder: Path) -> None:
    with open_index(folder) as local, served(local) as address, open_index(f"{address}/retrieve", timeout=5) as index:
        assert index.search(["rivers"]) == local.search(["rivers"])
        assert len(index) == 1


def test_users_share_what_is_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, closed = [], []
    load, close = Bm25Index.load, Bm25Index.close
    monkeypatch.setattr(Bm25Index, "load", lambda *a, **o: loaded.append(a) or load(*a, **o))
    monkeypatch.setattr(Bm25Index, "close", lambda self: closed.append(self) or close(self))
    one, other = open_index(folder), open_index(str(folder))
    assert len(loaded) == 1
    one.close()
    one.close()
    assert not closed
    assert other.search(["river"])[0][0].id == "1"
    with pytest.raises(SandboxFault, match="closed: open it again"):
        one.search(["river"])
    other.close()
    assert len(closed) == 1
    with open_index(folder), open_index(folder, mmap=False):
        assert len(loaded) == 3


def test_a_rebuilt_index_is_another_one(folder: Path) -> None:
    with open_index(folder) as before:
        Bm25Index.build([Passage("2", "Benu", "A river too.")]).save(folder)
        with open_index(folder) as after:
            assert [index.search(["river"])[0][0].id for index in (before, after)] == ["1", "2"]


def test_a_forked_child_opens_its_own(folder: Path) -> None:
    with open_index(folder) as local, served(local) as address, open_index(address) as index:
        assert index.search(["river"])[0][0].id == "1"
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if index.search(["river"])[0][0].id == "1" else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert index.search(["river"])[0][0].id == "1"


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(
        SandboxFault, match=r"there is no search index at .*: build one with python -m sandboxes\.search index"
    ):
        open_index(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"begins with elasticsearch://, .*https://; found ftp://"):
        open_index("ftp://host/index")


@pytest.mark.parametrize(
    ("where", "options", "complaint"),
    [
        ("folder", {"timeout": 3.0}, "timeout is an argument of another kind of index than 'folder', which takes mmap"),
        ("folder", {"connection": Connection()}, "connection is an argument of another kind"),
        ("http://host/retrieve", {"mmap": True}, "which takes timeout"),
        ("elasticsearch://host/index", {"timeout": 3.0}, "which takes connection"),
    ],
)
def test_arguments_of_another_kind(where: str, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_index(where, **options)  # type: ignore[arg-type]
