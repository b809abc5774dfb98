"""``python -m sandboxes``."""

from __future__ import annotations

import pytest
from docker_engine import IMAGE, client_or_skip

from sandboxes.__main__ import main


def test_describe_says_what_is_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--backend", "local"]) == 0
    assert capsys.readouterr().out.startswith("local interpreter; network: ")


@pytest.mark.docker
def test_describe_starts_a_container_to_find_out(capsys: pytest.CaptureFixture[str]) -> None:
    client_or_skip().close()
    assert main(["describe", "--backend", "docker", "--image", IMAGE]) == 0
    assert capsys.readouterr().out.startswith("docker interpreter; network: no network; files: container; ")


@pytest.mark.parametrize("command", [["describe", "--backend", "docker"], ["build-image"]])
def test_an_absent_engine_is_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: the Docker engine at unix:///nowhere/docker.sock cannot be reached: ")
    assert captured.err.count("\n") == 1


def test_a_mirror_is_one_of_debian(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-image", "--mirror", "http://127.0.0.1:9/debian"]) == 1
    assert "name a release with --debian too" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["build-image", "--base", "x", "--debian", "bookworm"]])
def test_a_wrong_command_line_ends_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m sandboxes" in capsys.readouterr().err


def test_describe_refuses_what_a_backend_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--backend", "local", "--image", "some-image"]) == 1
    assert capsys.readouterr().err.startswith("error: image and runtime are arguments of the docker backend")


@pytest.mark.parametrize("removed", [[], ["container 1: its process is gone", "folder /2: its process is gone"]])
def test_reap_says_what_it_removed(
    removed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxes.__main__.reap", lambda: removed)
    assert main(["reap"]) == 0
    assert capsys.readouterr().out.splitlines() == (removed or ["nothing was left behind"])
