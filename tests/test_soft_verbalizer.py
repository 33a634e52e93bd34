"""Soft verbalizers: where their vectors start, what is trained, and what an artifact answers with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from conftest import LM_TEMPLATE, TEXTS, make_causal, make_examples, make_task, records, tiny_problem
from cuecraft.artifact import DeepCue, HardPrompt, SoftPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import ClassHead, load_backbone
from cuecraft.core.errors import MethodError
from cuecraft.methods import make_method
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import CalibrationKind
from cuecraft.methods.train.probe import STRENGTHS, scaled_head
from cuecraft.methods.train.verbalizer import VerbalizerKind, head_unit, named_head, verbalized
from cuecraft.methods.untuned import calibrate
from cuecraft.task import Task, Template, Verbalizer

CUE = (20, 21, 22)
FITTED = CalibrationKind.FITTED
LONG = {"negative": ["a bore", "awful"], "positive": ["a joy of love"]}


@pytest.fixture(params=["causal", "masked"])
def backbone(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def test_vectors_of_one_token_answer_as_the_words_do(backbone):
    """With several words of a class its vector is their mean; with one the model's own logit."""
    context = backbone.context(make_examples(), make_task(LM_TEMPLATE + "."))
    head = named_head(backbone, context.renderer)
    own = backbone.class_logits(context, HardPrompt(CUE, head))
    assert torch.allclose(
        own.log_softmax(-1), backbone.class_logits(context, HardPrompt(CUE)).log_softmax(-1), atol=1e-5
    )


def test_a_vector_starts_at_the_mean_over_words_of_means_over_tokens(causal):
    weight = causal.model.get_output_embeddings().weight
    ids = {name: [causal.tokenizer(f" {word}")["input_ids"] for word in words] for name, words in LONG.items()}
    plain = [torch.stack([weight[own].mean(0) for own in words]).mean(0) for words in ids.values()]
    for norm in (None, "siblings"):
        head = named_head(causal, causal.renderer(make_task(words=LONG, norm=norm)))
        assert torch.allclose(head.weight, torch.stack(plain))
        assert not head.bias.any()


def problem_of(backbone, has_dev=True, words=None):
    problem = tiny_problem(backbone, LM_TEMPLATE)
    if words is not None:
        problem = make_problem(backbone, make_task(words=words), records(TEXTS[:5]), records(TEXTS[5:]))
    return problem if has_dev else replace(problem, train=problem.pool, dev=None)


def test_the_fitted_start_is_the_regression_of_least_loss_on_dev(backbone):
    problem, prompt = problem_of(backbone), HardPrompt(CUE)
    with torch.no_grad():
        x, z = (backbone.features(own.context, prompt).double().numpy() for own in (problem.train, problem.dev))
    unit = np.sqrt((x**2).mean())
    y, truth = (own.labels.numpy() for own in (problem.train, problem.dev))
    fitted = [LogisticRegression(C=c, max_iter=1000).fit(x / unit, y) for c in STRENGTHS]
    losses = [-np.log(own.predict_proba(z / unit)[range(len(truth)), truth]).mean() for own in fitted]
    best = fitted[int(np.argmin(losses))]
    (found,) = verbalized(problem, prompt, VerbalizerKind.FITTED, FITTED)
    head = found.prompt.head
    assert np.allclose((head.weight[1] - head.weight[0]).numpy(), best.coef_[0] / unit, atol=1e-3)


def test_soft_begins_at_both_where_a_dev_set_can_choose(backbone):
    problem, prompt = problem_of(backbone), HardPrompt(CUE)
    alone = [verbalized(problem, prompt, kind, FITTED)[0] for kind in (VerbalizerKind.NAMES, VerbalizerKind.FITTED)]
    both = verbalized(problem, prompt, VerbalizerKind.SOFT, FITTED)
    assert [own.prompt.head.weight.tolist() for own in both] == [own.prompt.head.weight.tolist() for own in alone]
    assert both[0].calibration == calibrate(problem, both[0].prompt, FITTED)
    (only,) = verbalized(problem_of(backbone, has_dev=False), prompt, VerbalizerKind.SOFT, FITTED)
    assert torch.equal(only.prompt.head.weight, named_head(backbone, problem.train.context.renderer).weight)


def test_soft_ships_what_is_better_on_dev(causal):
    problem, losses = problem_of(causal, words=LONG), {}
    for kind in ("names", "fitted", "soft"):
        found = make_method("deep-cue", {"epochs": 3, "verbalizer": kind}).fit(problem)
        losses[kind] = [event["dev_loss"] for event in found.trace if event["phase"] == "deep-cue"]
        assert found.dev.loss == min(event["dev_loss"] for event in found.trace)
    assert losses["names"] != losses["fitted"]
    assert losses["soft"] == losses["names"] + losses["fitted"]


def test_without_folds_a_regression_has_the_middle_penalty(causal):
    problem = replace(make_problem(causal, make_task(), records(TEXTS[:2]), []), dev=None)
    (fitted,) = verbalized(problem, HardPrompt(CUE), VerbalizerKind.FITTED, FITTED)
    with torch.no_grad():
        features = causal.features(problem.train.context, HardPrompt(CUE))
    assert torch.allclose(fitted.prompt.head.weight, scaled_head(problem.train, features, 1.0).weight)


TRAINED = {
    "deep-cue": {"epochs": 4, "learning_rate": 0.1},
    "prompt-tuning": {"epochs": 4, "learning_rate": 0.1},
    "p-tuning": {"epochs": 4, "encoder_width": 8},
    "prefix-tuning": {"epochs": 4, "encoder_width": 8},
    "p-tuning-v2": {"epochs": 4, "learning_rate": 0.1},
}


@pytest.mark.parametrize("kind", ["names", "fitted", "soft"])
@pytest.mark.parametrize("name", TRAINED)
def test_what_is_trained_answers_the_same_from_its_artifact(name, kind, causal, tmp_path):
    problem = problem_of(causal, has_dev=False, words=LONG)
    method = make_method(name, TRAINED[name] | {"verbalizer": kind, "head_learning_rate": 0.5})
    outcome = method.fit(problem)
    assert outcome.is_tuned
    assert outcome.best.prompt.head is not None
    made = make_artifact(problem, outcome, method)
    made.save(tmp_path / "made")
    loaded = load_artifact(tmp_path / "made")
    texts = [text for text, _ in TEXTS]
    predictor = Predictor.of(loaded, causal)
    found = torch.tensor(predictor.predict_proba(texts))
    context = causal.context(make_examples(), problem.task)
    with torch.no_grad():
        logits = causal.class_logits(context, loaded.prompt)
        assert torch.allclose(loaded.calibration.apply(logits).double().softmax(-1), found, atol=1e-6)
        ready = predictor.members[0].ready
        served = causal.mixed_logits([(ready, piece) for piece in context.pieces])
        assert torch.allclose(torch.stack(served), logits, atol=2e-5)


def test_training_moves_the_vectors_and_reads_one_slot_of_each_text(causal, monkeypatch):
    problem = problem_of(causal, words=LONG)
    words = HardPrompt(problem.initial_ids)
    (start,) = verbalized(problem, words, VerbalizerKind.NAMES, CalibrationKind.NONE)
    widths = []
    plain = causal._forward
    monkeypatch.setattr(causal, "_forward", lambda plan: widths.append(plan.inputs.shape[1]) or plain(plan))
    trainable = make_method("deep-cue", {"verbalizer": "names"}).trainable(problem, start)
    first = trainable.candidate()
    assert torch.equal(first.logits(causal, problem.train.context), start.logits(causal, problem.train.context))
    assert set(widths) == {len(problem.initial_ids)}
    offsets, weight, bias = trainable.groups()
    assert weight["lr"] == pytest.approx(0.01 * head_unit(causal))
    assert (offsets["lr"], bias["lr"]) == (pytest.approx(0.1 * head_unit_of_inputs(causal)), 0.01)


def head_unit_of_inputs(backbone):
    return float(backbone.embedding_matrix().float().square().mean().sqrt())


def test_gradients_of_vectors_and_prompt_are_those_of_finite_differences(byte_tokenizer):
    backbone = load_backbone((make_causal(byte_tokenizer, "gpt2").double(), byte_tokenizer))
    context = backbone.context(make_examples(TEXTS[:2]), make_task(words=LONG, norm="siblings"))
    draw = torch.Generator().manual_seed(0)
    parts = [0.3 * torch.randn(*shape, generator=draw) for shape in ((2, 2, 32), (2, 32), (2,))]

    def values(offsets, weight, bias):
        return backbone.class_logits(context, DeepCue(HardPrompt((5, 6), ClassHead(weight, bias)), offsets))

    assert torch.autograd.gradcheck(values, [own.double().requires_grad_() for own in parts], atol=1e-6, fast_mode=True)


@torch.no_grad()
def test_prompts_with_class_heads_read_a_text_together(causal, monkeypatch):
    context = causal.context(make_examples(), make_task())
    draw = torch.Generator().manual_seed(0)
    heads = [ClassHead(torch.randn(2, 32, generator=draw), torch.randn(2, generator=draw)) for _ in range(3)]
    prompts = [
        HardPrompt(CUE, heads[0]),
        HardPrompt(CUE),
        SoftPrompt(torch.randn(2, 32), heads[1]),
        HardPrompt((5,), heads[2]),
    ]
    alone = [causal.class_logits(context, own) for own in prompts]
    passes = []
    plain = causal._forward
    monkeypatch.setattr(causal, "_forward", lambda plan: passes.append(1) or plain(plan))
    assert torch.allclose(causal.class_logits_many(context, prompts), torch.stack(alone), atol=2e-5)
    assert len(passes) == 2


def test_what_has_no_label_words_is_refused(sequence):
    for name in ("deep-cue", "prompt-tuning", "p-tuning-v2"):
        with pytest.raises(MethodError, match="verbalizer=soft needs a causal or masked language model"):
            make_method(name, {"epochs": 1, "verbalizer": "soft"}).fit(tiny_problem(sequence))


def test_a_class_that_begins_another_trains_by_vectors(causal):
    names = ("joy", "joy of love", "war")
    task = Task(Template(LM_TEMPLATE), Verbalizer.from_labels(names), norm="siblings")
    rows = [replace(own, label=names[n % 3]) for n, own in enumerate(records())]
    problem = make_problem(causal, task, rows[:6], rows[6:])
    outcome = make_method("deep-cue", {"epochs": 2, "verbalizer": "names"}).fit(problem)
    assert len(outcome.start.calibration.bias) == 3
