"""Continuous methods, calibration and the hybrid."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import approx_fprime
from sklearn.linear_model import LogisticRegression

from conftest import TEXTS, make_task, records, tiny_problem
from cuecraft.artifact import Calibration, HardPrompt, SoftPrompt, calibration
from cuecraft.core.errors import MethodError
from cuecraft.methods import METHODS, make_method
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import CalibrationKind, Selection, score
from cuecraft.methods.train.trainable import Init, initial_vectors
from cuecraft.methods.untuned import calibrate, fit_head, starting_point
from products import in_turn

FAST = {
    "zero-shot": {},
    "in-context": {"shots": 1},
    "autoprompt": {"steps": 3, "candidates": 5},
    "straight-through": {"steps": 3},
    "prompt-tuning": {"epochs": 4},
    "p-tuning": {"epochs": 4, "encoder_width": 8},
    "prefix-tuning": {"epochs": 4, "encoder_width": 8},
    "p-tuning-v2": {"epochs": 4},
    "deep-cue": {"epochs": 4},
    "first-order": {"folds": 2},
    "contrastive": {"epochs": 2, "folds": 2, "learning_rates": [0.3]},
    "hybrid": {"search.steps": 3, "search.candidates": 5, "tune.epochs": 4},
    "soup": {"members": 2, "deep.epochs": 3},
    "linear-probe": {},
    "embedding-probe": {},
    "lora": {"epochs": 3},
    "lora-prompt": {"epochs": 3},
    "full": {"epochs": 3},
    "auto": {"preset": "fast"},
}
LEARN = {
    "autoprompt": {"steps": 4, "candidates": 20},
    "straight-through": {"steps": 20, "learning_rate": 1.0},
    "prompt-tuning": {"epochs": 10, "learning_rate": 0.1},
    "p-tuning": {"epochs": 10, "encoder_learning_rate": 0.01, "encoder_width": 16},
    "prefix-tuning": {"epochs": 10, "encoder_learning_rate": 0.01, "encoder_width": 16},
    "p-tuning-v2": {"epochs": 10, "learning_rate": 0.1},
    "deep-cue": {"epochs": 10, "learning_rate": 0.1},
    "first-order": {},
    "contrastive": {"epochs": 8, "folds": 2, "learning_rates": [0.3]},
    "hybrid": {"search.steps": 2, "search.candidates": 5, "tune.epochs": 10},
    "soup": {"members": 2, "deep.epochs": 10},
    "lora": {"epochs": 10, "learning_rate": 0.01},
    "lora-prompt": {"epochs": 10, "learning_rate": 0.01},
    "full": {"epochs": 10, "learning_rate": 0.001},
}
PROBES = {"linear-probe", "embedding-probe"}


def test_every_method_has_a_fast_setting_here():
    assert set(FAST) == set(METHODS)
    assert set(LEARN) == set(METHODS) - PROBES - {"zero-shot", "in-context", "auto"}


@pytest.mark.parametrize(
    ("name", "kind"), in_turn(LEARN, ["causal", "masked", "sequence"], refused=[("first-order", "sequence")])
)
def test_training_learns_and_never_ships_worse_than_the_start(name, kind, request):
    backbone = request.getfixturevalue(kind)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    problem = tiny_problem(backbone, "{prompt: it was}{text}" if kind == "sequence" else None)
    outcome = make_method(name, LEARN[name]).fit(problem)
    losses = [event["train_loss"] for event in outcome.trace if "train_loss" in event]
    assert min(losses) < losses[0]
    if name == "contrastive":  # it learns from dev too, and ships by what was held out
        assert outcome.verdict.ships == ("tuned" if outcome.is_tuned else "untuned")
        best, start = outcome.verdict.evidence.loss, outcome.verdict.evidence.untuned_loss
        assert (best < start) == outcome.is_tuned
    else:
        best, start = (score(backbone, candidate, problem.dev).loss for candidate in (outcome.best, outcome.start))
        assert best <= start + 1e-6
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.model.state_dict().items())


def test_prompt_tuning_fits_a_separable_task(causal):
    problem = make_problem(causal, make_task(), records(), records(), seed=1)
    outcome = make_method("prompt-tuning", {"epochs": 60, "learning_rate": 0.1, "patience": 60}).fit(problem)
    assert score(causal, outcome.best, problem.train).primary == 1.0
    assert score(causal, outcome.start, problem.train).primary < 1.0


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_hard_to_soft_handover_changes_no_logit(kind, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    hard = starting_point(problem, (30, 31, 32), CalibrationKind.FITTED)
    selection = Selection(problem)
    make_method("prompt-tuning", {"epochs": 1}).refine(problem, hard, selection)
    assert selection.trace[0]["train_loss"] == score(backbone, hard, problem.train).loss
    soft = Candidate(SoftPrompt(hard.prompt.vectors(backbone.embed), hard.prompt.head), hard.calibration)
    context = problem.train.context
    assert torch.equal(soft.logits(backbone, context), hard.logits(backbone, context))


def test_hybrid_starts_its_vectors_at_the_loss_its_words_ended_with(causal):
    trace = make_method("hybrid", FAST["hybrid"]).fit(tiny_problem(causal)).trace
    words = next(event for event in trace if event["phase"] == "handover")
    vectors = next(event for event in trace if event["phase"] == "prompt-tuning")
    assert vectors["step"] == 0
    assert vectors["train_loss"] == words["train_loss"]
    assert vectors["dev_loss"] == words["dev_loss"]


def test_the_result_does_not_depend_on_who_listens_or_on_the_global_generator(causal):
    def run(report, junk):
        torch.manual_seed(junk)
        outcome = make_method("prompt-tuning", FAST["prompt-tuning"]).fit(tiny_problem(causal, report=report))
        return outcome.best.prompt.vectors(causal.embed)

    assert torch.equal(run(lambda event: None, 1), run(lambda event: torch.rand(7), 2))


def test_training_does_not_depend_on_the_size_of_the_dev_set(causal):
    problem = tiny_problem(causal)
    method = make_method("prompt-tuning", {"epochs": 5, "patience": 50})
    whole, small = method.fit(problem), method.fit(replace(problem, dev=problem.dev.select([0])))
    assert [e["train_loss"] for e in whole.trace] == [e["train_loss"] for e in small.trace]


def test_without_a_dev_set_the_training_loss_decides(causal):
    problem = replace(tiny_problem(causal), dev=None)
    outcome = make_method("prompt-tuning", {"epochs": 5}).fit(problem)
    assert all("dev_loss" not in event for event in outcome.trace)
    assert score(causal, outcome.best, problem.train).loss <= outcome.trace[0]["train_loss"]


def test_a_strong_pull_holds_the_vectors_near_their_start(causal):
    def moved(pull):
        problem = replace(tiny_problem(causal), dev=None)
        options = {"epochs": 20, "learning_rate": 0.1, "pull": pull}
        best = make_method("prompt-tuning", options).fit(problem).best.prompt
        return (best.vectors(causal.embed) - HardPrompt(problem.initial_ids).vectors(causal.embed)).norm()

    assert moved(1000.0) < 0.5 * moved(0.0)


def test_early_stopping_counts_epochs_without_a_better_dev_loss(causal):
    options = {"epochs": 100, "patience": 3, "learning_rate": 1.0}
    trace = make_method("prompt-tuning", options).fit(tiny_problem(causal)).trace
    steps = [event for event in trace if event["phase"] == "prompt-tuning"]
    assert len(steps) < 100
    assert [event["best"] for event in steps[-3:]] == [False] * 3


@pytest.mark.parametrize("init", list(Init))
def test_initial_vectors_have_the_scale_of_the_embeddings(causal, init):
    problem = tiny_problem(causal)
    vectors = initial_vectors(problem, init, 16, None)
    scale = causal.embedding_matrix().std()
    assert vectors.shape == (16, causal.hidden_size)
    assert 0.5 * scale < vectors.std() < 2 * scale


def test_initial_text_stands_nearest_to_the_answer(causal):
    problem = tiny_problem(causal)
    own = HardPrompt(problem.initial_ids).vectors(causal.embed)
    assert torch.equal(initial_vectors(problem, Init.TEXT, None, None), own)
    assert torch.equal(initial_vectors(problem, Init.TEXT, len(own) + 3, None)[3:], own)
    assert torch.equal(initial_vectors(problem, Init.TEXT, 1, None), own[-1:])


def test_a_class_head_is_scikit_learns_logistic_regression(sequence):
    problem = tiny_problem(sequence)
    prompt = HardPrompt((20, 21))
    head = fit_head(problem, prompt)
    features = sequence.features(problem.train.context, prompt).detach().double().numpy()
    expected = LogisticRegression(max_iter=1000).fit(features, problem.train.labels.numpy()).predict_proba(features)
    logits = sequence.class_logits(problem.train.context, HardPrompt((20, 21), head))
    assert torch.allclose(logits.softmax(-1).double(), torch.tensor(expected), atol=1e-4)


def test_contextual_calibration_makes_content_free_answers_uniform(causal):
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    one = calibration.contextual(logits[:1]).apply(logits[:1]).softmax(-1)
    assert torch.allclose(one, torch.full((1, 4), 0.25))
    problem = tiny_problem(causal)
    found = calibrate(problem, HardPrompt(problem.initial_ids), CalibrationKind.CONTEXTUAL)
    assert found.bias != (0.0, 0.0)


def test_batch_calibration_divides_by_the_mean_probability():
    logits = torch.randn(50, 3).double() + torch.tensor([4.0, 0.0, -2.0])
    divided = logits.softmax(-1) / logits.softmax(-1).mean(0)
    expected = divided / divided.sum(-1, keepdim=True)
    assert torch.allclose(calibration.batch(logits).apply(logits).softmax(-1), expected)


def test_calibration_survives_probabilities_that_underflow():
    far = torch.tensor([[900.0, 0.0], [900.0, 0.0]])
    assert all(abs(b) < 1e4 for b in calibration.contextual(far).bias)


def test_fitted_calibration_is_at_the_minimum_of_its_objective():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (40,), generator=generator)
    logits = (
        torch.randn(40, 3, generator=generator) + torch.nn.functional.one_hot(labels, 3) + torch.tensor([3.0, 0, 0])
    )
    found = calibration.fitted(logits, labels, strength=2.0)

    def objective(parameters):
        bias, log_scale = torch.tensor(parameters[:3]), parameters[3]
        moved = logits.double() * torch.tensor(log_scale).exp() + bias
        loss = torch.nn.functional.cross_entropy(moved, labels)
        return float(loss) + 2.0 / (2 * 40) * float((parameters**2).sum())

    import numpy as np

    at = np.array([*found.bias, np.log(found.scale)])
    assert np.abs(approx_fprime(at, objective, 1e-6)).max() < 1e-3
    assert found.bias[0] < min(found.bias[1:])


def test_calibration_is_affine():
    assert torch.equal(Calibration((1.0, -1.0), 2.0).apply(torch.tensor([[0.5, 3.0]])), torch.tensor([[2.0, 5.0]]))


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("autopromt", {}, "unknown method"),
        ("autoprompt", {"step": 3}, "no option 'step'"),
        ("hybrid", {"tune.epoch": 3}, "no option 'tune.epoch'"),
        ("prompt-tuning", {"epochs": 0}, "greater than or equal to 1"),
        ("prompt-tuning", {"epochs": "many"}, "valid integer"),
    ],
)
def test_wrong_names_and_options_are_told_in_one_line(name, options, what):
    with pytest.raises(MethodError, match=what) as caught:
        make_method(name, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["zero-shot", "in-context"])
def test_what_trains_nothing_needs_words_to_answer_with(name, sequence):
    with pytest.raises(MethodError, match="language model"):
        make_method(name).fit(tiny_problem(sequence))


def test_init_text_needs_words(causal):
    problem = make_problem(causal, make_task("{text}{prompt}\nSentiment:{mask}"), records(TEXTS), records(TEXTS))
    with pytest.raises(MethodError, match="words to start from"):
        make_method("prompt-tuning", {"init": "text"}).fit(problem)
    with pytest.raises(MethodError, match=r"init_text '▁it▁was' is tokens .* write 'it was'"):
        make_method("prompt-tuning", {"init_text": "▁it▁was"}).fit(problem)


def test_options_that_nothing_would_read_are_refused():
    for name, options, message in (
        ("p-tuning", {"learning_rate": 0.5}, "give encoder_learning_rate"),
        ("prefix-tuning", {"learning_rate": 0.5}, "give encoder_learning_rate"),
        ("p-tuning-v2", {"encoder_learning_rate": 0.5}, "give learning_rate"),
        ("prefix-tuning", {"encoder": "none", "encoder_width": 8}, "give learning_rate"),
    ):
        with pytest.raises(MethodError, match=message):
            make_method(name, options)


def test_options_are_read_as_a_command_line_writes_them():
    assert make_method("prefix-tuning", {"encoder": "none"}).encoder is None
    assert make_method("prefix-tuning", {"encoder": "none", "learning_rate": "0.1"}).learning_rate == 0.1
    assert make_method("lora", {"targets": "q_proj,v_proj"}).targets == ("q_proj", "v_proj")
    assert make_method("linear-probe", {"inverse_penalties": "0.1,1"}).inverse_penalties == (0.1, 1.0)
    assert make_method("zero-shot", {"calibration": "none"}).calibration is CalibrationKind.NONE


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_a_prefix_learns_without_an_encoder_too(kind, request):
    problem = tiny_problem(request.getfixturevalue(kind))
    options = {"encoder": "none", "epochs": 10, "learning_rate": 0.1}
    trace = make_method("prefix-tuning", options).fit(problem).trace
    losses = [event["train_loss"] for event in trace if event["phase"] == "prefix-tuning"]
    assert losses[-1] < losses[0]


def test_only_what_inference_needs_is_stored(causal, tmp_path):
    from safetensors.torch import load_file

    from cuecraft.artifact import PrefixPrompt, stored_bytes
    from cuecraft.methods.fit import make_artifact

    shallow = stored_bytes([SoftPrompt(torch.zeros(20, 768))])
    deep = stored_bytes([PrefixPrompt(HardPrompt(()), torch.zeros(12, 2, 12, 20, 64))])
    assert 61_440 <= shallow < 62_000  # about 60 KB
    assert 1_474_560 <= deep < 1_476_000  # about 1.5 MB
    problem = replace(tiny_problem(causal), dev=None)
    for name, tensors in (("p-tuning", {"embeddings"}), ("prefix-tuning", {"token_ids", "states"})):
        method = make_method(name, LEARN[name])
        make_artifact(problem, method.fit(problem), method).save(tmp_path / name)
        assert set(load_file(tmp_path / name / "prompt.safetensors")) == tensors
