"""Training where the caller has switched gradients off."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS, make_causal, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.api.classic import AutoPrompt, PrefixTuning
from cuecraft.api.family import PromptFamily
from cuecraft.backbone import load_backbone
from cuecraft.backbone.load import _load
from cuecraft.core.errors import BackboneError
from cuecraft.methods import METHODS, make_method
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.train.multitask import MultitaskTuning

X, Y = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
ROWS = [{"text": text, "label": label} for text, label in zip(X, Y, strict=True)]
WORDS = {"negative": "bad", "positive": "good"}
QUICK = {"epochs": 1}


@contextmanager
def switched_off():
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


MODES = pytest.mark.parametrize("mode", [switched_off, torch.no_grad, torch.inference_mode])


def ordinary(classifier):
    tensors = [own for prompt in classifier.artifact_.prompts for own in prompt.tensors().values()]
    tensors += list(classifier.artifact_.weights.values.values()) if classifier.artifact_.weights else []
    return not any(tensor.is_inference() for tensor in tensors)


@MODES
@pytest.mark.parametrize("method", ["prompt-tuning", "lora", "autoprompt", "straight-through", "prefix-tuning"])
def test_fit_gives_the_same_with_gradients_off_around_it(mode, method, causal_folder):
    options = {"steps": 1} if method in ("autoprompt", "straight-through") else QUICK
    _load.cache_clear()

    def fitted():
        return PromptClassifier(str(causal_folder), method, label_words=WORDS, method_options=options).fit(X, Y)

    with mode():
        is_on = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = fitted()
        answers = found.predict_proba(X)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == is_on
    plain = fitted()  # over the model that was loaded with gradients off
    assert plain.backbone_ is found.backbone_
    assert ordinary(found)
    assert np.array_equal(answers, plain.predict_proba(X))


@MODES
def test_families_train_and_are_added_to(mode, causal_folder, tmp_path):
    _load.cache_clear()
    tasks = {"one": (X, Y), "two": (X, Y[::-1])}
    with mode():
        family = PromptFamily(str(causal_folder), MultitaskTuning(epochs=1, prompt_length=2))
        family.fit(tasks, label_words=dict.fromkeys(tasks, WORDS)).save(tmp_path / "family")
        loaded = PromptFamily.load(tmp_path / "family")
    loaded.add("three", X, Y, label_words=WORDS)
    family.add("three", X, Y, label_words=WORDS)
    expected = family.classifier("three").predict_proba(X)
    assert np.array_equal(loaded.classifier("three").predict_proba(X), expected)


@MODES
def test_the_classic_classes_train(mode, byte_tokenizer):
    with mode():
        words = {"num_tokens": 2, "iterations": 1, "label_words": WORDS}
        with torch.inference_mode(False):
            model = make_causal(byte_tokenizer)
        AutoPrompt(model=model, tokenizer=byte_tokenizer, train_dataset=ROWS, **words).search()
        prefix = PrefixTuning(model, num_virtual_tokens=2)
        before = prefix.prefix_states.detach().clone()
        prefix.train_fewshot(ROWS, byte_tokenizer, label_words=WORDS, epochs=1)
    assert before.shape == prefix.prefix_states.shape
    assert not any(parameter.is_inference() for parameter in prefix.parameters())


@MODES
def test_a_problem_made_and_solved_step_by_step(mode, causal):
    with mode():
        problem = tiny_problem(causal)
        outcome = make_method("prompt-tuning", QUICK).fit(problem)
        LabelWordSearch(candidates=4).search(problem)
    again = make_method("prompt-tuning", QUICK).fit(problem)
    assert outcome.trace == again.trace


def test_every_method_takes_gradients_for_itself(causal):
    for name in METHODS:
        fit = type(make_method(name, {})).fit
        assert hasattr(fit, "__wrapped__"), name


def test_a_model_made_in_inference_mode_is_refused(byte_tokenizer):
    with torch.inference_mode():
        model = make_causal(byte_tokenizer)
    with pytest.raises(BackboneError, match=r"was made in torch\.inference_mode"):
        load_backbone((model, byte_tokenizer))
