"""Averages of trained prompts: where there is a barrier between them."""

from dataclasses import replace

import torch

from conftest import tiny_problem
from cuecraft.method import CalibrationKind
from cuecraft.prompts import DeepCue
from cuecraft.tune.soup import is_barrier_free
from cuecraft.untuned import starting_point


def test_a_barrier_is_more_loss_at_the_mean_than_on_average(causal):
    """By hand: the mean of offsets, and log-losses of plain class logits."""
    problem = tiny_problem(causal)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)
    context, labels = problem.train.context, problem.train.labels

    def loss(offsets):
        with torch.no_grad():
            logits = causal.class_logits(context, DeepCue(start.prompt, offsets))
        return float(torch.nn.functional.cross_entropy(logits.double(), labels))

    told = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        shape = (3, causal.model.config.num_hidden_layers, len(start.prompt), causal.hidden_size)
        offsets = 0.3 * torch.randn(shape, generator=generator)
        losses = list(map(loss, offsets))
        expected = loss(offsets.mean(0)) <= sum(losses) / 3
        candidates = [replace(start, prompt=DeepCue(start.prompt, own)) for own in offsets]
        assert is_barrier_free(causal, candidates, losses, problem.train) == expected
        told.append(expected)
    assert 3 <= sum(told) <= 27
