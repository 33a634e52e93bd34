"""AutoPrompt by its usual arguments: each does what it says."""

import math
import subprocess
import sys

import pytest

import cuecraft
from conftest import LABELS, TEXTS, make_causal
from cuecraft.api.classic import AutoPrompt
from cuecraft.api.estimators import PromptClassifier
from cuecraft.artifact import load_artifact
from cuecraft.core.errors import BackboneError, CuecraftWarning, DataError, MethodError

ROWS = [{"text": text, "label": LABELS[label]} for text, label in TEXTS * 2]
WORDS = {"negative": "bad", "positive": "good"}


@pytest.fixture
def search(causal):
    def make(**options):
        given = {"model": causal, "train_dataset": ROWS, "label_words": WORDS, "iterations": 4, "num_tokens": 3}
        found = AutoPrompt(**given | options)
        return found, found.search()

    return make


def test_search_returns_the_best_prompt_as_text(search, causal):
    found, text = search()
    assert found.prompt_.kind == "hard"
    assert text == found.prompt_.text(causal.tokenizer)
    assert found.prompt_ is found.outcome_.best.prompt
    rated = [event for event in found.outcome_.trace if "dev_loss" in event]
    best = min(rated, key=lambda event: event["dev_loss"])
    assert best["prompt"] == text
    assert found.outcome_.is_tuned


def steps(found):
    return [event["step"] for event in found.outcome_.trace if event["phase"] == "search" and event["step"]]


def test_each_argument_has_its_effect(search):
    found, _ = search(iterations=5, num_tokens=4)
    assert steps(found) == [1, 2, 3, 4, 5]
    positions = [event["position"] for event in found.outcome_.trace if event.get("accepted")]
    assert set(positions) <= set(range(4))
    accepted = [event["token_ids"] for event in found.outcome_.trace if event.get("accepted")]
    assert {len(ids) for ids in accepted} == {4}
    shorter, _ = search(iterations=2, num_tokens=2)
    assert steps(shorter) == [1, 2]
    assert {len(e["token_ids"]) for e in shorter.outcome_.trace if e.get("accepted")} == {2}


def test_the_batch_is_what_swaps_are_scored_on(search, causal):
    """With four rows the training loss that is written down is the loss on four rows, not on all twelve."""
    found, _ = search(batch_size=4, iterations=1)
    whole, _ = search(batch_size=128, iterations=1)
    first = [next(e for e in run.outcome_.trace if e["step"] == 0)["train_loss"] for run in (found, whole)]
    assert first[0] != first[1]
    accuracies = {event["train_accuracy"] for event in found.outcome_.trace}
    assert all((4 * accuracy).is_integer() for accuracy in accuracies)
    whole_numbers = {event["train_accuracy"] * 12 for event in whole.outcome_.trace}
    assert all(math.isclose(number, round(number)) for number in whole_numbers)


def test_template_seed_and_words_are_used(search):
    found, _ = search(template="{prompt: it was}{text}{mask}")
    assert found.artifact_.task.template.source == "{prompt: it was}{text}{mask}"
    assert found.artifact_.task.verbalizer.words == (("bad",), ("good",))
    orders = [
        [e["position"] for e in search(seed=n, iterations=6)[0].outcome_.trace if e.get("accepted")] for n in (1, 2)
    ]
    assert orders[0] != orders[1]


def test_a_model_in_memory_comes_with_its_tokenizer(byte_tokenizer, search, causal):
    found = AutoPrompt(
        model=make_causal(byte_tokenizer),
        tokenizer=byte_tokenizer,
        train_dataset={"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]},
        num_tokens=3,
        iterations=4,
        label_words=WORDS,
    )
    assert found.search() == search()[1]
    with pytest.raises(BackboneError, match="give tokenizer="):
        search(model=make_causal(byte_tokenizer))


def test_a_named_model_brings_its_own_tokenizer(byte_tokenizer, causal_folder):
    rows = [{"text": "a joy", "label": "good"}, {"text": "a bore", "label": "bad"}] * 4
    with pytest.raises(BackboneError, match="leave tokenizer= out"):
        AutoPrompt(model=str(causal_folder), tokenizer=byte_tokenizer, train_dataset=rows).search()


def test_integer_labels_want_words(causal):
    rows = [{"text": text, "label": label} for text, label in TEXTS * 2]
    with pytest.warns(CuecraftWarning, match="the answers are named 0, 1"):
        AutoPrompt(model=causal, train_dataset=rows, iterations=1).search()
    found = AutoPrompt(model=causal, train_dataset=rows, iterations=1, label_words={0: "bad", 1: "good"})
    found.search()
    assert found.artifact_.classes == (0, 1)


def test_the_artifact_predicts_as_any_other(search, causal, tmp_path):
    found, text = search()
    found.artifact_.save(tmp_path / "artifact")
    assert load_artifact(tmp_path / "artifact").manifest.prompt.text == text
    classifier = PromptClassifier.load(tmp_path / "artifact", causal)
    truth = [row["label"] for row in ROWS]
    assert found.artifact_.manifest.metrics["train_accuracy"] >= 0.5
    assert set(classifier.predict([row["text"] for row in ROWS])) <= set(truth)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_tokens": 0}, MethodError, "prompt_length"),
        ({"iterations": 0}, MethodError, "steps"),
        ({"batch_size": 1}, MethodError, "search_examples"),
        ({"train_dataset": []}, DataError, "no rows were given"),
        ({"train_dataset": ["a text"]}, DataError, "row 1 is not a mapping"),
        ({"train_dataset": [{"text": "a", "label": None}]}, DataError, "row 1: the label is missing"),
    ],
)
def test_mistakes_are_named(search, options, kind, message):
    with pytest.raises(kind, match=message):
        search(**options)


def test_arguments_have_names(causal):
    with pytest.raises(TypeError):
        AutoPrompt(causal)


def test_the_package_offers_both_without_loading_torch():
    code = "import sys, cuecraft; sys.exit('AutoPrompt' not in dir(cuecraft) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"AutoPrompt", "PrefixTuning"} <= set(cuecraft.__all__)
    offered = [cuecraft.AutoPrompt.__module__, cuecraft.PrefixTuning.__module__]
    assert offered == ["cuecraft.api.classic.autoprompt", "cuecraft.api.classic.prefix"]
