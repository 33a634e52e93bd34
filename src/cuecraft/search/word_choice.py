"""Choosing label words on a table of log-probabilities that was read once: no pass of the model from here on.

A class may keep its current words, take the first few of a shortlist that some score ranks, or have both. Combinations
of such choices, one for each class, are compared by the log-loss that they give on held-out folds: neither shortlist
nor calibration has seen what it is judged by. To choose among the single words of one shortlist instead, judged by the
examples that made it, was tried and is much worse: with 16 examples of a class some words always fit those 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.prompts import calibration
from cuecraft.search.folds import Fold, stratified_folds

Columns = tuple[int, ...]  # words of one class, by their columns

_FOLDS = 4  # in which combinations are compared
_TIE = 0.01  # nats of held-out loss that are no reason to leave the current words
_GAIN = 0.05  # nats of held-out loss for which one class may choose otherwise than the rest


@dataclass(frozen=True)
class WordTable:
    """What a model says of some words after each labelled text.

    Args:
        log_p: `[N, W]` log-probabilities (nats) at the answer slot, float64.
        labels: `[N]` class numbers.
        own: `[C]` columns of each class's current words.
        free: columns of the words that any class may take.
    """

    log_p: Tensor
    labels: Tensor
    own: tuple[Columns, ...]
    free: Columns

    @property
    def rows(self) -> list[int]:
        """All rows."""
        return list(range(len(self.labels)))


WordScores = Callable[[Sequence[int]], Tensor]  # rows to learn from -> [C, W], the higher the better


def contrast(log_p: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how much likelier words are after texts of a class than after those of the others `[C, W]`, in nats.

    ``mean over x of class c of log p(w | x)``, less the mean of that over the other classes. LM-BFF takes the first
    part alone (Gao et al., ACL 2021, arXiv 2012.15723, section 5.1), which ranks words high that follow any text.

    Args:
        log_p: `[N, W]`.
        labels: `[N]`, each class at least once.
        classes: C, two or more.
    """
    means = torch.stack([log_p[labels == c].mean(0) for c in range(classes)])
    return means - (means.sum(0) - means) / (classes - 1)


def shortlist(scores: Tensor, table: WordTable, count: int) -> list[Columns]:
    """Return each class's `count` best free words, best first.

    A word is on the list of one class alone: where its score is highest above the median that free words have there.
    """
    free = torch.tensor(table.free, dtype=torch.long)
    if not len(free):
        return [()] * len(scores)
    of_free = scores[:, free]
    owner = (of_free - of_free.median(1, keepdim=True).values).argmax(0)
    lists = []
    for c, own in enumerate(of_free):
        mine = (owner == c).nonzero().flatten()
        best = mine[own[mine].sort(descending=True, stable=True).indices[:count]]
        lists.append(tuple(free[best].tolist()))
    return lists


def choices(own: Columns, listed: Columns, most: int) -> list[Columns]:
    """Return what a class may have: its own words, the first 1, 2, 4 .. `most` that are listed, or these and its own.

    There are as many choices whatever the list, so that the same one can be made on every fold; of a list that is too
    short, all is taken, and of an empty one the class's own words.
    """
    sizes = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    return [own, *(listed[:size] or own for size in sizes), *((*own, *listed[:size]) for size in sizes)]


def class_log_probabilities(table: WordTable, words: Sequence[Columns]) -> Tensor:
    """Return the log of each class's summed probabilities `[N, C]`."""
    return torch.stack([table.log_p[:, list(columns)].logsumexp(-1) for columns in words], dim=-1)


def held_out_answers(scores: Tensor, labels: Tensor, fold: Fold) -> Tensor:
    """Return log-probabilities `[n, C]` of a fold's held-out rows; the calibration is fitted to the others."""
    learnt, held = fold
    return calibration.fitted(scores[learnt], labels[learnt]).apply(scores[held]).log_softmax(-1)


def best_combination(classes: int, count: int, loss: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Return a combination `[C]` of choices, numbers below `count`, of little loss.

    The best of those in which all classes choose alike, all 0 unless another gains something. From there coordinate
    descent: one class at a time is changed to its best next to the others', as long as that gains clearly. To try
    all combinations finds what fits the luck of the folds: on film reviews that was worse on other examples.
    """
    loss = cache(loss)
    best = _better((0,) * classes, ((n,) * classes for n in range(count)), loss, _TIE)
    changed = True
    while changed:
        before = best
        for c in range(classes):
            best = _better(best, ((*best[:c], n, *best[c + 1 :]) for n in range(count)), loss, _GAIN)
        changed = best != before
    return best


def _better(
    start: tuple[int, ...],
    others: Iterable[tuple[int, ...]],
    loss: Callable[[tuple[int, ...]], float],
    gain: float,
) -> tuple[int, ...]:
    """Return the best of some others where it gains enough on where it started, else that."""
    best = min(others, key=loss)
    return best if loss(best) < loss(start) - gain else start


def choose(table: WordTable, rows: Sequence[int], word_scores: WordScores, most: int, seed: int) -> tuple[Columns, ...]:
    """Return the words `[C]` that some rows choose.

    Args:
        table: the words.
        rows: what is learnt from.
        word_scores: ranks words for each class.
        most: listed words that one class may have.
        seed: of the folds.
    """
    rows = list(rows)
    folds = [
        Fold([rows[n] for n in learnt], [rows[n] for n in held])
        for learnt, held in stratified_folds(table.labels[rows], _FOLDS, seed)
    ]
    if not folds:
        return table.own
    offered = [_offered(table, learnt, word_scores, most) for learnt, _ in folds]
    by_class = [
        [class_log_probabilities(table, sets) for sets in on_fold] for on_fold in offered
    ]  # folds x C of [N, choices]
    held_out = [row for _, held in folds for row in held]

    def loss(numbers: tuple[int, ...]) -> float:
        answers = []
        for fold, on_fold in zip(folds, by_class, strict=True):
            scores = torch.stack([part[:, n] for part, n in zip(on_fold, numbers, strict=True)], dim=-1)
            answers.append(held_out_answers(scores, table.labels, fold))
        return float(functional.nll_loss(torch.cat(answers), table.labels[held_out]))

    final = _offered(table, rows, word_scores, most)
    best = best_combination(len(final), len(final[0]), loss)
    return tuple(sets[n] for sets, n in zip(final, best, strict=True))


def _offered(table: WordTable, rows: Sequence[int], word_scores: WordScores, most: int) -> list[list[Columns]]:
    listed = shortlist(word_scores(rows), table, most)
    return [choices(own, words, most) for own, words in zip(table.own, listed, strict=True)]
