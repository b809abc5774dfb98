r"""The step-trace buffer that RAPO (arXiv 2603.03078) was released with: lines of ``{"key", "value", "reward"}``.

A key is a whole prompt, decoded without its special tokens ("system\n...\nuser\n...\nassistant\n..."), with the history
behind it; a value is what was generated next, and the result. Both become text in our own rendering, so that they compare
with the queries of a running agent. The program that wrote these files also appended bare lists of rewards to them: those
are dropped. The end of a question is the first line that says "assistant" alone.
"""

from __future__ import annotations

import re
from typing import Any

from tracebank.importers.form import Context, Dropped, Form, finite, name_of
from tracebank.importers.inline import split
from tracebank.step import StepTrace, render_history, render_step

_PROMPT = re.compile(r"(?:\A|\n)user\n(.*?)\nassistant(?:\n|\Z)", re.DOTALL)


def _fits(record: Any) -> bool:
    if isinstance(record, list):
        return bool(record) and all(isinstance(item, int | float) for item in record)
    return isinstance(record, dict) and {"key", "value"} <= record.keys() and "task_id" not in record


def _read(record: Any, context: Context) -> list[StepTrace]:
    if isinstance(record, list):
        raise Dropped("a bare list of rewards")
    key = context.text(record["key"], "the key")
    prompt = _PROMPT.search(key)
    if prompt is None:
        raise Dropped('no "user" and "assistant" on lines of their own in the key', key)
    question = prompt[1]
    if not question.strip():
        raise Dropped("no question in the key", key)
    history = split(key[prompt.end() :])
    done = split(context.text(record["value"], "the value"))
    if not done.turns:
        raise Dropped("an empty value")
    return [
        StepTrace(
            task_id=name_of(question, "rapo"),
            step=history.results,
            key=render_history(question, history.turns),
            value="".join(map(render_step, done.turns)),
            reward=finite(record, context.reward_field or "reward"),
            final=done.answered,
            source=context.source,
            question=question,
            environment=context.environment,
            format="tag",
        )
    ]


FORM = Form(
    "rapo",
    'objects such as {"key": "system\\n...\\nuser\\n...\\nassistant\\n...", "value": "...", "reward": 1.0}',
    _fits,
    _read,
)
