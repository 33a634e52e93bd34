"""Gradients of several candidates at once are those of each alone."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from conftest import tiny_problem
from cuecraft.artifact import DeepCue
from cuecraft.methods.gradients import accumulate_gradients
from cuecraft.methods.problem import CalibrationKind
from cuecraft.methods.untuned import starting_point

ROWS = ([0, 1, 2, 3, 4], [5], [2, 6, 7])


def tensors(backbone, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(backbone.offsets_shape(3), generator=generator) * 0.2).requires_grad_()


@pytest.mark.parametrize("most", [32, 4, 1])
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_gradients_of_several_candidates_are_those_of_each_alone(kind, most, request, monkeypatch):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone, "{prompt: it was}{text}" if kind == "sequence" else None)
    start = starting_point(problem, (30, 31, 32), CalibrationKind.FITTED)
    trained = [tensors(backbone, seed) for seed in range(3)]
    parts = [
        (
            lambda own=own, scale=scale: replace(
                start, prompt=DeepCue(start.prompt, own), calibration=replace(start.calibration, scale=scale)
            ),
            problem.pool.select(rows),
        )
        for own, rows, scale in zip(trained, ROWS, (1.0, 0.5, 2.0), strict=True)
    ]
    monkeypatch.setattr(backbone, "budget", replace(backbone.budget, rows=most, shared_rows=most))
    found = accumulate_gradients(backbone, parts, trained)
    for (make, data), own, scores in zip(parts, trained, found, strict=True):
        alone = make().logits(backbone, data.context)
        losses = functional.cross_entropy(alone, data.labels, reduction="none")
        assert torch.allclose(scores.losses, losses.double(), atol=1e-5)
        assert torch.equal(scores.primary, (alone.argmax(1) == data.labels).double())
        (expected,) = torch.autograd.grad(functional.cross_entropy(alone, data.labels), own)
        assert torch.allclose(own.grad, expected, atol=1e-5)
        assert expected.abs().max() > 1e-4


def test_candidates_that_share_passes_take_as_few_as_fit(causal, monkeypatch):
    problem = tiny_problem(causal)
    start = starting_point(problem, (30, 31, 32), CalibrationKind.NONE)
    trained = [tensors(causal, seed) for seed in range(3)]
    parts = [
        (lambda own=own: replace(start, prompt=DeepCue(start.prompt, own)), problem.pool.select(rows))
        for own, rows in zip(trained, ROWS, strict=True)
    ]
    passes = []
    handle = causal.model.register_forward_pre_hook(lambda *_: passes.append(1))
    accumulate_gradients(causal, parts, trained)
    assert len(passes) == 1
    monkeypatch.setattr(causal, "budget", replace(causal.budget, shared_rows=6))
    accumulate_gradients(causal, parts, trained)
    assert len(passes) == 1 + 2  # 5 + 1 rows, and 3
    handle.remove()
