"""Tasks from files of questions, from GSM8K and from reasoning-gym."""

import json
import os
import subprocess
import sys
import urllib.request

import gymnasium as gym
import numpy as np
import pytest

import agent_envs  # noqa: F401 - registers the ids
from agent_envs.actions import Call
from agent_envs.task import NoOracle, UnknownTask, UnknownTaskSource, split_of
from agent_envs.tasks import benchmarks
from agent_envs.tasks.benchmarks import ReasoningGym, gsm8k
from agent_envs.tasks.questions import BrokenTaskFile, JsonlTasks
from agent_envs.verifiers.math import MathVerifier

ROWS = [
    {
        "question": "Natalia sold 48 clips and then half as many. How many?",
        "answer": "48/2 = <<48/2=24>>24\n48+24 = 72\n#### 72",
    },
    {"question": "A house costs $80,000 and a half more. What then?", "answer": "It is more.\n#### 120,000"},
    {"question": "What is left?", "answer": "#### -5"},
    {"question": "A plain one?", "answer": " 3/4 "},
    {"question": "A number?", "answer": 12},
    {"question": "Another number?", "answer": 0.5},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def test_gold_answers_are_read_as_gsm8k_writes_them(file):
    tasks = JsonlTasks(file)
    golds = [tasks.get(f"sums:{line}").answers for line in range(1, 7)]
    assert golds == [("72",), ("120000",), ("-5",), ("3/4",), ("12",), ("0.5",)]
    assert tasks.get("sums:1").question == ROWS[0]["question"]


def test_nothing_is_lost_and_splits_go_by_content(file):
    tasks = JsonlTasks(file)
    ids = [task_id for split in tasks.splits for task_id in tasks.ids(split)]
    assert sorted(ids) == [f"sums:{line}" for line in range(1, 7)]
    for split in tasks.splits:
        assert all(split_of(tasks.get(task_id).question) == split for task_id in tasks.ids(split))


def test_a_line_may_name_its_split(tmp_path):
    tasks = JsonlTasks(
        write(tmp_path / "x.jsonl", [{**row, "split": "dev" if i % 2 else "test"} for i, row in enumerate(ROWS)])
    )
    assert tasks.splits == ("test", "dev")
    assert tasks.ids("test") == ("x:1", "x:3", "x:5")


def test_several_files_are_several_splits(tmp_path):
    one, other = write(tmp_path / "a.jsonl", ROWS[:4]), write(tmp_path / "b.jsonl", ROWS[:1])
    tasks = JsonlTasks({"train": one, "test": other}, name="clips")
    assert tasks.splits == ("train", "test")
    assert tasks.ids("test") == ("clips:test:1",)
    assert len(tasks.ids("train")) == 4


def test_sampling_is_seeded_and_reaches_every_task(tmp_path):
    tasks = JsonlTasks({"train": write(tmp_path / "a.jsonl", ROWS)})
    drawn = [tasks.sample(np.random.default_rng(seed), "train").id for seed in range(60)]
    assert drawn == [tasks.sample(np.random.default_rng(seed), "train").id for seed in range(60)]
    assert set(drawn) == set(tasks.ids("train"))


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", 1, "expected a JSON object a line, or an array of them, found an empty file"),
        (b"\n \n", 1, "an empty file"),
        (b"not json\n", 3, "expected a JSON object, found 'not json'"),
        (b'{"question": "x"', 3, 'expected a JSON object, found \'{"question": "x"\''),
        (b"[1]\n", 3, "expected a JSON object, found list"),
        (b'{"problem": "x", "answer": "1"}\n', 3, 'expected a text under "question", found no such key among'),
        (b'{"question": " ", "answer": "1"}\n', 3, "found str ' '"),
        (b'{"question": "x"}\n', 3, 'expected a text or a number under "answer", or a list of them, found no such key'),
        (b'{"question": "x", "answer": [["1"]]}\n', 3, "found list [['1']]"),
        (b'{"question": "x", "answers": {"text": ["1"]}}\n', 3, "found dict {'text'"),
        (b'{"question": "x", "golden_answers": [], "answer": "1"}\n', 3, 'expected a gold answer under "golden_answers"'),
        (b'{"question": "x", "golden_answers": ["1", null]}\n', 3, "a list of them, found list"),
        (b'{"question": "x", "answer": "1", "answer_aliases": "y", "split": true}\n', 3, "found bool True"),
        (b'{"question": "x", "answer": "1", "answer_aliases": [true]}\n', 3, 'under "answer_aliases"'),
        (b'{"question": "x", "answer": true}\n', 3, "found bool True"),
        (
            b'{"question": "x", "answer": "because\\n#### "}\n',
            3,
            'expected a gold answer under "answer", after #### or as a whole',
        ),
        (b'{"question": "x", "answer": "1", "split": 3}\n', 3, 'expected a name under "split"'),
        (b'{"question": "\xff", "answer": "1"}\n', 3, "expected UTF-8, found byte 0xff"),
        (b"[" * 100_000, 3, "expected a JSON object"),
    ],
)
def test_a_broken_line_is_named_with_what_was_expected(tmp_path, content, line, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes((b'{"question": "fine", "answer": "1"}\n\n' if line == 3 else b"") + content)
    with pytest.raises(BrokenTaskFile) as caught:
        JsonlTasks(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


FORMS = {
    "FlashRAG": (
        '{"id": "test_0", "question": "who got the first nobel prize in physics", '
        '"golden_answers": ["Wilhelm Conrad R\u00f6ntgen", " W. R\u00f6ntgen "], "metadata": {}}\n',
        ("Wilhelm Conrad Röntgen", "W. Röntgen"),
        {"id": "test_0"},
    ),
    "HotpotQA": (
        '[{"_id": "5a8b57f2", "answer": "yes", "question": "Were both born there?", "type": "comparison", "level": "hard", '
        '"supporting_facts": [["Scott", 0]], "context": [["Scott", ["He, [one] {of} them."]]]}]',
        ("yes",),
        {"id": "5a8b57f2", "type": "comparison", "level": "hard"},
    ),
    "2WikiMultihopQA": (
        '[\n {"_id": "13f5ad2c", "type": "bridge_comparison", "question": "Who?", "context": [], "answer": "Ruy Guerra",\n'
        '  "supporting_facts": [], "evidences": [["x", "director", "y"]], "answer_id": "Q1"}\n]\n',
        ("Ruy Guerra",),
        {"id": "13f5ad2c", "type": "bridge_comparison"},
    ),
    "MuSiQue": (
        '{"id": "2hop__13548_13529", "paragraphs": [], "question": "When?", "question_decomposition": [], '
        '"answer": "June 1982", "answer_aliases": ["1982", "June 1982", ""], "answerable": true}\n',
        ("June 1982", "1982"),
        {"id": "2hop__13548_13529"},
    ),
    "a list of answers": ('{"question": "x", "answers": ["one", 1, 1.5]}', ("one", "1", "1.5"), {}),
    "a list as the answer": ('{"question": "x", "answer": ["#### 1,000", "x####y"]}', ("#### 1,000", "x####y"), {}),
    "marks in an answer": ('{"question": "x", "answer": "the #### sign"}', ("the #### sign",), {}),
    "marks in one gold answer": ('{"question": "x", "golden_answers": "a\\n#### b"}', ("a\n#### b",), {}),
    "marks in a gold answer": ('{"question": "x", "golden_answers": ["a\\n#### b"]}', ("a\n#### b",), {}),
    "the first that there is": (
        '{"question": "x", "answer": "3", "answers": ["2"], "golden_answers": "1"}',
        ("1",),
        {},
    ),
}


@pytest.mark.parametrize(("content", "golds", "about"), FORMS.values(), ids=FORMS)
def test_the_forms_of_the_usual_data_sets(tmp_path, content, golds, about):
    for path, mark in ((tmp_path / "dev.json", b""), (tmp_path / "with_mark.jsonl", b"\xef\xbb\xbf")):
        path.write_bytes(mark + content.encode())
        task = JsonlTasks({"test": path}).get(f"{path.stem}:test:1")
        assert (task.answers, dict(task.metadata)) == (golds, about)


def test_an_array_is_read_like_lines(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1))
    lines, array = JsonlTasks(write(tmp_path / "lines.jsonl", ROWS), "x"), JsonlTasks(tmp_path / "array.json", "x")
    assert array.splits == lines.splits
    for split in lines.splits:
        assert array.ids(split) == lines.ids(split)
        assert [array.get(task_id) for task_id in array.ids(split)] == [lines.get(task_id) for task_id in lines.ids(split)]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("[]", 1, "or an array of them, found an empty array"),
        ("[\n", 2, "a JSON object as number 1 of the array, found the end of the file"),
        ('[\n{"question": "q", "answer": 1},\n\n17]', 4, "expected a JSON object, found int"),
        ('[\n{"question": "q", "answer": 1},\n\n{"question": "r"}]', 4, 'under "answer", or a list'),
        (
            '[{"question": "q", "answer": 1},\n {"question": "cut in the mid',
            2,
            'number 2 of the array, found \'{"question": "cut',
        ),
        (
            '[{"question": "q", "answer": 1}\n',
            2,
            "expected a comma, or ] and no more, after number 1 of the array, found the end",
        ),
        ('[{"question": "q", "answer": 1},\n', 2, "number 2 of the array, found the end of the file"),
        ('[{"question": "q", "answer": 1},]', 1, "number 2 of the array, found ']'"),
        ('[{"question": "q", "answer": 1}\n{"question": "r", "answer": 1}]', 2, "expected a comma"),
        ('[{"question": "q", "answer": 1}]\n\n[]', 3, "found '[]'"),
        ('[]\n{"question": "q", "answer": 1}', 2, "after number 0 of the array, found '{"),
        ("[" * 100_000, 1, "a JSON object as number 1 of the array"),
    ],
)
def test_a_broken_array_is_named_with_the_place(tmp_path, content, line, message):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(BrokenTaskFile) as caught:
        JsonlTasks(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "cut.json"
    whole = json.dumps(ROWS[:2], indent=1)
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(BrokenTaskFile):
            JsonlTasks(path)


def test_unknown_ids_and_splits(file):
    tasks = JsonlTasks(file)
    with pytest.raises(UnknownTask, match="no task 'sums:7'; ids read like 'sums:1'"):
        tasks.get("sums:7")
    with pytest.raises(UnknownTask, match="found 'dev'"):
        tasks.sample(np.random.default_rng(0), "dev")


def test_a_file_in_the_environment(tmp_path):
    path = write(tmp_path / "sums.jsonl", [{**row, "split": "train"} for row in ROWS])
    env = gym.make("agent_envs/MathTool-v0", tasks=str(path))
    env.reset(options={"task_id": "sums:2"})
    assert env.step(r"<answer>\boxed{\$120,000}</answer>")[1] == 1.0
    with pytest.raises(NoOracle):
        env.unwrapped.oracle()
    with pytest.raises(ValueError, match="found split='test'"):
        gym.make("agent_envs/MathTool-v0", tasks=str(path), split="test")


def test_gsm8k_is_downloaded_once_checked_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(benchmarks, "_GSM8K_ROWS", {"train": 6, "test": 2})
    served = {"train": write(tmp_path / "train.jsonl", ROWS), "test": write(tmp_path / "test.jsonl", ROWS[:2])}
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return open(served[url.rpartition("/")[2].partition(".")[0]], "rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for _ in range(2):
        tasks = gsm8k()
        assert (tasks.name, tasks.splits) == ("gsm8k", ("train", "test"))
        assert len(tasks.ids("train")) == 6
        assert tasks.get("gsm8k:test:1").answers == ("72",)
    assert len(asked) == 2
    assert all(url.startswith("https://") for url in asked)
    (tmp_path / "cache/agent-envs/gsm8k/test.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(BrokenTaskFile, match=r"expected 2 problems in GSM8K's test split, found 1; delete the file"):
        gsm8k()


def test_gsm8k_without_a_network_says_where_the_file_belongs(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(OSError, match=r"cannot download https://.*no route to host.*put the file at .*train\.jsonl"):
        gsm8k()
    assert not list(tmp_path.rglob("*.jsonl"))


def test_gsm8k_from_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"GSM8K needs .*train\.jsonl"):
        gsm8k(tmp_path)


# --- reasoning-gym


pytest.importorskip("reasoning_gym", reason="the extra agent-envs[reasoning-gym] is not installed")


def test_reasoning_gym_tasks_are_the_librarys_own():
    import reasoning_gym

    source = ReasoningGym("chain_sum", max_terms=3)
    task = source.get("reasoning_gym:chain_sum:17")
    item = reasoning_gym.create_dataset("chain_sum", seed=17, size=1, max_terms=3)[0]
    assert (task.question, task.answers) == (item["question"], (item["answer"],))
    json.dumps(dict(task.metadata))


def test_reasoning_gym_splits_are_disjoint_by_content():
    source = ReasoningGym("chain_sum", max_digits=1)
    questions = {}
    for split in source.splits:
        rng = np.random.default_rng(0)
        questions[split] = {source.sample(rng, split).question for _ in range(60)}
        assert all(split_of(question) == split for question in questions[split])
    assert not questions["train"] & questions["test"]


def test_a_data_set_with_no_task_of_a_split_says_so():
    source = ReasoningGym("chain_sum")
    with pytest.raises(UnknownTask, match="held none of the split 'dev'; they have"):
        source.sample(np.random.default_rng(0), "dev")


SHOW = """
from agent_envs.tasks.benchmarks import ReasoningGym
print([ReasoningGym(name).get(f"reasoning_gym:{name}:3") for name in ("ransom_note", "list_functions")])
"""


def test_an_item_does_not_depend_on_the_hash_seed_of_this_process():
    shown = {
        subprocess.run(
            [sys.executable, "-c", SHOW],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(shown) == 1
    assert "Task" in shown.pop()


def test_the_oracle_of_an_arithmetic_data_set():
    source = ReasoningGym("chain_sum")
    task = source.get("reasoning_gym:chain_sum:5")
    assert source.oracle(task)(task.question) == Call("python", {"code": f"print({task.metadata['expression']})"})
    assert eval(task.metadata["expression"]) == int(task.answers[0])


def test_a_data_set_without_expressions_has_no_oracle():
    source = ReasoningGym("leg_counting")
    with pytest.raises(NoOracle, match="no arithmetic expression"):
        source.oracle(source.get("reasoning_gym:leg_counting:1"))


def test_unknown_data_sets_and_options():
    with pytest.raises(UnknownTaskSource, match="no data set 'chain_sums'; there is chain_sum"):
        ReasoningGym("chain_sums")
    with pytest.raises(ValueError, match=r"chain_sum does not take {'terms': 3}"):
        ReasoningGym("chain_sum", terms=3)
    with pytest.raises(ValueError, match="max_terms must be >= min_terms"):
        ReasoningGym("chain_sum", min_terms=3, max_terms=2)
    with pytest.raises(UnknownTask, match="reads 'reasoning_gym:chain_sum:SEED'"):
        ReasoningGym("chain_sum").get("reasoning_gym:leg_counting:1")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=r"agent-envs\[reasoning-gym\]"):
        ReasoningGym("chain_sum")


def test_reasoning_gym_answers_are_judged_by_the_data_set():
    source = ReasoningGym("countdown")
    task = source.get("reasoning_gym:countdown:1")
    verifier = source.verifier()
    assert verifier.verify(task.metadata["expression"], task).success  # any right expression counts, the gold one among them
    assert not verifier.verify(str(task.metadata["target"]), task).success
    assert not verifier.verify("garbage", task).success


@pytest.mark.parametrize(
    "dataset", ["chain_sum", "leg_counting", "polynomial_multiplication", "spiral_matrix", "game_of_life_halting"]
)
def test_gold_is_right_and_garbage_is_not(dataset):
    source = ReasoningGym(dataset)
    for seed in range(3):
        task = source.get(f"reasoning_gym:{dataset}:{seed}")
        assert source.verifier().verify(task.answers[0], task).accuracy == 1.0
        assert source.verifier().verify("garbage", task).accuracy == 0.0
        assert source.verifier().verify("", task).accuracy == 0.0
        assert source.verifier().verify(f"{task.answers[0]} or {task.answers[0]}1", task).accuracy == 0.0


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [
        ("spiral_matrix", "[__import__('pathlib').Path({path!r}).touch()]"),
        ("string_insertion", "[__import__('pathlib').Path({path!r}).touch()]"),
        ("polynomial_multiplication", "__import__('pathlib').Path({path!r}).touch()"),
        ("simple_integration", "open({path!r}, 'w')"),
        ("countdown", "exec(chr(120))"),
        ("puzzle24", "open({path!r}, 'w')"),
    ],
)
def test_no_answer_is_run_as_code(dataset, answer, tmp_path):
    path = tmp_path / "touched"
    source = ReasoningGym(dataset)
    task = source.get(f"reasoning_gym:{dataset}:1")
    assert source.verifier().verify(answer.format(path=str(path)), task).accuracy == 0.0
    assert not path.exists()


def test_the_environment_takes_the_sources_verifier():
    env = gym.make("agent_envs/MathTool-v0", tasks="reasoning_gym:chain_sum", task_options={"max_terms": 2})
    assert not isinstance(env.unwrapped.verifier, MathVerifier)
    observation, info = env.reset(seed=0)
    assert info["task_id"].startswith("reasoning_gym:chain_sum:")
    oracle = env.unwrapped.oracle()
    observation = env.step(oracle(observation))[0]
    _, reward, terminated, _, info = env.step(oracle(observation))
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    env.close()
