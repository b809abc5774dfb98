"""From a spec to an embedder, and what is said about a spec that is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tracebank.embed import open_embedder


@pytest.mark.parametrize("spec", ["hashing", "hashing:v1", "hashing?dimension=128", "hashing:v1?dimension=128"])
def test_what_is_not_said_is_the_default(spec: str) -> None:
    embedder = open_embedder(spec)
    assert embedder.name == "hashing:v1?dimension=128"
    assert open_embedder(embedder.spec).name == embedder.name
    assert embedder.embed(["one text", "another"]).shape == (2, embedder.dimension)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected 'hashing', 'sentence-transformers:NAME', 'policy:FOLDER' or 'rapo', found ''"),
        ("word2vec:x", "found 'word2vec:x'"),
        ("hashing:v2", "expected 'hashing' or 'hashing:v1', found 'hashing:v2'"),
        ("hashing?size=3", "expected of the options dimension each once, found 'size=3'"),
        ("hashing?dimension=64&dimension=65", "found 'dimension=65'"),
        ("hashing?dimension=big", "dimension to be a whole number above 0, found 'big'"),
        ("hashing?dimension=-5", "found '-5'"),
        ("hashing?dimension=1", "from 2 to 65536, found 1"),
        ("policy", "expected 'policy:' and what to load"),
        ("sentence-transformers:", "expected 'sentence-transformers:' and what to load"),
        ("policy:somewhere?characters=3", "of the options pooling, tokens, device each once, found 'characters=3'"),
    ],
)
def test_a_spec_that_is_none_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        open_embedder(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_heavy_is_loaded_before_it_is_asked_for() -> None:
    program = "import sys, tracebank.embed; print(*sorted({'numba', 'torch', 'transformers'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert run.stdout == "\n"
