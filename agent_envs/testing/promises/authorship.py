"""Promises about who earned a reward: only what the policy wrote as its answer, when it knew one, and was not told it.

The gold answer is put wherever else it can stand: what tools return, what they are given, thoughts, what is cut off. The
tools are stand-ins, so no engine runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agent_envs.env import ToolEnv
from agent_envs.moves import Answer
from agent_envs.testing.episode import Episode, Trace
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.stand_ins import (
    NONSENSE,
    call_of,
    has_syntax,
    let_tools_run,
    occurs,
    only_tool_env,
    play_out,
    words,
    written,
)
from agent_envs.testing.subject import Subject

_TASKS_LOOKED_AT = 64
_TASKS_ENOUGH = 12
_TASKS_LEAST = 4
_OTHER_TASKS = 20
_COUNTERS = ("turn", "action_chars", "tool_calls", "score")


def _only_answers_earn(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        env.reset(seed=episode.seed)
        gold = next((answer for answer in inner.task.answers if words(answer)), "")
        right, wrong = written(inner, Answer(gold)), written(inner, Answer(NONSENSE))
        if right is None or wrong is None or not gold:
            return
        env.close()
        let_tools_run(
            inner, lambda tool, /, **arguments: f"{arguments}\n{gold}\n{right}\nThe answer is {gold}.\n#### {gold}"
        )
        told_nothing = {None: play_out(env, episode.seed, []), wrong: play_out(env, episode.seed, [wrong])}
        for place, actions, answer in _places(inner, gold, right, wrong):
            trace = play_out(env, episode.seed, actions)
            earned, usual = _earned(trace), _earned(told_nothing[answer])
            if earned > usual:
                raise Broken(
                    f"accuracy {usual[1]:g} and no success, where the gold answer {gold!r} stands only {place}",
                    f"accuracy {earned[1]:g}, success {earned[0]}",
                    trace,
                )


def _places(inner: ToolEnv, gold: str, right: str, wrong: str) -> Iterator[tuple[str, Sequence[str], str | None]]:
    """Where the gold answer can stand, the actions that put it there, and which answer they give in the end."""
    stops = inner.format.stop(inner.tools)
    for tool in inner.tools:
        call, telling = call_of(inner, tool), call_of(inner, tool, right)
        if call is not None:
            yield f"in a result of {tool.name}", [call], None
            yield f"in a result of {tool.name}, before a wrong answer", [call, wrong], wrong
            if call.endswith(stops):
                yield f"behind a call of {tool.name}, where it is cut off", [call + right], None
        if telling is not None and telling != call:
            yield f"in the arguments of {tool.name}", [telling], None
    if wrong.endswith(stops):
        yield "behind another answer, where it is cut off", [wrong + right], wrong
    thought = _thought(inner, right)
    if thought:
        yield "in a thought", [thought], None
        yield "in a thought, before a wrong answer", [thought + wrong], wrong
    if has_syntax(inner):
        yield "in words that are no answer", [f"The answer is {gold}."], None
        result = inner.format.observe(right).text
        if right not in result:  # else it is an answer
            yield "in a result that the policy wrote itself", [result], None


def _thought(inner: ToolEnv, text: str) -> str:
    """A thought as the format has it; "" where it has none."""
    tag = getattr(inner.format, "think", None)
    if isinstance(tag, str):  # a format that reads thoughts wrongly may refuse to write them
        return f"<{tag}>{text}</{tag}>"
    action = written(inner, Answer(NONSENSE, thought=text)) or ""
    return action[: inner.format.parse(action, inner.tools).begin]


def _earned(trace: Trace) -> tuple[bool, float]:
    """Success and accuracy."""
    info = trace[-1].info
    return (info["success"], info["score"]["accuracy"]) if trace[-1].terminated else (False, 0.0)


def _hedges_fail(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        env.reset(seed=episode.seed)
        golds = inner.task.answers
        other = _other_answer(inner, episode.seed)
        if not golds or other is None or _succeeds(env, episode, inner, other):
            return
        gold = golds[0]
        for hedge in (
            f"{gold} or {other}",
            f"{other} or {gold}",
            f"{gold}, {other}",
            f"{other} and {gold}",
            f"either {other} or {gold}",
            f"{gold}\n{other}",
        ):
            trace = _succeeds(env, episode, inner, hedge)
            if trace:
                raise Broken(
                    "no success for an answer that names several candidates",
                    f"{hedge!r} is accepted, where the gold answers are {list(golds)}",
                    trace,
                )


def _other_answer(inner: ToolEnv, seed: int) -> str | None:
    """The answer to another task, which could not be taken for one to this."""
    golds = set().union(*map(words, inner.task.answers))
    for number in range(_OTHER_TASKS):
        task = inner.tasks.sample(np.random.default_rng([seed, number]), inner.split)
        for answer in task.answers:
            if golds and words(answer) and not words(answer) & golds:
                return answer
    return None


def _succeeds(env: Any, episode: Episode, inner: ToolEnv, answer: str) -> Trace:
    """The episode that this answer ends with success; () if it does not."""
    action = written(inner, Answer(answer))
    if action is None:
        return ()
    trace = play_out(env, episode.seed, [action])
    return trace if _earned(trace)[0] else ()


def _gold_is_not_shown(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        seen: list[tuple[tuple[str, ...], Mapping[str, str]]] = []
        for seed in range(_TASKS_LOOKED_AT):
            observation, info = env.reset(seed=seed)
            golds = tuple(gold for gold in inner.task.answers if len(gold) > 1 and not occurs(gold, inner.task.question))
            if golds:
                seen.append((golds, _shown(env, inner, observation, info)))
            if len(seen) == _TASKS_ENOUGH:
                break
    pairs = [
        (golds, texts, other)
        for number, (golds, texts) in enumerate(seen)
        for other in [_with_other_golds(seen, number)]
        if other is not None
    ]
    if len(pairs) < _TASKS_LEAST:
        raise NotAsked("its gold answers stand in the questions, are all alike or are a letter long, in nearly all tasks")
    for place in sorted({place for _, texts, _ in pairs for place in texts}):
        shown = [
            gold
            for golds, texts, other in pairs
            for gold in golds
            if _tells(gold, texts.get(place, ""), other.get(place, ""))
        ]
        if len(set(shown)) > len(pairs) / 2:  # one may be there by chance
            found = f"{place} holds it in {len(shown)} of {len(pairs)} tasks, such as {shown[0]!r}"
            raise Broken("that the gold answer is not shown before the policy gives it", found)


def _shown(env: Any, inner: ToolEnv, observation: Any, info: Mapping[str, Any]) -> Mapping[str, str]:
    """All that an episode without a right answer shows, by its place."""
    opening = inner.format.opening(inner.task.question, inner.system_prompt, inner.tools)
    shown = {"the observation of reset": str(observation), "the opening": "\n".join(message.text for message in opening)}
    shown |= {f"info[{key!r}] of reset": str(value) for key, value in info.items() if key not in _COUNTERS}
    action = written(inner, Answer(NONSENSE)) if inner.max_turns == 1 else ""
    observation, _, over, *_, info = env.step(action or "")
    shown |= {f"info[{key!r}] after a wrong action": str(value) for key, value in info.items() if key not in _COUNTERS}
    return shown | ({} if over else {"the observation after a wrong action": str(observation)})


def _with_other_golds(seen: Sequence[tuple[tuple[str, ...], Mapping[str, str]]], number: int) -> Mapping[str, str] | None:
    """What was shown in another task with other gold answers."""
    golds = set(seen[number][0])
    return next((texts for others, texts in (*seen[number + 1 :], *seen[:number]) if not golds & set(others)), None)


def _tells(gold: str, text: str, other: str) -> bool:
    """Whether a text holds the gold answer, and the same place in another task does not."""
    return occurs(gold, text) and not occurs(gold, other)


PROMISES = (
    Promise("authorship", "Only what the policy wrote as its answer earns anything.", _only_answers_earn),
    Promise("hedges", "An answer that names several candidates is no success.", _hedges_fail),
    Promise("secrets", "Gold answers are not shown to the policy, nor told in info.", _gold_is_not_shown, once=True),
)
