"""Stratified folds of labelled examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from cuecraft.seeding import derived_seed
from cuecraft.task import Example


class Fold(NamedTuple):
    """Which rows are learnt from and which are held out."""

    train: list[int]
    held_out: list[int]


def texts_of(examples: Sequence[Example]) -> list[Hashable]:
    """Return `[N]` what each example's text is, alike for copies."""
    return [tuple(sorted(example.fields.items())) for example in examples]


def stratified_folds(labels: Tensor, count: int, seed: int, groups: Sequence[Hashable] | None = None) -> list[Fold]:
    """Return stratified folds (scikit-learn): `count`, or as many as the rarest class has different groups.

    Each leaves examples of every class to learn from. Returns none where that cannot be, as where a class has one
    example only: then there is nothing to check a prompt on.

    Args:
        labels: `[N]` class numbers.
        count: folds, at most.
        seed: of the shuffle.
        groups: `[N]` what must not be split, such as the texts: a copy of a text that was learnt from proves nothing.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    known = labels.tolist()
    groups = range(len(known)) if groups is None else groups
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    own = [numbers[group] for group in groups]
    rarest = min(Counter(label for label, _ in set(zip(known, own, strict=True))).values())
    random_state = derived_seed(seed, "folds") % 2**32
    is_grouped = len(numbers) < len(known)
    for splits in range(min(count, rarest), 1, -1):
        options = {"n_splits": splits, "shuffle": True, "random_state": random_state}
        parts = (
            StratifiedGroupKFold(**options).split(known, known, own)
            if is_grouped
            else StratifiedKFold(**options).split(known, known)
        )
        folds = [Fold(train.tolist(), held.tolist()) for train, held in parts]
        if all(fold.held_out and {known[row] for row in fold.train} == set(known) for fold in folds):
            return folds
    return []
