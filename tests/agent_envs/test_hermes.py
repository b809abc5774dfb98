"""The Hermes format: calls as JSON, and what chat models write instead."""

import dataclasses
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Broken, Dice, Riddles, SameString, divide, shout

from agent_envs.actions import Answer, Call, HermesFormat, Piece, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.spaces import replace_surrogates
from agent_envs.tool import tool
from agent_envs.tools.python import PythonTool
from agent_envs.transcript import Transcript

TOOLS = (PythonTool(), divide, shout, Dice(), Broken(ValueError()))
HERMES = HermesFormat()
TEXT_ANSWERS = HermesFormat(boxed=False)


def written(name, arguments):
    """A call as a model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


SHOUT = written("shout", '{"text": "hi"}')
SHOUTED = {"text": "hi"}


@pytest.mark.parametrize(
    ("text", "move"),
    [
        (SHOUT, Call("shout", SHOUTED)),
        (SHOUT.replace("\n", ""), Call("shout", SHOUTED)),
        ('<tool_call>{"arguments": {}, "id": 7, "name": "broken"}</tool_call>', Call("broken", {})),
        (written("divide", '{"a": 6, "b": 3}'), Call("divide", {"a": 6, "b": 3})),
        (f"<think>\nhm\n</think>\n\n{SHOUT}", Call("shout", SHOUTED, "hm")),
        (f"<think>hm</think>{SHOUT}", Call("shout", SHOUTED, "hm")),
        (f"I will ask.\n{SHOUT}", Call("shout", SHOUTED, "I will ask.")),
        (f"<think>\n\n</think>\n\nI will ask.\n{SHOUT}", Call("shout", SHOUTED, "I will ask.")),
        (f"<think>a</think> b <think>c</think>{SHOUT}", Call("shout", SHOUTED, "a\nc")),
        (f"<think>{SHOUT}</think>{SHOUT}", Call("shout", SHOUTED, SHOUT)),
        (written("shout", r'{"text": "<\/tool_call><think>"}'), Call("shout", {"text": "</tool_call><think>"})),
        (r"It is \boxed{72}.", Answer("72")),
        ("<think>\neasy\n</think>\n\nSo:\n\\boxed{72}", Answer("72", "easy")),
        (r"<think>\boxed{1}</think>\boxed{2}", Answer("2", r"\boxed{1}")),
        (r"\boxed{2}<think>\boxed{1}</think>", Answer("2", r"\boxed{1}")),
        (r"\boxed{\{1,2\}}", Answer(r"\{1,2\}")),
        (r"<answer>\boxed{5}</answer>", Answer("5")),
    ],
)
def test_well_formed_actions(text, move):
    parsed = HERMES.parse(text, TOOLS)
    assert (parsed.move, parsed.fault) == (move, "")
    assert parsed.well_formed
    assert parsed.end == len(text)


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("72", Answer("72")),
        (" So it is 72.\n", Answer("So it is 72.")),
        (r"\boxed{72", Answer(r"\boxed{72")),
        (r"\boxed{ }", Answer(" ")),
        (r"hm \boxed{1} </think> \boxed{2}", Answer("2", r"hm \boxed{1}")),
        (f"hm </think>{SHOUT}", Call("shout", SHOUTED, "hm")),
        ("<tool_response>\n9\n</tool_response>\\boxed{9}", Answer("9")),
        (written("shout", r'"{\"text\": \"hi\"}"'), Call("shout", SHOUTED)),
    ],
)
def test_moves_that_break_a_rule_of_the_format(text, move):
    parsed = HERMES.parse(text, TOOLS)
    assert (parsed.move, parsed.fault) == (move, "")
    assert not parsed.well_formed


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "fault", "message"),
    [
        ("", "no_action", "no tool call and no answer"),
        (" \n", "no_action", r"or the answer in \boxed{}"),
        ("<think>\n42\n</think>\n\n", "no_action", "no tool call and no answer"),
        (SHOUT.removesuffix("</tool_call>"), "no_action", "<tool_call> was never closed"),
        (r"\boxed{1}</tool_call>", "no_action", "a call was closed that was never opened"),
        (f"<think>hm {SHOUT}", "unclosed_think", "close it"),
        (r"<think>\boxed{1}", "unclosed_think", "<think> was never closed"),
        (written("search", "{}"), "unknown_tool", "there is no tool 'search' (tools: python, divide, shout, dice, broken)"),
        (written("x" * 5000, "{}"), "unknown_tool", f"no tool {'x' * 64!r}"),
        ("<tool_call></tool_call>", "bad_arguments", "expected a call as JSON"),
        ("<tool_call>shout(hi)</tool_call>", "bad_arguments", "Expecting value"),
        ('<tool_call>["shout"]</tool_call>', "bad_arguments", "found list"),
        (f"<tool_call>{SHOUT[11:-12]}{SHOUT[11:-12]}</tool_call>", "bad_arguments", "Extra data"),
        ('<tool_call>{"arguments": {}}</tool_call>', "bad_arguments", "found no name"),
        ('<tool_call>{"name": ["shout"], "arguments": {}}</tool_call>', "bad_arguments", "found no name that is a string"),
        (
            '<tool_call>{"name": "shout"}</tool_call>',
            "bad_arguments",
            "shout: expected 'arguments' to be a JSON object; found none",
        ),
        (written("shout", '["hi"]'), "bad_arguments", "found list"),
        (written("shout", '"hi"'), "bad_arguments", "shout: expected 'arguments' to be a JSON object; Expecting value"),
        (written("shout", '"3"'), "bad_arguments", "found int"),
        (written("shout", '{"text": NaN}'), "bad_arguments", "NaN is no JSON value"),
        (written("shout", '{"text": -Infinity}'), "bad_arguments", "-Infinity is no JSON value"),
        (written("shout", '{"text": 1e999}'), "bad_arguments", "too large"),
        (written("shout", '{"text": "a\nb"}'), "bad_arguments", "Invalid control character"),
        (written("shout", DEEP), "bad_arguments", "within each other"),
        (written("shout", f'{{"text": {DEEP[:70]}{"]" * 70}}}'), "bad_arguments", "at most 64 lists"),
        (written("shout", json.dumps(DEEP)), "bad_arguments", "within each other"),
    ],
)
def test_actions_that_make_no_move(text, fault, message):
    parsed = HERMES.parse(text, TOOLS)
    assert (parsed.move, parsed.fault) == (None, fault)
    assert not parsed.well_formed
    assert message in parsed.message
    assert "</" not in parsed.message  # it would be escaped on its way to the policy
    assert "\n" not in parsed.message


def test_text_answers_are_the_text_outside_of_thoughts():
    parsed = TEXT_ANSWERS.parse("<think>\nhm\n</think>\n\n The mayor is \\boxed{Bo}. \n", TOOLS)
    assert parsed.move == Answer(r"The mayor is \boxed{Bo}.", "hm")
    assert parsed.well_formed
    assert TEXT_ANSWERS.parse("<think>Bo</think>", TOOLS).fault == "no_action"


def test_what_follows_the_first_call_is_cut_off():
    text = f"Well. {SHOUT}\n<tool_response>HI</tool_response>{SHOUT}\\boxed{{1}}"
    parsed = HERMES.parse(text, TOOLS)
    assert parsed.move == Call("shout", SHOUTED, "Well.")
    assert parsed.well_formed
    assert text[parsed.begin : parsed.end] == SHOUT


def test_what_stands_before_the_answer_is_thought():
    text = "<think>hm</think>\n\nIt is \\boxed{3}."
    parsed = HERMES.parse(text, TOOLS)
    assert text[parsed.begin : parsed.end] == r"It is \boxed{3}."


def test_arguments_hold_no_lone_surrogate():
    parsed = HERMES.parse(written("shout", r'{"\udfff": ["\ud800", "\ud83d\ude00"]}'), TOOLS)
    assert parsed.move == Call("shout", {"\ufffd": ["\ufffd", "\U0001f600"]})


def test_the_stop_string_and_when_it_does_not_count():
    assert HERMES.stop(TOOLS) == HERMES.stop(()) == ("</tool_call>",)
    assert HERMES.unfinished(f"<think>maybe {SHOUT}", TOOLS)
    assert not HERMES.unfinished(f"<think>a</think>{SHOUT}", TOOLS)
    assert not HERMES.unfinished("never opened</tool_call>", TOOLS)
    with pytest.raises(ValueError, match="names of their own"):
        HERMES.stop((shout, shout))


TAGS = [f"<{sign}{name}>" for sign in ("", "/") for name in ("think", "tool_call", "tool_response", "answer")]
ODD_BITS = [
    SHOUT[11:-12],
    '{"name": "dice"',
    '"arguments": {}}',
    r"\boxed{",
    "}",
    "\\",
    "\n",
    " ",
    "\ud800",
    "\0",
    "ä",
    "<",
    "</",
]
MESSY = st.lists(st.sampled_from(TAGS + ODD_BITS) | st.text(max_size=5), max_size=20).map("".join)


@given(MESSY)
def test_decoding_up_to_the_stop_string_means_what_the_whole_text_means(text):
    whole = HERMES.parse(text, TOOLS)
    for end in range(1, len(text) + 1):
        if text[:end].endswith("</tool_call>") and not HERMES.unfinished(text[:end], TOOLS):
            assert HERMES.parse(text[:end], TOOLS) == whole
            break
    else:
        assert not isinstance(whole.move, Call)


@given(MESSY)
def test_parse_never_raises_and_never_claims_more_than_there_is(text):
    for hermes in (HERMES, TEXT_ANSWERS):
        parsed = hermes.parse(text, TOOLS)
        assert 0 <= parsed.begin <= parsed.end <= len(text)
        assert (parsed.move is None) == (parsed.fault != "")
        assert parsed.move is not None or not parsed.well_formed


STRINGS = MESSY.map(replace_surrogates)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
)


@given(st.sampled_from([tool.name for tool in TOOLS]), st.dictionaries(STRINGS, JSON, max_size=3), MESSY)
def test_a_call_can_always_be_written_but_with_a_thought_that_would_end_early(name, arguments, thought):
    move = Call(name, arguments, thought)
    if "</think>" in thought:
        with pytest.raises(ValueError, match="no action of this format means"):
            HERMES.write(move, TOOLS)
    else:
        action = HERMES.write(move, TOOLS)
        parsed = HERMES.parse(action, TOOLS)
        assert (parsed.move, parsed.end, parsed.well_formed) == (move, len(action), True)
        assert action.endswith(HERMES.stop(TOOLS))


@given(MESSY, MESSY)
def test_an_answer_that_is_written_is_read_again(text, thought):
    for hermes in (HERMES, TEXT_ANSWERS):
        try:
            action = hermes.write(Answer(text, thought), TOOLS)
        except ValueError:
            spoils = ("{", "}", "\\") if hermes.boxed else ()
            assert (
                any(sign in f"{text}{thought}" for sign in ("think>", "tool_call>", *spoils))
                or text != text.strip()
                or not text
            )
        else:
            parsed = hermes.parse(action, TOOLS)
            assert (parsed.move, parsed.end) == (Answer(text, thought), len(action))


@given(st.text(st.characters(exclude_characters="{}\\<"), min_size=1), st.text(st.characters(exclude_characters="<")))
def test_ordinary_answers_can_always_be_written(text, thought):
    boxed = HERMES.parse(HERMES.write(Answer(text, thought), TOOLS), TOOLS)
    assert boxed.move == Answer(text, thought)
    assert boxed.well_formed == (text.strip() != "")
    if text.strip():
        plain = TEXT_ANSWERS.parse(TEXT_ANSWERS.write(Answer(text.strip(), thought), TOOLS), TOOLS)
        assert plain.move == Answer(text.strip(), thought)
        assert plain.well_formed


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (Call("search", {"query": "x"}), "cannot write a call of 'search'"),
        (Call("shout", SHOUTED, "</think>"), "no action of this format means"),
        (Call("shout", {"text": float("nan")}), "no action of this format means"),
        (Call("shout", {"text": (1, 2)}), "no action of this format means"),
        (Call("shout", {1: 2}), "no action of this format means"),
        (Call("shout", {"text": "\ud800"}), "no action of this format means"),
        (Call("shout", {"text": {1}}), "a value that JSON can hold"),
        (Answer("}"), "no action of this format means"),
        (Answer("", "</think>"), "no action of this format means"),
    ],
)
def test_write_refuses_what_no_action_means(move, message):
    with pytest.raises(ValueError, match=message):
        HERMES.write(move, TOOLS)


@pytest.mark.parametrize("text", ["", " Bo", SHOUT, "<think>"])
def test_text_answers_that_would_be_read_otherwise_are_refused(text):
    with pytest.raises(ValueError, match="no action of this format means"):
        TEXT_ANSWERS.write(Answer(text), TOOLS)


def test_the_canonical_call_is_one_line_of_json_that_closes_no_tag():
    move = Call("divide", {"a": "</tool_call> ä </b>", "b": [1.5, None]}, "hm")
    assert HERMES.write(move, TOOLS) == (
        "<think>\nhm\n</think>\n\n<tool_call>\n"
        r'{"name": "divide", "arguments": {"a": "<\/tool_call> ä </b>", "b": [1.5, null]}}'
        "\n</tool_call>"
    )


def test_the_opening_joins_prompt_how_to_answer_and_schemas_once():
    system, user = HERMES.opening("Who </tool_response> are </b> you?", "Be brief.", (shout, divide))
    assert (system.role, user.role) == ("system", "user")
    assert system.text.startswith("Be brief.\n\nWhen you know the answer, write it in \\boxed{}.\n\n# Tools\n\n")
    schemas = [json.loads(line) for line in system.text.split("\n<tools>\n")[1].split("\n</tools>\n")[0].split("\n")]
    assert schemas == [
        {"type": "function", "function": {"name": one.name, "description": one.description, "parameters": one.parameters}}
        for one in (shout, divide)
    ]
    assert user.pieces == (Piece(r"Who <\/tool_response> are </b> you?", trusted=False),)


@pytest.mark.parametrize(
    ("hermes", "tools", "roles"),
    [
        (HermesFormat(instructions=False), TOOLS, ["user"]),
        (TEXT_ANSWERS, (), ["user"]),
        (TEXT_ANSWERS, TOOLS, ["system", "user"]),
        (HERMES, (), ["system", "user"]),
    ],
)
def test_without_anything_to_say_the_conversation_opens_with_the_question(hermes, tools, roles):
    assert [message.role for message in hermes.opening("Q", "", tools)] == roles
    assert [message.role for message in hermes.opening("Q", "S", tools)] == ["system", "user"]


def test_an_observation_is_content_between_wrappers_and_closes_no_tag_of_the_format():
    message = HERMES.observe("42 </tool_response><tool_call>{}</tool_call></think></tools> </b> < / think>")
    assert message.role == "user"
    assert [piece.trusted for piece in message.pieces] == [True, False, True]
    escaped = r"42 <\/tool_response><tool_call>{}<\/tool_call><\/think><\/tools> </b> < / think>"
    assert message.text == f"<tool_response>\n{escaped}\n</tool_response>"


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "<think></think>",
        "x</think>",
        "<tool_call>",
        "</tool_call",
        "<tool_response>",
        "<",
        "{",
        "[",
        '{"name":',
        '"',
        "\\",
        "\\boxed{",
        r"\boxed{}",
        "9",
        "\n",
    ],
)
def test_parsing_takes_linear_time(unit):
    long = unit * (400_000 // len(unit))
    started = time.perf_counter()
    for one in (
        long,
        f"<think>{long}",
        f"<tool_call>{long}</tool_call>",
        written("shout", f'{{"text": "{long}'),
        written("shout", long),
    ):
        HERMES.parse(one, TOOLS)
        HERMES.unfinished(one, TOOLS)
        HERMES.observe(one)
    # A second is usual for these megabytes; anything quadratic takes minutes.
    assert time.perf_counter() - started < 20


def test_a_format_is_a_value():
    assert HermesFormat() == HermesFormat()
    assert HERMES.name == "hermes"
    with pytest.raises(dataclasses.FrozenInstanceError):
        HERMES.boxed = False


# In an environment


def riddles(**settings):
    return ToolEnv(tasks=Riddles(), tools=[shout, divide], verifier=SameString(), **settings)


@pytest.mark.parametrize("hermes", [HERMES, TEXT_ANSWERS])
def test_an_episode(hermes):
    env = riddles(format=hermes)
    env.reset(options={"task_id": "riddles:0"})
    observation, reward, terminated, _, info = env.step(f"{SHOUT} and what follows")
    assert (observation, reward, terminated) == ("HI", 0.0, False)
    assert (info["tool"], info["policy_fault"], info["action_chars"]) == ("shout", "", len(SHOUT))
    observation, _, terminated, _, info = env.step(written("shout", '{"loud": true}'))
    assert observation == "shout takes text: string; there is no 'loud'"
    assert (info["policy_fault"], terminated) == ("bad_arguments", False)
    _, _, terminated, _, info = env.step(env.oracle()(observation))
    assert (terminated, info["success"], info["score"]["accuracy"]) == (True, True, 1.0)
    env.close()


@tool
def count(items: list) -> int:
    """Counts items.

    Args:
        items: Anything.
    """
    return len(items)


@pytest.mark.parametrize("depth", [63, 300, 10_000])
@pytest.mark.parametrize("format", [TagFormat(), HERMES])
def test_json_that_is_nested_deeply_is_the_policys_fault_and_never_the_environments(format, depth):
    env = ToolEnv(tasks=Riddles(), tools=[count], verifier=SameString(), format=format)
    env.reset(seed=0)
    nested = "[" * depth + "]" * depth
    action = f"<count>{nested}</count>" if format == TagFormat() else written("count", f'{{"items": {nested}}}')
    observation, _, terminated, _, info = env.step(action)
    assert not terminated
    if depth == 63 and format == TagFormat():
        assert (observation, info["policy_fault"]) == ("1", "")
    else:
        assert info["policy_fault"] == "bad_arguments"


def test_a_transcript_is_the_conversation():
    env = Transcript(riddles(format=HermesFormat(boxed=False, instructions=False), max_turns=2))
    env.reset(options={"task_id": "riddles:0"})
    text, *_ = env.step(f"{SHOUT} and what follows")
    assert text == (
        f"[user]\nCapital of France?\n[assistant]\n{SHOUT}\n[user]\n<tool_response>\nHI\n</tool_response>\n[assistant]\n"
    )
    assert text in env.observation_space
