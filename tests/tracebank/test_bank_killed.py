"""A writer may be killed at any moment: the bank opens, and holds all that was acknowledged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLING = Path(__file__).with_name("killing.py")


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.thorough)])
def test_killed_while_adding_and_compacting(tmp_path: Path, kills: int):
    command = [sys.executable, str(KILLING), str(tmp_path / "bank"), str(kills), "0"]
    path = os.pathsep.join([str(KILLING.parents[2]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{kills} kills\n"
