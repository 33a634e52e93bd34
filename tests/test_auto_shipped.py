"""`auto`: class heads, what answers together, and what its verdict says of that."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from auto_parts import ONE, TINY, Given, answers, auto, deep, planned, probabilities, trainings_of, words
from conftest import TEXTS, make_task, records, tiny_problem
from cuecraft.artifact import CalibratedPrompt, Calibration, DeepCue, HardPrompt, calibration
from cuecraft.core.deadline import OutOfTimeError
from cuecraft.methods.auto.choice import _Choice
from cuecraft.methods.auto.contenders import FirstOrderCue, Together, probed
from cuecraft.methods.auto.crossfit import Trainings
from cuecraft.methods.auto.untrained import Untrained
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.first_order import Linearised
from cuecraft.methods.held_out import HeldOut, stratified_folds, untuned_answers
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import Outcome
from cuecraft.methods.search.label_words import LabelWordSearch

LABELS = torch.tensor([0, 1] * 4)


def whole_of(problem):
    return replace(problem, train=problem.pool, dev=None)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_class_heads_are_scikit_learns_on_features_of_one_size(kind, request):
    problem = tiny_problem(request.getfixturevalue(kind), "{prompt: it was}{text}" if kind == "sequence" else None)
    whole, strengths = whole_of(problem), (0.1, 10.0)
    folds = stratified_folds(whole.train.labels, 4, 0)
    found = probed(whole, words(problem), folds, strengths)
    with torch.no_grad():
        features = problem.backbone.features(whole.train.context, HardPrompt(words(problem).token_ids)).double().numpy()
    labels = whole.train.labels.numpy()

    def model(rows, strength):
        unit = np.sqrt((features[rows] ** 2).mean())
        return unit, LogisticRegression(C=strength, max_iter=1000).fit(features[rows] / unit, labels[rows])

    expected = {}
    for strength in strengths:
        parts = []
        for fold in folds:
            unit, own = model(fold.train, strength)
            parts.append(own.predict_log_proba(features[fold.held_out] / unit))
        expected[strength] = np.concatenate(parts)
    rows = [row for fold in folds for row in fold.held_out]
    losses = {s: -own[np.arange(len(rows)), labels[rows]].mean() for s, own in expected.items()}
    assert found.inverse_penalty == min(losses, key=losses.get)
    assert np.allclose(found.held_out.values.numpy(), expected[found.inverse_penalty], atol=1e-3)
    unit, own = model(range(len(labels)), found.inverse_penalty)
    with torch.no_grad():
        answered = found.made().logits(problem.backbone, whole.train.context).double().log_softmax(-1)
    assert np.allclose(answered.numpy(), own.predict_log_proba(features / unit), atol=1e-3)
    assert found.joins
    assert found.members == 1


def test_what_ships_of_several_has_the_held_out_loss_that_the_verdict_says():
    """The formula by which they ship, put to their held-out answers: no temperature acts on the mean."""
    generator = torch.Generator().manual_seed(5)
    rights = [torch.rand(8, generator=generator).double() * 0.9 + 0.05 for _ in range(2)]
    parts = [Given(str(n), answers(right, LABELS), 1.0, count=1 + n) for n, right in enumerate(rights)]
    found = Together.of(parts, 3)
    tempered = [part.held_out.recalibrated(3).values.exp() for part in parts]
    mean = (tempered[0] + 2 * tempered[1]) / 3
    loss = -float(mean[torch.arange(8), LABELS].log().mean())
    assert found.answers(3).score.loss == pytest.approx(loss)
    assert found.tried(3).loss == pytest.approx(loss)


def test_each_part_ships_with_its_own_temperature(causal):
    problem = tiny_problem(causal)
    trained = trainings_of(problem, folds=4).cross_fit(deep(problem))
    head = probed(whole_of(problem), words(problem), stratified_folds(problem.pool.labels, 4, 0), (1.0,))
    made = Together.of([trained, head], problem.seed).shipped(problem.in_time)
    scales = [calibration.tempered(part.held_out.values, part.held_out.golds.classes).scale for part in (trained, head)]
    expected = [scales[0] * one.calibration.scale for one in trained.candidates] + [scales[1]]
    assert [own.scale for own in made.calibrations] == pytest.approx(expected)
    with torch.no_grad():
        answered = made.logits(causal, problem.pool.context).double().softmax(-1)
    by_hand = probabilities(causal, problem.pool.context, made.prompts, made.calibrations)
    assert torch.allclose(answered, by_hand, atol=1e-5)


def test_what_is_made_when_the_time_ends_ships_without_the_rest(causal):
    problem = tiny_problem(causal)
    candidate = Candidate(HardPrompt((5,)), Calibration.none(2))

    class Ended(Given):
        def made(self):
            raise OutOfTimeError

    held = answers([0.7] * 7 + [0.6], LABELS)
    parts = [Ended("a", held, 0.0), Given("b", held, 0.0, candidate=candidate)]
    assert Together.of(parts, 0).shipped(problem.in_time).prompts == (candidate.prompt,)
    assert Together.of(parts[:1], 0).shipped(problem.in_time) is None


def test_where_one_cannot_be_made_in_time_the_next_better_one_ships(causal, monkeypatch):
    problem = tiny_problem(causal)

    class Ended(Given):
        def made(self):
            raise OutOfTimeError

    order = [row for fold in _Choice(problem, auto()).folds for row in fold.held_out]
    labels, candidate = problem.pool.labels[order], Candidate(HardPrompt((5,)), Calibration.none(2))
    first = Ended("first", answers([0.95] * 8, labels), 0.0, can_join=False, candidate=candidate)
    second = Given("second", answers([0.9] * 8, labels), 0.0, can_join=False, candidate=candidate)
    monkeypatch.setattr(HeldOut, "recalibrated", lambda self, seed: self)
    for contenders, ships in (([first, second], "tuned"), ([first], "untuned")):
        monkeypatch.setattr(_Choice, "_try_all", lambda self, *_, own=contenders: setattr(self, "contenders", own))
        outcome = auto().fit(problem)
        assert outcome.verdict.ships == ships
        assert outcome.is_tuned == (ships == "tuned")
    assert "the time limit ended" in outcome.verdict.reason


def losses_of(differences):
    """Return answers to two classes whose log-losses are 0.5 and more."""
    return answers(torch.exp(-0.5 - torch.tensor(differences, dtype=torch.float64)), LABELS)


@pytest.mark.parametrize(("mean", "one", "several"), [(0.05, True, True), (0.15, False, True), (0.3, False, False)])
def test_one_joins_within_one_standard_error_and_several_within_two(mean, one, several, causal, monkeypatch):
    """The differences have a standard deviation of 0.28284, so a standard error of 0.1."""
    monkeypatch.setattr(HeldOut, "recalibrated", lambda self, seed: self)
    spread = math.sqrt(0.08 * 7 / 8)
    best = losses_of([0.0] * 8)
    other = losses_of([mean + sign * spread for sign in (1, -1)] * 1 + [mean + sign * spread for sign in (1, -1) * 3])
    difference = other.scores.losses - best.scores.losses
    assert float(difference.std()) / math.sqrt(8) == pytest.approx(0.1)
    assert other.is_near(best) == one
    assert other.is_near(best, 2) == several
    own = _Choice(tiny_problem(causal), auto())
    for count, joins in ((1, one), (4, several)):
        own.contenders = [Given("best", best, 0.0), Given("other", other, 0.0, count=count)]
        own._join()
        assert len(own.contenders) == 2 + joins


def test_a_gain_by_a_temperature_alone_is_none(causal, monkeypatch):
    """Contenders that answer as the untuned prompt does, which is much too sure of itself, do not ship."""
    problem = tiny_problem(causal)
    order = [row for fold in _Choice(problem, auto()).folds for row in fold.held_out]
    labels = problem.pool.labels[order]
    sure = answers([0.999, 0.001, 0.998, 0.002] * 2, labels)
    plain = Untrained.measure

    def measure(self):
        found = plain(self)
        self._answers = {"zero-shot": sure}
        return found

    monkeypatch.setattr(Untrained, "measure", measure)
    twin = Given("twin", sure, 0.0, can_join=False, candidate=Candidate(HardPrompt((5,)), Calibration.none(2)))
    monkeypatch.setattr(_Choice, "_try_all", lambda self, *_: setattr(self, "contenders", [twin]))
    outcome = auto().fit(problem)
    assert twin.answers(problem.seed).score.loss < sure.score.loss - 0.1
    assert outcome.verdict.ships == "untuned"


def test_where_one_prompt_may_ship_all_folds_start_from_the_same_words(causal, monkeypatch):
    planned(monkeypatch, replace(ONE, cues=3, folds=4))
    found, plain = [], Trainings.cross_fit
    monkeypatch.setattr(Trainings, "cross_fit", lambda self, own: found.append(own.starts) or plain(self, own))
    for most, several in ((8, True), (3, False)):
        auto(prompts=most).fit(tiny_problem(causal))
        assert (len(found[-1]) > 1) == several


def test_class_heads_and_first_order_cues_compete_with_label_words_that_were_searched(causal, monkeypatch):
    planned(monkeypatch, replace(TINY, searches_words=True, cues=0))
    monkeypatch.setattr(Untrained, "_is_clear", lambda self, found, own, among: among == 1)
    other = {"negative": ("cold",), "positive": ("warm",)}
    plain = LabelWordSearch.search
    monkeypatch.setattr(LabelWordSearch, "search", lambda self, *asked: replace(plain(self, *asked), words=other))
    names = [row.name for row in auto().fit(tiny_problem(causal)).tried]
    assert any("label words searched" in name for name in names)
    # Once each, over the task's own label words.
    assert [sum(name.startswith(kind) for name in names) for kind in ("class head", "first-order")] == [1, 1]


@pytest.mark.parametrize("done", [1, 2])
def test_penalties_checked_before_the_time_ended_are_not_lost(done, causal, monkeypatch):
    """The whole of `auto`: the limit is over for every look from then on, within passes too."""
    planned(monkeypatch, replace(ONE, heads=(), penalties=(0.1, 1.0, 10.0), first_order=1, deep=()))
    begun, held = [], Linearised.held_out
    monkeypatch.setattr(Linearised, "held_out", lambda self, *asked: begun.append(1) or held(self, *asked))
    problem = tiny_problem(causal)
    over = replace(problem, is_over=lambda: len(begun) > done, out_of_time=lambda reserve=0.0: len(begun) > done)
    outcome = auto().fit(over)
    assert [row.name.split()[0] for row in outcome.tried].count("first-order") == 1


@pytest.mark.parametrize("first_is_words", [True, False])
def test_the_size_of_several_prompts_is_that_of_each(first_is_words):
    start = Candidate(HardPrompt((1, 2)), Calibration.none(2))
    cue = DeepCue(HardPrompt((1, 2)), torch.zeros(2, 2, 8))
    prompts = [start.prompt, cue] if first_is_words else [cue, start.prompt]
    first, other = prompts
    best = Candidate(first, start.calibration, others=(CalibratedPrompt(other, start.calibration),))
    assert Outcome(start, best, []).tuned_size == cue.size


def test_many_classes_are_screened_on_few_rows(causal, monkeypatch):
    """Two rows of each class can be split; it is not the whole pool that is read for each cue."""
    asked = []
    monkeypatch.setattr("cuecraft.methods.auto.untrained._SCREENED", 2)

    def counting(problem, pool, prompts, folds):
        asked.append(len(pool))
        return untuned_answers(problem, pool, prompts, folds)

    monkeypatch.setattr("cuecraft.methods.auto.untrained.untuned_answers", counting)
    problem = make_problem(causal, make_task(), records(TEXTS), records(TEXTS))
    planned(monkeypatch, replace(TINY, cues=2, deep=(), soft=()))
    auto().fit(problem)
    assert min(asked) == 4


def test_a_first_order_contender_needs_no_time_to_ship(causal, monkeypatch):
    planned(monkeypatch, replace(ONE, first_order=1, heads=(), deep=()))
    own = _Choice(tiny_problem(causal), auto())
    found = own._first_order(words(tiny_problem(causal)))
    assert isinstance(found, FirstOrderCue)
    assert found.fallback() is found.made()
