"""The scripted agent: what it does, and that it succeeds in each of Gymnasium's vector environments."""

import gymnasium as gym
import pytest

from examples import vector_agent
from examples.vector_agent import act, success_rate


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        ("What is (3-10)*2?", "<python>print((3-10)*2)</python>"),
        ("Calculate 84*(19+90) for me, please.", "<python>print(84*(19+90))</python>"),
        ("-14\n", r"<answer>\boxed{-14}</answer>"),
        ("", r"<answer>\boxed{}</answer>"),
    ],
)
def test_it_calculates_questions_and_answers_with_results(observation, action):
    assert act(observation) == action


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_it_succeeds_in_many_environments_at_once(mode, capsys):
    vector_agent.main(["--mode", mode, "--num-envs", "3", "--episodes", "12"])
    assert capsys.readouterr().out == "3 environments: success 1.00\n"


def test_an_episode_that_fails_counts_as_one():
    class Coin(gym.Env):
        """Over at once; every second episode is a success."""

        observation_space = action_space = gym.spaces.Text(100)
        episodes = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return "What is 1+1?", {}

        def step(self, action):
            self.episodes += 1
            return "", 0.0, True, False, {"success": self.episodes % 2 == 0}

    envs = gym.vector.SyncVectorEnv([Coin, Coin])
    assert success_rate(envs, episodes=20) == 0.5
    envs.close()
