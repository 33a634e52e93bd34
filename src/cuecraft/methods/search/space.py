"""The prompts in words that a search may take: allowed tokens, text that gives back the same tokens, and a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cuecraft.backbone import Swap
from cuecraft.backbone.prompt import nearest_tokens
from cuecraft.core.errors import MethodError
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import trained_copy
from cuecraft.methods.problem import CalibrationKind, Problem
from cuecraft.methods.search.halving import best_swaps
from cuecraft.methods.search.vocabulary import TokenFilter, VocabularyOptions, make_vocabulary
from cuecraft.methods.untuned import starting_point

_CHUNK = 64  # prompts whose text is tried at a time
_FILLER = " it is"
_DEFAULT_LENGTH = 5


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Which prompts in words a search may take.

    Args:
        problem: its backbone's tokenizer writes the text, its template holds it.
        vocabulary: the tokens that a swap may bring in.
        is_closed: whether every token has to be an allowed one, those that the search begins with included.
        round_trip: whether a prompt's text has to give back its tokens.
    """

    problem: Problem
    vocabulary: TokenFilter
    is_closed: bool
    round_trip: bool

    @classmethod
    def of(cls, problem: Problem, options: VocabularyOptions, round_trip: bool) -> SearchSpace:
        """Return the space of a search's options.

        Raises:
            MethodError: too few tokens are left.
            DataError: the corpus cannot be read.
        """
        vocabulary = make_vocabulary(problem.backbone, problem.task, options)
        return cls(problem, vocabulary, options.is_chosen, round_trip)

    @cached_property
    def words(self) -> Tensor:
        """Embeddings `[A, d]` of the allowed tokens, in float32 at least."""
        return trained_copy(self.problem.backbone.embedding_matrix()[self._tokens])

    @cached_property
    def _tokens(self) -> Tensor:
        """Ids `[A]` of the allowed tokens."""
        return torch.nonzero(self.vocabulary.mask.to(self.problem.backbone.device)).flatten()

    def admits(self, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Return for each prompt whether its text gives back its tokens, where that is asked for."""
        if not self.round_trip:
            return [True] * len(prompts)
        return self.problem.train.context.renderer.gives_back(prompts)

    def swaps(self, ids: Sequence[int], change: Tensor, positions: Sequence[int], count: int) -> list[Swap]:
        """Return the `count` swaps (position, token) of least predicted change that lead to a prompt that may be taken.

        Args:
            ids: `[S]` the prompt.
            change: `[S, V]` predicted change of the loss.
            positions: those that may be swapped.
            count: of swaps, at most; fewer where there are no more.
        """
        rows = change[list(positions)]
        kept: list[Swap] = []
        tried: set[Swap] = set()
        size = count
        while True:
            ranked = [(positions[row], token) for row, token in best_swaps(rows, self.vocabulary.mask, size)]
            fresh = [swap for swap in ranked if swap not in tried]
            prompts = [(*ids[:place], token, *ids[place + 1 :]) for place, token in fresh]
            kept += (swap for swap, good in zip(fresh, self.admits(prompts), strict=True) if good)
            if len(kept) >= count or len(ranked) < size:
                return kept[:count]
            tried.update(fresh)
            size *= 4

    def start(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return a prompt to begin from: the given one, with the allowed token nearest to each that may not stay.

        Raises:
            MethodError: no prompt of allowed tokens was found whose text gives back its tokens.
        """
        may_stay = self.vocabulary.mask[list(ids)].tolist() if self.is_closed else [True] * len(ids)
        own = [token if stays else None for token, stays in zip(ids, may_stay, strict=True)]
        if all(may_stay) and all(self.admits([ids])):
            return ids
        return self._nearest(trained_copy(self.problem.backbone.embed(torch.tensor(ids))), own)

    def nearest(self, vectors: Tensor) -> tuple[int, ...]:
        """Return the prompt of allowed tokens nearest to vectors `[S, d]`, each by itself (Euclidean).

        Where the text of these does not give them back, tokens are chosen from left to right, each the nearest with
        which the prompt so far gives back its tokens.

        Raises:
            MethodError: there is none.
        """
        return self._nearest(vectors, [None] * len(vectors))

    def _nearest(self, vectors: Tensor, own: Sequence[int | None]) -> tuple[int, ...]:
        """Return the nearest prompt; a token of its own comes before all allowed ones at its place."""
        found = self._tokens[nearest_tokens(vectors, self.words)].tolist()
        whole = tuple(near if token is None else token for near, token in zip(found, own, strict=True))
        if all(self.admits([whole])):
            return whole
        prefix: tuple[int, ...] = ()
        for vector, token in zip(vectors, own, strict=True):
            prefix = (*prefix, self._next(prefix, vector, token))
        return prefix

    def _next(self, prefix: tuple[int, ...], vector: Tensor, own: int | None) -> int:
        order = torch.cdist(vector[None], self.words)[0].argsort(stable=True)
        tokens: list[int] = ([] if own is None else [own]) + self._tokens[order].tolist()
        for start in range(0, len(tokens), _CHUNK):
            part = tokens[start : start + _CHUNK]
            admitted = self.admits([(*prefix, token) for token in part])
            if any(admitted):
                return part[admitted.index(True)]
        raise MethodError(
            f"no allowed token can stand at place {len(prefix) + 1} of the prompt so that its text gives back the same "
            "tokens; loosen the vocabulary, or give round_trip=false"
        )


def filled_start(problem: Problem, untuned: Candidate, length: int | None, kind: CalibrationKind) -> Candidate:
    """Return the untuned prompt brought to `length` tokens, calibrated; the same one where it has that length."""
    ids = filled_ids(problem, length)
    return untuned if ids == problem.initial_ids else starting_point(problem, ids, kind)


def filled_ids(problem: Problem, length: int | None) -> tuple[int, ...]:
    """Return ids of the template's own prompt words, with filler words in front of them up to `length` tokens.

    By default they keep their length; a template without words gets five tokens of filler. Words beyond `length`
    are dropped from the front, so that those nearest to the answer stay.
    """
    ids = problem.initial_ids
    length = length or len(ids) or _DEFAULT_LENGTH
    filler = filler_ids(problem)
    missing = max(0, length - len(ids))
    front = tuple(filler[n % len(filler)] for n in range(missing))
    return (*front, *ids[len(ids) - (length - missing) :])


def filler_ids(problem: Problem) -> tuple[int, ...]:
    """Return token ids that make a prompt longer, to be repeated in turn."""
    return tuple(problem.backbone.tokenizer(_FILLER, add_special_tokens=False)["input_ids"])
