r"""Whether a short answer says what a gold answer says: exact match and F1, as the scripts of three data sets have them.

SQuAD 1.1 (Rajpurkar et al. 2016), SQuAD 2.0 (Rajpurkar et al. 2018) and HotpotQA (Yang et al. 2018) normalise alike and
take the best of several gold answers. They differ in two corners, which their names as ``rules`` stand for:

========== ==================================================== =====================================================
rules      F1 of yes, no, noanswer against anything else        texts of which nothing is left
========== ==================================================== =====================================================
hotpotqa   0, whatever words they share                         exact match with each other, F1 0
squad      by the words they share                              exact match with each other, F1 0
squad2     by the words they share                              no gold answers unless there is no other; then exact
                                                                match and F1 1, as for a question without an answer
========== ==================================================== =====================================================
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from agent_envs.actions import last_boxed
from agent_envs.task import Task
from agent_envs.verifiers import Verdict, Verifier

Rules = Literal["hotpotqa", "squad", "squad2"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ALONE = frozenset({"yes", "no", "noanswer"})
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words parted by single blanks: as all three scripts do.

    Example:
        >>> normalise_answer("The  Beatles' (first) an-them!")
        'beatles first anthem'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str], rules: Rules = "hotpotqa") -> bool:
    """Whether the answer and a gold answer are the same once they are normalised.

    Args:
        answer: Any text.
        golds: The gold answers. Without any nothing matches, except by the rules of ``"squad2"``, where that says that the
            question has no answer.
        rules: Whose script; see the module.

    Example:
        >>> exact_match("the Eiffel Tower.", ["Eiffel tower"]), exact_match("Paris or London", ["Paris"])
        (True, False)
    """
    return normalise_answer(answer) in _normalised(golds, rules)


def f1(answer: str, golds: Sequence[str], rules: Rules = "hotpotqa") -> float:
    """The harmonic mean of precision and recall of the answer's words, as bags, against the best-fitting gold answer.

    Args:
        answer: Any text.
        golds: The gold answers; without any it is 0, except by the rules of ``"squad2"``, as for `exact_match`.
        rules: Whose script; see the module.

    Returns:
        From 0 to 1, to the last bit what the script has.

    Example:
        >>> f1("Paris or London", ["Paris", "Paris, France"]), f1("yes, it is", ["yes"]), f1("yes, it is", ["yes"], "squad")
        (0.5, 0.0, 0.5)
    """
    said = normalise_answer(answer)
    words = Counter(said.split())
    return max((_f1(said, words, gold, rules) for gold in _normalised(golds, rules)), default=0.0)


class QAVerifier(Verifier):
    r"""Judges an answer by the words that it shares with the gold answers.

    Judged is the content of the answer's last ``\boxed{}``, or the whole text where there is none; one ``\text{}`` around
    all of it is taken off. Success is exact match unless a threshold says otherwise: F1 pays a share for "Paris or London",
    so that it is a fine reward, but no proof that the answer was known.

    A gold answer of which normalisation leaves nothing, such as "A" or "+", is matched by exactly that text only (case and
    white space aside). The scripts of HotpotQA and SQuAD 1.1 let every article match it, and no answer at all.

    Args:
        metric: What ``accuracy`` is: ``"f1"``, which the ARPO and RAPO papers pay, or ``"em"``, exact match as 0 or 1.
        threshold: Accept an answer from this F1 on, whatever the metric; None for exact matches only.
        rules: Whose script is followed; see `agent_envs.verifiers.qa`.

    Raises:
        ValueError: An argument is none of those it may be.

    Example:
        >>> QAVerifier().verify(r"It is \boxed{the Paris of Texas}", Task("1", "Where?", ("Paris, Texas",)))
        Verdict(accuracy=0.8, success=False)
    """

    def __init__(
        self, metric: Literal["f1", "em"] = "f1", threshold: float | None = None, rules: Rules = "hotpotqa"
    ) -> None:
        if metric not in ("f1", "em"):
            raise ValueError(f"metric is 'f1' or 'em', found {metric!r}")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold is an F1 above 0 and up to 1, or None for exact match, found {threshold!r}")
        if rules not in get_args(Rules):
            raise ValueError(f"rules are one of {', '.join(get_args(Rules))}, found {rules!r}")
        self.metric = metric
        self.threshold = threshold
        self.rules = rules

    def verify(self, answer: str, task: Task) -> Verdict:
        """Compares with every gold answer, in time that grows with the lengths."""
        answer = read_answer(answer)
        if _letters(answer) in map(_letters, task.answers):
            return Verdict(1.0, True)
        golds = [gold for gold in task.answers if normalise_answer(gold)]
        exact, overlap = exact_match(answer, golds, self.rules), f1(answer, golds, self.rules)
        success = exact if self.threshold is None else overlap >= self.threshold
        return Verdict(overlap if self.metric == "f1" else float(exact), success)


def read_answer(text: str) -> str:
    r"""What counts of an answer: the inside of its last ``\boxed{}`` if it has one, and of a ``\text{}`` around all of that.

    Example:
        >>> read_answer(r"So it is \boxed{\text{Paris} }.")
        'Paris'
    """
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).strip()
    wrapped = _TEXT.fullmatch(text)
    return wrapped[1].strip() if wrapped else text


def _normalised(golds: Sequence[str], rules: Rules) -> list[str]:
    normalised = [normalise_answer(gold) for gold in golds]
    return [gold for gold in normalised if gold] or [""] if rules == "squad2" else normalised


def _f1(said: str, words: Counter[str], gold: str, rules: Rules) -> float:
    if rules == "squad2" and not (said and gold):
        return float(said == gold)
    if rules == "hotpotqa" and said != gold and (said in _ALONE or gold in _ALONE):
        return 0.0
    gold_words = Counter(gold.split())
    shared = (gold_words & words).total()  # this way round it takes as long as the gold answer is, whatever was said
    if not shared:
        return 0.0
    precision, recall = shared / words.total(), shared / gold_words.total()
    return 2 * precision * recall / (precision + recall)


def _letters(text: str) -> str:
    return " ".join(text.lower().split())
