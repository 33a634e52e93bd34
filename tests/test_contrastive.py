"""Contrastive tuning: the loss against plain loops, its batches, its gradients, and what ships."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from auto_parts import ONE, flipped, planned
from conftest import TEXTS, golds_of, records, tiny_problem
from conftest import make_task as task_of
from cuecraft.artifact import Calibration, DeepCue, HardPrompt, load_artifact
from cuecraft.backbone import ClassHead, FeatureScale
from cuecraft.backbone.columns import class_scores
from cuecraft.core.errors import MethodError
from cuecraft.methods import make_method
from cuecraft.methods.auto import crossfit
from cuecraft.methods.auto.crossfit import HEAD_SHARES, ByHead, Configuration, Trainings, tokens_of
from cuecraft.methods.auto.starts import BarePrefix, BareWords
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.contrastive import Contrast, ContrastiveTraining, contrastive_losses
from cuecraft.methods.contrastive.objective import balanced_batches, nearest_is_alike
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.gradients import feature_gradients, features_of
from cuecraft.methods.held_out import stratified_folds
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import score
from tiny_backbones import builder

KINDS = ("causal", "masked", "sequence")
FAST = {"epochs": 3, "folds": 2, "learning_rates": [0.3], "inverse_penalties": [1.0, 10.0]}


def problem_of(kind, request, **options):
    backbone = request.getfixturevalue(kind)
    return tiny_problem(backbone, "{prompt: it was}{text}" if kind == "sequence" else None, **options)


def by_loops(features, labels, temperature):
    """Equation 2 of Khosla et al. in float64, one term after another; None for a text without another of its class."""
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in features.double().numpy()]
    found = []
    for i, own in enumerate(unit):
        others = [a for a in range(len(unit)) if a != i]
        kin = [p for p in others if labels[p] == labels[i]]
        if not kin:
            found.append(None)
            continue
        total = sum(math.exp(float(own @ unit[a]) / temperature) for a in others)
        terms = [math.log(math.exp(float(own @ unit[p]) / temperature) / total) for p in kin]
        found.append(-sum(terms) / len(kin))
    return found


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_is_that_of_plain_loops(temperature):
    features, labels = 3 * drawn(0, 9, 5), [0, 1, 0, 2, 1, 1, 0, 0, 3]
    found = contrastive_losses(features, torch.tensor(labels), temperature).tolist()
    expected = by_loops(features, labels, temperature)
    assert expected.count(None) == 2
    for one, other in zip(found, expected, strict=True):
        assert math.isnan(one) if other is None else one == pytest.approx(other, rel=1e-12)


def test_the_loss_falls_as_classes_come_apart_and_does_not_see_lengths():
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    mixed = apart[[0, 2, 1, 3]]
    assert contrastive_losses(apart, labels, 0.1).mean() < contrastive_losses(mixed, labels, 0.1).mean()
    longer = apart * torch.tensor([[0.5], [2], [7], [1]])
    assert torch.allclose(contrastive_losses(apart, labels, 0.1), contrastive_losses(longer, labels, 0.1), atol=1e-6)
    assert nearest_is_alike(apart, labels).tolist() == [True] * 4
    assert nearest_is_alike(mixed, labels).tolist() == [False] * 4


def test_its_gradient_is_that_of_finite_differences():
    features, labels = drawn(1, 6, 4), torch.tensor([0, 1, 0, 1, 1, 2])  # one text has no other of its class
    features.requires_grad_()
    losses = contrastive_losses(features, labels, 0.2)
    losses[losses.isfinite()].mean().backward()
    assert bool(features.grad.isfinite().all())
    step = 1e-6
    for place in np.ndindex(*features.shape):
        ends = []
        for sign in (1, -1):
            moved = features.detach().clone()
            moved[place] += sign * step
            own = contrastive_losses(moved, labels, 0.2)
            ends.append(float(own[own.isfinite()].mean()))
        assert float(features.grad[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize(
    ("counts", "size", "shares"),
    [((8, 8, 8), 12, (4, 4, 4)), ((20, 3), 16, (8, 3)), ((5, 5, 5, 5), 4, (2, 2, 2, 2)), ((7, 1), 48, (7, 1))],
)
def test_every_batch_takes_as_many_texts_of_each_class(counts, size, shares):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    batches = balanced_batches(labels, size, torch.Generator().manual_seed(0))
    assert len(batches) == math.ceil(len(labels) / sum(shares))
    for rows in batches:
        assert len(set(rows)) == len(rows)
        assert tuple(Counter(labels[row] for row in rows)[label] for label in range(len(counts))) == shares
    again = balanced_batches(labels, size, torch.Generator().manual_seed(0))
    other = balanced_batches(labels, size, torch.Generator().manual_seed(1))
    assert batches == again
    assert batches != other or sum(counts) == sum(shares)


def test_no_text_of_a_class_is_met_a_second_time_before_all_others_were_met_once():
    batches = balanced_batches([0] * 7 + [1] * 70, 6, torch.Generator().manual_seed(3))
    for label, size in ((0, 7), (1, 70)):
        met = [row for rows in batches for row in rows if (row >= 7) == label]
        for start in range(0, len(met) - size + 1, size):
            assert len(set(met[start : start + size])) == size


def cues(problem, count, seed=0):
    """Parts of deep cues over words, each with examples of its own, and their trained tensors."""
    shape = problem.backbone.offsets_shape(3)
    dtype = problem.backbone.model.dtype
    tensors = [(0.2 * drawn(seed + n, *shape)).to(dtype).requires_grad_() for n in range(count)]
    rows = ([0, 1, 2, 3, 4, 5, 7], [1, 2, 6, 7])
    plain = Calibration.none(2)
    parts = [
        (lambda own=own: Candidate(DeepCue(HardPrompt((30, 31, 32)), own), plain), problem.pool.select(rows[n]))
        for n, own in enumerate(tensors)
    ]
    return parts, tensors


@pytest.mark.parametrize("most", [64, 3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_how_many_texts_a_pass_takes(kind, most, request, monkeypatch):
    problem = problem_of(kind, request)
    parts, tensors = cues(problem, 2)
    monkeypatch.setattr(problem.backbone, "budget", replace(problem.backbone.budget, shared_rows=most))
    Contrast(0.2).take(problem.backbone, parts, tensors)
    for (make, data), own in zip(parts, tensors, strict=True):
        features = problem.backbone.features(data.context, make().prompt)
        unit = functional.normalize(features, dim=1)
        shares = torch.stack(
            [
                -torch.stack([(unit[i] @ unit[p]) / 0.2 for p in kin]).mean()
                + torch.stack([(unit[i] @ unit[a]) / 0.2 for a in range(len(unit)) if a != i]).logsumexp(0)
                for i in range(len(unit))
                if (kin := [p for p in range(len(unit)) if p != i and data.labels[p] == data.labels[i]])
            ]
        )
        (expected,) = torch.autograd.grad(shares.mean(), own)
        assert torch.allclose(own.grad, expected, atol=1e-5)
        assert expected.abs().max() > 1e-3


def test_gradients_through_a_model_are_those_of_finite_differences(byte_tokenizer, word_tokenizer):
    backbone = builder(byte_tokenizer, word_tokenizer)("bert", "sequence", torch.float64)
    problem = tiny_problem(backbone, "{prompt: it was}{text}")
    parts, (offsets,) = cues(problem, 1)
    Contrast(0.3).take(backbone, parts, [offsets])
    ((make, data),) = parts

    def loss(moved):
        with torch.no_grad():
            own = replace(make(), prompt=DeepCue(HardPrompt((30, 31, 32)), moved))
            return float(contrastive_losses(features_of(backbone, own, data), data.labels, 0.3).mean())

    for seed in range(3):
        way, step = drawn(10 + seed, *offsets.shape), 1e-5
        slope = (loss(offsets.detach() + step * way) - loss(offsets.detach() - step * way)) / (2 * step)
        assert float((offsets.grad * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_weights_of_examples_enter_the_loss(sequence):
    problem = tiny_problem(sequence)
    (part, *_), tensors = cues(problem, 1)
    make, data = part
    heavy = replace(data, weights=torch.tensor([5.0, *[0.5] * (len(data) - 1)]))
    losses = contrastive_losses(features_of(sequence, make(), data), data.labels, 0.1)
    (expected,) = torch.autograd.grad((losses * heavy.weights).sum() / heavy.weights.sum(), tensors[0])
    Contrast(0.1).take(sequence, [(make, heavy)], tensors)
    assert torch.allclose(tensors[0].grad, expected, atol=1e-6)


def test_without_two_texts_of_a_class_there_is_nothing_to_compare(sequence):
    (part, *_), tensors = cues(tiny_problem(sequence), 1)
    make, data = part
    with pytest.raises(MethodError, match="two texts of a class"):
        Contrast(0.1).take(sequence, [(make, data.select([0, 1]))], tensors)
    few = make_problem(sequence, task_of("{prompt}{text}"), records(TEXTS[:2]), records(TEXTS[:2]))
    with pytest.raises(MethodError, match="two different texts of each class"):
        make_method("contrastive", FAST).fit(few)


def test_a_head_on_features_of_unit_length_does_not_see_their_length():
    head = ClassHead(drawn(0, 3, 4), drawn(1, 3), FeatureScale.UNIT)
    features = drawn(2, 5, 4)
    expected = torch.stack([head.weight @ (row / row.norm()) + head.bias for row in features])
    assert torch.allclose(class_scores(features, head), expected)
    assert torch.allclose(class_scores(7 * features, head), expected)
    plain = replace(head, scale=FeatureScale.PLAIN)
    assert torch.allclose(class_scores(features, plain), features @ head.weight.T + head.bias)


def trainings_of(problem, folds=2, most=8):
    pool = problem.pool
    parts = stratified_folds(pool.labels, folds, problem.seed)
    return Trainings(problem, pool, parts, 0.0, most, [])


def configuration(problem, of="deep", penalties=(10.0,), **options):
    training = ContrastiveTraining(of=of, learning_rate=0.3, **({"epochs": 3, "batch_size": 4} | options))
    start = (BarePrefix if of == "prefix" else BareWords).of("words", problem.initial_ids or (30, 31))
    return Configuration((start,), training, ByHead(penalties))


def head_by_hand(features, labels, penalty):
    """Log-probabilities of scikit-learn's regression on NumPy's unit features."""
    scaled = features / np.linalg.norm(features, axis=1, keepdims=True)
    model = LogisticRegression(C=penalty, max_iter=1000).fit(scaled, labels)
    return lambda others: model.predict_log_proba(others / np.linalg.norm(others, axis=1, keepdims=True))


@pytest.mark.parametrize("of", ["deep", "prefix", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_head_that_did_not_see_the_fold_and_what_ships_has_seen_all(kind, of, request):
    problem = problem_of(kind, request)
    trainings = trainings_of(problem)
    found = trainings.cross_fit(configuration(problem, of))
    pool, labels, at = problem.pool, problem.pool.labels.numpy(), 0
    assert len(found.candidates) == len(trainings._folds) == 2
    for candidate, fold in zip(found.candidates, trainings._folds, strict=True):
        with torch.no_grad():
            features = problem.backbone.features(pool.context, candidate.prompt).double().numpy()
            answered = candidate.logits(problem.backbone, pool.context).log_softmax(-1).numpy()
        own = head_by_hand(features[fold.train], labels[fold.train], 10.0)(features[fold.held_out])
        assert np.allclose(found.held_out.values[at : at + len(own)].numpy(), own, atol=2e-3)
        assert np.allclose(answered, head_by_hand(features, labels, 10.0)(features), atol=2e-3)
        at += len(own)


@pytest.mark.parametrize("of", ["deep", "prefix"])
def test_held_out_labels_touch_neither_training_nor_head(of, sequence, monkeypatch):
    monkeypatch.setattr(crossfit, "HEAD_SHARES", (1.0,))  # of several shares, held-out labels choose
    problem = tiny_problem(sequence)
    plain = trainings_of(problem)
    held = plain._folds[0].held_out
    other = trainings_of(flipped(problem, held))
    other._folds = plain._folds
    found, again = (own.cross_fit(configuration(problem, of)) for own in (plain, other))
    tensor = "states" if of == "prefix" else "offsets"
    (one, one_more), (two, two_more) = found.candidates, again.candidates
    assert torch.equal(getattr(one.prompt, tensor), getattr(two.prompt, tensor))
    assert not torch.equal(getattr(one_more.prompt, tensor), getattr(two_more.prompt, tensor))
    assert torch.equal(found.held_out.values[: len(held)], again.held_out.values[: len(held)])


def test_share_and_penalty_are_those_of_least_loss(sequence):
    problem = tiny_problem(sequence)
    penalties = (0.1, 1.0, 100.0)
    found = trainings_of(problem).cross_fit(configuration(problem, penalties=penalties))
    losses = {}
    for penalty in penalties:
        alone = trainings_of(problem).cross_fit(configuration(problem, penalties=(penalty,)))
        losses[penalty] = alone.held_out.score.loss
        assert alone.share in HEAD_SHARES
    assert found.way.inverse_penalty == min(losses, key=losses.get)
    assert found.held_out.score.loss == pytest.approx(min(losses.values()))


@pytest.mark.parametrize("of", ["deep", "prefix", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_the_model_stays_as_it_was(kind, of, request):
    problem = problem_of(kind, request)
    before = {name: tensor.clone() for name, tensor in problem.backbone.model.state_dict().items()}
    trainings = trainings_of(problem)
    trainings.cross_fit(configuration(problem, of, epochs=8))
    for fold in range(2):
        losses = [event["train_loss"] for event in trainings._trace if event["fold"] == fold]
        assert losses[-1] < losses[0]
    after = problem.backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_prompts_of_the_folds_ship_or_one_that_is_trained_on_all(sequence, tmp_path):
    problem = tiny_problem(sequence)
    separable = {**FAST, "of": "deep", "epochs": 15, "learning_rates": [1.0]}  # better than the untuned prompt here
    several = make_method("contrastive", separable).fit(problem)
    one = make_method("contrastive", {**separable, "prompts": 1}).fit(problem)
    assert several.is_tuned
    assert one.is_tuned
    assert len(several.best.prompts) == 2
    assert len(one.best.prompts) == 1
    for outcome in (several, one):
        assert {prompt.head.scale for prompt in outcome.best.prompts} == {FeatureScale.UNIT}
        artifact = make_artifact(problem, outcome, make_method("contrastive", separable))
        artifact.save(tmp_path / "artifact")
        again = load_artifact(tmp_path / "artifact")
        candidate = Candidate(again.prompt, again.calibration, None, again.others)
        context = problem.pool.context
        with torch.no_grad():
            expected, found = (own.logits(sequence, context) for own in (outcome.best, candidate))
        assert torch.equal(expected, found)


def test_where_nothing_is_better_the_untuned_prompt_ships(sequence):
    problem = tiny_problem(sequence)
    shuffled = replace(problem, train=replace(problem.train, golds=golds_of([0, 1, 0, 1, 0])))
    outcome = make_method("contrastive", FAST).fit(replace(shuffled, seed=5))
    assert outcome.verdict.ships == ("tuned" if outcome.is_tuned else "untuned")
    if outcome.is_tuned:
        assert outcome.verdict.evidence.loss < outcome.verdict.evidence.untuned_loss


@pytest.mark.parametrize("kind", ["causal", "sequence"])
def test_auto_trains_contrastively_where_there_are_only_features(kind, request, monkeypatch):
    training = ContrastiveTraining(of="prefix", learning_rate=0.3, epochs=2, batch_size=4)
    planned(monkeypatch, replace(ONE, contrastive=(training,)))
    outcome = make_method("auto").fit(problem_of(kind, request))
    names = [row.name for row in outcome.tried]
    assert any(name.startswith("contrastive prefix 0.3 x 2") for name in names) == (kind == "sequence")
    assert any("class head" in name and name.endswith(", prefix") for name in names) == (kind == "sequence")


@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_learn_under_the_same_loss(kind, name, request):
    problem = problem_of(kind, request)
    options = {"loss": "contrastive", "epochs": 8, "batch_size": 4, "learning_rate": 0.01 if name == "lora" else 1e-3}
    outcome = make_method(name, options).fit(problem)
    losses = [event["train_loss"] for event in outcome.trace if event["phase"] == name]
    assert losses[-1] < losses[0]
    best, start = (score(problem.backbone, own, problem.dev).loss for own in (outcome.best, outcome.start))
    assert best <= start + 1e-6
    if outcome.is_tuned:
        assert outcome.best.prompt.head.scale is FeatureScale.UNIT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.2}, "it is of loss=contrastive"),
        ({"loss": "contrastive", "patience": 3}, "to the last epoch"),
        ({"loss": "contrastive", "head_learning_rate": 1.0}, "fits the class head then"),
        ({"loss": "hinge"}, "'loss'"),
    ],
)
def test_options_without_effect_are_refused(options, said):
    with pytest.raises(MethodError, match=said):
        make_method("full", options)


def test_a_pass_costs_what_it_reads(causal, sequence):
    kept, read = tiny_problem(causal).pool, tiny_problem(sequence).pool
    assert tokens_of(kept, 3) == 3
    assert tokens_of(read, 3) == pytest.approx(3 + sum(map(len, read.context.pieces)) / len(read))


def test_features_of_several_passes_are_read_once_more(sequence, monkeypatch):
    problem = tiny_problem(sequence)
    parts, tensors = cues(problem, 1)
    monkeypatch.setattr(sequence, "budget", replace(sequence.budget, shared_rows=3))
    seen = []
    handle = sequence.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    feature_gradients(sequence, parts, tensors, lambda features, data: (features.sum(), features))
    handle.remove()
    assert Counter(seen) == {False: 3, True: 3}  # seven texts, three in a pass
