"""`auto`: folds, successive halving, the guard, the time limit."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import LABELS, TEXTS, make_task, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.evidence import Tried
from cuecraft.method import CalibrationKind, Candidate, Labelled, Selection, score, starting_point
from cuecraft.prompts import DeepCue, HardPrompt, load_artifact
from cuecraft.search.folds import Fold, stratified_folds
from cuecraft.tune import make_method
from cuecraft.tune.auto import choice, plans
from cuecraft.tune.auto.folds import HeldOut, fold_problem, pooled, untuned_answers
from cuecraft.tune.auto.ladder import Configuration, Ladder, Run
from cuecraft.tune.auto.plans import PLANS, Plan, Preset, configurations
from cuecraft.tune.auto.starts import GivenWords, OtherWords, SearchedPrompt, Words
from cuecraft.tune.auto.untrained import Untrained
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.finish import make_artifact
from cuecraft.tune.prepare import make_problem

TINY = Plan(2, 2, False, (0.1, 0.03), (0.02,), 2, 2, False, (2, 1), 4, 4, 2, 64)


@pytest.fixture
def tiny_plans(monkeypatch):
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, TINY))


def auto(**options):
    return make_method("auto", options)


# Folds


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_folds_are_a_stratified_partition(labels, count, seed):
    folds = stratified_folds(torch.tensor(labels), count, seed)
    rarest = min(labels.count(label) for label in set(labels))
    if rarest < 2:
        assert folds == []
        return
    assert len(folds) == min(count, rarest)
    held = sorted(row for fold in folds for row in fold.held_out)
    assert held == list(range(len(labels)))
    for fold, label in itertools.product(folds, set(labels)):
        own = [labels[row] for row in fold.held_out].count(label)
        assert abs(own - labels.count(label) / len(folds)) < 1
        assert sorted((*fold.train, *fold.held_out)) == list(range(len(labels)))


@pytest.mark.parametrize("kind", list(CalibrationKind))
def test_untuned_answers_are_those_of_a_fit_on_each_fold_alone(kind, causal):
    problem = tiny_problem(causal)
    pool = pooled(problem)
    folds = stratified_folds(pool.labels, 2, 0)
    ids = problem.initial_ids
    found = untuned_answers(problem, pool, [HardPrompt(ids[:1]), HardPrompt(ids)], folds)(1, kind)
    expected = []
    for number, _ in enumerate(folds):
        own = fold_problem(problem, pool, folds, number)
        candidate = starting_point(replace(own, dev=None), ids, kind)
        with torch.no_grad():
            expected.append(candidate.logits(causal, own.dev.context).double().log_softmax(-1))
    assert torch.allclose(found.log_probs, torch.cat(expected), atol=1e-5)
    assert found.labels.tolist() == [int(pool.labels[row]) for fold in folds for row in fold.held_out]


def test_untuned_answers_of_a_class_head_are_those_of_a_fit_on_each_fold_alone(sequence):
    problem = tiny_problem(sequence)
    pool = pooled(problem)
    folds = stratified_folds(pool.labels, 2, 0)
    found = untuned_answers(problem, pool, [HardPrompt(())], folds)(0, CalibrationKind.NONE)
    expected = []
    for number, _ in enumerate(folds):
        own = fold_problem(problem, pool, folds, number)
        with torch.no_grad():
            expected.append(starting_point(own, (), CalibrationKind.NONE).logits(sequence, own.dev.context).double())
    assert torch.allclose(found.log_probs, torch.cat(expected).log_softmax(-1), atol=1e-5)


def test_joined_examples_have_the_logits_of_each_part(causal):
    problem = tiny_problem(causal)
    prompt = HardPrompt(problem.initial_ids)
    with torch.no_grad():
        whole = causal.class_logits(pooled(problem).context, prompt)
        parts = [causal.class_logits(part.context, prompt) for part in (problem.train, problem.dev)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


# The ladder


def ladder_of(backbone, folds=2, **options):
    problem = tiny_problem(backbone, **options)
    pool = pooled(problem)
    return Ladder(problem, pool, stratified_folds(pool.labels, folds, 0)), problem


def deep(problem, rate=0.1, epochs=4):
    training = OffsetTraining(learning_rate=rate, epochs=epochs)
    return Configuration(Words("own", GivenWords(), problem.initial_ids), training)


def test_held_out_labels_do_not_touch_the_training(causal):
    """Another label of a held-out example changes what is measured, and not what is learnt."""
    ladder, problem = ladder_of(causal)
    pool, folds = ladder._pool, ladder._folds
    flipped = pool.labels.clone()
    rows = list(folds[0].held_out)
    flipped[rows] = 1 - flipped[rows]
    other = Ladder(problem, Labelled(pool.context, flipped), folds)
    first, second = ladder.climb([deep(problem)], (1,))[0], other.climb([deep(problem)], (1,))[0]
    for one, two in zip(first.answers[0], second.answers[0], strict=True):
        assert torch.equal(one, two)
    assert [event["train_loss"] for event in ladder.trace if event["fold"] == 0] == [
        event["train_loss"] for event in other.trace if event["fold"] == 0
    ]
    assert ladder.score(first, 1) != other.score(second, 1)


def test_answers_to_held_out_examples_are_the_candidates_own(causal):
    ladder, problem = ladder_of(causal)
    own = fold_problem(problem, ladder._pool, ladder._folds, 0)
    kept, plain = HeldOut(own), Selection(own)
    start = starting_point(own, problem.initial_ids, CalibrationKind.FITTED)
    training = OffsetTraining(epochs=3)
    training.refine(own, start, kept)
    training.refine(own, start, plain)
    assert kept.trace == plain.trace
    assert len(kept.answers) == 4
    losses = [float(-part[range(len(part)), own.dev.labels].mean()) for part in kept.answers]
    assert losses == pytest.approx([event["dev_loss"] for event in plain.trace])
    assert score(causal, kept.best, own.dev).loss == pytest.approx(min(losses))


def fake_run(losses):
    """A run whose held-out loss in each fold and epoch is given: two examples of class 0 in each fold."""
    answers = [
        [torch.tensor([[-loss, float(np.log1p(-np.exp(-loss)))]] * 2, dtype=torch.float64) for loss in fold]
        for fold in losses
    ]
    return Run(None, answers, [None] * len(losses), 1.0)


def test_the_epoch_is_the_one_of_least_mean_loss_over_the_folds():
    pool = Labelled(None, torch.zeros(4, dtype=torch.long))
    ladder = Ladder(None, pool, [Fold((), (0, 1)), Fold((), (2, 3))])
    run = fake_run([[0.9, 0.5, 0.6, 0.1], [0.9, 0.8, 0.4]])  # the second stopped early: epoch 3 is not known of it
    assert ladder.best_epoch(run) == 2
    assert ladder.best_epoch(run, 1) == 3
    assert ladder.score(run).loss == pytest.approx(0.5)
    assert ladder.answers(run).sizes == (2, 2)


def test_halving_keeps_the_better_ones_and_ranks_them_first(causal):
    ladder, problem = ladder_of(causal)
    tried = [deep(problem, rate) for rate in (1e-6, 0.1, 0.03)]
    runs = ladder.climb(tried, (1,))
    assert [len(run.answers) for run in runs] == [2, 1, 1]
    first_fold = {run.configuration.training.learning_rate: ladder.score(run, 1).loss for run in runs}
    best = min(first_fold, key=lambda rate: first_fold[rate])
    assert runs[0].configuration.training.learning_rate == best


def test_a_configuration_that_the_backbone_refuses_is_passed_over(causal, monkeypatch):
    from cuecraft.errors import MethodError

    ladder, problem = ladder_of(causal)
    refused = deep(problem, 0.5)
    refine = OffsetTraining.refine

    def refusing(self, *rest):
        if self.learning_rate == 0.5:
            raise MethodError("not here")
        refine(self, *rest)

    monkeypatch.setattr(OffsetTraining, "refine", refusing)
    runs = ladder.climb([refused, deep(problem)], (2,))
    assert [run.configuration.training.learning_rate for run in runs] == [0.1]
    assert "not here" in ladder.refusal


def test_a_plan_tries_the_best_start_with_every_rate_and_others_with_the_first():
    starts = [Words(name, GivenWords(), ids) for name, ids in (("a", (1, 2)), ("b", (3,)), ("c", (4,)))]
    found = configurations(PLANS[Preset.BEST], starts, (8, 9))
    names = [(one.training.name, one.training.learning_rate, one.start.name) for one in found]
    assert names[:4] == [("deep-cue", rate, "a") for rate in (0.1, 0.03, 0.3, 0.01)]
    assert ("deep-cue", 0.1, "b") in names
    assert ("prompt-tuning", 0.005, "a") in names
    longer = next(one.start for one in found if "longer" in one.start.name)
    assert longer.token_ids == (8, 9, 8, 9, 8, 9, 1, 2)
    assert isinstance(found[-1].start, SearchedPrompt)


# The method


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_it_ships_the_better_prompt_of_the_two(kind, tiny_plans, request):
    problem = tiny_problem(request.getfixturevalue(kind))
    outcome = auto().fit(problem)
    evidence = outcome.verdict.evidence
    assert outcome.verdict.ships == ("tuned" if evidence.is_better else "untuned")
    assert outcome.is_tuned == evidence.is_better
    assert evidence.rows == len(TEXTS)
    assert outcome.held_out.accuracy == (evidence.accuracy if evidence.is_better else evidence.untuned_accuracy)
    assert outcome.trace[-1]["phase"] == "verdict"
    full = [row for row in outcome.tried if row.folds == 2]
    assert full == sorted(full, key=lambda row: row.loss)
    assert all(isinstance(row, Tried) and row.seconds >= 0 for row in outcome.tried)


def test_without_signal_the_untuned_prompt_ships(causal, tiny_plans):
    """Texts alike under both labels: nothing can be learnt, so whatever seems learnt must not ship."""
    rows = [record for text, _ in TEXTS[:4] for record in records([(text, 0), (text, 1)])]
    problem = make_problem(causal, make_task(), rows, rows)
    outcome = auto().fit(problem)
    assert outcome.verdict.ships == "untuned"
    assert outcome.best is outcome.start
    assert outcome.verdict.reason


def test_a_training_that_makes_things_worse_does_not_ship(causal, tiny_plans, monkeypatch):
    """Whatever is trained answers the wrong way round: the guard must see it."""
    answers = Ladder.answers

    def reversed_answers(self, run, folds=None):
        found = answers(self, run, folds)
        return replace(found, log_probs=torch.log(1 - found.log_probs.exp().clamp(1e-6, 1 - 1e-6)))

    problem = tiny_problem(causal)
    honest = auto().fit(problem)
    assert honest.verdict.ships == "tuned"
    monkeypatch.setattr(Ladder, "answers", reversed_answers)
    assert auto().fit(problem).verdict.ships == "untuned"


def test_the_choice_is_made_again_on_all_examples(causal, tiny_plans):
    outcome = auto().fit(tiny_problem(causal))
    assert outcome.verdict.ships == "tuned"
    refits = {event["refit"] for event in outcome.trace if "refit" in event}
    assert refits == {0, 1}
    assert isinstance(outcome.best.prompt, DeepCue | type(outcome.best.prompt))
    assert outcome.words is not None
    assert isinstance(outcome.words.prompt, HardPrompt)


def test_one_example_of_a_class_is_too_few_to_check_on(causal, tiny_plans):
    rows = records([TEXTS[0], TEXTS[1], TEXTS[3]])
    outcome = auto().fit(make_problem(causal, make_task(), rows))
    assert not outcome.is_tuned
    assert "one example only" in outcome.verdict.reason


def test_the_same_seed_gives_the_same_bits_and_another_one_others(causal, tiny_plans, tmp_path):
    def made(seed):
        problem = tiny_problem(causal, seed=seed)
        return make_artifact(problem, auto().fit(problem), auto()).save(tmp_path / f"{seed}")

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_the_artifact_says_what_was_held_out_and_not_what_was_learnt_from(causal, tiny_plans, tmp_path):
    problem = tiny_problem(causal)
    outcome = auto().fit(problem)
    artifact = make_artifact(problem, outcome, auto())
    assert "dev_accuracy" not in artifact.manifest.metrics
    assert artifact.manifest.metrics["held_out_accuracy"] == outcome.held_out.accuracy


class Clock:
    """Seconds that pass with every look."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self, reserve=0.0):
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 5, 8, 13, 21, 34])
def test_it_stops_cleanly_whenever_the_time_ends(looks, causal, tiny_plans):
    problem = replace(tiny_problem(causal), out_of_time=Clock(looks))
    outcome = auto().fit(problem)
    assert outcome.verdict.reason
    assert outcome.is_tuned == (outcome.verdict.ships == "tuned")
    if outcome.is_tuned:
        assert outcome.verdict.evidence.is_better
    score(causal, outcome.best, problem.train)


def test_other_label_words_reach_the_artifact(causal, causal_folder, tmp_path):
    """A prompt found with other label words answers the same from its artifact."""
    problem = tiny_problem(causal)
    task = replace(problem.task, verbalizer=make_task(words={"negative": "bad", "positive": "good"}).verbalizer)
    candidate = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)
    other = replace(candidate, reader=OtherWords(causal, task))
    outcome = replace(auto_outcome(problem), best=other)
    folder = tmp_path / "words"
    make_artifact(problem, outcome, auto()).save(folder)
    assert load_artifact(folder).task.verbalizer.words == (("bad",), ("good",))
    loaded = PromptClassifier.of(load_artifact(folder), causal)
    texts = [text for text, _ in TEXTS]
    with torch.no_grad():
        expected = other.logits(causal, pooled(problem).context).double().softmax(-1).numpy()
        plain = candidate.logits(causal, pooled(problem).context).double().softmax(-1).numpy()
    assert np.allclose(loaded.predict_proba(texts), expected, atol=1e-5)
    assert not np.allclose(plain, expected, atol=1e-3)


def auto_outcome(problem):
    from cuecraft.method import Outcome

    start = Candidate(HardPrompt(problem.initial_ids), starting_point(problem, (), CalibrationKind.NONE).calibration)
    return Outcome(start, start, [])


def test_the_classifier_has_a_leaderboard(causal, tiny_plans):
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    classifier = PromptClassifier(causal, "auto", template="{text}{prompt: it was}{mask}").fit(texts, labels)
    rows = classifier.leaderboard()
    assert {"name", "loss", "accuracy", "sd", "folds", "seconds"} == set(rows[0])
    assert any(row["name"] == "zero-shot" for row in rows)


def test_hand_written_words_are_tried_only_where_they_lead_to_the_answer(causal):
    for template, leads in (
        ("{text}{prompt: it was}{mask}", True),
        ("{prompt:it was}{text}{mask}", False),
        ("{text}{prompt: it was} then:{mask}", False),
    ):
        problem = tiny_problem(causal, template)
        pool = pooled(problem)
        found = Untrained(problem, pool, stratified_folds(pool.labels, 2, 0), PLANS[Preset.FAST]).starts()
        assert (len(found) > 1) == leads


def test_presets_try_more_and_more():
    sizes = [len(configurations(PLANS[preset], [Words("a", GivenWords(), (1,))], (2,))) for preset in Preset]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert plans.PLANS[Preset.FAST].members < plans.PLANS[Preset.GOOD].members < plans.PLANS[Preset.BEST].members
