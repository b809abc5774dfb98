"""DeepSearch-v0 from end to end: results that show how pages begin, pages by id and by address, and Python."""

import copy

import gymnasium as gym
import pytest
from parts import boxed, finish, make, pages
from search_parts import PASSAGES, retrieve_server, small_index, write_questions

from agent_envs import EnvironmentFault

SITE = {
    "/": f"<title>Harbour</title><p>The harbour of Sarune. {boxed('Sarune')}</p>",
    "/large": "<title>Large</title>" + "<p>many words in a line of their own</p>" * 25_000,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "index"
    with small_index() as index:
        index.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def env(questions, folder):
    env = make("DeepSearch-v0", tasks=questions, index=folder)
    env.reset(seed=0)
    yield env
    env.close()


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_is_always_right_and_opens_a_page_for_every_hop(hops, split):
    env = make("DeepSearch-v0", hops=hops, split=split)
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        reward, info, actions = finish(env, observation)
        assert (reward, info["success"]) == (1.0, True), (env.unwrapped.task, actions)
        assert sum(action.startswith("<browse>") for action in actions) == hops
        assert len(actions) <= env.unwrapped.max_turns
    env.close()


def test_results_show_how_a_page_begins_and_the_page_shows_the_rest(env):
    observation, *_ = env.step("<search>Talido Benu</search>")
    assert observation.split("\n")[0] == "Doc 1 (id: p2, Title: Talido Benu) Talido Benu is a painter. The birthplace ..."
    observation, *_, info = env.step("<browse>p2</browse>")
    assert observation == f"Talido Benu\n{PASSAGES[1].text}"
    assert (info["tool"], info["policy_fault"]) == ("browse", "")
    observation, *_, info = env.step("<browse>p9</browse>")
    assert observation == "there is no page 'p9': take the id of a search result, or an address"
    assert info["policy_fault"] == "error"


def test_pages_are_opened_by_their_address_where_that_is_allowed(env, questions, folder):
    with pages(SITE) as place:
        observation, reward, *_, info = env.step(f"<browse>http://{place}/</browse>")
        assert (info["policy_fault"], reward) == ("error", 0.0)
        assert f"{place} may not be reached" in observation
        allowed = make("DeepSearch-v0", tasks=questions, index=folder, allow=[place], page_chars=800)
        allowed.reset(seed=0)
        observation, reward, terminated, _, info = allowed.step(f"<browse>http://{place}/</browse>")
        assert (info["policy_fault"], reward, terminated) == ("", 0.0, False)
        assert "The harbour of Sarune." in observation
        observation, *_, info = allowed.step(f"<browse>http://{place}/large</browse>")
        assert info["policy_fault"] == ""
        assert 400 < len(observation) <= 800
        _, reward, *_ = allowed.step("It is on the page.")
        assert reward == 0.0
        allowed.close()


@pytest.mark.parametrize("browser", ["auto", "chromium"])
def test_no_browser_is_needed_for_pages_of_the_index(questions, folder, browser):
    env = gym.make("agent_envs/DeepSearch-v0", tasks=questions, index=folder, browser=browser)
    env.reset(seed=0)
    assert env.step("<browse>p1</browse>")[0].startswith("Kovamir\n")
    env.close()


def test_an_observation_of_a_page_of_a_megabyte_stays_within_both_budgets(questions, folder):
    with pages(SITE) as place:
        for page_chars, max_observation in ((500_000, 2_000), (2_000, 500_000)):
            env = make(
                "DeepSearch-v0",
                tasks=questions,
                index=folder,
                allow=[place],
                page_chars=page_chars,
                max_observation=max_observation,
            )
            env.reset(seed=0)
            observation, *_, info = env.step(f"<browse>http://{place}/large</browse>")
            assert 1_000 < len(observation) <= 2_000
            assert "left out" in observation
            assert info["policy_fault"] == ""
            env.close()


def test_python_keeps_its_variables_for_the_episode_and_a_copy_has_its_own(env):
    env.step("<python>years = [1923]</python>")
    env.step("<search>Kovamir</search>")
    twin = copy.deepcopy(env)
    ours = env.step("<python>years.append(7); print(sum(years))</python>")
    assert (ours[0], ours[4]["tool"]) == ("1930", "python")
    assert twin.step("<python>print(sum(years))</python>")[0] == "1923"
    env.reset(seed=0)
    observation, *_, info = env.step("<python>years</python>")
    assert "NameError" in observation
    assert info["policy_fault"] == "error"
    assert twin.step("<browse>p1</browse>")[0].startswith("Kovamir\n")
    assert twin.step(boxed("Sarune"))[4]["success"]
    twin.close()


@pytest.mark.parametrize(
    ("actions", "score"),
    [
        (("<search>x</search>", "<browse>p1</browse>", "<python>1</python>"), (1.0, 0.0, 0.1)),
        (("<search>x</search>", "<browse>p1</browse>", "<python>1/0</python>"), (1.0, 0.0, 0.0)),
        (("<search>x</search>", "<browse>p9</browse>", "<python>1</python>"), (1.0, 0.0, 0.0)),
        (("<browse>p1</browse>",), (1.0, 0.0, 0.0)),
        (("<browse>p1</browse>", "hm"), (0.0, -1.0, 0.0)),
    ],
)
def test_the_bonus_is_for_all_three_tools_at_work(env, actions, score):
    for action in actions:
        env.step(action)
    *_, info = env.step(boxed("Sarune"))
    assert tuple(info["score"].values()) == score
    assert info["success"]


@pytest.mark.parametrize(
    "action",
    [
        "<browse>p2</browse>",
        "<search>Sarune</search>",
        "<python>print('Sarune')</python>",
        f"<python>print({boxed('Sarune')!r})</python>",
        f"<python>print('</result>' + {boxed('Sarune')!r})</python>",
    ],
)
@pytest.mark.parametrize("last", ["", "it is there", "<answer></answer>", boxed("Kovamir")])
def test_an_answer_that_a_tool_shows_earns_nothing_by_itself(env, action, last):
    observation, reward, terminated, *_ = env.step(action)
    assert "Sarune" in observation
    assert (reward, terminated) == (0.0, False)
    while not terminated:
        _, reward, terminated, _, info = env.step(last)
    assert reward <= 0.0
    assert (info["success"], info["score"]["accuracy"]) == (False, 0.0)


@pytest.mark.parametrize(
    ("action", "component"), [("<search>Kovamir</search>", "search"), ("<browse>p1</browse>", "browse")]
)
def test_an_index_that_goes_away_is_the_fault_of_the_tool_that_needs_it(questions, folder, action, component):
    with retrieve_server(folder) as server:
        env = make("DeepSearch-v0", tasks=questions, index=server.url, index_options={"timeout": 0.5})
        env.reset(seed=0)
        assert env.step(action)[4]["policy_fault"] == ""
        server.kill()
        with pytest.raises(EnvironmentFault, match="no answer from the search server") as caught:
            env.step("<browse>p3</browse>" if component == "browse" else action)
        assert (caught.value.component, caught.value.retryable) == (component, True)
        env.reset(seed=0)
        assert env.step("<python>print(6 * 7)</python>")[0] == "42"  # what is there still works
        env.close()
