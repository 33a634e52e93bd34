"""The leaderboard, on a tiny model and tiny data."""

import math

import pytest

from conftest import make_examples, tiny_problem
from cuecraft.methods.problem import label_context, score
from cuecraft.study.compare import run_methods, wilson_interval


@pytest.mark.parametrize(("accuracy", "count"), [(0.0, 10), (0.5, 40), (0.8, 300), (1.0, 25)])
def test_wilson_ends_are_where_the_normal_test_just_rejects(accuracy, count):
    # The interval's defining property: |accuracy - p| equals z standard errors *under p* at both ends.
    for end in wilson_interval(accuracy, count):
        if 0 < end < 1:
            assert abs(accuracy - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / count), rel=1e-6)
        else:
            assert end == accuracy


def test_rows_hold_what_each_method_found(causal):
    problem = tiny_problem(causal)
    test = label_context(causal, problem.task, make_examples())
    methods = [("zero-shot", "zero-shot", {}), ("tuned", "prompt-tuning", {"epochs": 8, "learning_rate": 0.1})]
    heard = []
    board = run_methods(problem, test, methods, lambda name: lambda event: heard.append(name))
    assert [row.name for row in board.rows] == ["zero-shot", "tuned"]
    assert set(heard) == {"zero-shot", "tuned"}
    for row in board.rows:
        assert row.test == score(causal, row.outcome.best, test)
        assert row.interval[0] <= row.test.primary <= row.interval[1]
    plain, tuned = board.rows
    assert plain.tuned_parameters == 0
    assert tuned.tuned_parameters == len(problem.initial_ids) * 32
    assert tuned.stored_bytes >= tuned.tuned_parameters * 4
    assert board.winner is min(board.rows, key=lambda row: row.dev.loss)
