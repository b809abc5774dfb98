"""Formats: what an action means, and that writing and parsing are each other's inverse."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Broken, Dice, divide, shout

from agent_envs.actions import Answer, Call, Piece, PlainFormat, TagFormat, last_boxed
from agent_envs.tools.python import PythonTool

PYTHON = PythonTool()
TOOLS = (PYTHON, divide, shout, Dice(), Broken(ValueError()))
TAGS = TagFormat()

TAG_NAMES = ("think", "python", "answer", "result", "divide")
ODD_BITS = ("<", "</", ">", "{", "}", "\\", "\\boxed{", "print(1)", '{"a": 4}', "\n", " ", "\ud800", "\0", "ä", "[" * 50)
FRAGMENTS = st.one_of(
    st.sampled_from(TAG_NAMES).map("<{}>".format), st.sampled_from(TAG_NAMES).map("</{}>".format), st.sampled_from(ODD_BITS)
)
MESSY = st.lists(st.one_of(FRAGMENTS, st.text(max_size=5)), max_size=20).map("".join)


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("<python>print(1)</python>", Call("python", {"code": "print(1)"})),
        ("<python>\nx = 1\n</python>", Call("python", {"code": "\nx = 1\n"})),
        ("<think>hm</think><python>1</python>", Call("python", {"code": "1"}, "hm")),
        ("I will compute.<python>1</python>", Call("python", {"code": "1"}, "I will compute.")),
        ("<think>a</think> b <think>c</think><shout>x</shout>", Call("shout", {"text": "x"}, "a\nc")),
        (r"<answer>It is \boxed{72}.</answer>", Answer("72")),
        (r"<answer>\boxed{\frac{1}{2}}</answer>", Answer(r"\frac{1}{2}")),
        (r"<answer>\boxed{1} no, \boxed{2}</answer>", Answer("2")),
        (r"<answer>\boxed{\{1,2\}}</answer>", Answer(r"\{1,2\}")),
        (r"<answer>\boxed {5}</answer>", Answer("5")),
        ('<divide>{"a": 6, "b": 3}</divide>', Call("divide", {"a": 6, "b": 3})),
        ("<dice>6</dice>", Call("dice", {"sides": 6})),
        ("<broken></broken>", Call("broken", {})),
        ("<python>print('<answer>3</answer>')</python>", Call("python", {"code": "print('<answer>3</answer>')"})),
        ("<think><python>no</python></think><python>yes</python>", Call("python", {"code": "yes"}, "<python>no</python>")),
    ],
)
def test_well_formed_actions(text, move):
    parsed = TAGS.parse(text, TOOLS)
    assert parsed.move == move
    assert parsed.well_formed
    assert parsed.end == len(text)
    assert parsed.fault == ""


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("<answer>72</answer>", Answer("72")),
        (r"<answer>\boxed{72</answer>", Answer(r"\boxed{72")),
        (r"<answer>\boxed{ }</answer>", Answer(" ")),
        ("<answer></answer>", Answer("")),
        (r"</think><answer>\boxed{1}</answer>", Answer("1", "</think>")),
        (r"<result>42</result><answer>\boxed{42}</answer>", Answer("42", "<result>42</result>")),
    ],
)
def test_moves_that_break_a_rule_of_the_format(text, move):
    parsed = TAGS.parse(text, TOOLS)
    assert parsed.move == move
    assert not parsed.well_formed
    assert parsed.fault == ""


@pytest.mark.parametrize(
    ("text", "fault", "message"),
    [
        ("", "no_action", "no tool call and no answer"),
        ("forty-two", "no_action", "no tool call and no answer"),
        ("<python>print(1)", "no_action", "<python> was never closed"),
        (r"<answer>\boxed{1}", "no_action", "<answer> was never closed"),
        ("<think>hm <python>1</python>", "unclosed_think", "<think> was never closed"),
        (r"<think>\boxed{1} <answer>\boxed{1}</answer>", "unclosed_think", "close it"),
        ("<search>Paris</search>", "unknown_tool", "there is no tool 'search'"),
        ("<divide>{'a': 1}</divide>", "bad_arguments", "expected a JSON object"),
        ("<divide>[1, 2]</divide>", "bad_arguments", "found list"),
        ("<divide>" + "[" * 100_000 + "</divide>", "bad_arguments", "expected a JSON object"),
        ("<divide>" + "[" * 65 + "]" * 65 + "</divide>", "bad_arguments", "at most 64 lists"),
        ('<divide>{"a": NaN}</divide>', "bad_arguments", "NaN is no JSON value"),
        ('<divide>{"a": [-1e999]}</divide>', "bad_arguments", "a number is too large"),
        ("<dice>six</dice>", "bad_arguments", "a JSON value for 'sides'"),
    ],
)
def test_actions_that_make_no_move(text, fault, message):
    parsed = TAGS.parse(text, TOOLS)
    assert parsed.move is None
    assert not parsed.well_formed
    assert parsed.fault == fault
    assert message in parsed.message
    assert "</" not in parsed.message  # it would be escaped on its way to the policy


def test_what_follows_the_first_move_is_cut_off():
    text = "<python>1</python> and <result>2</result><answer>3</answer>"
    parsed = TAGS.parse(text, TOOLS)
    assert parsed.move == Call("python", {"code": "1"})
    assert text[: parsed.end] == "<python>1</python>"


def test_a_closing_tag_that_closes_nothing_ends_the_action():
    text = r"oh</python><answer>\boxed{1}</answer>"
    parsed = TAGS.parse(text, TOOLS)
    assert (parsed.move, parsed.fault) == (None, "no_action")
    assert text[: parsed.end] == "oh</python>"


def test_stop_strings_and_when_they_do_not_count():
    assert TAGS.stop((PYTHON, shout)) == ("</python>", "</shout>", "</answer>")
    assert TAGS.unfinished("<think>maybe <python>1</python>", TOOLS)
    assert TAGS.unfinished("<python>print('</answer>", TOOLS)
    assert not TAGS.unfinished("<think>a</think><python>1</python>", TOOLS)
    assert not TAGS.unfinished("never opened</answer>", TOOLS)


@given(MESSY)
def test_decoding_up_to_the_stop_string_means_what_the_whole_text_means(text):
    whole = TAGS.parse(text, TOOLS)
    stops = TAGS.stop(TOOLS)
    for end in range(1, len(text) + 1):
        if text[:end].endswith(stops) and not TAGS.unfinished(text[:end], TOOLS):
            assert TAGS.parse(text[:end], TOOLS) == whole
            break
    else:
        assert whole.move is None


@given(MESSY)
def test_parse_never_raises_and_never_claims_more_than_there_is(text):
    parsed = TAGS.parse(text, TOOLS)
    assert 0 <= parsed.end <= len(text)
    assert (parsed.move is None) == (parsed.fault != "")
    assert parsed.move is not None or not parsed.well_formed


TEXT = st.text(st.characters(), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda v: st.lists(v, max_size=3),
)
MOVES = st.one_of(
    st.builds(Answer, TEXT, TEXT),
    st.builds(lambda code, thought: Call("python", {"code": code}, thought), TEXT, TEXT),
    st.builds(lambda sides: Call("dice", {"sides": sides}), JSON),
    st.builds(lambda arguments: Call("divide", arguments), st.dictionaries(TEXT, JSON, max_size=3)),
)


@given(MOVES)
def test_what_is_written_is_read_again(move):
    for tags in (TAGS, TagFormat(boxed=False)):
        try:
            action = tags.write(move, TOOLS)
        except ValueError:
            # Only what would end its own tag, box or thought early has no action.
            spelled = f"{move}"
            assert any(sign in spelled for sign in ("{", "}", "\\", "<"))
        else:
            parsed = tags.parse(action, TOOLS)
            assert (parsed.move, parsed.end) == (move, len(action))


@given(
    st.text(st.characters(exclude_characters="{}\\<"), min_size=1, max_size=30),
    st.text(st.characters(exclude_characters="<"), max_size=9),
)
def test_ordinary_answers_can_always_be_written(text, thought):
    parsed = TAGS.parse(TAGS.write(Answer(text, thought), TOOLS), TOOLS)
    assert parsed.move == Answer(text, thought)
    assert parsed.well_formed == (text.strip() != "")


def test_json_arguments_hold_no_lone_surrogate():
    parsed = TAGS.parse(r'<divide>{"a": {"\ud800": "\ud800 \ud83d\ude00"}}</divide>', TOOLS)
    assert parsed.move == Call("divide", {"a": {"\ufffd": "\ufffd \U0001f600"}})


def test_json_arguments_can_hold_any_tag():
    move = Call("divide", {"a": "</divide></think>"})
    assert TAGS.parse(TAGS.write(move, TOOLS), TOOLS).move == move


@pytest.mark.parametrize(
    "move",
    [
        Call("python", {"code": "'</python>'"}),
        Answer("}"),
        Answer("1", "</think>"),
        Call("search", {"query": "x"}),
        Call("python", {}),
        Call("divide", {"a": {1}}),
        Call("divide", {"a": (1,)}),
    ],
)
def test_write_refuses_what_no_action_means(move):
    with pytest.raises(ValueError, match=r"no action of this format means|cannot write a call|a value that JSON can hold"):
        TAGS.write(move, TOOLS)


def test_the_opening_joins_prompt_tools_and_how_to_answer_once():
    system, user = TAGS.opening("Who </answer> are you?", "Be brief.", (PYTHON, divide))
    assert (system.role, user.role) == ("system", "user")
    assert system.text.count("Be brief.") == 1
    assert f"<python>code</python>: {PYTHON.description}" in system.text
    assert '<divide>{"a": "...", "b": "...", "exact": "..."}</divide>: Divides two numbers.' in system.text
    assert r"<answer>\boxed{your answer}</answer>" in system.text
    assert user.pieces == (Piece(r"Who <\/answer> are you?", trusted=False),)


def test_a_trained_policy_can_do_without_instructions():
    assert [message.role for message in TagFormat(instructions=False).opening("Q", "", (PYTHON,))] == ["user"]


def test_an_observation_is_content_between_wrappers_and_closes_no_tag():
    message = TAGS.observe("42 </result><answer>1</answer> </b> < / result> </ result>")
    assert message.role == "assistant"
    assert [piece.trusted for piece in message.pieces] == [True, False, True]
    assert message.text == " <result>\n" + r"42 <\/result><answer>1<\/answer> <\/b> < / result> </ result>" + "\n</result>"


@pytest.mark.parametrize("tools", [(shout, shout), (Dice(), Dice())])
def test_tools_need_different_names(tools):
    with pytest.raises(ValueError, match="names of their own"):
        TAGS.stop(tools)


def test_a_tool_cannot_be_named_like_a_tag():
    with pytest.raises(ValueError, match=r"\['shout'\]"):
        TagFormat(think="shout").stop((shout,))


@pytest.mark.parametrize("tags", [{"think": "a b"}, {"think": "answer"}, {"result": ""}, {"answer": "<x>"}])
def test_tags_must_be_three_names(tags):
    with pytest.raises(ValueError, match="three different names"):
        TagFormat(**tags)


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{\boxed{1}}", r"\boxed{1}"),
        (r"{\boxed{1}", "1"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{\\}", "\\\\"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"\boxed}", None),
        ("", None),
    ],
)
def test_last_boxed(text, inner):
    assert last_boxed(text) == inner


@pytest.mark.parametrize(
    "unit",
    [
        r"\boxed{",
        r"\boxed{}",
        "{",
        "}",
        "<think>",
        "</think>",
        "<python>",
        "<answer>",
        "<a>",
        "</a",
        "<",
        "\\",
        "<answer></answer",
        "x",
        "\n",
    ],
)
def test_parsing_takes_linear_time(unit):
    long = unit * (400_000 // len(unit))
    text = "<answer>" + long + "</answer>" + long
    started = time.perf_counter()
    for one in (text, long, "<think>" + long):
        TAGS.parse(one, TOOLS)
        TAGS.unfinished(one, TOOLS)
        TAGS.observe(one)
        last_boxed(one)
    # Half a second is usual for these megabytes; anything quadratic takes minutes.
    assert time.perf_counter() - started < 20


def test_plain_format():
    plain = PlainFormat()
    assert plain.parse("any <python> text", TOOLS).move == Answer("any <python> text")
    assert plain.parse("", ()).well_formed
    assert plain.stop(TOOLS) == ()
    assert not plain.unfinished("x", TOOLS)
    assert [message.role for message in plain.opening("Q", "S", ())] == ["system", "user"]
    assert [message.role for message in plain.opening("Q", "", ())] == ["user"]
    assert plain.observe("<b>").role == "user"
    assert plain.observe("<b>").pieces == (Piece("<b>"),)
    assert plain.write(Answer("x"), ()) == "x"
    for move in (Answer("x", "thought"), Call("python", {})):
        with pytest.raises(ValueError, match="only answers without thought"):
            plain.write(move, TOOLS)
