"""ARPO's supervised data (arXiv 2507.19849), and Tool-Star's, which is alike: one assistant text holds a whole episode.

Thoughts, calls, results and the answer stand in it as tags (`tracebank.importers.inline`). The records are LLaMA-Factory's:
either of Alpaca's fields (``instruction``, ``input``, ``output``, and perhaps ``history``) or a ShareGPT conversation. In
the released files ``instruction`` tells how to use the tags and ``input`` is the question; so where the instruction speaks
of tags or of a box, it is left out as a system prompt is, and elsewhere it is part of the question, as in Alpaca.
"""

from __future__ import annotations

import re
from typing import Any

from tracebank.importers import sharegpt
from tracebank.importers.form import Context, Dropped, Form
from tracebank.importers.transcript import Message, trajectory_of
from tracebank.trajectory import Trajectory

_TELLS_HOW = re.compile(r"</?(?:think|search|python|result|answer)>|\\boxed")


def _fits(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    alpaca = isinstance(record.get("output"), str) and ("instruction" in record or "input" in record)
    return alpaca or sharegpt.fits(record)


def _read(record: Any, context: Context) -> list[Trajectory]:
    if sharegpt.fits(record):
        messages, tools = sharegpt.conversation(record, context), sharegpt.has_tools(record)
    else:
        messages, tools = _alpaca(record, context), False
    return [trajectory_of(messages, record, context, "arpo", tools=tools)]


def _alpaca(record: dict[str, Any], context: Context) -> list[Message]:
    messages: list[Message] = []
    for earlier in record.get("history") or []:
        if not isinstance(earlier, list) or len(earlier) != 2:
            raise Dropped("a history that is no list of pairs", earlier)
        messages.append(Message("user", context.text(earlier[0], "the history")))
        messages.append(Message("assistant", context.text(earlier[1], "the history")))
    instruction = context.text(record.get("instruction") or "", "the instruction")
    asked = context.text(record.get("input") or "", "the input")
    if asked.strip() and _TELLS_HOW.search(instruction):
        instruction = ""
    question = "\n".join(part for part in (instruction, asked) if part.strip())
    answer = context.text(record["output"], "the output")
    return [*messages, Message("user", question), Message("assistant", answer)]


FORM = Form(
    "arpo",
    'objects such as {"instruction": "...", "input": "...", "output": "<think>...</think><search>...</search>'
    '<result>...</result>..."}, or ShareGPT conversations of that kind',
    _fits,
    _read,
)
