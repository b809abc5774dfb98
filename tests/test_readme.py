"""The README's code is Python, and its first example plays an episode of every id to its end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import agent_envs

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_python(number):
    compile(BLOCKS[number], f"block {number} of README.md", "exec")


def test_ten_lines_pasted_into_a_fresh_interpreter_play_every_id_by_its_oracle():
    first = BLOCKS[0]
    assert len([line for line in first.splitlines() if line]) == 10
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=f"{first}\n", capture_output=True, text=True, timeout=300, cwd=README.parent
    )
    for name in agent_envs.ENVIRONMENTS:
        assert re.search(rf"{name} 1\.0 .*True$", done.stdout, re.MULTILINE), done.stdout + done.stderr
