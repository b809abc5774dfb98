"""What the tests of the web tool and of its tasks share: an environment, the engines, and what a page shows."""

from __future__ import annotations

import functools
import json
import re

import pytest

from agent_envs.env import ToolEnv
from agent_envs.tasks.site import WikiSite
from agent_envs.tasks.tiny_web import TinyWeb
from agent_envs.tools.web import WebTool
from sandboxes.browser.opening import open_browser
from sandboxes.faults import SandboxFault

ENGINES = ("reader", pytest.param("chromium", marks=pytest.mark.browser))
"""For ``parametrize``; a test that takes one calls `engine_or_skip`."""


def engine_or_skip(backend):
    """The engine's name, if it can be had here."""
    missing = _why_no_chromium() if backend == "chromium" else ""
    if missing:
        pytest.skip(missing)
    return backend


@functools.lru_cache
def _why_no_chromium():
    try:
        with open_browser("chromium") as browser:
            browser.new_page().close()
    except SandboxFault as problem:
        return str(problem)
    return ""


def web_env(backend="reader", split="train", max_turns=20, **options):
    """An environment on the small site."""
    tasks = TinyWeb(**options)
    return ToolEnv(
        tasks=tasks, tools=[WebTool(backend, WikiSite())], verifier=tasks.verifier(), split=split, max_turns=max_turns
    )


def browse(**arguments):
    """An action of the tag format."""
    return f"<browse>{json.dumps(arguments)}</browse>"


def answer(text):
    return rf"<answer>\boxed{{{text}}}</answer>"


def ref_of(label, observation):
    """The ref of the last element of that label in an observation."""
    found = re.findall(r"\[(e\d+)(?: \w+)?(?: \"([^\"\n]*)\")?: ([^\]\n]*)\]", observation)
    return next(ref for ref, name, text in reversed(found) if label == (name or text))


def elements(observation):
    """Ref, role (``"link"`` for links), label and value of each element in an observation."""
    found = re.findall(r"\[(e\d+)(?: (\w+))?(?: \"([^\"\n]*)\")?: ([^\]\n]*)\]", observation)
    return [(ref, role or "link", name or text, text if name else "") for ref, role, name, text in found]
