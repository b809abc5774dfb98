"""The loop of one's own: its masks, its gradient, and that it runs as its docstring says."""

import copy
import re

import gymnasium as gym
import pytest
import torch

import agent_envs  # noqa: F401 - registers the ids
from examples import reinforce
from examples.reinforce import Rollout, play, random_model, update


class Recorder(gym.Wrapper):
    """Notes what was done, in order: the question, then action, observation, action, ..."""

    def reset(self, **options):
        question, info = self.env.reset(**options)
        self.texts = [question]
        return question, info

    def step(self, action):
        observation, *rest = self.env.step(action)
        self.texts += [action, observation]
        return observation, *rest


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runs(rollout):
    """The ids cut into runs of one author."""
    cut, written = [[]], False
    for token, own in zip(rollout.ids, rollout.written, strict=True):
        if own != written:
            cut.append([])
        cut[-1].append(token)
        written = own
    return cut


def test_what_the_model_wrote_is_marked_and_nothing_else():
    torch.manual_seed(0)
    model, tokenizer = random_model()
    env = Recorder(gym.make("agent_envs/DeepSearch-v0", max_turns=3))
    rollout = play(env, model, tokenizer, seed=1, turn_tokens=12)
    env.close()
    question, *rest = env.texts
    opening, *others = (tokenizer.decode(part, skip_special_tokens=True) for part in runs(rollout))
    assert question in opening
    assert len(rest) == 6
    assert others == [rest[0], f" <result>\n{rest[1]}\n</result>", rest[2], f" <result>\n{rest[3]}\n</result>", rest[4]]
    assert rollout.total == -1.0
    assert not rollout.success


def test_an_update_follows_the_gradient_of_the_advantage_times_the_log_probability():
    torch.manual_seed(0)
    model, _ = random_model()
    twin = copy.deepcopy(model)
    rollouts = [
        Rollout([5, 6, 7, 8], [False, False, True, True], 1.0, True),
        Rollout([5, 9, 9], [False, True, False], 0.0, False),
        Rollout([7, 4, 4, 4], [False, False, True, True], -1.0, False),
    ]
    loss = update(model, torch.optim.SGD(model.parameters(), lr=0.0), rollouts)

    expected = torch.zeros(())
    for rollout, advantage in zip(rollouts, [1.5, 0.0, -1.5], strict=True):  # the return less the mean of the two others
        logits = twin(torch.tensor([rollout.ids])).logits[0]
        for place, (token, own) in enumerate(zip(rollout.ids, rollout.written, strict=True)):
            if own:
                expected = expected - advantage * torch.log_softmax(logits[place - 1], -1)[token] / 5
    expected.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_better_episodes_become_likelier():
    torch.manual_seed(0)
    model, _ = random_model()
    good = Rollout([5, 6, 7], [False, True, True], 1.0, True)
    bad = Rollout([5, 8, 9], [False, True, True], 0.0, False)

    def likelihood(rollout):
        with torch.no_grad():
            return model(torch.tensor([rollout.ids])).logits[0, :-1].log_softmax(-1)[[0, 1], rollout.ids[1:]].sum().item()

    before = likelihood(good), likelihood(bad)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        update(model, optimizer, [good, bad])
    assert likelihood(good) > before[0] + 0.1
    assert likelihood(bad) < before[1] - 0.1


def test_it_runs_without_a_download(capsys):
    reinforce.main(["--steps", "2", "--episodes", "2", "--turn-tokens", "6"])
    lines = capsys.readouterr().out.splitlines()
    pattern = r"step (\d): return -?\d\.\d\d  success \d\.\d\d  loss -?\d\.\d{3}"
    assert [re.fullmatch(pattern, line)[1] for line in lines] == ["1", "2"]


def test_it_takes_a_model_from_a_folder(tmp_path, capsys):
    model, tokenizer = random_model()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = ["--env", "agent_envs/MathTool-v0", "--model", str(tmp_path), "--steps", "1", "--episodes", "2"]
    reinforce.main([*options, "--turn-tokens", "4"])
    assert capsys.readouterr().out.startswith("step 1: ")
