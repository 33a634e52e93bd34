"""Artifacts that earlier commits wrote load for good, and answer what those commits answered."""

import json
from pathlib import Path

import numpy as np
import pytest

from cuecraft import PromptClassifier
from cuecraft.api.family import PromptFamily
from cuecraft.artifact import load_artifact
from cuecraft.artifact.manifest import SCHEMA_VERSION
from cuecraft.artifact.predictor import Predictor
from cuecraft.serving.artifacts import ServedPrompt
from serving import answered

STORED = Path(__file__).parent / "artifacts"
MODEL = str(STORED / "model")
ANSWERS = json.loads((STORED / "answers.json").read_text(encoding="utf-8"))
TEXTS = ANSWERS.pop("texts")
FAMILY = "schema-3-family"

every_artifact = pytest.mark.parametrize("name", ANSWERS)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def answers_of(task):
    """What a stored task says of its answers, as schema 8 writes it."""
    if "answers" in task:
        return task["answers"]
    return {"kind": "labels", "labels": task["labels"], "words": task["label_words"], "classes": task["classes"]}


def loaded(folder):
    return Predictor.load(folder, MODEL, device="cpu", local_files_only=True)


def served(artifact, backbone):
    """Return class probabilities `[N, C]` as the server computes them."""
    return answered(ServedPrompt.over(backbone, "p", [artifact]), TEXTS)


def assert_shown(shown, stored):
    """Check that what is shown holds all that is stored; it may say more."""
    if isinstance(stored, dict):
        for key, value in stored.items():
            assert_shown(shown[key], value)
    else:
        assert shown == stored


def test_every_schema_up_to_todays_is_stored():
    found = {path.parent: manifest_of(path.parent)["schema_version"] for path in STORED.rglob("manifest.json")}
    assert {path.relative_to(STORED).as_posix() for path in found} == set(ANSWERS)
    for folder, version in found.items():
        assert folder.relative_to(STORED).parts[0].startswith(f"schema-{version}-")
    missing = set(range(1, SCHEMA_VERSION)) - set(found.values())
    assert not missing, "artifacts/README.md says how they are written"


@every_artifact
def test_it_answers_as_when_it_was_written(name):
    expected = np.array(ANSWERS[name])
    assert np.abs(expected - expected[0]).max() > 1e-2  # the texts are told apart
    tuned = loaded(STORED / name)
    assert tuned.classes_.tolist() == answers_of(manifest_of(STORED / name)["task"])["classes"]
    np.testing.assert_allclose(tuned.predict_proba(TEXTS), expected, atol=1e-5)
    classifier = PromptClassifier.load(STORED / name, MODEL, device="cpu", local_files_only=True)
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(served(load_artifact(STORED / name), tuned.backbone), expected, atol=1e-5)


@every_artifact
def test_the_command_line_shows_it_and_predicts(name, run):
    stored = manifest_of(STORED / name)
    code, out, _ = run("show", STORED / name, "--json")
    assert code == 0
    answers, task = answers_of(stored["task"]), stored.pop("task")
    kept = {key: value for key, value in task.items() if key not in ("labels", "label_words", "classes")}
    assert_shown(json.loads(out), stored | {"task": kept | {"answers": answers}})
    code, out, _ = run("show", STORED / name)
    assert code == 0
    assert f"{stored['method']}, seed {stored['seed']}" in out
    assert f"{stored['prompt']['kind']}, {stored['prompt']['length']} tokens" in out
    code, out, _ = run("predict", STORED / name, *TEXTS, "--model", MODEL, "--device", "cpu", "--json")
    assert code == 0
    rows = json.loads(out)["predictions"]
    found = [[row["probabilities"][label] for label in answers["labels"]] for row in rows]
    np.testing.assert_allclose(found, ANSWERS[name], atol=1e-5)


@every_artifact
def test_saved_again_it_is_of_todays_schema_and_answers_the_same(name, tmp_path):
    stored = load_artifact(STORED / name)
    stored.whole().save(tmp_path / "again")
    again = load_artifact(tmp_path / "again")
    assert manifest_of(tmp_path / "again")["schema_version"] == SCHEMA_VERSION
    assert again.calibrations == stored.calibrations
    assert list(again.trace) == list(stored.trace)
    expected = loaded(STORED / name).predict_proba(TEXTS)
    assert np.array_equal(loaded(tmp_path / "again").predict_proba(TEXTS), expected)


def test_a_family_is_read_and_saved_again_with_its_shared_part(tmp_path):
    family = PromptFamily.load(STORED / FAMILY, MODEL, device="cpu", local_files_only=True)
    family.save(tmp_path / "family")
    shared = "shared.safetensors"
    assert (tmp_path / "family" / shared).read_bytes() == (STORED / FAMILY / shared).read_bytes()
    for name in ("length", "tone"):
        expected = ANSWERS[f"{FAMILY}/tasks/{name}"]
        folder = tmp_path / "family" / "tasks" / name
        assert manifest_of(folder)["schema_version"] == SCHEMA_VERSION
        for own in (family.classifier(name), loaded(folder)):
            np.testing.assert_allclose(own.predict_proba(TEXTS), expected, atol=1e-5)
