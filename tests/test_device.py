"""Number types by device, in half precision and in double, and what loading refuses or warns of."""

import json
import shutil

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from conftest import LABELS, TEXTS, make_causal, make_examples, make_masked, make_task, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt, load_artifact
from cuecraft.backbone import Pooling, load_backbone
from cuecraft.backbone.load import _dtype
from cuecraft.core.errors import BackboneError, CuecraftWarning
from cuecraft.core.storage import digest
from cuecraft.methods import make_method
from cuecraft.methods.problem import CalibrationKind, Selection
from cuecraft.methods.untuned import starting_point
from products import in_turn
from test_tune import FAST, LEARN

X, Y = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]


def test_a_cpu_gets_float32_whatever_the_checkpoint_says(causal_folder):
    assert load_backbone(str(causal_folder)).model.dtype == torch.float32


def test_a_gpu_gets_bfloat16_where_it_has_it_and_float16_elsewhere(monkeypatch):
    for has_it, kind in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert _dtype("auto", "cuda:0") == kind
    assert _dtype("float32", "cuda") == torch.float32
    assert _dtype("auto", "cpu") == torch.float32


def test_half_precision_on_a_cpu_without_it_is_warned_of(causal_folder, monkeypatch):
    monkeypatch.setattr("cuecraft.backbone.load._has_fast_half_precision", lambda: False)
    with pytest.warns(CuecraftWarning, match="slower than float32"):
        backbone = load_backbone(str(causal_folder), dtype="bfloat16")
    assert backbone.model.dtype == torch.bfloat16
    monkeypatch.setattr("cuecraft.backbone.load._has_fast_half_precision", lambda: True)
    assert load_backbone(str(causal_folder), dtype="bfloat16") is backbone


def test_an_unknown_dtype_is_refused(causal_folder):
    with pytest.raises(BackboneError, match="dtype 'int3' is unknown"):
        load_backbone(str(causal_folder), dtype="int3")


@pytest.fixture(scope="module", params=["causal", "masked"])
def half(request, byte_tokenizer, word_tokenizer):
    make, tokenizer = (make_causal, byte_tokenizer) if request.param == "causal" else (make_masked, word_tokenizer)
    return load_backbone((make(tokenizer).bfloat16(), tokenizer)), load_backbone((make(tokenizer), tokenizer))


@torch.no_grad()
def test_half_precision_gives_the_same_answers_in_float32(half):
    backbone, exact = half
    context = exact.context(make_examples(), make_task())
    found = backbone.class_logits(backbone.context(make_examples(), make_task()), HardPrompt((30, 31)))
    assert found.dtype == torch.float32
    plain = exact.class_logits(context, HardPrompt((30, 31)))
    assert torch.allclose(found, plain, atol=0.05 * float(plain.abs().max()))


class Seen(Selection):
    """Remembers the last candidate that it saw, chosen or not."""

    def see(self, candidate, *scored):
        self.last = candidate
        return super().see(candidate, *scored)


@pytest.mark.parametrize(("name", "half"), in_turn(LEARN, ["causal", "masked"]), indirect=["half"])
def test_every_method_learns_in_half_precision_and_trains_float32(half, name):
    backbone, _ = half
    outcome = make_method(name, LEARN[name]).fit(tiny_problem(backbone))
    losses = [event["train_loss"] for event in outcome.trace if "train_loss" in event]
    assert min(losses) < losses[0]
    if name in ("prompt-tuning", "deep-cue"):
        selection = Seen(tiny_problem(backbone))
        start = starting_point(tiny_problem(backbone), (30, 31), CalibrationKind.FITTED)
        make_method(name, {"epochs": 1}).refine(tiny_problem(backbone), start, selection)
        prompt = selection.last.prompt
        assert (prompt.embeddings if name == "prompt-tuning" else prompt.offsets).dtype == torch.float32


def test_the_manifest_says_which_dtype_was_used(half, tmp_path):
    backbone, _ = half
    PromptClassifier(backbone, "prompt-tuning", method_options=FAST["prompt-tuning"]).fit(X, Y).save(tmp_path / "half")
    assert load_artifact(tmp_path / "half").manifest.backbone.dtype == "bfloat16"


def test_artifacts_of_schema_version_1_are_still_read(causal_folder, tmp_path):
    """Version 1 had no dtype: its hash covers the manifest as it was written."""
    PromptClassifier(str(causal_folder), "prompt-tuning", method_options=FAST["prompt-tuning"]).fit(X, Y).save(
        tmp_path / "old"
    )
    path = tmp_path / "old" / "manifest.json"
    document = json.loads(path.read_text())
    document["schema_version"] = 1
    del document["backbone"]["dtype"]
    document["artifact_sha256"] = digest(document)
    path.write_text(json.dumps(document))
    loaded = PromptClassifier.load(tmp_path / "old")
    assert loaded.artifact_.manifest.backbone.dtype == "float32"
    assert loaded.predict_proba(X).shape == (8, 2)


def test_a_state_space_model_is_refused_when_it_is_loaded(byte_tokenizer):
    config = MambaConfig(vocab_size=len(byte_tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(BackboneError, match="with and without a context cache"):
        load_backbone((MambaForCausalLM(config), byte_tokenizer))


def test_a_model_that_answers_otherwise_with_a_cache_is_refused(byte_tokenizer, monkeypatch):
    model = make_causal(byte_tokenizer)
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        if "attention_mask" in kwargs:  # the pass over a kept context
            output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(BackboneError, match="does not answer alike"):
        load_backbone((model, byte_tokenizer))


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("cls_token", Pooling.CLS), ("mean_tokens", Pooling.MEAN), ("lasttoken", Pooling.LAST), ("max_tokens", None)],
)
def test_a_folders_declared_pooling_is_followed_or_refused(causal_folder, tmp_path, mode, pooling):
    folder = tmp_path / "model"
    shutil.copytree(causal_folder, folder)
    (folder / "1_Pooling").mkdir()
    options = {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(options))
    if pooling is None:
        with pytest.raises(BackboneError, match="pooling by max_tokens is not supported"):
            load_backbone(str(folder), "sequence")
    else:
        assert load_backbone(str(folder), "sequence").pooling is pooling


def test_a_decoder_without_a_declaration_pools_its_last_token(causal_folder):
    assert load_backbone(str(causal_folder), "sequence").pooling is Pooling.LAST


@torch.no_grad()
def test_two_threads_over_one_model_get_their_own_answers(causal):
    """The output embedding is lent to one pass at a time."""
    from concurrent.futures import ThreadPoolExecutor

    tasks = [make_task(), make_task(words={"negative": ["awful", "bore", "dull"], "positive": ["joy", "love"]})]
    contexts = [causal.context(make_examples(), task) for task in tasks]
    alone = [causal.class_logits(context, HardPrompt((300, 301))) for context in contexts]

    def ask(number):
        with torch.no_grad():
            return causal.class_logits(contexts[number % 2], HardPrompt((300, 301)))

    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(ask, range(40))):
            assert torch.equal(found, alone[number % 2])
