"""docs/security.md names the test that shows each protection; those tests exist."""

from __future__ import annotations

import re

import pytest
from driver import REPOSITORY

PAGE = (REPOSITORY / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"([\w/]+\.py)::(test_\w+)(?:\[([^\]]+)\])?", PAGE)))


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize(("file", "test", "case"), NAMED, ids=lambda part: part.replace("/", "."))
def test_a_named_test_exists(file: str, test: str, case: str) -> None:
    path = REPOSITORY / file if "/" in file else REPOSITORY / "tests" / "sandboxes" / file
    text = path.read_text()
    assert f"def {test}(" in text
    assert f'"{case}"' in text or not case
