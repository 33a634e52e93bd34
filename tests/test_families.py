"""Model families with ways of their own: right, or refused when they are loaded."""

import gc
from dataclasses import replace

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CTRLConfig,
    CTRLLMHeadModel,
    FNetConfig,
    FNetModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from conftest import TEXTS, lively, make_causal, make_examples, make_task, tiny_problem
from cuecraft.artifact import Calibration, DeepCue, HardPrompt
from cuecraft.backbone import Budget, load_backbone
from cuecraft.backbone.budget import is_out_of_memory
from cuecraft.core.errors import BackboneError, CuecraftWarning, DataError
from cuecraft.methods import make_method
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.gradients import loss_gradient
from cuecraft.task import Example
from oracles import plain_class_logits

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def family(name, tokenizer):
    vocab = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "gemma2":
        config = Gemma2Config(**SHAPE, **vocab, head_dim=8, num_key_value_heads=2, sliding_window=64)
        return Gemma2ForCausalLM(config)
    if name == "gpt-neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, **vocab, max_position_embeddings=128))
    if name == "bloom":
        return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, **vocab))
    if name == "opt":
        config = OPTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32, **vocab
        )
        return OPTForCausalLM(config)
    if name == "gpt-neo":
        config = GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=64,
            max_position_embeddings=128,
            **vocab,
        )
        return GPTNeoForCausalLM(config)
    if name == "mpt":
        return MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=128, **vocab))
    if name == "ctrl":
        return CTRLLMHeadModel(CTRLConfig(n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=128, **vocab))
    raise ValueError(name)


@pytest.mark.parametrize("name", ["gemma2", "gpt-neox", "opt", "gpt-neo", "ctrl"])
@pytest.mark.parametrize("template", ["{text}{prompt}{mask}", "{prompt}{text} it is{mask}"])
@torch.no_grad()
def test_families_with_ways_of_their_own_are_right(name, template, byte_tokenizer):
    backbone = load_backbone((lively(family(name, byte_tokenizer)), byte_tokenizer))
    context = backbone.context(make_examples(TEXTS[:6]), make_task(template))
    cue = HardPrompt((300, 301, 302))
    swaps = [(position, token) for position in range(3) for token in (5, 77, 310, 350)]
    found = backbone.score_swaps(context, cue, swaps)
    for swap, logits in zip(swaps, found, strict=True):
        plain = plain_class_logits(backbone, context, cue.swapped(*swap).token_ids)
        assert torch.allclose(logits.double(), plain, atol=1e-4 * float(plain.abs().max()) + 1e-4)


@pytest.mark.parametrize("name", ["mpt", "bloom"])
def test_positions_by_the_number_of_keys_are_refused(name, byte_tokenizer):
    """ALiBi counts keys, padding and other branches included."""
    with pytest.raises(BackboneError, match="does not answer alike"):
        load_backbone((lively(family(name, byte_tokenizer)), byte_tokenizer))


@torch.no_grad()
def test_inputs_stay_below_the_length_where_long_rope_changes(byte_tokenizer):
    factors = [1.0] * 4
    config = Phi3Config(
        **SHAPE,
        vocab_size=len(byte_tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": factors,
            "long_factor": [8.0] * 4,
            "original_max_position_embeddings": 64,
        },
    )
    backbone = load_backbone((lively(Phi3ForCausalLM(config)), byte_tokenizer))
    assert backbone.max_positions == 64
    with pytest.warns(CuecraftWarning, match="1 of 2 texts were cut"):
        context = backbone.context(
            make_examples([("a joy from start " * 30, 1), TEXTS[0]]), make_task("{text}{prompt}{mask}")
        )
    plain = plain_class_logits(backbone, context, (300, 301))
    assert torch.allclose(backbone.class_logits(context, HardPrompt((300, 301))).double(), plain, atol=1e-4)


def test_encoders_that_mind_padding_or_skip_their_head_are_refused(word_tokenizer):
    vocab = {"vocab_size": len(word_tokenizer)}
    fourier = FNetModel(FNetConfig(**SHAPE, **vocab))
    with pytest.raises(BackboneError, match="with and without padding"):
        load_backbone((lively(fourier), word_tokenizer), "sequence")
    config = MobileBertConfig(
        **SHAPE, **vocab, embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32, num_feedforward_networks=1
    )
    with pytest.raises(BackboneError, match="without calling its output embedding"):
        load_backbone((lively(MobileBertForMaskedLM(config)), word_tokenizer))


def test_the_allocators_own_words_are_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_training_takes_fewer_examples_at_a_time_when_memory_runs_out(kind, request, monkeypatch):
    backbone = request.getfixturevalue(kind)
    problem = tiny_problem(backbone)
    candidate = Candidate(HardPrompt((30, 31)), Calibration.none(2))
    whole, gradient = loss_gradient(problem, candidate, problem.train)
    fail_above(2, backbone, monkeypatch)
    found, accumulated = loss_gradient(problem, candidate, problem.train)
    assert found.loss == pytest.approx(whole.loss, abs=1e-6)
    assert torch.allclose(accumulated, gradient, atol=1e-6)
    assert backbone.budget.rows <= 2
    outcome = make_method("deep-cue", {"epochs": 3, "learning_rate": 0.1}).fit(problem)
    assert min(e["train_loss"] for e in outcome.trace) < outcome.trace[0]["train_loss"]


def fail_above(rows, backbone, monkeypatch):
    """Let passes with a gradient fail beyond some rows, in the backward pass, as a GPU may."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, gradient):
            if len(gradient) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return gradient

    plain = backbone.model.forward

    def forward(*args, inputs_embeds=None, **kwargs):
        return plain(*args, inputs_embeds=Fails.apply(inputs_embeds), **kwargs)

    monkeypatch.setattr(backbone.model, "forward", forward)
    monkeypatch.setattr(backbone, "budget", Budget(tokens=4096, bytes=2**30))


def test_kept_bytes_count_all_contexts_in_use(causal, monkeypatch):
    gc.collect()
    before = causal._kept_bytes
    first = causal.context(make_examples(TEXTS[:4]), make_task())
    used = sum(state.nbytes for state in first.states)
    assert causal._kept_bytes == before + used
    monkeypatch.setattr(causal, "context_bytes", before + used + first.states[0].nbytes)
    second = causal.context(make_examples(TEXTS[4:]), make_task())
    assert 0 < sum(state is not None for state in second.states) < 4
    assert causal._kept_bytes <= causal.context_bytes
    del first, second
    gc.collect()
    assert causal._kept_bytes == before


def test_short_texts_are_kept_where_long_ones_do_not_fit(causal):
    context = causal.context(make_examples([("joy " * 50, 1), ("awful", 0)]), make_task())
    sizes = [state.nbytes for state in context.states]
    small = causal.context(make_examples([("joy " * 50, 1), ("awful", 0)]), make_task(), keep_bytes=sizes[1])
    assert [state is not None for state in small.states] == [False, True]


@torch.no_grad()
def test_equal_texts_beyond_the_budget_are_read_once_in_a_pass(causal, monkeypatch):
    context = causal.context(make_examples([TEXTS[0]] * 5), make_task(), keep_bytes=0)
    monkeypatch.setattr(causal, "budget", replace(causal.budget, tree=1))  # no tree holds the texts themselves
    read = []
    plain = causal._read
    monkeypatch.setattr(causal, "_read", lambda texts, opening: read.extend(texts) or plain(texts, opening))
    found = causal.class_logits(context, HardPrompt((300,)))
    assert len(read) == 1
    # Rows of one product are alike to the last bits only: a CPU with AVX-512 computes some of them in another order.
    assert torch.allclose(found, found[:1].expand(5, -1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_long_and_short_tails_share_no_batch(causal, monkeypatch):
    """A prompt before the text: one long text must not make the others long."""
    texts = [("joy", 1)] * 31 + [("a joy from start to finish " * 4, 1)]
    context = causal.context(make_examples(texts), make_task("{prompt}{text}{mask}"))
    monkeypatch.setattr(causal, "budget", replace(causal.budget, tokens=60))
    computed = []
    handle = causal.model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    found = causal.class_logits(context, HardPrompt((300, 301)))
    handle.remove()
    real = sum(len(piece) + 2 for piece in context.pieces)
    assert sum(computed) < 1.2 * real
    assert torch.allclose(found.double(), plain_class_logits(causal, context, (300, 301)), atol=1e-4)
    monkeypatch.setattr(causal, "budget", replace(causal.budget, tokens=10**6, pass_tokens=10**6))
    assert causal.context(make_examples(texts), make_task("{prompt}{text}{mask}")).padding > 0.5


@pytest.mark.parametrize("empty", [0, 1])
def test_a_text_without_tail_among_others_is_refused_wherever_it_stands(causal, empty):
    texts = ["joy", "joy"]
    texts[empty] = ""
    examples = [Example({"title": "a film", "text": text}, 1) for text in texts]
    with pytest.raises(DataError, match=f"text {empty + 1} has no tokens"):
        causal.context(examples, make_task("{title}{prompt}{text}{mask}"))


@torch.no_grad()
def test_a_deep_cue_of_no_tokens_is_no_prompt(causal, labelled):
    none = DeepCue(HardPrompt(()), torch.zeros(2, 0, 32))
    assert torch.equal(
        causal.class_logits(labelled.context, none), causal.class_logits(labelled.context, HardPrompt(()))
    )


@torch.no_grad()
def test_reading_beside_a_pass_of_an_eager_model_keeps_its_causal_mask(byte_tokenizer):
    """A forward of the same modules in another thread has the model's own attention."""
    import threading

    from cuecraft.backbone.attention import attending_to

    model = make_causal(byte_tokenizer)
    backbone = load_backbone((model, byte_tokenizer))
    model = backbone.model
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    plain = model(ids, attention_mask=mask).logits
    found = []

    def ask():
        with torch.no_grad():
            found.append(model(ids, attention_mask=mask).logits)

    past = backbone._read([(5, 6, 7)])
    with attending_to(backbone.model, past.layers):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        backbone.model(input_ids=ids[:1])
    assert torch.allclose(found[0][0], plain[0], atol=1e-5)
    assert torch.allclose(found[0][1, 2:], plain[1, 2:], atol=1e-5)


def test_another_number_type_than_tuned_with_is_warned_of(causal, byte_tokenizer, tmp_path):
    from cuecraft.artifact import load_artifact
    from cuecraft.methods.fit import make_artifact

    problem = tiny_problem(causal)
    method = make_method("zero-shot")
    artifact = make_artifact(problem, method.fit(problem), method)
    artifact.save(tmp_path / "artifact")
    half = load_backbone((make_causal(byte_tokenizer).bfloat16(), byte_tokenizer))
    half._hash = causal.fingerprint()
    with pytest.warns(CuecraftWarning, match="tuned on float32 weights"):
        load_artifact(tmp_path / "artifact").check_backbone(half)
