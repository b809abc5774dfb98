"""A choice between strategies of which some come up more often than others."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


def weighted(*choices: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """One of several, each as often as its weight says; shrinks to the first.

    Hypothesis's ``one_of`` takes each branch equally often, leaves out a repeated one, and counts the branches of another
    ``one_of`` as its own.

    Args:
        choices: Weights and strategies.
    """
    table = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.integers(0, len(table) - 1).flatmap(table.__getitem__)
