"""A state machine that does to an environment whatever its interface allows, in any order, and compares.

Where ``check_agent_env`` asks one promise at a time, the machine mixes: episodes in several environments and their copies at
once, resets in the middle, copies of copies, closing and opening again, pickling in between. Its model is simple: what an
environment gave since its last seeded reset is what a new environment gives that is asked for the same, alone.

Example:
    >>> from agent_envs.testing import AgentEnvMachine
    >>> class MyMachine(AgentEnvMachine):
    ...     env = "agent_envs/MathTool-v0"
    >>> TestMine = MyMachine.TestCase  # pytest and unittest run it
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, multiple, precondition, rule

from agent_envs.env import ToolEnv
from agent_envs.faults import ForkError
from agent_envs.testing.episode import EXPERT, Action, Moment, act, difference, oracle_of
from agent_envs.testing.literal import literal
from agent_envs.testing.promise import Broken
from agent_envs.testing.strategies import actions
from agent_envs.testing.subject import Checkable, Subject

_MOST = 3  # environments at the same time

_SEEDS = st.integers(0, 1_000)


@dataclass(eq=False)
class Live:
    """An environment and what it gave since its last seeded reset.

    Args:
        env: The environment.
        seed: Of that reset.
        history: The moments of the episodes since then, one list for each.
        oracle: The scripted expert of the running episode, if there is one.
    """

    env: gym.Env[Any, Any]
    seed: int
    history: list[list[Moment]]
    oracle: Any = None

    @property
    def last(self) -> Moment:
        """What the latest reset or step gave."""
        return self.history[-1][-1]


class _Shown(str):
    """A text that is printed short even where it is long: Hypothesis prints every step of a failing run."""

    def __repr__(self) -> str:
        return literal(str(self))


class AgentEnvMachine(RuleBasedStateMachine):
    """Resets, steps, copies, pickles and closes environments in any order; subclass it and say which.

    It takes 20 runs of up to 25 steps; ``TestMine.settings = hypothesis.settings(max_examples=500, deadline=None)`` changes
    that, as for any state machine.

    Attributes:
        env: An id, an environment, or a function that makes one (`Subject`).

    Raises:
        Broken: An environment gave something else than a new one does that is asked for the same.
        TypeError: The subclass does not say which environment.
    """

    env: ClassVar[Checkable]
    episodes = Bundle("episodes")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.TestCase.settings = settings(cls.TestCase.settings, max_examples=20, stateful_step_count=25)

    def __init__(self) -> None:
        super().__init__()
        self.subject, self.actions = self._prepared()
        self.lives: list[Live] = []

    @classmethod
    @functools.cache
    def _prepared(cls) -> tuple[Subject, st.SearchStrategy[Action]]:
        if not hasattr(cls, "env"):
            raise TypeError(f'{cls.__name__} does not say what to check: write env = "namespace/Name-v0" in its body')
        subject = Subject(cls.env)
        return subject, actions(subject).map(lambda action: _Shown(action) if isinstance(action, str) else action)

    @precondition(lambda self: len(self.lives) < _MOST)
    @rule(target=episodes, seed=_SEEDS, pickled=st.booleans())
    def begin(self, seed: int, pickled: bool) -> Live:
        """A new environment, perhaps pickled before its first reset."""
        env = self.subject.make()
        live = Live(self._pickled(env) if pickled else env, seed, [])
        self.lives.append(live)
        self._reset(live, seed)
        return live

    @rule(live=episodes, seed=st.none() | _SEEDS)
    def reset(self, live: Live, seed: int | None) -> None:
        """Another episode in the same environment, wherever the last one stands."""
        self._reset(live, seed)

    @rule(live=episodes, action=st.runner().flatmap(lambda machine: machine.actions))
    def act(self, live: Live, action: Action) -> None:
        """One action, if the episode still runs."""
        if not live.last.over:
            plain = str(action) if isinstance(action, str) else action
            self._write(live, act(live.env, plain, live.last, live.oracle))

    @precondition(lambda self: len(self.lives) > 1)
    @rule(action=st.runner().flatmap(lambda machine: machine.actions))
    def everywhere(self, action: Action) -> None:
        """The same action in every environment whose episode still runs, one after the other."""
        for live in self.lives:
            self.act(live, action)

    @precondition(lambda self: self.subject.has_oracle)
    @rule(live=episodes)
    def expert(self, live: Live) -> None:
        """What the environment's own expert would do."""
        self.act(live, EXPERT)

    @precondition(lambda self: len(self.lives) < _MOST)
    @rule(target=episodes, live=episodes)
    def fork(self, live: Live) -> Live | MultipleResults[Live]:
        """A copy of the environment in the middle of its episode; from then on the two have nothing in common."""
        try:
            env = copy.deepcopy(live.env)
        except Exception as error:
            if self.subject.is_tool_env and not isinstance(error, ForkError):
                raise
            return multiple()  # it says that it cannot be copied, and must go on as if nobody had asked
        twin = Live(env, live.seed, [list(moments) for moments in live.history], self._oracle(env))
        self.lives.append(twin)
        return twin

    @rule(live=episodes, seed=_SEEDS, pickled=st.booleans())
    def reopen(self, live: Live, seed: int, pickled: bool) -> None:
        """Closes an environment, perhaps pickles it, and begins another episode in it."""
        live.env.close()
        live.env = self._pickled(live.env) if pickled else live.env
        self._reset(live, seed)

    @rule(live=consumes(episodes))
    def end(self, live: Live) -> None:
        """Closes an environment for good; the others go on."""
        self.lives.remove(live)
        live.env.close()
        self._compare(live)

    def teardown(self) -> None:
        """Compares whatever is still open with new environments, and closes it."""
        try:
            while self.lives and sys.exc_info()[0] is None:  # after a failure there is nothing to be learnt here
                self.end(self.lives[-1])
        finally:
            for live in self.lives:
                live.env.close()

    def _reset(self, live: Live, seed: int | None) -> None:
        observation, info = live.env.reset(seed=seed)
        if seed is not None:
            self._compare(live)
            live.seed, live.history = seed, []
        live.history.append([])
        self._write(live, Moment(None, observation, 0.0, False, False, info))
        live.oracle = self._oracle(live.env)

    def _write(self, live: Live, moment: Moment) -> None:
        """Takes down what a reset or a step gave, after a look at whether it can be right."""
        episode = live.history[-1]
        after = f"after action {len(episode)}, {moment.action!r:.80}" if episode else "after the reset"
        space = live.env.observation_space
        if moment.observation not in space:
            raise Broken(f"an observation in {space}", f"{moment.observation!r:.200} {after}")
        if not isinstance(moment.reward, int | float) or not math.isfinite(moment.reward):
            raise Broken("a finite number as reward", f"{moment.reward!r} {after}")
        if not isinstance(moment.info, dict):
            raise Broken("a dict as info", f"{moment.info!r:.200} {after}")
        if self.subject.is_tool_env:
            if moment.info.get("turn") != len(episode):
                raise Broken(f"turn {len(episode)} in info", f"{moment.info.get('turn')!r} {after}")
            if ("score" in moment.info) != moment.terminated:
                raise Broken("a score at the end of the episode, and only then", f"info {sorted(moment.info)} {after}")
        episode.append(Moment(**{**vars(moment), "info": copy.deepcopy(moment.info)}))

    def _compare(self, live: Live) -> None:
        """Whether a new environment that is asked for the same gives the same."""
        with self.subject.env() as env:
            for number, episode in enumerate(live.history):
                observation, info = env.reset(seed=None if number else live.seed)
                again = [Moment(None, observation, 0.0, False, False, info)]
                for moment in episode[1:]:
                    if again[-1].over:
                        break
                    assert moment.action is not None
                    again.append(act(env, moment.action, again[-1]))
                changed = difference(tuple(again), tuple(episode))
                if changed:
                    which = f"in episode {number + 1} since reset(seed={live.seed})" if number else f"with seed {live.seed}"
                    raise Broken("what a new environment gives that is asked for the same, alone", f"{which}: {changed}")

    def _pickled(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """What comes back from pickle, where no episode is live; an environment that cannot be pickled stays itself."""
        try:
            frozen = pickle.dumps(env)
        except Exception:
            if isinstance(env.unwrapped, ToolEnv):
                raise
            return env
        env.close()
        return pickle.loads(frozen)  # type: ignore[no-any-return]

    def _oracle(self, env: gym.Env[Any, Any]) -> Any:
        return oracle_of(env) if self.subject.has_oracle else None
