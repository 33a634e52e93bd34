"""Products of parameters, of which the default suite takes a part and `slow` the rest."""

from __future__ import annotations

from itertools import combinations, product

import pytest


def in_turn(names, kinds, refused=()):
    """Return each name with each kind, but for refused pairs, as parameters.

    In the default suite each name is tried with one kind, the kinds in turn; the other pairs are slow.
    """
    found = []
    for number, name in enumerate(names):
        own = [kind for kind in kinds if (name, kind) not in refused]
        marks = {own[number % len(own)]: ()}
        found += [pytest.param(name, kind, marks=marks.get(kind, pytest.mark.slow)) for kind in own]
    return found


def pairwise(**axes):
    """Return all combinations of the values of each axis, as arguments of `parametrize`.

    The default suite has each value of an axis with each value of any other, in as few combinations as a greedy choice
    finds; the other combinations are slow.

    Args:
        axes: by parameter, its values; by name where they are a dictionary.
    """
    named = [own if isinstance(own, dict) else {str(value): value for value in own} for own in axes.values()]
    rows = list(product(*map(list, named)))
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    left, chosen = set().union(*pairs.values()), set()
    while left:
        best = max(rows, key=lambda row: len(pairs[row] & left))
        chosen.add(best)
        left -= pairs[best]
    return ",".join(axes), [
        pytest.param(
            *(own[name] for own, name in zip(named, row, strict=True)),
            id="-".join(row),
            marks=() if row in chosen else pytest.mark.slow,
        )
        for row in rows
    ]
