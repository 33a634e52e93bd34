"""`auto`: what may ship, made without training or of several parts, and which of them ships."""

import math
from dataclasses import replace

import pytest
import torch

from auto_parts import (
    ONE,
    TINY,
    Given,
    answers,
    auto,
    deep,
    flipped,
    planned,
    probabilities,
    tempered_by_hand,
    trainings_of,
    words,
)
from conftest import tiny_problem
from cuecraft.artifact import HardPrompt
from cuecraft.core.errors import BackboneError, MethodError, PromptError
from cuecraft.methods import make_method
from cuecraft.methods.auto import choice, crossfit
from cuecraft.methods.auto import contenders as contenders_module
from cuecraft.methods.auto.choice import _Choice
from cuecraft.methods.auto.contenders import Together, WordsAlone
from cuecraft.methods.auto.starts import SearchedWords
from cuecraft.methods.auto.untrained import Untrained
from cuecraft.methods.first_order import Linearised, linearised
from cuecraft.methods.held_out import HeldOut, stratified_folds, texts_of
from cuecraft.methods.problem import CalibrationKind
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.untuned import starting_point

PENALTIES = (0.03, 0.3, 3.0)


@pytest.fixture
def tiny_plans(monkeypatch):
    planned(monkeypatch, TINY)


def first_order(problem, monkeypatch, penalties=PENALTIES, folds=4):
    """Return the choice and its first-order contender."""
    planned(monkeypatch, replace(TINY, penalties=penalties, folds=folds))
    own = _Choice(problem, auto())
    return own, own._first_order(words(problem))


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("weighs", [False, True])
def test_the_penalty_is_the_one_of_least_held_out_loss(kind, weighs, monkeypatch, request):
    """Each penalty by a fit for each fold, read one text at a time."""
    problem = tiny_problem(request.getfixturevalue(kind))
    pool = problem.pool
    if weighs:
        pool = replace(pool, weights=torch.tensor([3.0, 0.5, 0.25, 2.0, 0.25, 1.0, 0.5, 0.5]))
        problem = replace(problem, train=pool, dev=None)
    own, found = first_order(problem, monkeypatch)
    folds = stratified_folds(pool.labels, 4, problem.seed, texts_of(pool.context.examples))
    whole = replace(problem, train=pool, dev=None)
    linear = linearised(whole, HardPrompt(problem.initial_ids))
    rows = [row for fold in folds for row in fold.held_out]
    losses, answers = {}, {}
    for penalty in PENALTIES:
        made = [linear.candidate(linear.fitted(fold.train, whole, penalty)) for fold in folds]
        answers[penalty] = torch.cat(
            [
                probabilities(problem.backbone, pool.context.select(fold.held_out), [one.prompt], [one.calibration])
                for one, fold in zip(made, folds, strict=True)
            ]
        )
        losses[penalty] = -float(answers[penalty][range(len(rows)), pool.labels[rows]].log().mean())
    assert found.penalty == min(losses, key=losses.get)
    assert torch.allclose(found.held_out.values.exp(), answers[found.penalty], atol=1e-4)
    assert found.held_out.golds.classes.tolist() == pool.labels[rows].tolist()
    assert found.held_out.sizes == tuple(len(fold.held_out) for fold in folds)
    assert f"{found.penalty:g}" in found.name
    assert own.whole.dev is None


def test_held_out_labels_do_not_touch_the_fit(causal, monkeypatch):
    problem = tiny_problem(causal)
    own, found = first_order(problem, monkeypatch, (0.3,))
    held = own.folds[0].held_out
    planned(monkeypatch, replace(TINY, penalties=(0.3,), folds=4))
    other = _Choice(flipped(problem, held), auto())
    other.folds = own.folds
    again = other._first_order(words(problem))
    count = len(held)
    assert torch.equal(found.held_out.values[:count], again.held_out.values[:count])
    assert not torch.equal(found.held_out.values[count:], again.held_out.values[count:])


@pytest.mark.parametrize("weighs", [False, True])
def test_made_on_all_examples_it_is_what_first_order_makes_of_them(weighs, causal, monkeypatch):
    problem = tiny_problem(causal)
    if weighs:
        weights = torch.tensor([3.0, 0.5, 0.25, 2.0, 0.25, 1.0, 0.5, 0.5])
        problem = replace(problem, train=replace(problem.pool, weights=weights), dev=None)
    _, found = first_order(problem, monkeypatch)
    # The untuned prompt does not compete with it.
    monkeypatch.setattr("cuecraft.methods.first_order._Choice._see_untuned", lambda self: None)
    outcome = make_method("first-order", {"penalties": [found.penalty]}).fit(problem)
    made = found.made()
    assert made.prompt.base.token_ids == problem.initial_ids
    assert torch.equal(made.prompt.offsets, outcome.best.prompt.offsets)
    assert made.calibration == outcome.best.calibration
    assert made.others == ()
    expected = starting_point(found.whole, problem.initial_ids, CalibrationKind.FITTED)
    assert found.words().calibration == expected.calibration


def ran(outcome):
    return [row.name for row in outcome.tried if row.name.startswith("deep-cue")]


OTHERWISE = f"deep-cue {TINY.otherwise.rate:g} x {TINY.otherwise.epochs}, own words"


def test_a_class_head_has_no_first_order_cue_and_is_trained_otherwise(sequence, monkeypatch):
    planned(monkeypatch, replace(ONE, first_order=1, deep=()))
    outcome = auto().fit(tiny_problem(sequence))
    assert [name.split(", 5")[0].split(", 7")[0] for name in ran(outcome)] == [OTHERWISE]
    assert not [event for event in outcome.trace if event["phase"] == "refused"]
    assert not any(row.name.startswith("first-order") for row in outcome.tried)


def test_where_gradients_do_not_fit_into_memory_a_training_is_tried(causal, monkeypatch):
    plan = replace(ONE, first_order=1, deep=())
    planned(monkeypatch, plan)
    outcome = auto().fit(tiny_problem(causal))
    assert ran(outcome) == []
    assert any(row.name.startswith("first-order") for row in outcome.tried)
    monkeypatch.setattr("cuecraft.methods.first_order.memory_of", lambda device: 1000)
    outcome = auto().fit(tiny_problem(causal))
    assert len(ran(outcome)) == 1
    assert ran(outcome)[0].startswith(OTHERWISE)
    (refused,) = [event for event in outcome.trace if event["phase"] == "refused"]
    assert "GiB; give fewer examples" in refused["reason"]


def test_a_penalty_whose_answers_are_not_finite_is_not_taken(causal, monkeypatch):
    problem = tiny_problem(causal)
    _, expected = first_order(problem, monkeypatch, (0.3,))
    asked = []

    def held_out(self, *rest):
        asked.append(rest[-1])
        linear, found = held(self, *rest)
        return linear, found * (torch.nan if rest[-1] != 0.3 else 1)

    held = Linearised.held_out
    monkeypatch.setattr(Linearised, "held_out", held_out)
    _, found = first_order(problem, monkeypatch)
    assert asked == [*PENALTIES]
    assert found.penalty == 0.3
    assert torch.equal(found.held_out.values, expected.held_out.values)
    with pytest.raises(MethodError, match="first-order, own: its answers are not finite"):
        first_order(problem, monkeypatch, (0.03, 3.0))


@pytest.mark.parametrize("done", [0, 1, 2])
def test_penalties_that_were_checked_before_the_time_ended_compete(done, causal, monkeypatch):
    """The time ends within a pass, after some of the penalties."""
    problem, begun = tiny_problem(causal), []
    held = Linearised.held_out

    def held_out(self, *rest):
        begun.append(rest[-1])
        return held(self, *rest)

    monkeypatch.setattr(Linearised, "held_out", held_out)
    over = replace(problem, is_over=lambda: len(begun) > done, out_of_time=lambda reserve=0.0: len(begun) > done)
    _, found = first_order(over, monkeypatch)
    assert begun == list(PENALTIES[: done + 1])
    if not done:
        assert found is None
        return
    _, expected = first_order(problem, monkeypatch, PENALTIES[:done])
    assert found.penalty == expected.penalty
    assert torch.equal(found.held_out.values, expected.held_out.values)


def test_prompts_of_several_answer_together_each_counting_alike():
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 1] * 4)
    parts = [
        Given(name, answers(torch.rand(8, generator=generator) * 0.98 + 0.01, labels), 1.0, count)
        for name, count in (("a", 3), ("b", 1))
    ]
    found = Together.of(parts, 7)
    one, other = (part.held_out.recalibrated(7).values.exp() for part in parts)
    assert torch.allclose(found.held_out.values.exp(), (3 * one + other) / 4)
    assert not torch.allclose(one, parts[0].held_out.values.exp(), atol=1e-3)
    assert found.held_out.golds is parts[0].held_out.golds
    assert found.members == 4
    assert found.name == "together: a; b"


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_together_they_answer_what_is_made_of_them(kind, monkeypatch, request):
    """The mean over all prompts, each with its own calibration and the temperature of its contender's answers."""
    problem = tiny_problem(request.getfixturevalue(kind))
    _, linear = first_order(problem, monkeypatch)
    trained = trainings_of(problem, folds=4).cross_fit(deep(problem))
    found = Together.of([trained, linear], problem.seed)
    made = found.shipped(problem.in_time)
    assert len(made.prompts) == found.members == 5
    prompts, calibrations = tempered_by_hand([trained, linear])
    context = problem.pool.context
    with torch.no_grad():
        answered = made.logits(problem.backbone, context).double().softmax(-1)
    assert torch.allclose(answered, probabilities(problem.backbone, context, prompts, calibrations), atol=1e-5)
    assert found.words().prompt.token_ids == trained.words().prompt.token_ids


@pytest.mark.parametrize(
    ("folds", "most", "joined"), [(2, 8, True), (2, 4, True), (2, 3, False), (2, 1, False), (4, 3, True), (4, 2, True)]
)
def test_the_best_two_join_where_as_many_prompts_may_ship(folds, most, joined, causal, monkeypatch):
    """Two folds make four prompts of them; where three may ship, four folds make one of each, on all examples."""
    planned(monkeypatch, replace(TINY, folds=folds, first_order=0, cues=0, longer=0))
    outcome = auto(prompts=most).fit(tiny_problem(causal))
    single = [row for row in outcome.tried if row.name.startswith(("deep-cue", "prompt-tuning"))]
    assert len(single) == 2
    assert single[0].loss < single[1].loss
    names = [row.name for row in outcome.tried if row.name.startswith("together")]
    assert names == ([f"together: {single[0].name}; {single[1].name}"] if joined else [])


def test_what_has_other_label_words_joins_none(causal):
    problem = tiny_problem(causal)
    searched = words(problem, label_words=SearchedWords(LabelWordSearch(), problem.initial_ids))
    found = trainings_of(problem).cross_fit(deep(problem, start=searched))
    assert not found.joins
    assert found.members == 1
    whole = replace(problem, train=problem.pool, dev=None)
    alone = WordsAlone("words", found.held_out, 0.0, searched, whole)
    assert not alone.joins
    assert alone.made().reader is not None or searched.label_words.chosen(whole).task == problem.task


def judged(problem, monkeypatch, contenders):
    """Let a choice have these contenders, whose answers need no temperature."""

    def try_all(self, untrained, starts):
        self.contenders = list(contenders)

    monkeypatch.setattr(_Choice, "_try_all", try_all)
    monkeypatch.setattr(HeldOut, "recalibrated", lambda self, seed: self)
    return auto().fit(problem)


def given(problem, name, right, order):
    """Return a contender, made of words of its own, that gives the true class of each text a probability."""
    labels = problem.pool.labels[order]
    ids = tuple(problem.backbone.tokenizer(f" {name}", add_special_tokens=False)["input_ids"])
    candidate = starting_point(replace(problem, train=problem.pool, dev=None), ids, CalibrationKind.FITTED)
    return Given(name, answers(right, labels), 0.5, candidate=candidate)


def test_the_one_of_least_loss_whose_accuracy_is_no_less_ships(causal, monkeypatch, tiny_plans):
    problem = tiny_problem(causal)
    folds = _Choice(problem, auto()).folds
    order = [row for fold in folds for row in fold.held_out]
    worse = given(problem, "awful", [0.3] * 8, order)
    outcome = judged(problem, monkeypatch, [worse])
    assert outcome.verdict.ships == "untuned"
    assert "log-loss did not fall" in outcome.verdict.reason
    untuned = outcome.verdict.evidence
    assert untuned.untuned_accuracy == 3 / 8
    assert untuned.untuned_loss > 0.7
    narrow = given(problem, "good", [0.49] * 6 + [0.99] * 2, order)  # less loss, but only two of eight right
    modest = given(problem, "bad", [0.51] * 8, order)
    assert narrow.held_out.score.loss < modest.held_out.score.loss < untuned.untuned_loss < worse.held_out.score.loss
    outcome = judged(problem, monkeypatch, [worse, narrow, modest])
    assert outcome.verdict.ships == "tuned"
    assert outcome.best.prompt is modest.candidate.prompt
    assert outcome.verdict.evidence.loss == modest.held_out.score.loss
    assert outcome.held_out == modest.held_out.score
    assert outcome.words is modest.candidate
    assert "correction for the 3 that competed" in outcome.verdict.reason
    outcome = judged(problem, monkeypatch, [worse, narrow])
    assert outcome.verdict.ships == "untuned"
    assert "accuracy fell, so the untuned prompt ships" in outcome.verdict.reason
    assert outcome.verdict.evidence.loss == narrow.held_out.score.loss
    assert outcome.held_out.loss == pytest.approx(untuned.untuned_loss)


def wrong(found):
    said = torch.full_like(found.values, 0.99).scatter(1, found.golds.classes[:, None], 0.01)
    return replace(found, values=said.log())


def test_what_is_surely_wrong_on_held_out_examples_does_not_ship(causal, tiny_plans, monkeypatch):
    problem = tiny_problem(causal)
    assert auto().fit(problem).verdict.ships == "tuned"
    trained, gathered, held_out = crossfit.answers_of_folds, choice.gather, Untrained.held_out
    monkeypatch.setattr(crossfit, "answers_of_folds", lambda *asked: wrong(trained(*asked)))
    monkeypatch.setattr(choice, "gather", lambda *asked: wrong(gathered(*asked)))
    monkeypatch.setattr(contenders_module, "gather", lambda *asked: wrong(gathered(*asked)))
    monkeypatch.setattr(Untrained, "held_out", lambda *asked: wrong(held_out(*asked)))
    monkeypatch.setattr(Untrained, "_is_clear", lambda self, found, own, among: found is not own)
    outcome = auto().fit(problem)
    kinds = {row.name.split()[0] for row in outcome.tried if row.loss > math.log(2)}
    assert {"deep-cue", "prompt-tuning", "first-order", "class", "together:"} <= kinds
    assert any(name.startswith("'") for name in kinds)
    assert outcome.verdict.ships == "untuned"
    assert outcome.best is outcome.start


ERRORS = [
    pytest.param(MethodError("not here"), id="MethodError", marks=pytest.mark.slow),
    pytest.param(BackboneError("not here"), id="BackboneError"),
    pytest.param(PromptError("not here"), id="PromptError", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_training_that_is_refused_leaves_the_others(error, causal, monkeypatch):
    planned(monkeypatch, replace(TINY, alone=True, longer=2))
    plain = OffsetTraining.refine_side_by_side

    def refusing(self, parts):
        if any(len(start.prompt) > 2 for start, _ in parts):
            raise error
        plain(self, parts)

    everything = auto().fit(tiny_problem(causal))
    monkeypatch.setattr(OffsetTraining, "refine_side_by_side", refusing)
    outcome = auto().fit(tiny_problem(causal))
    refused = [event for event in outcome.trace if event["phase"] == "refused"]
    assert {event["reason"] for event in refused} == {"not here"}
    assert len(ran(outcome)) == len(ran(everything)) - len(refused) == 2
    assert outcome.verdict.evidence is not None


def test_a_prompt_too_long_for_the_model_is_refused_and_others_ship(causal, monkeypatch):
    planned(monkeypatch, replace(ONE, alone=True, longer=500))
    outcome = auto().fit(tiny_problem(causal))
    (refused,) = [event for event in outcome.trace if event["phase"] == "refused"]
    assert "128" in refused["reason"]
    assert len(ran(outcome)) == 2


def test_where_everything_is_refused_the_reason_is_told(causal, monkeypatch):
    planned(monkeypatch, ONE)

    def refusing(self, parts):
        raise MethodError("cannot be trained here")

    monkeypatch.setattr(OffsetTraining, "refine_side_by_side", refusing)
    outcome = auto().fit(tiny_problem(causal))
    assert outcome.verdict.reason == "cannot be trained here"
    assert outcome.verdict.ships == "untuned"
    assert outcome.best is outcome.start
    assert outcome.held_out is not None


def test_a_training_that_diverges_leaves_the_others(causal, tiny_plans, monkeypatch):
    trained = crossfit.Configuration.trained

    def wild(self, parts):
        found = trained(self, parts)
        for own in found if isinstance(self.training, OffsetTraining) else ():
            own.best = replace(own.best, prompt=replace(own.best.prompt, offsets=own.best.prompt.offsets * torch.nan))
        return found

    monkeypatch.setattr(crossfit.Configuration, "trained", wild)
    outcome = auto().fit(tiny_problem(causal))
    refused = [event["reason"] for event in outcome.trace if event["phase"] == "refused"]
    assert len(refused) == 1
    assert all("diverged" in reason for reason in refused)
    assert ran(outcome) == []
    assert any(row.name.startswith("prompt-tuning") for row in outcome.tried)
    assert all(math.isfinite(row.loss) for row in outcome.tried)
