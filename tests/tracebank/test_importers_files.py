"""Files that are imported: their kinds, their damage, and the account that is kept."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebank.importers import FORMATS, FormatError, read
from tracebank.importers.records import records
from tracebank.step import StepTrace

CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"Où? {n}"}, {"role": "assistant", "content": "là\u2028"}]} for n in range(3)
]
QUESTIONS = ["Où? 0", "Où? 1", "Où? 2"]


def questions(*paths: Path) -> list[str]:
    return [found.question for found in read("openai", paths)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json_lists(tmp_path: Path, indent: int | None, bom: str) -> None:
    path = tmp_path / "chats.json"
    path.write_text(bom + json.dumps(CHATS, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert questions(path) == QUESTIONS


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.ndjson", "chats.json", "CHATS.JSONL"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = "\n\n".join(json.dumps(chat, ensure_ascii=False) for chat in CHATS)
    path.write_text("\ufeff" + text.replace("\n\n", "\r\n\n"), encoding="utf-8", newline="")
    assert questions(path) == QUESTIONS


@pytest.mark.parametrize("name", ["chats.jsonl.gz", "chats.json.gz"])
def test_gzipped_files(tmp_path: Path, name: str) -> None:
    text = json.dumps(CHATS) if name == "chats.json.gz" else "\n".join(map(json.dumps, CHATS))
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert questions(tmp_path / name) == QUESTIONS


def test_parquet_files_and_the_nulls_that_stand_for_absent_fields(tmp_path: Path) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}
    other = {"id": "2", "function": {"name": "g", "arguments": {"y": "two"}}}
    chats = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [made]}], "score": None}
        for made in (call, other)
    ]
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(chats), path)
    assert [found.turns[0].action for found in read("openai", path)] == [
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
        '<tool_call>\n{"name": "g", "arguments": {"y": "two"}}\n</tool_call>',
    ]


def test_files_are_read_in_order_and_each_time_afresh(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("\n".join([*map(json.dumps, CHATS), "{"]))
    imported = read("openai", paths)
    for _ in range(2):
        assert [(found.question, found.source) for found in imported] == [(q, name) for name in "ab" for q in QUESTIONS]
        assert (imported.read, imported.kept, imported.dropped) == (8, 6, {"the line is no JSON": 2})
        assert imported.examples == {"the line is no JSON": f"{paths[0]}, line 4: b'{{'"}


def test_bad_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    good = json.dumps(CHATS[0]).encode()
    path.write_bytes(b"\n".join([good, b'{"messages": [', b"\xff\xfe", b"[" * 100_000, b'"text"', b'{"other": 1}', good]))
    imported = read("openai", path)
    assert len(list(imported)) == 2
    assert imported.dropped == {"the line is no JSON": 2, "the line is no UTF-8": 1, "no openai record": 2}
    assert imported.examples["no openai record"] == f"{path}, line 5: 'text'"


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_is_no_such_format_is_refused_with_what_it_looks_like(tmp_path: Path, format: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a"}\n' * 3)
    with pytest.raises(
        FormatError, match=f"{path.name}: expected {format} records, .*found objects with the fields prompt, chosen$"
    ):
        list(read(format, path))


def test_a_wrong_file_is_refused_before_it_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text("a,b,c\n" * 10_000)
    imported = read("openai", path)
    with pytest.raises(FormatError, match="found b'a,b,c"):
        list(imported)
    assert imported.read == 100


def test_trajectories_of_ours_are_told_that_they_need_no_import(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"version": 1, "turns": [], "policy_version": 0}\n')
    with pytest.raises(FormatError, match="python -m tracebank build"):
        list(read("sharegpt", path))


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", ""), ("b.json", "[]"), ("c.json", " \n")):
        (tmp_path / name).write_text(text)
        assert questions(tmp_path / name) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "record 1 of a list as JSON"),
        ('[{"a": 1}', "a comma or the end of the list, found the end of the file"),
        ('[\n{"a": 1}\n{"a": 2}]', "line 3: expected a comma"),
        ('[{"a": 1},]', "record 2 of a list as JSON"),
        ('[{"a": 1}] {"a": 2}', "named .jsonl"),
        ('[{"a": "\\x"}]', "record 1 of a list as JSON"),
        ("[" * 100_000, "less deeply nested"),
    ],
)
def test_a_damaged_list_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chats.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        list(records(path))


@settings(max_examples=50)
@given(values=st.lists(st.recursive(st.text() | st.integers() | st.booleans(), st.lists)), indent=st.sampled_from([None, 1]))
def test_a_list_read_in_small_pieces_is_the_list(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("list") / "values.json"
    text = json.dumps(values, indent=indent, ensure_ascii=True)
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracebank.importers.records._CHUNK", 3)
        found = list(records(path))
    assert [record.value for record in found] == values
    for number, record in enumerate(found, start=1):
        line = int(record.place.rpartition("line ")[2].rstrip(")"))
        assert record.place.startswith(f"record {number} ")
        assert 1 <= line <= text.count("\n") + 1


def test_the_line_of_a_record_in_a_list_is_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text('[\n\n{"a":\n1},\n 2,3]')
    assert [record.place for record in records(path)] == ["record 1 (line 3)", "record 2 (line 5)", "record 3 (line 5)"]


def test_damaged_archives_tables_and_encodings_are_told(tmp_path: Path) -> None:
    archive = tmp_path / "a.jsonl.gz"
    archive.write_bytes(gzip.compress(b"{}\n" * 10_000)[:-20])
    with pytest.raises(FormatError, match="damaged"):
        list(records(archive))
    archive.write_bytes(b"{}")
    with pytest.raises(FormatError, match="damaged"):
        list(records(archive))
    table = tmp_path / "a.parquet"
    table.write_bytes(b"{}")
    with pytest.raises(FormatError, match="expected a Parquet file"):
        list(records(table))
    pq.write_table(pa.table({"a": [f"{n} {n * n}" for n in range(5_000)]}), table)
    whole = bytearray(table.read_bytes())
    whole[100:2_000] = bytes(1_900)
    table.write_bytes(whole)
    with pytest.raises(FormatError, match="expected a Parquet file"):
        list(records(table))
    listed = tmp_path / "a.json"
    listed.write_bytes(b'["\xff"]')
    with pytest.raises(FormatError, match="UTF-8"):
        list(records(listed))


@pytest.mark.parametrize("name", ["chats", "chats.txt", "chats.gz", "chats.parquet.gz"])
def test_a_name_that_says_nothing_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(FormatError, match="expected a name that ends in"):
        read("openai", tmp_path / name)


def test_what_is_asked_wrongly_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(FileNotFoundError):
        read("openai", path)
    path.touch()
    with pytest.raises(FormatError, match="one of the formats rapo, steps, sharegpt, openai, arpo, found 'csv'"):
        read("csv", path)
    with pytest.raises(ValueError, match="rapo records have their own"):
        read("rapo", path, reward=1.0)
    with pytest.raises(ValueError, match="was given too"):
        read("openai", path, reward=1.0, reward_field="score")
    with pytest.raises(ValueError, match="finite"):
        read("openai", path, reward=float("inf"))
    with pytest.raises(ValueError, match="steps have their own"):
        read("steps", path, reward_field="score")


STEP = {"task_id": "t", "step": 0, "key": "q", "value": "v", "reward": 1, "final": True, "source": "s"}


def test_steps_take_labels_only_where_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps({**STEP, "environment": "E"}))
    assert list(read("steps", path)) == [StepTrace("t", 0, "q", "v", 1.0, True, "s", "q", "E")]
    (step,) = read("steps", path, source="mine")
    assert (step.source, step.environment) == ("mine", "E")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"reward": "1"}, "reward: expected a number, found '1'"),
        ({"step": -1}, "expected a number from 0"),
        ({"finall": True}, "a field that steps do not have; found ['finall']"),
        ({"key": "\ud800"}, "a lone surrogate"),
    ],
)
def test_steps_that_cannot_be_kept_are_counted(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps(STEP) + "\n" + json.dumps({**STEP, **change}))
    imported = read("steps", path)
    assert len(list(imported)) == 1
    (example,) = imported.examples.values()
    assert f"{path}, line 2: " in example
    assert why in example


def test_a_step_without_a_field_is_counted_by_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps({name: value for name, value in STEP.items() if name not in ("final", "reward")}))
    imported = read("steps", path)
    assert list(imported) == []
    assert imported.dropped == {"no final, reward": 1}
