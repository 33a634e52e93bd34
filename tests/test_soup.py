"""Averages of trained prompts: where there is a barrier between them."""

from dataclasses import replace

import torch

from conftest import tiny_problem
from cuecraft.method import CalibrationKind, Selection, starting_point
from cuecraft.prompts import DeepCue
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.soup import is_barrier_free


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


def test_trainings_that_begin_in_one_order_part_after_the_first_epoch(causal):
    """Until then they are the training that has this order by its own seed; with another order they would not be."""
    problem = replace(tiny_problem(causal), dev=None)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)

    def losses(epochs, seed, first_order=None):
        own = Selection(replace(problem, seed=seed, first_order=first_order))
        OffsetTraining(epochs=epochs, batch_size=2, learning_rate=0.1).refine(own.problem, start, own)
        return [event["train_loss"] for event in own.trace]

    alone, first, second = losses(3, 5), losses(3, 6, 5), losses(3, 7, 5)
    assert first[:2] == second[:2] == alone[:2]
    assert losses(3, 6)[1] != alone[1]
    assert len({alone[2], first[2], second[2]}) == 3
