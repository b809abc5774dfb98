"""Foreign records become ours: a sample of every format and variant, with what it must mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebank.importers import read
from tracebank.importers.inline import split
from tracebank.step import StepTrace, normalise_question, render_history, render_step, steps_of
from tracebank.trajectory import Trajectory, Turn

SYSTEM = "You are a helpful assistant. Think in <think> </think>."


def lines(folder: Path, records: Sequence[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def one(folder: Path, format: Any, record: Any, **options: Any) -> Trajectory:
    """The only trajectory of a file with one record."""
    imported = read(format, lines(folder, [record]), **options)
    (found,) = imported
    assert not imported.dropped
    assert isinstance(found, Trajectory)
    assert Trajectory.from_json(found.to_json()) == found
    return found


def dropped(folder: Path, format: Any, good: Any, bad: Any, **options: Any) -> str:
    """Why a record is dropped that stands behind a good one: the example that is kept."""
    imported = read(format, lines(folder, [good, bad]), **options)
    assert len(list(imported)) == 1
    (example,) = imported.examples.values()
    assert list(imported.dropped.values()) == [1]
    assert ", line 2: " in example
    return example


# RAPO


def rapo_key(question: str, history: str = "") -> str:
    return f"system\n{SYSTEM}\nuser\n{question}\nassistant\n{history}"


FIRST = "<think>I need a product.</think>\n<python>print(6*7)</python>"
RAPO = [
    {
        "key": rapo_key("What is six fois sept, en français?"),
        "value": FIRST + " <result>\n42\n</result>",
        "reward": 1.1,
        "score": 1.1,
        "reason": "",
    },
    [1.1, 0.0, -1.0],
    {
        "key": rapo_key("What is six fois sept, en français?", FIRST + " <result>\n42\n</result>"),
        "value": "<think>There it is.</think><answer>It is \\boxed{42}.</answer>",
        "reward": 1.1,
        "answer": "42",
        "f1_score": 0.5,
        "ground_truth": ["42"],
    },
]


def test_a_rapo_buffer_becomes_steps_in_our_rendering(tmp_path: Path) -> None:
    imported = read("rapo", lines(tmp_path, RAPO, "aepo.jsonl"))
    first, second = imported
    played = Turn("<think>I need a product.</think>\n", "<python>print(6*7)</python>", "42")
    assert (first.key, first.value) == ("What is six fois sept, en français?", render_step(played))
    assert second.key == render_history("What is six fois sept, en français?", [played])
    assert second.value == "<think>There it is.</think><answer>It is \\boxed{42}.</answer>"
    assert [(step.step, step.final, step.reward) for step in (first, second)] == [(0, False, 1.1), (1, True, 1.1)]
    assert {step.question for step in (first, second)} == {"What is six fois sept, en français?"}
    assert {(step.source, step.format, step.environment) for step in (first, second)} == {("aepo", "tag", "")}
    assert first.task_id == second.task_id
    assert first.task_id.startswith("rapo:")
    assert imported.dropped == {"a bare list of rewards": 1}
    assert imported.examples["a bare list of rewards"].startswith(f"{tmp_path / 'aepo.jsonl'}, line 2: ")
    assert (imported.read, imported.kept) == (3, 2)


def test_a_rapo_buffer_may_begin_with_a_list_of_rewards(tmp_path: Path) -> None:
    assert len(list(read("rapo", lines(tmp_path, [RAPO[1], *RAPO])))) == 2


def test_equal_questions_are_one_rapo_task_and_others_are_not(tmp_path: Path) -> None:
    questions = ["What is six fois sept, en français?", "what  is six fois sept, en français?", "What is six fois huit?"]
    records = [{"key": rapo_key(question), "value": FIRST, "reward": 0} for question in questions]
    first, same, other = read("rapo", lines(tmp_path, records))
    assert first.task_id == same.task_id != other.task_id


@pytest.mark.parametrize(
    ("value", "final"),
    [
        ("<think>so</think><answer>1</answer>", True),
        ("I give up: it is \\boxed{1}.", True),
        ("<search>who</search>", False),
        ("<search>who</search> <result>\nhe\n</result>", False),
        ("<answer>1</answer><python>1</python> <result>\n1\n</result>", False),
        ("<think>is it <answer>1</answer>?</think><search>who</search> <result>\nhe\n</result>", False),
        ("<search>who</search><answer>1</answer>", True),
    ],
)
def test_a_rapo_step_is_final_where_the_answer_is_the_last_word(tmp_path: Path, value: str, final: bool) -> None:
    (step,) = read("rapo", lines(tmp_path, [{"key": rapo_key("q"), "value": value, "reward": 1.0}]))
    assert step.final is final


def test_the_number_of_a_rapo_step_does_not_count_results_within_thoughts(tmp_path: Path) -> None:
    played = "<search>a</search> <result>\nA\n</result><think>a <result> in </result> a thought</think><search>b</search>"
    key = rapo_key("q", played + " <result>\nB\n</result>")
    (step,) = read("rapo", lines(tmp_path, [{"key": key, "value": "<answer>1</answer>", "reward": 1.0}]))
    assert step.step == 2


def test_a_rapo_reward_may_be_another_field_and_the_labels_are_ours(tmp_path: Path) -> None:
    steps = list(read("rapo", lines(tmp_path, [RAPO[2]]), reward_field="f1_score", source="AEPO", environment="E-v0"))
    assert [(step.reward, step.source, step.environment) for step in steps] == [(0.5, "AEPO", "E-v0")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"key": "just a question"}, "on lines of their own in the key"),
        ({"key": "user\n \nassistant\n"}, "no question"),
        ({"key": 3}, "the key is no text"),
        ({"value": ["<answer>"]}, "the value is no text"),
        ({"value": "  "}, "an empty value"),
        ({"reward": None}, "no finite number in 'reward'"),
        ({"reward": "1"}, "no finite number in 'reward'"),
        ({"reward": float("nan")}, "no finite number in 'reward'"),
        ({"reward": 10**400}, "no finite number in 'reward'"),
    ],
)
def test_rapo_records_that_cannot_be_used_are_counted(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    assert why in dropped(tmp_path, "rapo", RAPO[0], {**RAPO[0], **change})  # type: ignore[dict-item]


# ShareGPT


def test_sharegpt_calls_and_results_that_are_messages(tmp_path: Path) -> None:
    record = {
        "system": "Use tools.",
        "tools": '[{"name": "get_weather", "parameters": {}}]',
        "conversations": [
            {"from": "human", "value": "天气怎么样?"},
            {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "济南"}}'},
            {"from": "observation", "value": '{"temperature": 20}'},
            {"from": "gpt", "value": "20 °C."},
        ],
    }
    found = one(tmp_path, "sharegpt", record, source="glaive")
    called = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "济南"}}\n</tool_call>'
    assert found.turns == (Turn("", called, '{"temperature": 20}'), Turn("", "20 °C.", ""))
    assert (found.question, found.format, found.source, found.stop) == ("天气怎么样?", "hermes", "glaive", "terminated")
    assert (found.reward, found.success, found.tool_calls, found.segments, found.split) == (1.0, True, 1, (), "")
    assert [step.final for step in steps_of(found)] == [False, True]


def test_sharegpt_thoughts_before_a_call_and_several_calls_at_once(tmp_path: Path) -> None:
    calls = [{"name": "a", "arguments": '{"x": 1}'}, {"name": "b", "arguments": {}}]
    record = {
        "conversations": [
            {"from": "user", "value": "q"},
            {"from": "function_call", "value": f"<think>\nboth\n</think>\n\n{json.dumps(calls)}"},
            {"from": "observation", "value": "one"},
            {"from": "observation", "value": "two"},
            {"from": "assistant", "value": "I also need c."},
            {"from": "function_call", "value": '{"name": "c"}'},
            {"from": "observation", "value": "three"},
        ]
    }
    found = one(tmp_path, "sharegpt", record)
    first = (
        '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    )
    assert found.turns[0] == Turn("<think>\nboth\n</think>\n\n", first, "one\ntwo")
    assert found.turns[1] == Turn("I also need c.\n", '<tool_call>\n{"name": "c", "arguments": {}}\n</tool_call>', "three")
    assert (found.tool_calls, found.stop, found.format) == (3, "truncated", "hermes")
    assert [step.final for step in steps_of(found)] == [False, False]


def test_sharegpt_calls_as_tags_in_the_text_with_wrapped_results(tmp_path: Path) -> None:
    called = "<tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>"
    record = {
        "conversations": [
            {"from": "system", "value": "You call functions."},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": f"Let me see.\n{called}"},
            {"from": "tool", "value": "<tool_response>\nA\n</tool_response>\n<tool_response>\nB\n</tool_response>"},
            {"from": "gpt", "value": "Done."},
        ]
    }
    found = one(tmp_path, "sharegpt", record)
    assert found.turns == (Turn("Let me see.\n", called, "A\nB"), Turn("", "Done.", ""))
    assert found.format == "hermes"


def test_sharegpt_functions_are_calls_or_results_as_they_read(tmp_path: Path) -> None:
    talk = [("user", "q"), ("assistant", "Thought: look"), ("function", "a result"), ("assistant", "so")]
    found = one(tmp_path, "sharegpt", {"conversations": [{"from": who, "value": said} for who, said in talk]})
    assert found.turns == (Turn("", "Thought: look", "a result"), Turn("", "so", ""))
    talk = [("human", "q"), ("function", '{"name": "f", "arguments": {}}'), ("observation", "r"), ("gpt", "so")]
    found = one(tmp_path, "sharegpt", {"conversations": [{"from": who, "value": said} for who, said in talk]})
    assert found.turns[0] == Turn("", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "r")


def test_a_function_call_that_is_no_json_stays_as_it_was_written(tmp_path: Path) -> None:
    talk = [("human", "q"), ("function_call", "get_weather(Jinan)"), ("observation", "r")]
    found = one(tmp_path, "sharegpt", {"conversations": [{"from": who, "value": said} for who, said in talk]})
    assert found.turns == (Turn("", "<tool_call>\nget_weather(Jinan)\n</tool_call>", "r"),)
    assert found.tool_calls == 1


def test_sharegpt_messages_may_be_named_as_openai_names_them(tmp_path: Path) -> None:
    record = {"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "[]"}
    found = one(tmp_path, "sharegpt", record)
    assert found.turns == (Turn("", "a", ""),)
    assert found.format == "plain"


def test_what_the_user_says_later_is_an_observation(tmp_path: Path) -> None:
    talk = [("human", "hello"), ("gpt", "hi"), ("human", "more"), ("human", "please"), ("gpt", "here")]
    found = one(tmp_path, "sharegpt", {"conversations": [{"from": who, "value": said} for who, said in talk]})
    assert found.question == "hello"
    assert found.turns == (Turn("", "hi", "more\nplease"), Turn("", "here", ""))


CHAT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"conversations": []}, "does not begin with a question"),
        ({"conversations": CHAT["conversations"][1:]}, "does not begin with a question"),
        ({"conversations": [{"from": "human", "value": " "}, CHAT["conversations"][1]]}, "does not begin with a question"),
        ({"conversations": CHAT["conversations"][:1]}, "the assistant says nothing"),
        ({"conversations": [CHAT["conversations"][0], {"from": "gpt", "value": ""}]}, "the assistant says nothing"),
        ({"conversations": [CHAT["conversations"][0], {"from": "tool", "value": "r"}]}, "before anything was done"),
        ({"conversations": [{"from": "narrator", "value": "q"}]}, "unknown role; found 'narrator'"),
        ({"conversations": [{"value": "q"}]}, "unknown role"),
        ({"conversations": ["q"]}, "a message that is no object"),
        ({"conversations": [{"from": "human", "value": 3}]}, "the value of a message is no text"),
        ({**CHAT, "images": ["a.png"]}, "what is no text"),
    ],
)
def test_conversations_that_cannot_be_used_are_counted(tmp_path: Path, bad: dict[str, Any], why: str) -> None:
    assert why in dropped(tmp_path, "sharegpt", CHAT, bad)


# OpenAI


def function(id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_openai_parallel_calls_are_one_turn_with_results_in_the_order_of_the_calls(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "wrote it?"}]},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Two lookups.",
                "tool_calls": [function("c1", "search", '{"query": "été"}'), function("c2", "search", {"query": "b"})],
            },
            {"role": "tool", "tool_call_id": "c2", "content": "B"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "A"}]},
            {"role": "assistant", "content": "She did.", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": {"name": "search"}}],
    }
    found = one(tmp_path, "openai", record)
    assert found.question == "Who\nwrote it?"
    assert found.turns[0] == Turn(
        "<think>\nTwo lookups.\n</think>\n\n",
        '<tool_call>\n{"name": "search", "arguments": {"query": "été"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "search", "arguments": {"query": "b"}}\n</tool_call>',
        "A\nB",
    )
    assert found.turns[1] == Turn("", "She did.", "")
    assert (found.tool_calls, found.format, found.stop) == (2, "hermes", "terminated")


def test_openai_legacy_calls(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "Looking.", "function_call": {"name": "f", "arguments": "not json"}},
            {"role": "function", "name": "f", "content": "r"},
            {"role": "assistant", "content": None, "refusal": "No."},
        ]
    }
    found = one(tmp_path, "openai", record)
    called = '<tool_call>\n{"name": "f", "arguments": "not json"}\n</tool_call>'
    assert found.turns == (Turn("Looking.\n", called, "r"), Turn("", "No.", ""))


def test_openai_messages_with_everything_in_tags(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "<think>hm</think><search>x</search>"},
            {"role": "user", "content": "<information>doc</information>"},
            {"role": "assistant", "content": "<answer>y</answer>"},
        ]
    }
    found = one(tmp_path, "openai", record)
    assert found.turns == (Turn("<think>hm</think>", "<search>x</search>", "doc"), Turn("", "<answer>y</answer>", ""))
    assert (found.format, found.tool_calls) == ("tag", 1)


OPENAI = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
ASKED = OPENAI["messages"][0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "what is no text (such as images)"),
        ([{"role": "user", "content": ["q"]}], "what is no text"),
        ([{"role": "user", "content": {"text": "q"}}], "content of a message is no text"),
        ([ASKED, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "a tool call without a name"),
        ([ASKED, {"role": "assistant", "tool_calls": {"id": "1"}}], "tool calls that are no list"),
        ([ASKED, {"role": ["assistant"], "content": "a"}], "unknown role"),
        ([None], "a message that is no object"),
    ],
)
def test_openai_messages_that_cannot_be_used_are_counted(tmp_path: Path, bad: list[Any], why: str) -> None:
    assert why in dropped(tmp_path, "openai", OPENAI, {"messages": bad})


# ARPO


def test_arpo_text_is_cut_into_turns_at_each_result(tmp_path: Path) -> None:
    output = (
        "<think>First <search>not this</search>.</think><search>capital of France</search><result>\nParis\n</result>"
        "<think>Now count.</think>\n<python>\nprint(len('<result>'))\n</python>\n<result>\n8\n</result>\n"
        "<think>Done.</think><answer>The answer is \\boxed{8}.</answer>"
    )
    instruction = "Think in <think> tags; the answer is in \x08oxed{answer here}."
    imported = read("arpo", lines(tmp_path, [{"instruction": instruction, "input": "Länge?", "output": output}]))
    (found,) = imported
    assert found.question == "Länge?"
    assert found.turns == (
        Turn("<think>First <search>not this</search>.</think>", "<search>capital of France</search>", "Paris"),
        Turn("<think>Now count.</think>\n", "<python>\nprint(len('<result>'))\n</python>", "8"),
        Turn("<think>Done.</think>", "<answer>The answer is \\boxed{8}.</answer>", ""),
    )
    assert (found.format, found.tool_calls, found.stop) == ("tag", 2, "terminated")
    assert imported.repaired == {"a backspace in place of the start of \\boxed": 1}


def test_a_backspace_is_mended_in_texts_that_are_kept(tmp_path: Path) -> None:
    record = {"instruction": "Solve in \x08oxed{}: 1+1 \x08 x", "output": "<answer>\x08oxed{2}</answer>"}
    found = one(tmp_path, "arpo", record)
    assert found.question == "Solve in \\boxed{}: 1+1 \x08 x"
    assert found.turns[0].action == "<answer>\\boxed{2}</answer>"


def test_alpaca_questions_are_instruction_and_input_and_the_history_comes_first(tmp_path: Path) -> None:
    record = {"instruction": "Translate.", "input": "eau", "output": "water", "system": "s", "history": [["hi", "hello"]]}
    found = one(tmp_path, "arpo", record)
    assert found.question == "hi"
    assert found.turns == (Turn("", "hello", "Translate.\neau"), Turn("", "water", ""))
    assert one(tmp_path, "arpo", {"instruction": "Say a.", "input": "", "output": "a"}).question == "Say a."


def test_arpo_reads_sharegpt_conversations(tmp_path: Path) -> None:
    talk = [("human", "q"), ("gpt", "<search>a</search><result>b</result><answer>c</answer>")]
    found = one(tmp_path, "arpo", {"conversations": [{"from": who, "value": said} for who, said in talk]})
    assert found.turns == (Turn("", "<search>a</search>", "b"), Turn("", "<answer>c</answer>", ""))
    assert found.task_id.startswith("arpo:")


def test_a_history_that_is_no_list_of_pairs_is_counted(tmp_path: Path) -> None:
    good = {"instruction": "q", "output": "a"}
    assert "no list of pairs" in dropped(tmp_path, "arpo", good, {**good, "history": ["hi"]})


# Rewards, ids, labels


def test_rewards_are_given_or_read_from_a_field(tmp_path: Path) -> None:
    path = lines(tmp_path, [{**CHAT, "score": score} for score in (0.25, 0, True, "high", None)])
    scored = read("sharegpt", path, reward_field="score")
    assert [(one.reward, one.success) for one in scored] == [(0.25, True), (0.0, False), (1.0, True)]
    assert scored.dropped == {"no finite number in 'score'": 2}
    assert [one.reward for one in read("sharegpt", path, reward=-1.0)] == [-1.0] * 5
    assert all(sum(one.score.values()) == one.reward for one in scored)


def test_a_task_is_called_what_its_record_calls_it(tmp_path: Path) -> None:
    records = [{**CHAT, "task_id": "gsm8k/7", "id": 1}, {**CHAT, "id": 0}, {**CHAT, "id": "x"}, CHAT, CHAT]
    named, row, text, hashed, again = (one.task_id for one in read("sharegpt", lines(tmp_path, records, "part-1.jsonl")))
    assert (named, row, text) == ("gsm8k/7", "part-1:0", "part-1:x")
    assert hashed == again
    assert hashed.startswith("sharegpt:")


def test_labels_default_to_the_file(tmp_path: Path) -> None:
    (found,) = read("sharegpt", lines(tmp_path, [CHAT], "aepo.v2.jsonl"))
    assert (found.source, found.environment) == ("aepo", "")
    (found,) = read("sharegpt", lines(tmp_path, [CHAT]), source="me", environment="MathTool-v0")
    assert (found.source, found.environment) == ("me", "MathTool-v0")


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "q \ud83d"}, {"from": "gpt", "value": "\U0001f600"}]
    imported = read("sharegpt", lines(tmp_path, [{"conversations": talk}]))
    (found,) = imported
    assert (found.question, found.turns[0].action) == ("q �", "\U0001f600")
    assert steps_of(found)
    assert sum(imported.repaired.values()) == 1


# The inline rule


@pytest.mark.parametrize(
    ("text", "turns", "answered"),
    [
        ("", [], False),
        ("just words", [Turn("", "just words", "")], True),
        ("thought </think> said", [Turn("thought </think> ", "said", "")], True),
        (
            "<search>a</search> or </think><answer>b</answer>",
            [Turn("<search>a</search> or </think>", "<answer>b</answer>", "")],
            True,
        ),
        ("<calc>1+1</calc>\n<result>2</result>", [Turn("", "<calc>1+1</calc>", "2")], False),
        (
            "<search>a</search><search>b</search><result>c</result>",
            [Turn("", "<search>a</search><search>b</search>", "c")],
            False,
        ),
        ("<search>a</search><result>cut o", [Turn("", "<search>a</search>", "cut o")], False),
        ("<search>open <result>a</result>", [Turn("", "<search>open", "a")], False),
        ("<think>never closed <answer>b</answer>", [Turn("<think>never closed ", "<answer>b</answer>", "")], True),
        ("<result>\n\n\nx\n\n</result>", [Turn("", "", "\n\nx\n")], False),
    ],
)
def test_inline_text_by_example(text: str, turns: list[Turn], answered: bool) -> None:
    parts = split(text)
    assert list(parts.turns) == turns
    assert parts.answered is answered


words = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]))
bodies = st.one_of(words, words.map(lambda text: f"a <b> {text} <result>"))


@given(
    st.lists(st.tuples(words, st.sampled_from(["search", "python", "browse", "tool_call"]), bodies, words), max_size=5),
    words,
)
def test_what_is_written_in_tags_is_read_as_it_was_meant(steps: list[tuple[str, str, str, str]], last: str) -> None:
    turns = [Turn(f"<think>{a}</think>", f"<{tool}>{b}</{tool}>", observation) for a, tool, b, observation in steps]
    end = Turn("<think></think>", f"<answer>{last}</answer>", "")
    text = "".join(f"{turn.thought}{turn.action} <result>\n{turn.observation}\n</result>" for turn in turns)
    parts = split(text + render_step(end))
    assert parts.turns == (*turns, end)
    assert (parts.results, parts.calls, parts.answered) == (len(turns), len(turns), True)


tags = [f"<{slash}{name}>" for name in ("think", "search", "result", "answer") for slash in ("", "/")]


@given(st.lists(st.sampled_from([*tags, "a"])))
def test_nothing_that_is_written_is_lost_whatever_the_tags(pieces: list[str]) -> None:
    text = "".join(pieces)
    parts = split(text)
    kept = "".join(turn.thought + turn.action + turn.observation for turn in parts.turns)
    assert kept.count("a") == text.count("a")
    assert parts.results >= len(parts.turns) - 1


def test_our_steps_compare_with_imported_ones(tmp_path: Path) -> None:
    """A step of our own and the same one from a foreign transcript have one key, value and question."""
    ours = steps_of(
        one(tmp_path, "arpo", {"input": "q", "output": "<search>a</search><result>b</result><answer>c</answer>"})
    )
    key = "user\nq\nassistant\n<search>a</search> <result>\nb\n</result>"
    theirs = list(read("rapo", lines(tmp_path, [{"key": key, "value": "<answer>c</answer>", "reward": 1.0}])))
    assert isinstance(theirs[0], StepTrace)
    assert (ours[1].key, ours[1].value, ours[1].step, ours[1].final) == (
        theirs[0].key,
        theirs[0].value,
        theirs[0].step,
        theirs[0].final,
    )
    assert normalise_question(ours[1].question) == normalise_question(theirs[0].question)
