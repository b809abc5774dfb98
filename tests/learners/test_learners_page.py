"""docs/learners.md says what the code does: the learners, every option of the presets, the commands, the example."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from learners.run.command import parse
from learners.run.config import RunConfig, learner_name

ROOT = Path(__file__).parents[2]
PAGE = "\n" + (ROOT / "docs" / "learners.md").read_text()
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "examples" / "leave_one_out.py"

COMMANDS_TOO = {"collect", "evaluate"}  # they train nothing


def config_of(name: str) -> type[RunConfig]:
    """The configuration of ``learners.NAME``."""
    module = importlib.import_module(f"learners.{name}")
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, RunConfig)]
    (own,) = [value for value in found if learner_name(value) == name]
    return own


LEARNERS = sorted(
    path.stem
    for path in (ROOT / "learners").glob("*.py")
    if "def main" in path.read_text() and path.stem not in COMMANDS_TOO
)
WITH_PRESETS = [name for name in LEARNERS if config_of(name).PRESETS]


def table_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the page, its own heading among them."""
    lines = PAGE.partition(f"\n{heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [row for row in rows if set("".join(row)) != {"-"}]


def shown(value: Any) -> str:
    return (
        {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def options_that_differ(name: str) -> list[list[str]]:
    """The table of a learner: every option that is not the same for ours and all presets."""
    config_class = config_of(name)
    columns = {"ours": parse(config_class, [], "")}
    columns |= {preset: parse(config_class, ["--preset", preset], "") for preset in config_class.PRESETS}
    rows = [["option", *columns]]
    for field in fields(config_class):
        values = [shown(getattr(config, field.name)) for config in columns.values()]
        if field.name != "preset" and len(set(values)) > 1:
            rows.append([f"`--{field.name.replace('_', '-')}`", *values])
    return rows


@pytest.mark.parametrize("name", WITH_PRESETS)
def test_the_table_of_presets_is_what_they_are(name):
    expected, found = options_that_differ(name), table_below(f"### Presets of {name}")
    right = "\n".join(f"| {' | '.join(row)} |" for row in expected)
    wrong = [row[0] for row in expected if row not in found] + [row[0] for row in found if row not in expected]
    assert not wrong, (
        f"docs/learners.md, {name}: wrong are the rows {', '.join(dict.fromkeys(wrong))}; the table is\n{right}"
    )
    assert found == expected, f"docs/learners.md, {name}: the order is another; the table is\n{right}"


def test_every_learner_is_in_the_table_with_its_paper():
    rows = {row[0].strip("`").removeprefix("learners."): row for row in table_below("# Learners")[1:]}
    assert sorted(rows) == LEARNERS
    for name, row in rows.items():
        header = importlib.import_module(f"learners.{name}").__doc__
        for paper in re.findall(r"\d{4}\.\d{5}", " ".join(row)):
            assert paper in header, f"learners/{name}.py does not name {paper}"
        assert name == "sft" or re.search(r"\d{4}\.\d{5}", row[1]), f"{name} has no paper"


def test_every_learner_is_in_the_readme():
    for name in LEARNERS:
        assert f"`learners.{name}`" in README


def commands(text: str) -> list[str]:
    lines = [
        line.partition("  #")[0].strip()
        for block in re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    return [
        *(line for line in lines if line.startswith("python -m learners.")),
        *re.findall(r"`(python -m learners\.[^`]+)`", text),
    ]


COMMANDS = sorted({*commands(PAGE), *commands(README)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    name, *arguments = shlex.split(command.removeprefix("python -m learners."))
    if name in COMMANDS_TOO or "--resume" in arguments:
        pytest.skip("it trains nothing, or goes on with a run")
    config = parse(config_of(name), arguments, "")
    given = [argument for argument in arguments if argument.startswith("--") and not argument.startswith("--no-")]
    for option in given:
        assert hasattr(config, option.removeprefix("--").replace("-", "_"))


def test_the_page_has_commands():
    assert len(commands(PAGE)) > 8


def test_the_example_on_the_page_is_the_file():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block == EXAMPLE.read_text()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)", PAGE))
def test_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / "docs" / link).exists()
