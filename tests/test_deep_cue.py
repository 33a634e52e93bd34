"""Deep cues against plain forward passes with hooks of their own, on every family of backbone."""

import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AlbertConfig, AlbertForMaskedLM

from conftest import LM_TEMPLATE, make_causal, make_examples, make_masked, make_task, tiny_problem
from cuecraft.artifact import DeepCue, HardPrompt, SoftPrompt, load_artifact
from cuecraft.backbone import ClassHead, load_backbone
from cuecraft.backbone.hooks import layer_list
from cuecraft.core.errors import BackboneError, PromptError
from cuecraft.methods import make_method
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.problem import CalibrationKind, Selection, score
from cuecraft.methods.untuned import starting_point
from oracles import own_layers, plain_class_logits

CUE = (300, 301, 302)


def random_offsets(length=3, dtype=torch.float32):
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(3), dtype=dtype) * 0.3


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def decoder(request, byte_tokenizer):
    return load_backbone((make_causal(byte_tokenizer, request.param), byte_tokenizer))


@pytest.mark.parametrize(
    "template", [LM_TEMPLATE, "Review: {text}{prompt}\nSentiment:{mask}", "{prompt}{text}\nSentiment:{mask}"]
)
@pytest.mark.parametrize("words", [None, {"negative": ["never good", "bad"], "positive": ["bright and warm"]}])
@torch.no_grad()
def test_causal_logits_equal_the_plain_forward_with_hooks(decoder, template, words):
    context = decoder.context(make_examples(), make_task(template, words))
    offsets = random_offsets()
    found = decoder.class_logits(context, DeepCue(HardPrompt(CUE), offsets))
    plain = plain_class_logits(decoder, context, CUE, offsets)
    assert torch.allclose(found.double(), plain, atol=1e-4)
    assert not torch.allclose(plain, plain_class_logits(decoder, context, CUE), atol=1e-2)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@torch.no_grad()
def test_masked_logits_equal_the_plain_forward_with_hooks(kind, word_tokenizer):
    backbone = load_backbone((make_masked(word_tokenizer, kind), word_tokenizer))
    context = backbone.context(make_examples(), make_task("{text}{prompt}{mask}."))
    cue, offsets = (20, 21, 22), random_offsets()
    found = backbone.class_logits(context, DeepCue(HardPrompt(cue), offsets))
    columns = [words[0][0] for words in context.renderer.label_ids]
    for row, piece in enumerate(context.pieces):
        ids, start = [*piece.before, *cue, *piece.after], len(piece.before)
        handles = []
        for layer, offset in zip(own_layers(backbone.model), offsets, strict=True):

            def hook(module, args, offset=offset, start=start):
                hidden = args[0].clone()
                hidden[:, start : start + 3] += offset
                return (hidden, *args[1:])

            handles.append(layer.register_forward_pre_hook(hook))
        logits = backbone.model(torch.tensor([ids])).logits[0, piece.answer + 3, columns]
        for handle in handles:
            handle.remove()
        assert torch.allclose(found[row], logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
@torch.no_grad()
def test_zero_offsets_are_the_base_exactly(kind, request):
    backbone = request.getfixturevalue(kind)
    head = ClassHead(torch.randn(2, 32), torch.zeros(2)) if kind == "sequence" else None
    context = backbone.context(make_examples(), make_task("{prompt}{text}" if head else LM_TEMPLATE))
    for base in (HardPrompt((20, 21), head), SoftPrompt(torch.randn(2, 32) * 0.3, head)):
        deep = DeepCue(base, torch.zeros(2, 2, 32))
        assert torch.equal(backbone.class_logits(context, deep), backbone.class_logits(context, base))
        moved = DeepCue(base, random_offsets(2))
        assert not torch.allclose(backbone.class_logits(context, moved), backbone.class_logits(context, base))


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_gradient_agrees_with_finite_differences(kind, byte_tokenizer, word_tokenizer):
    if kind == "causal":
        backbone = load_backbone((make_causal(byte_tokenizer, "gpt2").double(), byte_tokenizer))
    else:
        backbone = load_backbone((make_masked(word_tokenizer).double(), word_tokenizer))
    context = backbone.context(make_examples(), make_task())
    offsets = random_offsets(dtype=torch.double).requires_grad_()
    direction = torch.randn(2, 3, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def loss(at):
        return backbone.class_logits(context, DeepCue(HardPrompt((30, 31, 32)), at)).log_softmax(-1)[:, 0].mean()

    loss(offsets).backward()
    assert (offsets.grad.abs().sum(-1) > 0).all(), "an offset of some layer or position moves nothing"
    step = 1e-5
    with torch.no_grad():
        slope = (loss(offsets + step * direction) - loss(offsets - step * direction)) / (2 * step)
    assert torch.allclose((offsets.grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_prompts_of_all_kinds_share_a_pass(causal, labelled):
    prompts = [
        DeepCue(HardPrompt(CUE), random_offsets()),
        HardPrompt(CUE),
        DeepCue(SoftPrompt(torch.randn(2, 32) * 0.3), random_offsets(2)),
        SoftPrompt(torch.randn(4, 32) * 0.3),
    ]
    together = causal.class_logits_many(labelled.context, prompts)
    alone = torch.stack([causal.class_logits(labelled.context, prompt) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "masked"])
@torch.no_grad()
def test_swapping_a_word_keeps_the_offsets_of_its_place(kind, request):
    backbone = request.getfixturevalue(kind)
    context = backbone.context(make_examples(), make_task())
    base, offsets = HardPrompt((30, 31, 32)), random_offsets()
    found = backbone.score_swaps(context, DeepCue(base, offsets), [(1, 40), (2, 41)])
    alone = [backbone.class_logits(context, DeepCue(base.swapped(*swap), offsets)) for swap in ((1, 40), (2, 41))]
    assert torch.allclose(found, torch.stack(alone), atol=1e-4)


def test_offsets_of_another_shape_are_refused(causal, labelled):
    for shape in ((3, 3, 32), (2, 4, 32), (2, 3, 31)):
        with pytest.raises(PromptError, match="another backbone"):
            causal.class_logits(labelled.context, DeepCue(HardPrompt(CUE), torch.zeros(shape)))


def test_a_model_whose_layers_share_weights_is_refused_in_one_line(word_tokenizer):
    config = AlbertConfig(
        vocab_size=len(word_tokenizer),
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
    )
    backbone = load_backbone((AlbertForMaskedLM(config), word_tokenizer))
    with pytest.raises(BackboneError, match="no list of its layers"):
        make_method("deep-cue", {"epochs": 1}).fit(tiny_problem(backbone))


def test_the_layers_are_no_other_list_of_their_length(causal):
    """Norms of each layer before them, or as many experts within each of them."""
    layers = layer_list(causal.model, "")
    base = torch.nn.Module()
    base.norms = torch.nn.ModuleList(torch.nn.LayerNorm(8) for _ in layers)
    for layer in layers:
        layer.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in layers)
    try:
        base.blocks = torch.nn.ModuleList(layers)
        base.tower = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in layers)
        assert layer_list(SimpleNamespace(config=causal.model.config, base_model=base), "") == layers
    finally:
        for layer in layers:
            del layer.experts


def test_layers_that_offsets_do_not_reach_are_refused(byte_tokenizer):
    """As where each layer was compiled: what runs is an attribute of the module, and no method of its class."""
    model = make_causal(byte_tokenizer)
    for layer in model.model.layers:
        layer.forward = partial(type(layer).forward, layer)
    backbone = load_backbone((model, byte_tokenizer))
    with pytest.raises(BackboneError, match=r"offsets do not reach the layers .* use another method"):
        make_method("deep-cue", {"epochs": 1}).fit(tiny_problem(backbone))
    assert make_method("prompt-tuning", {"epochs": 1}).fit(tiny_problem(backbone)).trace


@torch.no_grad()
def test_a_users_own_pass_in_another_thread_is_left_alone(causal):
    from cuecraft.backbone.hooks import passing

    ids = torch.tensor([[5, 6, 7]])
    plain = causal.model(ids).logits
    found = []

    def ask():
        with torch.no_grad():
            found.append(causal.model(ids).logits)

    with passing(change=lambda layer, hidden: hidden + 1):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert not torch.allclose(causal.model(ids).logits, plain)
    assert torch.equal(found[0], plain)
    assert torch.equal(causal.model(ids).logits, plain)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_step_0_of_training_is_the_hard_prompt(kind, request):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    hard = starting_point(problem, (30, 31, 32), CalibrationKind.FITTED)
    selection = Selection(problem)
    make_method("deep-cue", {"epochs": 1}).refine(problem, hard, selection)
    assert selection.trace[0]["train_loss"] == score(backbone, hard, problem.train).loss


def test_refining_a_deep_cue_goes_on_from_its_offsets(causal):
    problem = tiny_problem(causal)
    start = starting_point(problem, CUE, CalibrationKind.FITTED)
    deep = type(start)(DeepCue(start.prompt, random_offsets()), start.calibration)
    selection = Selection(problem)
    make_method("deep-cue", {"epochs": 1}).refine(problem, deep, selection)
    assert selection.trace[0]["train_loss"] == score(causal, deep, problem.train).loss


def test_a_hybrid_may_end_in_a_deep_cue(causal):
    options = {"search.steps": 2, "search.candidates": 5, "ending": "deep", "deep.epochs": 8}
    options |= {"deep.learning_rate": 0.1}
    outcome = make_method("hybrid", options).fit(tiny_problem(causal))
    words = next(event for event in outcome.trace if event["phase"] == "handover")
    steps = [event for event in outcome.trace if event["phase"] == "deep-cue"]
    assert steps[0]["train_loss"] == words["train_loss"]
    assert steps[-1]["train_loss"] < words["train_loss"]
    assert outcome.words.prompt.token_ids


@pytest.mark.parametrize("soft_base", [False, True], ids=["words", "vectors"])
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_a_saved_deep_cue_gives_the_same_bits(kind, soft_base, request, tmp_path):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    method = make_method("deep-cue", {"epochs": 3, "learning_rate": 0.1, "prompt_length": 3})
    outcome = method.fit(problem)
    head = outcome.best.prompt.head
    base = SoftPrompt(torch.randn(3, 32) * 0.3, head) if soft_base else HardPrompt((30, 31, 32), head)
    candidate = type(outcome.best)(DeepCue(base, random_offsets()), outcome.best.calibration)
    artifact = make_artifact(problem, type(outcome)(outcome.start, candidate, outcome.trace), method)
    artifact.save(tmp_path / "deep")
    loaded = load_artifact(tmp_path / "deep")
    assert loaded.manifest.prompt.kind == "deep"
    assert loaded.prompt.base.kind == base.kind
    context = problem.train.context
    assert torch.equal(backbone.class_logits(context, loaded.prompt), backbone.class_logits(context, candidate.prompt))
