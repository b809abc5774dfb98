"""How RAPO's rollouts retrieve: when, what, how it is put into the context, and whole runs with a bank."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import TOKENIZER, full_logprobs, random_policy, saved_policy

from agent_envs.actions import HermesFormat, PlainFormat, TagFormat
from agent_envs.tools.python import PythonTool
from learners.grpo import GRPO, GRPOConfig
from learners.rapo import ADVICE, RAPO, RAPOConfig, retrieved_block
from learners.rollout.engine import Engine, independent
from learners.rollout.episode import Dialect, Limits
from learners.rollout.rendering import Renderer
from learners.run.command import run
from learners.run.tiny import TAGS, tiny_tokenizer
from learners.sampling.sampler import Continuation
from learners.sampling.transformers import TransformersSampler
from learners.update.batch import rows_of
from learners.update.step import UpdateSettings, update_policy
from tracebank import StepTrace, TraceBank, read_trajectories, render_history

FOLDER = Path(__file__).parent
RENDERER = Renderer(TOKENIZER)
ENDS = (
    TOKENIZER.eos_token_id,
    *range(0, 256, 6),
)  # an untaught policy would hardly ever end its turn by the one right token
CONTROLS = {token.content: index for index, token in TOKENIZER.added_tokens_decoder.items()}
ROOMY = Limits(turn_tokens=60, total_tokens=2000)


class Talk(gym.Env[str, str]):
    """Six turns, each paid by how long it is; an action that says "stop" ends them."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(200)

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return f"What is number {seed}?", {"task_id": f"talk-{seed}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.wait * (len(action) % 5))
        self.turn += 1
        return f"heard {len(action)}", 0.02 * len(action), self.turn == 6 or "stop" in action, False, {}


gym.register("tests/Talk-v0", Talk)


def step(key, value, *, reward=1.0, task="elsewhere", number=1, final=False, format="plain", question=""):
    return StepTrace(task, number, key, value, reward, final, "test", question=question, format=format)


def bank_of(folder: Path, *steps: StepTrace) -> Path:
    with TraceBank.create(folder / "bank") as bank:
        bank.add(steps)
    return folder / "bank"


def some_steps():
    return [step(f"What is number {n}?\nword {n}heard {n % 9}", f"thought {n}, <think>not sure</think>") for n in range(40)]


def learner_of(bank: Path | None, learner=RAPO, config=RAPOConfig, **options):
    if bank is not None:
        options["bank"] = str(bank)
    return learner(config(**{"env": "tests/Talk-v0", "group_size": 6, "deterministic": True, **options}))


def play(explore, *, make_env=Talk, sampler=None, groups=2, group_size=6, limits=ROOMY):
    async def everything():
        own = sampler or TransformersSampler(random_policy(), TOKENIZER, seed=0, eos=ENDS, deterministic=True)
        engine = Engine(make_env, own, RENDERER, limits=limits, concurrency=64, deterministic=True)
        try:
            return await engine.rollout(list(range(groups)), explore, path=(0, 1), group_size=group_size, temperature=1.0)
        finally:
            engine.close()

    return asyncio.run(everything())


class Script:
    """A sampler whose policy writes the same actions in every episode, one a turn."""

    entropy, version, vocabulary = "full", 0, len(TOKENIZER)

    def __init__(self, *actions: str) -> None:
        self.actions = actions

    def start(self, path):
        return _Line(self.actions)


class _Line:
    def __init__(self, actions):
        self.ids, self._actions = [], iter(actions)

    def append(self, ids):
        self.ids.extend(ids)

    def decode(self, decoding):
        self._text = next(self._actions)

    async def rest(self):
        ids = TOKENIZER.encode(self._text, add_special_tokens=False)
        self.ids.extend(ids)
        zeros = (0.0,) * len(ids)
        return Continuation(tuple(ids), zeros, zeros, self._text, "stop")

    def cancel(self):
        pass


def text_of(ids) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def authors(tree, leaf) -> str:
    """A path in letters: p(rompt), w(ritten by the policy), t(ool), r(etrieved)."""
    letters = {"prompt": "p", "policy": "w", "tool": "t", "retrieved": "r"}
    return "".join(letters[segment.author] for segment, _ in tree.path(leaf))


def inserted(tree, leaf) -> list[str]:
    """The steps that were put into a trajectory, without their tags."""
    texts = [text_of(segment.ids) for segment, _ in tree.path(leaf) if segment.author == "retrieved"]
    assert all(text.startswith("<retrieve>\n") and text.endswith("\n</retrieve>\n") for text in texts)
    return [text.removeprefix("<retrieve>\n").removesuffix("\n</retrieve>\n") for text in texts]


# When


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_only_hybrid_trajectories_retrieve_and_each_step_with_the_same_probability(tmp_path, probability):
    bank = bank_of(tmp_path, *some_steps())
    learner = learner_of(bank, hybrid_rollouts=4, retrieve_probability=probability)
    trees = play(learner.explore, groups=8)
    moments = retrievals = undecided = 0
    for tree in trees:
        assert [leaf.path for leaf in tree.leaves] == [(index,) for index in range(6)]
        for leaf in tree.leaves:
            path = authors(tree, leaf)
            # Never before the first step, never twice in a row, and only after an observation.
            assert re.fullmatch("p(wtr?)*w?", path)
            if leaf.path[0] < 2:
                assert "r" not in path
            else:
                moments += path.count("t")
                retrievals += path.count("r")
                undecided += bool(re.search("wtr", path) and re.search("wtw", path))
    assert moments > 80
    within = 4 * math.sqrt(moments * probability * (1 - probability))
    assert abs(retrievals - moments * probability) <= within
    assert (undecided > 8) == (0 < probability < 1)  # each step draws anew, not each trajectory


def test_what_is_put_in_is_a_step_of_the_bank_in_its_tags(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    (tree,) = play(learner_of(bank, hybrid_rollouts=6).explore, groups=1)
    values = {one.value for one in some_steps()}
    found = [text for leaf in tree.leaves for text in inserted(tree, leaf)]
    assert found
    assert set(found) <= values
    for segment in tree.segments:
        if segment.author == "retrieved":
            tags = [token for token in segment.ids if token in CONTROLS.values()]
            assert tags == [CONTROLS[name] for name in ("<retrieve>", "<think>", "</think>", "</retrieve>")]
            assert segment.logprobs == segment.entropies == ()


def test_where_there_is_no_room_nothing_is_put_in(tmp_path):
    bank = bank_of(tmp_path, *(step(f"word {n}", f"{n:03} " + "x" * 300) for n in range(5)))
    limits = Limits(turn_tokens=60, total_tokens=250)
    learner = learner_of(bank, hybrid_rollouts=4, retrieve_probability=1.0)
    for tree in play(learner.explore, limits=limits):
        for leaf in tree.leaves:
            assert "r" not in authors(tree, leaf)
            assert len(tree.tokens(leaf).ids) <= limits.total_tokens
        assert {value for name, value in tree.notes if name == "retrieval/count"} == {0.0}


def test_a_retrieve_tag_of_the_policys_own_triggers_nothing(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    policy = Script("<retrieve>word 3</retrieve>", "<retrieve>\n", "</retrieve>", "stop")
    (tree,) = play(learner_of(bank, hybrid_rollouts=6, retrieve_probability=0.0).explore, sampler=policy, groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtwtwtw"}
    (tree,) = play(learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0).explore, sampler=policy, groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtrwtrwtrw"}


# What


def test_the_question_and_the_policys_own_turns_are_asked_with(tmp_path):
    question = "What is number 0?"
    first, second = f"{question}\nalpha\n<result>\nheard 5\n</result>\n", "beta\n<result>\nheard 4\n</result>\n"
    bank = bank_of(
        tmp_path,
        step(first, "zebra zebra zebra", question="one"),
        step(first + second, "after both", question="two"),
        step("zebra zebra zebra " * 3, "from what was retrieved", question="three"),
        step(f"{first}zebra zebra zebra{second}", "from what was retrieved and both", question="four"),
        step(question, "from the question alone", question="five"),
    )
    learner = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0)
    (tree,) = play(learner.explore, sampler=Script("alpha", "beta", "stop"), groups=1)
    for leaf in tree.leaves:
        assert inserted(tree, leaf) == ["zebra zebra zebra", "after both"]


def test_each_retrieval_is_what_the_bank_answers_to_the_history(tmp_path):
    folder = bank_of(tmp_path, *some_steps())
    (tree,) = play(learner_of(folder, hybrid_rollouts=6).explore, groups=1)
    with TraceBank.open(folder, deterministic=True) as bank:
        for leaf in tree.leaves:
            turns = [segment.turn for segment, _ in tree.path(leaf) if segment.author == "retrieved"]
            asked = [render_history(tree.question, leaf.turns[:turn]) for turn in turns]
            expected = [hits[0].value for hits in bank.query(asked, k=1)] if asked else []
            assert inserted(tree, leaf) == expected


LEAKS = {
    "the task by its id": step("What is number 0?\nalpha", "leak", task="talk-0", question="another text"),
    "the task by its question": step("What is number 0?\nalpha", "leak", question="what is  NUMBER 0?"),
    "a final step": step("What is number 0?\nalpha", "leak", final=True),
}


@pytest.mark.parametrize("what", LEAKS)
def test_what_may_hold_the_answer_is_left_out_unless_it_is_asked_for(tmp_path, what):
    bank = bank_of(tmp_path, LEAKS[what], step("nothing alike", "harmless", task="another"))
    policy = Script("alpha", "stop")
    guarded = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0)
    option = "exclude_final" if what == "a final step" else "exclude_task"
    open_ = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0, **{option: False})
    for learner, expected in ((guarded, ["harmless"]), (open_, ["leak"])):
        (tree,) = play(learner.explore, sampler=policy, groups=1)
        assert all(inserted(tree, leaf) == expected for leaf in tree.leaves)


@pytest.mark.parametrize("retrieved", ["best-match", "best-reward"])
def test_a_bank_that_has_nothing_to_say_is_survived(tmp_path, retrieved):
    bank = bank_of(tmp_path, *LEAKS.values())
    learner = learner_of(bank, hybrid_rollouts=6, retrieve_probability=1.0, retrieved=retrieved)
    (tree,) = play(learner.explore, sampler=Script("alpha", "beta", "stop"), groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtwtw"}


@pytest.mark.parametrize(
    ("rewards", "match", "reward"),
    [
        ((0.1, 0.9, 0.5, 5.0), "nearest", "second"),  # the fourth is not looked at
        ((0.5, 0.5, 0.5, 5.0), "nearest", "nearest"),  # of equal rewards the most alike
        ((0.0, 0.0, -1.0, 5.0), "nearest", ADVICE),  # none of the three earned anything
        ((-1.0, 0.0, 1e-3, 5.0), "nearest", "third"),
    ],
)
def test_the_most_alike_step_or_the_best_rewarded_of_three(tmp_path, rewards, match, reward):
    history = "What is number 0?\nalpha\n<result>\nheard 5\n</result>\n"
    keys = (history, history + "and", history + "and something", history + "and something else that is far away from it")
    names = ("nearest", "second", "third", "fourth")
    folder = bank_of(tmp_path, *(step(key, name, reward=paid) for key, name, paid in zip(keys, names, rewards, strict=True)))
    with TraceBank.open(folder) as bank:
        assert tuple(hit.value for hit in bank.query([history], k=4)[0]) == names
    for retrieved, expected in (("best-match", match), ("best-reward", reward)):
        learner = learner_of(folder, hybrid_rollouts=6, retrieve_probability=1.0, retrieved=retrieved)
        (tree,) = play(learner.explore, sampler=Script("alpha", "stop"), groups=1)
        assert inserted(tree, tree.leaves[0]) == [expected]


def test_explorations_are_equal_though_the_bank_is_asked_from_threads(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    first = play(learner_of(bank, hybrid_rollouts=4).explore, groups=3)
    second = play(learner_of(bank, hybrid_rollouts=4).explore, groups=3, make_env=lambda: Talk(wait=0.003))
    assert first == second
    other = play(learner_of(bank, hybrid_rollouts=4, seed=1).explore, groups=3)
    assert [authors(tree, leaf) for tree in first for leaf in tree.leaves] != [
        authors(tree, leaf) for tree in other for leaf in tree.leaves
    ]


@pytest.mark.parametrize(("value", "copied"), [("the sum is 17", 0.0), ("the sum is 7, I think", 1.0), ("7", 1.0)])
def test_answers_are_copied_only_as_whole_words(tmp_path, value, copied):
    bank = bank_of(tmp_path, step("anything", value, format="tag"))
    learner = learner_of(bank, env="MathTool-v0", hybrid_rollouts=3, retrieve_probability=1.0)
    make_env = lambda: gym.make("agent_envs/MathTool-v0", disable_env_checker=True)  # noqa: E731
    policy = Script("no move", "<answer>\\boxed{ 7 }</answer>")
    (tree,) = play(learner.explore, make_env=make_env, sampler=policy, groups=1)
    assert {authors(tree, leaf) for leaf in tree.leaves} == {"pwtw", "pwtrw"}
    noted = [number for name, number in tree.notes if name == "retrieval/answers_copied"]
    assert noted == [copied] * 3


def test_the_share_is_of_the_tokens_that_the_options_count(tmp_path):
    bank = bank_of(tmp_path, *some_steps())
    for length in ("trace", "block"):
        for sequence in ("all", "response"):
            learner = learner_of(bank, hybrid_rollouts=4, shaping=0.2, fret_length=length, sequence_length=sequence)
            (tree,) = play(learner.explore, groups=1)
            tree.measured = {leaf.path: torch.ones(len(tree.tokens(leaf).ids)) for leaf in tree.leaves}
            ((*terms,),) = learner.credit([tree])
            scaled = 0
            for leaf, own in zip(tree.leaves, terms, strict=True):
                blocks = [len(segment.ids) for segment, _ in tree.path(leaf) if segment.author == "retrieved"]
                # The tags are <retrieve>, a new line, a new line, </retrieve>, a new line.
                counted = sum(blocks) - (5 * len(blocks) if length == "trace" else 0)
                whole = len(tree.tokens(leaf).ids) - (len(tree.segments[0].ids) if sequence == "response" else 0)
                assert own.ratio_scale[0] == pytest.approx(1 + 0.2 * counted / whole)
                scaled += counted > 0
            assert scaled


# How it is put into the context

PYTHON = Dialect(TagFormat(), "", (PythonTool(),))
pieces = st.lists(
    st.sampled_from([*CONTROLS, "</retrie", "ve>", "</", "<", ">", "retrieve>", "é", "\U0001f600", " a\n", "7"]), max_size=12
)


@settings(max_examples=400, deadline=None)
@given(pieces.map("".join))
def test_a_block_is_closed_once_and_holds_no_control_token_but_the_formats(trace):
    ids = RENDERER.encode(retrieved_block(trace, PYTHON))
    tokens = [TOKENIZER.convert_ids_to_tokens(token) for token in ids if token in CONTROLS.values()]
    read = text_of(ids)
    assert read == "<retrieve>\n" + trace.replace("</retrieve>", "</ retrieve>") + "\n</retrieve>\n"
    assert read.count("</retrieve>") == 1
    assert tokens[0] == "<retrieve>"
    assert tokens[-1] == "</retrieve>"
    # The tags of the format, each time that they are spelled, and nothing else: no end of a turn above all.
    assert tokens[1:-1] == re.findall("</?(?:think|python|result|answer)>", trace)


def test_a_block_in_another_format_has_that_formats_tags():
    tokenizer = tiny_tokenizer(tags=(*TAGS, "tool_call", "tool_response"))
    controls = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    trace = '<think>so</think><tool_call>{"name": "python"}</tool_call>\n<result>\n<python> <|end|></result>'
    for format, expected in (
        (HermesFormat(), ["think", "/think", "tool_call", "/tool_call", "result", "/result"]),
        (PlainFormat(), ["think", "/think", "result", "/result"]),
    ):
        ids = Renderer(tokenizer).encode(retrieved_block(trace, Dialect(format, "", (PythonTool(),))))
        found = [token for token in ids if token in controls.values()]
        assert found == [controls[f"<{name}>"] for name in ("retrieve", *expected, "/retrieve")]


def test_log_probabilities_are_those_with_the_retrieved_text_in_context(tmp_path):
    """The sampler's, the trainer's old and its present ones; without the retrieved tokens they would be others."""
    bank = bank_of(tmp_path, *some_steps())
    learner = learner_of(bank, hybrid_rollouts=4)
    model = random_policy()
    trees = play(learner.explore)
    without = 0.0
    for tree in trees:
        for leaf in tree.leaves:
            tokens = tree.tokens(leaf)
            tree.measured[leaf.path] = torch.ones(len(tokens.ids))
            places = tokens.policy.nonzero()[:, 0]
            expected = full_logprobs(model, tokens.ids.tolist())[places - 1, tokens.ids[places]]
            torch.testing.assert_close(tokens.logprobs[places], expected, atol=1e-4, rtol=1e-4)
            author = [segment.author for segment, count in tree.path(leaf) for _ in range(count)]
            kept = torch.tensor([who != "retrieved" for who in author])
            bare = tokens.ids[kept]
            written = tokens.policy[kept].nonzero()[:, 0]
            found = full_logprobs(model, bare.tolist())[written - 1, bare[written]]
            without = max(without, float((found - expected).abs().max()))
    assert without > 0.1
    rows = rows_of(trees, learner.credit(trees))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = update_policy(
        model, optimizer, rows, learner.surrogate, UpdateSettings(epochs=2, minibatch_groups=1), orders=[[0, 1], [1, 0]]
    )
    assert metrics["mismatch_max"] < 1e-4
    assert metrics["kl_old"] < 1e-8


# Without hybrid trajectories it is GRPO


def test_without_hybrid_trajectories_trees_and_credit_are_grpos():
    ours = learner_of(None, hybrid_rollouts=0)
    theirs = learner_of(None, GRPO, GRPOConfig)
    trees = play(ours.explore)
    assert trees == play(theirs.explore) == play(lambda group: independent(group, 6))
    credit, other = ours.credit(trees), theirs.credit(trees)
    assert any(terms.advantage.any() for group in credit for terms in group)
    for one, two in zip([t for g in credit for t in g], [t for g in other for t in g], strict=True):
        assert torch.equal(one.advantage, two.advantage)
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.ratio_scale, two.ratio_scale)
    assert not ours.measure


# Whole runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """An untaught policy that ends its turns often."""
    return saved_policy(tmp_path_factory.mktemp("policy"), ENDS)


@pytest.fixture(autouse=True)
def small_oracle_bank(monkeypatch):
    monkeypatch.setattr("learners.run.oracle_bank._TASKS", 12)


def short(policy: Path, output: Path, **options) -> list[str]:
    """The command line of a small run. That a cut costs less than a bad form gives such a policy something to learn."""
    chosen = {"model": policy, "output": output, "steps": 3, "tasks_per_step": 3, "group_size": 4, "eval_tasks": 4}
    chosen |= {"turn_tokens": 12, "total_tokens": 400, "cut_reward": -0.5, "minibatch_groups": 2, "threads": 1}
    chosen |= {"checkpoint_every": 1, "learning_rate": 1e-3} | options
    pairs = (("--" + name.replace("_", "-"), str(value)) for name, value in chosen.items())
    return ["--deterministic", *(part for pair in pairs for part in pair)]


def rapo(arguments) -> None:
    run(RAPOConfig, RAPO, "", [*arguments])


def metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run without its times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")} for line in lines]


def weights(folder: Path) -> bytes:
    return max((folder / "checkpoints").iterdir()).joinpath("model.safetensors").read_bytes()


def played(folder: Path) -> dict[str, str]:
    """All that was played, without who played it."""
    files = sorted((folder / "trajectories").iterdir())
    return {file.name: re.sub(r'"source": ?"\w+:', '"source": "', file.read_text()) for file in files}


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("learners.run.oracle_bank._TASKS", 12)
        rapo(short(policy, folder, hybrid_rollouts=2))
    return folder


def test_a_run_makes_a_bank_of_the_oracle_and_retrieves_from_it(finished):
    with TraceBank.open(finished / "bank") as bank:
        values = {one.value for one in bank}
        assert bank.manifest.formats == ("tag",)
    retrieved = 0
    for file in sorted((finished / "trajectories").iterdir()):
        for record in read_trajectories(file):
            blocks = [text_of(segment.ids) for segment in record.segments if segment.author == "retrieved"]
            retrieved += len(blocks)
            assert all(text.removeprefix("<retrieve>\n").removesuffix("\n</retrieve>\n") in values for text in blocks)
            if file.name.startswith("evaluation") or record.path[0] < 2:
                assert blocks == []
    assert retrieved > 0
    counts = [record["retrieval/count"] * 6 for record in metrics(finished)]  # 3 groups with 2 hybrid trajectories each
    assert sum(counts) == pytest.approx(retrieved)
    assert all(0 <= record["retrieval/share"] < 1 for record in metrics(finished))
    assert any(record["grad_norm"] > 0 for record in metrics(finished))
    assert all(record["mismatch_max"] < 1e-4 for record in metrics(finished))


def test_without_hybrid_trajectories_a_run_is_grpos_bit_for_bit(policy, tmp_path):
    rapo(short(policy, tmp_path / "rapo", steps=2, hybrid_rollouts=0))
    run(GRPOConfig, GRPO, "", short(policy, tmp_path / "grpo", steps=2))
    assert metrics(tmp_path / "rapo") == metrics(tmp_path / "grpo")
    assert any(record["grad_norm"] > 0 for record in metrics(tmp_path / "grpo"))
    assert played(tmp_path / "rapo") == played(tmp_path / "grpo")
    assert weights(tmp_path / "rapo") == weights(tmp_path / "grpo")
    assert not (tmp_path / "rapo" / "bank").exists()


def test_credit_reads_the_entropies_that_the_policy_was_sampled_with(policy, tmp_path):
    """The sampler and the trainer compute them by different code: they must agree wherever the policy wrote."""
    seen = []

    class Watched(RAPO):
        def credit(self, trees):
            seen.extend(trees)
            return super().credit(trees)

    bank = bank_of(tmp_path, *(step("anything", f"step {n}", format="tag") for n in range(3)))
    run(RAPOConfig, Watched, "", short(policy, tmp_path / "run", steps=1, hybrid_rollouts=2, bank=bank))
    assert any(segment.author == "retrieved" for tree in seen for segment in tree.segments)
    for tree in seen:
        for leaf in tree.survivors():
            tokens = tree.tokens(leaf)
            own = tokens.policy
            torch.testing.assert_close(tree.measured[leaf.path][own], tokens.entropies[own], atol=1e-3, rtol=1e-3)


def test_a_run_with_a_bank_from_outside_leaves_it_as_it_was(policy, finished, tmp_path):
    """The bank that a run made, given to another run of the same options, makes that run the same."""
    bank = shutil.copytree(finished / "bank", tmp_path / "bank")
    before = {file: file.read_bytes() for file in sorted(bank.rglob("*")) if file.is_file()}
    rapo(short(policy, tmp_path / "run", hybrid_rollouts=2, bank=bank))
    assert metrics(tmp_path / "run") == metrics(finished)
    assert weights(tmp_path / "run") == weights(finished)
    assert not (tmp_path / "run" / "bank").exists()
    assert {file: file.read_bytes() for file in sorted(bank.rglob("*")) if file.is_file()} == before


_COMMAND = "from learners.run import oracle_bank; oracle_bank._TASKS = 12; from learners.rapo import main; main()"


def test_a_run_that_is_killed_and_resumed_is_one_that_was_not(policy, finished, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _COMMAND]
    child = subprocess.Popen([*command, *short(policy, folder, hybrid_rollouts=2)], stdout=subprocess.DEVNULL)
    log = folder / "metrics.jsonl"
    while child.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 1):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    bank = {file: file.read_bytes() for file in sorted((folder / "bank").rglob("*")) if file.is_file()}
    rapo(["--resume", str(folder)])
    assert metrics(folder) == metrics(finished)
    assert weights(folder) == weights(finished)
    assert {file: file.read_bytes() for file in sorted((folder / "bank").rglob("*")) if file.is_file()} == bank


# What is refused


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        rapo([*map(str, arguments)])
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


class Elsewhere:
    """An embedder whose model is on another machine."""

    name, spec, dimension = "elsewhere", "sentence-transformers:/no/such/model", 4

    def embed(self, texts):
        return torch.nn.functional.normalize(torch.ones(len(texts), 4)).numpy()


def _missing(folder):
    return folder / "nowhere"


def _file(folder):
    (folder / "bank").write_text("no bank")
    return folder / "bank"


def _hermes(folder):
    return bank_of(folder, step("key", "value", format="hermes"))


def _mixed(folder):
    return bank_of(folder, step("key", "value", format="hermes"), step("key", "value", format="tag"))


def _unnamed(folder):
    return bank_of(folder, step("key", "value", format=""))


def _elsewhere(folder):
    with TraceBank.create(folder / "bank", embedder=Elsewhere()) as bank:
        bank.add([step("key", "value", format="tag")])
    return folder / "bank"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "nowhere"),
        (_file, "bank"),
        (_hermes, "holds steps of the format 'hermes', but MathTool-v0 is talked to in 'tag'"),
        (_mixed, "holds steps of the format 'hermes', 'tag', but MathTool-v0 is talked to in 'tag'"),
        (_unnamed, "holds steps of the format none that it names"),
        (bank_of, "holds no steps"),
        (_elsewhere, "its embedder elsewhere cannot be loaded"),
    ],
)
def test_a_bank_that_cannot_be_used_is_refused_before_anything_is_made(capsys, tmp_path, make, says):
    line = refused(capsys, "--bank", make(tmp_path), "--output", tmp_path / "run")
    assert "--bank" in line
    assert says in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hybrid-rollouts", "17"], "--hybrid-rollouts must be from 0 to the --group-size of 16, not 17"),
        (["--retrieve-probability", "1.01"], "--retrieve-probability must be from 0 to 1, not 1.01"),
        (["--shaping", "0.5"], "--shaping must be from 0 to the --clip-high of 0.28, not 0.5"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, tmp_path, arguments, says):
    assert says in refused(capsys, *arguments, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_environment_without_an_oracle_needs_a_bank(capsys, tmp_path, policy):
    line = refused(capsys, "--env", "tests/Talk-v0", "--model", policy, "--output", tmp_path / "run")
    assert "tests/Talk-v0 has none, since it is no ToolEnv: give a bank by --bank" in line


def test_tasks_without_an_oracle_need_a_bank(capsys, tmp_path, policy):
    """Few tasks in a file of the user's own: what is missing is their oracle, not their number."""
    file = tmp_path / "tasks.jsonl"
    rows = [{"question": f"Which colour has number {n}?", "answer": "red"} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(capsys, "--tasks", file, "--model", policy, "--output", tmp_path / "run")
    assert "has no oracle: give a bank by --bank" in line
