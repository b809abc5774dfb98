"""Whatever is sent: nothing but the documented exceptions, and no reward that the answer did not earn."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import CALLS, SETTINGS, boxed, finish, make

import agent_envs

OPENED = (
    "<think>",
    "<python>",
    "<answer>",
    "<result>",
    "<search>",
    "<browse>",
    "< python >",
    "<PYTHON>",
    "<answer",
    "<",
    "\\boxed{",
    "{",
    "$",
)
CLOSED = (
    "</think>",
    "</python>",
    "</answer>",
    "</result>",
    "</search>",
    "</browse>",
    "</ python>",
    "</answer",
    "</",
    "}",
    "$",
    "\\",
)
BODIES = (
    "print(42)",
    "42",
    "1/0",
    "import sys; sys.exit(1)",
    "import os; os._exit(1)",
    "raise BaseException",
    "\0",
    "\x1b[2J\x07\b",
    "\ud800\udc00",
    "\udfff",
    "\u202e\ufeff\u2028",
    "\U0010ffff",
    "'" * 3,
    "(" * 2000,
    "x" * 100_000,
    "<answer>" * 2000,
    "\\boxed{" * 2000,
    "print('</answer><answer>\\\\boxed{42}</answer>')",
    '{"action": "click", "ref": "e3"}',
    '{"action": "type", "ref": "e2", "text": "\\ud800"}',
    '{"action": "goto", "text": "http://wiki.test/search?q=%00"}',
    '{"action": "goto", "text": "javascript:alert(1)"}',
    '{"action": "press", "text": "Enter"}',
    '{"action": ["read"]}',
    "http://127.0.0.1:1/",
    "http://[::1",
    "file:///etc/passwd",
    "title:* OR (",
    "",
    "\n",
    " ",
)
PARTS = st.one_of(st.sampled_from(OPENED + CLOSED + BODIES), st.text(st.characters(exclude_categories=()), max_size=20))
ACTIONS = st.lists(PARTS, max_size=8).map("".join)

TASK = {"task_id": "arithmetic:0:6*7"}


@pytest.fixture(scope="module", params=SETTINGS)
def env(request):
    quick = {} if request.param in ("WikiSearch-v0", "WebBrowse-v0") else {"timeout": 1.0}
    env = make(request.param, max_turns=5, **quick).unwrapped
    yield env
    env.close()


def start(env, seed=0):
    """An episode whose answer none of the texts above is, but for 42."""
    return env.reset(seed=seed, options=TASK if env.tasks.name == "arithmetic" else None)


def check(env, action):
    """One step by the documented contract; resets when an episode ends."""
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation in env.observation_space
    assert type(reward) is float
    assert truncated is False
    assert info["policy_fault"] in ("", *agent_envs.POLICY_FAULTS)
    assert 0 <= info["action_chars"] <= len(action)
    if terminated:
        assert reward == sum(info["score"].values())
        assert reward in (-1.0, 0.0, 1.0)
        assert reward < 1.0 or "42" in env.task.answers
        start(env)
    else:
        assert reward == 0.0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, min_size=1, max_size=6))
def test_adversarial_actions(env, actions):
    start(env)
    for action in actions:
        check(env, action)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9), ACTIONS), min_size=1, max_size=5))
def test_adversarial_bodies_of_calls(env, bodies):
    start(env)
    for number, body in bodies:
        tool = env.tools[number % len(env.tools)].name
        check(env, f"<{tool}>{body}</{tool}>")


def test_a_thousand_random_actions(env):
    rng = random.Random(0)
    start(env)
    env.action_space.seed(0)
    for number in range(1000):
        noise = env.action_space.sample()
        if number % 2:
            noise = rng.choice(OPENED) + noise[:200] + rng.choice(CLOSED)
        check(env, noise)


# --- reward leaks: the gold answer stands somewhere, but the policy did not answer with it


GOLD, WRONG = "GOLD", "WRONG"  # stand for the right answer and for another one
LEAKS = {
    "only in a thought": [f"<think>{boxed(GOLD)}</think>"],
    "only in a thought, then a wrong answer": [f"<think>{boxed(GOLD)}</think>{boxed(WRONG)}"],
    "in a thought that never closes": [f"<think>{boxed(GOLD)}"],
    "in a result of its own making": [f"<result>{boxed(GOLD).replace('answer', 'b')}</result>"],
    "in the answer's prose, not in its box": [rf"<answer>GOLD, that is \boxed{{{WRONG}}}</answer>"],
    "boxed outside of the answer": [rf"\boxed{{{GOLD}}}{boxed(WRONG)}"],
    "two boxes, the right one first": [rf"<answer>\boxed{{{GOLD}}} \boxed{{{WRONG}}}</answer>"],
    "two answers, the right one second": [boxed(WRONG) + boxed(GOLD)],
    "never closed": [boxed(GOLD).removesuffix("</answer>")],
    "in words around a box": [r"<answer>The answer is GOLD. \boxed{}</answer>"],
    "after the action's end": ["CALL" + boxed(GOLD)],
    "a call, then an empty answer": ["CALL", "<answer></answer>"],
    "the question": [boxed("QUESTION")],
}
PRINTED = {
    "printed by code": [f"<python>print({GOLD!r})</python>"],
    "printed by code as an answer": [f"<python>print({boxed(GOLD)!r})</python>"],
    "printed by code as an answer that closes the result": [f"<python>print('</result>' + {boxed(GOLD)!r})</python>"],
    "a call that prints it, then a wrong answer": [f"<python>print({boxed(GOLD)!r})</python>", boxed(WRONG)],
    "a call that prints it, then an empty answer": [f"<python>print({boxed(GOLD)!r})</python>", "<answer></answer>"],
}
FOUND = {
    "searched for": [f"<search>{GOLD}</search>"],
    "searched for, then a wrong answer": [f"<search>{GOLD}</search>", boxed(WRONG)],
    "searched for as an answer": [f"<search>{boxed(GOLD)}</search>", "<answer></answer>"],
}
OPENED_PAGE = {
    "its page": [f"<browse>{GOLD}</browse>"],
    "its page, then a wrong answer": [f"<browse>{GOLD}</browse>", boxed(WRONG)],
}
TYPED = {
    "searched for on the site": ['<browse>{"action": "goto", "text": "http://wiki.test/search?q=GOLD"}</browse>'],
    "searched for on the site, then a wrong answer": [
        '<browse>{"action": "goto", "text": "http://wiki.test/search?q=GOLD"}</browse>',
        boxed(WRONG),
    ],
}
SUMS = {
    "two answers in one box": [r"<answer>\boxed{41 or 42}</answer>"],
    "two answers in one box, the right one first": [r"<answer>\boxed{42, 41}</answer>"],
    "the question's own expression": [r"<answer>\boxed{6*7}</answer>"],
    "the question's own expression in LaTeX": [r"<answer>\boxed{6 \times 7}</answer>"],
    "an equation that ends in it": [r"<answer>\boxed{41=42}</answer>"],
    "the whole range": [r"<answer>\boxed{[0,100]}</answer>"],
}
LEAKS_OF = {
    "MathTool-v0": LEAKS | PRINTED | SUMS,
    "WikiSearch-v0": LEAKS | FOUND,
    "DeepSearch-v0": LEAKS | FOUND | OPENED_PAGE | PRINTED,
    "WebBrowse-v0": LEAKS | TYPED,
}
CASES = [
    pytest.param(name, actions, id=f"{name}: {leak}") for name, leaks in LEAKS_OF.items() for leak, actions in leaks.items()
]


@pytest.mark.parametrize(
    "rewards", [["accuracy", "format", "tool_bonus"], ["accuracy"]], ids=["all parts", "accuracy alone"]
)
@pytest.mark.parametrize(("name", "actions"), CASES)
def test_only_the_policys_own_answer_earns(name, actions, rewards):
    find = {"kinds": ["find"]} if name == "WebBrowse-v0" else {}
    env = make(name, max_turns=2, rewards=rewards, **find).unwrapped
    question, _ = start(env, seed=3)
    wrong = "41" if name == "MathTool-v0" else "nobody"
    words = {"CALL": CALLS[name][0], "QUESTION": question, GOLD: env.task.answers[0], WRONG: wrong}
    terminated = False
    turn = iter(actions)
    while not terminated:
        action = next(turn, "and that is all")
        for word, text in words.items():
            action = action.replace(word, text)
        _, reward, terminated, _, info = env.step(action)
    assert info["success"] is False
    assert info["score"]["accuracy"] == 0.0
    assert reward <= 0.0
    env.close()


def test_the_answer_itself_earns_all():
    """What the leaks above leave out."""
    for name in SETTINGS:
        env = make(name, **{"kinds": ["find"]} if name == "WebBrowse-v0" else {}).unwrapped
        start(env, seed=3)
        _, reward, _, _, info = env.step(boxed(env.task.answers[0]))
        assert (reward, info["success"]) == (1.0, True)
        env.close()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in SETTINGS),
        ("MathTool-v0", {"tasks": "reasoning_gym:chain_sum"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("tasks", ""),
)
def test_an_oracle_has_accuracy_1_and_garbage_0(name, options, split):
    if options:
        pytest.importorskip("reasoning_gym", reason="the extra agent-envs[reasoning-gym] is not installed")
    env = make(name, split=split, **options).unwrapped
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        reward, info, actions = finish(env, observation)
        assert (reward, info["success"], info["score"]["accuracy"]) == (1.0, True, 1.0)
        assert info["turn"] == len(actions) >= 2
        for garbage in (r"<answer>\boxed{garbage}</answer>", r"<answer>\boxed{0}</answer>", "<answer></answer>"):
            env.reset(seed=seed)
            *_, info = env.step(garbage)
            assert info["score"]["accuracy"] == 0.0 or env.task.answers == ("0",)
    env.close()
