"""Artifacts: the same bits in another process, and no damaged or foreign one is taken."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from conftest import LABELS, TEXTS, make_examples, make_task
from cuecraft import PromptClassifier
from cuecraft.artifact import CalibratedPrompt, Calibration, HardPrompt, Prompt, load_artifact
from cuecraft.artifact.manifest import Manifest
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import ClassHead
from cuecraft.core.errors import ArtifactError, PromptError
from test_tune import FAST

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]


def fit(folder, method="hybrid", **options):
    return PromptClassifier(str(folder), method, method_options=FAST[method], **options).fit(X, Y)


@pytest.fixture(scope="module")
def saved(causal_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts") / "tuned"
    classifier = fit(causal_folder, "prompt-tuning")
    classifier.save(folder)
    return classifier, folder


# Of one method each of searches and trainings, of several trainings, and of weights; test_golden.py repeats all.
@pytest.mark.parametrize("method", ["hybrid", "contrastive", "lora"])
def test_the_same_seed_gives_the_same_bytes(causal_folder, tmp_path, method):
    first, second = (fit(causal_folder, method, seed=5).save(tmp_path / name) for name in "ab")
    assert first == second
    for name in ("manifest.json", "prompt.safetensors", "trace.jsonl", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_gives_another_artifact(causal_folder, tmp_path):
    options = {"init": "random", "epochs": 2}
    hashes = {
        PromptClassifier(str(causal_folder), "prompt-tuning", method_options=options, seed=seed)
        .fit(X, Y)
        .save(tmp_path / "x")
        for seed in (0, 1)
    }
    assert len(hashes) == 2


def test_what_is_loaded_is_what_was_saved(saved):
    classifier, folder = saved
    artifact = load_artifact(folder)
    assert artifact.task == classifier.task_
    assert artifact.calibration == classifier.artifact_.calibration
    assert list(artifact.trace) == classifier.trace_
    assert {name: split.rows for name, split in artifact.manifest.data.items()} == {"train": 6, "dev": 2}
    assert set(artifact.manifest.metrics) == {"train_accuracy", "dev_accuracy"}


def test_a_calibration_that_was_replaced_is_the_one_that_is_saved(saved, tmp_path):
    artifact = replace(saved[0].artifact_, calibration=Calibration((0.25, -1.0), 3.0))
    artifact.save(tmp_path / "again")
    again = load_artifact(tmp_path / "again")
    assert again.calibration == artifact.calibration
    assert again.manifest.other_calibrations == []


def copied(folder, tmp_path):
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder, **changes):
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | changes))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no artifact here"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "damaged"),
        (lambda folder: (folder / "prompt.safetensors").unlink(), "prompt.safetensors is missing"),
        (lambda folder: (folder / "prompt.safetensors").write_bytes(b"x" * 64), "prompt.safetensors is damaged"),
        (lambda folder: (folder / "trace.jsonl").write_text("{}\n"), "trace.jsonl is damaged"),
        (lambda folder: rewrite(folder, schema_version=99), "upgrade cuecraft"),
        (lambda folder: rewrite(folder, schema_version="new"), "upgrade cuecraft"),
        (lambda folder: rewrite(folder, seed=99), "changed after it was written"),
        (lambda folder: rewrite(folder, extra=1), "damaged"),
    ],
)
def test_a_damaged_or_newer_artifact_is_refused_in_one_line(saved, tmp_path, damage, what):
    folder = copied(saved[1], tmp_path)
    damage(folder)
    with pytest.raises(ArtifactError, match=what) as caught:
        load_artifact(folder)
    assert "\n" not in str(caught.value)


HARD = {"token_ids": torch.tensor([5, 6])}
HEAD = {"head.weight": torch.zeros(2, 32), "head.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "tensors",
    [
        {"token_ids": torch.tensor(5)},
        {"token_ids": torch.tensor([5.0])},
        HARD | {"head.bias": torch.zeros(2)},
        HARD | HEAD | {"head.bias": torch.zeros(3)},
        HARD | HEAD | {"head.bias": torch.zeros(2, dtype=torch.float64)},
        HARD | {"head.weight": torch.zeros(64), "head.bias": torch.zeros(64)},
    ],
)
def test_tensors_that_are_no_prompt_are_refused(tensors):
    assert Prompt.of_tensors(HARD | HEAD).head
    with pytest.raises(KeyError):  # which `load_artifact` takes for damage
        Prompt.of_tensors(tensors)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_prompt_of_another_vocabulary_is_refused(causal, token):
    with pytest.raises(PromptError, match="another backbone"):
        causal.class_logits(causal.context(make_examples(), make_task()), HardPrompt((5, token)))


@pytest.mark.parametrize(
    "part",
    [
        {"calibration": Calibration((0.0,))},
        {"prompt": HardPrompt((5,), ClassHead(torch.zeros(3, 32), torch.zeros(3)))},
        {"others": (CalibratedPrompt(HardPrompt((5,)), Calibration(())),)},
    ],
)
def test_parts_for_other_numbers_of_options_do_not_answer(saved, part):
    classifier, _ = saved
    with pytest.raises(ArtifactError, match="different numbers of options"):
        Predictor.of(replace(classifier.artifact_, **part), classifier.backbone_)


def test_a_backbone_of_another_hash_is_refused(saved, causal, tmp_path, byte_tokenizer, causal_folder):
    from conftest import make_causal

    other = tmp_path / "other"
    model = make_causal(byte_tokenizer)
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(other)
    byte_tokenizer.save_pretrained(other)
    with pytest.raises(ArtifactError, match="same weights"):
        PromptClassifier.load(saved[1], model=str(other))
    moved = PromptClassifier.load(saved[1], model=str(causal_folder))
    assert np.array_equal(moved.predict_proba(X), saved[0].predict_proba(X))


def test_saving_replaces_an_artifact_but_nothing_else(saved, tmp_path):
    classifier, _ = saved
    target = tmp_path / "out"
    assert classifier.save(target) == classifier.save(target)
    (tmp_path / "precious").mkdir()
    for name, text in [("notes.txt", "mine"), ("manifest.json", '{"name": "a web app"}')]:
        (tmp_path / "precious" / name).write_text(text)
        with pytest.raises(ArtifactError, match="no artifact"):
            classifier.save(tmp_path / "precious")
        assert (tmp_path / "precious" / name).read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious"]


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_write_that_fails_leaves_nothing(saved, tmp_path, monkeypatch, kind):
    def full(*_):
        raise kind("No space left on device")

    monkeypatch.setattr("cuecraft.artifact.artifact.save_file", full)
    with pytest.raises(ArtifactError, match="No space left"):
        saved[0].save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_holds_no_times_and_the_card_names_the_essentials(saved):
    folder = saved[1]
    assert not [name for name in Manifest.model_fields if "time" in name or "second" in name or "date" in name]
    card = (folder / "README.md").read_text()
    for word in ("prompt-tuning", "negative", "positive", "train accuracy", "cuecraft predict"):
        assert word in card
