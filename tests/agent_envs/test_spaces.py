"""The string space: what is in it, and that Gymnasium's vector machinery takes it."""

import copy
import json
import multiprocessing
import pickle

import numpy as np
import pytest
from gymnasium.spaces import Dict, Tuple
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)
from hypothesis import given
from hypothesis import strategies as st

from agent_envs.spaces import String, replace_surrogates

STRINGS = st.text(st.characters(exclude_categories=()), max_size=50)


@given(STRINGS)
def test_contains_exactly_what_can_be_encoded_and_is_short_enough(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        encodable = False
    else:
        encodable = True
    assert (text in String(20)) == (encodable and len(text) <= 20)


@pytest.mark.parametrize("other", [b"bytes", 3, None, ["a"], np.array("a")])
def test_contains_no_other_type(other):
    assert other not in String(20)


@given(STRINGS)
def test_replacing_surrogates_keeps_every_position(text):
    replaced = replace_surrogates(text)
    assert replaced in String(50)
    assert len(replaced) == len(text)
    assert all(
        new == old or (new == "\ufffd" and "\ud800" <= old <= "\udfff") for new, old in zip(replaced, text, strict=True)
    )


def test_samples_are_in_the_space_seeded_and_varied():
    space, same = String(300, seed=7), String(300, seed=7)
    samples = [space.sample() for _ in range(300)]
    assert samples == [same.sample() for _ in range(300)]
    assert all(sample in space for sample in samples)
    assert min(map(len, samples)) == 0
    assert max(map(len, samples)) > 150
    seen = "".join(samples)
    assert any(c < " " for c in seen)
    assert any(c > "\uffff" for c in seen)
    assert sum(" " < c < "\x7f" for c in seen) > 100


def test_the_smallest_space_samples_both_of_its_lengths():
    space = String(1, seed=0)
    assert {len(space.sample()) for _ in range(100)} == {0, 1}


def test_sample_refuses_a_mask():
    with pytest.raises(ValueError, match="neither a mask nor a probability"):
        String(3).sample(mask=np.ones(3))


@pytest.mark.parametrize("length", [0, -1, 2.5, True, "3"])
def test_a_length_must_be_a_positive_integer(length):
    with pytest.raises(ValueError, match="max_length of at least 1"):
        String(length)


def test_equality_repr_pickle_and_json():
    space = String(12, seed=3)
    assert space == String(12)
    assert space != String(13)
    assert hash(space) == hash(String(12))
    assert repr(space) == "String(12)"
    twin = pickle.loads(pickle.dumps(space))
    assert twin == space
    assert twin.sample() == space.sample()
    samples = ["", "ä\n", "\U0001f600"]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples


def test_batches():
    space = String(8, seed=1)
    batch = batch_space(space, 3)
    assert batch == Tuple([String(8)] * 3)
    sample = batch.sample()
    assert len(set(sample)) == 3
    assert list(iterate(batch, sample)) == list(sample)
    assert concatenate(space, ["a", "b"], create_empty_array(space, 2)) == ("a", "b")
    assert create_empty_array(space, 2) in batch_space(space, 2)
    assert batch_differing_spaces([String(3), String(4)]) == Tuple([String(3), String(4)])


def test_shared_memory_shows_the_latest_strings_and_its_copies_stay():
    space = String(4)
    memory = create_shared_memory(space, 3, multiprocessing.get_context("spawn"))
    view = read_from_shared_memory(space, memory, 3)
    first = copy.deepcopy(view)
    write_to_shared_memory(space, 1, "\U0010ffff" * 4, memory)
    write_to_shared_memory(space, 2, "ab", memory)
    assert first == ("", "", "")
    assert copy.deepcopy(view) == ("", "\U0010ffff" * 4, "ab")
    assert copy.deepcopy(view) in batch_space(space, 3)
    write_to_shared_memory(space, 1, "", memory)
    assert list(view) == ["", "", "ab"]
    assert view[-1] == "ab"
    assert view[1:] == ("", "ab")
    with pytest.raises(IndexError):
        view[3]


def test_shared_memory_inside_a_dict_space():
    space = Dict({"text": String(5)})
    memory = create_shared_memory(space, 2)
    view = read_from_shared_memory(space, memory, 2)
    write_to_shared_memory(space, 0, {"text": "hello"}, memory)
    assert copy.deepcopy(view) == {"text": ("hello", "")}


def test_shared_memory_refuses_what_does_not_fit():
    memory = create_shared_memory(String(4), 2)
    with pytest.raises(ValueError, match="more than the 4 of its space"):
        write_to_shared_memory(String(4), 0, "\U0010ffff" * 5, memory)
