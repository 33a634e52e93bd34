"""Several prompts of one artifact that answer together: the mean of what each would say alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.data import Record
from cuecraft.ensemble import PromptEnsemble
from cuecraft.errors import ArtifactError
from cuecraft.export import GraphRequest, export_graph
from cuecraft.interop import export_peft
from cuecraft.interop.tensors import export_tensors
from cuecraft.prompts import Artifact, load_artifact, stored_bytes
from cuecraft.serve.registry import member_logits
from cuecraft.serve.shelf import ServedPrompt

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
TEMPLATE = "{text}{prompt: it was}{mask}"


def fitted(backbone, seed, method="deep-cue"):
    options = {"template": TEMPLATE, "method_options": {"epochs": 3}, "seed": seed}
    return PromptClassifier(backbone, method, **options).fit(X, Y)


def joined(classifiers, backbone):
    """Return an artifact of the first classifier's calibration and the prompts of all."""
    first = classifiers[0].artifact_
    manifest = first.manifest
    return Artifact.create(
        first.prompt,
        first.calibration,
        first.task,
        backbone,
        method=manifest.method,
        method_options=manifest.method_options,
        seed=0,
        metrics={},
        data={},
        classes=first.classes,
        others=[one.artifact_.prompt for one in classifiers[1:]],
    )


@pytest.fixture(scope="module", params=["causal", "masked"])
def case(request, tmp_path_factory):
    """Return a backbone, the folder of three prompts that answer together, and what they would say alone."""
    backbone = request.getfixturevalue(request.param)
    classifiers = [fitted(backbone, seed) for seed in range(3)]
    folder = tmp_path_factory.mktemp("together") / "three"
    joined(classifiers, backbone).save(folder)
    first = classifiers[0].artifact_
    alone = [
        PromptClassifier.of(replace(one.artifact_, calibration=first.calibration), backbone).predict_proba(X)
        for one in classifiers
    ]
    return backbone, folder, np.stack(alone)


def served(backbone, artifacts):
    prompt = ServedPrompt.over(backbone, "p", artifacts)
    renderer = prompt.members[0].ready.renderer
    pieces = renderer.fitted([prompt.example({"text": text}) for text in X])[0]
    return prompt, [prompt.probabilities(own) for own in member_logits([(prompt, piece) for piece in pieces])]


def test_they_are_read_back_and_answer_with_the_mean_of_their_probabilities(case):
    backbone, folder, alone = case
    assert np.abs(alone[1:] - alone[0]).max() > 1e-3  # they differ
    again = PromptClassifier.load(folder, backbone)
    assert np.allclose(again.predict_proba(X), alone.mean(0), atol=1e-5)
    manifest = again.artifact_.manifest
    assert manifest.prompt.count == 3
    assert manifest.prompt.text.endswith("and 2 more that answer with it")
    assert "3 such prompts answer together" in (folder / "README.md").read_text(encoding="utf-8")
    sizes = [stored_bytes([prompt]) for prompt in again.artifact_.prompts]
    assert stored_bytes(again.artifact_.prompts) == pytest.approx(sum(sizes), rel=0.1)


def test_they_are_served_as_they_predict(case):
    backbone, folder, alone = case
    prompt, found = served(backbone, [load_artifact(folder)])
    assert prompt.describe()["members"] == 3
    assert np.allclose(found, alone.mean(0), atol=1e-5)


def test_an_ensemble_of_artifacts_gives_each_artifact_one_voice(case, tmp_path):
    """Of three prompts and of one: served as predicted."""
    backbone, folder, alone = case
    single = fitted(backbone, 7)
    single.save(tmp_path / "one")
    expected = (alone.mean(0) + single.predict_proba(X)) / 2
    ensemble = PromptEnsemble([PromptClassifier.load(folder, backbone), single])
    assert np.allclose(ensemble.predict_proba(X), expected, atol=1e-5)
    _, found = served(backbone, [load_artifact(folder), load_artifact(tmp_path / "one")])
    assert np.allclose(found, expected, atol=1e-5)


def test_with_prompts_of_unequal_length_and_kind_too(causal):
    """Prompts with prefixes share no pass; those in words and vectors do, whatever their lengths."""
    classifiers = [fitted(causal, 0, "prefix-tuning"), fitted(causal, 1, "prompt-tuning"), fitted(causal, 2)]
    first = classifiers[0].artifact_
    together = PromptClassifier.of(joined(classifiers, causal), causal)
    alone = [
        PromptClassifier.of(replace(one.artifact_, calibration=first.calibration), causal).predict_proba(X)
        for one in classifiers
    ]
    assert np.allclose(together.predict_proba(X), np.mean(alone, axis=0), atol=1e-5)


def test_what_holds_one_prompt_refuses_several(case, tmp_path):
    backbone, folder, _ = case
    artifact = load_artifact(folder)
    request = GraphRequest("onnx", "fp32", "cut", [Record({"text": text}) for text in X], 0.99)
    for export in (
        lambda: export_peft(artifact, backbone, tmp_path / "peft"),
        lambda: export_tensors(artifact, backbone, tmp_path / "tensors"),
        lambda: export_graph({"p": artifact}, backbone, tmp_path / "graph", request),
    ):
        with pytest.raises(ArtifactError, match=r"3 prompts answer together here, and .* holds one; tune"):
            export()
    assert not list(tmp_path.iterdir())


def test_a_missing_part_is_a_damaged_artifact(case, tmp_path):
    _, folder, _ = case
    artifact = load_artifact(folder)
    fewer = replace(artifact, others=artifact.others[:1])  # its manifest still says three
    fewer.save(tmp_path / "fewer")
    with pytest.raises(ArtifactError, match="is damaged"):
        load_artifact(tmp_path / "fewer")
    assert torch.equal(artifact.others[1].offsets, load_artifact(folder).others[1].offsets)
