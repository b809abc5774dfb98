"""The page about environments says what the kit asks."""

from __future__ import annotations

import re
from pathlib import Path

from agent_envs import testing
from agent_envs.testing import PROFILES, PROMISES

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()


def test_the_page_names_every_promise_with_its_sentence_and_what_breaks_it() -> None:
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.splitlines() if line.startswith("| ")
    ]
    rows = [row for row in rows if row[0] != "promise"]
    assert [row[:2] for row in rows] == [(promise.name, promise.says) for promise in PROMISES]
    assert all(len(row) == 3 and len(row[2]) > 10 for row in rows)


def test_what_the_page_imports_is_there_and_its_profiles_are_the_profiles() -> None:
    for names in re.findall(r"from agent_envs\.testing import ([\w, ]+)", PAGE):
        assert all(hasattr(testing, name.strip()) for name in names.split(","))
    for name, profile in PROFILES.items():
        assert re.search(rf'`"{name}"`\s+\((?:{profile.examples} episodes|{profile.examples}\))', PAGE), name
