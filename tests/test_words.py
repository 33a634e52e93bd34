"""Next words and likelihoods of cues, against plain forward passes over the whole vocabulary, one input at a time."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from architectures import tiny_model
from conftest import TEXTS, examples, make_causal, make_examples, make_masked, make_task
from cuecraft.artifact import HardPrompt, SoftPrompt
from cuecraft.backbone import Budget, load_backbone
from cuecraft.backbone.likelihood import cue_log_likelihood, next_word_log_probabilities
from cuecraft.backbone.tree import grow_tree, tree_groups
from cuecraft.core.errors import BackboneError, PromptError

CUES = [(300, 301, 302), (300, 301, 9), (300, 7), (5,), (300, 301, 302), (360, 300, 301, 302)]
TOLERANCE = {"atol": 1e-4}  # nats, float32 beside float64


def log_p(model, ids):
    """Log-probabilities `[L, V]` after each token of one input, in float64."""
    return model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def plain_likelihood(model, before, cue):
    found = log_p(model, [*before, *cue])
    first = 0 if before else 1
    rows = [float(found[len(before) + n - 1, cue[n]]) for n in range(first, len(cue))]
    return sum(rows) / len(rows)


def plain_pseudo_likelihood(model, before, cue, after, mask):
    total = 0.0
    for n, token in enumerate(cue):
        masked = [*before, *cue[:n], mask, *cue[n + 1 :], *after]
        total += float(log_p(model, masked)[len(before) + n, token])
    return total / len(cue)


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3", "gemma3"])
def decoder(request, byte_tokenizer):
    return load_backbone((tiny_model(request.param, "causal", byte_tokenizer), byte_tokenizer))


@pytest.fixture(scope="module", params=["bert", "electra", "roberta"])
def encoder(request, word_tokenizer):
    if request.param == "roberta":
        return load_backbone((make_masked(word_tokenizer, "roberta"), word_tokenizer))
    return load_backbone((tiny_model(request.param, "masked", word_tokenizer), word_tokenizer))


@pytest.fixture(scope="module")
def begun_tokenizer(byte_tokenizer):
    """The byte tokenizer, with a start token before each text."""
    raw = type(byte_tokenizer.backend_tokenizer).from_str(byte_tokenizer.backend_tokenizer.to_str())
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    "template", ["{text}{prompt}{mask}", "{prompt}{text} it{mask}", "{text}{prompt}\nit was{mask}"]
)
@pytest.mark.parametrize("keep", [None, 0])
@torch.no_grad()
def test_next_words_of_a_causal_model_are_the_plain_ones(decoder, template, keep):
    context = decoder.context(make_examples(), make_task(template), keep_bytes=keep)
    for cue in [(300, 301, 302), ()]:
        found = next_word_log_probabilities(decoder, context, HardPrompt(cue))
        plain = [log_p(decoder.model, [*p.before, *cue, *p.after])[-1] for p in context.pieces]
        assert found.dtype == torch.float32
        assert found.shape == (len(TEXTS), decoder.vocab_size)
        assert torch.allclose(found.double(), torch.stack(plain), **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_next_words_are_those_of_a_padded_batch_on_either_side(decoder, byte_tokenizer, side):
    context = decoder.context(make_examples(), make_task())
    cue = context.renderer.prompt_ids
    texts = [[*piece.before, *cue, *piece.after] for piece in context.pieces]
    byte_tokenizer.padding_side = side
    batch = byte_tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = decoder.model(**batch, position_ids=positions).logits
    last = [-1] * len(texts) if side == "left" else [len(text) - 1 for text in texts]
    plain = torch.stack([logits[row, at] for row, at in enumerate(last)]).log_softmax(-1)
    assert torch.allclose(next_word_log_probabilities(decoder, context, HardPrompt(cue)), plain, **TOLERANCE)


@pytest.mark.parametrize("template", ["{text}{prompt: it was}{mask}.", "it was{mask}{prompt: and}: {text}"])
@torch.no_grad()
def test_next_words_of_a_masked_model_are_those_at_its_mask(encoder, template):
    context = encoder.context(make_examples(), make_task(template))
    mask = encoder.tokenizer.mask_token_id
    for cue in [context.renderer.prompt_ids, ()]:
        found = next_word_log_probabilities(encoder, context, HardPrompt(cue))
        inputs = [[*p.before, *cue, *p.after] for p in context.pieces]
        plain = [log_p(encoder.model, ids)[ids.index(mask)] for ids in inputs]
        assert torch.allclose(found.double(), torch.stack(plain), **TOLERANCE)


@torch.no_grad()
def test_a_model_that_rescales_its_logits_keeps_its_own_scale(byte_tokenizer):
    model = tiny_model("gemma3", "causal", byte_tokenizer, final_logit_softcapping=3.0)
    backbone = load_backbone((model, byte_tokenizer))
    context = backbone.context(make_examples(), make_task())
    found = next_word_log_probabilities(backbone, context, HardPrompt((300,)))
    plain = torch.stack([log_p(model, [*p.before, 300])[-1] for p in context.pieces])
    assert torch.allclose(found.double(), plain, **TOLERANCE)
    assert float(plain.max() - plain.min()) <= 6.0 + 1e-6, "nothing was capped, so this test shows nothing"
    likelihood = cue_log_likelihood(backbone, [(300, 301)], context)
    wanted = [plain_likelihood(model, p.before, (300, 301)) for p in context.pieces]
    assert float(likelihood) == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)


@pytest.mark.parametrize("keep", [None, 0])
@torch.no_grad()
def test_the_likelihood_of_a_cue_after_texts_is_the_plain_one(decoder, keep):
    context = decoder.context(make_examples(), make_task("{text}{prompt}\nit was{mask}"), keep_bytes=keep)
    found = cue_log_likelihood(decoder, CUES, context)
    plain = [[plain_likelihood(decoder.model, p.before, cue) for p in context.pieces] for cue in CUES]
    assert torch.allclose(found.double(), torch.tensor(plain).double().mean(1), **TOLERANCE)
    assert found[0] == found[4]


@torch.no_grad()
def test_a_cue_with_nothing_before_it_is_rated_from_its_second_token(decoder):
    cues = [cue for cue in CUES if len(cue) > 1]
    plain = torch.tensor([plain_likelihood(decoder.model, (), cue) for cue in cues])
    assert torch.allclose(cue_log_likelihood(decoder, cues), plain, **TOLERANCE)
    first = decoder.context(make_examples(), make_task("{prompt}{text} it{mask}"))
    assert torch.allclose(cue_log_likelihood(decoder, cues, first), plain, **TOLERANCE)
    with pytest.raises(PromptError, match="one token"):
        cue_log_likelihood(decoder, CUES)


@torch.no_grad()
def test_a_cue_stands_after_the_start_token_where_there_is_one(begun_tokenizer):
    backbone = load_backbone((make_causal(begun_tokenizer), begun_tokenizer))
    plain = [plain_likelihood(backbone.model, (1,), cue) for cue in CUES]
    assert torch.allclose(cue_log_likelihood(backbone, CUES), torch.tensor(plain), **TOLERANCE)


@torch.no_grad()
def test_the_pseudo_likelihood_is_that_of_a_slow_loop(encoder):
    mask = encoder.tokenizer.mask_token_id
    cues = [(30, 31, 32), (30, 31), (40,), (30, 31, 32)]
    alone = [plain_pseudo_likelihood(encoder.model, (2,), cue, (3,), mask) for cue in cues]
    assert encoder.tokenizer("a")["input_ids"][0] == 2
    assert encoder.tokenizer("a")["input_ids"][-1] == 3
    assert torch.allclose(cue_log_likelihood(encoder, cues), torch.tensor(alone), **TOLERANCE)
    context = encoder.context([*make_examples(), make_examples()[0]], make_task("{text}{prompt} it was{mask}."))
    plain = [
        [plain_pseudo_likelihood(encoder.model, p.before, cue, p.after, mask) for p in context.pieces] for cue in cues
    ]
    assert torch.allclose(cue_log_likelihood(encoder, cues, context), torch.tensor(plain).mean(1), **TOLERANCE)


@torch.no_grad()
def test_equal_texts_count_as_often_as_they_come(causal):
    texts = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]]
    context = causal.context(make_examples(texts), make_task())
    plain = [plain_likelihood(causal.model, p.before, CUES[0]) for p in context.pieces]
    assert float(cue_log_likelihood(causal, CUES[:1], context)) == pytest.approx(sum(plain) / 4, abs=1e-4)


@pytest.mark.parametrize("budget", [Budget(tokens=4, bytes=2**30, tree=3), Budget(tokens=4096, bytes=2**14, tree=384)])
@torch.no_grad()
def test_small_budgets_cut_the_passes_and_change_no_number(causal, masked, budget, monkeypatch):
    for backbone, cues in ((causal, CUES), (masked, [(30, 31, 32), (40,)])):
        context = backbone.context(make_examples(), make_task())
        words = next_word_log_probabilities(backbone, context, HardPrompt((9, 10)))
        likelihoods = cue_log_likelihood(backbone, cues, context)
        monkeypatch.setattr(backbone, "budget", budget)
        passes = []
        hook = backbone.model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        assert torch.allclose(next_word_log_probabilities(backbone, context, HardPrompt((9, 10))), words, atol=1e-5)
        assert len(passes) > 1, "the budget cut nothing, so this test shows nothing"
        assert torch.allclose(cue_log_likelihood(backbone, cues, context), likelihoods, atol=1e-5)
        hook.remove()


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_the_vocabulary_is_charged_to_the_budget(head, byte_tokenizer, word_tokenizer, monkeypatch):
    name, tokenizer = ("llama", byte_tokenizer) if head == "causal" else ("bert", word_tokenizer)
    backbone = load_backbone((tiny_model(name, head, tokenizer, vocab_size=20_000), tokenizer))
    context = backbone.context(make_examples(), make_task())
    two_rows = Budget(tokens=4096, bytes=2 * 12 * 20_000 + 2**17)
    monkeypatch.setattr(backbone, "budget", two_rows)
    passes = []
    hook = backbone.model.register_forward_pre_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        backbone.features(context, HardPrompt((9,)))
    assert len(passes) == 1
    next_word_log_probabilities(backbone, context, HardPrompt((9,)))
    hook.remove()
    assert len(passes) == 1 + len(TEXTS) // 2


@torch.no_grad()
def test_soft_prompts_have_next_words_too(causal):
    context = causal.context(make_examples(), make_task())
    words = torch.tensor([300, 301])
    soft = next_word_log_probabilities(causal, context, SoftPrompt(causal.embed(words)))
    assert torch.allclose(soft, next_word_log_probabilities(causal, context, HardPrompt((300, 301))), atol=1e-6)


def test_no_gradient_is_kept(causal):
    context = causal.context(make_examples(), make_task())
    soft = SoftPrompt(causal.embed(torch.tensor([300])).clone().requires_grad_())
    assert not next_word_log_probabilities(causal, context, soft).requires_grad


def test_a_model_without_a_language_head_is_refused(sequence):
    context = sequence.context(make_examples(), make_task("{prompt}{text}"))
    for ask in (
        lambda: next_word_log_probabilities(sequence, context, HardPrompt(())),
        lambda: cue_log_likelihood(sequence, [(9,)]),
    ):
        with pytest.raises(BackboneError, match="no language head"):
            ask()


@pytest.mark.parametrize(("cue", "message"), [((), "empty"), ((100_000,), "outside"), ((9,) * 200, "shorten")])
def test_cues_that_cannot_be_rated_are_refused(causal, masked, cue, message):
    for backbone in (causal, masked):
        context = backbone.context(make_examples(), make_task())
        for where in (None, context):
            with pytest.raises(PromptError, match=message):
                cue_log_likelihood(backbone, [(9, 10), cue], where)


@examples(200)
@given(st.sets(st.tuples(*[st.integers(0, 2)] * 3) | st.tuples(st.integers(0, 2)), min_size=1), st.integers(1, 12))
def test_groups_of_a_tree_hold_all_sequences_within_the_limit(sequences, nodes):
    groups = list(tree_groups(sorted(sequences), nodes))
    assert [sequence for group in groups for sequence in group] == sorted(sequences)
    for group in groups:
        assert len(group) == 1 or len(grow_tree(group).codes) <= nodes
    for one, other in pairwise(groups):
        assert len(grow_tree([*one, other[0]]).codes) > nodes, "a group was closed before it was full"
