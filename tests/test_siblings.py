"""Label words normalised over their siblings, by brute force over every word; and where a task is scored so."""

import json
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from architectures import tiny_model
from conftest import TEXTS, examples, make_causal, make_examples, make_task
from cuecraft.artifact import Artifact, Calibration, HardPrompt, SoftPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import load_backbone
from cuecraft.backbone.plan import Prompts
from cuecraft.backbone.query import Query, Rows
from cuecraft.backbone.tree import grow_tree
from cuecraft.core.errors import ExportError, LabelWordError
from cuecraft.data import Record
from cuecraft.export.folding import check_together, fold
from cuecraft.methods.prepare import make_task as task_of_records
from cuecraft.task import Task, Template, Verbalizer
from cuecraft.task.fitting import MOST_BEGINNINGS, beginnings_of
from cuecraft.task.rendering import Pieces
from test_folding import laid_out

CUE = (300, 301, 9)
#: Names that part late ("bad" and "cold" behind "the film is"), go on alone, or begin another one.
NAMES = {
    "bad": ("the film is bad", "awful"),
    "cold": ("the film is cold",),
    "joy": ("joy",),
    "joy of love": ("joy of love and war",),
    "the film": ("the film",),
}
TASK = Task(Template("{text}{prompt: it was}{mask}"), Verbalizer(tuple(NAMES), tuple(NAMES.values())), norm="siblings")


@torch.no_grad()
def by_brute_force(model, ids, options):
    """Log-probabilities `[O]` of options, each step of a word among all tokens with which a word goes on there."""
    words = [word for own in options for word in own]

    def log_p(word):
        total = 0.0
        for n, token in enumerate(word):
            others = sorted({other[n] for other in words if len(other) > n and other[:n] == word[:n]})
            logits = model(torch.tensor([[*ids, *word[:n]]])).logits[0, -1, others].double()
            total = total + logits.log_softmax(-1)[others.index(token)]
        return total

    return torch.stack([torch.stack([log_p(word) for word in own]).logsumexp(0) for own in options])


@st.composite
def tries(draw):
    """Options of words of one to four tokens out of few, none of which begins another."""
    words = draw(st.lists(st.lists(st.sampled_from([7, 8, 9]), min_size=1, max_size=4).map(tuple), unique=True))
    found = [w for w in words if not any(other != w and other[: len(w)] == w for other in words)]
    found = [*found, (10, 7), (11,)]
    cuts = draw(st.lists(st.integers(1, len(found) - 1), min_size=1, unique=True).map(sorted))
    bounds = [0, *cuts, len(found)]
    return tuple(tuple(found[a:b]) for a, b in pairwise(bounds))


@examples(50)
@given(options=tries())
def test_scores_are_those_of_brute_force(causal, options):
    texts = Rows([Pieces((5, 6, 7), ()), Pieces((9,), (12, 13))], [None, None])
    with torch.no_grad():
        for own in (texts.select([0]), texts.select([1])):
            found = causal.read(own, causal.no_prompt(), Query("options", options, "siblings"))[0]
            (piece,) = own.pieces
            plain = by_brute_force(causal.model, [*piece.before, *piece.after], options)
            assert torch.allclose(found[0].double().log_softmax(-1), plain, atol=1e-5)
            assert plain.exp().sum() == pytest.approx(1.0)


def test_only_places_where_words_part_and_the_way_to_them_are_read(causal, monkeypatch):
    options = (((5, 6, 7, 8), (5, 6, 9)), ((10, 11, 12),), ((13,),))
    sizes = []
    plain = causal._forward
    monkeypatch.setattr(causal, "_forward", lambda plan: sizes.append(plan.inputs.shape[1]) or plain(plan))
    text = Rows([Pieces((5, 6), ())], causal._read([(5, 6)]).states())
    cue = causal.placed(HardPrompt(CUE))

    for norm, beginnings in (("siblings", [(5, 6)]), ("row", [(5,), (5, 6), (5, 6, 7), (10,), (10, 11)])):
        sizes.clear()
        causal.read(text, Prompts.of([cue]), Query("options", options, norm))
        assert sizes == [len(CUE) + len(grow_tree(beginnings).codes)]


@pytest.mark.parametrize("kept", [None, 0])
def test_a_name_that_begins_another_ends_with_the_end_of_the_text(causal, kept):
    renderer = causal.renderer(TASK)
    ids = dict(zip(NAMES, renderer.label_ids, strict=True))
    written = {name: causal.tokenizer(f" {name}")["input_ids"] for name in NAMES}
    end = causal.tokenizer.eos_token_id
    assert [ids["joy"], ids["the film"]] == [((*written[name], end),) for name in ("joy", "the film")]
    assert ids["cold"] == (tuple(causal.tokenizer(" the film is cold")["input_ids"]),)
    context = causal.context(make_examples(), TASK, keep_bytes=kept)
    with torch.no_grad():
        found = causal.class_logits(context, HardPrompt(CUE))
    plain = [
        by_brute_force(causal.model, [*p.before, *CUE, *p.after], context.renderer.label_ids) for p in context.pieces
    ]
    assert torch.allclose(found.double().log_softmax(-1), torch.stack(plain), atol=1e-5)


def test_a_name_that_begins_another_ends_with_what_the_template_writes_behind_it(causal):
    task = replace(TASK, template=Template("{text}{prompt: it was}{mask}.\n"))
    ids = dict(zip(NAMES, causal.renderer(task).label_ids, strict=True))
    dot = causal.tokenizer(".")["input_ids"][0]
    assert ids["joy"][0][-1] == dot
    assert ids["bad"][0][-1] != dot


def test_a_name_that_nothing_can_end_is_refused(byte_tokenizer):
    model = make_causal(byte_tokenizer)
    tokenizer = type(byte_tokenizer)(tokenizer_object=byte_tokenizer.backend_tokenizer, pad_token="<pad>")
    backbone = load_backbone((model, tokenizer))
    with pytest.raises(LabelWordError, match="class 'joy' begins one of class 'joy of love'"):
        backbone.renderer(TASK)
    words = {"one": ("joy",), "other": ("joy",)}
    with pytest.raises(LabelWordError, match="stands for both"):
        Verbalizer(tuple(words), tuple(words.values()))


def test_gradients_are_those_of_finite_differences(byte_tokenizer):
    # Llama's norms compute in float32, whose rounding finite differences would see.
    backbone = load_backbone((make_causal(byte_tokenizer, "gpt2").double(), byte_tokenizer))
    context = backbone.context(make_examples(TEXTS[:2]), TASK)
    vectors = (0.3 * torch.randn(2, backbone.hidden_size, generator=torch.Generator().manual_seed(0))).double()

    def values(rows):
        return backbone.class_logits(context, SoftPrompt(rows))

    assert torch.autograd.gradcheck(values, vectors.requires_grad_(), atol=1e-6, fast_mode=True)


def test_a_model_that_rescales_its_logits_takes_words_of_several_tokens(byte_tokenizer):
    model = tiny_model("gemma3", "causal", byte_tokenizer, final_logit_softcapping=3.0)
    backbone = load_backbone((model, byte_tokenizer))
    with torch.no_grad():
        context = backbone.context(make_examples(), TASK)
        found = backbone.class_logits(context, HardPrompt(CUE))
        plain = [by_brute_force(model, [*p.before, *CUE, *p.after], context.renderer.label_ids) for p in context.pieces]
    assert torch.allclose(found.double().log_softmax(-1), torch.stack(plain), atol=1e-5)
    exact = replace(TASK, norm=None, answers=Verbalizer(("a", "b"), (("a joy",), ("the film is cold",))))
    with pytest.raises(LabelWordError, match="one token each"):
        backbone.class_logits(backbone.context(make_examples(), exact), HardPrompt(CUE))


def test_served_bulk_and_exported_answers_are_the_same(causal, tmp_path):
    calibration = Calibration((0.1, -0.2, 0.3, 0.0, 0.2), 0.7)
    made = Artifact.create(
        HardPrompt(CUE), calibration, TASK, causal, method="m", method_options={}, seed=0, metrics={}, data={}
    )
    made.save(tmp_path / "made")
    assert json.loads((tmp_path / "made" / "manifest.json").read_text())["task"]["norm"] == "siblings"
    loaded = load_artifact(tmp_path / "made")
    assert loaded.task == TASK
    predictor = Predictor.of(loaded, causal)
    texts = [text for text, _ in TEXTS]
    found = torch.tensor(predictor.predict_proba(texts))
    renderer = causal.renderer(TASK)
    pieces = renderer.render(make_examples(TEXTS))
    with torch.no_grad():
        plain = torch.stack(
            [by_brute_force(causal.model, [*p.before, *CUE, *p.after], renderer.label_ids) for p in pieces]
        )
        assert torch.allclose(found, calibration.apply(plain).softmax(-1), atol=1e-5)
        ready = causal.ready(HardPrompt(CUE), TASK)
        served = torch.stack(causal.mixed_logits([(ready, piece) for piece in pieces]))
        assert torch.allclose(served.double().log_softmax(-1), plain, atol=1e-5)
        folded = fold(causal, ready, calibration)
        ids, mask = laid_out(renderer.frame(), pieces, is_left=True)
        assert torch.allclose(folded(ids, mask).double(), found, atol=1e-5)
    flat = replace(TASK, answers=Verbalizer(("bad", "joy"), (("awful bore",), ("joy of love",))))
    with pytest.raises(ExportError, match="several tokens"):
        check_together(causal, {"a": causal.ready(HardPrompt(CUE), flat)})


def test_a_manifest_without_it_is_exact_and_has_the_bytes_of_before(causal, tmp_path):
    task = make_task(words={"negative": ("a bore",), "positive": ("a joy", "the film of joy")})
    made = Artifact.create(
        HardPrompt(CUE), Calibration.none(2), task, causal, method="m", method_options={}, seed=0, metrics={}, data={}
    )
    made.save(tmp_path / "made")
    assert "norm" not in json.loads((tmp_path / "made" / "manifest.json").read_text())["task"]
    assert load_artifact(tmp_path / "made").task == task


def many(count):
    """Names of three words each, of which no two begin with the same two."""
    words = "good bad great awful joy bore warm cold dull bright love war".split()
    return [" ".join((*pair, "film")) for pair in product(words, words)][:count]


def test_a_task_of_many_names_is_scored_over_siblings(causal):
    def made(names):
        return task_of_records(causal, [Record({"text": "a film"}, name) for name in names])

    few, more = made(many(20)), made(many(140))
    assert len(beginnings_of(causal.renderer(few).label_ids)) <= MOST_BEGINNINGS
    assert len(beginnings_of(causal.renderer(more).label_ids)) > MOST_BEGINNINGS
    assert (few.norm, more.norm) == (None, "siblings")
    assert made(["joy", "joy of love", "war"]).norm == "siblings"
    assert made(["joy", "war"]).norm is None


def test_a_mask_and_a_class_head_have_no_siblings(masked, sequence):
    for backbone in (masked, sequence):
        task = task_of_records(backbone, [Record({"text": "a film"}, name) for name in ("good", "bad")])
        assert task.norm is None
