"""What counts as a word: the one way in which passages and queries are cut up.

An index keeps the analyzer that it was built with and reads every query with it, so that the two cannot differ. Its settings
are saved with the index, together with the stems of some words: should another version of the stemmer ever cut a word
differently, loading the index says so instead of finding less.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import Stemmer

_CURLED = "\N{RIGHT SINGLE QUOTATION MARK}"
_WORD = re.compile(rf"[^\W_]+(?:['{_CURLED}][^\W_]+)*")

ENGLISH_STOP_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
        "to was will with"
    )
)
"""Words that say nothing about a passage; the list that Lucene's English analysis leaves out."""

_SAMPLE: tuple[str, ...] = tuple(
    _WORD.findall(
        "abilities agreed babies controlling dying early emotional factories formalize generously happiness hopefully "
        "hoping inning luxuriously national news operator ponies proceed relational replacement running skies skis sensibly "
        "sized succeeding tanned triplicate ties university usefulness vietnamization visibly writing youth's"
    )
)


class AnalyzerMismatch(ValueError):
    """Words would be cut up otherwise than when the index was built."""


@dataclass(frozen=True)
class Analyzer:
    """Cuts text into tokens: lower-case words without stop words and possessive endings, stemmed.

    Letters and digits make a word, an apostrophe within one belongs to it, an underscore parts two. Compatibility forms of
    one character (full-width letters, ligatures, composed and decomposed accents) count as the same.

    Args:
        stemmer: Name of a Snowball algorithm; "" leaves words as they are.
        stop_words: Lower-case words that are left out.

    Raises:
        ValueError: There is no such stemmer.

    Example:
        >>> Analyzer().tokens("The Universities' oldest university: it's O'Brien's.")
        ['universiti', 'oldest', 'universiti', "o'brien"]
    """

    stemmer: str = "english"
    stop_words: frozenset[str] = ENGLISH_STOP_WORDS

    def __post_init__(self) -> None:
        if self.stemmer and self.stemmer not in Stemmer.algorithms():
            raise ValueError(f"a stemmer is '' or one of {', '.join(Stemmer.algorithms())}, found {self.stemmer!r}")

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, in order, repeated ones too."""
        return self.stems(self.words(text))

    def words(self, text: str) -> list[str]:
        """The words of a text that are not left out, not yet stemmed."""
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        words: Iterable[str] = _WORD.findall(text.lower())
        if "'" in text or _CURLED in text:
            words = (word.replace(_CURLED, "'").removesuffix("'s") for word in words)
        return [word for word in words if word not in self.stop_words]

    def stems(self, words: list[str]) -> list[str]:
        """The token of each word."""
        if not self.stemmer:
            return words
        # One for each call: it holds the word at work, so threads must not share it, and it costs less than a microsecond.
        stems: list[str] = Stemmer.Stemmer(self.stemmer, 0).stemWords(words)
        return stems

    def settings(self) -> dict[str, Any]:
        """What `from_settings` makes this analyzer of again; JSON values."""
        sample = dict(zip(_SAMPLE, self.stems(list(_SAMPLE)), strict=True))
        return {"stemmer": self.stemmer, "stop_words": sorted(self.stop_words), "sample": sample}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Analyzer:
        """The analyzer that has these settings.

        Raises:
            AnalyzerMismatch: The stemmer that is installed cuts a word otherwise than it did then.
        """
        analyzer = cls(settings["stemmer"], frozenset(settings["stop_words"]))
        sample: Mapping[str, str] = settings["sample"]
        for (word, then), now in zip(sample.items(), analyzer.stems(list(sample)), strict=True):
            if now != then:
                raise AnalyzerMismatch(
                    f"the {analyzer.stemmer} stemmer of PyStemmer {Stemmer.version()} makes {now!r} of {word!r}, the one "
                    f"that the index was built with made {then!r}"
                )
        return analyzer
