"""Masked and sequence backbones against plain forward passes."""

import pytest
import torch

from conftest import LM_TEMPLATE, TEXTS, make_examples, make_masked, make_task
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt
from cuecraft.backbone import Budget, ClassHead, Pooling, load_backbone
from cuecraft.core.errors import PromptError
from tiny_backbones import random_head, random_states

TEMPLATES = ["{text}{prompt: it was}{mask}.", "{prompt: it was}{mask}: {text}", "{mask}{prompt} {text}"]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def backbone(request, word_tokenizer):
    return load_backbone((make_masked(word_tokenizer, request.param), word_tokenizer))


def whole_ids(piece, cue):
    return [*piece.before, *cue, *piece.after]


@pytest.mark.parametrize("template", TEMPLATES)
@torch.no_grad()
def test_class_logits_equal_the_plain_forward(backbone, word_tokenizer, template):
    context = backbone.context(make_examples(), make_task(template))
    for cue in ((20, 21, 22), ()):
        found = backbone.class_logits(context, HardPrompt(cue))
        for row, piece in enumerate(context.pieces):
            ids = whole_ids(piece, cue)
            logits = backbone.model(torch.tensor([ids])).logits[0, ids.index(word_tokenizer.mask_token_id)]
            plain = torch.stack([logits[words[0][0]] for words in context.renderer.label_ids])
            assert torch.allclose(found[row], plain, atol=1e-4)


@torch.no_grad()
def test_a_prediction_does_not_depend_on_batch_mates(masked):
    prompt = HardPrompt((20, 21))
    together = masked.class_logits(masked.context(make_examples(), make_task()), prompt)
    for row, text in enumerate(TEXTS):
        alone = masked.class_logits(masked.context(make_examples([text]), make_task()), prompt)
        assert torch.allclose(alone[0], together[row], atol=1e-5)


@torch.no_grad()
def test_batches_come_back_in_input_order(masked, monkeypatch):
    prompt = HardPrompt((20, 21))
    context = masked.context(make_examples(), make_task())
    whole = masked.class_logits(context, prompt)
    monkeypatch.setattr(masked, "budget", Budget(tokens=30, bytes=2**30))
    assert torch.allclose(masked.class_logits(context, prompt), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["masked", "sequence"])
@torch.no_grad()
def test_candidates_equal_one_pass_each(kind, request):
    backbone = request.getfixturevalue(kind)
    is_masked = kind == "masked"
    context = backbone.context(make_examples(), make_task(TEMPLATES[0] if is_masked else "{prompt}{text}"))
    head = None if is_masked else ClassHead(torch.randn(2, 32), torch.randn(2))
    prompt = HardPrompt((20, 21, 22), head)
    packed = backbone.score_swaps(context, prompt, [(1, token) for token in (9, 30, 41)])
    alone = [backbone.class_logits(context, prompt.swapped(1, token)) for token in (9, 30, 41)]
    assert torch.allclose(packed, torch.stack(alone), atol=1e-5)


@pytest.mark.parametrize("pooling", list(Pooling))
@torch.no_grad()
def test_features_pool_the_plain_forward(sequence, pooling, monkeypatch):
    monkeypatch.setattr(sequence, "pooling", pooling)
    context = sequence.context(make_examples(), make_task("{prompt}{text}"))
    found = sequence.features(context, HardPrompt((20, 21)))
    for row, piece in enumerate(context.pieces):
        hidden = sequence.model(torch.tensor([whole_ids(piece, (20, 21))])).last_hidden_state[0]
        without_cue = torch.cat([hidden[:1], hidden[3:]])  # [CLS], two tuned tokens, the text
        plain = {Pooling.MEAN: without_cue.mean(0), Pooling.CLS: hidden[0], Pooling.LAST: hidden[-1]}[pooling]
        assert torch.allclose(found[row], plain, atol=1e-5)


@torch.no_grad()
def test_a_sequence_backbone_reads_out_through_the_prompts_head(sequence):
    head = ClassHead(torch.randn(2, 32), torch.randn(2))
    context = sequence.context(make_examples(), make_task("{prompt}{text}"))
    prompt = SoftPrompt(torch.randn(3, 32) * 0.2, head)
    expected = sequence.features(context, prompt) @ head.weight.T + head.bias
    assert torch.allclose(sequence.class_logits(context, prompt), expected, atol=1e-5)
    with pytest.raises(PromptError, match="class head"):
        sequence.class_logits(context, HardPrompt((20,)))


@pytest.mark.parametrize("kind", ["masked", "sequence"])
def test_gradients_reach_the_prompt_and_nothing_frozen(kind, request):
    backbone = request.getfixturevalue(kind)
    template = TEMPLATES[0] if kind == "masked" else "{prompt}{text}"
    head = None if kind == "masked" else ClassHead(torch.randn(2, 32, requires_grad=True), torch.zeros(2))
    vectors = torch.randn(3, 32).requires_grad_()
    context = backbone.context(make_examples(), make_task(template))
    backbone.class_logits(context, SoftPrompt(vectors, head))[:, 0].sum().backward()
    assert (vectors.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize("kind", ["masked", "sequence"])
def test_prompts_over_texts_of_their_own_share_passes_and_give_what_each_gives_alone(kind, request, monkeypatch):
    """Cues of several lengths, with offsets and without, heads of their own: logits and gradients of each alone."""
    backbone = request.getfixturevalue(kind)
    task = make_task("{prompt}{text}" if kind == "sequence" else LM_TEMPLATE)
    context = backbone.context(make_examples(), task)
    offsets = [torch.zeros(backbone.offsets_shape(size)).normal_().requires_grad_() for size in (3, 2)]
    heads = [random_head(backbone, seed) if kind == "sequence" else None for seed in range(3)]
    prompts = [
        DeepCue(HardPrompt((20, 21, 22), heads[0]), offsets[0]),
        DeepCue(HardPrompt((23, 24), heads[1]), offsets[1]),
        HardPrompt((25,), heads[2]),
    ]
    parts = list(zip([context.select(rows) for rows in ([0, 1, 2], [3, 4], [5, 6, 7])], prompts, strict=True))
    assert backbone.share_passes(parts)
    passes = []
    run = type(backbone).run
    monkeypatch.setattr(type(backbone), "run", lambda own, *asked: passes.append(1) or run(own, *asked))
    found = backbone.class_logits_each(parts)
    assert len(passes) == 1
    alone = [backbone.class_logits(own, prompt) for own, prompt in parts]
    for one, other in zip(found, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    shared, apart = (
        torch.autograd.grad(sum(own.square().sum() for own in logits), offsets) for logits in (found, alone)
    )
    for one, other in zip(shared, apart, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    prefix = PrefixPrompt(HardPrompt((25,), heads[2]), random_states(backbone, 2))
    assert not backbone.share_passes([*parts, (context, prefix)])
