"""Stratified folds of labelled examples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from cuecraft.seeding import derived_seed


class Fold(NamedTuple):
    """Which rows are learnt from and which are held out."""

    train: list[int]
    held_out: list[int]


def stratified_folds(labels: Tensor, count: int, seed: int, groups: Sequence[Hashable] | None = None) -> list[Fold]:
    """Return stratified folds (scikit-learn): `count`, or as many as the rarest class has examples.

    Returns none where a class has one example only: then there is nothing to check a prompt on.

    Args:
        labels: `[N]` class numbers.
        count: folds, at most.
        seed: of the shuffle.
        groups: `[N]` what must not be split, such as the texts: a copy of a text that was learnt from proves nothing.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    known = labels.cpu().numpy()
    rarest = int(labels.unique(return_counts=True)[1].min())
    if rarest < 2:
        return []
    options = {"n_splits": min(count, rarest), "shuffle": True, "random_state": derived_seed(seed, "folds") % 2**32}
    if groups is None or len(set(groups)) == len(groups):
        parts = StratifiedKFold(**options).split(known, known)
    else:
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        parts = StratifiedGroupKFold(**options).split(known, known, [numbers[group] for group in groups])
    return [Fold(train.tolist(), held.tolist()) for train, held in parts]
