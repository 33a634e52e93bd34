"""Prompts tuned behind labelled examples; the oracle is the training on a problem that was written with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS, make_examples, make_task, records
from cuecraft import PromptClassifier
from cuecraft.core.errors import MethodError
from cuecraft.methods import make_method
from cuecraft.methods.in_context import ShotChoice, choose_shots
from cuecraft.methods.prepare import make_problem
from cuecraft.serving.artifacts import ServedPrompt
from serving import X, Y, answered
from tiny_backbones import assert_close

QUICK = {"epochs": 3, "batch_size": 4}
KINDS = {"deep-cue": "deep", "prompt-tuning": "soft", "p-tuning": "soft"}


def problem_of(backbone, seed=1):
    return make_problem(backbone, make_task(), records(), records(), seed=seed)


@pytest.mark.parametrize("choice", ["seed", "nearest"])
@pytest.mark.parametrize("name", KINDS)
def test_a_training_behind_examples_is_the_training_on_a_task_that_has_them(name, choice, causal):
    options = QUICK | ({"encoder_width": 8} if name == "p-tuning" else {})
    outcome = make_method(name, {**options, "shots": 2, "choice": choice}).fit(problem_of(causal))
    task = outcome.best.reader.task
    shown = {shot.fields[0][1] for shot in task.shots}
    rest = [(text, label) for text, label in TEXTS if choice == "nearest" or text not in shown]
    assert len(rest) == (8 if choice == "nearest" else 6)
    known = make_problem(causal, task, records(rest), records(), seed=1)
    expected = make_method(name, options).fit(known)
    assert outcome.trace == expected.trace
    assert outcome.is_tuned == expected.is_tuned
    assert outcome.best.prompt.kind == KINDS[name] or not outcome.is_tuned
    plain = causal.context(make_examples(), make_task())
    with torch.no_grad():
        found = outcome.best.logits(causal, plain)
        assert_close(found, expected.best.logits(causal, causal.context(make_examples(), task)), 1e-5)
        start = outcome.start.logits(causal, plain)
        assert_close(start, expected.start.logits(causal, causal.context(make_examples(), task)), 1e-5)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("choice", ["seed", "nearest"])
def test_no_text_that_is_trained_on_sees_its_own_label(choice, copies, causal, monkeypatch):
    """Of every text that a gradient is taken of, its own words stand nowhere in the ids in front of it."""
    seen = []
    for name in ("class_logits", "class_logits_many", "class_logits_each"):
        own = getattr(type(causal), name)

        def watched(self, *given, own=own):
            context = given[0][0][0] if isinstance(given[0], list) else given[0]
            if torch.is_grad_enabled():
                seen.extend(zip(context.examples, context.pieces, strict=True))
            return own(self, *given)

        monkeypatch.setattr(type(causal), name, watched)
    problem = make_problem(causal, make_task(), records() * copies, records(), seed=1)
    make_method("deep-cue", {**QUICK, "shots": 3, "choice": choice}).fit(problem)
    assert len({example.fields["text"] for example, _ in seen}) == (8 if choice == "nearest" else 5)
    for example, piece in seen:
        own = causal.tokenizer.decode(piece.before)
        assert own.count("\n\n") == 3
        *front, _ = own.split("\n\n")
        assert example.fields["text"] not in [line.split(" it was")[0] for line in front]


def test_copies_of_examples_in_the_prompt_are_neither_trained_on_nor_calibrated_on(causal):
    twice = make_problem(causal, make_task(), records() * 2, records(), seed=1)
    for shots in (1, 3, 6):
        chosen = choose_shots(twice, shots, ShotChoice.SEED, "in-context", "calibration")
        shown = {shot.fields[0][1] for shot in chosen.task.shots}
        assert [row for row in range(16) if TEXTS[row % 8][0] not in shown] == chosen.others
    alike = make_problem(causal, make_task(), [*records(TEXTS[:1]) * 2, *records(TEXTS[1:2]) * 2], records(), seed=1)
    with pytest.raises(
        MethodError, match=r"in-context: all 4 training examples are in the prompt or copies, .* give more"
    ):
        make_method("in-context", {"shots": 2}).fit(alike)
    outcome = make_method("in-context", {"shots": 2, "calibration": "none"}).fit(alike)
    assert len(outcome.best.reader.task.shots) == 2


def test_examples_in_front_change_what_is_trained(causal):
    traces = [make_method("deep-cue", {**QUICK, "shots": shots}).fit(problem_of(causal)).trace for shots in (0, 2, 4)]
    assert len({trace[-1]["train_loss"] for trace in traces}) == 3


@pytest.mark.parametrize("choice", ["seed", "nearest"])
def test_an_artifact_answers_behind_its_examples_everywhere(choice, causal, tmp_path):
    options = {**QUICK, "shots": 2, "choice": choice}
    own = PromptClassifier(causal, "deep-cue", method_options=options, seed=3).fit(X, Y, dev=(X, Y))
    expected = own.predict_proba(X)
    own.save(tmp_path / "own")
    again = PromptClassifier.load(tmp_path / "own", causal)
    assert again.artifact_.task.nearest == (2 if choice == "nearest" else None)
    assert np.abs(again.predict_proba(X) - expected).max() < 1e-5
    served = ServedPrompt.over(causal, "own", [again.artifact_])
    assert np.abs(answered(served, X) - expected).max() < 1e-4


def test_auto_chooses_behind_examples(causal):
    texts = [f"{text} {word}" for text, _ in TEXTS for word in ("indeed", "again", "and again")]
    labels = [LABELS[label] for _, label in TEXTS for _ in range(3)]
    options = {"preset": "fast", "shots": 2}
    own = PromptClassifier(causal, "auto", method_options=options, max_tokens=120, seed=3).fit(texts, labels)
    assert len(own.artifact_.task.shots) == 2
    again = PromptClassifier.of(own.artifact_, causal)
    assert np.abs(again.predict_proba(X) - own.predict_proba(X)).max() < 1e-5
    with pytest.raises(MethodError, match="give label_words=keep"):
        make_method("auto", {"shots": 2, "label_words": "search"}).fit(problem_of(causal))
    with pytest.raises(MethodError, match="in one template"):
        make_method("auto", {"shots": 2, "chat": "try"}).fit(problem_of(causal))


def test_too_many_examples_and_backbones_without_words_are_refused(causal, sequence):
    with pytest.raises(MethodError, match=r"deep-cue is to put 8 examples .* one of them for training.* shots=7"):
        make_method("deep-cue", {"shots": 8}).fit(problem_of(causal))
    task = make_task("{prompt}{text}")
    problem = make_problem(sequence, task, records(), records(), seed=1)
    with pytest.raises(MethodError, match="deep-cue with shots=2 needs a causal or masked language model"):
        make_method("deep-cue", {"shots": 2}).fit(problem)


def test_a_time_limit_that_ends_while_examples_are_read_leaves_the_untuned_prompt(causal):
    over = replace(problem_of(causal), out_of_time=lambda reserve=0.0: True, is_over=lambda: True)
    outcome = make_method("deep-cue", {"shots": 2}).fit(over)
    assert not outcome.is_tuned
    assert outcome.best.reader is None
    assert outcome.trace == []
