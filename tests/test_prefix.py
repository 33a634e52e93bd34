"""Prefixes (keys and values of every layer) by plain ways."""

import importlib

import pytest
import torch
from transformers import DynamicCache

from architectures import ARCHITECTURES
from conftest import make_examples, make_task
from cuecraft.artifact import HardPrompt, PrefixPrompt
from cuecraft.backbone import Budget
from cuecraft.backbone.weights import LoraSpec, Twin
from cuecraft.core.errors import BackboneError, PromptError
from oracles import plain_class_logits
from tiny_backbones import (
    CAUSAL,
    IDS,
    SHORT,
    WITH_PAST,
    WITHOUT_PAST,
    WORDS,
    assert_close,
    builder,
    random_head,
    random_states,
)

SEVERAL_WORDS = {"negative": ["bad", "awful"], "positive": ["good", "great"]}
SEVERAL_TOKENS = {"negative": ["never good", "bad"], "positive": ["bright and warm"]}


@pytest.fixture(scope="module")
def make(byte_tokenizer, word_tokenizer):
    return builder(byte_tokenizer, word_tokenizer)


def class_scores(logits, label_ids):
    """Return each class's score from logits `[V]` of the whole vocabulary; words of one token."""
    return torch.stack([logits[[ids[0] for ids in words]].double().logsumexp(-1) for words in label_ids])


# Causal, prompt first: the prefix is what the words' own tokens would have left.


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("behind", [0, 1], ids=["no words behind", "a word behind"])
@pytest.mark.parametrize("template", ["{prompt}{text} it is{mask}", "Review:{prompt}{text}{mask}"])
@pytest.mark.parametrize("several_tokens", [False, True], ids=["one token", "several tokens"])
@torch.no_grad()
def test_the_prefix_of_words_is_the_words(name, behind, template, several_tokens, make):
    backbone = make(name)
    # Gemma 2 rescales its logits, and takes words of one token only.
    words = SEVERAL_TOKENS if several_tokens and name != "gemma2" else None
    context = backbone.context(make_examples(SHORT), make_task(template, words))
    before = context.pieces[0].before
    assert len({len(piece.after) for piece in context.pieces}) > 3
    states = backbone.read_states([*before, *IDS])[:, :, :, len(before) : len(before) + len(IDS) - behind]
    kept = states.clone()
    prefix, plain = PrefixPrompt(HardPrompt(IDS[len(IDS) - behind :]), states), HardPrompt(IDS)
    found = backbone.class_logits(context, prefix)
    assert_close(found, backbone.class_logits(context, plain))
    assert_close(backbone.features(context, prefix), backbone.features(context, plain))
    assert_close(found, plain_class_logits(backbone, context, IDS))
    assert torch.equal(states, kept)


def test_one_family_here_has_an_attention_of_its_own(make):
    assert [make(name)._shares_context for name in CAUSAL] == [True, True, True, True, False]


# Causal, prompt last: the prefix stands between the text and the words.


def plain_logits_behind(model, before, states, ids):
    """Return logits `[V]` after a text, a prefix and more ids: one text, no padding, an ordinary cache made by hand."""
    kept = DynamicCache()
    model(input_ids=torch.tensor([before]), use_cache=True, past_key_values=kept)
    joined = DynamicCache()
    for number, (keys, values) in enumerate(states):
        layer = kept.layers[number]
        parts = [torch.cat([own, new[None]], dim=2) for own, new in ((layer.keys, keys), (layer.values, values))]
        joined.update(*parts, number)
    first = len(before) + states.shape[3]
    positions = torch.arange(first, first + len(ids))[None]
    return model(input_ids=torch.tensor([ids]), position_ids=positions, past_key_values=joined).logits[0, -1]


def plain_prefix_logits(backbone, context, states, words):
    rows = [
        plain_logits_behind(backbone.model, piece.before, states, [*words, *piece.after]) for piece in context.pieces
    ]
    return torch.stack([class_scores(row, context.renderer.label_ids) for row in rows])


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("template", ["{text}{prompt}{mask}", "Review: {text}{prompt}\nSentiment:{mask}"])
@torch.no_grad()
def test_a_prefix_behind_the_text_is_a_cache_made_by_hand(name, template, make):
    backbone = make(name, dtype=torch.float64)
    context = backbone.context(make_examples(SHORT), make_task(template, SEVERAL_WORDS))
    states = random_states(backbone, 5)
    expected = plain_prefix_logits(backbone, context, states, IDS)
    assert_close(backbone.class_logits(context, PrefixPrompt(HardPrompt(IDS), states)), expected)
    without = backbone.class_logits(context, HardPrompt(IDS))
    assert float((without - expected).abs().max()) > 0.01


@torch.no_grad()
def test_a_prefix_behind_the_text_needs_no_kept_context(make, monkeypatch):
    """Texts beyond the budget are read in the pass itself, a few at a time."""
    backbone = make("llama")
    prompt = PrefixPrompt(HardPrompt(IDS), random_states(backbone, 3))
    task = make_task("{text}{prompt}{mask}")
    whole = backbone.class_logits(backbone.context(make_examples(SHORT), task), prompt)
    unkept = backbone.context(make_examples(SHORT), task, keep_bytes=0)
    assert all(state is None for state in unkept.states)
    assert_close(backbone.class_logits(unkept, prompt), whole)
    monkeypatch.setattr(backbone, "budget", Budget(tokens=8, bytes=2**30))
    assert_close(backbone.class_logits(unkept, prompt), whole)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_swaps_behind_a_prefix_are_each_right(name, make):
    backbone = make(name)
    context = backbone.context(make_examples(SHORT), make_task("{text}{prompt}{mask}"))
    prompt = PrefixPrompt(HardPrompt(IDS), random_states(backbone, 3))
    swaps = [(position, token) for position in range(len(IDS)) for token in (5, 77, 310)]
    for (position, token), found in zip(swaps, backbone.score_swaps(context, prompt, swaps), strict=True):
        words = prompt.base.swapped(position, token).token_ids
        assert_close(found, plain_prefix_logits(backbone, context, prompt.states, words), 1e-4)


# Encoders: all tokens see the prefix, which takes no position.


def past_of(states):
    past = DynamicCache()
    for number, (keys, values) in enumerate(states):
        past.update(keys[None], values[None], number)
    return past


def output_with_past(backbone, ids, states):
    """The model's own forward over keys and values that it is given; positions as without them."""
    first = backbone.model.config.pad_token_id + 1 if backbone.model.config.model_type == "roberta" else 0
    positions = torch.arange(first, first + len(ids))[None]
    return backbone.model(input_ids=torch.tensor([ids]), position_ids=positions, past_key_values=past_of(states))


def output_with_eager_past(backbone, ids, states, monkeypatch):
    """The model's own forward in which each layer's eager attention is handed further keys and values."""
    model = backbone.model
    module = importlib.import_module(type(model).__module__)
    plain = module.eager_attention_forward
    layers = iter(states)

    def attention(owner, query, key, value, mask, **options):
        keys, values = next(layers)
        key, value = torch.cat([keys[None], key], dim=2), torch.cat([values[None], value], dim=2)
        if mask is not None:
            mask = torch.cat([torch.zeros(*mask.shape[:3], keys.shape[1]), mask], dim=3)
        return plain(owner, query, key, value, mask, **options)

    own = model.config._attn_implementation
    with monkeypatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", attention)
        patch.setattr(model.config, "_attn_implementation", "eager")
        output = model(input_ids=torch.tensor([ids]))
    assert next(layers, None) is None
    assert model.config._attn_implementation == own
    return output


def plain_output(backbone, ids, states, monkeypatch):
    if backbone.model.config.model_type in WITHOUT_PAST:
        return output_with_eager_past(backbone, ids, states, monkeypatch)
    return output_with_past(backbone, ids, states)


@pytest.mark.parametrize("name", [*WITH_PAST, *WITHOUT_PAST])
@pytest.mark.parametrize("template", ["{text}{prompt}{mask}.", "{prompt}{mask}: {text}"])
@torch.no_grad()
def test_a_masked_model_sees_the_prefix_as_its_own_forward_does(name, template, make, monkeypatch):
    backbone = make(name, "masked")
    context = backbone.context(make_examples(SHORT), make_task(template, SEVERAL_WORDS))
    assert len({len(piece) for piece in context.pieces}) > 3
    prompt = PrefixPrompt(HardPrompt(WORDS), random_states(backbone, 5))
    found = backbone.class_logits(context, prompt)
    rows = []
    for piece in context.pieces:
        ids = [*piece.before, *WORDS, *piece.after]
        logits = plain_output(backbone, ids, prompt.states, monkeypatch).logits[0]
        rows.append(class_scores(logits[ids.index(backbone.tokenizer.mask_token_id)], context.renderer.label_ids))
    assert_close(found, torch.stack(rows))
    for row in range(len(context)):
        assert_close(backbone.class_logits(context.select([row]), prompt)[0], found[row])
    without = backbone.class_logits(context, HardPrompt(WORDS))
    assert float((without - found).abs().max()) > 0.01


@torch.no_grad()
def test_a_prefix_is_seen_beyond_a_window_of_local_attention(make, monkeypatch):
    backbone = make("modernbert", "masked", local_attention=8)
    context = backbone.context(make_examples(), make_task("{text}{prompt}{mask}."))
    assert max(map(len, context.pieces)) > 12
    states = random_states(backbone, 5)
    found = backbone.class_logits(context, PrefixPrompt(HardPrompt(WORDS), states))
    for row, piece in enumerate(context.pieces):
        ids = [*piece.before, *WORDS, *piece.after]
        logits = plain_output(backbone, ids, states, monkeypatch).logits[0]
        slot = ids.index(backbone.tokenizer.mask_token_id)
        assert_close(found[row], class_scores(logits[slot], context.renderer.label_ids))


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "llama", "gpt2"])
@torch.no_grad()
def test_pooled_features_see_the_prefix_as_the_models_own_forward_does(name, make, monkeypatch):
    backbone = make(name, "sequence")
    context = backbone.context(make_examples(SHORT), make_task("{prompt}{text}"))
    prompt = PrefixPrompt(HardPrompt(WORDS), random_states(backbone, 4))
    found = backbone.features(context, prompt)
    for row, piece in enumerate(context.pieces):
        ids = [*piece.before, *WORDS, *piece.after]
        hidden = plain_output(backbone, ids, prompt.states, monkeypatch).last_hidden_state[0]
        start = len(piece.before)
        text = torch.cat([hidden[:start], hidden[start + len(WORDS) :]])
        assert_close(found[row], text.mean(0) if ARCHITECTURES[name].is_encoder else hidden[-1])


@pytest.mark.parametrize(("name", "head"), [("bert", "masked"), ("modernbert", "masked"), ("distilbert", "sequence")])
@torch.no_grad()
def test_an_encoders_read_states_are_what_its_layers_make(name, head, make):
    """Keys and values of a text, put before the same text, weigh each token twice: attention stays as it was."""
    backbone = make(name, head)
    ids = [2, *WORDS, 70, 71, 3]
    states = backbone.read_states(ids)
    with pytest.MonkeyPatch.context() as patch:
        doubled = plain_output(backbone, ids, states, patch)
    plain = backbone.model(input_ids=torch.tensor([ids]))
    assert_close(doubled[0], plain[0], 1e-4)


# Gradients


@pytest.mark.parametrize(
    ("name", "head", "template"),
    [
        ("gpt2", "causal", "{text}{prompt: it was}{mask}"),
        ("gpt2", "causal", "{prompt: it was}{text} it is{mask}"),
        ("bert", "masked", "{text}{prompt: it was}{mask}."),
    ],
)
def test_the_gradient_of_a_prefix_is_that_of_finite_differences(name, head, template, make):
    backbone = make(name, head, dtype=torch.float64)
    context = backbone.context(make_examples(SHORT[:3]), make_task(template))
    words = HardPrompt(context.renderer.prompt_ids)
    states = random_states(backbone, 3)
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(states):
        return (backbone.class_logits(context, PrefixPrompt(words, states)) * weights).sum()

    free = states.clone().requires_grad_()
    value(free).backward()
    step = 1e-5
    places = [(layer, part, layer + part, 1 + part, 2 * layer + 3) for layer in range(2) for part in range(2)]
    for place in places:
        moved = []
        for sign in (1, -1):
            other = states.clone()
            other[place] += sign * step
            with torch.no_grad():
                moved.append(float(value(other)))
        difference = (moved[0] - moved[1]) / (2 * step)
        assert abs(difference) > 1e-4
        assert float(free.grad[place]) == pytest.approx(difference, rel=1e-5)


# What does not fit


@pytest.mark.parametrize(("name", "head"), [("llama", "causal"), ("bert", "masked"), ("bert", "sequence")])
@pytest.mark.parametrize(
    "change",
    [
        lambda states: states[:1],
        lambda states: torch.cat([states, states]),
        lambda states: states[:, :1],
        lambda states: states.repeat(1, 1, 2, 1, 1),
        lambda states: states[..., :-1],
        lambda states: states[0],
    ],
    ids=["fewer layers", "more layers", "no values", "more heads", "narrower heads", "four dimensions"],
)
def test_a_prefix_of_another_model_is_refused(name, head, change, make):
    backbone = make(name, head)
    template = "{prompt: it was}{text}" if head == "sequence" else "{text}{prompt: it was}{mask}"
    context = backbone.context(make_examples(SHORT), make_task(template))
    prompt = PrefixPrompt(HardPrompt(WORDS, random_head(backbone)), change(random_states(backbone, 3)))
    with pytest.raises(PromptError, match="made for another backbone"):
        backbone.class_logits(context, prompt)


@torch.no_grad()
def test_a_prefix_next_to_the_answer_of_a_causal_model_is_refused(make):
    backbone = make("llama")
    context = backbone.context(make_examples(SHORT), make_task("{text}{prompt}{mask}"))
    states = random_states(backbone, 3)
    with pytest.raises(PromptError, match=r"nothing stands between the prefix and the answer.*\{prompt:words\}"):
        backbone.class_logits(context, PrefixPrompt(HardPrompt(()), states))
    assert backbone.class_logits(context, PrefixPrompt(HardPrompt(IDS), states)).shape == (len(SHORT), 2)


@pytest.mark.parametrize(("name", "head"), [("llama", "causal"), ("roberta", "masked"), ("bert", "sequence")])
@torch.no_grad()
def test_a_prefix_counts_against_the_positions(name, head, make):
    backbone = make(name, head)
    template = "{prompt}{text}" if head == "sequence" else "{text}{prompt}{mask}"
    context = backbone.context(make_examples(SHORT), make_task(template))
    free = backbone.max_positions - max(map(len, context.pieces)) - len(WORDS)
    words = HardPrompt(WORDS, random_head(backbone))
    assert backbone.class_logits(context, PrefixPrompt(words, random_states(backbone, free))).isfinite().all()
    with pytest.raises(PromptError, match=f"an input of {backbone.max_positions + 1}, but {backbone.max_positions}"):
        backbone.class_logits(context, PrefixPrompt(words, random_states(backbone, free + 1)))


@pytest.mark.parametrize("name", ["albert", "deberta-v2"])
def test_architectures_that_show_no_keys_and_values_say_so(name, make):
    backbone = make(name, "masked")
    with pytest.raises(BackboneError, match="use another method"):
        backbone.states_shape(3)


def test_a_prefix_after_the_text_and_the_weights_are_not_trained_together(make):
    backbone = make("llama")
    context = backbone.context(make_examples(SHORT), make_task("{text}{prompt}{mask}"))
    twin = Twin(backbone, LoraSpec(rank=2), seed=0)
    with pytest.raises(PromptError, match="cannot be trained together"):
        twin.backbone.class_logits(context.unread(), PrefixPrompt(HardPrompt(IDS), random_states(backbone, 3)))
