"""Tasks that others made and that are fetched or made when they are needed: GSM8K, and the reasoning-gym library."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_envs.faults import EnvironmentFault
from agent_envs.moves import Answer, Call, Move
from agent_envs.task import SPLITS, NoOracle, Oracle, Task, TaskSource, UnknownTask, UnknownTaskSource, split_of
from agent_envs.tasks.questions import BrokenTaskFile, JsonlTasks
from agent_envs.verifiers import Verifier, pool
from agent_envs.verifiers.reasoning_gym import ReasoningGymVerifier

_GSM8K_URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/{}.jsonl"
_GSM8K_ROWS = {"train": 7473, "test": 1319}
_ITEM_SECONDS = 60.0  # to make one item; the slowest data set takes about one
_DRAWS = 1_000  # before a data set is held to have no task of a split


def gsm8k(folder: str | Path | None = None) -> JsonlTasks:
    """GSM8K (Cobbe et al. 2021), in its own train and test split: 7,473 and 1,319 problems.

    Args:
        folder: Where ``train.jsonl`` and ``test.jsonl`` are. By default they are downloaded once from the data set's own
            repository into ``$XDG_CACHE_HOME/agent-envs/gsm8k``.

    Raises:
        OSError: A file is not there and cannot be downloaded.
        BrokenTaskFile: A file is not whole.
    """
    where = Path(folder) if folder is not None else _cache() / "gsm8k"
    files = {split: where / f"{split}.jsonl" for split in _GSM8K_ROWS}
    for split, path in files.items():
        if not path.is_file():
            if folder is not None:
                raise FileNotFoundError(f"GSM8K needs {path}, which does not exist")
            _download(_GSM8K_URL.format(split), path)
    tasks = JsonlTasks(files, name="gsm8k")
    for split, rows in _GSM8K_ROWS.items():
        found = len(tasks.ids(split))
        if found != rows:
            raise BrokenTaskFile(
                files[split], found, f"{rows} problems in GSM8K's {split} split", f"{found}; delete the file"
            )
    return tasks


class ReasoningGym(TaskSource):
    """Tasks of the reasoning-gym library, made without end from a seed.

    A task's id holds the library's own seed; the configuration is the source's. Answers are judged by the data set's own
    ``score_answer``: 1 counts, the partial credit that some give for a text that merely contains the answer does not.

    Args:
        dataset: Name of a reasoning-gym data set, such as ``"chain_sum"``.
        config: That data set's own options.

    Raises:
        ImportError: The library is not installed.
        UnknownTaskSource: There is no such data set.
        ValueError: The data set does not take these options.
    """

    def __init__(self, dataset: str, **config: Any) -> None:
        known = _reasoning_gym()
        if dataset not in known:
            close = difflib.get_close_matches(dataset, known, n=4) or sorted(known)
            raise UnknownTaskSource(f"reasoning-gym has no data set {dataset!r}; there is {', '.join(close)}")
        self.name = f"reasoning_gym:{dataset}"
        self.dataset = dataset
        self.config = config
        _, options = known[dataset]
        try:
            checked = options(**self._arguments(0))
            if hasattr(checked, "validate"):
                checked.validate()
        except (TypeError, AssertionError, ValueError) as error:
            raise ValueError(f"reasoning-gym's {dataset} does not take {config}: {error}") from error

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws items until one belongs to the split by its content."""
        for _ in range(_DRAWS):
            task = self._task(int(rng.integers(2**31)))
            if split_of(task.question) == split:
                return task
        raise UnknownTask(f"{_DRAWS} tasks of {self.name!r} held none of the split {split!r}; they have {list(SPLITS)}")

    def get(self, task_id: str) -> Task:
        """The task that the id's seed makes: ``reasoning_gym:DATASET:SEED``."""
        match = re.fullmatch(re.escape(self.name) + r":([0-9]{1,10})", task_id)
        if not match:
            raise UnknownTask(f"a task id of these tasks reads '{self.name}:SEED', found {task_id!r}")
        return self._task(int(match[1]))

    def oracle(self, task: Task) -> Oracle:
        """Prints the arithmetic expression of the item, then answers with what was printed.

        Raises:
            NoOracle: The item's metadata holds no arithmetic expression that stands in the question as well.
        """
        expression = task.metadata.get("expression")
        if (
            not isinstance(expression, str)
            or not re.fullmatch(r"[0-9 .+*/()-]+", expression)
            or expression not in task.question
        ):
            raise NoOracle(f"task {task.id!r} has no arithmetic expression, so there is no oracle")

        def expert(observation: str) -> Move:
            if observation == task.question:
                return Call("python", {"code": f"print({expression})"})
            return Answer(observation.strip())

        return expert

    def verifier(self) -> Verifier:
        """The data set's own scorer."""
        return ReasoningGymVerifier(self.dataset, self.config)

    def _task(self, seed: int) -> Task:
        item = pool.ask("reasoning_gym", {"dataset": self.dataset, "config": self._arguments(seed)}, _ITEM_SECONDS)
        if item is None:
            raise EnvironmentFault(f"{self.name!r} could not make its item of seed {seed} in {_ITEM_SECONDS:g} s", "tasks")
        answers = () if item["gold"] is None else (item["gold"],)
        return Task(f"{self.name}:{seed}", item["question"], answers, item["metadata"])

    def _arguments(self, seed: int) -> dict[str, Any]:
        return {**self.config, "seed": seed, "size": 1}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-envs"


def _download(url: str, path: Path) -> None:
    """Fetches a file so that ``path`` is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = response.read()
    except OSError as error:
        raise OSError(f"cannot download {url} ({error}): put the file at {path} yourself") from error
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def _reasoning_gym() -> Mapping[str, tuple[type, Callable[..., Any]]]:
    """The library's data sets: name -> (class, class of its options)."""
    try:
        factory = importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise ImportError("these tasks need the reasoning-gym library: pip install 'agent-envs[reasoning-gym]'") from error
    datasets: Mapping[str, tuple[type, Callable[..., Any]]] = factory.DATASETS
    return datasets
