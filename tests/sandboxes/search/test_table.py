"""Rows of strings in flat arrays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.search.table import DuplicateName, Table

# Few characters and long names: many begin with the same eight bytes, some end in what short ones are filled up with.
NAMES = st.text("a\0é\ud800\uffff\U0001f600", max_size=14)


@given(st.dictionaries(NAMES, st.tuples(st.text(max_size=5), NAMES), max_size=40), st.lists(NAMES, max_size=10))
def test_rows_are_kept_sorted_and_found(rows: dict[str, tuple[str, str]], others: list[str]) -> None:
    given_rows = [(name, *rest) for name, rest in rows.items()]
    table, positions = Table.of(given_rows, fields=3)
    assert len(table) == len(rows)
    assert [tuple(table.row(number)) for number in range(len(table))] == sorted(given_rows)
    assert [given_rows[position] for position in positions] == sorted(given_rows)
    ranks = {name: rank for rank, name in enumerate(sorted(rows))}
    asked = [*rows, *others]
    assert table.find_all(asked) == [ranks.get(name) for name in asked]
    assert [table.find(name) for name in asked] == [ranks.get(name) for name in asked]


@given(st.lists(NAMES, min_size=1, max_size=10, unique=True), st.data())
def test_a_name_that_comes_twice(names: list[str], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(names))
    with pytest.raises(DuplicateName) as caught:
        Table.of(((name,) for name in [*names, twice]), fields=1)
    assert caught.value.name == twice
