"""python -m sandboxes.search: index a corpus, ask it, serve it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3
from tiny_elasticsearch import tiny_elasticsearch

from sandboxes.search import Connection, open_index
from sandboxes.search.__main__ import main


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    entries = [{"id": str(n), "contents": f'"Title {n}"\nThe river number{n} is long.'} for n in range(30)]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def test_index_and_query(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "wiki")
    assert main(["index", "--corpus", str(corpus), "--to", folder]) == 0
    out, err = capsys.readouterr()
    assert out == f"bm25 (k1 0.9, b 0.4, english), 30 passages, {folder}\n"
    assert err == ""
    assert main(["query", folder, "which", "rivers", "number7", "-k", "2"]) == 0
    first, text, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("1. Title 7   [7]   ")
    assert text == "   The river number7 is long."
    assert second.startswith("2. Title 0   [0]   ")
    assert main(["query", folder, "volcano"]) == 0
    assert capsys.readouterr().out == "nothing was found\n"
    assert main(["index", "--corpus", str(corpus), "--to", folder, "--k1", "1.2", "--b", "0.75"]) == 0
    assert "k1 1.2, b 0.75" in capsys.readouterr().out


def test_a_corpus_with_a_broken_line_and_a_cut(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = corpus.read_bytes().splitlines(keepends=True)
    corpus.write_bytes(lines[0] + b"{broken\n" + b"".join(lines[1:])[:-20])
    assert main(["index", "--corpus", str(corpus), "--to", str(tmp_path / "wiki")]) == 0
    out, err = capsys.readouterr()
    assert "29 passages" in out
    assert "warning: 29 passages read, broken lines left out: 1" in err
    assert "corpus.jsonl, line 2: expected JSON" in err
    assert "corpus.jsonl ends in the middle of a line after 30 whole lines" in err
    with open_index(tmp_path / "wiki") as index:
        assert len(index) == 29


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["query", "{tmp}/nowhere", "x"], "there is no search index at '{tmp}/nowhere': build one with python -m"),
        (["query", "http://127.0.0.1:1/retrieve", "x", "--timeout", "0.2"], "no answer from the search server at"),
        (["index", "--corpus", "{tmp}/none", "--to", "{tmp}/wiki"], "there is no corpus at '{tmp}/none'"),
        (["index", "--corpus", "{corpus}", "--to", "{tmp}"], "something else is there, name a new folder"),
        (["index", "--corpus", "{corpus}", "--to", "{tmp}/wiki", "--format", "dpr"], "no line is of the format dpr"),
        (["index", "--corpus", "{twice}", "--to", "{tmp}/wiki"], "two passages have the id '3'"),
        (
            ["index", "--corpus", "{corpus}", "--to", "elasticsearch://h/i", "--k1", "1"],
            "--k1 and --b are of an index in a folder",
        ),
        (["index", "--corpus", "{corpus}", "--to", "http://h/retrieve"], "http://h/retrieve"),
        (["serve", "--index", "{tmp}/nowhere"], "there is no search index at"),
        (["query", "{tmp}/nowhere", "x", "-k", "0"], "there is no search index at"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], complaint: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twice.jsonl").write_text(corpus.read_text() + corpus.read_text().splitlines()[3] + "\n")
    names = {"tmp": tmp_path, "corpus": corpus, "twice": tmp_path / "twice.jsonl"}
    assert main([argument.format(**names) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert complaint.format(**names) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "wiki").exists()


def test_elasticsearch(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tiny_elasticsearch() as server:
        assert main(["index", "--corpus", str(corpus), "--to", server.where, "--timeout", "20"]) == 0
        assert capsys.readouterr().out == "30 passages loaded, 0 were there already, 0 failed\n"
        assert main(["query", server.where, "number7"]) == 0
        assert "1. Title 7   [7]" in capsys.readouterr().out
        assert main(["index", "--corpus", str(corpus), "--to", server.where]) == 0
        assert capsys.readouterr().out == "0 passages loaded, 30 were there already, 0 failed\n"
        assert main(["index", "--corpus", str(corpus), "--to", server.where, "--no-resume"]) == 1
        assert "already" in capsys.readouterr().err
        with open_index(server.where, connection=Connection(timeout=5)) as index:
            assert index.get("7").title == "Title 7"


def test_elasticsearch_that_refuses_a_passage(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus.write_text('{"id": "' + "x" * 600 + '", "contents": "an id that is too long"}\n' + corpus.read_text())
    with tiny_elasticsearch() as server:
        assert main(["index", "--corpus", str(corpus), "--to", server.where]) == 1
        out, err = capsys.readouterr()
    assert out.startswith("30 passages loaded, 0 were there already, 1 failed")
    assert err == "error: 1 of the passages could not be loaded\n"


def test_serve_until_it_is_stopped(corpus: Path, tmp_path: Path) -> None:
    main(["index", "--corpus", str(corpus), "--to", str(tmp_path / "wiki")])
    command = [sys.executable, "-m", "sandboxes.search", "serve", "--index", str(tmp_path / "wiki"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "serving bm25" in line, server.stderr and server.stderr.read()
        url = line.split(" at ")[-1].strip()
        answer = urllib3.request("POST", url, json={"query": "number7", "topk": 1}, retries=False).json()
        assert answer["result"][0][0]["id"] == "7"
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""
