"""Promises about what an episode of a ``ToolEnv`` tells and pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agent_envs.env import ToolEnv
from agent_envs.faults import POLICY_FAULTS
from agent_envs.moves import Answer
from agent_envs.reward import REWARDS
from agent_envs.spaces import replace_surrogates
from agent_envs.task import NoOracle, UnknownTask
from agent_envs.testing.episode import Episode, Moment, Trace
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.stand_ins import (
    NONSENSE,
    call_of,
    has_syntax,
    only_tool_env,
    play_if_it_plays,
    play_out,
    short,
    texts_of,
    words,
    written,
)
from agent_envs.testing.subject import Subject

_KEYS: Mapping[str, type] = {
    "task_id": str,
    "turn": int,
    "tool": str,
    "action_valid": bool,
    "action_chars": int,
    "policy_fault": str,
    "tool_calls": int,
}
_UNREAD = ("no_action", "unclosed_think", "unknown_tool", "bad_arguments", "too_long")
_GARBAGE = ("", " ", "\n", "?", "_", "()", "{}", "the", "None", "nan", NONSENSE, "I do not know.", r"\boxed{}", "</answer>")


def _info_is_true(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        trace = play_if_it_plays(env, episode) or ()
        before: Mapping[str, Any] = {"tool_calls": 0}
        for turn, moment in enumerate(trace):
            wrong = _wrong_types(moment.info) or _wrong_values(inner, turn, moment, before)
            if wrong:
                expected, key = wrong
                place = f"after action {turn}" if turn else "after reset"
                raise Broken(f"{expected} {place}", f"info[{key!r}] is {short(moment.info.get(key, 'missing'))}", trace)
            before = moment.info


def _wrong_types(info: Mapping[str, Any]) -> tuple[str, str] | None:
    """What was expected, and the key."""
    for key, kind in _KEYS.items():
        if key not in info or type(info[key]) is not kind:
            return f"info[{key!r}] of type {kind.__name__}", key
    return None


def _wrong_values(inner: ToolEnv, turn: int, moment: Moment, before: Mapping[str, Any]) -> tuple[str, str] | None:
    info = moment.info
    fault, tool = info["policy_fault"], info["tool"]
    end, read_fault = _read(inner, moment.action) if moment.action is not None else (0, "")
    names = [tool.name for tool in inner.tools]
    calls = info["tool_calls"] - before["tool_calls"]
    allowed = (0,) if not tool else (0, 1) if fault == "bad_arguments" else (1,)  # a tool itself may find them bad
    checks = (
        ("task_id", info["task_id"] == inner.task.id, f"the task's id {inner.task.id!r}"),
        ("turn", info["turn"] == turn, f"the turn {turn}"),
        ("tool", tool in ("", *names), f"the name of a tool, one of {names}, or ''"),
        ("policy_fault", fault in ("", *POLICY_FAULTS), "a kind of agent_envs.faults.POLICY_FAULTS, or ''"),
        ("policy_fault", not read_fault or fault == read_fault, f"the fault {read_fault!r} that the format finds"),
        ("action_chars", info["action_chars"] == end, f"the {end} characters of the action that count"),
        ("action_valid", info["action_valid"] == (fault not in _UNREAD), f"validity that fits the fault {fault!r}"),
        ("tool_calls", calls in allowed, f"{' or '.join(str(before['tool_calls'] + more) for more in allowed)} tool calls"),
    )
    return next(((expected, key) for key, right, expected in checks if not right), None)


def _read(inner: ToolEnv, action: str) -> tuple[int, str]:
    """How many characters of an action count, and what is wrong with it, by the environment's own format."""
    if len(action) > inner.max_action:
        return inner.max_action, "too_long"
    read = inner.format.parse(replace_surrogates(action), inner.tools)
    return read.end, read.fault


def _score_is_right(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        trace = list(play_if_it_plays(env, episode) or ())
        last = written(inner, Answer(NONSENSE)) or ""
        while trace and not trace[-1].over and len(trace) <= inner.max_turns:
            action = last if episode.at % 2 else ""
            trace.append(Moment(action, *env.step(action)))
        for turn, moment in enumerate(trace):
            wrong = _wrong_at_the_end(inner, tuple(trace)) if moment.terminated else _wrong_on_the_way(turn, moment)
            if wrong:
                raise Broken(*wrong, tuple(trace))


def _wrong_on_the_way(turn: int, moment: Moment) -> tuple[str, str] | None:
    """What was expected, what was found."""
    if moment.reward != 0.0:
        return "a reward of 0 before the end", f"{moment.reward!r} after action {turn}"
    paid = [key for key in ("score", "success") if key in moment.info]
    if paid:
        return "score and success at the end and only then", f"{paid} in info after {f'action {turn}' if turn else 'reset'}"
    return None


def _wrong_at_the_end(inner: ToolEnv, trace: Trace) -> tuple[str, str] | None:
    info = trace[-1].info
    score, success = info.get("score"), info.get("success")
    if type(success) is not bool:
        return "info['success'] as a bool at the end", f"{success!r}"
    if not isinstance(score, dict) or set(score) != set(REWARDS):
        return f"info['score'] with {list(REWARDS)} at the end", short(score)
    if not all(type(part) is float and math.isfinite(part) for part in score.values()):
        return "parts of the score that are finite floats", short(score)
    paid = sum(moment.reward for moment in trace)
    if not math.isclose(sum(score.values()), paid, abs_tol=1e-9):
        return "parts of the score that sum to the return", f"{score}, a sum of {sum(score.values()):g}; return {paid:g}"
    if not 0.0 <= score["accuracy"] <= 1.0:
        return "an accuracy from 0 to 1", f"{score['accuracy']!r}"
    kept = all(_well_formed(inner, moment.action or "") for moment in trace[1:]) and _answers(inner, trace[-1].action or "")
    expected = -1.0 if "format" in inner.rewards and not kept else 0.0
    if score["format"] != expected:
        what = "is kept" if kept else "is broken, or there is no answer,"
        return f"a part 'format' of {expected:g}, since the format {what}", f"{score['format']:g}"
    if (score["accuracy"] == 0.0 or expected) and score["tool_bonus"] != 0.0:
        return "no tool bonus without accuracy", f"{score}"
    unpaid = {part: value for part, value in score.items() if value and part not in inner.rewards}
    if unpaid:
        return f"no reward but for {list(inner.rewards)}", f"{unpaid}"
    return None


def _well_formed(inner: ToolEnv, action: str) -> bool:
    text = replace_surrogates(action)
    return len(text) <= inner.max_action and inner.format.parse(text, inner.tools).well_formed


def _answers(inner: ToolEnv, action: str) -> bool:
    return isinstance(inner.format.parse(replace_surrogates(action), inner.tools).move, Answer)


def _oracle_succeeds(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        for split in inner.tasks.splits:
            inner.split = split
            try:
                observation, info = inner.reset(seed=episode.seed)  # an oracle reads what no wrapper has changed
                oracle = inner.oracle()
            except UnknownTask:
                continue  # a split without tasks
            except NoOracle as none:
                raise NotAsked(str(none)) from None
            trace = [Moment(None, observation, 0.0, False, False, info)]
            where = f"of the task {inner.task.id!r} in split {split!r}"
            while not trace[-1].over and len(trace) <= inner.max_turns:
                try:
                    action = oracle(trace[-1].observation)
                except Exception as error:
                    if inner.tools and not any(call_of(inner, tool) for tool in inner.tools):
                        raise NotAsked(f"the format {inner.format.name!r} has no calls of tools: {error}") from None
                    found = f"{type(error).__name__}: {error} at action {len(trace)}"
                    raise Broken(f"an action of the oracle {where}", found, tuple(trace)) from error
                trace.append(Moment(action, *inner.step(action)))
            info = trace[-1].info
            if not trace[-1].terminated:
                raise Broken(f"that the oracle answers within {inner.max_turns} actions {where}", "no answer", tuple(trace))
            full = 1.0 if "accuracy" in inner.rewards else 0.0
            if not info["success"] or info["score"]["accuracy"] != full or info["score"]["format"]:
                found = f"success {info['success']}, score {info['score']} after {len(trace) - 1} actions"
                raise Broken(f"success and an accuracy of {full:g} for the oracle {where}", found, tuple(trace))


def _garbage_earns_nothing(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        env.reset(seed=episode.seed)
        golds = inner.task.answers
        drawn = texts_of(episode.actions)
        for text in (*_GARBAGE, *drawn):
            if not _is_garbage(text, golds):
                continue
            action = written(inner, Answer(text))
            if action is not None:
                _expect_nothing(f"the answer {short(text)}", play_out(env, episode.seed, [action]), golds)
        if has_syntax(inner):
            unanswered = tuple(text for text in drawn if not _answers(inner, text))
            without = Episode(episode.seed, (*unanswered, *[""] * inner.max_turns))
            _expect_nothing("an episode without an answer", play_if_it_plays(env, without) or (), golds)


def _is_garbage(text: str, golds: tuple[str, ...]) -> bool:
    """Whether nobody could take a text for one of the gold answers."""
    if not all(map(words, golds)):
        return False
    number = any(character.isnumeric() for gold in golds for character in gold)
    if number and any(character.isnumeric() for character in text):
        return False  # it may be the same number, written otherwise
    return not any(words(text) & words(gold) for gold in golds)


def _expect_nothing(what: str, trace: Trace, golds: tuple[str, ...]) -> None:
    if not trace or not trace[-1].terminated:
        return
    info = trace[-1].info
    if info["success"] or info["score"]["accuracy"] != 0.0:
        raise Broken(
            f"accuracy 0 and no success for {what}",
            f"accuracy {info['score']['accuracy']:g}, success {info['success']}, where the gold answers are {list(golds)}",
            trace,
        )


PROMISES = (
    Promise("counters", "info says at every step what was done and how often, in the documented types.", _info_is_true),
    Promise("score", "The score comes at the end and only then, and its parts sum to the return.", _score_is_right),
    Promise("oracle", "The oracle succeeds with accuracy 1 in every split, within max_turns.", _oracle_succeeds),
    Promise("garbage", "Garbage, nothing at all and no answer have accuracy 0.", _garbage_earns_nothing),
)
