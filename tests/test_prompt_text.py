"""Discrete search for readable prompts: text that gives back its tokens, and fluency, against plain ways."""

import math
import random
import re

import numpy as np
import pytest
import torch

from conftest import golds_of, tiny_problem
from cuecraft.artifact import Calibration, HardPrompt
from cuecraft.backbone.likelihood import cue_log_likelihood
from cuecraft.core.errors import MethodError, TemplateError
from cuecraft.core.seeding import numpy_generator
from cuecraft.methods import make_method
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import loss_gradient
from cuecraft.methods.problem import CalibrationKind, Labelled, score
from cuecraft.methods.search import AutoPrompt, autoprompt
from cuecraft.methods.search.autoprompt import _turn
from cuecraft.methods.search.halving import best_swap, best_tokens, first_order_change, halving_rounds
from cuecraft.methods.search.space import SearchSpace, filled_ids
from cuecraft.methods.search.vocabulary import VocabularyOptions, make_vocabulary
from cuecraft.methods.untuned import starting_point
from cuecraft.task import Template
from test_elimination import Rows, Table

# Text that gives back its tokens.


def gives_back(problem, ids):
    """The oracle: write the printed text into a new template, and read what its slot holds."""
    text = HardPrompt(tuple(ids)).text(problem.backbone.tokenizer)
    source = problem.task.template.source
    try:
        template = Template(re.sub(r"\{prompt[^}]*\}", lambda _: f"{{prompt:{text}}}", source))
    except TemplateError:
        return False
    same = [p for p in template.pieces if "Prompt" not in type(p).__name__]
    if same != [p for p in problem.task.template.pieces if "Prompt" not in type(p).__name__]:
        return False
    return problem.backbone.tokenizer(template.prompt_text, add_special_tokens=False)["input_ids"] == list(ids)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_gives_back_is_what_a_template_with_the_text_reads(kind, request):
    problem = tiny_problem(request.getfixturevalue(kind))
    random_ = random.Random(3)
    count = len(problem.backbone.tokenizer)
    prompts = [tuple(random_.randrange(5, count) for _ in range(random_.randrange(1, 4))) for _ in range(400)]
    found = problem.train.context.renderer.gives_back(prompts)
    assert found == [gives_back(problem, ids) for ids in prompts]
    assert 20 < sum(found) < 380


def test_text_that_changes_the_rest_of_the_template_does_not_give_back(causal):
    renderer = tiny_problem(causal).train.context.renderer

    def tokens(text):
        return causal.tokenizer(text, add_special_tokens=False)["input_ids"]

    texts = [" it was", " it was {", " it }", " it ", " it (", " it\n", " it (was"]
    assert renderer.gives_back([tokens(text) for text in texts]) == [True, *[False] * 5, True]


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
@pytest.mark.parametrize("name", ["autoprompt", "straight-through"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_accepted_prompts_give_back_their_tokens(name, kind, seed, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone, "{prompt: it was}{text}" if kind == "sequence" else None, seed=seed)
    options = {"steps": 8, "prompt_length": 5} | ({"candidates": 12} if name == "autoprompt" else {"learning_rate": 2})
    trace = make_method(name, options).fit(problem).trace
    found = [event["token_ids"] for event in trace if "token_ids" in event]
    assert len(found) > 2
    assert all(gives_back(problem, ids) for ids in found)


@pytest.mark.parametrize("name", ["autoprompt", "straight-through"])
def test_without_the_check_some_prompts_do_not_give_back_their_tokens(name, masked):
    options = {"steps": 12, "prompt_length": 5} | ({"candidates": 40} if name == "autoprompt" else {"learning_rate": 2})
    problem = tiny_problem(masked, seed=3)

    def texts_hold(**more):
        trace = make_method(name, options | more).fit(problem).trace
        return [gives_back(problem, event["token_ids"]) for event in trace if "token_ids" in event]

    assert not all(texts_hold(round_trip=False))
    assert all(texts_hold())


def test_a_start_that_does_not_give_back_its_tokens_is_mended_from_the_left(causal):
    problem = tiny_problem(causal)
    space = SearchSpace.of(problem, VocabularyOptions(), round_trip=True)
    was = causal.tokenizer(" was")["input_ids"][0]
    merged = next(
        (a, b)
        for a in range(5, 300)
        for b in range(5, 300)
        if not gives_back(problem, (a, b, was)) and gives_back(problem, (a,)) and space.vocabulary.mask[[a, b]].all()
    )
    found = space.start((*merged, was))
    assert gives_back(problem, found)
    assert found[0] == merged[0]
    # The second is the nearest allowed token with which the beginning gives back its tokens: by brute force.
    matrix = causal.embedding_matrix().double()
    distance = (matrix - matrix[merged[1]]).square().sum(1)
    order = [n for n in distance.argsort().tolist() if space.vocabulary.mask[n]]
    assert found[1] == next(n for n in order if gives_back(problem, (merged[0], n)))


def test_swaps_come_in_the_order_of_the_predicted_change(causal):
    problem = tiny_problem(causal)
    space = SearchSpace.of(problem, VocabularyOptions(), round_trip=True)
    ids = problem.initial_ids
    change = torch.randn(len(ids), causal.vocab_size, generator=torch.Generator().manual_seed(0))
    found = space.swaps(ids, change, [1], 30)
    order = [n for n in change[1].argsort().tolist() if space.vocabulary.mask[n]]
    expected = [(1, n) for n in order if gives_back(problem, (ids[0], n, *ids[2:]))]
    assert found == expected[:30]
    assert space.swaps(ids, change, [1], 10_000) == expected


# Fluency: what is lowered is the loss minus the weight times the mean log-likelihood of the prompt's tokens.


def plain_likelihood(backbone, ids):
    """Mean log-probability of a prompt's tokens by one plain forward pass; its first has nothing before it."""
    with torch.no_grad():
        logits = backbone.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
    return float(torch.stack([logits[n, token] for n, token in enumerate(ids[1:])]).mean())


@pytest.mark.parametrize(
    ("positions", "weight"),
    [
        ("one", 1.0),
        ("all", 0.05),
        pytest.param("one", 0.05, marks=pytest.mark.slow),
        pytest.param("all", 1.0, marks=pytest.mark.slow),
    ],
)
def test_a_step_takes_the_swap_of_least_loss_and_unlikelihood_together(causal, positions, weight):
    problem = tiny_problem(causal)
    method = AutoPrompt(
        steps=1, candidates=10_000, positions=positions, scoring="exact", calibration="none", fluency=weight
    )
    event = method.fit(problem).trace[-1]
    start = HardPrompt(problem.initial_ids)
    plain = starting_point(problem, (), CalibrationKind.NONE).calibration
    allowed = torch.nonzero(make_vocabulary(causal, problem.task).mask).flatten().tolist()
    objective = {}
    for position in range(len(start)) if positions == "all" else [event["position"]]:
        for token in allowed:
            prompt = start.swapped(position, token)
            if gives_back(problem, prompt.token_ids):
                loss = score(causal, Candidate(prompt, plain), problem.train).loss
                objective[prompt.token_ids] = loss - weight * plain_likelihood(causal, prompt.token_ids)
    assert event["accepted"]
    found = tuple(event["token_ids"])
    assert objective[found] == pytest.approx(min(objective.values()), abs=1e-5)
    assert event["log_likelihood"] == pytest.approx(plain_likelihood(causal, found), abs=1e-4)
    assert event["train_loss"] == pytest.approx(
        score(causal, Candidate(HardPrompt(found), plain), problem.train).loss, abs=1e-5
    )


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("scoring", ["halving", "exact"])
def test_with_a_large_weight_every_accepted_prompt_is_likelier_than_the_one_before(kind, scoring, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    options = {"steps": 8, "candidates": 12, "prompt_length": 4, "scoring": scoring}
    begin = filled_ids(problem, 4)
    found = {}
    for weight in (0.0, 50.0):
        trace = AutoPrompt(**options, fluency=weight).fit(problem).trace
        accepted = [tuple(event["token_ids"]) for event in trace if event.get("accepted")]
        assert len(accepted) > 1
        found[weight] = cue_log_likelihood(backbone, [begin, *accepted]).tolist()
    assert found[50.0] == sorted(found[50.0])
    assert found[50.0][-1] > max(found[0.0])


def naive_search(problem, steps, candidates, length):
    """AutoPrompt as it was before any of this: no filters, no check of the text, the loss alone."""
    current = starting_point(problem, filled_ids(problem, length), CalibrationKind.FITTED)
    best = score(problem.backbone, current, problem.train).loss
    allowed = make_vocabulary(problem.backbone, problem.task).mask
    for step in range(1, steps + 1):
        _, gradient = loss_gradient(problem, current, problem.train)
        prompt = current.prompt
        matrix = problem.backbone.embedding_matrix()
        change = first_order_change(gradient, prompt.vectors(problem.backbone.embed), matrix)
        position = _turn(problem.seed, length, step)
        change[position, prompt.token_ids[position]] = torch.inf
        swaps = [(position, token) for token in best_tokens(change[position], allowed, candidates)]
        rounds = halving_rounds(problem.train.labels.tolist(), numpy_generator(problem.seed, f"search-rounds/{step}"))
        swap, found = best_swap(problem.backbone, current, problem.train, swaps, rounds)
        if found.loss < best:
            best, current = found.loss, Candidate(prompt.swapped(*swap), current.calibration)
            yield best, current.prompt.token_ids


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_with_all_of_it_off_the_search_takes_its_old_path_to_the_bit(kind, request, monkeypatch):
    def unused(*args):
        raise AssertionError("a weight of 0 asks for no likelihood")

    monkeypatch.setattr(autoprompt, "cue_log_likelihood", unused)
    problem = tiny_problem(request.getfixturevalue(kind))
    trace = AutoPrompt(steps=8, candidates=12, prompt_length=3, round_trip=False).fit(problem).trace
    found = [(event["train_loss"], tuple(event["token_ids"])) for event in trace if event.get("accepted")]
    assert found == list(naive_search(problem, 8, 12, 3))
    assert found


def test_a_class_head_gives_words_no_probability(sequence):
    with pytest.raises(MethodError, match=r"fluency needs a causal or masked language model.*; give fluency=0"):
        AutoPrompt(fluency=0.1).fit(tiny_problem(sequence))


def test_penalties_decide_between_swaps_of_equal_loss():
    data = Labelled(Rows(range(16)), golds_of([0] * 16))
    backbone = Table(torch.zeros(6, 16, 2))
    current = Candidate(HardPrompt((0,)), Calibration.none(2))
    swaps = [(0, n) for n in (4, 2, 0, 3, 1, 5)]
    rounds = halving_rounds(data.labels.tolist(), np.random.default_rng(0))
    penalties = {swap: float(abs(swap[1] - 3)) for swap in swaps}
    swap, found = best_swap(backbone, current, data, swaps, rounds, penalties)
    assert swap == (0, 3)
    assert found.loss == pytest.approx(math.log(2)), "the score itself has no penalty in it"
