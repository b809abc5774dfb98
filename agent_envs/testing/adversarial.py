r"""Texts that break parsers: half-open tags, tags in tags, surrogates, control bytes, 100,000 times ``\boxed{``.

What an agent writes is any text at all, and a policy that is being trained writes the strangest of them sooner or later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import strategies as st

from agent_envs.testing.literal import LONGEST_PERIOD
from agent_envs.testing.weighted import weighted

LONGEST = 100_000
"""Characters of the longest texts, give or take a few."""

_NAMES = ("answer", "think", "python", "search", "browse", "result", "retrieve", "tool_call", "tool_response", "tools")

MARKERS: Sequence[str] = (
    *(f"<{name}>" for name in _NAMES),
    *(f"</{name}>" for name in _NAMES),
    *(r"\boxed{", "}", "$", "#### ", "```python\n", "```", "Action: ", "Final Answer: "),
    *('{"name": "', '", "arguments": {', '"}}', "{", "[", "]", '"', "\\", "null"),
    *("<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<start_of_turn>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<tool_call", "<answer", "</", "<", ">"),
    *("<!--", "-->", "<![CDATA[", "]]>", "&lt;", "<answer/>", "<answer >", "<ANSWER>"),
)
"""Markers of every format that agents write or that a chat template holds, whole and half."""

AWKWARD: Sequence[str] = (
    *("\ud800", "\udfff", "\udc80", "\ud83d"),  # lone surrogates: no file, pipe or tokenizer takes them
    *("\0", "\x1b[2J", "\a", "\b", "\x7f", "\x85", "\ufffe", "\uffff", "\U0010ffff"),
    *("\r\n", "\r", "\v", "\f", "\u2028", "\u2029", "\t", "\xa0", "\ufeff"),
    *("\u202e", "\u2066", "\u200b", "\u200d", "\u00ad"),  # right to left, zero width, soft hyphen
    *("\U0001f600", "\U0001f469\u200d\U0001f4bb", "e\u0301", "\u0130", "\u00df", "\ufb01", "\u0663", "\u00b2", "\u00bd"),
    *("NaN", "Infinity", "1e999", "-0", "%s", "{0}", "\\u0041", "\\", "'", '"""', "__import__('os')"),
)
"""Characters and words that code tends to have wrong ideas about."""

_PAIRS: Sequence[tuple[str, str]] = (
    *((f"<{name}>", f"</{name}>") for name in _NAMES),
    *((r"\boxed{", "}"), ('{"a": ', "}"), ("[", "]"), ("(", ")"), ("<", ">"), ('"', '"'), ("<|im_start|>", "<|im_end|>")),
)

_RUNS: Sequence[str] = (
    *("<", "<think>", r"\boxed{", "{", "[", '{"a":', "(", "</answer>"),
    *("9", "\\", '"', " ", "\n", "a", "\ud800"),
)
"""What is bad in great numbers: nesting without end, backtracking, arithmetic on lengths."""

_PART = re.compile(r"(<[^<>]*>|[{}\[\]\"\\])")


def texts(markers: Sequence[str] = ()) -> st.SearchStrategy[str]:
    """Texts that break parsers; they shrink to short ones of few and simple characters.

    Args:
        markers: Further markers, such as those of an environment's own format.
    """
    characters = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates too, unlike st.text() alone
    known = (*markers, *MARKERS)
    pieces = st.one_of(st.sampled_from(known), st.sampled_from(AWKWARD))
    mixed = st.lists(st.one_of(characters, pieces), max_size=8).map("".join)
    return weighted((2, characters), (2, mixed), (1, _nested(known, mixed)), (2, _repeated(mixed, pieces)))


@st.composite
def mutations(draw: st.DrawFn, valid: st.SearchStrategy[str], inserted: st.SearchStrategy[str]) -> str:
    """Texts that are almost valid ones: cut off, with a marker less, twice, at another place, or something put in between.

    Args:
        draw: Hypothesis's own.
        valid: What is changed.
        inserted: What may be put in between.
    """
    parts = _PART.split(draw(valid))
    at = draw(st.integers(0, len(parts) - 1))
    before, part, after = parts[:at], parts[at], parts[at + 1 :]
    how = draw(st.sampled_from(("delete", "cut", "double", "insert", "move")))
    if how == "cut":
        return "".join([*before, part[: draw(st.integers(0, len(part)))]])
    if how == "double":
        before = [*before, part]
    if how == "insert":
        before = [*before, draw(inserted)]
    if how in ("double", "insert"):
        return "".join([*before, part, *after])
    rest = [*before, *after]
    if how == "move":
        rest.insert(draw(st.integers(0, len(rest))), part)
    return "".join(rest)


@st.composite
def _nested(draw: st.DrawFn, markers: Sequence[str], inside: st.SearchStrategy[str]) -> str:
    """An opening marker many times, then as many closing ones, or fewer, or more."""
    pairs = [(marker, f"</{marker[1:]}") for marker in markers if re.fullmatch(r"<\w+>", marker)]
    opening, closing = draw(st.sampled_from((*pairs, *_PAIRS)))
    depth = draw(_counts(len(opening) + len(closing)))
    closed = draw(st.sampled_from((depth, 0, depth - 1, depth + 1)))
    return opening * depth + draw(inside) + closing * closed


@st.composite
def _repeated(draw: st.DrawFn, mixed: st.SearchStrategy[str], pieces: st.SearchStrategy[str]) -> str:
    """One piece many times, and something at the end."""
    piece = draw(weighted((4, st.sampled_from(_RUNS)), (1, pieces), (1, mixed)))[:LONGEST_PERIOD] or " "
    return piece * draw(_counts(len(piece))) + draw(mixed)


def _counts(length: int) -> st.SearchStrategy[int]:
    """How often a piece of that length is repeated: a few times, or as often as there is room."""
    most = max(1, LONGEST // length)
    return weighted((1, st.integers(1, min(30, most))), (2, st.integers(1, most)))
