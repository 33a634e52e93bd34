"""Gradients of the loss at a prompt's tensors, over as few passes as memory and the backbone allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from cuecraft.artifact import SoftPrompt
from cuecraft.backbone import AnyBackbone, Budget
from cuecraft.backbone.lanes import at_once, lanes
from cuecraft.methods.candidate import Candidate, lent
from cuecraft.methods.objectives import Score, Scores
from cuecraft.methods.problem import Labelled, Problem

_LEAST = 8  # examples of a pass that runs next to others


def trained_copy(tensor: Tensor) -> Tensor:
    """Return a copy to be trained, in float32 at least: steps are lost in half precision."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def accumulate_gradients(
    backbone: AnyBackbone, parts: Sequence[tuple[Callable[[], Candidate], Labelled]], trained: Sequence[Tensor]
) -> list[Scores]:
    """Set the gradients of the sum of each candidate's mean loss on its examples; return the scores before.

    Takes a backward pass for each few examples, fewer where memory runs out.

    Args:
        backbone: the problem's.
        parts: what makes the candidate as a differentiable function of the trained tensors, for each pass; and the
            examples.
        trained: the leaves, whose gradients are replaced.
    """
    with torch.no_grad():
        candidates = [make() for make, _ in parts]
    reader = candidates[0].reader
    # Tuned weights have a gradient as large as the model, one for each pass at a time.
    count = lanes(backbone.device) if reader is None else 1
    shared = (
        count == 1
        and len(parts) > 1
        and all(own.reader is None for own in candidates)
        and backbone.share_passes(
            [(data.context, own.prompt) for own, (_, data) in zip(candidates, parts, strict=True)]
        )
    )

    def taken(group: Sequence[tuple[int, range]]) -> tuple[Sequence[Tensor | None], list[Scores]]:
        own = [(parts[number][0](), parts[number][1].select(list(rows))) for number, rows in group]
        values = _values_each(backbone, own)
        losses = [
            _summed_loss(part, data) / len(parts[number][1])
            for (number, _), part, (_, data) in zip(group, values, own, strict=True)
        ]
        slopes = torch.autograd.grad(torch.stack(losses).sum(), trained, allow_unused=True)
        return slopes, [data.scores(part.detach()) for part, (_, data) in zip(values, own, strict=True)]

    def run(budget: Budget) -> list[Scores]:
        for tensor in trained:
            tensor.grad = None
        found: list[list[Scores]] = [[] for _ in parts]
        sizes = [len(data) for _, data in parts]
        most = budget.shared_rows if shared else budget.rows
        if count > 1:
            most = min(-(-most // count), max(_LEAST, -(-sum(sizes) // count)))
        groups = _passes(sizes, most, shared)
        for group, (slopes, scores) in zip(groups, at_once(taken, groups, count), strict=True):
            for tensor, slope in zip(trained, slopes, strict=True):
                if slope is not None:
                    tensor.grad = slope if tensor.grad is None else tensor.grad + slope
            for (number, _), part in zip(group, scores, strict=True):
                found[number].append(part)
        return [reduce(Scores.joined, own) for own in found]

    # The one whose passes these are: memory that runs out shall not change the batches of another.
    return (backbone if reader is None else reader.backbone).within_memory(run)


def _summed_loss(values: Tensor, data: Labelled) -> Tensor:
    """Return the sum of the losses of values `[b, O]`, each by its example's weight, which is 1 on average."""
    losses = data.golds.losses(values)
    return losses.sum() if data.weights is None else (losses * data.weights.to(losses.dtype)).sum()


def _passes(sizes: Sequence[int], most: int, shared: bool) -> list[list[tuple[int, range]]]:
    """Return what each backward pass takes: the number of a part, and rows of it; of several parts where they share.

    Args:
        sizes: rows of each part.
        most: rows of a pass.
        shared: whether parts share passes.
    """
    groups: list[list[tuple[int, range]]] = []
    for number, size in enumerate(sizes):
        for start in range(0, size, most):
            rows = range(start, min(start + most, size))
            if shared and groups and sum(len(own) for _, own in groups[-1]) + len(rows) <= most:
                groups[-1].append((number, rows))
            else:
                groups.append([(number, rows)])
    return groups


def _values_each(backbone: AnyBackbone, parts: Sequence[tuple[Candidate, Labelled]]) -> list[Tensor]:
    """Return the calibrated values `[B, O]` of each candidate on examples of its own."""
    if len(parts) == 1:
        ((candidate, data),) = parts
        return [candidate.logits(backbone, data.context)]
    found = backbone.class_logits_each([(data.context, candidate.prompt) for candidate, data in parts])
    return [candidate.calibration.apply(part) for (candidate, _), part in zip(parts, found, strict=True)]


def loss_gradient(problem: Problem, candidate: Candidate, data: Labelled) -> tuple[Score, Tensor]:
    """Return the score on some examples and the gradient `[S, d]` of the mean loss at the prompt's vectors."""
    backbone, prompt = problem.backbone, candidate.prompt
    vectors = trained_copy(prompt.vectors(backbone.embed)).requires_grad_()
    free = replace(candidate, prompt=SoftPrompt(vectors, prompt.head))
    (found,) = accumulate_gradients(backbone, [(lambda: free, data)], [vectors])
    assert vectors.grad is not None
    return found.mean, vectors.grad


def features_of(backbone: AnyBackbone, candidate: Candidate, data: Labelled) -> Tensor:
    """Return what a class head of a candidate reads `[B, d]` (float32 at least), differentiable."""
    with lent(candidate.reader, backbone, data.context) as (own, context):
        features: Tensor = own.features(context, candidate.prompt)
    return features.to(torch.promote_types(features.dtype, torch.float32))


def feature_gradients(
    backbone: AnyBackbone,
    parts: Sequence[tuple[Callable[[], Candidate], Labelled]],
    trained: Sequence[Tensor],
    loss: Callable[[Tensor, Labelled], tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Set the gradients of the sum of losses of features; return what `loss` found of each part, detached.

    A loss may compare all texts of a part with each other. Where they take several passes, all features are computed
    first without a graph, and the loss's gradient at them is carried back pass by pass (gradient caching, Gao et al.,
    2021, arXiv 2101.06983). That reads the texts twice, so a pass takes as many as those that trainings share.

    Args:
        backbone: the problem's.
        parts: as for `accumulate_gradients`.
        trained: the leaves, whose gradients are replaced.
        loss: returns the loss (scalar) of features `[B, d]`, and something to hand on.
    """
    with torch.no_grad():
        reader = parts[0][0]().reader

    def run(budget: Budget) -> list[Tensor]:
        for tensor in trained:
            tensor.grad = None
        return [_carried_back(backbone, make, data, budget.shared_rows, loss) for make, data in parts]

    return (backbone if reader is None else reader.backbone).within_memory(run)


def _carried_back(
    backbone: AnyBackbone,
    make: Callable[[], Candidate],
    data: Labelled,
    most: int,
    loss: Callable[[Tensor, Labelled], tuple[Tensor, Tensor]],
) -> Tensor:
    """Add the gradients of one part, `most` texts in a pass; return what `loss` found."""
    if len(data) <= most:
        value, found = loss(features_of(backbone, make(), data), data)
        value.backward()
        return found.detach()
    passes = list(data.chunks(most))
    with torch.no_grad():
        features = torch.cat([features_of(backbone, make(), own) for own in passes])
    value, found = loss(features.requires_grad_(), data)
    (slopes,) = torch.autograd.grad(value, features)
    for own, slope in zip(passes, slopes.split(most), strict=True):
        (features_of(backbone, make(), own) * slope).sum().backward()
    return found.detach()
