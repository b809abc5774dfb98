"""Promises about what a step takes: a policy writes any text, and only text is an action."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from agent_envs.testing.episode import Action, Episode, Trace
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.record import Misshapen, Recorder, deviation, record, short, told
from agent_envs.testing.subject import Subject

HARD_TEXTS: Sequence[str] = (
    "",
    " \t\r\n",
    "\0",
    "".join(map(chr, range(32))) + "\x7f\x80",
    "\ud800",
    "a\udfff\ud83db",
    "\u202e\u200b\ufeff\u2028\U0010ffff",
    "<",
    "<think>",
    "<answer>",
    "</answer>",
    "<answer>\\boxed{",
    "<think><answer>1</think>",
    "<tool_call>{",
    "<|im_end|>",
    '{"name": ',
    "[[[(((",
    "'\"\\",
    "%s %d {} {0} {x}",
    "0",
    "-1",
    "nan",
    "None",
    "x" * 100_000,
    "\U0001f600" * 100_000,
    "<a>" * 30_000,
)
"""Texts at which parsers break; they are asked beside those that are drawn."""

NO_TEXTS: Sequence[Any] = (b"text", 1, 0.5, None, ["text"], {"text": "text"})
"""What is no text, and therefore no action."""

SHAPES: Sequence[tuple[str, str, str]] = (
    ("", "a", "!"),
    ("", "a ", "!"),
    ("", "1", "x"),
    ("", "\n", "x"),
    ("", "<", ""),
    ("", "<a", ""),
    ("", "</", ""),
    ("", "<think>", ""),
    ("<think>", "</think><think>", ""),
    ("<answer>", "a ", ""),
    ("", "<answer>", ""),
    ("", "\\boxed{", ""),
    ("\\boxed", "{", ""),
    ("", '{"a":', ""),
    ("", "[", ""),
    ("", '\\"', ""),
    ("```", "`", ""),
)
"""Beginning, what is repeated, end. A pattern that tries every way of reading takes quadratic time on them, or worse."""

SIZES = (*range(8, 33), 64, 128, 256, 512, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 100_000)
"""Characters of a text that is timed. One by one at first, so that exponential time is seen before it never ends."""

SECONDS = 2.0
"""What the length of an action may add to the time that a step takes."""


def drawn_or_hard(episode: Episode) -> Sequence[Action]:
    """An episode's actions; for the empty one, which is always asked, the texts at which parsers break."""
    return episode.actions or HARD_TEXTS


def _any_text(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        run = Recorder(env)
        run.reset(episode.seed)
        for action in drawn_or_hard(episode):
            if run.record.over:
                run.reset(episode.seed)
            played = run.step(action)
            if played.raised is not None and played.action is not None and not isinstance(played.raised, Misshapen):
                raise Broken("any text to be taken as an action", f"{told(played.raised)}, at {short(played.action)}")


def _no_text(subject: Subject, episode: Episode) -> None:
    with subject.env() as plain, subject.env() as env:
        expected = record(plain, episode)
        run = Recorder(env)
        run.reset(episode.seed)
        for number, action in enumerate((*episode.actions, None)):
            if run.record.over:
                break
            if number == min(episode.at, len(episode.actions)):
                for value in NO_TEXTS:
                    _must_refuse(env, value, expected.trace)
            if action is not None:
                run.step(action)
        changed = deviation(subject, episode.seed, expected, run.record)
        if changed:
            raise Broken("an action that is no text to leave the episode as it is", changed, expected.trace)


def _must_refuse(env: gym.Env[Any, Any], value: Any, trace: Trace) -> None:
    expected = f"a TypeError for the action {value!r}, which is no text"
    try:
        env.step(value)
    except TypeError:
        return
    except Exception as error:
        raise Broken(expected, told(error), trace) from error
    raise Broken(expected, "that it was taken", trace)


def _any_length(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        longest = getattr(env.action_space, "max_length", SIZES[-1])  # what is longer may never be read
        sizes = sorted({*SIZES, min(longest, SIZES[-1])})
        usual = _seconds(env, "a")
        for begin, body, end in SHAPES:
            took = 0.0
            for size in sizes:
                text = (begin + body * size)[: size - len(end)] + end
                before, took = took, _seconds(env, text)
                if took > SECONDS + 5 * usual:
                    took = min(took, _seconds(env, text))  # once more, in case the machine was busy with something else
                if took > SECONDS + 5 * usual:
                    raise Broken(
                        f"a step to take no more than {SECONDS:g} s longer for a long action than for a short one",
                        f"{took:.1f} s for {begin + body * 3!r}..., {size} characters of it; "
                        f"{before:.2g} s for the length before, {usual:.2g} s for 'a'",
                    )


def _seconds(env: gym.Env[Any, Any], text: str) -> float:
    """How long a step takes; one that raises counts as well, since another promise is about that."""
    run = Recorder(env)
    run.reset(0)
    begin = time.perf_counter()
    run.step(text)
    return time.perf_counter() - begin


PROMISES = (
    Promise("any text", "Any text is taken as an action: surrogates, control bytes, half-open tags, 100 kB.", _any_text),
    Promise("only text", "What is no text is a TypeError, and leaves the episode as it is.", _no_text),
    Promise("any length", "A long action is read in about the time that its length asks for.", _any_length, once=True),
)
