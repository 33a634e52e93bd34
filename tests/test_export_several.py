"""Several prompts in one graph; the oracle is each one's `PromptClassifier.predict_proba`."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from cuecraft import PromptClassifier
from cuecraft.core.errors import ArtifactError, ExportError
from cuecraft.export import export_graph
from cuecraft.export.runtime import ExportedClassifier, ExportedModel, RuntimeOptions, read_export
from cuecraft.serving.engine import Engine, EngineOptions
from cuecraft.serving.exported import ExportShelf
from serving import X, Y, classifiers
from test_export import MANY, TEXTS, request

THREE = {"bad": ["bore"], "fair": ["dull", "plot"], "good": ["joy"]}
LONG = "{text}{prompt: the film and the plot of it all was}{mask}"


@pytest.fixture(scope="module")
def prompts(causal):
    """Prompts of several kinds, lengths and numbers of classes."""
    own = {name: classifiers(causal)[name] for name in ("hard", "soft", "deep")}
    labels = ["bad", "fair", "good"] * len(X)
    own["three"] = PromptClassifier(causal, "zero-shot", template=LONG, label_words=THREE).fit(X, labels[: len(X)])
    return own


def several(prompts, folder, wanted=None):
    artifacts = {name: own.artifact_ for name, own in prompts.items()}
    return export_graph(artifacts, prompts["soft"].backbone_, folder, wanted or request())


@pytest.fixture(scope="module")
def folder(prompts, tmp_path_factory):
    target = tmp_path_factory.mktemp("several") / "all"
    several(prompts, target)
    return target


def check_each(prompts, folder, most=1e-4):
    model = ExportedModel.load(folder)
    for name, own in prompts.items():
        found = ExportedClassifier(model, name)
        assert found.classes_.tolist() == own.classes_.tolist()
        for texts in (TEXTS, TEXTS[:1], TEXTS[3:6]):
            assert np.abs(found.predict_proba(texts) - own.predict_proba(texts)).max() < most, name


def test_each_prompt_answers_as_it_does_alone(prompts, folder):
    manifest = read_export(folder)
    assert [own.name for own in manifest.prompts] == list(prompts)
    assert manifest.agreement.labels == 1
    check_each(prompts, folder)


def test_a_text_is_read_once_for_all_that_are_asked(prompts, folder, monkeypatch):
    model = ExportedModel.load(folder)
    passes = []
    run = model.session.run
    monkeypatch.setattr(model.session, "run", lambda feed: passes.append(feed) or run(feed))
    wanted = [(name, text) for text in TEXTS for name in prompts] + [("deep", TEXTS[0]), ("hard", "a new joy")]
    rows = []
    for name, text in wanted:
        ready = model.prompts[name]
        rows.append((ready, ready.renderer.fitted(ready.renderer.task.examples([record(text)]))[0][0]))
    found = model.mixed_logits(rows)
    for (name, text), logits in zip(wanted, found, strict=True):
        assert np.abs(np.exp(logits) - prompts[name].predict_proba([text])[0]).max() < 1e-4
    read = sum(len(feed["input_ids"]) for feed in passes)
    assert read == len(set(TEXTS)) + 1
    assert [len(feed["prompts"]) for feed in passes if len(feed["input_ids"]) == 1][-1] == 1


def record(text):
    from cuecraft.data import Record

    return Record({"text": text})


@pytest.mark.slow
def test_openvino_answers_too(prompts, tmp_path):
    pytest.importorskip("openvino")
    several(prompts, tmp_path / "out", request("openvino"))
    check_each(prompts, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_8_bits_are_judged_by_the_prompt_that_keeps_fewest(kind, prompts, tmp_path):
    if kind == "openvino":
        pytest.importorskip("nncf")
    manifest = several(prompts, tmp_path / "out", request(kind, precision="int8", texts=MANY, floor=None))
    model = ExportedModel.load(tmp_path / "out")
    texts = [own.fields["text"] for own in MANY[128:]]
    kept = [
        (ExportedClassifier(model, name).predict(texts) == own.predict(texts)).mean() for name, own in prompts.items()
    ]
    assert manifest.agreement.labels == pytest.approx(min(kept), abs=1.5 / len(texts))


def test_an_engine_answers_with_all_prompts_of_a_folder(prompts, folder):
    shelf = ExportShelf(dict.fromkeys(prompts, folder), RuntimeOptions())
    assert len({id(own.members[0].backbone) for own in shelf.all()}) == 1
    engine = Engine(shelf, EngineOptions(max_wait_ms=0))
    try:
        answers = engine.ask([{"text": text} for text in TEXTS[:3]], list(prompts))
    finally:
        engine.close()
    expected = [own.predict_proba([text])[0] for text in TEXTS[:3] for own in prompts.values()]
    for answer, shares in zip(answers, expected, strict=True):
        assert answer.probabilities == pytest.approx(shares.tolist(), abs=1e-4)
    with pytest.raises(ExportError, match="export of hard, soft, deep, three holds no prompt 'other'"):
        ExportShelf({"other": folder}, RuntimeOptions())


def test_the_example_answers_with_all_of_them(prompts, folder):
    command = [sys.executable, "example.py", "a joy from start"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, (name, own) in zip(told, prompts.items(), strict=True):
        assert line.split(" ")[0] == name
        shares = dict(re.findall(r"'(\w+)': ([\d.e-]+)", line))
        expected = own.predict_proba(["a joy from start"])[0]
        assert [float(shares[c]) for c in own.classes_] == pytest.approx(expected.tolist(), abs=1e-4)


def test_prompts_that_share_nothing_are_refused(causal, masked, tmp_path):
    own = classifiers(causal)
    words = {"negative": ["a bore"], "positive": ["joy"]}
    long = PromptClassifier(causal, "zero-shot", template="{text}{prompt: it was}{mask}", label_words=words).fit(X, Y)
    other = PromptClassifier(causal, "zero-shot", template="film: {text}{prompt: it was}{mask}").fit(X, Y)
    for name, second, message in (
        ("first", own["soft-first"], "stands before the text"),
        ("prefix", own["prefix"], "stands before the text"),
        ("lora", own["lora"], "changes the model's weights"),
        ("long", long, "label words of several tokens"),
        ("other", other, "the templates of 'soft' and 'other' begin otherwise"),
        ("no name", own["deep"], "'no name' cannot be the name of a prompt"),
    ):
        artifacts = {"soft": own["soft"].artifact_, name: second.artifact_}
        with pytest.raises(ExportError, match=message):
            export_graph(artifacts, causal, tmp_path / "out", request())
    encoders = classifiers(masked)
    artifacts = {name: encoders[name].artifact_ for name in ("soft", "deep")}
    with pytest.raises(ExportError, match="share nothing; export each alone"):
        export_graph(artifacts, masked, tmp_path / "out", request())
    assert not list(tmp_path.iterdir())


def test_files_are_classified_with_several_without_torch(prompts, folder, tmp_path):
    pytest.importorskip("orjson")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in X))
    code = "import sys; sys.modules.update(torch=None, transformers=None); from cuecraft.cli import main; main()"
    words = ("classify", str(folder), "rows.jsonl", "--out", "answers", "--field", "text")
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(own) for path in sorted((tmp_path / "answers").glob("part-*.jsonl")) for own in path.open()]
    for row, text in zip(lines, X, strict=True):
        for name, own in prompts.items():
            assert row[f"{name}.label"] == own.predict([text])[0]


def test_the_commands_take_a_folder_of_several(run, causal_folder, untraced, tmp_path):
    template = "{text}{prompt: it was}{mask}"
    two = {
        "mood": PromptClassifier(str(causal_folder), "zero-shot", template=template).fit(X, Y),
        "kind": PromptClassifier(str(causal_folder), "zero-shot", template=LONG).fit(X, Y),
    }
    for name, own in two.items():
        own.save(tmp_path / name)
    code, out, err = run("export", "mood", "class=kind", "--format", "onnx", "--out", "all", "--json")
    assert code == 0, err
    assert json.loads(out)["artifacts"] == {"mood": "mood", "class": "kind"}
    found = json.loads(run("predict", "all", "--prompt", "class", *X, "--json")[1])["predictions"]
    expected = two["kind"].predict_proba(X)
    assert np.abs(np.array([list(own["probabilities"].values()) for own in found]) - expected).max() < 1e-4
    for words, message in (
        (("predict", "all", "a"), "an export of mood, class answers by name; name one of them"),
        (("predict", "all", "a", "--prompt", "other"), "an export of mood, class holds no prompt 'other'"),
        (("predict", "mood", "a", "--prompt", "mood"), "is no export of several prompts; leave --prompt out"),
        (("serve", "all", "mood=kind"), "two prompts would have the id 'mood'"),
        (("export", "mood", "kind", "--format", "peft", "--out", "x"), "--format peft writes one prompt"),
        (("export", "all", "--format", "onnx", "--out", "x"), "is no artifact, but an exported graph"),
    ):
        code, _, err = run(*words)
        assert code == 2, err
        assert message in " ".join(err.split())
    assert not (tmp_path / "x").exists()


def test_an_artifact_of_another_backbone_among_several_is_refused(prompts, masked, tmp_path):
    artifact = prompts["soft"].artifact_
    backbone = artifact.manifest.backbone.model_copy(update={"sha256": "0" * 64})
    other = replace(artifact, manifest=artifact.manifest.model_copy(update={"backbone": backbone}))
    with pytest.raises(ArtifactError, match="made for"):
        export_graph({"soft": artifact, "other": other}, prompts["soft"].backbone_, tmp_path / "out", request())
