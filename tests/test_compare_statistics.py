"""Bootstrap, macro-F1 and meters, by loops and formulas worked out by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from cuecraft.study.compare import statistics
from cuecraft.study.compare import trial as meters
from cuecraft.study.compare.statistics import Resamples, percentile_interval, spread, two_sided_p

RANDOM = np.random.default_rng(5)
TRUTH = RANDOM.integers(3, size=20)
PREDICTED = RANDOM.integers(3, size=(2, 20))


def drawn(counts):
    """The row numbers that counts stand for."""
    assert counts.sum() == len(counts)
    return np.repeat(np.arange(len(counts)), counts.astype(int))


def test_draws_are_with_replacement_and_always_the_same():
    draws = Resamples.draw(3, 40, count=500)
    assert draws.seeds.shape == (500, 3)
    assert draws.rows.shape == (500, 40)
    assert (draws.rows.sum(axis=1) == 40).all()
    # A row is left out of a resample with probability (1 - 1/n)^n.
    assert (draws.rows == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.02)
    again = Resamples.draw(3, 40, count=500)
    assert (again.rows == draws.rows).all()


def test_draws_do_not_depend_on_the_size_of_a_block(monkeypatch):
    whole = Resamples.draw(2, 30, count=50)
    monkeypatch.setattr(statistics, "_BLOCK", 70)
    assert (Resamples.draw(2, 30, count=50).rows == whole.rows).all()


def test_the_mean_is_that_of_the_drawn_seeds_and_rows():
    draws = Resamples.draw(2, 20, count=30)
    hits = (PREDICTED == TRUTH).astype(float)
    expected = [hits[np.ix_(drawn(s), drawn(r))].mean() for s, r in zip(draws.seeds, draws.rows, strict=True)]
    np.testing.assert_allclose(draws.mean(hits), expected)


def test_macro_f1_of_draws_is_that_of_scikit_learn():
    draws = Resamples.draw(2, 20, count=30)
    expected = [
        np.mean(
            [
                f1_score(TRUTH[drawn(r)], PREDICTED[s][drawn(r)], average="macro", labels=[0, 1, 2], zero_division=0)
                for s in drawn(seeds)
            ]
        )
        for seeds, r in zip(draws.seeds, draws.rows, strict=True)
    ]
    np.testing.assert_allclose(draws.macro_f1(TRUTH, PREDICTED, 3), expected)


def test_the_interval_of_one_seed_is_about_the_binomial_one():
    hits = (np.arange(400) < 300).astype(float)[None]
    low, high = percentile_interval(Resamples.draw(1, 400).mean(hits))
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_seeds_that_differ_widen_the_interval():
    # Every row right with one seed and wrong with the other: rows alone would give 0.5 without any doubt.
    hits = np.array([np.ones(50), np.zeros(50)])
    assert percentile_interval(Resamples.draw(2, 50).mean(hits)) == (0.0, 1.0)


def test_p_values_count_the_draws_beyond_zero():
    assert two_sided_p(np.zeros(99)) == 1
    assert two_sided_p(np.ones(99)) == pytest.approx(2 / 100)
    assert two_sided_p(np.array([-1.0] * 4 + [1.0] * 95)) == pytest.approx(2 * 5 / 100)
    assert two_sided_p(-np.array([-1.0] * 4 + [1.0] * 95)) == pytest.approx(2 * 5 / 100)


def test_a_difference_that_cancels_is_a_tie_and_not_a_rounding_error():
    # One row better and one worse: a draw of each alike cancels, and such draws count on both sides of zero.
    values = np.array([[1.0, -1.0, 0.0]] * 3)
    draws = Resamples.draw(3, 3)
    cancels = draws.rows[:, 0] == draws.rows[:, 1]
    assert cancels.any()
    assert (draws.mean(values)[cancels] == 0).all()


def test_one_seed_has_no_spread():
    assert spread(np.array([0.5])) is None
    assert spread(np.array([0.5, 0.7])) == pytest.approx(math.sqrt(0.02))


def test_peak_memory_sees_what_is_freed_before_the_end():
    size = 64 * 2**20
    with meters.peak_memory(torch.device("cpu")) as memory:
        block = torch.ones(size, dtype=torch.uint8)
        del block
    assert 0.9 * size < memory.rise < 2 * size  # some of it may lie where freed memory was kept
    assert memory.peak > memory.rise
    assert meters.peak_bytes(lambda: torch.ones(size, dtype=torch.uint8)) > 0.9 * size


def test_peak_memory_is_none_where_it_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(meters, "_CLEAR", tmp_path / "proc" / "clear_refs")
    with meters.peak_memory(torch.device("cpu")) as memory:
        pass
    assert (memory.peak, memory.rise) == (None, None)
    with pytest.raises(OSError, match="Linux only"):
        meters.peak_bytes(lambda: None)


@pytest.mark.parametrize(("rows", "single", "many"), [(2, 2, 2), (40, 30, 40), (100, 30, 64)])
def test_speed_is_of_single_queries_after_a_warm_up_and_of_many_at_once(rows, single, many):
    asked = []
    speed = meters.answer_speed(lambda part: asked.append(len(part)), range(rows))
    assert asked == [1] * (3 + single) + [many]
    assert len(speed.latencies) == single
    assert speed.rows == many
    assert speed.examples_per_second > 0
