"""Discrete search: first-order scores against finite differences, swaps against brute force."""

from dataclasses import replace

import pytest
import torch

from conftest import golds_of, make_causal, make_examples, make_task, tiny_problem
from cuecraft.artifact import HardPrompt, SoftPrompt
from cuecraft.backbone import load_backbone
from cuecraft.backbone.prompt import nearest_tokens
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import loss_gradient
from cuecraft.methods.problem import CalibrationKind, Labelled, Problem, label_context, score
from cuecraft.methods.search import AutoPrompt, StraightThrough
from cuecraft.methods.search.halving import best_swaps, best_tokens, first_order_change
from cuecraft.methods.search.space import filled_ids
from cuecraft.methods.search.vocabulary import allowed_tokens
from cuecraft.methods.untuned import starting_point


def test_first_order_change_is_the_directional_derivative_of_the_loss(byte_tokenizer):
    backbone = load_backbone((make_causal(byte_tokenizer, "gpt2").double(), byte_tokenizer))
    data = label_context(backbone, make_task(), make_examples())
    problem = Problem(backbone, make_task(), data, None)
    start = starting_point(problem, (300, 301, 302), CalibrationKind.FITTED)
    _, gradient = loss_gradient(problem, start, data)
    vectors, embeddings = start.prompt.vectors(backbone.embed), backbone.embedding_matrix()
    change = first_order_change(gradient, vectors, embeddings)
    step = 1e-5
    for position, token in [(0, 5), (1, 310), (2, 350), (2, 302)]:
        direction = torch.zeros_like(vectors)
        direction[position] = embeddings[token] - vectors[position]
        ahead, behind = (
            score(backbone, Candidate(SoftPrompt(vectors + sign * step * direction), start.calibration), data).loss
            for sign in (1, -1)
        )
        assert float(change[position, token]) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-10)


def test_best_tokens_are_the_allowed_ones_of_least_change():
    change = torch.tensor([0.5, -3.0, -2.0, -1.0, 0.0])
    allowed = torch.tensor([True, False, True, True, True])
    assert best_tokens(change, allowed, 2) == [2, 3]
    assert best_tokens(change, allowed, 9) == [2, 3, 4, 0]


def test_best_swaps_looks_at_every_position():
    change = torch.tensor([[0.0, -1.0, 3.0], [-2.0, 4.0, -0.5]])
    assert best_swaps(change, torch.tensor([True, True, False]), 2) == [(1, 0), (0, 1)]


@pytest.mark.parametrize("positions", ["one", "all"])
def test_with_the_whole_vocabulary_as_candidates_a_step_takes_the_best_swap_there_is(causal, positions):
    problem = tiny_problem(causal)
    method = AutoPrompt(steps=1, candidates=10_000, positions=positions, calibration="none")
    trace = method.fit(problem).trace
    start = HardPrompt(problem.initial_ids)
    allowed = torch.nonzero(allowed_tokens(causal, problem.task)).flatten().tolist()
    gives_back = problem.train.context.renderer.gives_back
    where = range(len(start)) if positions == "all" else [trace[-1]["position"]]
    losses = {}
    for position in where:
        for token in allowed:
            if not gives_back([start.swapped(position, token).token_ids])[0]:
                continue
            swapped = Candidate(
                start.swapped(position, token), starting_point(problem, (), CalibrationKind.NONE).calibration
            )
            losses[position, token] = score(causal, swapped, problem.train).loss
    best = min(losses, key=losses.get)
    assert trace[-1]["accepted"]
    assert trace[-1]["train_loss"] == pytest.approx(losses[best], abs=1e-5)
    assert trace[-1]["prompt"] == start.swapped(*best).text(causal.tokenizer)


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
def searched(request):
    backbone = request.getfixturevalue(request.param)
    problem = tiny_problem(backbone)
    return problem, AutoPrompt(steps=8, candidates=12, prompt_length=3).fit(problem)


def test_losses_of_accepted_swaps_fall_and_all_are_noted(searched):
    _, outcome = searched
    taken = [event["train_loss"] for event in outcome.trace if event.get("accepted")]
    assert taken, "the search accepted nothing, so this test shows nothing"
    assert taken == sorted(taken, reverse=True)
    begin = [event["train_loss"] for event in outcome.trace if event["step"] == 0][-1]
    assert begin > taken[0]


def test_the_recorded_loss_of_a_swap_equals_a_fresh_computation(searched):
    problem, outcome = searched
    backbone = problem.backbone
    accepted = [event for event in outcome.trace if event.get("accepted")]
    fresh = label_context(backbone, problem.task, make_examples()[:5])
    begin = starting_point(problem, filled_ids(problem, 3), CalibrationKind.FITTED)
    for event in accepted:
        candidate = Candidate(HardPrompt(tuple(event["token_ids"]), begin.prompt.head), begin.calibration)
        assert score(backbone, candidate, fresh).loss == pytest.approx(event["train_loss"], abs=1e-5)


def test_the_best_prompt_is_the_one_of_least_dev_loss(searched):
    problem, outcome = searched
    seen = [event["dev_loss"] for event in outcome.trace if "dev_loss" in event]
    assert score(problem.backbone, outcome.best, problem.dev).loss == pytest.approx(min(seen), abs=1e-6)


def test_the_untuned_prompt_wins_when_every_swap_is_worse_on_dev(causal):
    problem = tiny_problem(causal)
    turned = replace(problem, dev=Labelled(problem.train.context, golds_of(1 - problem.train.labels)))
    start = starting_point(problem, problem.initial_ids, CalibrationKind.FITTED)
    outcome = AutoPrompt(steps=8, candidates=12).fit(turned)
    assert any(event.get("accepted") for event in outcome.trace)
    assert not outcome.is_tuned
    assert outcome.best.prompt.token_ids == start.prompt.token_ids


def test_the_trajectory_does_not_depend_on_the_dev_set_or_on_who_listens(causal):
    def steps(problem):
        return [
            (e["step"], e.get("accepted"), e["train_loss"])
            for e in AutoPrompt(steps=8, candidates=6).fit(problem).trace
        ]

    plain = tiny_problem(causal)
    small = replace(plain, dev=plain.dev.select([0]))
    heard = []
    noisy = replace(plain, report=lambda event: (heard.append(event), torch.rand(3)))
    assert steps(plain) == steps(small) == steps(noisy)
    assert heard


def test_candidates_leave_out_special_tokens_and_answers(causal, byte_tokenizer):
    allowed = allowed_tokens(causal, make_task(words={"negative": "bad", "positive": "good"}))
    for word in (" bad", " good"):
        assert not allowed[byte_tokenizer(word)["input_ids"][0]]
    assert not allowed[:3].any()
    assert allowed[byte_tokenizer(" film")["input_ids"][0]]


def test_the_search_stops_in_time(causal):
    calls = []
    problem = replace(tiny_problem(causal), out_of_time=lambda: len(calls) >= 2 or calls.append(1))
    assert max(event["step"] for event in AutoPrompt(steps=50).fit(problem).trace) <= 2


def test_straight_through_keeps_to_words_and_records_true_losses(causal):
    problem = tiny_problem(causal)
    outcome = StraightThrough(steps=12, learning_rate=1.0).fit(problem)
    assert outcome.best.prompt.kind == "hard"
    seen = [event["dev_loss"] for event in outcome.trace if "dev_loss" in event]
    assert len(seen) > 1, "no new words were tried, so this test shows nothing"
    assert score(causal, outcome.best, problem.dev).loss == pytest.approx(min(seen), abs=1e-6)


def test_nearest_tokens_is_brute_force_in_chunks():
    vectors, embeddings = torch.randn(5, 8), torch.randn(37, 8)
    brute = (vectors[:, None] - embeddings[None]).square().sum(-1).argmin(1)
    assert torch.equal(nearest_tokens(vectors, embeddings, chunk=10), brute)


def test_filled_ids_keeps_the_words_nearest_to_the_answer(causal):
    problem = tiny_problem(causal)
    own = problem.initial_ids
    assert filled_ids(problem, None) == own
    assert filled_ids(problem, 1) == own[-1:]
    assert filled_ids(problem, len(own) + 2)[-len(own) :] == own
    assert len(filled_ids(problem, len(own) + 2)) == len(own) + 2
