"""`auto`: in which order trainings on folds are tried, and whose time that may take."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny_problem
from cuecraft.method import Labelled
from cuecraft.tune import held_out as folds_module
from cuecraft.tune.auto import ladder as ladder_module
from cuecraft.tune.held_out import LastEpoch
from cuecraft.tune.auto.ladder import Configuration, Ladder, Run
from cuecraft.tune.auto.starts import GivenWords, Words
from cuecraft.tune.prompt_tuning import EmbeddingTraining
from test_auto_ladder import Plain, answers_of, deep, ladder_of


def rates(runs):
    return {run.configuration.training.learning_rate: len(run.answers) for run in runs}


def scripted(causal, monkeypatch, cost, loss, left=math.inf, refused=()):
    """A ladder of four folds of two examples, one of them enough; what a training costs and answers is given by rate.

    Returns the ladder, configurations of rates in the order of `cost`, and the trainings as they come: rate and folds;
    those in `refused` come to nothing.
    """
    monkeypatch.setattr(ladder_module, "_ENOUGH", 2)
    ladder, problem = ladder_of(causal, folds=4)
    log = []

    def seconds(self, run, trainings):
        return trainings * cost[run.configuration.training.learning_rate]

    def train(self, run, numbers):
        rate = run.configuration.training.learning_rate
        log.append((rate, tuple(numbers)))
        if log[-1] not in refused:
            run.answers += [[answers_of((loss[rate], loss[rate] + 0.01))]] * len(numbers)
        return True

    def spent():
        return sum(cost[rate] * len(folds) for rate, folds in log)

    monkeypatch.setattr(Ladder, "_seconds", seconds)
    monkeypatch.setattr(Ladder, "_train", train)
    limited = replace(problem, out_of_time=lambda reserve=0.0: spent() + reserve > left)
    labels = torch.zeros(8, dtype=torch.long)
    ladder = Plain(limited, Labelled(ladder._pool.context, labels), ladder._folds)
    return ladder, [deep(problem, rate) for rate in cost], log


def test_halving_keeps_the_better_ones(causal, monkeypatch):
    """Where one fold is not enough, the most promising one goes through all before any other."""
    cost, loss = dict.fromkeys((0.01, 0.03, 0.1, 0.2), 1.0), {0.01: 0.7, 0.03: 0.5, 0.1: 0.3, 0.2: 0.6}
    ladder, configurations, log = scripted(causal, monkeypatch, cost, loss)
    monkeypatch.setattr(ladder_module, "_ENOUGH", 3)
    runs = ladder.climb(configurations, (2, 1))
    others = [(rate, (0, 1)) for rate in (0.03, 0.1, 0.2)]
    assert log == [(0.01, (0,)), (0.01, (1, 2, 3)), *others, (0.1, (2, 3)), (0.03, (2, 3))]
    assert rates(runs) == {0.1: 4, 0.03: 4, 0.01: 4, 0.2: 2}
    assert runs[0].configuration.training.learning_rate == 0.1


def test_where_one_fold_is_enough_the_one_that_leads_on_it_goes_first(causal, monkeypatch):
    cost, loss = dict.fromkeys((0.01, 0.1, 0.03), 1.0), {0.01: 0.7, 0.1: 0.3, 0.03: 0.5}
    ladder, configurations, log = scripted(causal, monkeypatch, cost, loss)
    runs = ladder.climb(configurations, (2, 1))
    assert log == [(0.01, (0,)), (0.1, (0,)), (0.03, (0,)), (0.1, (1, 2, 3)), (0.03, (1,))]
    assert rates(runs) == {0.1: 4, 0.03: 2, 0.01: 1}
    assert runs[0].configuration.training.learning_rate == 0.1


@pytest.mark.parametrize(("share", "order"), [(3, [0.03, 0.1, 0.2, 0.01]), (2, [0.03, 0.01, 0.1, 0.2])])
def test_where_the_first_one_goes_the_whole_way_those_that_go_farther_come_before_others(
    share, order, causal, monkeypatch
):
    cost = dict.fromkeys((0.03, 0.01, 0.1, 0.2), 1.0)
    ladder, configurations, log = scripted(causal, monkeypatch, cost, dict.fromkeys(cost, 0.5))
    monkeypatch.setattr(Ladder, "share", lambda self, run: share)
    ladder.climb(configurations, (1,))
    assert log[:4] == [(rate, (0,)) for rate in order]


def test_what_goes_farther_starts_at_the_same_place_and_trains_the_same(causal):
    problem = tiny_problem(causal)
    first, words = deep(problem, 0.03, 16), Words("b", GivenWords(), (3,), differs=True)
    assert deep(problem, 0.1, 8).goes_farther(first)
    assert deep(problem, 0.03, 17).goes_farther(first)
    assert not deep(problem, 0.03, 16).goes_farther(first)
    assert not replace(deep(problem, 0.1, 8), start=words).goes_farther(first)
    assert not Configuration(first.start, None).goes_farther(first)
    assert not Configuration(first.start, EmbeddingTraining(learning_rate=1.0, epochs=32)).goes_farther(first)


def test_the_most_promising_one_goes_first_where_no_other_is_clearly_better(causal, monkeypatch):
    cost, loss = dict.fromkeys((0.01, 0.1), 1.0), {0.01: 0.3, 0.1: 0.3}
    ladder, configurations, log = scripted(causal, monkeypatch, cost, loss)
    ladder.climb(configurations, (1,))
    assert log[:3] == [(0.01, (0,)), (0.1, (0,)), (0.01, (1, 2, 3))]


@pytest.mark.parametrize(
    ("left", "tried"),
    [(6.7, [0]), (6.8, [0, 1]), (7.8, [0, 1, 3]), (24.9, [0, 1, 3]), (25.9, [0, 1, 2]), (26, [0, 1, 2, 3])],
)
def test_others_are_tried_first_only_where_whichever_leads_will_have_time_to_go_on(left, tried, causal, monkeypatch):
    """A training takes a second, the third's four; then three folds more, and the last step 1.3 * 8 / 6 as long."""
    cost = {0.1: 1.0, 0.03: 1.0, 0.05: 4.0, 0.02: 1.0}
    ladder, configurations, log = scripted(causal, monkeypatch, cost, dict.fromkeys(cost, 0.5), left)
    runs = [Run(configuration) for configuration in configurations]
    assert ladder._one_completed(runs)
    assert log == [*((list(cost)[n], (0,)) for n in tried), (0.1, (1, 2, 3))]


def test_a_leader_that_is_refused_later_leaves_the_lead_to_the_next_one_that_was_tried(causal, monkeypatch):
    cost, loss = {0.1: 1.0, 0.05: 9.0, 0.02: 1.0, 0.03: 1.0}, {0.1: 0.3, 0.05: 0.3, 0.02: 0.5, 0.03: 0.6}
    refused = [(0.1, (1, 2, 3)), (0.02, (0,))]
    ladder, configurations, log = scripted(causal, monkeypatch, cost, loss, 12, refused)
    runs = ladder.climb(configurations, (1,))
    assert log == [(0.1, (0,)), (0.02, (0,)), (0.03, (0,)), (0.1, (1, 2, 3)), (0.03, (1, 2, 3))]
    assert rates(runs) == {0.03: 4}


def test_one_that_takes_longer_than_thought_takes_no_time_of_the_leaders(causal, monkeypatch):
    """Real trainings and a clock by the epoch: ten seconds, but a hundred where there are five epochs of them."""
    monkeypatch.setattr(ladder_module, "_ENOUGH", 2)
    clock, seen = [0.0], LastEpoch.see

    def see(self, *args, **details):
        clock[0] += 100.0 if details["total"] == 5 else 10.0
        return seen(self, *args, **details)

    monkeypatch.setattr(folds_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(LastEpoch, "see", see)
    ladder, problem = ladder_of(causal, folds=4)
    limited = replace(problem, out_of_time=lambda reserve=0.0: clock[0] + reserve > 420)
    ladder = Ladder(limited, ladder._pool, ladder._folds)
    runs = ladder.climb([deep(problem), deep(problem, 0.03, 5)], (1,))
    assert rates(runs) == {0.1: 4}
    assert any("0.03 x 5" in event["configuration"] for event in ladder.trace)  # it was begun
    assert clock[0] <= 420
