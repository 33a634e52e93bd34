"""Where a discrete search begins."""

from __future__ import annotations

from cuecraft.method import CalibrationKind, Problem
from cuecraft.predictor import Candidate
from cuecraft.untuned import starting_point

_FILLER = " it is"
_DEFAULT_LENGTH = 5


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
