"""What an answer space leaves open, such as how options are scored: decided on examples before a method begins.

It is decided once, with the untuned prompt, and not for each candidate. So the losses of all candidates of a run mean
the same and can be compared, no training is repeated for each variant, and an artifact says what its values are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cuecraft.artifact import HardPrompt
from cuecraft.methods.held_out import stratified_folds, texts_of
from cuecraft.methods.objectives import objective_of
from cuecraft.methods.problem import Labelled, Problem
from cuecraft.task import AnswerSpace

_FOLDS = 8
_MOST = 512  # examples that are read


@torch.no_grad()
def settled(problem: Problem) -> Problem:
    """Return the problem with that variant of its answers that has the least held-out loss (`AnswerSpace.variants`).

    Values of variants are of different sizes, so each has a temperature that is fitted to the other folds. Texts are
    not read again for them. Where the time ends before, the variants that were read compete, or the first one is taken.
    """
    variants = problem.task.answers.variants
    if not variants:
        return problem
    pool = problem.pool.select(list(range(min(_MOST, len(problem.pool)))))
    losses: list[float] = []
    with problem.in_time():
        for own in variants:
            losses.append(_held_out_loss(problem, _in(problem, pool, own)))
    best = variants[losses.index(min(losses))] if losses else variants[0]
    task = replace(problem.task, answers=best)
    dev = None if problem.dev is None else _in(problem, problem.dev, best)
    return replace(problem, task=task, train=_in(problem, problem.train, best), dev=dev)


def _in(problem: Problem, data: Labelled, answers: AnswerSpace) -> Labelled:
    """Return examples with their answers in another space."""
    context = problem.backbone.with_answers(data.context, answers)
    return replace(data, context=context, golds=replace(data.golds, objective=objective_of(answers)))


def _held_out_loss(problem: Problem, pool: Labelled) -> float:
    """Return the mean loss (nats) of the untuned prompt, each fold's with the temperature of the others.

    The loss without a temperature where the examples cannot be split.
    """
    values = problem.backbone.class_logits(pool.context, HardPrompt(problem.initial_ids)).double()
    folds = stratified_folds(pool.golds.strata, _FOLDS, problem.seed, texts_of(pool.context.examples))
    if not folds:
        return float(pool.golds.losses(values).mean())
    parts = [
        pool.golds.select(fold.held_out).losses(
            pool.golds.select(fold.train).tempered(values[fold.train]).apply(values[fold.held_out])
        )
        for fold in folds
    ]
    return float(torch.cat(parts).mean())
