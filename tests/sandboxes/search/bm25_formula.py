"""BM25 from its formula, one passage after the other: what the indexes' results are compared with.

Lucene's variant with real lengths. A word that n of N passages have adds, to a passage that has it tf times::

    ln(1 + (N - n + 0.5) / (n + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))

once for each time that the query has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

CLOSE = 1e-5
"""Relative difference of two scores that 32-bit numbers may not tell apart."""


def scores(passages: Mapping[str, Sequence[str]], query: Sequence[str], k1: float = 0.9, b: float = 0.4) -> dict[str, float]:
    """The score of each passage that has one above 0.

    Args:
        passages: Each one's tokens by its id.
        query: The query's tokens, repeated ones too.
    """
    mean = sum(len(tokens) for tokens in passages.values()) / max(len(passages), 1)
    containing = {token: sum(token in tokens for tokens in passages.values()) for token in query}
    found = {}
    for id, tokens in passages.items():
        terms = []
        for token in query:
            tf = list(tokens).count(token)
            if tf:
                n = containing[token]
                idf = math.log(1 + (len(passages) - n + 0.5) / (n + 0.5))
                terms.append(idf * tf / (tf + k1 * (1 - b + b * len(tokens) / mean)))
        if terms:
            found[id] = math.fsum(terms)  # the same for the same terms in another order, so that ties are ties
    return found


def check_ranking(hits: Sequence[tuple[str, float]], expected: Mapping[str, float], k: int) -> None:
    """Asserts that (id, score) pairs are the ``k`` best of ``expected``, best first, ties by id.

    Passages whose scores differ by less than `CLOSE` may change places; those with equal scores may not.
    """
    assert len(hits) == min(k, len(expected)), (hits, expected)
    assert len({id for id, _ in hits}) == len(hits), f"a passage was found twice: {hits}"
    for id, score in hits:
        assert math.isclose(score, expected[id], rel_tol=CLOSE), (id, score, expected[id])
    ordered = [(expected[id], id) for id, _ in hits]
    for (better, earlier), (worse, later) in pairwise(ordered):
        assert better >= worse * (1 - CLOSE), (hits, expected)
        assert better != worse or earlier < later, f"equal scores, but {earlier!r} before {later!r}"
    if not hits:
        return
    lowest, last = ordered[-1]
    for id in set(expected) - {id for id, _ in hits}:
        assert expected[id] <= lowest * (1 + CLOSE), f"{id!r} was left out: {hits}, {expected}"
        assert expected[id] != lowest or id > last, f"{id!r} was left out for {last!r}, which has the same score"
