"""Stratified folds of labelled examples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from cuecraft.seeding import derived_seed


class Fold(NamedTuple):
    """Which rows are learnt from and which are held out."""

    train: list[int]
    held_out: list[int]


def stratified_folds(labels: Tensor, count: int, seed: int) -> list[Fold]:
    """Return stratified folds (scikit-learn): `count`, or as many as the rarest class has examples.

    Returns none where a class has one example only: then there is nothing to check a prompt on.

    Args:
        labels: `[N]` class numbers.
        count: folds, at most.
        seed: of the shuffle.
    """
    from sklearn.model_selection import StratifiedKFold

    known = labels.cpu().numpy()
    rarest = int(labels.unique(return_counts=True)[1].min())
    if rarest < 2:
        return []
    shuffled = StratifiedKFold(min(count, rarest), shuffle=True, random_state=derived_seed(seed, "folds") % 2**32)
    return [Fold(train.tolist(), held.tolist()) for train, held in shuffled.split(known, known)]
