"""Checkpoints: bit-exact, whole or absent, and clear about what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from learners.run.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint


def policy(seed: int, *, tied: bool = True, hidden: int = 32, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).to(dtype)


def optimiser(model: Qwen3ForCausalLM) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def train(model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def equal(one: Qwen3ForCausalLM, other: Any) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def saved(folder: Path, step: int = 3, **options: Any) -> tuple[Path, Qwen3ForCausalLM, torch.optim.AdamW]:
    model = policy(0)
    optimizer = optimiser(model)
    train(model, optimizer, range(3))
    state = {"step": step, "rate": 0.1 + 0.2, "order": [2, 0, 1]}
    return save_checkpoint(folder, step, model=model, optimizer=optimizer, trainer_state=state, **options), model, optimizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = policy(0, tied=tied, dtype=dtype)
    optimizer = optimiser(model)
    train(model, optimizer, range(3))
    state = {"step": 3, "rate": 0.1 + 0.2, "nothing": None, "name": "é"}
    path = save_checkpoint(tmp_path, 3, model=model, optimizer=optimizer, trainer_state=state)
    at_the_checkpoint = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, optimizer, range(3, 6))

    again = policy(1, tied=tied, dtype=dtype)
    assert not equal(model, again)
    optimizer_again = optimiser(again)
    assert load_checkpoint(path, again, optimizer_again) == state
    assert all(torch.equal(at_the_checkpoint[name], tensor) for name, tensor in again.state_dict().items())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    train(again, optimizer_again, range(3, 6))
    assert equal(model, again)


def test_saving_and_loading_leave_the_generator_and_the_mode_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    path, model, optimizer = saved(tmp_path)
    model.train()
    load_checkpoint(path, model, optimizer)
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = Tokenizer(WordLevel({"<pad>": 0, "one": 1}, unk_token="<pad>"))
    path, model, optimizer = saved(tmp_path, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>"))
    load_checkpoint(path, model, optimizer)
    assert capfd.readouterr() == ("", "")  # no bars across the run's own
    assert equal(model, AutoModelForCausalLM.from_pretrained(path))
    assert AutoTokenizer.from_pretrained(path)("one")["input_ids"] == [1]
    assert (path / "model.safetensors").is_file()


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert latest_checkpoint(folder) is None
    for step in (5, 10, 999_999, 1_000_000):
        path, *_ = saved(folder, step)
        assert latest_checkpoint(folder) == path
    assert sorted(path.name for path in folder.iterdir()) == ["step_1000000", "step_999999"]
    saved(folder, 1_000_005, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step_1000005"]


def test_what_a_kill_left_is_cleared_away(tmp_path: Path) -> None:
    path, *_ = saved(tmp_path)
    shutil.copytree(path, tmp_path / "unfinished_step_000004")
    (tmp_path / "notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path) == path
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["notes.txt", "step_000003"]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(FileExistsError, match="step_000003 exists already"):
        saved(tmp_path)


FILES = ["config.json", "model.safetensors", "optimizer.pt", "trainer.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damage_is_found_and_the_file_named(tmp_path: Path, name: str, damage: str) -> None:
    path, *_ = saved(tmp_path)
    content = bytearray((path / name).read_bytes())
    if damage == "missing":
        (path / name).unlink()
    else:
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content if damage == "flipped" else content[:-1])
    other = policy(1)
    with pytest.raises(CheckpointError, match=rf"{name}: expected .*, found .*; the checkpoint is damaged: remove it"):
        load_checkpoint(path, other, optimiser(other))
    assert equal(other, policy(1))


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"files": {}}'])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, content: str | None) -> None:
    path, model, optimizer = saved(tmp_path)
    (path / "manifest.json").unlink()
    if content is not None:
        (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: expected .*, found none"):
        load_checkpoint(path, model, optimizer)


def test_another_model_or_optimiser_is_refused_and_unchanged(tmp_path: Path) -> None:
    path, *_ = saved(tmp_path)
    wider = policy(0, hidden=64)
    with pytest.raises(CheckpointError, match=r"whose lm_head\.weight is \(40, 64\) of torch\.float32, found \(40, 32\)"):
        load_checkpoint(path, wider, optimiser(wider))
    assert equal(wider, policy(0, hidden=64))
    model = policy(1)
    fewer = torch.optim.AdamW(list(model.parameters())[:3])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: expected the state of this optimiser, found another"):
        load_checkpoint(path, model, fewer)
    assert equal(model, policy(1))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"order": (1, 2)}, r"trainer_state\['order'\]: expected JSON values, found \(1, 2\)"),
        ({"seen": {3: 1}}, r"trainer_state\['seen'\]: expected JSON values"),
        ({"loss": float("nan")}, "trainer_state: expected JSON values, found others: Out of range"),
        ({"weights": torch.zeros(1)}, "trainer_state: expected JSON values, found others: .*Tensor"),
    ],
)
def test_a_state_that_would_not_come_back_is_refused(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    model = policy(0)
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, 1, model=model, optimizer=optimiser(model), trainer_state=state)
    assert list(tmp_path.iterdir()) == []


def test_mixed_number_formats_are_refused(tmp_path: Path) -> None:
    model = policy(0)
    model.model.norm.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"one number format, found torch\.bfloat16, torch\.float32"):
        save_checkpoint(tmp_path, 1, model=model, optimizer=optimiser(model), trainer_state={})


# Saves checkpoints in forked processes, which kill themselves at every call that changes the disk, one after the other, or
# are killed from outside at random moments; whatever is left must be a whole and recent checkpoint. A checkpoint of step n
# has the number n in all its weights and in the trainer's state. Prints how many kills there were of each kind.
KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from learners.run.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from tests.learners.test_checkpoint import optimiser, policy

torch.set_num_threads(1)
root = Path(sys.argv[1])

def save(folder, step):
    model = policy(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    save_checkpoint(folder, step, model=model, optimizer=optimiser(model), trainer_state={"step": step})

def kill_at(folder, call):
    calls = 0
    for name in ("fsync", "rename", "unlink", "rmdir", "mkdir"):
        def counted(*arguments, original=getattr(os, name), **options):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)
        setattr(os, name, counted)
    save(folder, 3)

def save_forever(folder):
    step = 0
    while True:
        save(folder, step := step + 1)

def check(folder, oldest):
    assert latest_checkpoint(folder) >= folder / f"step_{oldest:06d}"
    model = policy(1)
    for path in folder.iterdir():
        step = load_checkpoint(path, model, optimiser(model))["step"]
        assert path.name == f"step_{step:06d}", (path, step)
        assert all(bool((parameter == step).all()) for parameter in model.parameters())

def fork(function, *arguments):
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def save_two(folder):
    save(folder, 1)
    save(folder, 2)

assert wait(fork(save_two, root / "two")) == 0
swept, status = 0, -signal.SIGKILL
while status == -signal.SIGKILL:
    folder = root / f"sweep_{swept}"
    shutil.copytree(root / "two", folder)
    status = wait(fork(kill_at, folder, swept + 1))
    assert status in (0, -signal.SIGKILL), status
    assert wait(fork(check, folder, 2)) == 0
    shutil.rmtree(folder)
    swept += status != 0
for trial in range(8):
    folder = root / f"random_{trial}"
    child = fork(save_forever, folder)
    while not any(folder.glob("step_*")):
        time.sleep(0.001)
    time.sleep(random.Random(trial).uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL
    assert wait(fork(check, folder, 1)) == 0
print(swept, 8)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    swept, killed = map(int, done.stdout.split())
    assert swept > 15  # at least a sync and a removal of each file, and the renames
    assert killed == 8


def test_the_manifest_lists_every_other_file(tmp_path: Path) -> None:
    path, *_ = saved(tmp_path)
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert set(FILES) <= listed.keys()
    assert {entry.name for entry in path.iterdir()} == listed.keys() | {"manifest.json"}
