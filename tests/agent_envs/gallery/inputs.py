"""Broken environments: what a step takes."""

from __future__ import annotations

import re
import string

from gallery.words import Outcome, Words


class HalfOpenTag(Words):
    """The parser takes it for granted that a tag that was opened is closed."""

    def read(self, action: str) -> str:
        if "<answer>" in action:
            action = action[action.index("<answer>") + 8 : action.index("</answer>")]
        return super().read(action)


class NoSurrogates(Words):
    """The action is encoded, and a lone surrogate cannot be."""

    def read(self, action: str) -> str:
        return action.encode().decode()[:100]


class FixedAlphabet(Words):
    """Anything outside a fixed alphabet is an error inside."""

    def read(self, action: str) -> str:
        return "".join(string.printable[string.printable.index(letter)] for letter in action)[:100]


class QuadraticParser(Words):
    """A pattern that looks for its end anew from every place where it might begin."""

    def read(self, action: str) -> str:
        return super().read(re.sub(r"<.*?</end>", "", action))


class ExponentialParser(Words):
    """A repetition in a repetition: thirty characters take minutes."""

    def read(self, action: str) -> str:
        return super().read(action if re.fullmatch(r"(?:[a-z]+ ?)+", action) else "")


class TakesAnything(Words):
    """Whatever it is given becomes text: None is an attempt to answer like any other."""

    def step(self, action: str) -> Outcome:
        return super().step(str(action))


class CountsWhatItRefuses(Words):
    """A turn is used up before the action is looked at."""

    def step(self, action: str) -> Outcome:
        if not isinstance(action, str):
            self.guesses.append("")
        return super().step(action)


class WrongError(Words):
    """What is no text fails somewhere deep inside, with whatever exception that gives."""

    def step(self, action: str) -> Outcome:
        return super().step(action.strip() and action)
