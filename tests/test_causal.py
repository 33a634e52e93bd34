"""The context cache and the cue tree against plain forward passes of the model itself."""

from dataclasses import replace

import pytest
import torch

from conftest import TEXTS, make_causal, make_examples, make_task
from cuecraft.artifact import HardPrompt, PrefixPrompt, SoftPrompt
from cuecraft.backbone import Budget, load_backbone
from cuecraft.core.errors import PromptError
from oracles import plain_class_logits
from products import pairwise

TEMPLATES = {
    "cue last": "{text}{prompt: it was}{mask}",
    "cue then words": "Review: {text}{prompt}\nSentiment:{mask}",
    "cue first": "{prompt: it was}{text}\nSentiment:{mask}",
    "cue in the middle": "the film: {text}{prompt} and {text} is{mask}",
}
WORDS = {
    "one token": None,
    "several words": {"negative": ["bad", "awful"], "positive": ["good", "great"]},
    "several tokens": {"negative": ["never good", "bad"], "positive": ["bright and warm"]},
}


MODELS = ("llama", "gpt2", "qwen2")


@pytest.fixture(scope="module", params=MODELS)
def backbone(request, byte_tokenizer):
    return load_backbone((make_causal(byte_tokenizer, request.param), byte_tokenizer))


@pytest.mark.parametrize(*pairwise(backbone=MODELS, template=TEMPLATES, words=WORDS), indirect=["backbone"])
@torch.no_grad()
def test_cached_logits_equal_the_plain_forward(backbone, template, words):
    task = make_task(template, words)
    context = backbone.context(make_examples(), task)
    for cue in (context.renderer.prompt_ids, (300, 301, 302), ()):
        found = backbone.class_logits(context, HardPrompt(cue))
        assert torch.allclose(found.double(), plain_class_logits(backbone, context, cue), atol=1e-4)


@pytest.mark.parametrize(
    *pairwise(backbone=MODELS, template=TEMPLATES, words=WORDS, keep={"kept": None, "read again": 0}),
    indirect=["backbone"],
)
@torch.no_grad()
def test_prompts_over_texts_of_their_own_give_the_plain_logits(backbone, template, words, keep):
    context = backbone.context(make_examples(), make_task(template, words), keep_bytes=keep)
    rows = [[0, 3, 5], [1], [7, 2, 2, 4]]
    parts = [
        (context.select(own), HardPrompt(cue))
        for own, cue in zip(rows, [(300, 301), (300, 302), (303, 301)], strict=True)
    ]
    assert backbone.share_passes(parts)
    for (own, prompt), found in zip(parts, backbone.class_logits_each(parts), strict=True):
        assert torch.allclose(found.double(), plain_class_logits(backbone, own, prompt.token_ids), atol=1e-4)
    none = [(own, HardPrompt(())) for own, _ in parts]
    for (own, _), found in zip(none, backbone.class_logits_each(none), strict=True):
        assert torch.allclose(found.double(), plain_class_logits(backbone, own, ()), atol=1e-4)


@torch.no_grad()
def test_prompts_that_share_no_pass_give_their_own_logits_too(causal, labelled):
    one, other = labelled.context.select([0, 1, 2]), labelled.context.select([3, 4])
    short, long = HardPrompt((300,)), HardPrompt((300, 301))
    states = PrefixPrompt(short, torch.randn(causal.states_shape(2)) * 0.3)
    elsewhere = causal.context(make_examples(), make_task(words=WORDS["several tokens"]))
    for parts in ([(one, short), (other, long)], [(one, states), (other, states)], [(one, short), (elsewhere, short)]):
        assert not causal.share_passes(parts)
        for (context, prompt), found in zip(parts, causal.class_logits_each(parts), strict=True):
            assert torch.equal(found, causal.class_logits(context, prompt))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_of_a_plain_batch_gives_the_same_logits(backbone, byte_tokenizer, side):
    context = backbone.context(make_examples(), make_task())
    cue = context.renderer.prompt_ids
    texts = [[*piece.before, *cue, *piece.after] for piece in context.pieces]
    byte_tokenizer.padding_side = side
    batch = byte_tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = backbone.model(**batch, position_ids=positions).logits
    last = [-1] * len(texts) if side == "left" else [len(text) - 1 for text in texts]
    columns = [words[0][0] for words in context.renderer.label_ids]
    plain = torch.stack([logits[row, at, columns] for row, at in enumerate(last)])
    assert torch.allclose(backbone.class_logits(context, HardPrompt(cue)), plain, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@torch.no_grad()
def test_logits_do_not_depend_on_the_batch(causal, labelled, size, monkeypatch):
    prompt = HardPrompt((300, 301))
    whole = causal.class_logits(labelled.context, prompt)
    parts = [causal.class_logits(part.context, prompt) for part in labelled.chunks(size)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
    monkeypatch.setattr(causal, "budget", Budget(tokens=2 * size, bytes=2**30))
    fresh = causal.context(make_examples(), make_task())
    assert torch.allclose(causal.class_logits(fresh, prompt), whole, atol=1e-5)


@torch.no_grad()
def test_texts_beyond_the_byte_budget_are_read_again(causal, labelled):
    prompt = HardPrompt((300, 301))
    whole = causal.class_logits(labelled.context, prompt)
    one = labelled.context.states[0].nbytes
    for budget in (0, one, 3 * one):
        context = causal.context(make_examples(), make_task(), keep_bytes=budget)
        assert any(state is None for state in context.states)
        assert torch.allclose(causal.class_logits(context, prompt), whole, atol=1e-5)


@pytest.mark.parametrize(
    *pairwise(backbone=MODELS, template=TEMPLATES, words=WORDS, tree={"text at the root": 384, "text as context": 1}),
    indirect=["backbone"],
)
@torch.no_grad()
def test_texts_that_are_not_kept_give_the_plain_logits(backbone, template, words, tree, monkeypatch):
    monkeypatch.setattr(backbone, "budget", replace(backbone.budget, tree=tree))
    context = backbone.context(make_examples(), make_task(template, words), keep_bytes=0)
    cues = [(300, 301, 302), (300, 9), ()]
    found = backbone.class_logits_many(context, [HardPrompt(cue) for cue in cues])
    for cue, logits in zip(cues, found, strict=True):
        assert torch.allclose(logits.double(), plain_class_logits(backbone, context, cue), atol=1e-4)


@torch.no_grad()
def test_one_prompt_over_texts_that_are_not_kept_takes_one_pass(causal):
    context = causal.context(make_examples(), make_task(), keep_bytes=0)
    reads, passes = [], []
    handles = [
        causal.model.base_model.register_forward_pre_hook(lambda *_: reads.append(1)),
        causal.model.register_forward_pre_hook(lambda *_: passes.append(1)),
    ]
    causal.class_logits(context, HardPrompt((300,)))
    for handle in handles:
        handle.remove()
    assert len(passes) == len(reads) == 1


def test_identical_texts_share_one_context(causal):
    context = causal.context(make_examples([TEXTS[0], TEXTS[1], TEXTS[0]]), make_task())
    assert context.states[0] is context.states[2]
    assert context.states[0] is not context.states[1]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@torch.no_grad()
def test_packed_candidates_equal_one_pass_each(causal, template, words, monkeypatch):
    context = causal.context(make_examples(), make_task(template, words))
    prompt = HardPrompt((300, 301, 302, 303))
    tokens = [5, 300, 301, 370, 77]
    for nodes in (384, 20):
        monkeypatch.setattr(causal, "budget", replace(causal.budget, tree=nodes))
        for position in range(4):
            packed = causal.score_swaps(context, prompt, [(position, token) for token in tokens])
            alone = [causal.class_logits(context, prompt.swapped(position, token)) for token in tokens]
            assert torch.allclose(packed, torch.stack(alone), atol=1e-4)


@torch.no_grad()
def test_many_prompts_of_mixed_kinds_in_one_pass(causal, labelled):
    prompts = [HardPrompt((300, 301)), HardPrompt(()), SoftPrompt(torch.randn(5, 32) * 0.3), HardPrompt((300, 9))]
    together = causal.class_logits_many(labelled.context, prompts)
    alone = torch.stack([causal.class_logits(labelled.context, prompt) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_pass_leaves_the_context_as_it_was(causal, labelled):
    before = [state.clone() for state in labelled.context.states]
    vectors = torch.randn(3, 32).requires_grad_()
    causal.class_logits(labelled.context, SoftPrompt(vectors)).sum().backward()
    assert vectors.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, labelled.context.states, strict=True))
    assert all(parameter.grad is None for parameter in causal.model.parameters())


def test_a_hard_prompt_and_its_own_vectors_give_the_same_bits(causal, labelled):
    hard = HardPrompt((300, 301, 302))
    soft = SoftPrompt(hard.vectors(causal.embed).clone())
    assert torch.equal(causal.class_logits(labelled.context, hard), causal.class_logits(labelled.context, soft))


def test_gradient_agrees_with_finite_differences_of_the_plain_forward(byte_tokenizer):
    backbone = load_backbone((make_causal(byte_tokenizer, "gpt2").double(), byte_tokenizer))
    context = backbone.context(make_examples(), make_task(words=WORDS["several tokens"]))
    vectors = torch.randn(2, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 0.3
    vectors.requires_grad_()
    direction = torch.randn(2, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def loss(at):
        return backbone.class_logits(context, SoftPrompt(at)).log_softmax(-1)[:, 0].mean()

    loss(vectors).backward()
    step = 1e-5
    with torch.no_grad():
        slope = (loss(vectors + step * direction) - loss(vectors - step * direction)) / (2 * step)
    assert torch.allclose((vectors.grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)


def test_a_cue_longer_than_the_positions_is_refused(causal, labelled):
    with pytest.raises(PromptError, match="128 fit"):
        causal.class_logits(labelled.context, HardPrompt((5,) * 128))


def test_a_prompt_of_another_width_is_refused(causal, labelled):
    with pytest.raises(PromptError, match="another backbone"):
        causal.class_logits(labelled.context, SoftPrompt(torch.zeros(2, 33)))


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@torch.no_grad()
def test_the_ordinary_cache_gives_the_same_logits(backbone, words, monkeypatch):
    """Architectures with attention of their own kind fall back on it."""
    context = backbone.context(make_examples(), make_task(words=words))
    prompt = HardPrompt((300, 301))
    assert backbone._shares_context
    shared = backbone.class_logits(context, prompt)
    monkeypatch.setattr(backbone, "_shares_context", False)
    assert torch.allclose(backbone.class_logits(context, prompt), shared, atol=1e-5)


def test_a_pass_gives_back_the_models_own_attention(causal, labelled):
    own = causal.model.config._attn_implementation
    causal.class_logits(labelled.context, HardPrompt((300,)))
    assert causal.model.config._attn_implementation == own != "cuecraft"


@torch.no_grad()
def test_swaps_at_several_positions_share_a_pass(causal, labelled):
    prompt = HardPrompt((300, 301, 302))
    swaps = [(2, 5), (0, 9), (2, 77), (1, 370)]
    alone = [causal.class_logits(labelled.context, prompt.swapped(*swap)) for swap in swaps]
    calls = []
    handle = causal.model.register_forward_pre_hook(lambda *_: calls.append(1))
    together = causal.score_swaps(labelled.context, prompt, swaps)
    handle.remove()
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)
    assert len(calls) == 1


def test_swaps_outside_of_prompt_or_vocabulary_are_refused(causal, masked, labelled):
    for backbone, context in ((causal, labelled.context), (masked, masked.context(make_examples(), make_task()))):
        for swap in ((2, 5), (-1, 5), (0, backbone.vocab_size), (0, -1)):
            with pytest.raises(PromptError, match="outside"):
                backbone.score_swaps(context, HardPrompt((20, 21)), [swap])
