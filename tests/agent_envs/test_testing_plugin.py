"""``pytest --agent-env ID``, as whoever types it sees it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path

import kit_parts
import pytest

from agent_envs.testing import PROMISES

ROOT = Path(__file__).parents[2]

REGISTERS = """
import gymnasium
from kit_parts import Parrot, Unmade, Unseeded

gymnasium.register("kit/Parrot-v0", Parrot)
gymnasium.register("kit/Chance-v0", Unseeded)
gymnasium.register("kit/Unmade-v0", Unmade)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with a module that registers environments, and a test."""
    (tmp_path / "mine.py").write_text(REGISTERS)
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """pytest in that folder, with no plugin but ours: its exit code and what it printed."""
    paths = os.pathsep.join([str(folder), str(Path(kit_parts.__file__).parent), str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "agent_envs.testing.plugin", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_each_promise_is_a_test_and_only_they_run(folder: Path) -> None:
    code, out = run(folder, "--agent-env", "mine:kit/Parrot-v0", "--collect-only", "-q")
    names = [line for line in out.splitlines() if "::" in line]
    assert (code, names) == (0, [f"mine:kit/Parrot-v0::{promise.name}" for promise in PROMISES])
    code, out = run(folder, "--agent-env", "mine:kit/Parrot-v0", "-v", "-k", "seed and not tasks")
    assert code == 0, out
    assert "mine:kit/Parrot-v0::seed PASSED" in out
    assert "1 passed" in out
    assert f"{len(PROMISES) - 1} deselected" in out


def test_a_broken_promise_is_shown_as_a_finding_without_the_kits_traceback(folder: Path) -> None:
    code, out = run(folder, "--agent-env", "mine:kit/Chance-v0", "-k", "seed or fork", "-x")
    assert code == 1
    assert "BROKEN    seed: The same seed and actions give the same episode" in out
    assert "check_agent_env('mine:kit/Chance-v0', only='seed', example=Episode(" in out
    assert "stopping after 1 failures" in out
    assert "Traceback" not in out
    assert "agent_envs/testing" not in out


def test_what_is_not_asked_is_skipped_with_its_reason(folder: Path) -> None:
    code, out = run(folder, "--agent-env", "mine:kit/Parrot-v0", "-k", "oracle", "-rs")
    assert code == 0
    assert "1 skipped" in out
    assert "ToolEnv" in out


def test_an_environment_that_cannot_be_made_fails_with_one_reason(folder: Path) -> None:
    code, out = run(folder, "--agent-env", "mine:kit/Unmade-v0", "-k", "seed and not tasks")
    assert code == 1
    assert "BROKEN    made: It can be made, reset and closed." in out
    assert "OSError: no parrot in this shop" in out
    assert "INTERNALERROR" not in out


def test_with_a_path_both_run_and_several_ids_do(folder: Path) -> None:
    ids = ("--agent-env", "mine:kit/Parrot-v0", "--agent-env", "mine:kit/Chance-v0", "--agent-env", "mine:kit/Parrot-v0")
    code, out = run(folder, "test_mine.py", *ids, "-k", "test_mine or types", "-v", "--junitxml", "report.xml")
    assert code == 0, out
    assert "3 passed" in out
    cases = xml.etree.ElementTree.parse(folder / "report.xml").findall(".//testcase")
    assert {(case.get("classname"), case.get("name")) for case in cases} == {
        ("test_mine", "test_mine"),
        ("mine:kit.Parrot-v0", "types"),
        ("mine:kit.Chance-v0", "types"),
    }


def test_without_the_option_nothing_changes_and_nothing_heavy_is_imported(folder: Path) -> None:
    (folder / "test_light.py").write_text(
        "import sys\n\n\ndef test_light():\n    assert 'agent_envs.testing.plugin' in sys.modules\n"
        "    assert not {'hypothesis', 'torch', 'agent_envs.testing.promises'} & set(sys.modules)\n"
    )
    code, out = run(folder, "-v")
    assert code == 0, out
    assert "2 passed" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("agent_envs/NoSuch-v0", "ERROR: --agent-env agent_envs/NoSuch-v0: Environment `NoSuch` doesn't exist"),
        ("no_such_module:Mine-v0", "ERROR: --agent-env no_such_module:Mine-v0: No module named 'no_such_module'"),
    ],
)
def test_a_wrong_id_is_told_in_one_line(folder: Path, name: str, said: str) -> None:
    code, out = run(folder, "--agent-env", name)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert said in out
    assert "Traceback" not in out


def test_without_hypothesis_it_says_what_to_install(folder: Path) -> None:
    (folder / "hypothesis.py").write_text("raise ModuleNotFoundError(\"No module named 'hypothesis'\", name='hypothesis')\n")
    code, out = run(folder, "--agent-env", "mine:kit/Parrot-v0")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "pip install 'agent-envs[testing]'" in out
    code, out = run(folder, "test_mine.py")
    assert code == 0, "whoever does not check an environment does not need it"


def test_the_profile_is_the_one_that_was_named(folder: Path) -> None:
    code, out = run(folder, "--agent-env", "mine:kit/Parrot-v0", "--agent-env-profile", "fast")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "quick" in out
    (folder / "conftest.py").write_text(
        "from agent_envs.testing import check\n\n\n"
        "asked = check.Search.run\n\n\n"
        "def told(self):\n    asked(self)\n    print('episodes', self.asked)\n\n\n"
        "check.Search.run = told\n"
    )
    _, quick = run(folder, "--agent-env", "mine:kit/Parrot-v0", "-k", "types", "-s")
    _, ci = run(folder, "--agent-env", "mine:kit/Parrot-v0", "--agent-env-profile", "ci", "-k", "types", "-s")
    assert "episodes 8" in quick
    assert "episodes 60" in ci


def test_pytest_finds_the_plugin_where_the_package_is_installed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert declared == {"agent_envs": "agent_envs.testing.plugin"}
    installed = [point for point in importlib.metadata.entry_points(group="pytest11") if point.name == "agent_envs"]
    assert all(point.value == "agent_envs.testing.plugin" for point in installed)
