"""The files and the display of a run."""

from __future__ import annotations

import io
import json
import logging
import math
import random
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learners.run.report import Report


def quiet(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def printed(report: Report) -> str:
    assert isinstance(report.console.file, io.StringIO)
    return report.console.file.getvalue()


def metrics(step: int) -> dict[str, float]:
    numbers = random.Random(step)
    return {
        "success": numbers.random(),
        "reward": numbers.uniform(-1, 1),
        "tool_calls": step / 3,
        "zeta": 1 / step,
        "steps": step,
    }


def play(folder: Path, steps: range, resume_at: int | None = None) -> None:
    """A stretch of a run that writes what a trainer writes: evaluations before and after, metrics and trajectories."""
    with Report(folder, total_steps=6, resume_at=resume_at, console=quiet()) as report:
        if 1 in steps:
            report.evaluation(0, "held-out", {"success": 0.25})
        for step in steps:
            report.trajectory_file(step).write_text(f"rolled out for {step}\n")
            report.log(step, metrics(step))
        if 6 in steps:
            report.evaluation(6, "held-out", {"success": 0.75})


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_a_step_is_a_line_with_sorted_keys_and_exact_numbers(tmp_path: Path) -> None:
    numbers = {"reward": 0.1 + 0.2, "entropy": np.float32(0.1), "count": 7, "seconds/step": 1e-17}
    with Report(tmp_path, total_steps=2, console=quiet()) as report:
        report.log(1, numbers)  # type: ignore[arg-type]
        text = (tmp_path / "metrics.jsonl").read_text()  # flushed while the run goes on
    assert text == (
        '{"count": 7, "entropy": 0.10000000149011612, "reward": 0.30000000000000004, "seconds/step": 1e-17, "step": 1}\n'
    )


def test_event_files_hold_the_same_numbers(tmp_path: Path) -> None:
    play(tmp_path, range(1, 7))
    assert events(tmp_path, "success") == [(step, pytest.approx(metrics(step)["success"])) for step in range(1, 7)]
    assert events(tmp_path, "held-out/success") == [(0, 0.25), (6, 0.75)]


@pytest.mark.parametrize("checkpoint", [0, 3, 6])
@pytest.mark.parametrize("half_line", [b"", b'{"step": 7, "rew', b'{"reward"'])
def test_a_resumed_run_has_the_files_of_an_uninterrupted_one(tmp_path: Path, checkpoint: int, half_line: bytes) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    play(whole, range(1, 7))
    play(killed, range(1, 7) if checkpoint == 6 else range(1, 6))
    with open(killed / "metrics.jsonl", "ab") as file:
        file.write(half_line)
    (killed / "trajectories" / "step_000007.jsonl").write_text("of a step that is done again")
    (killed / ".summary.json.unfinished").write_text("{")
    play(killed, range(checkpoint + 1, 7), resume_at=checkpoint)
    expected = files(whole)
    (killed / ".summary.json.unfinished").unlink()
    assert files(killed) == expected
    assert events(killed, "reward") == events(whole, "reward")


def test_resuming_tells_what_was_there_before(tmp_path: Path) -> None:
    play(tmp_path, range(1, 6))
    with Report(tmp_path, total_steps=6, resume_at=4, console=quiet()) as report:
        assert [record["step"] for record in report.history] == [1, 2, 3, 4]
        assert report.evaluations == ({"step": 0, "name": "held-out", "success": 0.25},)


def test_an_evaluation_made_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    with Report(tmp_path, total_steps=6, console=quiet()) as report:
        report.evaluation(0, "held-out", {"success": 0.1})
        report.evaluation(0, "greedy", {"success": 0.3})
        report.evaluation(0, "held-out", {"success": 0.2})
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "name": "greedy", "success": 0.3}, {"step": 0, "name": "held-out", "success": 0.2}]


def test_a_new_run_overwrites_no_other(tmp_path: Path) -> None:
    play(tmp_path, range(1, 4))
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="already holds a run: resume it, or choose another output folder"):
        Report(tmp_path, total_steps=6, console=quiet())
    assert files(tmp_path) == before


def test_a_line_that_is_whole_but_broken_is_reported(tmp_path: Path) -> None:
    play(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"reward"', b'"reward"', 1))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: expected a JSON object with a step, found "):
        Report(tmp_path, total_steps=6, resume_at=2, console=quiet())


def test_metrics_that_end_before_the_checkpoint_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play(tmp_path, range(1, 3))
    with caplog.at_level(logging.WARNING):
        play(tmp_path, range(6, 7), resume_at=5)
    assert "metrics.jsonl ends at step 2, before the checkpoint of step 5" in caplog.text


def test_numbers_that_are_none_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    with Report(tmp_path, total_steps=6, console=quiet()) as report:
        report.log(1, metrics(1))
        before = files(tmp_path)
        for bad, message in [
            ({"reward": math.nan}, r"metric 'reward' of step 2: expected a finite number, found nan"),
            ({"reward": math.inf}, r"expected a finite number, found inf"),
            ({"step": 2.0}, r"expected names other than 'step' and 'name', found 'step'"),
        ]:
            with pytest.raises(ValueError, match=message):
                report.log(2, bad)
            with pytest.raises(ValueError, match=message):
                report.evaluation(2, "held-out", bad)
        with pytest.raises(ValueError, match="step: expected more than 1, the last one logged, found 1"):
            report.log(1, metrics(1))
        assert files(tmp_path) == before


def test_the_summary_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    with Report(tmp_path, total_steps=1, console=quiet()) as report:
        path = report.write_summary({"success_before": 0.25, "seed": 0})
        with pytest.raises(ValueError, match="Out of range float values"):
            report.write_summary({"success_before": math.nan})
        assert json.loads(path.read_text()) == {"success_before": 0.25, "seed": 0}
        report.write_summary({"seed": 1})
        assert json.loads(path.read_text()) == {"seed": 1}
    assert path == tmp_path / "summary.json"


def test_curves_show_the_numbers(tmp_path: Path) -> None:
    """Steps and marks change the picture; it is drawn even when there is nothing to show."""
    pictures = []
    with Report(tmp_path, total_steps=6, console=quiet()) as report:
        pictures.append(matplotlib.image.imread(report.curves()))
        report.evaluation(0, "held-out", {"success": 0.25})
        pictures.append(matplotlib.image.imread(report.curves()))
        report.log(1, {"success": 0.5})
        report.log(2, {"success": 0.75, "entropy": 0.3})
        pictures.append(matplotlib.image.imread(report.curves()))
    assert all(picture.shape == pictures[0].shape for picture in pictures)
    ink = [float((picture[..., :3].min(-1) < 0.9).mean()) for picture in pictures]
    assert 0 < ink[0] < ink[1] < ink[2]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_terminal_there_are_plain_lines_at_a_sensible_rate(tmp_path: Path) -> None:
    with Report(tmp_path / "all", total_steps=3, console=quiet(), line_every=0.0) as report:
        report.evaluation(0, "held-out", {"success": 0.25})
        for step in (1, 2, 3):
            report.log(step, {"reward": 0.5, "success": 0.25, "tool_calls": 1, "entropy": 0.125, "zeta": 9.0})
    lines = printed(report).splitlines()
    assert lines[0] == "held-out, step 0: success 0.25"
    assert re.fullmatch(r"step 1/3: success 0\.25  reward 0\.50  tool calls 1\.00  entropy 0\.12  0:\d\d left", lines[1])
    assert lines[3] == "step 3/3: success 0.25  reward 0.50  tool calls 1.00  entropy 0.12"
    assert len(lines) == 4
    with Report(tmp_path / "few", total_steps=50, console=quiet(), line_every=3600.0) as report:
        for step in range(1, 51):
            report.log(step, {"success": 0.5})
    assert [line.split(":")[0] for line in printed(report).splitlines()] == ["step 1/50", "step 50/50"]


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    with Report(tmp_path, total_steps=4, resume_at=0, console=quiet(terminal=True)) as report:
        report.log(1, {"reward": 0.5, "success": 0.25, "tool_calls": 1.5})
        report.say("[a line] above it")
        report.log(2, {"reward": 0.5, "success": 0.75, "tool_calls": 1.5})
    text = printed(report)
    assert "━" in text
    assert "[a line] above it" in text
    assert "step 2/4" in text
    assert re.search(r"success 0\.75  reward 0\.50  tool calls 1\.50  0:\d\d left", text)


def test_the_closing_table_names_rows_and_files(tmp_path: Path) -> None:
    long = tmp_path / ("long_name_" * 12) / "curves.png"
    with Report(tmp_path, total_steps=1, console=quiet()) as report:
        report.closing_table(
            [("success", "0.45", "0.94"), ("tool calls", "1.4", "1.1")], files={"curves": long, "run": tmp_path}
        )
    words = [line.split() for line in printed(report).splitlines()]
    assert ["before", "after"] in words
    assert ["success", "0.45", "0.94"] in words
    assert ["tool", "calls", "1.4", "1.1"] in words
    assert ["curves", str(long)] in words  # in one piece, however long


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    report = Report(tmp_path, total_steps=1, console=quiet())
    report.close()
    report.close()
