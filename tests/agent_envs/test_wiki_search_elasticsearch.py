"""WikiSearch-v0 with a real Elasticsearch behind it: whole episodes, and a server that dies in one."""

import gymnasium as gym
import pytest
from elasticsearch_server import OwnServer, fresh_index, own_server
from gymnasium.error import ResetNeeded
from parts import finish

from agent_envs import EnvironmentFault
from agent_envs.tasks.tiny_wiki import TinyWiki
from sandboxes.search.elasticsearch import load

pytestmark = pytest.mark.elasticsearch


@pytest.fixture(scope="module")
def server():
    """One of the tests' own, since it is killed."""
    with own_server() as server:
        yield server


@pytest.fixture(scope="module")
def where(server: OwnServer):
    """The address of an index with the articles of the tiny wiki."""
    with fresh_index(server) as address:
        passages = list(TinyWiki().passages())
        assert load(address, passages).loaded == len(passages)
        yield address


def test_fifty_episodes(where):
    env = gym.make("agent_envs/WikiSearch-v0", index=where, hops=[1, 2, 3, 4], split="test", max_turns=8)
    for seed in range(50):
        observation, _ = env.reset(seed=seed)
        reward, info, actions = finish(env, observation)
        assert (reward, info["success"]) == (1.0, True), (env.unwrapped.task, actions)
    env.close()


def test_deep_search_opens_its_pages(where):
    env = gym.make("agent_envs/DeepSearch-v0", index=where, split="test", browser="reader")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        assert finish(env, observation)[1]["success"]
    env.close()


def test_a_server_that_is_killed_in_an_episode(server, where):
    options = {"connection": {"timeout": 5.0}}
    env = gym.make("agent_envs/WikiSearch-v0", index=where, index_options=options, split="test")
    env.reset(seed=0)
    before, *_ = env.step("<search>the mayor of a city</search>")
    server.kill()
    with pytest.raises(EnvironmentFault) as caught:
        env.step("<search>the mayor of a city</search>")
    assert (caught.value.component, caught.value.retryable) == ("search", True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ResetNeeded, match="the environment broke"):
        env.step("<answer></answer>")
    server.resume()
    observation, _ = env.reset(seed=0)
    assert env.step("<search>the mayor of a city</search>")[0] == before
    observation, _ = env.reset(seed=0)
    assert finish(env, observation)[1]["success"]
    env.close()
