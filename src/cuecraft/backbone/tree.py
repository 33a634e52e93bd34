"""Cue trees: many token sequences after one context, in one forward pass.

Sequences that begin alike share their beginning, as in a trie. A node sees the context, its ancestors and itself,
so each path from root to leaf is computed exactly as if it stood there alone. Candidates of a discrete search, many
prompts over one text and the tokens of a long label word are all branches of such a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CueTree:
    """A trie over sequences of codes.

    Args:
        codes: `[N]` what each node carries; `[b, N]` where it is another in each row of a pass.
        ancestors: `[N, N]` bool, row n true at n and at every ancestor of n.
        ends: for each sequence, its last node.
        prompts: numbers of the prompts that it holds, where its layout asks for them (`OwnTrees`).
    """

    codes: Tensor
    ancestors: Tensor
    ends: tuple[int, ...]
    prompts: range = range(0)


def grow_tree(sequences: Sequence[Sequence[int]]) -> CueTree:
    """Merge sequences of codes (each not empty) into a trie.

    Nodes are numbered so that a parent always comes before its children.
    """
    children: dict[tuple[int, int], int] = {}
    codes: list[int] = []
    parents: list[int] = []
    ends = []
    for sequence in sequences:
        node = -1
        for code in sequence:
            key = (node, code)
            if key not in children:
                children[key] = len(codes)
                codes.append(code)
                parents.append(node)
            node = children[key]
        ends.append(node)
    ancestors = np.eye(len(codes), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestors[node] |= ancestors[parent]
    return CueTree(torch.tensor(codes), torch.from_numpy(ancestors), tuple(ends))


def children_of(sequences: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return the codes with which sequences go on, sorted, by the beginning behind which they stand."""
    found: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        for size, code in enumerate(sequence):
            found.setdefault(sequence[:size], set()).add(code)
    return {beginning: tuple(sorted(codes)) for beginning, codes in found.items()}


def tree_groups(sequences: Sequence[tuple[int, ...]], nodes: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut sorted sequences into groups whose tries have `nodes` nodes at most, of one sequence at least."""
    group: list[tuple[int, ...]] = []
    used = 0
    for sequence in sequences:
        new = len(sequence) - _shared(group[-1], sequence) if group else len(sequence)
        if group and used + new > nodes:
            yield group
            group, used, new = [], 0, len(sequence)
        group.append(sequence)
        used += new
    if group:
        yield group


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many codes two sequences have in common at their beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
