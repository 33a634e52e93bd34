"""What passes hold in memory, and what happens when it runs out."""

from dataclasses import replace

import pytest
import torch

from conftest import LM_TEMPLATE, make_examples, make_task
from cuecraft.artifact import DeepCue, HardPrompt, SoftPrompt
from cuecraft.backbone import Budget, columns
from cuecraft.core.errors import BackboneError
from cuecraft.task.batches import padding_share
from oracles import Tensors, saved_bytes

LONG_WORDS = {"negative": ["never good", "bad"], "positive": ["bright and warm"]}


@pytest.mark.parametrize(("kind", "words"), [("causal", None), ("masked", None), ("causal", LONG_WORDS)])
@pytest.mark.parametrize("what", ["class_logits", "many", "swaps", "training"])
def test_no_pass_makes_logits_over_the_vocabulary(kind, words, what, request, monkeypatch):
    backbone = request.getfixturevalue(kind)
    monkeypatch.setattr("cuecraft.backbone.columns._SLICE_NUMBERS", 2000)
    prompt = HardPrompt((30, 31))
    with Tensors() as seen:
        context = backbone.context(make_examples(), make_task(words=words))
        if what == "class_logits":
            backbone.class_logits(context, prompt)
        elif what == "many":
            backbone.class_logits_many(context, [prompt, HardPrompt((30, 32))])
        elif what == "swaps":
            backbone.score_swaps(context, prompt, [(0, 40), (1, 41)])
        else:
            vectors = torch.randn(2, 32).requires_grad_()
            backbone.class_logits(context, SoftPrompt(vectors)).sum().backward()
    assert seen.shapes
    wide = {shape for shape in seen.shapes if backbone.vocab_size in shape}
    # The embedding matrix and its transpose may be seen; nothing else is as wide as the vocabulary.
    assert wide <= {(backbone.vocab_size, 32), (32, backbone.vocab_size)}


@pytest.mark.parametrize("numbers", [1, 50, 10**6])
def test_normalisers_of_slices_are_those_of_the_whole_vocabulary(numbers, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 2, 8), (101, 8), (101,)))
    monkeypatch.setattr(columns, "_SLICE_NUMBERS", numbers)
    found = columns._log_normalisers(hidden, weight, bias)
    assert torch.allclose(found, (hidden @ weight.T + bias).logsumexp(-1), atol=1e-5)


def test_the_watcher_sees_the_logits_of_a_plain_forward(causal):
    with Tensors() as seen:
        causal.model(torch.tensor([[5, 6, 7]]))
    assert (1, 3, causal.vocab_size) in seen.shapes


def long_example(words):
    return make_examples([("joy " * words, 1)])


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_a_training_step_keeps_nothing_that_grows_with_the_text_but_the_context_itself(causal, kind):
    def run(words):
        context = causal.context(long_example(words), make_task(max_tokens=None))
        start = torch.zeros(2, 3, 32) if kind == "deep" else torch.randn(3, 32)
        start.requires_grad_()
        prompt = DeepCue(HardPrompt((30, 31, 32)), start) if kind == "deep" else SoftPrompt(start)
        tokens = len(context.pieces[0].before)
        return tokens, sum(saved_bytes(lambda: causal.class_logits(context, prompt).sum()).values())

    (short, few), (long, many) = run(10), run(90)
    layers, kv_heads, head_dim, heads, nodes, itemsize = 2, 2, 8, 4, 3, 4
    grown = long - short
    context_bytes = grown * layers * 2 * kv_heads * head_dim * itemsize
    # Each node's attention weights over the context: queries' worth, not activations of the text's tokens.
    weights = grown * layers * heads * nodes * itemsize
    assert grown > 60
    assert many - few <= context_bytes + 2 * weights


def out_of_memory_above(limit, backbone, monkeypatch):
    """Let a forward pass of more than `limit` new tokens fail as torch fails; return the sizes that were tried."""
    tried = []
    plain = backbone.model.forward

    def forward(*args, inputs_embeds=None, **kwargs):
        tried.append(inputs_embeds.shape[0] * inputs_embeds.shape[1])
        if tried[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(backbone.model, "forward", forward)
    monkeypatch.setattr(backbone, "budget", Budget(tokens=4096, bytes=2**30))
    return tried


@pytest.mark.parametrize("kind", ["causal", "masked"])
@torch.no_grad()
def test_passes_halve_themselves_when_memory_runs_out(kind, request, monkeypatch):
    backbone = request.getfixturevalue(kind)
    context = backbone.context(make_examples(), make_task())
    prompt, swaps = HardPrompt((30, 31)), [(0, token) for token in range(40, 52)]
    whole = backbone.score_swaps(context, prompt, swaps)
    limit = 30
    tried = out_of_memory_above(limit, backbone, monkeypatch)
    assert torch.allclose(backbone.score_swaps(context, prompt, swaps), whole, atol=1e-4)
    assert max(tried) > limit
    failures = sum(size > limit for size in tried)
    assert failures < 10
    # What was learned holds: the next call fails no more.
    tried.clear()
    backbone.score_swaps(context, prompt, swaps)
    assert max(tried) <= limit


@torch.no_grad()
def test_memory_that_never_suffices_is_said_in_one_line(causal, labelled, monkeypatch):
    out_of_memory_above(0, causal, monkeypatch)
    with pytest.raises(BackboneError, match="memory of cpu ran out"):
        causal.class_logits(labelled.context, HardPrompt((30,)))


@torch.no_grad()
def test_other_errors_pass_through(causal, labelled, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(causal.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        causal.class_logits(labelled.context, HardPrompt((30,)))


@torch.no_grad()
def test_a_byte_budget_makes_smaller_passes_with_the_same_result(causal, labelled, monkeypatch):
    prompt = HardPrompt((300, 301))
    whole = causal.class_logits(labelled.context, prompt)
    rows = []
    handle = causal.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    longest = max(len(piece.before) for piece in labelled.context.pieces)
    one = max(causal._context_bytes(longest), causal._pass_bytes(longest, 2))
    for fit in (1, 2, 8):
        rows.clear()
        monkeypatch.setattr(causal, "budget", replace(causal.budget, bytes=fit * one))
        assert torch.allclose(causal.class_logits(labelled.context, prompt), whole, atol=1e-5)
        assert rows[0] <= fit
    handle.remove()
    assert len(rows) == 1


def test_padding_is_what_brute_force_counts(causal, monkeypatch):
    lengths = [5, 1, 4, 2]
    batches = [[0, 2], [3, 1]]
    assert padding_share((lengths, batches)) == pytest.approx(1 - 12 / (10 + 4))
    assert padding_share((lengths, batches), ([3, 3], [[0, 1]])) == pytest.approx(1 - 18 / (14 + 6))
    assert padding_share(([], [])) == 0
    monkeypatch.setattr(causal, "budget", Budget(tokens=10**6, bytes=2**30))
    context = causal.context(make_examples(), make_task(LM_TEMPLATE))
    sizes = [len(piece.before) for piece in context.pieces]
    assert context.padding == pytest.approx(1 - sum(sizes) / (len(sizes) * max(sizes)))
