"""Our own steps, as `tracebank.export` writes them: the fields of a `StepTrace`, unchanged to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

from tracebank.importers.form import Context, Dropped, Form
from tracebank.step import StepTrace

_FIELDS = frozenset(field.name for field in dataclasses.fields(StepTrace))
_NEEDED = frozenset(field.name for field in dataclasses.fields(StepTrace) if field.default is dataclasses.MISSING)
VECTOR = "vector"
"""A column of exported Parquet files that may be there; a bank makes its vectors itself."""


def _fits(record: Any) -> bool:
    return isinstance(record, dict) and {"task_id", "key", "value"} <= record.keys()


def _read(record: Any, context: Context) -> list[StepTrace]:
    missing = _NEEDED - record.keys()
    unknown = record.keys() - _FIELDS - {VECTOR}
    if missing:
        raise Dropped(f"no {', '.join(sorted(missing))}")
    if unknown:
        raise Dropped("a field that steps do not have", sorted(unknown))
    step = StepTrace(**{name: value for name, value in record.items() if name != VECTOR})
    changes = {name: value for name in ("source", "environment") if (value := getattr(context, name))}
    return [dataclasses.replace(step, **changes) if changes else step]


FORM = Form(
    "steps",
    f"objects or rows with the fields {', '.join(field.name for field in dataclasses.fields(StepTrace))}",
    _fits,
    _read,
    ignored=frozenset([VECTOR]),
)
