"""PrefixTuning around models of many kinds; oracles: PEFT with the same states, and the model reading real tokens."""

import copy

import pytest
import torch
from tokenizers import processors
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from conftest import LABELS, TEXTS, lively, make_causal, make_masked
from cuecraft.api.classic import PrefixTuning
from cuecraft.core.errors import BackboneError, DataError, PromptError
from cuecraft.export.peft_export import flatten_states
from oracles import saved_bytes

IDS = torch.tensor([[70, 71, 72, 73, 74], [80, 81, 82, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "vocab_size": 420,
    "pad_token_id": 0,
}


def of_class(kind, language_model, **changes):
    config = copy.deepcopy(language_model.config)
    for name, value in {"num_labels": 3, **changes}.items():
        setattr(config, name, value)
    return lively(kind(config))


def build(kind, tokenizer):
    makers = {
        "llama": lambda: make_causal(tokenizer),
        "gpt2": lambda: make_causal(tokenizer, "gpt2"),
        "qwen2": lambda: make_causal(tokenizer, "qwen2"),
        "opt": lambda: lively(
            OPTForCausalLM(
                OPTConfig(
                    **{k: v for k, v in SHAPE.items() if k != "intermediate_size"}, ffn_dim=64, word_embed_proj_dim=32
                )
            )
        ),
        "llama-classes": lambda: of_class(LlamaForSequenceClassification, make_causal(tokenizer)),
        "gpt2-classes": lambda: of_class(GPT2ForSequenceClassification, make_causal(tokenizer, "gpt2")),
        "bert": lambda: lively(BertForMaskedLM(BertConfig(**SHAPE))),
        "bert-classes": lambda: lively(BertForSequenceClassification(BertConfig(**SHAPE, num_labels=3))),
        "roberta-classes": lambda: lively(RobertaForSequenceClassification(RobertaConfig(**SHAPE, num_labels=3))),
    }
    return makers[kind]()


CAUSAL = ("llama", "gpt2", "qwen2", "opt")
CLASSES = ("llama-classes", "gpt2-classes", "bert-classes", "roberta-classes")
ALL = (*CAUSAL, *CLASSES, "bert")


def batch_of(kind):
    labels = torch.tensor([0, 1]) if kind.endswith("-classes") else IDS.masked_fill(MASK == 0, -100)
    return {"input_ids": IDS, "attention_mask": MASK, "labels": labels}


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("kind", ALL)
def test_a_step_moves_the_prefix_and_no_weight_of_the_model(kind, projection, byte_tokenizer):
    model = build(kind, byte_tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = PrefixTuning(model, 6, projection).train()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    own = set(map(id, module.projection.parameters() if projection else [module.prefix]))
    assert set(map(id, trained)) == own
    assert module.training
    assert not model.training

    first, start = module(**batch_of(kind)), module.prefix_state_dict()["states"]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = module(**batch_of(kind)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is None for parameter in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    moved = module.prefix_state_dict()["states"] - start
    assert (moved.abs().amax(dim=(2, 3, 4)) > 0).all(), "keys and values of every layer move"
    assert losses[-1] < losses[0]
    assert float(first.loss.detach()) == pytest.approx(losses[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert-classes"])
def test_the_first_gradient_is_that_of_finite_differences(kind, byte_tokenizer):
    module = PrefixTuning(build(kind, byte_tokenizer).double(), 3, prefix_projection=False).double()

    def number():  # transformers takes losses and some norms in float32
        return (module(**batch_of(kind)).logits.log_softmax(-1)[..., 1]).sum()

    number().backward()
    assert module.prefix.dtype == torch.float64
    for place in ((0, 0, 0, 1, 2), (1, 1, 1, 2, 5)):
        found = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                module.prefix[place] += step
                found.append(float(number()))
                module.prefix[place] -= step
        assert float(module.prefix.grad[place]) == pytest.approx((found[0] - found[1]) / 2e-3, rel=1e-2)


def peft_with(states, model, **options):
    peft = pytest.importorskip("peft")
    layers, _, heads, length, width = states.shape
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length, **options)
    wrapped = peft.get_peft_model(model, config).eval()
    assert (config.num_layers, config.num_attention_heads, config.token_dim) == (layers, heads, heads * width)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(flatten_states(states))
    return wrapped


@torch.no_grad()
@pytest.mark.parametrize("kind", CAUSAL)
def test_logits_are_those_of_peft_with_the_same_states(kind, byte_tokenizer):
    module = PrefixTuning(build(kind, byte_tokenizer), 6, prefix_projection=False)
    module.prefix.add_(torch.randn(module.prefix.shape, generator=torch.Generator().manual_seed(1)))
    peft = peft_with(module.prefix_states, build(kind, byte_tokenizer))
    left, left_mask = IDS.flip(1), MASK.flip(1)
    left_positions = (left_mask.cumsum(1) - 1).clamp(min=0)
    batches = [
        ({"input_ids": IDS[:1]}, MASK[:1]),
        ({"input_ids": IDS, "attention_mask": MASK}, MASK),
        ({"input_ids": left, "attention_mask": left_mask, "position_ids": left_positions}, left_mask),
    ]
    for batch, mask in batches:
        found, expected = module(**batch).logits[mask.bool()], peft(**batch).logits[mask.bool()]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    bare = build(kind, byte_tokenizer)(input_ids=IDS[:1]).logits
    assert (module(input_ids=IDS[:1]).logits - bare).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", CAUSAL)
def test_padding_on_either_side_changes_nothing_also_without_position_ids(kind, byte_tokenizer):
    module = PrefixTuning(build(kind, byte_tokenizer), 6)
    alone = module(input_ids=IDS[1:, :3]).logits[0]
    right = module(input_ids=IDS, attention_mask=MASK).logits[1, :3]
    left = module(input_ids=IDS.flip(1), attention_mask=MASK.flip(1)).logits[1, -3:]
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=1e-5)
    turned = module(input_ids=IDS[1:, :3].flip(1)).logits[0]
    torch.testing.assert_close(left, turned, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*CAUSAL, "llama-classes", "gpt2-classes"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_prefix_of_words_is_the_words_read_in_front_of_the_text(kind, as_tensor, byte_tokenizer):
    module = PrefixTuning(build(kind, byte_tokenizer), 20)
    words = [60, 65, 61, 62]
    module.prefix_tokens = torch.tensor(words) if as_tensor else words
    assert module.num_virtual_tokens == 4
    assert module.prefix_tokens == tuple(words)
    whole = torch.tensor([[*words, *IDS[0].tolist()]])
    expected = build(kind, byte_tokenizer)(input_ids=whole).logits
    expected = expected if kind.endswith("-classes") else expected[:, 4:]
    torch.testing.assert_close(module(input_ids=IDS[:1]).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "bert-classes", "roberta-classes"])
def test_an_encoder_attends_to_the_prefix_and_keeps_its_positions(kind, byte_tokenizer):
    """One layer by hand: softmax over the prefix's keys beside the text's own, in every head."""
    model = build(kind, byte_tokenizer)
    module = PrefixTuning(model, 5)
    seen = {}

    def note(layer):
        own = layer.attention.self
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(hidden=(*args, *kwargs.values())[0]), with_kwargs=True
        )
        own.register_forward_hook(lambda _, args, output: seen.update(found=output[0]))
        return own

    own = note(model.base_model.encoder.layer[0])
    found = module(input_ids=IDS[:1]).logits
    plain = build(kind, byte_tokenizer).base_model.embeddings(input_ids=IDS[:1])
    torch.testing.assert_close(seen["hidden"], plain)  # the positions of the text alone

    def heads(linear):
        return linear(plain).view(1, 5, 4, 8).transpose(1, 2)

    keys, values = (part[None] for part in module.prefix_states[0])
    keys, values = torch.cat([keys, heads(own.key)], 2), torch.cat([values, heads(own.value)], 2)
    expected = (heads(own.query) @ keys.transpose(2, 3) / 8**0.5).softmax(-1) @ values
    torch.testing.assert_close(seen["found"].reshape(1, 5, 32), expected.transpose(1, 2).reshape(1, 5, 32))
    assert (found - build(kind, byte_tokenizer)(input_ids=IDS[:1]).logits).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bert-classes"])
def test_gradient_checkpointing_saves_memory_and_changes_no_gradient(kind, byte_tokenizer):
    gradients, stored = [], []
    for is_on in (False, True):
        model = build(kind, byte_tokenizer)
        if is_on:
            model.gradient_checkpointing_enable()
        module = PrefixTuning(model, 6, prefix_projection=False).train()
        if is_on:
            model.train()  # as a trainer would have it
        stored.append(sum(saved_bytes(lambda module=module: module(**batch_of(kind)).loss).values()))
        module(**batch_of(kind)).loss.backward()
        gradients.append(module.prefix.grad)
    assert gradients[0].abs().amax(dim=(2, 3, 4)).min() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-5)
    assert stored[1] < stored[0]


@torch.no_grad()
@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_goes_on_from_the_prefix(kind, options, byte_tokenizer):
    module = PrefixTuning(build(kind, byte_tokenizer), 4)
    words = [60, 65, 61]
    module.prefix_tokens = words
    left, mask = IDS.flip(1), MASK.flip(1)
    whole = torch.cat([torch.tensor(words).expand(2, -1), left], 1)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0} | options
    own = build(kind, byte_tokenizer).generate(
        whole, attention_mask=torch.cat([torch.ones(2, 3, dtype=torch.long), mask], 1), **options
    )
    found = module.generate(left, attention_mask=mask, **options)
    assert torch.equal(found, own[:, 3:])
    as_document = module.generate(left, attention_mask=mask, return_dict_in_generate=True, **options)
    assert torch.equal(as_document.sequences, found)
    alone = module.generate(IDS[:1], **options)
    assert torch.equal(alone[:, :5], IDS[:1].expand(len(alone), -1))
    module.load_prefix_state_dict({"states": module.prefix_states + 2 * torch.randn(module.prefix_states.shape)})
    assert not torch.equal(module.generate(left, attention_mask=mask, **options), found)


def test_only_causal_language_models_generate(byte_tokenizer):
    for kind in ("bert", "llama-classes"):
        with pytest.raises(BackboneError, match="does not generate text"):
            PrefixTuning(build(kind, byte_tokenizer), 4).generate(IDS)


def test_states_can_be_kept_and_taken_over(byte_tokenizer):
    module = PrefixTuning(build("llama", byte_tokenizer), 5)
    module.prefix_tokens = [60, 61, 62, 63, 64]
    with torch.no_grad():
        for parameter in module.projection.parameters():
            parameter.add_(0.1)
    state = module.prefix_state_dict()
    assert list(state) == ["states"]
    assert state["states"].shape == (2, 2, 2, 5, 8)
    assert not state["states"].requires_grad
    for projection in (True, False):
        other = PrefixTuning(build("llama", byte_tokenizer), 7, projection, seed=9)
        other.load_prefix_state_dict(state)
        assert torch.equal(other.prefix_states.detach(), state["states"])
        assert other.num_virtual_tokens == 5
        assert other.prefix_tokens is None
        torch.testing.assert_close(other(input_ids=IDS).logits, module(input_ids=IDS).logits)


def test_a_prefix_of_the_same_length_keeps_the_parameters_an_optimizer_holds(byte_tokenizer):
    for projection in (True, False):
        module = PrefixTuning(build("llama", byte_tokenizer), 3, projection)
        held = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.prefix_tokens = [60, 61, 62]
        assert [id(p) for p in module.parameters() if p.requires_grad] == [id(p) for p in held]


def test_a_copy_answers_like_the_original(byte_tokenizer):
    module = PrefixTuning(build("llama", byte_tokenizer), num_virtual_tokens=3)
    batch = batch_of("llama")
    copied = copy.deepcopy(module)
    with torch.no_grad():
        assert torch.equal(copied(**batch).logits, module(**batch).logits)


def test_the_seed_draws_the_prefix_and_the_projection(byte_tokenizer):
    first, again, other = (PrefixTuning(build("llama", byte_tokenizer), 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.prefix_states, again.prefix_states)
    assert not torch.equal(first.prefix_states, other.prefix_states)
    assert not torch.equal(first.projection.positions, other.projection.positions)
    assert PrefixTuning(build("llama", byte_tokenizer)).num_virtual_tokens == 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: DebertaV2Model(DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"])),
        lambda: DebertaV2Model(DebertaV2Config(**SHAPE)),
        lambda: AlbertModel(AlbertConfig(**SHAPE, embedding_size=16)),
        lambda: T5ForConditionalGeneration(T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
        lambda: T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
    ],
    ids=["deberta", "deberta-plain", "albert", "t5", "t5-encoder"],
)
def test_models_that_cannot_attend_to_a_prefix_are_refused_in_one_line(make):
    with pytest.raises(BackboneError) as caught:
        PrefixTuning(lively(make()), 4)
    assert "\n" not in str(caught.value)


def test_mistakes_are_named(byte_tokenizer):
    with pytest.raises(PromptError, match="num_virtual_tokens is 0"):
        PrefixTuning(build("llama", byte_tokenizer), 0)
    module = PrefixTuning(build("llama", byte_tokenizer), 5)
    with pytest.raises(PromptError, match=r"prefix_tokens has shape \[1, 2\]"):
        module.prefix_tokens = torch.tensor([[60, 61]])
    with pytest.raises(PromptError, match=r"prefix_tokens has shape \[0\]"):
        module.prefix_tokens = []
    with pytest.raises(PromptError, match="5000 is outside the vocabulary"):
        module.prefix_tokens = [60, 5000]
    with pytest.raises(PromptError, match=r"'states' has nothing, but this model takes \[2, 2, 2, P, 8\]"):
        module.load_prefix_state_dict({})
    for shape in ((2, 2, 4, 5, 8), (3, 2, 2, 5, 8), (2, 2, 2, 0, 8), (2, 2, 2, 8)):
        with pytest.raises(PromptError, match="'states' has"):
            module.load_prefix_state_dict({"states": torch.zeros(shape)})
    with pytest.raises(BackboneError, match="past_key_values cannot be combined"):
        module(input_ids=IDS, past_key_values=module.model(input_ids=IDS).past_key_values)
    with pytest.raises(BackboneError, match="neither input_ids nor inputs_embeds"):
        module(attention_mask=MASK)
    module(input_ids=torch.full((1, 123), 60))
    with pytest.raises(PromptError, match=r"leaves 123 positions of .* to a text, and one has 124"):
        module(input_ids=torch.full((1, 124), 60))


def rows(number=16):
    return [{"text": text, "label": LABELS[label]} for text, label in (TEXTS * 3)[:number]]


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_fewshot_training_of_a_language_model(kind, projection, byte_tokenizer, word_tokenizer):
    model = make_masked(word_tokenizer) if kind == "bert" else build(kind, byte_tokenizer)
    tokenizer = word_tokenizer if kind == "bert" else byte_tokenizer
    module = PrefixTuning(model, 6, projection)
    before = module.prefix_state_dict()["states"]
    trace = module.train_fewshot(rows(), tokenizer, label_words={"negative": "bad", "positive": "good"}, epochs=6)
    assert [event["step"] for event in trace] == list(range(7))
    best = min(trace, key=lambda event: event["dev_loss"])
    assert best["dev_loss"] < trace[0]["dev_loss"]
    assert not torch.equal(module.prefix_state_dict()["states"], before)


def test_the_trained_loss_is_that_of_the_modules_own_pass(byte_tokenizer):
    """Also where the tokenizer writes a token before every text: the prefix stands before it, as in `forward`."""
    raw = byte_tokenizer.backend_tokenizer.from_str(byte_tokenizer.backend_tokenizer.to_str())
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    with_start = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    data = [{"text": " good", "label": "bad"}, {"text": " dull story", "label": "warm"}]  # too few to hold out
    for tokenizer in (byte_tokenizer, with_start):
        module = PrefixTuning(build("llama", byte_tokenizer), 6)
        columns = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in ("bad", "warm")]
        assert [len(ids) for ids in columns] == [1, 1]

        @torch.no_grad()
        def own_loss(module=module, tokenizer=tokenizer, columns=columns):
            losses = []
            for number, row in enumerate(data):
                ids = tokenizer(row["text"] + "\nIn one word, this is", return_tensors="pt")["input_ids"]
                logits = module(input_ids=ids).logits[0, -1, [ids[0] for ids in columns]]
                losses.append(-float(logits.log_softmax(-1)[number]))
            return sum(losses) / 2

        before = own_loss()
        trace = module.train_fewshot(data, tokenizer, epochs=5)
        assert trace[0]["train_loss"] == pytest.approx(before, rel=1e-4)
        assert own_loss() < before - 0.1


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("projection", [True, False])
def test_fewshot_training_through_a_class_head(kind, projection, byte_tokenizer):
    model = build(kind, byte_tokenizer)
    model.config.pad_token_id = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = PrefixTuning(model, 6, projection)
    trace = module.train_fewshot(rows(), byte_tokenizer, epochs=6, batch_size=4)
    assert [event["step"] for event in trace] == [1, 2, 3, 4, 5, 6]
    assert trace[-1]["train_loss"] < trace[0]["train_loss"]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_class_heads_know_labels_by_number_or_name(byte_tokenizer):
    model = build("bert-classes", byte_tokenizer)
    model.config.id2label, model.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    state = PrefixTuning(model, 4).prefix_state_dict()

    def first_loss(*labels):
        module = PrefixTuning(model, 4)
        module.load_prefix_state_dict(state)
        data = {"text": [" good film", " dull plot"], "label": list(labels)}
        return module.train_fewshot(data, byte_tokenizer, epochs=1)[0]["train_loss"]

    assert first_loss("b", "c") == first_loss(1, 2) != first_loss(2, 1)
    assert first_loss("x", "y") == first_loss(0, 1)
    with pytest.raises(DataError, match="label '7' has no place in the model's head, which has 3 classes"):
        first_loss(1, 7)


def test_what_cannot_be_trained_is_said(byte_tokenizer):
    module = PrefixTuning(build("bert-classes", byte_tokenizer), 4)
    with pytest.raises(BackboneError, match="leave label_words out"):
        module.train_fewshot(rows(), byte_tokenizer, label_words={"negative": "bad", "positive": "good"})
    with pytest.raises(BackboneError, match=r"made in memory\); give tokenizer="):
        module.train_fewshot(rows())
    with pytest.raises(BackboneError, match="has no head to train for"):
        PrefixTuning(lively(BertModel(BertConfig(**SHAPE))), 4).train_fewshot(rows(), byte_tokenizer)
    for data, message in (
        ([], "no rows were given"),
        ([{"text": "a"}], "row 1 is not a mapping with 'text' and 'label'"),
        ({"text": ["a"], "labels": [1]}, "has columns 'text', 'labels'"),
        ({"text": ["a", "b"], "label": [1]}, "2 texts but 1 labels"),
    ):
        with pytest.raises(DataError, match=message):
            module.train_fewshot(data, byte_tokenizer)


def test_a_saved_model_brings_its_tokenizer(causal_folder):
    from transformers import AutoModelForCausalLM

    module = PrefixTuning(AutoModelForCausalLM.from_pretrained(causal_folder), 4)
    trace = module.train_fewshot(rows(), label_words={"negative": "bad", "positive": "good"}, epochs=1)
    assert len(trace) == 2
