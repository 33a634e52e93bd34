"""Gradient checkpointing, prompts of several kinds together, and features, by plain ways."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from conftest import make_examples, make_task, tiny_problem
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt
from cuecraft.backbone import ClassHead
from cuecraft.backbone.hooks import gradient_checkpointing
from cuecraft.backbone.weights import LoraSpec, Twin
from cuecraft.methods import make_method
from oracles import own_layers, saved_bytes
from tiny_backbones import (
    CAUSAL,
    IDS,
    MODELS,
    SHORT,
    WITH_PAST,
    WITHOUT_PAST,
    WORDS,
    assert_close,
    builder,
    random_head,
    random_states,
)


@pytest.fixture(scope="module")
def make(byte_tokenizer, word_tokenizer):
    return builder(byte_tokenizer, word_tokenizer)


# Gradient checkpointing


def trained(backbone, kind):
    """Return a backbone, a prompt and the tensors to train, by name."""
    ids = WORDS if backbone.head_kind == "masked" else IDS
    if kind == "lora":
        twin = Twin(backbone, LoraSpec(rank=2), seed=0)
        with torch.no_grad():
            for tensor in twin.trained.values():  # the second factor is zero at first, and hides the other's gradient
                tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(tensor.numel()))
        return twin.backbone, HardPrompt(ids), list(twin.trained.values())
    if kind == "prefix":
        states = random_states(backbone, 3).requires_grad_()
        return backbone, PrefixPrompt(HardPrompt(ids), states), [states]
    if kind == "soft":
        vectors = backbone.embed(torch.tensor(ids)).clone().requires_grad_()
        return backbone, SoftPrompt(vectors), [vectors]
    offsets = torch.full(backbone.offsets_shape(len(ids)), 0.1, requires_grad=True)
    return backbone, DeepCue(HardPrompt(ids), offsets), [offsets]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("name", "head"), MODELS)
@pytest.mark.parametrize("kind", ["prefix", "soft", "deep", "lora"])
@pytest.mark.parametrize("template", ["{text}{prompt}{mask}", "{prompt}{text} it is{mask}"])
def test_checkpointed_gradients_are_the_plain_ones(name, head, kind, template, make):
    backbone, prompt, tensors = trained(make(name, head), kind)
    context = backbone.context(make_examples(SHORT), make_task(template))
    context = context.unread() if kind == "lora" else context

    def gradients(around):
        with around:
            loss = backbone.class_logits(context, prompt)[:, 0].sum()
        return torch.autograd.grad(loss, tensors)  # outside: the second computation brings its surroundings along

    plain = gradients(nullcontext())
    for found, expected in zip(gradients(gradient_checkpointing()), plain, strict=True):
        assert float(expected.abs().max()) > 0
        assert_close(found, expected, 1e-6)


@pytest.mark.parametrize(("name", "head"), MODELS)
@pytest.mark.parametrize("kind", ["prefix", "deep"])
def test_checkpointing_keeps_less_for_the_backward_pass(name, head, kind, make):
    depth = {"n_layer": 6} if name == "gpt2" else {"num_hidden_layers": 6}
    backbone, prompt, _ = trained(make(name, head, **depth), kind)
    context = backbone.context(make_examples(SHORT), make_task("{prompt}{text} it is{mask}"))
    entered = []

    def note(module, args, kwargs):
        entered.append((args[0] if args else kwargs["hidden_states"]).nbytes)

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in own_layers(backbone.model)]
    plain = sum(saved_bytes(lambda: backbone.class_logits(context, prompt)).values())
    entered.clear()
    with gradient_checkpointing():
        less = sum(saved_bytes(lambda: backbone.class_logits(context, prompt)).values())
    for handle in handles:
        handle.remove()
    assert len(entered) == 6
    assert less + sum(entered) < 0.5 * plain


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("name", "head"), MODELS)
@pytest.mark.parametrize("method", ["prefix-tuning", "lora"])
def test_training_with_checkpointing_is_training_without(name, head, method, make):
    def losses(checkpointing):
        rate = "learning_rate" if method == "lora" else "encoder_learning_rate"
        options = {"epochs": 3, rate: 0.01, "gradient_checkpointing": checkpointing}
        trace = make_method(method, options).fit(tiny_problem(make(name, head))).trace
        return [event["train_loss"] for event in trace]

    plain = losses(False)
    assert plain[-1] != plain[0]
    assert losses(True) == pytest.approx(plain, abs=1e-5)


# Several prompts of several kinds, class heads and features


def mixed_prompts(backbone, ids):
    offsets = 0.1 * torch.randn(backbone.offsets_shape(len(ids)), generator=torch.Generator().manual_seed(2))
    vectors = backbone.embed(torch.tensor(ids)) + 0.1
    bases = [HardPrompt(ids), SoftPrompt(vectors), HardPrompt(ids[:2])]
    prompts = [*bases, DeepCue(bases[0], offsets), PrefixPrompt(bases[0], random_states(backbone, 4))]
    prompts += [PrefixPrompt(bases[1], random_states(backbone, 2, seed=3))]
    heads = [random_head(backbone, seed) for seed in range(3)]
    with_heads = [replace(base, head=head) for base, head in zip(bases, heads, strict=True)]
    with_heads += [DeepCue(with_heads[0], offsets), PrefixPrompt(with_heads[1], random_states(backbone, 3))]
    if backbone.head_kind == "sequence":
        return with_heads
    # In turn, so that prompts that share a pass do not stand beside each other.
    return [prompt for pair in zip(prompts, [*with_heads, prompts[0]], strict=True) for prompt in pair]


@pytest.mark.parametrize(
    ("name", "head"), [("llama", "causal"), ("gemma2", "causal"), ("gpt2", "causal"), ("bert", "masked")]
)
@pytest.mark.parametrize("template", ["{text}{prompt}{mask}", "{prompt}{text} it is{mask}"])
@torch.no_grad()
def test_prompts_of_several_kinds_together_are_each_alone(name, head, template, make):
    check_mixed(make(name, head), template)


@torch.no_grad()
def test_prompts_of_several_kinds_on_pooled_features_are_each_alone(make):
    check_mixed(make("bert", "sequence"), "{prompt}{text}")


def check_mixed(backbone, template):
    context = backbone.context(make_examples(SHORT), make_task(template))
    prompts = mixed_prompts(backbone, IDS if backbone.head_kind == "causal" else WORDS)
    found = backbone.class_logits_many(context, prompts)
    assert found.shape == (len(prompts), len(SHORT), 2)
    for own, prompt in zip(found, prompts, strict=True):
        rows = [backbone.class_logits(context.select([row]), prompt)[0] for row in range(len(SHORT))]
        assert_close(own, torch.stack(rows), 2e-5)


def hidden_at_answer(backbone, piece, words):
    """Return what enters the output embedding of a plain forward, and the last of its hidden states, at the slot."""
    ids = [*piece.before, *words, *piece.after]
    slot = -1 if backbone.head_kind == "causal" else ids.index(backbone.tokenizer.mask_token_id)
    entered = []
    module = backbone.model.get_output_embeddings()
    handle = module.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    output = backbone.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    handle.remove()
    return entered[0][0, slot], output.hidden_states[-1][0, slot]


@pytest.mark.parametrize(
    ("name", "head"),
    [(name, "causal") for name in CAUSAL] + [(name, "masked") for name in (*WITH_PAST, *WITHOUT_PAST, "albert")],
)
@pytest.mark.parametrize("template", ["{text}{prompt}{mask}", "{prompt}{text} it is{mask}"])
@torch.no_grad()
def test_features_are_what_enters_the_output_embedding(name, head, template, make):
    backbone = make(name, head)
    words = IDS if head == "causal" else WORDS
    context = backbone.context(make_examples(SHORT), make_task(template))
    found = backbone.features(context, HardPrompt(words))
    plain = [hidden_at_answer(backbone, piece, words) for piece in context.pieces]
    assert_close(found, torch.stack([entered for entered, _ in plain]))
    if head == "causal":  # a masked model's head has a transform between the two
        assert_close(found, torch.stack([hidden for _, hidden in plain]))
    class_head = random_head(backbone) if found.shape[1] == backbone.hidden_size else None
    if class_head is not None:
        logits = backbone.class_logits(context, HardPrompt(words, class_head))
        expected = [class_head.weight @ entered + class_head.bias for entered, _ in plain]
        assert_close(logits, torch.stack(expected))


@pytest.mark.parametrize(("name", "head"), MODELS)
def test_features_carry_the_gradient_of_prompt_and_class_head(name, head, make):
    backbone, prompt, tensors = trained(make(name, head), "soft")
    context = backbone.context(make_examples(SHORT), make_task("{text}{prompt}{mask}"))
    fixed = random_head(backbone)
    free = ClassHead(fixed.weight.clone().requires_grad_(), fixed.bias.clone().requires_grad_())
    backbone.class_logits(context, replace(prompt, head=free))[:, 0].sum().backward()
    found = tensors[0].grad.clone()
    tensors[0].grad = None
    features = backbone.features(context, prompt)
    (features @ fixed.weight[0]).sum().backward()
    assert_close(found, tensors[0].grad)
    assert_close(free.weight.grad[0], features.detach().sum(0))
    assert free.bias.grad.tolist() == [len(SHORT), 0]
