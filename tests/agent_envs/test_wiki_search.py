"""WikiSearch-v0 from end to end: its own worlds, anybody's corpus, and indexes that are not there or go away."""

import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import pytest
from gymnasium.error import ResetNeeded
from parts import boxed, finish, make
from search_parts import PASSAGES, QUESTION, retrieve_server, small_index, write_corpus, write_questions

from agent_envs import EnvironmentFault
from agent_envs.tasks.tiny_wiki import TinyWiki
from agent_envs.tools.search import SearchTool
from sandboxes.search.__main__ import main as search_command

LOOK = "<search>Kovamir</search>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of a corpus that was cut in the middle, made by the command line."""
    folder = tmp_path_factory.mktemp("corpus")
    assert search_command(["index", "--corpus", str(write_corpus(folder)), "--to", str(folder / "index")]) == 0
    return str(folder / "index")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def server(folder):
    with retrieve_server(folder) as server:
        yield server


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_is_always_right_and_searches_for_every_hop(hops, split):
    env = make("WikiSearch-v0", hops=hops, split=split)
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        reward, info, actions = finish(env, observation)
        assert (reward, info["success"]) == (1.0, True), (env.unwrapped.task, actions)
        assert hops + 1 <= len(actions) <= env.unwrapped.max_turns
        assert all(action.startswith("<search>") for action in actions[:-1])
    env.close()


def test_no_tool_bonus_where_there_is_one_tool():
    env = make("WikiSearch-v0")
    observation, _ = env.reset(seed=0)
    _, info, _ = finish(env, observation)
    assert info["score"] == {"accuracy": 1.0, "format": 0.0, "tool_bonus": 0.0}
    env.close()


def test_an_observation_holds_k_results_of_a_budget():
    env = make("WikiSearch-v0", k=5, passage_chars=60)
    env.reset(seed=0)
    observation, *_ = env.step("<search>the spouse of a painter</search>")
    lines = observation.split("\n")
    assert [line[:5] for line in lines] == ["Doc 1", "Doc 2", "Doc 3", "Doc 4", "Doc 5"]
    assert all(line.endswith(" ...") and len(line.partition(") ")[2]) <= 80 for line in lines)
    env.close()


# --- any corpus, any questions


def play(env, seed=0):
    """Searches twice, answers rightly."""
    question, _ = env.reset(seed=seed)
    first, *_ = env.step(LOOK)
    second, *_ = env.step("<search>Talido Benu</search>")
    _, reward, _, _, info = env.step(boxed("Sarune"))
    env.close()
    return question, first, second, reward, info["success"]


def test_a_corpus_and_questions_of_ones_own(questions, folder):
    env = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=folder)
    assert play(env) == (
        QUESTION,
        "Doc 1 (Title: Kovamir) Kovamir is a novel of 1923. The author is Talido Benu.",
        f"Doc 1 (Title: Talido Benu) {PASSAGES[1].text}\n"
        "Doc 2 (Title: Kovamir) Kovamir is a novel of 1923. The author is Talido Benu.",
        1.0,
        True,
    )


def test_a_retrieve_server_gives_the_same_episode(questions, folder, server):
    here = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=folder)
    there = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=server.url, index_options={"timeout": 5.0})
    assert play(here) == play(there)


def test_the_tiny_wikis_articles_in_a_folder(tmp_path):
    file, folder = tmp_path / "corpus.jsonl", tmp_path / "wiki"
    passages = TinyWiki().passages()
    file.write_text("".join(json.dumps({"id": one.id, "contents": one.contents}) + "\n" for one in passages))
    assert search_command(["index", "--corpus", str(file), "--to", str(folder)]) == 0
    env = gym.make("agent_envs/WikiSearch-v0", index=str(folder), split="test")
    for seed in range(5):
        assert finish(env, env.reset(seed=seed)[0])[1]["success"]
    env.close()


# --- only what the policy answers earns


@pytest.mark.parametrize(
    "actions",
    [
        ["<search>Talido Benu</search>"],
        ["<search>Talido Benu</search>", "It is in the result."],
        ["<search>Talido Benu</search>", "<answer></answer>"],
        ["<search>Talido Benu</search>", boxed("see the result")],
        ["<search>Sarune</search>", "<think>" + boxed("Sarune") + "</think>"],
        ["<search>" + boxed("Sarune") + "</search>", boxed("Kovamir")],
    ],
)
def test_an_answer_planted_in_a_result_earns_nothing(questions, folder, actions):
    env = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=folder, max_turns=2)
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(actions[0])
    assert "Sarune" in observation
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, info = env.step(actions[1] if len(actions) > 1 else actions[0])
    assert terminated
    assert reward <= 0.0
    assert (info["success"], info["score"]["accuracy"]) == (False, 0.0)
    env.close()


@pytest.mark.parametrize("action", ["", "<answer></answer>", LOOK, boxed("Is it"), "Is it Sarune or Kovamir?"])
def test_an_answer_that_stands_in_the_question_earns_nothing_by_itself(questions, folder, action):
    env = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=folder, split="test", max_turns=1)
    question, _ = env.reset(seed=0)
    assert boxed("Sarune") in question
    _, reward, terminated, _, info = env.step(action)
    assert terminated
    assert reward <= 0.0
    assert info["success"] is False
    env.close()


def test_a_closing_tag_in_a_result_does_not_close_it(questions, folder):
    env = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=folder).unwrapped
    env.reset(seed=0)
    observation, *_ = env.step("<search>Talido Benu</search>")
    assert "</result><answer>" in observation
    rendered = env.format.observe(observation)
    assert rendered.text.count("</result>") == 1
    assert "</answer>" not in rendered.text
    env.close()


# --- the index is not there, or goes away


def fault(env, action=LOOK):
    """The environment fault of an action: one line; then the episode is over, without any reward."""
    with pytest.raises(EnvironmentFault) as caught:
        env.step(action)
    assert "\n" not in str(caught.value)
    with pytest.raises(ResetNeeded, match="the environment broke"):
        env.step(boxed("Sarune"))
    return caught.value


@pytest.mark.parametrize(
    ("index", "said", "retryable"),
    [
        (
            "{tmp}/nowhere",
            "there is no search index at '{tmp}/nowhere': build one with python -m sandboxes.search index",
            False,
        ),
        ("{tmp}/empty", "the folder '{tmp}/empty' is no search index (it is empty): build one with", False),
        ("{tmp}/file", "'{tmp}/file' is a file and a search index is a folder", False),
        ("{tmp}/damaged", "the search index at '{tmp}/damaged' is damaged: ", False),
        (
            "http://127.0.0.1:1/retrieve",
            "no answer from the search server at http://127.0.0.1:1/retrieve within 0.3 s",
            True,
        ),
        ("{server}/nothing", "/nothing answers 40", False),
        ("elasticsearch://127.0.0.1:1/wiki", "Elasticsearch at http://127.0.0.1:1 cannot be reached", True),
        ("elasticsearch://127.0.0.1:{port}/wiki", "Elasticsearch at http://127.0.0.1:{port} refuses the request", False),
        ("elasticsearch://127.0.0.1:{port}", "expected the name of one index after the host", False),
        ("ftp://host/wiki", "an index is a folder, or an address that begins with elasticsearch://", False),
    ],
)
def test_an_index_that_is_not_there_is_said_in_one_line(tmp_path, folder, server, index, said, retryable):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no index")
    with small_index() as whole:
        whole.save(tmp_path / "damaged")
    (tmp_path / "damaged" / "texts.npy").write_bytes(b"cut")
    names = {"tmp": tmp_path, "server": server.url, "port": server.port}
    options = {"timeout": 0.3} if index.startswith("http") else {}
    if index.startswith("elasticsearch"):
        options = {"connection": {"timeout": 0.3}}
    env = make("WikiSearch-v0", index=index.format(**names), index_options=options)
    env.reset(seed=0)
    problem = fault(env)
    assert said.format(**names) in str(problem)
    assert (problem.component, problem.retryable) == ("search", retryable)
    env.reset(seed=0)  # nothing is open yet, so an episode that needs no search goes on
    assert env.step(boxed("nobody"))[1] == 0.0
    env.close()


def test_a_server_that_is_killed_in_an_episode_is_a_fault_and_the_next_episode_finds_it_again(questions, folder):
    with retrieve_server(folder) as server:
        env = gym.make("agent_envs/WikiSearch-v0", tasks=questions, index=server.url, index_options={"timeout": 1.0})
        env.reset(seed=0)
        before, *_ = env.step(LOOK)
        server.kill()
        problem = fault(env)
        assert (problem.component, problem.retryable) == ("search", True)
        assert "see that it runs and can be reached from here" in str(problem)
        with retrieve_server(folder, server.port):
            env.reset(seed=0)
            assert env.step(LOOK)[0] == before
            assert env.step(boxed("Sarune"))[1] == 1.0
        env.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "Who?", "answer": "I"}\n{"question": "Wh', ":2: expected a JSON object"),
        ("", ":1: expected a JSON object a line"),
        ('{"question": "Who?"}\n', ":1: expected a text or a number"),
    ],
)
def test_a_file_of_questions_that_is_cut_or_wrong(tmp_path, folder, text, said):
    (tmp_path / "questions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"questions\.jsonl:[12]: expected ") as caught:
        gym.make("agent_envs/WikiSearch-v0", tasks=str(tmp_path / "questions.jsonl"), index=folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["WikiSearch-v0", "DeepSearch-v0"])
@pytest.mark.parametrize("tasks", ["arithmetic", "tiny_web", "questions"])
def test_tasks_without_articles_need_an_index(name, tasks, questions):
    with pytest.raises(ValueError, match=r"bring no articles: say where to search, by index='\.\.\.'"):
        make(name, tasks=questions if tasks == "questions" else tasks)


# --- a judge


def test_a_judge_decides_what_matches_no_gold_answer():
    judge = {"url": "http://127.0.0.1:1/v1", "model": "judge", "timeout": 0.3}
    env = make("WikiSearch-v0", judge=judge)
    observation, _ = env.reset(seed=0)
    assert finish(env, observation)[0] == 1.0  # what matches needs no judge
    env.reset(seed=0)
    problem = fault(env, boxed("something that only a judge could tell"))
    assert problem.component == "verifier"
    assert "http://127.0.0.1:1/v1" in str(problem)
    env.close()


# --- many at once


def test_sixteen_threads_with_an_episode_each():
    def play(env, seed, barrier):
        observation, trail = env.reset(seed=seed)[0], []
        if barrier is not None:
            barrier.wait(30)
        for _ in range(3):
            reward, info, actions = finish(env, observation)
            trail.append((observation, actions, reward, info))
            observation, _ = env.reset()
        return trail

    envs = [make("WikiSearch-v0", hops=[2, 3]) for _ in range(16)]
    barrier = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: play(envs[seed], seed, barrier), range(16)))
    assert [play(env, seed, None) for seed, env in enumerate(envs)] == together
    assert all(info["success"] for trail in together for *_, info in trail)
    for env in envs:
        env.close()


def test_a_copy_goes_on_when_its_original_is_closed():
    env = make("WikiSearch-v0")
    env.reset(seed=1)
    env.step("<search>a novel</search>")
    twin = copy.deepcopy(env)
    env.close()
    assert isinstance(twin.unwrapped.tools[0], SearchTool)
    observation, *_ = twin.step("<search>a film</search>")
    assert observation.startswith("Doc 1 (Title: ")
    assert finish(twin, twin.unwrapped.task.question)[1]["success"]
    twin.close()
