"""Several seeds: mean and standard deviation, and the ensemble of their prompts."""

import json
import statistics

import numpy as np
import pytest

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.artifact.predictor import Predictor, PromptEnsemble
from cuecraft.core.errors import ArtifactError

TEMPLATE = "{text}{prompt: it was}{mask}"


def fitted(backbone, seed, **options):
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    options = {"template": TEMPLATE, "method_options": {"epochs": 3}, "seed": seed} | options
    return PromptClassifier(backbone, "deep-cue", **options).fit(texts, labels)


def test_the_ensemble_is_the_mean_of_its_members(causal):
    words = {"negative": "bad", "positive": "good"}
    members = [fitted(causal, 0), fitted(causal, 1), fitted(causal, 2, label_words=words)]
    texts = [text for text, _ in TEXTS]
    expected = np.mean([member.predict_proba(texts) for member in members], axis=0)
    ensemble = PromptEnsemble(members)
    assert np.allclose(ensemble.predict_proba(texts), expected, atol=1e-6)
    assert ensemble.predict(texts).tolist() == [LABELS[n] for n in expected.argmax(1)]


def test_members_must_answer_alike(causal, masked):
    member = fitted(causal, 0)
    with pytest.raises(ArtifactError, match="at least one"):
        PromptEnsemble([])
    with pytest.raises(ArtifactError, match="several backbones"):
        PromptEnsemble([member, fitted(masked, 0)])
    other = PromptClassifier(causal, "zero-shot", template=TEMPLATE).fit(["a joy", "a bore"], ["good", "bad"])
    with pytest.raises(ArtifactError, match="other classes"):
        PromptEnsemble([member, other])


@pytest.mark.parametrize("names", [("good", "bad"), ("good", "dull", "bad")])
def test_a_folder_of_members_of_other_classes_is_refused(causal, names, tmp_path):
    fitted(causal, 0).save(tmp_path / "seed-0")
    texts = ["a joy", "a bore", "awful"][: len(names)]
    PromptClassifier(causal, "zero-shot", template=TEMPLATE).fit(texts, names).save(tmp_path / "seed-1")
    for kind in (Predictor, PromptEnsemble):
        with pytest.raises(ArtifactError, match="other classes"):
            kind.load(tmp_path, model=causal)


def rows(path):
    lines = [json.dumps({"text": text, "label": LABELS[label]}) for text, label in TEXTS]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_tune_with_seeds_gives_spread_and_an_ensemble(run, causal_folder, tmp_path):
    data = rows(tmp_path / "rows.jsonl")
    common = ("--model", causal_folder, "--method", "deep-cue", "--option", "epochs=3", "--template", TEMPLATE)
    code, out, _ = run("tune", data, "--test", data, *common, "--seeds", "3,5,8", "--out", "runs/s", "--json")
    assert code == 0
    document = json.loads(out)
    assert [row["seed"] for row in document["seeds"]] == [3, 5, 8]
    found = [row["metrics"]["test_accuracy"] for row in document["seeds"]]
    spread = document["spread"]["test_accuracy"]
    assert spread == {"mean": pytest.approx(statistics.mean(found)), "sd": pytest.approx(statistics.stdev(found))}
    code, alone, _ = run("tune", data, "--test", data, *common, "--seed", "5", "--out", "runs/alone", "--json")
    assert json.loads(alone)["artifact_sha256"] == document["seeds"][1]["artifact_sha256"]

    texts = [text for text, _ in TEXTS]
    code, out, _ = run("predict", "runs/s", *texts, "--json")
    assert code == 0
    shares = [[row["probabilities"][name] for name in LABELS] for row in json.loads(out)["predictions"]]
    members = [PromptClassifier.load(tmp_path / "runs" / "s" / f"seed-{seed}") for seed in (3, 5, 8)]
    expected = np.mean([member.predict_proba(texts) for member in members], axis=0)
    assert np.allclose(shares, expected, atol=1e-6)
    hits = expected.argmax(1) == np.array([label for _, label in TEXTS])
    assert document["ensemble_test_accuracy"] == hits.mean()

    code, out, _ = run("tune", data, *common, "--seeds", "1,2", "--out", "runs/t")
    assert code == 0
    assert "mean" in out
    assert "sd" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--seeds", "one"), "not numbers"),
        (("--seeds", "3"), "two seeds"),
        (("--seeds", "1,2", "--unlabeled", "--classes", "negative,positive"), "no meaning with --unlabeled"),
    ],
)
def test_seeds_that_mean_nothing_are_refused(words, says, run, causal_folder, tmp_path):
    data = rows(tmp_path / "rows.jsonl")
    code, _, err = run("tune", data, "--model", causal_folder, *words)
    assert code == 2
    assert says in err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_other_seeds_or_an_artifact_is_not_mixed_with_new_ones(run, causal_folder, tmp_path):
    data = rows(tmp_path / "rows.jsonl")
    common = ("tune", data, "--model", causal_folder, "--method", "zero-shot", "--out", "runs/s")
    assert run(*common, "--seeds", "1,2")[0] == 0
    assert run(*common, "--seeds", "1,2")[0] == 0
    code, _, err = run(*common, "--seeds", "1,3")
    assert code == 2
    assert "other seeds (seed-2)" in err
    assert not (tmp_path / "runs" / "s" / "seed-3").exists()
    assert run(*common[:-1], "runs/one")[0] == 0
    code, _, err = run(*common[:-1], "runs/one", "--seeds", "1,2")
    assert code == 2
    assert "is an artifact" in err


def test_all_seeds_are_tested_on_the_same_rows(run, causal_folder, tmp_path, monkeypatch):
    from cuecraft.api import estimators as classifier

    data, tested = rows(tmp_path / "rows.jsonl"), []
    plain = classifier.PromptClassifier.scores_of
    monkeypatch.setattr(
        classifier.PromptClassifier,
        "scores_of",
        lambda self, records, *rest, **more: tested.append(records) or plain(self, records, *rest, **more),
    )
    common = ("--model", causal_folder, "--method", "zero-shot", "--test", data, "--test-size", 3)
    assert run("tune", data, *common, "--seeds", "4,5,6", "--out", "runs/s")[0] == 0
    assert tested[0] == tested[1] == tested[2]
