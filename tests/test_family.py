"""Several tasks over one backbone: a shared tensor, stored once, and small parts of their own."""

import json

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.api.family import PromptFamily
from cuecraft.artifact import TaskPart, load_artifact
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.errors import ArtifactError, MethodError
from cuecraft.methods.train.multitask import MultitaskTuning

SENTIMENT = ([text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS])
LENGTHS = ([text for text, _ in TEXTS], ["war" if len(text.split()) > 5 else "love" for text, _ in TEXTS])
START = ([text for text, _ in TEXTS], ["dull" if text.startswith("a") else "bright" for text, _ in TEXTS])


def family(model, share, **options):
    tuning = MultitaskTuning(share=share, epochs=10, learning_rate=0.1, **options)
    return PromptFamily(model, tuning).fit(
        {"sentiment": SENTIMENT, "length": LENGTHS}, dev={"sentiment": SENTIMENT, "length": LENGTHS}
    )


@pytest.mark.parametrize("share", ["embeddings", "offsets", "states"])
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_both_tasks_learn_and_share(kind, share, request):
    found = family(request.getfixturevalue(kind), share)
    for artifact in found.artifacts.values():
        losses = [event["train_loss"] for event in artifact.trace if event["phase"] == "multitask"]
        assert losses[-1] < losses[0]
    parts = [artifact.sharing for artifact in found.artifacts.values()]
    assert all(part is not None for part in parts)
    assert parts[0].shared is parts[1].shared
    assert not torch.equal(parts[0].part.offset, parts[1].part.offset)


@pytest.mark.parametrize("share", ["embeddings", "offsets", "states"])
def test_saved_once_and_loaded_with_the_same_answers(causal_folder, share, tmp_path):
    found = family(str(causal_folder), share)
    found.save(tmp_path / "family")
    files = sorted(path.name for path in (tmp_path / "family").rglob("*.safetensors"))
    assert files == ["prompt.safetensors", "prompt.safetensors", "shared.safetensors"]
    shared = (tmp_path / "family" / "shared.safetensors").stat().st_size
    own = (tmp_path / "family" / "tasks" / "length" / "prompt.safetensors").stat().st_size
    tensor = load_artifact(tmp_path / "family" / "tasks" / "length").sharing.shared
    assert shared >= tensor.numel() * 4
    assert own < shared + 2000  # tiny model: headers weigh more than numbers
    loaded = PromptFamily.load(tmp_path / "family")
    texts = SENTIMENT[0]
    for name in ("sentiment", "length"):
        expected = found.classifier(name).predict_proba(texts)
        assert np.array_equal(loaded.classifier(name).predict_proba(texts), expected)
        alone = PromptClassifier.load(tmp_path / "family" / "tasks" / name)
        assert np.array_equal(alone.predict_proba(texts), expected)


def test_a_task_added_later_leaves_everything_else_as_it_was(causal_folder, tmp_path):
    found = family(str(causal_folder), "offsets")
    found.save(tmp_path / "family")
    before = {path: path.read_bytes() for path in (tmp_path / "family").rglob("*") if path.is_file()}
    loaded = PromptFamily.load(tmp_path / "family").add("start", *START, dev=START)
    loaded.save(tmp_path / "family")
    assert all(path.read_bytes() == content for path, content in before.items())
    losses = [event["train_loss"] for event in loaded.artifacts["start"].trace if event["phase"] == "multitask"]
    assert losses[-1] < losses[0]
    again = PromptFamily.load(tmp_path / "family")
    assert sorted(again.artifacts) == ["length", "sentiment", "start"]


def test_a_part_of_zeros_is_the_shared_tensor():
    shared = torch.randn(3, 4, 5)
    part = TaskPart(torch.randn(3, 4, 2), torch.zeros(3, 2, 5), torch.zeros(3, 1, 5))
    assert torch.equal(part.of(shared), shared)
    full = TaskPart(torch.randn(3, 4, 2), torch.randn(3, 2, 5), torch.randn(3, 1, 5))
    expected = torch.empty_like(shared)
    for n in range(3):
        for s in range(4):
            for w in range(5):
                product = sum(full.left[n, s, r] * full.right[n, r, w] for r in range(2))
                expected[n, s, w] = shared[n, s, w] * (1 + product) + full.offset[n, 0, w]
    assert torch.allclose(full.of(shared), expected, atol=1e-6)


def test_what_cannot_be_done_is_said_in_one_line(causal_folder, causal, tmp_path):
    with pytest.raises(MethodError, match="two tasks or more"):
        PromptFamily(causal).fit({"one": SENTIMENT})
    with pytest.raises(MethodError, match="no folder's name"):
        PromptFamily(causal).fit({"../up": SENTIMENT, "length": LENGTHS})
    with pytest.raises(MethodError, match="given for task 'other'"):
        PromptFamily(causal).fit({"a": SENTIMENT, "b": LENGTHS}, dev={"other": LENGTHS})
    with pytest.raises(MethodError, match="train two tasks or more first"):
        PromptFamily(causal).add("a", *SENTIMENT)
    with pytest.raises(ArtifactError, match="nothing to write"):
        PromptFamily(causal).save(tmp_path / "family")
    found = family(str(causal_folder), "offsets")
    with pytest.raises(MethodError, match="there already, with the classes"):
        found.add("length", *START)
    with pytest.raises(MethodError, match="no task 'x'"):
        found.classifier("x")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ArtifactError, match="no family"):
        found.save(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="no family"):
        PromptFamily.load(tmp_path / "mine")


def test_a_damaged_shared_part_is_refused(causal_folder, tmp_path):
    family(str(causal_folder), "offsets").save(tmp_path / "family")
    path = tmp_path / "family" / "shared.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x00\x40")
    with pytest.raises(ArtifactError, match="hash differs"):
        PromptFamily.load(tmp_path / "family")
    with pytest.raises(ArtifactError, match="hash differs"):
        load_artifact(tmp_path / "family" / "tasks" / "length")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_artifact(tmp_path / "family" / "tasks" / "length")


class KilledError(Exception):
    pass


def test_killed_and_resumed_it_ends_with_the_same_bits(causal, tmp_path):
    tasks = {"sentiment": SENTIMENT, "length": LENGTHS}

    def run(checkpoints=None, stop=None):
        def report(event):
            if stop is not None and event["phase"] == "multitask" and event["step"] == stop:
                raise KilledError

        return PromptFamily(causal, MultitaskTuning(epochs=6)).fit(
            tasks, dev=tasks, report=report, checkpoints=checkpoints
        )

    whole = run()
    for stop in (2, 5):
        with pytest.raises(KilledError):
            run(Keeping(tmp_path / "state", seconds=0.0), stop)
    resumed = run(Keeping(tmp_path / "state", seconds=0.0))
    assert torch.equal(whole._shared, resumed._shared)
    for name, artifact in whole.artifacts.items():
        other = resumed.artifacts[name]
        assert artifact.save(tmp_path / f"a-{name}" / "tasks" / "x") == other.save(
            tmp_path / f"b-{name}" / "tasks" / "x"
        )
        assert json.dumps(list(artifact.trace)) == json.dumps(list(other.trace))


def test_a_task_added_later_keeps_its_best_epoch(causal):
    found = PromptFamily(causal, MultitaskTuning(epochs=12, learning_rate=1.0, patience=12)).fit(
        {"sentiment": SENTIMENT, "length": LENGTHS}, dev={"sentiment": SENTIMENT, "length": LENGTHS}
    )
    found.add("start", *START, dev=(START[0][:4], START[1][:4]))
    for artifact in found.artifacts.values():
        joint = [event for event in artifact.trace if event["phase"] == "joint"][-1]
        trained = [event["dev_loss"] for event in artifact.trace if event["phase"] == "multitask"]
        if artifact is found.artifacts["start"]:
            assert joint["dev_loss"] == pytest.approx(min(trained), abs=1e-6)
            assert trained[-1] > min(trained)  # the last epoch was not the best


def test_a_resumed_addition_ends_with_the_same_bits(causal, tmp_path):
    base = family(causal, "states")

    def add(checkpoints=None, stop=None):
        def report(event):
            if event["step"] == stop and event["phase"] == "multitask":
                raise KilledError

        copied = PromptFamily(causal, base.options)
        copied._shared, copied._sha256, copied.artifacts = base._shared, base._sha256, dict(base.artifacts)
        return copied.add("start", *START, dev=START, report=report, checkpoints=checkpoints).artifacts["start"]

    whole = add()
    with pytest.raises(KilledError):
        add(Keeping(tmp_path / "state", seconds=0.0), 4)
    resumed = add(Keeping(tmp_path / "state", seconds=0.0))
    assert torch.equal(whole.sharing.part.offset, resumed.sharing.part.offset)
    assert list(whole.trace) == list(resumed.trace)
