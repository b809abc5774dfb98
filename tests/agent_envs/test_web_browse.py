"""WebBrowse-v0 by its id: its own site, and any other. What the tool and the tasks do is tested with them."""

import json

import gymnasium as gym
import pytest
from parts import boxed, finish, make, pages
from web_parts import browse, ref_of

from agent_envs import EnvironmentFault
from agent_envs.verifiers.judge import JudgeVerifier

SITE = {
    "/": "<title>Harbour</title><p>See the <a href='/sarune'>town</a>.</p>",
    "/sarune": f"<title>Sarune</title><p>Its mayor is Talido Benu. {boxed('Talido Benu')}</p>",
    "/large": "<title>Large</title>" + "<p>many words in a line of their own</p>" * 25_000,
}


@pytest.fixture
def place():
    with pages(SITE) as place:
        yield place


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "Who is the mayor?", "answer": "Talido Benu", "split": "train"}))
    return str(file)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_is_always_right(split):
    env = make("WebBrowse-v0", split=split)
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        reward, info, actions = finish(env, observation)
        assert (reward, info["success"]) == (1.0, True), (env.unwrapped.task, actions)
        assert 2 <= len(actions) <= env.unwrapped.max_turns
    env.close()


def test_kinds_and_hops_of_tasks():
    env = make("WebBrowse-v0", kinds=["add", "note"], hops=2)
    kinds = set()
    for seed in range(12):
        env.reset(seed=seed)
        kinds.add(env.unwrapped.task.metadata["kind"])
        assert len(env.unwrapped.task.metadata["chain"]) == 3
    assert kinds == {"add", "note"}


def test_another_site_and_questions_of_ones_own(questions, place):
    env = make("WebBrowse-v0", tasks=questions, start_url=f"http://{place}/", allow=[place])
    assert env.reset(seed=0)[0] == "Who is the mayor?"
    observation, *_ = env.step(browse(action="read"))
    assert "Page: Harbour" in observation
    observation, reward, terminated, *_ = env.step(browse(action="click", ref=ref_of("town", observation)))
    assert "Its mayor is Talido Benu." in observation
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, info = env.step(boxed("Talido Benu"))
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    env.reset(seed=0)
    observation, *_, info = env.step(browse(action="goto", text="http://wiki.test/"))
    assert info["policy_fault"] == "error"
    assert "may not be reached" in observation
    env.close()


def test_what_a_page_shows_earns_nothing_by_itself(questions, place):
    env = make("WebBrowse-v0", tasks=questions, start_url=f"http://{place}/sarune", allow=[place], max_turns=2)
    for last in (browse(action="read"), "as the page says", "<answer></answer>", boxed("the mayor")):
        env.reset(seed=0)
        assert "Talido Benu" in env.step(browse(action="read"))[0]
        _, reward, terminated, _, info = env.step(last)
        assert terminated
        assert reward <= 0.0
        assert (info["success"], info["score"]["accuracy"]) == (False, 0.0)
    env.close()


def test_a_page_of_a_megabyte_stays_within_the_budgets(questions, place):
    for limits, max_observation in (({"snapshot": 1_000}, 8_000), ({"snapshot": 100_000}, 1_000)):
        env = make(
            "WebBrowse-v0",
            tasks=questions,
            start_url=f"http://{place}/large",
            allow=[place],
            limits=limits,
            max_observation=max_observation,
        )
        env.reset(seed=0)
        observation, *_, info = env.step(browse(action="scroll", text="down"))
        assert 500 < len(observation) <= 1_100
        assert "left out" in observation
        assert info["policy_fault"] == ""
        env.close()


@pytest.mark.parametrize("allow", [[], ["{place}"]])
def test_a_start_page_that_does_not_open_is_an_environment_fault(questions, place, allow):
    host = "127.0.0.1:1" if allow else place
    env = make(
        "WebBrowse-v0", tasks=questions, start_url=f"http://{host}/", allow=[*(one.format(place=place) for one in allow)]
    )
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=rf"the start page http://{host}/ did not open: ") as caught:
        env.step(browse(action="read"))
    assert "\n" not in str(caught.value)
    assert caught.value.component == "browse"
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ["fly"]}, "kinds are some of"),
        ({"hops": 9}, "hops is a number of relations"),
        ({"backend": "firefox"}, "backend must be"),
        ({"limits": {"speed": 1}}, "limits takes the fields"),
        ({"browser": {"colour": "red"}}, "options may be"),
        ({"allow": "wiki.test"}, "allow is a list of hosts"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make("WebBrowse-v0", **settings)


def test_questions_of_ones_own_need_a_page_to_start_from(questions):
    with pytest.raises(ValueError, match="needs a site, or a start_url and what it may reach"):
        make("WebBrowse-v0", tasks=questions)


def test_a_judge_is_for_questions_that_bring_no_verifier(questions, place):
    judge = {"url": "http://127.0.0.1:1/v1", "model": "judge"}
    env = make("WebBrowse-v0", tasks=questions, start_url=f"http://{place}/", allow=[place], judge=judge)
    assert isinstance(env.unwrapped.verifier, JudgeVerifier)
    own = make("WebBrowse-v0", judge=judge, kinds=["settings"])
    observation, _ = own.reset(seed=0)
    assert finish(own, observation)[1]["success"]
    own.close()


@pytest.mark.browser
def test_the_oracle_in_chromium():
    env = gym.make("agent_envs/WebBrowse-v0", backend="chromium", split="test")
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        assert finish(env, observation)[1]["success"]
    env.close()
