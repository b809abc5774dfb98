"""What Gymnasium and its users ask of every environment, asked of every registered id."""

import copy
import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import CALLS, SETTINGS, make

import agent_envs
from agent_envs.actions import PlainFormat, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.spaces import String
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.transcript import Transcript
from agent_envs.verifiers.judge import JudgeVerifier
from sandboxes.browser import PageLimits

NAMES = list(agent_envs.ENVIRONMENTS)
RIGHT_FORM = r"<answer>\boxed{1}</answer>"
NOISE = ("", "hm", "<think>", "<search>", "<python>print(", "<browse>{</browse>", "<nothing>x</nothing>", "x" * 50_000)
JUDGE = {"url": "http://127.0.0.1:1/v1", "model": "judge"}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def env(name):
    env = make(name)
    yield env
    env.close()


def test_the_ids():
    assert set(NAMES) == {"MathTool-v0", "WikiSearch-v0", "DeepSearch-v0", "WebBrowse-v0"} == set(SETTINGS) == set(CALLS)
    assert {f"agent_envs/{name}" for name in NAMES} <= set(gym.registry)


def test_check_env_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"agent_envs/{name}").unwrapped)


def test_check_env_with_a_transcript(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(Transcript(gym.make(f"agent_envs/{name}").unwrapped))
    assert ["is different from the unwrapped version" in str(warning.message) for warning in caught] == [True]


def test_two_environments_play_the_same_rollout(name):
    one, other = make(name), make(name)
    one.action_space.seed(5)
    assert one.reset(seed=5) == other.reset(seed=5)
    for turn in range(50):
        action = one.action_space.sample() if turn % 3 else CALLS[name][turn // 3 % len(CALLS[name])]
        left, right = one.step(action), other.step(action)
        assert data_equivalence(left, right, exact=True)
        if left[2]:
            assert one.reset() == other.reset()
    one.close()
    other.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_forked_episode_is_no_other_than_one_that_was_not_forked(name, data):
    actions = st.lists(st.sampled_from(CALLS[name] + NOISE), max_size=4)
    before, after, seed = data.draw(actions), [*data.draw(actions), RIGHT_FORM], data.draw(st.integers(0, 99))
    original, unforked = make(name, max_turns=20), make(name, max_turns=20)
    for env in (original, unforked):
        env.reset(seed=seed)
    assert [original.step(action) for action in before] == [unforked.step(action) for action in before]
    twin = copy.deepcopy(original)
    expected = [unforked.step(action) for action in after]
    assert [original.step(action) for action in after] == expected
    original.close()
    assert [twin.step(action) for action in after] == expected  # untouched by what its original did and by its end
    assert twin.reset() == unforked.reset()
    for env in (twin, unforked):
        env.close()


def test_pickling_before_reset(name, env):
    twin = pickle.loads(pickle.dumps(env))
    assert twin.reset(seed=3) == env.reset(seed=3)
    assert str(twin) == str(env)
    assert twin.step(CALLS[name][0]) == env.step(CALLS[name][0])
    env.close()
    assert pickle.loads(pickle.dumps(env)).reset(seed=3) == twin.reset(seed=3)
    twin.close()


def test_closing_twice_and_going_on(name, env):
    env.reset(seed=3)
    before = env.step(CALLS[name][0])
    env.close()
    env.close()
    env.reset(seed=3)
    assert env.step(CALLS[name][0]) == before


def test_no_engine_opens_before_the_first_call():
    code = (
        "import gc, os, threading, gymnasium, agent_envs\n"
        "from sandboxes.browser import Browser\n"
        "from sandboxes.search import Index\n"
        "envs = [gymnasium.make(f'agent_envs/{name}') for name in agent_envs.ENVIRONMENTS]\n"
        "for env in envs: env.reset(seed=0); env.step('no call')\n"
        "print([thing for thing in gc.get_objects() if isinstance(thing, (Browser, Index))])\n"
        "print(open('/proc/self/task/%d/children' % os.getpid()).read(), threading.enumerate()[1:])\n"
        "import multiprocessing; print(multiprocessing.active_children())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]", "[]"]


COMMON = {
    "split": "test",
    "max_turns": 2,
    "rewards": ["accuracy"],
    "system_prompt": "Be brief.",
    "instructions": False,
    "max_observation": 500,
    "max_action": 600,
}
OWN = {
    "MathTool-v0": {"difficulty": [1, 2], "timeout": 1.5, "python": {"stateful": False}},
    "WikiSearch-v0": {
        "hops": [2, 3],
        "index": "elasticsearch://localhost:9200/wiki",
        "index_options": {"connection": {"user": "elastic", "password": "secret", "timeout": 2.0}},
        "k": 2,
        "passage_chars": 100,
        "judge": JUDGE,
    },
    "DeepSearch-v0": {
        "hops": 3,
        "task_options": {"seed": 4},
        "k": 2,
        "allow": ["en.wikipedia.org"],
        "page_chars": 400,
        "timeout": 1.5,
        "judge": JUDGE,
    },
    "WebBrowse-v0": {"kinds": ["find"], "hops": 1, "limits": {"timeout": 2.0}, "allow": ["docs.python.org"]},
}


def test_a_spec_becomes_json_and_an_environment_again(name):
    given = {**SETTINGS[name], **COMMON, **OWN[name]}
    env = Transcript(gym.make(f"agent_envs/{name}", **given))
    spec = EnvSpec.from_json(env.spec.to_json())
    assert json.loads(env.spec.to_json())["kwargs"] == given
    twin = gym.make(spec)
    assert isinstance(twin, Transcript)
    assert twin.reset(seed=4) == env.reset(seed=4)
    made = twin.unwrapped
    assert (made.split, made.max_turns, made.rewards, made.system_prompt) == ("test", 2, ("accuracy",), "Be brief.")
    assert made.format == TagFormat(instructions=False)
    assert (made.observation_space, made.action_space) == (String(500), String(600))
    tools = {tool.name: tool for tool in made.tools}
    if "python" in tools:
        assert (tools["python"].timeout, tools["python"].stateful) == (1.5, name != "MathTool-v0")
    if "search" in tools:
        assert (tools["search"].k, tools["search"].budget) == (2, OWN[name].get("passage_chars", 40))
        assert isinstance(made.verifier, JudgeVerifier)
    if name == "DeepSearch-v0":
        assert (tools["browse"].allow, tools["browse"].budget) == (("en.wikipedia.org",), 400)
    if name == "WebBrowse-v0":
        assert (tools["browse"].allow, tools["browse"].limits) == (("docs.python.org",), PageLimits(timeout=2.0))


def test_a_spec_of_tasks_of_reasoning_gym():
    pytest.importorskip("reasoning_gym", reason="the extra agent-envs[reasoning-gym] is not installed")
    given = {"tasks": "reasoning_gym:chain_sum", "task_options": {"max_terms": 2}}
    env = gym.make("agent_envs/MathTool-v0", **given)
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert twin.spec.kwargs == given
    assert twin.reset(seed=4) == env.reset(seed=4)


def test_the_module_prefix_imports_the_package():
    code = "import gymnasium; print(gymnasium.make('agent_envs:agent_envs/MathTool-v0').reset(seed=0)[1]['turn'])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_gymnasiums_vector_environments_with_their_defaults(vector):
    envs = vector([lambda: gym.make("agent_envs/MathTool-v0", max_turns=2)] * 3)
    single = gym.make("agent_envs/MathTool-v0", max_turns=2)
    questions = [single.reset(seed=7 + i)[0] for i in range(3)]
    try:
        observations, infos = envs.reset(seed=7)
        assert observations == tuple(questions)
        assert observations in envs.observation_space
        assert infos["turn"].tolist() == [0, 0, 0]

        actions = ["<python>print('ä\U0001f600' * 3)</python>", RIGHT_FORM, "<python>1/0</python>"]
        kept = observations
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        assert kept == tuple(questions)  # what was handed out does not change under one's hands
        assert observations[0] == "ä\U0001f600" * 3
        assert observations[1] == ""
        assert observations[2].endswith("ZeroDivisionError: division by zero")
        assert terminated.tolist() == [False, True, False]
        assert truncated.tolist() == [False] * 3
        assert infos["policy_fault"].tolist() == ["", "", "error"]
        assert infos["_score"].tolist() == [False, True, False]
        assert infos["score"]["accuracy"].dtype == np.float64

        # The one that ended is reset, whatever action it gets; the others run out of turns.
        observations, rewards, terminated, _, infos = envs.step([RIGHT_FORM.replace("1", "x")] * 3)
        assert infos["turn"].tolist() == [2, 0, 2]
        assert observations[1] not in ("", questions[1])
        assert terminated.tolist() == [True, False, True]
        assert rewards.tolist() == [0.0, 0.0, 0.0]
    finally:
        envs.close()
        single.close()


def test_worker_processes_open_engines_of_their_own(name):
    """The parent has its engines open when it is forked."""
    single = make(name)
    single.reset(seed=7)
    expected = single.step(CALLS[name][0])[0]
    envs = AsyncVectorEnv([lambda: make(name)] * 2)
    try:
        envs.reset(seed=[7, 7])
        assert envs.step([CALLS[name][0]] * 2)[0] == (expected, expected)
    finally:
        envs.close()
    single.reset(seed=7)
    assert single.step(CALLS[name][0])[0] == expected
    single.close()


def test_vector_environments_sample_their_own_actions():
    envs = AsyncVectorEnv([lambda: gym.make("agent_envs/MathTool-v0")] * 2)
    try:
        envs.reset(seed=0)
        for _ in range(10):
            actions = envs.action_space.sample()
            assert actions in envs.action_space
            assert envs.step(actions)[0] in envs.observation_space
    finally:
        envs.close()


def test_make_vec():
    envs = gym.make_vec("agent_envs/MathTool-v0", num_envs=2, difficulty=1)
    assert len(envs.reset(seed=0)[0]) == 2
    envs.close()


# --- keyword arguments


def test_difficulty_and_format():
    env = gym.make("agent_envs/MathTool-v0", difficulty=5, format="plain").unwrapped
    env.reset(seed=0)
    assert env.task.metadata["difficulty"] == 5
    assert env.format == PlainFormat()
    assert env.step("nonsense")[2] is True


def test_objects_go_to_the_function_itself():
    source = Arithmetic(difficulty=[1])
    env = agent_envs.math_tool(source, "validation", format=TagFormat(boxed=False))
    assert isinstance(env, ToolEnv)
    assert env.tasks is source
    assert env.split == "validation"
    assert env.format == TagFormat(boxed=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tasks": "arithmetics"},
            r"arithmetic, .*reasoning_gym:NAME, the path of a \.jsonl or \.json file; found 'arithmetics'",
        ),
        ({"tasks": "nowhere.jsonl"}, r"tasks='nowhere\.jsonl': there is no such file"),
        ({"tasks": "reasoning_gym:"}, "found 'reasoning_gym:'"),
        ({"split": "dev"}, "found split='dev'"),
        ({"format": "xml"}, "format is 'tag', 'hermes', 'plain' or a Format, found 'xml'"),
        ({"task_options": {"size": 3}}, "tasks='arithmetic' does not take these options: .*'size'"),
        ({"difficulty": 99}, "difficulty is a number of operations from 1 to 8"),
        ({"rewards": ["speed"]}, "speed"),
        ({"timeout": -1.0}, "timeout"),
    ],
)
def test_wrong_keyword_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        gym.make("agent_envs/MathTool-v0", **settings)
    assert "\n" not in str(caught.value)
    if "tasks" in settings:
        assert isinstance(caught.value, agent_envs.UnknownTaskSource)


@pytest.mark.parametrize("name", ["WikiSearch-v0", "DeepSearch-v0"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hops": 5}, "hops is a number of relations from 1 to 4"),
        ({"k": 0}, "k must be at least 1, found 0"),
        ({"passage_chars": 0}, "budget must be at least 1, found 0"),
        ({"tasks": "wiki"}, "tasks is one of .*tiny_wiki.*; found 'wiki'"),
        ({"tasks": "nowhere.jsonl", "index": "folder"}, r"tasks='nowhere\.jsonl': there is no such file"),
        ({"task_options": {"size": 3}}, "tasks='tiny_wiki' does not take these options: .*'size'"),
        ({"index": "folder", "index_options": {"size": 3}}, r"index_options takes arguments of .*open_index, .*'size'"),
        ({"index": "folder", "index_options": {"connection": {"pass": "x"}}}, r"index_options takes .*'pass'"),
        ({"judge": {"url": "localhost", "model": "judge"}}, "localhost"),
        ({"format": "xml"}, "format is 'tag', 'hermes', 'plain' or a Format, found 'xml'"),
    ],
)
def test_wrong_keyword_arguments_of_search_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_misspelt_keyword_argument(name):
    with pytest.raises(TypeError, match="max_turn"):
        gym.make(f"agent_envs/{name}", max_turn=3)


# --- Transcript


def test_a_transcript_is_the_conversation():
    env = Transcript(gym.make("agent_envs/MathTool-v0", system_prompt="Be brief.", instructions=False, max_turns=3))
    text, _ = env.reset(options={"task_id": "arithmetic:0:6*7"})
    assert text == "[system]\nBe brief.\n[user]\nWhat is 6*7?\n[assistant]\n"
    text = env.step("<python>print('</result>', 6*7)</python> and <result>43</result>")[0]
    assert text.endswith("[assistant]\n<python>print('</result>', 6*7)</python> <result>\n<\\/result> 42\n</result>")
    twin = copy.deepcopy(env)
    final, reward, terminated, *_ = env.step(r"<answer>\boxed{42}</answer> bye")
    assert (reward, terminated) == (1.0, True)
    assert final == text + r"<answer>\boxed{42}</answer>"
    assert twin.step("<think>\ud800")[0].startswith(text + "<think>\ufffd <result>\n")
    assert isinstance(twin, Transcript)
    twin.close()
    env.close()


def test_a_transcript_in_the_plain_format_has_messages():
    class Patient(PlainFormat):
        def parse(self, text, tools):
            return agent_envs.Parsed(None, len(text), False, "no_action", "go on")

    env = Transcript(agent_envs.math_tool(format=Patient(), system_prompt=""))
    opening = env.reset(options={"task_id": "arithmetic:0:1+1"})[0]
    assert opening == "[user]\nWhat is 1+1?\n[assistant]\n"
    assert env.step("hm")[0] == opening + "hm\n[user]\ngo on\n[assistant]\n"


def test_a_transcript_stays_in_its_space():
    env = Transcript(gym.make("agent_envs/MathTool-v0", max_turns=4, max_observation=200, max_action=200))
    text, _ = env.reset(seed=0)
    action = "<python>" + "print('</b>' * 99)".ljust(200 - len("<python></python>")) + "</python>"
    for _ in range(4):
        text = env.step(action)[0]
        assert text in env.observation_space
    env.close()


def test_a_transcript_wraps_tool_environments_only():
    with pytest.raises(TypeError, match="wraps a ToolEnv"):
        Transcript(gym.make("CartPole-v1"))
