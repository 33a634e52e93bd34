"""The packaged models and data, for real; skipped where their packages are not installed."""

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import DATA
from cuecraft import PromptClassifier
from cuecraft.artifact import DeepCue, HardPrompt
from cuecraft.backbone import Pooling, load_backbone
from cuecraft.core import assets
from cuecraft.core.errors import AssetError, BackboneError
from cuecraft.data import read_records
from cuecraft.task import Example, Task, Template, Verbalizer
from cuecraft.task.rendering import HeadKind
from oracles import plain_class_logits


@pytest.fixture
def demo():
    def load(name, head=None):
        try:
            return load_backbone(name, head)
        except AssetError as error:
            pytest.skip(str(error))

    return load


REVIEWS = [("a joy from start to finish", 1), ("a tedious , lifeless mess", 0), ("warm , funny and moving", 1)]
EXAMPLES = [Example({"text": text}, label) for text, label in REVIEWS]
SENTIMENT = Verbalizer.from_labels(["negative", "positive"])


def test_the_masked_model_loads_every_weight_and_fills_masks(demo):
    backbone = demo("demo:bert-tiny-mlm")
    assert backbone.head_kind is HeadKind.MASKED
    # Legacy LayerNorm names (gamma, beta) must have been found: a fresh LayerNorm is all ones and zeros.
    norm = backbone.model.bert.embeddings.LayerNorm
    assert not torch.equal(norm.weight, torch.ones_like(norm.weight))
    tokenizer = backbone.tokenizer
    text = tokenizer("the capital of france is [MASK] .", return_tensors="pt")
    slot = (text["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
    assert backbone.model(**text).logits[0, slot].softmax(-1).max() > 0.01


def test_a_checkpoint_without_a_language_head_is_not_given_a_random_one(demo):
    demo("demo:minilm")
    with pytest.raises(BackboneError, match="has no masked head"):
        load_backbone("demo:minilm", "masked")


def test_the_sentence_encoder_pools_as_its_folder_says(demo):
    backbone = demo("demo:minilm")
    assert backbone.pooling is Pooling.MEAN
    task = Task(Template("{prompt}{text}"), SENTIMENT)
    with torch.no_grad():
        found = backbone.features(backbone.context(EXAMPLES, task), HardPrompt(()))
        batch = backbone.tokenizer([text for text, _ in REVIEWS], padding=True, return_tensors="pt")
        hidden = backbone.model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    assert torch.allclose(found, (hidden * mask).sum(1) / mask.sum(1), atol=1e-5)


def test_the_causal_model_answers_as_its_plain_forward_does(demo):
    backbone = demo("demo:smollm2-135m")
    assert backbone.head_kind is HeadKind.CAUSAL
    context = backbone.context(EXAMPLES, Task(Template("Review: {text}{prompt}\nSentiment:{mask}"), SENTIMENT))
    with torch.no_grad():
        found = backbone.class_logits(context, HardPrompt(()))
        for row, (text, label) in enumerate(REVIEWS):
            ids = backbone.tokenizer(f"Review: {text}\nSentiment:", return_tensors="pt")["input_ids"]
            logits = backbone.model(ids).logits[0, -1]
            plain = torch.stack([logits[backbone.tokenizer(f" {w}")["input_ids"][0]] for w in SENTIMENT.labels])
            assert torch.allclose(found[row], plain, atol=1e-3)
            assert found[row].argmax() == label


def test_a_converted_model_carries_checksums(demo):
    demo("demo:smollm2-135m")
    folder = assets.model_folder("demo:smollm2-135m")
    recorded = json.loads((folder / assets.CHECKSUMS).read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(recorded)


@pytest.mark.slow
def test_the_file_given_by_its_path_is_the_demo_model(demo, tmp_path):
    backbone = demo("demo:smollm2-135m")
    source = assets._place("demo:smollm2-135m")
    path = tmp_path / "renamed.gguf"
    path.symlink_to(source)
    given = load_backbone(path)
    # As before GGUF files could be given by path: artifacts of then still load.
    line = f"{source.name} {hashlib.sha256(source.read_bytes()).hexdigest()}\n"
    fingerprints = {one.fingerprint() for one in (backbone, given, load_backbone(assets.model_folder(str(path))))}
    assert fingerprints == {hashlib.sha256(line.encode()).hexdigest()}
    read = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(**read)("a joy from start to finish", return_tensors="pt")["input_ids"]
    assert torch.equal(given.tokenizer("a joy from start to finish", return_tensors="pt")["input_ids"], ids)
    with torch.no_grad():
        assert torch.equal(given.model(ids).logits, model(ids).logits)
    task = Task(Template("Review: {text}{prompt}\nSentiment:{mask}"), SENTIMENT)
    logits = [one.class_logits(one.context(EXAMPLES, task), HardPrompt(())) for one in (backbone, given)]
    assert torch.equal(*logits)


def few(name, count):
    path = DATA / "fewshot" / name / "seed-13" / "train.jsonl"
    if not path.is_file():
        pytest.skip(f"benchmark data is not at {DATA} (set CUECRAFT_DATA)")
    records = read_records(path)
    rows = [r for label in sorted({r.label for r in records}) for r in [r for r in records if r.label == label][:count]]
    return [r.fields["text"] for r in rows], [r.label for r in rows]


@pytest.mark.parametrize("model", ["demo:bert-tiny-mlm", "demo:minilm"])
@pytest.mark.parametrize("task", ["sst-2", "agnews", "trec"])
def test_hybrid_works_on_encoders_and_every_task(demo, model, task):
    demo(model)
    options = {"search.steps": 1, "search.candidates": 3, "tune.epochs": 2}
    texts, labels = few(task, 4)
    classifier = PromptClassifier(model, "hybrid", method_options=options).fit(texts, labels)
    assert classifier.predict_proba(texts[:3]).shape == (3, len(set(labels)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt-tuning", "deep-cue"])
@pytest.mark.parametrize("task", ["sst-2", "agnews", "trec"])
def test_continuous_methods_learn_on_the_causal_model(demo, task, method):
    demo("demo:smollm2-135m")
    texts, labels = few(task, 8)
    classifier = PromptClassifier(method=method, method_options={"epochs": 10}).fit(texts, labels)
    steps = [event["train_loss"] for event in classifier.trace_ if event["phase"] == method]
    assert steps[-1] < 0.8 * steps[0]


@pytest.mark.slow
@torch.no_grad()
def test_fast_paths_equal_the_plain_forward_on_the_causal_model(demo):
    backbone = demo("demo:smollm2-135m")
    context = backbone.context(EXAMPLES, Task(Template("Review: {text}{prompt}\nSentiment:{mask}"), SENTIMENT))
    cue = tuple(backbone.tokenizer(" In short", add_special_tokens=False)["input_ids"])
    offsets = torch.randn(30, len(cue), 576, generator=torch.Generator().manual_seed(0)) * 0.01
    assert torch.allclose(
        backbone.class_logits(context, DeepCue(HardPrompt(cue), offsets)).double(),
        plain_class_logits(backbone, context, cue, offsets),
        atol=1e-4,
    )
    still = DeepCue(HardPrompt(cue), torch.zeros_like(offsets))
    assert torch.equal(backbone.class_logits(context, still), backbone.class_logits(context, HardPrompt(cue)))
    swaps = [(position, token) for position in range(len(cue)) for token in (1000, 2000)]
    plain = [plain_class_logits(backbone, context, HardPrompt(cue).swapped(*swap).token_ids) for swap in swaps]
    found = backbone.score_swaps(context, HardPrompt(cue), swaps)
    assert torch.allclose(found.double(), torch.stack(plain), atol=1e-4)
