"""Events: what a progress callback receives, and their documents, which traces and files hold."""

import json
from dataclasses import FrozenInstanceError

import pytest

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.core.events import Answered, Event, HeldOutStep, Progress, Refused, SearchStep, TrainStep


def test_a_document_has_the_keys_that_have_a_value_and_the_scores_last():
    step = SearchStep("search", 3, 9, train_loss=0.5, best=False, accepted=True, position=2, prompt="it is")
    assert json.dumps(step.document()) == (
        '{"phase": "search", "step": 3, "total": 9, "accepted": true, "position": 2, "prompt": "it is", '
        '"train_loss": 0.5, "best": false}'
    )
    assert Refused(reason="too long").document() == {"phase": "refused", "reason": "too long"}
    assert Answered(step=4, total=8, padding=0.0).document() == {
        "phase": "predict",
        "step": 4,
        "total": 8,
        "padding": 0.0,
    }
    assert list(HeldOutStep("tried", tried="words", dev_loss=0.1, dev_score=1.0)) == [
        "phase",
        "tried",
        "dev_loss",
        "dev_accuracy",
    ]


def test_an_event_reads_as_a_mapping_and_does_not_change():
    step = TrainStep("deep-cue", 0, 30, train_loss=0.7)
    assert step["step"] == step.step == 0
    assert "dev_loss" not in step
    assert step.get("dev_loss") is None
    assert dict(step) == step.document() == {"phase": "deep-cue", "step": 0, "total": 30, "train_loss": 0.7}
    assert step == {"phase": "deep-cue", "step": 0, "total": 30, "train_loss": 0.7}
    assert step != Progress("deep-cue", 0, 30)
    with pytest.raises(KeyError):
        step["dev_loss"]
    with pytest.raises(FrozenInstanceError):
        step.step = 1


def test_a_progress_callback_receives_what_the_trace_holds(causal_folder):
    seen = []
    classifier = PromptClassifier(causal_folder, "deep-cue", method_options={"epochs": 1}, local_files_only=True)
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    classifier.fit(texts, labels, report=seen.append)
    assert all(isinstance(event, Event) for event in seen)
    assert [dict(event) for event in seen] == classifier.trace_
    assert {type(event) for event in seen} == {TrainStep}
    assert [event["step"] for event in classifier.trace_ if event["phase"] == "deep-cue"] == [0, 1]
    classifier.predict_proba(texts, seen.append)
    assert seen[-1] == {"phase": "predict", "step": len(texts), "total": len(texts), "padding": seen[-1].padding}
