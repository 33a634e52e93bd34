"""`auto`: one prompt is trained without each fold, and answers to it."""

from dataclasses import replace

import pytest
import torch

from auto_parts import (
    KINDS,
    ONE,
    assert_same_prompt,
    auto,
    by_hand,
    crossfitted,
    deep,
    flipped,
    planned,
    probabilities,
    problem_of,
    trained_tensors,
    trainings_of,
    words,
)
from conftest import LABELS, TEXTS, make_task, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import load_artifact
from cuecraft.core.errors import MethodError
from cuecraft.methods.auto import crossfit
from cuecraft.methods.auto.crossfit import SHARES, Latest
from cuecraft.methods.auto.plans import PLANS, Preset, Schedule, configurations
from cuecraft.methods.auto.starts import GivenWords, OtherWords, SearchedPrompt, SearchedWords, Words
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.held_out import answers_of_folds
from cuecraft.methods.problem import CalibrationKind, Selection
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.search.space import filler_ids
from cuecraft.methods.train.deep import OffsetTraining
from cuecraft.methods.train.soft import EmbeddingTraining
from cuecraft.methods.train.soup import part_of_the_way
from cuecraft.methods.untuned import starting_point
from oracles import plain_class_logits

plain_search = LabelWordSearch.search


def at(share, monkeypatch):
    """Let prompts go one share of the way only."""
    monkeypatch.setattr(crossfit, "SHARES", (share,))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("training", KINDS)
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_prompts_are_those_that_are_trained_by_hand_without_the_fold(kind, training, share, monkeypatch, request):
    at(share, monkeypatch)
    problem = problem_of(kind, request)
    trainings, configuration = trainings_of(problem), KINDS[training](problem)
    found = trainings.cross_fit(configuration)
    assert len(found.candidates) == 2
    for candidate, fold in zip(found.candidates, trainings._folds, strict=True):
        expected, correction = by_hand(configuration, problem.backbone, problem.pool.select(fold.train), share)
        assert_same_prompt(candidate.prompt, expected)
        assert candidate.calibration.bias == pytest.approx(correction.bias, abs=1e-5)
        assert candidate.calibration.scale == pytest.approx(correction.scale, abs=1e-5)
        assert candidate.reader is None


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("training", KINDS)
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_answers_are_those_of_each_prompt_to_the_fold_that_it_did_not_see(kind, training, share, monkeypatch, request):
    at(share, monkeypatch)
    problem = problem_of(kind, request)
    trainings = trainings_of(problem)
    found = trainings.cross_fit(KINDS[training](problem))
    expected, labels = [], []
    for candidate, fold in zip(found.candidates, trainings._folds, strict=True):
        part = problem.pool.select(fold.held_out)
        expected.append(probabilities(problem.backbone, part.context, [candidate.prompt], [candidate.calibration]))
        labels += part.labels.tolist()
    assert torch.allclose(found.held_out.values.exp(), torch.cat(expected), atol=1e-5)
    assert found.held_out.golds.classes.tolist() == labels
    assert found.held_out.sizes == tuple(len(fold.held_out) for fold in trainings._folds)


def test_answers_are_those_of_a_plain_forward_of_the_whole_text(causal):
    """Unpadded and uncached, with offsets added by hooks on the model's own layers."""
    problem = tiny_problem(causal)
    trainings = trainings_of(problem)
    found = trainings.cross_fit(deep(problem))
    expected = []
    for candidate, fold in zip(found.candidates, trainings._folds, strict=True):
        context, own = problem.pool.context.select(fold.held_out), candidate.prompt
        with torch.no_grad():
            logits = plain_class_logits(causal, context, own.base.token_ids, own.offsets)
        expected.append(candidate.calibration.apply(logits).log_softmax(-1))
    assert torch.allclose(found.held_out.values, torch.cat(expected), atol=1e-4)


def starts(problem):
    """Return a start of each kind."""
    given, ids = GivenWords(), problem.initial_ids
    return {
        "words": words(problem),
        "searched prompt": SearchedPrompt("search", given, ids, AutoPrompt(steps=6, candidates=8)),
        "searched label words": words(problem, "label words", SearchedWords(LabelWordSearch(), ids)),
    }


@pytest.mark.parametrize("start", ["words", "searched prompt", "searched label words"])
@pytest.mark.parametrize("share", SHARES)
def test_held_out_labels_touch_neither_start_nor_training(share, start, causal, monkeypatch):
    """With other labels of a fold, the prompt that did not see it is the same in every bit, and others are not."""
    at(share, monkeypatch)
    # Found words are taken, whether they are clearly better or not.
    monkeypatch.setattr(LabelWordSearch, "search", lambda *asked: _taken(plain_search(*asked)))
    problem = tiny_problem(causal)
    plain = trainings_of(problem)
    held = plain._folds[0].held_out
    other = trainings_of(flipped(problem, held))
    other._folds = plain._folds
    found, again = (own.cross_fit(deep(problem, start=starts(problem)[start])) for own in (plain, other))
    (one, one_more), (two, two_more) = found.candidates, again.candidates
    assert torch.equal(one.prompt.offsets, two.prompt.offsets)
    assert one.prompt.base.token_ids == two.prompt.base.token_ids
    assert one.calibration == two.calibration
    assert getattr(one.reader, "task", None) == getattr(two.reader, "task", None)
    assert torch.equal(found.held_out.values[: len(held)], again.held_out.values[: len(held)])
    assert [e for e in plain._trace if e["fold"] == 0] == [e for e in other._trace if e["fold"] == 0]
    assert not torch.equal(one_more.prompt.offsets, two_more.prompt.offsets)
    assert found.held_out.score != again.held_out.score


def _taken(found):
    return replace(found, words=found.best)


@pytest.mark.parametrize("folds", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_share_of_the_way_is_the_one_of_least_loss_after_a_temperature(folds, causal, monkeypatch):
    problem = tiny_problem(causal)
    taken = set()
    cue = tuple(causal.tokenizer("\nThe sentiment of this text is", add_special_tokens=False)["input_ids"])
    longer = (*filler_ids(problem), *problem.initial_ids)
    for ids, rate in ((problem.initial_ids, 0.1), (cue, 0.1), (longer, 0.1), (cue, 0.4)):
        configuration = deep(problem, rate, start=replace(words(problem), token_ids=ids))
        losses = {}
        for share in SHARES:
            at(share, monkeypatch)
            alone = trainings_of(problem, folds).cross_fit(configuration)
            losses[share] = alone.held_out.recalibrated(problem.seed).score.loss
        monkeypatch.setattr(crossfit, "SHARES", SHARES)
        found = trainings_of(problem, folds).cross_fit(configuration)
        assert found.share == min(losses, key=losses.get)
        assert found.held_out.recalibrated(problem.seed).score.loss == min(losses.values())
        assert found.name.endswith("of the way") == (found.share != 1)
        taken.add(found.share)
    assert len(taken) > 1


def test_trainings_side_by_side_are_those_of_each_alone(causal, monkeypatch):
    at(1.0, monkeypatch)
    problem = tiny_problem(causal)
    trainings, configuration = trainings_of(problem, folds=4), deep(problem)
    found = trainings.cross_fit(configuration)
    assert len(found.candidates) == 4
    for number, candidate in enumerate(found.candidates):
        own = replace(trainings._fold(configuration, number), dev=None)
        alone = Latest(own)
        configuration.training.refine(own, configuration.first.candidate(own), alone)
        assert_same_prompt(candidate.prompt, alone.best.prompt, 1e-6)
        assert candidate.prompt.offsets.abs().max() > 1e-3
        of_fold = [event["train_loss"] for event in trainings._trace if event["fold"] == number]
        assert of_fold == pytest.approx([event["train_loss"] for event in alone.trace], abs=1e-6)


@pytest.mark.parametrize("training", ["deep", "soft"])
def test_weights_of_examples_enter_start_and_training(training, causal, monkeypatch):
    at(1.0, monkeypatch)
    problem = tiny_problem(causal)
    weights = torch.tensor([3.0, 0.5, 0.25, 2.0, 0.25, 1.0, 0.5, 0.5])
    weighed = replace(problem, train=replace(problem.pool, weights=weights), dev=None)
    trainings, configuration = trainings_of(weighed), KINDS[training](problem)
    found, plain = trainings.cross_fit(configuration), trainings_of(problem).cross_fit(configuration)
    for candidate, other, fold in zip(found.candidates, plain.candidates, trainings._folds, strict=True):
        expected, correction = by_hand(configuration, causal, weighed.train.select(fold.train))
        assert_same_prompt(candidate.prompt, expected)
        assert candidate.calibration.bias == pytest.approx(correction.bias, abs=1e-5)
        assert not torch.allclose(trained_tensors(candidate.prompt)[0], trained_tensors(other.prompt)[0], atol=1e-4)


def test_the_last_epoch_is_kept_and_not_the_best(causal):
    problem = replace(tiny_problem(causal), dev=None)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.FITTED)
    best, last = Selection(problem), Latest(problem)
    wild = OffsetTraining(learning_rate=30.0, epochs=5)
    wild.refine(problem, start, best)
    wild.refine(problem, start, last)
    assert [event["train_loss"] for event in last.trace] == [event["train_loss"] for event in best.trace]
    assert last.best_score.loss == last.trace[-1]["train_loss"]
    assert last.best_score.loss > best.best_score.loss


@pytest.mark.parametrize("training", [OffsetTraining(epochs=2), EmbeddingTraining(epochs=2)])
@pytest.mark.parametrize("kind", ["causal", "sequence"])
def test_a_part_of_the_way_lies_between_start_and_end(training, kind, request):
    problem = replace(problem_of(kind, request), dev=None)
    backbone, context = problem.backbone, problem.train.context
    start = starting_point(problem, problem.initial_ids, CalibrationKind.FITTED)
    selection = Latest(problem)
    training.refine(problem, start, selection)
    with torch.no_grad():
        first, last = start.logits(backbone, context), selection.best.logits(backbone, context)
        none, half, all_of_it = (
            part_of_the_way(start, selection.best, share, backbone.embed) for share in (0.0, 0.5, 1.0)
        )
        assert torch.allclose(none.logits(backbone, context), first, atol=1e-5)
        assert torch.equal(all_of_it.logits(backbone, context), last)
    trained = selection.best.prompt
    if isinstance(training, EmbeddingTraining):
        middle = (start.prompt.vectors(backbone.embed) + trained.embeddings) / 2
        assert torch.allclose(half.prompt.embeddings, middle, atol=1e-6)
    else:
        assert torch.allclose(half.prompt.offsets, trained.offsets / 2, atol=1e-7)
    if kind == "sequence":
        assert torch.allclose(half.prompt.head.weight, (start.prompt.head.weight + trained.head.weight) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_the_prompts_of_the_folds_ship_together_each_with_its_own_calibration(kind, request):
    problem = problem_of(kind, request)
    found = trainings_of(problem, folds=4).cross_fit(deep(problem))
    made = found.made()
    assert found.members == len(made.prompts) == 4
    for candidate, prompt, own in zip(found.candidates, made.prompts, made.calibrations, strict=True):
        assert prompt is candidate.prompt
        assert own == candidate.calibration
    if kind != "sequence":
        assert len(set(made.calibrations)) == 4
    context = problem.pool.context
    expected = probabilities(problem.backbone, context, made.prompts, made.calibrations)
    with torch.no_grad():
        assert torch.allclose(made.logits(problem.backbone, context).double().softmax(-1), expected, atol=1e-5)
    assert found.fallback() is found.candidates[0]
    assert found.words().prompt.token_ids == found.configuration.first.token_ids


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_where_fewer_prompts_may_ship_than_folds_one_is_trained_on_all_examples(kind, share, monkeypatch, request):
    at(share, monkeypatch)
    problem = problem_of(kind, request)
    configuration, trained = deep(problem), []
    plain = crossfit.Configuration.trained
    monkeypatch.setattr(
        crossfit.Configuration,
        "trained",
        lambda self, parts: trained.append([len(own.train) for own, _ in parts]) or plain(self, parts),
    )
    found = trainings_of(problem, most=1).cross_fit(configuration)
    made = found.made()
    assert trained == [[4, 4], [8]]
    assert found.members == len(made.prompts) == 1
    expected, correction = by_hand(configuration, problem.backbone, problem.pool, share)
    assert_same_prompt(made.prompt, expected)
    assert made.calibration.bias == pytest.approx(correction.bias, abs=1e-5)


OTHER = {"train": ("cold", "warm"), "whole": ("dull", "bright")}


def own_words(monkeypatch):
    """Let a search find, for each fold, words of its own: by the label of the first text, and others for all texts."""

    def search(self, own, *rest):
        assert own.dev is None
        pair = OTHER["whole" if len(own.train) == len(TEXTS) else "train"]
        if len(own.train) < len(TEXTS) and TEXTS[0][0] in {one.fields["text"] for one in own.train.context.examples}:
            pair = pair[::-1]
        return replace(plain_search(self, own, *rest), words=dict(zip(LABELS, ((word,) for word in pair), strict=True)))

    monkeypatch.setattr(LabelWordSearch, "search", search)


def test_each_fold_trains_and_answers_with_label_words_of_its_own(causal, monkeypatch):
    own_words(monkeypatch)
    at(1.0, monkeypatch)
    problem = tiny_problem(causal)
    start = words(problem, label_words=SearchedWords(LabelWordSearch(), problem.initial_ids))
    trainings, configuration = trainings_of(problem), deep(problem, start=start)
    found = trainings.cross_fit(configuration)
    seen = set()
    for number, (candidate, fold) in enumerate(zip(found.candidates, trainings._folds, strict=True)):
        assert isinstance(candidate.reader, OtherWords)
        verbalizer = candidate.reader.task.verbalizer
        seen.add(verbalizer.words)
        other = replace(problem.task, answers=verbalizer)
        train, held = (
            replace(part, context=replace(part.context, renderer=causal.renderer(other)))
            for part in (problem.pool.select(fold.train), problem.pool.select(fold.held_out))
        )
        expected, correction = by_hand(configuration, causal, train)
        assert_same_prompt(candidate.prompt, expected)
        answers = probabilities(causal, held.context, [expected], [correction])
        assert torch.allclose(found.held_out.values.split(found.held_out.sizes)[number].exp(), answers, atol=1e-4)
    assert seen == {(("cold",), ("warm",)), (("warm",), ("cold",))}
    assert not found.joins
    assert found.members == 1
    whole = make_task(words=dict(zip(LABELS, OTHER["whole"], strict=True)))
    data = replace(problem.pool, context=replace(problem.pool.context, renderer=causal.renderer(whole)))
    expected, _ = by_hand(configuration, causal, data)
    made = found.made()
    assert_same_prompt(made.prompt, expected)
    assert made.reader.task.verbalizer.words == (("dull",), ("bright",))
    assert found.words().reader.task.verbalizer.words == (("dull",), ("bright",))
    assert found.fallback().reader.task.verbalizer.words in seen


@pytest.mark.parametrize("ships", ["words alone", "a training"])
def test_label_words_found_in_all_examples_reach_the_artifact(ships, causal, monkeypatch, tmp_path):
    own_words(monkeypatch)
    planned(monkeypatch, replace(ONE, searches_words=True))
    if ships == "a training":
        monkeypatch.setattr("cuecraft.methods.auto.choice._Choice._words_alone", lambda *_: None)
    at(1.0, monkeypatch)
    monkeypatch.setattr(
        "cuecraft.methods.auto.untrained.Untrained._is_clear", lambda self, found, own, among: among == 1
    )
    monkeypatch.setattr("cuecraft.methods.evidence.Evidence.is_better", True)
    contenders = crossfitted(monkeypatch)
    problem = tiny_problem(causal)
    outcome = auto().fit(problem)
    (contender,) = contenders
    is_trained = outcome.verdict.evidence.loss == pytest.approx(contender.tried(problem.seed).loss)
    assert is_trained == (ships == "a training")
    make_artifact(problem, outcome, auto()).save(tmp_path / "words")
    artifact = load_artifact(tmp_path / "words")
    assert artifact.task.verbalizer.words == (("dull",), ("bright",))
    context = replace(problem.pool.context, renderer=causal.renderer(artifact.task))
    best = outcome.best
    expected = probabilities(causal, context, best.prompts, best.calibrations)
    loaded = PromptClassifier.of(artifact, causal).predict_proba([text for text, _ in TEXTS])
    assert torch.allclose(torch.from_numpy(loaded).double(), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_a_training_that_diverges_is_refused(factor, causal, monkeypatch):
    problem = tiny_problem(causal)
    trained = crossfit.Configuration.trained

    def wild(self, parts):
        found = trained(self, parts)
        for own in found:
            own.best = replace(own.best, prompt=replace(own.best.prompt, offsets=own.best.prompt.offsets * factor))
        return found

    monkeypatch.setattr(crossfit.Configuration, "trained", wild)
    with pytest.raises(MethodError, match=r"deep-cue 0.1 x 4, own: the training diverged; its answers are not finite"):
        trainings_of(problem).cross_fit(deep(problem))


def test_of_the_shares_of_the_way_one_with_finite_answers_is_taken(causal, monkeypatch):
    def answers(problems, candidates, folds):
        found = answers_of_folds(problems, candidates, folds)
        calls.append(found)
        return replace(found, values=found.values * torch.nan) if len(calls) != 2 else found

    calls = []
    monkeypatch.setattr(crossfit, "answers_of_folds", answers)
    problem = tiny_problem(causal)
    found = trainings_of(problem).cross_fit(deep(problem))
    assert found.share == SHARES[1]
    assert found.held_out is calls[1]


def test_a_plan_trains_each_fold_from_words_of_its_own():
    named = [Words(name, GivenWords(), ids, name != "a") for name, ids in (("a", (1, 2)), ("b", (3,)), ("c", (4,)))]
    own = replace(named[-1], name="d", label_words=SearchedWords(LabelWordSearch(), (1,)))
    plan = replace(
        PLANS[Preset.BEST], deep=(Schedule(0.1, 16), Schedule(0.3, 8)), soft=(Schedule(0.02, 5),), alone=True, longer=6
    )
    found = configurations(plan, [*named, own], (8, 9), True)
    rows = [(one.training.name, one.training.learning_rate, one.training.epochs, one.starts) for one in found]
    expected = [
        ("deep-cue", 0.1, 16, ["a", "b", "c"]),
        ("deep-cue", 0.3, 8, ["a", "b", "c"]),
        ("prompt-tuning", 0.02, 5, ["a", "b", "c"]),
        ("deep-cue", 0.1, 16, ["a"]),
        ("deep-cue", 0.1, 16, ["a, 6 tokens longer"]),
        ("deep-cue", 0.1, 16, ["search from a"]),
    ]
    assert [(*row[:3], [start.name for start in row[3]]) for row in rows] == expected
    assert found[-2].first.token_ids == (8, 9, 8, 9, 8, 9, 1, 2)
    assert found[-2].length == 8
    assert found[0].length == 4 / 3
    assert [found[0].start_of(fold).name for fold in range(4)] == ["a", "b", "c", "a"]
    assert isinstance(found[-1].first, SearchedPrompt)
    assert all(one.training.schedule == "linear" for one in found)
    assert next(one.starts for one in configurations(plan, [own, *named], (8, 9), True)) == (own,)


@pytest.mark.parametrize("preset", list(Preset))
def test_where_nothing_else_is_there_a_plan_without_trainings_has_one(preset):
    start = Words("a", GivenWords(), (1,), differs=False)
    plan = replace(PLANS[preset], deep=(), soft=(), alone=False)
    assert configurations(plan, [start], (2,), True) == []
    (found,) = configurations(plan, [start], (2,), False)
    assert (found.training.learning_rate, found.training.epochs) == (plan.otherwise.rate, plan.otherwise.epochs)


def test_presets_try_more_and_more():
    start = Words("a", GivenWords(), (1,), differs=False)
    sizes = [len(configurations(PLANS[preset], [start], (2,), True)) for preset in Preset]
    assert sizes == sorted(set(sizes))
    examples = [PLANS[preset].examples for preset in Preset]
    assert examples == sorted(set(examples))
