"""The pytest plugin: ``pytest --agent-env ID`` runs each promise as a test of its own, named ``ID::promise``.

Every run of pytest loads this module, so it imports nothing of the kit until the option is given. With no path on the
command line only the promises run; ``-k``, ``-x``, ``--collect-only``, ``--lf`` and ``--junitxml`` mean what they always do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import pytest

from agent_envs.testing.profile import PROFILES

if TYPE_CHECKING:
    from pathlib import Path

    from agent_envs.testing.promise import Promise
    from agent_envs.testing.report import Finding
    from agent_envs.testing.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line."""
    group = parser.getgroup("agent_envs", "promises of agent environments")
    group.addoption(
        "--agent-env",
        action="append",
        default=[],
        metavar="ID",
        help="check the environment of this Gymnasium id (name, namespace/name or module:id); can be given several times",
    )
    group.addoption(
        "--agent-env-profile",
        choices=list(PROFILES),
        default="quick",
        help="how thoroughly: quick (seconds), ci, or thorough (500 episodes a promise); default quick",
    )


def pytest_configure(config: pytest.Config) -> None:
    """With ids and without paths, only the promises run."""
    if config.getoption("agent_env") and config.args_source is not config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the promises beside the collected tests, before ``-k`` and ``-m`` choose among them."""
    for name in dict.fromkeys(config.getoption("agent_env")):
        _require(name)
        items.extend(session.genitems(AgentEnv.from_parent(session, name=name, nodeid=name)))


def _require(name: str) -> None:
    """Says what is wrong in one line where an id, its module or Hypothesis is missing."""
    try:
        from agent_envs.testing import PROMISES, episodes  # noqa: F401 - whether they can be imported is the question
        from agent_envs.testing.subject import spec_of

        spec_of(name)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise pytest.UsageError(f"--agent-env {name}: {error}") from error


class NotKept(AssertionError):
    """A finding that fails a test."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))


class AgentEnv(pytest.Collector):
    """One environment: what its promises have in common."""

    _subject: Subject | None = None

    def collect(self) -> Iterator[PromiseItem]:
        """An item for each promise."""
        from agent_envs.testing import PROMISES

        for promise in PROMISES:
            yield PromiseItem.from_parent(self, name=promise.name, promise=promise)

    def subject(self) -> Subject:
        """The environment; made at the first promise that runs.

        Raises:
            NotKept: It cannot even be made.
        """
        if self._subject is None:
            from agent_envs.testing.check import prepare
            from agent_envs.testing.report import Finding

            prepared = prepare(self.name)
            if isinstance(prepared, Finding):
                raise NotKept(prepared)
            self._subject = prepared
        return self._subject


class PromiseItem(pytest.Item):
    """One promise of one environment."""

    def __init__(self, *, promise: Promise, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.promise = promise

    def runtest(self) -> None:
        """Asks the promise; one that says nothing about this environment is skipped."""
        from agent_envs.testing import ask

        assert isinstance(self.parent, AgentEnv)
        finding = ask(self.promise, self.parent.subject(), PROFILES[self.config.getoption("agent_env_profile")])
        if finding.status == "not asked":
            pytest.skip(finding.found)
        if finding.status != "kept":
            raise NotKept(finding)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        """What was found, without the kit's own traceback."""
        if isinstance(excinfo.value, NotKept):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test is said to stand: under the environment's name, since it has no file."""
        assert self.parent is not None
        return self.config.rootpath / self.parent.name, None, f"{self.parent.name}::{self.name}"
