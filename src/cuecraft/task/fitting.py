"""What fits into a model's positions: how long answers are, and texts cut at their ends."""

from __future__ import annotations

from collections.abc import Sequence

Fields = list[tuple[int, ...]]  # ids of each field slot of one example, in the order of the template
LabelIds = tuple[tuple[tuple[int, ...], ...], ...]  # option -> word -> token ids


#: Beginnings of label words up to which their continuations are normalised over the whole vocabulary.
MOST_BEGINNINGS = 64


def beginnings_of(options: LabelIds) -> list[tuple[int, ...]]:
    """Return what stands before the second and each further token of options' words, sorted."""
    return sorted({ids[:size] for words in options for ids in words for size in range(1, len(ids))})


def beyond_slot(options: LabelIds) -> int:
    """Return the positions that options need beyond the answer slot."""
    return max((len(ids) - 1 for words in options for ids in words), default=0)


def are_longer(rows: Sequence[Fields], capacities: Sequence[int | None]) -> list[bool]:
    """Return whether each example's fields have more tokens together than fit; None for no limit."""
    return [
        capacity is not None and sum(map(len, row)) > capacity for row, capacity in zip(rows, capacities, strict=True)
    ]


def cut_longest(fields: Fields, capacity: int) -> Fields:
    """Cut the longest field at its end until all fit together; the others stay whole as long as possible."""
    lengths = [len(ids) for ids in fields]
    excess = sum(lengths) - capacity
    while excess > 0:
        *_, runner_up, longest = sorted([0, *lengths])
        step = min(excess, max(1, longest - runner_up))
        lengths[lengths.index(longest)] -= step
        excess -= step
    return [ids[:length] for ids, length in zip(fields, lengths, strict=True)]
