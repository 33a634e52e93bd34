"""Tokenizers with more tokens than the model has embeddings."""

import copy

import numpy as np
import pytest
import torch

from conftest import LABELS, TEXTS, make_causal, make_masked
from cuecraft import PromptClassifier
from cuecraft.backbone import load_backbone
from cuecraft.backbone.hosted import Bounded
from cuecraft.core.errors import BackboneError, CuecraftError, CuecraftWarning, LabelWordError
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.search.vocabulary import VocabularyOptions, make_vocabulary

ADDED = ["tremendous", "日本"]
PLAIN = "the story is warm and bright"
NEW = "the tremendous 日本 story is tremendous"
X, Y = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]


@pytest.fixture(scope="module")
def masked_pair(word_tokenizer):
    tokenizer = copy.deepcopy(word_tokenizer)
    model = make_masked(tokenizer)
    tokenizer.add_tokens(ADDED)
    return model, tokenizer


@pytest.fixture(scope="module")
def oversized(masked_pair):
    with pytest.warns(CuecraftWarning, match=r"2 tokens more than .* read as \[UNK\], such as 'tremendous'"):
        return load_backbone(masked_pair)


@pytest.fixture(scope="module")
def causal_pair(byte_tokenizer):
    """A causal model whose tokenizer has an unknown token, and tokens after the embeddings end."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    model = make_causal(tokenizer)
    tokenizer.add_tokens(ADDED)
    return model, tokenizer


@pytest.fixture(scope="module")
def oversized_causal(causal_pair):
    with pytest.warns(CuecraftWarning, match="read as <unk>"):
        return load_backbone(causal_pair)


@pytest.mark.parametrize("kind", ["oversized", "oversized_causal"])
def test_a_text_with_such_a_token_is_read_with_the_unknown_token(kind, request):
    backbone = request.getfixturevalue(kind)
    classifier = PromptClassifier(backbone, "zero-shot", label_words={"negative": "bad", "positive": "good"}).fit(X, Y)
    found = classifier.predict_proba([NEW, PLAIN])
    assert np.allclose(found[1], classifier.predict_proba([PLAIN])[0], atol=1e-6)  # its neighbour stays as it was
    ids = classifier.backbone_.renderer(classifier.task_).render(classifier.task_.examples(_records([NEW])))[0]
    tokenizer = classifier.backbone_.tokenizer
    both = [*ids.before, *ids.after]
    assert max(both) < backbone.vocab_size
    assert both.count(tokenizer.unk_token_id) == 3
    ready = backbone.ready(classifier.prompt_, classifier.task_)
    row = ready.renderer.render(classifier.task_.examples(_records([NEW])))[0]
    mixed = classifier.artifact_.calibration.apply(backbone.mixed_logits([(ready, row)])[0]).softmax(-1)
    assert np.allclose(mixed.numpy(), found[0], atol=1e-5)


def _records(texts):
    from cuecraft.data.texts import as_records

    return as_records(texts)


@pytest.mark.parametrize("kind", ["oversized", "oversized_causal"])
def test_label_words_prompts_and_searches_stay_within_the_embeddings(kind, request):
    backbone = request.getfixturevalue(kind)
    words = {"negative": "bad", "positive": "tremendous"}
    with pytest.raises(LabelWordError, match="'tremendous' is not in"):
        PromptClassifier(backbone, "zero-shot", label_words=words).fit(X, Y)
    template = "{text}{prompt: tremendous it was}{mask}"
    words = {"negative": "bad", "positive": "good"}
    fitted = PromptClassifier(
        backbone, "autoprompt", template=template, label_words=words, method_options={"steps": 1, "candidates": 4}
    ).fit([*X, NEW], [*Y, "positive"])
    assert fitted.predict_proba([NEW]).shape == (1, 2)
    for init in ("prefix-tuning", "prompt-tuning"):
        options = {"epochs": 1, "init_text": " tremendous it"}
        options |= {"encoder": "none"} if init == "prefix-tuning" else {}
        PromptClassifier(backbone, init, label_words=words, method_options=options).fit(X, Y)
    problem = _problem(backbone, words)
    assert len(make_vocabulary(backbone, problem.task, VocabularyOptions(whole_words=True)).mask) == backbone.vocab_size
    LabelWordSearch(candidates=4).search(problem)


def _problem(backbone, words):
    from conftest import make_task, records
    from cuecraft.methods.prepare import make_problem

    return make_problem(backbone, make_task("{text}{prompt: it was}{mask}", words), records(TEXTS))


def test_an_exported_graph_reads_such_texts_too(oversized, untraced, tmp_path):
    pytest.importorskip("onnxruntime")
    from cuecraft.export import GraphRequest, export_graph
    from cuecraft.export.runtime import ExportedClassifier

    words = {"negative": "bad", "positive": "good"}
    fitted = PromptClassifier(oversized, "zero-shot", label_words=words).fit(X, Y)
    wanted = GraphRequest("onnx", "fp32", "cut", _records(X), None)
    export_graph({"one": fitted.artifact_}, oversized, tmp_path / "graph", wanted)
    found = ExportedClassifier.load(tmp_path / "graph").predict_proba([NEW, PLAIN])
    assert np.allclose(found, fitted.predict_proba([NEW, PLAIN]), atol=1e-4)


@torch.no_grad()
def test_what_is_traced_for_one_prompt_or_several_takes_ids_without_an_embedding(oversized_causal, causal_pair):
    from cuecraft.export.folding import FoldedSeveral, fold

    words = {"negative": "bad", "positive": "good"}
    fitted = PromptClassifier(oversized_causal, "zero-shot", label_words=words).fit(X, Y)
    ready, calibration = oversized_causal.ready(fitted.prompt_, fitted.task_), fitted.artifact_.calibration
    ids = causal_pair[1](NEW, return_tensors="pt")["input_ids"]  # as `tokenizer.json` gives them
    assert int(ids.max()) >= oversized_causal.vocab_size
    alone = fold(oversized_causal, ready, calibration)(ids, torch.ones_like(ids))
    both = FoldedSeveral(oversized_causal, [(ready, calibration)] * 2)(ids, torch.ones_like(ids), torch.tensor([0, 1]))
    for found in (alone[0], both[0, 0], both[0, 1]):
        assert np.allclose(found.numpy(), fitted.predict_proba([NEW])[0], atol=1e-5)


def test_without_an_unknown_token_the_model_is_refused_when_it_is_loaded(byte_tokenizer, tmp_path):
    model = make_causal(byte_tokenizer)
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_tokens(ADDED)
    with pytest.raises(BackboneError, match=r"such as 'tremendous', and no unknown token .*resize") as caught:
        load_backbone((model, tokenizer))
    assert "\n" not in str(caught.value)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="no unknown token"):
        load_backbone(str(tmp_path))
    model.resize_token_embeddings(len(tokenizer))
    assert not isinstance(load_backbone((model, tokenizer)).tokenizer, Bounded)


def test_special_tokens_without_embedding_matter_where_they_are_written_only(byte_tokenizer):
    """A padding token added to a model without one, as many examples on the web do, is never read here."""
    model = make_causal(byte_tokenizer)
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    fitted = PromptClassifier((model, tokenizer), "zero-shot").fit(X, Y)
    plain = PromptClassifier((model, byte_tokenizer), "zero-shot").fit(X, Y)
    assert np.allclose(fitted.predict_proba(["a [PAD] of joy"]), plain.predict_proba(["a [PAD] of joy"]), atol=1e-6)
    with pytest.raises(CuecraftError, match=r"no embedding for token '\[PAD\]'"):
        PromptClassifier((model, tokenizer), "zero-shot", template="{text}[PAD]{prompt: it was}{mask}").fit(X, Y)


def test_a_mask_without_embedding_is_refused(word_tokenizer):
    model = make_masked(word_tokenizer)
    tokenizer = copy.deepcopy(word_tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<blank>"})
    with pytest.raises(BackboneError, match="'<blank>' among them, which every text needs"):
        load_backbone((model, tokenizer))


def test_the_callers_tokenizer_stays_as_it_is(masked_pair, oversized):
    _, tokenizer = masked_pair
    assert max(tokenizer(NEW)["input_ids"]) >= oversized.vocab_size
    twin = copy.deepcopy(oversized.tokenizer)
    assert max(twin(NEW)["input_ids"]) < oversized.vocab_size
    assert int(twin(NEW, return_tensors="pt")["input_ids"].max()) < oversized.vocab_size
    assert isinstance(twin, type(tokenizer))
    assert torch.equal(*(t(PLAIN, return_tensors="pt")["input_ids"] for t in (tokenizer, twin)))
