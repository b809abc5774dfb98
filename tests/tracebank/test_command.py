"""The command line: what it makes, what it answers, and that a mistake is one line and changes nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from attempts import attempt

from tracebank import StepTrace, TraceBank, importers, write_trajectories
from tracebank.commands import main


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    file = tmp_path / "rollouts.jsonl"
    write_trajectories(
        file,
        [
            attempt(f"{a}+{a}", str(answer), float(answer == 2 * a), thoughts=(f"double {a}",))
            for a in range(6)
            for answer in range(2 * a, 2 * a + 3)
        ]
        + [attempt("1+1", "leak", split="test")],
    )
    return file


@pytest.fixture
def bank(rollouts: Path, tmp_path: Path, capsys) -> Path:
    assert run("build", "--trajectories", rollouts, "--output", tmp_path / "bank") == 0
    capsys.readouterr()
    return tmp_path / "bank"


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:  # how the parser ends
        return left.code if isinstance(left.code, int) else 1


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_build_says_what_was_kept_what_not_and_which_index_it_took(rollouts: Path, tmp_path: Path, capsys) -> None:
    assert run("build", "--trajectories", rollouts, "--output", tmp_path / "bank", "--keep", 2) == 0
    told = capsys.readouterr().out
    for line in ("trajectories read 19", "of the split 'test' -1", "beyond the best 2 of its task -6", "of 6 tasks 12"):
        assert line in " ".join(told.split()), told
    # 12 trajectories of two steps; the first step of a task is shared
    assert "shared with what came before -6" in " ".join(told.split())
    assert "18 steps" in told
    assert "index: flat, which auto takes for 18 steps" in told
    with TraceBank.open(tmp_path / "bank") as bank:
        assert len(bank) == 18


def test_query_answers_people(bank: Path, capsys) -> None:
    assert run("query", bank, "What is 3+3?", "--k", 2, "--exclude-task", "sum:3+3") == 0
    told = capsys.readouterr().out
    assert "1. score" in told
    assert "│ double" in told
    assert "task sum:3+3" not in told
    assert "filters took out: task" in told
    assert "embedding" in told
    assert "search" in told


def test_query_answers_programs(bank: Path, capsys) -> None:
    assert run("query", bank, "What is 3+3?", "--json", "--k", 4, "--include-final", "--steps", "1:", "--min-reward", 0) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [hit["step"] for hit in answer["hits"]] == [1, 1, 1, 1]
    assert answer["hits"][0]["task_id"] == "sum:3+3"
    assert all(hit["final"] and hit["reward"] == 1.0 for hit in answer["hits"])
    assert answer["removed"]["step"] >= 1
    assert answer["seconds"]["search"] > 0


def test_query_is_what_the_bank_answers(bank: Path, capsys) -> None:
    run("query", bank, "What is 2+2?", "--json", "--source", "tests", "--source", "nobody")
    answer = json.loads(capsys.readouterr().out)
    with TraceBank.open(bank) as opened:
        (hits,) = opened.query(["What is 2+2?"], source=["tests", "nobody"])
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in hits]
    assert [hit["score"] for hit in answer["hits"]] == [hit.score for hit in hits]


def test_a_query_comes_from_standard_input_or_a_file(bank: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "history.txt").write_text("What is 4+4?\nétape", encoding="utf-8")
    run("query", bank, "--file", tmp_path / "history.txt", "--json")
    from_file = json.loads(capsys.readouterr().out)["hits"]
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 4+4?\nétape"))
    run("query", bank, "-", "--json")
    assert json.loads(capsys.readouterr().out)["hits"] == from_file
    assert from_file[0]["task_id"] == "sum:4+4"


def test_stats_tells_and_draws(bank: Path, tmp_path: Path, capsys) -> None:
    assert run("stats", bank, "--picture", tmp_path / "bank.png") == 0
    told = capsys.readouterr().out
    assert "without a question" in told
    assert "█" in told
    assert (tmp_path / "bank.png").read_bytes().startswith(b"\x89PNG")
    assert run("stats", bank, "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == len(TraceBank.open(bank))


def test_check_is_content_with_a_whole_bank(bank: Path, capsys) -> None:
    assert run("check", bank) == 0
    assert "Nothing is wrong" in capsys.readouterr().out


def test_check_lists_damage_and_says_what_cannot_be_mended(bank: Path, capsys) -> None:
    shard = next(bank.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("check", bank) == 1
    told = capsys.readouterr()
    assert shard.name in told.out
    assert "has to come from a copy" in told.out
    assert run("query", bank, "What is 1+1?") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_check_names_what_compact_mends_and_compact_mends_it(bank: Path, capsys) -> None:
    assert run("compact", bank, "--index", "hnsw") == 0
    assert "index: hnsw" in capsys.readouterr().out
    index = next(bank.glob("*.faiss"))
    index.write_bytes(index.read_bytes()[:50])
    assert run("query", bank, "What is 1+1?") == 1
    assert run("check", bank) == 1
    assert f"compact {bank} mends" in capsys.readouterr().out
    assert run("compact", bank) == 0
    assert run("check", bank) == 0
    assert run("query", bank, "What is 1+1?") == 0


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_export_and_import_bring_everything_back(bank: Path, tmp_path: Path, capsys, suffix: str) -> None:
    out = tmp_path / f"steps{suffix}"
    assert run("export", bank, "--to", out) == 0
    assert run("import", out, "--from", "steps", "--output", tmp_path / "again") == 0
    with TraceBank.open(bank) as one, TraceBank.open(tmp_path / "again") as other:
        rows = range(len(one))
        assert one.snapshot.steps(rows) == other.snapshot.steps(rows)
        assert (one.snapshot.vectors() == other.snapshot.vectors()).all()
    assert run("export", bank, "--to", out) == 2
    assert run("export", bank, "--to", out, "--overwrite") == 0


def test_exported_vectors_are_those_of_the_bank(bank: Path, tmp_path: Path, capsys) -> None:
    assert run("export", bank, "--to", tmp_path / "steps.parquet", "--vectors") == 0
    assert list(importers.read("steps", tmp_path / "steps.parquet"))  # and is read as steps all the same
    assert run("export", bank, "--to", tmp_path / "steps.jsonl", "--vectors") == 2


def test_transcripts_are_imported_by_the_same_rules(tmp_path: Path, capsys) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "What is 6*7?"},
            {
                "role": "assistant",
                "content": "multiply",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "python", "arguments": '{"code": "6*7"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {"role": "assistant", "content": "42"},
        ],
    }
    lines = [chat | {"score": 0.3}, chat | {"score": 0.9}, {"messages": []}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(
        *("import", tmp_path / "chats.jsonl", "--from", "openai", "--output", tmp_path / "bank"),
        *("--reward-field", "score", "--source", "GPT", "--environment", "Chat-v0"),
    ) == 0  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 records left out" in told
    assert "word for word another of its task -1" in told
    with TraceBank.open(tmp_path / "bank") as bank:
        first, last = bank.snapshot.steps([0, 1])
    assert (first.reward, first.source, first.environment, first.final) == (0.9, "GPT", "Chat-v0", False)
    assert "42" in first.value
    assert last.final


def test_append_adds_what_is_new(bank: Path, tmp_path: Path, capsys) -> None:
    size = len(TraceBank.open(bank))
    write_trajectories(tmp_path / "more.jsonl", [attempt("100+1", "101")])
    assert (
        run("build", "--trajectories", tmp_path / "rollouts.jsonl", tmp_path / "more.jsonl", "--output", bank, "--append")
        == 0
    )
    assert len(TraceBank.open(bank)) == size + 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["build", "--trajectories", "{rollouts}", "--output", "{bank}"], "--append"),
        (["build", "--trajectories", "none.jsonl", "--output", "new"], "none.jsonl: expected a file of trajectories"),
        (["build", "--trajectories", "--output", "new"], "at least one file"),
        (["build", "--trajectories", "{rollouts}", "--output", "new", "--keep", "-1"], "--keep -1"),
        (["build", "--trajectories", "{rollouts}", "--output", "new", "--embedder", "nonsense"], "nonsense"),
        (["build", "--trajectories", "{rollouts}", "--output", "none", "--append"], "expected the folder of a bank"),
        (["build", "--trajectories", "{rollouts}", "--output", "{bank}", "--append", "--index", "ivf"], "tracebank compact"),
        (["import", "{rollouts}", "--from", "rapo", "--output", "new", "--keep", "3"], "--keep 3"),
        (["import", "--from", "rapo", "--output", "new"], "at least one file"),
        (["import", "none.jsonl", "--from", "openai", "--output", "new"], "none.jsonl"),
        (["query", "none", "text"], "none: expected the folder of a bank, found nothing"),
        (["query", "{bank}"], "expected a text"),
        (["query", "{bank}", "text", "--file", "{rollouts}"], "only one of them"),
        (["query", "{bank}", "--file", "none.txt"], "none.txt"),
        (["query", "{bank}", "text", "--steps", "3"], "--steps 3"),
        (["query", "{bank}", "text", "--k", "0"], "k: expected at least 1"),
        (["stats", "{bank}", "--picture", "x.gif"], "x.gif"),
        (["export", "{bank}", "--to", "x.csv"], "x.csv"),
    ],
)
def test_what_the_user_gets_wrong_is_one_line_and_changes_nothing(
    arguments, told, bank: Path, rollouts: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(bank)
    assert run(*(part.format(bank=bank, rollouts=rollouts) for part in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert files(bank) == before
    assert not (tmp_path / "new").exists()


def test_a_damaged_file_is_one_line_and_exit_code_1(tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert run("build", "--trajectories", tmp_path / "bad.jsonl", "--output", tmp_path / "bank") == 1
    error = capsys.readouterr().err
    assert "bad.jsonl, line 1" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "bank").exists()  # so that the same command can be given again


def test_another_embedder_than_the_banks_is_refused_by_both_names(bank: Path, rollouts: Path, capsys) -> None:
    options = ("--output", bank, "--append", "--embedder", "hashing?dimension=64")
    assert run("build", "--trajectories", rollouts, *options) == 1
    error = capsys.readouterr().err
    assert error.count("hashing") >= 2


def test_a_process_of_its_own(rollouts: Path, tmp_path: Path) -> None:
    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        spelled = [sys.executable, "-m", "tracebank", *map(str, arguments)]
        return subprocess.run(spelled, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])

    built = command("build", "--trajectories", rollouts, "--output", tmp_path / "bank")
    assert (built.returncode, built.stderr) == (0, "")
    asked = command("query", tmp_path / "bank", "What is 3+3?", "--json")
    hits = json.loads(asked.stdout)["hits"]
    assert StepTrace(**{name: hits[0][name] for name in StepTrace.__dataclass_fields__}).task_id == "sum:3+3"
    wrong = command("query", tmp_path / "none", "text")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    assert {"build", "import", "query", "stats", "check", "compact", "export"} <= set(command("--help").stdout.split())
