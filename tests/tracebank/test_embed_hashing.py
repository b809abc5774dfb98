"""The embedder without a model: what its vectors are, to the bit, and what they mean."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebank.embed.hashing import HashingEmbedder

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=())) | st.text("ab1 .+\n数é")


def wide(text: str) -> str:
    """The same characters of full width, as East Asian texts have them."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


TEXTS = (
    "What is 12*(7+3)?",
    "Who wrote 'The Long Winter'?\n<search>Long Winter author</search>\n<result>\nDoc 1: It was written by ...\n</result>\n",
    wide("Full") + wide("width") + ", \ufb01ne STRASSE Straße",
    "北京有多少人口?ひらがなとカタカナ。",
    "สวัสดีชาวโลก привет мир 안녕하세요",
    "x_1 = -3.5e+10; 🙂🙂 \u200d \ufeff ∑≤€ a\u0301\u0302",
    "the the the the the the the 0123456789abcdef0123456789abcdef",
    "?",
)


class TestBits:
    """The vectors themselves. `restated` says the same without a table, without numba, with integers of any size."""

    @pytest.mark.parametrize("dimension", [2, 3, 64, 128, 1000])
    def test_vectors_are_those_of_the_restatement(self, dimension: int) -> None:
        expected = np.array([restated(text, dimension) for text in TEXTS], np.float32)
        assert HashingEmbedder(dimension).embed(TEXTS).tobytes() == expected.tobytes()

    @settings(max_examples=200)
    @given(ANY_TEXT)
    def test_so_they_are_for_any_text(self, text: str) -> None:
        assert HashingEmbedder(16).embed([text])[0].tolist() == np.float32(restated(text, 16)).tolist()

    def test_they_are_pinned(self) -> None:
        """The hash was taken of what `restated` gives, so that the two cannot drift together."""
        for vectors in (np.array([restated(text, 128) for text in TEXTS]), HashingEmbedder().embed(TEXTS)):
            digest = hashlib.blake2b(vectors.astype("<f4").tobytes(), digest_size=16).hexdigest()
            assert digest == "0e0e7a5f61fb6102a03bc5a244fe88eb"

    def test_a_text_with_more_features_than_are_counted_together(self) -> None:
        word = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=540_000))
        assert HashingEmbedder(8).embed([word])[0].tolist() == np.float32(restated(word, 8)).tolist()

    def test_another_process_with_other_hash_seed_gives_the_same(self) -> None:
        program = (
            "import sys; from tracebank.embed.hashing import HashingEmbedder; "
            "sys.stdout.buffer.write(HashingEmbedder().embed(eval(sys.argv[1])).tobytes())"
        )
        run = subprocess.run(
            [sys.executable, "-c", program, repr(TEXTS)],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "7"},
        )
        assert run.stdout == HashingEmbedder().embed(TEXTS).tobytes()


class TestContract:
    @given(st.lists(ANY_TEXT, max_size=6), st.randoms())
    def test_neither_order_nor_company_matters(self, texts: list[str], rng: random.Random) -> None:
        embedder = HashingEmbedder(32)
        together = embedder.embed(texts)
        assert together.shape == (len(texts), 32)
        assert together.dtype == np.float32
        order = rng.sample(range(len(texts)), len(texts))
        assert np.array_equal(embedder.embed([texts[number] for number in order]), together[order])
        for text, vector in zip(texts, together, strict=True):
            assert np.array_equal(embedder.embed([text])[0], vector)

    @given(ANY_TEXT)
    def test_vectors_have_length_one_unless_the_text_is_blank(self, text: str) -> None:
        (vector,) = HashingEmbedder().embed([f"{text} word"])
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("text", ["", " ", "\n\t \r", "\u3000\u00a0\u200b"])
    def test_blank_texts_are_zero(self, text: str) -> None:
        assert not HashingEmbedder().embed([text]).any()

    def test_long_texts_between_short_ones(self) -> None:
        """Ten million characters, some of them accents in a row, which normalise in quadratic time if one lets them."""
        long = "a" + "\u0301\u0316" * 1_000_000 + " and so on" * 800_000
        alone, mixed = HashingEmbedder().embed(["short"]), HashingEmbedder().embed(["short", long, "short", ""])
        assert np.array_equal(mixed[0], alone[0])
        assert np.array_equal(mixed[2], alone[0])
        assert np.linalg.norm(mixed[1]) == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize(
        ("one", "other"),
        [("What is IT?", "what is it?"), (wide("Tokyo2020"), "tokyo2020"), ("\ufb01ne", "FINE"), ("é", "e\u0301")],
    )
    def test_case_width_and_composition_make_no_difference(self, one: str, other: str) -> None:
        assert np.array_equal(*HashingEmbedder().embed([one, other]))

    @pytest.mark.parametrize("dimension", [-1, 0, 1, 65_537])
    def test_other_dimensions_are_refused(self, dimension: int) -> None:
        with pytest.raises(ValueError, match=f"from 2 to 65536, found {dimension}"):
            HashingEmbedder(dimension)


class TestMeaning:
    """Histories of invented agents, told twice: the nearest key should be the one that tells of the same situation."""

    @pytest.mark.parametrize(("dimension", "level"), [(64, 0.9), (128, 0.95), (256, 0.95)])
    def test_the_same_situation_is_found_where_a_bag_of_words_misses_it(self, dimension: int, level: float) -> None:
        keys, queries = histories()
        assert recall(HashingEmbedder(dimension).embed, keys, queries) > level
        assert recall(bag_of_words, keys, queries) < 0.5

    @pytest.mark.parametrize(
        ("text", "near", "far"),
        [
            ("What is 3*(45+6)?", "Compute 3*(45+6).", "What is 3*(46+5)?"),
            ("北京有多少人口?", "北京的人口是多少?", "上海在哪个省?"),
            ("Сколько жителей в Москве?", "Число жителей Москвы", "Кто написал эту книгу?"),
            ("the director of Metropolis", "Metropolis (film), directed by", "the capital of the country"),
        ],
    )
    def test_the_nearer_text_is_the_more_alike(self, text: str, near: str, far: str) -> None:
        vectors = HashingEmbedder().embed([text, near, far])
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def restated(text: str, dimension: int) -> list[float]:
    """A vector by the description of its features alone."""
    bits, factor = (1 << 64) - 1, 0x9E3779B97F4A7C15
    if not text.isascii():
        cut, unbroken = [], 0
        for character in text:
            cut.append(character)
            unbroken = 0 if character.isspace() else unbroken + 1
            if unbroken == 256:
                cut.append(" ")
                unbroken = 0
        text = unicodedata.normalize("NFKC", "".join(cut))
    text = text.casefold()

    def mix(value: int) -> int:
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ value >> shift) * multiplier & bits
        return value ^ value >> 31

    def polynomial(start: int, characters: str) -> int:
        for character in characters:
            start = (start * factor + ord(character)) & bits
        return start

    sums = [0] * dimension
    table: dict[int, list[int]] = {}

    def spread() -> None:
        for key, weights in table.items():
            count = len(weights)
            power = int(math.log2(count))
            value = sum(weights) * (16 + 16 * power + (16 * (count - 2**power)) // 2**power) // count
            half = dimension // 2
            sums[(key % 2**31) * half // 2**31] += value if key >> 31 & 1 else -value
            sums[half + (key >> 32) % 2**31 * (dimension - half) // 2**31] += value if key >> 63 else -value
        table.clear()

    def add(feature: int, weight: int) -> None:
        table.setdefault(mix(feature) or 1, []).append(weight)
        if len(table) == 2**19:
            spread()

    before: tuple[int, int] | None = None
    for word in words(text):
        letters = kind(word[0]) == "letter"
        if letters:
            number = any("0" <= character <= "9" for character in word)
            weight = min(len(word), 8) + 12 * (number and len(word) <= 16)
        else:
            weight = 6 if kind(word[0]) == "ideograph" else 3
        whole = polynomial(1, word)
        add(whole, 2 * weight)
        if before:
            add((mix(before[0]) * factor + whole) & bits, before[1] + weight)
        if letters:
            marked = f" {word} "
            for at in range(len(marked) - 3):
                add(polynomial(2, marked[at : at + 4]), weight)
        before = whole, weight
    spread()
    square = 0.0
    for value in sums:
        square += float(value) * float(value)
    return [value / math.sqrt(square) if square else 0.0 for value in sums]


def words(text: str) -> list[str]:
    runs = itertools.groupby(text, kind)
    parts = (["".join(run)] if sort == "letter" else list(run) for sort, run in runs if sort != "blank")
    return list(itertools.chain.from_iterable(parts))


BLOCKS = {
    "blank": "0-20 7f-a0 2000-200f 2028-202f 205f-206f fe00-fe0f feff",
    "symbol": "21-2f 3a-60 7b-7e a1-bf d7 f7 2010-2027 2030-205e 2070-2bff 3000-3004 3008-303f 1f000-1ffff",
    "ideograph": "2e80-2fff 3005-3007 3040-9fff f900-faff 20000-3ffff",
}


@functools.cache
def kind(character: str) -> str:
    code = ord(character)
    for name, blocks in BLOCKS.items():
        for block in blocks.split():
            first, _, last = block.partition("-")
            if int(first, 16) <= code <= int(last or first, 16):
                return name
    return "letter"


def bag_of_words(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Counts of words, exactly, each as much worth as the next."""
    columns: dict[str, int] = defaultdict(lambda: len(columns))
    counted = [Counter(columns[word] for word in words(text.casefold())) for text in texts]
    vectors = np.zeros((len(texts), 1 << 14))
    for row, counts in enumerate(counted):
        vectors[row, list(counts)] = list(counts.values())
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recall(embed: Callable[[Sequence[str]], npt.NDArray[np.floating]], keys: list[str], queries: list[str]) -> float:
    vectors = embed([*keys, *queries])
    nearest = (vectors[len(keys) :] @ vectors[: len(keys)].T).argmax(1)
    return float((nearest == np.arange(len(keys))).mean())


def histories() -> tuple[list[str], list[str]]:
    """Situations as told by one of two agents, and as told by the other, who mistypes one letter in fifty.

    A bank holds both, so that what is told in the same way, and is about something else, lies near.
    """
    rng = random.Random(3)
    keys: list[str] = []
    queries: list[str] = []
    people = ["".join(rng.choices(("ka", "lo", "mir", "den", "tus", "vel", "bra", "sho"), k=3)).title() for _ in range(150)]
    for person in people:
        facts = (
            f"The birthplace is {rng.choice(people)}.",
            f"The best friend is {rng.choice(people)}.",
            f"Born in {len(keys)}.",
        )
        told = [
            f"Where was the best friend of {person} born?\n<think>I should look for {person} first.</think>"
            f"<search>{person}</search>\n<result>\n{person} is a painter. {' '.join(facts)}\n</result>\n",
            f"Tell me the birthplace of the best friend of {person}.\n<think>The article will say who that is.</think>"
            f"<search>{person} best friend</search>\n<result>\n{' '.join(facts[::-1])} {person} is a painter.\n</result>\n",
        ]
        rng.shuffle(told)
        keys.append(told[0])
        queries.append("".join(mistyped(rng, character) for character in told[1]))
    for _ in range(150):
        sum_ = "".join(f"{rng.randint(1, 99)}{rng.choice('+-*')}" for _ in range(rng.randint(2, 4))) + str(
            rng.randint(1, 99)
        )
        told = [
            f"What is {sum_}?\n<think>A short program is safest.</think><python>print({sum_})</python>\n",
            f"Find the value of {sum_}.\n<think>Let me calculate it.</think><python>value = {sum_}\nprint(value)</python>\n",
        ]
        rng.shuffle(told)
        keys.append(told[0])
        queries.append("".join(mistyped(rng, character) for character in told[1]))
    return keys, queries


def mistyped(rng: random.Random, character: str) -> str:
    if not character.isalpha() or rng.random() > 0.02:
        return character
    return rng.choice(["", rng.choice("etaoin") + character])
