"""Successive halving against brute force, and packed scoring against one plain forward pass per candidate."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import golds_of, tiny_problem
from cuecraft.artifact import Calibration, HardPrompt
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import CalibrationKind, Labelled, score
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.search.halving import best_swap, halving_rounds
from cuecraft.methods.search.vocabulary import allowed_tokens
from cuecraft.methods.untuned import starting_point
from oracles import plain_class_logits


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(0, 5))
def test_rounds_hold_every_example_once_and_double(labels, seed):
    rounds = halving_rounds(labels, np.random.default_rng(seed))
    assert sorted(row for rows in rounds for row in rows) == list(range(len(labels)))
    seen = 0
    for rows in rounds[:-1]:
        assert len(rows) == (seen or 8)
        seen += len(rows)
    assert len(rounds[-1]) >= seen, "the last round would be too small to tell anything new"


def test_classes_take_turns():
    labels = [0] * 16 + [1] * 16
    rounds = halving_rounds(labels, np.random.default_rng(0))
    assert [len(rows) for rows in rounds] == [8, 8, 16]
    assert all(sum(labels[row] for row in rows) == len(rows) / 2 for rows in rounds)
    assert rounds != halving_rounds(labels, np.random.default_rng(1))


class Table:
    """A backbone whose logits are looked up: `[K, B, C]` by swap and example."""

    def __init__(self, logits):
        self.logits = logits
        self.asked = []

    def score_swaps(self, rows, prompt, swaps):
        self.asked.append((len(swaps), len(rows)))
        return torch.stack([self.logits[token][rows] for _, token in swaps])


class Rows(list):
    def select(self, rows):
        return [self[row] for row in rows]


def table_problem(candidates, examples, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(candidates, examples, 3, generator=generator)
    labels = torch.randint(3, (examples,), generator=generator)
    return Table(logits), Labelled(Rows(range(examples)), golds_of(labels))


def losses(backbone, data):
    return torch.stack([torch.nn.functional.cross_entropy(rows.double(), data.labels) for rows in backbone.logits])


@pytest.mark.parametrize("seed", range(5))
def test_one_round_of_all_rows_finds_the_best(seed):
    backbone, data = table_problem(20, 32, seed)
    current = Candidate(HardPrompt((0,)), Calibration.none(3))
    swap, found = best_swap(backbone, current, data, [(0, n) for n in range(20)], [list(range(32))])
    assert swap == (0, int(losses(backbone, data).argmin()))
    assert found.loss == pytest.approx(float(losses(backbone, data).min()))


@pytest.mark.parametrize("seed", range(5))
def test_the_winner_is_scored_on_all_examples_and_the_cost_falls(seed):
    backbone, data = table_problem(24, 64, seed)
    backbone.logits[7, range(64), data.labels] += 3.0  # better than all others on nearly every example
    current = Candidate(HardPrompt((0,)), Calibration.none(3))
    rounds = halving_rounds(data.labels.tolist(), np.random.default_rng(seed))
    swap, found = best_swap(backbone, current, data, [(0, n) for n in range(24)], rounds)
    assert backbone.asked == [(24, 8), (12, 8), (6, 16), (3, 32)]
    assert swap == (0, 7)
    assert found.loss == pytest.approx(float(losses(backbone, data)[7]))
    hits = backbone.logits[7].argmax(-1) == data.labels
    assert found.primary == pytest.approx(float(hits.double().mean()))


def test_of_an_odd_number_the_larger_half_goes_on():
    backbone, data = table_problem(5, 32, 0)
    rounds = [list(range(8)), list(range(8, 16)), list(range(16, 32))]
    best_swap(backbone, Candidate(HardPrompt((0,)), Calibration.none(3)), data, [(0, n) for n in range(5)], rounds)
    assert backbone.asked == [(5, 8), (3, 8), (2, 16)]


def test_of_equal_swaps_the_first_is_taken():
    backbone, data = table_problem(1, 16, 0)
    backbone.logits = backbone.logits.repeat(5, 1, 1)
    rounds = halving_rounds(data.labels.tolist(), np.random.default_rng(0))
    swap, _ = best_swap(
        backbone, Candidate(HardPrompt((0,)), Calibration.none(3)), data, [(0, n) for n in (4, 2, 0, 3, 1)], rounds
    )
    assert swap == (0, 0)


def test_a_tie_at_the_end_goes_to_the_first_whatever_the_rounds_before_said():
    logits = torch.zeros(2, 16, 2)
    labels = torch.zeros(16, dtype=torch.long)
    logits[0, 8:, 0], logits[1, :8, 0] = 1.0, 1.0  # equal over all rows; the second is ahead after eight
    backbone, data = (
        Table(torch.cat([logits, torch.full((2, 16, 2), 0.0)])),
        Labelled(Rows(range(16)), golds_of(labels)),
    )
    current = Candidate(HardPrompt((0,)), Calibration.none(2))
    swap, _ = best_swap(backbone, current, data, [(0, n) for n in range(4)], [list(range(8)), list(range(8, 16))])
    assert swap == (0, 0)


def plain_scoring(backbone):
    """Score swaps as published code does: one uncached forward pass over the full vocabulary for each."""

    def score_swaps(context, prompt, swaps):
        cues = [prompt.swapped(*swap).token_ids for swap in swaps]
        with torch.no_grad():
            return torch.stack([plain_class_logits(backbone, context, cue) for cue in cues]).float()

    return score_swaps


@pytest.mark.parametrize("scoring", ["exact", "halving"])
@pytest.mark.parametrize("positions", ["one", "all"])
def test_packed_and_plain_scoring_take_the_same_path(causal, positions, scoring, monkeypatch):
    problem = tiny_problem(causal)
    method = AutoPrompt(steps=6, candidates=8, positions=positions, scoring=scoring, prompt_length=3)
    packed = method.fit(problem).trace
    monkeypatch.setattr(causal, "score_swaps", plain_scoring(causal))
    plain = method.fit(problem).trace
    assert any(event.get("accepted") for event in packed)
    assert len(packed) == len(plain)
    for ours, theirs in zip(packed, plain, strict=True):
        assert ours.get("token_ids") == theirs.get("token_ids")
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-4)


@pytest.mark.parametrize("kind", ["masked", "sequence"])
def test_exact_scoring_of_an_encoder_finds_the_plain_loops_winner(kind, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    current = starting_point(problem, (30, 31, 32), CalibrationKind.FITTED)
    tokens = torch.nonzero(allowed_tokens(backbone, problem.task)).flatten().tolist()[:20]
    swaps = [(position, token) for position in range(3) for token in tokens if (30, 31, 32)[position] != token]
    found, best = best_swap(backbone, current, problem.train, swaps, [list(range(len(problem.train)))])
    plain = {
        swap: score(backbone, Candidate(current.prompt.swapped(*swap), current.calibration), problem.train).loss
        for swap in swaps
    }
    assert best.loss == pytest.approx(min(plain.values()), abs=1e-5)
    assert plain[found] == pytest.approx(min(plain.values()), abs=1e-5)
