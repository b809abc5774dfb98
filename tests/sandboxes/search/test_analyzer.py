"""What counts as a word."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.search.analyzer import Analyzer, AnalyzerMismatch


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Rivers of Talido", ["river", "talido"]),
        ("running runs run", ["run", "run", "run"]),
        ("It's O'Brien's; don\N{RIGHT SINGLE QUOTATION MARK}t", ["o'brien", "don't"]),
        ("Kovamir_Benu (1923) 3rd C", ["kovamir", "benu", "1923", "3rd", "c"]),
        ("café ﬁre \N{FULLWIDTH LATIN CAPITAL LETTER W}ide", ["café", "fire", "wide"]),
        ("  \n\t .,;!? ' '' \ud800\udfff", []),
        ("the of and", []),
        ("Zürich Łódź Ωmega 東京", ["zürich", "łódź", "ωmega", "東京"]),
    ],
)
def test_words(text: str, tokens: list[str]) -> None:
    assert Analyzer().tokens(text) == tokens


def test_composed_and_decomposed_accents_are_one_word() -> None:
    assert Analyzer().tokens("caf\N{LATIN SMALL LETTER E WITH ACUTE}") == Analyzer().tokens("cafe\N{COMBINING ACUTE ACCENT}")


def test_stems_and_stop_words_are_options() -> None:
    assert Analyzer(stemmer="", stop_words=frozenset({"rivers"})).tokens("The rivers running") == ["the", "running"]
    assert Analyzer(stemmer="german").tokens("Häuser") == Analyzer(stemmer="german").tokens("Häusern")
    with pytest.raises(ValueError, match=r"a stemmer is '' or one of .*english.*, found 'klingon'"):
        Analyzer(stemmer="klingon")


@given(st.sampled_from(["english", "german", ""]), st.sets(st.text(max_size=5)), st.text(max_size=200))
def test_settings_make_the_same_analyzer(stemmer: str, stop_words: set[str], text: str) -> None:
    analyzer = Analyzer(stemmer, frozenset(stop_words))
    again = Analyzer.from_settings(analyzer.settings())
    assert again == analyzer
    assert again.tokens(text) == analyzer.tokens(text)


def test_a_stemmer_that_changed_is_noticed() -> None:
    settings = Analyzer().settings()
    settings["sample"]["ponies"] = "pony"
    with pytest.raises(
        AnalyzerMismatch, match="makes 'poni' of 'ponies', the one that the index was built with made 'pony'"
    ):
        Analyzer.from_settings(settings)


def test_threads_share_an_analyzer() -> None:
    analyzer, words = Analyzer(), [f"relational{number} generously ponies" for number in range(200)]
    expected = [analyzer.tokens(text) for text in words]
    wrong = []

    def work() -> None:
        wrong.extend(text for text, tokens in zip(words, expected, strict=True) if analyzer.tokens(text) != tokens)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
