"""The environments behind the ids: how keyword arguments become a ``ToolEnv``.

A Gymnasium spec is JSON, so the functions here take names and numbers; whoever has objects passes them to ``ToolEnv`` or
calls the function directly.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agent_envs.actions import Format, HermesFormat, PlainFormat, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.reward import REWARDS
from agent_envs.task import TaskSource, UnknownTaskSource
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.tasks.benchmarks import ReasoningGym, gsm8k
from agent_envs.tasks.questions import JsonlTasks
from agent_envs.tasks.site import WikiSite
from agent_envs.tasks.tiny_web import TinyWeb
from agent_envs.tasks.tiny_wiki import TinyWiki
from agent_envs.tools.browse import BrowseTool
from agent_envs.tools.python import PythonTool
from agent_envs.tools.search import OpenIndex, SearchTool
from agent_envs.tools.web import WebTool
from agent_envs.vector import make_threads
from agent_envs.verifiers import Verifier
from agent_envs.verifiers.judge import JudgeVerifier
from agent_envs.verifiers.math import MathVerifier
from agent_envs.verifiers.qa import QAVerifier
from sandboxes.search import Connection, open_index

MATH_PROMPT = "Solve the problem."
WEB_PROMPT = "Do what is asked on the web site; then answer with what you found, or with done."
SEARCH_PROMPT = "Answer the question with a name or a few words, from what you find."


def math_tool(
    tasks: str | TaskSource = "arithmetic",
    split: str = "train",
    *,
    difficulty: int | Sequence[int] | None = None,
    task_options: Mapping[str, Any] | None = None,
    max_turns: int = 4,
    rewards: Sequence[str] = REWARDS,
    format: str | Format = "tag",
    system_prompt: str = MATH_PROMPT,
    instructions: bool = True,
    backend: Literal["auto", "local", "docker"] = "auto",
    isolation: Literal["auto", "none"] = "auto",
    timeout: float = 5.0,
    python: Mapping[str, Any] | None = None,
    max_observation: int = 8_000,
    max_action: int = 32_000,
) -> ToolEnv:
    """``agent_envs/MathTool-v0``: mathematical problems and a Python interpreter.

    Args:
        tasks: ``"arithmetic"``, ``"gsm8k"``, ``"reasoning_gym:NAME"``, the path of a ``.jsonl`` or ``.json`` file, or a
            ``TaskSource``.
        split: ``"train"``, ``"validation"`` or ``"test"``, as far as the source has it.
        difficulty: Operations in an arithmetic question; a number, or several to choose from.
        task_options: Further arguments of the source, such as reasoning-gym's ``{"max_terms": 3}``.
        max_turns: Actions in an episode.
        rewards: Parts of the reward that count: ``accuracy``, ``format``, ``tool_bonus``.
        format: ``"tag"``, ``"hermes"``, ``"plain"``, or a ``Format``.
        system_prompt: What the conversation opens with.
        instructions: Whether the format explains itself.
        backend: Which interpreter; ``"auto"`` takes the strongest there is.
        isolation: ``"none"`` permits an interpreter that nothing shuts in.
        timeout: Seconds that one call of the interpreter may take.
        python: Further arguments of `PythonTool`, such as ``{"stateful": False}``.
        max_observation: Characters of an observation.
        max_action: Characters of an action.

    Raises:
        UnknownTaskSource: ``tasks`` names nothing that exists.
        ValueError: Another argument is out of range.
    """
    source = _source(tasks, task_options, difficulty=difficulty)
    return ToolEnv(
        tasks=source,
        tools=[PythonTool(backend, timeout, isolation, **(python or {}))],
        format=_format(format, instructions),
        verifier=source.verifier() or MathVerifier(),
        max_turns=max_turns,
        split=split,
        system_prompt=system_prompt,
        rewards=rewards,
        max_observation=max_observation,
        max_action=max_action,
    )


def wiki_search(
    tasks: str | TaskSource = "tiny_wiki",
    split: str = "train",
    *,
    hops: int | Sequence[int] | None = None,
    task_options: Mapping[str, Any] | None = None,
    index: str | None = None,
    index_options: Mapping[str, Any] | None = None,
    k: int = 3,
    passage_chars: int = 700,
    judge: Mapping[str, Any] | None = None,
    max_turns: int = 6,
    rewards: Sequence[str] = REWARDS,
    format: str | Format = "tag",
    system_prompt: str = SEARCH_PROMPT,
    instructions: bool = True,
    max_observation: int = 8_000,
    max_action: int = 32_000,
) -> ToolEnv:
    """``agent_envs/WikiSearch-v0``: questions of several hops, and a search engine.

    Args:
        tasks: ``"tiny_wiki"``, the path of a ``.jsonl`` or ``.json`` file of questions, or a ``TaskSource``.
        split: ``"train"``, ``"validation"`` or ``"test"``, as far as the source has it.
        hops: Relations in a tiny wiki question; a number from 1 to 4, or several to choose from.
        task_options: Further arguments of the source.
        index: Where to search: what `sandboxes.search.open_index` takes, such as ``"elasticsearch://localhost:9200/wiki"``;
            by default the tiny wiki's own articles, in process.
        index_options: Further arguments of `open_index`; ``connection`` as a mapping of `Connection`'s fields.
        k: Passages in a result.
        passage_chars: Characters of a passage in a result.
        judge: Arguments of `JudgeVerifier`, to have answers judged by a language model; by default F1 and exact match.
        max_turns: Actions in an episode.
        rewards: Parts of the reward that count: ``accuracy``, ``format``, ``tool_bonus``.
        format: ``"tag"``, ``"hermes"``, ``"plain"``, or a ``Format``.
        system_prompt: What the conversation opens with.
        instructions: Whether the format explains itself.
        max_observation: Characters of an observation.
        max_action: Characters of an action.

    Raises:
        UnknownTaskSource: ``tasks`` names nothing that exists.
        ValueError: There is nothing to search in, or another argument is out of range.
    """
    source = _source(tasks, task_options, hops=hops)
    return ToolEnv(
        tasks=source,
        tools=[SearchTool(_index_opener(source, index, index_options), k, passage_chars)],
        format=_format(format, instructions),
        verifier=_qa_verifier(source, judge),
        max_turns=max_turns,
        split=split,
        system_prompt=system_prompt,
        rewards=rewards,
        max_observation=max_observation,
        max_action=max_action,
    )


def deep_search(
    tasks: str | TaskSource = "tiny_wiki",
    split: str = "train",
    *,
    hops: int | Sequence[int] | None = None,
    task_options: Mapping[str, Any] | None = None,
    index: str | None = None,
    index_options: Mapping[str, Any] | None = None,
    k: int = 3,
    passage_chars: int = 40,
    page_chars: int = 6_000,
    allow: Sequence[str] = (),
    browser: Literal["auto", "chromium", "reader"] = "auto",
    backend: Literal["auto", "local", "docker"] = "auto",
    isolation: Literal["auto", "none"] = "auto",
    timeout: float = 5.0,
    python: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    max_turns: int = 8,
    rewards: Sequence[str] = REWARDS,
    format: str | Format = "tag",
    system_prompt: str = SEARCH_PROMPT,
    instructions: bool = True,
    max_observation: int = 8_000,
    max_action: int = 32_000,
) -> ToolEnv:
    """``agent_envs/DeepSearch-v0``: questions of several hops; searches that show how pages begin, the pages, and Python.

    Args:
        tasks: As for `wiki_search`.
        split: ``"train"``, ``"validation"`` or ``"test"``, as far as the source has it.
        hops: Relations in a tiny wiki question; a number from 1 to 4, or several to choose from.
        task_options: Further arguments of the source.
        index: As for `wiki_search`.
        index_options: As for `wiki_search`.
        k: Passages in a result.
        passage_chars: Characters of a passage in a result; the rest is on its page.
        page_chars: Characters of a page.
        allow: Hosts whose pages may be opened by their address, such as ``"en.wikipedia.org"``.
        browser: What opens them; ``"auto"`` takes the strongest there is.
        backend: Which interpreter; ``"auto"`` takes the strongest there is.
        isolation: ``"none"`` permits an interpreter that nothing shuts in.
        timeout: Seconds that one call of the interpreter may take.
        python: Further arguments of `PythonTool`.
        judge: As for `wiki_search`.
        max_turns: Actions in an episode.
        rewards: Parts of the reward that count: ``accuracy``, ``format``, ``tool_bonus``.
        format: ``"tag"``, ``"hermes"``, ``"plain"``, or a ``Format``.
        system_prompt: What the conversation opens with.
        instructions: Whether the format explains itself.
        max_observation: Characters of an observation.
        max_action: Characters of an action.

    Raises:
        UnknownTaskSource: ``tasks`` names nothing that exists.
        ValueError: There is nothing to search in, or another argument is out of range.
    """
    source = _source(tasks, task_options, hops=hops, pages=True if tasks == "tiny_wiki" else None)
    opener = _index_opener(source, index, index_options)
    return ToolEnv(
        tasks=source,
        tools=[
            SearchTool(opener, k, passage_chars, ids=True),
            BrowseTool(opener, browser, allow, page_chars),
            PythonTool(backend, timeout, isolation, **(python or {})),
        ],
        format=_format(format, instructions),
        verifier=_qa_verifier(source, judge),
        max_turns=max_turns,
        split=split,
        system_prompt=system_prompt,
        rewards=rewards,
        max_observation=max_observation,
        max_action=max_action,
    )


def web_browse(
    tasks: str | TaskSource = "tiny_web",
    split: str = "train",
    *,
    kinds: Sequence[str] | None = None,
    hops: int | Sequence[int] | None = None,
    task_options: Mapping[str, Any] | None = None,
    start_url: str = "",
    allow: Sequence[str] = (),
    backend: Literal["auto", "chromium", "reader"] = "auto",
    limits: Mapping[str, Any] | None = None,
    browser: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    max_turns: int = 16,
    rewards: Sequence[str] = REWARDS,
    format: str | Format = "tag",
    system_prompt: str = WEB_PROMPT,
    instructions: bool = True,
    max_observation: int = 8_000,
    max_action: int = 32_000,
) -> ToolEnv:
    """``agent_envs/WebBrowse-v0``: things to find and to change on a web site, and a browser.

    Args:
        tasks: ``"tiny_web"``, the path of a ``.jsonl`` or ``.json`` file of questions, or a ``TaskSource``.
        split: ``"train"``, ``"validation"`` or ``"test"``, as far as the source has it.
        kinds: Which tasks of the tiny web, such as ``["find", "order"]``.
        hops: Relations in a tiny web task; a number from 1 to 4, or several to choose from.
        task_options: Further arguments of the source.
        start_url: Where an episode opens; by default the start page of the tiny web's own site.
        allow: What pages may reach beside that site, such as ``"docs.python.org"``; needed for any other ``start_url``.
        backend: Which browser; ``"auto"`` takes the strongest there is.
        limits: What a page may use: fields of `sandboxes.browser.PageLimits`.
        browser: Further arguments of `sandboxes.browser.open_browser`.
        judge: As for `wiki_search`; only of tasks that bring no verifier of their own.
        max_turns: Actions in an episode.
        rewards: Parts of the reward that count: ``accuracy``, ``format``, ``tool_bonus``.
        format: ``"tag"``, ``"hermes"``, ``"plain"``, or a ``Format``.
        system_prompt: What the conversation opens with.
        instructions: Whether the format explains itself.
        max_observation: Characters of an observation.
        max_action: Characters of an action.

    Raises:
        UnknownTaskSource: ``tasks`` names nothing that exists.
        ValueError: There is no page to open, or another argument is out of range.
    """
    source = _source(tasks, task_options, kinds=kinds, hops=hops)
    site = WikiSite() if isinstance(source, TinyWeb) else None
    return ToolEnv(
        tasks=source,
        tools=[WebTool(backend, site, start_url, allow, limits, options=browser)],
        format=_format(format, instructions),
        verifier=source.verifier() or _qa_verifier(source, judge),
        max_turns=max_turns,
        split=split,
        system_prompt=system_prompt,
        rewards=rewards,
        max_observation=max_observation,
        max_action=max_action,
    )


math_tool_vector = functools.partial(make_threads, "agent_envs/MathTool-v0")
wiki_search_vector = functools.partial(make_threads, "agent_envs/WikiSearch-v0")
deep_search_vector = functools.partial(make_threads, "agent_envs/DeepSearch-v0")
web_browse_vector = functools.partial(make_threads, "agent_envs/WebBrowse-v0")


def open_tasks(name: str, **options: Any) -> TaskSource:
    """The source of tasks of that name.

    Args:
        name: ``"arithmetic"``, ``"tiny_wiki"``, ``"tiny_web"``, ``"gsm8k"``, ``"reasoning_gym:NAME"`` or the path of a
            ``.jsonl`` or ``.json`` file.
        options: The source's own arguments.

    Raises:
        UnknownTaskSource: There is no such source, or no such file.
        ValueError: The source does not take these options.
    """
    kind, _, rest = name.partition(":")
    makers: dict[str, Callable[..., TaskSource]] = {
        "arithmetic": Arithmetic,
        "tiny_wiki": TinyWiki,
        "tiny_web": TinyWeb,
        "gsm8k": gsm8k,
    }
    if name in makers:
        make = makers[name]
    elif kind == "reasoning_gym" and rest:
        make = functools.partial(ReasoningGym, rest)
    elif name.endswith((".jsonl", ".json")):
        if not Path(name).is_file():
            raise UnknownTaskSource(f"tasks={name!r}: there is no such file (looked in {Path.cwd()})")
        make = functools.partial(JsonlTasks, name)
    else:
        exist = [*makers, "reasoning_gym:NAME", "the path of a .jsonl or .json file"]
        raise UnknownTaskSource(f"tasks is one of {', '.join(exist)}; found {name!r}")
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(f"tasks={name!r} does not take these options: {error}") from error
    return make(**options)


def _source(tasks: str | TaskSource, options: Mapping[str, Any] | None, **named: Any) -> TaskSource:
    """The source, with the options that an environment names itself where they are given."""
    given = {name: value for name, value in named.items() if value is not None}
    return open_tasks(tasks, **{**(options or {}), **given}) if isinstance(tasks, str) else tasks


def _index_opener(source: TaskSource, index: str | None, options: Mapping[str, Any] | None) -> OpenIndex:
    if index is None:
        if not isinstance(source, TinyWiki):
            raise ValueError(f"tasks {source.name!r} bring no articles: say where to search, by index='...'")
        return source.open_index
    options = dict(options or {})
    try:
        if "connection" in options:
            options["connection"] = Connection(**options["connection"])
        inspect.signature(open_index).bind(index, **options)
    except TypeError as error:
        raise ValueError(
            f"index_options takes arguments of sandboxes.search.open_index, found {sorted(options)}: {error}"
        ) from error
    return functools.partial(open_index, index, **options)


def _qa_verifier(source: TaskSource, judge: Mapping[str, Any] | None) -> Verifier:
    return JudgeVerifier(**judge) if judge else source.verifier() or QAVerifier()


def _format(format: str | Format, instructions: bool) -> Format:
    if format == "tag":
        return TagFormat(instructions=instructions)
    if format == "hermes":
        return HermesFormat(instructions=instructions)
    if format == "plain":
        return PlainFormat()
    if isinstance(format, str):
        raise ValueError(f"format is 'tag', 'hermes', 'plain' or a Format, found {format!r}")
    return format
