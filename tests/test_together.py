"""Several prompts of one artifact that answer together: the mean of what each says alone, with its own calibration."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import Artifact, CalibratedPrompt, Calibration, HardPrompt, load_artifact, stored_bytes
from cuecraft.artifact.manifest import SCHEMA_VERSION
from cuecraft.artifact.predictor import PromptEnsemble
from cuecraft.core.errors import ArtifactError
from cuecraft.core.storage import digest
from cuecraft.data import Record
from cuecraft.export import GraphRequest, commands, export_graph, export_peft
from cuecraft.export.peft_export import export_tensors
from cuecraft.methods.auto.starts import OtherWords
from cuecraft.methods.candidate import Candidate
from cuecraft.serving.artifacts import ServedPrompt
from cuecraft.task import Verbalizer
from serving import answered

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
TEMPLATE = "{text}{prompt: it was}{mask}"


def fitted(backbone, seed, method="deep-cue"):
    template = "{prompt}{text}" if backbone.head_kind == "sequence" else TEMPLATE
    options = {"template": template, "method_options": {"epochs": 3}, "seed": seed}
    return PromptClassifier(backbone, method, **options).fit(X, Y)


CALIBRATIONS = [Calibration((0.4, -0.1), 1.5), Calibration((-0.7, 0.2), 0.6), Calibration((0.0, 0.9), 2.5)]


def slowly(probabilities, calibrations):
    """Return calibrated probabilities `[T, B, C]`, one number at a time, given those of no calibration.

    These are the logits' but for a constant for each text, which a softmax takes out.
    """
    found = np.zeros(np.shape(probabilities))
    for number, (own, calibration) in enumerate(zip(probabilities, calibrations, strict=True)):
        for row, text in enumerate(own):
            powers = [
                np.exp(bias) * float(share) ** calibration.scale
                for share, bias in zip(text, calibration.bias, strict=True)
            ]
            found[number, row] = [power / sum(powers) for power in powers]
    return found


def uncalibrated(classifier, backbone):
    """Return the probabilities `[B, C]` of a classifier's prompt alone, without its calibration."""
    artifact = replace(classifier.artifact_, calibration=Calibration.none(2))
    return PromptClassifier.of(artifact, backbone).predict_proba(X)


def joined(classifiers, backbone, calibrations=CALIBRATIONS):
    """Return an artifact of the prompts of all, each with a calibration of its own."""
    first = classifiers[0].artifact_
    manifest = first.manifest
    pairs = zip(classifiers[1:], calibrations[1:], strict=True)
    return Artifact.create(
        first.prompt,
        calibrations[0],
        first.task,
        backbone,
        method=manifest.method,
        method_options=manifest.method_options,
        seed=0,
        metrics={},
        data={},
        others=[CalibratedPrompt(one.artifact_.prompt, calibration) for one, calibration in pairs],
    )


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
def case(request, tmp_path_factory):
    """Return a backbone, the folder of three prompts that answer together, and what they say alone, uncalibrated."""
    backbone = request.getfixturevalue(request.param)
    classifiers = [fitted(backbone, seed) for seed in range(3)]
    folder = tmp_path_factory.mktemp("together") / "three"
    joined(classifiers, backbone).save(folder)
    return backbone, folder, np.stack([uncalibrated(one, backbone) for one in classifiers])


def together(alone, calibrations=CALIBRATIONS):
    """Return what three prompts say together `[B, C]`, given what they say alone, uncalibrated."""
    return slowly(alone, calibrations).mean(0)


def served(backbone, artifacts):
    prompt = ServedPrompt.over(backbone, "p", artifacts)
    return prompt, answered(prompt, X)


def test_they_are_read_back_and_answer_with_the_mean_of_their_probabilities(case):
    """Each with its own calibration: with another's, or the first's for all, they would say something else."""
    backbone, folder, alone = case
    assert np.abs(alone[1:] - alone[0]).max() > 1e-3  # they differ
    expected = together(alone)
    assert np.abs(expected - together(alone, [CALIBRATIONS[n] for n in (0, 2, 1)])).max() > 1e-3
    assert np.abs(expected - together(alone, CALIBRATIONS[:1] * 3)).max() > 1e-3
    again = PromptClassifier.load(folder, backbone)
    assert list(again.artifact_.calibrations) == CALIBRATIONS
    assert np.allclose(again.predict_proba(X), expected, atol=1e-5)
    manifest = again.artifact_.manifest
    assert manifest.prompt.count == 3
    assert manifest.prompt.described.endswith("and 2 more that answer with it")
    assert "3 prompts answer together" in (folder / "README.md").read_text(encoding="utf-8")
    sizes = [stored_bytes([prompt]) for prompt in again.artifact_.prompts]
    assert stored_bytes(again.artifact_.prompts) == pytest.approx(sum(sizes), rel=0.1)


def test_they_are_served_as_they_predict(case):
    backbone, folder, alone = case
    prompt, found = served(backbone, [load_artifact(folder)])
    assert prompt.describe()["members"] == 3
    assert np.allclose(found, together(alone), atol=1e-5)


def test_one_more_calibration_goes_on_after_each_own(case):
    """As a temperature on all of them: on the candidate of several, and of one."""
    backbone, folder, alone = case
    context, more = tiny_problem(backbone).pool.context, Calibration((0.3, -0.2), 0.5)
    stored = load_artifact(folder)
    several = Candidate(stored.prompt, stored.calibration, others=stored.others)
    own = slowly(alone, CALIBRATIONS)
    for candidate, count in ((several, 3), (replace(several, others=()), 1)):
        found = candidate.logits(backbone, context).softmax(-1)
        assert np.allclose(found, own[:count].mean(0), atol=1e-5)
        found = candidate.then(more).logits(backbone, context).softmax(-1)
        assert np.allclose(found, slowly(own[:count], [more] * count).mean(0), atol=1e-5)


def test_an_ensemble_of_artifacts_gives_each_artifact_one_voice(case, tmp_path):
    """Of three prompts and of one: served as predicted."""
    backbone, folder, alone = case
    single = fitted(backbone, 7)
    single.save(tmp_path / "one")
    expected = (together(alone) + single.predict_proba(X)) / 2
    ensemble = PromptEnsemble([PromptClassifier.load(folder, backbone), single])
    assert np.allclose(ensemble.predict_proba(X), expected, atol=1e-5)
    _, found = served(backbone, [load_artifact(folder), load_artifact(tmp_path / "one")])
    assert np.allclose(found, expected, atol=1e-5)


def test_with_prompts_of_unequal_length_and_kind_too(causal, tmp_path):
    """Prompts with prefixes share no pass; those in words and vectors do, whatever their lengths."""
    classifiers = [fitted(causal, 0, "prefix-tuning"), fitted(causal, 1, "prompt-tuning"), fitted(causal, 2)]
    joined(classifiers, causal).save(tmp_path / "kinds")
    found = PromptClassifier.load(tmp_path / "kinds", causal).predict_proba(X)
    assert np.allclose(found, together([uncalibrated(one, causal) for one in classifiers]), atol=1e-5)


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
    assert "2 prompts answer together" in (tmp_path / "fewer" / "README.md").read_text(encoding="utf-8")
    assert list(fewer.calibrations) == CALIBRATIONS[:2]
    found, expected = (own.others[0].prompt.tensors() for own in (fewer, artifact))
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


@pytest.mark.parametrize("entries", [[], CALIBRATIONS[:1], CALIBRATIONS])
def test_more_or_fewer_calibrations_than_prompts_are_a_damaged_artifact(entries, case, tmp_path, run):
    _, folder, _ = case
    entries = [{"bias": list(own.bias), "scale": own.scale} for own in entries]
    changed = renamed(folder, tmp_path / "changed", lambda manifest: manifest.update(other_calibrations=entries))
    what = f"is damaged ('other_calibrations: {len(entries)} for 2 further prompts')"
    with pytest.raises(ArtifactError) as caught:
        load_artifact(changed)
    assert what in str(caught.value)
    code, _, error = run("show", changed)
    assert code == 2
    assert what in " ".join(error.split())
    assert error.count("\n") == 1


def test_the_calibration_of_each_is_shown(case, run):
    _, folder, _ = case
    code, out, _ = run("show", folder)
    assert code == 0
    shown = " ".join(out.replace("│", " ").split())
    assert "scale 1.500, bias +0.400, -0.100; scale 0.600, bias -0.700, +0.200; scale 2.500, bias" in shown


def as_version_4(manifest):
    """Several prompts had one calibration, the first one's, and the manifest no list."""
    manifest["schema_version"] = 4
    del manifest["other_calibrations"]


def test_several_prompts_of_version_4_have_the_calibration_of_the_first(case, tmp_path, run):
    backbone, folder, alone = case
    old = renamed(folder, tmp_path / "old", as_version_4)
    first = CALIBRATIONS[:1] * 3
    for _ in range(2):
        found = load_artifact(old)
        assert list(found.calibrations) == first
        answers = PromptClassifier.of(found, backbone).predict_proba(X)
        assert np.allclose(answers, together(alone, first), atol=1e-5)
        code, out, _ = run("show", old)
        assert code == 0
        assert out.count("scale 1.500") == 1
        old = tmp_path / "again"
        found.save(old)
    manifest = json.loads((old / "manifest.json").read_text())
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["other_calibrations"] == [{"bias": [0.4, -0.1], "scale": 1.5}] * 2


def test_artifacts_of_version_3_are_read_and_written_as_this_one(causal, tmp_path):
    """They had one prompt, and did not say so."""
    fitted(causal, 0).save(tmp_path / "new")

    def older(manifest):
        as_version_4(manifest)
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
    task = replace(problem.task, answers=words)
    prompts = [HardPrompt(problem.initial_ids), HardPrompt(problem.initial_ids[::-1])]
    second = CalibratedPrompt(prompts[1], CALIBRATIONS[1])
    both = Candidate(prompts[0], CALIBRATIONS[0], OtherWords(causal, task), (second,))
    context = causal.context(problem.train.context.examples, task)
    apart = slowly([causal.class_logits(context, prompt).softmax(-1) for prompt in prompts], CALIBRATIONS[:2])
    found = both.logits(causal, problem.train.context).softmax(-1)
    assert np.allclose(found, apart.mean(0), atol=1e-5)
    assert not torch.allclose(found, replace(both, reader=None).logits(causal, problem.train.context).softmax(-1))


def renamed(folder, target, change):
    """Return a copy of an artifact whose manifest was changed, and its hash with it."""
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    change(manifest)
    manifest["artifact_sha256"] = digest(manifest, "artifact_sha256")
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target
