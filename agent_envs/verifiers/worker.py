"""Runs inside a worker process: reads one request a line, writes one reply a line.

Not imported by the package but started as a script (`agent_envs.verifiers.pool`), because comparing two expressions can
hang or eat all memory, and a process is what can be killed. Nothing in here runs the policy's text as code: what would do
so in a library is replaced below.

A ``math`` worker takes ``{"golds": [...], "answer": "..."}``. A ``reasoning_gym`` worker takes ``{"dataset": ...,
"config": {...}}`` and replies with the item, or with its score if there is an ``"answer"``; it makes items here too, since
some of them depend on Python's hash seed, which is fixed in a worker. A score is ``{"score": number}``; ``{"error": "..."}``
says that the worker itself is at a loss.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import tokenize
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]

_MEMORY_BYTES = 4 << 30

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[\s'-]+[^\W\d_]+)*")
_NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+")
_INDEX = re.compile(r"(?<=[A-Za-z}])[\^_](?:[0-9]|\{[0-9]{1,3}\})")  # the 2 of cm^2, the 1 of x_1
_PART = r"(?:\{\s*[+-]?[0-9.,]+\s*\}|[0-9])"
_FRACTION = re.compile(rf"[0-9]\s*/\s*[0-9]|\\[dt]?frac\s*{_PART}\s*{_PART}")

_NAMES = re.compile("sqrt|exp|log|ln|a?(?:sin|cos|tan)h?|cot|sec|csc|Abs|pi")


def math_handler() -> Handler:
    """1.0 where math-verify holds the answer equal to one of the golds, under three rules of ours; else 0.0.

    - A gold of words is matched as words: math-verify reads words as products of letters, so that anagrams are equal.
    - Where the gold is a number, the answer must be one: a calculation is no result, and repeating the question's own
      expression earns nothing.
    - The answer counts as a whole, so that a number somewhere in a sentence, or one of several, is no answer.
    """
    math_verify = importlib.import_module("math_verify")
    sympy = importlib.import_module("sympy")
    # One box around the whole text leaves math-verify nothing to pick from.
    extraction = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)

    def parse(text: str) -> list[Any]:
        found = math_verify.parse(
            rf"\boxed{{{text}}}",
            extraction,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
        return list(found)

    def is_number(value: Any) -> bool:
        if isinstance(value, sympy.Eq) and isinstance(value.lhs, sympy.Symbol):
            value = value.rhs
        if isinstance(value, sympy.FiniteSet) and len(value.args) == 1:
            value = value.args[0]
        if isinstance(value, sympy.Mul) and value.args[1:] == (sympy.UnevaluatedExpr(sympy.Rational(1, 100)),):
            value = value.args[0]  # per cent
        return isinstance(value, sympy.Number)

    def is_equal(gold: str, answer: str) -> bool:
        plain_gold, plain_answer = (_TEXT.sub(r"\1", text).casefold().strip() for text in (gold, answer))
        if plain_gold.split() == plain_answer.split():
            return True
        if _WORDS.fullmatch(plain_gold):
            return False
        golds = parse(gold)
        if not golds:
            return False
        number = isinstance(golds[0], sympy.Number)
        if number and not is_one_number(answer, fraction=not golds[0].is_Integer):
            return False
        answers = parse(answer)
        if not answers or (number and not is_number(answers[0])):
            return False
        return bool(math_verify.verify(golds, answers, timeout_seconds=None))

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        answer = strip_delimiters(request["answer"])
        try:
            return {"score": float(any(is_equal(strip_delimiters(gold), answer) for gold in request["golds"]))}
        except Exception:  # memory and recursion included: the answer's doing, since its golds are small
            return {"score": 0.0}

    return handle


def strip_delimiters(text: str) -> str:
    """The text without white space, a full stop and one pair of maths delimiters around it."""
    text = text.strip().removesuffix(".")
    for opening, closing in _DELIMITERS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : -len(closing)].strip()
    return text


def is_one_number(text: str, fraction: bool) -> bool:
    """Whether exactly one number is written in the text; ``fraction`` permits one fraction, with a whole part or without."""
    text = _INDEX.sub("", text)
    count = len(_NUMBER.findall(text))
    if fraction and len(_FRACTION.findall(text)) == 1:
        return count <= 3
    return count == 1


def reasoning_gym_handler() -> Handler:
    """Items of reasoning-gym data sets, and what a data set's own ``score_answer`` gives.

    Some scorers evaluate the answer as Python. While an answer is scored, ``eval`` reads literals only, and sympy's
    ``parse_expr`` refuses whatever is not arithmetic with numbers, single letters and well-known functions.

    A data set whose scorer accepts nothing at all, or nonsense, for this very item would accept anything; there, only the
    gold answer counts.
    """
    reasoning_gym = importlib.import_module("reasoning_gym")
    numpy_random = importlib.import_module("numpy.random")

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        # A few data sets draw from the global generators as well; this process has them to itself.
        random.seed(request["config"]["seed"])
        numpy_random.seed(request["config"]["seed"])
        dataset = reasoning_gym.create_dataset(request["dataset"], **request["config"])
        item = dataset[0]
        if "answer" in request:
            with _without_evaluation():
                return {"score": score(dataset, item, request["answer"].strip())}
        metadata = {key: value for key, value in item["metadata"].items() if is_json(value)}
        gold = None if item["answer"] is None else str(item["answer"])
        return {"question": item["question"], "gold": gold, "metadata": metadata}

    def score(dataset: Any, item: dict[str, Any], answer: str) -> float:
        if any(judge(dataset, item, nonsense) >= 1.0 for nonsense in ("", "no answer")):
            return float(answer == str(item["answer"]).strip())
        return judge(dataset, item, answer)

    def judge(dataset: Any, item: dict[str, Any], answer: str) -> float:
        try:
            return float(dataset.score_answer(answer, item))
        except Exception:  # what a scorer cannot read is not right
            return 0.0

    return handle


def is_json(value: Any) -> bool:
    """Whether the value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _without_evaluation() -> Iterator[None]:
    parser = importlib.import_module("sympy.parsing.sympy_parser")
    trusting = parser.parse_expr

    def parse_expr(text: str, local_dict: dict[str, Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        check_arithmetic(text, frozenset(local_dict or ()))
        return trusting(text, local_dict, *args, **kwargs)

    missing = object()
    changed: list[tuple[ModuleType, str, Any]] = []

    def replace(module: ModuleType, name: str, value: Any) -> None:
        changed.append((module, name, module.__dict__.get(name, missing)))
        setattr(module, name, value)

    for name, module in list(sys.modules.items()):
        if module is None:
            continue
        if module.__dict__.get("parse_expr") is trusting:
            replace(module, "parse_expr", parse_expr)
        if name.partition(".")[0] == "reasoning_gym":
            replace(module, "eval", ast.literal_eval)
    try:
        yield
    finally:
        for module, name, value in reversed(changed):
            if value is missing:
                delattr(module, name)
            else:
                setattr(module, name, value)


def check_arithmetic(text: str, names: frozenset[str]) -> None:
    """Raises ``ValueError`` unless the text is arithmetic in numbers, single letters, ``names`` and known functions."""
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        known = len(token.string) == 1 or _NAMES.fullmatch(token.string) or token.string in names
        if token.type == tokenize.NAME and (not known or before == "."):
            raise ValueError(f"{token.string!r} is no name of arithmetic")
        if token.type == tokenize.OP and token.string not in (
            "+",
            "-",
            "*",
            "/",
            "**",
            "//",
            "%",
            "^",
            "(",
            ")",
            ",",
            "!",
            "=",
        ):
            raise ValueError(f"{token.string!r} is no operator of arithmetic")
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            raise ValueError("a string is no arithmetic")
        before = token.string


HANDLERS: dict[str, Callable[[], Handler]] = {"math": math_handler, "reasoning_gym": reasoning_gym_handler}


def main(kind: str, seconds: float) -> None:
    """Answers requests until standard input closes.

    Args:
        kind: Which handler.
        seconds: Longest that a request may take. The parent kills a worker that takes longer; should the parent itself
            have died, the alarm does.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    try:
        handle = HANDLERS[kind]()
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=replies, flush=True)
        return
    print(json.dumps({"ready": kind}), file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
        try:
            reply = handle(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
