"""Tags of the words of a text, one after another: which can follow each other, how often they do, and which are likely.

Tags are O, and for each label one that begins a span and one that goes on, which follows only these two. A text's tags
``t`` have the score ``sum log p(t_w | w) + weights[t_(w-1), t_w]``, whose weights are zero, or those of counted tags:
``strength * log(p(t' | t) / p(t'))``. At strength 1 this is the hidden Markov model whose words are rated by
``p(t | w) / p(t)`` (Bourlard & Morgan, 1994). What is read of a word knows of its neighbours too, so the counts have a
part of their weight only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cuecraft.task.answers.base import Values

Tags = NDArray[np.int64]
#: How often one tag follows another: (tag before, tag, count), in order. Before the first word of a text stands -1.
Followed = tuple[tuple[int, int, int], ...]

#: Words that the shares of all tags count for next to those that follow a tag, and the strength of the counted weights.
#: Of 1 to 20 words and strengths of .25 to 1, on slots of NLU++ (209 texts against 205, and the other way round).
_PRIOR, _STRENGTH = 5.0, 0.75
_UNSEEN = 0.5  # words that each tag is taken to have besides its own
_AT_ONCE = 4_000_000  # numbers of one step over the words


def counted(texts: Sequence[Sequence[int]]) -> Followed:
    """Return how often the tags of some texts follow each other."""
    pairs = Counter(pair for tags in texts for pair in zip((-1, *tags), tags, strict=False))
    return tuple((before, tag, count) for (before, tag), count in sorted(pairs.items()))


def chain_weights(tags: int, followed: Followed) -> Values:
    """Return the weights `[1 + O, O]` (nats) of each tag behind another, in the last row of a text's first word.

    They are minus infinity where a tag cannot follow. Without counts the others are zero.

    Args:
        tags: O.
        followed: how often tags followed each other.
    """
    weights = np.zeros((tags + 1, tags))
    if followed:
        before, tag, number = np.array(followed).T
        counts = np.zeros_like(weights)
        np.add.at(counts, (before, tag), number)
        shares = counts.sum(0) + _UNSEEN
        shares /= shares.sum()
        given = (counts + _PRIOR * shares) / (counts.sum(1, keepdims=True) + _PRIOR)
        weights = _STRENGTH * np.log(given / shares)
    goes_on = np.arange(2, tags, 2)
    allowed = np.ones_like(weights, dtype=bool)
    allowed[:, goes_on] = False
    allowed[goes_on, goes_on] = allowed[goes_on - 1, goes_on] = True
    return np.where(allowed, weights, -np.inf)


def best_tags(probabilities: Values, weights: Values | None = None) -> Tags:
    """Return the tags `[B, R]` of the best score, -1 for words that were not read (Viterbi, 1967).

    Args:
        probabilities: `[B, R, O]` of each word's tags; zeros for a word that was not read, which is skipped.
        weights: `[1 + O, O]`, as `chain_weights` gives them; None for those without counts.
    """
    count, width, tags = probabilities.shape
    weights = chain_weights(tags, ()) if weights is None else weights
    step = max(1, _AT_ONCE // tags**2)
    parts = [_best_tags(probabilities[start : start + step], weights) for start in range(0, count, step)]
    return np.concatenate(parts) if parts else np.zeros((0, width), np.int64)


def _best_tags(probabilities: Values, weights: Values) -> Tags:
    read = probabilities.sum(-1) > 0
    logs = np.log(np.maximum(probabilities, np.finfo(float).tiny))
    count, width, tags = logs.shape
    best, begun = np.zeros((count, tags)), np.zeros(count, dtype=bool)
    back = np.empty((width, count, tags), np.int64)
    for word in range(width):
        through = best[:, :, None] + weights[:-1]
        own = read[:, word, None]
        back[word] = np.where(own, through.argmax(1), np.arange(tags))
        before = np.where(begun[:, None], through.max(1), weights[-1])
        best = np.where(own, before + logs[:, word], best)
        begun = begun | read[:, word]
    found, rows = np.full((count, width), -1, np.int64), np.arange(count)
    tag = best.argmax(1)
    for word in range(width - 1, -1, -1):
        found[:, word] = np.where(read[:, word], tag, -1)
        tag = back[word][rows, tag]
    return found


class Chain:
    """The distribution over the tags of one text: what their scores make of the probabilities of its words' tags.

    Args:
        probabilities: `[R, O]` of each word's tags; zeros for a word that was not read, which is skipped.
        weights: `[1 + O, O]`, as `chain_weights` gives them.
    """

    def __init__(self, probabilities: Values, weights: Values) -> None:
        self._read = [int(word) for word in np.flatnonzero(probabilities.sum(-1) > 0)]
        self._own, self._factors = probabilities[self._read], np.exp(weights)
        count = len(self._read)
        # Up to a factor of each word, which keeps the numbers near 1.
        self._before, self._behind, self._level = np.ones_like(self._own), np.ones_like(self._own), np.ones(count)
        for word, given in enumerate(self._own):
            reached = self._factors[-1] if word == 0 else self._before[word - 1] @ self._factors[:-1]
            self._level[word] = max(float((reached * given).sum()), np.finfo(float).tiny)
            self._before[word] = reached * given / self._level[word]
        for word in range(count - 2, -1, -1):
            onward = self._own[word + 1] * self._behind[word + 1] / self._level[word + 1]
            self._behind[word] = self._factors[:-1] @ onward

    def probability(self, path: Sequence[int] | Tags) -> float:
        """Return the probability of tags `[R]` of all words; those of words that were not read say nothing."""
        if not len(self._read):
            return 1.0
        return self.of_words(0, [int(path[word]) for word in self._read])

    def of_span(self, first: int, last: int, path: Sequence[int] | Tags) -> float:
        """Return the probability of a span: of the tags of its words, and that none behind goes on with it.

        Args:
            first: its first word, which was read.
            last: its last word.
            path: `[R]` tags of all words.
        """
        inside = [(n, int(path[word])) for n, word in enumerate(self._read) if first <= word <= last]
        (begin, tag), tags = inside[0], [own for _, own in inside]
        whole, end = self.of_words(begin, tags), begin + len(tags)
        onward = tag + tag % 2  # the tag that goes on with the label
        return whole - self.of_words(begin, [*tags, onward]) if end < len(self._read) else whole

    def of_words(self, first: int, tags: Sequence[int]) -> float:
        """Return the probability of tags of words that were read, one after another, from the number `first` on."""
        found = float(self._before[first, tags[0]])
        for number, (before, tag) in enumerate(pairwise(tags), start=first + 1):
            found *= float(self._factors[before, tag] * self._own[number, tag]) / self._level[number]
        return found * float(self._behind[first + len(tags) - 1, tags[-1]])
