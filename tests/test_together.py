"""Several prompts of one artifact that answer together: the mean of what each would say alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.data import Record
from cuecraft.ensemble import PromptEnsemble
from cuecraft.errors import ArtifactError
from cuecraft.export import GraphRequest, export_graph
from cuecraft.interop import commands, export_peft
from cuecraft.interop.tensors import export_tensors
from cuecraft.method import Candidate
from cuecraft.prompts import Artifact, Calibration, HardPrompt, load_artifact, stored_bytes
from cuecraft.prompts.kinds import prompt_tensors
from cuecraft.prompts.manifest import SCHEMA_VERSION
from cuecraft.serve.registry import member_logits
from cuecraft.serve.shelf import ServedPrompt
from cuecraft.storage import digest
from cuecraft.task import Verbalizer
from cuecraft.tune.auto.starts import OtherWords

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
TEMPLATE = "{text}{prompt: it was}{mask}"


def fitted(backbone, seed, method="deep-cue"):
    template = "{prompt}{text}" if backbone.head_kind == "sequence" else TEMPLATE
    options = {"template": template, "method_options": {"epochs": 3}, "seed": seed}
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


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
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
    assert manifest.prompt.described.endswith("and 2 more that answer with it")
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


def test_with_prompts_of_unequal_length_and_kind_too(causal, tmp_path):
    """Prompts with prefixes share no pass; those in words and vectors do, whatever their lengths."""
    classifiers = [fitted(causal, 0, "prefix-tuning"), fitted(causal, 1, "prompt-tuning"), fitted(causal, 2)]
    first = classifiers[0].artifact_
    joined(classifiers, causal).save(tmp_path / "kinds")
    together = PromptClassifier.load(tmp_path / "kinds", causal)
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


def test_what_is_written_again_is_counted_again(case, tmp_path):
    _, folder, _ = case
    artifact = load_artifact(folder)
    replace(artifact, others=artifact.others[:1]).save(tmp_path / "fewer")
    fewer = load_artifact(tmp_path / "fewer")
    assert fewer.manifest.prompt.described.endswith("and 1 more that answer with it")
    assert "2 such prompts answer together" in (tmp_path / "fewer" / "README.md").read_text(encoding="utf-8")
    found, expected = (prompt_tensors(own.others[0]) for own in (fewer, artifact))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("format", ["peft", "safetensors", "onnx"])
def test_an_export_of_several_is_refused_before_the_backbone_is_loaded(format, case, tmp_path, monkeypatch, run):
    _, folder, _ = case
    monkeypatch.setattr(commands, "load_backbone", None)
    code, _, error = run("export", str(folder), "--format", format, "--out", "x")
    assert code == 2
    assert "3 prompts answer together here, and an export of three to" in error
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_more_or_fewer_parts_than_are_named_is_a_damaged_artifact(count, case, tmp_path):
    _, folder, _ = case
    what = "is damaged" if count > 3 else f"more prompts than {count}"
    with pytest.raises(ArtifactError, match=what):
        load_artifact(renamed(folder, tmp_path / "changed", lambda manifest: manifest["prompt"].update(count=count)))


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_no_prompt_and_too_many_are_refused(count, case, tmp_path):
    _, folder, _ = case
    with pytest.raises(ArtifactError, match="count"):
        load_artifact(renamed(folder, tmp_path / "changed", lambda manifest: manifest["prompt"].update(count=count)))


def test_artifacts_of_the_version_before_are_read_and_written_as_this_one(causal, tmp_path):
    """They had one prompt, and did not say so."""
    fitted(causal, 0).save(tmp_path / "new")

    def older(manifest):
        manifest["schema_version"] = 3
        del manifest["prompt"]["count"]

    found = load_artifact(renamed(tmp_path / "new", tmp_path / "old", older))
    assert not found.others
    found.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert load_artifact(tmp_path / "again").manifest.prompt.count == 1


def test_with_other_label_words_all_of_them_read_those(causal):
    """The one that `auto` makes of label words that it found."""
    problem = tiny_problem(causal)
    words = Verbalizer(problem.task.verbalizer.labels, (("d",), ("c",)))
    task = replace(problem.task, verbalizer=words)
    prompts = [HardPrompt(problem.initial_ids), HardPrompt(problem.initial_ids[::-1])]
    calibration = Calibration((0.5, 0.0), 1.5)
    together = Candidate(prompts[0], calibration, OtherWords(causal, task), (prompts[1],))
    context = causal.context(problem.train.context.examples, task)
    apart = [calibration.apply(causal.class_logits(context, prompt)).softmax(-1) for prompt in prompts]
    found = together.logits(causal, problem.train.context).softmax(-1)
    assert torch.allclose(found, torch.stack(apart).mean(0), atol=1e-5)
    assert not torch.allclose(found, replace(together, reader=None).logits(causal, problem.train.context).softmax(-1))


def renamed(folder, target, change):
    """Return a copy of an artifact whose manifest was changed, and its hash with it."""
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    change(manifest)
    manifest["artifact_sha256"] = digest(manifest, "artifact_sha256")
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target
