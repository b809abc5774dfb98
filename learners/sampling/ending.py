"""Where an action ends: at an end-of-turn token, at a stop string, or at its limit.

A stop string is looked for in the texts of the tokens, joined, and ends the action with the token that completes it: tokens
are never cut.
"""

from __future__ import annotations

from collections.abc import Callable

from learners.sampling.sampler import Decoding, StopReason


class Ending:
    """The end of one action, token by token.

    Args:
        decoding: Its stop strings and its limit.
        eos: Ids that end an assistant's turn.
        text_of: The text of a token.

    Example:
        >>> ending = Ending(Decoding(stop=("b.",), max_tokens=9), frozenset({0}), "!ab.".__getitem__)
        >>> [ending.after(token) for token in (1, 2, 3)]
        [None, None, 'stop']
    """

    def __init__(self, decoding: Decoding, eos: frozenset[int], text_of: Callable[[int], str]) -> None:
        self._decoding, self._eos, self._text_of = decoding, eos, text_of
        self._longest = max(map(len, decoding.stop), default=0)
        self._tail, self._written = "", 0

    def after(self, token: int) -> StopReason | None:
        """Why the action ends with this token, or None where it goes on."""
        self._written += 1
        if token in self._eos:
            return "eos"
        if self._longest:
            text = self._text_of(token)
            self._tail = (self._tail + text)[-(self._longest + len(text)) :]
            if any(string in self._tail for string in self._decoding.stop):
                return "stop"
        return "length" if self._written >= self._decoding.max_tokens else None
